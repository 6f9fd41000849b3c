use std::path::Path;

use image::Delay;

use super::Fps;

/// Shorter delays, in microseconds, are replaced, as browsers do: old files have 0.
const LEAST: u64 = 11_000;
/// The replacement, in microseconds.
const OF_NONE: u64 = 100_000;

/// The delays of the frames of an animation.
#[derive(Debug, Default)]
pub(super) struct Delays {
    frames: u64,
    /// Microseconds of all frames, of the shortest and of the longest.
    all: u64,
    shortest: u64,
    longest: u64,
    /// Ms of the first as a fraction, as long as all others are the same.
    common: Option<[u32; 2]>,
}

impl FromIterator<Delay> for Delays {
    fn from_iter<I: IntoIterator<Item = Delay>>(delays: I) -> Self {
        let mut all = Self::default();
        delays.into_iter().for_each(|delay| all.add(delay));
        all
    }
}

impl Delays {
    pub(super) fn add(&mut self, delay: Delay) {
        let (numerator, denominator) = delay.numer_denom_ms();
        let exact = (2000 * u64::from(numerator)).checked_div(u64::from(denominator)).map_or(0, |twice| twice.div_ceil(2));
        let (time, fraction) = if exact < LEAST { (OF_NONE, [100, 1]) } else { (exact, [numerator, denominator]) };
        if self.frames == 0 {
            (self.shortest, self.longest, self.common) = (time, time, Some(fraction));
        } else {
            (self.shortest, self.longest) = (self.shortest.min(time), self.longest.max(time));
            self.common = self.common.filter(|common| *common == fraction);
        }
        self.frames += 1;
        self.all += time;
    }

    /// The constant rate with the same total duration.
    pub(super) fn fps(&self) -> Option<Fps> {
        match self.common {
            Some([numerator, denominator]) => Fps::of(1000 * u128::from(denominator), numerator.into()),
            None => Fps::of(1_000_000 * u128::from(self.frames), self.all.into()),
        }
    }

    /// Warns when the frames of `path` have unequal delays. A difference of one tick is rounding.
    pub(super) fn warn(&self, path: &Path) {
        const TICK: u64 = 10_000;
        if self.longest > self.shortest + TICK
            && let Some(fps) = self.fps()
        {
            let [shortest, longest] = [self.shortest, self.longest].map(|time| time / 1000);
            tracing::warn!("{} shows its frames for {shortest} to {longest} ms: {fps} frames a second make it as long", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_last_as_long_together_as_one_by_one() {
        for (delays, expected) in [
            (&[(2000, 1), (40, 1), (40, 1), (40, 1), (40, 1)][..], Fps::new(125, 54)),
            (&[(40, 1); 3], Fps::new(25, 1)),
            (&[(1000, 30); 7], Fps::new(30, 1)),
            (&[(1001, 24); 2], Fps::new(24_000, 1001)),
            (&[(0, 1), (10, 1), (100, 1)], Fps::new(10, 1)),
            (&[(11, 1), (29, 1)], Fps::new(50, 1)),
            (&[], None),
        ] {
            let mut all = Delays::default();
            for &(numerator, denominator) in delays {
                all.add(Delay::from_numer_denom_ms(numerator, denominator));
            }
            assert_eq!(all.fps(), expected, "{delays:?}");
        }
    }
}
