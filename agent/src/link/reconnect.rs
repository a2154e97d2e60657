//! Coming back: one attempt after the other, until the agent stops.

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionError, TransportErrorCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use windlass_common::backoff::Backoff;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::Digest;
use windlass_common::limits::{
    ANSWER_TIMEOUT, HELLO_TIMEOUT, RECONNECT_CAP, RECONNECT_EAGER, RECONNECT_FIRST,
};
use windlass_common::pki::{MachineIdentity, gateway_name};
use windlass_common::transport::Close;

use super::attempts::Outcome;
use super::connection::{self, ConnectError, Context, Ended, To};
use super::enroll::{self, EnrollError};
use super::identity::{Identity, IdentityError, IdentityStore, Saved};
use super::lapsed;
use super::resume::Resumable;
use super::steps::Steps;
use super::{Handler, Link};
use crate::peer;

/// A connection that held this long was a good one: the next failure starts with a short wait.
const GOOD_AFTER: Duration = RECONNECT_CAP;

/// Refusals in a row, each because this machine was replaced, after which it is believed.
const REPLACED_AFTER: u32 = 3;

/// Why the link gives up: what waiting does not mend.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The settings name no director.
    #[error("the settings name no director to connect with")]
    NoDirector,
    /// The machine's own state.
    #[error("the machine's identity cannot be kept")]
    Identity(#[source] IdentityError),
}

/// When to try again: soon, while a director may be starting or has a whole fleet to serve; ever later, one
/// that said no or has been away for long.
struct Pace {
    soon: Backoff,
    later: Backoff,
    /// Since when there has been neither a link nor a sound.
    away_since: Instant,
}

impl Pace {
    fn new(seed: u64, now: Instant) -> Pace {
        Pace {
            soon: Backoff::new(RECONNECT_FIRST, RECONNECT_FIRST, seed),
            later: Backoff::new(RECONNECT_FIRST, RECONNECT_CAP, seed),
            away_since: now,
        }
    }

    fn is_eager(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.away_since) < RECONNECT_EAGER
    }

    /// How long an attempt that begins now goes on without a sound. One that has another address to try takes turns
    /// sooner, while it may be that one that answers.
    fn patience(&self, addresses: usize, now: Instant) -> Duration {
        if addresses > 1 && self.is_eager(now) {
            ANSWER_TIMEOUT
        } else {
            HELLO_TIMEOUT
        }
    }

    /// The director was there.
    fn heard(&mut self, now: Instant) {
        self.away_since = now;
    }

    /// The wait before the next attempt, after one that ended like this.
    fn wait(&mut self, outcome: Outcome, now: Instant) -> Duration {
        match outcome {
            // It took seconds, which is a wait of its own; whoever waits longer is not there when a director
            // that serves others first would have come to it.
            Outcome::Unserved => self.soon.next_wait(),
            Outcome::Silent if self.is_eager(now) => self.soon.next_wait(),
            Outcome::Silent | Outcome::Failed | Outcome::Welcomed => self.later.next_wait(),
        }
    }
}

impl LinkError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            LinkError::NoDirector => ErrorClass::Operator,
            LinkError::Identity(source) => source.class(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("cannot enroll")]
    Enroll(#[source] EnrollError),
    #[error("cannot keep the identity")]
    Identity(#[source] IdentityError),
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
}

pub(super) async fn run(
    link: Link,
    handler: Arc<dyn Handler>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), LinkError> {
    if link.settings.directors.is_empty() {
        return Err(LinkError::NoDirector);
    }
    let me = link.me();
    let store = IdentityStore::open(&link.paths.identity_dir).map_err(LinkError::Identity)?;
    let steps = Arc::new(Steps::new(Arc::clone(&handler), link.paths.api_server));
    let context = Context {
        me: &me,
        store: &store,
        handler: &handler,
        steps: &steps,
        current: &link.current,
        clock: &link.clock,
        attempts: &link.attempts,
        resumable: &Resumable::default(),
        peers: &link.peers(),
        sharing: link.sharing.as_ref(),
    };
    let share = async {
        match &link.sharing {
            Some(sharing) => {
                let current = link.current.subscribe();
                let hears = move || current.borrow().is_some();
                peer::serve(sharing, &store, &me, hears).await
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = keep(&link, &context, &mut stop) => ended,
        never = share => match never {},
    }
}

/// Connects again and again, until the agent stops.
async fn keep(
    link: &Link,
    context: &Context<'_>,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), LinkError> {
    let directors = &link.settings.directors;
    let mut pace = Pace::new(seed(context.me), Instant::now());
    let mut turn = 0;
    // A director that is away or busy is worth one line, until it has been away for long.
    let mut last = Outcome::Welcomed;
    // The director knows better whether the certificate is over than a clock that may be wrong.
    let mut told_lapsed = false;
    let mut told_replaced = 0_u32;
    loop {
        let address = directors[turn % directors.len()];
        let began = Instant::now();
        let to = To {
            address,
            patience: pace.patience(directors.len(), began),
        };
        let welcomed = context.attempts.counts().welcomed;
        let ended = attempt(link, context, to, told_lapsed, stop).await;
        let outcome = if context.attempts.counts().welcomed > welcomed {
            Outcome::Welcomed
        } else {
            let outcome = outcome(&ended);
            context.attempts.count(outcome);
            outcome
        };
        told_lapsed = match &ended {
            Ok(ended) => ended.lapsed(),
            // Not answered yet.
            Err(_) => told_lapsed,
        };
        told_replaced = match &ended {
            Ok(ended) if ended.replaced() => told_replaced.saturating_add(1),
            Err(AttemptError::Connect(error)) if error.replaced() => {
                told_replaced.saturating_add(1)
            }
            // Served again, or refused for another reason.
            Ok(_) => 0,
            // Not answered.
            Err(_) => told_replaced,
        };
        if told_replaced == REPLACED_AFTER {
            tracing::error!(machine = %context.me, "this machine was replaced by a later incarnation");
            context.handler.replaced();
        }
        match ended {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(ended) if ended.director_restarts() => {
                tracing::info!("the director restarts");
                pace.later.reset();
                pace.heard(Instant::now());
            }
            Ok(ended) => {
                pace.heard(Instant::now());
                log(ended.class(), &ended, "the link broke");
                if ended.disowned() {
                    context.resumable.forget();
                }
                if began.elapsed() >= GOOD_AFTER {
                    pace.later.reset();
                }
            }
            Err(error) => {
                if outcome == Outcome::Unserved {
                    pace.heard(Instant::now());
                }
                let unanswered = matches!(outcome, Outcome::Silent | Outcome::Unserved);
                if !(unanswered && last == outcome && pace.is_eager(began)) {
                    log(class(&error), &error, "no link to the director");
                }
                turn += 1;
            }
        }
        last = outcome;
        let wait = pace.wait(outcome, Instant::now());
        tokio::select! {
            () = sleep(wait) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

async fn attempt(
    link: &Link,
    context: &Context<'_>,
    to: To,
    told_lapsed: bool,
    stop: &mut watch::Receiver<bool>,
) -> Result<Ended, AttemptError> {
    let identity = tokio::select! {
        identity = identity(link, context, to, told_lapsed) => identity?,
        _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
    };
    let config = context
        .resumable
        .settings(&identity, &link.clock)
        .map_err(AttemptError::Identity)?;
    let name = gateway_name(&context.me.director);
    let dialled = tokio::select! {
        connected = connection::connect(config, to, &name) => {
            connected.map_err(AttemptError::Connect)?
        }
        _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Stopped),
    };
    let ended = connection::run(context, &dialled, &identity, stop).await;
    if matches!(ended, Ended::Stopped) {
        // The runtime ends next, and with it what would still be sent.
        connection::linger(&dialled.endpoint).await;
    }
    Ok(ended)
}

/// The identity on disk, or a new one: by the last certificate if that is over, else by the token.
async fn identity(
    link: &Link,
    context: &Context<'_>,
    to: To,
    told_lapsed: bool,
) -> Result<Identity, AttemptError> {
    let saved = context
        .store
        .load(context.me)
        .map_err(AttemptError::Identity)?;
    let identity = match saved {
        Saved::Identity(held) if !told_lapsed && held.leaf.not_after > link.clock.now() => {
            return Ok(*held);
        }
        Saved::Identity(last) => renew(link, context, to, *last).await,
        Saved::Key(key) => {
            let settings = link.settings_now();
            enroll::enroll(&settings, context.me, key, &[], to, &link.clock).await
        }
    };
    let identity = identity.map_err(AttemptError::Enroll)?;
    context
        .store
        .save(&identity)
        .map_err(AttemptError::Identity)?;
    tracing::info!(until = %identity.leaf.not_after, "enrolled");
    Ok(identity)
}

/// Comes back with a certificate that is over; where the director has nothing of it, by the token.
async fn renew(
    link: &Link,
    context: &Context<'_>,
    to: To,
    last: Identity,
) -> Result<Identity, EnrollError> {
    let over = last.leaf.not_after;
    tracing::info!(%over, "the certificate is over; coming back with it");
    match lapsed::come_back(context.me, &last, to, &link.clock).await {
        Err(error) if error.is_final() => {
            tracing::warn!(%over, error = %ErrorChain(&error), "the last certificate does not count");
        }
        done => return done,
    }
    let Identity { key, roots, .. } = last;
    let settings = link.settings_now();
    let asked = enroll::enroll(&settings, context.me, key, &roots, to, &link.clock).await;
    if asked.as_ref().is_err_and(EnrollError::is_final) {
        tracing::error!(
            %over, machine = %context.me,
            "neither the last certificate nor the token of the settings brings this machine back; give \
             it a fresh token with `windlass node enroll {}`, or recreate it", context.me.machine
        );
    }
    asked
}

/// What became of an attempt that led to no session.
fn outcome(ended: &Result<Ended, AttemptError>) -> Outcome {
    let error = match ended {
        Ok(Ended::TooSlow) => return Outcome::Unserved,
        // The director, for which the handshake was not over yet, needed its place.
        Ok(Ended::Connection(error))
            if gave_way(error) || Close::of(error) == Some(Close::Done) =>
        {
            return Outcome::Unserved;
        }
        Err(AttemptError::Connect(error) | AttemptError::Enroll(EnrollError::Connect(error))) => {
            error
        }
        Ok(_) | Err(_) => return Outcome::Failed,
    };
    match error {
        ConnectError::Silent { .. } => Outcome::Silent,
        ConnectError::TooSlow { .. } | ConnectError::NoTurn { .. } => Outcome::Unserved,
        ConnectError::Handshake { source, .. } if gave_way(source) => Outcome::Unserved,
        ConnectError::Handshake { .. } | ConnectError::Socket(_) | ConnectError::Address { .. } => {
            Outcome::Failed
        }
    }
}

/// Whether the director left a handshake half done, without a reason in it: it needed its place for others.
fn gave_way(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::TimedOut => true,
        // What an application says before the handshake is over arrives as this (RFC 9000, section 10.2.3).
        ConnectionError::ConnectionClosed(closed) => {
            closed.error_code == TransportErrorCode::APPLICATION_ERROR
        }
        _ => false,
    }
}

fn class(error: &AttemptError) -> ErrorClass {
    match error {
        AttemptError::Enroll(source) => source.class(),
        AttemptError::Identity(source) => source.class(),
        AttemptError::Connect(_) => ErrorClass::Retry,
    }
}

fn log(class: ErrorClass, error: &dyn std::error::Error, what: &str) {
    let error = ErrorChain(error);
    match class {
        ErrorClass::Retry => tracing::info!(%error, "{what}"),
        ErrorClass::Operator | ErrorClass::Bug => tracing::error!(%error, "{what}"),
    }
}

/// Differs from machine to machine, which is all that jitter needs.
fn seed(me: &MachineIdentity) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *Digest::of(me.to_string().as_bytes()).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use quinn::{ApplicationClose, ConnectionClose};
    use windlass_common::limits::KNOCK_AGAIN;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_director_that_starts_is_found_within_a_second() {
        let began = Instant::now();
        for seed in 0..100 {
            for addresses in 1..3 {
                let mut pace = Pace::new(seed, began);
                let mut now = began;
                let mut last = now;
                while now < began + RECONNECT_EAGER - 2 * HELLO_TIMEOUT {
                    // When an attempt sends its first packets.
                    let mut after = Duration::ZERO;
                    while after < pace.patience(addresses, now) {
                        assert!(now + after - last < SECOND, "{seed}");
                        last = now + after;
                        after += KNOCK_AGAIN;
                    }
                    now += pace.patience(addresses, now);
                    now += pace.wait(Outcome::Silent, now);
                }
            }
        }
    }

    #[test]
    fn one_that_stays_away_or_says_no_is_asked_ever_later() {
        let began = Instant::now();
        let late = began + RECONNECT_EAGER;
        let mut pace = Pace::new(1, began);
        assert_eq!(pace.patience(2, late), HELLO_TIMEOUT);
        let waits: Vec<Duration> = (0..20).map(|_| pace.wait(Outcome::Silent, late)).collect();
        assert!(waits[0] <= RECONNECT_FIRST);
        assert!(waits[19] >= RECONNECT_CAP / 2);
        let mut pace = Pace::new(1, began);
        let last = (0..20).map(|_| pace.wait(Outcome::Failed, began)).last();
        assert!(last >= Some(RECONNECT_CAP / 2));
    }

    #[test]
    fn one_that_is_busy_is_asked_again_at_once_however_long_it_is() {
        let began = Instant::now();
        let mut pace = Pace::new(1, began);
        let mut now = began;
        for _ in 0..100 {
            now += HELLO_TIMEOUT;
            pace.heard(now);
            assert!(pace.wait(Outcome::Unserved, now) <= RECONNECT_FIRST);
            assert_eq!(pace.patience(2, now), ANSWER_TIMEOUT, "it may go away now");
        }
    }

    #[test]
    fn one_that_is_away_is_told_from_one_that_is_busy_and_one_that_says_no() {
        let address = SocketAddr::from(([192, 0, 2, 1], 7443));
        let failed = |source| ConnectError::Handshake { address, source };
        let within = ANSWER_TIMEOUT;
        let closed = |error_code| {
            ConnectionError::ConnectionClosed(ConnectionClose {
                error_code,
                frame_type: None,
                reason: Default::default(),
            })
        };
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            (ConnectError::Silent { address, within },       Outcome::Silent),
            (ConnectError::TooSlow { address },              Outcome::Unserved),
            (ConnectError::NoTurn { address },               Outcome::Unserved),
            (failed(closed(TransportErrorCode::APPLICATION_ERROR)),  Outcome::Unserved),
            (failed(closed(TransportErrorCode::CONNECTION_REFUSED)), Outcome::Failed),
            (failed(ConnectionError::TimedOut),              Outcome::Unserved),
            (failed(ConnectionError::Reset),                 Outcome::Failed),
            (failed(ConnectionError::VersionMismatch),       Outcome::Failed),
            (failed(ConnectionError::CidsExhausted),         Outcome::Failed),
        ];
        for (error, wanted) in cases {
            let name = error.to_string();
            assert_eq!(
                outcome(&Err(AttemptError::Connect(error))),
                wanted,
                "{name}"
            );
        }
        assert_eq!(outcome(&Ok(Ended::TooSlow)), Outcome::Unserved);
        let closed = |why: Close| {
            Ok(Ended::Connection(ConnectionError::ApplicationClosed(
                ApplicationClose {
                    error_code: why.code(),
                    reason: Default::default(),
                },
            )))
        };
        assert_eq!(outcome(&closed(Close::Done)), Outcome::Unserved);
        assert_eq!(outcome(&closed(Close::Busy)), Outcome::Failed);
        assert_eq!(outcome(&Ok(Ended::Stopped)), Outcome::Failed);
    }
}
