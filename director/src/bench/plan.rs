//! `windlass-director bench plan`: what planning costs, with many clusters and after one report.
//!
//! No store, no provider, no agents: planner and checker on what they are given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::json;
use windlass_common::id::{
    ClusterName, Digest, DiskName, Incarnation, MachineName, NameError, PoolName,
};

use crate::plan::check;
use crate::planner::{
    Budget, Desired, DesiredMachine, DesiredState, Observed, ObservedDisk, ObservedMachine, plan,
};

/// Control-plane machines of a cluster; the others are workers of one pool.
const MEMBERS: u32 = 3;

/// Options of `bench plan`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Options {
    /// Clusters
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clusters: u32,
    /// Machines of each cluster
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(4..=250))]
    machines: u32,
    /// How often each figure is taken; the median counts
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print a table instead of one JSON object
    #[arg(long)]
    pub(super) table: bool,
}

/// What planning costs.
#[derive(Debug)]
pub(super) struct Report {
    clusters: u32,
    machines: u32,
    steps: usize,
    /// Nothing is to be done, in any cluster.
    settled: Duration,
    /// Every machine of every cluster is to be made.
    create: Duration,
    /// Every machine of every cluster is to be another incarnation.
    upgrade: Duration,
    /// One machine of one cluster is no more as it was: that cluster is planned again.
    again: Duration,
    /// The checker looks at every plan of the upgrade.
    checked: Duration,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanBenchError {
    /// A name is none.
    #[error("the bench made a name that is none")]
    Name(#[from] NameError),
    /// There is no plan.
    #[error("the planner has no plan for a cluster of the bench")]
    Plan(#[from] crate::planner::PlanError),
    /// The plan breaks an invariant.
    #[error("the checker refuses a plan of the bench: {0}")]
    Check(String),
}

struct Case {
    fresh: Observed,
    settled: Observed,
    desired: Desired,
    upgrade: Desired,
}

/// Measures.
pub(super) fn run(options: &Options) -> Result<Report, PlanBenchError> {
    let cases = (0..options.clusters)
        .map(|number| case(number, options.machines))
        .collect::<Result<Vec<_>, _>>()?;
    let all = |of: fn(&Case) -> (&Desired, &Observed)| {
        median(options.runs, || {
            let mut steps = 0;
            for case in &cases {
                let (desired, observed) = of(case);
                steps += plan(desired, observed)?.steps.len();
            }
            Ok(steps)
        })
    };
    let (settled, _) = all(|case| (&case.desired, &case.settled))?;
    let (create, _) = all(|case| (&case.desired, &case.fresh))?;
    let (upgrade, steps) = all(|case| (&case.upgrade, &case.settled))?;
    let plans = cases
        .iter()
        .map(|case| plan(&case.upgrade, &case.settled))
        .collect::<Result<Vec<_>, _>>()?;
    let (checked, _) = median(options.runs, || {
        for (case, plan) in cases.iter().zip(&plans) {
            check(plan, &case.upgrade, &case.settled).map_err(|violations| {
                let text: Vec<_> = violations.iter().map(ToString::to_string).collect();
                PlanBenchError::Check(text.join("; "))
            })?;
        }
        Ok(0)
    })?;
    let mut changed = cases[0].settled.clone();
    if let Some(machine) = changed.machines.values_mut().last() {
        machine.started = None;
    }
    let (again, _) = median(options.runs, || {
        Ok(plan(&cases[0].desired, &changed)?.steps.len())
    })?;
    Ok(Report {
        clusters: options.clusters,
        machines: options.machines,
        steps,
        settled,
        create,
        upgrade,
        again,
        checked,
    })
}

fn median(
    runs: u32,
    work: impl Fn() -> Result<usize, PlanBenchError>,
) -> Result<(Duration, usize), PlanBenchError> {
    let mut taken = Vec::new();
    let mut count = 0;
    for _ in 0..runs {
        let began = Instant::now();
        count = work()?;
        taken.push(began.elapsed());
    }
    taken.sort();
    Ok((taken[taken.len() / 2], count))
}

fn case(number: u32, machines: u32) -> Result<Case, NameError> {
    let cluster = ClusterName::new(format!("c{number}"))?;
    let pool = PoolName::new("w")?;
    let digest = Digest::of(b"bench");
    let mut desired = BTreeMap::new();
    let mut settled = Observed {
        endpoint: true,
        endpoint_current: true,
        addons: Some(digest),
        records: true,
        ..Observed::default()
    };
    for at in 0..machines {
        let member = at < MEMBERS;
        let name = if member {
            MachineName::new(format!("{cluster}-cp-{at}"))?
        } else {
            MachineName::new(format!("{cluster}-w-{}", at - MEMBERS))?
        };
        let disk = member
            .then(|| DiskName::new(format!("{name}-data")))
            .transpose()?;
        let of_pool = (!member).then(|| pool.clone());
        let node = name.node_name(Incarnation::FIRST)?;
        if let Some(disk) = &disk {
            let attached_to = Some(name.clone());
            settled
                .disks
                .insert(disk.clone(), ObservedDisk { attached_to });
        }
        let found = ObservedMachine {
            pool: of_pool.clone(),
            incarnation: Incarnation::FIRST,
            node: node.clone(),
            kubernetes_version: "1.36.0".into(),
            emulates: None,
            complete: true,
            running: true,
            mounted: member,
            configured: Some(digest),
            started: Some(digest),
            stopping: false,
            ready: true,
            labelled: Some(digest),
            cordoned: false,
            fenced: false,
            kept_as: None,
        };
        settled.machines.insert(name.clone(), found);
        let wanted = DesiredMachine {
            pool: of_pool,
            incarnation: Incarnation::FIRST,
            node,
            stemcell: "bench".into(),
            kubernetes_version: "1.36.0".into(),
            emulates: None,
            disk,
            configuration: digest,
            components: digest,
            labels: digest,
            refit: None,
            because: None,
            reboot: None,
        };
        desired.insert(name, wanted);
    }
    let mut later = desired.clone();
    for (name, machine) in &mut later {
        machine.incarnation = Incarnation::FIRST.next();
        machine.node = name.node_name(machine.incarnation)?;
        machine.kubernetes_version = "1.37.0".into();
        machine.components = Digest::of(b"later");
        machine.configuration = Digest::of(b"later");
    }
    let budget = Budget {
        max_unavailable: 2,
        canaries: 1,
    };
    let present = |machines| Desired {
        cluster: cluster.clone(),
        state: DesiredState::Present {
            endpoint: ([10, 0, 0, 2].into(), 6443),
            machines,
            budgets: BTreeMap::from([(pool.clone(), budget)]),
            addons: digest,
            drain: Default::default(),
            gates: Vec::new(),
        },
    };
    let fresh = Observed {
        records: true,
        surplus: BTreeSet::new(),
        ..Observed::default()
    };
    Ok(Case {
        fresh,
        settled,
        desired: present(desired),
        upgrade: present(later),
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Report {
    /// As one JSON object, milliseconds.
    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({
            "clusters": self.clusters,
            "machinesEach": self.machines,
            "stepsOfUpgrade": self.steps,
            "settledMs": ms(self.settled),
            "createMs": ms(self.create),
            "upgradeMs": ms(self.upgrade),
            "oneClusterAgainMs": ms(self.again),
            "checkedMs": ms(self.checked),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.clusters * self.machines;
        writeln!(f, "{all} machines in {} clusters", self.clusters)?;
        let rows = [
            ("nothing to do", self.settled),
            ("create", self.create),
            ("upgrade", self.upgrade),
            ("one cluster again, after one report", self.again),
            ("upgrade, checked", self.checked),
        ];
        for (what, taken) in rows {
            writeln!(f, "{what:<38} {:>10.3} ms", ms(taken))?;
        }
        writeln!(f, "{:<38} {:>10}", "steps of the upgrade", self.steps)
    }
}
