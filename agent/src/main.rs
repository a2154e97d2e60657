//! `windlass-agent`: the agent's process. What it does is in the library.

use std::process::ExitCode;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use windlass_agent::agent::{self, Options};
use windlass_common::error::ErrorChain;

const USAGE: &str = "\
Usage: windlass-agent [--root DIRECTORY] [--settings PATH]

The agent of a Windlass machine; systemd starts it. It takes its settings from where the platform
puts them, or from the file that --settings names.

Environment: WINDLASS_LOG sets the log level (error, warn, info, debug, trace; default info).
";

/// Threads for file work: a few files at a time keep a disk busy, and each thread costs memory.
const BLOCKING_THREADS_MAX: usize = 4;
/// A blocking thread that has nothing to do ends after this long.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// How long file work that is under way may take when the agent stops; systemd kills it after that.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Exit code of wrong usage, as the shell's own.
const EXIT_USAGE: u8 = 2;

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command line's own answers"
)]
fn main() -> ExitCode {
    windlass_agent::allocator::keep_small();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.iter().any(|a| a == "--version") {
        println!("windlass-agent {}", windlass_agent::version());
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!("windlass-agent: {fault}\n\n{USAGE}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    start_log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(agent::run(options));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), class = ?error.class(), "the agent stops");
            ExitCode::FAILURE
        }
    }
}

/// To standard error, which systemd keeps with time and unit.
fn start_log() {
    let level = std::env::var("WINDLASS_LOG").ok();
    let level = level
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}
