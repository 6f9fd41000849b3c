//! The tilevae command line, as a library: a downstream program that links more VAE families calls [`main`] and has all of it.

mod allocator;
mod args;
mod commands;
mod interrupt;
mod memory;
mod output;
mod plan_picture;
mod timeline;
mod watch;

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use args::{Args, Command};

/// Runs the command line of this process.
///
/// Exit codes: 0 done, 1 the run failed, 2 the arguments or the configuration ask for something that cannot be, 130 interrupted.
pub fn main() -> ExitCode {
    allocator::tune();
    let args = Args::parse();
    log_to_stderr(&args);
    // Burn reports most errors by panicking. Executors make errors of panics; the hook's own message would only come before theirs.
    std::panic::set_hook(Box::new(|panic| tracing::debug!("{panic}")));
    interrupt::listen();
    let run = catch_unwind(AssertUnwindSafe(|| run(&args)));
    match run.unwrap_or_else(|_| Err(anyhow::anyhow!("an internal error; run again with -vv to see where, and please report it"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref().is_some_and(tilevae::Error::is_stop) => {
            output::print_error(&error);
            ExitCode::from(interrupt::INTERRUPTED)
        }
        Err(error) => {
            output::print_error(&error);
            let usage = error.is::<commands::UsageError>()
                || error.downcast_ref().is_some_and(tilevae::Error::is_usage)
                || error.downcast_ref().is_some_and(tilevae::io::IoError::is_usage);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let common = &args.common;
    tilevae::vae_core::keep_kernels(!common.no_cache);
    match &args.command {
        Command::Decode(args) => commands::decode(common, args),
        Command::Encode(args) => commands::encode(common, args),
        Command::Roundtrip(args) => commands::roundtrip(common, args),
        Command::Plan(args) => commands::plan(common, args),
        Command::Bench(args) => commands::bench(common, args),
        Command::Worker(args) => commands::worker(common, args),
        Command::Models => commands::models(common),
        Command::Devices => commands::devices(common),
        Command::Config(args) => commands::config(common, args),
        Command::Completions { shell } => commands::completions(*shell),
    }
}

fn log_to_stderr(args: &Args) {
    let level = match (args.common.quiet, args.common.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    // Runs say themselves what became of a device; whoever serves devices wants to hear of his clients.
    let of_backends = if level == LevelFilter::WARN && !args.command.is_worker() { LevelFilter::ERROR } else { level };
    let levels = Targets::new().with_default(level).with_targets(["burn", "cubecl", "cubek", "wgpu"].map(|prefix| (prefix, of_backends)));
    let is_terminal = std::io::stderr().is_terminal();
    let layer = tracing_subscriber::fmt::layer().with_writer(|| watch::Log).without_time().with_target(false).with_ansi(is_terminal);
    tracing_subscriber::registry().with(layer.with_filter(levels)).init();
}
