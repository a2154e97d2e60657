//! `windlass-sim`: seeds of the simulation, on all cores; started by `cargo xtask sim`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use windlass_tests::sim::coverage::Coverage;
use windlass_tests::sim::fixtures::Fixtures;
use windlass_tests::sim::mutation::Mutation;
use windlass_tests::sim::{self, Report, secrets};

/// From so many seeds on, a cell of the coverage that was never struck is a failure.
const COVERS: u64 = 5_000;
/// Violations that are printed with their trace.
const SHOWN: usize = 5;
/// Seeds in which a broken guard has to be noticed.
const MUTATION_SEEDS: u64 = 200;

/// Runs seeds of the simulation.
#[derive(Debug, Parser)]
#[command(name = "windlass-sim", version)]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Begin no further seed after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Print everything that happens; for one seed
    #[arg(long)]
    trace: bool,
    /// Break each guard in turn, and fail if that is not noticed
    #[arg(long)]
    mutate: bool,
    /// Break one guard
    #[arg(long, value_enum, conflicts_with = "mutate")]
    mutation: Option<Mutation>,
    /// Allot the faults of every seed to its orders, so that upgrades, repairs and deletions are struck as often as
    /// creates; every second seed does so anyway, and all where a guard is broken
    #[arg(long)]
    spread: bool,
    /// Print what was struck
    #[arg(long)]
    coverage: bool,
    /// Threads; as many as there are cores if not given
    #[arg(long)]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
        .with_ansi(false)
        .with_writer(|| secrets::LogSink)
        .init();
    sim::note_panics();
    let outcome = if arguments.mutate {
        mutate(&arguments)
    } else {
        simulate(&arguments)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(arguments: &Arguments) -> Result<()> {
    let began = Instant::now();
    let mut sum = Sum::default();
    each(arguments, arguments.mutation, arguments.seeds, |report| {
        sum.add(arguments, report);
        true
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let seeds = sum.seeds;
    println!(
        "simulated {:.0} h, {} faults ({:.1} a seed), {:.1} ms a seed and core, {seconds:.1} s",
        sum.simulated.as_secs_f64() / 3600.0,
        sum.faults,
        f64::from(sum.faults) / seeds.max(1) as f64,
        seconds * 1000.0 * jobs(arguments) as f64 / seeds.max(1) as f64,
    );
    let missing = sum.coverage.missing();
    let all = Coverage::reachable().len();
    println!(
        "coverage: {} of {all} cells (step x fault x point)",
        all - missing.len()
    );
    if arguments.coverage {
        print!("{}", sum.coverage);
    }
    for (step, fault, point) in missing.iter().take(20) {
        println!("not struck: {step} {fault:?} {point:?}");
    }
    println!("{seeds} seeds, {} violations", sum.violations);
    if sum.violations > 0 {
        bail!("invariants were broken");
    }
    if sum.small > 0 {
        bail!("{} seeds were too small to show anything", sum.small);
    }
    if seeds >= COVERS && !missing.is_empty() {
        bail!("{} cells were never struck", missing.len());
    }
    Ok(())
}

fn mutate(arguments: &Arguments) -> Result<()> {
    let mut missed = Vec::new();
    for mutation in Mutation::value_variants() {
        let mark = format!("invariant {}:", mutation.breaks());
        let mut noticed: Option<(u64, String)> = None;
        let mut tried = 0;
        each(arguments, Some(*mutation), MUTATION_SEEDS, |report| {
            tried += 1;
            let violation = report.violations.iter().find(|v| v.contains(&mark));
            if let Some(violation) = violation {
                let first = noticed.as_ref().is_none_or(|(seed, _)| report.seed < *seed);
                if first {
                    noticed = Some((report.seed, violation.clone()));
                }
            }
            noticed.is_none()
        })?;
        let name = mutation.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        match noticed {
            Some((seed, violation)) => println!("{name:<22} noticed by seed {seed}: {violation}"),
            None => {
                println!("{name:<22} NOT NOTICED in {tried} seeds");
                missed.push(name.to_owned());
            }
        }
    }
    if missed.is_empty() {
        println!(
            "{} broken guards, all noticed",
            Mutation::value_variants().len()
        );
        return Ok(());
    }
    bail!("broken guards were not noticed: {}", missed.join(", "))
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    violations: usize,
    /// Seeds without the size that they have to have.
    small: usize,
    faults: u32,
    simulated: Duration,
    coverage: Coverage,
}

impl Sum {
    fn add(&mut self, arguments: &Arguments, report: Report) {
        self.seeds += 1;
        self.faults += report.faults.0;
        self.simulated += Duration::from_millis(report.simulated_ms);
        self.coverage.add(&report.coverage);
        if arguments.trace {
            for line in &report.trace {
                println!("{line}");
            }
            println!("digest {:016x}", report.digest);
        }
        if let Some(lacks) = report.lacks().filter(|_| arguments.mutation.is_none()) {
            self.small += 1;
            println!("seed {} is too small: {lacks}", report.seed);
        }
        if report.violations.is_empty() {
            return;
        }
        self.violations += report.violations.len();
        if self.violations > SHOWN * 20 {
            return;
        }
        println!("\nseed {}:", report.seed);
        for violation in &report.violations {
            println!("  {violation}");
        }
        if !arguments.trace && self.violations <= SHOWN {
            for line in &report.trace {
                println!("    {line}");
            }
        }
        println!(
            "  replay: cargo xtask sim --from {} --seeds 1 --trace{}",
            report.seed,
            if arguments.spread { " -- --spread" } else { "" }
        );
    }
}

fn jobs(arguments: &Arguments) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    arguments.jobs.unwrap_or(cores).max(1)
}

/// Runs seeds on all threads; `take` is given each report and says whether to go on.
fn each(
    arguments: &Arguments,
    mutation: Option<Mutation>,
    seeds: u64,
    mut take: impl FnMut(Report) -> bool,
) -> Result<()> {
    let fixtures = Fixtures::new()?;
    let spread = arguments.spread || mutation.is_some();
    let next = AtomicU64::new(0);
    let until = arguments.seconds.map(Duration::from_secs);
    let until = until.map(|seconds| Instant::now() + seconds);
    let (sender, reports) = mpsc::sync_channel::<Result<Report>>(64);
    std::thread::scope(|scope| {
        for _ in 0..jobs(arguments) {
            let (sender, next, fixtures) = (sender.clone(), &next, Arc::clone(&fixtures));
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let late = until.is_some_and(|until| Instant::now() >= until);
                    if at >= seeds || late {
                        return;
                    }
                    let seed = arguments.from + at;
                    let spread = spread || sim::spreads(seed);
                    let report = sim::run(seed, mutation, spread, arguments.trace, &fixtures);
                    if sender.send(report).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for report in &reports {
            if !take(report.context("a seed did not run")?) {
                next.store(seeds, Ordering::Relaxed);
                break;
            }
        }
        drop(reports);
        Ok(())
    })
}
