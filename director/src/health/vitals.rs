//! Figures about a machine as they are shown: each with unit, source, owner and age.
//!
//! # Invariants
//! * Whose a file system is, its agent says. Until it has said so (agents of earlier releases never do), nobody knows.
//!
//! # Not here
//! Units and sources ([`windlass_common::vital`]); what is concluded from a full disk ([`super::conditions`]).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::report::{FileSystem, FileSystems, Report, Scope, Vitals};
use windlass_common::vital::{Unit, Vital, contained};

use super::from_jiff;
use crate::gateway::SessionView;
use crate::model::Timestamp;

/// Where the file system of a machine's root is mounted.
const ROOT: &str = "/";

/// A figure as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VitalView {
    /// Which: `memory`, `cpu`, `load`, `uptime`, `disk` or `inodes`.
    pub name: String,
    /// Mount point of a file system; empty otherwise.
    pub subject: String,
    /// What it is; what is used of something that has an end.
    pub value: u64,
    /// How much there is of what has an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// `bytes`, `milliseconds`, `seconds`, `hundredths` (of one) or `count`.
    #[schema(value_type = String)]
    pub unit: Unit,
    /// Where the agent reads it.
    pub source: String,
    /// `machine`, or `host` for what says nothing about one machine; absent where the agent does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub scope: Option<Scope>,
    /// Milliseconds since it was told.
    pub age_ms: u64,
}

/// One figure, before it is told where it is from.
struct Figure<'a> {
    vital: Vital,
    subject: &'a str,
    value: u64,
    total: Option<u64>,
    scope: Option<Scope>,
}

impl Figure<'_> {
    fn view(self, contained: bool, age_ms: u64) -> VitalView {
        let scope = self.scope.unwrap_or(Scope::Machine);
        VitalView {
            name: self.vital.name().to_owned(),
            subject: self.subject.to_owned(),
            value: self.value,
            total: self.total,
            unit: self.vital.unit(),
            source: self.vital.source(self.subject, contained, scope),
            scope: self.scope,
            age_ms,
        }
    }
}

/// All figures of a connected machine.
pub fn measured(session: &SessionView, now: Timestamp) -> Vec<VitalView> {
    let age = |at: jiff::Timestamp| now.ms_since(from_jiff(at));
    let report = session.report.as_ref();
    let said = session.file_systems.as_ref();
    figures(
        report.map(|(at, report)| (age(*at), &**report)),
        said.map(|(at, said)| (age(*at), &**said)),
    )
}

/// The same, of what was told this many milliseconds ago.
fn figures(report: Option<(u64, &Report)>, said: Option<(u64, &FileSystems)>) -> Vec<VitalView> {
    let mut views = Vec::new();
    if let Some((age_ms, report)) = report {
        let uptime = Figure {
            vital: Vital::Uptime,
            subject: "",
            value: report.uptime_s,
            total: None,
            scope: Some(Scope::Machine),
        };
        views.push(uptime.view(contained(&report.vitals), age_ms));
        let root = said.and_then(|(_, said)| root_of(said));
        views.extend(of_vitals(&report.vitals, root, age_ms));
    }
    if let Some((age_ms, said)) = said {
        let figures = said.file_systems.iter().flat_map(of_file_system);
        // The root's space is in the report, which is sent when it moves.
        let reported = |one: &Figure| one.vital == Vital::Disk && one.subject == ROOT;
        let new = figures.filter(|one| report.is_none() || !reported(one));
        // Where they are read is the same in every machine.
        views.extend(new.map(|one| one.view(false, age_ms)));
    }
    views
}

/// Usage that was told `age_ms` ago; the file system is the root's.
pub(crate) fn of_vitals(vitals: &Vitals, root: Option<Scope>, age_ms: u64) -> Vec<VitalView> {
    let figure = |vital, subject, value, total, scope| Figure {
        vital,
        subject,
        value,
        total,
        scope,
    };
    let (memory, disk) = (
        (vitals.memory_used_bytes, Some(vitals.memory_total_bytes)),
        (vitals.disk_used_bytes, Some(vitals.disk_total_bytes)),
    );
    let load = u64::from(vitals.load1_centi);
    [
        figure(
            Vital::Memory,
            "",
            memory.0,
            memory.1,
            Some(vitals.memory_scope),
        ),
        figure(
            Vital::Cpu,
            "",
            vitals.cpu_used_ms,
            None,
            Some(vitals.cpu_scope),
        ),
        figure(Vital::Load, "", load, None, Some(vitals.load_scope)),
        figure(Vital::Disk, ROOT, disk.0, disk.1, root),
    ]
    .map(|one| one.view(contained(vitals), age_ms))
    .into()
}

/// Whose the file system of a machine's root is, if its agent says so.
pub(crate) fn root_scope(session: &SessionView) -> Option<Scope> {
    root_of(&session.file_systems.as_ref()?.1)
}

fn root_of(said: &FileSystems) -> Option<Scope> {
    let root = said.file_systems.iter().find(|one| one.point == ROOT);
    Some(root?.scope)
}

fn of_file_system(one: &FileSystem) -> [Figure<'_>; 2] {
    let figure = |vital, value, total| Figure {
        vital,
        subject: &one.point,
        value,
        total: Some(total),
        scope: Some(one.scope),
    };
    [
        figure(Vital::Disk, one.used_bytes, one.total_bytes),
        figure(Vital::Inodes, one.inodes_used, one.inodes_total),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Of a system container, told a second ago; of its file systems five seconds before.
    fn shown(said: Option<&FileSystems>) -> Vec<VitalView> {
        let report = Report {
            at_unix_ms: 1,
            boot_id: String::new(),
            uptime_s: 7,
            agent_version: String::new(),
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
        };
        figures(Some((1_000, &report)), said.map(|said| (6_000, said)))
    }

    fn of<'a>(views: &'a [VitalView], name: &str, subject: &str) -> &'a VitalView {
        let mut found = views
            .iter()
            .filter(|one| one.name == name && one.subject == subject);
        let one = found.next().unwrap();
        assert!(found.next().is_none(), "{name} {subject} is there twice");
        one
    }

    #[test]
    fn every_figure_says_what_it_is_in_where_it_is_from_and_whose() {
        let file_system = |point: &str, scope| FileSystem {
            point: point.to_owned(),
            used_bytes: 30,
            total_bytes: 40,
            inodes_used: 5,
            inodes_total: 6,
            scope,
        };
        let said = FileSystems {
            at_unix_ms: 1,
            file_systems: vec![
                file_system("/", Scope::Host),
                file_system("/var/lib/etcd", Scope::Machine),
            ],
        };
        let views = shown(Some(&said));
        for vital in Vital::ALL {
            let shown = views.iter().filter(|one| one.name == vital.name());
            for one in shown.clone() {
                assert_eq!(one.unit, vital.unit());
                assert!(!one.source.is_empty() && one.scope.is_some(), "{one:?}");
            }
            assert!(shown.count() > 0, "{vital:?}");
        }
        let root = of(&views, "disk", "/");
        // Of the report, which is younger.
        assert_eq!((root.value, root.total, root.age_ms), (4, Some(5), 1_000));
        assert_eq!(root.scope, Some(Scope::Host));
        let data = of(&views, "disk", "/var/lib/etcd");
        assert_eq!((data.value, data.total, data.age_ms), (30, Some(40), 6_000));
        assert_eq!(data.scope, Some(Scope::Machine));
        assert_eq!(data.source, "statvfs /var/lib/etcd");
        let inodes = of(&views, "inodes", "/");
        assert_eq!((inodes.value, inodes.total), (5, Some(6)));
        assert_eq!(of(&views, "load", "").scope, Some(Scope::Host));
        assert!(of(&views, "memory", "").source.starts_with("cgroup"));
    }

    #[test]
    fn an_agent_that_tells_of_no_file_systems_leaves_open_whose_the_root_is() {
        let views = shown(None);
        let root = of(&views, "disk", "/");
        assert_eq!((root.value, root.scope), (4, None));
        let told = serde_json::to_value(root).unwrap();
        assert!(told.get("scope").is_none(), "{told}");
        assert_eq!(of(&views, "memory", "").scope, Some(Scope::Machine));
        assert!(views.iter().all(|one| one.name != "inodes"));
    }
}
