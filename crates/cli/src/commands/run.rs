use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use tilevae::io::{self, DecodeJob, EncodeJob, Files, IoError, Output, RoundTrip, RoundTripJob, Written};
use tilevae::vae_core::Components;
use tilevae::{Config, Model, Pipeline, RunStats};

use crate::args::{self, Common, Traces};
use crate::failure::UsageError;
use crate::interrupt::during;
use crate::memory;
use crate::output::{self, bytes, print};
use crate::timeline::Timeline;
use crate::watch::Watch;

pub(crate) fn decode(common: &Common, args: &args::Decode) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = files(common, &config, std::slice::from_ref(&args.latents));
    let output = Output::samples(&args.output, args.output_format);
    let output = named(&mut files, &args.output, output)?.with_fps(args.fps)?;
    check_traces(&args.traces, &mut files)?;
    let model = super::open_model(&config)?.only(Components::Decoder);
    let job = DecodeJob::with_files(&(&config, &model), &args.latents, &output, args.hash, &mut files)?;
    let pipeline = load(&config, &model)?;
    super::warm_up(&pipeline, job.plan());
    let mut watch = Watch::new(common, "decode");
    let decoded = during(|| job.decode(&pipeline, super::run_options(&mut watch)))?;
    drop(watch);
    let mut written = decoded.finish()?;
    written.files.extend(write_traces(&args.traces, &[("decode", &written.stats)])?);
    report(common, &files, &written, &pipeline)
}

pub(crate) fn encode(common: &Common, args: &args::Encode) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = files(common, &config, &args.samples);
    let output = Output::latents(&args.output, args.output_format);
    let output = named(&mut files, &args.output, output)?;
    check_traces(&args.traces, &mut files)?;
    output.latent_tensors(&config.io)?;
    let output = output.remembering_fps(args.fps)?;
    let model = super::open_model(&config)?.only(Components::Encoder);
    let job = EncodeJob::with_files(&(&config, &model), &args.samples, &output)?;
    let pipeline = load(&config, &model)?;
    super::warm_up(&pipeline, job.plan());
    let encoded = during(|| job.encode(&pipeline, super::run_options(&mut Watch::new(common, "encode"))))?;
    let mut written = encoded.finish(args.hash)?;
    written.files.extend(write_traces(&args.traces, &[("encode", &written.stats)])?);
    report(common, &files, &written, &pipeline)
}

pub(crate) fn roundtrip(common: &Common, args: &args::Roundtrip) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = files(common, &config, &args.samples);
    let output = match &args.output {
        Some(path) => Some(named(&mut files, path, Output::samples(path, args.output_format))?.with_fps(args.fps)?),
        None if args.fps.is_some() => return Err(UsageError("--fps is the rate of the clip that -o writes, which is not given".to_owned()).into()),
        None => None,
    };
    check_traces(&args.traces, &mut files)?;
    let model = super::open_model(&config)?;
    let mut job = RoundTripJob::with_files(&(&config, &model), &args.samples, output.as_ref(), &mut files)?;
    let pipeline = load(&config, &model)?;
    for plan in job.plans() {
        super::warm_up(&pipeline, plan);
    }
    let encoded = during(|| job.encode(&pipeline, super::run_options(&mut Watch::new(common, "encode"))))?;
    let decode = during(|| job.decode(&pipeline, &encoded.latents, super::run_options(&mut Watch::new(common, "decode"))))?;
    let RoundTrip { files: mut written, shape, comparison, encode, decode } = job.finish(&pipeline, encoded.stats, decode)?;
    written.extend(write_traces(&args.traces, &[("encode", &encode), ("decode", &decode)])?);
    let (psnr, ssim) = (comparison.psnr(), comparison.ssim());
    let seconds = (encode.elapsed + decode.elapsed).as_secs_f64();
    let tiles = encode.tiles + decode.tiles;
    let clip = if shape[2] > 1 { format!("{} frames, ", shape[2]) } else { String::new() };
    let peak = memory::peak();
    let memory = peak.map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
    let mut text = format!("PSNR {psnr:.2} dB, SSIM {ssim:.4}, {clip}{tiles} tiles in {seconds:.2} s{memory}\n");
    text += &format!("encode {:.2} s\n{}", encode.elapsed.as_secs_f64(), of_workers(&encode));
    text += &format!("decode {:.2} s\n{}", decode.elapsed.as_secs_f64(), of_workers(&decode));
    text += &of_devices(&pipeline.device_memory());
    for file in &written {
        text += &format!("wrote {}\n", shown(file));
    }
    let finite = psnr.is_finite().then_some(psnr);
    let json = json!({
        "psnr_db": finite, "ssim": ssim, "files": written.iter().map(|file| output::path(file)).collect::<Vec<_>>(), "frames": shape[2], "tiles": tiles, "seconds": seconds, "peak_memory_bytes": peak,
        "encode": encode, "decode": decode, "device_memory_bytes": pipeline.device_memory()
    });
    print(common, &text, &json, files.take_stdout())
}

/// The files that a command reads.
pub(super) fn files(common: &Common, config: &Config, inputs: &[PathBuf]) -> Files {
    let mut files = Files::new(config, inputs);
    if let Some(given) = &common.config {
        files.read("the configuration", given);
    }
    files
}

/// An output that replaces no input. An unknown format is reported before that.
pub(super) fn named(files: &mut Files, path: &Path, output: Result<Output, IoError>) -> Result<Output, IoError> {
    if matches!(output, Ok(_) | Err(IoError::Write { .. } | IoError::FolderInUse { .. } | IoError::Terminal { .. } | IoError::NotLatents { .. })) {
        files.write("-o", path)?;
    }
    output
}

/// The pipeline. Devices are opened before weights load, so that missing ones are reported early.
pub(super) fn load(config: &Config, model: &Model) -> Result<Pipeline, tilevae::Error> {
    super::load_pipeline(config, model, &tilevae::open_devices(&config.devices)?)
}

fn check_traces(traces: &Traces, files: &mut Files) -> anyhow::Result<()> {
    for (option, path) in [("--trace", &traces.trace), ("--timeline", &traces.timeline)] {
        if let Some(path) = path {
            files.write(option, path)?;
            io::check_writable(path, None)?;
        }
    }
    Ok(())
}

/// A file as people call it.
pub(super) fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard output".to_owned() } else { file.display().to_string() }
}

fn write_traces(files: &Traces, runs: &[(&'static str, &RunStats)]) -> Result<Vec<PathBuf>, io::IoError> {
    let mut timeline = Timeline::default();
    for (verb, stats) in runs {
        timeline.add(verb, stats);
    }
    timeline.write(files)
}

fn report(common: &Common, files: &Files, written: &Written, pipeline: &Pipeline) -> anyhow::Result<()> {
    let Written { files: written, shape, stats, sha256 } = written;
    let seconds = stats.elapsed.as_secs_f64();
    let names = written.iter().map(|file| shown(file)).collect::<Vec<_>>().join(", ");
    let shape_text = shape.map(|side| side.to_string()).join("x");
    let workers = if stats.workers.len() > 1 { format!(" on {} workers", stats.workers.len()) } else { String::new() };
    let peak = memory::peak();
    let mut text = format!("wrote {names}: {shape_text} in {}{workers}, {seconds:.2} s", tiles_of(stats));
    if let Some(peak) = peak {
        text += &format!(", peak memory {}", bytes(peak));
    }
    text += "\n";
    text += &of_workers(stats);
    text += &of_devices(&pipeline.device_memory());
    let mut json = json!({
        "files": written.iter().map(|file| output::path(file)).collect::<Vec<_>>(), "shape": shape, "tiles": stats.tiles, "stages": stats.stages, "frames": stats.frames, "seconds": seconds, "workers": stats.workers,
        "schedule_loss": stats.schedule_loss(), "upcast_tiles": stats.upcast_tiles, "peak_memory_bytes": peak,
        "device_memory_bytes": pipeline.device_memory()
    });
    if let Some(sha256) = sha256 {
        text += &format!("sha256 {sha256}\n");
        json["sha256"] = sha256.clone().into();
    }
    print(common, &text, &json, files.take_stdout())
}

fn tiles_of(stats: &RunStats) -> String {
    let tiles = tiles(stats.tiles);
    if stats.stages > 1 { format!("{tiles} of {} stages", stats.stages) } else { tiles }
}

fn tiles(count: usize) -> String {
    if count == 1 { "1 tile".to_owned() } else { format!("{count} tiles") }
}

/// The memory that GPUs hold.
pub(super) fn of_devices(held: &BTreeMap<String, u64>) -> String {
    held.iter().map(|(name, &count)| format!("  {name} holds {} of its memory\n", bytes(usize::try_from(count).unwrap_or(usize::MAX)))).collect()
}

/// What each worker did, and what failed and was retried.
fn of_workers(stats: &RunStats) -> String {
    let mut text = String::new();
    let width = stats.workers.iter().map(|worker| worker.name.len()).max().unwrap_or(0);
    for worker in &stats.workers {
        let busy = 100.0 * worker.busy.as_secs_f64() / stats.elapsed.as_secs_f64();
        let [up, down] = [worker.uploaded_bytes, worker.downloaded_bytes].map(|count| bytes(usize::try_from(count).unwrap_or(usize::MAX)));
        text += &format!("  {:<width$}  {}, busy {busy:.0} % of the time, {up} in, {down} out\n", worker.name, tiles(worker.tiles));
    }
    if stats.workers.len() > 1 {
        text += &format!("  the run took {:.2} times as long as if all had been busy to the end\n", stats.schedule_loss());
    }
    for worker in stats.workers.iter().filter(|worker| worker.faults > 0) {
        text += &format!("  {} failed {}", worker.name, if worker.faults == 1 { "once".to_owned() } else { format!("{} times", worker.faults) });
        text += &match &worker.retired {
            Some(cause) => format!(" and was retired: {cause}\n"),
            None => "; retried on another worker\n".to_owned(),
        };
    }
    if stats.upcast_tiles > 0 {
        text += &format!(
            "  {} not finite and run again in f32\n",
            if stats.upcast_tiles == 1 { "1 tile was".to_owned() } else { format!("{} tiles were", stats.upcast_tiles) }
        );
    }
    text
}
