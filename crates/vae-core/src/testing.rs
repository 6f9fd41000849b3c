//! The tests that every family passes. A family's crate has them with one line:
//!
//! ```ignore
//! vae_core::vae_conformance!(MyFamily, "tests/data/tiny", Device::flex());
//! ```
//!
//! The second argument is a checkpoint folder with small seeded weights.

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

/// Whether the device of the tests is no GPU.
pub fn is_on_cpu() -> bool {
    crate::adapter(&device()).is_none()
}

/// The modes of f32 arithmetic, on the device of the tests, that agree with upstream.
pub fn math_modes() -> Vec<MathMode> {
    if is_on_cpu() { [Precision::Fast, Precision::Strict].map(MathMode::from).into() } else { vec![MathMode { tf32: false, ..MathMode::default() }] }
}

/// Those of `dtypes` that the device of the tests computes in. Prints the others as skipped.
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
pub fn computable(dtypes: &[DType]) -> Vec<DType> {
    let (able, unable): (Vec<_>, Vec<_>) = dtypes.iter().partition(|&&dtype| crate::backends::computes_in(&device(), dtype));
    if !unable.is_empty() {
        println!("skipped: the device does not compute in {unable:?}");
    }
    able
}

/// What the tests run on.
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

    fn samples(&self, [h, w]: [usize; 2]) -> Tensor<5> {
        let ratio = self.spec().spatial_ratio;
        let [frames, ..] = self.spec().decode_geometry().output([self.frames(), 1, 1]);
        noise([1, self.spec().input_channels, frames, h * ratio, w * ratio], 7, &self.device)
    }
}

/// The answer to `input` in the tiles of `grid`, and their number.
pub fn run_tiled(op: &dyn TileOp, grid: &dyn Grid, input: &HostTensor) -> (HostTensor, usize) {
    let plan = TilePlan::new(grid, op.geometry(), input.extent()).expect("a grid for this input");
    let mut canvas = Canvas::default();
    let mut compositor = Compositor::new(&plan, &Cascade, &mut canvas);
    for tile in &plan.tiles {
        let answer = op.apply(&input.region(&tile.input)).expect("an input that the model takes");
        compositor.push(tile.index, answer).expect("the planned tile");
    }
    compositor.finish().expect("all tiles");
    (canvas.into_block(), plan.tiles.len())
}

/// A tensor of a safetensors file: name, type as the format names it, shape, bytes. The type may be one that nobody knows.
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
    pub fn block(&self, name: &str) -> HostTensor {
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
    assert_eq!(got.shape(), expected.shape(), "{what}");
    let worst = got.data().iter().zip(expected.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: max |diff| {worst:e} > {tolerance:e}");
}

/// How near an answer is on the whole, in dB of values between -1 and 1: single values may stray.
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

fn values(tensor: Result<Tensor<5>, VaeError>) -> Vec<f32> {
    tensor.expect("an input that the model takes").into_data().try_into_vec().expect("f32")
}

/// Shapes of answers are those that the spec foretells.
pub fn shapes_follow_the_spec(subject: &Subject) {
    for sides in [[2, 2], [3, 5], [4, 1]] {
        let latents = subject.latents(1, sides, 1);
        let expected = subject.spec().decode_geometry().output([subject.frames(), sides[0], sides[1]]);
        let [b, c, t, h, w] = subject.vae.decode(latents, &Context::default()).expect("latents").dims();
        assert_eq!((b, c, [t, h, w]), (1, subject.spec().output_channels, expected));

        let samples = subject.samples(sides);
        let [_, _, t, h, w] = samples.dims();
        let expected = subject.spec().encode_geometry().output([t, h, w]);
        let [b, c, t, h, w] = subject.vae.encode(samples, &Context::default()).expect("samples").dims();
        assert_eq!((b, c, [t, h, w]), (1, 2 * subject.spec().latent_channels, expected));
    }
}

/// Answers are finite, and the same when asked again.
pub fn answers_are_finite_and_repeatable(subject: &Subject) {
    let run = || {
        [
            values(subject.vae.decode(subject.latents(1, [3, 4], 2), &Context::default())),
            values(subject.vae.encode(subject.samples([3, 4]), &Context::default())),
        ]
    };
    let first = run();
    assert!(first.iter().flatten().all(|value| value.is_finite()));
    assert_eq!(first, run());
}

/// A tile's answer does not depend on what ran before it, or at the same time.
pub fn tiles_do_not_leak(subject: &Subject) {
    let decode = |seed| values(subject.vae.decode(subject.latents(1, [3, 3], seed), &Context::default()));
    let (a, b) = (decode(3), decode(4));
    assert_ne!(a, b);
    let (again_b, again_a) = std::thread::scope(|scope| {
        let other = scope.spawn(|| decode(3));
        (decode(4), other.join().expect("no panic"))
    });
    assert_eq!((a, b), (again_a, again_b));
}

/// A causal model's answer does not depend on how the frames are divided, and its first frames not on those that follow.
pub fn frames_may_come_in_any_chunks(subject: &Subject) {
    let FrameRule::Causal { ratio } = subject.spec().frames else { return };
    let (spec, latents, samples) = (subject.spec(), subject.latents(1, [2, 3], 8), subject.samples([2, 3]));
    let [decode, encode] = [spec.decode_geometry().frames, spec.encode_geometry().frames];
    let whole = [values(subject.vae.decode(latents.clone(), &Context::default())), values(subject.vae.encode(samples.clone(), &Context::default()))];
    for per_chunk in 1..=3 {
        let decoded = values(stream_frames(subject.vae.decode_stream(&Context::default()), latents.clone(), decode, per_chunk));
        let encoded = values(stream_frames(subject.vae.encode_stream(&Context::default()), samples.clone(), encode, per_chunk));
        for (got, expected) in [(&decoded, &whole[0]), (&encoded, &whole[1])] {
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(got.len() == expected.len() && worst <= 1e-5, "chunks of {per_chunk} latent frames make a difference of {worst}");
        }
    }
    let mut stream = subject.vae.decode_stream(&Context::default());
    let first = stream(latents.clone().narrow(2, 0, 1)).expect("the first frame");
    assert_eq!(first.dims()[2], 1);
    let second = stream(latents.narrow(2, 1, 1)).expect("the second frame");
    assert_eq!(second.dims()[2], ratio);
}

/// Batch items are decoded as if each were alone.
pub fn batch_items_are_independent(subject: &Subject) {
    let both = subject.latents(2, [2, 3], 5);
    let one = |item: usize| both.clone().narrow(0, item, 1);
    let apart = [values(subject.vae.decode(one(0), &Context::default())), values(subject.vae.decode(one(1), &Context::default()))].concat();
    let together = values(subject.vae.decode(both.clone(), &Context::default()));
    let worst = apart.iter().zip(&together).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "batch items differ by {worst} from single ones");
}

/// A replica gives the same answers.
pub fn replicas_agree(subject: &Subject) {
    let replica = subject.vae.to_device(&subject.device);
    assert_eq!(
        values(subject.vae.decode(subject.latents(1, [2, 2], 6), &Context::default())),
        values(replica.decode(subject.latents(1, [2, 2], 6), &Context::default()))
    );
    assert_eq!(subject.spec(), replica.spec());
}

/// Shapes that the model cannot take are errors, not panics.
pub fn wrong_shapes_are_refused(subject: &Subject) {
    let spec = subject.spec();
    let zeros = |shape: [usize; 5]| Tensor::<5>::zeros(shape, &subject.device);
    let (latent, input) = (spec.latent_channels, spec.input_channels);
    let side = spec.spatial_ratio;
    assert!(matches!(subject.vae.decode(zeros([1, latent + 1, 1, 2, 2]), &Context::default()), Err(VaeError::Channels { .. })));
    assert!(matches!(subject.vae.encode(zeros([1, input + 1, 1, side, side]), &Context::default()), Err(VaeError::Channels { .. })));
    match spec.frames {
        FrameRule::Image => assert!(matches!(subject.vae.decode(zeros([1, latent, 2, 2, 2]), &Context::default()), Err(VaeError::Frames { .. }))),
        FrameRule::Causal { ratio } => {
            let refused = subject.vae.encode(zeros([1, input, 1 + 2 * ratio - 1, side, side]), &Context::default());
            assert!(ratio == 1 || matches!(refused, Err(VaeError::FrameCount { .. })), "{refused:?}");
        }
    }
    assert!(side == 1 || matches!(subject.vae.encode(zeros([1, input, 1, side - 1, side]), &Context::default()), Err(VaeError::TooSmall { .. })));
}

/// A field that the configuration does not have changes nothing.
pub fn unknown_fields_are_passed_over(subject: &Subject) {
    for name in ["_private", "no_such_field"] {
        let mut config = subject.model.config.clone();
        config.as_object_mut().expect("an object").insert(name.to_owned(), 1.into());
        assert_eq!(subject.model.entry.spec(&config).expect(name), subject.model.spec);
    }
}

/// A missing and a left-over tensor are named.
pub fn weights_must_fit(subject: &Subject, path: &str) {
    let weights = crate::Checkpoint::open(Path::new(path), None).and_then(|checkpoint| checkpoint.weights()).expect("weights");
    let victim = weights.names().next().expect("a tensor").to_owned();
    let renamed = weights.renamed(|name| Some(if name == victim { format!("{name}.left_over") } else { name.to_owned() }));
    let error = subject.model.entry.load(&subject.model.config, renamed, &subject.device, DType::F32).expect_err("a misnamed tensor passed");
    let text = error.to_string();
    assert!(text.contains(&format!("missing (1): {victim}")) && text.contains("unexpected (1)"), "{text}");
}

/// A half that is loaded alone answers as it does in the whole, and the other half is an error or there all the same.
pub fn a_half_is_enough(subject: &Subject) {
    let load = |components| subject.model.clone().only(components).load(&subject.device, DType::F32).expect("weights that fit");
    let (encoder, decoder) = (load(Components::Encoder), load(Components::Decoder));
    let ([samples, latents], whole) = ([subject.samples([8, 8]), subject.latents(1, [8, 8], 3)], &subject.vae);
    let [decoded, encoded] = [whole.decode(latents.clone(), &Context::default()), whole.encode(samples.clone(), &Context::default())]
        .map(|answer| answer.expect("an answer").into_data());
    assert_eq!(decoder.decode(latents.clone(), &Context::default()).expect("a decoder").into_data(), decoded);
    assert_eq!(encoder.encode(samples.clone(), &Context::default()).expect("an encoder").into_data(), encoded);
    for (answer, expected) in [(encoder.decode(latents, &Context::default()), decoded), (decoder.encode(samples, &Context::default()), encoded)] {
        match answer {
            Ok(answer) => assert_eq!(answer.into_data(), expected),
            Err(error) => assert!(matches!(error, VaeError::NotLoaded { .. }), "{error}"),
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
            @tests shapes_follow_the_spec, answers_are_finite_and_repeatable, tiles_do_not_leak, frames_may_come_in_any_chunks, batch_items_are_independent, replicas_agree,
            wrong_shapes_are_refused, unknown_fields_are_passed_over, a_half_is_enough
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
