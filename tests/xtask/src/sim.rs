//! `cargo xtask sim`: seeds of the simulation (`tests/src/sim`), on all cores.
//!
//! Built as the tests are. Where thousands of seeds are to be run, the project's own crates are optimised a
//! little: that takes minutes to build, and a seed less than half of the time.

use anyhow::Result;

use crate::build;
use crate::shell::{cargo, command, step};

/// Seeds of the suite, always the same; `--full` runs [`FULL`].
const SEEDS: &str = "300";
const FULL: &str = "10000";
/// From so many seeds on, building for speed pays.
const OPTIMISED: u64 = 2_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print everything that happens: `--from SEED --seeds 1 --trace` replays what was reported.
    #[arg(long)]
    trace: bool,
    /// Break each guard in turn, and fail if one is not noticed.
    #[arg(long)]
    mutate: bool,
    /// More for the simulation itself, such as `--coverage`, `--mutation NAME` or `--jobs N`.
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seeds = options.seeds.to_string();
    let from = options.from.to_string();
    let mut arguments = vec!["--seeds", &seeds, "--from", &from];
    arguments.extend(options.trace.then_some("--trace"));
    arguments.extend(options.mutate.then_some("--mutate"));
    arguments.extend(options.more.iter().map(String::as_str));
    let many = options.seeds >= OPTIMISED;
    start("seeds of the simulation", &arguments, many)
}

/// The suite of `cargo xtask test`: broken guards are noticed, and seeds break nothing.
pub(crate) fn suite(full: bool) -> Result<()> {
    start("broken guards", &["--mutate"], full)?;
    if full {
        return start("seeds of the simulation", &["--seeds", FULL], true);
    }
    println!("    the first {SEEDS} seeds; {FULL} with --full");
    start("seeds of the simulation", &["--seeds", SEEDS], false)
}

fn start(what: &str, arguments: &[&str], optimised: bool) -> Result<()> {
    if optimised {
        step(
            "building the simulation",
            cargo()
                .args(["build", "--quiet", "--locked", "--bin", "windlass-sim"])
                .args(["-p", "windlass-director", "-p", "windlass-tests"])
                .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1"),
        )?;
    } else {
        build::for_tests()?;
    }
    step(
        what,
        command(build::target().join("debug/windlass-sim")).args(arguments),
    )
}
