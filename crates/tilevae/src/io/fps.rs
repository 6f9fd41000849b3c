use std::fmt;
use std::str::FromStr;

/// Frames a second, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fps {
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

impl Fps {
    /// The rate of Wan, which is that of a clip whose rate is not known.
    pub const DEFAULT: Self = Self { numerator: 16, denominator: 1 };

    /// `numerator / denominator` frames a second, when that is a rate.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (numerator > 0 && denominator > 0).then_some(Self { numerator, denominator })
    }

    /// `numerator / denominator` in the smallest numbers, or near it.
    pub(super) fn of(numerator: u128, denominator: u128) -> Option<Self> {
        let (mut a, mut b) = (numerator, denominator);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        let (numerator, denominator) = (numerator.checked_div(a)?, denominator.checked_div(a)?);
        match (u32::try_from(numerator), u32::try_from(denominator)) {
            (Ok(numerator), Ok(denominator)) => Self::new(numerator, denominator),
            _ => Self::of(numerator / 2, denominator / 2),
        }
    }

    pub(super) fn value(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

impl FromStr for Fps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not a number of frames a second: write 16, 23.976 or 24000/1001");
        if let Some((numerator, denominator)) = text.split_once('/') {
            let [numerator, denominator] = [numerator, denominator].map(|part| part.trim().parse().ok());
            return numerator.zip(denominator).and_then(|(numerator, denominator)| Self::new(numerator, denominator)).ok_or_else(wrong);
        }
        let value: f64 = text.parse().map_err(|_| wrong())?;
        if !(0.001..=100_000.0).contains(&value) {
            return Err(wrong());
        }
        Self::of((value * 1000.0).round() as u128, 1000).ok_or_else(wrong)
    }
}

impl fmt::Display for Fps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1 { write!(f, "{}", self.numerator) } else { write!(f, "{}/{}", self.numerator, self.denominator) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_fractions() {
        let read = |text: &str| text.parse::<Fps>().map(|fps| fps.to_string());
        assert_eq!(["16", "23.976", "24000/1001", "0.5"].map(|text| read(text).unwrap()), ["16", "2997/125", "24000/1001", "1/2"]);
        for wrong in ["0", "-3", "x", "1/0", "1e9", "NaN", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_reduced() {
        for (numerator, denominator, expected) in
            [(500, 216, "125/54"), (0, 3, "none"), (3, 0, "none"), (1 << 40, 1 << 36, "16"), ((1 << 40) + 1, 1 << 38, "4")]
        {
            assert_eq!(Fps::of(numerator, denominator).map_or("none".to_owned(), |fps| fps.to_string()), expected);
        }
    }
}
