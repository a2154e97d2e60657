//! What has been struck, and where: step kind × fault × point.

use std::collections::BTreeMap;
use std::fmt;

/// A fault that the simulation causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The director dies.
    DirectorDies,
    /// The store refuses to write for a while.
    StoreRefuses,
    /// The provider fails before it has done anything.
    ProviderFails,
    /// The provider does what it was asked, and its answer is lost.
    ProviderAnswerLost,
    /// The provider takes minutes.
    ProviderSlow,
    /// The provider makes half a machine.
    HalfMade,
    /// A request to an agent is lost with its link.
    RequestLost,
    /// An agent's answer is lost with its link.
    AnswerLost,
    /// A request arrives twice, the second time late.
    Duplicated,
    /// A request arrives late, after others that were sent later.
    Delayed,
    /// The agent is killed.
    AgentDies,
    /// The machine loses power and starts again after a while.
    MachineDies,
    /// The machine stands still for a while, as a paused VM does.
    MachineFrozen,
    /// A step fails on its machine.
    StepFails,
    /// A step takes longer than its deadline.
    StepSlow,
    /// The cluster's API refuses everything for a while.
    ApiRefuses,
    /// The API does what it was asked, and its answer is lost.
    ApiAnswerLost,
    /// Budgets let no pod go for a while.
    PodsHeld,
    /// All clocks jump minutes ahead.
    ClockJumps,
}

/// Where in a step it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before it is written down that the step begins.
    BeforeIntent,
    /// After that.
    AfterIntent,
    /// Before an effect.
    BeforeEffect,
    /// After an effect.
    AfterEffect,
    /// Before it is written down that the step is over.
    BeforeEnd,
    /// After that.
    AfterEnd,
}

impl Point {
    const ALL: [Point; 6] = [
        Point::BeforeIntent,
        Point::AfterIntent,
        Point::BeforeEffect,
        Point::AfterEffect,
        Point::BeforeEnd,
        Point::AfterEnd,
    ];
}

/// Steps that ask the provider.
const PROVIDER: [&str; 10] = [
    "ensure-endpoint",
    "create-disk",
    "create-machine",
    "attach-disk",
    "fence",
    "delete-machine",
    "delete-disk",
    "delete-endpoint",
    "leave-endpoint",
    "join-endpoint",
];
/// Steps that an agent carries out.
const AGENT: [&str; 7] = [
    "mount-disk",
    "configure",
    "start-components",
    "stop-components",
    "await-control-plane",
    "add-routes",
    "prune-routes",
];
/// Steps that ask the cluster's API.
const API: [&str; 6] = [
    "apply-addons",
    "await-node",
    "drop-node",
    "await-api",
    "drain",
    "uncordon",
];
/// Steps that only change records.
const RECORDS: [&str; 3] = ["checkpoint", "forget-machine", "forget-cluster"];

/// Whether a step is in few plans, or once in one: each of its points is met seldom.
pub fn is_rare(step: &str) -> bool {
    matches!(
        step,
        "exec"
            | "fence"
            | "delete-disk"
            | "delete-endpoint"
            | "delete-machine"
            | "drain"
            | "drop-node"
            | "ensure-endpoint"
            | "apply-addons"
            | "await-api"
            | "uncordon"
            | "leave-endpoint"
            | "join-endpoint"
            | "stop-components"
            | "attach-disk"
            | "create-disk"
            | "mount-disk"
            | "prune-routes"
            | "checkpoint"
            | "forget-machine"
            | "forget-cluster"
    )
}

/// How often each cell was struck.
#[derive(Debug, Clone, Default)]
pub struct Coverage(BTreeMap<(&'static str, Fault, Point), u64>);

impl Coverage {
    /// Counts one strike.
    pub fn note(&mut self, step: &'static str, fault: Fault, point: Point) {
        *self.0.entry((step, fault, point)).or_default() += 1;
    }

    /// Adds what another seed has struck.
    pub fn add(&mut self, other: &Coverage) {
        for (cell, count) in &other.0 {
            *self.0.entry(*cell).or_default() += count;
        }
    }

    /// Every cell that can be struck.
    pub fn reachable() -> Vec<(&'static str, Fault, Point)> {
        use Fault as F;
        use Point::{AfterEffect, BeforeEffect, BeforeEnd, BeforeIntent};
        let mut cells = Vec::new();
        let mut add = |steps: &[&'static str], faults: &[Fault], points: &[Point]| {
            for step in steps {
                for fault in faults {
                    cells.extend(points.iter().map(|point| (*step, *fault, *point)));
                }
            }
        };
        let acting: Vec<&str> = [&PROVIDER[..], &AGENT, &API].concat();
        add(&acting, &[F::DirectorDies], &Point::ALL);
        add(&["await-agent"], &[F::DirectorDies], &Point::ALL);
        let written = [BeforeIntent, Point::AfterIntent, BeforeEnd, Point::AfterEnd];
        add(&RECORDS, &[F::DirectorDies], &written);
        let steps: Vec<&str> = [&acting[..], &RECORDS, &["await-agent"]].concat();
        add(&steps, &[F::StoreRefuses], &[BeforeIntent, BeforeEnd]);
        let before = [F::ProviderFails, F::ProviderSlow, F::ClockJumps];
        add(&PROVIDER, &before, &[BeforeEffect]);
        add(&PROVIDER, &[F::ProviderAnswerLost], &[AfterEffect]);
        add(&["create-machine"], &[F::HalfMade], &[BeforeEffect]);
        let sent = [F::RequestLost, F::Duplicated, F::Delayed];
        add(&AGENT, &sent, &[BeforeEffect]);
        add(&AGENT, &[F::AnswerLost], &[AfterEffect]);
        let dies = [F::AgentDies, F::MachineDies, F::MachineFrozen];
        add(&AGENT, &dies, &[BeforeEffect, AfterEffect]);
        add(&AGENT, &[F::StepFails, F::StepSlow], &[BeforeEffect]);
        add(&API, &[F::ApiRefuses, F::MachineDies], &[BeforeEffect]);
        add(&API, &[F::ApiAnswerLost], &[AfterEffect]);
        add(&["drain"], &[F::PodsHeld], &[BeforeEffect]);
        cells
    }

    /// Cells that can be struck and were not.
    pub fn missing(&self) -> Vec<(&'static str, Fault, Point)> {
        let mut missing = Self::reachable();
        missing.retain(|cell| !self.0.contains_key(cell));
        missing
    }
}

/// A table: a row for each step kind and point, a column for each fault.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<(&str, Point), BTreeMap<Fault, u64>> = BTreeMap::new();
        for (step, fault, point) in Self::reachable() {
            rows.entry((step, point)).or_default().insert(fault, 0);
        }
        for ((step, fault, point), count) in &self.0 {
            *rows
                .entry((step, *point))
                .or_default()
                .entry(*fault)
                .or_default() += count;
        }
        for ((step, point), faults) in rows {
            write!(f, "{step:<20} {:<13}", format!("{point:?}"))?;
            for (fault, count) in faults {
                write!(f, " {fault:?} {count};")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
