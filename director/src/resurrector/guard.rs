//! Whether a remedy may be done now, given everything else that is going on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{ClusterName, MachineName, PoolName, ZoneName};

use super::{Cause, Rung, Verdict};
use crate::ledger::{Account, Owner, Standing, Wait};

/// Everything that the guards look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// All machines.
    pub machines: BTreeMap<MachineName, Member>,
    /// The director itself.
    pub director: Director,
    /// What the replacements that died young have in common; absent where none did.
    pub causes: BTreeMap<(ClusterName, Role), Cause>,
}

/// What the guards know about the director.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Director {
    /// When it began to watch, Unix milliseconds.
    pub since_ms: u64,
    /// Whether its provider answers. One that does not may be cut off itself.
    pub provider_answers: bool,
}

/// One machine among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its cluster.
    pub cluster: ClusterName,
    /// What it is for.
    pub role: Role,
    /// The zone that it is in.
    pub zone: Option<ZoneName>,
    /// What is known about it.
    pub verdict: Verdict,
    /// Whether its link is silent, whatever the verdict.
    pub silent: bool,
    /// Whether a rollout or a repair has it in hand.
    pub in_hand: bool,
    /// Whether the task that works on its cluster takes its replacement in, which then comes next.
    pub joins: bool,
    /// Whether an operator holds it as it is.
    pub held: bool,
    /// Whether it is shut out already: it can only be replaced.
    pub fenced: bool,
    /// Replacements of it that died within [`GuardPolicy::poison_ms`] of their making, in a row.
    pub stillborn: u32,
}

/// What a machine is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A member of etcd with an API server.
    ControlPlane,
    /// A worker of a pool.
    Worker(PoolName),
}

/// Bounds of what repairs may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuardPolicy {
    /// How long a director only watches after its start, milliseconds: agents come back within seconds.
    pub watch_first_ms: u64,
    /// Share of a cluster's machines that may be silent and not proven gone, percent; more is a storm.
    pub storm_percent: u32,
    /// Fewest silent machines that are a storm.
    pub storm_min: u32,
    /// Machines of a pool that may be unavailable because of repairs.
    pub pool_max_unavailable: u32,
    /// Replacements of one pool that died young, whatever of, before the pool is left to an operator.
    pub poison_after: u32,
    /// How soon a replacement has to die to count as that, milliseconds.
    pub poison_ms: u64,
}

impl Default for GuardPolicy {
    fn default() -> Self {
        Self {
            watch_first_ms: 60_000,
            storm_percent: 50,
            storm_min: 3,
            pool_max_unavailable: 1,
            poison_after: 3,
            poison_ms: 600_000,
        }
    }
}

/// Why a remedy may not be done now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The machine is not known.
    #[error("it is not a machine of this director")]
    Stranger,
    /// An operator said so.
    #[error("an operator holds it; `windlass node release` lets it go")]
    Held,
    /// A rollout or another repair works on it.
    #[error("a task has it in hand already")]
    InHand,
    /// The director has just begun.
    #[error("the director only watches until {until_ms}: agents come back after its start")]
    Young {
        /// Unix milliseconds.
        until_ms: u64,
    },
    /// The provider does not answer.
    #[error("the provider does not answer, so the director may be cut off itself")]
    Isolated,
    /// Much is silent at once.
    #[error(
        "{silent} of {machines} machines of the cluster are silent at once; the cause is elsewhere"
    )]
    Storm {
        /// Silent machines that are not proven gone.
        silent: u32,
        /// Machines of the cluster.
        machines: u32,
    },
    /// etcd would lose its majority.
    #[error(
        "etcd has {healthy} of {members} members well and needs {quorum} without this one; bring others back, or, \
         if a majority is gone for good, `windlass cluster restore {cluster} --from-member --dry-run` shows what is \
         left of etcd and what beginning again with it would lose"
    )]
    Quorum {
        /// The cluster.
        cluster: ClusterName,
        /// Other members that serve.
        healthy: u32,
        /// All members.
        members: u32,
        /// A majority.
        quorum: u32,
    },
    /// Another control-plane machine is worked on.
    #[error("control-plane machine {other} is worked on; one at a time")]
    OneAtATime {
        /// The other.
        other: MachineName,
    },
    /// A machine of another zone is worked on.
    #[error("{other} in zone {zone} is worked on; one zone of a pool at a time")]
    Zone {
        /// The other.
        other: MachineName,
        /// Its zone.
        zone: ZoneName,
    },
    /// The pool's budget is spent.
    #[error("{unavailable} machines of pool {pool} are unavailable already, {most} may be")]
    Budget {
        /// The pool.
        pool: PoolName,
        /// Others that are down or in hand.
        unavailable: u32,
        /// The budget.
        most: u32,
    },
    /// Replacements die.
    #[error(
        "{count} replacements died soon after they were made; {cause}; mend that, then `windlass node release` \
         lets its machine be replaced again"
    )]
    Poison {
        /// How many.
        count: u32,
        /// What they have in common.
        cause: Cause,
    },
}

/// Whether `rung` may be done to `machine` at `now_ms`.
///
/// # Errors
/// The first guard that refuses, the gravest first.
pub fn allow(
    fleet: &Fleet,
    machine: &MachineName,
    rung: Rung,
    now_ms: u64,
    policy: &GuardPolicy,
) -> Result<(), Refusal> {
    let member = fleet.machines.get(machine).ok_or(Refusal::Stranger)?;
    if member.held {
        return Err(Refusal::Held);
    }
    if member.in_hand && !(member.joins && member.verdict.is_down() && rung == Rung::Replace) {
        return Err(Refusal::InHand);
    }
    if rung < Rung::Reboot {
        // Restarting units of a machine that is reached is what its agent is for.
        return Ok(());
    }
    itself(fleet, now_ms, policy)?;
    storm(fleet, &member.cluster, policy)?;
    disruption(fleet, machine, member, policy)?;
    if rung == Rung::Replace {
        poison(fleet, member, policy)?;
    }
    Ok(())
}

/// What speaks against the director's own eyes.
fn itself(fleet: &Fleet, now_ms: u64, policy: &GuardPolicy) -> Result<(), Refusal> {
    let until_ms = fleet
        .director
        .since_ms
        .saturating_add(policy.watch_first_ms);
    if now_ms < until_ms {
        return Err(Refusal::Young { until_ms });
    }
    if !fleet.director.provider_answers {
        return Err(Refusal::Isolated);
    }
    Ok(())
}

/// Machines that the provider says are gone are no riddle, so they do not count.
fn storm(fleet: &Fleet, cluster: &ClusterName, policy: &GuardPolicy) -> Result<(), Refusal> {
    let of_cluster = || fleet.machines.values().filter(|m| m.cluster == *cluster);
    let machines = count(of_cluster());
    let silent = count(of_cluster().filter(|m| m.silent && m.verdict != Verdict::MachineGone));
    let share = silent.saturating_mul(100) >= machines.saturating_mul(policy.storm_percent);
    if silent >= policy.storm_min && share {
        return Err(Refusal::Storm { silent, machines });
    }
    Ok(())
}

/// What the ledger says: a machine that serves nobody costs nothing, and goes first.
fn disruption(
    fleet: &Fleet,
    machine: &MachineName,
    member: &Member,
    policy: &GuardPolicy,
) -> Result<(), Refusal> {
    let alike = || {
        let of = fleet.machines.iter();
        of.filter(|(_, other)| other.cluster == member.cluster && other.role == member.role)
    };
    // A repair of its own goes after the one before it; a task that takes it in puts all in order.
    if member.role == Role::ControlPlane
        && !member.joins
        && let Some((other, _)) = alike().find(|(name, other)| *name != machine && other.in_hand)
    {
        let other = other.clone();
        return Err(Refusal::OneAtATime { other });
    }
    let standing = |(name, other): (&MachineName, &Member)| {
        let standing = if other.verdict.is_down() {
            Standing::Down
        } else if name == machine {
            Standing::Serves
        } else if other.in_hand {
            Standing::Taken
        // A member about which nothing is known is not counted on.
        } else if other.role == Role::ControlPlane && !other.verdict.serves() {
            Standing::Down
        } else {
            Standing::Serves
        };
        (name.clone(), standing)
    };
    let machines: BTreeMap<_, _> = alike().map(standing).collect();
    let most = usize::try_from(policy.pool_max_unavailable).unwrap_or(usize::MAX);
    let owner = match &member.role {
        Role::ControlPlane => Owner::Etcd,
        Role::Worker(pool) => Owner::Pool {
            pool: pool.clone(),
            floor: machines.len().saturating_sub(most),
        },
    };
    let zoned = |(name, other): (&MachineName, &Member)| Some((name.clone(), other.zone.clone()?));
    let account = Account {
        owner,
        machines,
        zones: alike().filter_map(zoned).collect(),
    };
    account.take(machine).map(drop).map_err(|wait| match wait {
        Wait::Pool {
            pool, down, taken, ..
        } => Refusal::Budget {
            pool,
            unavailable: count(down.iter().chain(&taken)),
            most: policy.pool_max_unavailable,
        },
        Wait::Zone { other, zone } => Refusal::Zone { other, zone },
        Wait::Member { other } => Refusal::OneAtATime { other },
        Wait::Quorum {
            left,
            members,
            quorum,
            ..
        } => {
            let [healthy, members, quorum] =
                [left, members, quorum].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            Refusal::Quorum {
                cluster: member.cluster.clone(),
                healthy,
                members,
                quorum,
            }
        }
    })
}

fn poison(fleet: &Fleet, member: &Member, policy: &GuardPolicy) -> Result<(), Refusal> {
    let pool = (member.cluster.clone(), member.role.clone());
    if let Some(count) = poisoned(fleet, policy).remove(&pool) {
        let cause = fleet.causes.get(&pool).cloned().unwrap_or_default();
        return Err(Refusal::Poison { count, cause });
    }
    Ok(())
}

/// The pools that are left to an operator since their replacements die, with how many did in a row.
pub fn poisoned(fleet: &Fleet, policy: &GuardPolicy) -> BTreeMap<(ClusterName, Role), u32> {
    let mut pools: BTreeMap<_, u32> = BTreeMap::new();
    for member in fleet.machines.values() {
        let pool = (member.cluster.clone(), member.role.clone());
        let count = pools.entry(pool).or_default();
        *count = count.saturating_add(member.stillborn);
    }
    pools.retain(|_, count| *count >= policy.poison_after);
    pools
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
