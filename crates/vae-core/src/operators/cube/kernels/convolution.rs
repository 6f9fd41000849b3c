use cubecl::prelude::*;

/// Px of a row of the output that a unit computes.
pub(in super::super) const PX: usize = 4;

/// Strides and padding of a convolution, over frames, height and width.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(in super::super) struct Window {
    stride_t: usize,
    stride_h: usize,
    stride_w: usize,
    before_t: usize,
    before_h: usize,
    before_w: usize,
}

/// A convolution by one multiplication after the other, summed in f32. Each unit computes [`PX`] px of `outputs` channels.
///
/// `x` and `y` are `[n, t, h, w, c]`, and `weight` is `[out, t, h, w, in]`, each with consecutive channels, any other strides and an offset of
/// the first value. `residual` lies as `y` does.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn direct_convolution<F: Float, I: Size, O: Size>(
    x: &Tensor<Vector<F, I>>,
    weight: &Tensor<Vector<F, I>>,
    bias: ComptimeOption<&Tensor<F>>,
    residual: ComptimeOption<&Tensor<Vector<F, O>>>,
    y: &mut Tensor<Vector<F, O>>,
    window: Window,
    x_offset: usize,
    weight_offset: usize,
    y_offset: usize,
    residual_offset: usize,
    #[comptime] outputs: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let size_in = x.vector_size();
    let size_out = y.vector_size();
    let groups = y.shape(4) / outputs;
    let width = y.shape(3);
    let across = width.div_ceil(PX);
    let group = ABSOLUTE_POS % groups;
    let rest = ABSOLUTE_POS / groups;
    let first_w = rest % across * PX;
    let rest = rest / across;
    let row = rest % y.shape(2);
    let rest = rest / y.shape(2);
    let frame = rest % y.shape(1);
    let item = rest / y.shape(1);
    if item >= y.shape(0) {
        terminate!();
    }

    let columns = x.shape(4) / size_in;
    let mut sums = Array::<f32>::new(comptime!(PX * outputs));
    #[unroll]
    for at in 0..comptime!(PX * outputs) {
        sums[at] = 0.0f32;
    }
    let weight_of_group = weight_offset + group * outputs * weight.stride(0);
    let weight_step = weight.stride(0) / size_in;
    for kernel_t in 0..weight.shape(1) {
        let t = frame * window.stride_t + kernel_t;
        if t >= window.before_t && t < window.before_t + x.shape(1) {
            for kernel_h in 0..weight.shape(2) {
                let h = row * window.stride_h + kernel_h;
                if h >= window.before_h && h < window.before_h + x.shape(2) {
                    let line = x_offset + item * x.stride(0) + (t - window.before_t) * x.stride(1) + (h - window.before_h) * x.stride(2);
                    for kernel_w in 0..weight.shape(3) {
                        let weight_at =
                            (weight_of_group + kernel_t * weight.stride(1) + kernel_h * weight.stride(2) + kernel_w * weight.stride(3)) / size_in;
                        let mut px = Array::<usize>::new(PX);
                        let mut is_inside = Array::<bool>::new(PX);
                        #[unroll]
                        for at in 0..PX {
                            let w = (first_w + at) * window.stride_w + kernel_w;
                            let inside = w >= window.before_w && w < window.before_w + x.shape(3);
                            is_inside[at] = inside;
                            px[at] = line / size_in;
                            if inside {
                                px[at] = (line + (w - window.before_w) * x.stride(3)) / size_in;
                            }
                        }
                        for column in 0..columns {
                            let mut values = Array::<Vector<f32, I>>::new(PX);
                            #[unroll]
                            for at in 0..PX {
                                let value = Vector::<f32, I>::cast_from(x[px[at] + column]);
                                values[at] = select(is_inside[at], value, Vector::new(0.0f32));
                            }
                            #[unroll]
                            for output in 0..outputs {
                                let factors = Vector::<f32, I>::cast_from(weight[weight_at + output * weight_step + column]);
                                #[unroll]
                                for at in 0..PX {
                                    let products = values[at] * factors;
                                    #[unroll]
                                    for lane in 0..size_in {
                                        sums[at * outputs + output] += products.extract(lane);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    let line = item * y.stride(0) + frame * y.stride(1) + row * y.stride(2) + group * outputs;
    #[unroll]
    for at in 0..PX {
        let w = first_w + at;
        if w < width {
            let place = line + w * y.stride(3);
            #[unroll]
            for vector in 0..comptime!(outputs / size_out) {
                let mut value = Vector::<f32, O>::new(0.0f32);
                #[unroll]
                for lane in 0..size_out {
                    let output = comptime!(vector * size_out + lane);
                    let mut sum = sums[at * outputs + output];
                    #[comptime]
                    match &bias {
                        ComptimeOption::Some(bias) => sum += f32::cast_from(bias[group * outputs + output]),
                        ComptimeOption::None => {}
                    }
                    value.insert(lane, sum);
                }
                let to = place + comptime!(vector * size_out);
                #[comptime]
                match &residual {
                    ComptimeOption::Some(residual) => value += Vector::<f32, O>::cast_from(residual[(residual_offset + to) / size_out]),
                    ComptimeOption::None => {}
                }
                y[(y_offset + to) / size_out] = Vector::cast_from(value);
            }
        }
    }
}

/// The weights of a convolution 3x3 with a padding of 1 over px that were doubled before, as those of four convolutions 2x2 over the px themselves: one for each
/// row and column of the four px that a px becomes. Each unit sums the kernel's px that fall on one px, in f32, for a vector of input channels.
///
/// `weight` is `[out, 1, 3, 3, in]` with consecutive channels, and `y` is `[4, out, 1, 2, 2, in]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn fold_weight<F: Float, N: Size>(
    weight: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let size = weight.vector_size();
    let columns = weight.shape(4) / size;
    let outputs = weight.shape(0);
    if ABSOLUTE_POS >= 16 * outputs * columns {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns;
    let rest = ABSOLUTE_POS / columns;
    let (tap_w, rest) = (rest % 2, rest / 2);
    let (tap_h, rest) = (rest % 2, rest / 2);
    let (output, phase) = (rest % outputs, rest / outputs);
    let (phase_h, phase_w) = (phase / 2, phase % 2);
    let from = output * weight.stride(0);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for h in 0..3usize {
        // The first of an even px, the first two of an odd one.
        if usize::cast_from(h > phase_h) == tap_h {
            for w in 0..3usize {
                if usize::cast_from(w > phase_w) == tap_w {
                    let at = (from + h * weight.stride(2) + w * weight.stride(3)) / size;
                    sum += Vector::<f32, N>::cast_from(weight[at + column]);
                }
            }
        }
    }
    y[ABSOLUTE_POS] = Vector::cast_from(sum);
}

/// Adds `x` to `y`, which has as many values.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn add_into<F: Float, N: Size>(
    y: &mut Tensor<Vector<F, N>>,
    x: &Tensor<Vector<F, N>>,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let sum = Vector::<f32, N>::cast_from(y[ABSOLUTE_POS]) + Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
    y[ABSOLUTE_POS] = Vector::cast_from(sum);
}
