//! Everything that outlives a director: machines, disks, the cluster on them, and what was ordered.
//!
//! All of it is one value behind one lock, changed at points that are a moment of simulated time each;
//! after every change [`super::invariants`] looks at it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Duration, Instant};
use windlass_common::clock::Clock;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, NodeName, PoolName};
use windlass_common::maintenance::MaintenanceSpec;
use windlass_director::model::Revision;
use windlass_director::provider::{EndpointView, KeptView};
use windlass_director::store::Kind;

use super::agent::Agent;
use super::cluster::Cluster;
use super::coverage::{self, Coverage, Fault, Point};
use super::dice::Dice;
use super::mutation::Mutation;
use super::secrets::Canaries;
use super::windows;

/// Faults of one seed, at most, and of its end: a world in which nothing ever works shows nothing.
pub const FAULTS_MAX: (u32, u32) = (16, 22);
/// And of one order, if they are spread: upgrades, repairs and deletions are struck as often as creates, which
/// otherwise use up most of what there is.
pub const FAULTS_OF_ORDER: u32 = 6;
/// How much more often the points of a rare step are struck.
const RARE: u32 = 8;
/// Lines of a trace that are kept when nobody asked for all.
const TRACE_LINES: usize = 60;
/// How long after a machine went down by itself nobody can be blamed for not knowing, milliseconds.
pub const UNNOTICED_MS: u64 = 60_000;

/// The world of one seed. Clones are the same world.
#[derive(Debug, Clone)]
pub struct Site(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    clock: Clock,
    state: Mutex<State>,
}

/// What there is.
#[derive(Debug)]
pub struct State {
    /// Milliseconds since the world began; brought forward whenever the state is locked.
    pub now: u64,
    /// Chance.
    pub dice: Dice,
    /// What happened.
    pub trace: Trace,
    /// Invariants that were broken.
    pub violations: Vec<String>,
    /// What was struck.
    pub coverage: Coverage,
    /// Faults.
    pub faults: Faults,
    /// Guards that are broken on purpose.
    pub mutation: Option<Mutation>,
    /// Secrets.
    pub canaries: Canaries,
    /// What the store holds.
    pub entries: BTreeMap<(Kind, String), (Revision, Vec<u8>)>,
    /// Its last revision.
    pub revision: u64,
    /// The store refuses to write until then.
    pub store_refuses_until: u64,
    /// The kind of each step that a task may have, by key.
    pub actions: BTreeMap<String, &'static str>,
    /// Steps that the store says are running, with their attempts.
    pub running: BTreeMap<String, u32>,
    /// Machines.
    pub vms: BTreeMap<MachineName, Vm>,
    /// The most machines that there were at once.
    pub most_machines: usize,
    /// Machines that were set aside, by the name under which they are kept.
    pub kept: BTreeMap<MachineName, KeptView>,
    /// Disks.
    pub disks: BTreeMap<DiskName, Disk>,
    /// Endpoints.
    pub endpoints: BTreeMap<ClusterName, EndpointView>,
    /// The cluster on the machines.
    pub cluster: Cluster,
    /// What agents have said last of pods that they told to leave, until their director hears it.
    pub said: BTreeMap<MachineName, Vec<u8>>,
    /// What was ordered.
    pub ordered: Ordered,
    /// Incarnations of machines that the records say are shut out.
    pub shut_out: BTreeSet<(MachineName, Incarnation)>,
    /// How often a step that cannot be repeated ran, by id.
    pub ran_once: BTreeMap<String, u32>,
}

/// What operators have allowed.
#[derive(Debug, Default)]
pub struct Ordered {
    /// Disks that an order to delete names.
    pub disks_named: BTreeSet<DiskName>,
    /// The cluster is to go, or its create was cancelled: its pods and members go with it.
    pub going: bool,
    /// Least number of machines in service, by pool.
    pub floors: BTreeMap<PoolName, usize>,
    /// Outside of these no machine is begun with.
    pub windows: Option<MaintenanceSpec>,
    /// Machines that were begun with.
    pub begun: BTreeSet<MachineName>,
}

/// Which faults are caused.
#[derive(Debug, Default)]
pub struct Faults {
    /// Whether any are.
    pub on: bool,
    /// How often a point is struck, of a thousand.
    pub per_mille: u32,
    /// How many there may be.
    pub most: u32,
    /// Whether each order has its own.
    pub spread: bool,
    /// How many there may be until the next order, if so.
    pub until_next: u32,
    /// How many were caused.
    pub count: u32,
    /// How many of them while a task was running.
    pub in_rollout: u32,
    /// A task runs.
    pub rollout: bool,
    /// The clocks have to jump, in milliseconds.
    pub jump_ms: u64,
}

/// A machine.
#[derive(Debug)]
pub struct Vm {
    /// Which incarnation.
    pub incarnation: Incarnation,
    /// Its node.
    pub node: NodeName,
    /// The pool it is of; none for the control plane.
    pub pool: Option<PoolName>,
    /// Minor version of its components.
    pub minor: u32,
    /// As the provider shows it.
    pub view: windlass_director::provider::MachineView,
    /// The stemcell that the provider has made it from, and the size that it was given.
    pub made_as: Option<(PathBuf, windlass_director::provider::MachineSize)>,
    /// When it booted.
    pub booted: u64,
    /// It stands still until then.
    pub frozen_until: u64,
    /// When its node was last Ready.
    pub ready_at: Option<u64>,
    /// Since when the kubelet ran that has registered its node last.
    pub registered: Option<u64>,
    /// It was written down that its node is Ready: from then on it is one of those that serve.
    pub served: bool,
    /// When it went down by itself.
    pub down_since: Option<u64>,
    /// It is down, or was taken out of service, because of an order.
    pub by_us: bool,
    /// An order has switched it off.
    pub off: bool,
    /// Whether its data disk is mounted.
    pub mounted: bool,
    /// Whether it was configured.
    pub configured: bool,
    /// The minor that its API server is told to emulate on its disk, and the one that it was started to emulate.
    pub emulates: (Option<u32>, Option<u32>),
    /// Units that run, since when, and with which configuration.
    pub units: BTreeMap<String, Unit>,
    /// Units that start at boot, with the configuration that they were last started with by a step: after a boot
    /// that is what the agent remembers of them.
    pub enabled: BTreeMap<String, Option<windlass_common::id::Digest>>,
    /// The highest epoch of which a step began, or which was told since the agent started.
    pub epoch: u64,
    /// The highest epoch of which a step began: an agent never forgets it.
    pub begun_epoch: u64,
    /// Steps that its agent has said are done, with the content that they had: they are not carried out again.
    pub done: BTreeMap<String, windlass_common::id::Digest>,
    /// Its agent.
    pub agent: Agent,
    /// No connection until then.
    pub cut_until: u64,
    /// Its connection.
    pub link: Link,
}

/// A connection, and who waits for its end. They are told in the order in which they came: a channel that
/// they share would choose by chance.
#[derive(Debug, Default)]
pub struct Link {
    /// How often it has ended.
    pub ends: u64,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Link {
    /// Returns when it ends.
    pub fn ended(&mut self) -> oneshot::Receiver<()> {
        self.waiting.retain(|waiting| !waiting.is_closed());
        let (sender, ended) = oneshot::channel();
        self.waiting.push(sender);
        ended
    }

    /// It ends.
    pub fn end(&mut self) {
        self.ends += 1;
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(()); // who waited may have died
        }
    }
}

/// A unit that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Since when.
    pub since: u64,
    /// What it was started with.
    pub configuration: Option<windlass_common::id::Digest>,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its length.
    pub bytes: u64,
    /// Who has it.
    pub attached_to: Option<MachineName>,
    /// The member of etcd whose data is on it.
    pub member: Option<MachineName>,
}

/// What happened, line by line.
#[derive(Debug, Default)]
pub struct Trace {
    /// All lines are kept.
    pub whole: bool,
    lines: VecDeque<String>,
    /// Over all lines, kept or not: two runs of a seed have the same.
    pub digest: u64,
}

impl Trace {
    fn add(&mut self, line: String) {
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if !self.whole && self.lines.len() == TRACE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The lines that were kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

impl Faults {
    /// How many there may be by now.
    fn allowed(&self) -> u32 {
        match self.spread {
            true => self.most.min(self.until_next),
            false => self.most,
        }
    }
}

impl Site {
    /// A world in which nothing is.
    pub fn new(seed: u64, canaries: Canaries, whole_trace: bool) -> Self {
        let mut dice = Dice::new(seed);
        let cluster = Cluster::new(&mut dice);
        let state = State {
            now: 0,
            dice,
            trace: Trace {
                whole: whole_trace,
                ..Trace::default()
            },
            violations: Vec::new(),
            coverage: Coverage::default(),
            faults: Faults::default(),
            mutation: None,
            canaries,
            entries: BTreeMap::new(),
            revision: 0,
            store_refuses_until: 0,
            actions: BTreeMap::new(),
            running: BTreeMap::new(),
            vms: BTreeMap::new(),
            most_machines: 0,
            kept: BTreeMap::new(),
            disks: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            cluster,
            ordered: Ordered::default(),
            shut_out: BTreeSet::new(),
            said: BTreeMap::new(),
            ran_once: BTreeMap::new(),
        };
        Self(Arc::new(Inner {
            began: Instant::now(),
            clock: Clock::by_hand(windows::moment(0)),
            state: Mutex::new(state),
        }))
    }

    /// The clock that directors go by.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The state, brought to this moment.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now != state.now {
            state.now = now;
            state.settle();
        }
        state
    }

    /// Changes the state, and has the invariants looked at.
    pub fn act<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        state.settle();
        state.check();
        result
    }

    /// Waits a time of a range, in milliseconds.
    pub async fn pause(&self, ms: std::ops::RangeInclusive<u64>) {
        let ms = self.lock().dice.within(ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

impl State {
    /// Notes what happened.
    pub fn tell(&mut self, line: impl Into<String>) {
        let line = format!("{:>9.3} {}", self.now as f64 / 1000.0, line.into());
        self.trace.add(line);
    }

    /// An invariant is broken.
    pub fn violated(&mut self, invariant: u8, what: impl Into<String>) {
        let line = format!("VIOLATION of invariant {invariant}: {}", what.into());
        self.tell(line.clone());
        if self.violations.len() < 20 {
            self.violations.push(line);
        }
    }

    /// Whether one of these faults strikes now; which.
    pub fn strike(&mut self, step: &'static str, point: Point, of: &[Fault]) -> Option<Fault> {
        let faults = &self.faults;
        // What happens seldom is struck as often as what happens all the time.
        let per_mille = faults.per_mille * if coverage::is_rare(step) { RARE } else { 1 };
        // Gates come when the faults of an order have struck already.
        let most = faults.allowed() + u32::from(step == "await-gates");
        if !faults.on || faults.count >= most || !self.dice.chance(per_mille) {
            return None;
        }
        let fault = self.dice.pick(of)?;
        self.faults.count += 1;
        if self.faults.rollout {
            self.faults.in_rollout += 1;
        }
        self.coverage.note(step, fault, point);
        self.tell(format!("FAULT {fault:?} {point:?} {step}"));
        Some(fault)
    }

    /// Looks for secrets in a text that people may read.
    pub fn search(&mut self, place: &str, text: &str) {
        if let Some(secret) = self.canaries.found_in(text) {
            self.violated(9, format!("{secret} is in {place}"));
        }
    }

    /// Machines whose connection breaks or that stop standing still are looked at again by who waits.
    pub fn break_link(&mut self, machine: &MachineName, for_ms: u64) {
        let until = self.now + for_ms;
        if let Some(vm) = self.vms.get_mut(machine) {
            vm.cut_until = vm.cut_until.max(until);
            vm.link.end();
        }
    }
}

impl Vm {
    /// One that is switched on for the first time.
    pub fn new(
        node: NodeName,
        pool: Option<PoolName>,
        minor: u32,
        view: windlass_director::provider::MachineView,
    ) -> Self {
        Self {
            incarnation: view.incarnation,
            node,
            pool,
            minor,
            view,
            made_as: None,
            booted: 0,
            frozen_until: 0,
            ready_at: None,
            registered: None,
            served: false,
            down_since: None,
            by_us: true,
            off: false,
            mounted: false,
            configured: false,
            emulates: (None, None),
            units: BTreeMap::new(),
            enabled: BTreeMap::new(),
            epoch: 0,
            begun_epoch: 0,
            done: BTreeMap::new(),
            agent: Agent::default(),
            cut_until: 0,
            link: Link::default(),
        }
    }

    /// Whether processes on it run.
    pub fn runs(&self, now: u64) -> bool {
        self.view.power == windlass_director::provider::Power::Running && self.frozen_until <= now
    }

    /// Whether a unit runs.
    pub fn has(&self, unit: &str, now: u64) -> bool {
        self.runs(now) && self.units.contains_key(unit)
    }

    /// Whether a unit has run for so long.
    pub fn has_for(&self, unit: &str, now: u64, ms: u64) -> bool {
        self.runs(now)
            && self
                .units
                .get(unit)
                .is_some_and(|unit| unit.since + ms <= now)
    }

    /// Whether its agent can be reached.
    pub fn connected(&self, now: u64) -> bool {
        self.runs(now) && self.cut_until <= now && self.agent.is_up()
    }

    /// Whether it is of the control plane.
    pub fn control_plane(&self) -> bool {
        self.pool.is_none()
    }
}
