//! systemd units, over D-Bus on the system bus.
//!
//! # Invariants
//! * A job counts as done only when systemd's `JobRemoved` signal for it says so; the match is in
//!   place before the job is queued, so the signal cannot be missed.
//! * No `systemctl`: it would cost a process for each question.
//!
//! # After a crash
//! Nothing is kept here; jobs that were queued run on inside systemd.
//!
//! # Not here
//! Which unit should be in which state ([`crate::steps`]); watching them ([`watch`]).

pub mod watch;

use std::time::Duration;

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use tokio::sync::Mutex;
use windlass_common::error::ErrorClass;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Longest answer time of systemd to a call (not to a job): it answers in milliseconds unless it
/// reloads, and a reload of some hundred units takes a second or two.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);

/// Why systemd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// Not a unit name.
    #[error("{unit:?} is no unit name")]
    Name {
        /// What was given.
        unit: String,
    },
    /// The bus or systemd failed or refused.
    #[error("systemd did not {action}")]
    Bus {
        /// What was asked.
        action: String,
        /// Cause.
        #[source]
        source: Box<zbus::Error>,
    },
    /// There is no such unit.
    #[error("there is no unit {unit}; the stemcell or an earlier step has to bring it")]
    Missing {
        /// The unit.
        unit: String,
    },
    /// The job ended otherwise.
    #[error("the {job} job of {unit} ended as {result:?}; its log says why")]
    Job {
        /// What kind of job.
        job: &'static str,
        /// The unit.
        unit: String,
        /// systemd's word.
        result: String,
    },
    /// The bus went away while a job was awaited.
    #[error("the connection to systemd closed while {unit} was awaited")]
    Closed {
        /// The unit.
        unit: String,
    },
}

impl UnitError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Name { .. } | Self::Missing { .. } => ErrorClass::Operator,
            Self::Bus { .. } | Self::Job { .. } | Self::Closed { .. } => ErrorClass::Retry,
        }
    }
}

/// What systemd knows about a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitStatus {
    /// `loaded`, `not-found`, `masked`, …
    pub load_state: String,
    /// `active`, `inactive`, `failed`, …
    pub active_state: String,
    /// `running`, `dead`, `auto-restart`, …
    pub sub_state: String,
}

/// A job on a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Start it, unless it runs.
    Start,
    /// Stop it, unless it does not run.
    Stop,
    /// Stop and start it.
    Restart,
}

impl Job {
    fn word(self) -> &'static str {
        match self {
            Job::Start => "start",
            Job::Stop => "stop",
            Job::Restart => "restart",
        }
    }

    fn method(self) -> &'static str {
        match self {
            Job::Start => "StartUnit",
            Job::Stop => "StopUnit",
            Job::Restart => "RestartUnit",
        }
    }
}

/// A job that systemd has queued.
#[derive(Debug)]
pub struct Queued {
    job: Job,
    unit: String,
    path: OwnedObjectPath,
    removed: MessageStream,
}

impl Queued {
    /// Returns when the job is done: for a start of a `Type=notify` unit when it is ready. Dropping the
    /// future leaves the job to systemd.
    pub async fn done(mut self) -> Result<(), UnitError> {
        while let Some(message) = self.removed.next().await {
            let message = message.map_err(bus("tell how a job ended"))?;
            let (_, ended, _, result): (u32, OwnedObjectPath, String, String) = message
                .body()
                .deserialize()
                .map_err(bus("tell how a job ended"))?;
            if ended != self.path {
                continue;
            }
            return match result.as_str() {
                "done" => Ok(()),
                _ => Err(UnitError::Job {
                    job: self.job.word(),
                    unit: self.unit,
                    result,
                }),
            };
        }
        Err(UnitError::Closed { unit: self.unit })
    }
}

/// Whether a unit starts at boot, as systemd reads it from disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootState {
    /// It does.
    Enabled,
    /// It does not, but could.
    Disabled,
    /// It has no say of its own (`static`, `generated`, `masked`, …).
    Fixed,
}

/// A connection to systemd, made when it is first needed and made again when it broke.
#[derive(Debug, Default)]
pub struct Units {
    connection: Mutex<Option<Connection>>,
}

/// Refuses what is not a unit name; systemd's own rule.
pub fn check_name(unit: &str) -> Result<(), UnitError> {
    let known = [
        ".service", ".socket", ".target", ".mount", ".timer", ".path", ".slice", ".scope",
    ];
    let ok = unit.len() <= 255
        && known.iter().any(|suffix| {
            unit.strip_suffix(suffix)
                .is_some_and(|stem| !stem.is_empty())
        })
        && unit
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
    if ok {
        Ok(())
    } else {
        Err(UnitError::Name {
            unit: unit.chars().take(80).collect(),
        })
    }
}

impl Units {
    /// States of units, in one call; units that do not exist are `not-found`.
    pub async fn states(&self, units: &[&str]) -> Result<Vec<UnitStatus>, UnitError> {
        for unit in units {
            check_name(unit)?;
        }
        let message = self.call("ListUnitsByNames", &(units)).await?;
        states_from(&message).map_err(bus("tell the state of units"))
    }

    /// State of one unit.
    pub async fn state(&self, unit: &str) -> Result<UnitStatus, UnitError> {
        let states = self.states(&[unit]).await?;
        states.into_iter().next().ok_or_else(|| UnitError::Missing {
            unit: unit.to_owned(),
        })
    }

    /// States of all loaded units, by name.
    pub async fn list(&self) -> Result<Vec<(String, UnitStatus)>, UnitError> {
        let message = self.call("ListUnits", &()).await?;
        let rows: Vec<Row> = message
            .body()
            .deserialize()
            .map_err(bus("list its units"))?;
        Ok(rows
            .into_iter()
            .map(|row| (row.0.clone(), status(row)))
            .collect())
    }

    /// Whether the unit's files on disk are newer than what systemd has loaded.
    pub async fn needs_reload(&self, unit: &str) -> Result<bool, UnitError> {
        let value = self.property(unit, UNIT, "NeedDaemonReload").await?;
        bool::try_from(value).map_err(bus("tell whether it has to reload"))
    }

    /// Automatic restarts of a service since it was loaded.
    pub async fn restarts(&self, unit: &str) -> Result<u32, UnitError> {
        if !unit.ends_with(".service") {
            return Ok(0);
        }
        let value = self.property(unit, SERVICE, "NRestarts").await?;
        u32::try_from(value).map_err(bus("tell the restarts of a unit"))
    }

    /// Makes systemd read its unit files again.
    pub async fn reload(&self) -> Result<(), UnitError> {
        self.call("Reload", &()).await.map(drop)
    }

    /// Whether the unit starts at boot.
    pub async fn boot_state(&self, unit: &str) -> Result<BootState, UnitError> {
        check_name(unit)?;
        let message = match self.call("GetUnitFileState", &(unit)).await {
            Err(UnitError::Bus { source, .. }) if is_no_such_file(&source) => {
                return Err(UnitError::Missing {
                    unit: unit.to_owned(),
                });
            }
            other => other?,
        };
        let state: String = message
            .body()
            .deserialize()
            .map_err(bus("tell whether a unit is enabled"))?;
        Ok(match state.as_str() {
            "enabled" | "enabled-runtime" => BootState::Enabled,
            "disabled" => BootState::Disabled,
            _ => BootState::Fixed,
        })
    }

    /// Makes the unit start at boot, or not.
    pub async fn set_boot_state(&self, unit: &str, enabled: bool) -> Result<(), UnitError> {
        check_name(unit)?;
        let units = [unit];
        if enabled {
            let body = (&units[..], false, false);
            self.call("EnableUnitFiles", &body).await.map(drop)
        } else {
            let body = (&units[..], false);
            self.call("DisableUnitFiles", &body).await.map(drop)
        }
    }

    /// Forgets that the unit failed, so that its start limit does not refuse a new start.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), UnitError> {
        self.call("ResetFailedUnit", &(unit)).await.map(drop)
    }

    /// Sends a signal to all processes of a unit.
    pub async fn signal(&self, unit: &str, signal: Signal) -> Result<(), UnitError> {
        check_name(unit)?;
        let body = (unit, "all", signal as i32);
        self.call("KillUnit", &body).await.map(drop)
    }

    /// Queues a job; [`Queued::done`] waits for it.
    pub async fn queue(&self, job: Job, unit: &str) -> Result<Queued, UnitError> {
        check_name(unit)?;
        let connection = self.connection().await?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SYSTEMD)
            .path(MANAGER_PATH)
            .interface(MANAGER)
            .member("JobRemoved")
            .arg(2, unit)
            .build()
            .map_err(bus("be asked for signals"))?;
        let removed = MessageStream::for_match_rule(rule, &connection, None)
            .await
            .map_err(bus("be asked for signals"))?;
        let queued = match self.call(job.method(), &(unit, "replace")).await {
            Err(UnitError::Bus { source, .. }) if is_no_such_unit(&source) => {
                return Err(UnitError::Missing {
                    unit: unit.to_owned(),
                });
            }
            other => other?,
        };
        let path = queued
            .body()
            .deserialize()
            .map_err(bus("name the job it queued"))?;
        Ok(Queued {
            job,
            unit: unit.to_owned(),
            path,
            removed,
        })
    }

    async fn property(
        &self,
        unit: &str,
        interface: &str,
        name: &str,
    ) -> Result<OwnedVariant, UnitError> {
        check_name(unit)?;
        let connection = self.connection().await?;
        get_property(&connection, unit, interface, name)
            .await
            .map_err(bus(format!("tell {name} of {unit}")))
    }

    async fn call<B>(&self, method: &'static str, body: &B) -> Result<zbus::Message, UnitError>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        let connection = self.connection().await?;
        call_manager(&connection, method, body)
            .await
            .map_err(bus(format!("answer {method}")))
    }

    async fn connection(&self) -> Result<Connection, UnitError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| !c.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = connect().await.map_err(bus("let us connect"))?;
        *slot = Some(connection.clone());
        Ok(connection)
    }
}

/// Row of `ListUnits`: name, description, load, active and sub state, followed unit, path, job.
type Row = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

fn status(row: Row) -> UnitStatus {
    UnitStatus {
        load_state: row.2,
        active_state: row.3,
        sub_state: row.4,
    }
}

fn states_from(message: &zbus::Message) -> Result<Vec<UnitStatus>, zbus::Error> {
    let rows: Vec<Row> = message.body().deserialize()?;
    Ok(rows.into_iter().map(status).collect())
}

/// Connects and asks systemd to emit its signals.
async fn connect() -> Result<Connection, zbus::Error> {
    let connection = zbus::connection::Builder::system()
        .method_timeout(CALL_TIMEOUT)
        .build()
        .await?;
    call_manager(&connection, "Subscribe", &()).await?;
    Ok(connection)
}

async fn call_manager<B>(
    connection: &Connection,
    method: &'static str,
    body: &B,
) -> Result<zbus::Message, zbus::Error>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    connection
        .call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), method, body)
        .await
}

async fn get_property(
    connection: &Connection,
    unit: &str,
    interface: &str,
    name: &str,
) -> Result<OwnedVariant, zbus::Error> {
    let path = unit_path(unit);
    let message = connection
        .call_method(
            Some(SYSTEMD),
            path.as_str(),
            Some(PROPERTIES),
            "Get",
            &(interface, name),
        )
        .await?;
    message.body().deserialize()
}

/// Object path of a unit: systemd's `bus_label_escape` of its name.
fn unit_path(unit: &str) -> String {
    use std::fmt::Write;
    let mut path = format!("{MANAGER_PATH}/unit/");
    for (i, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

fn bus(action: impl Into<String>) -> impl FnOnce(zbus::Error) -> UnitError {
    let action = action.into();
    move |source| UnitError::Bus {
        action,
        source: Box::new(source),
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..)
        if matches!(name.as_str(), "org.freedesktop.systemd1.NoSuchUnit"
            | "org.freedesktop.systemd1.LoadFailed"))
}

fn is_no_such_file(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::FDO(error) => matches!(**error, zbus::fdo::Error::FileNotFound(_)),
        other => is_no_such_unit(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_follow_systemds_rule() {
        let mount = "var-lib-a\\x2db.mount";
        for unit in ["kubelet.service", "getty@tty1.service", mount, "a.target"] {
            assert!(check_name(unit).is_ok(), "{unit}");
        }
        for unit in [
            "",
            ".service",
            "kubelet",
            "a b.service",
            "a/b.service",
            "a.conf",
            "ä.service",
        ] {
            assert!(check_name(unit).is_err(), "{unit}");
        }
    }

    #[test]
    fn unit_paths_are_escaped_as_systemd_does() {
        let path = "/org/freedesktop/systemd1/unit/kube_2dproxy_2eservice";
        assert_eq!(unit_path("kube-proxy.service"), path);
        let path = "/org/freedesktop/systemd1/unit/_31a1_2eservice";
        assert_eq!(unit_path("1a1.service"), path);
    }
}
