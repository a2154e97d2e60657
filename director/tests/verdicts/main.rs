//! The resurrector's judgement in many small worlds with simulated time: machines die, hang, stall together, lose
//! their agents or their networks; packets are lost, clocks are set forward and back; the provider and the director
//! have their own troubles, replacements die of one cause, operators hold machines or have them ignored. Whatever
//! happens, no invariant is broken ([`invariants`]), and in the end everything that died was repaired.
//!
//! `cargo xtask sim --verdicts` runs more of them; `WINDLASS_SIM_SEEDS`, `WINDLASS_SIM_FROM` and `WINDLASS_SIM_TRACE`
//! are its arguments.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test: what is wrong ends it"
)]

mod director;
mod invariants;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use invariants::Guard;
use world::{Sum, World};

/// Worlds of a test that is not told how many; each from its own seed.
const SEEDS: u64 = 1_000;
/// Worlds in which a broken guard has to be noticed.
const GUARD_SEEDS: u64 = 400;
/// Violations that are shown with what led to them.
const SHOWN: u64 = 3;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

#[test]
fn nothing_that_lives_is_replaced_and_everything_that_died_is_repaired() {
    let seeds = number("WINDLASS_SIM_SEEDS").unwrap_or(SEEDS);
    let from = number("WINDLASS_SIM_FROM").unwrap_or(0);
    let traced = std::env::var_os("WINDLASS_SIM_TRACE").is_some();
    let (next, violations) = (AtomicU64::new(from), AtomicU64::new(0));
    let share = || {
        let mut sum = Sum::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return sum;
            }
            let mut world = World::new(seed, None, traced);
            let played = world.play();
            sum += world.sum;
            if let Err(violation) = played {
                let so_far = violations.fetch_add(1, Ordering::Relaxed);
                if so_far < SHOWN && !traced {
                    world = World::new(seed, None, true);
                    assert_eq!(world.play().as_ref(), Err(&violation), "it does not replay");
                }
                tell(seed, &world, &violation);
            } else if traced {
                println!("{}", world.trace.join("\n"));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sum = std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        let mut sum = Sum::default();
        for share in shares {
            sum += share.join().unwrap();
        }
        sum
    });
    let violations = violations.into_inner();
    println!("{sum}");
    println!("{seeds} seeds, {violations} violations");
    assert_eq!(violations, 0);
    // A simulation in which nothing happens proves nothing, nor does one in which operators do the work.
    if seeds >= SEEDS {
        assert!(
            sum.replaced > seeds / 2 && sum.mended < sum.replaced,
            "{sum}"
        );
        assert!(sum.all_occur(), "something never happened: {sum}");
    }
}

fn tell(seed: u64, world: &World, violation: &str) {
    println!("\nseed {seed}:\n    {}", world.trace.join("\n    "));
    println!("  {violation}");
    println!("  replay: cargo xtask sim --verdicts --from {seed} --seeds 1 --trace");
}

#[test]
fn each_guard_that_is_broken_is_noticed() {
    for guard in Guard::ALL {
        let mark = guard.breaks();
        let noticed = (0..GUARD_SEEDS).find_map(|seed| {
            let said = World::new(seed, Some(guard), false).play().err()?;
            said.contains(mark).then_some((seed, said))
        });
        let (seed, said) = noticed.unwrap_or_else(|| panic!("{guard:?} is not missed"));
        println!("{guard:?} noticed by seed {seed}: {said}");
    }
}
