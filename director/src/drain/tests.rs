//! The pure parts of a drain, as tables.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

/// A Ready pod of a controller on a node.
fn of(kind: &str, name: &str, node: &str) -> Value {
    json!({
        "metadata": {
            "namespace": "shop", "name": name, "uid": format!("uid-{name}"),
            "labels": {"app": name.split('-').next().unwrap()},
            "ownerReferences": [{"kind": kind, "name": "owner", "controller": true}],
        },
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    object
}

fn budget(name: &str, app: &str, desired: u32, current: u32) -> Budget {
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"desiredHealthy": desired, "currentHealthy": current, "expectedPods": current},
    }))
    .unwrap()
}

fn names(turn: &Turn) -> Vec<(String, How)> {
    match turn {
        Turn::Go(orders) => orders.iter().map(|o| (o.pod.name.clone(), o.how)).collect(),
        other => panic!("{other:?}"),
    }
}

fn accept(engine: &mut Engine, now: Duration, turn: &Turn) {
    let Turn::Go(orders) = turn else {
        panic!("{turn:?}")
    };
    for order in orders {
        engine.answered(now, order, Answer::Accepted);
    }
}

fn not_now(why: &str) -> Answer {
    Answer::NotNow {
        why: why.to_owned(),
        again_after: None,
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn waves_leave_one_after_the_other_and_daemons_stay() {
    let web = of("ReplicaSet", "web-1", "n");
    let data = of("StatefulSet", "db-0", "n");
    let claim = with(
        of("ReplicaSet", "disk-1", "n"),
        "/spec/volumes",
        json!([{"persistentVolumeClaim": {"claimName": "c"}}]),
    );
    let dns = with(
        of("ReplicaSet", "dns-1", "n"),
        "/spec/priority",
        json!(2_000_000_000),
    );
    let daemon = of("DaemonSet", "proxy-1", "n");
    let fixed = with(
        of("Node", "etcd-n", "n"),
        "/metadata/annotations",
        json!({"kubernetes.io/config.mirror": "x"}),
    );
    let over = with(of("Job", "job-1", "n"), "/status/phase", json!("Succeeded"));
    let all: Vec<Pod> = [&web, &data, &claim, &dns, &daemon, &fixed, &over]
        .into_iter()
        .map(|value| pod(value.clone()))
        .collect();
    let mut engine = Engine::new(DrainPolicy::default());
    let turn = engine.look(s(0), &all, &[]);
    assert_eq!(names(&turn), [("web-1".to_owned(), How::Evict)]);
    accept(&mut engine, s(0), &turn);
    let turn = engine.look(s(1), &all[1..], &[]);
    let stateful = [
        ("db-0".to_owned(), How::Evict),
        ("disk-1".to_owned(), How::Evict),
    ];
    assert_eq!(names(&turn), stateful);
    accept(&mut engine, s(1), &turn);
    let turn = engine.look(s(2), &all[3..], &[]);
    assert_eq!(names(&turn), [("dns-1".to_owned(), How::Evict)]);
    accept(&mut engine, s(2), &turn);
    let Turn::Done(drained) = engine.look(s(3), &all[4..], &[]) else {
        panic!("pods that stay keep the node from being empty")
    };
    assert_eq!(drained.evicted.len(), 4);
    assert!(drained.escalated.is_empty() && drained.held.is_empty());
}

#[test]
fn a_pod_that_its_budget_keeps_is_asked_again_and_later_each_time() {
    let pods = [pod(of("ReplicaSet", "web-1", "n"))];
    let mut engine = Engine::new(DrainPolicy::default());
    let mut asked_at = Vec::new();
    for tick in 0..200 {
        let now = Duration::from_millis(tick * 100);
        if let Turn::Go(orders) = engine.look(now, &pods, &[])
            && let [order] = &orders[..]
        {
            asked_at.push(now.as_millis());
            engine.answered(now, order, not_now("no"));
        }
    }
    assert_eq!(asked_at, [0, 500, 1500, 3500, 7500, 12500, 17500]);
    assert!(engine.is_blocked());
}

#[test]
fn a_server_that_wants_to_be_left_alone_is_within_bounds() {
    for (says, asked_again) in [(1, 1), (8, 8), (3600, 10)] {
        let pods = [pod(of("ReplicaSet", "web-1", "n"))];
        let mut engine = Engine::new(DrainPolicy::default());
        let Turn::Go(orders) = engine.look(s(0), &pods, &[]) else {
            panic!("it begins with an eviction")
        };
        let answer = Answer::NotNow {
            why: "not yet".to_owned(),
            again_after: Some(s(says)),
        };
        engine.answered(s(0), &orders[0], answer);
        let just_before = s(asked_again) - Duration::from_millis(1);
        assert_eq!(engine.look(just_before, &pods, &[]), Turn::Go(Vec::new()));
        assert_eq!(names(&engine.look(s(asked_again), &pods, &[])).len(), 1);
    }
}

#[test]
fn progress_says_who_is_waited_for_and_what_lets_them_go() {
    let ends = with(
        of("ReplicaSet", "ends-1", "n"),
        "/metadata/deletionTimestamp",
        json!("2026-01-01T00:00:00Z"),
    );
    let later = of("StatefulSet", "db-0", "n");
    let web = |index: u32| of("ReplicaSet", &format!("web-{index}"), "n");
    let pods: Vec<Pod> = [ends, later, web(1), web(2), web(3)].map(pod).into();
    let budgets = [budget("web", "web", 3, 3)];
    let mut engine = Engine::new(DrainPolicy::default());
    let turn = engine.look(s(0), &pods[..2], &[]);
    assert_eq!(turn, Turn::Go(Vec::new()));
    assert_eq!(
        engine.waits_for(&pods[..2], &[], ""),
        "2 pods to leave: shop/ends-1 (it ends (it may take 30 s)), shop/db-0 (its turn has not come)"
    );
    let Turn::Go(orders) = engine.look(s(1), &pods, &[]) else {
        panic!("three may be asked")
    };
    for order in &orders[..2] {
        engine.answered(s(1), order, not_now("429"));
    }
    engine.answered(s(1), &orders[2], Answer::Accepted);
    // One command for the budget that keeps both, and none for those that nobody keeps.
    let keeps = "PodDisruptionBudget shop/web needs 3 healthy pods and has 3 of 3";
    assert_eq!(
        engine.waits_for(&pods, &budgets, ", told by the node itself"),
        format!(
            "5 pods to leave, told by the node itself: shop/web-1 ({keeps}), shop/web-2 ({keeps}), shop/ends-1 (it ends (it may take \
             30 s)) and 2 more; to let them go: kubectl -n shop patch poddisruptionbudget web --type merge -p \
             '{{\"spec\":{{\"minAvailable\":null,\"maxUnavailable\":1}}}}'"
        )
    );
}

#[test]
fn what_lets_a_pod_go_does() {
    let web = of("ReplicaSet", "web-1", "n");
    let bare = with(web.clone(), "/metadata/ownerReferences", json!([]));
    let ill = with(web.clone(), "/status/conditions", json!([]));
    let with_expected = |current, expected| {
        let mut budget = budget("web", "web", 3, current);
        budget.expected_pods = expected;
        budget
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (&web,  3, 3, r#"{"spec":{"minAvailable":null,"maxUnavailable":1}}"#),
        // One is missing already: a budget of one would keep the others.
        (&web,  2, 3, r#"{"spec":{"minAvailable":null,"maxUnavailable":2}}"#),
        (&bare, 3, 3, r#"{"spec":{"minAvailable":2,"maxUnavailable":null}}"#),
        (&ill,  2, 3, r#"{"spec":{"unhealthyPodEvictionPolicy":"AlwaysAllow"}}"#),
    ];
    for (object, current, expected, patch) in cases {
        let budget = with_expected(current, expected);
        let mut engine = Engine::new(DrainPolicy {
            uncontrolled: Uncontrolled::Evict,
            ..DrainPolicy::default()
        });
        let pods = [pod(object.clone())];
        let Turn::Go(orders) = engine.look(s(0), &pods, &[]) else {
            panic!("it begins with an eviction")
        };
        engine.answered(s(0), &orders[0], not_now("429"));
        let said = engine.waits_for(&pods, &[budget], "");
        assert!(
            said.ends_with(&format!("--type merge -p '{patch}'")),
            "{said}"
        );
    }
}

#[test]
fn at_the_deadline_the_policy_decides() {
    let pods = [pod(of("ReplicaSet", "web-1", "n"))];
    let budgets = [budget("web", "web", 2, 2)];
    let policy = |escalation| DrainPolicy {
        deadline_ms: 60_000,
        escalation,
        ..DrainPolicy::default()
    };
    let refuse = |engine: &mut Engine| {
        let Turn::Go(orders) = engine.look(s(0), &pods, &budgets) else {
            panic!("it begins with an eviction")
        };
        engine.answered(s(0), &orders[0], not_now("429"));
    };

    let mut engine = Engine::new(policy(Escalation::Stop));
    refuse(&mut engine);
    let Turn::Late(blocked) = engine.look(s(60), &pods, &budgets) else {
        panic!("the deadline has passed")
    };
    let text = blocked[0].to_string();
    for part in [
        "shop/web-1",
        "PodDisruptionBudget shop/web needs 2 healthy pods and has 2 of 2",
        "kubectl -n shop patch poddisruptionbudget web --type merge",
    ] {
        assert!(text.contains(part), "{text}");
    }

    let mut engine = Engine::new(policy(Escalation::Delete));
    refuse(&mut engine);
    let turn = engine.look(s(60), &pods, &budgets);
    assert_eq!(names(&turn), [("web-1".to_owned(), How::Delete)]);
    accept(&mut engine, s(60), &turn);
    let Turn::Done(drained) = engine.look(s(61), &[], &budgets) else {
        panic!("it is empty")
    };
    assert_eq!(drained.escalated.len(), 1);
    assert!(drained.evicted.is_empty());
}

#[test]
fn pods_that_end_get_their_grace_beyond_the_deadline() {
    let ends = with(
        with(
            of("ReplicaSet", "web-1", "n"),
            "/metadata/deletionTimestamp",
            json!("2026-01-01T00:00:00Z"),
        ),
        "/spec/terminationGracePeriodSeconds",
        json!(120),
    );
    let pods = [pod(ends)];
    let mut engine = Engine::new(DrainPolicy {
        deadline_ms: 60_000,
        ..DrainPolicy::default()
    });
    assert_eq!(engine.look(s(0), &pods, &[]), Turn::Go(Vec::new()));
    assert_eq!(engine.look(s(239), &pods, &[]), Turn::Go(Vec::new()));
    assert!(matches!(engine.look(s(240), &pods, &[]), Turn::Late(_)));
}

#[test]
fn finalizers_hold_a_pod_and_not_the_drain() {
    let held = with(
        with(
            with(
                of("ReplicaSet", "web-1", "n"),
                "/metadata/deletionTimestamp",
                json!("2026-01-01T00:00:00Z"),
            ),
            "/metadata/finalizers",
            json!(["example.com/slow"]),
        ),
        "/status/phase",
        json!("Succeeded"),
    );
    let mut engine = Engine::new(DrainPolicy::default());
    let Turn::Done(drained) = engine.look(s(0), &[pod(held)], &[]) else {
        panic!("its containers are over")
    };
    assert_eq!(drained.held.len(), 1);
}

#[test]
fn what_the_policy_keeps_is_named_before_anything_leaves() {
    let bare = with(
        of("ReplicaSet", "bare-1", "n"),
        "/metadata/ownerReferences",
        json!([]),
    );
    let cache = with(
        of("ReplicaSet", "cache-1", "n"),
        "/spec/volumes",
        json!([{"emptyDir": {}}]),
    );
    let pods = [pod(of("ReplicaSet", "web-1", "n")), pod(bare), pod(cache)];
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (Uncontrolled::Keep,  EmptyDir::Keep, vec!["bare-1", "cache-1"]),
        (Uncontrolled::Keep,  EmptyDir::Lose, vec!["bare-1"]),
        (Uncontrolled::Evict, EmptyDir::Keep, vec!["cache-1"]),
        (Uncontrolled::Evict, EmptyDir::Lose, vec![]),
    ];
    for (uncontrolled, empty_dir, kept) in cases {
        let mut engine = Engine::new(DrainPolicy {
            uncontrolled,
            empty_dir,
            ..DrainPolicy::default()
        });
        match engine.look(s(0), &pods, &[]) {
            Turn::Refused(blocked) => {
                let names: Vec<&str> = blocked.iter().map(|b| b.pod.name.as_str()).collect();
                assert_eq!(names, kept);
            }
            Turn::Go(orders) => assert!(kept.is_empty() && orders.len() == 3),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn selectors_select_as_kubernetes_does() {
    let labelled = |labels: Value| {
        pod(with(
            of("ReplicaSet", "web-1", "n"),
            "/metadata/labels",
            labels,
        ))
    };
    let covers = |selector: Value, labels: Value| {
        let budget: Budget = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "b"},
            "spec": {"selector": selector},
        }))
        .unwrap();
        budget.covers(&labelled(labels))
    };
    let expression = |operator: &str, values: Value| {
        let rule = json!({"key": "tier", "operator": operator, "values": values});
        json!({ "matchExpressions": [rule] })
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (Value::Null,                                json!({"a": "b"}),      false),
        (json!({}),                                  json!({}),              true),
        (json!({"matchLabels": {"a": "b"}}),         json!({"a": "b"}),      true),
        (json!({"matchLabels": {"a": "b"}}),         json!({"a": "c"}),      false),
        (expression("In", json!(["x", "y"])),        json!({"tier": "y"}),   true),
        (expression("In", json!(["x", "y"])),        json!({}),              false),
        (expression("NotIn", json!(["x"])),          json!({}),              true),
        (expression("NotIn", json!(["x"])),          json!({"tier": "x"}),   false),
        (expression("Exists", json!([])),            json!({"tier": "x"}),   true),
        (expression("DoesNotExist", json!([])),      json!({"tier": "x"}),   false),
    ];
    for (selector, labels, wanted) in cases {
        let text = format!("{selector} {labels}");
        assert_eq!(covers(selector, labels), wanted, "{text}");
    }
}

fn nodes(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn one_by_one(names: &[&str]) -> Vec<Vec<String>> {
    names.iter().map(|name| vec![(*name).to_owned()]).collect()
}

#[test]
fn a_budget_that_never_allows_is_found_and_named() {
    let pods = [
        pod(of("ReplicaSet", "web-1", "a")),
        pod(of("ReplicaSet", "web-2", "b")),
    ];
    let rehearsal = rehearse(
        &pods,
        &[budget("web", "web", 2, 2)],
        &nodes(&["a", "b"]),
        &one_by_one(&["a", "b"]),
        &DrainPolicy::default(),
    );
    let found: Vec<(&str, &str)> = rehearsal
        .findings
        .iter()
        .map(|f| (f.node.as_str(), f.pod.name.as_str()))
        .collect();
    assert_eq!(found, [("a", "web-1"), ("b", "web-2")]);
    assert!(
        rehearsal.findings[0]
            .unblock
            .contains("poddisruptionbudget web")
    );
}

#[test]
fn a_batch_takes_off_the_budget_what_the_dry_run_of_the_api_does_not() {
    // One may leave: fine one by one, not both at once when there is nowhere else to go.
    let pods = [
        pod(of("ReplicaSet", "web-1", "a")),
        pod(of("ReplicaSet", "web-2", "b")),
        pod(of("ReplicaSet", "web-3", "c")),
    ];
    let budgets = [budget("web", "web", 2, 3)];
    let all = nodes(&["a", "b", "c"]);
    let policy = DrainPolicy::default();
    let single = rehearse(
        &pods,
        &budgets,
        &all,
        &one_by_one(&["a", "b", "c"]),
        &policy,
    );
    assert_eq!(single.findings, []);
    assert!(single.nodes.iter().all(|node| node.waits_for.is_empty()));
    let pair = [vec!["a".to_owned(), "b".to_owned()]];
    let together = rehearse(&pods, &budgets, &all, &pair, &policy);
    assert_eq!(together.findings, []);
    assert_eq!(together.nodes[1].waits_for, ["shop/web"]);
    let everything = [vec!["a".to_owned(), "b".to_owned(), "c".to_owned()]];
    let nowhere = rehearse(&pods, &budgets, &all, &everything, &policy);
    assert_eq!(nowhere.findings.len(), 2);
}

#[test]
fn pods_that_nothing_makes_again_are_missing_for_the_rest_of_the_sequence() {
    let bare = |name: &str, node: &str| {
        pod(with(
            of("ReplicaSet", name, node),
            "/metadata/ownerReferences",
            json!([]),
        ))
    };
    let pods = [bare("web-1", "a"), bare("web-2", "b")];
    let policy = DrainPolicy {
        uncontrolled: Uncontrolled::Evict,
        ..DrainPolicy::default()
    };
    // The budget allows one, and the one that went does not come back.
    let rehearsal = rehearse(
        &pods,
        &[budget("web", "web", 1, 2)],
        &nodes(&["a", "b", "c"]),
        &one_by_one(&["a", "b"]),
        &policy,
    );
    assert_eq!(rehearsal.findings.len(), 1);
    assert_eq!(rehearsal.findings[0].node, "b");
}

#[test]
fn two_budgets_over_one_pod_are_found() {
    let pods = [pod(of("ReplicaSet", "web-1", "a"))];
    let budgets = [budget("one", "web", 0, 1), budget("two", "web", 0, 1)];
    let rehearsal = rehearse(
        &pods,
        &budgets,
        &nodes(&["a", "b"]),
        &one_by_one(&["a"]),
        &DrainPolicy::default(),
    );
    assert!(rehearsal.findings[0].why.contains("shop/one and shop/two"));
    assert!(
        rehearsal.findings[0]
            .unblock
            .contains("delete poddisruptionbudget two")
    );
}

#[test]
fn an_unready_pod_leaves_when_its_budget_lets_it() {
    let unready = with(
        of("ReplicaSet", "web-1", "a"),
        "/status/conditions",
        json!([]),
    );
    let run = |budget: Budget| {
        let pods = [pod(unready.clone())];
        let sequence = one_by_one(&["a"]);
        rehearse(
            &pods,
            &[budget],
            &nodes(&["a", "b"]),
            &sequence,
            &DrainPolicy::default(),
        )
        .findings
        .len()
    };
    // Healthy enough without it; then not; then not, but the budget does not count unhealthy pods.
    assert_eq!(run(budget("web", "web", 1, 1)), 0);
    assert_eq!(run(budget("web", "web", 1, 0)), 1);
    let mut lenient = budget("web", "web", 1, 0);
    lenient.unhealthy_may_leave = true;
    assert_eq!(run(lenient), 0);
}

#[test]
fn the_taint_of_a_node_that_goes_leaves_other_taints_alone() {
    let node =
        |taints: Value| json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": taints}});
    let other = json!({"key": "other", "effect": "NoExecute", "value": "v"});
    let ours = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
    let taints = |node: Value, leaves| {
        api::leaving_patch(&node, leaves).map(|patch| {
            assert_eq!(patch["metadata"]["resourceVersion"], "7");
            patch["spec"]["taints"].clone()
        })
    };
    assert_eq!(
        taints(node(json!([other])), true),
        Some(json!([other, ours]))
    );
    assert_eq!(taints(node(json!([other, ours])), true), None);
    assert_eq!(
        taints(node(json!([other, ours])), false),
        Some(json!([other]))
    );
    assert_eq!(taints(node(json!([other])), false), None);
    assert_eq!(taints(node(Value::Null), true), Some(json!([ours])));
}

#[test]
fn only_what_we_closed_is_opened() {
    let node = |ours: bool, closed: bool| {
        let mark = if ours {
            json!({"windlass.internal/cordoned": "true"})
        } else {
            json!({})
        };
        serde_json::from_value(json!({
            "metadata": {"name": "n", "annotations": mark},
            "spec": {"unschedulable": closed},
        }))
        .unwrap()
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("open",                             node(false, false), true,  false),
        ("closed by an operator",            node(false, true),  false, false),
        ("closed by us",                     node(true, true),   false, true),
        ("opened by an operator meanwhile",  node(true, false),  true,  true),
    ];
    for (name, node, closes, opens) in cases {
        assert_eq!(api::cordon_patch(&node).is_some(), closes, "{name}");
        assert_eq!(api::uncordon_patch(&node).is_some(), opens, "{name}");
    }
}

mod hazards {
    use super::super::hazard::{removed_apis, webhooks};
    use super::super::{Hazard, HazardKind};
    use super::*;

    fn found(configuration: Value, pods: &[Value], sequence: &[&[&str]]) -> Vec<Hazard> {
        let configuration = serde_json::from_value(configuration).unwrap();
        let service = |name: &str, selector: Value| {
            serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": name},
                "spec": {"selector": selector},
            }))
            .unwrap()
        };
        let services = [
            service("guard", json!({"app": "guard"})),
            service("elsewhere", json!({})),
        ];
        let pods: Vec<Pod> = pods.iter().cloned().map(pod).collect();
        let batch = |batch: &&[&str]| batch.iter().map(ToString::to_string).collect();
        let sequence: Vec<Vec<String>> = sequence.iter().map(batch).collect();
        webhooks(
            "validatingwebhookconfiguration",
            &[configuration],
            &services,
            &pods,
            &sequence,
        )
    }

    fn asks(service: &str, policy: Option<&str>) -> Value {
        json!({
            "metadata": {"name": "guards"},
            "webhooks": [
                {"name": "outside.io", "clientConfig": {"url": "https://outside"}},
                {
                    "name": "guard.shop.io",
                    "clientConfig": {"service": {"namespace": "shop", "name": service}},
                    "failurePolicy": policy,
                },
            ],
        })
    }

    #[test]
    fn a_webhook_that_fails_closed_is_found_where_all_of_its_endpoints_leave_together() {
        let unready = with(
            of("ReplicaSet", "guard-2", "c"),
            "/status/conditions/0/status",
            json!("False"),
        );
        let one = [of("ReplicaSet", "guard-1", "a"), unready];
        let two = [
            of("ReplicaSet", "guard-1", "a"),
            of("ReplicaSet", "guard-2", "b"),
        ];
        let closed = || asks("guard", Some("Fail"));
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("its only endpoint leaves",       closed(),                       &one[..], &[&["b"][..], &["a"]][..], 1),
            ("it stays where it is",           closed(),                       &one,     &[&["b"], &["c"]],         0),
            ("one is left at each time",       closed(),                       &two,     &[&["a"], &["b"]],         0),
            ("both leave at the same time",    closed(),                       &two,     &[&["a", "b"]],            1),
            ("none is there to begin with",    closed(),                       &[],      &[&["a"]],                 1),
            ("the policy is Fail by default",  asks("guard", None),            &one,     &[&["a"]],                 1),
            ("it fails open",                  asks("guard", Some("Ignore")),  &one,     &[&["a"]],                 0),
            ("its endpoints are not known",    asks("elsewhere", None),        &one,     &[&["a"]],                 0),
            ("its Service is not there",       asks("gone", None),             &one,     &[&["a"]],                 1),
        ];
        for (name, configuration, pods, sequence, count) in cases {
            let hazards = found(configuration, pods, sequence);
            assert_eq!(hazards.len(), count, "{name}: {hazards:?}");
        }
        let hazard = &found(closed(), &one, &[&["a"]])[0];
        assert_eq!(hazard.kind, HazardKind::Webhook);
        let at = "validatingwebhookconfiguration guards, webhook guard.shop.io";
        assert_eq!(hazard.at, at);
        assert!(
            hazard.why.contains("Service shop/guard are on a, where"),
            "{hazard:?}"
        );
        // Its place among the webhooks is that of the command.
        let command = r#"--type=json -p '[{"op":"add","path":"/webhooks/1/failurePolicy","value":"Ignore"}]'"#;
        assert!(hazard.remedy.ends_with(command), "{hazard:?}");
    }

    #[test]
    fn apis_that_were_asked_for_and_are_gone_by_then_are_found_once() {
        let sample = |group: &str, resource: &str, release: &str, value: &str| {
            format!(
                "apiserver_requested_deprecated_apis{{group=\"{group}\",removed_release=\"{release}\",\
                 resource=\"{resource}\",subresource=\"\",version=\"v1beta1\"}} {value}\n"
            )
        };
        let first = [
            "# HELP apiserver_requested_deprecated_apis Gauge of deprecated APIs\n".to_owned(),
            sample("policy", "podsecuritypolicies", "1.38", "1"),
            sample("batch", "cronjobs", "1.39", "1"),
            sample("", "componentstatuses", "", "1"),
            sample("apps", "daemonsets", "1.38", "0"),
        ];
        let second = [sample("policy", "podsecuritypolicies", "1.38", "1")];
        let metrics = [first.concat(), second.concat()];
        let at = |minor: u32| -> Vec<String> {
            removed_apis(&metrics, minor)
                .into_iter()
                .map(|of| of.at)
                .collect()
        };
        assert!(at(37).is_empty(), "{:?}", at(37));
        assert_eq!(at(38), ["podsecuritypolicies of policy/v1beta1"]);
        let both = [
            "cronjobs of batch/v1beta1",
            "podsecuritypolicies of policy/v1beta1",
        ];
        assert_eq!(at(39), both);
    }
}

#[test]
fn pods_of_the_system_have_to_be_ready_unless_they_never_will_be() {
    let unready = |kind: &str, name: &str| {
        with(
            of(kind, name, "a"),
            "/status/conditions/0/status",
            json!("False"),
        )
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("a Ready one",             of("DaemonSet", "a", "a"),                                                             false),
        ("of a daemon set",         unready("DaemonSet", "a"),                                                             true),
        ("of a deployment",         unready("ReplicaSet", "a"),                                                            true),
        ("a static one",            unready("Node", "a"),                                                                  true),
        ("of a Job",                unready("Job", "a"),                                                                   false),
        ("one that is over",        with(unready("DaemonSet", "a"), "/status/phase", json!("Failed")),                     false),
        ("one that ends",           with(unready("DaemonSet", "a"), "/metadata/deletionTimestamp", json!("2030-01-01")),   false),
        ("one that has not begun",  with(of("DaemonSet", "a", "a"), "/status", json!({"phase": "Pending"})),               true),
    ];
    for (name, value, waited_for) in cases {
        let left = system::not_ready(&[pod(value)]);
        assert_eq!(!left.is_empty(), waited_for, "{name}");
    }
    let pods = (0..7).map(|at| pod(unready("DaemonSet", &format!("net-{at}"))));
    let error = SystemPodsError::NotReady {
        node: NodeName::new("n-i1").unwrap(),
        pods: system::not_ready(&pods.collect::<Vec<_>>()),
    };
    assert_eq!(
        error.to_string(),
        "node n-i1 is Ready, and pods of kube-system on it are not: net-0, net-1, net-2, net-3, net-4 and 2 more; \
         `kubectl -n kube-system describe pod net-0` says why"
    );
}
