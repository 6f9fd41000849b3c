use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use tiling::{BoxError, HostTensor, Region, TileSource};

/// Values of an input that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite {
    /// How many there are.
    pub count: usize,
    /// Values in all.
    pub of: usize,
    /// The position of the first: `[batch, channel, frame, row, column]`, row-major.
    pub first: [usize; 5],
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, of, first } = self;
        let are = if *count == 1 { "is" } else { "are" };
        write!(f, "{count} of {of} values {are} NaN or infinite in f32, the first at {first:?} (batch, channel, frame, row, column)")
    }
}

impl NonFinite {
    /// The non-finite values of a tensor, if any.
    pub fn in_tensor(tensor: &HostTensor) -> Option<Self> {
        Self::in_part(tensor, [0; 3], tensor.shape())
    }

    /// The same for a part of an input of `shape`, with its first frame, row and column.
    fn in_part(part: &HostTensor, start: [usize; 3], shape: [usize; 5]) -> Option<Self> {
        let values = part.data();
        // Without branches, so that it vectorises.
        let count = values.iter().map(|value| usize::from(!value.is_finite())).sum();
        if count == 0 {
            return None;
        }
        let mut rest = values.iter().position(|value| !value.is_finite())?;
        let mut first = [0; 5];
        for axis in (0..5).rev() {
            first[axis] = rest % part.shape()[axis];
            rest /= part.shape()[axis];
        }
        first[2..].iter_mut().zip(start).for_each(|(place, start)| *place += start);
        Some(Self { count, of: shape.iter().product(), first })
    }

    /// The non-finite values of a whole source, if any.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn in_source(source: &dyn TileSource) -> Result<Option<Self>, BoxError> {
        let shape = source.shape();
        let [b, c, frames, height, width] = shape;
        // Rows per read: a bound on memory.
        let rows = ((1 << 22) / (b * c * width).max(1)).clamp(1, height.max(1));
        let mut found: Option<Self> = None;
        for frame in 0..frames {
            for top in (0..height).step_by(rows) {
                let start = [frame, top, 0];
                let part = source.read(&Region { start, size: [1, rows.min(height - top), width] })?;
                if let Some(more) = Self::in_part(&part, start, shape) {
                    found = Some(match found {
                        Some(known) => Self { count: known.count + more.count, first: known.first.min(more.first), ..more },
                        None => more,
                    });
                }
            }
        }
        Ok(found)
    }
}

/// A source that returns an error for values that are not finite.
pub(crate) struct FiniteSource<'a> {
    source: &'a dyn TileSource,
    has_failed: AtomicBool,
}

impl<'a> FiniteSource<'a> {
    pub(crate) fn new(source: &'a dyn TileSource) -> Self {
        Self { source, has_failed: AtomicBool::new(false) }
    }

    /// Whether a piece was refused.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }
}

impl TileSource for FiniteSource<'_> {
    fn shape(&self) -> [usize; 5] {
        self.source.shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let piece = self.source.read(region)?;
        match NonFinite::in_part(&piece, region.start, self.shape()) {
            Some(found) => {
                self.has_failed.store(true, Ordering::Relaxed);
                Err(found.to_string().into())
            }
            None => Ok(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_counted_and_found() {
        let mut tensor = HostTensor::zeros([2, 3, 4, 5, 6]);
        assert_eq!(NonFinite::in_tensor(&tensor), None);
        assert_eq!(NonFinite::in_source(&tensor).unwrap(), None);
        // By frames, the later one in the tensor comes first.
        let places = [[0, 1, 3, 4, 5], [1, 0, 0, 0, 0], [1, 2, 3, 4, 5]];
        for ([b, c, t, y, x], value) in places.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            tensor.row_mut((b * 3 + c) * 4 + t, y)[x] = value;
        }
        let expected = NonFinite { count: 3, of: 720, first: places[0] };
        assert_eq!(NonFinite::in_tensor(&tensor), Some(expected));
        assert_eq!(NonFinite::in_source(&tensor).unwrap(), Some(expected));
        assert!(expected.to_string().starts_with("3 of 720 values are NaN or infinite in f32, the first at [0, 1, 3, 4, 5]"));
        let source = FiniteSource::new(&tensor);
        assert!(source.read(&Region { start: [1, 0, 0], size: [1, 5, 6] }).is_ok() && !source.has_failed());
        let error = source.read(&Region { start: [2, 3, 4], size: [2, 2, 2] }).unwrap_err();
        assert!(error.to_string().contains("[0, 1, 3, 4, 5]") && source.has_failed(), "{error}");
    }
}
