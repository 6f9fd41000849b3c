//! Vectors of channels, the unit in which all values are stored.

/// Channels in a block.
pub(crate) const LANES: usize = 16;

/// The values of one px in a block of 16 channels.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

impl Lanes {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);

    /// The values of px.
    pub(crate) fn as_arrays(lanes: &[Self]) -> &[[f32; LANES]] {
        bytemuck::cast_slice(lanes)
    }

    /// The values of px, for changing in place.
    pub(crate) fn as_arrays_mut(lanes: &mut [Self]) -> &mut [[f32; LANES]] {
        bytemuck::cast_slice_mut(lanes)
    }
}

/// Divides a list with one value per channel into blocks of channels. The last block is padded with zeros.
pub(crate) fn padded(values: &[f32]) -> Vec<Lanes> {
    let lanes = |values: &[f32]| Lanes(std::array::from_fn(|lane| values.get(lane).copied().unwrap_or(0.0)));
    values.chunks(LANES).map(lanes).collect()
}

/// Sums in pairs, in an order that does not depend on the width of the processor's vectors.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|at| values[at] + values[at + 8]);
    let four: [f32; 4] = std::array::from_fn(|at| eight[at] + eight[at + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
