//! The OpenAPI document: committed, complete, consistent.

use std::collections::BTreeSet;

use axum::http::Method;
use serde_json::Value;

use super::access::{RULES, Rule, rule};
use super::kubernetes::ROUTES;
use super::openapi_json;
use crate::model::Role;

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let served = openapi_json();
    if std::env::var_os("WINDLASS_BLESS").is_some() {
        std::fs::write(path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    // Line by line: the whole document would drown what differs.
    let differs = committed
        .lines()
        .zip(served.lines())
        .position(|(a, b)| a != b);
    if let Some(line) = differs {
        let text = |document: &str| document.lines().nth(line).unwrap_or("").to_owned();
        let (was, is) = (text(&committed), text(&served));
        panic!(
            "docs/openapi.json line {}: {was:?} is now {is:?}; WINDLASS_BLESS=1 accepts it",
            line + 1
        );
    }
    assert_eq!(
        committed.len(),
        served.len(),
        "WINDLASS_BLESS=1 accepts the new document"
    );
}

#[test]
fn operations_have_ids_of_their_own_and_references_lead_somewhere() {
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{method} {path}: {id} is taken");
            assert!(
                operation["summary"].is_string(),
                "{method} {path} has a summary"
            );
        }
    }
    let mut references = BTreeSet::new();
    collect(&document, &mut references);
    for reference in &references {
        let pointer = reference.trim_start_matches('#');
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    assert!(!references.is_empty());
}

/// Paths that the document does not describe.
const UNDOCUMENTED: [&str; 3] = ["/v1/openapi.json", ROUTES[0], ROUTES[1]];

/// Every operation that the document describes: method and path.
fn operations() -> BTreeSet<(String, String)> {
    let document: Value = serde_json::from_str(&openapi_json()).unwrap();
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            operations.insert((method.to_uppercase(), path.clone()));
        }
    }
    operations
}

#[test]
fn each_route_has_one_rule_and_each_rule_a_route() {
    let rules: Vec<(String, String)> = RULES
        .iter()
        .filter(|(_, path, _)| !UNDOCUMENTED.contains(path))
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    let unique: BTreeSet<_> = rules.iter().cloned().collect();
    assert_eq!(unique.len(), rules.len(), "a route has two rules");
    let operations = operations();
    let without: Vec<_> = operations.difference(&unique).collect();
    assert!(without.is_empty(), "routes without a rule: {without:?}");
    let idle: Vec<_> = unique.difference(&operations).collect();
    assert!(idle.is_empty(), "rules without a route: {idle:?}");
}

#[test]
fn what_changes_something_is_not_for_viewers() {
    for (method, path, role) in RULES {
        let looks = *method == "GET" || UNDOCUMENTED.contains(path);
        // One's own certificate anew changes nothing of anybody else's.
        let own = *path == "/v1/director/ca/certificate";
        assert!(looks || own || *role > Role::Viewer, "{method} {path}");
    }
    assert_eq!(
        rule(&Method::HEAD, "/v1/clusters"),
        Rule::Least(Role::Viewer)
    );
    assert_eq!(rule(&Method::PUT, ROUTES[1]), Rule::Least(Role::Viewer));
    assert_eq!(rule(&Method::PUT, "/v1/clusters"), Rule::NoSuchMethod);
    assert_eq!(rule(&Method::GET, "/v1/secrets"), Rule::Missing);
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                references.insert(reference.clone());
            }
            map.values().for_each(|value| collect(value, references));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, references)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
