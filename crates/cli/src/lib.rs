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

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

use args::{Args, Command, Common};

/// Runs the command line of this process.
///
/// Exit codes: 0 done, 1 the run failed, 2 the arguments or the configuration ask for something that cannot be, 130 interrupted.
pub fn main() -> ExitCode {
    allocator::tune();
    let args = Args::parse();
    log_to_stderr(&args.common);
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
    match &args.command {
        Command::Decode(args) => commands::decode(common, args),
        Command::Encode(args) => commands::encode(common, args),
        Command::Roundtrip(args) => commands::roundtrip(common, args),
        Command::Plan(args) => commands::plan(common, args),
        Command::Bench(args) => commands::bench(common, args),
        #[cfg(feature = "remote")]
        Command::Worker(args) => commands::worker(common, args),
        Command::Models => commands::models(common),
        Command::Devices => commands::devices(common),
        Command::Config(args) => commands::config(common, args),
        Command::Completions { shell } => commands::completions(*shell),
    }
}

fn log_to_stderr(common: &Common) {
    let level = match (common.quiet, common.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(|| watch::Log).without_time().with_target(false).init();
}
