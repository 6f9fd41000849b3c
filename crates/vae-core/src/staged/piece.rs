//! What a tile has given, wherever it lies, and reading from it.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, ExecutionError, Tensor, TensorData};
use tiling::{BoxError, Span};

use super::room::{FileRange, Share};
#[cfg(feature = "flex")]
use crate::CHANNEL_BLOCK;
use crate::Context;
use crate::coder::Area;
use crate::layers::Features;
use crate::operators::Part;

#[cfg(feature = "flex")]
use crate::operators::cpu::Images;
#[cfg(feature = "flex")]
use kernels::BlockedImage;

/// Some frames of a tile of a value.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) tile: usize,
    pub(super) frames: Range<usize>,
    pub(super) area: Area,
    /// Batch items and channels.
    pub(super) items: [usize; 2],
    pub(super) dtype: DType,
    pub(super) place: Arc<Place>,
}

#[derive(Debug)]
pub(super) enum Place {
    /// Where they were computed.
    Device(Device, Features, #[expect(dead_code, reason = "gives the memory back when it is dropped")] Share),
    /// In host memory, from a device that has no more room: `[b, c, t, h, w]`.
    Host(TensorData, #[expect(dead_code, reason = "gives the memory back when it is dropped")] Share),
    /// In the scratch file, the images one after the other as the CPU kernels store them.
    #[cfg(feature = "flex")]
    Images(FileRange),
    /// In the scratch file: `[b, c, t, h, w]`.
    Planes(FileRange),
}

/// Who reads features: a device that computes in a dtype, for a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    /// The device.
    pub(super) device: &'a Device,
    /// What it computes in.
    pub(super) dtype: DType,
    /// The run.
    pub(super) context: &'a Context,
}

impl Reader<'_> {
    /// Features of what lies in host memory.
    fn features(&self, data: TensorData) -> Features {
        Features::new(Tensor::from_data(data, (self.device, self.dtype)), self.context)
    }

    /// Whether it stores features as the CPU kernels do.
    #[cfg(feature = "flex")]
    fn reads_images(&self) -> bool {
        crate::backends::operators(self.device, self.dtype).data_type() == std::any::TypeId::of::<Images>()
    }
}

/// A device has been lost with features on it that nobody else has.
#[derive(Debug, thiserror::Error)]
#[error("a device was lost with features that it kept: {0}")]
pub(super) struct LostFeatures(String);

impl Piece {
    /// Frames, height and width.
    fn extent(&self) -> [usize; 3] {
        [self.frames.len(), self.area[0].length, self.area[1].length]
    }

    /// What it has of an area: a box of its own, and where that belongs.
    pub(super) fn part_of(&self, frames: &Range<usize>, area: Area) -> Part<()> {
        let wanted = [frames.clone(), area[0].start..area[0].end(), area[1].start..area[1].end()];
        let own = [self.frames.clone(), self.area[0].start..self.area[0].end(), self.area[1].start..self.area[1].end()];
        let start: [usize; 3] = std::array::from_fn(|axis| wanted[axis].start.max(own[axis].start));
        Part {
            x: (),
            from: std::array::from_fn(|axis| start[axis] - own[axis].start),
            to: std::array::from_fn(|axis| start[axis] - wanted[axis].start),
            size: std::array::from_fn(|axis| wanted[axis].end.min(own[axis].end) - start[axis]),
        }
    }

    /// A box of it as features for `reader`: all that it has where it was computed there, else the box alone.
    ///
    /// # Errors
    /// When the scratch file cannot be read, and [`LostFeatures`].
    pub(super) fn read(&self, part: Part<()>, reader: Reader) -> Result<Part<Features>, BoxError> {
        if let Place::Device(device, features, _) = &*self.place
            && device == reader.device
        {
            let features = features.clone().in_run(reader.context);
            if self.dtype == reader.dtype {
                return Ok(part.map(|()| features));
            }
            let x = self.cut(features, &part).cast(reader.dtype);
            return Ok(Part { from: [0; 3], ..part.map(|()| Features::new(x, reader.context)) });
        }
        #[cfg(feature = "flex")]
        if let Place::Images(range) = &*self.place
            && reader.reads_images()
        {
            let x = self.read_images(&part, range, reader.context)?;
            return Ok(Part { from: [0; 3], ..part.map(|()| x) });
        }
        let data = self.read_data(&part, reader.context)?;
        Ok(Part { from: [0; 3], ..part.map(|()| reader.features(data)) })
    }

    /// A box of its features, on their device.
    fn cut(&self, features: Features, &Part { from, size, .. }: &Part<()>) -> Tensor<5> {
        let [b, c] = self.items;
        let [frames, rows, columns] = std::array::from_fn(|axis| from[axis]..from[axis] + size[axis]);
        Tensor::from(features).slice([0..b, 0..c, frames, rows, columns])
    }

    /// A box of it in host memory.
    fn read_data(&self, part: &Part<()>, context: &Context) -> Result<TensorData, BoxError> {
        match &*self.place {
            Place::Device(_, features, _) => {
                let read = || {
                    let data = self.cut(features.clone().in_run(context), part).try_into_data()?;
                    // Some devices copy when the bytes are looked at.
                    data.as_bytes();
                    Ok::<_, ExecutionError>(data)
                };
                match tiling::catch(read) {
                    Ok(Ok(data)) => Ok(data),
                    // It is the device that computed them that does not give them.
                    Ok(Err(error)) => Err(LostFeatures(error.to_string()).into()),
                    Err(message) => Err(LostFeatures(message).into()),
                }
            }
            Place::Host(data, _) => {
                let bytes = data.as_bytes();
                self.read_rows(part, |start, row| {
                    row.copy_from_slice(&bytes[start..start + row.len()]);
                    Ok(())
                })
            }
            Place::Planes(range) => self.read_rows(part, |start, row| Ok(range.file.read_at(range.start + start as u64, row)?)),
            #[cfg(feature = "flex")]
            Place::Images(range) => Ok(Tensor::<5>::from(self.read_images(part, range, context)?).try_into_data()?),
        }
    }

    /// A box of planes, of which `read` gives bytes from a place on.
    fn read_rows(&self, part: &Part<()>, mut read: impl FnMut(usize, &mut [u8]) -> Result<(), BoxError>) -> Result<TensorData, BoxError> {
        let ([b, c], [frames, rows, columns], [first, top, left]) = (self.items, part.size, part.from);
        let [own_frames, own_height, own_width] = self.extent();
        let value = self.dtype.size();
        let mut bytes = vec![0_u8; b * c * frames * rows * columns * value];
        for (at, to) in bytes.chunks_exact_mut(columns * value).enumerate() {
            let (plane, frame, row) = (at / rows / frames, at / rows % frames, at % rows);
            let start = ((plane * own_frames + first + frame) * own_height + top + row) * own_width + left;
            read(start * value, to)?;
        }
        Ok(TensorData::from_bytes_vec(bytes, [b, c, frames, rows, columns], self.dtype))
    }

    /// A box of images in the scratch file.
    #[cfg(feature = "flex")]
    fn read_images(&self, part: &Part<()>, range: &FileRange, context: &Context) -> Result<Features, BoxError> {
        let ([b, c], [frames, rows, columns], [first, top, left]) = (self.items, part.size, part.from);
        let [own_frames, own_height, own_width] = self.extent();
        let image = |at: usize| {
            let index = at / frames * own_frames + first + at % frames;
            BlockedImage::from_rows(c, [rows, columns], context.workspace(), |block, row, px| {
                let rows_before = (index * c.div_ceil(CHANNEL_BLOCK) + block) * own_height + top + row;
                range.file.read_at(range.start + ((rows_before * own_width + left) * size_of_val(&px[0])) as u64, px)
            })
        };
        let images = (0..b * frames).map(image).collect::<Result<Vec<_>, _>>()?;
        Ok(Features::from_images(b, images, c, [rows, columns], context))
    }

    /// Whether it is made of images of the CPU kernels.
    #[cfg(feature = "flex")]
    pub(super) fn has_images(&self) -> bool {
        match &*self.place {
            Place::Device(_, features, _) => features.has_images(),
            Place::Images(_) => true,
            Place::Host(..) | Place::Planes(_) => false,
        }
    }

    /// One of its frames of a batch item as an image of the CPU kernels. `None` where it has none.
    #[cfg(feature = "flex")]
    pub(super) fn image(&self, item: usize, frame: usize, context: &Context) -> Result<Option<BlockedImage>, BoxError> {
        let at = item * self.frames.len() + frame - self.frames.start;
        let features = match &*self.place {
            Place::Device(_, features, _) => return Ok(features.clone().into_images().map(|mut images| images.swap_remove(at))),
            Place::Images(range) => {
                let part = self.part_of(&(frame..frame + 1), self.area);
                self.read_images(&part, range, context)?
            }
            Place::Host(..) | Place::Planes(_) => return Ok(None),
        };
        Ok(features.into_images().map(|mut images| images.swap_remove(item)))
    }

    /// Whether it shares px with an area.
    pub(super) fn touches(&self, frames: &Range<usize>, area: Area) -> bool {
        let shares = |a: Span, b: Span| a.start < b.end() && b.start < a.end();
        shares(self.area[0], area[0]) && shares(self.area[1], area[1]) && self.frames.start < frames.end && frames.start < self.frames.end
    }
}
