//! Attention over keys and values that lie in a store.

use std::ops::Range;

use burn::tensor::Tensor;
use tiling::{BoxError, Span};

#[cfg(feature = "flex")]
use super::piece::Piece;
use super::piece::Reader;
use super::room::lock;
#[cfg(feature = "flex")]
use super::store::MISSING;
use super::store::{Attended, FeatureStore};
use crate::is_in_host_memory;
use crate::layers::Features;

/// The px of a value that are keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyGrid {
    /// Height and width of the value.
    pub(super) size: [usize; 2],
    /// Rows and columns from one to the next.
    pub(super) stride: usize,
}

impl FeatureStore {
    /// Attention over keys and values of the whole. On the CPU, where tiles of them may be in the scratch file, over one tile after the other.
    ///
    /// # Errors
    /// When a part of them was never stored, or cannot be read.
    pub(super) fn attend(
        &self,
        queries: Features,
        values: [usize; 2],
        keys: KeyGrid,
        frames: Range<usize>,
        reader: Reader,
    ) -> Result<Features, BoxError> {
        #[cfg(feature = "flex")]
        if queries.has_images() && keys.stride == 1 {
            // Sums depend on the order.
            let pieces = values.map(|value| {
                let mut pieces = self.pieces(value, |_| true);
                pieces.sort_by_key(|piece| (piece.frames.start, piece.tile));
                pieces
            });
            if pieces.iter().flatten().all(Piece::has_images) {
                return attend_by_tiles(queries, pieces, keys.size, frames);
            }
        }
        let is_wanted = |of: &&Attended| (&of.device, of.dtype, of.values, &of.frames) == (reader.device, reader.dtype, values, &frames);
        let known = || lock(&self.attended).iter().find(is_wanted).map(|attended| attended.features.clone());
        let [keys, values] = {
            // One worker of a CPU reads for all. A device that may hang must not hold others up.
            let _alone = is_in_host_memory(reader.device).then(|| lock(&self.reading));
            if let Some(features) = known() {
                features.map(|features| features.in_run(reader.context))
            } else {
                let read = |value: usize| match keys.stride {
                    1 => self.get(value, frames.clone(), keys.size.map(|length| Span { start: 0, length }), reader),
                    _ => self.get_grid(value, frames.clone(), keys, reader),
                };
                let features = [read(values[0])?, read(values[1])?];
                let (device, dtype) = (reader.device.clone(), reader.dtype);
                lock(&self.attended).push(Attended { device, dtype, values, frames, features: features.clone() });
                features
            }
        };
        Ok(queries.attend(keys, values))
    }

    /// Frames of an even grid of px of a value, the first of them half a stride from the border.
    fn get_grid(&self, value: usize, frames: Range<usize>, grid: KeyGrid, reader: Reader) -> Result<Features, BoxError> {
        let KeyGrid { size: [height, width], stride } = grid;
        let at = |side: usize| (0..side.div_ceil(stride)).map(move |at| (at * stride + stride / 2).min(side - 1));
        let row = |row: usize| {
            reader.context.check_stop();
            let area = [Span { start: row, length: 1 }, Span { start: 0, length: width }];
            let row = Tensor::<5>::from(self.get(value, frames.clone(), area, reader)?);
            let columns: Vec<i64> = at(width).map(|column| column.cast_signed() as i64).collect();
            Ok(row.select(4, Tensor::from_data(&columns[..], reader.device)))
        };
        let rows = at(height).map(row).collect::<Result<Vec<_>, BoxError>>()?;
        Ok(Features::new(Tensor::cat(rows, 3), reader.context))
    }
}

/// Attention over tiles of keys and values, one after the other.
#[cfg(feature = "flex")]
fn attend_by_tiles(queries: Features, [keys, values]: [Vec<Piece>; 2], size: [usize; 2], frames: Range<usize>) -> Result<Features, BoxError> {
    let context = queries.context().clone();
    let [b, .., height, width] = queries.dims();
    let channels = values.first().ok_or(MISSING)?.items[1];
    let queries = queries.into_images().ok_or(MISSING)?;
    let mut attentions: Vec<kernels::Attention> = queries.into_iter().map(|image| kernels::Attention::new(image, channels)).collect();
    let mut covered = vec![0; attentions.len()];
    for (keys, values) in keys.iter().zip(&values) {
        for (at, attention) in attentions.iter_mut().enumerate() {
            let (item, frame) = (at / frames.len(), frames.start + at % frames.len());
            if !keys.frames.contains(&frame) {
                continue;
            }
            context.check_stop();
            let image = |piece: &Piece| piece.image(item, frame, &context)?.ok_or_else(|| BoxError::from(MISSING));
            attention.add(&image(keys)?, &image(values)?);
            covered[at] += keys.area.iter().map(|span| span.length).product::<usize>();
        }
    }
    if covered.iter().any(|&covered| covered != size[0] * size[1]) {
        return Err(MISSING.into());
    }
    let images = attentions.into_iter().map(kernels::Attention::finish).collect();
    Ok(Features::from_images(b, images, channels, [height, width], &context))
}
