//! A world to crash in: the real store contract, planner, rollout and `World`, with a provider, agents and
//! an API that live in memory and outlive the director.
//!
//! A [`Life`] is one life of a director. It dies at a chosen point: before or after a commit or an effect.
//! From then on nothing that this life does reaches the world any more.

mod agents;
mod kube;
mod provider;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, watch};
use windlass_common::id::{
    ClusterName, Digest, DiskName, Incarnation, MachineName, NodeName, ZoneName,
};
use windlass_common::settings::Settings;
use windlass_common::step::{Step, StepRequest, StepResult};

use crate::drain::Hazard;
use crate::model::{Revision, StepRecord, StepState, Timestamp};
use crate::provider::{DiskView, EndpointView, KeptView, MachineSize, MachineView, Power};
use crate::store::memory::Memory;
use crate::store::{Change, Entry, Kind, Store, StoreFuture, Write};

/// Everything that outlives a director.
#[derive(Debug, Default)]
pub(crate) struct Sim {
    pub(crate) store: Memory,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) machines: BTreeMap<MachineName, Vm>,
    pub(crate) zones: Vec<ZoneName>,
    /// Whether its provider may be asked for what it refuses; a rollout never does.
    pub(crate) refuses: bool,
    /// Machines that were set aside.
    pub(crate) kept: BTreeMap<MachineName, KeptView>,
    pub(crate) disks: BTreeMap<DiskName, DiskView>,
    pub(crate) endpoints: BTreeMap<ClusterName, EndpointView>,
    pub(crate) addons: bool,
    pub(crate) ready: BTreeSet<NodeName>,
    /// When machines booted that have since their kubelets spoke last.
    pub(crate) booted: BTreeMap<MachineName, Timestamp>,
    /// Nodes closed to new pods.
    pub(crate) cordoned: BTreeSet<NodeName>,
    /// Machines ever made, with how often each incarnation was.
    pub(crate) births: BTreeMap<(MachineName, Incarnation), u32>,
    /// Beginnings of names of nodes whose drains do not end.
    pub(crate) stuck: BTreeSet<String>,
    /// What a director writes down is in another store than this world's.
    pub(crate) stored_elsewhere: bool,
    /// What a change would meet.
    pub(crate) hazards: Vec<Hazard>,
    /// Nodes that never are Ready.
    pub(crate) never_ready: BTreeSet<&'static str>,
    /// Whether Jobs of gates fail.
    pub(crate) jobs_fail: bool,
    /// Steps that fail for good once, by the end of their id.
    pub(crate) refuse_once: BTreeSet<&'static str>,
    /// Why the next machines are not made, one each.
    pub(crate) create_faults: VecDeque<&'static str>,
    /// Machines that are gone as soon as they are made, once.
    pub(crate) vanish_once: BTreeSet<&'static str>,
    /// Steps that fail once, by the end of their id.
    pub(crate) fail_once: BTreeSet<&'static str>,
    /// Steps whose answer is lost once after they were done, by the end of their id.
    pub(crate) lose_once: BTreeSet<&'static str>,
}

/// A machine and what its agent did.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) view: MachineView,
    /// The stemcell that it was made from, and the size that it was given.
    pub(crate) made_as: (PathBuf, MachineSize),
    /// It has lost its power for good.
    pub(crate) broken: bool,
    pub(crate) settings: Settings,
    keys: BTreeMap<String, Vec<u8>>,
    /// What was asked under which id, and what came of it: the agent's journal.
    journal: BTreeMap<String, (Step, StepResult)>,
    /// Whether its agent was ever let in.
    pub(crate) connected: bool,
    pub(crate) mounted: bool,
    /// What its member of etcd refuses, DER.
    pub(crate) refuses: Option<Vec<u8>>,
    /// What its API server reads of whom it denies.
    pub(crate) denies: Option<String>,
    pub(crate) configured: bool,
    pub(crate) started: bool,
    /// Whether its API server runs.
    pub(crate) serves: bool,
    /// The restores that put data onto its disk, in this order.
    pub(crate) restored: Vec<String>,
    /// How often its kubelet was started again.
    pub(crate) kubelet_restarts: u32,
    /// Its kubelet's configuration.
    pub(crate) kubelet: String,
    /// What its agent has fetched.
    artifacts: BTreeSet<Digest>,
    /// Files of components that were brought to it.
    pub(crate) files: BTreeSet<String>,
    /// Links to versions of components that were switched.
    pub(crate) links: BTreeMap<String, String>,
    /// Flags of its API server as they are written, and as it was started with.
    pub(crate) api_flags: (String, String),
}

impl State {
    /// A machine loses its power for good.
    pub(crate) fn cut(&mut self, machine: &MachineName) {
        let vm = self.machines.get_mut(machine).unwrap();
        vm.view.power = Power::Stopped;
        vm.broken = true;
    }
}

impl Vm {
    /// It is powered on, if it can be and is not.
    fn starts(&mut self) {
        if self.view.power == Power::Stopped && !self.broken {
            self.view.power = Power::Running;
            self.view.boots += 1;
        }
    }
}

/// What no kubelet of this world starts with.
pub(crate) const BROKEN: &str = "999Ti";

/// A version of a component that does not run.
pub(crate) const BROKEN_VERSION: &str = "1.9.9";

/// One life of a director.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) sim: Arc<Sim>,
    point: Mutex<usize>,
    dies_at: usize,
    dead: watch::Sender<bool>,
}

impl Life {
    pub(crate) fn new(sim: Arc<Sim>, dies_at: usize) -> Arc<Self> {
        Arc::new(Self {
            sim,
            point: Mutex::new(0),
            dies_at,
            dead: watch::Sender::new(false),
        })
    }

    /// Returns when this life is over.
    pub(crate) async fn death(&self) {
        let mut dead = self.dead.subscribe();
        dead.wait_for(|dead| *dead).await.unwrap();
    }

    /// A point at which the director can die; once dead, nothing returns from here.
    async fn point(&self) {
        {
            let mut point = self.point.lock().unwrap();
            *point += 1;
            if *point == self.dies_at {
                self.dead.send_replace(true);
            }
        }
        if *self.dead.borrow() {
            std::future::pending::<()>().await;
        }
    }

    /// An effect, with a point before and after it.
    async fn effect<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        self.point().await;
        let result = act(&mut self.sim.state.lock().unwrap());
        self.point().await;
        result
    }
}

impl Life {
    /// The step is written down as running, under the attempt number in its id, before it is sent.
    fn assert_intent(&self, request: &StepRequest) {
        if self.sim.state.lock().unwrap().stored_elsewhere {
            return;
        }
        let (step, attempt) = request.id.0.split_once('~').unwrap_or((&request.id.0, "1"));
        let part = [
            "/keys",
            "/configure",
            "/serves",
            "/proxy",
            "/proxy-still",
            "/healthy",
            "/saved",
            "/leads",
            "/hold",
        ]
        .iter()
        .find_map(|part| {
            let of = step.strip_suffix(part)?;
            self.sim.store.entry(Kind::Step, of).map(|_| of)
        });
        // The list of what etcd refuses has a number.
        let list = step.rsplit_once("/refuses-").map(|(of, _)| of);
        // Files of components have one, too.
        let list = list.or(step.rsplit_once("/fetch-").map(|(of, _)| of));
        let part = part.or(list);
        // A step that asks several machines names each.
        let of_many = step
            .rsplit_once("/spread-trust/")
            .map(|_| step.rsplit_once('/').unwrap().0);
        let name = part.or(of_many).unwrap_or(step);
        let entry = self.sim.store.entry(Kind::Step, name);
        let record: StepRecord = serde_json::from_slice(&entry.unwrap().body).unwrap();
        assert_eq!(record.state, StepState::Running, "{step}");
        assert_eq!(record.attempts.to_string(), attempt, "{step}");
    }
}

impl Store for Life {
    fn get<'a>(&'a self, kind: Kind, name: &'a str) -> StoreFuture<'a, Option<Entry>> {
        self.sim.store.get(kind, name)
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.sim.store.list(kind, prefix)
    }

    fn newest(&self, kind: Kind, limit: u32) -> StoreFuture<'_, Vec<Entry>> {
        self.sim.store.newest(kind, limit)
    }

    fn commit(&self, writes: Vec<Write>) -> StoreFuture<'_, Revision> {
        Box::pin(async move {
            self.point().await;
            let result = self.sim.store.commit(writes).await;
            self.point().await;
            result
        })
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.sim.store.watch()
    }
}
