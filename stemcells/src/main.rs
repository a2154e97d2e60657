//! `windlass-stemcell`: builds versioned, signed machine images.

use std::process::ExitCode;

use clap::Parser;
use windlass_stemcell::cli::{Command, run};

/// Builds versioned, signed machine images for Windlass
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    ExitCode::from(run(Cli::parse().command))
}
