//! The table row by row, the ladder rung by rung, the guards one by one.

use std::collections::BTreeMap;

use windlass_common::id::{ClusterName, Incarnation, MachineName, PoolName};

use super::*;

const POWERS: [Power; 4] = [
    Power::Running,
    Power::Stopped,
    Power::Absent,
    Power::Unknown,
];
const PEERS: [Peers; 4] = [Peers::Agent, Peers::Kubelet, Peers::Nobody, Peers::Unknown];
const LEASES: [Lease; 2] = [Lease::Renewed, Lease::Unknown];
const WORKS: [Work; 3] = [Work::Well, Work::Impaired, Work::Strained];

#[test]
#[rustfmt::skip] // the table as a table
fn every_row_of_a_silent_machine() {
    use Verdict as V;
    // For each answer of the provider: the peers' four answers, with a Lease that was renewed and without.
    let rows = [
        (Power::Running, [
            (Peers::Agent,   V::Partitioned, V::Partitioned),
            (Peers::Kubelet, V::AgentLost,   V::AgentLost),
            (Peers::Nobody,  V::Partitioned, V::NodeHung),
            (Peers::Unknown, V::AgentLost,   V::Unknown),
        ]),
        (Power::Stopped, [
            (Peers::Agent,   V::Unknown,     V::Unknown),
            (Peers::Kubelet, V::MachineGone, V::MachineGone),
            (Peers::Nobody,  V::MachineGone, V::MachineGone),
            (Peers::Unknown, V::MachineGone, V::MachineGone),
        ]),
        (Power::Absent, [
            (Peers::Agent,   V::Unknown,     V::Unknown),
            (Peers::Kubelet, V::MachineGone, V::MachineGone),
            (Peers::Nobody,  V::MachineGone, V::MachineGone),
            (Peers::Unknown, V::MachineGone, V::MachineGone),
        ]),
        (Power::Unknown, [
            (Peers::Agent,   V::Partitioned, V::Partitioned),
            (Peers::Kubelet, V::AgentLost,   V::AgentLost),
            (Peers::Nobody,  V::Partitioned, V::Unknown),
            (Peers::Unknown, V::AgentLost,   V::Unknown),
        ]),
    ];
    let mut seen = 0;
    for (power, answers) in rows {
        for (peers, renewed, unknown) in answers {
            for (lease, wanted) in [(Lease::Renewed, renewed), (Lease::Unknown, unknown)] {
                for work in WORKS {
                    let evidence = Evidence { link: Link::Silent, peers, lease, power, work };
                    assert_eq!(verdict(&evidence), wanted, "{evidence:?}");
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, POWERS.len() * PEERS.len() * LEASES.len() * WORKS.len());
}

#[test]
fn every_row_of_a_machine_that_beats() {
    for power in POWERS {
        for peers in PEERS {
            for lease in LEASES {
                for work in WORKS {
                    let wanted = match (power, work) {
                        (Power::Stopped | Power::Absent, _) => Verdict::Unknown,
                        (_, Work::Well) => Verdict::Healthy,
                        (_, Work::Impaired | Work::Strained) => Verdict::Degraded,
                    };
                    let evidence = Evidence {
                        link: Link::Beating,
                        peers,
                        lease,
                        power,
                        work,
                    };
                    assert_eq!(verdict(&evidence), wanted, "{evidence:?}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_dead_without_the_provider_and_nothing_that_lives_is() {
    for power in POWERS {
        for peers in PEERS {
            for lease in LEASES {
                let evidence = Evidence {
                    link: Link::Silent,
                    peers,
                    lease,
                    power,
                    work: Work::Well,
                };
                let verdict = verdict(&evidence);
                let lives = peers == Peers::Agent || lease == Lease::Renewed;
                let off = matches!(power, Power::Stopped | Power::Absent);
                if verdict.is_down() {
                    assert!(power != Power::Unknown, "{evidence:?}");
                    assert!(off || !lives, "{evidence:?}");
                }
            }
        }
    }
}

#[test]
fn lost_heartbeats_are_no_silence_while_the_connection_stands_and_peers_reach_the_agent() {
    for peers in PEERS {
        for stands in [true, false] {
            assert_eq!(Link::Beating.beside(stands, peers), Link::Beating);
            let wanted = match (stands, peers) {
                (true, Peers::Agent) => Link::Beating,
                _ => Link::Silent,
            };
            assert_eq!(
                Link::Silent.beside(stands, peers),
                wanted,
                "{stands} {peers:?}"
            );
        }
    }
}

#[test]
fn a_director_in_doubt_concludes_nothing_new_from_silence() {
    for power in POWERS {
        for peers in PEERS {
            for lease in LEASES {
                for link in [Link::Silent, Link::Beating] {
                    let work = Work::Impaired;
                    let evidence = Evidence {
                        link,
                        peers,
                        lease,
                        power,
                        work,
                    };
                    let said = verdict(&evidence);
                    let known = link == Link::Beating || said == Verdict::MachineGone;
                    let wanted = if known { said } else { Verdict::Unknown };
                    for before in [None, Some(Verdict::Healthy), Some(Verdict::Unknown)] {
                        assert_eq!(in_doubt(&evidence, before), wanted, "{evidence:?}");
                    }
                    // What was concluded before, and would be now, stands.
                    assert_eq!(in_doubt(&evidence, Some(said)), said, "{evidence:?}");
                }
            }
        }
    }
}

#[test]
#[rustfmt::skip] // one case per line, so that a missing one shows
fn peers_are_summed_up() {
    use Probe as P;
    let cases: [(&[Probe], Peers); 10] = [
        (&[],                                     Peers::Unknown),
        (&[P::Unanswered],                        Peers::Unknown),
        (&[P::Nobody],                            Peers::Nobody),
        (&[P::Nobody, P::Unanswered],             Peers::Unknown),
        (&[P::Nobody, P::Nobody],                 Peers::Nobody),
        (&[P::Nobody, P::Nobody, P::Unanswered],  Peers::Nobody),
        (&[P::Nobody, P::Nobody, P::Agent],       Peers::Agent),
        (&[P::Nobody, P::Kubelet],                Peers::Kubelet),
        (&[P::Kubelet, P::Agent],                 Peers::Agent),
        (&[P::Unanswered, P::Unanswered],         Peers::Unknown),
    ];
    for (probes, wanted) in cases {
        assert_eq!(Peers::of(probes), wanted, "{probes:?}");
    }
}

#[test]
fn what_no_remedy_mends_is_left_to_an_operator() {
    let policy = LadderPolicy::default();
    let mut case = case(Verdict::Degraded, Power::Running);
    case.work = Work::Strained;
    for at in [0, policy.degraded_ms, 1 << 40] {
        assert!(
            matches!(next(&case, at, &policy), Move::Stay { .. }),
            "{at}"
        );
    }
    // What comes on top of it and can be mended is.
    case.work = Work::Impaired;
    assert_eq!(
        next(&case, policy.degraded_ms, &policy),
        Move::Act(Rung::Units)
    );
    // A disk that fills after a replacement does not make the replacement stillborn.
    case.tried(Rung::Replace, 0);
    case.expects = false;
    assert_eq!(case.stillborn(), 1);
    case.work = Work::Strained;
    assert_eq!(case.stillborn(), 0);
}

fn case(verdict: Verdict, power: Power) -> Case {
    let mut case = Case::new(0);
    case.judge(verdict, power, 0, &LadderPolicy::default());
    case
}

/// Plays a machine that no remedy helps: what is done, and when in seconds.
fn play(verdict: Verdict, power: Power, steps: usize) -> Vec<(u64, Rung)> {
    let policy = LadderPolicy::default();
    let mut case = case(verdict, power);
    let mut now = 0;
    let mut done = Vec::new();
    while done.len() < steps {
        match next(&case, now, &policy) {
            Move::Act(rung) => {
                case.tried(rung, now);
                done.push((now / 1000, rung));
            }
            Move::Wait { until_ms, .. } => {
                assert!(until_ms > now, "a wait that ends in the past would spin");
                now = until_ms;
            }
            Move::Rest | Move::Stay { .. } => break,
        }
    }
    done
}

#[test]
fn the_ladder_is_climbed_with_patience() {
    use Rung::{Reboot, Replace, Runtime, Units};
    let degraded = [
        (30, Units),
        (60, Runtime),
        (90, Reboot),
        (180, Replace),
        (360, Replace),
        (720, Replace),
    ];
    assert_eq!(play(Verdict::Degraded, Power::Running, 6), degraded);
    let hung = [(15, Reboot), (105, Replace), (285, Replace)];
    assert_eq!(play(Verdict::NodeHung, Power::Running, 3), hung);
    let lost = [(60, Reboot), (150, Replace)];
    assert_eq!(play(Verdict::AgentLost, Power::Running, 2), lost);
    assert_eq!(play(Verdict::MachineGone, Power::Absent, 1), [(0, Replace)]);
    assert_eq!(play(Verdict::MachineGone, Power::Stopped, 1), [(0, Reboot)]);
    for verdict in [Verdict::Healthy, Verdict::Partitioned, Verdict::Unknown] {
        assert_eq!(play(verdict, Power::Running, 1), []);
    }
}

#[test]
fn the_pause_between_replacements_grows_to_its_cap() {
    let done = play(Verdict::MachineGone, Power::Absent, 12);
    let pauses: Vec<u64> = done.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert_eq!(pauses[..5], [180, 360, 720, 1440, 2880]);
    assert!(pauses[5..].iter().all(|pause| *pause == 3600));
}

#[test]
fn attempts_are_forgotten_after_lasting_health_only() {
    let policy = LadderPolicy::default();
    let mut case = case(Verdict::NodeHung, Power::Running);
    case.tried(Rung::Reboot, 0);
    case.judge(Verdict::Healthy, Power::Running, 60_000, &policy);
    case.judge(Verdict::NodeHung, Power::Running, 120_000, &policy);
    // It climbs, and the verdict that came back has to last as the first one had.
    assert!(matches!(
        next(&case, 120_000, &policy),
        Move::Wait {
            until_ms: 135_000,
            ..
        }
    ));
    assert_eq!(next(&case, 135_000, &policy), Move::Act(Rung::Replace));
    case.judge(Verdict::Healthy, Power::Running, 180_000, &policy);
    case.judge(
        Verdict::Healthy,
        Power::Running,
        180_000 + policy.forget_ms,
        &policy,
    );
    assert_eq!(case.attempts, []);
}

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

fn member(role: Role, verdict: Verdict) -> Member {
    Member {
        cluster: ClusterName::new("demo").unwrap(),
        role,
        zone: None,
        verdict,
        silent: false,
        in_hand: false,
        joins: false,
        held: false,
        fenced: false,
        stillborn: 0,
    }
}

fn workers() -> Role {
    Role::Worker(PoolName::new("workers").unwrap())
}

/// Three control-plane machines and three workers that are well, `w-0` hung, an hour after the start.
fn fleet() -> Fleet {
    let mut machines = BTreeMap::new();
    for number in 0..3 {
        let cp = member(Role::ControlPlane, Verdict::Healthy);
        machines.insert(name(&format!("cp-{number}")), cp);
        machines.insert(
            name(&format!("w-{number}")),
            member(workers(), Verdict::Healthy),
        );
    }
    let mut fleet = Fleet {
        machines,
        director: Director {
            since_ms: 0,
            provider_answers: true,
        },
        causes: BTreeMap::new(),
    };
    set(&mut fleet, "w-0", |m| m.verdict = Verdict::NodeHung);
    fleet
}

fn set(fleet: &mut Fleet, machine: &str, change: impl FnOnce(&mut Member)) {
    change(fleet.machines.get_mut(&name(machine)).unwrap());
}

const NOW: u64 = 3_600_000;

fn ask(fleet: &Fleet, machine: &str, rung: Rung) -> Result<(), Refusal> {
    allow(fleet, &name(machine), rung, NOW, &GuardPolicy::default())
}

#[test]
fn a_hung_worker_may_be_replaced() {
    assert_eq!(ask(&fleet(), "w-0", Rung::Replace), Ok(()));
}

#[test]
fn the_director_suspects_itself_first() {
    let mut young = fleet();
    young.director.since_ms = NOW - 1000;
    assert!(matches!(
        ask(&young, "w-0", Rung::Reboot),
        Err(Refusal::Young { .. })
    ));
    assert_eq!(ask(&young, "w-0", Rung::Units), Ok(()));
    let mut isolated = fleet();
    isolated.director.provider_answers = false;
    assert_eq!(ask(&isolated, "w-0", Rung::Replace), Err(Refusal::Isolated));
}

#[test]
fn much_silence_at_once_is_a_storm_unless_the_provider_explains_it() {
    let mut fleet = fleet();
    for machine in ["w-0", "w-1", "cp-0"] {
        set(&mut fleet, machine, |m| m.silent = true);
    }
    let storm = Err(Refusal::Storm {
        silent: 3,
        machines: 6,
    });
    assert_eq!(ask(&fleet, "w-0", Rung::Replace), storm);
    // Other clusters are judged by themselves.
    set(&mut fleet, "w-0", |m| {
        m.cluster = ClusterName::new("other").unwrap()
    });
    assert_eq!(ask(&fleet, "w-0", Rung::Replace), Ok(()));
    set(&mut fleet, "w-0", |m| {
        m.cluster = ClusterName::new("demo").unwrap()
    });
    for machine in ["w-1", "cp-0"] {
        set(&mut fleet, machine, |m| m.verdict = Verdict::MachineGone);
    }
    assert_eq!(ask(&fleet, "w-0", Rung::Replace), Ok(()));
}

#[test]
fn etcd_keeps_its_majority() {
    let mut fleet = fleet();
    set(&mut fleet, "cp-0", |m| m.verdict = Verdict::Degraded);
    assert_eq!(ask(&fleet, "cp-0", Rung::Reboot), Ok(()));
    set(&mut fleet, "cp-1", |m| m.verdict = Verdict::MachineGone);
    let quorum = Err(Refusal::Quorum {
        cluster: fleet.machines[&name("cp-0")].cluster.clone(),
        healthy: 1,
        members: 3,
        quorum: 2,
    });
    assert_eq!(ask(&fleet, "cp-0", Rung::Reboot), quorum);
    // The one that is down may be replaced, also when the majority is lost already; one at a time.
    assert_eq!(ask(&fleet, "cp-1", Rung::Replace), Ok(()));
    set(&mut fleet, "cp-2", |m| m.verdict = Verdict::MachineGone);
    assert_eq!(ask(&fleet, "cp-1", Rung::Replace), Ok(()));
    set(&mut fleet, "cp-1", |m| m.in_hand = true);
    let other = name("cp-1");
    assert_eq!(
        ask(&fleet, "cp-2", Rung::Replace),
        Err(Refusal::OneAtATime { other })
    );
    assert_eq!(ask(&fleet, "cp-1", Rung::Replace), Err(Refusal::InHand));
}

#[test]
fn a_pool_keeps_its_budget_and_what_is_down_costs_nothing() {
    let mut fleet = fleet();
    set(&mut fleet, "w-1", |m| m.verdict = Verdict::Degraded);
    // `w-0` is down, so the one that still serves has to wait; `w-0` itself does not.
    assert!(matches!(
        ask(&fleet, "w-1", Rung::Reboot),
        Err(Refusal::Budget { unavailable: 1, .. })
    ));
    set(&mut fleet, "w-1", |m| m.in_hand = true);
    assert_eq!(ask(&fleet, "w-0", Rung::Replace), Ok(()));
}

#[test]
fn what_was_said_of_one_incarnation_says_nothing_of_the_next() {
    let machine = MachineName::new("w-0").unwrap();
    let mut record = CaseRecord::new(machine, Incarnation(1), 0);
    record.case.verdict = Verdict::MachineGone;
    assert!(record.is_down(Incarnation(1)));
    assert!(!record.is_down(Incarnation(2)), "its successor is drained");
}

#[test]
fn operators_and_poison_stop_it() {
    let mut fleet = fleet();
    set(&mut fleet, "w-0", |m| m.held = true);
    assert_eq!(ask(&fleet, "w-0", Rung::Units), Err(Refusal::Held));
    set(&mut fleet, "w-0", |m| m.held = false);
    let pool = (fleet
        .machines
        .values()
        .find(|m| m.role != Role::ControlPlane))
    .unwrap();
    let pool = (pool.cluster.clone(), pool.role.clone());
    let cause = Cause {
        deaths: 3,
        shared: vec![(Factor::Trouble("kubelet.service".to_owned()), 3)],
    };
    fleet.causes.insert(pool.clone(), cause.clone());
    set(&mut fleet, "w-0", |m| m.stillborn = 2);
    set(&mut fleet, "w-1", |m| m.stillborn = 1);
    let refused = ask(&fleet, "w-0", Rung::Replace).unwrap_err();
    let told = refused.to_string();
    assert!(
        told.contains("in common: kubelet.service did not work (3 of 3)"),
        "{told}"
    );
    assert_eq!(refused, Refusal::Poison { count: 3, cause });
    let stopped = poisoned(&fleet, &GuardPolicy::default());
    assert_eq!(stopped, [(pool, 3)].into());
    assert_eq!(ask(&fleet, "w-0", Rung::Reboot), Ok(()));
    assert_eq!(ask(&fleet, "nobody", Rung::Reboot), Err(Refusal::Stranger));
}

#[test]
fn the_one_that_is_replaced_is_no_replacement_that_died() {
    let ladder = LadderPolicy::default();
    let gone = Evidence {
        link: Link::Silent,
        peers: Peers::Nobody,
        lease: Lease::Unknown,
        power: Power::Absent,
        work: Work::Well,
    };
    let mut record = CaseRecord::new(name("w-0"), Incarnation(1), 0);
    let judge = |record: &mut CaseRecord, incarnation, awaited, at_ms| {
        record.arrive(Incarnation(incarnation), awaited);
        let verdict = Verdict::MachineGone;
        record.judge(
            Incarnation(incarnation),
            verdict,
            gone,
            at_ms,
            &ladder,
            600_000,
        );
        (record.case.stillborn(), record.died_untold())
    };
    assert_eq!(judge(&mut record, 1, false, 1), (0, false));
    // It is looked at while its replacement is ordered, and not made yet.
    record.case.tried(Rung::Replace, 2);
    assert_eq!(judge(&mut record, 1, true, 3), (0, false));
    // The replacement is there, and dies.
    assert_eq!(judge(&mut record, 2, true, 4), (1, true));
    let death = |at_ms| Death {
        incarnation: Incarnation(2),
        at_ms,
        verdict: Verdict::MachineGone,
        stemcell: String::new(),
        kubernetes_version: String::new(),
        troubles: Default::default(),
        step: None,
    };
    record.tell_death(death(4));
    assert_eq!(judge(&mut record, 2, false, 5), (1, false));
    // The next one could not be made, and is tried again under the same number.
    record.case.tried(Rung::Replace, 6);
    assert_eq!(judge(&mut record, 2, true, 7), (1, false));
    assert_eq!(judge(&mut record, 3, false, 8), (2, true));
    record.tell_death(death(8));
    record.case.tried(Rung::Replace, 9);
    assert_eq!(judge(&mut record, 3, true, 10), (2, false));
    assert_eq!(judge(&mut record, 3, false, 11), (3, true));
    assert_eq!(record.deaths.len(), 2);
}

/// An hour of a machine that is switched between health and death, replaced and killed at each step.
fn busy(steps: u64) -> CaseRecord {
    let mut record = CaseRecord::new(name("w-0"), Incarnation(1), 0);
    let ladder = LadderPolicy::default();
    for step in 1..=steps {
        let power = [Power::Running, Power::Absent][step as usize % 2];
        let evidence = Evidence {
            link: Link::Silent,
            peers: Peers::Nobody,
            lease: Lease::Unknown,
            power,
            work: Work::Well,
        };
        record.judge(
            Incarnation(1),
            verdict(&evidence),
            evidence,
            step,
            &ladder,
            600_000,
        );
        record.case.tried(Rung::Reboot, step);
        record.tell_death(Death {
            incarnation: Incarnation(1),
            at_ms: step,
            verdict: record.case.verdict,
            stemcell: String::new(),
            kubernetes_version: String::new(),
            troubles: Default::default(),
            step: None,
        });
    }
    record
}

#[test]
fn what_is_kept_of_a_machine_is_bounded_and_the_newest_is_kept() {
    let most = [HISTORY_MAX, ATTEMPTS_MAX, DEATHS_MAX];
    let largest = *most.iter().max().unwrap() as u64;
    for steps in [1, 2, largest, largest + 1, 5 * largest] {
        let record = busy(steps);
        let kept = [
            record
                .history
                .iter()
                .map(|one| one.at_ms)
                .collect::<Vec<_>>(),
            record.case.attempts.iter().map(|one| one.at_ms).collect(),
            record.deaths.iter().map(|one| one.at_ms).collect(),
        ];
        for (kept, most) in kept.into_iter().zip(most) {
            let first = steps.saturating_sub(most as u64) + 1;
            assert_eq!(
                kept,
                (first..=steps).collect::<Vec<_>>(),
                "{steps} of {most}"
            );
        }
    }
}

#[test]
fn a_clock_that_is_set_back_takes_with_it_what_was_noted() {
    const YEAR: u64 = 365 * 86_400_000;
    let (ladder, now) = (LadderPolicy::default(), 10_000_000);
    let hung = Evidence {
        link: Link::Silent,
        peers: Peers::Nobody,
        lease: Lease::Unknown,
        power: Power::Running,
        work: Work::Well,
    };
    let mut record = CaseRecord::new(name("w-0"), Incarnation(1), now + YEAR);
    let judge = |record: &mut CaseRecord, now| {
        record.judge(Incarnation(1), verdict(&hung), hung, now, &ladder, 600_000)
    };
    judge(&mut record, now + YEAR);
    record.case.tried(Rung::Reboot, now + YEAR + 20_000);
    // It is no year until the reboot has had its time.
    assert!(judge(&mut record, now), "it is written down");
    assert_eq!(
        (record.case.since_ms, record.case.attempts[0].at_ms),
        (now - 20_001, now - 1)
    );
    let later = now + ladder.reboot_ms;
    assert!(!judge(&mut record, later), "once");
    assert_eq!(next(&record.case, later, &ladder), Move::Act(Rung::Replace));
}

#[test]
fn a_replacement_that_died_counts_until_it_is_well() {
    let ladder = LadderPolicy::default();
    let evidence = |link, power| Evidence {
        link,
        peers: Peers::Unknown,
        lease: Lease::Unknown,
        power,
        work: Work::Well,
    };
    let mut record = CaseRecord::new(name("w-0"), Incarnation(1), 0);
    record.case.tried(Rung::Replace, 1);
    let mut died = |link, power, now| {
        let evidence = evidence(link, power);
        record.arrive(Incarnation(2), false);
        record.judge(
            Incarnation(2),
            verdict(&evidence),
            evidence,
            now,
            &ladder,
            600_000,
        );
        record.case.stillborn()
    };
    assert_eq!(
        died(Link::Silent, Power::Unknown, 2),
        0,
        "nobody can tell yet"
    );
    assert_eq!(died(Link::Silent, Power::Absent, 3), 1);
    assert_eq!(
        died(Link::Silent, Power::Unknown, 4),
        1,
        "the provider does not answer"
    );
    assert_eq!(died(Link::Beating, Power::Running, 5), 0, "it came back");
}
