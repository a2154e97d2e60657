//! What one round sees: records, and which machines are whose concern.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{ClusterName, Incarnation, MachineName};

use crate::model::{Cluster, ClusterPhase, Machine, MachinePhase, MachineRole, TaskId};
use crate::planner::again;
use crate::resurrector::{Case, CaseRecord, Cause, Director, Fleet, Member, Role, Verdict, common};
use crate::rollout;
use crate::store::{Records, StoreError};

/// All machines with what is known of them, and the tasks that have them in hand.
pub(super) struct Sight {
    machines: BTreeMap<MachineName, Machine>,
    records: BTreeMap<MachineName, CaseRecord>,
    in_hand: BTreeSet<MachineName>,
    /// The task that works on a cluster.
    pub(super) tasks: BTreeMap<ClusterName, TaskId>,
    /// Clusters whose task takes repairs in.
    open: BTreeSet<ClusterName>,
    /// Machines that are not judged, each with the reason.
    pub(super) unwatched: BTreeMap<MachineName, &'static str>,
}

impl Sight {
    pub(super) async fn read(records: &Records) -> Result<Sight, StoreError> {
        let clusters: Vec<Cluster> = records.list().await?;
        let machines: Vec<Machine> = records.list().await?;
        let cases: Vec<CaseRecord> = records.list().await?;
        let ready: BTreeSet<&MachineName> = machines
            .iter()
            .filter(|machine| machine.phase == MachinePhase::Ready)
            .map(|machine| &machine.name)
            .collect();
        let mut in_hand = BTreeSet::new();
        let mut tasks = BTreeMap::new();
        let mut open = BTreeSet::new();
        for cluster in &clusters {
            let Some(id) = &cluster.task else { continue };
            let task = records.task(id).await?;
            if let Some(task) = task.filter(|task| !task.state.is_over()) {
                in_hand.extend(rollout::in_hand(&task, |name| ready.contains(name)));
                if again::takes_repairs(&task) {
                    open.insert(cluster.spec.name.clone());
                }
                tasks.insert(cluster.spec.name.clone(), task.id);
            }
        }
        // What a task was told to replace is its own.
        in_hand.extend(
            machines
                .iter()
                .filter(|m| m.condemned && tasks.contains_key(&m.cluster))
                .map(|m| m.name.clone()),
        );
        let cases: BTreeMap<_, _> = cases.into_iter().map(|r| (r.machine.clone(), r)).collect();
        let serving: BTreeSet<&ClusterName> = clusters
            .iter()
            .filter(|cluster| serves(cluster.phase))
            .map(|cluster| &cluster.spec.name)
            .collect();
        let mut unwatched = BTreeMap::new();
        for machine in &machines {
            let ignored = cases.get(&machine.name).is_some_and(CaseRecord::ignored);
            let busy = in_hand.contains(&machine.name);
            let why = if ignored {
                Some("an operator has it ignored")
            } else if !serving.contains(&machine.cluster) {
                Some("its cluster is being made or deleted, or was never ready")
            } else {
                not_judged(machine, busy)
            };
            if let Some(why) = why {
                unwatched.insert(machine.name.clone(), why);
            }
        }
        let machines = machines.into_iter().map(|m| (m.name.clone(), m));
        Ok(Sight {
            machines: machines.collect(),
            records: cases,
            in_hand,
            tasks,
            open,
            unwatched,
        })
    }

    /// Machines that are judged.
    pub(super) fn watched(&self) -> impl Iterator<Item = &Machine> {
        let machines = self.machines.values();
        machines.filter(|machine| !self.unwatched.contains_key(&machine.name))
    }

    pub(super) fn machine(&self, name: &MachineName) -> Option<&Machine> {
        self.machines.get(name)
    }

    pub(super) fn case(&self, machine: &Machine) -> Option<&CaseRecord> {
        self.records.get(&machine.name)
    }

    /// Takes what is known of a machine now; returns what was known of it before.
    pub(super) fn put(&mut self, record: CaseRecord) -> Option<CaseRecord> {
        self.records.insert(record.machine.clone(), record)
    }

    /// Takes back what could not be written down.
    pub(super) fn restore(&mut self, machine: &MachineName, before: Option<CaseRecord>) {
        match before {
            Some(record) => self.records.insert(machine.clone(), record),
            None => self.records.remove(machine),
        };
    }

    /// Whether a task has a machine in hand, or is to replace it.
    pub(super) fn awaits(&self, machine: &Machine) -> bool {
        self.in_hand.contains(&machine.name) || machine.wanted.is_some()
    }

    /// How many replacements of a machine's pool died young, in a row, and what they have in common.
    pub(super) fn died_in_pool_of(&self, machine: &Machine) -> (u32, Cause) {
        let pool = role(machine);
        let alike = self.alike(&machine.cluster, &pool);
        let records = alike.filter_map(|machine| self.case(machine));
        let counted = records.filter(|record| !record.ignored());
        let died = counted.map(|record| record.case.stillborn()).sum();
        (died, self.cause(&machine.cluster, &pool))
    }

    fn alike<'a>(
        &'a self,
        cluster: &'a ClusterName,
        pool: &'a Role,
    ) -> impl Iterator<Item = &'a Machine> {
        let machines = self.machines.values();
        machines.filter(move |m| m.cluster == *cluster && role(m) == *pool)
    }

    /// The cases of those that are judged.
    pub(super) fn cases(&self) -> BTreeMap<MachineName, Case> {
        self.watched()
            .filter_map(|machine| Some((machine.name.clone(), self.case(machine)?.case.clone())))
            .collect()
    }

    /// The verdicts on those that are judged; without a case nothing was ever wrong.
    pub(super) fn verdicts(&self) -> BTreeMap<MachineName, Verdict> {
        self.watched()
            .map(|machine| (machine.name.clone(), self.verdict(machine)))
            .collect()
    }

    fn verdict(&self, machine: &Machine) -> Verdict {
        self.case(machine)
            .map_or(Verdict::Healthy, |record| record.case.verdict)
    }

    /// Whether a machine serves nobody, and the task that works on its cluster has not taken its repair in yet.
    pub(super) fn joins(&self, machine: &Machine) -> bool {
        self.open.contains(&machine.cluster)
            && !machine.condemned
            && !machine.fenced
            && self.verdict(machine).is_down()
    }

    /// The task that works on a machine's cluster and takes no repairs in.
    pub(super) fn closed(&self, machine: &Machine) -> Option<&TaskId> {
        let task = self.tasks.get(&machine.cluster)?;
        (!self.open.contains(&machine.cluster)).then_some(task)
    }

    /// Whether a machine that is to be restarted serves, so that its pods leave it first. Where its pods cannot leave,
    /// only a member of etcd has something to hand over, and only while nobody else works on its cluster. The API of a
    /// cluster whose only control-plane machine it is would be needed for that, and is what suffers.
    pub(super) fn leaves_in_turn(
        &self,
        machine: &Machine,
        fails_to_run_pods: impl FnOnce() -> bool,
    ) -> bool {
        let member = machine.role.is_control_plane();
        let beside = |other: &&Machine| {
            other.cluster == machine.cluster
                && other.role.is_control_plane()
                && other.name != machine.name
        };
        let alone = member && !self.machines.values().any(|other| beside(&other));
        let free = !self.tasks.contains_key(&machine.cluster);
        !self.verdict(machine).is_down() && !alone && ((member && free) || !fails_to_run_pods())
    }

    /// Everything that the guards look at. Machines that are ignored are as if they were not there.
    pub(super) fn fleet(
        &self,
        acting: &BTreeSet<MachineName>,
        silent: impl Fn(&Machine) -> bool,
        since_ms: u64,
        provider_answers: bool,
    ) -> Fleet {
        let member = |machine: &Machine| {
            let record = self.case(machine);
            if record.is_some_and(CaseRecord::ignored) {
                return None;
            }
            let judged = !self.unwatched.contains_key(&machine.name);
            let busy = self.in_hand.contains(&machine.name);
            let member = Member {
                cluster: machine.cluster.clone(),
                role: role(machine),
                zone: machine.zone.clone(),
                verdict: if judged {
                    self.verdict(machine)
                } else {
                    Verdict::Unknown
                },
                silent: judged && silent(machine),
                in_hand: busy || acting.contains(&machine.name),
                joins: self.joins(machine) && !acting.contains(&machine.name),
                held: record.is_some_and(CaseRecord::held),
                fenced: machine.fenced,
                stillborn: record.map_or(0, |record| record.case.stillborn()),
            };
            Some((machine.name.clone(), member))
        };
        Fleet {
            machines: self.machines.values().filter_map(member).collect(),
            director: Director {
                since_ms,
                provider_answers,
            },
            causes: self.causes(),
        }
    }

    /// What the replacements that died young have in common, for each pool with such.
    fn causes(&self) -> BTreeMap<(ClusterName, Role), Cause> {
        let died = |record: &&CaseRecord| !record.deaths.is_empty();
        let dead = self.records.values().filter(died);
        let machines = dead.filter_map(|record| self.machine(&record.machine));
        let pools: BTreeSet<_> = machines.map(|m| (m.cluster.clone(), role(m))).collect();
        let told = |pool: (ClusterName, Role)| {
            let cause = self.cause(&pool.0, &pool.1);
            (pool, cause)
        };
        pools.into_iter().map(told).collect()
    }

    fn cause(&self, cluster: &ClusterName, pool: &Role) -> Cause {
        let deaths: Vec<_> = self
            .alike(cluster, pool)
            .filter_map(|machine| self.case(machine))
            .flat_map(|record| record.deaths.iter().map(|death| (&record.machine, death)))
            .collect();
        let works = |machine: &&Machine| {
            machine.phase == MachinePhase::Ready && self.verdict(machine) == Verdict::Healthy
        };
        let made = |m: &Machine| (m.runs().to_owned(), m.kubernetes_version.clone());
        let working = self.alike(cluster, pool).filter(works).map(made);
        common(&deaths, &working.collect())
    }
}

/// What a machine is for, as the guards say it.
fn role(machine: &Machine) -> Role {
    match &machine.role {
        MachineRole::ControlPlane => Role::ControlPlane,
        MachineRole::Worker { pool } => Role::Worker(pool.clone()),
    }
}

/// Whether people use a cluster in this phase.
pub(super) fn serves(phase: ClusterPhase) -> bool {
    match phase {
        ClusterPhase::Ready | ClusterPhase::Updating | ClusterPhase::Degraded => true,
        ClusterPhase::Creating | ClusterPhase::Failed | ClusterPhase::Deleting => false,
    }
}

/// Why nobody can tell yet, or does not ask any more, whether a machine works.
fn not_judged(machine: &Machine, in_hand: bool) -> Option<&'static str> {
    let reborn = machine.incarnation != Incarnation::FIRST;
    let joined = reborn || machine.labelled.is_some() || machine.phase == MachinePhase::Ready;
    if machine.is_surplus() {
        Some("nothing is wanted of it any more")
    } else if !joined {
        Some("it has not been in service yet")
    } else if in_hand && machine.phase < MachinePhase::Ready {
        Some("a task makes or changes it at the moment")
    } else {
        None
    }
}
