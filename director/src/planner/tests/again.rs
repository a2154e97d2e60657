//! What a machine that dies in the middle of a task is to become, and which plans do not fit any more.

use serde_json::json;

use super::*;
use crate::model::{Machine, PlanStep, StepRecord, Task, Wanted};
use crate::planner::again::{Aim, condemn_within, fits, spared};

/// A machine in service; `worker` or of the control plane.
fn served(text: &str, worker: bool, version: &str) -> Machine {
    let role = match worker {
        true => json!({"kind": "worker", "pool": "w"}),
        false => json!({"kind": "controlPlane"}),
    };
    serde_json::from_value(json!({
        "name": text, "cluster": "c", "role": role, "incarnation": 1, "nodeName": format!("{text}-i1"),
        "address": "10.0.0.3", "podCidr": "10.244.1.0/24", "stemcell": format!("s-{version}"),
        "kubernetesVersion": version, "size": {"cpuMillis": 1000, "memoryMib": 1024, "diskMib": 64},
        "dataDisk": null, "phase": "Ready", "revision": 1, "createdAt": "2030-01-31T12:00:00.000Z",
    }))
    .unwrap()
}

fn reborn(machine: &Machine, version: &str) -> Wanted {
    Wanted::Reborn {
        incarnation: Incarnation(2),
        stemcell: format!("s-{version}"),
        kubernetes_version: version.into(),
        size: machine.size,
        because: None,
    }
}

const OLD: &str = "1.36.3";
const NEW: &str = "1.37.2";

#[test]
fn what_is_dead_becomes_what_the_change_makes_of_it_unless_it_would_be_too_new() {
    type Case = (
        &'static str,
        bool,
        [&'static str; 2],
        Option<&'static str>,
        &'static str,
    );
    #[rustfmt::skip]
    let cases: [Case; 6] = [
        // what, worker, versions of the API servers, wanted by the change, becomes
        ("a worker, API servers not changed",      true,  [OLD, OLD], Some(NEW), OLD),
        ("a worker, one API server is left",       true,  [OLD, NEW], Some(NEW), OLD),
        ("a worker, all API servers changed",      true,  [NEW, NEW], Some(NEW), NEW),
        ("a worker that has changed already",      true,  [NEW, NEW], None,      OLD),
        ("an API server before its turn",          false, [OLD, OLD], Some(NEW), NEW),
        ("an API server of which nothing is wanted", false, [OLD, OLD], None,    OLD),
    ];
    for (what, worker, [a, b], wanted, becomes) in cases {
        let machines = [served("c-cp-1", false, a), served("c-cp-2", false, b)];
        let mut dead = served("c-x-0", worker, OLD);
        dead.wanted = wanted.map(|version| reborn(&dead, version));
        condemn_within(&mut dead, &machines);
        assert!(dead.condemned, "{what}");
        assert_eq!(dead.wanted, Some(reborn(&dead, becomes)), "{what}");
    }
    let mut surplus = served("c-x-0", true, OLD);
    surplus.wanted = Some(Wanted::Gone);
    condemn_within(&mut surplus, &[]);
    assert_eq!(
        (surplus.condemned, surplus.wanted),
        (true, Some(Wanted::Gone))
    );
}

/// A task whose plan does these to one machine, in this order; those up to `done` are done.
fn task(verbs: &[&str], done: usize) -> Task {
    let machine = name("c-w-0");
    let step = |verb: &&str| {
        let machine = machine.clone();
        let node = machine.node_name(Incarnation(1)).unwrap();
        let action = match *verb {
            "drain" => Action::Drain { machine, node },
            "fence" => Action::Fence { machine },
            "delete" => Action::DeleteMachine { machine },
            other => panic!("{other}"),
        };
        PlanStep {
            key: StepKey::from(format!("machine/c-w-0/{verb}")),
            action,
            why: "".into(),
            guard: crate::model::Invariant::Budget,
            disrupts: crate::model::Disruption::Nothing,
            after: Vec::new(),
        }
    };
    let steps: Vec<PlanStep> = verbs.iter().map(step).collect();
    let record = || -> StepRecord {
        serde_json::from_value(json!({"state": "Succeeded", "attempts": 1, "changes": [],
            "startedAt": "2030-01-31T12:00:00.000Z", "endedAt": null, "error": null}))
        .unwrap()
    };
    let ended = steps
        .iter()
        .take(done)
        .map(|step| (step.key.clone(), record()));
    let ended: BTreeMap<_, _> = ended.collect();
    let plan = json!({"cluster": "c", "goal": "present", "hash": Digest::of(b"").to_string(), "steps": steps});
    serde_json::from_value(json!({
        "id": "t1-000001", "kind": "updateCluster", "cluster": "c", "operator": "ann", "state": "Running",
        "plan": plan, "steps": ended, "cleanup": null, "error": null, "revision": 1,
        "createdAt": "2030-01-31T12:00:00.000Z", "startedAt": null, "endedAt": null,
    }))
    .unwrap()
}

#[test]
fn a_plan_fits_until_a_machine_dies_that_it_would_drain_or_one_comes_back_that_it_shuts_out() {
    type Case = (
        &'static str,
        &'static [&'static str],
        usize,
        bool,
        bool,
        bool,
    );
    let drained: &[&str] = &["drain", "delete"];
    let shut_out: &[&str] = &["fence", "delete"];
    #[rustfmt::skip]
    let cases: [Case; 11] = [
        // what, steps, of them done, condemned, fenced, fits
        ("nothing has happened",                   drained,  0, false, false, true),
        ("it is dead and would be drained",        drained,  0, true,  false, false),
        ("it died once it was drained",            drained,  1, true,  false, true),
        ("its next incarnation is dead",           drained,  2, true,  false, false),
        ("it is dead and not in the plan",         &[],      0, true,  false, false),
        ("it is dead and will be shut out",        shut_out, 0, true,  false, true),
        ("it is being shut out",                   shut_out, 0, true,  true,  true),
        ("it is shut out",                         shut_out, 1, true,  true,  true),
        ("it was found back before that",          shut_out, 1, false, false, false),
        ("its next incarnation serves",            shut_out, 2, false, false, true),
        ("its next incarnation is dead too",       shut_out, 2, true,  false, false),
    ];
    for (what, verbs, done, condemned, fenced, wanted) in cases {
        let task = task(verbs, done);
        let mut machine = served("c-w-0", true, NEW);
        (machine.condemned, machine.fenced) = (condemned, fenced);
        let machines = [machine];
        let aim = Aim {
            stemcell: &format!("s-{NEW}"),
            workers: true,
        };
        assert_eq!(
            fits(&task, aim, &machines, &BTreeSet::new()),
            wanted,
            "{what}"
        );
        let back = !spared(&task, &machines).is_empty();
        assert_eq!(back, what.contains("found back"), "{what}");
        // What an operator holds is nobody's to replace.
        let held = BTreeSet::from([name("c-w-0")]);
        assert_eq!(
            fits(&task, aim, &machines, &held),
            wanted || condemned,
            "{what}, held"
        );
    }
}
