//! `windlass node top`: what machines use, as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::process::ExitCode;

use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use windlass_common::report::{Scope, Vitals};
use windlass_common::vital::Vital;
use windlass_director::client::{Client, Lines};
use windlass_director::health::VitalView;
use windlass_director::model::{MachineView, Usage};

use crate::Session;
use crate::cluster::segment;
use crate::failure::{Failure, UNREACHABLE};
use crate::output::{line, table};

/// Clears the screen and goes to its corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What one machine used between two samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    machine: String,
    /// Share of one core, in percent.
    cpu_percent: Option<f64>,
    vitals: Option<Vitals>,
    /// The same, each with unit, source and owner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    measured: Vec<VitalView>,
    /// Why there is nothing.
    away: Option<String>,
}

pub(crate) async fn run(
    session: &Session,
    client: &Client,
    name: Option<&str>,
    once: bool,
    interval_s: u32,
) -> Result<ExitCode, Failure> {
    let (filter, expected) = scope(client, name).await?;
    let path = format!("/v1/usage?intervalMs={}{filter}", interval_s * 1000);
    let mut lines = client.lines(Method::GET, &path, None, &[]).await?;
    let mut board = Board::default();
    if expected.is_empty() {
        session.output.answer(&Vec::<Row>::new(), || board.text());
        return Ok(ExitCode::SUCCESS);
    }
    while let Some(usage) = next(client, &mut lines).await? {
        let complete = board.take(usage, &expected);
        if !complete {
            continue;
        }
        if once {
            session.output.answer(&board.rows(), || board.text());
            return Ok(ExitCode::SUCCESS);
        }
        if session.output.json {
            line(&serde_json::to_string(&board.rows()).unwrap_or_default());
        } else if std::io::stdout().is_terminal() {
            line(&format!("{CLEAR}{}", board.text()));
        } else {
            line(&format!("{}\n", board.text()));
        }
    }
    if once {
        session.output.answer(&board.rows(), || board.text());
    }
    Err(Failure::new(
        UNREACHABLE,
        "no machine can be watched any more",
    ))
}

/// The filter for a name, which is a cluster's or a machine's, and the machines it matches.
async fn scope(client: &Client, name: Option<&str>) -> Result<(String, BTreeSet<String>), Failure> {
    let answer = client.get("/v1/machines").await?;
    let machines: Vec<MachineView> = client.typed(&answer["items"])?;
    let names = |of: &dyn Fn(&MachineView) -> bool| {
        let machines = machines.iter().filter(|view| of(view));
        machines.map(|view| view.machine.name.to_string()).collect()
    };
    let Some(name) = name else {
        return Ok((String::new(), names(&|_| true)));
    };
    let filter = |what: &str| format!("&{what}={}", segment(name));
    let one: BTreeSet<String> = names(&|view| view.machine.name.as_str() == name);
    if !one.is_empty() {
        return Ok((filter("machine"), one));
    }
    Ok((
        filter("cluster"),
        names(&|view| view.machine.cluster.as_str() == name),
    ))
}

async fn next(client: &Client, lines: &mut Lines) -> Result<Option<Usage>, Failure> {
    let Some(text) = lines.next().await? else {
        return Ok(None);
    };
    let value: Value = serde_json::from_str(&text).map_err(|error| Failure::of(&error))?;
    Ok(Some(client.typed(&value)?))
}

/// The newest of each machine.
#[derive(Debug, Default)]
struct Board {
    seen: BTreeMap<String, Seen>,
    /// Machines that said something since the board was last complete.
    fresh: BTreeSet<String>,
}

#[derive(Debug)]
enum Seen {
    Sample {
        at_unix_ms: u64,
        vitals: Vitals,
        measured: Vec<VitalView>,
        cpu_percent: Option<f64>,
    },
    Away(String),
}

impl Board {
    /// Takes a line in; true when each machine has said something new, and its CPU can be told.
    fn take(&mut self, usage: Usage, expected: &BTreeSet<String>) -> bool {
        let machine = match usage {
            Usage::Sample {
                machine,
                at_unix_ms,
                vitals,
                measured,
            } => {
                let cpu_percent = match self.seen.get(&machine) {
                    Some(Seen::Sample {
                        at_unix_ms: before,
                        vitals: was,
                        ..
                    }) => cpu_percent((*before, was.cpu_used_ms), (at_unix_ms, vitals.cpu_used_ms)),
                    Some(Seen::Away(_)) | None => None,
                };
                let seen = Seen::Sample {
                    at_unix_ms,
                    vitals,
                    measured,
                    cpu_percent,
                };
                self.seen.insert(machine.clone(), seen);
                // The first sample has none to be compared with.
                if cpu_percent.is_none() {
                    return false;
                }
                machine
            }
            Usage::Away { machine, message } => {
                self.seen.insert(machine.clone(), Seen::Away(message));
                machine
            }
        };
        self.fresh.insert(machine);
        let away = |name: &String| matches!(self.seen.get(name), Some(Seen::Away(_)));
        let complete = expected
            .iter()
            .all(|name| self.fresh.contains(name) || away(name));
        if complete {
            self.fresh.clear();
        }
        complete
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(machine, seen): (&String, &Seen)| match seen {
            Seen::Sample {
                vitals,
                measured,
                cpu_percent,
                ..
            } => Row {
                machine: machine.clone(),
                cpu_percent: *cpu_percent,
                vitals: Some(vitals.clone()),
                measured: measured.clone(),
                away: None,
            },
            Seen::Away(message) => Row {
                machine: machine.clone(),
                cpu_percent: None,
                vitals: None,
                measured: Vec::new(),
                away: Some(message.clone()),
            },
        };
        self.seen.iter().map(row).collect()
    }

    fn text(&self) -> String {
        let rows = self.rows().into_iter().map(|row| {
            let Some(vitals) = row.vitals else {
                let away = row.away.unwrap_or_default();
                return vec![
                    row.machine,
                    "-".into(),
                    "-".into(),
                    "-".into(),
                    "-".into(),
                    away,
                ];
            };
            let cpu = row
                .cpu_percent
                .map_or("-".to_owned(), |cpu| format!("{cpu:.1}%"));
            let load = f64::from(vitals.load1_centi) / 100.0;
            vec![
                row.machine,
                marked(cpu, vitals.cpu_scope),
                marked(
                    share(vitals.memory_used_bytes, vitals.memory_total_bytes),
                    vitals.memory_scope,
                ),
                marked(
                    share(vitals.disk_used_bytes, vitals.disk_total_bytes),
                    disk_scope(&row.measured),
                ),
                marked(format!("{load:.2}"), vitals.load_scope),
                String::new(),
            ]
        });
        table(&["MACHINE", "CPU", "MEMORY", "DISK", "LOAD", ""], rows)
    }
}

/// Share of one core between two readings of a clock and of CPU time, both in milliseconds.
fn cpu_percent((before, was): (u64, u64), (at, is): (u64, u64)) -> Option<f64> {
    let passed = at.checked_sub(before).filter(|passed| *passed > 0)?;
    // CPU time starts again when the machine does.
    let used = is.checked_sub(was)?;
    Some(used as f64 * 100.0 / passed as f64)
}

/// Whose the root's file system is; the machine's own where nobody says so.
fn disk_scope(measured: &[VitalView]) -> Scope {
    let mut disks = measured.iter().filter(|one| one.name == Vital::Disk.name());
    disks.find_map(|one| one.scope).unwrap_or(Scope::Machine)
}

fn marked(text: String, scope: Scope) -> String {
    match scope {
        Scope::Machine => text,
        Scope::Host => format!("{text} host"),
    }
}

pub(crate) fn share(used: u64, total: u64) -> String {
    let percent = if total == 0 {
        0.0
    } else {
        used as f64 * 100.0 / total as f64
    };
    format!("{} of {} MiB ({percent:.0}%)", used >> 20, total >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_what_was_used_in_between() {
        #[rustfmt::skip] // one case per line
        let cases = [
            ("half a core",        (1000, 500), (3000, 1500), Some(50.0)),
            ("two cores",          (1000, 0),   (2000, 2000), Some(200.0)),
            ("idle",               (1000, 500), (3000, 500),  Some(0.0)),
            ("restarted",          (1000, 500), (3000, 20),   None),
            ("no time has passed", (1000, 500), (1000, 600),  None),
            ("the clock went back",(1000, 500), (900, 600),   None),
        ];
        for (name, before, after, want) in cases {
            assert_eq!(cpu_percent(before, after), want, "{name}");
        }
    }

    fn sample(machine: &str, at_unix_ms: u64, cpu_used_ms: u64) -> Usage {
        let vitals = Vitals {
            memory_used_bytes: 512 << 20,
            memory_total_bytes: 1 << 30,
            memory_scope: Scope::Machine,
            cpu_used_ms,
            cpu_scope: Scope::Machine,
            disk_used_bytes: 1 << 30,
            disk_total_bytes: 4 << 30,
            load1_centi: 150,
            load_scope: Scope::Host,
        };
        let disk = VitalView {
            name: "disk".to_owned(),
            subject: "/".to_owned(),
            value: vitals.disk_used_bytes,
            total: Some(vitals.disk_total_bytes),
            unit: Vital::Disk.unit(),
            source: "statvfs /".to_owned(),
            scope: Some(Scope::Host),
            age_ms: 0,
        };
        Usage::Sample {
            machine: machine.to_owned(),
            at_unix_ms,
            vitals,
            measured: vec![disk],
        }
    }

    #[test]
    fn a_board_is_complete_when_each_machine_said_something_new() {
        let expected = ["a", "b"].map(str::to_owned).into();
        let mut board = Board::default();
        let away = || Usage::Away {
            machine: "b".to_owned(),
            message: "gone".to_owned(),
        };
        assert!(!board.take(sample("a", 1000, 0), &expected), "no CPU yet");
        assert!(!board.take(sample("b", 1000, 0), &expected));
        assert!(!board.take(sample("a", 2000, 100), &expected));
        assert!(board.take(sample("b", 2000, 100), &expected));
        assert!(!board.take(sample("a", 3000, 200), &expected), "b is old");
        assert!(board.take(away(), &expected), "b says nothing any more");
        assert!(board.take(sample("a", 4000, 300), &expected));
        assert_eq!(
            board.text(),
            "MACHINE   CPU     MEMORY                  DISK                          LOAD\n\
             a         10.0%   512 of 1024 MiB (50%)   1024 of 4096 MiB (25%) host   1.50 host\n\
             b         -       -                       -                             -           gone"
        );
    }
}
