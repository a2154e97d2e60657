//! `cargo xtask sim`: seeds of the simulation (`tests/src/sim`), on all cores.
//!
//! A few seeds are built as the tests are. Where thousands are to be run, the project's own crates are optimised:
//! that is a build of its own, and a seed takes a quarter of the time. Assertions and overflow checks stay on;
//! dependencies are those of the tests.
//!
//! The suite runs four thousand, ten thousand with `--full`. They wait for nothing, where scenarios on real clusters
//! mostly wait: so they are run behind the other suites, and looked at when those have ended.
//!
//! `--verdicts` runs the other simulation (`director/tests/verdicts`): what is concluded about machines, and what is
//! done about them.

use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::shell::{Background, cargo, command, step};

/// Seeds of the suite, always the same: as many as an hour has room for beside the other suites, seven minutes of one
/// core. `--full` runs [`FULL`], of which no cell of the coverage may be empty.
const SEEDS: &str = "4000";
/// Of the verdicts these run always.
const FULL: &str = "10000";
/// From so many seeds on, building for speed pays.
const OPTIMISED: u64 = 2_000;
/// How far the project's own crates are optimised: those in which seeds spend their time.
const SPEED: [(&str, u8); 5] = [
    ("agent", 1),
    ("common", 2),
    ("director", 2),
    ("stemcell", 0),
    ("tests", 1),
];
const BUILDING: &str = "building the simulation for speed";

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
    let program = if options.seeds >= OPTIMISED && !options.mutate {
        let mut build = optimised();
        step(BUILDING, &mut build)?;
        build::executable(build, "windlass-sim")?
    } else {
        build::for_tests()?;
        build::target().join("debug/windlass-sim")
    };
    step("seeds of the simulation", command(program).args(&arguments))
}

/// Begins to build the simulation for the suite, behind what goes on.
pub(crate) fn begin() -> Result<Background> {
    Background::begin(BUILDING, &optimised())
}

/// The suite of `cargo xtask test`: broken guards are noticed, and verdicts break nothing. The seeds of the simulation
/// are begun, and fail where one has broken an invariant.
pub(crate) fn suite(full: bool, building: Option<Background>) -> Result<Background> {
    match building {
        Some(building) => building.end()?,
        None => step(BUILDING, &mut optimised())?,
    }
    let program = build::executable(optimised(), "windlass-sim")?;
    step("broken guards", command(&program).arg("--mutate"))?;
    let seeds = if full { FULL } else { SEEDS };
    println!("    the first {seeds} seeds; {FULL} with --full");
    let seeds = Background::begin(
        "seeds of the simulation",
        command(&program).args(["--seeds", seeds]),
    )?;
    verdicts(FULL, "0", false)?;
    Ok(seeds)
}

/// Seeds of the verdicts break nothing.
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

/// Builds the simulation for speed: with the features of what is built with the tests, so that nothing else is compiled
/// again, and beside it.
fn optimised() -> Command {
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--workspace"]);
    build.args(["--bin", "windlass-sim"]);
    for (package, level) in SPEED {
        // Fewer units of code: what is generic is translated less often.
        let level = format!("opt-level={level}");
        for setting in [level.as_str(), "codegen-units=8", "debug=false"] {
            let setting = format!("profile.dev.package.windlass-{package}.{setting}");
            build.args(["--config", &setting]);
        }
    }
    build
}
