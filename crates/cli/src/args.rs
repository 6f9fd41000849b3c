use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use tilevae::Direction;
use tilevae::io::{self, Format as FileFormat, FormatKind, Fps};

/// Decodes and encodes pictures and clips through the VAEs of diffusion models, in tiles and bounded memory.
#[derive(Debug, Parser)]
#[command(
    name = "tilevae",
    version,
    max_term_width = 120,
    after_help = "Exit codes: 0 done, 1 the run failed, 2 the arguments or the configuration ask for something that cannot be, 130 interrupted."
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
    /// Checkpoint: a diffusers folder, a pipeline's folder, or a file: safetensors, or what torch.save has written.
    #[arg(long, global = true, value_name = "DIR|FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Devices, as `tilevae devices` lists them, or remote://HOST:PORT/N.
    #[arg(long, global = true, value_name = "NAME", value_delimiter = ',')]
    pub(crate) device: Vec<String>,
    /// One key of the configuration; may be given many times. The value is TOML; a word needs no quotes.
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Compile and tune kernels for GPUs anew, and do not keep them for the next run.
    #[arg(long, global = true)]
    pub(crate) no_cache: bool,
    /// How results are printed. With json, events of a run are printed to standard error, too, as one JSON object a line.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// No progress, no events and no warnings; only errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more; twice for debugging.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// The format that is written where the name of a file does not say it.
pub(crate) type OutputFormat = &'static dyn FileFormat;

/// The endings of the formats of a kind.
fn endings_of(kind: FormatKind, filter: impl Fn(&'static dyn FileFormat) -> bool) -> String {
    io::endings(|format| format.kind() == kind && filter(format))
}

fn samples_output_help(picture: &str) -> String {
    let [pictures, clips, tensors] =
        [FormatKind::Picture, FormatKind::Clip, FormatKind::Tensors].map(|kind| endings_of(kind, FileFormat::is_written));
    format!(
        "{picture} ({pictures}); clip ({clips}; all but folders, .y4m and .gif through ffmpeg); or raw samples ({tensors}). A batch is numbered NAME-0, NAME-1, \
         ... - is standard output. A file that is there is replaced"
    )
}

fn samples_input_help() -> String {
    let [pictures, clips, tensors] = [FormatKind::Picture, FormatKind::Clip, FormatKind::Tensors].map(|kind| endings_of(kind, |_| true));
    format!(
        "Pictures of one size (a batch: {pictures}); one clip ({clips}; or an animated picture); or raw samples ({tensors}; the tensor `samples` or the only \
         one). - is standard input"
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
        .try_map(|name| io::format_named(&name).ok_or_else(|| format!("{name} is no format of files")))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Latents to a picture, a clip or raw samples.
    Decode(Decode),
    /// Pictures, a clip or raw samples to latents.
    Encode(Encode),
    /// Samples to latents and back, with PSNR and SSIM.
    Roundtrip(Roundtrip),
    /// Show how an input would be cut into tiles, without loading weights.
    Plan(Plan),
    /// Time a run with several executors and numbers of CPU workers, and compare what they give.
    Bench(Bench),
    /// Serve devices of this machine to runs on others, which name them as remote://HOST:PORT/N.
    Worker(Worker),
    /// List the VAE families, and what is known of the configured model.
    Models,
    /// List the devices that can be used here.
    Devices,
    /// Print the configuration that would be used, or the commented defaults.
    Config(Config),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Whether it serves devices.
    pub(crate) fn is_worker(&self) -> bool {
        matches!(self, Self::Worker(_))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Decode {
    #[arg(help = format!(
        "Latents ({}): [b,c,h,w] or [b,c,t,h,w], with or without b, as the tensor `latents` or the only one, or as ComfyUI, kohya's scripts and musubi-tuner \
         save them. - is standard input",
        endings_of(FormatKind::Tensors, |_| true)
    ))]
    pub(crate) latents: PathBuf,
    #[arg(short, long, value_name = "FILE|DIR", help = samples_output_help("Picture"))]
    pub(crate) output: PathBuf,
    /// What is written, where the name of the output does not say it, as - does not.
    #[arg(long, value_parser = output_formats(), value_name = "KIND")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Frames a second of the clip that is written, as 16, 23.976 or 24000/1001. By default the rate that the latents' file remembers, or 16.
    #[arg(long, value_name = "RATE")]
    pub(crate) fps: Option<Fps>,
    /// Print the SHA-256 of the samples: of their values as little-endian f32, row-major.
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
        "Latents ({}); - is standard output. A file that is there is replaced",
        endings_of(FormatKind::Tensors, FileFormat::is_written)
    ))]
    pub(crate) output: PathBuf,
    /// What is written, where the name of the output does not say it, as - does not: safetensors or npy.
    #[arg(long, value_parser = output_formats(), value_name = "KIND")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Frames a second that the latents' file remembers. By default the clip's own rate.
    #[arg(long, value_name = "RATE")]
    pub(crate) fps: Option<Fps>,
    /// Print the SHA-256 of the latents: of their values as little-endian f32, row-major.
    #[arg(long)]
    pub(crate) hash: bool,
    #[command(flatten)]
    pub(crate) traces: Traces,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Roundtrip {
    #[arg(required = true, help = samples_input_help())]
    pub(crate) samples: Vec<PathBuf>,
    #[arg(short, long, value_name = "FILE|DIR", help = samples_output_help("What comes back: picture"))]
    pub(crate) output: Option<PathBuf>,
    /// What is written, where the name of the output does not say it, as - does not.
    #[arg(long, value_parser = output_formats(), value_name = "KIND", requires = "output")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Frames a second of the clip that is written. By default the clip's own rate, or 16.
    #[arg(long, value_name = "RATE")]
    pub(crate) fps: Option<Fps>,
    #[command(flatten)]
    pub(crate) traces: Traces,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Traces {
    /// Also write when each stage of each tile ran on which worker, in Chrome's trace format, for <https://ui.perfetto.dev>.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// The same as a picture: workers as rows, tiles as bars.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) timeline: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "The devices are those of --device, or of the configuration; a CPU counts as devices.cpu.workers of them.\n\
    The environment variable TILEVAE_TOKEN holds a secret that both sides must have. Without it, only this machine is served. The connection is not encrypted.")]
pub(crate) struct Worker {
    /// Address and port to listen at.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7700")]
    pub(crate) listen: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    /// Latents, a picture, a clip or raw samples, or - for standard input; or a size in px, as HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH.
    pub(crate) input: PathBuf,
    /// Which way. By default latents and sizes are decoded, pictures and samples encoded.
    #[arg(long, value_parser = direction, value_name = "decode|encode")]
    pub(crate) direction: Option<Direction>,
    /// Also draw the tiles to an SVG file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "speed-up: over the first line. efficiency: that of each worker, against the first line of the same executor; with\n\
    --set devices.cpu.threads_per_worker=1 that compares like with like. busy: the share of the workers' time in which their devices had work.\n\
    loss: the time taken against that of workers that are all busy to the end.")]
pub(crate) struct Bench {
    /// Latents, a picture, a clip or raw samples; or a size in px, as HEIGHTxWIDTH or FRAMESxHEIGHTxWIDTH, for noise.
    pub(crate) input: PathBuf,
    /// Which way. By default latents and sizes are decoded, pictures and samples encoded.
    #[arg(long, value_parser = direction, value_name = "decode|encode")]
    pub(crate) direction: Option<Direction>,
    /// Executors, one after the other. The sequential one is run once.
    #[arg(long, value_delimiter = ',', value_name = "NAME", default_value = "sequential,multi-device,pipelined")]
    pub(crate) executor: Vec<String>,
    /// Numbers of CPU workers for executors that use many.
    #[arg(long, value_delimiter = ',', value_parser = at_least_one, value_name = "N", default_value = "1,2,4")]
    pub(crate) workers: Vec<NonZeroUsize>,
    /// Runs of each, of which the median is shown.
    #[arg(long, value_parser = at_least_one, value_name = "N", default_value = "1")]
    pub(crate) runs: NonZeroUsize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Config {
    /// The embedded defaults with comments, in place of what would be used.
    #[arg(long)]
    pub(crate) defaults: bool,
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "it takes a whole number of at least 1".to_owned())
}

fn direction(name: &str) -> Result<Direction, String> {
    match name {
        "decode" => Ok(Direction::Decode),
        "encode" => Ok(Direction::Encode),
        _ => Err("possible values are decode and encode".to_owned()),
    }
}
