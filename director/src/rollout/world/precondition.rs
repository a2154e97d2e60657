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
use crate::model::{Machine, MachinePhase, Task, TaskKind};
use crate::planner::inputs::zones;
use crate::rollout::limit;

/// How long the other members of a control plane are looked at: one that serves answers at once.
const SERVES_LIMIT: Duration = Duration::from_secs(15);
/// How long a drain waits for machines of its pool that went down by themselves: they reboot, or are repaired.
const SPARE_LIMIT: Duration = Duration::from_secs(600);

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
        if !serving.contains(&machine.node_name) {
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
            if other.name != *name && claimed.contains(&other.name) {
                Standing::Taken
            } else if serving.contains(&other.node_name) {
                Standing::Serves
            } else if other.cordoned || other.phase < MachinePhase::Ready || other.fenced {
                Standing::Taken
            } else {
                Standing::Down
            }
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
