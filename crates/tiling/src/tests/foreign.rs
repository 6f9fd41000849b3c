//! Grids, blend policies and sinks of other crates that break their contract: the result is an error, never a panic.

use super::{noise, toy};
use crate::{
    BlendPolicy, BoxError, Canvas, Cascade, CompositeError, Compositor, Corner, DiffusersGrid, Feather, FrameScale, Geometry, Grid, GridError,
    HostTensor, Off, Overlap, Party, Scale, Sink, Span, TilePlan, Uniform, UniformSize,
};

/// The same spans for any input.
#[derive(Debug)]
struct Fixed([Vec<Span>; 2]);

impl Grid for Fixed {
    fn spans(&self, _: Scale, _: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        Ok(self.0.clone())
    }
}

fn spans(spans: &[[usize; 2]]) -> Vec<Span> {
    spans.iter().map(|&[start, length]| Span { start, length }).collect()
}

fn plan_of(columns: &[[usize; 2]], scale: Scale, width: usize) -> Result<TilePlan, GridError> {
    TilePlan::new(&Fixed([spans(&[[0, 4]]), spans(columns)]), Geometry::image(scale), [1, 4, width])
}

#[test]
fn spans_that_do_not_cover_the_input_are_refused_by_what_is_wrong() {
    let (up, down) = (Scale::Up(8), Scale::Down(2));
    for (columns, scale, problem) in [
        (&[] as &[[usize; 2]], up, "no spans on the width axis"),
        (&[[1, 9]], up, "span 0 on the width axis (px 1 to 10) does not start at 0"),
        (&[[0, 4], [5, 5]], up, "span 1 on the width axis (px 5 to 10) leaves a gap: the one before it ends at px 4"),
        (&[[0, 6], [4, 4]], up, "is the last, and the input ends at px 10"),
        (&[[0, 6], [4, 7]], up, "reaches past the input's 10 px"),
        (&[[0, 6], [4, usize::MAX]], up, "reaches past the input's 10 px"),
        (&[[0, 6], [4, 0], [4, 6]], up, "is shorter than the 1 px"),
        (&[[0, 6], [0, 10]], up, "does not start after the one before it (px 0)"),
        (&[[0, 6], [5, 5], [4, 6]], up, "does not start after the one before it (px 5)"),
        (&[[0, 10], [4, 2], [7, 3]], up, "leaves a gap: the one before it ends at px 6"),
        (&[[0, 6], [3, 7]], down, "does not start at a multiple of 2 px"),
        (&[[0, 9], [8, 1]], down, "is shorter than the 2 px"),
        (&[[0, 5], [6, 4]], down, "leaves a gap"),
        (&[[0, 9]], down, "is the last, and the input ends at px 10"),
    ] {
        let error = plan_of(columns, scale, 10).unwrap_err().to_string();
        assert!(error.contains(problem), "{columns:?}: {error}");
    }
    assert!(plan_of(&[[0, 11]], down, 11).is_ok() && plan_of(&[[0, 10]], down, 11).is_ok(), "a remainder may be left out");
}

#[test]
fn a_grid_is_refused_or_all_its_tiles_can_be_composed() {
    let all: Vec<[usize; 2]> = (0..=5).flat_map(|start| (0..=6).map(move |length| [start, length])).collect();
    let mut accepted = 0;
    let mut check = |columns: &[[usize; 2]]| {
        for scale in [Scale::Up(2), Scale::Down(1), Scale::Down(2)] {
            let Ok(plan) = plan_of(columns, scale, 5) else { continue };
            accepted += 1;
            let source = noise([1, 1, 1, 4, 5], 3);
            for policy in [&Cascade as &dyn BlendPolicy, &Feather] {
                let mut canvas = Canvas::default();
                let mut compositor = Compositor::new(&plan, policy, &mut canvas);
                for tile in &plan.tiles {
                    compositor.push(tile.index, toy(scale, &source.region(&tile.input))).unwrap();
                }
                compositor.finish().unwrap();
                let whole = toy(scale, &source);
                let is_close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
                assert!(canvas.into_tensor().data().iter().zip(whole.data()).all(is_close), "{columns:?} {scale:?}");
            }
        }
    };
    for &a in &all {
        check(&[a]);
        for &b in &all {
            check(&[a, b]);
            for &c in &all {
                check(&[a, b, c]);
            }
        }
    }
    assert!(accepted > 50, "{accepted}");
}

#[test]
fn a_grid_that_panics_is_an_error() {
    #[derive(Debug)]
    struct Broken;

    impl Grid for Broken {
        fn spans(&self, _: Scale, _: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
            panic!("no grid")
        }
    }

    let error = TilePlan::new(&Broken, Geometry::image(Scale::Up(1)), [1, 4, 4]).unwrap_err();
    assert!(matches!(&error, GridError::Panicked(panic) if panic.who == Party::Grid && panic.message == "no grid"), "{error}");
}

#[test]
fn plans_of_any_numbers_are_made_or_refused_at_once() {
    let begun = std::time::Instant::now();
    let [huge, large] = [usize::MAX, 100_000_000];
    let grids: [&dyn Grid; 6] = [
        &Off,
        &DiffusersGrid { tile_px: [8; 2], overlap: Overlap::Share([0.25; 2]), skip_redundant: true, unit_px: 0 },
        &DiffusersGrid { tile_px: [huge >> 4 << 3; 2], overlap: Overlap::Share([0.3; 2]), skip_redundant: false, unit_px: 2 },
        &DiffusersGrid { tile_px: [256; 2], overlap: Overlap::StridePx([8; 2]), skip_redundant: false, unit_px: huge },
        &Uniform { size: UniformSize::TilePx([8; 2]), overlap: [0.0; 2] },
        &Uniform { size: UniformSize::Splits([3, 1_000_000]), overlap: [0.999; 2] },
    ];
    let frames = [FrameScale::Same, FrameScale::CausalUp(4), FrameScale::CausalDown(4), FrameScale::CausalUp(0), FrameScale::CausalDown(0)];
    for grid in grids {
        for scale in [0, 1, 8, huge].into_iter().flat_map(|ratio| [Scale::Up(ratio), Scale::Down(ratio)]) {
            for frames in frames {
                for blend_unit in [0, 1] {
                    for input in [[0, 8, 8], [1, 0, 8], [huge, 8, 8], [1, huge, huge], [1, large, large], [5, 1, large], [large, large, large]] {
                        let plan = TilePlan::new(grid, Geometry { scale, frames, blend_unit }, input);
                        assert!(plan.is_err() || plan.is_ok_and(|plan| plan.tiles.len() <= 1 << 18));
                    }
                }
            }
        }
    }
    let none = TilePlan::new(&Off, Geometry::image(Scale::Up(8)), [0, 8, 8]).unwrap_err();
    assert_eq!(none, GridError::NoFrames);
    let many = TilePlan::new(&Uniform::with_tile([64; 2], [16; 2]), Geometry::image(Scale::Up(8)), [1, large, large]).unwrap_err();
    assert!(matches!(many, GridError::TooManyTiles { .. } | GridError::InputTooLarge { .. }), "{many}");
    assert!(begun.elapsed().as_secs() < 20);
}

/// Gives one weight everywhere.
#[derive(Debug)]
struct Constant(f64);

impl BlendPolicy for Constant {
    fn weight(&self, _: usize, _: &crate::Seam) -> f64 {
        assert!(self.0 < 100.0, "no weight");
        self.0
    }

    fn corner(&self) -> Corner {
        assert!(self.0 < 1000.0, "no corner");
        Corner::Separable
    }
}

#[test]
fn weights_that_are_none_are_refused_before_a_tile_is_run() {
    let plan = TilePlan::new(&Uniform::with_tile([4, 4], [2, 2]), Geometry::image(Scale::Up(1)), [1, 4, 6]).unwrap();
    for weight in [f64::NAN, f64::INFINITY, -0.1, 1.1, 100.0, 1000.0] {
        let (policy, mut canvas) = (Constant(weight), Canvas::default());
        let error = Compositor::new(&plan, &policy, &mut canvas).prepare().unwrap_err();
        match &error {
            CompositeError::Weight { offset: 0, extent: 2, .. } => assert!(weight.is_nan() || weight < 100.0 || weight.is_infinite()),
            CompositeError::Panicked(panic) => assert!(panic.who == Party::Blend && panic.message.starts_with("no ")),
            _ => panic!("{error}"),
        }
        let mut compositor = Compositor::new(&plan, &policy, &mut canvas);
        assert!(compositor.push(0, noise([1, 1, 1, 4, 4], 1)).is_err());
    }
    for weight in [0.0, 0.5, 1.0] {
        Compositor::new(&plan, &Constant(weight), &mut Canvas::default()).prepare().unwrap();
    }
}

#[test]
fn a_sink_that_panics_is_an_error() {
    struct Broken;

    impl Sink for Broken {
        fn take(&mut self, _: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), BoxError> {
            panic!("no room")
        }
    }

    for width in [4, 6] {
        let plan = TilePlan::new(&Uniform::with_tile([4, 4], [1, 1]), Geometry::image(Scale::Up(1)), [1, 4, width]).unwrap();
        let tile = &plan.tiles[0].output.size;
        let error = Compositor::new(&plan, &Cascade, &mut Broken).push(0, noise([1, 1, 1, tile[1], tile[2]], 1)).unwrap_err();
        assert!(matches!(&error, CompositeError::Panicked(panic) if panic.who == Party::Sink && panic.message == "no room"), "{error}");
    }
}

#[test]
fn frames_are_finished_with_the_last_tile() {
    let plan = TilePlan::new(&Uniform::with_tile([4, 4], [1, 1]), Geometry::image(Scale::Up(1)), [3, 4, 7]).unwrap();
    let mut canvas = Canvas::default();
    let mut compositor = Compositor::new(&plan, &Cascade, &mut canvas);
    let frames = |index: usize, count| {
        let [_, height, width] = plan.tiles[index].output.size;
        noise([1, 1, count, height, width], 1)
    };
    let mut counts = Vec::new();
    for (index, count) in [(1, 1), (0, 3), (1, 1), (1, 1)] {
        compositor.push(index, frames(index, count)).unwrap();
        counts.push(compositor.finished_frames());
    }
    assert_eq!(counts, [0, 1, 2, 3]);
}
