//! `cargo xtask bench`: what things cost, beside a reference measured in the same run.
//!
//! Nothing here asserts a speed: a goal that is missed is printed as missed.

mod agent;
mod create;
mod director;
mod fleet;
mod floor;
mod plan;
mod repair;
mod upgrade;

use anyhow::Result;
use serde::Serialize;

use crate::build::Profile;

pub(crate) use fleet::run as fleet;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Runs of which the median is taken.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,
    /// Options of `windlass-director bench fleet`, for `fleet`.
    #[arg(last = true, value_name = "OPTIONS")]
    fleet: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Creating a cluster of 1 + 2 machines, by phase, beside the floor: the same processes with the
    /// same configuration started by hand, with everything prepared.
    Create,
    /// Size, memory and idle CPU time of the agent.
    Agent,
    /// From the death of a machine to its replacement being Ready, by moment, beside what a fresh machine
    /// takes to boot and join.
    Repair,
    /// What an upgrade takes of each worker, by part, beside the same done by hand; as many workers as there are runs.
    Upgrade,
    /// What planning costs: 10 000 machines in 100 clusters, and one cluster again beside 1, 10 and 100.
    Plan,
    /// What a fleet of agents costs its director: `windlass-director bench fleet`, built and run with
    /// the options after `--`, such as `-- --agents 10000`.
    Fleet,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let report = match options.what {
        What::Create => create::run(options.runs)?,
        What::Agent => agent::run()?,
        What::Repair => repair::run(options.runs)?,
        What::Upgrade => upgrade::run(options.runs)?,
        What::Plan => plan::run(Profile::Release, options.runs)?,
        What::Fleet => return fleet::run(Profile::Release, options.json, &options.fleet),
    };
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

/// The result of a benchmark.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    metrics: Vec<Metric>,
    /// How it was measured, for people.
    #[serde(skip)]
    notes: Vec<String>,
}

/// One figure.
#[derive(Debug, Default, Serialize)]
struct Metric {
    name: String,
    unit: &'static str,
    value: f64,
    /// Measured in the same run.
    reference: Option<f64>,
    /// Value over reference.
    ratio: Option<f64>,
    /// Upper bound of the ratio where there is one, else of the value.
    goal: Option<f64>,
    met: Option<bool>,
}

impl Metric {
    fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Metric {
        Metric {
            name: name.into(),
            unit,
            value,
            ..Metric::default()
        }
    }

    fn against(mut self, reference: f64) -> Metric {
        self.reference = Some(reference);
        self.ratio = Some(self.value / reference);
        self
    }

    fn goal(mut self, goal: f64) -> Metric {
        self.goal = Some(goal);
        self.met = Some(self.ratio.unwrap_or(self.value) <= goal);
        self
    }
}

impl Report {
    fn print(&self) {
        println!("\nbench {}", self.bench);
        println!(
            "{:<34} {:>10} {:<6} {:>10} {:>7} {:>7}",
            "metric", "value", "unit", "reference", "ratio", "goal"
        );
        for metric in &self.metrics {
            let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.2}"));
            let met = match metric.met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            println!(
                "{:<34} {:>10.2} {:<6} {:>10} {:>7} {:>7} {met}",
                metric.name,
                metric.value,
                metric.unit,
                number(metric.reference),
                number(metric.ratio),
                number(metric.goal),
            );
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }
}

/// The middle of some figures; of an even number the lower middle.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures
        .get((figures.len().saturating_sub(1)) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}
