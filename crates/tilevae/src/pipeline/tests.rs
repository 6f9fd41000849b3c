use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parallel::Progress;
use tiling::{BoxError, Corner, Region, Span};
use vae_core::tensor_file::{StoredTensor, read_tensors};

use super::*;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-kl");
const SD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vae-kl/tests/data/sd");

fn pipeline(model: &str, dtype: &str) -> Pipeline {
    Pipeline::load(&Config::from_toml(&format!("model.path = {model:?}\nmodel.dtype = {dtype:?}")).unwrap()).unwrap()
}

fn latents(channels: usize) -> HostTensor {
    HostTensor::from_fn([1, channels, 1, 6, 10], |[_, c, _, y, x]| ((c * 31 + y * 17 + x * 7) % 23) as f32 / 11.0 - 1.0)
}

#[test]
fn f16_is_computed_in_f32_where_the_model_asks_for_it() {
    let decode = |model, dtype, channels| pipeline(model, dtype).decode(&latents(channels), RunOptions::default()).unwrap();
    assert!(pipeline(SD, "f16").spec().force_upcast);
    assert_eq!(decode(SD, "f16", 4), decode(SD, "f32", 4));
    assert_ne!(decode(SD, "bf16", 4), decode(SD, "f32", 4));
    // `auto` is f32 on CPUs.
    assert_eq!(decode(DEMO, "auto", 16), decode(DEMO, "f32", 16));
    assert_ne!(decode(DEMO, "f16", 16), decode(DEMO, "f32", 16));
}

#[test]
fn a_model_in_memory_is_that_of_its_files() {
    let file = format!("{SD}/diffusion_pytorch_model.safetensors");
    let fields: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(format!("{SD}/config.json")).unwrap()).unwrap();
    let stored = read_tensors(file.as_ref()).unwrap();
    let in_memory = |tensor: &StoredTensor, bytes: Vec<u8>| {
        StoredTensor::in_memory(tensor.name().to_owned(), tensor.dtype().clone(), tensor.shape().to_vec(), Arc::new(bytes))
    };
    let tensors = |count: usize| stored.iter().take(count).map(|tensor| in_memory(tensor, tensor.read_bytes().unwrap()).unwrap()).collect::<Vec<_>>();
    let registry = Registry::linked().unwrap();
    let load = |count: usize| Pipeline::load_model(&Config::default(), &Model::in_memory(&registry, fields.clone(), tensors(count)).unwrap());
    let decode = |pipeline: Pipeline| pipeline.decode(&latents(4), RunOptions::default()).unwrap();
    assert_eq!(decode(load(stored.len()).unwrap()), decode(pipeline(SD, "f32")));
    let missing = load(stored.len() - 1).unwrap_err().to_string();
    assert!(missing.contains("the model in memory") && missing.contains("missing"), "{missing}");
    let cut = in_memory(&stored[0], vec![0; 3]).unwrap_err().to_string();
    assert!(cut.contains("3 bytes"), "{cut}");
    let other = serde_json::json!({ "_class_name": "AutoencoderTiny" });
    assert!(Model::in_memory(&registry, other, Vec::new()).is_err());
}

#[test]
fn pipelines_share_weights_and_count_what_the_program_holds() {
    let pipeline = pipeline(DEMO, "f32").with_held_bytes(3 << 20);
    let seamless = |keys: &str| Config::from_toml(&format!("model.path = {DEMO:?}\ntiling.kind = \"seamless\"\n{keys}")).unwrap();
    let shared = pipeline.share(&seamless("tiling.tile_px = 32")).unwrap();
    assert!(Arc::ptr_eq(&pipeline.replicas[0], &shared.replicas[0]));
    let plan = |pipeline: &Pipeline| pipeline.plan_in_memory(Direction::Decode, latents(16).shape()).unwrap();
    assert_eq!((plan(&pipeline).tiles.tiles.len(), plan(&shared).tiles.tiles.len()), (1, 6));
    let decode = |pipeline: &Pipeline| pipeline.decode(&latents(16), RunOptions::default()).unwrap();
    vae_core::testing::assert_close(&decode(&shared), &decode(&pipeline), 1e-4, "seamless");
    for keys in ["tiling.tile_px = 32", "tiling.memory_mib = 500"] {
        let with = shared.share(&seamless(keys)).unwrap();
        let without = shared.share(&seamless(keys)).unwrap().with_held_bytes(0);
        assert_eq!(plan(&with).peak_bytes.unwrap() - plan(&without).peak_bytes.unwrap(), 3 << 20, "{keys}");
    }
    for keys in ["model.dtype = \"bf16\"", "devices.cpu.threads_per_worker = 1"] {
        assert!(matches!(pipeline.share(&seamless(keys)), Err(Error::ConfigValue { .. })), "{keys}");
    }
}

/// A source of which nothing is known but what is read.
struct Stream(HostTensor);

impl TileSource for Stream {
    fn shape(&self) -> [usize; 5] {
        self.0.shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        Ok(self.0.region(region))
    }
}

#[test]
fn what_is_not_finite_is_refused_from_any_source() {
    let mut wrong = latents(16);
    // In the last tile, and out of range once it is scaled.
    wrong.row_mut(2, 5)[9] = f32::NAN;
    wrong.row_mut(7, 5)[8] = f32::MAX;
    let expected = |error: Error, what: &str, at: &str, count: usize| {
        let message = error.to_string();
        assert!(matches!(error, Error::NonFinite { .. }) && message.contains(what) && message.contains(at), "{message}");
        assert!(message.contains(&format!("{count} of ")) && message.contains("io.on_non_finite"), "{message}");
    };
    for executor in ["sequential", "multi-device", "pipelined"] {
        let text = format!("model.path = {DEMO:?}\ntiling.tile_px = 32\nexecutor.kind = {executor:?}");
        let pipeline = Pipeline::load(&Config::from_toml(&text).unwrap()).unwrap();
        let count = if pipeline.spec().latent_norm.scale.iter().any(|&scale| scale > 1.0) { 2 } else { 1 };
        expected(pipeline.decode(&wrong, RunOptions::default()).unwrap_err(), "latents", "[0, 2, 0, 5, 9]", count);
        expected(pipeline.decode(&Stream(wrong.clone()), RunOptions::default()).unwrap_err(), "latents", "[0, 2, 0, 5, 9]", count);
        let mut samples = HostTensor::zeros([1, 3, 1, 48, 80]);
        samples.row_mut(1, 40)[79] = f32::NEG_INFINITY;
        expected(pipeline.encode(&samples, RunOptions::default()).unwrap_err(), "samples", "[0, 1, 0, 40, 79]", 1);
        expected(pipeline.encode(&Stream(samples.clone()), RunOptions::default()).unwrap_err(), "samples", "[0, 1, 0, 40, 79]", 1);
        let allowing = Pipeline::load(&Config::from_toml(&format!("{text}\nio.on_non_finite = \"allow\"")).unwrap()).unwrap();
        let answer = allowing.decode(&wrong, RunOptions::default()).unwrap();
        assert!(answer.data().iter().any(|value| value.is_nan()));
        allowing.encode(&Stream(samples), RunOptions::default()).unwrap();
    }
}

#[test]
#[cfg(feature = "wan")]
fn files_without_a_configuration_find_their_family() {
    let file = "diffusion_pytorch_model.safetensors";
    for (source, expected) in [
        ("kl/tests/data/flux", "kl"),
        ("wan/tests/data/wan21", "wan"),
        ("wan/tests/data/wan22", "wan"),
        ("wan/tests/data/wan21/original.pth", "wan"),
        ("wan/tests/data/wan22/original.safetensors", "wan"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../vae-{source}"));
        let source = if source.is_dir() { source.join(file) } else { source };
        let alone = folder.path().join(source.file_name().unwrap());
        std::fs::copy(&source, &alone).unwrap();
        let config = Config::from_toml(&format!("model.path = {alone:?}")).unwrap();
        // Shapes do not show the groups of norms: `kl` assumes the published 32, which do not fit small models.
        let family = match open_model(&config) {
            Ok(model) => model.entry.name.to_owned(),
            Err(error) if error.to_string().contains("norm_num_groups") => "kl".to_owned(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(family, expected, "{}", source.display());
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
fn gpu_memory_does_not_grow_from_run_to_run() {
    let device = vae_core::testing::device();
    if vae_core::adapter(&device).is_none() {
        println!("skipped: no GPU is to be tested");
        return;
    }
    for executor in ["sequential", "multi-device", "pipelined"] {
        let config = format!("model.path = {DEMO:?}\ntiling.tile_px = 32\nexecutor.kind = {executor:?}");
        let config = Config::from_toml(&config).unwrap();
        let model = open_model(&config).unwrap();
        let devices = [OpenDevice { name: "vulkan:0".parse().unwrap(), device: device.clone() }];
        let pipeline = Pipeline::load_on(&config, &model, &devices, &Stop::default()).unwrap();
        let latents = latents(16);
        pipeline.warm_up(&pipeline.plan(Direction::Decode, latents.shape()).unwrap(), &Stop::default());
        let reserved = || {
            let samples = pipeline.decode(&latents, RunOptions::default()).unwrap();
            (samples, pipeline.device_memory())
        };
        let before = reserved();
        assert!(before.1.values().all(|&held| held > 0) && before.1.len() == 1);
        for _ in 0..3 {
            assert_eq!(reserved(), before, "{executor}");
        }
    }
}

/// Two columns that meet in the middle.
#[derive(Debug)]
struct Halves;

impl Grid for Halves {
    fn spans(&self, _: tiling::Scale, [height, width]: [usize; 2]) -> Result<[Vec<Span>; 2], tiling::GridError> {
        let half = width / 2;
        Ok([vec![Span { start: 0, length: height }], vec![Span { start: 0, length: half + 1 }, Span { start: half, length: width - half }]])
    }
}

/// The later tile takes all of an overlap.
#[derive(Debug)]
struct Later;

impl BlendPolicy for Later {
    fn weight(&self, _: usize, _: &tiling::Seam) -> f64 {
        1.0
    }

    fn corner(&self) -> Corner {
        Corner::Separable
    }
}

/// Panics at every call.
#[derive(Debug)]
struct Broken;

impl TileSource for Broken {
    fn shape(&self) -> [usize; 5] {
        panic!("broken")
    }

    fn read(&self, _: &Region) -> Result<HostTensor, BoxError> {
        panic!("broken")
    }
}

/// Panics when it is asked where it lies.
struct Nowhere(HostTensor);

impl TileSource for Nowhere {
    fn shape(&self) -> [usize; 5] {
        self.0.shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        Ok(self.0.region(region))
    }

    fn is_in_memory(&self) -> bool {
        panic!("broken")
    }
}

impl Sink for Broken {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), BoxError> {
        panic!("broken")
    }
}

impl Progress for Broken {
    fn on_event(&mut self, _: &parallel::Event) {
        panic!("broken")
    }
}

impl Grid for Broken {
    fn spans(&self, _: tiling::Scale, _: [usize; 2]) -> Result<[Vec<Span>; 2], tiling::GridError> {
        panic!("broken")
    }
}

impl BlendPolicy for Broken {
    fn weight(&self, _: usize, _: &tiling::Seam) -> f64 {
        panic!("broken")
    }
}

#[test]
fn panics_of_the_callers_code_are_errors() {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for executor in ["sequential", "multi-device", "pipelined"] {
            let pipeline = || {
                let config = format!("model.path = {DEMO:?}\ntiling = {{ kind = \"diffusers\", tile_px = 32 }}\nexecutor.kind = {executor:?}");
                Pipeline::load(&Config::from_toml(&config).unwrap()).unwrap()
            };
            let (sound, latents) = (pipeline(), latents(16));
            let plan = sound.plan(Direction::Decode, latents.shape()).unwrap();
            let mut canvas = Canvas::default();
            let none = RunOptions::default;
            let decoded = |pipeline: Pipeline| pipeline.decode(&latents, none()).map(drop);
            for (who, outcome) in [
                ("the source of the input", sound.run(&plan, &Broken, &mut canvas, none()).map(drop)),
                ("the source of the input", sound.run(&plan, &Nowhere(latents.clone()), &mut canvas, none()).map(drop)),
                ("the source of the input", sound.encode(&Broken, none()).map(drop)),
                ("the sink", sound.run(&plan, &latents, &mut Broken, none()).map(drop)),
                ("the progress listener", sound.run(&plan, &latents, &mut canvas, none().with_progress(&mut Broken)).map(drop)),
                ("the grid", decoded(pipeline().with_grid(Direction::Decode, Arc::new(Broken)))),
                ("the blend policy", decoded(pipeline().with_blend(Direction::Decode, Arc::new(Broken)))),
            ] {
                assert_eq!(outcome.unwrap_err().to_string(), format!("{who} panicked: broken"), "{executor}");
            }
        }
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(Duration::from_mins(2)).expect("all runs end with their errors");
}

#[test]
fn grids_and_blends_may_be_the_callers_own() {
    let decode = Direction::Decode;
    let pipeline = pipeline(DEMO, "f32").with_grid(decode, Arc::new(Halves)).with_blend(decode, Arc::new(Later));
    let latents = latents(16);
    let plan = pipeline.plan(decode, latents.shape()).unwrap();
    let mut canvas = Canvas::default();
    assert_eq!(pipeline.run(&plan, &latents, &mut canvas, RunOptions::default()).unwrap().tiles, 2);
    let right = Region { start: [0, 0, 5], size: [1, 6, 5] };
    let alone = pipeline.with_grid(decode, Arc::new(tiling::Off)).decode(&latents.region(&right), RunOptions::default()).unwrap();
    let shown = canvas.into_tensor().region(&Region { start: [0, 0, 40], size: [1, 48, 40] });
    assert_eq!(shown, alone);
}

#[test]
fn a_plan_of_another_input_or_model_is_refused() {
    let (demo, sd) = (pipeline(DEMO, "f32"), pipeline(SD, "f32"));
    let latents = latents(16);
    let run = |plan: &RunPlan| demo.run(plan, &latents, &mut Canvas::default(), RunOptions::default()).unwrap_err();
    let error = run(&demo.plan(Direction::Decode, [1, 16, 1, 6, 11]).unwrap());
    assert!(matches!(error, Error::PlanInput { planned: [1, 16, 1, 6, 11], got: [1, 16, 1, 6, 10], .. }) && error.is_usage(), "{error}");
    let error = run(&demo.plan(Direction::Encode, [1, 3, 1, 48, 80]).unwrap());
    assert!(matches!(error, Error::PlanInput { what: "samples", .. }), "{error}");
    let error = run(&sd.plan(Direction::Decode, [1, 4, 1, 6, 10]).unwrap());
    assert_eq!(error.to_string(), "the plan is for another model: another configuration of the family kl");
}

#[test]
fn a_plan_without_weights_is_the_plan_of_a_pipeline() {
    let config = Config::from_toml(&format!("model.path = {DEMO:?}\ntiling.tile_px = 32\nexecutor.kind = \"pipelined\"")).unwrap();
    let model = open_model(&config).unwrap();
    let pipeline = Pipeline::load_model(&config, &model).unwrap();
    for (direction, shape) in [(Direction::Decode, [1, 16, 1, 6, 10]), (Direction::Encode, [2, 3, 1, 48, 80])] {
        let plan = RunPlan::new(&config, model.entry.name, &model.spec, direction, shape).unwrap();
        let of_pipeline = pipeline.plan(direction, shape).unwrap();
        // Both components are loaded, and what is free changes from moment to moment.
        assert_eq!(RunPlan { memory: of_pipeline.memory, peak_bytes: of_pipeline.peak_bytes, ..plan }, of_pipeline);
    }
}

#[test]
fn an_encode_to_a_sink_gives_the_latents_of_an_encode_in_memory() {
    let samples = HostTensor::from_fn([2, 3, 1, 72, 88], |[b, c, _, y, x]| ((b * 5 + c * 31 + y * 17 + x * 7) % 23) as f32 / 11.0 - 1.0);
    for keys in ["", "io.posterior = \"sample\"\nio.seed = 3", "io.posterior = \"moments\"\nio.latent_space = \"vae\""] {
        let pipeline = Pipeline::load(&Config::from_toml(&format!("model.path = {DEMO:?}\ntiling.tile_px = 32\n{keys}")).unwrap()).unwrap();
        let plan = pipeline.plan(Direction::Encode, samples.shape()).unwrap();
        let mut canvas = Canvas::default();
        let stats = pipeline.run(&plan, &samples, &mut canvas, RunOptions::default()).unwrap();
        assert!(stats.tiles > 4);
        let encoded = pipeline.encode(&samples, RunOptions::default()).unwrap();
        assert_eq!(canvas.into_tensor(), encoded.latents);
        assert_eq!(encoded.moments.is_some(), keys.contains("moments"));
        if let Some([mean, log_variance]) = encoded.moments {
            assert_eq!((mean, log_variance.shape()), (encoded.latents.clone(), encoded.latents.shape()));
        }
    }
}

/// Cancels a run once a tile is finished.
struct StopAfterTile(Stop);

impl Progress for StopAfterTile {
    fn on_event(&mut self, event: &parallel::Event) {
        if matches!(event, parallel::Event::TileFinished { .. }) {
            self.0.stop();
        }
    }
}

#[test]
fn a_cancelled_run_leaves_the_other_runs_of_its_pipeline_alone() {
    for executor in ["sequential", "multi-device", "pipelined"] {
        let config = format!("model.path = {DEMO:?}\ntiling.tile_px = 32\nexecutor.kind = {executor:?}");
        let pipeline = Pipeline::load(&Config::from_toml(&config).unwrap()).unwrap();
        let latents = latents(16);
        let expected = pipeline.decode(&latents, RunOptions::default()).unwrap();
        thread::scope(|scope| {
            let cancelled = scope.spawn(|| {
                let stop = Stop::default();
                let mut progress = StopAfterTile(stop.clone());
                pipeline.decode(&latents, RunOptions::default().with_progress(&mut progress).with_stop(stop))
            });
            let completed = scope.spawn(|| pipeline.decode(&latents, RunOptions::default()));
            assert!(cancelled.join().unwrap().unwrap_err().is_stop(), "{executor}");
            assert_eq!(completed.join().unwrap().unwrap(), expected, "{executor}");
        });
        assert_eq!(pipeline.decode(&latents, RunOptions::default()).unwrap(), expected, "{executor}");
    }
}
