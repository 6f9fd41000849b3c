use crate::lanes::Lanes;
use crate::math::silu;

/// A function that is applied to each value after a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}

impl Activation {
    /// Applies the function to the channels of one px.
    #[inline(always)]
    pub(crate) fn apply(self, lanes: &mut Lanes) {
        match self {
            Self::None => {}
            Self::Silu => {
                for value in &mut lanes.0 {
                    *value = silu(*value);
                }
            }
            Self::Relu => {
                for value in &mut lanes.0 {
                    *value = if *value < 0.0 { 0.0 } else { *value };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::LANES;

    #[test]
    fn activations_keep_nan_and_zero() {
        for activation in [Activation::None, Activation::Silu, Activation::Relu] {
            // Zero padding of an image is not passed through the prologue, and padded channels have to stay zero.
            let mut zero = Lanes::ZERO;
            activation.apply(&mut zero);
            assert_eq!(zero, Lanes::ZERO);
            let mut nan = Lanes([f32::NAN; LANES]);
            activation.apply(&mut nan);
            assert!(nan.0.iter().all(|value| value.is_nan()));
        }
        let mut lanes = Lanes([-2.0; LANES]);
        lanes.0[3] = 2.5;
        Activation::Relu.apply(&mut lanes);
        assert_eq!(lanes, Lanes(std::array::from_fn(|lane| if lane == 3 { 2.5 } else { 0.0 })));
    }
}
