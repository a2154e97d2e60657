//! A director with a gateway, and machines with a link.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use windlass_agent::artifacts::ArtifactStore;
use windlass_agent::link::{
    CancelToken, Handler, HelloFacts, Link, LinkHandle, LinkPaths, LinkProof, ProgressSink,
    StepFuture,
};
use windlass_agent::runner::Runner;
use windlass_agent::steps::Reporter;
use windlass_common::clock::{Clock, later};
use windlass_common::condition::Conditions;
use windlass_common::id::{ClusterName, Digest, DirectorId, Epoch, Incarnation, MachineName};
use windlass_common::limits::{CHUNK_BYTES, ENROLLMENT_TOKEN_LIFE, PEER_SERVE_BYTES_PER_S};
use windlass_common::pki::MachineIdentity;
use windlass_common::report::{Heartbeat, Report, Scope, Vitals};
use windlass_common::secret::Secret;
use windlass_common::settings::Settings;
use windlass_common::step::{
    Exec, Outcome, OutputStream, Payload, Progress, Step, StepId, StepRequest, StepResult,
};
use windlass_common::wire::message::Tune2;
use windlass_director::gateway::{
    ArtifactSource, EnrollmentStore, Gateway, GatewayConfig, IncarnationRegistry, Reason,
    RedeemError,
};
use windlass_director::pki::{DirectorCa, EnrollmentToken};
use windlass_director::service::tickets;
use windlass_director::store::{Records as Vault, Sealer, Sqlite};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Longest wait behind a bad path.
const LONG: Duration = Duration::from_secs(60);

/// Looks again and again until `look` finds what it is after.
pub(crate) async fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait(PATIENCE, what, look).await
}

/// The same behind a bad path.
pub(crate) async fn wait_long<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait(LONG, what, look).await
}

async fn wait<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a step that prints so many lines to its end, over as many connections as it takes; it runs once.
pub(crate) async fn runs_once(director: &Director, machine: &Machine, id: &str, lines: u32) {
    let deadline = Instant::now() + LONG;
    let (gateway, name) = (director.gateway(), &machine.name);
    loop {
        let step = exec(id, &["print", &lines.to_string()]);
        let ran = gateway.run_step(name, machine.incarnation, step, no_progress());
        match ran.await {
            Ok(result) => {
                assert_eq!(result.outcome, Outcome::Changed, "{id}");
                assert_eq!(result.id.0, id);
                break;
            }
            Err(error) => assert!(Instant::now() < deadline, "{id}: {error:?}"),
        }
        gateway
            .wait_connected(name, machine.incarnation, deadline)
            .await
            .unwrap();
    }
    assert_eq!(machine.steps.begun(id), 1, "{id} ran more than once");
}

pub(crate) fn director_id() -> DirectorId {
    DirectorId::new("d1").unwrap()
}

pub(crate) fn machine_name(name: &str) -> MachineName {
    MachineName::new(name).unwrap()
}

pub(crate) fn identity(machine: &str, incarnation: u32) -> MachineIdentity {
    MachineIdentity {
        director: director_id(),
        cluster: ClusterName::new("demo").unwrap(),
        machine: machine_name(machine),
        incarnation: Incarnation(incarnation),
    }
}

/// A token as the store keeps it.
#[derive(Debug)]
struct Token {
    claim: MachineIdentity,
    expires: Timestamp,
    key: Option<Vec<u8>>,
    spent: bool,
}

/// The decisions of the other rooms.
#[derive(Debug, Default)]
pub(crate) struct Records {
    tokens: Mutex<BTreeMap<Digest, Token>>,
    current: Mutex<BTreeSet<MachineIdentity>>,
    pub(crate) artifacts: Mutex<BTreeMap<Digest, PathBuf>>,
    broken: AtomicBool,
    /// How each redemption ended.
    pub(crate) redeemed: Mutex<Vec<Result<(), String>>>,
}

impl Records {
    pub(crate) fn issue(&self, claim: &MachineIdentity, expires: Timestamp) -> Secret {
        let EnrollmentToken { token, hash } = EnrollmentToken::generate().unwrap();
        let record = Token {
            claim: claim.clone(),
            expires,
            key: None,
            spent: false,
        };
        self.tokens.lock().unwrap().insert(hash, record);
        token
    }

    pub(crate) fn make_current(&self, identity: &MachineIdentity) {
        let mut current = self.current.lock().unwrap();
        current.retain(|held| held.machine != identity.machine);
        current.insert(identity.clone());
    }

    /// Lets no incarnation of a machine connect.
    pub(crate) fn forget(&self, machine: &str) {
        let mut current = self.current.lock().unwrap();
        current.retain(|held| held.machine.as_str() != machine);
    }

    /// As when the disk of the director is full: it cannot say any more whether a token counts.
    pub(crate) fn break_down(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn redemptions(&self) -> Vec<Result<(), String>> {
        self.redeemed.lock().unwrap().clone()
    }

    fn decide(
        &self,
        hash: Digest,
        claim: &MachineIdentity,
        key: &[u8],
        now: Timestamp,
    ) -> Result<(), RedeemError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(RedeemError::Store("the disk is full".into()));
        }
        let mut tokens = self.tokens.lock().unwrap();
        let token = tokens.get_mut(&hash).ok_or(RedeemError::Unknown)?;
        if token.claim != *claim {
            return Err(RedeemError::OtherMachine(token.claim.to_string()));
        }
        if token.expires <= now {
            return Err(RedeemError::Expired(token.expires));
        }
        match &token.key {
            Some(first) if first != key => Err(RedeemError::OtherKey),
            Some(_) if token.spent => Err(RedeemError::Spent),
            Some(_) => Ok(()),
            None => {
                token.key = Some(key.to_vec());
                Ok(())
            }
        }
    }
}

impl EnrollmentStore for Records {
    fn redeem(
        &self,
        hash: Digest,
        claim: &MachineIdentity,
        key: &[u8],
        now: Timestamp,
    ) -> Result<(), RedeemError> {
        let decided = self.decide(hash, claim, key, now);
        let noted = match &decided {
            Ok(()) => Ok(()),
            Err(why) => Err(why.to_string()),
        };
        self.redeemed.lock().unwrap().push(noted);
        decided
    }

    fn is_bound(&self, machine: &MachineIdentity) -> bool {
        let tokens = self.tokens.lock().unwrap();
        let open = |token: &Token| token.key.is_some() && !token.spent && token.claim == *machine;
        tokens.values().any(open)
    }

    fn spend(&self, machine: &MachineIdentity) -> Result<(), RedeemError> {
        let mut tokens = self.tokens.lock().unwrap();
        let bound = |token: &&mut Token| token.key.is_some() && token.claim == *machine;
        for token in tokens.values_mut().filter(bound) {
            token.spent = true;
        }
        Ok(())
    }
}

impl IncarnationRegistry for Records {
    fn is_current(&self, identity: &MachineIdentity) -> bool {
        self.current.lock().unwrap().contains(identity)
    }

    fn is_replaced(&self, identity: &MachineIdentity) -> bool {
        let current = self.current.lock().unwrap();
        let later = |one: &MachineIdentity| one.incarnation > identity.incarnation;
        let same = |one: &&MachineIdentity| {
            one.machine == identity.machine && one.cluster == identity.cluster
        };
        current.iter().filter(same).any(later)
    }
}

impl ArtifactSource for Records {
    fn locate(&self, digest: &Digest, _machine: &MachineIdentity) -> Option<PathBuf> {
        self.artifacts.lock().unwrap().get(digest).cloned()
    }
}

/// A director: its CA, its records, and the gateway of the moment.
pub(crate) struct Director {
    pub(crate) ca: Arc<DirectorCa>,
    pub(crate) records: Arc<Records>,
    /// What of a director survives it.
    pub(crate) dir: tempfile::TempDir,
    pub(crate) vault: Vault,
    gateway: Option<Gateway>,
    pub(crate) address: SocketAddr,
    pub(crate) config: GatewayConfig,
}

impl Director {
    pub(crate) async fn start() -> Director {
        Director::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut GatewayConfig)) -> Director {
        let records = Arc::new(Records::default());
        let mut config = GatewayConfig::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        config.tune.heartbeat_interval_ms = 100;
        change(&mut config);
        let ca = Arc::new(DirectorCa::create(director_id(), config.clock.now()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let vault = vault(dir.path(), 7).await;
        config.tickets = Some(tickets(&vault, config.clock.clone()).await);
        let gateway = gateway(&config, &ca, &records, Epoch(1)).await.unwrap();
        let address = gateway.local_address().unwrap();
        config.listen = address;
        Director {
            ca,
            records,
            dir,
            vault,
            gateway: Some(gateway),
            address,
            config,
        }
    }

    /// One in another process, as its peers see it: where it is, and whose certificates it takes.
    pub(crate) async fn elsewhere(address: SocketAddr, ca: DirectorCa) -> Director {
        let dir = tempfile::tempdir().unwrap();
        let vault = vault(dir.path(), 7).await;
        Director {
            ca: Arc::new(ca),
            records: Arc::default(),
            dir,
            vault,
            gateway: None,
            address,
            config: GatewayConfig::new(address),
        }
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    /// Starts a gateway in the place of the last one, once the port is free.
    pub(crate) async fn start_again(&mut self, epoch: Epoch) {
        let deadline = Instant::now() + PATIENCE;
        // A gateway whose runtime was killed holds its socket still.
        self.gateway = None;
        self.config.tickets = Some(tickets(&self.vault, self.config.clock.clone()).await);
        loop {
            match gateway(&self.config, &self.ca, &self.records, epoch).await {
                Ok(gateway) => {
                    self.gateway = Some(gateway);
                    return;
                }
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Registers a machine and issues its token.
    pub(crate) fn settings(&self, machine: &str, incarnation: u32) -> Settings {
        let identity = identity(machine, incarnation);
        self.records.make_current(&identity);
        let expires = later(self.config.clock.now(), ENROLLMENT_TOKEN_LIFE);
        let token = self.records.issue(&identity, expires);
        self.settings_with(&identity, token)
    }

    pub(crate) fn settings_with(&self, identity: &MachineIdentity, token: Secret) -> Settings {
        Settings {
            director_id: director_id(),
            directors: vec![self.address],
            ca_digest: self.ca.root_digest(),
            token,
            cluster: identity.cluster.clone(),
            machine: identity.machine.clone(),
            incarnation: identity.incarnation,
        }
    }

    /// Refusals so far for this reason.
    pub(crate) fn refused(&self, reason: Reason) -> u64 {
        self.gateway().counters().refused(reason)
    }

    /// Refusals so far, those of one reason left out.
    pub(crate) fn refused_but_for(&self, reason: Option<Reason>) -> u64 {
        let all = self.gateway().counters().refusals;
        let others = all.into_iter().filter(|(other, _)| Some(*other) != reason);
        others.map(|(_, count)| count).sum()
    }

    pub(crate) async fn connected(&self, machine: &Machine) {
        let deadline = Instant::now() + PATIENCE;
        self.gateway()
            .wait_connected(&machine.name, machine.incarnation, deadline)
            .await
            .unwrap();
    }
}

/// The director's store in a directory, sealed under a key of this byte.
pub(crate) async fn vault(dir: &Path, key: u8) -> Vault {
    let store = Sqlite::open(&dir.join("store.sqlite")).unwrap();
    Vault::new(Arc::new(store), Sealer::new(&[key; 32]).unwrap())
        .await
        .unwrap()
}

pub(crate) async fn gateway(
    config: &GatewayConfig,
    ca: &Arc<DirectorCa>,
    records: &Arc<Records>,
    epoch: Epoch,
) -> Result<Gateway, windlass_director::gateway::StartError> {
    Gateway::start(
        config.clone(),
        Arc::clone(ca),
        Arc::clone(records) as Arc<dyn EnrollmentStore>,
        Arc::clone(records) as Arc<dyn IncarnationRegistry>,
        Arc::clone(records) as Arc<dyn ArtifactSource>,
        epoch,
    )
    .await
}

/// What a machine does: `exec` steps, each at most once, with a journal in memory; others if it is given a runner.
pub(crate) struct Steps {
    reports: watch::Sender<Arc<Report>>,
    pub(crate) conditions: watch::Sender<Arc<Conditions>>,
    journal: Mutex<BTreeMap<StepId, StepResult>>,
    /// How often each step was begun.
    pub(crate) begun: Mutex<BTreeMap<StepId, u32>>,
    /// `exec ["hold"]` ends when this turns true.
    pub(crate) release: watch::Sender<bool>,
    pub(crate) epochs: Mutex<Vec<Epoch>>,
    /// Chunks that `exec ["flood"]` has got rid of.
    pub(crate) flooded: Mutex<u64>,
    /// What it was told about reporting.
    pub(crate) tunes: Mutex<Vec<Tune2>>,
    /// How often it was told that it was replaced.
    pub(crate) replaced: Mutex<u32>,
    /// Carries out what is no `exec`.
    pub(crate) runner: OnceLock<Runner>,
    running: Mutex<u32>,
    pub(crate) running_most: Mutex<u32>,
}

impl Steps {
    pub(crate) fn new() -> Steps {
        Steps {
            reports: watch::channel(Arc::new(report(1))).0,
            conditions: watch::channel(Arc::default()).0,
            journal: Mutex::default(),
            begun: Mutex::default(),
            release: watch::channel(false).0,
            epochs: Mutex::default(),
            flooded: Mutex::default(),
            tunes: Mutex::default(),
            replaced: Mutex::default(),
            runner: OnceLock::new(),
            running: Mutex::default(),
            running_most: Mutex::default(),
        }
    }

    pub(crate) fn report(&self, uptime_s: u64) {
        self.reports.send_replace(Arc::new(report(uptime_s)));
    }

    /// How a step ended, if it is over.
    pub(crate) fn outcome(&self, id: &str) -> Option<Outcome> {
        let journal = self.journal.lock().unwrap();
        let result = journal.get(&StepId(id.to_owned()))?;
        Some(result.outcome.clone())
    }

    pub(crate) fn begun(&self, id: &str) -> u32 {
        let id = StepId(id.to_owned());
        self.begun.lock().unwrap().get(&id).copied().unwrap_or(0)
    }

    async fn execute(
        &self,
        request: StepRequest,
        progress: ProgressSink,
        mut cancel: CancelToken,
    ) -> StepResult {
        if !matches!(request.step, Step::Exec(_)) {
            let runner = self.runner.get().expect("this machine has no runner");
            return runner.step(request, Reporter::new(progress), cancel).await;
        }
        if let Some(result) = self.journal.lock().unwrap().get(&request.id) {
            return result.clone();
        }
        *self
            .begun
            .lock()
            .unwrap()
            .entry(request.id.clone())
            .or_default() += 1;
        {
            let mut running = self.running.lock().unwrap();
            *running += 1;
            let mut most = self.running_most.lock().unwrap();
            *most = (*most).max(*running);
        }
        let Step::Exec(Exec { argv }) = &request.step else {
            panic!("this machine only knows exec");
        };
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut outcome = Outcome::Changed;
        match words[..] {
            ["hold"] => {
                progress.stage("held");
                let mut release = self.release.subscribe();
                tokio::select! {
                    released = release.wait_for(|released| *released) => drop(released.unwrap()),
                    () = cancel.cancelled() => {
                        let message = "cancelled".to_owned();
                        outcome = Outcome::Unknown { message };
                    }
                }
            }
            ["flood"] => self.flood(&progress).await,
            ["print", count] => {
                for number in 0..count.parse::<u32>().unwrap() {
                    progress
                        .send(Progress::Output {
                            stream: OutputStream::Stdout,
                            bytes: format!("{number}\n").into_bytes(),
                        })
                        .await;
                }
            }
            _ => {}
        }
        *self.running.lock().unwrap() -= 1;
        let result = StepResult {
            id: request.id.clone(),
            outcome,
            payload: Payload::Exit(0),
            changes: vec![format!("ran {argv:?}")],
            elapsed_ms: 1,
        };
        let mut journal = self.journal.lock().unwrap();
        journal.insert(request.id, result.clone());
        result
    }
}

impl Steps {
    /// Output without end, until the steps are released.
    async fn flood(&self, progress: &ProgressSink) {
        let mut release = self.release.subscribe();
        let released = release.wait_for(|released| *released);
        tokio::pin!(released);
        loop {
            let chunk = Progress::Output {
                stream: OutputStream::Stdout,
                bytes: vec![b'x'; CHUNK_BYTES],
            };
            tokio::select! {
                _ = &mut released => return,
                () = progress.send(chunk) => {}
            }
            *self.flooded.lock().unwrap() += 1;
        }
    }
}

/// What the one snapshot of each machine holds.
pub(crate) fn snapshot() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251) as u8).collect()
}

impl Handler for Steps {
    fn open_snapshot(&self, name: &str) -> std::io::Result<(std::fs::File, u64)> {
        if name != "00000000000000000007-00000007.db" {
            return Err(std::io::ErrorKind::NotFound.into());
        }
        let bytes = snapshot();
        let mut file = tempfile::tempfile()?;
        std::io::Write::write_all(&mut file, &bytes)?;
        std::io::Seek::rewind(&mut file)?;
        Ok((file, bytes.len() as u64))
    }

    fn step(
        &self,
        request: StepRequest,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> StepFuture<'_> {
        Box::pin(self.execute(request, progress, cancel))
    }

    fn hello(&self) -> HelloFacts {
        HelloFacts {
            agent_version: "0.1.0".to_owned(),
            capabilities: Vec::new(),
            boot_id: "boot-1".to_owned(),
            epoch: Epoch(0),
            unfinished: Vec::new(),
        }
    }

    fn reports(&self) -> watch::Receiver<Arc<Report>> {
        self.reports.subscribe()
    }

    fn conditions(&self) -> Option<watch::Receiver<Arc<Conditions>>> {
        Some(self.conditions.subscribe())
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            sequence: 0,
            at_unix_ms: 1,
            units_unhealthy: 0,
            memory_used_bp: 10,
            disk_used_bp: 20,
            epoch: Epoch(1),
        }
    }

    fn epoch_seen(&self, epoch: Epoch) {
        self.epochs.lock().unwrap().push(epoch);
    }

    fn replaced(&self) {
        *self.replaced.lock().unwrap() += 1;
    }

    fn tuned(&self, tune: Tune2) {
        self.tunes.lock().unwrap().push(tune);
    }
}

pub(crate) fn report(uptime_s: u64) -> Report {
    Report {
        at_unix_ms: 1,
        boot_id: "boot-1".to_owned(),
        uptime_s,
        agent_version: "0.1.0".to_owned(),
        components: BTreeMap::new(),
        units: BTreeMap::new(),
        vitals: Vitals {
            memory_used_bytes: 1,
            memory_total_bytes: 2,
            memory_scope: Scope::Machine,
            cpu_used_ms: 3,
            cpu_scope: Scope::Machine,
            disk_used_bytes: 4,
            disk_total_bytes: 5,
            load1_centi: 6,
            load_scope: Scope::Host,
        },
    }
}

/// A machine whose agent runs its link.
pub(crate) struct Machine {
    pub(crate) name: MachineName,
    pub(crate) incarnation: Incarnation,
    pub(crate) steps: Arc<Steps>,
    pub(crate) link: LinkHandle,
    pub(crate) proof: LinkProof,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Machine {
    pub(crate) fn boot(settings: Settings, dir: &std::path::Path) -> Machine {
        // Nothing listens on port 1.
        Machine::boot_with(settings, dir, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
    }

    /// One that goes by this clock.
    pub(crate) fn boot_at(clock: &Clock, settings: Settings, dir: &std::path::Path) -> Machine {
        let paths = LinkPaths {
            identity_dir: dir.to_owned(),
            api_server: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        };
        Machine::run(
            Link::new(settings.clone(), paths).with_clock(clock.clone()),
            settings,
        )
    }

    /// One whose settings are `placed` when it looks at them again.
    pub(crate) fn boot_rereading(
        clock: &Clock,
        settings: Settings,
        dir: &std::path::Path,
        placed: Arc<Mutex<Settings>>,
    ) -> Machine {
        let paths = LinkPaths {
            identity_dir: dir.to_owned(),
            api_server: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        };
        let link = Link::new(settings.clone(), paths)
            .with_clock(clock.clone())
            .rereading(move || Some(placed.lock().unwrap().clone()));
        Machine::run(link, settings)
    }

    pub(crate) fn boot_with(
        settings: Settings,
        dir: &std::path::Path,
        api_server: SocketAddr,
    ) -> Machine {
        let paths = LinkPaths {
            identity_dir: dir.to_owned(),
            api_server,
        };
        Machine::run(Link::new(settings.clone(), paths), settings)
    }

    /// One that serves what is in `store` to its peers, on this port of loopback.
    pub(crate) fn boot_sharing(
        settings: Settings,
        dir: &std::path::Path,
        store: ArtifactStore,
        port: u16,
    ) -> Machine {
        Machine::boot_sharing_at(PEER_SERVE_BYTES_PER_S, settings, dir, store, port)
    }

    /// The same, at this rate.
    pub(crate) fn boot_sharing_at(
        bytes_per_s: u64,
        settings: Settings,
        dir: &std::path::Path,
        store: ArtifactStore,
        port: u16,
    ) -> Machine {
        let paths = LinkPaths {
            identity_dir: dir.to_owned(),
            api_server: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        };
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let link = Link::new(settings.clone(), paths).sharing_at(bytes_per_s, store, listen);
        Machine::run(link, settings)
    }

    fn run(link: Link, settings: Settings) -> Machine {
        let (name, incarnation) = (settings.machine, settings.incarnation);
        let (handle, proof) = (link.handle(), link.proof());
        let steps = Arc::new(Steps::new());
        let (stop, stopped) = watch::channel(false);
        let handler: Arc<dyn Handler> = Arc::clone(&steps) as _;
        let task = tokio::spawn(async move { link.run(handler, stopped).await.unwrap() });
        Machine {
            name,
            incarnation,
            steps,
            link: handle,
            proof,
            stop,
            task,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the link stops when asked to")
            .unwrap();
    }
}

/// An honest machine beside a hostile one.
pub(crate) struct Neighbour {
    pub(crate) machine: Machine,
    since: Timestamp,
}

impl Neighbour {
    pub(crate) async fn boot(director: &Director, dir: &std::path::Path) -> Neighbour {
        let machine = Machine::boot(director.settings("neighbour", 1), dir);
        director.connected(&machine).await;
        let since = director.gateway().connected()[&machine.name].since;
        Neighbour { machine, since }
    }

    /// It has the same session, and its heart beats once more. Returns the heartbeat before.
    pub(crate) async fn beats(&self, director: &Director) -> u64 {
        let beats = || {
            let view = director.gateway().connected().remove(&self.machine.name);
            let view = view.expect("the neighbour is connected");
            assert_eq!(view.since, self.since, "the neighbour had to come again");
            view.last_heartbeat.map_or(0, |(_, beat)| beat.sequence)
        };
        let before = beats();
        let _ = wait_for("the neighbour's heartbeat", || {
            (beats() > before).then_some(())
        })
        .await;
        before
    }

    /// It has noticed nothing: the same session, its heart beats, and steps run.
    pub(crate) async fn unharmed(&self, director: &Director) {
        let before = self.beats(director).await;
        let ran = director
            .gateway()
            .run_step(
                &self.machine.name,
                self.machine.incarnation,
                exec(&format!("neighbour/{before}"), &[]),
                no_progress(),
            )
            .await;
        assert_eq!(ran.unwrap().outcome, Outcome::Changed);
    }
}

/// An `exec` step.
pub(crate) fn exec(id: &str, argv: &[&str]) -> StepRequest {
    StepRequest {
        labels: Default::default(),
        id: StepId(id.to_owned()),
        epoch: Epoch(1),
        deadline_ms: PATIENCE.as_millis() as u64,
        step: Step::Exec(Exec {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
        }),
    }
}

/// Where progress goes that nobody reads.
pub(crate) fn no_progress() -> mpsc::Sender<Progress> {
    mpsc::channel(1).0
}
