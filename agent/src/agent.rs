//! The agent from start to stop: reads its settings, opens its memory, and keeps the link.
//!
//! # Order of a start
//! Settings, journal, first look at the machine, `READY=1`; then the link at once, whatever the
//! network does: it retries fast, and waiting for `network-online.target` would cost seconds.
//!
//! # Order of a stop
//! `STOPPING=1`; the link closes; running steps are dropped, and with them their subprocesses. What
//! was begun and has not ended is in the journal.
//!
//! # After a crash
//! systemd starts the agent again; it goes the same way. Routes and kernel parameters that a reboot
//! lost are brought back.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use windlass_common::condition::Conditions;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::Epoch;
use windlass_common::journal::{DirStorage, JournalError};
use windlass_common::limits::PEER_PORT;
use windlass_common::report::{FileSystems, Heartbeat, Report, Vitals};
use windlass_common::settings::Settings;
use windlass_common::step::{StepId, StepRequest};
use windlass_common::wire::message::{CAPABILITIES, Tune2};

use crate::artifacts::ArtifactStore;
use crate::conditions;
use crate::fence;
use crate::history::{History, HistoryError};
use crate::host::tree::TreeError;
use crate::host::{Host, STATE_DIR};
use crate::link::{
    CancelToken, Handler, HelloFacts, Link, LinkArtifacts, LinkError, LinkPaths, ProgressSink,
    StepFuture,
};
use crate::notify::Notify;
use crate::report::{Observer, heartbeat};
use crate::runner::Runner;
use crate::settings::{self, SettingsError, Source};
use crate::steps::etcd::snapshot;
use crate::steps::{Context, Reporter, lock};
use crate::units::{Job, UnitError, Units, watch as unit_watch};
use crate::vitals::Gauge;

/// Command line of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Root directory of the machine; `/` but in tests.
    pub root: PathBuf,
    /// A settings file to use instead of the platform's sources.
    pub settings: Option<String>,
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The root cannot be opened.
    #[error("the machine's root directory cannot be used")]
    Root(#[source] TreeError),
    /// It does not know who it is.
    #[error("the agent does not know its machine")]
    Settings(#[source] SettingsError),
    /// It cannot remember.
    #[error("the agent cannot remember what it does")]
    History(#[source] HistoryError),
    /// Nothing can be remembered any more.
    #[error("the agent's journal broke; it is opened again when the agent starts again")]
    Broken,
    /// Signals cannot be received.
    #[error("the agent cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// The link gave up.
    #[error("the agent cannot keep its link to the director")]
    Link(#[source] LinkError),
}

impl AgentError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Root(source) => source.class(),
            Self::Settings(source) => source.class(),
            Self::History(_) | Self::Signals(_) => ErrorClass::Operator,
            Self::Broken => ErrorClass::Retry,
            Self::Link(source) => source.class(),
        }
    }
}

impl Options {
    /// Reads the arguments behind the program's name. `Err` is a usage message.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut options = Self {
            root: PathBuf::from("/"),
            settings: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy().into_owned();
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{name} needs a value"))
            };
            match name.as_str() {
                "--root" => options.root = value()?.into(),
                "--settings" => options.settings = Some(value()?.to_string_lossy().into_owned()),
                _ => return Err(format!("unknown argument {name:?}")),
            }
        }
        Ok(options)
    }
}

/// Runs the agent until it is told to stop.
pub async fn run(options: Options) -> Result<(), AgentError> {
    let mut stop_signals = StopSignals::new().map_err(AgentError::Signals)?;
    let notify = Notify::from_env();
    let host = Host::open(&options.root).map_err(AgentError::Root)?;
    let sources = match options.settings {
        Some(path) => vec![Source::File(path)],
        None => settings::sources(),
    };
    let settings = settings::read(&host, &sources).map_err(AgentError::Settings)?;
    let history = open_history(&host).map_err(AgentError::History)?;
    let mut broken = history.broken();
    let store = ArtifactStore::open(&host);
    let listen = peer_address(&settings);
    let link = Link::new(settings, paths(&host))
        .sharing(store.clone(), listen)
        .rereading(reread(host.clone(), sources));
    let director = link.handle();
    let (watched, watched_receiver) = watch::channel(history.units());
    let (leave, mut leaving) = watch::channel(false);
    let context = Context {
        host: host.clone(),
        units: Arc::new(Units::default()),
        artifacts: Arc::new(LinkArtifacts::new(link.handle(), store)),
        history: Arc::new(Mutex::new(history)),
        watched,
        leave,
        director: Some(Arc::new(link.proof())),
    };
    let (observer, reports) = Observer::new(&host);
    let (tune, tuned) = watch::channel(Tune2::default());
    let (replaced, told) = watch::channel(false);
    let (looked, found) = watch::channel(Arc::<Conditions>::default());
    let (used, file_systems) = watch::channel(Arc::<FileSystems>::default());
    let agent = Arc::new(Agent {
        boot_id: observer.boot().id.clone(),
        gauge: Gauge::new(&host),
        runner: Runner::new(context),
        reports,
        conditions: found,
        file_systems,
        replaced,
        seen: observer.seen(),
        tune,
    });
    notify.ready();

    let (states, states_receiver) = watch::channel(unit_watch::States::new());
    let (stop, stopped) = watch::channel(false);
    let changed = agent.runner.changed();
    let background = async {
        tokio::join!(
            conditions::run(host.clone(), watched_receiver.clone(), looked, used),
            unit_watch::run(watched_receiver, states),
            observer.run(states_receiver, tuned, changed),
            agent.runner.restore(),
            fence::run(&host, director),
            give_way(&host, &agent.runner.context().units, told),
            keep_watchdog_quiet(&notify),
        )
    };
    let until_stopped = async {
        tokio::select! {
            () = stop_signals.wait() => tracing::info!("told to stop"),
            // The sender is in the context, which lives as long as the steps.
            Ok(_) = leaving.wait_for(|leave| *leave) => tracing::info!("making room for another agent"),
        }
        notify.stopping();
        stop.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = link.run(agent.clone(), stopped) => ended.map_err(AgentError::Link),
        _ = background => Ok(()),
        () = until_stopped => Ok(()),
        _ = broken.wait_for(|broken| *broken) => Err(AgentError::Broken),
    }
}

/// Looks at the settings again, for a fresh token.
fn reread(host: Host, sources: Vec<Source>) -> impl Fn() -> Option<Settings> {
    move || {
        settings::reread(&host, &sources)
            .inspect_err(|error| {
                let error = ErrorChain(error);
                tracing::warn!(%error, "the settings cannot be read again");
            })
            .ok()
    }
}

fn open_history(host: &Host) -> Result<History, HistoryError> {
    let path = host.path(&format!("{STATE_DIR}/journal"));
    let storage = DirStorage::open(&path).map_err(|source| {
        let place = path.display().to_string();
        if source.kind() == std::io::ErrorKind::ResourceBusy {
            return JournalError::InUse { place };
        }
        JournalError::Storage {
            action: "open",
            place,
            source,
        }
    })?;
    History::open(storage)
}

fn paths(host: &Host) -> LinkPaths {
    let standard = LinkPaths::standard();
    LinkPaths {
        identity_dir: host.path(&standard.identity_dir.to_string_lossy()),
        ..standard
    }
}

/// Where peers find this machine: the fixed port, in the family of addresses that it is known by.
fn peer_address(settings: &Settings) -> SocketAddr {
    let v6 = settings.directors.first().is_some_and(SocketAddr::is_ipv6);
    let any: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(any, PEER_PORT)
}

/// Stops what acts for this machine in its cluster once the director has said that a later incarnation of it is there:
/// pods run elsewhere, and the API server takes nothing from its node and its controllers. What these may read, and what
/// an API server may ask of kubelets, only their end keeps them from. Units that are started again are stopped again after
/// the next start of the agent.
async fn give_way(host: &Host, units: &Units, mut told: watch::Receiver<bool>) {
    if told.wait_for(|replaced| *replaced).await.is_err() || host.root() != Path::new("/") {
        // In a directory of tests, systemd is somebody else's.
        return;
    }
    for unit in ACTS {
        stop_for_good(units, unit).await;
    }
}

/// What acts for a machine in its cluster, in the order in which it ends; a worker has only the first.
const ACTS: [&str; 5] = [
    "kubelet.service",
    "kube-controller-manager.service",
    "kube-scheduler.service",
    "kube-apiserver.service",
    "etcd.service",
];

/// Stops a unit, however often that takes; one that there is not is stopped.
async fn stop_for_good(units: &Units, unit: &str) {
    const AGAIN: std::time::Duration = std::time::Duration::from_secs(10);
    loop {
        let stopped = async { units.queue(Job::Stop, unit).await?.done().await };
        match stopped.await {
            Ok(()) => {
                tracing::warn!(unit, "stopped: this machine was replaced");
                return;
            }
            Err(UnitError::Missing { .. }) => return,
            Err(error) => {
                tracing::error!(unit, error = %ErrorChain(&error), "a unit of a replaced machine cannot be stopped");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Tells systemd that the agent's one thread still gets to its work.
async fn keep_watchdog_quiet(notify: &Notify) {
    let Some(interval) = notify.watchdog_interval() else {
        return std::future::pending().await;
    };
    loop {
        notify.alive();
        tokio::time::sleep(interval).await;
    }
}

struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What the link asks.
struct Agent {
    boot_id: String,
    gauge: Gauge,
    runner: Runner,
    reports: watch::Receiver<Arc<Report>>,
    conditions: watch::Receiver<Arc<Conditions>>,
    file_systems: watch::Receiver<Arc<FileSystems>>,
    replaced: watch::Sender<bool>,
    seen: watch::Receiver<Arc<Report>>,
    tune: watch::Sender<Tune2>,
}

impl Handler for Agent {
    fn step(
        &self,
        request: StepRequest,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> StepFuture<'_> {
        Box::pin(self.runner.step(request, Reporter::new(progress), cancel))
    }

    fn asked_again(&self, id: &StepId, epoch: Epoch) {
        self.runner.asked_again(id, epoch);
    }

    fn hello(&self) -> HelloFacts {
        let unfinished: Vec<StepId> = lock(&self.runner.context().history).unfinished();
        HelloFacts {
            agent_version: crate::version(),
            capabilities: CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            boot_id: self.boot_id.clone(),
            epoch: self.runner.epoch(),
            unfinished,
        }
    }

    fn reports(&self) -> watch::Receiver<Arc<Report>> {
        self.reports.clone()
    }

    fn conditions(&self) -> Option<watch::Receiver<Arc<Conditions>>> {
        Some(self.conditions.clone())
    }

    fn file_systems(&self) -> Option<watch::Receiver<Arc<FileSystems>>> {
        Some(self.file_systems.clone())
    }

    fn heartbeat(&self) -> Heartbeat {
        let report = self.seen.borrow();
        let watched = self.runner.context().watched.borrow();
        heartbeat(&report, &watched, self.runner.epoch())
    }

    fn vitals(&self) -> Vitals {
        self.gauge.look()
    }

    fn open_snapshot(&self, name: &str) -> io::Result<(File, u64)> {
        snapshot::open(&self.runner.context().host, name)
    }

    fn epoch_seen(&self, epoch: Epoch) {
        self.runner.see_epoch(epoch);
    }

    fn replaced(&self) {
        self.replaced.send_replace(true);
    }

    fn tuned(&self, tune: Tune2) {
        self.tune.send_if_modified(|old| {
            let changed = *old != tune;
            *old = tune;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_few_and_checked() {
        let parse = |arguments: &[&str]| Options::parse(arguments.iter().map(OsString::from));
        let default = parse(&[]).unwrap();
        assert_eq!(default.root, PathBuf::from("/"));
        let given = parse(&["--root", "/r", "--settings", "/s.json"]).unwrap();
        assert_eq!(given.root, PathBuf::from("/r"));
        assert_eq!(given.settings.as_deref(), Some("/s.json"));
        assert!(parse(&["--root"]).is_err());
        assert!(parse(&["--what"]).is_err());
    }
}
