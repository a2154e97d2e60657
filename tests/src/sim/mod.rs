//! The simulation: the real planner, checker, rollouts, world and agent runner in a world without hardware.
//!
//! A seed decides everything: what is ordered, what goes wrong and when, how long everything takes. Time is
//! the runtime's, paused, and jumps from one moment at which something happens to the next.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`operator`], [`draft`] | orders, and what has to have become of them |
//! | [`repairs`], [`windows`] | machines given up in the middle of a task, pauses; maintenance windows |
//! | [`director`], [`life`] | a director and one life of it |
//! | [`store`], [`provider`], [`link`], [`api`] | what a director reaches, each with its faults |
//! | [`agent`], [`apply`] | the real runner and journal on a simulated machine |
//! | [`state`], [`cluster`] | everything that outlives a director; nodes and pods |
//! | [`etcd`], [`eviction`] | members of etcd, and budgets of pods: what they refuse, real ones do |
//! | [`invariants`] | what is looked at after every event |
//! | [`coverage`], [`mutation`], [`secrets`] | whether the simulation would notice |
//!
//! A director that dies may only have stood still: what it was sending it sends when others may be in charge
//! ([`life::Life::kill`]).
//!
//! # Invariants
//! * One thread, one runtime, one source of chance for each seed. The product chooses in a fixed order
//!   wherever several things are ready (`biased`), so that a replay is exact.
//! * The product has no hook for it: it is reached through the traits that it has anyway.
//!
//! # Not here
//! QUIC, TLS, systemd, real disks: tests of the crates. Verdicts and what they lead to: a simulation of its own
//! (`director/tests/verdicts`). Gates other than Jobs, which are real requests, and upgrades of agents.

pub mod agent;
pub mod api;
pub mod apply;
pub mod cluster;
#[cfg(test)]
mod contract;
pub mod coverage;
pub mod dice;
pub mod director;
pub mod draft;
pub mod etcd;
pub mod eviction;
pub mod fixtures;
pub mod invariants;
pub mod life;
pub mod link;
pub mod mutation;
pub mod operator;
pub mod provider;
pub mod repairs;
pub mod secrets;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
pub mod windows;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};

use coverage::Coverage;
use fixtures::Fixtures;
use mutation::Mutation;
use operator::Operator;
use secrets::Canaries;
use state::Site;

/// How often a point is struck, of a thousand: about eight times a seed.
const PER_MILLE: u32 = 9;

/// Longest simulated time of a seed: some tasks, each with some failures before it succeeds.
const SEED_MAX: Duration = Duration::from_secs(60 * 86_400);

/// How a seed ended.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What was broken.
    pub violations: Vec<String>,
    /// What happened: the end of it, or all of it if that was asked for.
    pub trace: Vec<String>,
    /// Over all that happened.
    pub digest: u64,
    /// What was struck.
    pub coverage: Coverage,
    /// Faults, and how many of them while a task ran.
    pub faults: (u32, u32),
    /// Simulated time, milliseconds.
    pub simulated_ms: u64,
    /// The most machines that there were at once.
    pub machines: usize,
}

/// Least machines, simulated time and faults while a task ran of a seed: less shows little.
const SEED_LEAST: (usize, Duration, u32) = (6, Duration::from_secs(30 * 60), 3);

impl Report {
    /// What a seed lacks of the size that it has to have. One that was violated ends where that was seen.
    pub fn lacks(&self) -> Option<String> {
        let (machines, simulated, faults) = SEED_LEAST;
        let lived = Duration::from_millis(self.simulated_ms);
        let enough = self.machines >= machines && lived >= simulated && self.faults.1 >= faults;
        (!enough && self.violations.is_empty()).then(|| {
            format!(
                "{} machines, {} s and {} faults while a task ran; {machines}, {} s and {faults} are the least",
                self.machines,
                lived.as_secs(),
                self.faults.1,
                simulated.as_secs()
            )
        })
    }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Has panics noted with the seed in which they happen; a task that panics must not go unseen.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
    }));
}

/// Whether a seed allots its faults to its orders although nobody asked for it: every second one does, since what is
/// struck early in a seed and what is struck late are different worlds.
pub fn spreads(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

/// Runs one seed; `spread` allots its faults to its orders, see [`state::FAULTS_OF_ORDER`].
pub fn run(
    seed: u64,
    mutation: Option<Mutation>,
    spread: bool,
    whole_trace: bool,
    fixtures: &Arc<Fixtures>,
) -> Result<Report> {
    let runtime = runtime().context("no runtime")?;
    let canaries = Canaries::new(&fixtures.pki);
    // Simulated time is that of this runtime, also between what it runs.
    let _entered = runtime.enter();
    let site = Site::new(seed, canaries, whole_trace);
    {
        let mut state = site.lock();
        state.mutation = mutation;
        state.faults.on = true;
        state.faults.most = state::FAULTS_MAX.0;
        state.faults.spread = spread;
        state.faults.per_mille = PER_MILLE;
    }
    let world = AssertUnwindSafe(|| {
        runtime.block_on(async {
            tokio::spawn(site.clone().tick());
            let mut operator = Operator::new(&site, fixtures).await?;
            let work = tokio::time::timeout(SEED_MAX, operator.work());
            work.await.context("it does not end")?
        })
    });
    let ended = catch_unwind(world);
    let mut state = site.lock();
    match ended {
        Ok(Ok(())) => {}
        // What was given up is a violation already; anything else is one now.
        Ok(Err(error)) if state.violations.is_empty() => {
            state.violated(6, format!("{error:#}"));
        }
        Ok(Err(_)) => {}
        Err(_) => {} // noted by the hook
    }
    for panic in PANICS.take() {
        state.violated(6, format!("panic: {panic}"));
    }
    let log = secrets::take_log();
    state.search("a log", &log);
    let report = Report {
        seed,
        violations: std::mem::take(&mut state.violations),
        trace: state.trace.lines().map(str::to_owned).collect(),
        digest: state.trace.digest,
        coverage: std::mem::take(&mut state.coverage),
        faults: (state.faults.count, state.faults.in_rollout),
        simulated_ms: state.now,
        machines: state.most_machines,
    };
    // Machines hold their world, and the world its machines.
    state.vms.clear();
    drop(state);
    Ok(report)
}

fn runtime() -> std::io::Result<Runtime> {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    builder.build()
}
