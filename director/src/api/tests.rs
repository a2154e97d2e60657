//! The OpenAPI document: committed, complete, consistent.

use std::collections::BTreeSet;

use serde_json::Value;

use super::openapi_json;

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
