//! The tilevae command line, as a library: a program that links more VAE families or file formats calls [`main`] and has all of it. One that brings an
//! executor or a blend policy of its own calls [`main_with`].

mod allocator;
mod args;
mod commands;
mod failure;
mod interrupt;
mod memory;
mod output;
mod plan_image;
mod terminal;
mod timeline;
mod watch;

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, OnceLock, PoisonError};

use clap::Parser;
use tilevae::{MOST_THREADS, Pipeline};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use args::{Args, Command, Format};

/// What a program adds to the command line beyond what its crates register (families, file formats, and grids and blend policies that the configuration names).
///
/// ```no_run
/// let program = tilevae_cli::Program::default().with_pipeline(|pipeline| {
///     eprintln!("{} latent channels", pipeline.spec().latent_channels);
///     Ok(pipeline)
/// });
/// let exit_code = tilevae_cli::main_with(program);
/// ```
#[derive(Default)]
pub struct Program {
    adapt: Option<Adapt>,
}

type Adapt = Box<dyn Fn(Pipeline) -> Result<Pipeline, tilevae::Error> + Send + Sync>;

impl Program {
    /// Every pipeline that is loaded passes through `adapt`, which may give it another executor or blend policy. A grid belongs to the plan, which is made
    /// before: it is registered and named in the configuration.
    #[must_use]
    pub fn with_pipeline(self, adapt: impl Fn(Pipeline) -> Result<Pipeline, tilevae::Error> + Send + Sync + 'static) -> Self {
        Self { adapt: Some(Box::new(adapt)) }
    }
}

/// What this process runs.
static PROGRAM: OnceLock<Program> = OnceLock::new();

/// The pipeline as the program wants it.
fn adapted(pipeline: Pipeline) -> Result<Pipeline, tilevae::Error> {
    match PROGRAM.get().and_then(|program| program.adapt.as_ref()) {
        Some(adapt) => adapt(pipeline),
        None => Ok(pipeline),
    }
}

/// Runs the command line of this process with what `program` adds (see [`main`]).
pub fn main_with(program: Program) -> ExitCode {
    // A second call in one process keeps the first program.
    let _ = PROGRAM.set(program);
    main()
}

/// Runs the command line of this process.
///
/// Exit codes: 0 done, 1 the run failed, 2 the arguments or the configuration ask for something that cannot be, 130 interrupted.
pub fn main() -> ExitCode {
    allocator::tune();
    ExitCode::from(main_of(std::env::args_os().collect()))
}

/// Runs the command line with these arguments, the first of which is the program's name, and gives the exit code.
pub fn main_of(arguments: Vec<OsString>) -> u8 {
    let args = match Args::try_parse_from(&arguments) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            terminal::set_format(if asks_for_json(&arguments) { Format::Json } else { Format::Text }, false);
            failure::print_argument_error(&error);
            return 2;
        }
        // Help and version.
        Err(shown) => {
            let _ = shown.print();
            return 0;
        }
    };
    terminal::set_format(args.common.format, args.common.quiet);
    log_to_stderr(&args);
    std::panic::set_hook(Box::new(note_panic));
    interrupt::listen();
    let run = catch_unwind(AssertUnwindSafe(|| run(&args)));
    interrupt::let_end();
    let internal = |_| {
        let panic = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(failure::InternalError(panic.unwrap_or_else(|| "the program panicked".to_owned())).into())
    };
    match run.unwrap_or_else(internal) {
        Ok(()) => 0,
        Err(error) if output::is_broken_pipe(&error) => 0,
        Err(error) => failure::print_error(&error),
    }
}

/// Whether arguments that cannot be read ask for JSON.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let pairs = arguments.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    pairs || arguments.iter().any(|argument| argument == "--format=json")
}

/// What the main thread's panic said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Burn reports most errors by panicking, and executors turn panics into errors; those are logged at debug level only. Other panics are warnings.
fn note_panic(panic: &PanicHookInfo<'_>) {
    tracing::debug!("{panic}");
    if tilevae::tiling::is_guarded() {
        return;
    }
    let message = panic.payload_as_str().unwrap_or("a panic without a message").lines().collect::<Vec<_>>().join(" ");
    let place = panic.location().map(|place| format!(" ({place})")).unwrap_or_default();
    let thread = std::thread::current();
    match thread.name() {
        Some("main") => *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{message}{place}")),
        name => tracing::warn!("the thread {} panicked: {message}{place}", name.unwrap_or("(unnamed)")),
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let common = &args.common;
    check_threads()?;
    tilevae::vae_core::keep_kernels(!common.no_cache);
    match &args.command {
        Command::Decode(args) => commands::decode(common, args),
        Command::Encode(args) => commands::encode(common, args),
        Command::Roundtrip(args) => commands::roundtrip(common, args),
        Command::Verify(args) => commands::verify(common, args),
        Command::Plan(args) => commands::plan(common, args),
        Command::Bench(args) => commands::bench(common, args),
        Command::Worker(args) => commands::worker(common, args),
        Command::Models => commands::models(common),
        Command::Devices => commands::devices(common),
        Command::Config(args) => commands::config(common, args),
        Command::Completions { shell } => commands::completions(*shell),
    }
}

/// Rayon passes over a number of threads that is none, in the variable of today and in that of its early versions.
fn check_threads() -> Result<(), failure::UsageError> {
    for name in ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"] {
        let Some(given) = std::env::var_os(name).filter(|given| !given.is_empty()) else { continue };
        if !given.to_str().is_some_and(|given| given.parse::<usize>().is_ok_and(|threads| threads <= MOST_THREADS)) {
            let given = given.display();
            return Err(failure::UsageError(format!(
                "the environment variable {name} is `{given}`; it takes a number of threads, 0 to {MOST_THREADS} (0: as many as there are cores)"
            )));
        }
    }
    Ok(())
}

fn log_to_stderr(args: &Args) {
    let level = match (args.common.quiet, args.common.verbose) {
        (true, _) if args.common.format == Format::Json => LevelFilter::OFF,
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    // Runs report lost devices themselves; a worker logs its clients.
    let of_backends = if level == LevelFilter::WARN && !args.command.is_worker() { LevelFilter::ERROR } else { level };
    let levels = Targets::new().with_default(level).with_targets(["burn", "cubecl", "cubek", "wgpu"].map(|prefix| (prefix, of_backends)));
    let (text, json) = if args.common.format == Format::Json {
        (None, Some(terminal::LogEvents.with_filter(levels)))
    } else {
        // By NO_COLOR, CLICOLOR, TERM and whether it is a terminal.
        let colours = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        let layer = tracing_subscriber::fmt::layer().with_writer(|| terminal::Log).without_time().with_target(false).with_ansi(colours);
        (Some(layer.with_filter(levels)), None)
    };
    tracing_subscriber::registry().with(text).with(json).init();
}
