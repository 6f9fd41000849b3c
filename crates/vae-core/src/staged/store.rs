use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use burn::tensor::{DType, Device, Tensor};
use tiling::BoxError;

use super::piece::{LostFeatures, Piece, Place, Reader};
use super::room::{Room, Scratch, Share};
use crate::coder::Area;
use crate::is_in_host_memory;
use crate::layers::Features;
use crate::operators::Part;

/// Keeps the values between stages, tile by tile, in the dtype in which they were computed: on the device that computed them as long as there is room, then in
/// host memory, then in a scratch file.
///
/// Tiles are written once each, from any thread; a tile that is run again replaces what it wrote. What comes after its stage has ended, or from a worker that
/// does not have the tile any longer, is refused. An area is read from all tiles that it touches.
#[derive(Debug)]
pub struct FeatureStore {
    state: RwLock<State>,
    /// Keys and values that all tiles of a stage on a device attend to, until the next stage begins.
    pub(super) attended: Mutex<Vec<Attended>>,
    /// Held while they are read for a CPU.
    pub(super) reading: Mutex<()>,
    host: Arc<Room>,
    devices: Vec<(Device, Arc<Room>)>,
    scratch: Arc<Scratch>,
    has_lost: AtomicBool,
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

/// Keys and values of some frames, on a device.
#[derive(Debug, Clone)]
pub(super) struct Attended {
    pub(super) device: Device,
    pub(super) dtype: DType,
    pub(super) values: [usize; 2],
    pub(super) frames: Range<usize>,
    pub(super) features: [Features; 2],
}

/// Where a store has had features: bytes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBytes {
    /// In the memory of devices, each at its own most.
    pub devices: u64,
    /// In host memory.
    pub host: u64,
    /// The length of the scratch file.
    pub scratch: u64,
}

impl FeatureStore {
    /// A store that keeps at most `host` bytes in host memory, and on each of `devices`, which have memory of their own, so many bytes.
    pub fn new(host: u64, devices: impl IntoIterator<Item = (Device, u64)>) -> Self {
        Self {
            state: RwLock::default(),
            attended: Mutex::default(),
            reading: Mutex::default(),
            host: Arc::new(Room::new(host)),
            devices: devices.into_iter().map(|(device, bytes)| (device, Arc::new(Room::new(bytes)))).collect(),
            scratch: Arc::default(),
            has_lost: AtomicBool::new(false),
        }
    }

    /// The most bytes that were stored at once.
    pub fn peak_bytes(&self) -> StoredBytes {
        StoredBytes { devices: self.devices.iter().map(|(_, room)| room.peak()).sum(), host: self.host.peak(), scratch: self.scratch.length() }
    }

    /// Whether a device has been lost with features that it kept: those that were computed from them can only be had by beginning again.
    pub fn has_lost(&self) -> bool {
        self.has_lost.load(Ordering::Relaxed)
    }

    /// Begins a stage. What earlier ones still give is refused.
    pub fn begin_stage(&self) -> Epoch {
        let epoch = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.epoch.0 += 1;
            state.epoch
        };
        let earlier = std::mem::take(&mut *super::room::lock(&self.attended));
        drop(earlier);
        epoch
    }

    /// Stores [computed](Features::computed) features of a writer.
    ///
    /// # Errors
    /// When the device does not give them, the scratch file cannot be written, or the stage or the run that they belong to has ended.
    pub(super) fn put(&self, epoch: Epoch, slot: Slot, writer: Reader, features: Features) -> Result<(), BoxError> {
        let Reader { device, dtype, context } = writer;
        let Slot { value, tile, first, area } = slot;
        let [b, c, t, h, w] = features.dims();
        debug_assert_eq!([h, w], area.map(|span| span.length));
        let place = match self.share_on(device, features.bytes()) {
            Some(share) => Place::Device(device.clone(), features, share),
            None => self.without_device(device, features)?,
        };
        let piece = Piece { tile, frames: first..first + t, area, items: [b, c], dtype, place: Arc::new(place) };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.epoch != epoch || context.is_stopped() {
            return Err("features come too late".into());
        }
        let pieces = state.values.entry(value).or_default();
        let known = pieces.iter().position(|old| old.tile == tile && old.frames == piece.frames);
        let replaced = match known {
            // Those in a wider dtype were needed.
            Some(at) if pieces[at].dtype.size() > dtype.size() => Some(piece),
            Some(at) => Some(std::mem::replace(&mut pieces[at], piece)),
            None => {
                pieces.push(piece);
                None
            }
        };
        drop(state);
        drop(replaced);
        Ok(())
    }

    /// A share of the memory of a device, if it has room.
    fn share_on(&self, device: &Device, bytes: u64) -> Option<Share> {
        if is_in_host_memory(device) {
            return self.host.take(bytes);
        }
        let (_, room) = self.devices.iter().find(|(of, _)| of == device)?;
        room.take(bytes)
    }

    /// Puts features where their device has no room.
    fn without_device(&self, device: &Device, features: Features) -> Result<Place, BoxError> {
        #[cfg(feature = "flex")]
        if features.has_images() {
            let range = self.scratch.take(features.bytes())?;
            let mut offset = range.start;
            for image in features.into_images().unwrap_or_default() {
                range.file.write_at(offset, image.values())?;
                offset += size_of_val(image.values()) as u64;
            }
            return Ok(Place::Images(range));
        }
        let data = Tensor::<5>::from(features).try_into_data()?;
        let bytes = data.as_bytes().len() as u64;
        if !is_in_host_memory(device)
            && let Some(share) = self.host.take(bytes)
        {
            return Ok(Place::Host(data, share));
        }
        let range = self.scratch.take(bytes)?;
        range.file.write_at(range.start, data.as_bytes())?;
        Ok(Place::Planes(range))
    }

    /// The tiles of a value that a device keeps in a memory of its own.
    pub fn tiles_on(&self, device: &Device, value: usize) -> Vec<usize> {
        if is_in_host_memory(device) {
            return Vec::new();
        }
        let is_kept = |piece: &Piece| matches!(&*piece.place, Place::Device(of, ..) if of == device);
        self.pieces(value, is_kept).iter().map(|piece| piece.tile).collect()
    }

    /// Frames of an area of a value.
    ///
    /// # Errors
    /// When a part of it was never stored, the scratch file cannot be read, or the device that keeps it is lost.
    pub(super) fn get(&self, value: usize, frames: Range<usize>, area: Area, reader: Reader) -> Result<Features, BoxError> {
        let pieces: Vec<Piece> = self.pieces(value, |piece| piece.touches(&frames, area));
        let parts: Vec<Part<()>> = pieces.iter().map(|piece| piece.part_of(&frames, area)).collect();
        let covered: usize = parts.iter().map(|part| part.size.iter().product::<usize>()).sum();
        let Some(first) = pieces.first().filter(|_| covered == frames.len() * area[0].length * area[1].length) else {
            return Err(MISSING.into());
        };
        let read = |(piece, part): (&Piece, Part<()>)| {
            piece.read(part, reader).inspect_err(|error| {
                // A reader that is stopped says nothing of the device.
                if error.is::<LostFeatures>() && !reader.context.is_stopped() {
                    self.has_lost.store(true, Ordering::Relaxed);
                }
            })
        };
        let mut parts = pieces.iter().zip(parts).map(read).collect::<Result<Vec<_>, BoxError>>()?;
        let ([b, c], size) = (first.items, [frames.len(), area[0].length, area[1].length]);
        let shape = [b, c, size[0], size[1], size[2]];
        match parts.pop_if(|part| part.size == size && part.x.dims() == shape) {
            Some(whole) => Ok(whole.x),
            None => Ok(Features::assemble(parts, shape, reader.context)),
        }
    }

    /// Some of the pieces of a value.
    pub(super) fn pieces(&self, value: usize, is_wanted: impl Fn(&Piece) -> bool) -> Vec<Piece> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.values.get(&value).into_iter().flatten().filter(|piece| is_wanted(piece)).cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn insert(&self, value: usize, pieces: Vec<Piece>) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).values.insert(value, pieces);
    }

    /// Gives up values.
    pub fn remove(&self, finished: &[usize]) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let removed: Vec<_> = finished.iter().filter_map(|value| state.values.remove(value)).collect();
        drop(state);
        drop(removed);
    }
}

/// The message for a read of what was never stored.
pub(super) const MISSING: &str = "features of an earlier stage are missing";
