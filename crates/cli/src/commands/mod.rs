mod bench;
mod info;
mod plan;
mod run;
mod verify;
mod worker;

pub(crate) use bench::bench;
pub(crate) use info::{completions, config, devices, models};
pub(crate) use plan::plan;
pub(crate) use run::{decode, encode, roundtrip};
pub(crate) use verify::verify;
pub(crate) use worker::worker;

use tilevae::{Config, Model, OpenDevice, Pipeline, RunOptions, RunPlan, parse_override};

use crate::args::Common;
use crate::failure::UsageError;
use crate::watch::Watch;

/// The configuration: defaults, then the file, then `--set`, then `--model` and `--device`.
fn configuration(common: &Common) -> Result<Config, tilevae::Error> {
    let overrides = common.set.iter().map(|given| parse_override(given)).collect::<Result<Vec<_>, _>>()?;
    let mut config = Config::from_sources(common.config.as_deref(), &overrides)?;
    if let Some(model) = &common.model {
        config.model.path.clone_from(model);
    }
    if !common.device.is_empty() {
        let names = common.device.iter().map(|name| name.parse()).collect::<Result<_, tilevae::vae_core::DeviceNameError>>();
        config.devices.names = names.map_err(|error| {
            let error = tilevae::Error::ConfigValue { key: "devices.use".to_owned(), message: error.to_string() };
            tilevae::Error::ConfigSource { origin: "--device".to_owned(), error: Box::new(error) }
        })?;
    }
    Ok(config)
}

/// The pipeline of a model, which Ctrl-C stops.
fn load_pipeline(config: &Config, model: &Model, devices: &[OpenDevice]) -> Result<Pipeline, tilevae::Error> {
    crate::adapted(Pipeline::load_on(config, model, devices, &crate::interrupt::stop())?)
}

/// Warms GPUs up for a run that several workers share: tiles are given to workers by their speed, which should not be the speed of compiling.
fn warm_up(pipeline: &Pipeline, plan: &RunPlan) {
    if plan.workers > 1 {
        pipeline.warm_up(plan, &crate::interrupt::stop());
    }
}

/// The options of a run that `watch` shows and Ctrl-C stops.
fn run_options(watch: &mut Watch) -> RunOptions<'_> {
    RunOptions::default().with_progress(watch).with_stop(crate::interrupt::stop())
}

/// The configured model, without weights.
fn open_model(config: &Config) -> anyhow::Result<Model> {
    let path = &config.model.path;
    if *path == Config::default().model.path && !path.exists() {
        return Err(UsageError(format!("no model is given, and the default {} does not exist in this folder; use --model", path.display())).into());
    }
    Ok(tilevae::open_model(config)?)
}
