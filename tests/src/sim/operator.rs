//! Operators: what a seed orders, and how they see it through.
//!
//! An order whose task fails is ordered again, as a person would, and after some times with nothing going
//! wrong any more: then it has to succeed.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::step::{Exec, Step, StepId, StepRequest};
use windlass_director::model::{
    Cluster, ClusterPhase, Leg, LegsForecast, Machine, MachinePhase, Plan, Revision, Task, TaskId,
    TaskKind, TaskState, Timestamp, Upgrade,
};
use windlass_director::plan;
use windlass_director::planner::legs::Start;
use windlass_director::planner::{self, Desired, Observed, inputs};
use windlass_director::rollout::Stop;
use windlass_director::rollout::world::Agents;
use windlass_director::store::{Commit, Expect, Kind};

use super::director::Director;
use super::draft::Target;
use super::etcd::Member;
use super::fixtures::{self, Fixtures};
use super::life::doing;
use super::mutation::Mutation;
use super::repairs::Repairs;
use super::state::{FAULTS_MAX, FAULTS_OF_ORDER, Site};

/// How often an order is given until faults end, and until it has to have succeeded.
const TRIES: (u32, u32) = (5, 12);
/// Longest time a task may take: every step has a deadline, and no plan has more than 200 in a row.
const TASK_MAX: Duration = Duration::from_secs(48 * 3600);

/// The operators of one seed.
#[derive(Debug)]
pub struct Operator {
    site: Site,
    fixtures: Arc<Fixtures>,
    /// The director that lives.
    director: Option<Director>,
    /// Reads and writes records without anything going wrong.
    desk: Director,
    /// What the cluster is to be.
    pub target: Target,
    floors: std::collections::BTreeMap<windlass_common::id::PoolName, usize>,
    name: ClusterName,
    tasks: u64,
    execs: u64,
}

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Present,
    Absent,
}

impl Operator {
    /// Operators before their first order.
    pub async fn new(site: &Site, fixtures: &Arc<Fixtures>) -> Result<Self> {
        let target = Target::throw(&mut site.lock().dice);
        Ok(Self {
            site: site.clone(),
            fixtures: Arc::clone(fixtures),
            director: None,
            desk: Director::start(site, fixtures, false)
                .await?
                .context("nothing goes wrong at the desk")?,
            floors: target.floors(),
            target,
            name: fixtures::cluster()?,
            tasks: 0,
            execs: 0,
        })
    }

    /// Gives all the orders of a seed, and looks at what is left.
    pub async fn work(&mut self) -> Result<()> {
        self.order(Want::Present).await?;
        let mut changes = self.site.lock().dice.within(1..=2);
        while changes > 0 {
            self.site.pause(60_000..=900_000).await;
            self.throw_change();
            self.order(Want::Present).await?;
            changes -= 1;
            let few = {
                let mut state = self.site.lock();
                let few = state.faults.in_rollout < 3;
                if few {
                    state.faults.per_mille = 60;
                }
                few || state.now < 1_800_000
            };
            if changes == 0 && few {
                changes = 1;
            }
        }
        self.site.lock().faults.on = false;
        self.site.pause(600_000..=700_000).await;
        self.order(Want::Present).await?;
        self.look_present().await?;
        if self.site.lock().dice.chance(350) {
            {
                let faults = &mut self.site.lock().faults;
                faults.on = true;
                faults.most = FAULTS_MAX.1;
            }
            self.order(Want::Absent).await?;
            self.look_absent();
        }
        if let Some(director) = self.director.take() {
            director.crash();
        }
        Ok(())
    }

    /// Chooses how the cluster is to change.
    fn throw_change(&mut self) {
        let mut dead = None;
        let mut state = self.site.lock();
        let target = &mut self.target;
        let pools: Vec<String> = target.pools.keys().cloned().collect();
        match state.dice.within(0..=5) {
            0 => {
                let at = state.dice.roll() as usize % pools.len();
                if let Some(pool) = target.pools.get_mut(&pools[at]) {
                    pool.count += u32::try_from(state.dice.within(1..=2)).unwrap_or(1);
                }
            }
            1 => {
                let at = state.dice.roll() as usize % pools.len();
                // Pods that leave a node need others to go to.
                let workers: u32 = target.pools.values().map(|pool| pool.count).sum();
                if let Some(pool) = target.pools.get_mut(&pools[at])
                    && workers > 3
                {
                    pool.count = pool.count.saturating_sub(1).max(1);
                }
            }
            2 | 3 if target.kubernetes != "1.37.0" => {
                target.kubernetes = "1.37.0";
                target.build = 1;
            }
            4 => {
                let records = state.entries_of(Kind::Machine, "");
                let machines: Vec<Machine> = records
                    .iter()
                    .filter_map(|entry| serde_json::from_slice(&entry.body).ok())
                    .collect();
                if !machines.is_empty() {
                    let at = state.dice.roll() as usize % machines.len();
                    let machine = &machines[at];
                    let name = machine.name.clone();
                    target.replace.insert(name.clone(), machine.incarnation);
                    // Most who order that do so because it is dead.
                    dead = state.dice.chance(600).then_some(name);
                }
            }
            _ => target.build = 3 - target.build,
        }
        let line = format!("OPERATOR wants {target:?}");
        state.tell(line);
        drop(state);
        if let Some(machine) = dead {
            self.site.kill_machine(&self.fixtures, &machine);
        }
    }

    /// Orders it until it is so, or it was cancelled.
    async fn order(&mut self, want: Want) -> Result<()> {
        let mut last = String::new();
        {
            let faults = &mut self.site.lock().faults;
            faults.until_next = faults.count + FAULTS_OF_ORDER;
        }
        for attempt in 1..=TRIES.1 {
            self.site.lock().faults.on &= attempt <= TRIES.0;
            let task = match self.place(want).await? {
                Ok(task) => task,
                Err(refusal) => {
                    last = refusal;
                    let line = format!("no plan: {last}");
                    self.site.lock().tell(line);
                    self.site.pause(30_000..=300_000).await;
                    continue;
                }
            };
            let cancels = want == Want::Present && {
                let mut state = self.site.lock();
                state.faults.on && state.dice.chance(200)
            };
            let task = self.see_through(&task, cancels).await?;
            match task.state {
                // It rests while it emulates what was before, and goes on.
                TaskState::Succeeded if want == Want::Present && self.emulates().await? => {}
                TaskState::Succeeded => return Ok(()),
                TaskState::Cancelled if task.kind == TaskKind::UpdateCluster => {
                    self.serves_after_cancel().await?;
                    return Ok(());
                }
                _ => {
                    last = task.error.map(|fault| fault.message).unwrap_or_default();
                }
            }
            self.site.pause(30_000..=300_000).await;
        }
        let problem = format!("an order does not succeed with nothing going wrong: {last}");
        self.site.lock().violated(6, problem);
        bail!("given up")
    }

    async fn emulates(&self) -> Result<bool> {
        let cluster = self.cluster().await?;
        Ok(cluster.is_some_and(|cluster| cluster.emulates.is_some()))
    }

    /// The legs to what the cluster is to be.
    fn legs(&self, cluster: &Cluster, machines: &[Machine]) -> Result<Vec<Leg>> {
        let stemcells = &self.fixtures.stemcells;
        let target = stemcells.get(&self.target.stemcell())?;
        let (known, _) = stemcells.list()?;
        let members = machines.iter().filter(|m| m.role.is_control_plane());
        let version = |m: &&Machine| fixtures::minor(&m.stemcell);
        let (oldest, newest) = (
            members.clone().min_by_key(version).context("a member")?,
            members.clone().max_by_key(version).context("a member")?,
        );
        let workers = machines.iter().filter(|m| !m.role.is_control_plane());
        let current = stemcells.get(&newest.stemcell)?;
        let start = Start {
            servers: &oldest.kubernetes_version,
            newest: version(&newest),
            emulates: cluster.emulates,
            kubelets: workers.map(|m| version(&m)).min().unwrap_or(0),
            stemcell: Some(&current),
            made: members.clone().all(|m| m.stemcell == newest.stemcell),
        };
        Ok(planner::legs::legs(start, &target, &known)?)
    }

    async fn cluster(&self) -> Result<Option<Cluster>> {
        Ok(self.desk.records.get(self.name.as_str()).await?)
    }

    /// Writes an order down. The inner error: there is no plan.
    async fn place(&mut self, want: Want) -> Result<Result<TaskId, String>> {
        let found = self.cluster().await?;
        let new = found.is_none();
        if want == Want::Absent && new {
            bail!("there is nothing to delete");
        }
        let mut cluster = match found {
            Some(cluster) => cluster,
            None => self.target.cluster()?,
        };
        let before = self.desk.records.machines_of(self.name.as_str()).await?;
        let mut machines = before.clone();
        let mut commit = Commit::default();
        if new {
            machines = self.target.fresh()?;
            let document = self.fixtures.pki.to_bytes();
            let secret = format!("cluster/{}/pki", self.name);
            self.desk
                .records
                .put_secret(&mut commit, &secret, document.expose())?;
            let endpoint = cluster.endpoint.address.to_string();
            commit.value(Kind::Address, &endpoint, Expect::Absent, &"endpoint");
        } else if want == Want::Present {
            let observed = self.desk.world.observe(&self.name).await?;
            let legs = self.legs(&cluster, &machines)?;
            let first = legs.first().context("a leg")?;
            let workers = first.workers;
            cluster.spec = self.target.spec()?;
            cluster.stemcell = self.target.stemcell();
            cluster.emulates = first.emulates;
            // Some order leg by leg. The plans of later legs are the director's, in which no guard is broken.
            let chained = {
                let mut state = self.site.lock();
                state.mutation.is_none() && state.dice.chance(600)
            };
            cluster.upgrade = (chained && legs.len() > 1).then(|| Upgrade {
                from: "1.36.0".to_owned(),
                legs,
                at: 0,
            });
            self.target.change(&mut machines, workers, &observed)?;
        }
        let (desired, mut observed) = self.inputs(want, &cluster, &machines).await?;
        observed.records = true;
        let mut plan = match self.plan(&desired, &observed) {
            Ok(plan) => plan,
            Err(refusal) => return Ok(Err(refusal)),
        };
        plan.upgrade = cluster.upgrade.as_ref().map(|upgrade| LegsForecast {
            at: 0,
            legs: upgrade
                .legs
                .iter()
                .map(|leg| planner::legs::forecast(leg, &plan, &desired, &observed))
                .collect(),
        });
        let joined = |m: &Machine| m.labelled.is_some() || m.phase == MachinePhase::Ready;
        let kind = match want {
            Want::Absent => TaskKind::DeleteCluster,
            Want::Present if before.iter().any(|m| joined(m) || m.incarnation.0 > 1) => {
                TaskKind::UpdateCluster
            }
            Want::Present => TaskKind::CreateCluster,
        };
        self.allow(want, &machines, &observed);
        {
            let mut state = self.site.lock();
            let waits = kind == TaskKind::UpdateCluster;
            state.keeps_to(waits.then(|| cluster.spec.maintenance.clone()));
            if state.mutation == Some(Mutation::WindowsIgnored) {
                cluster.spec.maintenance = Default::default();
            }
        }
        self.tasks += 1;
        let task = self.task(kind, plan);
        if want == Want::Present {
            for machine in machines.iter().filter(|m| !before.contains(m)) {
                if machine.revision == Revision(0) {
                    let address = machine.address.to_string();
                    commit.value(Kind::Address, &address, Expect::Absent, &machine.name);
                }
                commit.put(machine)?;
            }
        }
        cluster.task = Some(task.id.clone());
        cluster.phase = match want {
            Want::Absent => ClusterPhase::Deleting,
            Want::Present if kind == TaskKind::UpdateCluster => ClusterPhase::Updating,
            Want::Present => ClusterPhase::Creating,
        };
        commit.put(&cluster)?;
        commit.put(&task)?;
        let line = format!(
            "ORDER {kind} {} of {} steps",
            task.id,
            task.plan.steps.len()
        );
        self.site.lock().tell(line);
        self.desk.records.commit(commit).await?;
        Ok(Ok(task.id))
    }

    async fn inputs(
        &self,
        want: Want,
        cluster: &Cluster,
        machines: &[Machine],
    ) -> Result<(Desired, Observed)> {
        let world = &self.desk.world;
        let observed = world.observe_as(cluster, machines).await?;
        let desired = match want {
            Want::Present => world.desired(cluster, machines)?,
            Want::Absent => inputs::absent(&self.name, observed.disks.keys().cloned().collect()),
        };
        Ok((desired, observed))
    }

    /// Has the real planner plan and the real checker look, then breaks a guard if that is wanted.
    fn plan(&self, desired: &Desired, observed: &Observed) -> Result<Plan, String> {
        let mut plan = planner::plan(desired, observed).map_err(|error| error.to_string())?;
        let mut state = self.site.lock();
        if let Err(violations) = plan::check(&plan, desired, observed) {
            let text: Vec<String> = violations.iter().map(ToString::to_string).collect();
            state.violated(6, format!("a plan is refused: {}", text.join("; ")));
        }
        if let Some(mutation) = state.mutation {
            mutation.spoil(&mut plan);
        }
        Ok(plan)
    }

    /// Notes what this order allows.
    fn allow(&mut self, want: Want, machines: &[Machine], observed: &Observed) {
        let mut state = self.site.lock();
        match want {
            Want::Absent => {
                state.ordered.going = true;
                if state.mutation != Some(Mutation::DiskUnnamed) {
                    state.ordered.disks_named = observed.disks.keys().cloned().collect();
                }
            }
            Want::Present => {
                let wanted = self.target.floors();
                // While a pool changes its number, the lower one counts.
                let floors = wanted.iter().map(|(pool, floor)| {
                    let before = self.floors.get(pool).copied().unwrap_or(*floor);
                    (pool.clone(), before.min(*floor))
                });
                state.ordered.floors = floors.collect();
                state.ordered.going = false;
                state.ordered.disks_named.clear();
                self.floors = wanted;
                let members = machines.iter().filter(|m| m.role.is_control_plane());
                state.cluster.members = members.map(|m| (m.name.clone(), Member::FIRST)).collect();
            }
        }
    }

    fn task(&self, kind: TaskKind, plan: Plan) -> Task {
        let [.., a, b, c] = self.tasks.to_be_bytes();
        Task::ordered(
            TaskId::new(self.tasks, [a, b, c]),
            kind,
            plan,
            "ann".into(),
            Timestamp::now(),
        )
    }

    /// Waits for the end of a task, through however many lives of the director.
    async fn see_through(&mut self, task: &TaskId, cancels: bool) -> Result<Task> {
        let mut cancel = if cancels {
            let ms = self.site.lock().dice.within(200..=200_000);
            Some(Instant::now() + Duration::from_millis(ms))
        } else {
            None
        };
        let began = Instant::now();
        loop {
            if self.director.is_none() {
                let Some(director) = Director::start(&self.site, &self.fixtures, true).await?
                else {
                    self.site.lock().tell("the director dies while it starts");
                    self.site.pause(100..=120_000).await;
                    continue;
                };
                self.director = Some(director);
            }
            let director = self.director.as_ref().context("a director lives")?;
            self.site.lock().faults.rollout = true;
            director.rollouts.resume().await?;
            director.rollouts.pause(task, false);
            let repairs = Repairs {
                site: &self.site,
                desk: &self.desk,
                director,
                task,
            };
            let exec = self.site.lock().dice.chance(500);
            let execs = async {
                if exec {
                    self.site.pause(1_000..=120_000).await;
                    run_exec(&self.site, director, self.execs).await;
                }
                std::future::pending::<()>().await;
            };
            let never = Instant::now() + TASK_MAX;
            let died = tokio::select! {
                biased;
                () = director.life.death() => true,
                () = director.rollouts.wait(task) => false,
                () = sleep_until(cancel.unwrap_or(never)) => {
                    if cancel.take().is_some() {
                        self.site.lock().tell(format!("CANCEL {task}"));
                        director.rollouts.stop(task, Stop::CleanUp);
                    } else {
                        self.site.lock().violated(6, format!("{task} does not end"));
                        bail!("given up");
                    }
                    false
                }
                () = execs => false,
                () = repairs.pauses() => false,
                () = repairs.hurries() => false,
                () = repairs.accidents(&self.fixtures) => false,
                died = repairs.work() => died?,
            };
            self.execs += 1;
            self.site.lock().faults.rollout = false;
            if died {
                director.crash();
                self.director = None;
                self.site.lock().tell("the director is dead");
                self.site.pause(100..=120_000).await;
                continue;
            }
            let found = self.desk.records.task(task).await?;
            let found = found.context("a task is in the store")?;
            if found.state.is_over() {
                self.look_at(&found);
                return Ok(found);
            }
            if began.elapsed() > TASK_MAX {
                self.site.lock().violated(6, format!("{task} does not end"));
                bail!("given up");
            }
        }
    }

    /// What a task that is over must not say.
    fn look_at(&self, task: &Task) {
        let mut state = self.site.lock();
        let text = serde_json::to_string(task).unwrap_or_default();
        state.search("a task", &text);
        if let Some(fault) = &task.error {
            let line = format!("{} is {}: {}", task.id, task.state, fault.message);
            state.tell(line.clone());
            if fault.class == ErrorClass::Bug {
                state.violated(6, format!("a bug is reported: {line}"));
            }
        }
    }

    /// A cancelled update leaves a cluster that serves: nothing is closed or out of the endpoint.
    async fn serves_after_cancel(&self) -> Result<()> {
        let machines = self.desk.records.machines_of(self.name.as_str()).await?;
        let shut = machines.iter().find(|m| m.cordoned || !m.serving);
        if let Some(machine) = shut {
            let problem = format!("{} is left out of service by a cancel", machine.name);
            self.site.lock().violated(6, problem);
        }
        Ok(())
    }

    /// The cluster is what was ordered last, and nothing else is there.
    async fn look_present(&self) -> Result<()> {
        self.site.pause(120_000..=120_000).await;
        let cluster = self.cluster().await?.context("the cluster is there")?;
        let machines = self.desk.records.machines_of(self.name.as_str()).await?;
        let (desired, observed) = self.inputs(Want::Present, &cluster, &machines).await?;
        let left = planner::plan(&desired, &observed);
        let mut state = self.site.lock();
        match left {
            Ok(plan) if plan.steps.is_empty() => {}
            Ok(plan) => {
                let keys: Vec<_> = plan.steps.iter().map(|step| step.key.to_string()).collect();
                state.violated(6, format!("it is not as ordered: {}", keys.join(", ")));
            }
            Err(error) => state.violated(6, format!("it cannot be planned: {error}")),
        }
        let names: Vec<&MachineName> = machines.iter().map(|m| &m.name).collect();
        if state.vms.keys().collect::<Vec<_>>() != names {
            let there: Vec<_> = state.vms.keys().map(ToString::to_string).collect();
            state.violated(6, format!("machines are {there:?}, records {names:?}"));
        }
        let nodes: Vec<_> = machines.iter().map(|m| m.node_name.clone()).collect();
        let mut found: Vec<_> = state.cluster.nodes.keys().cloned().collect();
        found.sort_by_key(|node| nodes.iter().position(|n| n == node));
        if found != nodes {
            state.violated(6, format!("nodes are {found:?}, records {nodes:?}"));
        }
        for machine in &machines {
            let (minor, up) = state.vms.get(&machine.name).map_or((0, false), |vm| {
                (vm.minor, vm.incarnation == machine.incarnation)
            });
            let wanted = fixtures::minor(&self.target.stemcell());
            let fine = up && minor == wanted && state.available(&machine.name);
            let api = !machine.role.is_control_plane() || state.api_server_up(&machine.name);
            if !fine
                || !api
                || machine.wanted.is_some()
                || machine.stemcell != self.target.stemcell()
            {
                let problem = format!("{} is not in service as ordered", machine.name);
                state.violated(6, problem);
            }
        }
        for (pool, of) in &self.target.pools {
            let count = machines
                .iter()
                .filter(|m| m.role.pool().is_some_and(|p| p.as_str() == pool))
                .count();
            if count != of.count as usize {
                let problem = format!("pool {pool} has {count} machines, not {}", of.count);
                state.violated(6, problem);
            }
        }
        if !state.workloads_healthy() {
            state.violated(6, "pods do not run that should");
        }
        let disks: Vec<_> = machines
            .iter()
            .filter_map(|m| m.data_disk.as_ref())
            .collect();
        if state.disks.keys().collect::<Vec<_>>() != disks {
            state.violated(7, "disks are left over or missing");
        }
        let addresses = state.entries_of(Kind::Address, "").len();
        if addresses != machines.len() + 1 {
            state.violated(6, format!("{addresses} addresses are taken"));
        }
        drop(state);
        self.look_at_records();
        Ok(())
    }

    fn look_absent(&self) {
        let mut state = self.site.lock();
        if !(state.vms.is_empty() && state.disks.is_empty() && state.endpoints.is_empty()) {
            state.violated(6, "a deleted cluster leaves machines, disks or endpoints");
        }
        let kinds = [
            Kind::Cluster,
            Kind::Machine,
            Kind::Address,
            Kind::Secret,
            Kind::Token,
            Kind::Certificates,
        ];
        for kind in kinds {
            let left = state.entries_of(kind, "").len();
            if left > 0 {
                state.violated(6, format!("{left} records of kind {kind:?} are left"));
            }
        }
        drop(state);
        self.look_at_records();
    }

    /// Nothing in the store that is not sealed shows a secret.
    fn look_at_records(&self) {
        let mut state = self.site.lock();
        let bodies: Vec<(Kind, String)> = state
            .entries
            .iter()
            .filter(|((kind, _), _)| *kind != Kind::Secret)
            .map(|((kind, _), (_, body))| (*kind, String::from_utf8_lossy(body).into_owned()))
            .collect();
        for (kind, body) in bodies {
            state.search(&format!("a record of kind {kind:?}"), &body);
        }
    }
}

/// Runs a command on some machine; when its link breaks, asks again what became of it.
async fn run_exec(site: &Site, director: &Director, number: u64) {
    let chosen = {
        let mut state = site.lock();
        let vms: Vec<_> = state
            .vms
            .iter()
            .map(|(name, vm)| (name.clone(), vm.incarnation))
            .collect();
        let all: Vec<usize> = (0..vms.len()).collect();
        state.dice.pick(&all).map(|at| vms[at].clone())
    };
    let Some((machine, incarnation)) = chosen else {
        return;
    };
    let request = StepRequest {
        id: StepId(format!("exec/{number}")),
        epoch: director.world.birth.epoch.get(),
        deadline_ms: 60_000,
        step: Step::Exec(Exec {
            argv: vec!["true".into()],
        }),
        labels: Default::default(),
    };
    for _ in 0..3 {
        let (sender, _receiver) = tokio::sync::mpsc::channel(1);
        let asked = director
            .life
            .run_step(&machine, incarnation, request.clone(), sender);
        let asked = doing("exec", asked);
        match timeout(Duration::from_secs(300), asked).await {
            Ok(Ok(_)) => return,
            Ok(Err(_)) | Err(_) => sleep(Duration::from_secs(20)).await,
        }
    }
}
