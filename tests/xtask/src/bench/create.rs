//! Phases of a create, and the floor below it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::director::Director;
use super::floor::Floor;
use super::{Metric, Report, median};
use crate::shell::{capture, step};

const CLUSTER: &str = "bench";
/// A create may cost this many times the floor.
const GOAL: f64 = 1.3;

pub(super) fn run(runs: u32) -> Result<Report> {
    let director = Director::start()?;
    let mut totals = Vec::new();
    let mut phases: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut floors = Vec::new();
    for run in 1..=runs {
        let started = Instant::now();
        step(
            &format!("create {run} of {runs}"),
            &mut director.windlass(&["cluster", "create", CLUSTER, "--workers", "2", "--wait"]),
        )?;
        totals.push(started.elapsed().as_secs_f64());
        for (phase, seconds) in phases_of(&director)? {
            phases.entry(phase).or_default().push(seconds);
        }
        let floor = Floor::prepare(&director, CLUSTER)?;
        step(
            "delete",
            &mut director.windlass(&["cluster", "delete", CLUSTER, "--yes", "--wait"]),
        )?;
        let seconds = floor.start()?;
        println!("    floor {run} of {runs}: {seconds:.1} s");
        floors.push(seconds);
    }
    let mut metrics = vec![
        Metric::new("create 1 + 2, command to Ready", "s", median(totals))
            .against(median(floors))
            .goal(GOAL),
    ];
    metrics.extend(
        phases
            .into_iter()
            .map(|(phase, seconds)| Metric::new(phase, "s", median(seconds))),
    );
    Ok(Report {
        bench: "create",
        metrics,
        notes: vec![
            "reference: the same machines with the same configuration, certificates included, all"
                .to_owned(),
            "units enabled, started by hand from prepared roots until all three nodes are Ready."
                .to_owned(),
            "phases end when their last step ends, counted from the order; they overlap."
                .to_owned(),
        ],
    })
}

/// When each kind of step was over on every machine, in seconds from the order.
fn phases_of(director: &Director) -> Result<BTreeMap<String, f64>> {
    let list = director.list(&["task", "list"])?;
    let newest = list
        .iter()
        .find(|task| task["cluster"] == CLUSTER)
        .context("the create is a task")?;
    let id = newest["id"].as_str().context("a task has an id")?;
    let task = director.json(&["task", "show", id])?;
    let ordered = instant(&task["createdAt"])?;
    let mut phases = BTreeMap::new();
    let steps = task["steps"].as_object().context("a task has steps")?;
    for (key, record) in steps {
        let kind = key.rsplit('/').next().unwrap_or(key);
        let ended = instant(&record["endedAt"])? - ordered;
        let last = phases.entry(format!("phase {kind}")).or_insert(0.0_f64);
        *last = last.max(ended);
    }
    Ok(phases)
}

/// Seconds since the Unix epoch of an RFC 3339 time, by `date`.
fn instant(value: &Value) -> Result<f64> {
    let text = value.as_str().context("a time")?;
    let seconds = capture(crate::shell::command("date").args(["-d", text, "+%s.%N"]))?;
    Ok(seconds.trim().parse()?)
}
