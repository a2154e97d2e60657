//! What has to be so before a change goes on from one machine to the next.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use hyper::Uri;
use serde_json::Value;
use windlass_common::gate::{
    GATE_DELAY_MAX_SECONDS, GATE_TIMEOUT_MAX_SECONDS, GATES_MAX, GateCheck, GateSpec, HttpGate,
    JobGate, PromqlExpect, PromqlGate, PromqlServer, ServicePort,
};

use super::Fields;
use super::fault::{Faults, shown};

/// Longest URL, bytes.
const URL_BYTES_MAX: usize = 2048;
/// Longest query, bytes: with all of it percent-encoded, still a line that servers take.
const QUERY_BYTES_MAX: usize = 4096;
/// Longest name, bytes: a DNS label.
const NAME_BYTES_MAX: usize = 63;
/// How long a URL may take to answer, seconds.
const TIMEOUT_SECONDS: RangeInclusive<u32> = 1..=GATE_TIMEOUT_MAX_SECONDS;
/// How often it has to answer.
const SUCCESSES: RangeInclusive<u32> = 1..=100;
/// How long nobody looks, seconds.
const DELAY_SECONDS: RangeInclusive<u32> = 0..=GATE_DELAY_MAX_SECONDS;
/// Time between two looks, seconds.
const INTERVAL_SECONDS: RangeInclusive<u32> = 1..=300;
/// Ports of a Service.
const PORTS: RangeInclusive<u32> = 1..=65_535;
const HTTP: &str = "http";
const PROMQL: &str = "promql";
/// What a gate may be.
const KINDS: [&str; 3] = [HTTP, PROMQL, "job"];

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
    let given = KINDS.map(|kind| (kind, fields.take(kind)));
    let mut given = given
        .iter()
        .filter_map(|(kind, value)| Some((*kind, (*value)?)));
    let check = match (given.next(), given.next()) {
        (Some((kind, value)), None) => {
            let path = fields.path(kind);
            match kind {
                HTTP => http(value, &path, faults).map(GateCheck::Http),
                PROMQL => promql(value, &path, faults).map(GateCheck::Promql),
                _ => job(value, &path, faults).map(GateCheck::Job),
            }
        }
        (first, second) => {
            let found = match (first, second) {
                (Some((a, _)), Some((b, _))) => format!("{a} and {b}"),
                _ => "not given".to_owned(),
            };
            let allowed =
                "one of http with its url, promql with its query, and job with its cronJob";
            faults.add(path, found, allowed);
            None
        }
    };
    fields.close(faults);
    Some(GateSpec {
        name: name?,
        check: check?,
    })
}

fn http(value: &Value, path: &str, faults: &mut Faults) -> Option<HttpGate> {
    let mut fields = Fields::open(value, path, faults)?;
    let url = url(&mut fields, faults);
    let timeout = fields.number("timeoutSeconds", 60, &TIMEOUT_SECONDS, "seconds", faults);
    let successes = fields.number("successThreshold", 1, &SUCCESSES, "answers", faults);
    fields.close(faults);
    Some(HttpGate {
        url: url?,
        timeout_seconds: timeout?,
        success_threshold: successes?,
    })
}

fn url(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<String> {
    let allowed = "a URL like http://shop.example:8080/healthz, without user and without TLS";
    fields.required("url", allowed, faults, |text| {
        usable(text).then(|| text.to_owned())
    })
}

fn promql(value: &Value, path: &str, faults: &mut Faults) -> Option<PromqlGate> {
    let mut fields = Fields::open(value, path, faults)?;
    let server = match fields.take("service") {
        Some(service) => {
            let path = fields.path("service");
            if let Some(url) = fields.take("url") {
                let allowed = "not given: the service is asked";
                faults.add(fields.path("url"), shown(url), allowed);
            }
            service_port(service, &path, faults).map(PromqlServer::Service)
        }
        None => url(&mut fields, faults).map(PromqlServer::Url),
    };
    let allowed = "a query of PromQL of at most 4096 characters, for an instant vector or a scalar";
    let query = fields.required("query", allowed, faults, |text| {
        let fits = !text.trim().is_empty() && text.len() <= QUERY_BYTES_MAX;
        fits.then(|| text.to_owned())
    });
    let allowed = "nonZero (there are samples, and none is 0 or NaN) or empty (there are none)";
    let default = PromqlExpect::default();
    let expect = fields.optional("expect", default, allowed, faults, |text| match text {
        "nonZero" => Some(PromqlExpect::NonZero),
        "empty" => Some(PromqlExpect::Empty),
        _ => None,
    });
    let delay = fields.number("initialDelaySeconds", 0, &DELAY_SECONDS, "seconds", faults);
    let interval = fields.number("intervalSeconds", 10, &INTERVAL_SECONDS, "seconds", faults);
    let timeout = fields.number("timeoutSeconds", 300, &TIMEOUT_SECONDS, "seconds", faults);
    let successes = fields.number("successThreshold", 1, &SUCCESSES, "answers", faults);
    fields.close(faults);
    Some(PromqlGate {
        server: server?,
        query: query?,
        expect: expect?,
        initial_delay_seconds: delay?,
        interval_seconds: interval?,
        timeout_seconds: timeout?,
        success_threshold: successes?,
    })
}

fn service_port(value: &Value, path: &str, faults: &mut Faults) -> Option<ServicePort> {
    let mut fields = Fields::open(value, path, faults)?;
    let namespace = named(&mut fields, "namespace", faults);
    let name = named(&mut fields, "name", faults);
    let port = fields.number("port", 9090, &PORTS, "the Service", faults);
    fields.close(faults);
    Some(ServicePort {
        namespace: namespace?,
        name: name?,
        port: u16::try_from(port?).ok()?,
    })
}

fn job(value: &Value, path: &str, faults: &mut Faults) -> Option<JobGate> {
    let mut fields = Fields::open(value, path, faults)?;
    let namespace = named(&mut fields, "namespace", faults);
    let cron_job = named(&mut fields, "cronJob", faults);
    let timeout = fields.number("timeoutSeconds", 300, &TIMEOUT_SECONDS, "seconds", faults);
    fields.close(faults);
    Some(JobGate {
        namespace: namespace?,
        cron_job: cron_job?,
        timeout_seconds: timeout?,
    })
}

/// The name of an object of the cluster.
fn named(fields: &mut Fields<'_>, key: &'static str, faults: &mut Faults) -> Option<String> {
    let allowed = "a name in the cluster: at most 63 lower-case letters, digits and '-'";
    fields.required(key, allowed, faults, |text| {
        label(text).then(|| text.to_owned())
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
        let GateCheck::Http(http) = &gates[0].check else {
            panic!("{gates:?}");
        };
        assert_eq!((http.timeout_seconds, http.success_threshold), (60, 1));
        // What the API shows can be sent back.
        assert_eq!(read(serde_json::to_value(&gates).unwrap()), Ok(gates));
        let bad = json!([
            {"name": "Shop", "http": {"url": "https://shop/"}},
            {"name": "a", "http": {"url": "http://user@shop/", "timeoutSeconds": 0}},
            {"name": "b", "prometheus": {}},
            {"name": "c", "http": {"url": "http://shop/"}},
            {"name": "c", "http": {"url": "http://shop/"}},
            {"name": "d", "http": {"url": "http://shop/"}, "job": {}},
            {"name": "e", "promql": {"url": "http://p", "service": {"name": "P"}, "expect": "yes"}},
            {"name": "f", "job": {"namespace": "a/b", "timeoutSeconds": 4000}},
        ]);
        let said = read(bad).unwrap_err();
        for key in [
            "gates.0.name",
            "gates.0.http.url",
            "gates.1.http.url",
            "gates.1.http.timeoutSeconds",
            "gates.2:",
            "gates.2.prometheus",
            "gates.4.name",
            "gates.5: http and job",
            "gates.6.promql.url",
            "gates.6.promql.service.namespace",
            "gates.6.promql.service.name",
            "gates.6.promql.query",
            "gates.6.promql.expect",
            "gates.7.job.namespace",
            "gates.7.job.cronJob",
            "gates.7.job.timeoutSeconds",
        ] {
            assert!(said.contains(key), "{key} is not named in {said}");
        }
        assert!(read(json!("all")).is_err());
    }

    #[test]
    fn queries_and_jobs_are_read_with_their_defaults() {
        let gates = read(json!([
            {"name": "errors", "promql": {"query": "job:errors:ratio5m < 0.01",
                "service": {"namespace": "monitoring", "name": "prometheus"}}},
            {"name": "smoke", "job": {"namespace": "shop", "cronJob": "smoke"}},
        ]))
        .unwrap();
        let GateCheck::Promql(promql) = &gates[0].check else {
            panic!("{gates:?}");
        };
        assert_eq!(promql.expect, PromqlExpect::NonZero);
        let PromqlServer::Service(service) = &promql.server else {
            panic!("{promql:?}");
        };
        assert_eq!(service.proxied(), "prometheus:9090");
        assert_eq!(read(serde_json::to_value(&gates).unwrap()), Ok(gates));
    }
}
