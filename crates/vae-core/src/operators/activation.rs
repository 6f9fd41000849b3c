use std::str::FromStr;

/// A function that is applied to each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `x * tanh(softplus(x))`.
    Mish,
    /// `x * (1 + erf(x / sqrt(2))) / 2`.
    Gelu,
}

impl Activation {
    /// The names in configurations (diffusers, `get_activation`).
    pub const NAMES: [&str; 5] = ["silu", "swish", "mish", "gelu", "relu"];
}

/// A name that is not that of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown activation")]
pub struct UnknownActivation;

impl FromStr for Activation {
    type Err = UnknownActivation;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "mish" => Ok(Self::Mish),
            "gelu" => Ok(Self::Gelu),
            "relu" => Ok(Self::Relu),
            _ => Err(UnknownActivation),
        }
    }
}
