//! The resurrector's loop: watches machines, has those that do not work judged, and heals them.
//!
//! Decisions are [`crate::resurrector`]'s; here they are fed and carried out. Units are restarted by the
//! machine's agent, machines that are down by the provider. A replacement, and the restart of a machine that serves, is
//! changed desired state, planned and carried out like every other change, by a task of its own that touches nothing but
//! the machines it names.
//!
//! # Invariants
//! * Machines that work cost nothing: witnesses are asked about suspects, and the provider about a few whose heartbeat
//!   is late, a bounded number at a time.
//! * A remedy is written down, with the evidence for it, before it is begun.
//! * The machine's record names its next incarnation in the same commit that writes the remedy down and makes
//!   the task, so that there is a task for each replacement that was tried, and one only.
//! * A cluster has one task at a time. A machine that serves nobody is replaced by the change or repair that
//!   runs, as the next thing it does, and one that serves is restarted by it, in its turn; to replace what still
//!   serves waits for the end of it. Milder remedies wait only for a task that has the machine itself in hand.
//! * A restart that is wanted of a machine is forgotten once nothing is wrong with it any more.
//! * A director whose clock jumped, or that stood still, watches first, as after its start. While it does, nothing is
//!   concluded from silence: agents are on their way back.
//!
//! # After a crash
//! Cases are records and are read with each round; a restart of a machine that was begun and whose end was
//! not seen is done again, unless the machine was started since. Tasks are resumed by the rollout.
//!
//! # Not here
//! What evidence means and what comes next (resurrector), the order of a replacement's steps (planner).

mod deaths;
mod operators;
mod reboot;
mod remedy;
mod replace;
mod sight;
mod stopped;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use windlass_common::error::ErrorChain;
use windlass_common::id::MachineName;

use super::{Inner, ServiceResult};
use crate::config::{Forensics, ResurrectorConfig};
use crate::gateway::Gateway;
use crate::model::{Machine, Timestamp};
use crate::resurrector::witness::{Gathered, Witnesses};
use crate::resurrector::{
    ACTOR, CaseRecord, Evidence, Lease, Link, Mode, Outlook, Peers, Power, Rung, Verdict, Watch,
    Work, decide, in_doubt, verdict,
};
use crate::store::{Commit, StoreError};

pub use operators::{NodeWhy, RecreateOrder};
use sight::Sight;
pub use stopped::StoppedPool;

/// Between two looks at machines that do not work.
const SUSPECTS: Duration = Duration::from_secs(1);
/// Between two looks when all work: changes of links and reports are told at once, this is for what is not.
const CALM: Duration = Duration::from_secs(10);
/// Changes that come together are looked at together.
const GATHER_CHANGES: Duration = Duration::from_millis(50);
/// Suspects that witnesses are asked about at a time. Each question costs a call of the provider, three
/// probes and a look at a Lease.
const ASKED_AT_ONCE: usize = 32;
/// Machines that are asked about because a heartbeat is late. Where it is more, the network or the director itself is the
/// reason, and they are asked about when they are suspect.
const LATE_MAX: usize = 8;
/// Between two looks at the director's own clock.
const CLOCK_LOOK: Duration = Duration::from_secs(1);

/// What the loop and those who ask about it share.
pub(super) struct Repairs {
    config: ResurrectorConfig,
    witnesses: Arc<dyn Witnesses>,
    /// Since when this director watches without a break, Unix milliseconds.
    since_ms: AtomicU64,
    /// When the steady clock of `watch` began.
    began: Instant,
    watch: Mutex<Watch>,
    /// An operator changed something.
    wake: Notify,
    board: Mutex<Board>,
}

impl fmt::Debug for Repairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repairs({})", self.config.mode)
    }
}

/// What the last round saw and decided.
#[derive(Debug, Default)]
struct Board {
    looked_at_ms: u64,
    provider_silent: bool,
    gathered: BTreeMap<MachineName, Gathered>,
    outlooks: BTreeMap<MachineName, Outlook>,
    /// Machines that are not judged, each with the reason.
    unwatched: BTreeMap<MachineName, &'static str>,
    verdicts: BTreeMap<MachineName, Verdict>,
    /// Machines to which something is being done.
    acting: BTreeSet<MachineName>,
    /// Remedies that could not be begun, each until when it is not tried again.
    failed: BTreeMap<MachineName, (u64, String)>,
    /// Pools that are left to an operator since their replacements die.
    stopped: Vec<StoppedPool>,
}

impl Repairs {
    pub(super) fn new(config: ResurrectorConfig, witnesses: Arc<dyn Witnesses>) -> Repairs {
        let now = now_ms();
        Repairs {
            config,
            witnesses,
            since_ms: AtomicU64::new(now),
            began: Instant::now(),
            watch: Mutex::new(Watch::new(Duration::ZERO, now)),
            wake: Notify::new(),
            board: Mutex::default(),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether the director stood still, or its clock was set, since the last look: from then on it watches for
    /// a while, as after its start, and no time that was noted by the other clock is waited for.
    fn look_at_clock(&self) {
        let now = now_ms();
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(distrust) = watch.look(self.began.elapsed(), now) {
            tracing::warn!(
                why = distrust.why(),
                "the director watches for a while before it heals anything"
            );
            self.since_ms.store(now, Ordering::Relaxed);
            self.board().failed.clear();
        }
    }

    /// Whether agents may still be on their way back to it.
    fn in_doubt(&self, now_ms: u64) -> bool {
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        now_ms < since_ms.saturating_add(self.config.policy.guard.watch_first_ms)
    }

    /// What is kept of machines that are replaced.
    pub(super) fn forensics(&self) -> Forensics {
        self.config.forensics
    }

    /// How many machines there are of each verdict; those that are not judged are left out.
    pub(super) fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        let mut counts = BTreeMap::new();
        for verdict in self.board().verdicts.values() {
            *counts.entry(*verdict).or_insert(0) += 1;
        }
        counts
    }
}

fn now_ms() -> u64 {
    Timestamp::now().unix_ms()
}

/// Starts the loop; it ends with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(look_at_clock(director.clone()));
    tokio::spawn(async move {
        let Some(mut changes) = director.upgrade().map(|d| d.repairs.witnesses.changes()) else {
            return;
        };
        let Some(over) = director.upgrade().map(|d| d.hold.over()) else {
            return;
        };
        // The records of a director on hold are not to be trusted: nobody is judged by them.
        over.await;
        if let Some(director) = director.upgrade() {
            let now = now_ms();
            director.repairs.since_ms.store(now, Ordering::Relaxed);
            remedy::take_up(director).await;
        }
        loop {
            let Some(inner) = director.upgrade() else {
                return;
            };
            if inner.repairs.config.mode == Mode::Off {
                return;
            }
            let busy = match round(inner.clone()).await {
                Ok(busy) => busy,
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "machines cannot be judged");
                    true
                }
            };
            drop(inner);
            let pause = if busy { SUSPECTS } else { CALM };
            let again = Instant::now() + pause;
            let Some(inner) = director.upgrade() else {
                return;
            };
            tokio::select! {
                change = changes.next() => {
                    if change.is_none() {
                        return; // the gateway is gone, and the director with it
                    }
                    tokio::time::sleep(GATHER_CHANGES).await;
                    // What else has come by now is looked at in the same round.
                    while futures_util::FutureExt::now_or_never(changes.next()).is_some_and(|c| c.is_some()) {}
                }
                () = inner.repairs.wake.notified() => {}
                () = sleep_until(again) => {}
            }
        }
    });
}

/// Looks at the director's own clock, however long a round takes.
async fn look_at_clock(director: Weak<Inner>) {
    let mut looks = tokio::time::interval(CLOCK_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match director.upgrade() {
            Some(director) if director.repairs.config.mode != Mode::Off => {
                director.repairs.look_at_clock();
            }
            _ => return,
        }
    }
}

/// Looks, judges, decides and acts; true while something does not work.
async fn round(director: Arc<Inner>) -> ServiceResult<bool> {
    let repairs = &director.repairs;
    let mut sight = Sight::read(&director.records).await?;
    let (suspects, others): (Vec<&Machine>, Vec<&Machine>) = sight
        .watched()
        .partition(|machine| suspicious(repairs, &director.gateway, machine, sight.case(machine)));
    let some = !suspects.is_empty();
    let late = few_that_are_late(repairs, others);
    let asked = suspects.into_iter().chain(late.iter().copied());
    let asked = asked.cloned().collect();
    let late: BTreeSet<MachineName> = late.into_iter().map(|late| late.name.clone()).collect();
    let mut gathered = ask(&repairs.witnesses, asked).await;
    // One that is heard has nothing to say for being late alone.
    gathered.retain(|name, said| !late.contains(name) || said.evidence.link == Link::Silent);
    // It may have stood still while witnesses were asked.
    repairs.look_at_clock();
    let now = now_ms();
    let judged = judge(&director, &mut sight, &gathered, now).await?;
    let acting = repairs.board().acting.clone();
    let provider_silent = !gathered.is_empty()
        && gathered
            .values()
            .all(|g| g.evidence.power == Power::Unknown);
    let since_ms = repairs.since_ms.load(Ordering::Relaxed);
    // Others that died with one that was late are not suspect yet.
    let silent = |machine: &Machine| {
        repairs.witnesses.link(machine) == Link::Silent || repairs.witnesses.late(machine)
    };
    let fleet = sight.fleet(&acting, silent, since_ms, !provider_silent);
    let mut outlooks = decide(&sight.cases(), &fleet, now, &repairs.config.policy);
    let stopped = stopped::pools(&fleet, &repairs.config.policy.guard);
    let orders = remedy::orders(&mut outlooks, &sight, &director, now);
    {
        let mut board = repairs.board();
        board.looked_at_ms = now;
        board.provider_silent = provider_silent;
        board.verdicts = sight.verdicts();
        board.unwatched = sight.unwatched.clone();
        board.gathered = gathered;
        board.outlooks = outlooks;
        board.stopped = stopped;
        board.failed.retain(|_, (until_ms, _)| *until_ms > now);
    }
    let busy = some || judged;
    if repairs.config.mode == Mode::On {
        for order in orders {
            remedy::carry_out(director.clone(), &sight, order, now).await;
        }
    }
    Ok(busy)
}

/// Those whose heartbeat is late, if they are few.
fn few_that_are_late<'a>(repairs: &Repairs, mut machines: Vec<&'a Machine>) -> Vec<&'a Machine> {
    machines.retain(|machine| repairs.witnesses.late(machine));
    match machines.len() <= LATE_MAX {
        true => machines,
        false => Vec::new(),
    }
}

/// Whether witnesses have to be asked about a machine.
fn suspicious(
    repairs: &Repairs,
    gateway: &Gateway,
    machine: &Machine,
    case: Option<&CaseRecord>,
) -> bool {
    if repairs.witnesses.link(machine) == Link::Silent {
        return true;
    }
    if case.is_some_and(|record| {
        record.case.verdict != Verdict::Healthy || record.incarnation != machine.incarnation
    }) {
        return true;
    }
    gateway
        .session(&machine.name, machine.incarnation)
        .is_some_and(|session| {
            let counted = session.last_heartbeat.as_ref();
            let named = session.report.as_ref();
            let conditions = crate::health::of_session(&session, Timestamp::now());
            counted.is_some_and(|(_, beat)| beat.units_unhealthy > 0)
                || crate::health::counting(&conditions).next().is_some()
                || named.is_some_and(|(_, report)| !crate::health::failing(report).is_empty())
        })
}

async fn ask(
    witnesses: &Arc<dyn Witnesses>,
    suspects: Vec<Machine>,
) -> BTreeMap<MachineName, Gathered> {
    let witnesses = Arc::clone(witnesses);
    stream::iter(suspects)
        .map(move |machine| {
            let witnesses = Arc::clone(&witnesses);
            async move {
                let gathered = witnesses.evidence(&machine).await;
                (machine.name, gathered)
            }
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .collect()
        .await
}

/// What is taken for evidence about a machine that nobody suspects.
const NOT_SUSPECTED: Evidence = Evidence {
    link: Link::Beating,
    peers: Peers::Unknown,
    lease: Lease::Unknown,
    power: Power::Unknown,
    work: Work::Well,
};

/// Judges what was gathered and writes down what is new; true if something was.
async fn judge(
    director: &Inner,
    sight: &mut Sight,
    gathered: &BTreeMap<MachineName, Gathered>,
    now: u64,
) -> ServiceResult<bool> {
    let policy = &director.repairs.config.policy;
    let watched: Vec<Machine> = sight.watched().cloned().collect();
    let mut wrote = false;
    for mut machine in watched {
        let evidence = gathered.get(&machine.name).map(|g| g.evidence);
        let seen = evidence.unwrap_or(NOT_SUSPECTED);
        let found = sight.case(&machine).cloned();
        let verdict = match director.repairs.in_doubt(now) {
            true => {
                let same = found
                    .as_ref()
                    .filter(|f| f.incarnation == machine.incarnation);
                in_doubt(&seen, same.map(|record| record.case.verdict))
            }
            false => verdict(&seen),
        };
        if found.is_none() && verdict == Verdict::Healthy {
            continue;
        }
        let mut record = found
            .unwrap_or_else(|| CaseRecord::new(machine.name.clone(), machine.incarnation, now));
        let before = record.case.verdict;
        let poison_ms = policy.guard.poison_ms;
        record.arrive(machine.incarnation, sight.awaits(&machine));
        let new = record.judge(
            machine.incarnation,
            verdict,
            seen,
            now,
            &policy.ladder,
            poison_ms,
        );
        let died = record.died_untold();
        if died {
            let death = deaths::of(director, &machine, &record, now).await?;
            tracing::warn!(machine = %machine.name, ?death, "a replacement died young");
            record.tell_death(death);
        }
        // A restart that was to come is not needed any more.
        let spared = verdict == Verdict::Healthy && machine.reboot.take().is_some();
        if new || died || spared {
            wrote = true;
            let mut commit = Commit::default();
            if spared {
                record.case.not_tried(Rung::Reboot);
                commit.put(&machine)?;
            }
            commit.put(&record)?;
            let (dead_before, _) = sight.died_in_pool_of(&machine);
            let known_before = sight.put(record.clone());
            let (dead, cause) = sight.died_in_pool_of(&machine);
            if dead_before < policy.guard.poison_after && policy.guard.poison_after <= dead {
                stopped::tell(director, &mut commit, &machine, dead, &cause);
            }
            if before != verdict {
                tell(
                    director,
                    &mut commit,
                    &machine,
                    (before, verdict),
                    gathered.get(&machine.name),
                );
            }
            match director.records.commit(commit).await {
                Ok(revision) => record.revision = revision,
                // An operator was faster: the next round sees what was said.
                Err(StoreError::Conflict { .. }) => {
                    sight.restore(&machine.name, known_before);
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
        }
        sight.put(record);
    }
    Ok(wrote)
}

fn tell(
    director: &Inner,
    commit: &mut Commit,
    machine: &Machine,
    (before, verdict): (Verdict, Verdict),
    gathered: Option<&Gathered>,
) {
    let silent_ms = gathered.and_then(|g| g.silent_ms);
    let took_ms = gathered.map(|g| g.took_ms);
    let evidence = gathered.map(|g| g.evidence);
    tracing::info!(
        machine = %machine.name, incarnation = %machine.incarnation, %before, %verdict, ?evidence, silent_ms,
        took_ms, "verdict"
    );
    let said = match evidence {
        Some(of) => format!(
            "{before} → {verdict}: link {:?}, peers {:?}, lease {:?}, power {:?}, work {:?}",
            of.link, of.peers, of.lease, of.power, of.work
        ),
        None => format!("{before} → {verdict}: nothing speaks against it"),
    };
    let subject = format!("machine/{}", machine.name);
    director
        .records
        .audit(commit, ACTOR, "node.verdict", &subject, &said);
}
