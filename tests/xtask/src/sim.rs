//! `cargo xtask sim`: seeds of the simulation (`tests/src/sim`), on all cores.
//!
//! A few seeds are built as the tests are. Where thousands are to be run, the project's own crates are optimised:
//! that is a build of its own, and a seed takes a fraction of the time. Assertions and overflow checks stay on;
//! dependencies are those of the tests.
//!
//! `--verdicts` runs the other simulation (`director/tests/verdicts`): what is concluded about machines, and what is
//! done about them.

use anyhow::Result;

use crate::build;
use crate::shell::{cargo, command, step};

/// Seeds of the suite, always the same: as many as three minutes on two cores have room for, built as the tests are.
/// `--full` runs [`FULL`], of which no cell of the coverage may be empty.
const SEEDS: &str = "500";
/// Of the verdicts these run always: they take a minute and a half on two cores, built as the tests are.
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
    /// Verdicts and repairs, in place of plans and rollouts.
    #[arg(long, conflicts_with_all = ["mutate", "more"])]
    verdicts: bool,
    /// Print everything that happens: `--from SEED --seeds 1 --trace` replays what was reported.
    #[arg(long)]
    trace: bool,
    /// Break each guard in turn, and fail if one is not noticed.
    #[arg(long)]
    mutate: bool,
    /// More for the simulation itself, such as `--coverage`, `--spread`, `--mutation NAME` or `--jobs N`.
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let seeds = options.seeds.to_string();
    let from = options.from.to_string();
    if options.verdicts {
        return verdicts(&seeds, &from, options.trace);
    }
    let mut arguments = vec!["--seeds", &seeds, "--from", &from];
    arguments.extend(options.trace.then_some("--trace"));
    arguments.extend(options.mutate.then_some("--mutate"));
    arguments.extend(options.more.iter().map(String::as_str));
    if options.seeds >= OPTIMISED && !options.mutate {
        build_optimised()?;
    } else {
        build::for_tests()?;
    }
    start("seeds of the simulation", &arguments)
}

/// The suite of `cargo xtask test`: broken guards are noticed, and seeds break nothing.
pub(crate) fn suite(full: bool) -> Result<()> {
    if full {
        build_optimised()?;
    } else {
        build::for_tests()?;
    }
    start("broken guards", &["--mutate"])?;
    let seeds = if full { FULL } else { SEEDS };
    println!("    the first {seeds} seeds; {FULL} with --full");
    start("seeds of the simulation", &["--seeds", seeds])?;
    verdicts(FULL, "0", false)
}

/// Broken guards are noticed, and seeds break nothing.
fn verdicts(seeds: &str, from: &str, trace: bool) -> Result<()> {
    let mut test = cargo();
    test.args(["test", "--quiet", "--locked", "--workspace"])
        .args(["--test", "verdicts", "--", "--nocapture"])
        .env("WINDLASS_SIM_SEEDS", seeds)
        .env("WINDLASS_SIM_FROM", from);
    if trace {
        // That world alone.
        test.arg("nothing_that_lives")
            .env("WINDLASS_SIM_TRACE", "1");
    }
    step("seeds of the verdicts", &mut test)
}

fn build_optimised() -> Result<()> {
    step(
        "building the simulation",
        cargo()
            .args(["build", "--quiet", "--locked", "--bin", "windlass-sim"])
            .args(["-p", "windlass-director", "-p", "windlass-tests"])
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            // Fewer units of code: what is generic is translated less often.
            .env("CARGO_PROFILE_DEV_INCREMENTAL", "false"),
    )
}

fn start(what: &str, arguments: &[&str]) -> Result<()> {
    step(
        what,
        command(build::target().join("debug/windlass-sim")).args(arguments),
    )
}
