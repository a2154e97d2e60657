//! The witnesses of a running director.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{Instant, timeout};
use windlass_common::error::ErrorChain;
use windlass_common::limits::LINK_IDLE_TIMEOUT;
use windlass_common::pki::MachineIdentity;

use super::lease::Watches;
use super::{
    Gathered, LEASE_DEADLINE, LinkChange, POWER_DEADLINE, POWER_EARLY, ProbeView, REPORT_AGE_MAX,
    Statement, Witness, Witnesses, peers,
};
use crate::gateway::{Event, Gateway, LinkView, SessionView};
use crate::health::{ConditionView, Mends, counting, failing, from_jiff, mends, of_session};
use crate::model::{Machine, Timestamp};
use crate::provider;
use crate::resurrector::{Evidence, Lease, Link, Peers, Power, Work};
use crate::rollout::world::World;

/// Leases that are read at a time.
const READERS_MAX: usize = 8;

/// What is asked about a silent machine alone.
struct Silent {
    peers: Peers,
    lease: Lease,
    lease_watched_ms: Option<u64>,
    statements: [Statement; 2],
    probes: Vec<ProbeView>,
}

/// The gateway, the provider and what is reached through them.
pub struct Circle {
    gateway: Gateway,
    world: Arc<World>,
    /// Leases that are read at once; each is a handshake with an API server.
    readers: Semaphore,
    watches: Mutex<Watches>,
    /// What times of the watches are counted from.
    began: Instant,
}

impl fmt::Debug for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Circle")
    }
}

impl Circle {
    /// Asks these.
    pub fn new(gateway: Gateway, world: Arc<World>) -> Circle {
        Circle {
            gateway,
            world,
            readers: Semaphore::new(READERS_MAX),
            watches: Mutex::default(),
            began: Instant::now(),
        }
    }

    async fn gather(&self, machine: &Machine) -> Gathered {
        let (at, began) = (Timestamp::now(), Instant::now());
        let heard = self.gateway.link(&machine.name, machine.incarnation);
        let session = self.gateway.session(&machine.name, machine.incarnation);
        let (link, of_link) = link(heard);
        let (work, of_report) = work(session.as_ref(), at);
        let power = self.power(machine);
        tokio::pin!(power);
        let ((power, of_provider), silent) = match link {
            Link::Beating if heard.late => {
                match timeout(POWER_EARLY, &mut power).await {
                    Ok(answer) if is_off(answer.0) => {
                        let deadline = peers::PROBE_DEADLINE_GONE;
                        (answer, Some(self.of_silent(machine, heard, deadline).await))
                    }
                    Ok(answer) => (answer, None),
                    // Nothing speaks against it yet: nobody waits.
                    Err(_) => (no_answer(POWER_EARLY, began), None),
                }
            }
            Link::Beating => {
                self.watches().heard(&machine.name);
                (power.await, None)
            }
            Link::Silent => {
                // Most providers answer at once, and what they say decides how long peers are waited for.
                let early = timeout(POWER_EARLY, &mut power).await.ok();
                let gone = early.as_ref().is_some_and(|(power, _)| is_off(*power));
                let deadline = if gone {
                    peers::PROBE_DEADLINE_GONE
                } else {
                    peers::PROBE_DEADLINE
                };
                let silent = self.of_silent(machine, heard, deadline);
                match early {
                    Some(answer) => (answer, Some(silent.await)),
                    None => {
                        let (answer, silent) = tokio::join!(power, silent);
                        (answer, Some(silent))
                    }
                }
            }
        };
        let mut gathered = Gathered {
            evidence: Evidence {
                link,
                peers: Peers::Unknown,
                lease: Lease::Unknown,
                power,
                work,
            },
            at,
            took_ms: 0,
            silent_ms: heard.silence.map(ms),
            lease_watched_ms: None,
            statements: vec![of_link, of_provider, of_report],
            probes: Vec::new(),
        };
        if let Some(silent) = silent {
            let heard = self.gateway.link(&machine.name, machine.incarnation);
            gathered.evidence.link = since(link, heard).beside(stands(heard), silent.peers);
            gathered.evidence.peers = silent.peers;
            gathered.evidence.lease = silent.lease;
            gathered.lease_watched_ms = silent.lease_watched_ms;
            gathered.statements.extend(silent.statements);
            gathered.probes = silent.probes;
        }
        gathered.took_ms = ms(began.elapsed());
        gathered
    }

    /// Asks those who are asked about a silent machine alone.
    async fn of_silent(&self, machine: &Machine, heard: LinkView, deadline: Duration) -> Silent {
        let identity = MachineIdentity {
            director: self.world.birth.director.clone(),
            cluster: machine.cluster.clone(),
            machine: machine.name.clone(),
            incarnation: machine.incarnation,
        };
        let ((peers, of_peers, probes), (lease, lease_watched_ms, of_lease)) = tokio::join!(
            peers::ask(&self.gateway, machine, identity, deadline),
            self.lease(machine, heard),
        );
        Silent {
            peers,
            lease,
            lease_watched_ms,
            statements: [of_peers, of_lease],
            probes,
        }
    }

    async fn lease(&self, machine: &Machine, heard: LinkView) -> (Lease, Option<u64>, Statement) {
        let (began, now) = (Instant::now(), self.began.elapsed());
        let live: Vec<_> = self
            .gateway
            .beating(&machine.cluster)
            .into_iter()
            .map(|live| (live.machine, live.incarnation))
            .filter(|(live, _)| *live != machine.name)
            .collect();
        let read = async {
            // The semaphore is never closed.
            let _turn = self.readers.acquire().await;
            self.world.lease(machine, &live).await
        };
        let mut reading = None;
        let says = match timeout(LEASE_DEADLINE, read).await {
            Ok(Ok(Some(mark))) => {
                let last = heard.silence.map(|silence| now.saturating_sub(silence));
                let now = self.began.elapsed();
                let (name, incarnation) = (&machine.name, machine.incarnation);
                let read = self.watches().read(name, incarnation, mark, last, now);
                reading = Some(read);
                read.to_string()
            }
            Ok(Ok(None)) => "its node holds no Lease".to_owned(),
            Ok(Err(error)) => ErrorChain(&error).to_string(),
            Err(_) => format!("not read within {LEASE_DEADLINE:?}"),
        };
        let statement = Statement {
            witness: Witness::Lease,
            says,
            age_ms: reading.and_then(|reading| reading.renewed).map(ms),
            took_ms: ms(began.elapsed()),
        };
        let lease = reading.map_or(Lease::Unknown, |reading| reading.lease);
        (lease, reading.map(|reading| ms(reading.watched)), statement)
    }

    /// Nothing panics while it holds the lock, and the table is whole at any time.
    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn power(&self, machine: &Machine) -> (Power, Statement) {
        let began = Instant::now();
        let look = self
            .world
            .provider
            .power(&machine.name, machine.incarnation);
        let (power, says) = match timeout(POWER_DEADLINE, look).await {
            Ok(Ok(view)) => (power(view.power), view.detail),
            Ok(Err(error)) => (Power::Unknown, ErrorChain(&error).to_string()),
            Err(_) => return no_answer(POWER_DEADLINE, began),
        };
        let statement = Statement {
            witness: Witness::Provider,
            says,
            age_ms: (power != Power::Unknown).then_some(0),
            took_ms: ms(began.elapsed()),
        };
        (power, statement)
    }
}

/// What a provider says that did not answer in time.
fn no_answer(deadline: Duration, began: Instant) -> (Power, Statement) {
    let statement = Statement {
        witness: Witness::Provider,
        says: format!("no answer within {deadline:?}"),
        age_ms: None,
        took_ms: ms(began.elapsed()),
    };
    (Power::Unknown, statement)
}

impl Witnesses for Circle {
    fn link(&self, machine: &Machine) -> Link {
        link(self.gateway.link(&machine.name, machine.incarnation)).0
    }

    fn late(&self, machine: &Machine) -> bool {
        self.gateway.link(&machine.name, machine.incarnation).late
    }

    fn changes(&self) -> BoxStream<'static, LinkChange> {
        let state = (self.gateway.subscribe(), self.gateway.clone());
        stream::unfold(state, |(mut events, gateway)| async move {
            let change = next_change(&mut events, &gateway).await?;
            Some((change, (events, gateway)))
        })
        .boxed()
    }

    fn evidence<'a>(&'a self, machine: &'a Machine) -> BoxFuture<'a, Gathered> {
        Box::pin(self.gather(machine))
    }
}

async fn next_change(
    events: &mut broadcast::Receiver<Event>,
    gateway: &Gateway,
) -> Option<LinkChange> {
    match events.recv().await {
        Ok(Event::ReportChanged { identity }) => Some(LinkChange::Reported(identity)),
        // Events say that something changed, the table says what: a session that ended may have been
        // followed by a newer one already.
        Ok(
            Event::Connected { identity }
            | Event::Disconnected { identity, .. }
            | Event::Late { identity }
            | Event::Suspected { identity }
            | Event::Recovered { identity },
        ) => Some(change(identity, gateway)),
        Err(RecvError::Lagged(_)) => Some(LinkChange::Missed),
        Err(RecvError::Closed) => None,
    }
}

fn change(identity: MachineIdentity, gateway: &Gateway) -> LinkChange {
    let heard = gateway.link(&identity.machine, identity.incarnation);
    match (heard.beating, heard.late) {
        (true, true) => LinkChange::Late(identity),
        (true, false) => LinkChange::Beating(identity),
        (false, _) => LinkChange::Silent(identity),
    }
}

/// Whether only heartbeats are missing: packets that are lost end no connection, and a path that does not work does.
fn stands(heard: LinkView) -> bool {
    heard.connected
        && heard
            .silence
            .is_some_and(|silence| silence < LINK_IDLE_TIMEOUT)
}

/// What a link shows once others were asked, beside what it showed before: one that was late only is silent unless it
/// was heard meanwhile.
pub(super) fn since(before: Link, heard: LinkView) -> Link {
    match before {
        Link::Beating if heard.beating && !heard.late => Link::Beating,
        Link::Beating | Link::Silent => Link::Silent,
    }
}

/// What a link shows.
pub(super) fn link(heard: LinkView) -> (Link, Statement) {
    let (link, says) = match (heard.beating, heard.connected) {
        (true, _) if heard.late => (
            Link::Beating,
            "its heartbeat is late; the connection stands",
        ),
        (true, _) => (Link::Beating, "its heartbeats arrive"),
        (false, true) => (
            Link::Silent,
            "its heartbeats stopped; the connection stands",
        ),
        (false, false) if heard.silence.is_some() => (Link::Silent, "its connection is gone"),
        (false, false) => (
            Link::Silent,
            "it has not connected since this director started",
        ),
    };
    let statement = Statement {
        witness: Witness::Link,
        says: says.to_owned(),
        age_ms: heard.silence.map(ms),
        took_ms: 0,
    };
    (link, statement)
}

/// What an agent says of its machine.
pub(super) fn work(session: Option<&SessionView>, now: Timestamp) -> (Work, Statement) {
    let age = |at: &jiff::Timestamp| now.ms_since(from_jiff(*at));
    let statement = |says: String, age_ms| Statement {
        witness: Witness::Report,
        says,
        age_ms,
        took_ms: 0,
    };
    let Some(session) = session else {
        // Nobody reads it: a link without a session is silent.
        return (
            Work::Well,
            statement("it is not connected".to_owned(), None),
        );
    };
    let report = session.report.as_ref();
    let report_age = report.map(|(at, _)| age(at));
    let fresh = report.filter(|(at, _)| age(at) <= ms(REPORT_AGE_MAX));
    let units = fresh.map(|(_, report)| failing(report)).unwrap_or_default();
    if !units.is_empty() {
        let says = format!("failing: {}", units.join(", "));
        return (Work::Impaired, statement(says, report_age));
    }
    let conditions = of_session(session, now);
    let bad: Vec<&ConditionView> = counting(&conditions).collect();
    let mendable = |one: &&ConditionView| mends(&one.name) != Mends::Operator;
    let impaired = bad.iter().copied().filter(mendable).collect::<Vec<_>>();
    let tell = |bad: &[&ConditionView]| {
        let told: Vec<String> = bad.iter().map(|one| one.told()).collect();
        let age_ms = bad.iter().map(|one| one.age_ms).max();
        statement(told.join("; "), age_ms)
    };
    if !impaired.is_empty() {
        return (Work::Impaired, tell(&impaired));
    }
    let beat = session.last_heartbeat.as_ref();
    let counted = beat.map_or(0, |(_, beat)| beat.units_unhealthy);
    if counted > 0 {
        let says = format!("{counted} of its units are not as they should be");
        return (Work::Impaired, statement(says, beat.map(|(at, _)| age(at))));
    }
    if !bad.is_empty() {
        return (Work::Strained, tell(&bad));
    }
    let says = match fresh {
        Some(_) => "all that it watches is well",
        None => "its last report is too old to count; its heartbeats name nothing",
    };
    (Work::Well, statement(says.to_owned(), report_age))
}

/// Whether the provider says that nothing of the machine runs.
fn is_off(power: Power) -> bool {
    match power {
        Power::Stopped | Power::Absent => true,
        Power::Running | Power::Unknown => false,
    }
}

fn power(found: Option<provider::Power>) -> Power {
    match found {
        Some(provider::Power::Running) => Power::Running,
        Some(provider::Power::Stopped) => Power::Stopped,
        None => Power::Absent,
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
