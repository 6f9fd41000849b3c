use std::path::{Path, PathBuf};

use tiling::{Canvas, GridConfig, HostTensor, Sink};

use super::output::OpenOutput;
use super::{Files, Fps, Input, IoError, Origin, Output, Planning, Samples, Tensors};
use crate::metrics::{self, Comparison};
use crate::{Config, Direction, Error, FittedFrames, Pipeline, RunOptions, RunPlan, RunStats};

/// A run as configured, compared with the whole in one tile or with a file.
pub struct VerifyJob {
    plan: RunPlan,
    input: HostTensor,
    reference: Reference,
    output: Option<OpenOutput>,
}

/// What a run is compared with.
enum Reference {
    /// The same in one tile.
    Untiled(Box<RunPlan>),
    Samples(HostTensor),
}

/// What a [`VerifyJob`] gives.
#[derive(Debug, Clone)]
pub struct Verified {
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// `[batch, channels, frames, height, width]` of what was compared.
    pub shape: [usize; 5],
    /// The greatest difference of two values.
    pub max_difference: f32,
    /// PSNR and SSIM.
    pub comparison: Comparison,
    /// The jump of the difference across the borders of tiles over that elsewhere; none without borders, or where there is no difference.
    pub seam: Option<f64>,
    /// What the difference picture multiplies the difference by.
    pub gain: f32,
    /// What the configured run took.
    pub stats: RunStats,
    /// What the run in one tile took.
    pub reference: Option<RunStats>,
}

/// The configuration for a run in one tile.
fn untiled(config: &Config) -> Result<Config, Error> {
    let tiling = GridConfig::named("off", serde_json::Map::new()).map_err(|error| {
        let key = "tiling.kind".to_owned();
        Error::ConfigValue { key, message: error.to_string() }
    })?;
    Ok(Config { tiling, ..config.clone() })
}

impl VerifyJob {
    /// Plans the run of a file of latents, images, a clip or samples (see [`Input::shape`] for `direction`), reads it, and begins the difference picture.
    /// `against` holds samples that a decode is to give.
    ///
    /// # Errors
    /// When an input cannot be read, the model does not take it, the output cannot hold the picture or would replace an input.
    pub fn with_files(
        config: &Config,
        model: &crate::Model,
        input: &Path,
        against: Option<&Path>,
        output: Option<&Output>,
        files: &mut Files,
    ) -> Result<Self, Error> {
        let (planning, spec, io) = ((config, model), &model.spec, &config.io);
        let input = Input::open(input)?;
        let (direction, _) = input.shape(None, spec, io)?;
        let (values, fps, rank) = match direction {
            Direction::Decode => {
                let tensor = Tensors::read(input.path())?.input(direction, spec, io)?;
                let (Origin { fps, .. }, rank) = (tensor.origin(), tensor.rank());
                (tensor.read()?.values, fps, rank)
            }
            Direction::Encode => {
                let samples = Samples::read(&[input.path().to_owned()], spec, io)?;
                let fitted = FittedFrames::new(samples.source(), spec.frames, io.frames)?;
                let [_, _, frames, height, width] = tiling::TileSource::shape(&fitted);
                let whole = tiling::Region { start: [0; 3], size: [frames, height, width] };
                let values = tiling::TileSource::read(&fitted, &whole).map_err(|source| Error::Source { what: "samples", source })?;
                (values, samples.fps(), samples.rank())
            }
        };
        let plan = planning.plan(direction, values.shape())?;
        let reference = match against {
            None => Reference::Untiled(Box::new((&untiled(config)?, model).plan(direction, values.shape())?)),
            Some(path) => {
                if direction == Direction::Encode {
                    return Err(IoError::AgainstLatents { path: path.to_owned() }.into());
                }
                let samples = Samples::read(&[path.to_owned()], spec, io)?;
                let [_, _, frames, height, width] = samples.source().shape();
                let whole = tiling::Region { start: [0; 3], size: [frames, height, width] };
                let samples = samples.source().read(&whole).map_err(|source| Error::Source { what: "samples", source })?;
                if samples.shape() != plan.output_shape {
                    return Err(IoError::AgainstShape { path: path.to_owned(), got: samples.shape(), expected: plan.output_shape }.into());
                }
                Reference::Samples(samples)
            }
        };
        let shape = match direction {
            Direction::Decode => plan.output_shape,
            Direction::Encode => {
                let [batch, _, frames, height, width] = plan.output_shape;
                [batch, spec.latent_channels, frames, height, width]
            }
        };
        let picture = [shape[0], spec.output_channels, shape[2], shape[3], shape[4]];
        let begin = |output: &Output| output.begin_samples(picture, rank, output.fps().or(fps).unwrap_or(Fps::DEFAULT), io, files);
        let output = output.map(begin).transpose()?;
        Ok(Self { plan, input: values, reference, output })
    }

    /// What will run as configured.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// The run as configured.
    ///
    /// # Errors
    /// When it fails.
    pub fn run_configured(&self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<(HostTensor, RunStats), Error> {
        run(pipeline, &self.plan, &self.input, options)
    }

    /// What it is compared with: a run in one tile, or the file.
    ///
    /// # Errors
    /// When the run fails.
    pub fn run_reference(&mut self, pipeline: &Pipeline, options: RunOptions<'_>) -> Result<(HostTensor, Option<RunStats>), Error> {
        match &mut self.reference {
            Reference::Untiled(plan) => run(pipeline, plan, &self.input, options).map(|(whole, stats)| (whole, Some(stats))),
            Reference::Samples(samples) => Ok((std::mem::replace(samples, HostTensor::zeros([0; 5])), None)),
        }
    }

    /// Compares both, and puts the difference picture in its place.
    ///
    /// # Errors
    /// When the picture cannot be written.
    pub fn finish(self, got: (HostTensor, RunStats), expected: (HostTensor, Option<RunStats>)) -> Result<Verified, IoError> {
        let ((got, stats), (expected, reference)) = (got, expected);
        let mut comparison = Comparison::default();
        comparison.add(&got, &expected);
        let difference = difference(&got, &expected);
        let max_difference =
            difference.data().iter().fold(0.0, |most: f32, value| if most.is_nan() || value.is_nan() { f32::NAN } else { most.max(value.abs()) });
        let borders = [&self.plan.tiles.rows, &self.plan.tiles.columns].map(|spans| {
            let inner = spans.windows(2).flat_map(|pair| [pair[1].start, pair[0].end()]);
            inner.collect::<std::collections::BTreeSet<usize>>()
        });
        let seam = metrics::seam(&difference, &borders);
        let gain = if max_difference > 0.0 { 1.0 / max_difference } else { 1.0 };
        let shape = got.shape();
        let mut files = Vec::new();
        if let Some(mut output) = self.output {
            let [batch, channels, frames, height, width] = shape;
            let shown = match output.channels() {
                shown if shown == channels => HostTensor::from_data(shape, difference.data().iter().map(|value| 2.0 * gain * value.abs() - 1.0)),
                shown => {
                    // The mean over all channels, in grey.
                    let plane = frames * height * width;
                    let mean =
                        |item: usize, at: usize| (0..channels).map(|c| difference.data()[(item * channels + c) * plane + at].abs()).sum::<f32>();
                    let values = (0..batch).flat_map(|item| {
                        let grey: Vec<f32> = (0..plane).map(|at| 2.0 * gain * mean(item, at) / channels as f32 - 1.0).collect();
                        std::iter::repeat_n(grey, shown).flatten()
                    });
                    HostTensor::from_data([batch, shown, frames, height, width], values)
                }
            };
            let extent = shown.extent();
            for frame in 0..extent[0] {
                output.take([frame, 0, 0], extent, shown.frames(frame, 1)).map_err(|error| super::tensor_writer::of_sink(Path::new("-"), error))?;
            }
            files = output.finish()?;
        }
        Ok(Verified { files, shape, max_difference, comparison, seam, gain, stats, reference })
    }
}

/// Samples of a decode as they are shown, or latents.
fn run(pipeline: &Pipeline, plan: &RunPlan, input: &HostTensor, options: RunOptions<'_>) -> Result<(HostTensor, RunStats), Error> {
    let mut canvas = Canvas::default();
    let stats = pipeline.run(plan, input, &mut canvas, options)?;
    Ok((canvas.into_tensor(), stats))
}

fn difference(a: &HostTensor, b: &HostTensor) -> HostTensor {
    HostTensor::from_data(a.shape(), a.data().iter().zip(b.data()).map(|(a, b)| a - b))
}
