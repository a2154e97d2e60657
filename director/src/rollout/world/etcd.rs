//! Steps that ask etcd, through the agents of machines whose members have a vote.
//!
//! # Invariants
//! * Who has a vote is written down in the commit that ends the step which changed it. A step that ended
//!   without that being written down is sent again, and finds that it is done.
//! * What a member begins with is what etcd's members were when it was added, written down before it starts.
//! * Before members are added or removed, the one that is asked for it saves what etcd holds on its own data disk.
//!   Where that fails, nothing is added or removed.
//!
//! # Not here
//! In which order members join and leave (the planner). What etcd is asked (the agent).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::step::{EtcdAction, EtcdPeer, Service, Step, StepResult};

use super::context::ClusterContext;
use super::node::configure_step;
use super::{Done, EffectError, RecordChange, StepOrder, World};
use crate::gateway::DeliveryError;
use crate::kubernetes::facts::MachineFacts;
use crate::kubernetes::render::{self, Phase};
use crate::model::Machine;

/// Snapshots that stay on a machine's data disk: those of the last changes and backups.
pub(crate) const SNAPSHOTS_KEPT: u32 = 3;
/// The part of a change of members that saves what etcd holds.
const SAVED_FIRST: &str = "/saved";
/// How long one machine may take to connect before another one is asked.
const ELSEWHERE: Duration = Duration::from_secs(2);

/// Whose turn it is to do what only one may do in a cluster at a time.
#[derive(Debug, Default)]
pub struct Turns(Mutex<BTreeMap<ClusterName, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the turn; it ends when what is returned is dropped.
    pub(crate) async fn take(&self, cluster: &ClusterName) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|name, turn| name == cluster || Arc::strong_count(turn) > 1);
            turns.entry(cluster.clone()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

impl World {
    /// Adds a machine as a learner.
    pub(super) async fn add_member(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let peer = render::etcd_peer(context.machine_facts(name)?);
        let beside = peers(context, name)?;
        let mut members: Vec<String> = beside.iter().chain([&peer]).map(written).collect();
        members.sort();
        let action = EtcdAction::AddLearner { peer, beside };
        let result = self.change_members(context, name, order, action).await?;
        let change = RecordChange::MemberAdded(name.clone(), members.join(","));
        Ok(done(result, change))
    }

    /// Writes a machine's configuration with the members that there are, and starts its own and nothing else.
    pub(super) async fn start_member(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let certificates = self.certificates(context, machine, order).await?;
        let configure = configure_step(context, machine, &certificates)?;
        let units = render::service(Phase::Etcd, &configure).units;
        self.tell_refused(context, machine, order).await?;
        self.send(machine, order, "/configure", Step::Configure(configure))
            .await?;
        let result = self
            .send(machine, order, "", Step::Service(Service { units }))
            .await?;
        Ok(Done {
            changes: result.changes,
            records: Vec::new(),
        })
    }

    /// Gives a learner its vote; etcd refuses until it has caught up.
    pub(super) async fn promote_member(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let peer = render::etcd_peer(context.machine_facts(name)?);
        let step = Step::Etcd(render::etcd_step(EtcdAction::Promote { peer }));
        let other = self.other(context, name).await?;
        let result = self.send(other, order, "", step).await?;
        Ok(done(result, RecordChange::MemberPromoted(name.clone())))
    }

    /// Removes a machine's member, whether or not it runs.
    pub(super) async fn remove_member(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let peer = render::etcd_peer(context.machine_facts(name)?);
        let action = EtcdAction::Remove { peer };
        let result = self.change_members(context, name, order, action).await?;
        Ok(done(result, RecordChange::MemberRemoved(name.clone())))
    }

    /// Saves a snapshot on the machine's own data disk.
    pub(super) async fn save_snapshot(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        Ok(Done {
            changes: self.saved_on(context.machine(name)?, order, "").await?,
            records: Vec::new(),
        })
    }

    /// Has a machine save what etcd holds. An agent of an older release cannot.
    async fn saved_on(
        &self,
        machine: &Machine,
        order: &StepOrder,
        part: &str,
    ) -> Result<Vec<String>, EffectError> {
        let action = EtcdAction::Snapshot {
            keep: SNAPSHOTS_KEPT,
        };
        let step = Step::Etcd(render::etcd_step(action));
        match self.deliver(machine, order, part, step).await {
            Ok(result) => Ok(super::node::succeeded(machine, result)?.changes),
            Err(error @ DeliveryError::TooOld { .. }) => {
                Ok(vec![format!("{error}; no snapshot is saved on it")])
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Changes who is a member through another member, which saves what etcd holds before.
    async fn change_members(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
        action: EtcdAction,
    ) -> Result<StepResult, EffectError> {
        let other = self.other(context, name).await?;
        let mut changes = self.saved_on(other, order, SAVED_FIRST).await?;
        let step = Step::Etcd(render::etcd_step(action));
        let mut result = self.send(other, order, "", step).await?;
        changes.append(&mut result.changes);
        Ok(StepResult { changes, ..result })
    }

    /// The member of another machine that etcd is asked through: the first that is connected.
    async fn other<'a>(
        &self,
        context: &'a ClusterContext,
        name: &MachineName,
    ) -> Result<&'a Machine, EffectError> {
        let mut last = None;
        for machine in voters(context, name) {
            let deadline = Instant::now() + ELSEWHERE;
            let connected = self
                .agents
                .wait_connected(&machine.name, machine.incarnation, deadline)
                .await;
            match connected {
                Ok(()) => return Ok(machine),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(error) => error.into(),
            None => EffectError::new(
                ErrorClass::Operator,
                format!(
                    "no other member of etcd can be asked about {name}: it has none with a vote"
                ),
            ),
        })
    }
}

/// Machines other than this one with a vote, those that stay first.
fn voters<'a>(context: &'a ClusterContext, name: &MachineName) -> Vec<&'a Machine> {
    let others = context.machines.iter().filter(|m| m.name != *name);
    let mut voters: Vec<_> = others
        .filter(|machine| machine.votes() && !machine.fenced && !machine.condemned)
        .collect();
    voters.sort_by_key(|machine| (machine.is_surplus(), &machine.name));
    voters
}

/// All other members with a vote, whether or not they can be asked.
fn peers(context: &ClusterContext, name: &MachineName) -> Result<Vec<EtcdPeer>, EffectError> {
    let others = context
        .machines
        .iter()
        .filter(|m| m.name != *name && m.votes());
    let facts: Vec<&MachineFacts> = others
        .map(|machine| context.machine_facts(&machine.name))
        .collect::<Result<_, _>>()?;
    Ok(facts.into_iter().map(render::etcd_peer).collect())
}

/// As etcd's configuration names a member.
fn written(peer: &EtcdPeer) -> String {
    format!("{}={}", peer.name, peer.url)
}

fn done(result: StepResult, change: RecordChange) -> Done {
    Done {
        changes: result.changes,
        records: vec![change],
    }
}
