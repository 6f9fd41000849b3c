use serde::{Deserialize, Serialize};

/// How much rounding error an output in f32 may have in exchange for speed. For convolutions on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Winograd convolutions `F(4x4, 3x3)`: a quarter of the products, and about twice the rounding error of direct sums.
    #[default]
    Fast,
    /// Winograd convolutions `F(2x2, 3x3)`: four ninths of the products, and less rounding error than direct sums.
    Strict,
}

/// How f32 is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MathMode {
    /// On the CPU.
    pub precision: Precision,
    /// Whether tensor cores may round factors to TF32, which has ten bits of mantissa. Without it, GPUs that have such cores use slower kernels.
    pub tf32: bool,
}

impl Default for MathMode {
    fn default() -> Self {
        Self { precision: Precision::default(), tf32: true }
    }
}

impl From<Precision> for MathMode {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}
