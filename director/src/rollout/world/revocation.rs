//! What members of etcd and API servers refuse: written down with what is issued and with what is shut out, and told to
//! the machines that they are on.
//!
//! # Invariants
//! * What is issued is in the ledger in the commit that writes the certificates down, before a machine sees them.
//! * A machine has its lists before etcd and its API server start on it: members without one refuse everybody, and API
//!   servers without one do not start.
//! * What a control-plane machine was given is refused before its successor is made, by each member whose agent
//!   answers. The others are told once they do ([`World::keep_refusing`]), and hold nothing up: that it is off is proven
//!   by then, and a cluster that lacks one machine must not wait for another.
//!
//! # After a crash
//! The step is done again: what is revoked already stays so, and a list that is written twice is the same.
//!
//! # Not here
//! Connections and watches that are open: whoever is shut out was proven off, and nothing that is started later goes on with them.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;
use windlass_common::step::{Configure, Step, StepId, StepRequest};

use super::context::ClusterContext;
use super::node::succeeded;
use super::{EffectError, StepOrder, World};
use crate::gateway::unwatched;
use crate::kubernetes::pki::{ClusterPki, PkiError, Revocations};
use crate::kubernetes::render;
use crate::model::{Cluster, ClusterPhase, Machine, MachinePhase, Revision};
use crate::store::{Commit, Expect, Kind, StoreError};

/// How long a machine may take to connect before the others are told without it.
const ELSEWHERE: Duration = Duration::from_secs(2);
/// How long writing one file may take.
const WRITE_LIMIT: Duration = Duration::from_secs(20);

impl World {
    /// Changes a cluster's ledger and whatever else `change` adds to the commit, and brings its list up to it; again
    /// whenever somebody was faster.
    pub(super) async fn revise(
        &self,
        cluster: &ClusterName,
        pki: &ClusterPki,
        change: impl Fn(&mut Revocations, &mut Commit),
    ) -> Result<Revocations, EffectError> {
        loop {
            let found: Option<(Revision, Revocations)> = self
                .records
                .value(Kind::Revocations, cluster.as_str())
                .await?;
            let (expect, before) = match found {
                Some((revision, ledger)) => (Expect::At(revision), ledger),
                None => (Expect::Absent, Revocations::default()),
            };
            // Read after the ledger: whoever is added meanwhile is given nothing that is not in a later ledger.
            let machines = self.records.machines_of(cluster.as_str()).await?;
            let members = machines.iter().filter(|m| m.role.is_control_plane());
            let current: BTreeMap<_, _> =
                members.map(|m| (m.name.clone(), m.incarnation)).collect();
            let now = jiff::Timestamp::now();
            let (mut after, mut commit) = (before.clone(), Commit::default());
            change(&mut after, &mut commit);
            after.keep(&current, now);
            let forgotten = after
                .settle(pki, cluster.as_str(), now)
                .map_err(|error| EffectError::of(error.class(), &error))?;
            if forgotten > 0 {
                tracing::warn!(
                    %cluster, forgotten,
                    "too many certificates were issued: those that expire first are not refused any more; \
                     rotate the cluster's authorities"
                );
            }
            if after != before {
                commit.value(Kind::Revocations, cluster.as_str(), expect, &after);
            }
            if commit.is_empty() {
                return Ok(after);
            }
            match self.records.commit(commit).await {
                Ok(_) => return Ok(after),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives a machine of the control plane the lists, before what reads them starts.
    pub(super) async fn tell_refused(
        &self,
        context: &ClusterContext,
        machine: &Machine,
        order: &StepOrder,
    ) -> Result<(), EffectError> {
        if !machine.role.is_control_plane() {
            return Ok(());
        }
        let cluster = &context.cluster.spec.name;
        let ledger = self.revise(cluster, &context.pki, |_, _| {}).await?;
        let number = ledger.number();
        let step = Step::Configure(lists(&ledger)?);
        // A number has one content: sent again, a step of one name says the same.
        let suffix = format!("/refuses-{number}");
        self.send(machine, order, &suffix, step).await?;
        self.revise(cluster, &context.pki, |ledger, _| {
            ledger.tell(&machine.name, machine.incarnation, number);
        })
        .await?;
        Ok(())
    }

    /// Has etcd and API servers refuse what a machine was given that is proven off or gone. Returns what came of it.
    pub(super) async fn refuse_keys(
        &self,
        record: &Machine,
        order: &StepOrder,
    ) -> Result<Vec<String>, EffectError> {
        let issued = self.issued(record).await?;
        self.revise_and_spread(record, order, "refuse its keys", |ledger| {
            // Those of a cluster of an older director are in no ledger yet.
            if let Some(issued) = &issued {
                ledger.note(&record.name, record.incarnation, issued);
            }
            ledger.revoke(&record.name, record.incarnation, jiff::Timestamp::now());
        })
        .await
    }

    /// Has etcd and API servers accept again a machine that was about to be shut out and serves.
    pub(super) async fn accept_keys(
        &self,
        record: &Machine,
        order: &StepOrder,
    ) -> Result<Vec<String>, EffectError> {
        self.revise_and_spread(record, order, "accept its keys", |ledger| {
            ledger.pardon(&record.name, record.incarnation);
        })
        .await
    }

    async fn revise_and_spread(
        &self,
        record: &Machine,
        order: &StepOrder,
        verb: &str,
        change: impl Fn(&mut Revocations),
    ) -> Result<Vec<String>, EffectError> {
        if !record.role.is_control_plane() || !self.is_in_use(&record.cluster).await? {
            return Ok(Vec::new());
        }
        let pki = match self.pki(&record.cluster).await {
            Ok(pki) => pki,
            // A machine can be shut out and removed without them; they may be why it is.
            Err(error) => {
                return Ok(vec![format!(
                    "its keys are not revoked, since the secrets of cluster {} cannot be read: {error}",
                    record.cluster
                )]);
            }
        };
        let ledger = self
            .revise(&record.cluster, &pki, |ledger, _| change(ledger))
            .await?;
        let attempt = order.attempt;
        let id = |number| {
            StepId(format!(
                "{}/{}/refuses-{number}~{attempt}",
                order.task, order.key
            ))
        };
        let spread = self
            .spread(&record.cluster, &pki, &ledger, Some(record), id)
            .await?;
        let mut said = Vec::new();
        if !spread.told.is_empty() {
            said.push(format!("{} {verb}", spread.told.join(", ")));
        }
        for (name, why) in spread.left {
            said.push(format!("{name} will {verb} later: {why}"));
        }
        Ok(said)
    }

    /// Tells members what they do not know yet, such as those that were away. A cluster of an older director has no
    /// ledger until its members are configured next.
    ///
    /// # Errors
    /// [`EffectError`] of the store and of the cluster's secrets; a member that cannot be told is left for the next time.
    pub(crate) async fn keep_refusing(
        &self,
        cluster: &ClusterName,
        id: StepId,
    ) -> Result<(), EffectError> {
        let found: Option<(Revision, Revocations)> = self
            .records
            .value(Kind::Revocations, cluster.as_str())
            .await?;
        let Some((_, ledger)) = found else {
            return Ok(());
        };
        let machines = self.records.machines_of(cluster.as_str()).await?;
        let waits = |machine: &Machine| {
            self.agents.is_heard(&machine.name, machine.incarnation)
                && !ledger.knows(&machine.name, machine.incarnation)
        };
        if !machines.iter().any(|m| serves(m) && waits(m)) {
            return Ok(());
        }
        let pki = self.pki(cluster).await?;
        let ledger = self.revise(cluster, &pki, |_, _| {}).await?;
        let spread = self
            .spread(cluster, &pki, &ledger, None, |_| id.clone())
            .await?;
        for (machine, why) in spread.left {
            tracing::warn!(%cluster, machine, why, "a machine has an old list of what etcd and its API server refuse");
        }
        Ok(())
    }

    /// Sends the lists to each member that serves and does not know it, but to the machine that it is about.
    async fn spread(
        &self,
        cluster: &ClusterName,
        pki: &ClusterPki,
        ledger: &Revocations,
        about: Option<&Machine>,
        id: impl Fn(u64) -> StepId,
    ) -> Result<Spread, EffectError> {
        let number = ledger.number();
        let lists = lists(ledger)?;
        let machines = self.records.machines_of(cluster.as_str()).await?;
        let due: Vec<&Machine> = machines
            .iter()
            .filter(|m| serves(m) && !ledger.knows(&m.name, m.incarnation))
            .filter(|m| about.is_none_or(|about| about.name != m.name))
            .collect();
        let told = join_all(due.iter().map(|machine| {
            let request = StepRequest {
                labels: BTreeMap::default(),
                id: id(number),
                epoch: self.birth.epoch.get(),
                deadline_ms: u64::try_from(WRITE_LIMIT.as_millis()).unwrap_or(u64::MAX),
                step: Step::Configure(lists.clone()),
            };
            self.tell(machine, request)
        }))
        .await;
        let mut spread = Spread::default();
        let mut know = Vec::new();
        for (machine, told) in due.into_iter().zip(told) {
            match told {
                Ok(()) => {
                    spread.told.push(machine.name.to_string());
                    know.push(machine);
                }
                Err(error) => {
                    let why = ErrorChain(&error).to_string();
                    spread.left.push((machine.name.to_string(), why));
                }
            }
        }
        self.revise(cluster, pki, |ledger, _| {
            for machine in &know {
                ledger.tell(&machine.name, machine.incarnation, number);
            }
        })
        .await?;
        Ok(spread)
    }

    async fn tell(&self, machine: &Machine, request: StepRequest) -> Result<(), EffectError> {
        let (name, incarnation) = (&machine.name, machine.incarnation);
        self.agents
            .wait_connected(name, incarnation, Instant::now() + ELSEWHERE)
            .await?;
        let result = self
            .agents
            .run_step(name, incarnation, request, unwatched())
            .await?;
        succeeded(machine, result).map(drop)
    }

    /// Whether a cluster serves, or did: of one that is being made or deleted nobody is left to refuse anything.
    async fn is_in_use(&self, cluster: &ClusterName) -> Result<bool, EffectError> {
        let cluster: Option<Cluster> = self.records.get(cluster.as_str()).await?;
        Ok(cluster.is_some_and(|cluster| match cluster.phase {
            ClusterPhase::Ready
            | ClusterPhase::Updating
            | ClusterPhase::Degraded
            | ClusterPhase::Failed => true,
            ClusterPhase::Creating | ClusterPhase::Deleting => false,
        }))
    }
}

/// Who was told, and who was not and why.
#[derive(Debug, Default)]
struct Spread {
    told: Vec<String>,
    left: Vec<(String, String)>,
}

/// Whether a member runs on it by the records.
fn serves(machine: &Machine) -> bool {
    machine.role.is_control_plane() && machine.phase >= MachinePhase::Configured && !machine.fenced
}

fn lists(ledger: &Revocations) -> Result<Configure, EffectError> {
    let of_etcd = ledger
        .list()
        .map_err(|error: PkiError| EffectError::of(error.class(), &error))?;
    Ok(render::revocations_step(of_etcd, &ledger.clients()))
}
