//! The catalogue of faults on a cluster of three control-plane machines and three workers, one after the other, with a
//! workload that has a disruption budget. Verdicts and outcomes are asserted; times are printed, and kept in
//! `fault-times.json` beside the stemcells.
//!
//! # Not here
//! Replacements that come up and die, and operators ([`crate::repair`]), a director that is restored
//! ([`crate::director_restore`]).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_tests::host::{self, Stopped};
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::{World, required};

use crate::changes::deploy;
use crate::etcd::voting;
use crate::faults::{end_agent, is};
use crate::lifecycle::{healthy, items};
use crate::repair::{
    ACTS, LONG, Outgoing, incarnation, judged_since, reborn, repair_of, verdict, why, world,
};
use crate::restore;
use crate::zombie::{Controllers, EtcdKeys, Zombie, boots_again, control_plane_boots_again};

const CLUSTER: &str = "three";
const NODES: usize = 6;
const REPLICAS: usize = 4;
/// Faults are spread over the workers: a second hang within the hour is mended by a replacement, and replacements that die
/// young stop their pool.
const WORKER: &str = "three-workers-1";
const CUT_OFF: &str = "three-workers-2";
const LAST: &str = "three-workers-0";
const FIRST: &str = "three-cp-0";
const MEMBER: &str = "three-cp-1";
const THIRD: &str = "three-cp-2";
/// How long nothing may happen where nothing is to happen: longer than any patience of this director.
const STILL: Duration = Duration::from_secs(40);
/// A pool of its own, for what has a pool stopped.
const SPARE: &str = "three-spare-0";
/// How long a replacement may take to be given up, or to be made after a pause.
const GIVEN_UP: Duration = Duration::from_secs(400);

/// The cluster that suffers, and how long what took.
struct Site {
    world: World,
    kubectl: Kubectl,
    times: Vec<Value>,
}

/// One fault: what it is, and since when.
struct Fault {
    what: &'static str,
    began: Instant,
    /// The same by the clock that verdicts are written down with, Unix milliseconds.
    began_ms: i64,
    times: Vec<(&'static str, f64)>,
}

impl Fault {
    fn begins(what: &'static str) -> Fault {
        Fault {
            what,
            began: Instant::now(),
            began_ms: Timestamp::now().as_millisecond(),
            times: Vec::new(),
        }
    }

    /// A stage is reached, by the last of those that reach it.
    fn now(&mut self, stage: &'static str) {
        self.times.retain(|(reached, _)| *reached != stage);
        self.times.push((stage, self.began.elapsed().as_secs_f64()));
    }
}

pub(crate) fn on_three_and_three() -> Result<()> {
    let world = world(CLUSTER)?;
    let create = ["cluster", "create", CLUSTER, "--control-plane", "3"];
    world.run(&[&create[..], &["--workers", "3", "--wait"]].concat())?;
    let kubectl = world.kubectl(CLUSTER)?;
    healthy(&kubectl, NODES)?;
    deploy(&kubectl, REPLICAS)?;
    kubectl.apply(
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"minAvailable": REPLICAS - 1, "selector": {"matchLabels": {"app": "web"}}}}),
    )?;
    let mut site = Site {
        world,
        kubectl,
        times: Vec::new(),
    };
    site.machine_is_gone("worker killed", WORKER)?;
    site.machine_is_gone("control-plane machine killed", MEMBER)?;
    site.data_is_gone()?;
    site.machine_hangs("worker frozen", WORKER)?;
    site.machine_hangs("control-plane machine frozen", MEMBER)?;
    site.agent_ends(
        "worker's agent ended",
        LAST,
        &["drain", "reboot", "uncordon"],
    )?;
    let hands_over = [
        "drain",
        "leave-endpoint",
        "reboot",
        "join-endpoint",
        "uncordon",
    ];
    site.agent_ends("control-plane machine's agent ended", FIRST, &hands_over)?;
    site.cut_from_the_director()?;
    site.cut_from_everything()?;
    site.cut_all_from_the_director()?;
    site.program_is_killed("kubelet killed four times", "kubelet")?;
    site.program_is_killed("agent killed four times", "windlass-agent")?;
    site.runtime_hangs()?;
    site.director_dies_meanwhile()?;
    site.replacement_does_not_come_up()?;
    site.disk_is_full()?;
    site.worker_comes_back()?;
    site.member_comes_back()?;
    site.replacements_never_come_up()?;
    site.majority_is_gone()?;
    site.keep()?;
    let delete = ["cluster", "delete", CLUSTER, "--yes", "--wait"];
    site.world.run(&delete).map(drop)
}

impl Site {
    /// All is as it was before the fault, and the workload is within its budget.
    fn over(&mut self, mut fault: Fault, machine: &str) -> Result<()> {
        verdict(&self.world, machine, "healthy")?;
        healthy(&self.kubectl, NODES)?;
        fault.now("all healthy");
        self.kubectl.pods_ready("app=web", REPLICAS)?;
        let budget = self.kubectl.get(&["pdb", "web"])?;
        ensure!(
            budget["status"]["currentHealthy"].as_u64() >= Some(REPLICAS as u64 - 1),
            "the budget is broken: {budget:#}"
        );
        let plan = self.world.json(&["cluster", "plan", CLUSTER])?;
        ensure!(
            plan["steps"].as_array().is_some_and(Vec::is_empty),
            "left to do after {}: {plan:#}",
            fault.what
        );
        let row: serde_json::Map<String, Value> = fault
            .times
            .iter()
            .map(|(stage, seconds)| ((*stage).to_owned(), json!(seconds)))
            .collect();
        let said: Vec<String> = fault
            .times
            .iter()
            .map(|(stage, seconds)| format!("{stage} {seconds:.1} s"))
            .collect();
        eprintln!("  {}: {}", fault.what, said.join(", "));
        self.times
            .push(json!({"fault": fault.what, "seconds": row}));
        Ok(())
    }

    fn suspected(&self, fault: &mut Fault, machine: &str, incarnation: u64) -> Result<()> {
        until("it is suspect", LONG, || {
            let doubted = self.world.doubted(machine, incarnation)?;
            Ok(doubted.then_some(()))
        })?;
        fault.now("suspected");
        Ok(())
    }

    /// Waits until the machine was judged so since the fault began; that may be over by then.
    fn judged(&self, fault: &mut Fault, machine: &str, wanted: &str) -> Result<()> {
        until(&format!("{machine} is {wanted}"), LONG, || {
            let judged = judged_since(&self.world, machine, fault.began_ms)?;
            let so = judged.iter().any(|judged| judged["verdict"] == wanted);
            Ok(so.then_some(()))
        })?;
        fault.now("judged");
        Ok(())
    }

    /// Waits until the newest repair has done this with a machine; `last` is one of before.
    fn repaired_as_far_as(&self, machine: &str, verb: &str, last: Option<&Value>) -> Result<()> {
        let key = format!("machine/{machine}/{verb}");
        until(&key, LONG, || {
            let newest = repair_of(&self.world, CLUSTER)?;
            let task = newest.filter(|task| Some(&task["id"]) != last);
            Ok(task.and_then(|task| (task["steps"][&key]["state"] == "Succeeded").then_some(())))
        })
    }

    /// Nobody has made a machine anew, whatever else was done.
    fn is_the_same(&self, machine: &str, before: u64) -> Result<()> {
        let now = incarnation(&self.world, machine)?;
        ensure!(now == before, "{machine} was replaced: {before}, now {now}");
        Ok(())
    }

    /// Follows a replacement step by step.
    fn replaced(&self, fault: &mut Fault, machine: &str, before: u64) -> Result<()> {
        for (verb, stage) in [("fence", "fenced"), ("create", "made")] {
            self.repaired_as_far_as(machine, verb, None)?;
            fault.now(stage);
        }
        let now = reborn(&self.world, machine, before)?;
        fault.now("Ready");
        ensure!(now == before + 1, "{machine}: {before}, then {now}");
        Ok(())
    }

    fn address(&self, machine: &str) -> Result<String> {
        let seen = self.world.json(&["node", "show", machine])?;
        let address = seen["address"].as_str().context("an address")?;
        Ok(address.to_owned())
    }

    fn machine_is_gone(&mut self, what: &'static str, machine: &str) -> Result<()> {
        let before = incarnation(&self.world, machine)?;
        self.world.delete_behind(machine)?;
        let mut fault = Fault::begins(what);
        self.suspected(&mut fault, machine, before)?;
        self.judged(&mut fault, machine, "machineGone")?;
        self.replaced(&mut fault, machine, before)?;
        self.over(fault, machine)
    }

    /// A member's disk goes with its machine: it is removed from etcd, and joins again.
    fn data_is_gone(&mut self) -> Result<()> {
        let machine = THIRD;
        let members = voting(&self.world, CLUSTER)?;
        let before = incarnation(&self.world, machine)?;
        let shown = self.world.json(&["node", "show", machine])?;
        let disk = shown["dataDisk"].as_str().context("a member has a disk")?;
        self.world.delete_behind(machine)?;
        self.world.delete_disk_behind(disk)?;
        let mut fault = Fault::begins("etcd member's disk gone");
        self.suspected(&mut fault, machine, before)?;
        self.judged(&mut fault, machine, "machineGone")?;
        self.replaced(&mut fault, machine, before)?;
        self.over(fault, machine)?;
        let after = voting(&self.world, CLUSTER)?;
        ensure!(
            after.len() == 3 && members.intersection(&after).count() == 2,
            "members: {members:?}, {after:?}"
        );
        let task = repair_of(&self.world, CLUSTER)?.context("there was a repair")?;
        for verb in ["remove-member", "add-member"] {
            let changes = task["steps"][format!("machine/{machine}/{verb}")]["changes"].to_string();
            ensure!(
                changes.contains("snapshot"),
                "{verb} saved nothing before: {changes}"
            );
        }
        Ok(())
    }

    fn machine_hangs(&mut self, what: &'static str, machine: &str) -> Result<()> {
        let before = incarnation(&self.world, machine)?;
        self.world.freeze(machine)?;
        let mut fault = Fault::begins(what);
        self.suspected(&mut fault, machine, before)?;
        self.judged(&mut fault, machine, "nodeHung")?;
        self.over(fault, machine)?;
        self.is_the_same(machine, before)
    }

    /// What serves is drained before it is restarted, and one of a control plane leaves the endpoint.
    fn agent_ends(
        &mut self,
        what: &'static str,
        machine: &str,
        verbs: &[&'static str],
    ) -> Result<()> {
        let before = incarnation(&self.world, machine)?;
        let last = repair_of(&self.world, CLUSTER)?.context("there were repairs")?["id"].clone();
        end_agent(&self.world, machine)?;
        let mut fault = Fault::begins(what);
        self.suspected(&mut fault, machine, before)?;
        self.judged(&mut fault, machine, "agentLost")?;
        for verb in verbs {
            self.repaired_as_far_as(machine, verb, Some(&last))?;
            fault.now(verb);
        }
        self.over(fault, machine)?;
        self.is_the_same(machine, before)
    }

    fn cut_from_the_director(&mut self) -> Result<()> {
        let before = incarnation(&self.world, WORKER)?;
        let cut = self.world.cut(&[self.address(WORKER)?])?;
        let mut fault = Fault::begins("worker cut off from the director");
        self.suspected(&mut fault, WORKER, before)?;
        self.judged(&mut fault, WORKER, "partitioned")?;
        self.still("nothing is done to what serves")?;
        healthy(&self.kubectl, NODES)?;
        drop(cut);
        fault.now("healed");
        self.over(fault, WORKER)?;
        self.is_the_same(WORKER, before)
    }

    /// From outside it is as one that hangs: it is restarted, and its network with it.
    fn cut_from_everything(&mut self) -> Result<()> {
        let before = incarnation(&self.world, CUT_OFF)?;
        let cut = Outgoing::blocked(CUT_OFF, r#"oifname != "lo""#)?;
        let mut fault = Fault::begins("worker cut off from everything");
        self.suspected(&mut fault, CUT_OFF, before)?;
        self.judged(&mut fault, CUT_OFF, "nodeHung")?;
        self.over(fault, CUT_OFF)?;
        drop(cut);
        self.is_the_same(CUT_OFF, before)
    }

    fn cut_all_from_the_director(&mut self) -> Result<()> {
        let listed = self.world.json(&["node", "list", "--cluster", CLUSTER])?;
        let mut all = Vec::new();
        for machine in items(&listed)? {
            let name = machine["name"].as_str().context("a name")?.to_owned();
            let address = machine["address"]
                .as_str()
                .context("an address")?
                .to_owned();
            all.push((name, address));
        }
        let last = repair_of(&self.world, CLUSTER)?.context("there were repairs")?["id"].clone();
        let addresses: Vec<String> = all.iter().map(|(_, address)| address.clone()).collect();
        let cut = self.world.cut(&addresses)?;
        let mut fault = Fault::begins("all cut off from the director");
        for (name, _) in &all {
            self.judged(&mut fault, name, "unknown")?;
        }
        self.still("nothing is done in a storm")?;
        drop(cut);
        fault.now("healed");
        for (name, _) in &all {
            verdict(&self.world, name, "healthy")?;
        }
        let newest = repair_of(&self.world, CLUSTER)?.context("there were repairs")?;
        ensure!(newest["id"] == last, "something was replaced: {newest:#}");
        self.over(fault, WORKER)
    }

    fn still(&self, what: &str) -> Result<()> {
        let began = Instant::now();
        until(what, STILL * 2, || {
            Ok((began.elapsed() > STILL).then_some(()))
        })
    }

    /// systemd starts it again each time, and nobody else does anything.
    fn program_is_killed(&mut self, what: &'static str, program: &str) -> Result<()> {
        let before = incarnation(&self.world, WORKER)?;
        let fault = Fault::begins(what);
        for _ in 0..4 {
            let pid = until("it runs", Duration::from_secs(60), || {
                Ok(host::machine_processes(WORKER, program)?.first().copied())
            })?;
            host::kill_hard(pid)?;
            until("it is gone", Duration::from_secs(10), || {
                let left = host::machine_processes(WORKER, program)?;
                Ok((!left.contains(&pid)).then_some(()))
            })?;
        }
        self.over(fault, WORKER)?;
        self.is_the_same(WORKER, before)
    }

    fn runtime_hangs(&mut self) -> Result<()> {
        let found = host::machine_processes(WORKER, "containerd")?;
        let containerd = found.first().copied().context("containerd runs")?;
        let hung = Stopped::process(containerd)?;
        let mut fault = Fault::begins("containerd hung");
        self.judged(&mut fault, WORKER, "degraded")?;
        verdict(&self.world, WORKER, "healthy")?;
        // systemd has ended what was stopped.
        drop(hung);
        self.over(fault, WORKER)
    }

    /// The director dies while it replaces a machine, and goes on where it was.
    fn director_dies_meanwhile(&mut self) -> Result<()> {
        let before = incarnation(&self.world, CUT_OFF)?;
        let last = repair_of(&self.world, CLUSTER)?.context("there were repairs")?["id"].clone();
        self.world.delete_behind(CUT_OFF)?;
        let mut fault = Fault::begins("worker killed, director killed in the middle");
        until("a repair begins", LONG, || {
            Ok(repair_of(&self.world, CLUSTER)?.filter(|task| task["id"] != last))
        })?;
        fault.now("repair begun");
        self.world.crash_director()?;
        let now = reborn(&self.world, CUT_OFF, before)?;
        fault.now("Ready");
        ensure!(
            now == before + 1,
            "replaced more than once: {before}, {now}"
        );
        self.over(fault, CUT_OFF)
    }

    /// A replacement that nobody hears of is waited for, and not replaced again and again.
    fn replacement_does_not_come_up(&mut self) -> Result<()> {
        let before = incarnation(&self.world, LAST)?;
        let last = repair_of(&self.world, CLUSTER)?.context("there were repairs")?["id"].clone();
        let cut = self.world.cut(&[self.address(LAST)?])?;
        self.world.delete_behind(LAST)?;
        let mut fault = Fault::begins("worker killed, replacement not heard of");
        self.repaired_as_far_as(LAST, "create", Some(&last))?;
        fault.now("made");
        self.still("it is waited for")?;
        let seen = self.world.json(&["node", "show", LAST])?;
        ensure!(
            seen["incarnation"] == before + 1 && seen["phase"] != "Ready",
            "it was not waited for: {seen:#}"
        );
        ensure!(
            !why(&self.world, LAST)?["outlook"].is_null(),
            "nobody says what is waited for"
        );
        drop(cut);
        fault.now("healed");
        let now = reborn(&self.world, LAST, before)?;
        ensure!(now == before + 1, "replaced again: {before}, {now}");
        self.over(fault, LAST)
    }

    /// What no restart mends is shown and left to an operator; neighbours and workload notice nothing.
    fn disk_is_full(&mut self) -> Result<()> {
        const POINT: &str = "/srv";
        const DISK: &str = "three-srv";
        let before = incarnation(&self.world, LAST)?;
        let tried = self.tried(LAST)?;
        self.world.mount_behind(LAST, DISK, 64 << 20, POINT)?;
        is(&self.world, LAST, ("disk-space", POINT), "good")?;
        let mut fault = Fault::begins("worker's disk full");
        // It fails for want of space once there is none.
        let fill = ["dd", "if=/dev/zero", "of=/srv/filler", "bs=1M"];
        let on_it = ["node", "exec", LAST, "--"];
        self.world.output(&[&on_it[..], &fill].concat())?;
        is(&self.world, LAST, ("disk-space", POINT), "bad")?;
        self.judged(&mut fault, LAST, "degraded")?;
        self.still("nothing is restarted for it")?;
        let said = why(&self.world, LAST)?;
        ensure!(said["outlook"]["kind"] == "stay", "{said:#}");
        ensure!(self.tried(LAST)? == tried, "something was tried: {said:#}");
        healthy(&self.kubectl, NODES)?;
        self.neighbours_are_well(LAST, &fault)?;
        let filler = ["rm", "/srv/filler"];
        self.world.run(&[&on_it[..], &filler].concat())?;
        fault.now("healed");
        verdict(&self.world, LAST, "healthy")?;
        self.over(fault, LAST)?;
        self.world.unmount_behind(LAST, DISK, POINT)?;
        self.is_the_same(LAST, before)
    }

    /// What was tried with a machine so far.
    fn tried(&self, machine: &str) -> Result<Vec<Value>> {
        let said = why(&self.world, machine)?;
        let attempts = said["case"]["case"]["attempts"].as_array();
        Ok(attempts.cloned().unwrap_or_default())
    }

    /// Nobody else was judged to be anything but healthy since a fault began.
    fn neighbours_are_well(&self, machine: &str, fault: &Fault) -> Result<()> {
        let listed = self.world.json(&["node", "list", "--cluster", CLUSTER])?;
        for other in items(&listed)? {
            let name = other["name"].as_str().context("a name")?;
            if name == machine {
                continue;
            }
            let judged = judged_since(&self.world, name, fault.began_ms)?;
            let well = judged.iter().all(|judged| judged["verdict"] == "healthy");
            ensure!(well, "{name} was judged: {judged:#?}");
        }
        Ok(())
    }

    /// A worker is replaced, its keys are tried at each door, and its old disk boots again beside its successor.
    fn worker_comes_back(&mut self) -> Result<()> {
        let node = format!("{WORKER}-i{}", incarnation(&self.world, WORKER)?);
        let zombie = Zombie::of(WORKER, &node, &self.kubectl)?;
        let mut fault = Fault::begins("replaced worker comes back");
        let kept = self.replaced_and_kept(WORKER)?;
        fault.now("replaced");
        zombie.is_refused(&self.world, &self.kubectl, &self.address(MEMBER)?)?;
        zombie.gives_way(&self.world, WORKER, &["kubelet"])?;
        fault.now("keys refused");
        boots_again(&self.world, &self.kubectl, WORKER, &kept)?;
        fault.now("old disk harmless");
        self.forgets(&kept)?;
        self.over(fault, WORKER)
    }

    /// The same of a member, whose controllers and keys of etcd are refused, too.
    fn member_comes_back(&mut self) -> Result<()> {
        let node = format!("{MEMBER}-i{}", incarnation(&self.world, MEMBER)?);
        let zombie = Zombie::of(MEMBER, &node, &self.kubectl)?;
        let other = self.address(FIRST)?;
        let controllers = Controllers::of(MEMBER, &self.kubectl, &other)?;
        let old = EtcdKeys::of(MEMBER)?;
        let mut fault = Fault::begins("replaced control-plane machine comes back");
        let kept = self.replaced_and_kept(MEMBER)?;
        fault.now("replaced");
        zombie.is_refused(&self.world, &self.kubectl, &other)?;
        controllers.are_refused(&other)?;
        let mut members = Vec::new();
        for member in [FIRST, MEMBER, THIRD] {
            members.push((member, self.address(member)?));
        }
        old.are_refused(&self.world, &members)?;
        zombie.gives_way(&self.world, MEMBER, &ACTS)?;
        fault.now("keys refused");
        let beside = (&EtcdKeys::of(FIRST)?, other.as_str());
        control_plane_boots_again(&self.world, &self.kubectl, MEMBER, &kept, beside)?;
        fault.now("old disk harmless");
        self.forgets(&kept)?;
        self.over(fault, MEMBER)
    }

    /// Replaces a machine, and keeps what it was.
    fn replaced_and_kept(&self, machine: &str) -> Result<Value> {
        let recreate = ["node", "recreate", machine, "--yes", "--wait", "--keep"];
        let why = ["--reason", "it is to come back"];
        self.world.run(&[&recreate[..], &why].concat())?;
        healthy(&self.kubectl, NODES)?;
        let all = self.world.json(&["node", "kept", "list"])?;
        let [kept] = items(&all)?.as_slice() else {
            anyhow::bail!("kept: {all:#}");
        };
        Ok(kept.clone())
    }

    fn forgets(&self, kept: &Value) -> Result<()> {
        let name = kept["name"].as_str().context("it has a name")?;
        let delete = ["node", "kept", "delete", name, "--yes"];
        self.world.run(&delete).map(drop)
    }

    /// Orders another number of machines for the pool of those that are spare.
    fn spare(&self, count: usize) -> Result<()> {
        let mut spec = self.world.json(&["cluster", "show", CLUSTER])?["spec"].clone();
        spec["pools"]["spare"]["count"] = json!(count);
        let file = self.world.dir().join("spare.json");
        std::fs::write(&file, spec.to_string())?;
        let file = file.to_string_lossy().into_owned();
        let apply = ["cluster", "apply", "-f", &file, "--wait"];
        self.world.run(&apply).map(drop)
    }

    /// A machine is made, is gone before anything is heard of it, and is made again after a pause; then its pool is left
    /// to an operator, with what the dead have in common, while others are replaced as before.
    fn replacements_never_come_up(&mut self) -> Result<()> {
        // More than the rollout waits for an agent, so that the pause is seen.
        self.world
            .configure(&[("replace_first_s", "200"), ("poison_after", "2")])?;
        self.spare(1)?;
        healthy(&self.kubectl, NODES + 1)?;
        verdict(&self.world, SPARE, "healthy")?;
        // Nothing is heard of any of them before it is gone.
        let cut = self.world.cut(&[self.address(SPARE)?])?;
        self.world.delete_behind(SPARE)?;
        let mut fault = Fault::begins("replacements that never come up");
        let mut last = None;
        for (incarnation, made, given_up) in
            [(2, "made", "given up"), (3, "made again", "given up again")]
        {
            // Not before the director has it: it would go on making what is taken away from under it.
            let task = until("it is made", GIVEN_UP, || {
                let newest = repair_of(&self.world, CLUSTER)?;
                let of_it = |task: &Value| {
                    let step = &task["steps"][format!("machine/{SPARE}/create")];
                    step["state"] == "Succeeded" && last.as_ref() != Some(&task["id"])
                };
                Ok(newest.filter(of_it))
            })?;
            last = Some(task["id"].clone());
            fault.now(made);
            self.world.delete_behind(SPARE)?;
            let said = until("it is given up, and the pause runs", GIVEN_UP, || {
                let said = why(&self.world, SPARE)?;
                let of_it = said["case"]["incarnation"] == incarnation;
                let waits = said["outlook"]["why"]
                    .to_string()
                    .contains("the pause grows");
                Ok((of_it && waits).then_some(said))
            })?;
            fault.now(given_up);
            let tried = self.tried(SPARE)?;
            let last = tried.last().context("it was replaced")?["atMs"].as_u64();
            let until_ms = said["outlook"]["until_ms"].as_u64();
            // 200 s, and twice as long.
            let pause = last.map(|at| at + 200_000 * (incarnation - 1));
            ensure!(
                pause.is_some() && until_ms == pause,
                "{said:#}, tried: {tried:#?}"
            );
        }
        let shown = self.world.json(&["cluster", "show", CLUSTER])?;
        let stopped = &shown["stoppedPools"][0];
        ensure!(
            stopped["role"]["pool"] == "spare"
                && stopped["died"] == 2
                && stopped["kind"] == "step"
                && stopped["why"].to_string().contains("await-agent"),
            "{stopped:#}"
        );
        // Without a pause it would be replaced at once.
        self.world.configure(&[("replace_first_s", "20")])?;
        let told = until("the pool is left to an operator", LONG, || {
            let outlook = &why(&self.world, SPARE)?["outlook"];
            let told = outlook["why"].to_string();
            let refused = outlook["kind"] == "refused" && told.contains("replacements died");
            Ok(refused.then_some(told))
        })?;
        ensure!(told.contains("await-agent"), "no cause is named: {told}");
        fault.now("left to an operator");
        // Others are replaced meanwhile.
        let before = incarnation(&self.world, CUT_OFF)?;
        self.world.delete_behind(CUT_OFF)?;
        let now = reborn(&self.world, CUT_OFF, before)?;
        ensure!(now == before + 1, "{CUT_OFF}: {before}, then {now}");
        verdict(&self.world, CUT_OFF, "healthy")?;
        ensure!(
            incarnation(&self.world, SPARE)? == 3 && self.world.made_behind(SPARE)?.is_none(),
            "{SPARE} was made once more"
        );
        drop(cut);
        self.world.run(&["node", "release", SPARE])?;
        fault.now("healed");
        let now = reborn(&self.world, SPARE, 3)?;
        ensure!(now == 4, "{SPARE} was replaced more than once: {now}");
        fault.now("Ready");
        verdict(&self.world, SPARE, "healthy")?;
        healthy(&self.kubectl, NODES + 1)?;
        let shown = self.world.json(&["cluster", "show", CLUSTER])?;
        ensure!(shown["stoppedPools"] == json!([]), "{shown:#}");
        self.spare(0)?;
        self.world.configure(&[("poison_after", "3")])?;
        self.over(fault, LAST)
    }

    /// The workload's pods, and how often their containers were started.
    fn pods(&self) -> Result<Vec<Value>> {
        let pods = self.kubectl.get(&["pods", "-l", "app=web"])?;
        let alive = |pod: &Value| {
            let containers = &pod["status"]["containerStatuses"];
            json!([pod["metadata"]["uid"], containers[0]["restartCount"]])
        };
        Ok(items(&pods)?.iter().map(alive).collect())
    }

    /// Two of three members are gone with their disks: nothing is done before somebody has seen what is lost, and what
    /// runs goes on.
    fn majority_is_gone(&mut self) -> Result<()> {
        let lost = [FIRST, THIRD];
        let pods = self.pods()?;
        let last = repair_of(&self.world, CLUSTER)?.context("there were repairs")?["id"].clone();
        let mut before = Vec::new();
        for machine in lost {
            before.push(incarnation(&self.world, machine)?);
            let shown = self.world.json(&["node", "show", machine])?;
            let disk = shown["dataDisk"].as_str().context("a member has a disk")?;
            self.world.delete_behind(machine)?;
            self.world.delete_disk_behind(disk)?;
        }
        let mut fault = Fault::begins("two of three members gone with their disks");
        for machine in lost {
            self.judged(&mut fault, machine, "machineGone")?;
        }
        // One after the other would be made anew: the first is refused for want of a majority, the second waits for it.
        until("the way out is named", LONG, || {
            for machine in lost {
                let said = why(&self.world, machine)?["outlook"].to_string();
                if said.contains("restore") && said.contains("--from-member") {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })?;
        let restore = ["cluster", "restore", CLUSTER, "--from-member"];
        let plan = until("the last member sees no leader", LONG, || {
            let dry = [&restore[..], &["--dry-run", "--json"]].concat();
            let output = self.world.output(&dry)?;
            let plan = output.status.success().then_some(output.stdout);
            Ok(plan
                .map(|json| serde_json::from_slice::<Value>(&json))
                .transpose()?)
        })?;
        fault.now("loss shown");
        let first = restore::members(&plan)?
            .first()
            .context("they are ranked")?;
        ensure!(
            first["machine"] == MEMBER
                && first["fate"] == "begins"
                && first["revision"].as_u64() > Some(0),
            "{plan:#}"
        );
        let losses = plan["restore"]["losses"].to_string();
        ensure!(lost.iter().all(|lost| losses.contains(lost)), "{losses}");
        restore::refused(&self.world, &restore, "--accept-loss")?;
        self.still("nothing is done without consent")?;
        for (machine, before) in lost.iter().zip(&before) {
            self.is_the_same(machine, *before)?;
            ensure!(
                self.world.made_behind(machine)?.is_none(),
                "{machine} was made"
            );
        }
        let newest = repair_of(&self.world, CLUSTER)?.context("there were repairs")?;
        ensure!(newest["id"] == last, "something was replaced: {newest:#}");
        let hash = plan["hash"].as_str().context("a plan has a hash")?;
        let approved = [&restore[..], &["--plan", hash, "--accept-loss"]].concat();
        let task = self.world.json(&approved)?;
        fault.now("approved");
        restore::ended(
            &self.world,
            task["id"].as_str().context("a task has an id")?,
        )?;
        fault.now("Ready");
        let voting = voting(&self.world, CLUSTER)?;
        ensure!(voting.len() == 3, "all have a vote: {voting:?}");
        for (machine, before) in lost.iter().zip(&before) {
            let now = incarnation(&self.world, machine)?;
            ensure!(now == before + 1, "{machine}: {before}, then {now}");
            verdict(&self.world, machine, "healthy")?;
        }
        self.over(fault, MEMBER)?;
        let now = self.pods()?;
        ensure!(now == pods, "pods did not run on: {pods:?}, {now:?}");
        Ok(())
    }

    fn keep(&self) -> Result<()> {
        let stemcells = required("WINDLASS_TEST_STEMCELLS")?;
        let beside = stemcells.parent().context("a directory of stemcells")?;
        let file = beside.join("fault-times.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&self.times)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }
}
