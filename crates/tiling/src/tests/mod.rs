//! Grids, blends and the compositor against direct implementations of their definitions, on small sizes exhaustively.

mod composing;
mod foreign;
mod grids;
mod kinds;

use crate::{BlendPolicy, Canvas, Compositor, Geometry, HostTensor, Scale, Sink, TilePlan};

/// Values that differ everywhere.
fn noise(shape: [usize; 5], seed: usize) -> HostTensor {
    let mut state = (seed as u32).wrapping_mul(2_654_435_761) | 1;
    HostTensor::from_fn(shape, |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    })
}

/// The VAE without weights: nearest neighbours up, every n-th px down. Its output at a px depends on one input px.
fn toy(scale: Scale, tile: &HostTensor) -> HostTensor {
    let [b, c, t, h, w] = tile.shape();
    let [_, height, width] = Geometry::image(scale).output([t, h, w]);
    let from = |at: usize| match scale {
        Scale::Up(ratio) => at / ratio,
        Scale::Down(ratio) => at * ratio,
    };
    HostTensor::from_fn([b, c, t, height, width], |[b, c, t, y, x]| tile.row((b * c.max(1) + c) * t.max(1) + t, from(y))[from(x)])
}

/// Composes the outputs, pushed in the given order.
fn compose(plan: &TilePlan, policy: &dyn BlendPolicy, answers: &[HostTensor], order: &[usize]) -> HostTensor {
    let mut canvas = Canvas::default();
    compose_to(plan, policy, answers, order, &mut canvas);
    canvas.into_tensor()
}

fn compose_to(plan: &TilePlan, policy: &dyn BlendPolicy, answers: &[HostTensor], order: &[usize], sink: &mut dyn Sink) {
    let mut compositor = Compositor::new(plan, policy, sink);
    for &index in order {
        compositor.push(index, answers[index].clone()).unwrap();
    }
    compositor.finish().unwrap();
}
