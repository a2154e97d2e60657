//! Who is connected: one session per machine, and the events about them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use windlass_common::condition::{CONDITIONS_MAX, Conditions, shown};
use windlass_common::id::{ClusterName, Incarnation, MachineName};
use windlass_common::limits::{CONTROL_FRAME_BYTES_MAX, CONTROL_QUEUE, EVENTS_QUEUE, SESSIONS_MAX};
use windlass_common::pki::MachineIdentity;
use windlass_common::report::{FILE_SYSTEMS_MAX, FileSystems, Heartbeat, Report};
use windlass_common::transport::Close;
use windlass_common::wire::codec;
use windlass_common::wire::frame::{Frame, FrameError};
use windlass_common::wire::message::{Body, Detail, Hello, Tune2, capability, since};

use super::silence::{Pulse, Silence};
use super::trust::Standing;
use super::{DeliveryError, Event, LinkView, SessionView};

/// A stream to something on a machine.
pub type Tunnel = tokio::io::Join<quinn::RecvStream, quinn::SendStream>;

/// One welcomed connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) identity: MachineIdentity,
    pub(super) connection: quinn::Connection,
    /// The protocol version that was agreed on: kinds of a newer one are not sent.
    pub(super) protocol: u16,
    hello: Arc<Hello>,
    since: Timestamp,
    closed: OnceLock<Close>,
    seen: Mutex<Seen>,
    standing: Mutex<Standing>,
    /// What goes down the control stream.
    down: Down,
}

/// Frames that wait for the control stream. Takes no memory while it is empty, which it nearly always is; a
/// channel has room for its first 32 from the beginning.
#[derive(Debug)]
struct Down {
    /// `None` once nobody writes them any more.
    frames: Mutex<Option<VecDeque<Frame>>>,
    wake: Notify,
}

#[derive(Debug)]
struct Seen {
    heartbeat: Option<(Timestamp, Heartbeat)>,
    /// As it came: decoded it is six times as large, and looked at once in a hundred times.
    report: Option<(Timestamp, Box<[u8]>)>,
    conditions: Option<(Timestamp, Arc<Conditions>)>,
    file_systems: Option<(Timestamp, Arc<FileSystems>)>,
    pulse: Pulse,
}

impl Session {
    /// A session whose certificate is of this `generation`.
    pub(super) fn new(
        (identity, generation): (MachineIdentity, u32),
        connection: quinn::Connection,
        hello: Hello,
        protocol: u16,
        tune: Tune2,
        now: Timestamp,
    ) -> Session {
        Session {
            identity,
            connection,
            protocol,
            hello: Arc::new(hello),
            since: now,
            closed: OnceLock::new(),
            seen: Mutex::new(Seen {
                heartbeat: None,
                report: None,
                conditions: None,
                file_systems: None,
                pulse: Pulse::new(Instant::now(), beats_every(tune)),
            }),
            standing: Mutex::new(Standing::new(generation)),
            down: Down {
                frames: Mutex::new(Some(VecDeque::new())),
                wake: Notify::new(),
            },
        }
    }

    /// Queues a body for the control stream, behind those that are queued already. Never waits: an
    /// agent that leaves [`CONTROL_QUEUE`] frames unread is closed and told why.
    ///
    /// That it is queued does not mean that it arrives; what needs an answer has one of its own.
    pub(super) fn push<B: Body>(&self, body: &B) -> Result<(), DeliveryError> {
        self.may_send(B::KIND)?;
        let protocol = |source| DeliveryError::Protocol {
            machine: self.identity.machine.clone(),
            source,
        };
        let frame = Frame::of(body).map_err(protocol)?;
        if frame.body.len() > CONTROL_FRAME_BYTES_MAX {
            return Err(protocol(FrameError::TooLong {
                kind: frame.kind,
                bytes: frame.body.len(),
                max: CONTROL_FRAME_BYTES_MAX,
            }));
        }
        let mut frames = lock(&self.down.frames);
        let Some(queue) = &mut *frames else {
            return Err(DeliveryError::NotConnected {
                machine: self.identity.machine.clone(),
                incarnation: self.identity.incarnation,
            });
        };
        if queue.len() >= CONTROL_QUEUE {
            drop(frames);
            self.close(Close::TimedOut);
            return Err(DeliveryError::Behind {
                machine: self.identity.machine.clone(),
            });
        }
        queue.push_back(frame);
        drop(frames);
        self.down.wake.notify_one();
        Ok(())
    }

    /// The next frame that was pushed, for the one who writes them. Cancellation safe.
    pub(super) async fn pushed(&self) -> Frame {
        loop {
            let next = lock(&self.down.frames).as_mut().and_then(|queue| {
                let next = queue.pop_front();
                if queue.is_empty() {
                    queue.shrink_to_fit();
                }
                next
            });
            match next {
                Some(frame) => return frame,
                // One that is pushed in between leaves its wake behind.
                None => self.down.wake.notified().await,
            }
        }
    }

    /// Takes no more frames: nobody writes them any more.
    pub(super) fn hang_up(&self) {
        *lock(&self.down.frames) = None;
    }

    /// Whether the agent knows a kind of frame, as far as it has said.
    pub(super) fn may_send(&self, kind: u16) -> Result<(), DeliveryError> {
        let needs = since(kind);
        if needs > self.protocol {
            return Err(DeliveryError::TooOld {
                machine: self.identity.machine.clone(),
                speaks: self.protocol,
                needs,
            });
        }
        let named = |name: &&str| self.hello.capabilities.iter().any(|known| known == name);
        match capability(kind).filter(|name| !named(name)) {
            None => Ok(()),
            Some(lacks) => Err(DeliveryError::Unable {
                machine: self.identity.machine.clone(),
                lacks,
            }),
        }
    }

    /// Takes a heartbeat, unless a newer one was there before it: datagrams overtake one another.
    /// Returns whether the machine was suspect until now.
    pub(super) fn heartbeat(&self, heartbeat: Heartbeat, now: Timestamp) -> bool {
        let mut seen = lock(&self.seen);
        let newer = seen
            .heartbeat
            .is_none_or(|(_, last)| heartbeat.sequence > last.sequence);
        if newer {
            seen.heartbeat = Some((now, heartbeat));
        }
        newer && seen.pulse.beat(Instant::now())
    }

    /// Tells the machine how its fleet reports; an agent that is too old for the detail is told the
    /// intervals alone.
    pub(super) fn pace(&self, tune: Tune2) -> Result<(), DeliveryError> {
        match self.may_send(Tune2::KIND) {
            Ok(()) => self.tune(tune),
            Err(_) => self.tune(tune.intervals().into()),
        }
    }

    /// Tells the machine how to report, in the ranges there are.
    pub(super) fn tune(&self, tune: Tune2) -> Result<(), DeliveryError> {
        // In the older body, as long as that can say it.
        match tune.detail {
            Detail::Full => self.push(&tune.intervals()),
            Detail::Units => self.push(&tune),
        }?;
        let mut seen = lock(&self.seen);
        seen.pulse.told(Instant::now(), beats_every(tune));
        Ok(())
    }

    /// What its silence amounts to, if that is more than it was before.
    fn silent(&self, now: Instant) -> Option<Silence> {
        let received = || {
            let frames = self.connection.stats().frame_rx;
            // What there is of an agent whatever it does: heartbeats, acknowledgements, and probes for those.
            [
                frames.acks,
                frames.datagram,
                frames.ping,
                frames.immediate_ack,
                frames.stream,
            ]
            .iter()
            .fold(0, |sum: u64, count| sum.wrapping_add(*count))
        };
        lock(&self.seen).pulse.look(now, received)
    }

    fn link(&self, now: Instant) -> LinkView {
        let pulse = &lock(&self.seen).pulse;
        LinkView {
            connected: true,
            beating: !pulse.is_suspect(),
            late: pulse.is_late(),
            silence: Some(pulse.silence(now)),
        }
    }

    /// Keeps a report, if the frame holds one.
    pub(super) fn report(&self, frame: Frame, now: Timestamp) -> Result<(), FrameError> {
        frame.body::<Report>()?;
        lock(&self.seen).report = Some((now, frame.body.into_boxed_slice()));
        Ok(())
    }

    /// Takes what the agent says of its conditions; what is more or longer than an agent says is cut.
    pub(super) fn conditions(&self, mut conditions: Conditions, now: Timestamp) {
        conditions.conditions.truncate(CONDITIONS_MAX);
        for condition in &mut conditions.conditions {
            let texts = [
                &mut condition.name,
                &mut condition.subject,
                &mut condition.says,
                &mut condition.source,
            ];
            for text in texts {
                *text = shown(text);
            }
        }
        lock(&self.seen).conditions = Some((now, Arc::new(conditions)));
    }

    /// Takes what the agent says of its file systems, cut in the same way.
    pub(super) fn file_systems(&self, mut said: FileSystems, now: Timestamp) {
        said.file_systems.truncate(FILE_SYSTEMS_MAX);
        for one in &mut said.file_systems {
            one.point = shown(&one.point);
        }
        lock(&self.seen).file_systems = Some((now, Arc::new(said)));
    }

    /// What is known of the agent's certificate and roots.
    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        lock(&self.standing)
    }

    pub(super) fn view(&self) -> SessionView {
        let seen = lock(&self.seen);
        let report = seen.report.as_ref().and_then(|(at, bytes)| {
            // It was decoded when it came.
            let report = codec::decode(bytes).ok()?;
            Some((*at, Arc::new(report)))
        });
        SessionView {
            identity: self.identity.clone(),
            address: self.connection.remote_address(),
            since: self.since,
            last_heartbeat: seen.heartbeat,
            protocol: self.protocol,
            hello: Arc::clone(&self.hello),
            trust: self.standing().view(),
            report,
            conditions: seen.conditions.clone(),
            file_systems: seen.file_systems.clone(),
            suspect: seen.pulse.is_suspect(),
        }
    }

    /// Closes it; whoever serves it learns why from [`Session::closed`].
    pub(super) fn close(&self, why: Close) {
        // The first reason is the one that the agent is told.
        let _ = self.closed.set(why);
        why.close(&self.connection);
    }

    /// Why the director closed it, if it did.
    pub(super) fn closed(&self) -> Option<Close> {
        self.closed.get().copied()
    }
}

/// A session that ended.
#[derive(Debug)]
struct Ended {
    incarnation: Incarnation,
    /// When the machine was last heard of.
    heard: Instant,
}

/// The table of sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    table: Mutex<BTreeMap<MachineName, Arc<Session>>>,
    /// The last session of machines that have none; as many as there may be sessions.
    ended: Mutex<BTreeMap<MachineName, Ended>>,
    events: broadcast::Sender<Event>,
    trust: watch::Sender<u64>,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions {
            table: Mutex::default(),
            ended: Mutex::default(),
            events: broadcast::channel(EVENTS_QUEUE).0,
            trust: watch::Sender::new(0),
        }
    }
}

impl Sessions {
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(super) fn emit(&self, event: Event) {
        // Without subscribers nobody needs it.
        let _ = self.events.send(event);
    }

    /// What is known of some agent's certificate or roots changed.
    pub(super) fn trust_changed(&self) {
        self.trust.send_modify(|changes| *changes += 1);
    }

    pub(super) fn trust_changes(&self) -> watch::Receiver<u64> {
        self.trust.subscribe()
    }

    /// Every session there is now.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.table).values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.table).len()
    }

    pub(super) fn get(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
    ) -> Option<Arc<Session>> {
        let table = lock(&self.table);
        let session = table.get(machine)?;
        (session.identity.incarnation == incarnation).then(|| Arc::clone(session))
    }

    /// What is heard of an incarnation.
    pub(super) fn link(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        now: Instant,
    ) -> LinkView {
        if let Some(session) = self.get(machine, incarnation) {
            return session.link(now);
        }
        let ended = lock(&self.ended);
        let ended = ended.get(machine);
        let ended = ended.filter(|ended| ended.incarnation == incarnation);
        LinkView {
            connected: false,
            beating: false,
            late: false,
            silence: ended.map(|ended| now.saturating_duration_since(ended.heard)),
        }
    }

    /// The machines of a cluster whose heartbeats arrive and that speak this protocol or a newer one.
    pub(super) fn beating(&self, cluster: &ClusterName, protocol: u16) -> Vec<MachineIdentity> {
        let beats = |session: &&Arc<Session>| {
            session.identity.cluster == *cluster
                && session.protocol >= protocol
                && !lock(&session.seen).pulse.is_suspect()
        };
        let table = lock(&self.table);
        let found = table.values().filter(beats);
        found.map(|session| session.identity.clone()).collect()
    }

    pub(super) fn views(&self) -> BTreeMap<MachineName, SessionView> {
        // Whoever looks for a session does not wait for all of them to be shown.
        let sessions = self.all();
        sessions
            .iter()
            .map(|session| (session.identity.machine.clone(), session.view()))
            .collect()
    }

    /// Those whose silence amounts to more than before, and to what.
    pub(super) fn silent(&self, now: Instant) -> Vec<(MachineIdentity, Silence)> {
        let silent =
            |session: &Arc<Session>| Some((session.identity.clone(), session.silent(now)?));
        lock(&self.table).values().filter_map(silent).collect()
    }

    /// Puts a session in; the one it takes the place of is closed and told why.
    pub(super) fn insert(&self, session: &Arc<Session>) {
        let machine = session.identity.machine.clone();
        lock(&self.ended).remove(&machine);
        let older = lock(&self.table).insert(machine, Arc::clone(session));
        if let Some(older) = older {
            tracing::info!(machine = %older.identity, "newer connection takes over");
            older.close(Close::Superseded);
        }
    }

    /// Takes a session out, unless a newer one is in its place already.
    pub(super) fn remove(&self, session: &Arc<Session>) {
        let mut table = lock(&self.table);
        let machine = &session.identity.machine;
        if table
            .get(machine)
            .is_some_and(|held| Arc::ptr_eq(held, session))
        {
            table.remove(machine);
            let heard = lock(&session.seen).pulse.heard();
            let mut ended = lock(&self.ended);
            if ended.len() >= SESSIONS_MAX {
                ended.pop_first();
            }
            let incarnation = session.identity.incarnation;
            ended.insert(machine.clone(), Ended { incarnation, heard });
        }
    }

    pub(super) fn revoke(&self, identity: &MachineIdentity) {
        let session = self.get(&identity.machine, identity.incarnation);
        if let Some(session) = session.filter(|session| session.identity == *identity) {
            tracing::info!(machine = %identity, "closing a session that was revoked");
            // Out of the table at once, so that no step finds it while its task winds down.
            self.remove(&session);
            session.close(Close::Revoked);
        }
    }

    pub(super) fn close_all(&self, why: Close) {
        for session in lock(&self.table).values() {
            session.close(why);
        }
    }
}

fn beats_every(tune: Tune2) -> Duration {
    Duration::from_millis(tune.heartbeat_interval_ms.into())
}

/// Nothing panics while it holds one of these locks, and each value in it is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
