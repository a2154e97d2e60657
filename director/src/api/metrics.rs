//! `/metrics`: the counters of this process in the text format of Prometheus (version 0.0.4).
//!
//! Labels are names of closed enums: nothing that a peer sends becomes a label.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use windlass_common::report::Scope;

use super::ApiState;
use super::problem::Problem;
use crate::gate::Gate;
use crate::gateway::{CounterView, Total};
use crate::model::Timestamp;
use crate::resurrector::{CauseKind, Verdict};
use crate::service::{BackupCounts, Expiries};

/// What exporters of this format say they send.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why the API turned a connection away before it served it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The handshake failed: a certificate of somebody else, or no TLS 1.3.
    Handshake,
    /// The handshake took too long.
    Timeout,
    /// The certificate is no operator's, or there is none.
    Caller,
}

impl Refusal {
    const ALL: [(Refusal, &str); 3] = [
        (Refusal::Handshake, "handshake"),
        (Refusal::Timeout, "timeout"),
        (Refusal::Caller, "caller"),
    ];
}

/// The API's own counters, and how much of what they count is written to the log.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counts: [AtomicU64; Refusal::ALL.len()],
    gates: Mutex<[Gate; Refusal::ALL.len()]>,
}

impl Refusals {
    /// Counts a refusal. If its line is to be written, how many before it had none.
    pub(super) fn count(&self, refusal: Refusal, now: Instant) -> Option<u64> {
        self.counts[refusal as usize].fetch_add(1, Ordering::Relaxed);
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = &mut gates[refusal as usize];
        gate.admit(now).then(|| gate.take_held())
    }

    fn get(&self, refusal: Refusal) -> u64 {
        self.counts[refusal as usize].load(Ordering::Relaxed)
    }
}

/// Counters of the gateway and of this API, for Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics",
    tag = "director",
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn metrics(State(state): State<ApiState>) -> Response {
    let verdicts = state.director.verdicts();
    let conditions = state.director.conditions();
    // Without them there are no samples, rather than no metrics.
    let expiries = state.director.expiries().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "it cannot be told when certificates expire");
        Expiries::default()
    });
    let care = ClusterCounts {
        backups: state.director.backup_counts(),
        etcd: state.director.etcd_needs_operator(),
        expiries,
        stopped: state.director.stopped_pool_counts(),
    };
    let text = exposition(
        &state.director.counters(),
        &verdicts,
        &conditions,
        care,
        &state.refusals,
        &Own {
            on_hold: state.director.is_on_hold(),
            last_backup: state.director.own_backups().0,
            backups_failed: state.director.own_backups().1,
        },
    );
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

/// What the director says of itself.
#[derive(Debug, Default)]
struct Own {
    on_hold: bool,
    last_backup: Option<Timestamp>,
    backups_failed: u64,
}

/// How many clusters need somebody.
#[derive(Debug, Clone, Default)]
struct ClusterCounts {
    /// Because of their backups.
    backups: BackupCounts,
    /// Because of their etcd.
    etcd: u64,
    /// When their first certificates expire.
    expiries: Expiries,
    /// Pools that are stopped since their replacements die, by what those have in common.
    stopped: BTreeMap<CauseKind, u64>,
}

fn exposition(
    gateway: &CounterView,
    verdicts: &BTreeMap<Verdict, u64>,
    conditions: &BTreeMap<(&'static str, Scope), u64>,
    clusters: ClusterCounts,
    api: &Refusals,
    own: &Own,
) -> String {
    let mut text = String::with_capacity(8 << 10);
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing into a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let reason = |name: &str| format!("{{reason=\"{name}\"}}");
    let one = |value: usize| [(String::new(), value as u64)];
    family(
        "windlass_gateway_sessions",
        "gauge",
        "Agents connected now.",
        &one(gateway.sessions),
    );
    family(
        "windlass_gateway_handshakes_under_way",
        "gauge",
        "Handshakes that are not over.",
        &one(gateway.handshakes),
    );
    family(
        "windlass_gateway_handshakes_waiting",
        "gauge",
        "First packets in line for a handshake.",
        &one(gateway.waiting),
    );
    for (total, value) in &gateway.totals {
        let name = format!("windlass_gateway_{}_total", total.name());
        family(&name, "counter", help(*total), &[(String::new(), *value)]);
    }
    let refusals: Vec<_> = gateway.refusals.iter().collect();
    let refusals: Vec<_> = refusals
        .into_iter()
        .map(|(why, count)| (reason(why.name()), *count))
        .collect();
    family(
        "windlass_gateway_refusals_total",
        "counter",
        "Peers, frames and datagrams that were refused, by reason.",
        &refusals,
    );
    let verdicts = Verdict::ALL.map(|verdict| {
        let count = verdicts.get(&verdict).copied().unwrap_or(0);
        (format!("{{verdict=\"{verdict}\"}}"), count)
    });
    family(
        "windlass_machines",
        "gauge",
        "Machines that are judged, by verdict.",
        &verdicts,
    );
    let conditions: Vec<_> = conditions
        .iter()
        .map(|((name, scope), count)| {
            let scope = scope.name();
            (
                format!("{{condition=\"{name}\",scope=\"{scope}\"}}"),
                *count,
            )
        })
        .collect();
    family(
        "windlass_machines_with_condition",
        "gauge",
        "Connected machines of which a condition is bad, by condition and whose it is: the host's speaks against none.",
        &conditions,
    );
    for (name, what, count) in [
        (
            "windlass_clusters_backup_failing",
            "Clusters whose last backup failed.",
            clusters.backups.failing,
        ),
        (
            "windlass_clusters_backup_overdue",
            "Clusters whose last backup is older than two of its intervals.",
            clusters.backups.overdue,
        ),
        (
            "windlass_clusters_etcd_needs_operator",
            "Clusters whose etcd has an alarm that the director does not put out.",
            clusters.etcd,
        ),
    ] {
        family(name, "gauge", what, &[(String::new(), count)]);
    }
    let stopped = CauseKind::ALL.map(|kind| {
        let count = clusters.stopped.get(&kind).copied().unwrap_or(0);
        (format!("{{cause=\"{}\"}}", kind.name()), count)
    });
    family(
        "windlass_pools_stopped",
        "gauge",
        "Pools left to an operator since their replacements die young, by what those have in common.",
        &stopped,
    );
    let expiries = [
        ("machine", clusters.expiries.machines),
        ("authority", clusters.expiries.authorities),
    ];
    let expiries: Vec<_> = expiries
        .iter()
        .filter_map(|(of, at)| Some((format!("{{of=\"{of}\"}}"), at.as_ref()?.unix_ms() / 1000)))
        .collect();
    family(
        "windlass_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the first certificate of a cluster expires, in seconds since 1970: of machines, of authorities.",
        &expiries,
    );
    let refusals = Refusal::ALL.map(|(why, name)| (reason(name), api.get(why)));
    family(
        "windlass_api_refusals_total",
        "counter",
        "Connections that the API did not serve, by reason.",
        &refusals,
    );
    family(
        "windlass_director_on_hold",
        "gauge",
        "1 while the director was restored and waits for an operator.",
        &one(usize::from(own.on_hold)),
    );
    // Without a backup there is no sample: absent() says so.
    let last = own
        .last_backup
        .map(|at| (String::new(), at.unix_ms() / 1000));
    family(
        "windlass_director_last_backup_timestamp_seconds",
        "gauge",
        "When the last backup of the director was taken, since 1970.",
        last.as_slice(),
    );
    family(
        "windlass_director_backups_failed_total",
        "counter",
        "Scheduled backups of the director that failed.",
        &[(String::new(), own.backups_failed)],
    );
    text
}

fn help(total: Total) -> &'static str {
    match total {
        Total::HandshakesBegun => "Handshakes that were begun.",
        Total::HandshakesRetried => "Peers that had to prove their address first.",
        Total::Handshakes => "Handshakes that succeeded.",
        Total::Enrollments => "Machines that got a first certificate.",
        Total::Sessions => "Sessions that were welcomed.",
        Total::Heartbeats => "Heartbeats that were taken.",
        Total::Reports => "Reports that were taken.",
        Total::Renewals => "Certificates that were renewed.",
        Total::DatagramsReceived => "UDP datagrams received.",
        Total::BytesReceived => "UDP payload bytes received.",
        Total::BytesSent => "UDP payload bytes sent.",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use windlass_common::limits::{LOG_INTERVAL, LOG_LINES_PER_REASON};

    use super::*;
    use crate::gateway::Reason;
    use crate::model::Timestamp;

    #[test]
    fn a_flood_of_refusals_has_few_lines_and_each_is_counted() {
        let (api, now) = (Refusals::default(), Instant::now());
        let lines = (0..1000).filter_map(|_| api.count(Refusal::Handshake, now));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [0; LOG_LINES_PER_REASON as usize]
        );
        assert!(api.count(Refusal::Caller, now).is_some(), "another reason");
        let later = api.count(Refusal::Handshake, now + LOG_INTERVAL);
        assert_eq!(later, Some(1000 - u64::from(LOG_LINES_PER_REASON)));
        assert_eq!(api.get(Refusal::Handshake), 1001);
    }

    #[test]
    fn every_counter_has_a_line_and_every_line_the_format() {
        let view = CounterView {
            sessions: 3,
            handshakes: 2,
            waiting: 4,
            refusals: Reason::ALL.iter().map(|reason| (*reason, 5)).collect(),
            totals: Total::ALL
                .iter()
                .map(|total| (*total, 7))
                .collect::<BTreeMap<_, _>>(),
        };
        let api = Refusals::default();
        for (number, (refusal, _)) in Refusal::ALL.into_iter().enumerate() {
            for _ in 0..=number {
                let _ = api.count(refusal, Instant::now());
            }
        }
        let verdicts = [(Verdict::NodeHung, 2)].into();
        let conditions = [
            (("disk-space", Scope::Machine), 4),
            (("disk-space", Scope::Host), 6),
            (("kubelet", Scope::Machine), 0),
        ]
        .into();
        let care = ClusterCounts {
            backups: BackupCounts {
                failing: 1,
                overdue: 2,
            },
            etcd: 3,
            expiries: Expiries {
                machines: Some(Timestamp::from_unix_ms(1_800_000_000_999)),
                authorities: None,
            },
            stopped: [(CauseKind::Step, 2)].into(),
        };
        let own = Own {
            on_hold: true,
            last_backup: Some(Timestamp::from_unix_ms(1_800_000_000_500)),
            backups_failed: 2,
        };
        let text = exposition(&view, &verdicts, &conditions, care, &api, &own);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples.len(),
            7 + Total::ALL.len()
                + Reason::ALL.len()
                + 3
                + Verdict::ALL.len()
                + conditions.len()
                + CauseKind::ALL.len()
                + 3
        );
        let names: BTreeSet<_> = samples
            .iter()
            .map(|line| line.rsplit_once(' ').unwrap().0)
            .collect();
        assert_eq!(names.len(), samples.len(), "no sample twice");
        for wanted in [
            "windlass_gateway_sessions 3",
            "windlass_gateway_heartbeats_total 7",
            "windlass_gateway_refusals_total{reason=\"token_other_key\"} 5",
            "windlass_api_refusals_total{reason=\"handshake\"} 1",
            "windlass_api_refusals_total{reason=\"caller\"} 3",
            "windlass_clusters_backup_failing 1",
            "windlass_clusters_backup_overdue 2",
            "windlass_clusters_etcd_needs_operator 3",
            "windlass_certificate_expiry_timestamp_seconds{of=\"machine\"} 1800000000",
            "windlass_machines{verdict=\"NodeHung\"} 2",
            "windlass_pools_stopped{cause=\"step\"} 2",
            "windlass_pools_stopped{cause=\"none\"} 0",
            "windlass_director_on_hold 1",
            "windlass_director_last_backup_timestamp_seconds 1800000000",
            "windlass_director_backups_failed_total 2",
            "windlass_machines{verdict=\"MachineGone\"} 0",
            "windlass_machines_with_condition{condition=\"disk-space\",scope=\"machine\"} 4",
            "windlass_machines_with_condition{condition=\"disk-space\",scope=\"host\"} 6",
        ] {
            assert!(samples.contains(&wanted), "{wanted}");
        }
        // What the shipped rules look at is there, by name and label.
        let rules = include_str!("../../../docs/alerts.yaml");
        let looked_at: Vec<&str> = rules
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("windlass_"))
            .collect();
        assert!(looked_at.len() >= 5, "{looked_at:?}");
        for name in looked_at {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
        for quoted in rules.split('"').skip(1).step_by(2) {
            let known = Verdict::ALL
                .iter()
                .any(|verdict| verdict.to_string() == quoted)
                || windlass_common::condition::NAMES.contains(&quoted)
                || ["machine", "authority"].contains(&quoted)
                || Scope::ALL.iter().any(|scope| scope.name() == quoted)
                || Reason::ALL.iter().any(|reason| reason.name() == quoted);
            assert!(known, "{quoted} is no label's value");
        }
        // Each family is announced once, before its samples.
        let mut announced = BTreeSet::new();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => assert!(announced.insert(rest.split(' ').next().unwrap().to_owned())),
                None if line.starts_with('#') => {}
                None => {
                    let name = line.split(['{', ' ']).next().unwrap();
                    assert!(announced.contains(name), "{line}");
                }
            }
        }
    }
}
