use windlass_common::id::Incarnation;

use super::*;

fn machine_record(name: &str) -> Machine {
    let name = MachineName::new(name).unwrap();
    let node = name.node_name(Incarnation::FIRST).unwrap();
    serde_json::from_value(serde_json::json!({
        "name": name,
        "cluster": "demo",
        "role": {"kind": "controlPlane"},
        "incarnation": 1,
        "nodeName": node,
        "address": "10.0.0.3",
        "podCidr": "10.244.1.0/24",
        "stemcell": "s",
        "size": {"cpuMillis": 1000, "memoryMib": 1024, "diskMib": 1024},
        "dataDisk": null,
        "phase": "Ready",
        "revision": 1,
        "createdAt": "2030-01-01T00:00:00Z",
    }))
    .unwrap()
}

const DAY_MS: u64 = 24 * 3600 * 1000;

fn day(day: u64) -> Timestamp {
    Timestamp::from_unix_ms(day * DAY_MS)
}

fn certified(issued: u64, life: u64) -> Certified {
    Certified {
        issued_at: day(issued),
        renew_at: day(issued + life / 3 * 2),
        expires_at: day(issued + life),
    }
}

#[test]
fn certificates_are_renewed_after_two_thirds_of_their_life() {
    struct Case {
        name: &'static str,
        now: u64,
        phase: ClusterPhase,
        task: bool,
        tried: Option<u64>,
        want: &'static [&'static str],
    }
    use ClusterPhase::{Degraded, Ready, Updating};
    const BOTH: &[&str] = &["demo-cp-0", "demo-workers-0"];
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        Case { name: "young",                    now: 100, phase: Ready,    task: false, tried: None,      want: &[] },
        Case { name: "one is due",               now: 240, phase: Ready,    task: false, tried: None,      want: &["demo-cp-0"] },
        Case { name: "both are due",             now: 260, phase: Ready,    task: false, tried: None,      want: BOTH },
        Case { name: "a degraded cluster lives", now: 260, phase: Degraded, task: false, tried: None,      want: BOTH },
        Case { name: "a change comes first",     now: 260, phase: Updating, task: true,  tried: None,      want: &[] },
        Case { name: "a task works on it",       now: 260, phase: Ready,    task: true,  tried: None,      want: &[] },
        Case { name: "tried a moment ago",       now: 260, phase: Ready,    task: false, tried: Some(260), want: &[] },
        Case { name: "tried long ago",           now: 260, phase: Ready,    task: false, tried: Some(259), want: BOTH },
        Case { name: "expired is due too",       now: 900, phase: Ready,    task: false, tried: None,      want: BOTH },
    ];
    for case in cases {
        let mut machines = [
            machine_record("demo-cp-0"),
            machine_record("demo-workers-0"),
        ];
        for (machine, issued) in machines.iter_mut().zip([0, 10]) {
            machine.certified = Some(certified(issued, 360));
        }
        let serves = serves(case.phase) && !case.task;
        let due = due(serves, case.tried.map(day), &machines, day(case.now));
        let due: Vec<&str> = due.iter().map(MachineName::as_str).collect();
        assert_eq!(due, case.want, "{}", case.name);
    }
}

#[test]
fn what_is_not_in_service_is_left_alone() {
    let mut machine = machine_record("demo-cp-0");
    machine.certified = Some(certified(0, 360));
    let due_of = |machine: &Machine| due(true, None, std::slice::from_ref(machine), day(300)).len();
    assert_eq!(due_of(&machine), 1);
    let mut fenced = machine.clone();
    fenced.fenced = true;
    let mut coming = machine.clone();
    coming.phase = MachinePhase::Creating;
    let mut unknown = machine.clone();
    unknown.certified = None;
    for other in [fenced, coming, unknown] {
        assert_eq!(due_of(&other), 0);
    }
}

fn cluster_record() -> Cluster {
    let size = serde_json::json!({"cpuMillis": 1000, "memoryMib": 1024, "diskMib": 1024});
    serde_json::from_value(serde_json::json!({
        "spec": {
            "name": "demo",
            "kubernetesVersion": "1.37.2",
            "controlPlane": {"count": 1, "size": size},
            "pools": {},
            "network": {"podCidr": "10.244.0.0/16", "serviceCidr": "10.96.0.0/16"},
        },
        "endpoint": {"name": "demo.clusters.windlass.internal", "address": "10.0.0.9", "port": 6443},
        "stemcell": "s",
        "phase": "Ready",
        "message": null,
        "task": null,
        "revision": 1,
        "createdAt": "2030-01-01T00:00:00Z",
    }))
    .unwrap()
}

#[test]
fn what_holds_a_renewal_back_is_said_and_nothing_else_does() {
    type Change = fn(&mut Cluster, &mut crate::model::MachineView);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: [(&str, Change, &str); 9] = [
        ("the next look renews it", |_, _| {}, ""),
        ("young",             |_, view| view.machine.certified = Some(certified(200, 360)), ""),
        ("none yet",          |_, view| view.machine.certified = None, ""),
        ("a task",            |cluster, _| cluster.task = Some("t7-00000a".parse().unwrap()), "t7-00000a works on the cluster"),
        ("out of service",    |cluster, _| cluster.phase = ClusterPhase::Failed, "the cluster is Failed"),
        ("tried just now",    |cluster, _| cluster.renewal_tried_at = Some(day(300)), "cluster renew-certificates demo"),
        ("a change",          |_, view| view.machine.wanted = Some(crate::model::Wanted::Gone), "it is to go"),
        ("shut out",          |_, view| view.machine.fenced = true, "it is shut out"),
        ("away",              |_, view| view.agent.connected = false, "its agent is not connected"),
    ];
    for (name, change, want) in cases {
        let mut machine = machine_record("demo-cp-0");
        machine.certified = Some(certified(0, 360));
        let mut view = crate::health::view(machine, None, day(300));
        view.agent.connected = true;
        let mut cluster = cluster_record();
        change(&mut cluster, &mut view);
        let views = [view];
        let held = held_back(&cluster, &views, None, day(300));
        assert_eq!(held.is_empty(), want.is_empty(), "{name}: {held:?}");
        for held in &held {
            assert!(held.why.contains(want), "{name}: {}", held.why);
            assert_eq!(
                (held.due_since, held.expires_at),
                (day(240), day(360)),
                "{name}"
            );
        }
        // What is said of the rule is what the rule does.
        let [view] = &views;
        let serves = serves(cluster.phase) && cluster.task.is_none();
        let machines = std::slice::from_ref(&view.machine);
        let due = due(serves, cluster.renewal_tried_at, machines, day(300)).len() == 1;
        let old = view
            .machine
            .certified
            .is_some_and(|c| day(300) >= c.renew_at);
        assert_eq!(
            due && view.agent.connected,
            old && held.is_empty(),
            "{name}"
        );
    }
}
