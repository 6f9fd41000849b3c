//! Jobs: files to a file through a model. A job plans first, without weights, and opens its input and output, so that what cannot be is refused before work
//! is spent on it; it then runs on a pipeline.

use std::path::{Path, PathBuf};

use tiling::{BoxError, HostTensor, Region, Sink, TileSource};
use vae_core::{Model, VaeSpec};

use super::output::OpenOutput;
use super::sample_file::bytes_of;
use super::tensor_writer::of_sink;
use super::{
    Files, FormatKind, Fps, HashingSink, Input, IoError, Origin, Output, SampleFile, Samples, Target, Tensor, Tensors, check_space, sha256,
    written_file,
};
use crate::metrics::Comparison;
use crate::{Config, Direction, Encoded, Error, FittedFrames, Pipeline, Progress, RunOptions, RunPlan, RunStats};

/// What plans runs: a loaded [`Pipeline`], or a configuration and its model without weights.
pub trait Planning {
    /// The configuration.
    fn config(&self) -> &Config;

    /// What is known of the model without weights.
    fn spec(&self) -> &VaeSpec;

    /// The plan of a run over an input of `shape` (`[batch, channels, frames, height, width]`).
    ///
    /// # Errors
    /// When the model does not take such an input, or the grid cannot be laid.
    fn plan(&self, direction: Direction, shape: [usize; 5]) -> Result<RunPlan, Error>;
}

impl Planning for Pipeline {
    fn config(&self) -> &Config {
        self.config()
    }

    fn spec(&self) -> &VaeSpec {
        self.spec()
    }

    fn plan(&self, direction: Direction, shape: [usize; 5]) -> Result<RunPlan, Error> {
        self.plan(direction, shape)
    }
}

impl Planning for (&Config, &Model) {
    fn config(&self) -> &Config {
        self.0
    }

    fn spec(&self) -> &VaeSpec {
        &self.1.spec
    }

    fn plan(&self, direction: Direction, shape: [usize; 5]) -> Result<RunPlan, Error> {
        RunPlan::new(self.0, self.1.entry.name, &self.1.spec, direction, shape)
    }
}

/// What a job has written.
#[derive(Debug, Clone)]
pub struct Written {
    /// The files; several for a batch of images or clips.
    pub files: Vec<PathBuf>,
    /// `[batch, channels, frames, height, width]` of what was written.
    pub shape: [usize; 5],
    /// What the run took.
    pub stats: RunStats,
    /// The SHA-256 of the values, where it was asked for.
    pub sha256: Option<String>,
}

/// Latents of a file, or in memory, to an image, a clip or raw samples.
///
/// Frames and px that an encode has added are left out where the file of latents tells it; raw samples keep their padding px. The rate of a clip is the
/// output's, else that which the latents remember, else [`Fps::DEFAULT`].
pub struct DecodeJob {
    plan: RunPlan,
    latents: HostTensor,
    output: OpenOutput,
    shape: [usize; 5],
    hashes: bool,
}

impl DecodeJob {
    /// Plans the decode of a file of latents, reads it, and begins the output.
    ///
    /// # Errors
    /// When the input cannot be read, the model does not take it, the output cannot hold it or would replace the input, or a disk has no room.
    pub fn new(planning: &impl Planning, latents: impl AsRef<Path>, output: &Output) -> Result<Self, Error> {
        let latents = latents.as_ref();
        let mut files = Files::new(planning.config(), &[latents]);
        files.write("the output", output.path())?;
        Self::with_files(planning, latents, output, false, &mut files)
    }

    /// The same with the files of a program, the output's path among them; `hashes` asks for the SHA-256 of the samples.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_files(planning: &impl Planning, latents: &Path, output: &Output, hashes: bool, files: &mut Files) -> Result<Self, Error> {
        let input = Input::open(latents)?;
        let tensor = Tensors::read(input.path())?.input(Direction::Decode, planning.spec(), &planning.config().io)?;
        let (plan, shape, output) = Self::begin(planning, (tensor.shape(), tensor.rank(), tensor.origin()), output, hashes, files)?;
        Ok(Self { latents: tensor.read()?.values, plan, output, shape, hashes })
    }

    /// The decode of latents in memory, of the configured latent space.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), but for an input that cannot be read.
    pub fn of_tensor(planning: &impl Planning, latents: Tensor, output: &Output) -> Result<Self, Error> {
        let mut files = Files::new::<&Path>(planning.config(), &[]);
        files.write("the output", output.path())?;
        let Tensor { values, rank, origin } = latents;
        let (plan, shape, output) = Self::begin(planning, (values.shape(), rank, origin), output, false, &mut files)?;
        Ok(Self { latents: values, plan, output, shape, hashes: false })
    }

    /// The plan for latents of a shape, a rank and an origin, the shape that is written, and its output, which has begun.
    fn begin(
        planning: &impl Planning,
        (input_shape, rank, origin): ([usize; 5], usize, Origin),
        output: &Output,
        hashes: bool,
        files: &mut Files,
    ) -> Result<(RunPlan, [usize; 5], OpenOutput), Error> {
        let (io, spec) = (&planning.config().io, planning.spec());
        let plan = planning.plan(Direction::Decode, input_shape)?;
        let mut shape = plan.output_shape;
        if let Some(frames) = origin.frames.filter(|&frames| spec.frames.nearest(frames)[1] == shape[2]) {
            shape[2] = frames;
        }
        let kind = output.format().kind();
        let crop = origin.size.filter(|&size| is_padding(size, [shape[3], shape[4]], spec.spatial_ratio));
        if let Some(size) = crop.filter(|_| kind != FormatKind::Tensors) {
            [shape[3], shape[4]] = size;
        }
        let fps = output.fps().or(origin.fps).unwrap_or(Fps::DEFAULT);
        let output = output.begin_samples(shape, rank, fps, io, files)?;
        // Frames that come in parts wait as 8-bit px.
        let parts = if kind == FormatKind::Clip && plan.tiles.is_tiled() { bytes_of(shape) / size_of::<f32>() as u64 } else { 0 };
        let hashed = if hashes { bytes_of(plan.output_shape) } else { 0 };
        check_scratch([plan.scratch_bytes(), parts, hashed])?;
        Ok((plan, shape, output))
    }

    /// What will run.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// Runs, and puts the output in its place.
    ///
    /// # Errors
    /// When the run fails, or the output cannot be written.
    pub fn run(self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<Written, Error> {
        self.decode(pipeline, options)?.finish().map_err(Error::from)
    }

    /// Runs. Nothing is at the output's place until [`Decoded::finish`].
    ///
    /// # Errors
    /// When the run fails.
    pub fn decode(self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<Decoded, Error> {
        let Self { plan, latents, mut output, shape, hashes } = self;
        let (stats, sha256) = if hashes {
            let mut hashing = HashingSink::new(&mut output, plan.output_shape)?;
            let stats = pipeline.run(&plan, &latents, &mut hashing, options)?;
            (stats, Some(hashing.sha256()?))
        } else {
            (pipeline.run(&plan, &latents, &mut output, options)?, None)
        };
        Ok(Decoded { output, shape, stats, sha256 })
    }
}

/// A [`DecodeJob`] that has run.
pub struct Decoded {
    output: OpenOutput,
    shape: [usize; 5],
    stats: RunStats,
    sha256: Option<String>,
}

impl Decoded {
    /// Puts the output in its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<Written, IoError> {
        let Self { output, shape, stats, sha256 } = self;
        Ok(Written { files: output.finish()?, shape, stats, sha256 })
    }
}

/// Images, a clip or raw samples to a file of latents, which remembers the size of images, the number of frames that were padded, and the rate.
pub struct EncodeJob {
    plan: RunPlan,
    samples: Samples,
    output: Output,
    tensors: &'static [&'static str],
}

impl EncodeJob {
    /// Plans the encode of files (see [`Samples::read`]) and reads them.
    ///
    /// # Errors
    /// When an input cannot be read, the model does not take it, the output cannot hold the latents or would replace an input, or a disk has no room.
    pub fn new(planning: &impl Planning, samples: &[PathBuf], output: &Output) -> Result<Self, Error> {
        let mut files = Files::new(planning.config(), samples);
        files.write("the output", output.path())?;
        Self::with_files(planning, samples, output)
    }

    /// The same where the program has seen to it that the output replaces no input.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_files(planning: &impl Planning, samples: &[PathBuf], output: &Output) -> Result<Self, Error> {
        let io = &planning.config().io;
        let tensors = output.latent_tensors(io)?;
        let samples = Samples::read(samples, planning.spec(), io)?;
        if output.fps().is_some() && matches!(samples, Samples::Images(_)) {
            return Err(IoError::RateOfImages.into());
        }
        let fitted = FittedFrames::new(samples.source(), planning.spec().frames, io.frames)?;
        let plan = planning.plan(Direction::Encode, fitted.shape())?;
        check_scratch([plan.scratch_bytes()])?;
        let [batch, _, frames, height, width] = plan.output_shape;
        let latents = bytes_of([batch, planning.spec().latent_channels, frames, height, width]);
        check_space(&room_for(output.path()), latents.saturating_mul(tensors.len() as u64))?;
        Ok(Self { plan, samples, output: output.clone(), tensors })
    }

    /// What will run.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// Runs, and writes the latents.
    ///
    /// # Errors
    /// When the run fails, or the output cannot be written.
    pub fn run(self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<Written, Error> {
        self.encode(pipeline, options)?.finish(false).map_err(Error::from)
    }

    /// Runs. Nothing is written until [`EncodedFile::finish`].
    ///
    /// # Errors
    /// When the run fails.
    pub fn encode(self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<EncodedFile, Error> {
        let Self { plan, samples, output, tensors } = self;
        let fitted = FittedFrames::new(samples.source(), pipeline.spec().frames, pipeline.config().io.frames)?;
        let encoded = pipeline.encode_planned(&plan, &fitted, options)?;
        let frames = fitted.is_padded().then(|| fitted.own_frames());
        let origin = Origin { size: samples.image_size(), frames, fps: output.fps().or(samples.fps()) };
        Ok(EncodedFile { encoded, output, tensors, rank: samples.rank(), origin })
    }
}

/// An [`EncodeJob`] that has run.
pub struct EncodedFile {
    encoded: Encoded,
    output: Output,
    tensors: &'static [&'static str],
    rank: usize,
    origin: Origin,
}

impl EncodedFile {
    /// Writes the latents, and hashes them if that is asked for.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn finish(self, hashes: bool) -> Result<Written, IoError> {
        let Self { encoded: Encoded { latents, moments, stats, .. }, output, tensors, rank, origin } = self;
        let (shape, sha256) = (latents.shape(), hashes.then(|| sha256(&latents)));
        let target = Target { tensors, rank, origin, ..Target::new(output.path(), shape) };
        let mut writer = output.format().create(&target)?;
        let joined = HostTensor::join_batch(std::iter::once(latents).chain(moments.into_iter().flatten()).collect());
        let extent = joined.extent();
        writer.take([0; 3], extent, joined).map_err(|error| of_sink(output.path(), error))?;
        writer.finish()?;
        Ok(Written { files: vec![output.path().to_owned()], shape, stats, sha256 })
    }
}

/// Samples to latents and back, compared with what they were.
pub struct RoundTripJob {
    plans: [RunPlan; 2],
    samples: Samples,
    output: Option<OpenOutput>,
    decoded: SampleFile,
    shape: [usize; 5],
}

/// What a [`RoundTripJob`] gives.
#[derive(Debug, Clone)]
pub struct RoundTrip {
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// `[batch, channels, frames, height, width]` of what was compared.
    pub shape: [usize; 5],
    /// The comparison of the samples with the decoded ones.
    pub comparison: Comparison,
    /// What the encode took.
    pub encode: RunStats,
    /// What the decode took.
    pub decode: RunStats,
}

impl RoundTripJob {
    /// Plans both runs, reads the samples (see [`Samples::read`]) and begins the output, if there is one.
    ///
    /// # Errors
    /// Those of [`EncodeJob::new`] and [`DecodeJob::new`], and [`IoError::Channels`].
    pub fn new(planning: &impl Planning, samples: &[PathBuf], output: Option<&Output>) -> Result<Self, Error> {
        let mut files = Files::new(planning.config(), samples);
        output.map_or(Ok(()), |output| files.write("the output", output.path()))?;
        Self::with_files(planning, samples, output, &mut files)
    }

    /// The same with the files of a program, the output's path among them.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_files(planning: &impl Planning, samples: &[PathBuf], output: Option<&Output>, files: &mut Files) -> Result<Self, Error> {
        let (io, spec) = (&planning.config().io, planning.spec());
        let samples = Samples::read(samples, spec, io)?;
        let fitted = FittedFrames::new(samples.source(), spec.frames, io.frames)?;
        let encode = planning.plan(Direction::Encode, fitted.shape())?;
        let [batch, _, frames, height, width] = encode.output_shape;
        let decode = planning.plan(Direction::Decode, [batch, spec.latent_channels, frames, height, width])?;
        if spec.input_channels != spec.output_channels {
            return Err(IoError::Channels { taken: spec.input_channels, given: spec.output_channels }.into());
        }
        // A side that is no multiple of the ratio is decoded shorter from raw samples, and longer (padded) from an image.
        let size = samples.size();
        let [height, width] = [0, 1].map(|axis| size[axis].min(decode.output_shape[3 + axis]));
        let shape = [batch, spec.output_channels, fitted.own_frames(), height, width];
        let fps = output.and_then(Output::fps).or(samples.fps()).unwrap_or(Fps::DEFAULT);
        let output = output.map(|output| output.begin_samples(shape, samples.rank(), fps, io, files)).transpose()?;
        let decoded = SampleFile::scratch(shape)?;
        check_scratch([encode.scratch_bytes().max(decode.scratch_bytes())])?;
        Ok(Self { plans: [encode, decode], samples, output, decoded, shape })
    }

    /// What will run: the encode and the decode.
    pub fn plans(&self) -> &[RunPlan; 2] {
        &self.plans
    }

    /// Runs both ways, compares, and puts the output in its place.
    ///
    /// # Errors
    /// When a run fails, or the output cannot be written.
    pub fn run(mut self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<RoundTrip, Error> {
        let RunOptions { mut progress, stop } = options;
        let first: Option<&mut dyn Progress> = match &mut progress {
            Some(progress) => Some(&mut **progress),
            None => None,
        };
        let encoded = self.encode(pipeline, RunOptions { progress: first, stop: stop.clone() })?;
        let decode = self.decode(pipeline, &encoded.latents, RunOptions { progress, stop })?;
        self.finish(pipeline, encoded.stats, decode)
    }

    /// The first run.
    ///
    /// # Errors
    /// When it fails.
    pub fn encode(&self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<Encoded, Error> {
        pipeline.encode_planned(&self.plans[0], &self.fitted(pipeline)?, options)
    }

    /// The second run, over the latents of the first.
    ///
    /// # Errors
    /// When it fails.
    pub fn decode(&mut self, pipeline: &Pipeline, latents: &HostTensor, options: RunOptions<'_>) -> Result<RunStats, Error> {
        pipeline.run(&self.plans[1], latents, &mut self.decoded, options)
    }

    /// Compares what came back with what it was, frame by frame, and puts the output in its place.
    ///
    /// # Errors
    /// When scratch files cannot be read, or the output cannot be written.
    pub fn finish(mut self, pipeline: &Pipeline, encode: RunStats, decode: RunStats) -> Result<RoundTrip, Error> {
        let [_, _, frames, height, width] = self.shape;
        let mut output = self.output.take();
        let mut comparison = Comparison::default();
        {
            let fitted = self.fitted(pipeline)?;
            let of_source = |source: BoxError| Error::Source { what: "samples", source };
            for frame in 0..frames {
                let region = Region { start: [frame, 0, 0], size: [1, height, width] };
                let original = fitted.read(&region).map_err(of_source)?;
                let mut back = self.decoded.read(&region).map_err(of_source)?;
                if self.samples.image_size().is_some() {
                    back.data_mut().iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
                }
                comparison.add(&original, &back);
                if let Some(output) = &mut output {
                    output.take([frame, 0, 0], [frames, height, width], back).map_err(|error| of_sink(Path::new("-"), error))?;
                }
            }
        }
        let files = output.map(OpenOutput::finish).transpose()?.unwrap_or_default();
        Ok(RoundTrip { files, shape: self.shape, comparison, encode, decode })
    }

    fn fitted(&self, pipeline: &Pipeline) -> Result<FittedFrames<'_>, Error> {
        FittedFrames::new(self.samples.source(), pipeline.spec().frames, pipeline.config().io.frames)
    }
}

/// Whether `whole` is `size` padded to a multiple of `ratio`: then an image that once had that size may be cropped to it.
fn is_padding(size: [usize; 2], whole: [usize; 2], ratio: usize) -> bool {
    (0..2).all(|axis| size[axis] > 0 && size[axis].next_multiple_of(ratio) == whole[axis])
}

/// The folder that has to have room for an output: where it goes to a pipe, that of temporary files.
fn room_for(output: &Path) -> PathBuf {
    let file = written_file(output).ok().flatten();
    file.and_then(|file| Some(file.parent()?.to_owned())).unwrap_or_else(std::env::temp_dir)
}

/// Checks that scratch files of these bytes find room, before work is spent on them.
fn check_scratch<const N: usize>(bytes: [u64; N]) -> Result<(), IoError> {
    check_space(&std::env::temp_dir(), bytes.into_iter().fold(0, u64::saturating_add))
}
