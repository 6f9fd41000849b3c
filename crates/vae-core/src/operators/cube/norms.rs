//! Norms and the softmax, launched.

use burn::tensor::{Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::TensorArg;
use cubecl::{CubeCount, CubeDim};

use super::kernels::{self, UNITS};
use super::tensor::{address, dense, element, elementwise, empty, empty_f32, primitive, vector_size};
use crate::operators::GroupNormParameters;

/// Parts that the sums of a frame are made of at most: each cube of the norm adds them all up.
const PARTS: usize = 256;
/// Px of a part at least, so that few parts are made of small frames.
const PX_PER_PART: usize = 64;
/// Cubes of a norm at most: enough for every GPU, and each has enough px to be worth its start.
const CUBES: usize = 2048;
/// Partial sums of a row of scores without shared memory.
const ROW_PARTS: usize = 64;

/// Whether kernels may use shared memory. CubeCL (0.11.3) makes invalid SPIR-V of it for Vulkan drivers without `VK_KHR_workgroup_memory_explicit_layout`, which
/// those of GPUs have and Mesa's driver in software lacks.
pub(crate) fn has_shared_memory(client: &Client) -> bool {
    !client.properties().identity.name.contains("llvmpipe")
}

/// A group norm of `x`, which is `[frames, px, channels]`.
pub(super) struct GroupNorm<'a> {
    pub(super) x: &'a CubeTensor,
    pub(super) groups: usize,
    size: usize,
    parts: usize,
    px_per_part: usize,
}

impl<'a> GroupNorm<'a> {
    /// `None` for more channels than a cube has vectors for.
    pub(super) fn new(x: &'a CubeTensor, groups: usize) -> Option<Self> {
        let [area, channels] = [1, 2].map(|axis| x.meta.shape()[axis]);
        let size = vector_size(x, [channels]);
        let px_per_part = area.div_ceil(PARTS).max(PX_PER_PART);
        // Parameters of another dtype may have shorter vectors.
        let fits = channels / size.min(4) <= UNITS as usize && groups <= UNITS as usize;
        fits.then(|| Self { x, groups, size, parts: area.div_ceil(px_per_part), px_per_part })
    }

    fn frames(&self) -> usize {
        self.x.meta.shape()[0]
    }

    fn channels(&self) -> usize {
        self.x.meta.shape()[2]
    }

    /// `[frames, parts, 2, groups]`: sums of the differences from each group's reference, and of their squares.
    fn sums(&self) -> CubeTensor {
        let sums = empty_f32(self.x, [self.frames(), self.parts, 2, self.groups]);
        let (client, address, element) = (&self.x.client, address([self.x, &sums]), element(self.x));
        let (x, y) = (self.x.clone().into_tensor_arg(), sums.clone().into_tensor_arg());
        #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
        unsafe {
            if has_shared_memory(&self.x.client) {
                let cubes = CubeCount::Static(self.parts as u32, self.frames() as u32, 1);
                let dim = CubeDim::new_1d(UNITS);
                kernels::group_sums::launch_unchecked(
                    client,
                    cubes,
                    dim,
                    address,
                    self.size,
                    x,
                    y,
                    self.px_per_part,
                    self.channels(),
                    self.groups,
                    element,
                );
            } else {
                let (cubes, dim) = elementwise(self.x, self.frames() * self.parts * self.groups);
                kernels::group_sums_plain::launch_unchecked(
                    client,
                    cubes,
                    dim,
                    address,
                    1,
                    x,
                    y,
                    self.px_per_part,
                    self.parts,
                    self.channels(),
                    self.groups,
                    element,
                );
            }
        }
        sums
    }

    /// `[2, frames, groups]`: means, then variances.
    pub(super) fn moments(&self) -> CubeTensor {
        let sums = self.sums();
        let moments = empty_f32(self.x, [2, self.frames(), self.groups]);
        let (cubes, dim) = elementwise(self.x, self.frames() * self.groups);
        let (x, from, to) = (self.x.clone().into_tensor_arg(), sums.into_tensor_arg(), moments.clone().into_tensor_arg());
        let (address, element) = (address([self.x]), element(self.x));
        #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
        unsafe {
            kernels::moments_of_sums::launch_unchecked(
                &self.x.client,
                cubes,
                dim,
                address,
                1,
                x,
                from,
                to,
                self.parts,
                self.channels(),
                self.groups,
                element,
            );
        }
        moments
    }

    /// The norm with its own moments, then SiLU if `silu` says so.
    pub(super) fn run(&self, norm: &GroupNormParameters, silu: bool) -> CubeTensor {
        if !has_shared_memory(&self.x.client) {
            return self.apply(self.moments(), norm, silu);
        }
        // Each cube reads at least as many values as sums.
        let least_px = (2 * self.parts * self.groups).div_ceil(self.channels());
        self.launch(norm, least_px, |size, cubes, dim, address, [x, weight, bias, y], px_per_cube, elements| {
            let sums = self.sums().into_tensor_arg();
            let (channels, groups, epsilon) = (self.channels(), self.groups, norm.epsilon as f32);
            let client = &self.x.client;
            #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
            unsafe {
                kernels::group_sums_apply::launch_unchecked(
                    client,
                    cubes,
                    dim,
                    address,
                    size,
                    x,
                    weight,
                    bias,
                    sums,
                    y,
                    epsilon,
                    self.parts,
                    px_per_cube,
                    channels,
                    groups,
                    silu,
                    elements,
                );
            }
        })
    }

    /// The norm with the given moments, `[2, frames, groups]`, then SiLU if `silu` says so.
    pub(super) fn apply(&self, moments: CubeTensor, norm: &GroupNormParameters, silu: bool) -> CubeTensor {
        self.launch(norm, 1, |size, cubes, dim, address, [x, weight, bias, y], px_per_cube, elements| {
            let moments = moments.into_tensor_arg();
            let (channels, groups, epsilon) = (self.channels(), self.groups, norm.epsilon as f32);
            let client = &self.x.client;
            #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
            unsafe {
                kernels::group_apply::launch_unchecked(
                    client,
                    cubes,
                    dim,
                    address,
                    size,
                    x,
                    weight,
                    bias,
                    moments,
                    y,
                    epsilon,
                    px_per_cube,
                    channels,
                    groups,
                    silu,
                    elements,
                );
            }
        })
    }

    fn launch(
        &self,
        norm: &GroupNormParameters,
        least_px: usize,
        launch: impl FnOnce(usize, CubeCount, CubeDim, AddressType, [TensorArg; 4], usize, [ElemType; 2]),
    ) -> CubeTensor {
        let y = empty(self.x, self.x.meta.shape().clone());
        let [weight, bias] = [&norm.weight, &norm.bias].map(|parameter| dense(primitive(parameter.clone())));
        let size = self.size.min(vector_size(&weight, [])).min(vector_size(&bias, []));
        let rows = UNITS as usize / (self.channels() / size);
        let area = self.x.meta.shape()[1];
        let px_per_cube = area.div_ceil(CUBES.div_ceil(self.frames())).max(rows).max(least_px);
        let cubes = CubeCount::Static(area.div_ceil(px_per_cube) as u32, self.frames() as u32, 1);
        let elements = [element(self.x), element(&weight)];
        let address = address([self.x]);
        let args = [self.x.clone(), weight, bias, y.clone()].map(CubeTensor::into_tensor_arg);
        launch(size, cubes, CubeDim::new_1d(UNITS), address, args, px_per_cube, elements);
        y
    }
}

/// The px of `earlier`, if there are any, then those of `x`, normalised. Both and the result are `[items, px, channels]`.
pub(super) fn rms_norm(x: &CubeTensor, earlier: Option<&CubeTensor>, gamma: Tensor<1>, silu: bool) -> CubeTensor {
    let [items, px, channels] = [0, 1, 2].map(|axis| x.meta.shape()[axis]);
    let earlier_px = earlier.map_or(0, |earlier| earlier.meta.shape()[1]);
    let y = empty(x, [items, earlier_px + px, channels]);
    let gamma = dense(primitive(gamma));
    let size = vector_size(x, [channels]).min(vector_size(&gamma, []));
    let columns = channels / size;
    // Units that share a px: about three vectors each.
    let units_per_px = if has_shared_memory(&x.client) { columns.div_ceil(3).next_power_of_two().min(32) } else { 1 };
    let turns = (earlier_px + px).div_ceil(UNITS as usize / units_per_px);
    let cubes = CubeCount::Static(turns.min(8 * CUBES) as u32, items as u32, 1);
    let (address, element) = (address([x, &y]), element(x));
    let earlier = earlier.unwrap_or(x).clone();
    #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
    unsafe {
        kernels::rms_apply::launch_unchecked(
            &x.client,
            cubes,
            CubeDim::new_1d(UNITS),
            address,
            size,
            x.clone().into_tensor_arg(),
            earlier.into_tensor_arg(),
            gamma.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            earlier_px,
            channels,
            units_per_px,
            silu,
            element,
        );
    }
    y
}

/// The softmax of each row of `scores * scale`: `[rows, columns]`, dense.
pub(super) fn softmax_rows(scores: &CubeTensor, scale: f32) -> CubeTensor {
    let shape: Shape = scores.meta.shape().clone();
    let [rows, columns] = [shape[0], shape[1]];
    let y = empty(scores, shape);
    let (client, element) = (&scores.client, element(scores));
    let address = address([scores]);
    #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
    unsafe {
        if has_shared_memory(&scores.client) {
            let size = vector_size(scores, [columns]);
            let (cubes, dim) = (CubeCount::Static(rows as u32, 1, 1), CubeDim::new_1d(UNITS));
            let (from, to) = (scores.clone().into_tensor_arg(), y.clone().into_tensor_arg());
            kernels::softmax_rows::launch_unchecked(client, cubes, dim, address, size, from, to, scale, element);
        } else {
            let parts = ROW_PARTS.min(columns);
            let (partial, whole) = (empty_f32(scores, [2 * rows * parts]), empty_f32(scores, [2 * rows]));
            let (cubes, dim) = elementwise(scores, rows * parts);
            let (from, to) = (scores.clone().into_tensor_arg(), partial.clone().into_tensor_arg());
            kernels::row_parts::launch_unchecked(client, cubes, dim, address, from, to, scale, parts, element);
            let (cubes, dim) = elementwise(scores, rows);
            kernels::row_sums::launch_unchecked(client, cubes, dim, address, partial.into_tensor_arg(), whole.clone().into_tensor_arg(), parts);
            let (cubes, dim) = elementwise(scores, rows * columns);
            let (from, whole, to) = (scores.clone().into_tensor_arg(), whole.into_tensor_arg(), y.clone().into_tensor_arg());
            kernels::row_apply::launch_unchecked(client, cubes, dim, address, from, whole, to, scale, element);
        }
    }
    y
}
