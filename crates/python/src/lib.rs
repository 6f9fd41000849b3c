//! The compiled part of the Python package `tilevae`: a loaded pipeline over arrays in memory, and the command line.

mod array;
mod error;
mod frames;
mod runs;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyArray5, PyReadonlyArray5, PyReadwriteArray5};
use pyo3::prelude::*;
use tilevae::io::{DecodeJob, Fps, Origin, Output, Tensor};
use tilevae::vae_core::tensor_file::{StoredDtype, StoredTensor};
use tilevae::{Config, Direction, Error, Model, Pipeline, Registry, RunOptions, TileSource, open_model, parse_override};

use array::{ArraySink, ArraySource, HeldBytes, into_array};
use error::{raise, value_error};
use frames::Frames;
use runs::watched;

/// Name, type, shape and bytes of a tensor.
type TensorParts<'py> = (String, String, Vec<usize>, Bound<'py, PyArray1<u8>>);

/// The mean and the log-variance of a posterior.
type Moments<'py> = (Bound<'py, PyArray5<f32>>, Option<Bound<'py, PyArray5<f32>>>);

/// Latents of a decode: an array `[b, c, t, h, w]`, or a file.
#[derive(FromPyObject)]
enum Latents<'py> {
    #[pyo3(transparent)]
    Array(PyReadonlyArray5<'py, f32>),
    #[pyo3(transparent)]
    File(PathBuf),
}

/// A model with its weights on the configured devices. Threads may share it.
#[pyclass(frozen, module = "tilevae._tilevae")]
struct Engine {
    pipeline: Pipeline,
}

/// The configuration of a file, if given, and of keys `section.key=value`.
fn config(file: Option<PathBuf>, keys: Vec<String>) -> PyResult<Config> {
    let layers = keys.iter().map(|key| parse_override(key)).collect::<Result<Vec<_>, _>>().map_err(raise)?;
    Config::from_sources(file.as_deref(), &layers).map_err(raise)
}

#[pymethods]
impl Engine {
    /// Loads the checkpoint that the configuration names.
    #[staticmethod]
    fn open(py: Python<'_>, file: Option<PathBuf>, keys: Vec<String>) -> PyResult<Self> {
        let config = config(file, keys)?;
        let pipeline = py.detach(|| Pipeline::load_model(&config, &open_model(&config)?)).map_err(raise)?;
        Ok(Self { pipeline })
    }

    /// Loads a model from memory: the fields of its `config.json` as JSON, and names, types, shapes and bytes of its tensors. Memory budgets count `held_bytes` that
    /// the program holds besides.
    #[staticmethod]
    fn of_tensors(py: Python<'_>, model: &str, tensors: Vec<TensorParts<'_>>, keys: Vec<String>, held_bytes: u64) -> PyResult<Self> {
        let config = config(None, keys)?;
        let fields = serde_json::from_str(model).map_err(value_error)?;
        let stored = |(name, dtype, shape, bytes): TensorParts<'_>| {
            let dtype = match dtype.as_str() {
                "float64" => StoredDtype::F64,
                "float32" => StoredDtype::F32,
                "float16" => StoredDtype::F16,
                "bfloat16" => StoredDtype::Bf16,
                other => StoredDtype::Other(other.into()),
            };
            StoredTensor::in_memory(name, dtype, shape, Arc::new(HeldBytes::new(&bytes)?)).map_err(value_error)
        };
        let tensors = tensors.into_iter().map(stored).collect::<PyResult<Vec<_>>>()?;
        let load = || {
            let model = Model::in_memory(&Registry::linked()?, fields, tensors)?;
            Pipeline::load_model(&config, &model)
        };
        Ok(Self { pipeline: py.detach(load).map_err(raise)?.with_held_bytes(held_bytes) })
    }

    /// The same weights with other tiles.
    fn share(&self, py: Python<'_>, keys: Vec<String>) -> PyResult<Self> {
        let config = config(None, keys)?;
        Ok(Self { pipeline: py.detach(|| self.pipeline.share(&config)).map_err(raise)? })
    }

    /// The shape of the output of a decode (`decode` true) or an encode over an input of `[batch, channels, frames, height, width]`.
    fn output_shape(&self, decode: bool, shape: [usize; 5]) -> PyResult<[usize; 5]> {
        Ok(self.pipeline.plan_in_memory(direction(decode), shape).map_err(raise)?.output_shape)
    }

    /// The plan of such a run, as JSON.
    fn plan(&self, decode: bool, shape: [usize; 5]) -> PyResult<String> {
        let plan = self.pipeline.plan_in_memory(direction(decode), shape).map_err(raise)?;
        serde_json::to_string(&plan).map_err(value_error)
    }

    /// Decodes `latents` into `samples`, both `[b, c, t, h, w]`. `progress`, if given, is called with tiles that are done and all tiles.
    fn decode(
        &self,
        py: Python<'_>,
        latents: PyReadonlyArray5<'_, f32>,
        mut samples: PyReadwriteArray5<'_, f32>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let source = ArraySource::new(&latents)?;
        let mut sink = ArraySink::new(&mut samples)?;
        watched(py, progress, |options: RunOptions<'_>| {
            let plan = self.pipeline.plan_in_memory(Direction::Decode, source.shape())?;
            self.pipeline.run(&plan, &source, &mut sink, options)?;
            Ok(())
        })
    }

    /// Decodes latents into a file, or one for each item of a batch, and gives their names. Arrays have frames, or are written without that axis.
    fn decode_to(
        &self,
        py: Python<'_>,
        path: PathBuf,
        latents: Latents<'_>,
        has_frames: bool,
        fps: Option<&str>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vec<PathBuf>> {
        let fps: Option<Fps> = fps.map(str::parse).transpose().map_err(value_error)?;
        let output = || Ok::<_, Error>(Output::samples(path, None)?.with_fps(fps)?);
        let run = |job: DecodeJob, options: RunOptions<'_>| Ok(job.run(&self.pipeline, options)?.files);
        match latents {
            Latents::File(file) => watched(py, progress, |options| run(DecodeJob::new(&self.pipeline, file, &output()?)?, options)),
            Latents::Array(array) => {
                let values = ArraySource::new(&array)?.to_tensor()?;
                let latents = Tensor { values, rank: if has_frames { 5 } else { 4 }, origin: Origin::default() };
                watched(py, progress, |options| run(DecodeJob::of_tensor(&self.pipeline, latents, &output()?)?, options))
            }
        }
    }

    /// Begins the decode of `latents` (`[b, c, t, h, w]`) and gives its frames as they are finished. Its workers are its own: meanwhile there may be other runs.
    fn decode_frames(&self, py: Python<'_>, latents: PyReadonlyArray5<'_, f32>, progress: Option<Py<PyAny>>) -> PyResult<Frames> {
        let latents = ArraySource::new(&latents)?.to_tensor()?;
        let pipeline = py.detach(|| self.pipeline.share(self.pipeline.config())).map_err(raise)?;
        Frames::start(pipeline, latents, progress)
    }

    /// Encodes samples `[b, c, t, h, w]` to the mean and the log-variance of latents; the latter is missing where the model has no posterior.
    fn encode<'py>(&self, py: Python<'py>, samples: PyReadonlyArray5<'py, f32>, progress: Option<Py<PyAny>>) -> PyResult<Moments<'py>> {
        let source = ArraySource::new(&samples)?;
        let encoded = watched(py, progress, |options: RunOptions<'_>| self.pipeline.encode(&source, options))?;
        match encoded.moments {
            Some([mean, logvar]) => Ok((into_array(py, mean)?, Some(into_array(py, logvar)?))),
            None => Ok((into_array(py, encoded.latents)?, None)),
        }
    }

    /// Channels of latents.
    #[getter]
    fn latent_channels(&self) -> usize {
        self.pipeline.spec().latent_channels
    }

    /// Px of a sample in a latent px.
    #[getter]
    fn spatial_ratio(&self) -> usize {
        self.pipeline.spec().spatial_ratio
    }
}

fn direction(decode: bool) -> Direction {
    if decode { Direction::Decode } else { Direction::Encode }
}

/// Runs the command line with these arguments, the first of which is the program's name. Returns the exit code.
#[pyfunction]
fn command(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| tilevae_cli::main_of(arguments))
}

#[pymodule]
fn _tilevae(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Engine>()?;
    module.add_class::<Frames>()?;
    module.add_function(wrap_pyfunction!(command, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
