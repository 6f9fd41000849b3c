//! Pipelines with many callers, cancellation, panics, and models that are loaded lazily.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::{Deserialize, Serialize};
use tiling::HostTensor;
use vae_core::{DeviceName, Model, Registry, Vae, VaeEntry, VaeError, VaeFamily, VaeSpec, Weights};

use crate::{Config, Error, OpenDevice, Pipeline, RunOptions, Stop, open_model};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo-kl");
const SD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vae-kl/tests/data/sd");

/// Runs `work`, which must not take longer than two minutes.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || sender.send(work()).unwrap());
    match receiver.recv_timeout(Duration::from_mins(2)) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(worker.join().unwrap_err()),
    }
}

fn config(toml: &str) -> Config {
    Config::from_toml(toml).unwrap()
}

fn demo(keys: &str) -> Pipeline {
    Pipeline::load(&config(&format!("model.path = {DEMO:?}\n{keys}"))).unwrap()
}

fn latents(channels: usize, [height, width]: [usize; 2], seed: usize) -> HostTensor {
    HostTensor::from_fn([1, channels, 1, height, width], |[_, c, _, y, x]| ((c * 31 + y * 17 + x * 7 + 5 * seed) % 23) as f32 / 11.0 - 1.0)
}

#[test]
fn callers_of_one_pipeline_do_not_meet() {
    const IMAGES: usize = 12;
    for (keys, tiling) in [
        ("devices.cpu.threads_per_worker = 3", ""),
        ("", ""),
        ("executor.kind = \"multi-device\"", "tiling.tile_px = 128"),
        // As many threads as the pool of the callers has.
        ("executor.kind = \"pipelined\"\ndevices.cpu.workers = 1", "tiling.kind = \"off\""),
    ] {
        in_time(move || {
            let image = |seed: usize| latents(16, [24, 40], seed % IMAGES);
            let alone = demo(tiling);
            let expected: Vec<HostTensor> = (0..IMAGES).map(|seed| alone.decode(&image(seed), RunOptions::default()).unwrap()).collect();
            let pipeline = demo(&format!("{keys}\n{tiling}"));
            let check = |seed: usize| {
                let got = pipeline.decode(&image(seed), RunOptions::default()).unwrap_or_else(|error| panic!("{keys}: {error:?}"));
                assert!(got == expected[seed % IMAGES], "{keys}: image {seed}");
            };
            thread::scope(|scope| {
                for caller in 0..4 {
                    let check = &check;
                    scope.spawn(move || (0..3).for_each(|at| check(3 * caller + at)));
                }
            });
            (0..2 * IMAGES).into_par_iter().for_each(check);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            pool.install(|| (0..IMAGES).into_par_iter().for_each(check));
        });
    }
}

#[test]
fn pipelines_in_one_pool_keep_to_their_own_rounding() {
    in_time(|| {
        let pipelines = ["fast", "strict"].map(|precision| demo(&format!("model.precision = {precision:?}")));
        let latents = latents(16, [24, 40], 0);
        let decode = |at: usize| pipelines[at % 2].decode(&latents, RunOptions::default()).unwrap();
        let expected = [decode(0), decode(1)];
        assert_ne!(expected[0], expected[1]);
        (0..24).into_par_iter().for_each(|at| assert!(decode(at) == expected[at % 2], "{at}"));
    });
}

#[test]
fn a_long_tile_ends_when_the_run_is_stopped() {
    let latents = Arc::new(latents(16, [112, 112], 0));
    for executor in ["sequential", "multi-device", "pipelined"] {
        let keys = format!("tiling.kind = \"off\"\nexecutor.kind = {executor:?}\ndevices.cpu.workers = 1\ndevices.cpu.threads_per_worker = 2");
        let latents = latents.clone();
        in_time(move || {
            let pipeline = demo(&keys);
            // Of two cores that others use, too, one attempt may be had.
            for attempt in 0.. {
                let before = Instant::now();
                let expected = pipeline.decode(latents.as_ref(), RunOptions::default()).unwrap();
                let whole = before.elapsed();
                let stop = Stop::default();
                let before = Instant::now();
                let error = thread::scope(|scope| {
                    scope.spawn(|| {
                        thread::sleep(whole / 8);
                        stop.stop();
                    });
                    pipeline.decode(latents.as_ref(), RunOptions::default().with_stop(stop.clone())).unwrap_err()
                });
                let stopped = before.elapsed();
                assert!(error.is_stop(), "{executor}: {error:?}");
                assert!(pipeline.decode(latents.as_ref(), RunOptions::default()).unwrap() == expected, "{executor}");
                if stopped < whole / 2 {
                    break;
                }
                assert!(attempt < 5, "{executor}: {stopped:?} of {whole:?}");
            }
        });
    }
}

#[test]
fn loading_ends_when_it_is_stopped() {
    let config = config(&format!("model.path = {DEMO:?}"));
    let (model, devices) = (open_model(&config).unwrap(), crate::open_devices(&config.devices).unwrap());
    let stop = Stop::default();
    assert!(Pipeline::load_on(&config, &model, &devices, &stop).is_ok());
    stop.stop();
    let error = Pipeline::load_on(&config, &model, &devices, &stop).unwrap_err();
    assert!(error.is_stop(), "{error:?}");
}

/// A family whose answer in f16 is NaN. It counts how often it is loaded in f32.
struct Overflowing;

/// Tests of loads come one after the other.
static LOADS: Mutex<()> = Mutex::new(());
static LOADED: AtomicUsize = AtomicUsize::new(0);
static PANICS: AtomicBool = AtomicBool::new(false);
static ENTRY: VaeEntry = VaeEntry::of::<Overflowing>("tests");

#[derive(Serialize, Deserialize)]
struct NoFields {}

impl VaeFamily for Overflowing {
    const NAME: &'static str = "overflowing";
    const SUMMARY: &'static str = "a test";
    type Config = NoFields;

    fn spec(_: &NoFields) -> Result<VaeSpec, VaeError> {
        Ok(VaeSpec::image(3, 4, 2))
    }

    fn load(config: &NoFields, _: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        if dtype == DType::F32 {
            LOADED.fetch_add(1, Ordering::Relaxed);
            // A load that works on threads, and takes long enough for others to want the model, too.
            (0..8).into_par_iter().for_each(|_| thread::sleep(Duration::from_millis(20)));
        }
        Ok(Box::new(OverflowingVae { spec: Self::spec(config)?, dtype, device: device.clone() }))
    }
}

#[derive(Debug, Clone)]
struct OverflowingVae {
    spec: VaeSpec,
    dtype: DType,
    device: Device,
}

impl Vae for OverflowingVae {
    fn spec(&self) -> &VaeSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn decode(&self, latents: Tensor<5>, _: &vae_core::Context) -> Result<Tensor<5>, VaeError> {
        let [b, _, _, h, w] = latents.dims();
        (0..16).into_par_iter().for_each(|at| assert!(at != 11 || !PANICS.load(Ordering::Relaxed), "a thread of the pool panics"));
        let value = if self.dtype == DType::F32 { 0.5 } else { f32::NAN };
        Ok(Tensor::full([b, 3, 1, 2 * h, 2 * w], value, (&self.device, DType::F32)))
    }

    fn encode(&self, _: Tensor<5>, _: &vae_core::Context) -> Result<Tensor<5>, VaeError> {
        Err(VaeError::NotLoaded { component: "encoder" })
    }

    fn to_device(&self, device: &Device) -> Box<dyn Vae> {
        Box::new(Self { device: device.clone(), ..self.clone() })
    }
}

fn overflowing(keys: &str, devices: &[DeviceName]) -> Pipeline {
    let folder = tempfile::tempdir().unwrap();
    let fields = folder.path().join("config.json");
    std::fs::write(&fields, "{}").unwrap();
    let model = Model::open(&Registry::from_entries([&ENTRY]).unwrap(), Path::new(DEMO), "overflowing", Some(&fields)).unwrap();
    let devices: Vec<_> = devices.iter().map(|name| OpenDevice { name: name.clone(), device: Device::flex() }).collect();
    Pipeline::load_on(&config(&format!("tiling.kind = \"uniform\"\ntiling.tile_px = 16\n{keys}")), &model, &devices, &Stop::default()).unwrap()
}

#[test]
fn a_model_is_loaded_in_f32_once() {
    let _alone = LOADS.lock();
    in_time(|| {
        for executor in ["multi-device", "pipelined"] {
            LOADED.store(0, Ordering::Relaxed);
            let keys = format!("model.dtype = \"f16\"\nexecutor.kind = {executor:?}\ndevices.cpu.workers = 4");
            let pipeline = overflowing(&keys, &[DeviceName::CPU]);
            for _ in 0..2 {
                let samples = pipeline.decode(&latents(4, [40, 40], 0), RunOptions::default()).unwrap();
                assert!(samples.data().iter().all(|&value| value == 0.5));
            }
            assert_eq!(LOADED.load(Ordering::Relaxed), 1, "{executor}");
        }
        // A device that has it in f32 anyway.
        LOADED.store(0, Ordering::Relaxed);
        let keys = "executor.kind = \"multi-device\"\ndevices.use = [\"cpu\", \"ndarray\"]\ndevices.dtype = { ndarray = \"f16\" }";
        let pipeline = overflowing(keys, &[DeviceName::CPU, "ndarray".parse().unwrap()]);
        pipeline.decode(&latents(4, [40, 40], 0), RunOptions::default()).unwrap();
        assert_eq!(LOADED.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn callers_that_wait_for_a_model_do_not_keep_it_from_being_loaded() {
    let _alone = LOADS.lock();
    in_time(|| {
        for keys in ["devices.cpu.threads_per_worker = 2", "", "executor.kind = \"pipelined\"\ndevices.cpu.workers = 1"] {
            LOADED.store(0, Ordering::Relaxed);
            let pipeline = overflowing(&format!("model.dtype = \"f16\"\n{keys}"), &[DeviceName::CPU]);
            let decode = |seed: usize| pipeline.decode(&latents(4, [16, 16], seed), RunOptions::default()).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| (0..16).into_par_iter().for_each(|seed| drop(decode(seed))));
                for seed in 0..4 {
                    scope.spawn(move || decode(seed));
                }
            });
            assert_eq!(LOADED.load(Ordering::Relaxed), 1, "{keys}");
        }
    });
}

#[test]
fn a_panic_on_a_thread_of_a_pool_is_an_error_and_no_more() {
    let _alone = LOADS.lock();
    in_time(|| {
        for keys in ["", "devices.cpu.threads_per_worker = 3", "executor.kind = \"multi-device\"\ndevices.cpu.workers = 2"] {
            let pipeline = overflowing(keys, &[DeviceName::CPU]);
            let decode = || pipeline.decode(&latents(4, [40, 40], 0), RunOptions::default());
            let expected = decode().unwrap();
            for _ in 0..3 {
                PANICS.store(true, Ordering::Relaxed);
                let error = decode();
                PANICS.store(false, Ordering::Relaxed);
                assert!(matches!(error, Err(Error::Run(_))), "{keys}");
                assert!(decode().unwrap() == expected, "{keys}");
            }
        }
    });
}

/// The warnings that are logged while `work` runs on this thread.
fn warnings<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    use tracing::field::{Field, Visit};
    use tracing::span;

    #[derive(Default, Clone)]
    struct Warnings(Arc<Mutex<Vec<String>>>);

    struct Message<'a>(&'a mut Vec<String>);

    impl Visit for Message<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" {
                self.0.push(format!("{value:?}"));
            }
        }
    }

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut Message(&mut self.0.lock().unwrap()));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    let logged = Warnings::default();
    let answer = tracing::subscriber::with_default(logged.clone(), work);
    let warnings = std::mem::take(&mut *logged.0.lock().unwrap());
    (answer, warnings)
}

#[test]
fn a_dtype_that_is_not_supported_is_reported_once() {
    let cpu = || OpenDevice { name: DeviceName::CPU, device: Device::flex() };
    let two = || [cpu(), OpenDevice { name: "ndarray".parse().unwrap(), device: Device::flex() }];
    let both = "devices.use = [\"cpu\", \"ndarray\"]\nexecutor.kind = \"multi-device\"\n";
    let of_each = format!("{both}devices.dtype = {{ cpu = \"f16\", ndarray = \"f16\" }}");
    // SD's small model asks for f32, the demo does not.
    for (path, keys, devices, expected) in [
        (SD, "model.dtype = \"f16\"", &[cpu()][..], &["model.dtype is"][..]),
        (SD, &format!("model.dtype = \"f16\"\n{both}"), &two(), &["model.dtype is"]),
        (SD, &of_each, &two(), &["devices.dtype of cpu and devices.dtype of ndarray is"]),
        (SD, "model.dtype = \"bf16\"", &[cpu()], &[]),
        (SD, "model.dtype = \"auto\"", &[cpu()], &[]),
        (DEMO, "model.dtype = \"f16\"", &[cpu()], &[]),
    ] {
        let config = config(&format!("model.path = {path:?}\n{keys}"));
        let model = open_model(&config).unwrap();
        let (pipeline, logged) = warnings(|| Pipeline::load_on(&config, &model, devices, &Stop::default()));
        pipeline.unwrap();
        assert_eq!(logged.len(), expected.len(), "{keys}: {logged:?}");
        for (logged, expected) in logged.iter().zip(expected) {
            assert!(logged.contains(expected) && logged.contains("force_upcast") && logged.contains("bf16"), "{logged}");
        }
    }
}
