//! What operators see of the resurrector, and say to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::now_ms;
use super::replace::ReplaceOrder;
use crate::model::{Caller, FieldFault, Machine, MachineView, Task, TaskId, Timestamp};
use crate::resurrector::witness::Gathered;
use crate::resurrector::{CaseRecord, Hold, HoldKind, Mode, Outlook, Policy, Verdict};
use crate::service::kept::{KeepWish, REASON_MAX as KEEP_REASON_MAX};
use crate::service::{Inner, ServiceError, ServiceResult};
use crate::store::{Act, Commit, StoreError};

/// Longest reason an operator gives, bytes.
const REASON_MAX: usize = 500;

/// All that is known about why a machine is judged as it is, and what comes next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeWhy {
    /// Which machine.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// Its cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// Which rebirth of it there is.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// Whether the director judges and heals.
    pub mode: Mode,
    /// When it was looked at last.
    pub looked_at: Timestamp,
    /// What it is judged to be; absent when it is not judged.
    pub verdict: Option<Verdict>,
    /// Why it is not judged.
    pub unwatched: Option<String>,
    /// What comes next.
    pub outlook: Outlook,
    /// The task that works on its cluster.
    pub task: Option<TaskId>,
    /// What its witnesses said the last time; absent while nobody suspects it.
    pub gathered: Option<Gathered>,
    /// What is kept about it; absent when nothing was ever wrong.
    pub case: Option<CaseRecord>,
    /// How the director decides.
    pub policy: Policy,
}

/// How a machine is replaced because an operator says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecreateOrder {
    /// The API of a cluster with one control-plane machine may be down meanwhile.
    pub accept_downtime: bool,
    /// Why what there is of it is kept; it is deleted when absent.
    pub keep: Option<String>,
}

impl Inner {
    /// Adds verdicts and holds to views of machines.
    pub(in crate::service) async fn judged(
        &self,
        mut views: Vec<MachineView>,
    ) -> ServiceResult<Vec<MachineView>> {
        let records: Vec<CaseRecord> = self.records.list().await?;
        let holds: BTreeMap<_, _> = records
            .into_iter()
            .filter_map(|record| Some((record.machine, record.hold?.kind)))
            .collect();
        let board = self.repairs.board();
        for view in &mut views {
            view.verdict = board.verdicts.get(&view.machine.name).copied();
            view.hold = holds.get(&view.machine.name).copied();
        }
        Ok(views)
    }

    pub(in crate::service) async fn node_why(&self, name: &MachineName) -> ServiceResult<NodeWhy> {
        let machine = self.machine_record(name).await?;
        let case: Option<CaseRecord> = self.records.get(name.as_str()).await?;
        let cluster = self.cluster(&machine.cluster).await?;
        let board = self.repairs.board();
        Ok(NodeWhy {
            machine: machine.name,
            cluster: machine.cluster,
            incarnation: machine.incarnation,
            mode: self.repairs.config.mode,
            looked_at: Timestamp::from_unix_ms(board.looked_at_ms),
            verdict: board.verdicts.get(name).copied(),
            unwatched: board.unwatched.get(name).map(|why| (*why).to_owned()),
            outlook: board.outlooks.get(name).cloned().unwrap_or(Outlook::Rest),
            task: cluster.task,
            gathered: board.gathered.get(name).cloned(),
            case,
            policy: self.repairs.config.policy,
        })
    }

    /// Keeps remedies from a machine, or everything.
    pub(in crate::service) async fn hold_node(
        &self,
        name: &MachineName,
        kind: HoldKind,
        reason: String,
        caller: &Caller,
    ) -> ServiceResult<CaseRecord> {
        if reason.len() > REASON_MAX {
            return Err(ServiceError::Invalid {
                faults: vec![FieldFault::new(
                    "reason",
                    format!("{} bytes", reason.len()),
                    format!("at most {REASON_MAX} bytes"),
                )],
            });
        }
        let action = match kind {
            HoldKind::Hold => "node.hold",
            HoldKind::Ignore => "node.ignore",
        };
        let hold = Hold {
            kind,
            operator: caller.operator.clone(),
            since_ms: now_ms(),
            reason: reason.clone(),
        };
        self.change_case(name, action, &reason, caller, |record| {
            record.hold = Some(hold.clone())
        })
        .await
    }

    /// Lets a machine go: it is judged and healed again, and what was tried before is forgotten.
    pub(in crate::service) async fn release_node(
        &self,
        name: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<CaseRecord> {
        self.change_case(name, "node.release", "", caller, CaseRecord::release)
            .await
    }

    async fn change_case(
        &self,
        name: &MachineName,
        action: &'static str,
        detail: &str,
        caller: &Caller,
        change: impl Fn(&mut CaseRecord),
    ) -> ServiceResult<CaseRecord> {
        let machine: Machine = self.machine_record(name).await?;
        loop {
            let found: Option<CaseRecord> = self.records.get(name.as_str()).await?;
            let mut record = found.unwrap_or_else(|| {
                // Nothing was ever wrong with it.
                let mut record = CaseRecord::new(name.clone(), machine.incarnation, now_ms());
                record.case.verdict = Verdict::Healthy;
                record
            });
            change(&mut record);
            let mut commit = Commit::default();
            commit.put(&record)?;
            let act = Act {
                action,
                subject: &format!("machine/{name}"),
                detail,
                outcome: "",
            };
            self.records.audit_caller(&mut commit, caller, act);
            match self.records.commit(commit).await {
                Ok(revision) => {
                    record.revision = revision;
                    self.repairs.board().failed.remove(name);
                    self.repairs.wake.notify_one();
                    return Ok(record);
                }
                // The loop was faster.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Replaces a machine because an operator says so, whatever its verdict.
    pub(in crate::service) async fn recreate_node(
        &self,
        name: &MachineName,
        order: RecreateOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let wish = match order.keep {
            Some(reason) if reason.len() > KEEP_REASON_MAX => {
                return Err(ServiceError::Invalid {
                    faults: vec![FieldFault::new(
                        "reason",
                        format!("{} bytes", reason.len()),
                        format!("at most {KEEP_REASON_MAX} bytes"),
                    )],
                });
            }
            Some(reason) => KeepWish::Asked(reason),
            None => KeepWish::No,
        };
        let machine = self.machine_record(name).await?;
        let names = [name.clone()].into();
        let order = ReplaceOrder {
            accept_downtime: order.accept_downtime,
            keep: wish,
        };
        self.replace(&machine.cluster, &names, &order, caller).await
    }
}
