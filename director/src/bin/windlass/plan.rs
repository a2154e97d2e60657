//! A plan for people: its steps, what becomes of machines and etcd, what its drains evict, its legs, and when it begins.

use windlass_common::id::MachineName;
use windlass_director::drain::Hazard;
use windlass_director::model::{
    ChangeForecast, Disruption, DrainForecast, LegsForecast, Plan, WayBack,
};

use crate::output::{duration, table};

/// A plan for people.
pub(crate) fn explain(plan: &Plan) -> String {
    if plan.steps.is_empty() && plan.upgrade.is_none() {
        return format!("cluster {}: nothing to do", plan.cluster);
    }
    let mut text = format!("cluster {}: {} steps\n\n", plan.cluster, plan.steps.len());
    let rows = plan.steps.iter().map(|step| {
        let disrupts = match step.disrupts {
            Disruption::Nothing => "",
            Disruption::Pods => "pods",
            Disruption::Api => "API",
            Disruption::Data => "DATA",
        };
        vec![
            step.key.to_string(),
            disrupts.to_owned(),
            step.why.to_string(),
        ]
    });
    text.push_str(&table(&["STEP", "DISRUPTS", "WHY"], rows));
    text.push_str(&plan.changes.as_ref().map(changes).unwrap_or_default());
    text.push_str(&hazards(&plan.hazards));
    text.push_str(&drains(plan.drains.as_ref()));
    if let Some(upgrade) = &plan.upgrade {
        text.push_str(&legs(plan, upgrade));
    }
    if let Some(window) = &plan.window {
        let then = if window.open {
            "machines are begun with at once"
        } else {
            "machines wait for it, unless --ignore-window says why they need not"
        };
        text.push_str(&format!("\n\nMaintenance window: {window}; {then}."));
    }
    text.push_str(&format!("\n\nplan {}", plan.hash));
    text
}

fn minors((oldest, newest): (u32, u32)) -> String {
    match oldest == newest {
        true => format!("1.{oldest}"),
        false => format!("1.{oldest}-1.{newest}"),
    }
}

fn names(machines: &[MachineName]) -> String {
    let names: Vec<_> = machines.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// What becomes of machines, and how etcd and versions are meanwhile.
fn changes(changes: &ChangeForecast) -> String {
    let mut text = String::from("\n");
    let kinds = [
        ("created", &changes.created),
        ("replaced", &changes.replaced),
        ("restarted in place", &changes.restarted),
        ("deleted", &changes.deleted),
    ];
    for (what, machines) in kinds.into_iter().filter(|(_, of)| !of.is_empty()) {
        let count = machines.len();
        text.push_str(&format!("\n{count} {what}: {}", names(machines)));
    }
    for (pool, machines) in &changes.surge {
        let (count, surge) = (machines.len(), names(machines));
        text.push_str(&format!("\n{count} surge in pool {pool}: {surge}"));
    }
    text.push_str(&match changes.seconds {
        Some(seconds) => format!(
            "\nabout {}, by what such steps have taken here",
            duration(seconds * 1000)
        ),
        None => {
            "\nhow long it takes is not known: no such steps were carried out here yet".to_owned()
        }
    });
    let span = |of: Option<(u32, u32)>| of.map_or("none".to_owned(), minors);
    let rows = changes.moments.iter().map(|moment| {
        vec![
            moment
                .step
                .as_ref()
                .map_or("now".to_owned(), ToString::to_string),
            format!("{} of {}", moment.running, moment.members),
            span(moment.api_servers),
            span(moment.kubelets),
        ]
    });
    let head = ["FROM", "ETCD MEMBERS UP", "API SERVERS", "KUBELETS"];
    text.push_str(&format!("\n\n{}", table(&head, rows)));
    text
}

/// The legs of an upgrade; the steps above are those of one.
fn legs(plan: &Plan, upgrade: &LegsForecast) -> String {
    let rows = upgrade.legs.iter().enumerate().map(|(at, leg)| {
        vec![
            format!("{}{}", at + 1, if at == upgrade.at { " *" } else { "" }),
            leg.kubernetes_version.clone(),
            leg.emulates
                .map_or_else(String::new, |minor| format!("1.{minor}")),
            leg.stemcell.clone(),
            minors(leg.api_servers),
            minors(leg.kubelets),
            match leg.api_down {
                true => format!("{} (API down)", leg.steps),
                false => leg.steps.to_string(),
            },
            leg.seconds
                .map_or("not known".to_owned(), |s| duration(s * 1000)),
            names(&leg.machines),
            names(&leg.restarted),
        ]
    });
    let head = [
        "LEG",
        "KUBERNETES",
        "EMULATES",
        "STEMCELL",
        "API SERVERS",
        "KUBELETS",
        "STEPS",
        "ABOUT",
        "MADE ANEW",
        "RESTARTED",
    ];
    let mut text = format!(
        "\n\nAPI servers go one minor at a time, and emulate the one before until all of them are there; the steps \
         above are\nthose of the leg with a star.\n\n{}",
        table(&head, rows)
    );
    for (at, leg) in upgrade.legs.iter().enumerate() {
        match &leg.way_back {
            None => {}
            Some(WayBack::Open { kubernetes_version }) => text.push_str(&format!(
                "\n\nUntil leg {} begins, a cancelled upgrade can go back: windlass cluster upgrade {} --to \
                 {kubernetes_version}",
                at + 2,
                plan.cluster
            )),
            Some(WayBack::Closed { why }) => {
                text.push_str(&format!("\n\nFrom leg {} there is no way back: {why}.", at + 1));
            }
        }
    }
    for (at, leg) in upgrade.legs.iter().enumerate() {
        let drains = drains(leg.drains.as_ref());
        if at != upgrade.at && !drains.is_empty() {
            text.push_str(&format!("\n\nLeg {}:{drains}", at + 1));
        }
    }
    text
}

/// What is in the way, and what to do about it.
fn hazards(hazards: &[Hazard]) -> String {
    let told = |hazard: &Hazard| {
        let Hazard {
            at, why, remedy, ..
        } = hazard;
        format!("\n\nIn the way: {at}: {why}\n  what to do: {remedy}")
    };
    hazards.iter().map(told).collect()
}

/// What the drains of a plan are expected to do.
fn drains(forecast: Option<&DrainForecast>) -> String {
    let rehearsal = match forecast {
        None => return String::new(),
        Some(DrainForecast::Unknown { why }) => {
            return format!("\n\nWhat drains will evict is not known: {why}");
        }
        Some(DrainForecast::Rehearsed { rehearsal }) => rehearsal,
    };
    let rows = rehearsal.nodes.iter().map(|node| {
        let pods: Vec<_> = node.evicted.iter().map(ToString::to_string).collect();
        vec![
            node.node.clone(),
            node.stay.to_string(),
            node.waits_for.join(", "),
            pods.join(", "),
        ]
    });
    let mut text = format!(
        "\n\n{}",
        table(&["DRAINED NODE", "STAY", "WAITS FOR", "EVICTED"], rows)
    );
    for finding in &rehearsal.findings {
        let then = match finding.deleted_after_seconds {
            Some(seconds) => format!("deleted past its budget after {seconds} s"),
            None => "the drain of its node stops there".to_owned(),
        };
        text.push_str(&format!(
            "\n\nBlocked on {}: pod {}: {} ({then})\n  to let it go: {}",
            finding.node, finding.pod, finding.why, finding.unblock
        ));
    }
    text.push_str(&hazards(&rehearsal.hazards));
    for unknown in &rehearsal.unknown {
        text.push_str(&format!("\n\nNot known: {unknown}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn explained(plan: Value) -> String {
        explain(&serde_json::from_value(plan).unwrap())
    }

    fn digest() -> String {
        format!("sha256:{}", "0a".repeat(32))
    }

    #[test]
    fn a_plan_with_nothing_to_do_says_so() {
        let plan = json!({"cluster": "demo", "goal": "present", "hash": digest(), "steps": []});
        assert_eq!(explained(plan), "cluster demo: nothing to do");
    }

    /// A step that waits for nothing.
    fn first_step() -> Value {
        json!({
            "key": "api/await",
            "action": {"kind": "awaitApi"},
            "why": "first",
            "guard": "step-ends",
            "disrupts": "nothing",
            "after": [],
        })
    }

    #[test]
    fn machines_that_change_are_listed_with_how_etcd_and_versions_are_meanwhile() {
        let plan = json!({
            "cluster": "demo",
            "goal": "present",
            "hash": digest(),
            "steps": [first_step()],
            "changes": {
                "created": ["demo-w-2"],
                "replaced": ["demo-cp-0", "demo-w-1"],
                "restarted": [],
                "deleted": ["demo-w-0"],
                "surge": {"w": ["demo-w-2"]},
                "moments": [
                    {"members": 1, "running": 1, "apiServers": [36, 36], "kubelets": [36, 36]},
                    {"step": "machine/demo-cp-0/stop", "members": 1, "running": 0, "kubelets": [36, 37]},
                ],
                "seconds": 95,
            },
        });
        let wanted = "\
cluster demo: 1 steps

STEP        DISRUPTS   WHY
api/await              first

1 created: demo-w-2
2 replaced: demo-cp-0, demo-w-1
1 deleted: demo-w-0
1 surge in pool w: demo-w-2
about 1m35s, by what such steps have taken here

FROM                     ETCD MEMBERS UP   API SERVERS   KUBELETS
now                      1 of 1            1.36          1.36
machine/demo-cp-0/stop   0 of 1            none          1.36-1.37

plan sha256:";
        let text = explained(plan.clone());
        assert!(text.starts_with(wanted), "{text}");
        let mut unknown = plan;
        unknown["changes"]["seconds"] = Value::Null;
        let text = explained(unknown);
        assert!(text.contains("\nhow long it takes is not known"), "{text}");
    }

    #[test]
    fn what_is_in_the_way_is_said_with_what_to_do() {
        let hazard = |kind: &str, at: &str| json!({"kind": kind, "at": at, "why": "it is", "remedy": "do this"});
        let plan = json!({
            "cluster": "demo",
            "goal": "present",
            "hash": digest(),
            "steps": [first_step()],
            "hazards": [hazard("certificate", "machine demo-cp-0")],
            "drains": {"state": "rehearsed", "rehearsal": {
                "nodes": [],
                "findings": [],
                "hazards": [hazard("webhook", "webhook w")],
                "unknown": ["which APIs are in use: no right"],
            }},
        });
        let text = explained(plan);
        for wanted in [
            "\n\nIn the way: machine demo-cp-0: it is\n  what to do: do this",
            "\n\nIn the way: webhook w: it is\n  what to do: do this",
            "\n\nNot known: which APIs are in use: no right",
        ] {
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn the_legs_of_an_upgrade_are_a_table_with_the_drains_of_those_that_come_later() {
        let leg = |version: &str, machines: &[&str], servers: [u32; 2], kubelets: [u32; 2]| {
            json!({
                "kubernetesVersion": version,
                "stemcell": format!("deb-{version}-0a1b"),
                "hash": digest(),
                "steps": 12,
                "machines": machines,
                "apiServers": servers,
                "kubelets": kubelets,
            })
        };
        let mut first = leg("1.37.2", &["demo-cp-0"], [36, 36], [36, 37]);
        first["seconds"] = json!(95);
        first["emulates"] = json!(36);
        first["wayBack"] = json!({"state": "open", "kubernetesVersion": "1.36.3"});
        let mut second = leg("1.38.0", &["demo-cp-0"], [36, 37], [36, 38]);
        second["emulates"] = json!(37);
        let why = "etcd 3.6.16 does not read what etcd 3.7.0 has written";
        second["wayBack"] = json!({"state": "closed", "why": why});
        let mut last = leg("1.38.0", &["demo-w-0"], [37, 38], [36, 38]);
        last["restarted"] = json!(["demo-cp-0"]);
        last["drains"] = json!({"state": "unknown", "why": "the API does not answer"});
        let plan = json!({
            "cluster": "demo",
            "goal": "present",
            "hash": digest(),
            "steps": [{
                "key": "api/await",
                "action": {"kind": "awaitApi"},
                "why": "nothing is touched while it does not answer",
                "guard": "step-ends",
                "disrupts": "nothing",
                "after": [],
            }],
            "upgrade": {"at": 0, "legs": [first, second, last]},
        });
        let text = explained(plan);
        let wanted = "\
cluster demo: 1 steps

STEP        DISRUPTS   WHY
api/await              nothing is touched while it does not answer

API servers go one minor at a time, and emulate the one before until all of them are there; the steps above are
those of the leg with a star.

LEG   KUBERNETES   EMULATES   STEMCELL          API SERVERS   KUBELETS    STEPS   ABOUT       MADE ANEW   RESTARTED
1 *   1.37.2       1.36       deb-1.37.2-0a1b   1.36          1.36-1.37   12      1m35s       demo-cp-0
2     1.38.0       1.37       deb-1.38.0-0a1b   1.36-1.37     1.36-1.38   12      not known   demo-cp-0
3     1.38.0                  deb-1.38.0-0a1b   1.37-1.38     1.36-1.38   12      not known   demo-w-0    demo-cp-0

Until leg 2 begins, a cancelled upgrade can go back: windlass cluster upgrade demo --to 1.36.3

From leg 2 there is no way back: etcd 3.6.16 does not read what etcd 3.7.0 has written.

Leg 3:

What drains will evict is not known: the API does not answer

plan sha256:";
        assert!(text.starts_with(wanted), "{text}");
    }
}
