use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use tilevae::io::{self, ClipKind, ClipSink, FileKind, Fps, HashingSink, Origin, PictureSink, SampleFile, TensorSink, Tensors};
use tilevae::metrics::Comparison;
use tilevae::tiling::{Region, Sink};
use tilevae::vae_core::Components;
use tilevae::{Config, Direction, FittedFrames, OpenDevice, Pipeline, RunPlan, RunStats, TileSource};

use crate::args::{self, Common, OutputFormat, Traces};
use crate::commands::files::Files;
use crate::commands::samples::{Input, Samples};
use crate::failure::UsageError;
use crate::interrupt::during;
use crate::memory;
use crate::output::{self, bytes, print};
use crate::timeline::Timeline;
use crate::watch::Watch;

pub(crate) fn decode(common: &Common, args: &args::Decode) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = Files::new(common, &config, std::slice::from_ref(&args.latents));
    let output = Output::new(&args.output, args.output_format, FileKind::ALL, &mut files)?;
    output.check_fps(args.fps)?;
    check_traces(&args.traces, &mut files)?;
    let input = Input::open(&args.latents)?;
    let tensors = Tensors::read(input.path())?;
    let model = super::open_model(&config)?.only(Components::Decoder);
    let tensor = tensors.input(Direction::Decode, &model.spec, &config.io)?;
    let plan = RunPlan::new(&config, model.entry.name, &model.spec, Direction::Decode, tensor.shape())?;
    let devices = open_devices(&config)?;
    let mut shape = plan.output_shape;
    let origin = tensor.origin();
    if let Some(frames) = origin.frames.filter(|&frames| model.spec.frames.nearest(frames)[1] == shape[2]) {
        shape[2] = frames;
    }
    let crop = origin.size.filter(|&size| is_padding(size, [shape[3], shape[4]], model.spec.spatial_ratio));
    if let Some(size) = crop.filter(|_| !output.is_raw()) {
        [shape[3], shape[4]] = size;
    }
    let fps = args.fps.or(origin.fps).unwrap_or(Fps::DEFAULT);
    let frames_in_parts = if output.kind.is_clip() && plan.tiles.is_tiled() { bytes_of(shape) / size_of::<f32>() as u64 } else { 0 };
    let hashed = if args.hash { bytes_of(plan.output_shape) } else { 0 };
    let mut sink = output.sink(shape, tensor.rank(), fps, &config, &mut files)?;
    check_scratch([plan.scratch_bytes(), frames_in_parts, hashed])?;
    let tensor = tensor.read()?;
    let pipeline = super::load_pipeline(&config, &model, &devices)?;
    super::warm_up(&pipeline, &plan);
    let mut watch = Watch::new(common, "decode");
    let (stats, hash) = if args.hash {
        let mut hashing = HashingSink::new(sink.as_sink(), plan.output_shape)?;
        let stats = during(|| pipeline.run(&plan, &tensor.block, &mut hashing, super::run_options(&mut watch)))?;
        (stats, Some(hashing.sha256()?))
    } else {
        (during(|| pipeline.run(&plan, &tensor.block, sink.as_sink(), super::run_options(&mut watch)))?, None)
    };
    drop(watch);
    let mut written = sink.write()?;
    written.extend(write_traces(&args.traces, &[("decode", &stats)])?);
    report(common, &files, &written, shape, &stats, &pipeline, hash)
}

pub(crate) fn encode(common: &Common, args: &args::Encode) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = Files::new(common, &config, &args.samples);
    let output = Output::new(&args.output, args.output_format, FileKind::WRITTEN_TENSORS, &mut files)?;
    if !output.is_raw() {
        let what = if output.kind.is_picture() { "a picture" } else { "a clip" };
        return Err(UsageError(format!("{} would be {what}; latents are written as .safetensors or .npy", args.output.display())).into());
    }
    check_traces(&args.traces, &mut files)?;
    if config.io.posterior == tilevae::Posterior::Moments && output.kind == FileKind::Npy {
        return Err(io::IoError::OneTensor { path: args.output.clone() }.into());
    }
    if args.fps.is_some() && output.kind == FileKind::Npy {
        return Err(UsageError(format!("--fps is noted in .safetensors files; {} has no room for it", args.output.display())).into());
    }
    let model = super::open_model(&config)?.only(Components::Encoder);
    let samples = Samples::read(&args.samples, &model.spec, &config)?;
    if args.fps.is_some() && samples.is_pictures() {
        return Err(UsageError("--fps is the rate of a clip; what is encoded are pictures".to_owned()).into());
    }
    let fitted = FittedFrames::new(samples.source(), model.spec.frames, config.io.frames)?;
    let plan = RunPlan::new(&config, model.entry.name, &model.spec, Direction::Encode, fitted.shape())?;
    check_scratch([plan.scratch_bytes()])?;
    // The planned output is the moments, twice the latents.
    let tensors = if config.io.posterior == tilevae::Posterior::Moments { 3 } else { 1 };
    io::check_space(&folder_of(&args.output), bytes_of(plan.output_shape) / 2 * tensors)?;
    let devices = open_devices(&config)?;
    let origin = Origin { size: samples.picture_size(), frames: fitted.is_padded().then(|| fitted.own_frames()), fps: args.fps.or(samples.fps()) };
    let pipeline = super::load_pipeline(&config, &model, &devices)?;
    super::warm_up(&pipeline, &plan);
    let encoded = during(|| pipeline.encode_planned(&plan, &fitted, super::run_options(&mut Watch::new(common, "encode"))))?;
    let mut tensors = vec![("latents", &encoded.latents)];
    if let Some([mean, log_variance]) = &encoded.moments {
        tensors.extend([("mean", mean), ("logvar", log_variance)]);
    }
    io::write_tensors_of_kind(&args.output, output.kind, &tensors, samples.rank(), origin)?;
    let hash = args.hash.then(|| io::sha256(&encoded.latents));
    let mut written = vec![args.output.clone()];
    written.extend(write_traces(&args.traces, &[("encode", &encoded.stats)])?);
    report(common, &files, &written, encoded.latents.shape(), &encoded.stats, &pipeline, hash)
}

pub(crate) fn roundtrip(common: &Common, args: &args::Roundtrip) -> anyhow::Result<()> {
    let config = super::configuration(common)?;
    let mut files = Files::new(common, &config, &args.samples);
    let output = args.output.as_deref().map(|path| Output::new(path, args.output_format, FileKind::ALL, &mut files)).transpose()?;
    match &output {
        Some(output) => output.check_fps(args.fps)?,
        None if args.fps.is_some() => return Err(UsageError("--fps is the rate of the clip that -o writes, which is not given".to_owned()).into()),
        None => {}
    }
    check_traces(&args.traces, &mut files)?;
    let model = super::open_model(&config)?;
    let samples = Samples::read(&args.samples, &model.spec, &config)?;
    let fitted = FittedFrames::new(samples.source(), model.spec.frames, config.io.frames)?;
    let planned = |direction, shape| RunPlan::new(&config, model.entry.name, &model.spec, direction, shape);
    let there = planned(Direction::Encode, fitted.shape())?;
    let [batch, _, frames, height, width] = there.output_shape;
    let back = planned(Direction::Decode, [batch, model.spec.latent_channels, frames, height, width])?;
    let channels = [model.spec.input_channels, model.spec.output_channels];
    if channels[0] != channels[1] {
        return Err(UsageError(format!("the model takes {} channels and gives {}: they cannot be compared", channels[0], channels[1])).into());
    }
    let devices = open_devices(&config)?;
    // A side that is no multiple of the ratio comes back shorter from raw samples, and longer (padded) from a picture.
    let size = samples.size();
    let size = [0, 1].map(|axis| size[axis].min(back.output_shape[3 + axis]));
    let shape = [batch, channels[1], fitted.own_frames(), size[0], size[1]];
    let fps = args.fps.or(samples.fps()).unwrap_or(Fps::DEFAULT);
    let mut sink = output.map(|output| output.sink(shape, samples.rank(), fps, &config, &mut files)).transpose()?;
    let mut decoded = SampleFile::scratch(shape)?;
    check_scratch([there.scratch_bytes().max(back.scratch_bytes())])?;

    let pipeline = super::load_pipeline(&config, &model, &devices)?;
    for plan in [&there, &back] {
        super::warm_up(&pipeline, plan);
    }
    let encoded = during(|| pipeline.encode_planned(&there, &fitted, super::run_options(&mut Watch::new(common, "encode"))))?;
    let stats = during(|| pipeline.run(&back, &encoded.latents, &mut decoded, super::run_options(&mut Watch::new(common, "decode"))))?;
    let mut comparison = Comparison::default();
    for frame in 0..shape[2] {
        let region = Region { start: [frame, 0, 0], size: [1, size[0], size[1]] };
        let read = |source: &dyn TileSource, what| source.read(&region).map_err(|error| anyhow::anyhow!(error)).context(what);
        let original = read(&fitted, "the samples cannot be read")?;
        let mut back = read(&decoded, "the scratch file cannot be read")?;
        if samples.picture_size().is_some() {
            back.data_mut().iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
        }
        comparison.add(&original, &back);
        if let Some(sink) = &mut sink {
            sink.as_sink().take([frame, 0, 0], [shape[2], size[0], size[1]], back).map_err(|error| anyhow::anyhow!(error))?;
        }
    }
    let mut written = sink.map(SampleSink::write).transpose()?.unwrap_or_default();
    written.extend(write_traces(&args.traces, &[("encode", &encoded.stats), ("decode", &stats)])?);
    let (psnr, ssim) = (comparison.psnr(), comparison.ssim());
    let seconds = (encoded.stats.elapsed + stats.elapsed).as_secs_f64();
    let tiles = encoded.stats.tiles + stats.tiles;
    let clip = if shape[2] > 1 { format!("{} frames, ", shape[2]) } else { String::new() };
    let peak = memory::peak();
    let memory = peak.map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
    let mut text = format!("PSNR {psnr:.2} dB, SSIM {ssim:.4}, {clip}{tiles} tiles in {seconds:.2} s{memory}\n");
    text += &format!("encode {:.2} s\n{}", encoded.stats.elapsed.as_secs_f64(), of_workers(&encoded.stats));
    text += &format!("decode {:.2} s\n{}", stats.elapsed.as_secs_f64(), of_workers(&stats));
    text += &of_devices(&pipeline.device_memory());
    for file in &written {
        text += &format!("wrote {}\n", shown(file));
    }
    let finite = psnr.is_finite().then_some(psnr);
    let json = json!({
        "psnr_db": finite, "ssim": ssim, "files": written.iter().map(|file| output::path(file)).collect::<Vec<_>>(), "frames": shape[2], "tiles": tiles, "seconds": seconds, "peak_memory_bytes": peak,
        "encode": encoded.stats, "decode": stats, "device_memory_bytes": pipeline.device_memory()
    });
    print(common, &text, &json, files.take_stdout())
}

/// The devices, so that one that is not there is told before weights load.
fn open_devices(config: &Config) -> Result<Vec<OpenDevice>, tilevae::Error> {
    tilevae::open_devices(&config.devices)
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

/// The folder that has to have room for an output: where it goes to a pipe, that of temporary files.
fn folder_of(output: &Path) -> PathBuf {
    let file = io::written_file(output).ok().flatten();
    file.and_then(|file| Some(file.parent()?.to_owned())).unwrap_or_else(std::env::temp_dir)
}

/// Checks that scratch files of these bytes find room, before work is spent on them.
fn check_scratch<const N: usize>(bytes: [u64; N]) -> Result<(), io::IoError> {
    io::check_space(&std::env::temp_dir(), bytes.into_iter().fold(0, u64::saturating_add))
}

/// Bytes of values of a shape, in f32.
fn bytes_of(shape: [usize; 5]) -> u64 {
    shape.iter().fold(size_of::<f32>() as u64, |bytes, &side| bytes.saturating_mul(side as u64))
}

/// A file as people call it.
fn shown(file: &Path) -> String {
    if file == Path::new("-") { "standard output".to_owned() } else { file.display().to_string() }
}

fn write_traces(files: &Traces, runs: &[(&'static str, &RunStats)]) -> Result<Vec<PathBuf>, io::IoError> {
    let mut timeline = Timeline::default();
    for (verb, stats) in runs {
        timeline.add(verb, stats);
    }
    timeline.write(files)
}

fn report(
    common: &Common,
    files: &Files,
    written: &[PathBuf],
    shape: [usize; 5],
    stats: &RunStats,
    pipeline: &Pipeline,
    sha256: Option<String>,
) -> anyhow::Result<()> {
    let seconds = stats.elapsed.as_secs_f64();
    let names = written.iter().map(|file| shown(file)).collect::<Vec<_>>().join(", ");
    let shape_text = shape.map(|side| side.to_string()).join("x");
    let workers = if stats.workers.len() > 1 { format!(" on {} workers", stats.workers.len()) } else { String::new() };
    let peak = memory::peak();
    let mut text = format!("wrote {names}: {shape_text} in {}{workers}, {seconds:.2} s", tiles(stats.tiles));
    if let Some(peak) = peak {
        text += &format!(", peak memory {}", bytes(peak));
    }
    text += "\n";
    text += &of_workers(stats);
    text += &of_devices(&pipeline.device_memory());
    let mut json = json!({
        "files": written.iter().map(|file| output::path(file)).collect::<Vec<_>>(), "shape": shape, "tiles": stats.tiles, "frames": stats.frames, "seconds": seconds, "workers": stats.workers,
        "schedule_loss": stats.schedule_loss(), "upcast_tiles": stats.upcast_tiles, "peak_memory_bytes": peak,
        "device_memory_bytes": pipeline.device_memory()
    });
    if let Some(sha256) = sha256 {
        text += &format!("sha256 {sha256}\n");
        json["sha256"] = sha256.into();
    }
    print(common, &text, &json, files.take_stdout())
}

fn tiles(count: usize) -> String {
    if count == 1 { "1 tile".to_owned() } else { format!("{count} tiles") }
}

/// The memory that GPUs hold.
pub(super) fn of_devices(held: &BTreeMap<String, u64>) -> String {
    held.iter().map(|(name, &count)| format!("  {name} holds {} of its memory\n", bytes(usize::try_from(count).unwrap_or(usize::MAX)))).collect()
}

/// What each worker did, and what went wrong and was made good.
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
            Some(cause) => format!(" and was given up: {cause}\n"),
            None => "; others made it good\n".to_owned(),
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

/// Whether `whole` is `size` padded to a multiple of `ratio`: then a picture that once had that size may be cropped to it.
fn is_padding(size: [usize; 2], whole: [usize; 2], ratio: usize) -> bool {
    (0..2).all(|axis| size[axis] > 0 && size[axis].next_multiple_of(ratio) == whole[axis])
}

/// Where samples go, checked before work is spent on them.
struct Output {
    path: PathBuf,
    kind: FileKind,
}

impl Output {
    /// `kinds` are those to choose from.
    fn new(path: &Path, format: Option<OutputFormat>, kinds: &'static str, files: &mut Files) -> anyhow::Result<Self> {
        let kind = output_kind(path, format, kinds)?;
        files.write("-o", path)?;
        io::check_writable(path, Some(kind))?;
        Ok(Self { path: path.to_owned(), kind })
    }

    /// A rate is of no use but to a clip.
    fn check_fps(&self, fps: Option<Fps>) -> Result<(), UsageError> {
        let what = match self.kind {
            _ if fps.is_none() => return Ok(()),
            FileKind::Clip(ClipKind::Folder) => "frames, each a picture",
            FileKind::Clip(_) => return Ok(()),
            FileKind::Picture(_) => "a picture",
            _ => "raw samples",
        };
        Err(UsageError(format!("--fps is the rate of a clip; {} is written as {what}", shown(&self.path))))
    }

    fn is_raw(&self) -> bool {
        self.kind.is_tensors()
    }

    /// What takes samples of `shape`, and leaves out what comes beyond it.
    fn sink(self, shape: [usize; 5], rank: usize, fps: Fps, config: &Config, files: &mut Files) -> anyhow::Result<SampleSink> {
        if shape[0] > 1 && !self.is_raw() {
            if io::is_stream(&self.path) {
                let message = format!("a batch of {} is written to as many files, which {} is not; write raw samples", shape[0], shown(&self.path));
                return Err(UsageError(message).into());
            }
            for path in (0..shape[0]).map(|item| io::numbered(&self.path, item)) {
                files.write("-o", &path)?;
                io::check_writable(&path, Some(self.kind))?;
            }
        }
        Ok(match self.kind {
            FileKind::Picture(_) => SampleSink::Picture(PictureSink::of_kind(&self.path, self.kind, shape, config.io.jpeg_quality)?),
            FileKind::Clip(_) => SampleSink::Clip(ClipSink::of_kind(&self.path, self.kind, shape, fps)?),
            FileKind::Safetensors | FileKind::Npy | FileKind::Foreign => SampleSink::Raw(TensorSink::of_kind(&self.path, self.kind, shape, rank)?),
        })
    }
}

/// What is written, by the name of the output or as the arguments say.
fn output_kind(path: &Path, format: Option<OutputFormat>, kinds: &'static str) -> anyhow::Result<FileKind> {
    let given = format.map(|format| {
        FileKind::of(Path::new(match format {
            OutputFormat::Safetensors => "x.safetensors",
            OutputFormat::Npy => "x.npy",
            OutputFormat::Png => "x.png",
            OutputFormat::Jpg => "x.jpg",
            OutputFormat::Webp => "x.webp",
            OutputFormat::Tiff => "x.tiff",
            OutputFormat::Y4m => "x.y4m",
            OutputFormat::Gif => "x.gif",
        }))
    });
    let says_kind = path.extension().is_some();
    match (given.transpose()?, FileKind::of_output(path)) {
        (Some(given), Ok(named)) if says_kind && given != named => {
            Err(UsageError(format!("the name {} says another kind than --output-format; leave one out", path.display())).into())
        }
        (Some(given), _) => Ok(given),
        (None, _) if !says_kind && io::is_stream(path) => {
            Err(UsageError(format!("the name {} does not say what is written; add --output-format png, safetensors or another", path.display()))
                .into())
        }
        (None, Err(io::IoError::UnknownKind { path, .. })) => Err(io::IoError::UnknownKind { path, kinds }.into()),
        (None, named) => Ok(named?),
    }
}

/// Takes samples and writes them.
enum SampleSink {
    Picture(PictureSink),
    Clip(ClipSink),
    Raw(TensorSink),
}

impl SampleSink {
    fn as_sink(&mut self) -> &mut dyn Sink {
        match self {
            Self::Picture(sink) => sink,
            Self::Clip(sink) => sink,
            Self::Raw(sink) => sink,
        }
    }

    fn write(self) -> anyhow::Result<Vec<PathBuf>> {
        Ok(match self {
            Self::Picture(sink) => sink.write()?,
            Self::Clip(sink) => sink.write()?,
            Self::Raw(sink) => vec![sink.write()?],
        })
    }
}
