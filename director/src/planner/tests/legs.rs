//! Which legs lead from one minor to another.

use super::*;
use crate::model::{Leg, StemcellRecord};
use crate::planner::legs::{MissingMinors, Start, legs};

/// A stemcell of this Kubernetes version that was built on this day.
fn stemcell(kubernetes: &str, day: u32) -> StemcellRecord {
    StemcellRecord {
        version: format!("s-{kubernetes}-{day}"),
        kubernetes_version: kubernetes.into(),
        built_at: format!("2030-01-0{day}T00:00:00Z"),
        components: Default::default(),
        images: Default::default(),
        digest: Digest::of(b"s"),
        agent: None,
        path: "/s".into(),
    }
}

fn way(
    servers: &str,
    kubelets: u32,
    current: Option<&StemcellRecord>,
    target: &StemcellRecord,
    known: &[StemcellRecord],
) -> Result<Vec<(String, bool)>, MissingMinors> {
    let start = Start {
        servers,
        kubelets,
        stemcell: current,
    };
    let legs = legs(start, target, known)?;
    let told = |leg: Leg| (leg.stemcell, leg.workers);
    Ok(legs.into_iter().map(told).collect())
}

#[test]
fn each_minor_is_a_leg_and_workers_stay_as_long_as_they_may() {
    let known = [
        stemcell("1.36.3", 1),
        stemcell("1.37.9", 2),
        stemcell("1.37.10", 1),
        stemcell("1.37.10", 3),
        stemcell("1.38.0", 4),
        stemcell("1.39.1", 5),
        stemcell("1.40.2", 6),
    ];
    type Case = (
        &'static str,
        &'static str,
        u32,
        Option<usize>,
        usize,
        &'static [(&'static str, bool)],
    );
    #[rustfmt::skip]
    let cases: [Case; 7] = [
        // what, API servers, kubelets, made from now, target, legs
        ("a patch",                  "1.36.0", 36, None,    0, &[("s-1.36.3-1", true)]),
        ("the next minor",           "1.36.3", 36, None,    3, &[("s-1.37.10-3", true)]),
        ("two minors, through the newest patch and build",
                                     "1.36.3", 36, None,    4, &[("s-1.37.10-3", false), ("s-1.38.0-4", true)]),
        ("three minors",             "1.36.3", 36, None,    5, &[("s-1.37.10-3", false), ("s-1.38.0-4", false), ("s-1.39.1-5", true)]),
        ("four: workers would be too old for the last",
                                     "1.36.3", 36, None,    6, &[("s-1.37.10-3", false), ("s-1.38.0-4", false), ("s-1.39.1-5", true), ("s-1.40.2-6", true)]),
        ("workers that are behind already",
                                     "1.37.9", 35, None,    5, &[("s-1.38.0-4", true), ("s-1.39.1-5", true)]),
        ("one that was cut off goes on with what it has",
                                     "1.36.3", 36, Some(1), 4, &[("s-1.37.9-2", false), ("s-1.38.0-4", true)]),
    ];
    for (what, servers, kubelets, current, target, wanted) in cases {
        let current = current.map(|at| &known[at]);
        let found = way(servers, kubelets, current, &known[target], &known).unwrap();
        let found: Vec<_> = found.iter().map(|(s, w)| (s.as_str(), *w)).collect();
        assert_eq!(found, wanted, "{what}");
    }
}

#[test]
fn a_minor_without_a_stemcell_is_named_with_what_to_do() {
    let known = [stemcell("1.36.3", 1), stemcell("1.39.0", 1)];
    let error = way("1.36.3", 36, None, &known[1], &known).unwrap_err();
    assert_eq!(error.missing, [37, 38]);
    let text = error.to_string();
    for part in [
        "Kubernetes 1.37.x and 1.38.x is known",
        "from 1.36.3 to 1.39.0",
        "windlass stemcell build --kubernetes 1.37.N`",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
