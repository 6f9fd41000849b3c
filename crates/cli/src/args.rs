use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use tilevae::Direction;
use tilevae::io::{self, Format as FileFormat, FormatKind, Fps};

/// Decodes and encodes images and video clips through the VAEs of diffusion models, in tiles and bounded memory.
#[derive(Debug, Parser)]
#[command(
    name = "tilevae",
    version,
    max_term_width = 120,
    after_help = "Example: tilevae decode latents.safetensors -o image.png --model path/to/sdxl/vae\n\n\
        Exit codes: 0 success, 1 the run failed, 2 invalid arguments or configuration, 130 interrupted."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Configuration file; `tilevae config` prints one with every key.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Checkpoint: a diffusers folder, the folder of a pipeline, a safetensors file, or a file of torch.save.
    #[arg(long, global = true, value_name = "DIR|FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Devices that run tiles, separated by commas: names from `tilevae devices`, or remote://HOST:PORT/N.
    #[arg(long, global = true, value_name = "NAME", value_delimiter = ',')]
    pub(crate) device: Vec<String>,
    /// Sets one key of the configuration; repeatable. The value is TOML; a single word needs no quotes.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Do not read or write the cache of compiled GPU kernels.
    #[arg(long, global = true)]
    pub(crate) no_cache: bool,
    /// Format of results. With json, standard error has one JSON object per line for each event of the run.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Print errors only: no progress, events or warnings.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print more messages; twice for debugging.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// The output format, for outputs without a file ending.
pub(crate) type OutputFormat = &'static dyn FileFormat;

/// The endings of the formats of a kind.
fn endings_of(kind: FormatKind, filter: impl Fn(&'static dyn FileFormat) -> bool) -> String {
    io::endings(|format| format.kind() == kind && filter(format))
}

fn samples_output_help(image: &str) -> String {
    let [images, clips, tensors] = [FormatKind::Image, FormatKind::Clip, FormatKind::Tensors].map(|kind| endings_of(kind, FileFormat::is_written));
    format!(
        "{image} ({images}); clip ({clips}; video formats need ffmpeg); or raw samples ({tensors}). Files of a batch are named NAME-0, NAME-1, ... \
         - is standard output. An existing file is replaced"
    )
}

fn samples_input_help() -> String {
    let [images, clips, tensors] = [FormatKind::Image, FormatKind::Clip, FormatKind::Tensors].map(|kind| endings_of(kind, |_| true));
    format!(
        "Images of one size (a batch: {images}); one clip ({clips}; or an animated image); or raw samples ({tensors}; the tensor `samples` or the only \
         tensor). - is standard input"
    )
}

/// The formats that can be written under any name.
fn output_formats() -> impl TypedValueParser<Value = OutputFormat> {
    let formats = io::formats().iter().filter(|format| format.is_written() && format.endings().contains(&format.name()));
    let values = formats.map(|format| {
        let aliases = format.endings().iter().filter(|&&ending| ending != format.name());
        PossibleValue::new(format.name()).aliases(aliases.copied())
    });
    PossibleValuesParser::new(values.collect::<Vec<_>>())
        .try_map(|name| io::format_named(&name).ok_or_else(|| format!("{name} is not a file format")))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Decode latents to an image, a clip or raw samples.
    Decode(Decode),
    /// Encode images, a clip or raw samples to latents.
    Encode(Encode),
    /// Encode and decode, and print PSNR and SSIM.
    Roundtrip(Roundtrip),
    /// Compare a run as configured with the whole in one tile, or with a file.
    Verify(Verify),
    /// Show tiles, work and memory of a run, without loading weights.
    Plan(Plan),
    /// Time a run with several executors and numbers of CPU workers, and compare the outputs.
    Bench(Bench),
    /// Serve devices of this machine to other machines, as remote://HOST:PORT/N.
    Worker(Worker),
    /// List the VAE families, and describe the configured model.
    Models,
    /// List the available devices.
    Devices,
    /// Print the effective configuration, or the commented defaults.
    Config(Config),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether the command serves devices.
    pub(crate) fn is_worker(&self) -> bool {
        matches!(self, Self::Worker(_))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Decode {
    #[arg(help = format!(
        "Latents ({}): [b,c,h,w] or [b,c,t,h,w], with or without b, in the tensor `latents` or the only tensor, or as saved by ComfyUI, kohya's scripts and \
         musubi-tuner. - is standard input",
        endings_of(FormatKind::Tensors, |_| true)
    ))]
    pub(crate) latents: PathBuf,
    #[arg(short, long, value_name = "FILE|DIR", help = samples_output_help("Image"))]
    pub(crate) output: PathBuf,
    /// Format of an output without a file ending, such as -.
    #[arg(long, value_parser = output_formats(), value_name = "KIND")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Frames per second of the clip: 16, 23.976 or 24000/1001. Default: the rate stored with the latents, or 16.
    #[arg(long, value_name = "RATE")]
    pub(crate) fps: Option<Fps>,
    /// Print the SHA-256 of the samples (little-endian f32, row-major).
    #[arg(long)]
    pub(crate) hash: bool,
    #[command(flatten)]
    pub(crate) traces: Traces,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Encode {
    #[arg(required = true, help = samples_input_help())]
    pub(crate) samples: Vec<PathBuf>,
    #[arg(short, long, value_name = "FILE", help = format!(
        "Latents ({}); - is standard output. An existing file is replaced",
        endings_of(FormatKind::Tensors, FileFormat::is_written)
    ))]
    pub(crate) output: PathBuf,
    /// Format of an output without a file ending, such as -: safetensors or npy.
    #[arg(long, value_parser = output_formats(), value_name = "KIND")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Frames per second to store with the latents. Default: the rate of the clip.
    #[arg(long, value_name = "RATE")]
    pub(crate) fps: Option<Fps>,
    /// Print the SHA-256 of the latents (little-endian f32, row-major).
    #[arg(long)]
    pub(crate) hash: bool,
    #[command(flatten)]
    pub(crate) traces: Traces,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Roundtrip {
    #[arg(required = true, help = samples_input_help())]
    pub(crate) samples: Vec<PathBuf>,
    #[arg(short, long, value_name = "FILE|DIR", help = samples_output_help("The decoded samples: image"))]
    pub(crate) output: Option<PathBuf>,
    /// Format of an output without a file ending, such as -.
    #[arg(long, value_parser = output_formats(), value_name = "KIND", requires = "output")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Frames per second of the written clip. Default: the rate of the input clip, or 16.
    #[arg(long, value_name = "RATE")]
    pub(crate) fps: Option<Fps>,
    #[command(flatten)]
    pub(crate) traces: Traces,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "seam: the jump of the difference across borders of tiles, over its jump elsewhere. 1: borders do not show.\n\
    The difference picture shows absolute differences, multiplied so that the greatest is white.")]
pub(crate) struct Verify {
    /// Latents (a decode), or an image, a clip or raw samples (an encode).
    pub(crate) input: PathBuf,
    #[arg(long, value_name = "FILE", help = "Samples that a decode is to give, in place of a run in one tile")]
    pub(crate) against: Option<PathBuf>,
    #[arg(short, long, value_name = "FILE", help = samples_output_help("The difference picture: image"))]
    pub(crate) output: Option<PathBuf>,
    /// Format of an output without a file ending, such as -.
    #[arg(long, value_parser = output_formats(), value_name = "KIND", requires = "output")]
    pub(crate) output_format: Option<OutputFormat>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Traces {
    /// Write a trace of all stages of all tiles in Chrome's trace format, for <https://ui.perfetto.dev>.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Draw the trace: one row per worker, one bar per tile.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) timeline: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Serves the devices of --device or of the configuration; a CPU counts as devices.cpu.workers devices.\n\
    The environment variable TILEVAE_TOKEN holds a secret that both sides must have. Without it, only this machine is served. The connection is not encrypted.")]
pub(crate) struct Worker {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7700")]
    pub(crate) listen: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Latents, an image, a clip or raw samples (- is standard input), or a size in px: HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH.
    pub(crate) input: PathBuf,
    /// Direction. Default: decode for latents and sizes, encode for images and samples.
    #[arg(long, value_parser = direction, value_name = "decode|encode")]
    pub(crate) direction: Option<Direction>,
    /// Draw the tiles to an SVG file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "speed-up: relative to the first line. efficiency: per worker, relative to the first line of the same executor; comparable with\n\
    --set devices.cpu.threads_per_worker=1. busy: share of the time in which the devices of the workers had work.\n\
    loss: the time divided by that of an ideal schedule, in which all workers are busy to the end."
)]
pub(crate) struct Bench {
    /// Latents, an image, a clip or raw samples, or the size of a noise input in px: HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH.
    pub(crate) input: PathBuf,
    /// Direction. Default: decode for latents and sizes, encode for images and samples.
    #[arg(long, value_parser = direction, value_name = "decode|encode")]
    pub(crate) direction: Option<Direction>,
    /// Executors to run, one after the other; `sequential` runs once.
    #[arg(long, value_delimiter = ',', value_name = "NAME", default_value = "sequential,multi-device,pipelined")]
    pub(crate) executor: Vec<String>,
    /// Numbers of CPU workers for executors that use several.
    #[arg(long, value_delimiter = ',', value_parser = at_least_one, value_name = "N", default_value = "1,2,4")]
    pub(crate) workers: Vec<NonZeroUsize>,
    /// Number of runs of each; the median is shown.
    #[arg(long, value_parser = at_least_one, value_name = "N", default_value = "1")]
    pub(crate) runs: NonZeroUsize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Config {
    /// Print the commented defaults instead of the effective configuration.
    #[arg(long)]
    pub(crate) defaults: bool,
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a whole number of at least 1".to_owned())
}

fn direction(name: &str) -> Result<Direction, String> {
    match name {
        "decode" => Ok(Direction::Decode),
        "encode" => Ok(Direction::Encode),
        _ => Err("possible values are decode and encode".to_owned()),
    }
}
