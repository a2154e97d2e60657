//! What planning costs: all clusters of a director, and one of them again beside few and beside many.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Metric, Report};
use crate::build::{self, Profile};
use crate::shell::{capture, command};

/// Machines of each cluster.
const MACHINES: u32 = 100;
/// Clusters beside which one is planned again; all of them are planned where there are most.
const CLUSTERS: [u32; 3] = [1, 10, 100];
/// Longest time for planning all machines of 100 clusters, milliseconds.
const ALL_MS: f64 = 100.0;
/// Most that planning one cluster again may take beside others, over what it takes alone: what differs is chance.
const BESIDE: f64 = 1.5;

/// What `windlass-director bench plan` prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Planned {
    settled_ms: f64,
    create_ms: f64,
    upgrade_ms: f64,
    one_cluster_again_ms: f64,
    checked_ms: f64,
}

pub(super) fn run(profile: Profile, runs: u32) -> Result<Report> {
    let director = build::tools(profile)?.join("windlass-director");
    let mut planned = Vec::new();
    for clusters in CLUSTERS {
        let text = capture(command(&director).args(["bench", "plan"]).args([
            format!("--clusters={clusters}"),
            format!("--machines={MACHINES}"),
            // The first look at memory is the slowest.
            format!("--runs={}", runs.max(9)),
        ]))?;
        let found: Planned = serde_json::from_str(&text)
            .with_context(|| format!("bench plan prints something else: {text}"))?;
        planned.push((clusters, found));
    }
    Ok(report(&planned))
}

fn report(planned: &[(u32, Planned)]) -> Report {
    let mut metrics = Vec::new();
    if let Some((clusters, all)) = planned.last() {
        let rows = [
            ("nothing to do", all.settled_ms, Some(ALL_MS)),
            ("create", all.create_ms, Some(ALL_MS)),
            ("upgrade", all.upgrade_ms, Some(ALL_MS)),
            ("upgrade, checked", all.checked_ms, None),
        ];
        for (what, took, goal) in rows {
            let metric = Metric::new(format!("{what}, {clusters} clusters"), "ms", took);
            metrics.push(match goal {
                Some(goal) => metric.goal(goal),
                None => metric,
            });
        }
    }
    let alone = planned.first().map(|(_, alone)| alone.one_cluster_again_ms);
    for (clusters, of) in planned {
        let metric = Metric::new(
            format!("one cluster again, of {clusters}"),
            "ms",
            of.one_cluster_again_ms,
        );
        metrics.push(match alone.filter(|_| *clusters > 1) {
            Some(alone) => metric.against(alone).goal(BESIDE),
            None => metric,
        });
    }
    Report {
        bench: "plan",
        metrics,
        notes: vec![
            format!(
                "{MACHINES} machines a cluster, 3 of them its control plane; medians; one thread."
            ),
            "again: after one report, by which one machine of one cluster is no more as it was."
                .to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(again: f64, upgrade: f64) -> Planned {
        Planned {
            settled_ms: 1.0,
            create_ms: 2.0,
            upgrade_ms: upgrade,
            one_cluster_again_ms: again,
            checked_ms: 400.0,
        }
    }

    #[test]
    fn goals_are_for_all_clusters_and_for_one_beside_more() {
        let met = |upgrade: f64, beside: f64| -> Vec<Option<bool>> {
            let planned = [
                (1, planned(0.2, upgrade)),
                (10, planned(0.2, upgrade)),
                (100, planned(beside, upgrade)),
            ];
            report(&planned).metrics.iter().map(|of| of.met).collect()
        };
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(met(99.0, 0.2), [yes, yes, yes, None, None, yes, yes]);
        assert_eq!(met(101.0, 0.4), [yes, yes, no, None, None, yes, no]);
    }
}
