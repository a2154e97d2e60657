//! A world to crash in: the real store contract, planner, rollout and `World`, with a provider, agents and
//! an API that live in memory and outlive the director.
//!
//! A [`Life`] is one life of a director. It dies at a chosen point: before or after a commit or an effect.
//! From then on nothing that this life does reaches the world any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use windlass_common::error::ErrorClass;
use windlass_common::gate::ServicePort;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, NodeName};
use windlass_common::pki::{MachineIdentity, PrivateKey};
use windlass_common::settings::Settings;
use windlass_common::step::{
    EtcdDataAction, FileContent, FileSpec, Outcome, Payload, Progress, Step, StepRequest,
    StepResult, UnitState,
};

use crate::drain::{DrainPolicy, NodeRehearsal, Rehearsal};
use crate::gateway::DeliveryError;
use crate::kubernetes::client::ByteStream;
use crate::model::{Revision, Stage, StepRecord, StepState};
use crate::planner::inputs;
use crate::provider::{
    AttachedDisk, DiskView, EndpointRequest, EndpointView, MachineRequest, MachineView,
    NetworkView, Power, PowerView, PreflightFault, Provider, ProviderError, ProviderFuture,
};
use crate::rollout::world::{AgentFuture, Agents, ClusterContext, JobOrder, KubeApi, LeaseMark};
use crate::rollout::{Done, EffectError, ProgressSink, RecordChange};
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
    pub(crate) disks: BTreeMap<DiskName, DiskView>,
    pub(crate) endpoints: BTreeMap<ClusterName, EndpointView>,
    pub(crate) addons: bool,
    pub(crate) ready: BTreeSet<NodeName>,
    /// Nodes closed to new pods.
    pub(crate) cordoned: BTreeSet<NodeName>,
    /// Machines ever made, with how often each incarnation was.
    pub(crate) births: BTreeMap<(MachineName, Incarnation), u32>,
    /// Beginnings of names of nodes whose drains do not end.
    pub(crate) stuck: BTreeSet<String>,
    /// What a director writes down is in another store than this world's.
    pub(crate) stored_elsewhere: bool,
    /// Steps that fail once, by the end of their id.
    pub(crate) fail_once: BTreeSet<&'static str>,
    /// Steps whose answer is lost once after they were done, by the end of their id.
    pub(crate) lose_once: BTreeSet<&'static str>,
}

/// A machine and what its agent did.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) view: MachineView,
    pub(crate) settings: Settings,
    keys: BTreeMap<String, Vec<u8>>,
    /// What was asked under which id, and what came of it: the agent's journal.
    journal: BTreeMap<String, (Step, StepResult)>,
    /// Whether its agent was ever let in.
    connected: bool,
    pub(crate) mounted: bool,
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
}

impl State {
    /// A machine loses its power for good.
    pub(crate) fn cut(&mut self, machine: &MachineName) {
        let vm = self.machines.get_mut(machine).unwrap();
        vm.view.power = Power::Stopped;
    }
}

/// What no kubelet of this world starts with.
pub(crate) const BROKEN: &str = "999Ti";

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
        let part = ["/keys", "/configure", "/serves"].iter().find_map(|part| {
            let of = step.strip_suffix(part)?;
            self.sim.store.entry(Kind::Step, of).map(|_| of)
        });
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

impl Provider for Life {
    fn preflight(&self) -> BoxFuture<'_, Vec<PreflightFault>> {
        Box::pin(async { Vec::new() })
    }

    fn network(&self) -> NetworkView {
        NetworkView {
            cidr: "10.0.0.0/20".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            reserved: Vec::new(),
        }
    }

    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView> {
        Box::pin(self.effect(move |state| {
            if let Some(vm) = state.machines.get(&request.name) {
                assert_eq!(vm.view.incarnation, request.incarnation);
                return Ok(vm.view.clone());
            }
            let key = (request.name.clone(), request.incarnation);
            *state.births.entry(key).or_default() += 1;
            let view = MachineView {
                name: request.name.clone(),
                incarnation: request.incarnation,
                power: Power::Running,
                address: request.address,
                tags: request.tags,
                created_at: 0,
                boots: 1,
                complete: true,
            };
            let vm = Vm {
                view: view.clone(),
                settings: serde_json::from_slice(&request.settings).unwrap(),
                keys: BTreeMap::new(),
                journal: BTreeMap::new(),
                connected: false,
                mounted: false,
                configured: false,
                started: false,
                serves: false,
                restored: Vec::new(),
                kubelet_restarts: 0,
                kubelet: String::new(),
            };
            state.machines.insert(request.name, vm);
            Ok(view)
        }))
    }

    fn delete_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            state.machines.remove(name);
            for disk in state.disks.values_mut() {
                disk.attached_to.take_if(|holder| holder == name);
            }
            Ok(())
        }))
    }

    fn machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, Option<MachineView>> {
        let view = self
            .sim
            .state
            .lock()
            .unwrap()
            .machines
            .get(name)
            .map(|vm| vm.view.clone());
        Box::pin(async { Ok(view) })
    }

    fn power<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
    ) -> ProviderFuture<'a, PowerView> {
        let state = self.sim.state.lock().unwrap();
        let found = state.machines.get(name).map(|vm| &vm.view);
        let power = found
            .filter(|view| view.incarnation == incarnation)
            .map(|view| view.power);
        let detail = String::new();
        Box::pin(async move { Ok(PowerView { power, detail }) })
    }

    fn machines(&self) -> ProviderFuture<'_, Vec<MachineView>> {
        let state = self.sim.state.lock().unwrap();
        let views = state.machines.values().map(|vm| vm.view.clone()).collect();
        Box::pin(async { Ok(views) })
    }

    fn place_settings<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
        settings: Vec<u8>,
    ) -> ProviderFuture<'a, bool> {
        Box::pin(self.effect(move |state| {
            let vm = state.machines.get_mut(name).unwrap();
            assert_eq!(vm.view.incarnation, incarnation);
            vm.settings = serde_json::from_slice(&settings).unwrap();
            Ok(true)
        }))
    }

    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(
            self.effect(move |state| match state.machines.get_mut(name) {
                Some(vm) => {
                    vm.view.power = Power::Stopped;
                    Ok(vm.view.clone())
                }
                None => Err(ProviderError::NotFound {
                    kind: "machine",
                    name: name.to_string(),
                }),
            }),
        )
    }

    fn start_machine<'a>(&'a self, _name: &'a MachineName) -> ProviderFuture<'a, MachineView> {
        unreachable!("no step starts machines")
    }

    fn reboot_machine<'a>(
        &'a self,
        _name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        unreachable!("no step reboots machines")
    }

    fn create_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        Box::pin(self.effect(move |state| {
            let disk = DiskView {
                name: name.clone(),
                bytes,
                attached_to: None,
            };
            Ok(state.disks.entry(name.clone()).or_insert(disk).clone())
        }))
    }

    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            let gone = state.disks.remove(name);
            assert_eq!(gone.and_then(|disk| disk.attached_to), None);
            Ok(())
        }))
    }

    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk> {
        Box::pin(self.effect(move |state| {
            assert!(state.machines.contains_key(machine));
            let view = state.disks.get_mut(disk).unwrap();
            assert!(
                view.attached_to
                    .as_ref()
                    .is_none_or(|holder| holder == machine)
            );
            view.attached_to = Some(machine.clone());
            Ok(AttachedDisk {
                device: "/dev/disk".into(),
            })
        }))
    }

    fn detach_disk<'a>(
        &'a self,
        _machine: &'a MachineName,
        _disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()> {
        unreachable!("no step detaches disks of machines that stay")
    }

    fn disks(&self) -> ProviderFuture<'_, Vec<DiskView>> {
        let disks = self
            .sim
            .state
            .lock()
            .unwrap()
            .disks
            .values()
            .cloned()
            .collect();
        Box::pin(async { Ok(disks) })
    }

    fn ensure_endpoint(&self, request: EndpointRequest) -> ProviderFuture<'_, EndpointView> {
        Box::pin(self.effect(move |state| {
            let view = EndpointView {
                cluster: request.cluster.clone(),
                address: request.address,
                port: request.port,
                backends: request.backends,
                running: true,
            };
            state.endpoints.insert(request.cluster, view.clone());
            Ok(view)
        }))
    }

    fn delete_endpoint<'a>(&'a self, cluster: &'a ClusterName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            state.endpoints.remove(cluster);
            Ok(())
        }))
    }

    fn endpoints(&self) -> ProviderFuture<'_, Vec<EndpointView>> {
        let views = self
            .sim
            .state
            .lock()
            .unwrap()
            .endpoints
            .values()
            .cloned()
            .collect();
        Box::pin(async { Ok(views) })
    }

    fn reset(&self) -> ProviderFuture<'_, ()> {
        unreachable!("no step resets the provider")
    }
}

impl Vm {
    fn carry_out(&mut self, step: &Step) -> Payload {
        match step {
            Step::Keys(keys) => {
                let request = |der: &Vec<u8>| {
                    let key = rcgen::KeyPair::try_from(der.as_slice()).unwrap();
                    let params = rcgen::CertificateParams::default();
                    params.serialize_request(&key).unwrap().der().to_vec()
                };
                let requests = keys.keys.iter().map(|spec| {
                    let key = self.keys.entry(spec.name.clone()).or_insert_with(|| {
                        let key = PrivateKey::generate().unwrap();
                        key.into_signer().serialize_der()
                    });
                    (spec.name.clone(), request(key))
                });
                return Payload::Requests(requests.collect());
            }
            Step::Exec(_) => return Payload::Exit(0),
            Step::Disk(_) => self.mounted = true,
            Step::Configure(configure) => {
                assert!(!configure.files.is_empty());
                let text = |file: &FileSpec| match &file.content {
                    FileContent::Text(text) if file.path.ends_with("/kubelet.yaml") => {
                        Some(text.clone())
                    }
                    _ => None,
                };
                // A renewal of certificates writes nothing else.
                if let Some(text) = configure.files.iter().find_map(text) {
                    self.kubelet = text;
                }
                self.configured = true;
            }
            Step::Service(service) => {
                assert!(self.configured, "components start with a configuration");
                let names = |unit: &str| service.units.iter().any(|goal| goal.unit == unit);
                if service
                    .units
                    .iter()
                    .all(|goal| goal.unit == "kubelet.service")
                {
                    self.kubelet_restarts += 1;
                    return Payload::None;
                }
                if service
                    .units
                    .iter()
                    .all(|unit| unit.state == UnitState::Inactive)
                    && !names("etcd.service")
                {
                    assert!(service.units.iter().all(|goal| !goal.enabled));
                    self.serves = false;
                    return Payload::None;
                }
                if service
                    .units
                    .iter()
                    .all(|unit| unit.state == UnitState::Inactive)
                {
                    self.started = false;
                    self.serves = false;
                    return Payload::None;
                }
                assert!(
                    service
                        .units
                        .iter()
                        .all(|unit| unit.state == UnitState::Active)
                );
                let etcd = service.units.iter().any(|unit| unit.unit == "etcd.service");
                assert!(!etcd || self.mounted, "etcd starts on its disk");
                self.started = true;
                self.serves = names("kube-apiserver.service");
            }
            Step::EtcdData(data) => {
                let EtcdDataAction::Restore(restore) = &data.action else {
                    unreachable!("one member is not set aside")
                };
                let id = &restore.restore;
                assert!(!self.started && !self.serves, "it reads and writes still");
                if self.restored.last() != Some(&id.id) {
                    self.restored.push(id.id.clone());
                }
                assert!(restore.members.contains(&restore.member));
                assert!(restore.token.ends_with(&id.id), "{}", restore.token);
            }
            Step::Gate(_) => assert!(self.started),
            Step::Etcd(_) => assert!(self.started, "a member that runs is asked"),
            Step::Fetch(_) | Step::Collect(_) | Step::AgentUpgrade(_) => {
                unreachable!("no plan has this step")
            }
        }
        Payload::None
    }
}

impl Agents for Life {
    fn wait_connected<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        _deadline: Instant,
    ) -> AgentFuture<'a, ()> {
        Box::pin(async move {
            self.effect(|state| match state.machines.get_mut(machine) {
                Some(vm) => {
                    vm.connected = true;
                    assert_eq!(vm.settings.incarnation, incarnation);
                    assert_eq!(vm.settings.token.expose().len(), 64);
                    Ok(())
                }
                None => Err(DeliveryError::NotConnected {
                    machine: machine.clone(),
                    incarnation,
                }),
            })
            .await
        })
    }

    fn run_step<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        request: StepRequest,
        _progress: mpsc::Sender<Progress>,
    ) -> AgentFuture<'a, StepResult> {
        self.assert_intent(&request);
        Box::pin(self.effect(move |state| {
            let failing = state
                .fail_once
                .iter()
                .find(|end| request.id.0.ends_with(*end))
                .copied();
            let lost = state
                .lose_once
                .iter()
                .find(|end| request.id.0.ends_with(*end))
                .copied();
            let Some(vm) = state.machines.get_mut(machine) else {
                return Err(DeliveryError::NotConnected {
                    machine: machine.clone(),
                    incarnation,
                });
            };
            if let Some((step, result)) = vm.journal.get(&request.id.0) {
                let same = *step == request.step;
                assert!(same, "{} asks for something else now", request.id);
                return Ok(result.clone());
            }
            let (outcome, payload) = match failing {
                Some(end) => {
                    state.fail_once.remove(end);
                    let outcome = Outcome::Failed {
                        class: ErrorClass::Retry,
                        message: "not this time".into(),
                    };
                    (outcome, Payload::None)
                }
                None if matches!(request.step, Step::Service(_)) && vm.kubelet.contains(BROKEN) => {
                    vm.started = false;
                    let outcome = Outcome::Failed {
                        class: ErrorClass::Operator,
                        message: "the kubelet ends at once".into(),
                    };
                    (outcome, Payload::None)
                }
                None => (Outcome::Changed, vm.carry_out(&request.step)),
            };
            let result = StepResult {
                id: request.id.clone(),
                outcome,
                payload,
                changes: vec!["changed".into()],
                elapsed_ms: 1,
            };
            vm.journal
                .insert(request.id.0, (request.step, result.clone()));
            if let Some(end) = lost {
                state.lose_once.remove(end);
                return Err(DeliveryError::Lost {
                    machine: machine.clone(),
                    source: "the connection ended".into(),
                });
            }
            Ok(result)
        }))
    }

    fn open_tunnel<'a>(
        &'a self,
        _machine: &'a MachineName,
        _incarnation: Incarnation,
    ) -> AgentFuture<'a, Box<dyn ByteStream>> {
        unreachable!("the API is simulated above the tunnel")
    }

    fn is_heard(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        let state = self.sim.state.lock().unwrap();
        let found = state.machines.get(machine);
        found.is_some_and(|vm| {
            let runs = vm.view.power == Power::Running;
            vm.settings.incarnation == incarnation && vm.connected && runs
        })
    }

    fn revoke(&self, _identity: &MachineIdentity) {}
}

impl KubeApi for Life {
    fn apply_addons<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| state.addons = true).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::Addons(inputs::addons_digest(&context.future))],
            })
        })
    }

    fn await_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let node = context.machine_facts(machine)?.node_name.clone();
            self.effect(|state| {
                assert!(state.machines[machine].started && state.addons);
                state.ready.insert(node);
            })
            .await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::NodeReady(
                    machine.clone(),
                    context.configuration(context.machine(machine)?)?.labels,
                )],
            })
        })
    }

    fn heartbeat<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<Option<String>, EffectError>> {
        Box::pin(async { Ok(None) })
    }

    fn drop_node<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| {
                state.ready.remove(node);
                state.cordoned.remove(node);
            })
            .await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::NodeDropped(machine.clone(), node.clone())],
            })
        })
    }

    fn settle_nodes<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| assert!(state.addons, "the right to it is one of the add-ons"))
                .await;
            Ok(Done::default())
        })
    }

    fn await_api<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| {
                let up = state.machines.values().any(|vm| vm.mounted && vm.started);
                let error = || EffectError::new(ErrorClass::Retry, "no API server answers");
                up.then(Done::default).ok_or_else(error)
            })
            .await
        })
    }

    fn rehearse<'a>(
        &'a self,
        _context: &'a ClusterContext,
        sequence: &'a [Vec<String>],
        _joining: &'a BTreeSet<String>,
        _policy: &'a DrainPolicy,
    ) -> BoxFuture<'a, Result<Rehearsal, EffectError>> {
        Box::pin(async move {
            let nodes = sequence.iter().flatten().map(|node| NodeRehearsal {
                node: node.clone(),
                ..NodeRehearsal::default()
            });
            Ok(Rehearsal {
                nodes: nodes.collect(),
                findings: Vec::new(),
            })
        })
    }

    fn serving<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<BTreeSet<NodeName>, EffectError>> {
        let state = self.sim.state.lock().unwrap();
        let serving = state.ready.difference(&state.cordoned).cloned().collect();
        Box::pin(async { Ok(serving) })
    }

    fn drain<'a>(
        &'a self,
        _context: &'a ClusterContext,
        node: &'a NodeName,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| state.cordoned.insert(node.clone()))
                .await;
            let stuck = || {
                let state = self.sim.state.lock().unwrap();
                state.stuck.iter().any(|of| node.as_str().starts_with(of))
            };
            while stuck() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(Done::default())
        })
    }

    fn uncordon<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| state.cordoned.remove(node)).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::Uncordoned(machine.clone())],
            })
        })
    }

    fn lease<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _node: &'a NodeName,
        _through: &'a [(MachineName, Incarnation)],
    ) -> BoxFuture<'a, Result<Option<LeaseMark>, EffectError>> {
        unreachable!("no step reads leases")
    }

    fn ask_service<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _service: &'a ServicePort,
        _path: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        unreachable!("no cluster here has gates")
    }

    fn run_job<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _job: &'a JobOrder,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<(), String>> {
        unreachable!("no cluster here has gates")
    }

    fn rewrite_secrets<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|_| ()).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::StageDone(Stage::Rewrite)],
            })
        })
    }

    fn await_dns<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|_| ()).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::StageDone(Stage::RestartDns)],
            })
        })
    }

    fn forget(&self, _cluster: &ClusterName) {}
}
