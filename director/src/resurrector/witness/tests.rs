//! What each witness says, by table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use windlass_common::condition::{Condition, Conditions, State};
use windlass_common::id::{ClusterName, DirectorId, Epoch, Incarnation, MachineName};
use windlass_common::report::{Heartbeat, Report, Scope, UnitReport, Vitals};
use windlass_common::wire::message::Hello;

use super::circle::{link, since, work};
use super::lease::Watches;
use super::peers::choose;
use super::*;
use crate::gateway::{LinkView, SessionTrust, SessionView};
use crate::resurrector::{Lease, Work};
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
        (true,  true,  false, second, Link::Beating),
        (true,  true,  true,  second, Link::Beating),
        (true,  false, false, second, Link::Silent),
        (false, false, false, second, Link::Silent),
        (false, false, false, None,   Link::Silent),
    ];
    let mut said = BTreeSet::new();
    for (connected, beating, late, silence, wanted) in cases {
        let heard = LinkView {
            connected,
            beating,
            late,
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
fn one_that_is_late_is_silent_unless_it_is_heard_while_others_are_asked() {
    use Link::{Beating, Silent};
    #[rustfmt::skip] // one case per line: before, beats, is late, what it comes to
    let cases = [
        (Beating, true,  true,  Silent),
        (Beating, true,  false, Beating),
        (Beating, false, false, Silent),
        (Silent,  true,  false, Silent),
        (Silent,  false, false, Silent),
    ];
    for (before, beating, late, wanted) in cases {
        let heard = LinkView {
            connected: true,
            beating,
            late,
            silence: Some(Duration::from_secs(1)),
        };
        assert_eq!(since(before, heard), wanted, "{before:?} {heard:?}");
    }
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

fn session(report_age_s: u64, failing: bool, counted: u16) -> SessionView {
    let now = jiff::Timestamp::from_second(1_000_000).unwrap();
    let at = |age: u64| now - Duration::from_secs(age);
    let unit = UnitReport {
        active_state: if failing { "failed" } else { "active" }.to_owned(),
        sub_state: "x".to_owned(),
        restarts: 0,
    };
    let report = Report {
        at_unix_ms: 0,
        boot_id: String::new(),
        uptime_s: 0,
        agent_version: String::new(),
        components: BTreeMap::new(),
        units: BTreeMap::from([("kubelet.service".to_owned(), unit)]),
        vitals: Vitals {
            memory_used_bytes: 0,
            memory_total_bytes: 0,
            memory_scope: Scope::Machine,
            cpu_used_ms: 0,
            cpu_scope: Scope::Machine,
            disk_used_bytes: 0,
            disk_total_bytes: 0,
            // The host's, and high: it says nothing about the machine.
            load1_centi: 9_999,
            load_scope: Scope::Host,
        },
    };
    let heartbeat = Heartbeat {
        sequence: 1,
        at_unix_ms: 0,
        units_unhealthy: counted,
        memory_used_bp: 0,
        disk_used_bp: 0,
        epoch: Epoch(1),
    };
    SessionView {
        identity: identity("demo-w-0"),
        address: "127.0.0.1:1".parse().unwrap(),
        since: at(1_000),
        last_heartbeat: Some((at(1), heartbeat)),
        protocol: 2,
        hello: Arc::new(Hello {
            protocols: vec![2],
            agent_version: String::new(),
            capabilities: Vec::new(),
            boot_id: String::new(),
            epoch: Epoch(1),
            unfinished: Vec::new(),
        }),
        trust: SessionTrust {
            certificate: None,
            roots: None,
        },
        report: Some((at(report_age_s), Arc::new(report))),
        conditions: None,
        file_systems: None,
        suspect: false,
    }
}

#[test]
fn an_old_report_says_nothing_and_the_heartbeats_count_stands_for_it() {
    let now = Timestamp::from_unix_ms(1_000_000_000);
    let limit = REPORT_AGE_MAX.as_secs();
    #[rustfmt::skip] // one case per line: age of the report, a unit fails in it, counted by the heartbeat
    let cases = [
        (1,         false, 0, Work::Well),
        (1,         true,  0, Work::Impaired),
        (1,         false, 1, Work::Impaired),
        (limit,     true,  0, Work::Impaired),
        (limit + 1, true,  0, Work::Well),
        (limit + 1, false, 1, Work::Impaired),
    ];
    for (age, failing, counted, wanted) in cases {
        let (found, said) = work(Some(&session(age, failing, counted)), now);
        assert_eq!(found, wanted, "{age} {failing} {counted}: {}", said.says);
    }
    assert_eq!(work(None, now).0, Work::Well);
}

#[test]
fn conditions_speak_against_a_machine_whose_units_run() {
    let now = Timestamp::from_unix_ms(1_000_000_000);
    let at = jiff::Timestamp::from_second(999_999).unwrap();
    let condition = |name: &str, scope| Condition {
        name: name.to_owned(),
        subject: String::new(),
        state: State::Bad,
        says: "no answer".to_owned(),
        source: String::new(),
        scope,
        at_unix_ms: 0,
        since_unix_ms: 0,
    };
    let (own, host) = (Scope::Machine, Scope::Host);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: [(&[(&str, Scope)], Work); 7] = [
        (&[],                                    Work::Well),
        (&[("containerd", own)],                 Work::Impaired),
        (&[("disk-space", own)],                 Work::Strained),
        (&[("disk-space", own), ("etcd", own)],  Work::Impaired),
        (&[("disk-space", host)],                Work::Well),
        (&[("kubelet", host)],                   Work::Well),
        (&[("of-a-newer-release", own)],         Work::Well),
    ];
    for (bad, wanted) in cases {
        let mut session = session(1, false, 0);
        let conditions = bad.iter().map(|(name, scope)| condition(name, *scope));
        let said = Conditions {
            at_unix_ms: 0,
            conditions: conditions.collect(),
        };
        session.conditions = Some((at, Arc::new(said)));
        let (found, says) = work(Some(&session), now);
        assert_eq!(found, wanted, "{bad:?}: {}", says.says);
        assert_eq!(
            says.says.contains("no answer"),
            wanted != Work::Well,
            "{}",
            says.says
        );
    }
    // What is worse counts first: a unit that fails is named, whatever the disk.
    let mut session = session(1, true, 0);
    let said = Conditions {
        at_unix_ms: 0,
        conditions: vec![condition("disk-space", own)],
    };
    session.conditions = Some((at, Arc::new(said)));
    assert_eq!(work(Some(&session), now).0, Work::Impaired);
}
