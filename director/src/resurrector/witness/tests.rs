//! What each witness says, by table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use windlass_common::id::{ClusterName, DirectorId, Incarnation, MachineName};

use super::circle::link;
use super::lease::Watches;
use super::peers::choose;
use super::*;
use crate::gateway::LinkView;
use crate::resurrector::Lease;
use crate::rollout::world::LeaseMark;

fn identity(machine: &str) -> MachineIdentity {
    MachineIdentity {
        director: DirectorId::new("d1").unwrap(),
        cluster: ClusterName::new("demo").unwrap(),
        machine: MachineName::new(machine).unwrap(),
        incarnation: Incarnation(1),
    }
}

#[test]
fn a_link_beats_or_is_silent_whatever_its_connection_does() {
    let second = Some(Duration::from_secs(1));
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (true,  true,  second, Link::Beating),
        (true,  false, second, Link::Silent),
        (false, false, second, Link::Silent),
        (false, false, None,   Link::Silent),
    ];
    let mut said = BTreeSet::new();
    for (connected, beating, silence, wanted) in cases {
        let heard = LinkView {
            connected,
            beating,
            silence,
        };
        let (link, statement) = link(heard);
        assert_eq!(link, wanted, "{heard:?}");
        assert_eq!(statement.age_ms, silence.map(|_| 1000));
        said.insert(statement.says);
    }
    assert_eq!(said.len(), cases.len(), "each is told apart: {said:?}");
}

#[test]
fn the_same_peers_are_asked_about_one_machine_and_the_questions_spread() {
    let all: Vec<_> = (0..12).map(|n| identity(&format!("demo-w-{n}"))).collect();
    let mut asked = BTreeMap::<MachineName, usize>::new();
    for about in &all {
        let chosen = choose(&about.machine, all.clone());
        assert_eq!(chosen.len(), PEERS_MAX);
        assert!(!chosen.contains(about), "nobody is asked about itself");
        let backwards = choose(&about.machine, all.iter().rev().cloned());
        assert_eq!(
            chosen, backwards,
            "the order of the candidates says nothing"
        );
        // One that is gone is replaced by one; the others stay.
        let left = all.iter().filter(|peer| **peer != chosen[0]).cloned();
        assert_eq!(choose(&about.machine, left)[..2], chosen[1..]);
        for peer in chosen {
            *asked.entry(peer.machine).or_default() += 1;
        }
    }
    assert!(asked.len() >= 9, "{asked:?}");
    let nobody = choose(&all[0].machine, [all[0].clone()]);
    assert!(nobody.is_empty());
}

fn mark(renewed: &str) -> LeaseMark {
    LeaseMark {
        uid: "u1".to_owned(),
        renewed: renewed.to_owned(),
    }
}

#[test]
fn a_lease_is_renewed_if_two_readings_of_one_silence_differ() {
    use Lease::{Renewed, Unknown};
    let seconds = Duration::from_secs;
    let name = MachineName::new("demo-w-0").unwrap();
    let mut watches = Watches::default();
    #[rustfmt::skip] // one reading per line: last heard, read, what is read, what it comes to
    let readings = [
        (Some(10), 12,  "a", Unknown, "the first reading, whatever it shows"),
        (Some(10), 13,  "a", Unknown, "no change"),
        (Some(10), 20,  "b", Renewed, "a change"),
        (Some(10), 60,  "b", Renewed, "a change 40 s ago"),
        (Some(10), 61,  "b", Unknown, "a change that is too old"),
        (Some(10), 62,  "c", Renewed, "another change"),
        (Some(70), 72,  "d", Unknown, "another silence: the change may be from before it"),
        (Some(70), 80,  "e", Renewed, "a change in it"),
        (None,     81,  "e", Renewed, "the same silence, as far as is known"),
    ];
    for (heard, now, read, wanted, what) in readings {
        let heard = heard.map(seconds);
        let reading = watches.read(&name, Incarnation(1), mark(read), heard, seconds(now));
        assert_eq!(reading.lease, wanted, "{what}: {reading}");
    }
    let reading = watches.read(&name, Incarnation(2), mark("f"), None, seconds(82));
    assert_eq!(
        reading.lease, Unknown,
        "another incarnation is another node"
    );
    watches.heard(&name);
    let reading = watches.read(&name, Incarnation(2), mark("g"), None, seconds(83));
    assert_eq!(reading.lease, Unknown, "it was heard of in between");
    assert_eq!(reading.watched, Duration::ZERO);
}

#[test]
fn no_clock_of_a_machine_is_believed() {
    let name = MachineName::new("demo-w-0").unwrap();
    let mut watches = Watches::default();
    let mut read = |text, now| {
        let now = Duration::from_secs(now);
        watches
            .read(&name, Incarnation(1), mark(text), None, now)
            .lease
    };
    // What a kubelet wrote may lie in the past or in the future, and jump.
    assert_eq!(read("2999-01-01T00:00:00Z", 1), Lease::Unknown);
    assert_eq!(read("1970-01-01T00:00:00Z", 2), Lease::Renewed);
    // A change counts by when it was seen.
    assert_eq!(read("1970-01-01T00:00:00Z", 43), Lease::Unknown);
}
