//! Handing over etcd's leadership without a write being refused.
//!
//! A leader that hands over drops what is proposed in that moment; who has proposed it waits for a timeout and is told of
//! an error (etcd's `raft.ErrProposalDropped`). Only API servers propose: they stand still for it, all of the cluster's,
//! and their clients wait for a moment instead.
//!
//! # Invariants
//! * API servers stand still only where the machine's member leads, for [`HOLD`] at most, and go on as soon as the
//!   leadership has moved, whatever came of it.
//! * An API server that cannot be held, or not in time, holds nothing up.
//!
//! # After a crash
//! Agents let their API servers go on. The handover is asked for again, and nobody is held a second time for it.
//!
//! # Not here
//! Members that end without being asked for their leadership: etcd hands it over as they stop.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use windlass_common::id::MachineName;
use windlass_common::step::{EtcdAction, EtcdReport, HELD, HOLD_MS_MAX, Hold, Progress, Step};

use super::context::ClusterContext;
use super::node::{PROGRESS_QUEUE, succeeded};
use super::{Done, EffectError, StepOrder, World, ask};
use crate::gateway::DeliveryError;
use crate::kubernetes::render;
use crate::model::Machine;

/// How long API servers stand still at most: the handover, and the two looks around it, on a busy machine.
const HOLD: Duration = Duration::from_millis(HOLD_MS_MAX as u64);
/// How long they may take to do so.
const STANDS: Duration = Duration::from_secs(1);
/// How long a member may take to say whether it leads: others that are off are given two seconds each.
const LOOK: Duration = Duration::from_secs(10);
/// What stands still.
const API_SERVER: &str = "kube-apiserver.service";

impl World {
    /// Has another member lead. An agent of an older release cannot: its member hands over when it stops.
    pub(super) async fn move_leader(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let deadline = Instant::now() + order.limit;
        self.agents
            .wait_connected(name, machine.incarnation, deadline)
            .await?;
        let step = Step::Etcd(render::etcd_step(EtcdAction::MoveLeader));
        let hand_over = self.deliver(machine, order, "", step);
        let (outcome, held) = match self.leads(machine, order).await {
            true => self.while_held(context, order, hand_over).await,
            false => (hand_over.await, None),
        };
        let mut changes = match outcome {
            Ok(result) => succeeded(machine, result)?.changes,
            Err(error @ DeliveryError::TooOld { .. }) => {
                vec![format!(
                    "{error}; etcd hands over its leadership when it stops"
                )]
            }
            Err(error) => return Err(error.into()),
        };
        changes.extend(held);
        Ok(Done {
            changes,
            records: Vec::new(),
        })
    }

    /// Whether a machine's member leads. One that does not say so is moved away from all the same.
    async fn leads(&self, machine: &Machine, order: &StepOrder) -> bool {
        let step = Step::Etcd(render::etcd_step(EtcdAction::Report));
        let request = self.request(order, "/leads", step, LOOK);
        // One that was not asked has said nothing.
        let (_, said) = ask(&*self.agents, machine, request).await;
        serde_json::from_slice(&said).is_ok_and(|report: EtcdReport| report.leads())
    }

    /// Does something while the API servers of a cluster stand still; returns what to say of that, too.
    async fn while_held<T>(
        &self,
        context: &ClusterContext,
        order: &StepOrder,
        act: impl Future<Output = T>,
    ) -> (T, Option<String>) {
        let mut holds = FuturesUnordered::new();
        let mut still = Vec::new();
        let serves = |machine: &&Machine| {
            let heard = self.agents.is_heard(&machine.name, machine.incarnation);
            machine.role.is_control_plane() && heard
        };
        for machine in context.machines.iter().filter(serves) {
            let hold = Step::Hold(Hold {
                unit: API_SERVER.to_owned(),
                for_ms: HOLD_MS_MAX,
            });
            let request = self.request(order, "/hold", hold, HOLD + STANDS);
            let (sender, progress) = mpsc::channel(PROGRESS_QUEUE);
            let (name, incarnation) = (&machine.name, machine.incarnation);
            // Dropped, it is cancelled, and the API server goes on.
            holds.push(self.agents.run_step(name, incarnation, request, sender));
            still.push(timeout(STANDS, stands(progress)));
        }
        let held = async {
            // However one ends, nothing is held by it any more, and nothing else waits for it.
            while holds.next().await.is_some() {}
            pending::<Infallible>().await
        };
        let acts = async {
            let stand = join_all(still).await;
            let count = stand.iter().filter(|held| **held == Ok(true)).count();
            let since = Instant::now();
            let outcome = act.await;
            let said = format!(
                "{count} API servers stood still for it, {} ms",
                since.elapsed().as_millis()
            );
            (outcome, Some(said).filter(|_| count > 0))
        };
        tokio::select! {
            biased;
            done = acts => done,
            never = held => match never {},
        }
    }
}

/// Whether the unit is held, once its agent says so or the step is over.
async fn stands(mut progress: mpsc::Receiver<Progress>) -> bool {
    while let Some(progress) = progress.recv().await {
        if matches!(progress, Progress::Stage(stage) if stage == HELD) {
            return true;
        }
    }
    false
}
