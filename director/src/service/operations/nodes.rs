//! Machines: what is known of them, what becomes of them, and reach.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::BoxStream;
use windlass_common::condition::NAMES;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::report::Scope;
use windlass_common::step::Collect;

use crate::health;
use crate::model::{Caller, Machine, MachineFilter, MachineView, Role, Task, Timestamp, Usage};
use crate::resurrector::witness::Judgement;
use crate::resurrector::{CaseRecord, HoldKind, Verdict};
use crate::service::error::ServiceError;
use crate::service::kept::KeptMachine;
use crate::service::reach::{Reach, Terminal};
use crate::service::repair::{NodeWhy, RecreateOrder};
use crate::service::token::FreshToken;
use crate::service::{Director, NodeEvent, ServiceResult, allow};

impl Director {
    /// Machines with their agents' state, by name.
    pub async fn machines(&self, filter: &MachineFilter) -> ServiceResult<Vec<MachineView>> {
        let sessions = self.inner.gateway.connected();
        let now = Timestamp::now();
        let mut machines: Vec<Machine> = self.inner.records.list().await?;
        machines.retain(|m| filter.cluster.as_ref().is_none_or(|c| *c == m.cluster));
        let views = machines.into_iter().map(|machine| {
            let session = sessions.get(&machine.name);
            health::view(machine, session, now)
        });
        self.inner.judged(views.collect()).await
    }

    /// One machine.
    pub async fn machine(&self, name: &MachineName) -> ServiceResult<MachineView> {
        let machine = self.inner.machine_record(name).await?;
        let sessions = self.inner.gateway.connected();
        let view = health::view(machine, sessions.get(name), Timestamp::now());
        let mut judged = self.inner.judged(vec![view]).await?;
        judged.pop().ok_or_else(|| ServiceError::Bug {
            what: format!("the view of {name} was lost"),
            source: None,
        })
    }

    /// Asks every witness about a machine now, and says what the evidence means by itself.
    pub async fn machine_evidence(
        &self,
        name: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<Judgement> {
        allow(caller, Role::Operator, "have machines probed")?;
        let machine = self.inner.machine_record(name).await?;
        Ok(self.inner.witnesses.evidence(&machine).await.into())
    }

    /// Runs a command on a machine as root, at most once; audited. Dropping the stream does not stop it.
    pub async fn node_exec(
        &self,
        machine: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        allow(caller, Role::Admin, "run commands on machines")?;
        self.inner.node_exec(machine, argv, caller).await
    }

    /// What is known about why a machine is judged as it is, and what comes next.
    pub async fn node_why(&self, machine: &MachineName) -> ServiceResult<NodeWhy> {
        self.inner.node_why(machine).await
    }

    /// Keeps remedies from a machine, or has it ignored, until it is released.
    pub async fn hold_node(
        &self,
        machine: &MachineName,
        kind: HoldKind,
        reason: String,
        caller: &Caller,
    ) -> ServiceResult<CaseRecord> {
        allow(caller, Role::Operator, "hold machines")?;
        self.inner.hold_node(machine, kind, reason, caller).await
    }

    /// Lets a machine go that was held or ignored, and forgets what was tried on it.
    pub async fn release_node(
        &self,
        machine: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<CaseRecord> {
        allow(caller, Role::Operator, "release machines")?;
        self.inner.release_node(machine, caller).await
    }

    /// Issues a token with which a machine that has no certificate that counts comes back; `place`: the
    /// provider brings it there, if it can.
    pub async fn enroll_node(
        &self,
        machine: &MachineName,
        place: bool,
        caller: &Caller,
    ) -> ServiceResult<FreshToken> {
        allow(caller, Role::Operator, "give tokens to machines")?;
        self.inner.not_on_hold("give tokens to machines")?;
        self.inner.enroll_node(machine, place, caller).await
    }

    /// Orders the next incarnation of a machine, whatever its verdict. Returns the task at once.
    pub async fn recreate_node(
        &self,
        machine: &MachineName,
        order: RecreateOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "recreate machines")?;
        self.inner.not_on_hold("recreate machines")?;
        self.inner.recreate_node(machine, order, caller).await
    }

    /// The machines that are kept, off, after another incarnation followed them; by name.
    pub async fn kept_machines(&self) -> ServiceResult<Vec<KeptMachine>> {
        self.inner.kept().await
    }

    /// Deletes a machine that is kept, and all it holds.
    pub async fn delete_kept_machine(
        &self,
        kept: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<KeptMachine> {
        allow(caller, Role::Operator, "delete machines that are kept")?;
        self.inner.not_on_hold("delete machines that are kept")?;
        self.inner.delete_kept(kept, caller).await
    }

    /// How many machines there are of each verdict.
    pub fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        self.inner.repairs.verdicts()
    }

    /// How many connected machines say that a condition is bad, by its name and whose it is; all are there. What is
    /// the host's speaks against none of them.
    pub fn conditions(&self) -> BTreeMap<(&'static str, Scope), u64> {
        let now = Timestamp::now();
        let scopes = |name| Scope::ALL.map(|scope| ((name, scope), 0));
        let mut counts: BTreeMap<_, _> = NAMES.into_iter().flat_map(scopes).collect();
        for session in self.inner.gateway.connected().values() {
            let conditions = health::of_session(session, now);
            let bad: BTreeSet<(&str, Scope)> = health::bad(&conditions)
                .map(|one| (one.name.as_str(), one.scope))
                .collect();
            for ((name, scope), count) in &mut counts {
                *count += u64::from(bad.contains(&(*name, *scope)));
            }
        }
        counts
    }

    /// Logs and diagnostics of a machine.
    pub async fn node_logs(
        &self,
        machine: &MachineName,
        collect: Collect,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        allow(caller, Role::Operator, "read the logs of machines")?;
        self.inner.node_logs(machine, collect, caller).await
    }

    /// Follows the logs of a machine, after the newest `lines`; dropping the stream ends it.
    pub async fn follow_logs(
        &self,
        machine: &MachineName,
        units: Vec<String>,
        lines: u32,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, NodeEvent>> {
        allow(caller, Role::Operator, "read the logs of machines")?;
        self.inner.follow_logs(machine, units, lines, caller).await
    }

    /// Starts a shell as root on a machine; dropping it ends it, with all it started.
    pub async fn open_shell(
        &self,
        machine: &MachineName,
        terminal: Terminal,
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        allow(caller, Role::Admin, "open shells on machines")?;
        self.inner.open_shell(machine, terminal, caller).await
    }

    /// Starts a command as root on a machine that reads what it is sent; dropping it ends it, with all it
    /// started.
    pub async fn run_command(
        &self,
        machine: &MachineName,
        argv: Vec<String>,
        caller: &Caller,
    ) -> ServiceResult<Reach> {
        allow(caller, Role::Admin, "run commands on machines")?;
        self.inner.run_command(machine, argv, caller).await
    }

    /// Usage as it is, of one machine, of those of a cluster or of all; dropping the stream ends it.
    pub async fn watch_usage(
        &self,
        cluster: Option<&ClusterName>,
        machine: Option<&MachineName>,
        interval_ms: u32,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, Usage>> {
        allow(caller, Role::Operator, "watch machines")?;
        let machines = self.inner.watched(cluster, machine).await?;
        let subject = match (machine, cluster) {
            (Some(name), _) => format!("machine/{name}"),
            (None, Some(name)) => format!("cluster/{name}"),
            (None, None) => "machines".to_owned(),
        };
        self.inner
            .watch_usage(machines, interval_ms, subject, caller)
            .await
    }
}
