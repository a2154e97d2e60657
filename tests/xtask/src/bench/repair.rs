//! From the death of a machine to its replacement, beside what a fresh machine takes to boot and join.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Metric, Report, median};
use crate::build;
use crate::prerequisites;
use crate::shell::{capture_shown, privileged};

/// Seconds from the kill to the verdict; BOSH takes 30 to 120.
const JUDGED: f64 = 5.0;
/// A replacement may take this many times a fresh machine.
const READY: f64 = 3.0;
/// The moments of a repair, in their order.
const MOMENTS: [&str; 8] = [
    "suspected",
    "judged",
    "fence begun",
    "fenced",
    "replacement begun",
    "replacement made",
    "replacement Ready",
    "StatefulSet's pod Ready",
];

pub(super) fn run(runs: u32) -> Result<Report> {
    prerequisites::install()?;
    let binaries = build::with_tools()?;
    let stemcells = build::stemcell(&binaries, build::KUBERNETES[0])?;
    let stemcell = build::newest_stemcell(build::KUBERNETES[0])?;
    println!("==> killing {runs} machines, one after the other");
    let mut bench = privileged(binaries.dir.join("windlass-repair"));
    let said = capture_shown(
        bench
            .args(["--runs", &runs.to_string()])
            .env("WINDLASS_TEST_BIN", &binaries.dir)
            .env("WINDLASS_TEST_STEMCELLS", &stemcells)
            .env("WINDLASS_TEST_KUBECTL", build::kubectl(&stemcell)),
    )?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
    report(&said)
}

fn report(said: &Value) -> Result<Report> {
    let runs = said["runs"].as_array().context("runs")?;
    let all = |moment: &str| -> Result<f64> {
        let figures = runs.iter().map(|run| run["times"][moment].as_f64());
        let figures: Option<Vec<f64>> = figures.collect();
        Ok(median(
            figures.with_context(|| format!("no time of {moment}"))?,
        ))
    };
    let fresh: Option<Vec<f64>> = runs.iter().map(|run| run["fresh"].as_f64()).collect();
    let fresh = median(fresh.context("no time of a fresh machine")?);
    let mut metrics = vec![Metric::new("fresh machine, made to Ready", "s", fresh)];
    for moment in MOMENTS {
        let metric = Metric::new(format!("kill to {moment}"), "s", all(moment)?);
        metrics.push(match moment {
            "judged" => metric.goal(JUDGED),
            "replacement Ready" => metric.against(fresh).goal(READY),
            _ => metric,
        });
    }
    Ok(Report {
        bench: "repair",
        metrics,
        notes: vec![
            "a worker of 1 + 3 machines is deleted behind the director's back, with default settings;"
                .to_owned(),
            "reference: a worker that was added to the same cluster just before, from the beginning of"
                .to_owned(),
            "its creation to its node being Ready. A StatefulSet's pod ran on it, and is Ready on another node"
                .to_owned(),
            "to the second. Medians.".to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_every_moment_and_judges_the_goals() {
        let times = |factor: f64| -> Value {
            let moments = MOMENTS.iter().enumerate();
            moments
                .map(|(at, name)| ((*name).to_owned(), Value::from(factor * at as f64)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let said = serde_json::json!({"runs": [
            {"fresh": 2.0, "times": times(1.0)},
            {"fresh": 1.0, "times": times(7.0)},
            {"fresh": 4.0, "times": times(2.0)},
        ]});
        let report = report(&said).unwrap();
        assert_eq!(report.metrics.len(), 1 + MOMENTS.len());
        let ready = &report.metrics[7];
        assert_eq!((ready.ratio, ready.met), (Some(6.0), Some(false)));
        assert_eq!(report.metrics[2].met, Some(true), "judged after 2 s");
        assert!(super::report(&serde_json::json!({"runs": [{"fresh": 1.0}]})).is_err());
    }
}
