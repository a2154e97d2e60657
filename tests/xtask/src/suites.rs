//! `cargo xtask test`: every suite, its time beside its budget.
//!
//! Speed is printed and never asserted: a suite over its budget is marked, not failed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bench;
use crate::build::{self, KUBERNETES, Profile};
use crate::compat;
use crate::prerequisites;
use crate::s3;
use crate::shell::{Background, capture, cargo, command, has, step};

/// All suites together, from cold.
const TOTAL_BUDGET: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these suites, in the order of the list; all if none is named.
    #[arg(value_enum)]
    only: Vec<Suite>,
    /// Also what is too long for every change.
    #[arg(long)]
    full: bool,
}

/// One group of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// Formatting, lints, documentation, licences and bans.
    Checks,
    /// Stemcells of both Kubernetes minors, built for real.
    Stemcells,
    /// Broken guards, 10 000 seeds of the verdicts, and behind the suites that follow 4 000 of the simulation, 10 000
    /// with `--full`.
    Sim,
    /// Unit, property and integration tests of every crate, on real components.
    Crates,
    /// This release beside the one before it, each with the other's agent.
    Compat,
    /// Every fuzz target for 20 s, from the kept corpus; needs a nightly toolchain.
    Fuzz,
    /// Scenarios on real clusters.
    EndToEnd,
    /// `cargo xtask demo`, twice, then `--down`.
    Demo,
    /// A kernel's watchdog in a virtual machine; with `--full`, or by its name.
    Vm,
}

impl Suite {
    const ALL: [Suite; 9] = [
        Suite::Checks,
        Suite::Stemcells,
        Suite::Sim,
        Suite::Crates,
        Suite::Compat,
        Suite::Fuzz,
        Suite::EndToEnd,
        Suite::Demo,
        Suite::Vm,
    ];

    /// From cold, on two cores.
    fn budget(self) -> Duration {
        // What each has taken, with a little room; the sum is within [`TOTAL_BUDGET`].
        Duration::from_secs(match self {
            Suite::Checks => 390,
            Suite::Stemcells => 480,
            Suite::Crates => 620,
            Suite::Compat => 150,
            Suite::Sim => 540,
            Suite::Fuzz => 260,
            Suite::EndToEnd => 960,
            Suite::Demo => 120,
            Suite::Vm => 120,
        })
    }

    fn run(self, options: &Options, xtask: &Path, behind: &mut Behind) -> Result<()> {
        match self {
            Suite::Checks => check(),
            Suite::Stemcells => stemcells(behind),
            Suite::Crates => crates(options.full, behind),
            Suite::Compat => compat::run(),
            Suite::Sim => {
                behind.seeds = Some(crate::sim::suite(options.full, behind.simulation.take())?);
                Ok(())
            }
            Suite::Fuzz => crate::fuzz::run(options.full),
            Suite::EndToEnd => end_to_end(options.full, behind),
            Suite::Demo => demo(xtask),
            Suite::Vm => crate::vm::watchdog(),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // Asked before the suites build this program anew: the kernel says of a file that was replaced that it is deleted.
    let xtask = std::env::current_exe().context("cannot find this program")?;
    prerequisites::install()?;
    let started = Instant::now();
    let mut rows = Vec::new();
    let chosen = |suite: &Suite| match options.only.is_empty() {
        true => options.full || *suite != Suite::Vm,
        false => options.only.contains(suite),
    };
    let mut behind = Behind {
        simulates: chosen(&Suite::Sim),
        ..Behind::default()
    };
    for suite in Suite::ALL.into_iter().filter(chosen) {
        println!("\n######## suite {suite:?}");
        let suite_started = Instant::now();
        let worked_before = worked();
        // Stemcells wait for downloads and disks: what the crates are tested against is built behind them.
        let needed = chosen(&Suite::Crates) || (options.full && chosen(&Suite::EndToEnd));
        if behind.server.is_none() && suite != Suite::Checks && needed {
            match s3::Server::begin() {
                Ok(begun) => behind.server = Some(begun),
                // The suite that needs it tries again, and fails.
                Err(error) => println!("    {error:#}"),
            }
        }
        let outcome = suite.run(options, &xtask, &mut behind);
        if let Err(error) = &outcome {
            println!("suite {suite:?} failed: {error:#}");
        }
        rows.push(Row {
            suite,
            elapsed: suite_started.elapsed(),
            worked: worked().saturating_sub(worked_before),
            ok: outcome.is_ok(),
        });
    }
    if let Some(seeds) = behind.seeds.take() {
        println!("\n######## what is left of suite Sim");
        let waited = Instant::now();
        let outcome = seeds.end();
        if let Err(error) = &outcome {
            println!("suite Sim failed: {error:#}");
        }
        for row in rows.iter_mut().filter(|row| row.suite == Suite::Sim) {
            row.elapsed += waited.elapsed();
            row.ok &= outcome.is_ok();
        }
    }
    report(&rows, started.elapsed());
    let failed: Vec<_> = rows
        .iter()
        .filter(|row| !row.ok)
        .map(|row| row.suite)
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed suites: {failed:?}")
    }
}

/// Formatting, lints, documentation, licences and bans.
pub(crate) fn check() -> Result<()> {
    step("formatting", cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "lints",
        cargo()
            .args([
                "clippy",
                "--quiet",
                "--locked",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
            ])
            .arg("warnings"),
    )?;
    step(
        "documentation",
        cargo()
            .args([
                "doc",
                "--quiet",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    if !has_subcommand("deny") {
        step(
            "installing cargo-deny",
            cargo().args(["install", "--quiet", "--locked", "--debug", "cargo-deny"]),
        )?;
    }
    step(
        "licences, bans and sources",
        cargo().args(["deny", "check", "bans", "licenses", "sources"]),
    )
}

fn stemcells(behind: &mut Behind) -> Result<()> {
    let binaries = build::binaries(Profile::Dev)?;
    if behind.simulates {
        behind.simulation = Some(crate::sim::begin()?);
    }
    for version in KUBERNETES {
        build::stemcell(&binaries, version)?;
    }
    let again = Instant::now();
    build::stemcell(&binaries, KUBERNETES[0])?;
    println!(
        "    nothing changed: {:.1} s (goal 5 s)",
        again.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What runs behind the suites.
#[derive(Debug, Default)]
struct Behind {
    server: Option<s3::Server>,
    /// Whether the simulation is needed, and its build.
    simulates: bool,
    simulation: Option<Background>,
    seeds: Option<Background>,
}

/// The program of the object store, waited for if it is being installed.
fn object_store(behind: &mut Behind) -> Result<PathBuf> {
    match &mut behind.server {
        Some(server) => server.program(),
        None => s3::Server::begin()?.program(),
    }
}

fn crates(full: bool, behind: &mut Behind) -> Result<()> {
    let binaries = build::binaries(Profile::Dev)?;
    build::stemcell(&binaries, KUBERNETES[0])?;
    let stemcell = build::newest_stemcell(KUBERNETES[0])?;
    let tests = build::tests()?;
    let server = object_store(behind)?;
    step(
        "tests of the crates",
        cargo()
            .args(["test", "--quiet", "--locked", "--workspace"])
            .args(["--lib", "--bins", "--no-fail-fast"])
            .args(tests.iter().flat_map(|name| ["--test", name]))
            .env("WINDLASS_TEST_ROOTFS", stemcell.join("rootfs"))
            .env("WINDLASS_TEST_COMPONENTS", build::components(&stemcell)?)
            .env("WINDLASS_TEST_AGENT", &binaries.agent)
            .env("WINDLASS_TEST_BIN", &binaries.dir)
            .env("WINDLASS_TEST_S3", &server),
    )?;
    step(
        "examples in the documentation",
        cargo().args(["test", "--quiet", "--locked", "--workspace", "--doc"]),
    )?;
    // As many handshakes of strangers as stand half open or are not forgotten yet, and as many again: a director that
    // bears 256 for a second each begins 2,000 in eight seconds, and the benchmark's own 10,000 in forty.
    let half_open = if full { "10000" } else { "2000" };
    // Fails when an agent stays away or a command or a death goes unnoticed; speed is only printed.
    let small = [
        "--agents",
        "200",
        "--watch",
        "5",
        "--commands",
        "500",
        "--half-open",
        half_open,
        "--no-nats",
    ];
    bench::fleet(Profile::Dev, false, &small.map(str::to_owned))
}

fn end_to_end(full: bool, behind: &mut Behind) -> Result<()> {
    let binaries = build::binaries(Profile::Dev)?;
    let stemcells = build::stemcell(&binaries, KUBERNETES[1])?;
    build::stemcell(&binaries, KUBERNETES[0])?;
    let stemcell = build::newest_stemcell(KUBERNETES[0])?;
    let mut test = cargo();
    test.args([
        "test",
        "--quiet",
        "--locked",
        "--workspace",
        "--test",
        build::SCENARIOS,
    ])
    .env("WINDLASS_TEST_BIN", &binaries.dir)
    .env("WINDLASS_TEST_STEMCELLS", &stemcells)
    .env("WINDLASS_TEST_KUBECTL", build::kubectl(&stemcell));
    if full {
        test.env("WINDLASS_TEST_FULL", "1")
            .env("WINDLASS_TEST_S3", object_store(behind)?)
            .env("WINDLASS_TEST_NEXT_AGENT", build::next_agent()?);
    }
    step("scenarios on real clusters", &mut test)
}

fn demo(xtask: &Path) -> Result<()> {
    let demo = |what: &str, extra: &[&str]| {
        step(
            what,
            command(xtask)
                .args(["demo", "--profile", "dev"])
                .args(extra),
        )
    };
    demo("demo", &[])?;
    let again = Instant::now();
    let second = demo("demo, with everything there", &[]);
    println!(
        "    found what is there: {:.1} s",
        again.elapsed().as_secs_f64()
    );
    let down = demo("demo --down", &["--down"]);
    second.and(down)?;
    let left = leftovers()?;
    if !left.is_empty() {
        bail!("demo --down left behind:\n{}", left.join("\n"));
    }
    Ok(())
}

/// What a demo could leave behind: its directory, mounts below it, processes that name it.
fn leftovers() -> Result<Vec<String>> {
    let dir = build::state().join("demo");
    let mut left = Vec::new();
    if dir.exists() {
        left.push(format!("directory {}", dir.display()));
    }
    let needle = dir.to_string_lossy().into_owned();
    let mounts = std::fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&needle))
            .map(|l| format!("mount {l}")),
    );
    for entry in std::fs::read_dir("/proc").context("cannot list /proc")? {
        let path = entry?.path().join("cmdline");
        // A process may be gone by now; then it is nothing left behind.
        if let Ok(line) = std::fs::read(&path)
            && String::from_utf8_lossy(&line).contains(&needle)
        {
            left.push(format!(
                "process {}",
                String::from_utf8_lossy(&line).replace('\0', " ")
            ));
        }
    }
    Ok(left)
}

fn has_subcommand(name: &str) -> bool {
    has(&format!("cargo-{name}")) || capture(cargo().args([name, "--version"])).is_ok()
}

/// What became of a suite.
#[derive(Debug)]
struct Row {
    suite: Suite,
    elapsed: Duration,
    /// What all processors did meanwhile, also for what runs behind it.
    worked: Duration,
    ok: bool,
}

/// How long the processors of this machine have worked since it started, all together (`/proc/stat`, proc(5), in units
/// of 10 ms); zero where that cannot be read, since it is only printed.
fn worked() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let times = first.split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal; guests are counted with users
    let worked = times
        .take(8)
        .enumerate()
        .filter(|(at, _)| ![3, 4, 7].contains(at));
    let ticks = worked
        .filter_map(|(_, time)| time.parse::<u64>().ok())
        .sum::<u64>();
    Duration::from_millis(ticks.saturating_mul(10))
}

fn report(rows: &[Row], total: Duration) {
    println!(
        "\n{:<12} {:>9} {:>9} {:>6}  outcome",
        "suite", "time", "budget", "cores"
    );
    for row in rows {
        let cores = row.worked.as_secs_f64() / row.elapsed.as_secs_f64().max(0.001);
        let outcome = if row.ok { "passed" } else { "FAILED" };
        print_row(
            &format!("{:?}", row.suite),
            row.elapsed,
            row.suite.budget(),
            &format!("{cores:>6.1}  {outcome}"),
        );
    }
    print_row("all", total, TOTAL_BUDGET, "");
}

fn print_row(name: &str, elapsed: Duration, budget: Duration, outcome: &str) {
    let over = if elapsed > budget {
        "  over budget"
    } else {
        ""
    };
    println!(
        "{name:<12} {:>7.0} s {:>7.0} s {outcome}{over}",
        elapsed.as_secs_f64(),
        budget.as_secs_f64()
    );
}
