//! What has to be so before a change goes on from one machine to the next.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use hyper::Uri;
use serde_json::Value;
use windlass_common::cluster::{GATE_TIMEOUT_MAX_SECONDS, GATES_MAX, GateSpec, HttpGate};

use super::Fields;
use super::fault::{Faults, shown};

/// Longest URL, bytes.
const URL_BYTES_MAX: usize = 2048;
/// Longest name, bytes: a DNS label.
const NAME_BYTES_MAX: usize = 63;
/// How long a URL may take to answer, seconds.
const TIMEOUT_SECONDS: RangeInclusive<u32> = 1..=GATE_TIMEOUT_MAX_SECONDS;
/// How often it has to answer.
const SUCCESSES: RangeInclusive<u32> = 1..=100;

/// Reads `gates` of a cluster.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> Vec<GateSpec> {
    let path = fields.path("gates");
    let Some(value) = fields.take("gates") else {
        return Vec::new();
    };
    let list = value.as_array().filter(|list| list.len() <= GATES_MAX);
    let Some(list) = list else {
        faults.add(
            path,
            shown(value),
            format!("a list of at most {GATES_MAX} gates"),
        );
        return Vec::new();
    };
    let mut names = BTreeSet::new();
    let mut gates = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let path = format!("{path}.{index}");
        let Some(gate) = gate(value, &path, faults) else {
            continue;
        };
        if !names.insert(gate.name.clone()) {
            faults.add(
                format!("{path}.name"),
                gate.name,
                "a name that no other gate has",
            );
            continue;
        }
        gates.push(gate);
    }
    gates
}

fn gate(value: &Value, path: &str, faults: &mut Faults) -> Option<GateSpec> {
    let mut fields = Fields::open(value, path, faults)?;
    let allowed = "a DNS label of at most 63 lower-case letters, digits and '-'";
    let name = fields.required("name", allowed, faults, |text| {
        label(text).then(|| text.to_owned())
    });
    let http = match fields.take("http") {
        Some(value) => http(value, &fields.path("http"), faults),
        None => {
            faults.add(
                fields.path("http"),
                "not given",
                "an HTTP gate with its url",
            );
            None
        }
    };
    fields.close(faults);
    Some(GateSpec {
        name: name?,
        http: http?,
    })
}

fn http(value: &Value, path: &str, faults: &mut Faults) -> Option<HttpGate> {
    let mut fields = Fields::open(value, path, faults)?;
    let allowed = "a URL like http://shop.example:8080/healthz, without user and without TLS";
    let url = fields.required("url", allowed, faults, |text| {
        usable(text).then(|| text.to_owned())
    });
    let timeout = fields.number("timeoutSeconds", 60, &TIMEOUT_SECONDS, "seconds", faults);
    let successes = fields.number("successThreshold", 1, &SUCCESSES, "answers", faults);
    fields.close(faults);
    Some(HttpGate {
        url: url?,
        timeout_seconds: timeout?,
        success_threshold: successes?,
    })
}

fn usable(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else {
        return false;
    };
    let authority = uri.authority();
    text.len() <= URL_BYTES_MAX
        && uri.scheme_str() == Some("http")
        && authority.is_some_and(|authority| !authority.as_str().contains('@'))
}

fn label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(gates: Value) -> Result<Vec<GateSpec>, String> {
        let input = json!({ "gates": gates });
        let mut faults = Faults::default();
        let gates = Fields::open(&input, "", &mut faults)
            .map(|mut fields| parse(&mut fields, &mut faults))
            .unwrap_or_default();
        if faults.is_empty() {
            Ok(gates)
        } else {
            Err(faults.to_string())
        }
    }

    #[test]
    fn gates_are_read_with_their_defaults_and_every_fault_is_named() {
        let gates = read(json!([{"name": "shop", "http": {"url": "http://10.0.0.9:80/ok"}}]));
        let gates = gates.unwrap();
        assert_eq!(gates[0].http.timeout_seconds, 60);
        assert_eq!(gates[0].http.success_threshold, 1);
        // What the API shows can be sent back.
        assert_eq!(read(serde_json::to_value(&gates).unwrap()), Ok(gates));
        let bad = json!([
            {"name": "Shop", "http": {"url": "https://shop/"}},
            {"name": "a", "http": {"url": "http://user@shop/", "timeoutSeconds": 0}},
            {"name": "b", "prometheus": {}},
            {"name": "c", "http": {"url": "http://shop/"}},
            {"name": "c", "http": {"url": "http://shop/"}},
        ]);
        let said = read(bad).unwrap_err();
        for key in [
            "gates.0.name",
            "gates.0.http.url",
            "gates.1.http.url",
            "gates.1.http.timeoutSeconds",
            "gates.2.http",
            "gates.2.prometheus",
            "gates.4.name",
        ] {
            assert!(said.contains(key), "{key} is not named in {said}");
        }
        assert!(read(json!("all")).is_err());
    }
}
