//! Care of etcd: what [`crate::care`] decides is done, one act after the other.
//!
//! # Invariants
//! * Nothing is done to a cluster that a task works on; one that begins meanwhile waits for the member that is being
//!   rewritten ([`crate::rollout::world::Turns`]) before it takes another out of service.
//! * Each act is in the audit log before it is done.
//!
//! # After a crash
//! The next look is the first one. A member that was being rewritten goes on by itself; it does not answer until it
//! has ended, and nothing is done to the others until then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;
use windlass_common::step::EtcdAction;

use super::etcd::AskError;
use super::{Inner, rounds};
use crate::care::{Care, REST, decide};
use crate::kubernetes::render::etcd_quota_bytes;
use crate::model::{Cluster, ClusterPhase, Machine};
use crate::store::Commit;

/// Between two looks at the etcd of one cluster: a report costs each member one request.
const PERIOD: Duration = Duration::from_secs(30);
/// Acts on one cluster in one look: each member of five once, with the leadership moved, and an alarm.
const ACTS_MAX: usize = 12;
/// How long rewriting may take: as long as an agent gives it, and a report before and after.
const DEFRAGMENT_LIMIT: Duration = Duration::from_secs(400);
/// How long a small act may take.
const ACT_LIMIT: Duration = Duration::from_secs(60);
/// Whose acts these are.
const DIRECTOR: &str = "director";

/// What is remembered between two looks; all of it may be lost.
#[derive(Debug, Default)]
pub(super) struct CareBook {
    of: Mutex<BTreeMap<ClusterName, Notes>>,
    /// Clusters whose etcd needs a person.
    operator: AtomicU64,
}

/// About one cluster.
#[derive(Debug, Default)]
struct Notes {
    /// When each member was rewritten last.
    rewritten: BTreeMap<String, Instant>,
    /// Why a person has to act.
    problem: Option<String>,
    /// Whether it is being looked at.
    looked_at: bool,
}

impl CareBook {
    fn notes(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Notes>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago members were rewritten.
    fn ago(&self, cluster: &ClusterName) -> BTreeMap<String, Duration> {
        let mut notes = self.notes();
        let rewritten = &mut notes.entry(cluster.clone()).or_default().rewritten;
        rewritten.retain(|_, at| at.elapsed() < REST);
        let ago = |(name, at): (&String, &Instant)| (name.clone(), at.elapsed());
        rewritten.iter().map(ago).collect()
    }

    fn rewritten(&self, cluster: &ClusterName, member: String) {
        let mut notes = self.notes();
        let of = notes.entry(cluster.clone()).or_default();
        of.rewritten.insert(member, Instant::now());
    }

    /// Says in the log what is new.
    fn set_problem(&self, cluster: &ClusterName, problem: Option<String>) {
        let mut notes = self.notes();
        let of = notes.entry(cluster.clone()).or_default();
        if of.problem != problem {
            match &problem {
                Some(problem) => tracing::error!(%cluster, problem, "etcd needs an operator"),
                None => tracing::info!(%cluster, "etcd needs no operator any more"),
            }
        }
        of.problem = problem;
        let count = notes.values().filter(|of| of.problem.is_some()).count();
        self.operator.store(count as u64, Ordering::Relaxed);
    }

    /// How many clusters there are whose etcd needs a person.
    pub(super) fn needs_operator(&self) -> u64 {
        self.operator.load(Ordering::Relaxed)
    }

    /// Why a person has to act on a cluster's etcd.
    pub(super) fn problem(&self, cluster: &ClusterName) -> Option<String> {
        self.notes().get(cluster)?.problem.clone()
    }

    /// Forgets those that are gone.
    fn keep(&self, clusters: &[Cluster]) {
        self.notes()
            .retain(|name, _| clusters.iter().any(|cluster| cluster.spec.name == *name));
    }
}

/// Starts the looks; they end with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(rounds::every(director, PERIOD, round));
}

async fn round(director: &Arc<Inner>) {
    let clusters: Vec<Cluster> = match director.records.list().await {
        Ok(clusters) => clusters,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "the clusters cannot be read");
            return;
        }
    };
    director.care.keep(&clusters);
    for cluster in clusters.into_iter().filter(is_at_rest) {
        let name = cluster.spec.name.clone();
        {
            let mut notes = director.care.notes();
            let of = notes.entry(name.clone()).or_default();
            if std::mem::replace(&mut of.looked_at, true) {
                continue;
            }
        }
        let director = director.clone();
        tokio::spawn(async move {
            if let Err(error) = look(&director, &cluster).await {
                tracing::warn!(cluster = %name, error = %ErrorChain(&error), "etcd is not cared for");
            }
            if let Some(of) = director.care.notes().get_mut(&name) {
                of.looked_at = false;
            }
        });
    }
}

/// Whether it serves and no task works on it.
fn is_at_rest(cluster: &Cluster) -> bool {
    cluster.task.is_none()
        && match cluster.phase {
            ClusterPhase::Ready | ClusterPhase::Degraded => true,
            ClusterPhase::Updating
            | ClusterPhase::Creating
            | ClusterPhase::Failed
            | ClusterPhase::Deleting => false,
        }
}

/// Does what is to be done until there is nothing.
async fn look(director: &Inner, cluster: &Cluster) -> Result<(), AskError> {
    let name = &cluster.spec.name;
    let quota = etcd_quota_bytes(&cluster.spec);
    for _ in 0..ACTS_MAX {
        let Ok(machines) = director.records.machines_of(name.as_str()).await else {
            return Ok(());
        };
        let voters = director.voters(&machines);
        let Some(asked) = voters.first() else {
            return Ok(());
        };
        let report = director.etcd_report(asked).await?;
        let care = decide(&report, quota, &director.care.ago(name));
        let problem = match &care {
            Care::Operator { problem } => Some(problem.clone()),
            Care::Nothing | Care::Wait { .. } | Care::Defragment { .. } | Care::Disarm { .. } => {
                None
            }
        };
        director.care.set_problem(name, problem);
        match care {
            Care::Nothing | Care::Operator { .. } => return Ok(()),
            Care::Wait { why } => {
                tracing::debug!(cluster = %name, why, "etcd is let be");
                return Ok(());
            }
            Care::Defragment { member, leads, why } => {
                let Some(machine) = voters.iter().find(|m| m.name.as_str() == member) else {
                    return Ok(()); // its agent is away
                };
                let _turn = director.world.etcd_turns.take(name).await;
                if !still_at_rest(director, name).await {
                    return Ok(());
                }
                // Remembered first: one that fails is not tried again and again.
                director.care.rewritten(name, member);
                if leads {
                    let why = "another member leads while its database is rewritten";
                    act(director, machine, EtcdAction::MoveLeader, why, ACT_LIMIT).await?;
                }
                let action = EtcdAction::Defragment;
                act(director, machine, action, &why, DEFRAGMENT_LIMIT).await?;
            }
            Care::Disarm { why } => {
                if !still_at_rest(director, name).await {
                    return Ok(());
                }
                let action = EtcdAction::DisarmAlarms;
                act(director, asked, action, &why, ACT_LIMIT).await?;
            }
        }
    }
    Ok(())
}

async fn still_at_rest(director: &Inner, name: &ClusterName) -> bool {
    let found = director.records.get::<Cluster>(name.as_str()).await;
    matches!(found, Ok(Some(cluster)) if is_at_rest(&cluster))
}

async fn act(
    director: &Inner,
    machine: &Machine,
    action: EtcdAction,
    why: &str,
    limit: Duration,
) -> Result<(), AskError> {
    let verb = match action {
        EtcdAction::Defragment => "etcd.defragment",
        EtcdAction::DisarmAlarms => "etcd.disarm",
        EtcdAction::MoveLeader => "etcd.move-leader",
        EtcdAction::Report
        | EtcdAction::Snapshot { .. }
        | EtcdAction::AddLearner { .. }
        | EtcdAction::Promote { .. }
        | EtcdAction::Remove { .. } => "etcd",
    };
    let mut commit = Commit::default();
    let subject = format!("machine/{}", machine.name);
    director
        .records
        .audit(&mut commit, DIRECTOR, verb, &subject, why);
    if let Err(error) = director.records.commit(commit).await {
        tracing::warn!(error = %ErrorChain(&error), "cannot write the audit log");
        return Ok(()); // nothing is done that is not written down
    }
    let answer = director.ask_etcd(machine, action, limit).await?;
    for change in answer.changes {
        tracing::info!(machine = %machine.name, act = verb, change, "cared for etcd");
    }
    Ok(())
}
