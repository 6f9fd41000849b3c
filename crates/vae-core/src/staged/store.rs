use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use burn::tensor::{DType, Device, Tensor, TensorData};
use tiling::{BoxError, ScratchError, Span};

use super::room::{FileRange, HostBytes, HostMemory, Scratch, lock};
#[cfg(feature = "flex")]
use crate::CHANNEL_BLOCK;
use crate::coder::Area;
use crate::layers::Features;
use crate::{Context, backends};

#[cfg(feature = "flex")]
use crate::operators::cpu::Images;
#[cfg(feature = "flex")]
use kernels::BlockedImage;

/// Keeps the values between stages, tile by tile, in the dtype in which they were computed: in host memory up to a limit, then in a scratch file.
///
/// Tiles are written once each, from any thread; a tile that is run again replaces what it wrote. What comes after its stage has ended, or from a worker that
/// does not have the tile any longer, is refused. An area is read from all tiles that it touches.
#[derive(Debug)]
pub struct FeatureStore {
    layout: Layout,
    state: RwLock<State>,
    /// Keys and values that all tiles of a stage on a device attend to, until the next stage begins.
    attended: Mutex<Vec<(Device, DType, Attended)>>,
    /// Held while they are read for a CPU.
    reading: Mutex<()>,
    host: Arc<HostMemory>,
    scratch: Arc<Scratch>,
}

#[derive(Debug, Default)]
struct State {
    epoch: Epoch,
    values: BTreeMap<usize, Vec<Piece>>,
}

/// The time in which one stage is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Epoch(u64);

/// Where features belong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) value: usize,
    pub(super) tile: usize,
    /// The first of their frames.
    pub(super) first: usize,
    /// The tile's own area.
    pub(super) area: Area,
}

/// The px of a value that are keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyGrid {
    /// Height and width of the value.
    pub(super) size: [usize; 2],
    /// Rows and columns from one to the next.
    pub(super) stride: usize,
}

/// Keys and values of some frames.
#[derive(Debug, Clone)]
struct Attended {
    values: [usize; 2],
    frames: Range<usize>,
    features: [Features; 2],
}

/// How values lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As the CPU kernels store images.
    #[cfg(feature = "flex")]
    Blocked,
    /// `[b, c, t, h, w]`, row-major.
    Planes,
}

/// Some frames of a tile of a value.
#[derive(Debug, Clone)]
struct Piece {
    tile: usize,
    frames: Range<usize>,
    area: Area,
    content: Arc<Content>,
}

#[derive(Debug)]
struct Content {
    /// Batch items and channels.
    items: [usize; 2],
    dtype: DType,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// An image for each frame of each batch item.
    #[cfg(feature = "flex")]
    Images(Vec<BlockedImage>, #[expect(dead_code, reason = "gives the memory back when it is dropped")] HostBytes),
    Planes(TensorData, #[expect(dead_code, reason = "gives the memory back when it is dropped")] HostBytes),
    /// The values in their layout.
    File(FileRange),
}

impl FeatureStore {
    /// A store for devices that compute in these dtypes, with at most `limit` bytes in host memory.
    pub fn new(devices: impl IntoIterator<Item = (Device, DType)>, limit: u64) -> Self {
        #[cfg(feature = "flex")]
        let layout = {
            let is_blocked = |(device, dtype): (Device, DType)| backends::operators(&device, dtype).data_type() == std::any::TypeId::of::<Images>();
            if devices.into_iter().all(is_blocked) { Layout::Blocked } else { Layout::Planes }
        };
        #[cfg(not(feature = "flex"))]
        let layout = {
            let _ = devices;
            Layout::Planes
        };
        let host = Arc::new(HostMemory::new(limit));
        Self { layout, state: RwLock::default(), attended: Mutex::default(), reading: Mutex::default(), host, scratch: Arc::default() }
    }

    /// The most bytes that were in host memory at once, and the length of the scratch file.
    pub fn peak_bytes(&self) -> [u64; 2] {
        [self.host.peak(), self.scratch.length()]
    }

    /// Begins a stage. What earlier ones still give is refused.
    pub fn begin_stage(&self) -> Epoch {
        let epoch = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.epoch.0 += 1;
            state.epoch
        };
        let earlier = std::mem::take(&mut *lock(&self.attended));
        drop(earlier);
        epoch
    }

    /// Stores features. Says whether all values are finite, where that has to be known: in 16 bits.
    ///
    /// # Errors
    /// When the device does not give them, the scratch file cannot be written, or the stage or the run that they belong to has ended.
    pub(super) fn put(&self, epoch: Epoch, slot: Slot, features: Features) -> Result<bool, BoxError> {
        let Slot { value, tile, first, area } = slot;
        let [b, c, t, h, w] = features.dims();
        debug_assert_eq!([h, w], area.map(|span| span.length));
        let context = features.context().clone();
        let (place, dtype, is_finite) = match self.layout {
            #[cfg(feature = "flex")]
            Layout::Blocked => {
                let images = features.into_images();
                let bytes = images.iter().map(|image| size_of_val(image.values()) as u64).sum();
                let place = if let Some(share) = self.host.take(bytes) {
                    Place::Images(images, share)
                } else {
                    let range = self.scratch.take(bytes)?;
                    let mut offset = 0;
                    for image in &images {
                        range.file.write_at(range.start + offset, image.values())?;
                        offset += size_of_val(image.values()) as u64;
                    }
                    Place::File(range)
                };
                (place, DType::F32, true)
            }
            Layout::Planes => {
                let data = Tensor::<5>::from(features).try_into_data()?;
                let (dtype, bytes) = (data.dtype(), data.as_bytes().len() as u64);
                let is_finite = dtype == DType::F32 || data.iter::<f32>().all(f32::is_finite);
                let place = if let Some(share) = self.host.take(bytes) {
                    Place::Planes(data, share)
                } else {
                    let range = self.scratch.take(bytes)?;
                    range.file.write_at(range.start, data.as_bytes())?;
                    Place::File(range)
                };
                (place, dtype, is_finite)
            }
        };
        let piece = Piece { tile, frames: first..first + t, area, content: Arc::new(Content { items: [b, c], dtype, place }) };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.epoch != epoch || context.is_stopped() {
            return Err("features come too late".into());
        }
        let pieces = state.values.entry(value).or_default();
        let known = pieces.iter().position(|old| old.tile == tile && old.frames == piece.frames);
        match known {
            // Another worker may have given them in a wider dtype.
            Some(_) if !is_finite => {}
            Some(at) => pieces[at] = piece,
            None => pieces.push(piece),
        }
        Ok(is_finite)
    }

    /// Frames of an area of a value, for a device that computes in `dtype`.
    ///
    /// # Errors
    /// When a part of it was never stored, or the scratch file cannot be read.
    pub fn get(
        &self,
        value: usize,
        frames: Range<usize>,
        area: Area,
        device: &Device,
        dtype: DType,
        context: &Context,
    ) -> Result<Features, BoxError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let all = state.values.get(&value).map_or(&[][..], Vec::as_slice);
        let touches = |piece: &&Piece| {
            let shares = |a: Span, b: Span| a.start < b.end() && b.start < a.end();
            shares(piece.area[0], area[0]) && shares(piece.area[1], area[1]) && piece.frames.start < frames.end && frames.start < piece.frames.end
        };
        let pieces: Vec<Piece> = all.iter().filter(touches).cloned().collect();
        drop(state);
        let parts: Vec<Part> = pieces.iter().map(|piece| Part::new(piece, area, &frames)).collect();
        let covered: usize = parts.iter().map(Part::volume).sum();
        let Some(first) = pieces.first().filter(|_| covered == frames.len() * area[0].length * area[1].length) else {
            return Err(MISSING.into());
        };
        let [b, c] = first.content.items;
        let shape = [b, c, frames.len(), area[0].length, area[1].length];
        match self.layout {
            #[cfg(feature = "flex")]
            Layout::Blocked => read_images(&parts, shape, context),
            Layout::Planes => Ok(Features::new(read_planes(&parts, shape, device, dtype)?, context)),
        }
    }

    /// Gives up values.
    pub fn remove(&self, finished: &[usize]) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).values.retain(|value, _| !finished.contains(value));
    }

    /// Attention over keys and values of the whole. On the CPU, where tiles of them may be in the scratch file, over one tile after the other.
    ///
    /// # Errors
    /// When a part of them was never stored, or the scratch file cannot be read.
    pub(super) fn attend(
        &self,
        queries: Features,
        keys_and_values: [usize; 2],
        keys: KeyGrid,
        frames: Range<usize>,
        device: &Device,
        dtype: DType,
    ) -> Result<Features, BoxError> {
        #[cfg(feature = "flex")]
        if self.layout == Layout::Blocked && keys.stride == 1 {
            return self.attend_by_tiles(queries, keys_and_values, keys.size, frames);
        }
        let is_wanted = |(on, of, attended): &&(Device, DType, Attended)| {
            (on, *of, attended.values, &attended.frames) == (device, dtype, keys_and_values, &frames)
        };
        let known = || lock(&self.attended).iter().find(is_wanted).map(|(_, _, attended)| attended.features.clone());
        let [keys, values] = {
            // One worker of a CPU reads for all. A device that may hang must not hold others up.
            let _alone = crate::is_in_host_memory(device).then(|| lock(&self.reading));
            if let Some(features) = known() {
                features
            } else {
                let context = queries.context();
                let read = |value: usize| match keys.stride {
                    1 => self.get(value, frames.clone(), keys.size.map(|length| Span { start: 0, length }), device, dtype, context),
                    _ => self.get_grid(value, frames.clone(), keys, device, dtype, context),
                };
                let features = [read(keys_and_values[0])?, read(keys_and_values[1])?];
                let attended = Attended { values: keys_and_values, frames, features: features.clone() };
                lock(&self.attended).push((device.clone(), dtype, attended));
                features
            }
        };
        Ok(queries.attend(keys, values))
    }

    /// Frames of an even grid of px of a value, the first of them half a stride from the border.
    fn get_grid(
        &self,
        value: usize,
        frames: Range<usize>,
        grid: KeyGrid,
        device: &Device,
        dtype: DType,
        context: &Context,
    ) -> Result<Features, BoxError> {
        let KeyGrid { size: [height, width], stride } = grid;
        let at = |side: usize| (0..side.div_ceil(stride)).map(move |at| (at * stride + stride / 2).min(side - 1));
        let row = |row: usize| {
            context.check_stop();
            let area = [Span { start: row, length: 1 }, Span { start: 0, length: width }];
            let row = Tensor::<5>::from(self.get(value, frames.clone(), area, device, dtype, context)?);
            let columns: Vec<i64> = at(width).map(|column| column.cast_signed() as i64).collect();
            Ok(row.select(4, Tensor::from_data(&columns[..], device)))
        };
        let rows = at(height).map(row).collect::<Result<Vec<_>, BoxError>>()?;
        Ok(Features::new(Tensor::cat(rows, 3), context))
    }

    #[cfg(feature = "flex")]
    fn attend_by_tiles(&self, queries: Features, keys_and_values: [usize; 2], size: [usize; 2], frames: Range<usize>) -> Result<Features, BoxError> {
        let context = queries.context().clone();
        let [b, .., height, width] = queries.dims();
        let [keys, values] = keys_and_values.map(|value| {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let mut pieces = state.values.get(&value).cloned().unwrap_or_default();
            // Sums depend on the order.
            pieces.sort_by_key(|piece| (piece.frames.start, piece.tile));
            pieces
        });
        let channels = values.first().ok_or(MISSING)?.content.items[1];
        let mut attentions: Vec<kernels::Attention> =
            queries.into_images().into_iter().map(|image| kernels::Attention::new(image, channels)).collect();
        let mut covered = vec![0; attentions.len()];
        for (keys, values) in keys.iter().zip(&values) {
            for (at, attention) in attentions.iter_mut().enumerate() {
                let (item, frame) = (at / frames.len(), frames.start + at % frames.len());
                if !keys.frames.contains(&frame) {
                    continue;
                }
                context.check_stop();
                let index = item * keys.frames.len() + frame - keys.frames.start;
                let [keys, values] = [keys.image(index, &context)?, values.image(index, &context)?];
                attention.add(&keys, &values);
                covered[at] += keys.size().iter().product::<usize>();
            }
        }
        if covered.iter().any(|&covered| covered != size[0] * size[1]) {
            return Err(MISSING.into());
        }
        let images = attentions.into_iter().map(kernels::Attention::finish).collect();
        Ok(Features::from_images(b, images, channels, [height, width], &context))
    }
}

/// The message for a read of what was never stored.
const MISSING: &str = "features of an earlier stage are missing";

#[cfg(feature = "flex")]
impl Piece {
    /// One of its images.
    fn image(&self, index: usize, context: &Context) -> Result<BlockedImage, BoxError> {
        let part = Part::new(self, self.area, &self.frames);
        match &self.content.place {
            Place::Images(images, _) => Ok(images[index].clone()),
            Place::File(range) => Ok(read_part(&part, range, self.content.items[1], index, context)?),
            Place::Planes(..) => unreachable!("one layout"),
        }
    }
}

/// What a piece has of an area that is read.
struct Part<'a> {
    content: &'a Content,
    /// Frames, height and width of the piece.
    extent: [usize; 3],
    /// First frame, row and column in the piece.
    from: [usize; 3],
    /// First frame, row and column in the area.
    to: [usize; 3],
    /// Frames, rows and columns.
    size: [usize; 3],
}

impl<'a> Part<'a> {
    fn new(piece: &'a Piece, area: Area, frames: &Range<usize>) -> Self {
        let wanted = [frames.clone(), area[0].start..area[0].end(), area[1].start..area[1].end()];
        let own = [piece.frames.clone(), piece.area[0].start..piece.area[0].end(), piece.area[1].start..piece.area[1].end()];
        let start: [usize; 3] = std::array::from_fn(|axis| wanted[axis].start.max(own[axis].start));
        Self {
            content: &piece.content,
            extent: own.each_ref().map(Range::len),
            from: std::array::from_fn(|axis| start[axis] - own[axis].start),
            to: std::array::from_fn(|axis| start[axis] - wanted[axis].start),
            size: std::array::from_fn(|axis| wanted[axis].end.min(own[axis].end) - start[axis]),
        }
    }

    fn volume(&self) -> usize {
        self.size.iter().product()
    }
}

/// Puts the images of an area together.
#[cfg(feature = "flex")]
fn read_images(parts: &[Part], [b, c, frames, height, width]: [usize; 5], context: &Context) -> Result<Features, BoxError> {
    let image = |at: usize| {
        let (item, frame) = (at / frames, at % frames);
        let mut images = Vec::new();
        for part in parts.iter().filter(|part| (part.to[0]..part.to[0] + part.size[0]).contains(&frame)) {
            let index = item * part.extent[0] + part.from[0] + frame - part.to[0];
            let ([_, top, left], [_, to_row, to_column], [_, rows, columns]) = (part.from, part.to, part.size);
            let (image, from) = match &part.content.place {
                Place::Images(images, _) => (images[index].clone(), [top, left]),
                Place::File(range) => (read_part(part, range, c, index, context)?, [0, 0]),
                Place::Planes(..) => unreachable!("one layout"),
            };
            images.push((image, from, [to_row, to_column], [rows, columns]));
        }
        if let [(image, [0, 0], ..)] = &images[..]
            && image.size() == [height, width]
        {
            return Ok(image.clone());
        }
        let parts: Vec<_> = images.iter().map(|&(ref image, from, to, size)| kernels::Part { image, from, to, size }).collect();
        Ok(BlockedImage::from_parts(c, [height, width], context.workspace(), &parts))
    };
    let images = (0..b * frames).map(image).collect::<Result<Vec<_>, BoxError>>()?;
    Ok(Features::from_images(b, images, c, [height, width], context))
}

/// The px of a part, of the image `index` of a piece in the scratch file.
#[cfg(feature = "flex")]
fn read_part(part: &Part, range: &FileRange, channels: usize, index: usize, context: &Context) -> Result<BlockedImage, ScratchError> {
    let ([_, height, width], [_, top, left], [_, rows, columns]) = (part.extent, part.from, part.size);
    BlockedImage::from_rows(channels, [rows, columns], context.workspace(), |block, row, px| {
        let rows_before = (index * channels.div_ceil(CHANNEL_BLOCK) + block) * height + top + row;
        range.file.read_at(range.start + ((rows_before * width + left) * size_of_val(&px[0])) as u64, px)
    })
}

/// Puts the planes of an area together.
fn read_planes(parts: &[Part], shape: [usize; 5], device: &Device, dtype: DType) -> Result<Tensor<5>, BoxError> {
    let [b, c, frames, height, width] = shape;
    // Parts of different types meet in f32.
    let first = parts[0].content.dtype;
    let common = if parts.iter().all(|part| part.content.dtype == first) { first } else { DType::F32 };
    let size = common.size();
    let mut bytes = vec![0_u8; b * c * frames * height * width * size];
    for part in parts {
        let Content { dtype: own, place, .. } = part.content;
        let [own_frames, own_height, own_width] = part.extent;
        let mut row_bytes = vec![0_u8; part.size[2] * own.size()];
        for plane in 0..b * c {
            for frame in 0..part.size[0] {
                for row in 0..part.size[1] {
                    let before = ((plane * own_frames + part.from[0] + frame) * own_height + part.from[1] + row) * own_width + part.from[2];
                    let before = before * own.size();
                    let source = match place {
                        Place::Planes(data, _) => &data.as_bytes()[before..before + row_bytes.len()],
                        Place::File(range) => {
                            range.file.read_at(range.start + before as u64, &mut row_bytes)?;
                            &row_bytes
                        }
                        #[cfg(feature = "flex")]
                        Place::Images(..) => unreachable!("one layout"),
                    };
                    let to = ((plane * frames + part.to[0] + frame) * height + part.to[1] + row) * width + part.to[2];
                    let target = &mut bytes[to * size..(to + part.size[2]) * size];
                    if *own == common {
                        target.copy_from_slice(source);
                    } else {
                        let values = TensorData::from_bytes_vec(source.to_vec(), [part.size[2]], *own).convert::<f32>();
                        target.copy_from_slice(values.as_bytes());
                    }
                }
            }
        }
    }
    Ok(Tensor::from_data(TensorData::from_bytes_vec(bytes, shape, common), (device, dtype)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_come_late_are_refused() {
        let store = FeatureStore::new([(Device::flex(), DType::F32)], u64::MAX);
        let features = |value: f32, context: &Context| Features::new(Tensor::full([1, 3, 1, 2, 2], value, &Device::flex()), context);
        let slot = Slot { value: 1, tile: 0, first: 0, area: [Span { start: 0, length: 2 }; 2] };
        let stop = tiling::Stop::default();
        let (context, stopped) = (Context::default(), Context::default().with_stop(&stop));
        let first = store.begin_stage();
        store.put(first, slot, features(1.0, &context)).unwrap();
        // Of a tile that was taken from its worker, and of a stage that is over.
        stop.stop();
        store.put(first, slot, features(2.0, &stopped)).unwrap_err();
        let second = store.begin_stage();
        store.put(first, slot, features(3.0, &context)).unwrap_err();
        store.remove(&[1]);
        store.put(first, slot, features(4.0, &context)).unwrap_err();
        store.get(1, 0..1, slot.area, &Device::flex(), DType::F32, &context).unwrap_err();
        store.put(second, slot, features(5.0, &context)).unwrap();
        let read = store.get(1, 0..1, slot.area, &Device::flex(), DType::F32, &context).unwrap();
        assert!(Tensor::<5>::from(read).into_data().iter::<f32>().all(|value| value == 5.0));
    }

    #[test]
    fn attention_rests_on_tiles_or_on_an_even_grid() {
        let store = FeatureStore::new([(Device::flex(), DType::F32)], 500);
        let context = Context::default();
        let epoch = store.begin_stage();
        let whole = |seed: usize| {
            Tensor::<1>::from_data(TensorData::new((0..5 * 7 * 9).map(|at| ((at * 37 + seed) as f32).sin()).collect(), [5 * 7 * 9]), &Device::flex())
                .reshape([1, 5, 1, 7, 9])
        };
        let [queries, keys, values] = [1, 2, 3].map(whole);
        for (value, tensor) in [(10, &keys), (11, &values)] {
            for (tile, (top, height)) in [(0, 3), (3, 4)].into_iter().enumerate() {
                let area = [Span { start: top, length: height }, Span { start: 0, length: 9 }];
                store.put(epoch, Slot { value, tile, first: 0, area }, Features::new(tensor.clone().narrow(3, top, height), &context)).unwrap();
            }
        }
        let features = |tensor: &Tensor<5>| Features::new(tensor.clone(), &context);
        let attend =
            |stride: usize| store.attend(features(&queries), [10, 11], KeyGrid { size: [7, 9], stride }, 0..1, &Device::flex(), DType::F32).unwrap();
        let difference = |a: Features, b: Features| (Tensor::<5>::from(a) - Tensor::from(b)).abs().max().into_scalar::<f32>();
        assert!(difference(attend(1), features(&queries).attend(features(&keys), features(&values))) < 1e-5);
        let grid = |tensor: &Tensor<5>| {
            let columns = Tensor::from_data([1, 4, 7], &Device::flex());
            let rows = Tensor::from_data([1, 4, 6], &Device::flex());
            features(&tensor.clone().select(3, rows).select(4, columns))
        };
        assert!(difference(attend(3), features(&queries).attend(grid(&keys), grid(&values))) < 1e-5);
    }
}
