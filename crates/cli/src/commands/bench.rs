use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use tilevae::io::{self, FormatKind, SampleFile, Samples, Tensors};
use tilevae::vae_core::{Components, normal_noise};
use tilevae::{Config, Count, Direction, ExecutorConfig, FittedFrames, HostTensor, Model, Pipeline, RunPlan, RunStats, TileSource};

use crate::args::{Bench, Common};
use crate::commands::plan;
use crate::failure::UsageError;
use crate::interrupt::during;
use crate::memory;
use crate::output::{bytes, print};
use crate::watch::Watch;

pub(crate) fn bench(common: &Common, args: &Bench) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let model = super::open_model(&config)?;
    let file = io::Input::open(&args.input)?;
    let (direction, shape) = plan::input_shape(&file, args.direction, &model.spec, &config)?;
    RunPlan::new(&config, model.entry.name, &model.spec, direction, shape)?;
    let model = model.only(if direction == Direction::Decode { Components::Decoder } else { Components::Encoder });
    let input = Input::read(file.path(), direction, shape, &model, &config)?;
    let mut rows: Vec<Row> = Vec::new();
    for config in configurations(&config, args)? {
        let executor = name(&config.executor)?;
        let pipeline = super::load_pipeline(&config, &model, &tilevae::open_devices(&config.devices)?)?;
        let plan = pipeline.plan(direction, shape)?;
        pipeline.warm_up(&plan, &crate::interrupt::stop());
        let mut runs = Vec::new();
        for _ in 0..args.runs.get() {
            memory::forget_peak();
            let (stats, hash) = run(common, &pipeline, &plan, &input, &model)?;
            runs.push(Row { executor: executor.clone(), stats, hash, peak: memory::peak(), on_devices: pipeline.device_memory() });
        }
        runs.sort_by_key(|row| row.stats.elapsed);
        if let Some(different) = runs.iter().find(|row| row.hash != runs[0].hash) {
            anyhow::bail!("two runs of {executor} gave different samples: {} and {}", runs[0].hash, different.hash);
        }
        rows.push(runs.swap_remove(runs.len() / 2));
    }
    let first = rows[0].seconds();
    let mut text = format!(
        "{:<14}{:>8}{:>10}{:>10}{:>12}{:>7}{:>7}{:>13}  sha256\n",
        "executor", "workers", "seconds", "speed-up", "efficiency", "busy", "loss", "peak memory"
    );
    let mut json = Vec::new();
    for row in &rows {
        let Row { executor, stats, hash, peak, on_devices } = row;
        let (seconds, workers) = (row.seconds(), stats.workers.len());
        // Against the first row of the same executor, for each worker.
        let base = rows.iter().find(|base| base.executor == *executor).unwrap_or(row);
        let efficiency = base.seconds() * base.stats.workers.len() as f64 / (seconds * workers as f64);
        let (busy, loss) = (stats.busy_share(), stats.schedule_loss());
        let memory = peak.map_or_else(|| "unknown".to_owned(), bytes);
        text += &format!(
            "{executor:<14}{workers:>8}{seconds:>10.2}{:>10.2}{:>11.0}%{:>6.0}%{loss:>7.2}{memory:>13}  {}\n",
            first / seconds,
            100.0 * efficiency,
            100.0 * busy,
            &hash[..16]
        );
        json.push(json!({
            "executor": executor, "seconds": seconds, "speed_up": first / seconds, "efficiency": efficiency, "busy": busy, "schedule_loss": loss,
            "peak_memory_bytes": peak, "device_memory_bytes": on_devices, "sha256": hash, "tiles": stats.tiles, "workers": stats.workers
        }));
    }
    text += &super::run::of_devices(&rows[rows.len() - 1].on_devices);
    let equal = rows.iter().all(|row| row.hash == rows[0].hash);
    text += if equal { "all gave the same bytes\n" } else { "they did not give the same bytes\n" };
    print(common, &text, &json!({"direction": direction, "shape": shape, "same_bytes": equal, "runs": json}), false)
}

/// A run.
struct Row {
    executor: String,
    stats: RunStats,
    hash: String,
    peak: Option<usize>,
    /// What GPUs hold.
    on_devices: BTreeMap<String, u64>,
}

impl Row {
    fn seconds(&self) -> f64 {
        self.stats.elapsed.as_secs_f64()
    }
}

/// One configuration for each executor and, where it uses many, each number of workers.
fn configurations(config: &Config, args: &Bench) -> anyhow::Result<Vec<Config>> {
    let mut configurations = Vec::new();
    for kind in &args.executor {
        let executor = executor_of(config, kind)?;
        if executor.build().check_workers(2).is_err() {
            let mut config = Config { executor, ..config.clone() };
            config.devices.cpu.workers = Count::Auto;
            configurations.push(config);
            continue;
        }
        for &workers in &args.workers {
            let mut config = Config { executor, ..config.clone() };
            config.devices.cpu.workers = Count::Exactly(workers);
            configurations.push(config);
        }
    }
    Ok(configurations)
}

/// The configured executor where it is of this kind, else one with the kind's defaults.
fn executor_of(config: &Config, kind: &str) -> anyhow::Result<ExecutorConfig> {
    if name(&config.executor)? == kind {
        return Ok(config.executor);
    }
    let executor: Result<ExecutorConfig, _> = serde_json::from_value(json!({"kind": kind}));
    Ok(executor.map_err(|_| UsageError(format!("--executor {kind} is not one of sequential, multi-device and pipelined")))?)
}

fn name(executor: &ExecutorConfig) -> anyhow::Result<String> {
    let kind = serde_json::to_value(executor)?;
    Ok(kind.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// What is run.
enum Input {
    HostTensor(HostTensor),
    Samples(Samples),
}

impl Input {
    fn read(path: &Path, direction: Direction, shape: [usize; 5], model: &Model, config: &Config) -> anyhow::Result<Self> {
        if plan::clip_size(path)?.is_some() || (direction == Direction::Decode && !is_tensor(path)?) {
            let count: usize = shape.iter().product();
            let mut values = Vec::new();
            let no_room = |_| UsageError(format!("noise of {} px does not fit in memory; use a smaller size", path.display()));
            values.try_reserve_exact(count).map_err(no_room)?;
            values.extend(normal_noise(0, 0).take(count));
            return Ok(Self::HostTensor(HostTensor::new(shape, values).context("as many values as the shape says")?));
        }
        Ok(match direction {
            Direction::Decode => Self::HostTensor(Tensors::read(path)?.input(direction, &model.spec, &config.io)?.read()?.values),
            Direction::Encode => Self::Samples(Samples::read(&[path.to_owned()], &model.spec, &config.io)?),
        })
    }

    fn source(&self) -> &dyn TileSource {
        match self {
            Self::HostTensor(tensor) => tensor,
            Self::Samples(samples) => samples.source(),
        }
    }
}

fn is_tensor(path: &Path) -> Result<bool, io::IoError> {
    Ok(io::format_of(path)?.kind() == FormatKind::Tensors)
}

fn run(common: &Common, pipeline: &Pipeline, plan: &RunPlan, input: &Input, model: &Model) -> anyhow::Result<(RunStats, String)> {
    match plan.direction {
        Direction::Decode => {
            let mut samples = SampleFile::scratch(plan.output_shape)?;
            let mut watch = Watch::new(common, "decode");
            let stats = during(|| pipeline.run(plan, input.source(), &mut samples, super::run_options(&mut watch)))?;
            Ok((stats, samples.sha256()?))
        }
        Direction::Encode => {
            let fitted = FittedFrames::new(input.source(), model.spec.frames, pipeline.config().io.frames)?;
            let mut watch = Watch::new(common, "encode");
            let encoded = during(|| pipeline.encode_planned(plan, &fitted, super::run_options(&mut watch)))?;
            Ok((encoded.stats, io::sha256(&encoded.latents)))
        }
    }
}
