//! Add-ons fit together and ask for no more than they say.

use std::collections::BTreeSet;

use super::super::fixtures::{CONTAINER, cluster};
use super::*;

fn name(object: &Value) -> (String, String) {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    (text("/kind"), text("/metadata/name"))
}

#[test]
fn objects_are_named_once_and_bindings_come_after_roles() {
    let objects = bootstrap_objects(&cluster(1, 2, CONTAINER));
    let mut seen = BTreeSet::new();
    for object in &objects {
        if let Some(role) = object.pointer("/roleRef/name").and_then(Value::as_str)
            && role.starts_with("windlass:")
        {
            assert!(
                seen.iter().any(|(_, name)| name == role),
                "{role} is bound before it exists"
            );
        }
        assert!(seen.insert(name(object)), "{object:#}");
    }
}

#[test]
fn the_director_may_patch_exactly_what_it_maintains() {
    let facts = cluster(1, 2, CONTAINER);
    let maintained: BTreeSet<String> = maintained_objects(&facts)
        .iter()
        .map(|o| name(o).1)
        .collect();
    let role = bootstrap_objects(&facts)
        .into_iter()
        .find(|o| name(o) == ("Role".to_owned(), "windlass:addons".to_owned()))
        .unwrap();
    let mut allowed = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["verbs"], json!(["get", "patch"]));
        allowed.extend(
            rule["resourceNames"]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.to_string()),
        );
    }
    let quoted = maintained.iter().map(|name| format!("{name:?}")).collect();
    assert_eq!(allowed, quoted);
}

#[test]
fn no_rule_has_a_wildcard() {
    for object in bootstrap_objects(&cluster(1, 2, CONTAINER)) {
        let rules = object["rules"].as_array().cloned().unwrap_or_default();
        assert!(
            !rules.iter().any(|rule| rule.to_string().contains("\"*\"")),
            "{object:#}"
        );
    }
}

#[test]
fn gates_give_the_director_what_they_name_and_no_more() {
    let mut facts = cluster(1, 2, CONTAINER);
    let without = bootstrap_objects(&facts).len();
    let gates = json!([
        {"name": "a", "http": {"url": "http://a/", "timeoutSeconds": 1, "successThreshold": 1}},
        {"name": "b", "job": {"namespace": "shop", "cronJob": "smoke", "timeoutSeconds": 60}},
        {"name": "c", "promql": {"service": {"namespace": "mon", "name": "prom", "port": 9090},
            "query": "up", "expect": "nonZero", "initialDelaySeconds": 0, "intervalSeconds": 5,
            "timeoutSeconds": 60, "successThreshold": 1}},
    ]);
    facts.spec.gates = serde_json::from_value(gates).unwrap();
    let objects = bootstrap_objects(&facts);
    let added = &objects[without..];
    let names: Vec<_> = added
        .iter()
        .map(|o| (name(o), o["metadata"]["namespace"].as_str().unwrap_or("")))
        .map(|((kind, name), namespace)| format!("{kind} {namespace}/{name}"))
        .collect();
    assert_eq!(
        names,
        [
            "Namespace /mon",
            "Role mon/windlass:gates",
            "RoleBinding mon/windlass:gates",
            "Namespace /shop",
            "Role shop/windlass:gates",
            "RoleBinding shop/windlass:gates",
        ]
    );
    assert_eq!(
        added[1]["rules"],
        json!([{"apiGroups": [""], "resources": ["services/proxy"],
            "resourceNames": ["prom:9090"], "verbs": ["get"]}])
    );
    assert_eq!(
        added[4]["rules"],
        json!([
            {"apiGroups": ["batch"], "resources": ["cronjobs"], "resourceNames": ["smoke"], "verbs": ["get"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "create", "delete"]},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        ])
    );
}

#[test]
fn dns_forwards_only_where_a_name_server_is_known() {
    let mut facts = cluster(1, 2, CONTAINER);
    let corefile = |facts: &ClusterFacts| {
        maintained_objects(facts)
            .iter()
            .find_map(|o| {
                o.pointer("/data/Corefile")
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            })
            .unwrap()
    };
    assert!(corefile(&facts).contains("forward . 10.88.0.1 {"));
    facts.upstream_dns.clear();
    assert!(!corefile(&facts).contains("forward"));
}

#[test]
fn nodes_are_told_role_pool_zone_and_pod_network() {
    let mut facts = cluster(1, 1, CONTAINER);
    facts.machines[1].zone = Some("a".parse().unwrap());
    assert_eq!(
        node_patch(&facts, &facts.machines[0]),
        json!({
            "metadata": {"labels": {
                "node-role.kubernetes.io/control-plane": "",
                "windlass.internal/machine": "demo-control-0",
            }},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
        })
    );
    assert_eq!(
        node_patch(&facts, &facts.machines[1])["metadata"]["labels"],
        json!({
            "tier": "gold",
            "topology.kubernetes.io/zone": "a",
            "windlass.internal/machine": "demo-workers-0",
            "windlass.internal/pool": "workers",
        })
    );
}
