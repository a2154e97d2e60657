//! Clusters on virtual time: who fetches from whom, with peers that fail and lie.

use std::collections::BinaryHeap;

use proptest::prelude::*;
use windlass_common::id::{DirectorId, Incarnation, MachineName};

use super::*;

const BYTES: u64 = 64 << 20;

fn machine(cluster: &str, number: usize) -> MachineIdentity {
    MachineIdentity {
        director: DirectorId::new("d1").unwrap(),
        cluster: ClusterName::new(cluster).unwrap(),
        machine: MachineName::new(format!("{cluster}-w-{number}")).unwrap(),
        incarnation: Incarnation(1),
    }
}

fn artifact() -> Digest {
    Digest::of(b"artifact")
}

fn ask<'a>(who: &'a MachineIdentity, failed: &'a [PeerFailure]) -> Ask<'a> {
    Ask {
        who,
        session: 1,
        digest: artifact(),
        bytes: BYTES,
        failed,
    }
}

fn failure(peer: &MachineIdentity, fault: PeerFault) -> PeerFailure {
    PeerFailure {
        machine: peer.machine.clone(),
        incarnation: peer.incarnation,
        fault,
    }
}

/// How a machine behaves as a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    Honest,
    Gone,
    Breaks,
    Lies,
}

/// What a whole cluster did.
#[derive(Debug, Default)]
struct Told {
    from_director: usize,
    took: Duration,
    uploads_most: usize,
    liars_offered: BTreeMap<MachineIdentity, usize>,
}

/// Every machine of a cluster fetches the artifact at once. A copy from the director takes two seconds,
/// one from a peer a second.
fn rollout(tempers: &[Temper], mut seed: u64) -> Told {
    let mut swarm = Swarm::default();
    let mut told = Told::default();
    let mut failed: Vec<Vec<PeerFailure>> = vec![Vec::new(); tempers.len()];
    let mut done = vec![false; tempers.len()];
    // Earliest first; what is due: ask, or be done with a copy.
    let mut due: BinaryHeap<std::cmp::Reverse<(Duration, usize, bool)>> = (0..tempers.len())
        .map(|number| std::cmp::Reverse((Duration::ZERO, number, false)))
        .collect();
    while let Some(std::cmp::Reverse((now, number, copied))) = due.pop() {
        assert!(now < Duration::from_secs(3600), "somebody waits for ever");
        let who = machine("demo", number);
        if copied {
            swarm.hold(&who, 1, 7445, [artifact()]);
            done[number] = true;
            told.took = now;
            continue;
        }
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (decision, _) = swarm.ask(&ask(&who, &failed[number]), seed >> 16, now);
        let (after, copied) = match decision {
            Decision::Wait(wait) => (wait, false),
            Decision::Serve => {
                told.from_director += 1;
                (Duration::from_secs(2), true)
            }
            Decision::Peer(peer, port) => {
                assert_eq!(port, 7445);
                assert_ne!(peer, who);
                told.uploads_most = told.uploads_most.max(swarm.uploads[&peer]);
                let index = (0..tempers.len())
                    .find(|&index| machine("demo", index) == peer)
                    .unwrap();
                assert!(done[index], "{peer} does not have it");
                let fault = match tempers[index] {
                    Temper::Honest => None,
                    Temper::Gone => Some(PeerFault::Unreachable),
                    Temper::Breaks => Some(PeerFault::Broke),
                    Temper::Lies => {
                        *told.liars_offered.entry(peer.clone()).or_default() += 1;
                        Some(PeerFault::Lied)
                    }
                };
                failed[number].extend(fault.map(|fault| failure(&peer, fault)));
                (Duration::from_secs(1), fault.is_none())
            }
        };
        due.push(std::cmp::Reverse((now + after, number, copied)));
    }
    assert!(done.iter().all(|&done| done));
    assert!(swarm.uploads.is_empty() && swarm.fetching.is_empty());
    told
}

#[test]
fn a_thousand_machines_cost_the_director_two_copies() {
    let told = rollout(&[Temper::Honest; 1000], 7);
    assert_eq!(told.from_director, ARTIFACT_SEEDS);
    assert!(told.uploads_most <= PEER_UPLOADS_MAX);
    // Six rounds of a second, the director's two, and waiting in between.
    assert!(told.took < Duration::from_secs(15), "{:?}", told.took);
}

#[test]
fn a_few_bad_machines_cost_a_few_copies_more() {
    let mut tempers = vec![Temper::Honest; 1000];
    for (at, temper) in [(3, Temper::Gone), (5, Temper::Lies), (7, Temper::Breaks)] {
        for index in (at..1000).step_by(100) {
            tempers[index] = temper;
        }
    }
    let told = rollout(&tempers, 11);
    // 30 bad machines, each of which up to three others met before it was known.
    assert!(told.from_director <= 2 + 30 * 3, "{told:?}");
    for (liar, times) in told.liars_offered {
        assert!(
            times <= PEER_UPLOADS_MAX,
            "{liar} was offered {times} times"
        );
    }
}

#[test]
fn a_cluster_whose_machines_cannot_reach_one_another_is_served_from_here() {
    let told = rollout(&[Temper::Gone; 40], 3);
    assert!(told.from_director >= 30, "{told:?}");
}

proptest! {
    #[test]
    fn everybody_gets_it_whatever_the_peers_do(
        tempers in proptest::collection::vec(
            prop_oneof![
                4 => Just(Temper::Honest),
                1 => Just(Temper::Gone),
                1 => Just(Temper::Breaks),
                1 => Just(Temper::Lies),
            ],
            1..60,
        ),
        seed: u64,
    ) {
        let told = rollout(&tempers, seed);
        prop_assert!(told.uploads_most <= PEER_UPLOADS_MAX);
        prop_assert!(told.from_director >= ARTIFACT_SEEDS.min(tempers.len()));
        prop_assert!(told.liars_offered.values().all(|&times| times <= PEER_UPLOADS_MAX));
    }
}

fn offered(decision: &Decision) -> Option<&MachineIdentity> {
    match decision {
        Decision::Peer(peer, _) => Some(peer),
        Decision::Serve | Decision::Wait(_) => None,
    }
}

#[test]
fn another_cluster_and_an_older_session_do_not_count() {
    let mut swarm = Swarm::default();
    let (mine, other) = (machine("demo", 0), machine("other", 0));
    swarm.hold(&other, 1, 7445, [artifact()]);
    let (decision, _) = swarm.ask(&ask(&mine, &[]), 0, Duration::ZERO);
    assert_eq!(decision, Decision::Serve);
    // A newer session said what it has before the older one's end was noticed.
    let peer = machine("demo", 1);
    swarm.hold(&peer, 1, 7000, [artifact()]);
    swarm.hold(&peer, 2, 7445, [artifact()]);
    swarm.gone(&peer, 1);
    let (decision, _) = swarm.ask(&ask(&mine, &[]), 0, Duration::ZERO);
    assert_eq!(decision, Decision::Peer(peer.clone(), 7445));
    swarm.gone(&mine, 1);
    swarm.gone(&peer, 2);
    assert_eq!(swarm.copies.len(), 1);
    swarm.gone(&other, 1);
    assert!(swarm.copies.is_empty() && swarm.uploads.is_empty() && swarm.fetching.is_empty());
}

#[test]
fn only_what_was_offered_can_be_accused() {
    let mut swarm = Swarm::default();
    let (honest, accuser, third) = (machine("demo", 0), machine("demo", 1), machine("demo", 2));
    swarm.hold(&honest, 1, 7445, [artifact()]);
    // It never was the accuser's peer.
    let accusation = [failure(&honest, PeerFault::Lied)];
    let (decision, shunned) = swarm.ask(&ask(&accuser, &accusation), 0, Duration::ZERO);
    assert_eq!((decision, shunned), (Decision::Serve, Vec::new()));
    let (decision, _) = swarm.ask(&ask(&third, &[]), 0, Duration::ZERO);
    assert_eq!(offered(&decision), Some(&honest));
    let (_, shunned) = swarm.ask(&ask(&third, &accusation), 0, Duration::ZERO);
    assert_eq!(shunned, [(honest.clone(), PeerFault::Lied)]);
    // For ever, and said once.
    let later = Duration::from_secs(1_000_000);
    swarm.hold(&honest, 2, 7445, [artifact()]);
    let (decision, shunned) = swarm.ask(&ask(&accuser, &[]), 0, later);
    assert_eq!((decision, shunned), (Decision::Serve, Vec::new()));
}

#[test]
fn a_peer_that_was_gone_is_tried_again_later() {
    let mut swarm = Swarm::default();
    let (peer, mine) = (machine("demo", 0), machine("demo", 1));
    swarm.hold(&peer, 1, 7445, [artifact()]);
    let gone = [failure(&peer, PeerFault::Unreachable)];
    let at = |s| Duration::from_secs(s);
    assert_eq!(
        offered(&swarm.ask(&ask(&mine, &[]), 0, at(0)).0),
        Some(&peer)
    );
    assert_eq!(swarm.ask(&ask(&mine, &gone), 0, at(1)).0, Decision::Serve);
    let (second, third) = (machine("demo", 2), machine("demo", 3));
    assert_eq!(swarm.ask(&ask(&second, &[]), 0, at(2)).0, Decision::Serve);
    let (decision, _) = swarm.ask(&ask(&third, &[]), 0, at(2));
    assert_eq!(decision, Decision::Wait(Duration::from_millis(320)));
    let (decision, _) = swarm.ask(&ask(&third, &[]), 0, at(62));
    assert_eq!(offered(&decision), Some(&peer));
}

#[test]
fn a_transfer_that_stalls_keeps_nobody_waiting_for_ever() {
    let mut swarm = Swarm::default();
    for number in 0..ARTIFACT_SEEDS {
        let who = machine("demo", number);
        let (decision, _) = swarm.ask(&ask(&who, &[]), 0, Duration::ZERO);
        assert_eq!(decision, Decision::Serve);
    }
    let who = machine("demo", 9);
    let (decision, _) = swarm.ask(&ask(&who, &[]), 0, Duration::from_secs(60));
    assert!(matches!(decision, Decision::Wait(_)));
    // 64 MiB at 1 MiB/s, and the grace.
    let (decision, _) = swarm.ask(&ask(&who, &[]), 0, Duration::from_secs(94));
    assert_eq!(decision, Decision::Serve);
}

#[test]
fn a_copy_that_was_sent_counts_until_it_is_verified_or_given_up() {
    let mut swarm = Swarm::default();
    let machines: Vec<_> = (0..4).map(|number| machine("demo", number)).collect();
    for who in &machines[..ARTIFACT_SEEDS] {
        swarm.ask(&ask(who, &[]), 0, Duration::ZERO);
        swarm.sent(&ask(who, &[]), true, Duration::ZERO);
    }
    let third = ask(&machines[2], &[]);
    assert!(matches!(
        swarm.ask(&third, 0, Duration::from_secs(1)).0,
        Decision::Wait(_)
    ));
    swarm.sent(&ask(&machines[0], &[]), false, Duration::from_secs(1));
    assert_eq!(
        swarm.ask(&third, 0, Duration::from_secs(1)).0,
        Decision::Serve
    );
}
