//! The commands of this repository: `cargo xtask demo`, `test`, `bench`, `sim` and `check`.
//!
//! Everything a fresh Debian or Ubuntu machine lacks is installed on the way ([`prerequisites`]);
//! everything that is built is built once ([`build`]). Nothing here is part of the product.

mod bench;
mod build;
mod compat;
mod demo;
mod fuzz;
mod prerequisites;
mod s3;
mod shell;
mod sim;
mod suites;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands of the Windlass repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a real Kubernetes cluster on this machine, or take it down again.
    ///
    /// Installs what is missing, builds everything, starts a director and creates cluster `demo`
    /// with one control-plane machine and two workers. Run again, it finds what is there.
    Demo(demo::Options),
    /// Run every test: checks, unit and integration tests, stemcells, end-to-end scenarios.
    Test(suites::Options),
    /// Measure: `create` (phases of a create beside the floor), `agent` (size, memory, idle CPU), `repair`
    /// (from the death of a machine to its replacement), `upgrade` (of workers, beside the same by hand), `plan`
    /// (10 000 machines) or `fleet` (what thousands of agents cost a director).
    Bench(bench::Options),
    /// Simulate: thousands of seeds of the real planner, rollouts and agents without hardware.
    Sim(sim::Options),
    /// Formatting, lints, documentation, licences and bans; no test is run.
    Check,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => suites::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Sim(options) => sim::run(&options),
        Command::Check => suites::check(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
