use std::ops::Range;

use tiling::Span;

use super::stage::Area;

/// Side of a crop's inside, whose moments count, and the px around it, in latent px.
const INSIDE: usize = 4;
const BORDER: usize = 2;

/// The most crops. Their number counts more than their size.
const MOST_CROPS: usize = 64;

/// The largest share of a picture's px that crops take, borders included: a quarter.
const SHARE: usize = 4;

/// Crops of a picture, at its own scale and spread evenly over it, from which moments are estimated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crops {
    /// Rows and columns of each, in latent px.
    pub(crate) windows: Vec<Area>,
    /// Rows and columns of a window that count.
    pub(crate) inside: [Range<usize>; 2],
}

impl Crops {
    /// Crops of a picture of a height and width in latent px.
    pub(super) fn new(size: [usize; 2]) -> Self {
        let window = size.map(|side| side.min(INSIDE + 2 * BORDER));
        let inside = window.map(|side| if side == INSIDE + 2 * BORDER { BORDER..BORDER + INSIDE } else { 0..side });
        let most = (size[0] * size[1] / SHARE / (window[0] * window[1])).clamp(1, MOST_CROPS);
        // As many rows and columns of crops as the picture is high and wide.
        let rows = ((most as f64 * size[0] as f64 / size[1] as f64).sqrt().round() as usize).clamp(1, most);
        let counts = [rows, (most / rows).max(1)];
        let starts = |axis: usize| {
            let room = size[axis] - window[axis];
            let count = counts[axis].min(room + 1);
            (0..count).map(move |at| if count == 1 { room / 2 } else { at * room / (count - 1) })
        };
        let span = |axis: usize, start: usize| Span { start, length: window[axis] };
        let windows = starts(0).flat_map(|top| starts(1).map(move |left| [span(0, top), span(1, left)])).collect();
        Self { windows, inside }
    }

    /// The number of crops.
    pub fn count(&self) -> usize {
        self.windows.len()
    }

    /// Height and width of a crop, in latent px.
    pub(super) fn size(&self) -> [usize; 2] {
        self.windows[0].map(|span| span.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_take_at_most_a_quarter_and_reach_both_ends() {
        for size in [[1, 1], [3, 40], [16, 16], [64, 64], [128, 128], [100, 37], [300, 1000]] {
            let crops = Crops::new(size);
            let [height, width] = crops.size();
            assert!(crops.count() == 1 || crops.count() * height * width * SHARE <= size[0] * size[1], "{size:?}: {}", crops.count());
            assert!(crops.windows.iter().all(|window| (0..2).all(|axis| window[axis].end() <= size[axis])), "{size:?}");
            if crops.count() >= 4 {
                let last = &crops.windows[crops.count() - 1];
                assert_eq!([0, 1].map(|axis| (crops.windows[0][axis].start, last[axis].end())), [(0, size[0]), (0, size[1])], "{size:?}");
            }
        }
        assert_eq!(Crops::new([128, 128]).count(), 64);
    }
}
