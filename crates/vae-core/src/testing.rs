//! Conformance: the tests that every family passes. A family's crate runs them with one line:
//!
//! ```ignore
//! vae_core::vae_conformance!(MyFamily, "tests/data/tiny", Device::flex());
//! ```
//!
//! The second argument is a checkpoint folder with small random weights. A failure says which property does not hold, for which shape and dtype, and the worst difference.

#![expect(clippy::missing_panics_doc, reason = "tests panic when they fail")]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use tiling::{Canvas, Cascade, Compositor, Grid, HostTensor, TileOp, TilePlan};

use crate::{Components, Context, DeviceName, FrameRule, MathMode, Model, Precision, Registry, Vae, VaeEntry, VaeError, VaeSpec, stream_frames};

/// The device that tests run on: the CPU, or the one that the environment variable `TILEVAE_TEST_DEVICE` names.
///
/// # Panics
/// When it cannot be opened.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let open = || {
        let name = std::env::var("TILEVAE_TEST_DEVICE").map_or(Ok(DeviceName::CPU), |name| name.parse());
        let name = name.unwrap_or_else(|error| panic!("TILEVAE_TEST_DEVICE: {error}"));
        name.open().unwrap_or_else(|error| panic!("{name} cannot be used: {error}"))
    };
    DEVICE.get_or_init(open).clone()
}

/// Whether the tests run on the CPU.
pub fn is_on_cpu() -> bool {
    crate::adapter(&device()).is_none()
}

/// The device of the tests where it is a GPU, or its stand-in in software; else says that the test is skipped.
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
pub fn gpu() -> Option<Device> {
    if is_on_cpu() {
        println!("skipped: no GPU is named in TILEVAE_TEST_DEVICE");
        return None;
    }
    Some(device())
}

/// Whether kernels use shared memory on the device of the tests.
pub fn has_shared_memory() -> bool {
    match device().as_dispatch() {
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(device) => crate::operators::cube::has_shared_memory(&device.client()),
        #[allow(unreachable_patterns, reason = "there may be no other backends in a build")]
        _ => false,
    }
}

/// A module whose weights are laid out as those of a loaded model.
pub fn prepared<M: burn::module::Module>(module: M) -> M {
    module.map(&mut crate::loaded::PrepareWeights)
}

/// How many kernels a repeated piece of work starts on the device of the tests, copies on the device among them, once everything is tuned. `None` where that is
/// no GPU. Prints their names.
///
/// `test` is the path of the calling test, which runs again in processes of its own, since the log of kernels belongs to a process.
///
/// # Panics
/// When such a process fails.
#[cfg_attr(not(feature = "cube"), expect(unused_variables, reason = "there is no GPU in this build"))]
pub fn kernels_of<W: FnMut()>(test: &str, prepare: impl FnOnce(&Device) -> W) -> Option<usize> {
    #[cfg(feature = "cube")]
    return kernel_log::count(test, prepare);
    #[cfg(not(feature = "cube"))]
    None
}

#[cfg(feature = "cube")]
mod kernel_log {
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use burn::tensor::Device;
    use cubecl::config::profiling::ProfilingLogLevel;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    const FILE: &str = "TILEVAE_TEST_KERNELS";
    const TIMES: &str = "TILEVAE_TEST_TIMES";

    #[expect(clippy::print_stdout, reason = "a test that fails shows them")]
    pub(super) fn count<W: FnMut()>(test: &str, prepare: impl FnOnce(&Device) -> W) -> Option<usize> {
        if let Some(file) = std::env::var_os(FILE) {
            let times = std::env::var(TIMES).expect("a number of times").parse().expect("a number");
            record(Path::new(&file), times, prepare);
            return None;
        }
        super::gpu()?;
        let (few, many) = (log(test, 2), log(test, 4));
        let count = (many.len() - few.len()) / 2;
        println!("{}", many[many.len() - count..].join("\n"));
        Some(count)
    }

    /// Logs the kernels of this process.
    fn record<W: FnMut()>(file: &Path, times: usize, prepare: impl FnOnce(&Device) -> W) {
        let mut config = CubeClRuntimeConfig::default();
        config.profiling.logger.level = ProfilingLogLevel::Minimal;
        config.profiling.logger.file = Some(file.to_owned());
        CubeClRuntimeConfig::try_set(config);
        let device = super::device();
        let mut work = prepare(&device);
        (0..times).for_each(|_| work());
        device.sync().expect("a device that works");
        // A thread writes the log.
        let size = || std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        let mut before = u64::MAX;
        while before != size() {
            before = size();
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The kernels of a process that runs the test with so many repetitions.
    fn log(test: &str, times: usize) -> Vec<String> {
        let file = std::env::temp_dir().join(format!("tilevae-kernels-{}-{times}-{}", std::process::id(), test.replace("::", "-")));
        let program = std::env::current_exe().expect("the path of this program");
        let output = Command::new(program).args([test, "--exact"]).env(FILE, &file).env(TIMES, times.to_string()).output().expect("a process");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let log = std::fs::read_to_string(&file).expect("a log");
        let _ = std::fs::remove_file(&file);
        log.lines().filter(|line| line.contains("Executing ")).map(str::to_owned).collect()
    }
}

/// The math modes, on the device of the tests, whose f32 agrees with upstream.
pub fn math_modes() -> Vec<MathMode> {
    if is_on_cpu() { [Precision::Fast, Precision::Strict].map(MathMode::from).into() } else { vec![MathMode { tf32: false, ..MathMode::default() }] }
}

/// Those of the types that the device of the tests computes in; prints which are skipped.
pub fn computable(dtypes: &[DType]) -> Vec<DType> {
    computable_on(&device(), dtypes)
}

#[expect(clippy::print_stdout, reason = "tests say what they skip")]
fn computable_on(device: &Device, dtypes: &[DType]) -> Vec<DType> {
    let (able, unable): (Vec<_>, Vec<_>) = dtypes.iter().partition(|&&dtype| crate::backends::computes_in(device, dtype));
    if !unable.is_empty() {
        println!("skipped: the device does not compute in {unable:?}");
    }
    able
}

/// The model that the conformance tests run on.
pub struct Subject {
    /// The checkpoint.
    pub model: Model,
    /// The same, loaded in f32.
    pub vae: Arc<dyn Vae>,
    device: Device,
}

impl Subject {
    /// Opens and loads the checkpoint at `path`, for the family of `entry`.
    ///
    /// # Panics
    /// When that fails.
    pub fn load(entry: &'static VaeEntry, path: &str, device: &Device) -> Self {
        let registry = Registry::from_entries([entry]).expect("one family");
        let model = Model::open(&registry, Path::new(path), entry.name, None).expect("a checkpoint");
        let vae = model.load(device, DType::F32).expect("weights that fit").into();
        Self { model, vae, device: device.clone() }
    }

    fn spec(&self) -> &VaeSpec {
        self.vae.spec()
    }

    /// A number of latent frames that the model takes.
    fn frames(&self) -> usize {
        if self.spec().frames == FrameRule::Image { 1 } else { 3 }
    }

    fn latents(&self, batch: usize, [h, w]: [usize; 2], seed: u64) -> Tensor<5> {
        noise([batch, self.spec().latent_channels, self.frames(), h, w], seed, &self.device)
    }

    /// Samples for a number of latent px.
    fn samples(&self, latent_px: [usize; 2]) -> Tensor<5> {
        self.samples_and(latent_px, [0, 0])
    }

    /// Samples for a number of latent px and a remainder of px.
    fn samples_and(&self, latent_px: [usize; 2], remainder: [usize; 2]) -> Tensor<5> {
        let [h, w] = [0, 1].map(|axis| latent_px[axis] * self.spec().spatial_ratio + remainder[axis]);
        let [frames, ..] = self.spec().decode_geometry().output([self.frames(), 1, 1]);
        noise([1, self.spec().input_channels, frames, h, w], 7, &self.device)
    }

    fn decoded(&self, batch: usize, latent_px: [usize; 2], seed: u64) -> HostTensor {
        answer(self.vae.decode(self.latents(batch, latent_px, seed), &Context::default()), &format!("a decode of {batch} x {latent_px:?} latent px"))
    }

    fn encoded(&self, latent_px: [usize; 2]) -> HostTensor {
        answer(self.vae.encode(self.samples(latent_px), &Context::default()), &format!("an encode of {latent_px:?} latent px"))
    }
}

/// What `op` gives for `input` in the tiles of `grid`, blended with [`Cascade`], and the number of tiles.
pub fn run_tiled(op: &dyn TileOp, grid: &dyn Grid, input: &HostTensor) -> (HostTensor, usize) {
    let plan = TilePlan::new(grid, op.geometry(), input.extent()).expect("a grid for this input");
    let mut canvas = Canvas::default();
    let mut compositor = Compositor::new(&plan, &Cascade, &mut canvas);
    for tile in &plan.tiles {
        let answer = op.apply(&input.region(&tile.input)).expect("an input that the model takes");
        compositor.push(tile.index, answer).expect("the planned tile");
    }
    compositor.finish().expect("all tiles");
    (canvas.into_tensor(), plan.tiles.len())
}

/// A tensor of a safetensors file: name, type as the format names it, shape, bytes. The type may be an unknown one.
pub type RawTensor = (String, String, Vec<usize>, Vec<u8>);

/// The tensors of a safetensors file, sorted by name.
pub fn read_safetensors(path: &Path) -> Vec<RawTensor> {
    let bytes = std::fs::read(path).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let raw = |(name, view): (String, safetensors::tensor::TensorView)| {
        let dtype = serde_json::to_value(view.dtype()).expect("a type");
        (name, dtype.as_str().expect("a name").to_owned(), view.shape().to_vec(), view.data().to_vec())
    };
    let mut raw: Vec<RawTensor> = tensors.tensors().into_iter().map(raw).collect();
    raw.sort();
    raw
}

/// Writes a safetensors file.
pub fn write_safetensors(path: &Path, tensors: &[RawTensor]) {
    let mut header = serde_json::Map::new();
    let mut values = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [values.len(), values.len() + bytes.len()];
        header.insert(name.clone(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        values.extend_from_slice(bytes);
    }
    let header = serde_json::Value::from(header).to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &values].concat()).expect("a file that can be written");
}

/// The tensors of a golden file, which upstream's code has written.
#[derive(Debug)]
pub struct Golden(Vec<u8>);

impl Golden {
    /// Reads a `.safetensors` file.
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read(path).expect("a golden file"))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a .safetensors file")
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(str::to_owned).collect()
    }

    /// `[b, c, h, w]` (as one frame) or `[b, c, t, h, w]`, of f32 or f16.
    pub fn tensor(&self, name: &str) -> HostTensor {
        let tensors = self.tensors();
        let view = tensors.tensor(name).expect("a tensor of that name");
        let shape = match *view.shape() {
            [b, c, h, w] => [b, c, 1, h, w],
            [b, c, t, h, w] => [b, c, t, h, w],
            ref other => panic!("{name} has the shape {other:?}"),
        };
        let values = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => view.data().as_chunks().0.iter().map(|&bytes| burn::tensor::f16::from_le_bytes(bytes).to_f32()).collect(),
            other => panic!("{name} holds {other:?}"),
        };
        HostTensor::new(shape, values).expect("as many values as the shape says")
    }
}

/// Compares with what is expected, value by value.
#[track_caller]
pub fn assert_close(got: &HostTensor, expected: &HostTensor, tolerance: f32, what: &str) {
    assert!(got.shape() == expected.shape(), "{what}: the shape is {:?}, {:?} is expected", got.shape(), expected.shape());
    let worst = worst_difference(got, expected);
    assert!(worst <= tolerance, "{what}: the worst difference is {worst:e}, {tolerance:e} is allowed");
}

/// The peak signal-to-noise ratio in dB, for values between -1 and 1.
#[track_caller]
pub fn psnr(got: &HostTensor, expected: &HostTensor) -> f64 {
    assert_eq!(got.shape(), expected.shape());
    let squares = got.data().iter().zip(expected.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    10.0 * (4.0 * expected.data().len() as f64 / squares).log10()
}

/// Normal noise, the same for the same shape and seed.
pub fn noise(shape: [usize; 5], seed: u64, device: &Device) -> Tensor<5> {
    let values: Vec<f32> = crate::normal_noise(seed, 0).take(shape.iter().product()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// An output of the model as f32, with its shape; fails in words when there is none.
#[track_caller]
fn answer(tensor: Result<Tensor<5>, VaeError>, what: &str) -> HostTensor {
    let tensor = tensor.unwrap_or_else(|error| panic!("{what} fails: {error}"));
    let shape = tensor.dims();
    let values = tensor.into_data().convert::<f32>().try_into_vec().expect("f32");
    HostTensor::new(shape, values).expect("as many values as the shape says")
}

/// Checks that two answers that should be equal are, within `tolerance`; `property` says what fails otherwise.
#[track_caller]
fn assert_same(got: &HostTensor, expected: &HostTensor, tolerance: f32, property: &str, what: &str) {
    assert!(got.shape() == expected.shape(), "{property}, but not for {what}: the shapes are {:?} and {:?}", got.shape(), expected.shape());
    let worst = worst_difference(got, expected);
    assert!(worst <= tolerance, "{property}, but not for {what}: the worst difference is {worst:e}, {tolerance:e} is allowed");
}

/// The greatest difference of two values at one position. NaN where only one of them is.
fn worst_difference(a: &HostTensor, b: &HostTensor) -> f32 {
    let is_same = |a: f32, b: f32| a.to_bits() == b.to_bits();
    a.data()
        .iter()
        .zip(b.data())
        .filter(|&(&a, &b)| !is_same(a, b))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst: f32, difference| if worst.is_nan() || difference.is_nan() { f32::NAN } else { worst.max(difference) })
}

/// Answers have the shapes that the spec predicts, also for samples whose sides are no multiple of the ratio.
pub fn shapes_follow_the_spec(subject: &Subject) {
    let (spec, vae) = (subject.spec(), &subject.vae);
    for sides in [[2, 2], [3, 5], [4, 1]] {
        let latents = subject.latents(1, sides, 1);
        let [t, h, w] = spec.decode_geometry().output([subject.frames(), sides[0], sides[1]]);
        let (what, expected) = (format!("a decode of latents {:?}", latents.dims()), [1, spec.output_channels, t, h, w]);
        let got = answer(vae.decode(latents, &Context::default()), &what).shape();
        assert!(got == expected, "{what} gives the shape {got:?}; the spec predicts {expected:?}");
        for remainder in remainders(spec.spatial_ratio) {
            let samples = subject.samples_and(sides, remainder);
            let [_, _, t, h, w] = samples.dims();
            let what = format!("an encode of samples {:?}", samples.dims());
            let [t, h, w] = spec.encode_geometry().output([t, h, w]);
            let expected = [1, spec.encoder_channels(), t, h, w];
            let got = answer(vae.encode(samples, &Context::default()), &what).shape();
            assert!(
                got == expected,
                "{what} gives the shape {got:?}; the spec predicts {expected:?} (sides round down to whole latent px of {} px)",
                spec.spatial_ratio
            );
        }
    }
}

/// Px beyond a multiple of the ratio that samples are tried with, for height and width.
fn remainders(ratio: usize) -> Vec<[usize; 2]> {
    let mut remainders = vec![[0, 0], [ratio / 2, 0], [0, ratio - 1], [ratio - 1, ratio / 2]];
    remainders.dedup();
    remainders.retain(|sides| ratio > 1 || *sides == [0, 0]);
    remainders
}

/// Answers are finite, and the same for the same input.
pub fn answers_are_finite_and_repeatable(subject: &Subject) {
    let run = || [subject.decoded(1, [3, 4], 2), subject.encoded([3, 4])];
    for ((first, again), what) in run().into_iter().zip(run()).zip(["a decode", "an encode"]) {
        let wrong = first.data().iter().filter(|value| !value.is_finite()).count();
        assert!(wrong == 0, "answers are finite, but not for {what} in F32: {wrong} of {} values of {:?} are not", first.data().len(), first.shape());
        assert_same(&again, &first, 0.0, "the same input gives the same bytes", what);
    }
}

/// In each type of 16 bits that the device computes in, the model gives finite answers of the same shape as in f32, and near it.
pub fn every_dtype_computes(subject: &Subject) {
    for (dtype, most) in [(DType::F16, 0.1), (DType::BF16, 0.5)] {
        if computable_on(&subject.device, &[dtype]).is_empty() || (dtype == DType::F16 && subject.spec().force_upcast) {
            continue;
        }
        let vae = subject.model.load(&subject.device, dtype).unwrap_or_else(|error| panic!("the model loads in {dtype:?}: {error}"));
        assert!(vae.dtype() == dtype, "a model that is loaded in {dtype:?} says that it computes in {:?}", vae.dtype());
        let (latents, samples) = (subject.latents(1, [3, 4], 2), subject.samples([3, 4]));
        let whats = [format!("a decode of {:?} in {dtype:?}", latents.dims()), format!("an encode of {:?} in {dtype:?}", samples.dims())];
        let answers = [answer(vae.decode(latents, &Context::default()), &whats[0]), answer(vae.encode(samples, &Context::default()), &whats[1])];
        for ((got, expected), what) in answers.iter().zip([subject.decoded(1, [3, 4], 2), subject.encoded([3, 4])]).zip(&whats) {
            assert!(got.shape() == expected.shape(), "{what} gives the shape {:?}, in F32 it is {:?}", got.shape(), expected.shape());
            let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
            let difference = squares(&mut got.data().iter().zip(expected.data()).map(|(a, b)| a - b));
            let share = (difference / squares(&mut expected.data().iter().copied()).max(f64::MIN_POSITIVE)).sqrt();
            let worst = worst_difference(got, &expected);
            assert!(
                share <= most,
                "{what} is far from F32: {share:.3} of its root mean square, {most} is allowed; the worst difference is {worst:e}"
            );
        }
    }
}

/// A tile's output does not depend on what runs before it or at the same time: neither whole tiles nor the streams of two clips that are fed in turn.
pub fn tiles_do_not_leak(subject: &Subject) {
    const PROPERTY: &str = "a tile does not depend on other tiles";
    let decode = |seed| subject.decoded(1, [3, 3], seed);
    let (a, b) = (decode(3), decode(4));
    assert!(worst_difference(&a, &b) > 0.0, "a decode depends on its latents, but two different ones give the same output");
    let encoded = subject.encoded([3, 3]);
    for round in 0..4 {
        std::thread::scope(|scope| {
            let others = [scope.spawn(|| decode(3)), scope.spawn(|| subject.decoded(1, [2, 5], 9)), scope.spawn(|| subject.encoded([3, 3]))];
            assert_same(&decode(4), &b, 0.0, PROPERTY, &format!("a decode beside others, round {round}"));
            let [other, _, encoding] = others.map(|other| other.join().expect("no panic"));
            assert_same(&other, &a, 0.0, PROPERTY, &format!("a decode on another thread, round {round}"));
            assert_same(&encoding, &encoded, 0.0, PROPERTY, &format!("an encode beside decodes, round {round}"));
        });
    }
    let clips = [3, 4].map(|seed| subject.latents(1, [3, 3], seed));
    let mut streams = [subject.vae.decode_stream(&Context::default()), subject.vae.decode_stream(&Context::default())];
    let mut answers = [Vec::new(), Vec::new()];
    for chunk in subject.spec().decode_geometry().frames.chunks(subject.frames(), 1) {
        for ((stream, clip), answers) in streams.iter_mut().zip(&clips).zip(&mut answers) {
            answers.push(stream(clip.clone().narrow(2, chunk.start, chunk.len())).expect("latents that the model takes"));
        }
    }
    for (got, expected) in answers.into_iter().zip([a, b]) {
        assert_same(&answer(Ok(Tensor::cat(got, 2)), "a stream"), &expected, 1e-5, PROPERTY, "two streams that are fed in turn");
    }
}

/// A stream gives what the whole gives: of an image model in one piece; of a causal model however the frames are divided, and its first frames do not depend on those
/// that follow.
pub fn streams_equal_the_whole(subject: &Subject) {
    const PROPERTY: &str = "streams give what the whole gives";
    let (spec, latents, samples) = (subject.spec(), subject.latents(1, [2, 3], 8), subject.samples([2, 3]));
    let [decode, encode] = [spec.decode_geometry().frames, spec.encode_geometry().frames];
    let whole = [
        answer(subject.vae.decode(latents.clone(), &Context::default()), "a decode"),
        answer(subject.vae.encode(samples.clone(), &Context::default()), "an encode"),
    ];
    for per_chunk in 1..=3 {
        let decoded =
            answer(stream_frames(subject.vae.decode_stream(&Context::default()), latents.clone(), decode, per_chunk), "a stream of a decode");
        let encoded =
            answer(stream_frames(subject.vae.encode_stream(&Context::default()), samples.clone(), encode, per_chunk), "a stream of an encode");
        for ((got, expected), what) in [(&decoded, &whole[0]), (&encoded, &whole[1])].into_iter().zip(["a decode", "an encode"]) {
            assert_same(got, expected, 1e-5, PROPERTY, &format!("{what} in chunks of {per_chunk} latent frames"));
        }
    }
    let FrameRule::Causal { ratio } = spec.frames else { return };
    let mut stream = subject.vae.decode_stream(&Context::default());
    for (frame, expected) in [(0, 1), (1, ratio)] {
        let got = answer(stream(latents.clone().narrow(2, frame, 1)), "a stream of a decode").shape()[2];
        assert!(got == expected, "latent frame {frame} gives {expected} sample frames by the spec, but the stream gives {got}");
    }
}

/// The items of a batch are computed as if each were alone.
pub fn batch_items_are_independent(subject: &Subject) {
    let both = subject.latents(2, [2, 3], 5);
    let together = subject.decoded(2, [2, 3], 5);
    let size = together.data().len() / 2;
    for item in 0..2 {
        let alone = answer(subject.vae.decode(both.clone().narrow(0, item, 1), &Context::default()), "a decode of one item");
        let [_, c, t, h, w] = together.shape();
        let of_both = HostTensor::new([1, c, t, h, w], together.data()[item * size..(item + 1) * size].to_vec()).expect("half of the values");
        assert_same(&of_both, &alone, 1e-5, "the items of a batch are independent", &format!("item {item} of a decode of {:?}", both.dims()));
    }
}

/// A replica has the same spec and gives the same outputs.
pub fn replicas_agree(subject: &Subject) {
    let replica = subject.vae.to_device(&subject.device);
    let decoded = answer(replica.decode(subject.latents(1, [2, 2], 6), &Context::default()), "a decode of the replica");
    assert_same(&decoded, &subject.decoded(1, [2, 2], 6), 0.0, "a replica gives the same bytes", "a decode");
    assert!(
        *subject.spec() == *replica.spec(),
        "a replica has the spec of its model, but this one has {:?} in place of {:?}",
        replica.spec(),
        subject.spec()
    );
}

/// Inputs of a shape that the model cannot take are errors, not panics.
pub fn wrong_shapes_are_refused(subject: &Subject) {
    let spec = subject.spec();
    let zeros = |shape: [usize; 5]| Tensor::<5>::zeros(shape, &subject.device);
    let (latent, input) = (spec.latent_channels, spec.input_channels);
    let side = spec.spatial_ratio;
    let check = |what: &str, answer: Result<Tensor<5>, VaeError>, is_right: fn(&VaeError) -> bool| match answer {
        Ok(answer) => panic!("{what} is refused, but it gives {:?}", answer.dims()),
        Err(error) => assert!(is_right(&error), "{what} is refused, but not for its shape: {error}"),
    };
    let decode = |shape| subject.vae.decode(zeros(shape), &Context::default());
    let encode = |shape| subject.vae.encode(zeros(shape), &Context::default());
    check("a decode with a channel too many", decode([1, latent + 1, 1, 2, 2]), |error| matches!(error, VaeError::Channels { .. }));
    check("an encode with a channel too many", encode([1, input + 1, 1, side, side]), |error| matches!(error, VaeError::Channels { .. }));
    match spec.frames {
        FrameRule::Image => check("a decode of two frames", decode([1, latent, 2, 2, 2]), |error| matches!(error, VaeError::Frames { .. })),
        FrameRule::Causal { ratio: 1 } => {}
        FrameRule::Causal { ratio } => {
            let what = format!("an encode of {} frames", 2 * ratio);
            check(&what, encode([1, input, 2 * ratio, side, side]), |error| matches!(error, VaeError::FrameCount { .. }));
        }
    }
    if side > 1 {
        check("an encode of less than a latent px", encode([1, input, 1, side - 1, side]), |error| matches!(error, VaeError::TooSmall { .. }));
    }
}

/// Fields of a `config.json` that the family's configuration does not have change nothing.
pub fn unknown_fields_are_ignored(subject: &Subject) {
    for name in ["_private", "no_such_field"] {
        let mut config = subject.model.config.clone();
        config.as_object_mut().expect("an object").insert(name.to_owned(), 1.into());
        let spec = subject.model.entry.spec(&config).unwrap_or_else(|error| panic!("the unknown field `{name}` is ignored, but refused: {error}"));
        assert!(spec == subject.model.spec, "the unknown field `{name}` is ignored, but changes the spec");
    }
}

/// A missing tensor and one too many are refused by name.
pub fn weights_must_fit(subject: &Subject, path: &str) {
    let weights = crate::Checkpoint::open(Path::new(path), None).and_then(|checkpoint| checkpoint.weights()).expect("weights");
    let victim = weights.names().next().expect("a tensor").to_owned();
    let renamed = weights.renamed(|name| Some(if name == victim { format!("{name}.left_over") } else { name.to_owned() }));
    let error = subject.model.entry.load(&subject.model.config, renamed, &subject.device, DType::F32).expect_err("a misnamed tensor passed");
    let text = error.to_string();
    assert!(
        text.contains(&format!("missing (1): {victim}")) && text.contains("unexpected (1)"),
        "the error names the missing tensor {victim} and the one too many, but it says: {text}"
    );
}

/// A component that is loaded alone gives what it gives in the whole model; the other one is [`VaeError::NotLoaded`], unless the family loads both.
pub fn components_load_alone(subject: &Subject) {
    let load = |components| subject.model.clone().only(components).load(&subject.device, DType::F32).expect("weights that fit");
    let (encoder, decoder) = (load(Components::Encoder), load(Components::Decoder));
    let (latents, samples) = (|| subject.latents(1, [8, 8], 3), || subject.samples([8, 8]));
    let [decoded, encoded] = [subject.decoded(1, [8, 8], 3), subject.encoded([8, 8])];
    let same = |got: &HostTensor, expected: &HostTensor, what: &str| {
        assert_same(got, expected, 0.0, "a component that is loaded alone gives the bytes of the whole model", what);
    };
    same(&answer(decoder.decode(latents(), &Context::default()), "a decode with the decoder alone"), &decoded, "the decoder");
    same(&answer(encoder.encode(samples(), &Context::default()), "an encode with the encoder alone"), &encoded, "the encoder");
    for (got, expected, what) in
        [(encoder.decode(latents(), &Context::default()), decoded, "decode"), (decoder.encode(samples(), &Context::default()), encoded, "encode")]
    {
        match got {
            Ok(_) => same(&answer(got, what), &expected, what),
            Err(error) => assert!(matches!(error, VaeError::NotLoaded { .. }), "{what} says that its component is not loaded, but: {error}"),
        }
    }
}

/// The conformance tests, as `#[test]` functions: the family, a checkpoint folder, a device.
#[macro_export]
macro_rules! vae_conformance {
    ($family:ty, $path:expr, $device:expr) => {
        static CONFORMANCE_ENTRY: $crate::VaeEntry = $crate::VaeEntry::of::<$family>(env!("CARGO_PKG_NAME"));

        fn subject() -> $crate::testing::Subject {
            $crate::testing::Subject::load(&CONFORMANCE_ENTRY, $path, &$device)
        }

        $crate::vae_conformance!(
            @tests shapes_follow_the_spec, answers_are_finite_and_repeatable, every_dtype_computes, tiles_do_not_leak, streams_equal_the_whole, batch_items_are_independent,
            replicas_agree, wrong_shapes_are_refused, unknown_fields_are_ignored, components_load_alone
        );

        #[test]
        fn weights_must_fit() {
            $crate::testing::weights_must_fit(&subject(), $path);
        }
    };
    (@tests $($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                $crate::testing::$name(&subject());
            }
        )*
    };
}
