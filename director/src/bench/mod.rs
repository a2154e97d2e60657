//! `windlass-director bench fleet`: what a fleet of agents costs its director. `bench plan`: what planning
//! costs (`plan`).
//!
//! Three kinds of process: this one asks and measures (`run`); a director under test with a gateway,
//! its store on disk and nothing else ([`target()`]); and processes with some hundred agents each
//! (`windlass-fleet`), which run the agents' link code. They talk by JSON lines ([`peer`]).
//!
//! # Invariants
//! * A speed that misses its goal is printed as missed. What makes the command fail is only what
//!   must always hold: all connect, all come back, every command is answered, a death is noticed.
//! * Everything stays on loopback and in one directory, which is removed at the end.
//!
//! # Not here
//! Machines, providers, clusters: see `cargo xtask bench`.

mod commands;
mod course;
mod error;
mod half_open;
mod nats;
pub mod peer;
mod plan;
mod process;
pub mod protocol;
mod report;
mod run;
mod seed;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use windlass_common::error::ErrorChain;
use windlass_common::limits::{HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL_MS, SESSIONS_MAX};

/// Agents that are there to be killed, one process each.
const VICTIMS: u32 = 5;

#[derive(Debug, Parser)]
#[command(name = "windlass-director bench")]
enum Arguments {
    /// Run a director and a fleet of agents on this host, and print what they cost.
    ///
    /// The agents are real up to their link: they enroll with one-time tokens from a real store, keep
    /// their identity on disk, and speak QUIC with mutual TLS over loopback from processes of their
    /// own. Exit code 1 when an agent did not connect or come back, a command was not answered or a
    /// death not noticed; a goal of speed that is missed is only printed.
    Fleet(Options),
    /// Plan and check many clusters, and print what that costs.
    Plan(plan::Options),
}

/// Options of `bench fleet`.
#[derive(Debug, Clone, clap::Args)]
struct Options {
    /// Agents in the fleet, at most what one director takes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32)
        .range(1..=(SESSIONS_MAX as i64 - VICTIMS as i64)))]
    agents: u32,
    /// Seconds between two heartbeats of one agent; a fleet too large for it is told to beat less often
    #[arg(long, default_value_t = HEARTBEAT_INTERVAL.as_secs_f64(), value_parser = interval)]
    interval: f64,
    /// Processes the agents are spread over; by default one for each 2500, at least two
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: Option<u32>,
    /// Seconds for which heartbeats are counted
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: u32,
    /// Commands sent while the fleet beats
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    commands: u32,
    /// Handshakes that strangers begin and leave, with a director of their own
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    half_open: u32,
    /// Leave out nats-server with mutual TLS and as many clients, which is measured where it is installed
    #[arg(long)]
    no_nats: bool,
    /// Print a table instead of one JSON object
    #[arg(long)]
    table: bool,
    /// Where to work; a new directory below it is removed at the end [default: the system's temporary
    /// directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The program that runs agents [default: windlass-fleet beside this one]
    #[arg(long, value_name = "FILE")]
    fleet_exe: Option<PathBuf>,
}

impl Options {
    fn interval_ms(&self) -> u32 {
        // In range, see `interval`.
        (self.interval * 1000.0).round() as u32
    }

    fn processes(&self) -> u32 {
        let by_size = self.agents.div_ceil(2500).max(2);
        self.processes.unwrap_or(by_size).min(self.agents)
    }
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds = |ms: &u32| f64::from(*ms) / 1000.0;
    let range = seconds(HEARTBEAT_INTERVAL_MS.start())..=seconds(HEARTBEAT_INTERVAL_MS.end());
    match text.parse::<f64>() {
        Ok(seconds) if range.contains(&seconds) => Ok(seconds),
        Ok(_) | Err(_) => Err(format!(
            "give seconds, {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// Runs the director under test, the hidden command `bench-target`.
pub fn target(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    target::main(arguments)
}

/// Runs `windlass-director bench …`; `arguments` are what follows `bench`.
pub fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    let name = std::ffi::OsString::from("windlass-director bench");
    match Arguments::parse_from(std::iter::once(name).chain(arguments)) {
        Arguments::Fleet(options) => fleet(&options),
        Arguments::Plan(options) => planning(&options),
    }
}

fn planning(options: &plan::Options) -> ExitCode {
    match plan::run(options) {
        Ok(report) if options.table => print!("{report}"),
        Ok(report) => println!("{}", report.to_json()),
        Err(error) => {
            eprintln!("error: {}", ErrorChain(&error));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn fleet(options: &Options) -> ExitCode {
    match run::run(options) {
        Ok(report) => {
            if options.table {
                print!("{report}");
            } else {
                println!("{}", report.to_json());
            }
            if report.holds() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {}", ErrorChain(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_as_large_as_one_director_takes_and_no_larger() {
        let most = SESSIONS_MAX - VICTIMS as usize;
        for (agents, taken) in [(1, true), (20_000, true), (most, true), (most + 1, false)] {
            let line = ["bench", "fleet", "--agents", &agents.to_string()];
            assert_eq!(Arguments::try_parse_from(line).is_ok(), taken, "{agents}");
        }
    }
}
