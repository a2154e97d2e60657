//! The simulation itself: it is the same twice, and finds nothing. That it finds what is broken on purpose is
//! checked by `cargo xtask sim --mutate`.

use super::*;

#[test]
fn some_seeds_break_nothing_and_are_the_same_twice() {
    let fixtures = Fixtures::new().unwrap();
    for seed in 0..3 {
        let report = run(seed, None, spreads(seed), false, &fixtures).unwrap();
        let trace = report.trace.join("\n");
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {:#?}\n{trace}",
            report.violations
        );
        assert_eq!(report.lacks(), None, "seed {seed}");
        let again = run(seed, None, spreads(seed), false, &fixtures).unwrap();
        assert_eq!(report.digest, again.digest, "seed {seed}");
    }
}

/// Seeds that have broken invariants.
#[test]
fn seeds_that_have_found_something_find_nothing_more() {
    let fixtures = Fixtures::new().unwrap();
    for seed in [190, 222, 3_045] {
        let report = run(seed, None, true, false, &fixtures).unwrap();
        let trace = report.trace.join("\n");
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {:#?}\n{trace}",
            report.violations
        );
    }
}

#[test]
fn a_seed_that_is_too_small_is_told_from_one_that_broke_something() {
    let report = |machines, simulated_ms, in_rollout, violations: &[&str]| Report {
        seed: 0,
        violations: violations.iter().map(ToString::to_string).collect(),
        trace: Vec::new(),
        digest: 0,
        coverage: Coverage::default(),
        faults: (9, in_rollout),
        simulated_ms,
        machines,
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("all that it has to have",  report(6, 1_800_000, 3, &[]),                false),
        ("too few machines",         report(5, 1_800_000, 3, &[]),                true),
        ("too little time",          report(6, 1_799_999, 3, &[]),                true),
        ("too few faults",           report(6, 1_800_000, 2, &[]),                true),
        ("it ended at a violation",  report(5, 1, 0, &["invariant 1: broken"]),   false),
    ];
    for (name, report, lacks) in cases {
        assert_eq!(
            report.lacks().is_some(),
            lacks,
            "{name}: {:?}",
            report.lacks()
        );
    }
}
