//! Rotating the encryption key or the authorities of a cluster, stage by stage.
//!
//! # Invariants
//! * A stage begins in one commit: the record says it, the digests of what machines are told differ, and the
//!   sealed document has changed, or none of that.
//! * The next stage begins when every machine runs with what this one told it.
//!
//! # After a crash
//! Asked again, the stage that has begun is planned from what machines confirmed; nothing is begun twice.

use std::collections::BTreeSet;

use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;
use windlass_common::step::{Exec, Payload, Step};

use super::cancel::{CANCEL, renamed};
use super::context::ClusterContext;
use super::{Done, EffectError, RecordChange, StepOrder, World, check};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{
    Action, Cluster, Machine, MachinePhase, Next, Plan, PlanStep, Rotation, Stage, StepState, Task,
    Timestamp,
};
use crate::planner::{self, DesiredState, renewal};
use crate::rollout::cluster_pki_name;
use crate::store::Commit;

/// A rotation that goes on.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The cluster as it is to be written down.
    pub(crate) cluster: Cluster,
    /// The sealed document, if it has changed.
    pub(crate) pki: Option<ClusterPki>,
    /// What has to be carried out now; `None` when nothing has.
    pub(crate) plan: Option<Plan>,
}

impl Turn {
    fn of(cluster: Cluster) -> Self {
        Self {
            cluster,
            pki: None,
            plan: None,
        }
    }
}

impl World {
    /// Begins a rotation that no record knows yet.
    pub(crate) async fn begin_rotation(
        &self,
        mut cluster: Cluster,
        rotation: Rotation,
    ) -> Result<Turn, EffectError> {
        let stage = rotation.stage;
        cluster.rotation = Some(rotation);
        let mut turn = Turn::of(cluster);
        self.enter(&mut turn, stage).await?;
        self.go_on(turn).await
    }

    /// Goes on with a rotation as far as nothing has to be carried out.
    pub(crate) async fn continue_rotation(&self, cluster: Cluster) -> Result<Turn, EffectError> {
        self.go_on(Turn::of(cluster)).await
    }

    async fn go_on(&self, mut turn: Turn) -> Result<Turn, EffectError> {
        let name = turn.cluster.spec.name.clone();
        let machines = self.records.machines_of(name.as_str()).await?;
        loop {
            let Some(rotation) = turn.cluster.rotation.clone() else {
                return Ok(turn);
            };
            let plan = self.stage_plan(&turn.cluster, &machines, &rotation).await?;
            match rotation.next(plan.steps.is_empty(), Timestamp::now()) {
                Next::CarryOut => {
                    turn.plan = Some(plan);
                    return Ok(turn);
                }
                Next::Enter(stage) => self.enter(&mut turn, stage).await?,
                Next::Rest => return Ok(turn),
                Next::Over => turn.cluster.rotation = None,
            }
        }
    }

    /// Begins a stage, in memory.
    async fn enter(&self, turn: &mut Turn, stage: Stage) -> Result<(), EffectError> {
        let cluster = &mut turn.cluster;
        let name = cluster.spec.name.clone();
        let mut pki = match turn.pki.take() {
            Some(pki) => pki,
            None => self.pki(&name).await?,
        };
        let now = jiff::Timestamp::now();
        let changed = match stage {
            Stage::AddKey => pki.add_encryption_key(),
            Stage::UseKey => {
                pki.use_encryption_key();
                Ok(())
            }
            Stage::DropKey => {
                pki.drop_encryption_keys();
                Ok(())
            }
            Stage::TrustBoth => pki.trust_newer(&name, now),
            Stage::Spread => {
                pki.accept_newer();
                Ok(())
            }
            Stage::SignNew => {
                pki.sign_with_newer();
                Ok(())
            }
            Stage::TrustNew => {
                pki.drop_former_authorities();
                Ok(())
            }
            Stage::DropTokens => {
                pki.drop_former();
                Ok(())
            }
            Stage::Rewrite | Stage::RestartDns => Ok(()),
        };
        changed.map_err(|error| EffectError::of(error.class(), &error))?;
        stage.mark(&mut cluster.secrets);
        if let Some(rotation) = &mut cluster.rotation {
            rotation.enter(stage, Timestamp::now());
        }
        cluster.authorities_expire_at = pki.authorities_expire_at().map(Timestamp::from);
        turn.pki = Some(pki);
        Ok(())
    }

    /// What is left to be carried out of a stage.
    async fn stage_plan(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
        rotation: &Rotation,
    ) -> Result<Plan, EffectError> {
        let desired = self.desired(cluster, machines)?;
        let observed = self.observe_as(cluster, machines).await?;
        let plan = if rotation.stage.is_restart() {
            planner::plan(&desired, &observed)
                .map_err(|error| EffectError::of(error.class(), &error))?
        } else {
            renewal::stage(&desired, &observed, rotation)
        };
        check(&plan, &desired, &observed)?;
        Ok(renamed(plan, &format!("{}/", rotation.stage)))
    }

    /// Writes down how far a rotation is, and gives what comes next.
    pub(super) async fn plan_stage(&self, task: &Task) -> Result<Option<Plan>, EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let turn = self.continue_rotation(cluster.clone()).await?;
        let mut commit = Commit::default();
        self.put_turn(&mut commit, &cluster, &turn)?;
        self.records.commit(commit).await?;
        Ok(turn.plan)
    }

    /// Adds to a commit what a turn has changed.
    pub(crate) fn put_turn(
        &self,
        commit: &mut Commit,
        before: &Cluster,
        turn: &Turn,
    ) -> Result<(), EffectError> {
        if turn.cluster != *before {
            commit.put(&turn.cluster)?;
        }
        if let Some(pki) = &turn.pki {
            // Whoever writes the cluster's record at its revision is the only one who writes this.
            let document = pki.to_bytes();
            let name = cluster_pki_name(&turn.cluster.spec.name);
            self.records
                .replace_secret(commit, &name, document.expose())?;
        }
        Ok(())
    }

    /// Brings machines that a rotation was changing back to service; the others go on as they are, which what
    /// has changed goes with.
    pub(super) async fn plan_halt(&self, task: &Task) -> Result<Plan, EffectError> {
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let halfway = halfway(task);
        let down = |m: &&Machine| {
            let out = m.role.is_control_plane() && m.votes() && !m.serving;
            let back = m.started.is_some() && m.phase == MachinePhase::Ready;
            !back || out || m.cordoned || halfway.contains(&m.name)
        };
        let down: BTreeSet<MachineName> = machines
            .iter()
            .filter(down)
            .map(|machine| machine.name.clone())
            .collect();
        let mut desired = self.desired(&cluster, &machines)?;
        let mut observed = self.observe(name).await?;
        if let DesiredState::Present { gates, .. } = &mut desired.state {
            gates.clear();
        }
        planner::narrow(&mut desired, &mut observed, &down, &BTreeSet::new());
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        Ok(renamed(plan, CANCEL))
    }

    /// Waits until the pods of every machine have been given the new authority beside the old one. Kubelets
    /// bring it to them within two minutes.
    pub(super) async fn spread_trust(
        &self,
        context: &ClusterContext,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let script = search(&context.pki)?;
        for machine in context.machines.iter().filter(|m| m.started.is_some()) {
            order
                .progress
                .stage(format!("looks at the pods of {}", machine.name));
            let step = Step::Exec(Exec {
                argv: ["/bin/sh", "-c", script.as_str()].map(str::to_owned).into(),
            });
            let suffix = format!("/{}", machine.name);
            let result = self.send(machine, order, &suffix, step).await?;
            match result.payload {
                Payload::Exit(0) => {}
                Payload::Exit(_) | Payload::None | Payload::Requests(_) => {
                    return Err(EffectError::new(
                        ErrorClass::Retry,
                        format!(
                            "pods of machine {} were not given the new authority yet",
                            machine.name
                        ),
                    ));
                }
            }
        }
        Ok(Done {
            changes: vec!["every pod has the new authority beside the old one".to_owned()],
            records: vec![RecordChange::StageDone(Stage::Spread)],
        })
    }
}

/// Machines on which a start of components was begun and has not succeeded.
fn halfway(task: &Task) -> BTreeSet<MachineName> {
    let begun = |step: &&PlanStep| {
        let record = task.steps.get(&step.key);
        let starts = matches!(step.action, Action::StartComponents { .. });
        starts && record.is_some_and(|record| record.state != StepState::Succeeded)
    };
    let steps = task.plan.steps.iter().filter(begun);
    steps
        .filter_map(|step| step.action.machine().cloned())
        .collect()
}

/// Fails while a volume of a pod has the old authority of the cluster and not the new one.
fn search(pki: &ClusterPki) -> Result<String, EffectError> {
    let mark = |mark: Option<String>| {
        mark.ok_or_else(|| EffectError::new(ErrorClass::Bug, "two generations are one"))
    };
    let (old, new) = (mark(pki.mark_of_oldest())?, mark(pki.mark_of_newest())?);
    Ok(format!(
        "for f in /var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/*/ca.crt; do \
           if grep -qsF '{old}' \"$f\" && ! grep -qsF '{new}' \"$f\"; then exit 3; fi; \
         done"
    ))
}
