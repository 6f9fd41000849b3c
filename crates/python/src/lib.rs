//! The compiled part of the Python package `tilevae`: a loaded pipeline over arrays in memory, and the command line.

mod array;
mod error;
mod runs;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyArray5, PyArrayMethods, PyReadonlyArray5, PyReadwriteArray5};
use pyo3::prelude::*;
use tilevae::tiling::HostTensor;
use tilevae::vae_core::tensor_file::{StoredDtype, StoredTensor};
use tilevae::{Config, Direction, Model, Pipeline, Registry, RunOptions, TileSource, open_model, parse_override};

use array::{ArraySink, ArraySource, HeldBytes};
use error::{raise, value_error};
use runs::watched;

/// Name, type, shape and bytes of a tensor.
type TensorParts<'py> = (String, String, Vec<usize>, Bound<'py, PyArray1<u8>>);

/// The mean and the log-variance of a posterior.
type Moments<'py> = (Bound<'py, PyArray5<f32>>, Option<Bound<'py, PyArray5<f32>>>);

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

    /// Loads a model from memory: the fields of its `config.json` as JSON, and names, types, shapes and bytes of its tensors.
    #[staticmethod]
    fn of_tensors(py: Python<'_>, model: &str, tensors: Vec<TensorParts<'_>>, keys: Vec<String>) -> PyResult<Self> {
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
        Ok(Self { pipeline: py.detach(load).map_err(raise)? })
    }

    /// The shape of the output of a decode (`decode` true) or an encode over an input of `[batch, channels, frames, height, width]`.
    fn output_shape(&self, decode: bool, shape: [usize; 5]) -> PyResult<[usize; 5]> {
        Ok(self.pipeline.plan(direction(decode), shape).map_err(raise)?.output_shape)
    }

    /// The plan of such a run, as JSON.
    fn plan(&self, decode: bool, shape: [usize; 5]) -> PyResult<String> {
        let plan = self.pipeline.plan(direction(decode), shape).map_err(raise)?;
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
            let plan = self.pipeline.plan(Direction::Decode, source.shape())?;
            self.pipeline.run(&plan, &source, &mut sink, options)?;
            Ok(())
        })
    }

    /// Encodes samples `[b, c, t, h, w]` to the mean and the log-variance of latents; the latter is missing where the model has no posterior.
    fn encode<'py>(&self, py: Python<'py>, samples: PyReadonlyArray5<'py, f32>, progress: Option<Py<PyAny>>) -> PyResult<Moments<'py>> {
        let source = ArraySource::new(&samples)?;
        let encoded = watched(py, progress, |options: RunOptions<'_>| self.pipeline.encode(&source, options))?;
        let array = |tensor: HostTensor| {
            let shape = tensor.shape();
            tensor.into_data().into_pyarray(py).reshape(shape)
        };
        match encoded.moments {
            Some([mean, logvar]) => Ok((array(mean)?, Some(array(logvar)?))),
            None => Ok((array(encoded.latents)?, None)),
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
    module.add_function(wrap_pyfunction!(command, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
