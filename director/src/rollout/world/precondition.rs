//! A last look before a machine is taken out of service.
//!
//! A plan is judged by what there was when it was made. A machine that has gone down by itself since then
//! counts as well: nothing more is taken while quorum or a pool's budget would not allow it. The step waits
//! for it, a drain for ten minutes, and then fails: the change stops, and what is left of it is shown. What may
//! be taken is decided by [`crate::ledger`].
//!
//! # Invariants
//! * Whether a node may be closed is looked at by one drain of a cluster at a time, which claims it in the same turn
//!   ([`Closings`]): of several that begin together so many go as may, and the others wait for them.
//! * That a node is being closed is written down before it is, and not before it may be.
//! * A machine counts as one that serves others by what its Node says and what is known of it besides: a Node says for
//!   up to a minute that a machine is Ready that has died, or that is back and whose kubelet does not run yet. What is
//!   not known does not serve; the machine that is to be closed itself does where its Node says so.
//!
//! # After a crash
//! Claims are gone. A node that was claimed and is open still counts as one that serves: its drain claims it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use windlass_common::error::ErrorClass;
use windlass_common::id::{MachineName, PoolName};
use windlass_common::step::Step;

use super::context::ClusterContext;
use super::etcd::Turns;
use super::{Done, EffectError, RecordChange, StepOrder, World};
use crate::kubernetes::render;
use crate::ledger::{Account, Owner, Standing};
use crate::model::{Machine, MachinePhase, Task, TaskKind, Timestamp};
use crate::planner::inputs::zones;
use crate::rollout::limit;

/// How long the other members of a control plane are looked at: one that serves answers at once.
const SERVES_LIMIT: Duration = Duration::from_secs(15);
/// How long a drain waits for machines of its pool that went down by themselves: they reboot, or are repaired.
const SPARE_LIMIT: Duration = Duration::from_secs(600);

/// What rounding makes of the time between a boot and what a kubelet has said since: an agent says in whole seconds how
/// long its machine is up, a Node by whole seconds when its kubelet spoke.
const ROUNDED_MS: u64 = 2_000;

/// The nodes that drains of this director have claimed and not yet given up.
#[derive(Debug, Default)]
pub struct Closings {
    turns: Turns,
    claimed: Arc<Mutex<BTreeSet<MachineName>>>,
}

/// A node that nobody else counts on; given up when it is dropped. By then it is closed, or open to whoever comes.
#[derive(Debug)]
struct Claim {
    machine: MachineName,
    claimed: Arc<Mutex<BTreeSet<MachineName>>>,
}

impl Closings {
    fn claim(&self, machine: &MachineName) -> Claim {
        let claim = Claim {
            machine: machine.clone(),
            claimed: Arc::clone(&self.claimed),
        };
        claim.all().insert(machine.clone());
        claim
    }

    fn claimed(&self) -> BTreeSet<MachineName> {
        let claimed = self.claimed.lock();
        claimed.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Claim {
    fn all(&self) -> std::sync::MutexGuard<'_, BTreeSet<MachineName>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.all().remove(&self.machine);
    }
}

impl World {
    /// Refuses to take a member of etcd while those that serve beside it are no majority. One that was about to be
    /// stopped before may be down: nothing is lost by it when nobody serves, as it says itself, and one of the others.
    pub(super) async fn others_serve(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<(), EffectError> {
        let control_plane = |machine: &&Machine| machine.role.is_control_plane();
        let members: Vec<&Machine> = context.machines.iter().filter(control_plane).collect();
        if members.len() < 3 {
            return Ok(()); // it is down meanwhile, and that was agreed to
        }
        let mut look = order.clone();
        look.limit = order.limit.min(SERVES_LIMIT);
        let looks = members
            .iter()
            .filter(|machine| machine.name != *name)
            .map(|other| self.serves(other, &look));
        let looks = join_all(looks).await;
        let others = members.iter().filter(|machine| machine.name != *name);
        let standing = |look: &Result<(), EffectError>| match look {
            Ok(()) => Standing::Serves,
            Err(_) => Standing::Down,
        };
        let standings = looks.iter().map(standing);
        let mut machines: BTreeMap<_, _> = others.map(|m| m.name.clone()).zip(standings).collect();
        machines.insert(name.clone(), Standing::Serves);
        let account = Account {
            owner: Owner::Etcd,
            machines,
            zones: BTreeMap::new(),
        };
        let Err(wait) = account.take(name) else {
            return Ok(());
        };
        // Of one that is not connected nothing is known.
        let says_no = |look: &Result<(), EffectError>| look.as_ref().is_err_and(|e| !e.resend);
        let nobody = looks.iter().all(Result::is_err) && looks.iter().any(says_no);
        let machine = context.machine(name)?;
        if nobody && machine.started.is_none() && says_no(&self.serves(machine, &look).await) {
            return Ok(());
        }
        let why: Vec<String> = looks
            .into_iter()
            .filter_map(|look| Some(look.err()?.message))
            .collect();
        Err(EffectError::new(
            ErrorClass::Retry,
            format!("{name} is not stopped: {wait}: {}", why.join("; ")),
        ))
    }

    async fn serves(&self, machine: &Machine, look: &StepOrder) -> Result<(), EffectError> {
        let gate = Step::Gate(render::control_plane_gate());
        let found = self.send(machine, look, "/serves", gate).await;
        found.map(|_| ())
    }

    /// Refuses to close a node while its pool has none to spare. Nodes that other drains have claimed count as
    /// closed. False: there is nothing to close, since the machine never came into service, and nobody is on it.
    async fn spare(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<bool, EffectError> {
        let machine = context.machine(name)?;
        let Some(pool) = machine.role.pool() else {
            return Ok(true);
        };
        let serving = self.kubernetes.serving(context).await?;
        if !serving.contains_key(&machine.node_name) {
            // It is missed already.
            return Ok(machine.phase == MachinePhase::Ready || machine.cordoned);
        }
        if machine.phase != MachinePhase::Ready && machine.labelled.is_none() {
            return Ok(true); // it has pods by now, and nobody counts on it
        }
        let cluster = &context.cluster.spec.name;
        // Others may have been closed since the step began.
        let machines = self.records.machines_of(cluster.as_str()).await?;
        let claimed = self.closings.claimed();
        let standing = |other: &Machine| {
            if other.name == *name {
                return Standing::Serves;
            }
            let seen = Seen {
                claimed: claimed.contains(&other.name),
                said: serving.get(&other.node_name).map(String::as_str),
                booted: self.agents.booted(&other.name, other.incarnation),
            };
            seen.standing(other)
        };
        let task = self.records.get_shared::<Task>(order.task.as_str()).await?;
        let repair = task.is_some_and(|task| task.kind == TaskKind::RepairCluster);
        let of_pool = machines
            .iter()
            .filter(|other| other.role.pool() == Some(pool));
        let account = Account {
            owner: Owner::Pool {
                pool: pool.clone(),
                floor: floor(context, pool, repair),
            },
            machines: of_pool
                .map(|other| (other.name.clone(), standing(other)))
                .collect(),
            zones: zones(&machines),
        };
        let wait = |wait| {
            let message = format!("{name} is not drained: {wait}");
            EffectError::new(ErrorClass::Retry, message)
        };
        account.take(name).map(|_| true).map_err(wait)
    }

    /// Claims a node that may be closed, and writes down that it is; none where there is nothing to close.
    async fn claim(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Option<Claim>, EffectError> {
        let cluster = &context.cluster.spec.name;
        let _turn = self.closings.turns.take(cluster).await;
        let spare = self.spare(context, name, order).await;
        let closes = spare.map_err(|mut error| {
            let waited = limit(&order.action).saturating_sub(order.limit);
            if error.class == ErrorClass::Retry && waited > SPARE_LIMIT {
                error.class = ErrorClass::Operator;
            }
            error
        })?;
        if !closes {
            return Ok(None);
        }
        let claim = self.closings.claim(name);
        self.note(RecordChange::Cordoning(name.clone()), cluster)
            .await?;
        Ok(Some(claim))
    }

    /// Closes a node and has its pods leave it; see [`super::KubeApi::drain`].
    pub(super) async fn drain(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let node = &context.machine(name)?.node_name;
        let Some(_claim) = self.claim(context, name, order).await? else {
            return Ok(Done {
                changes: vec![format!(
                    "node {node} is not in service, and nobody is asked to leave it"
                )],
                records: Vec::new(),
            });
        };
        self.empty(context, name, order).await
    }
}

/// What is seen of a machine that others count on.
#[derive(Debug, Clone, Copy)]
struct Seen<'a> {
    /// Another drain has claimed it.
    claimed: bool,
    /// When its kubelet has said last that its node is Ready, if that says so and takes pods.
    said: Option<&'a str>,
    /// When it booted, if signs of life arrive from it.
    booted: Option<Timestamp>,
}

impl Seen<'_> {
    fn standing(self, machine: &Machine) -> Standing {
        if self.claimed {
            Standing::Taken
        } else if self.serves(machine) {
            Standing::Serves
        } else if machine.cordoned || machine.phase < MachinePhase::Ready || machine.fenced {
            Standing::Taken
        } else {
            Standing::Down
        }
    }

    /// Whether its node is Ready by what its kubelet has said since it booted, and since we last started that.
    fn serves(self, machine: &Machine) -> bool {
        let (Some(said), Some(booted)) = (self.said, self.booted) else {
            return false;
        };
        let Ok(at) = said.parse::<Timestamp>() else {
            return false;
        };
        let anew = machine.heartbeat.as_deref() != Some(said);
        anew && at.unix_ms().saturating_add(ROUNDED_MS) > booted.unix_ms()
    }
}

/// The least number of machines of a pool in service; a repair has one to spare, as it was planned
/// ([`crate::planner::narrow`]).
fn floor(context: &ClusterContext, pool: &PoolName, repair: bool) -> usize {
    let Some(of) = context.cluster.spec.pools.get(pool) else {
        return 0;
    };
    let missing = of.update.max_unavailable.at_most(of.count);
    let least = of.count.saturating_sub(missing.max(u32::from(repair)));
    usize::try_from(least).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::tests::machine_in_service;

    /// When its kubelet has spoken last.
    const SAID: &str = "2030-01-31T12:00:00Z";

    #[test]
    fn who_serves_is_told_by_its_node_its_link_and_its_boot() {
        let said: Timestamp = SAID.parse().unwrap();
        let later = |ms: u64| Some(Timestamp::from_unix_ms(said.unix_ms() + ms));
        let nothing: fn(&mut Machine) = |_| {};
        type Case = (
            &'static str,
            Option<&'static str>,
            Option<Timestamp>,
            fn(&mut Machine),
            Standing,
        );
        let long_ago = Some(Timestamp::from_unix_ms(0));
        // What its node says, when it booted, and what its record says besides.
        #[rustfmt::skip]
        let cases: &[Case] = &[
            ("all is well",                       Some(SAID), long_ago,    nothing, Standing::Serves),
            ("its node is not Ready, or closed",  None,       long_ago,    nothing, Standing::Down),
            ("its node was closed by us",          None,       long_ago,    |m| m.cordoned = true, Standing::Taken),
            ("it is not heard",                   Some(SAID), None,        nothing, Standing::Down),
            ("it is shut out",                    Some(SAID), None,        |m| m.fenced = true, Standing::Taken),
            ("it is made, and not in service",    Some(SAID), None,        |m| m.phase = MachinePhase::Creating, Standing::Taken),
            ("its kubelet spoke before it booted", Some(SAID), later(2_000), nothing, Standing::Down),
            ("both are rounded",                  Some(SAID), later(1_999), nothing, Standing::Serves),
            ("its kubelet was started since",     Some(SAID), long_ago,    |m| m.heartbeat = Some(SAID.to_owned()), Standing::Down),
            ("and has spoken anew",               Some(SAID), long_ago,    |m| m.heartbeat = Some("2030-01-31T11:55:00Z".to_owned()), Standing::Serves),
            ("nobody knows when its kubelet spoke", Some(""), long_ago,    nothing, Standing::Down),
        ];
        for (what, said, booted, change, wanted) in cases {
            let mut machine = machine_in_service();
            change(&mut machine);
            let seen = |claimed| Seen {
                claimed,
                said: *said,
                booted: *booted,
            };
            assert_eq!(seen(false).standing(&machine), *wanted, "{what}");
            assert_eq!(seen(true).standing(&machine), Standing::Taken, "{what}");
        }
    }
}
