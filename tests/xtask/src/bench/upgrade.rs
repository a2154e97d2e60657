//! What an upgrade takes of each worker, beside the same done by hand.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Metric, Report, median};
use crate::build;
use crate::prerequisites;
use crate::shell::{capture_shown, privileged};

/// The parts of it, in their order, and what they are.
const PARTS: [(&str, &str); 4] = [
    ("drain", "drain and stop"),
    ("make", "stage: delete and make"),
    ("switch", "switch: configure and start"),
    ("ready", "until Ready"),
];

pub(super) fn run(workers: u32) -> Result<Report> {
    prerequisites::install()?;
    let binaries = build::with_tools()?;
    let [newer, older] = build::KUBERNETES;
    let stemcells = build::stemcell(&binaries, newer)?;
    build::stemcell(&binaries, older)?;
    println!("==> upgrading {workers} workers from {older} to {newer}, after the same by hand");
    let mut bench = privileged(binaries.dir.join("windlass-upgrade"));
    let said = capture_shown(
        bench
            .args(["--from", older, "--to", newer])
            .args(["--workers", &workers.to_string()])
            .env("WINDLASS_TEST_BIN", &binaries.dir)
            .env("WINDLASS_TEST_STEMCELLS", &stemcells)
            .env(
                "WINDLASS_TEST_KUBECTL",
                build::kubectl(&build::newest_stemcell(newer)?),
            ),
    )?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
    report(&said)
}

fn report(said: &Value) -> Result<Report> {
    let figures = |of: &str, part: &str| -> Result<Vec<f64>> {
        let all = said[of].as_array().context("machines")?;
        let seconds: Option<Vec<f64>> = all.iter().map(|one| one[part].as_f64()).collect();
        let seconds = seconds.filter(|seconds| !seconds.is_empty());
        seconds.with_context(|| format!("no seconds of {part} in {of}: {said}"))
    };
    let mut metrics = Vec::new();
    let mut totals = [0.0, 0.0];
    for (part, name) in PARTS {
        let [took, hand] = ["workers", "hand"].map(|of| figures(of, part).map(median));
        let (took, hand) = (took?, hand?);
        totals = [totals[0] + took, totals[1] + hand];
        let metric = Metric::new(name, "s", took);
        // Nothing is made by hand.
        metrics.push(if hand > 0.0 {
            metric.against(hand)
        } else {
            metric
        });
    }
    metrics.push(Metric::new("a worker, all parts", "s", totals[0]).against(totals[1]));
    Ok(Report {
        bench: "upgrade",
        metrics,
        notes: vec![
            "workers of a cluster of 1 control-plane machine, two pods each behind a budget of one,".to_owned(),
            "replaced by machines of the next minor, one after the other and without a surge. Reference: the"
                .to_owned(),
            "same workers just before, by hand: kubectl drain, containerd and kubelet restarted as they are, Ready,"
                .to_owned(),
            "uncordoned. Medians over workers; the sum is that of the medians.".to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_part_stands_beside_the_same_by_hand() {
        let worker = |drain: f64, make: f64| json!({"machine": "m", "drain": drain, "make": make, "switch": 1.0, "ready": 2.0});
        let said = json!({"workers": [worker(4.0, 3.0), worker(6.0, 5.0), worker(5.0, 4.0)],
            "hand": [worker(2.5, 0.0)]});
        let report = report(&said).unwrap();
        let ratios: Vec<_> = report.metrics.iter().map(|metric| metric.ratio).collect();
        assert_eq!(
            ratios,
            [Some(2.0), None, Some(1.0), Some(1.0), Some(12.0 / 5.5)]
        );
        assert!(super::report(&json!({"workers": [], "hand": []})).is_err());
        assert!(super::report(&json!({"workers": [worker(1.0, 1.0)]})).is_err());
    }
}
