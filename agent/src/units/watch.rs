//! Watches a set of units and publishes their states when one changes.
//!
//! systemd's signals say *that* a unit changed; then all watched units are read in one call. Without
//! changes nothing runs, but for one look a minute in case a signal was lost.
//!
//! # Invariants
//! * A published state was read after the match for its unit was in place, so a change is never
//!   missed for longer than the minute.
//!
//! # After a crash
//! Nothing is kept; the set comes from the journal, the states from systemd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use windlass_common::report::UnitReport;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream};

use super::{
    PROPERTIES, SERVICE, SYSTEMD, call_manager, connect, get_property, states_from, unit_path,
};

/// Longest time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Changes of units come in bursts (a start is three or four signals); a burst is read once.
const SETTLE: Duration = Duration::from_millis(20);
/// Between attempts to reach the bus, which may come up after the agent: first wait, and cap.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// See [`RETRY_FIRST`].
const RETRY_CAP: Duration = Duration::from_secs(10);

/// States of the watched units, by name; units that do not exist are left out.
pub type States = BTreeMap<String, UnitReport>;

/// Units to watch, by name, and whether they should be active.
pub type Watched = BTreeMap<String, bool>;

/// Publishes the states of the units named by `wanted` until that is dropped.
pub async fn run(mut wanted: watch::Receiver<Watched>, states: watch::Sender<States>) {
    let mut wait = RETRY_FIRST;
    // Nothing to watch, no connection.
    while wanted.wait_for(|units| !units.is_empty()).await.is_ok() {
        let began = Instant::now();
        match watch_on_one_connection(&mut wanted, &states).await {
            Ok(()) => return,
            Err(error) => {
                if began.elapsed() > RETRY_CAP {
                    wait = RETRY_FIRST;
                }
                tracing::warn!(%error, "lost the connection to systemd, watching again");
                tokio::time::sleep(wait).await;
                wait = RETRY_CAP.min(wait * 2);
            }
        }
    }
}

/// Returns `Ok` when `wanted` was dropped.
async fn watch_on_one_connection(
    wanted: &mut watch::Receiver<Watched>,
    states: &watch::Sender<States>,
) -> Result<(), zbus::Error> {
    let connection = connect().await?;
    // One stream a unit: a stream that took every message of the connection would fill up with the
    // answers to our own calls while nobody polls it, and then hold those answers back.
    let mut changes = SelectAll::new();
    let mut matched = BTreeSet::new();
    loop {
        let units: BTreeSet<String> = wanted.borrow_and_update().keys().cloned().collect();
        for unit in &units {
            if matched.insert(unit.clone()) {
                changes.push(changes_of(&connection, unit).await?);
            }
        }
        let seen = look(&connection, &units).await?;
        states.send_if_modified(|states| {
            let changed = *states != seen;
            *states = seen;
            changed
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            ended = next_change(&mut changes) => ended?,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Returns when a unit has changed and its burst of signals is over.
async fn next_change(changes: &mut SelectAll<MessageStream>) -> Result<(), zbus::Error> {
    let closed = || zbus::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
    changes.next().await.ok_or_else(closed)??;
    while let Ok(next) = timeout(SETTLE, changes.next()).await {
        next.ok_or_else(closed)??;
    }
    Ok(())
}

async fn changes_of(connection: &Connection, unit: &str) -> Result<MessageStream, zbus::Error> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(SYSTEMD)
        .path(unit_path(unit))
        .interface(PROPERTIES)
        .member("PropertiesChanged")
        .build()?;
    MessageStream::for_match_rule(rule, connection, None).await
}

async fn look(connection: &Connection, units: &BTreeSet<String>) -> Result<States, zbus::Error> {
    let names: Vec<&str> = units.iter().map(String::as_str).collect();
    let rows = states_from(&call_manager(connection, "ListUnitsByNames", &names).await?)?;
    let mut seen = States::new();
    for (unit, status) in units.iter().zip(rows) {
        if status.load_state == "not-found" {
            continue;
        }
        let restarts = if unit.ends_with(".service") {
            let value = get_property(connection, unit, SERVICE, "NRestarts").await?;
            u32::try_from(value).unwrap_or(0)
        } else {
            0
        };
        seen.insert(
            unit.clone(),
            UnitReport {
                active_state: status.active_state,
                sub_state: status.sub_state,
                restarts,
            },
        );
    }
    Ok(seen)
}
