//! Seamless tiles against the whole.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parallel::{ExecError, Executor, Job, RunStats, Worker};
use tiling::{BoxError, Canvas, DevicePiece, Geometry, HostTensor, Span, Stop, TileOp, TilePlan, TileRun};
use vae_core::testing::{Golden, assert_close, psnr};
use vae_core::{FrameRule, VaeSpec};

use crate::{Config, Direction, Done, Error, Event, Pipeline, Progress, RunOptions};

const KL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vae-kl/tests/data");
const WAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vae-wan/tests/data");

/// What rounding may change: the goldens allow twice as much between an untiled run and diffusers.
const TOLERANCE: f32 = 1e-4;

fn pipeline(model: &str, keys: &str) -> Pipeline {
    Pipeline::load(&Config::from_toml(&format!("model.path = {model:?}\nio.latent_space = \"vae\"\n{keys}")).unwrap()).unwrap()
}

fn noise(shape: [usize; 5], seed: u64) -> HostTensor {
    HostTensor::new(shape, vae_core::normal_noise(seed, 0).take(shape.iter().product()).collect()).unwrap()
}

/// Latents of a size in latent px, or samples of so many latent px and a remainder of px.
fn input(spec: &VaeSpec, direction: Direction, batch: usize, [height, width]: [usize; 2], remainder: usize) -> HostTensor {
    let frames = match spec.frames {
        FrameRule::Image => 1,
        FrameRule::Causal { .. } => 3,
    };
    let noise = noise([batch, spec.latent_channels, frames, height, width], 5);
    if direction == Direction::Decode {
        return noise;
    }
    let [frames, height, width] = spec.decode_geometry().output([frames, height, width]);
    // Samples are smooth, with some noise on top.
    let smooth = |[b, c, t, y, x]: [usize; 5]| ((b + c + t) as f32 + y as f32 * 0.21 + x as f32 * 0.13).sin() * 0.7;
    let mut samples = HostTensor::from_fn([batch, spec.input_channels, frames, height + remainder, width + remainder / 2], smooth);
    samples.data_mut().iter_mut().zip(vae_core::normal_noise(7, 0)).for_each(|(value, noise)| *value += 0.2 * noise);
    samples
}

fn run(pipeline: &Pipeline, direction: Direction, input: &HostTensor) -> HostTensor {
    match direction {
        Direction::Decode => pipeline.decode(input, RunOptions::default()).unwrap(),
        Direction::Encode => {
            let encoded = pipeline.encode(input, RunOptions::default()).unwrap();
            HostTensor::join_batch(std::iter::once(encoded.latents).chain(encoded.moments.into_iter().flatten()).collect())
        }
    }
}

/// Compares tiles of `tile` latent px with the whole.
fn check(model: &str, tile: usize, sizes: &[[usize; 2]]) {
    let ratio = pipeline(model, "").spec().spatial_ratio;
    for precision in ["fast", "strict"] {
        let whole = pipeline(model, &format!("tiling.kind = \"off\"\nio.posterior = \"moments\"\nmodel.precision = {precision:?}"));
        let keys =
            format!("tiling = {{ kind = \"seamless\", tile_px = {} }}\nio.posterior = \"moments\"\nmodel.precision = {precision:?}", tile * ratio);
        let tiled = pipeline(model, &keys);
        for (at, &size) in sizes.iter().enumerate() {
            for direction in [Direction::Decode, Direction::Encode] {
                let input = input(whole.spec(), direction, 1 + at % 2, size, if direction == Direction::Encode { at % ratio } else { 0 });
                let plan = tiled.plan(direction, input.shape()).unwrap();
                assert_eq!(plan.staged.is_some(), size.iter().any(|&side| side > tile));
                let (expected, got) = (run(&whole, direction, &input), run(&tiled, direction, &input));
                assert_close(&got, &expected, TOLERANCE, &format!("{model} {direction:?} of {size:?} in tiles of {tile}, {precision}"));
            }
        }
    }
}

const SIZES: [[usize; 2]; 4] = [[9, 14], [3, 11], [17, 2], [7, 7]];

#[test]
fn image_models_in_tiles_give_the_whole() {
    for model in ["sd", "flux", "odd"] {
        for tile in [1, 4, 5] {
            check(&format!("{KL}/{model}"), tile, &SIZES[..if tile == 1 { 2 } else { 4 }]);
        }
    }
}

#[test]
fn video_models_in_tiles_give_the_whole() {
    for model in ["wan21", "wan22", "odd", "qwen"] {
        for tile in [2, 5] {
            check(&format!("{WAN}/{model}"), tile, &SIZES[..2]);
        }
    }
}

/// The untiled answers of diffusers, which goldens hold, from seamless tiles.
#[test]
fn seamless_tiles_equal_untiled_diffusers() {
    const GOLDEN_TOLERANCE: f32 = 2e-4;
    let models = ["sd", "flux", "odd"]
        .map(|name| format!("{KL}/{name}"))
        .into_iter()
        .chain(["wan21", "wan22", "odd", "qwen"].map(|name| format!("{WAN}/{name}")));
    for model in models {
        let golden = Golden::read(format!("{model}/golden.safetensors").as_ref());
        let ratio = pipeline(&model, "").spec().spatial_ratio;
        for (tile, precision, chunk) in [(1, "fast", 1), (2, "strict", 2), (4, "fast", 3)] {
            let keys = format!(
                "tiling = {{ kind = \"seamless\", tile_px = {} }}\nio.posterior = \"moments\"\nmodel.precision = {precision:?}\nmodel.frames_per_chunk = {chunk}",
                tile * ratio
            );
            let tiled = pipeline(&model, &keys);
            let names = golden.names();
            for case in names.iter().filter_map(|name| name.strip_suffix(".untiled.decoded")) {
                let (tensor, what) = (|name: &str| golden.tensor(&format!("{case}.{name}")), format!("{model} {case}, tiles of {tile}, {precision}"));
                assert_close(&run(&tiled, Direction::Decode, &tensor("latents")), &tensor("untiled.decoded"), GOLDEN_TOLERANCE, &what);
                let moments = tiled.encode(&tensor("samples"), RunOptions::default()).unwrap().moments.unwrap();
                for (got, name) in moments.iter().zip(["untiled.mean", "untiled.logvar"]) {
                    assert_close(got, &tensor(name), GOLDEN_TOLERANCE, &format!("{what} {name}"));
                }
            }
        }
    }
}

#[test]
fn tiles_of_a_seamless_grid_share_no_px() {
    let tiled = pipeline(&format!("{KL}/sd"), "tiling = { kind = \"seamless\", tile_px = 40 }");
    let plan = tiled.plan(Direction::Decode, [1, 4, 1, 11, 23]).unwrap();
    let covers = |spans: &[Span], end| spans.windows(2).all(|pair| pair[0].end() == pair[1].start) && spans[spans.len() - 1].end() == end;
    assert!(covers(&plan.tiles.rows, 88) && covers(&plan.tiles.columns, 184), "{plan:?}");
}

#[test]
fn every_executor_and_store_gives_the_same_bytes() {
    let cases = [
        (format!("{KL}/sd"), noise([2, 4, 1, 13, 22], 1), "exact"),
        (format!("{KL}/sd"), noise([2, 4, 1, 13, 22], 1), "sampled"),
        (format!("{WAN}/wan22"), noise([1, 6, 3, 7, 9], 1), "auto"),
    ];
    for (model, latents, norm) in cases {
        let ratio = pipeline(&model, "").spec().spatial_ratio;
        let tiling = format!("tiling = {{ kind = \"seamless\", tile_px = {}, norm = {norm:?} }}", 4 * ratio);
        let decode = |keys: &str| {
            let pipeline = pipeline(&model, &format!("{tiling}\n{keys}"));
            pipeline.decode(&latents, RunOptions::default()).unwrap()
        };
        let expected = decode("");
        for executor in ["multi-device", "pipelined"] {
            for workers in [1, 2, 3, 8] {
                for batch in [1, 3] {
                    let keys = format!("executor = {{ kind = {executor:?}, batch_tiles = {batch} }}\ndevices.cpu.workers = {workers}");
                    assert!(decode(&keys) == expected, "{model}, {executor}, {workers} workers, stacks of {batch}");
                }
            }
        }
        // Where features lie does not matter either.
        let tiled = pipeline(&model, &tiling);
        for stored in [0, 100 << 10] {
            let mut plan = tiled.plan(Direction::Decode, latents.shape()).unwrap();
            let memory = plan.memory.as_mut().unwrap();
            (memory.stored, memory.scratch) = (stored, 1 << 20);
            let mut canvas = Canvas::default();
            tiled.run(&plan, &latents, &mut canvas, RunOptions::default()).unwrap();
            assert!(canvas.into_tensor() == expected, "{model}, {stored} bytes of the store in memory");
        }
    }
}

type MakeOp = dyn Fn(&Worker) -> Arc<dyn TileOp> + Send + Sync;

/// An executor that puts other operations in the place of its workers'.
struct Rewired {
    executor: Box<dyn Executor>,
    op: Box<MakeOp>,
}

impl std::fmt::Debug for Rewired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewired").field("executor", &self.executor).finish_non_exhaustive()
    }
}

impl Executor for Rewired {
    fn name(&self) -> &'static str {
        self.executor.name()
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        self.executor.check_workers(count)
    }

    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        self.executor.held_tiles(plan, workers)
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        let rewired = |worker: &Worker| Worker { op: (self.op)(worker), ..worker.clone() };
        // They have to live as long as what the job borrows.
        let workers = job.workers.iter().map(rewired).collect::<Vec<_>>().leak();
        self.executor.run(Job { workers, ..job }, progress)
    }
}

/// The same pipeline with other operations.
fn rewired(pipeline: Pipeline, op: impl Fn(&Worker) -> Arc<dyn TileOp> + Send + Sync + 'static) -> Pipeline {
    let executor = Rewired { executor: pipeline.config().executor.build(), op: Box::new(op) };
    pipeline.with_executor(Box::new(executor)).unwrap()
}

/// Fails after it has done its work, every so many tiles.
struct FaultyOp {
    op: Arc<dyn TileOp>,
    every: usize,
    begun: Arc<AtomicUsize>,
}

impl TileOp for FaultyOp {
    fn geometry(&self) -> Geometry {
        self.op.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.op.chunks(frames)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        self.op.upload(piece)
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        let fails = (self.begun.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.every);
        let mut run = self.op.begin(tiles, stop);
        Box::new(move |piece| {
            let answer = run(piece)?;
            if fails { Err("an injected fault".into()) } else { Ok(answer) }
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        self.op.download(answer)
    }
}

#[test]
fn tiles_of_a_stage_that_fail_are_run_again() {
    for (model, latents) in [(format!("{KL}/sd"), noise([1, 4, 1, 13, 22], 1)), (format!("{WAN}/wan22"), noise([1, 6, 3, 7, 9], 1))] {
        let ratio = pipeline(&model, "").spec().spatial_ratio;
        let tiling = format!("tiling = {{ kind = \"seamless\", tile_px = {} }}", 4 * ratio);
        let expected = pipeline(&model, &tiling).decode(&latents, RunOptions::default()).unwrap();
        for (kind, workers, every) in [("multi-device", 1, 3), ("multi-device", 3, 2), ("pipelined", 2, 5)] {
            let keys = format!("{tiling}\nexecutor = {{ kind = {kind:?}, retries = 50 }}\ndevices.cpu.workers = {workers}");
            let faulty = pipeline(&model, &keys);
            let begun = Arc::new(AtomicUsize::new(0));
            let counted = begun.clone();
            let faulty = rewired(faulty, move |worker| Arc::new(FaultyOp { op: worker.op.clone(), every, begun: counted.clone() }));
            let mut canvas = Canvas::default();
            let plan = faulty.plan(Direction::Decode, latents.shape()).unwrap();
            let stats = faulty.run(&plan, &latents, &mut canvas, RunOptions::default()).unwrap();
            assert!(canvas.into_tensor() == expected, "{model}, {kind}, {workers} workers");
            assert!(stats.workers.iter().map(|worker| worker.faults).sum::<usize>() > 0 && begun.load(Ordering::Relaxed) > stats.tiles, "{stats:?}");
        }
    }
}

/// Its device does not work any more. Counts the tiles that it is given.
struct LostOp(Arc<dyn TileOp>, Arc<AtomicUsize>);

impl TileOp for LostOp {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Box::new(|_| Err("the device is lost".into()))
    }

    fn check(&self) -> Result<(), BoxError> {
        Err("the device is lost".into())
    }
}

#[test]
fn a_lost_device_is_not_tried_in_later_stages() {
    let latents = noise([1, 4, 1, 13, 22], 1);
    let (model, tiling) = (format!("{KL}/sd"), "tiling = { kind = \"seamless\", tile_px = 32 }");
    let expected = pipeline(&model, tiling).decode(&latents, RunOptions::default()).unwrap();
    let lossy = pipeline(&model, &format!("{tiling}\nexecutor.kind = \"multi-device\"\ndevices.cpu.workers = 3"));
    let tried = Arc::new(AtomicUsize::new(0));
    let counted = tried.clone();
    let lossy = rewired(lossy, move |worker| match worker.name.as_str() {
        "cpu/1" => Arc::new(LostOp(worker.op.clone(), counted.clone())),
        _ => worker.op.clone(),
    });
    let plan = lossy.plan(Direction::Decode, latents.shape()).unwrap();
    let mut canvas = Canvas::default();
    let stats = lossy.run(&plan, &latents, &mut canvas, RunOptions::default()).unwrap();
    assert!(canvas.into_tensor() == expected);
    assert_eq!(tried.load(Ordering::Relaxed), 1, "of {} stages", plan.stages.len());
    let retired = stats.workers.iter().find(|worker| worker.name == "cpu/1").unwrap();
    assert!(retired.retired.is_some() && retired.tiles == 0, "{retired:?}");
}

#[test]
fn sampled_moments_come_close_to_the_whole() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-kl");
    let smooth = |[_, c, _, y, x]: [usize; 5]| ((c * c) as f32 + y as f32 * 0.17 * (c % 3) as f32 + x as f32 * 0.11).sin();
    let mut latents = HostTensor::from_fn([1, 16, 1, 64, 64], smooth);
    latents.data_mut().iter_mut().zip(vae_core::normal_noise(3, 0)).for_each(|(value, noise)| *value += 0.3 * noise);
    let decode = |tiling: &str| pipeline(model, &format!("tiling = {{ {tiling} }}")).decode(&latents, RunOptions::default()).unwrap();
    let whole = decode("kind = \"off\"");
    let sampled = decode("kind = \"seamless\", tile_px = 256, norm = \"sampled\"");
    let overlapping = decode("kind = \"diffusers\", tile_px = 256");
    let [sampled, overlapping] = [sampled, overlapping].map(|tiled| psnr(&tiled, &whole));
    assert!(sampled > 29.0 && sampled > overlapping + 6.0, "{sampled} dB, and {overlapping} of diffusers' tiles");
}

#[test]
fn sampled_moments_that_overflow_are_taken_again_in_f32() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-kl");
    let mut latents = noise([1, 16, 1, 20, 20], 3);
    latents.data_mut().iter_mut().for_each(|value| *value *= 1e4);
    let decode = |dtype: &str| {
        let keys = format!("tiling = {{ kind = \"seamless\", tile_px = 96, norm = \"sampled\" }}\nmodel.dtype = {dtype:?}");
        let pipeline = pipeline(model, &keys);
        let mut canvas = Canvas::default();
        let stats = pipeline.run(&pipeline.plan(Direction::Decode, latents.shape()).unwrap(), &latents, &mut canvas, RunOptions::default()).unwrap();
        (canvas.into_tensor(), stats.upcast_tiles)
    };
    let ((half, upcast), (single, _)) = (decode("f16"), decode("f32"));
    // The crops, and the tiles of the stage that they belong to.
    assert!(upcast > 1, "{upcast}");
    assert!(half.data().iter().all(|value| value.is_finite()) && psnr(&half, &single) > 30.0, "{}", psnr(&half, &single));
}

#[test]
fn half_types_meet_in_the_store() {
    let latents = noise([1, 16, 1, 9, 13], 3);
    for dtype in ["f16", "bf16"] {
        let model = format!("{KL}/flux");
        let whole = pipeline(&model, &format!("tiling.kind = \"off\"\nmodel.dtype = {dtype:?}")).decode(&latents, RunOptions::default()).unwrap();
        let exact = pipeline(&model, "tiling.kind = \"off\"").decode(&latents, RunOptions::default()).unwrap();
        let tiled = pipeline(&model, &format!("tiling = {{ kind = \"seamless\", tile_px = 32 }}\nmodel.dtype = {dtype:?}"));
        let tiled = tiled.decode(&latents, RunOptions::default()).unwrap();
        // Tiles round as the whole does, so they are no further from f32.
        assert!(psnr(&tiled, &exact) > psnr(&whole, &exact) - 1.0, "{dtype}: {} and {} dB", psnr(&tiled, &exact), psnr(&whole, &exact));
    }
}

#[test]
fn values_that_are_not_finite_are_allowed_as_in_the_whole() {
    let mut latents = noise([1, 4, 1, 9, 13], 3);
    latents.data_mut()[200] = f32::NAN;
    let model = format!("{KL}/sd");
    let decode =
        |kind: &str| pipeline(&model, &format!("tiling.kind = {kind:?}\nio.on_non_finite = \"allow\"")).decode(&latents, RunOptions::default());
    let nans = |tensor: HostTensor| tensor.data().iter().filter(|value| value.is_nan()).count();
    assert_eq!(nans(decode("off").unwrap()), 3 * 72 * 104);
    assert_eq!(nans(decode("seamless").unwrap()), 3 * 72 * 104);
    assert!(matches!(pipeline(&model, "tiling.kind = \"seamless\"").decode(&latents, RunOptions::default()), Err(Error::NonFinite { .. })));
}

#[test]
fn progress_counts_the_tiles_of_all_stages() {
    struct Watch(Vec<Event>);
    impl Progress for Watch {
        fn on_event(&mut self, event: &Event) {
            self.0.push(event.clone());
        }
    }
    let tiled = pipeline(&format!("{KL}/sd"), "tiling = { kind = \"seamless\", tile_px = 32 }");
    let latents = noise([1, 4, 1, 8, 8], 1);
    let mut watch = Watch(Vec::new());
    let plan = tiled.plan(Direction::Decode, latents.shape()).unwrap();
    let stats = tiled.run(&plan, &latents, &mut Canvas::default(), RunOptions::default().with_progress(&mut watch)).unwrap();
    let tiles: usize = plan.stages.iter().map(|stage| stage.tiles).sum();
    assert_eq!((stats.tiles, plan.tiles.tiles.len()), (tiles, 4));
    assert_eq!(watch.0.iter().filter(|event| matches!(event, Event::Started { .. })).count(), 1);
    let finished: Vec<(usize, Done)> =
        watch.0.iter().filter_map(|event| if let Event::TileFinished { tile, done, .. } = event { Some((*tile, *done)) } else { None }).collect();
    assert!(finished.iter().enumerate().all(|(at, (tile, done))| *tile == at && done.tiles == at + 1 && done.of_tiles == tiles), "{finished:?}");
    assert!(finished.windows(2).all(|pair| pair[0].1.tile_frames <= pair[1].1.tile_frames));
    let last = finished.last().unwrap().1;
    assert_eq!((last.tile_frames, last.output_frames), (last.of_tile_frames, 1));
}

#[test]
fn budgets_choose_tiles_and_stores() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-kl");
    let plan = |mib: usize, side: usize| {
        pipeline(model, &format!("tiling = {{ kind = \"seamless\", memory_mib = {mib} }}")).plan(Direction::Decode, [1, 16, 1, side, side])
    };
    let whole = plan(4000, 128).unwrap();
    assert!(whole.staged.is_none() && whole.memory.unwrap().next.is_none(), "{whole:?}");
    let small = plan(200, 128).unwrap();
    let memory = small.memory.unwrap();
    assert!(
        small.staged.is_some() && memory.peak <= 200 << 20 && memory.scratch > 0 && memory.next.is_some_and(|next| next.bytes > 200 << 20),
        "{memory:?}"
    );
    let Err(Error::Budget { least_mib, budget_mib: 50 }) = plan(50, 128) else { panic!("a budget that is too small") };
    assert!(plan(usize::try_from(least_mib).unwrap() - 1, 128).is_err());
    assert!(plan(usize::try_from(least_mib).unwrap(), 128).is_ok());
    assert!(small.work_ratio < 1.02, "{}", small.work_ratio);
}
