//! Which legs lead from one minor to another.

use super::*;
use crate::model::{Leg, StemcellRecord, WayBack};
use crate::planner::legs::{MissingMinors, Start, legs, way_back};

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
        inside: Default::default(),
    }
}

/// What runs, and what is emulated.
struct From<'a> {
    servers: &'a str,
    newest: u32,
    emulates: Option<u32>,
    kubelets: u32,
    /// What the newest of the control plane is made from, and whether all of it is.
    made: Option<(&'a StemcellRecord, bool)>,
}

fn way(
    from: &From<'_>,
    target: &StemcellRecord,
    known: &[StemcellRecord],
) -> Result<Vec<String>, MissingMinors> {
    let start = Start {
        servers: from.servers,
        newest: from.newest,
        emulates: from.emulates,
        kubelets: from.kubelets,
        stemcell: from.made.map(|(stemcell, _)| stemcell),
        made: from.made.is_some_and(|(_, all)| all),
    };
    let legs = legs(start, target, known)?;
    let told = |leg: Leg| {
        let emulates = leg
            .emulates
            .map_or(String::new(), |minor| format!(" as 1.{minor}"));
        let workers = if leg.workers { " with workers" } else { "" };
        format!("{}{emulates}{workers}", leg.stemcell)
    };
    Ok(legs.into_iter().map(told).collect())
}

#[test]
fn each_minor_emulates_the_one_before_until_workers_come_and_they_stay_as_long_as_they_may() {
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
        (&'static str, u32, Option<u32>, u32),
        Option<(usize, bool)>,
        usize,
        &'static [&'static str],
    );
    #[rustfmt::skip]
    let cases: [Case; 15] = [
        // what, (oldest API server, newest, what they emulate, kubelets), made from now, target, legs
        ("a patch",        ("1.36.0", 36, None, 36),     None, 0, &["s-1.36.3-1 with workers"]),
        ("the next minor", ("1.36.3", 36, None, 36),     None, 3, &["s-1.37.10-3 as 1.36", "s-1.37.10-3 with workers"]),
        ("two minors, through the newest patch and build",
                           ("1.36.3", 36, None, 36),     None, 4, &["s-1.37.10-3 as 1.36", "s-1.38.0-4 as 1.37", "s-1.38.0-4 with workers"]),
        ("three minors",   ("1.36.3", 36, None, 36),     None, 5, &["s-1.37.10-3 as 1.36", "s-1.38.0-4 as 1.37", "s-1.39.1-5 as 1.38", "s-1.39.1-5 with workers"]),
        ("four: workers would be too old for the last",
                           ("1.36.3", 36, None, 36),     None, 6, &["s-1.37.10-3 as 1.36", "s-1.38.0-4 as 1.37", "s-1.39.1-5 as 1.38", "s-1.39.1-5 with workers",
                                                                    "s-1.40.2-6 as 1.39", "s-1.40.2-6 with workers"]),
        ("workers that are behind already",
                           ("1.37.9", 37, None, 35),     None, 5, &["s-1.38.0-4 as 1.37", "s-1.38.0-4 with workers", "s-1.39.1-5 as 1.38", "s-1.39.1-5 with workers"]),
        ("cut off in the middle of the first",
                           ("1.36.3", 37, Some(36), 36), Some((1, false)), 4, &["s-1.37.9-2 as 1.36", "s-1.38.0-4 as 1.37", "s-1.38.0-4 with workers"]),
        ("cut off before the raise",
                           ("1.37.9", 37, Some(36), 36), Some((1, true)), 1, &["s-1.37.9-2 with workers"]),
        ("cut off before the raise, and another stemcell now",
                           ("1.37.9", 37, Some(36), 36), Some((1, true)), 3, &["s-1.37.10-3 as 1.36", "s-1.37.10-3 with workers"]),
        ("cut off before the next minor's",
                           ("1.37.9", 37, Some(36), 36), Some((1, true)), 4, &["s-1.38.0-4 as 1.37", "s-1.38.0-4 with workers"]),
        ("cut off in the middle of the second",
                           ("1.37.9", 38, Some(37), 36), Some((4, false)), 4, &["s-1.38.0-4 as 1.37", "s-1.38.0-4 with workers"]),
        ("cut off in the raise",
                           ("1.37.9", 37, None, 36),     Some((1, true)), 1, &["s-1.37.9-2 with workers"]),
        ("one that is newer already and emulates nothing",
                           ("1.36.3", 37, None, 36),     Some((1, false)), 1, &["s-1.37.9-2 with workers"]),
        ("the same, and further",
                           ("1.36.3", 37, None, 36),     Some((1, false)), 4, &["s-1.37.9-2", "s-1.38.0-4 as 1.37", "s-1.38.0-4 with workers"]),
        ("back to what is emulated",
                           ("1.37.9", 37, Some(36), 36), Some((1, true)), 0, &["s-1.36.3-1 as 1.36 with workers"]),
    ];
    for (what, (servers, newest, emulates, kubelets), made, target, wanted) in cases {
        let from = From {
            servers,
            newest,
            emulates,
            kubelets,
            made: made.map(|(at, all)| (&known[at], all)),
        };
        let found = way(&from, &known[target], &known).unwrap();
        assert_eq!(found, wanted, "{what}");
    }
}

#[test]
fn a_minor_without_a_stemcell_is_named_with_what_to_do() {
    let known = [stemcell("1.36.3", 1), stemcell("1.39.0", 1)];
    let from = From {
        servers: "1.36.3",
        newest: 36,
        emulates: None,
        kubelets: 36,
        made: None,
    };
    let error = way(&from, &known[1], &known).unwrap_err();
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

#[test]
fn whether_there_is_a_way_back_is_known_beforehand() {
    let with = |kubernetes: &str, etcd: &str| {
        let mut stemcell = stemcell(kubernetes, 1);
        stemcell.components.insert("etcd".into(), etcd.into());
        stemcell
    };
    let leg = |emulates| Leg {
        kubernetes_version: "1.37.2".into(),
        stemcell: "s-1.37.2-1".into(),
        workers: false,
        emulates,
    };
    let open = |version: &str| {
        Some(WayBack::Open {
            kubernetes_version: version.into(),
        })
    };
    let known = |etcd: &str| {
        [
            with("1.36.3", "3.6.16"),
            with("1.36.9", "3.6.17"),
            with("1.37.2", etcd),
        ]
    };
    assert_eq!(way_back(&leg(None), "1.36.3", &known("3.6.16")), None);
    // What ran, and not the newest of its minor; patches of etcd read one another's data.
    assert_eq!(
        way_back(&leg(Some(36)), "1.36.3", &known("3.6.18")),
        open("1.36.3")
    );
    assert_eq!(
        way_back(&leg(Some(36)), "1.36.0", &known("3.6.16")),
        open("1.36.9")
    );
    let closed = |known: &[StemcellRecord]| match way_back(&leg(Some(36)), "1.36.3", known) {
        Some(WayBack::Closed { why }) => why,
        other => panic!("{other:?}"),
    };
    let why = closed(&known("3.7.0"));
    assert_eq!(why, "etcd 3.6.16 does not read what etcd 3.7.0 has written");
    let why = closed(&known("3.6.16")[2..]);
    assert_eq!(why, "no stemcell of Kubernetes 1.36.x is known");
}
