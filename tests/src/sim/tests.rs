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
        assert!(report.faults.1 >= 3, "seed {seed}: {:?}", report.faults);
        assert!(report.simulated_ms >= 1_800_000, "seed {seed}");
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
