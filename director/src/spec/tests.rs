//! Table and property tests of the parser.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn around() -> Surroundings {
    Surroundings {
        kubernetes_versions: ["1.9.9", "1.36.3", "1.37.2"]
            .into_iter()
            .filter_map(KubernetesVersion::new)
            .collect(),
        reserved: vec![(
            "the machine network".to_owned(),
            "10.77.0.0/16".parse().unwrap(),
        )],
    }
}

fn keys(input: &Value) -> Vec<String> {
    match parse(input, &around()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.list().iter().map(|f| f.key.clone()).collect(),
    }
}

#[test]
fn workers_fence_themselves_only_where_it_is_asked_for() {
    let of = |pool: Value| {
        let input = json!({"name": "demo", "pools": {"w": pool}});
        let spec = parse(&input, &around()).map_err(|_| keys(&input))?;
        Ok::<_, Vec<String>>(spec.pools.values().next().unwrap().self_fence)
    };
    let seconds = |pool| of(pool).unwrap().map(|of| of.after_seconds);
    assert_eq!(seconds(json!({"count": 1})), None);
    assert_eq!(seconds(json!({"count": 1, "selfFence": {}})), Some(120));
    assert_eq!(
        seconds(json!({"count": 1, "selfFence": {"afterSeconds": 30}})),
        Some(30)
    );
    for bad in [json!(29), json!(3601), json!("60"), json!(-1)] {
        let faults = of(json!({"count": 1, "selfFence": {"afterSeconds": bad}})).unwrap_err();
        assert_eq!(faults, ["pools.w.selfFence.afterSeconds"], "{bad}");
    }
    let control_plane = json!({"name": "demo", "controlPlane": {"selfFence": {}}});
    assert_eq!(keys(&control_plane), ["controlPlane.selfFence"]);
}

#[test]
fn a_name_is_enough() {
    let spec = parse(&json!({"name": "demo"}), &around()).unwrap();
    assert_eq!(
        spec.kubernetes_version, "1.37.2",
        "the newest, by number and not by text"
    );
    assert_eq!(spec.control_plane.count, 1);
    let pools: Vec<_> = spec
        .pools
        .iter()
        .map(|(n, p)| (n.as_str(), p.count))
        .collect();
    assert_eq!(pools, [("workers", 2)]);
    assert_eq!(spec.network.pod_cidr.to_string(), "10.244.0.0/16");
    assert_eq!(spec.network.service_cidr.to_string(), "10.96.0.0/16");
}

#[test]
fn everything_can_be_said_and_yaml_is_json() {
    let yaml = "
name: prod
kubernetesVersion: v1.36.3
controlPlane: {count: 3, size: {cpuMillis: 4000, memoryMib: 8192, diskMib: 20480}}
pools:
  web: {count: 5, labels: {tier: web, example.com/zone: \"1\"}}
  none: {count: 0}
network: {podCidr: 10.200.0.0/16, serviceCidr: 172.20.0.0/16}
";
    let spec = parse(&from_text(yaml).unwrap(), &around()).unwrap();
    assert_eq!(spec.kubernetes_version, "1.36.3");
    assert_eq!(spec.control_plane.size.memory_mib, 8192);
    let web = &spec.pools[&PoolName::new("web").unwrap()];
    assert_eq!(
        (web.count, web.labels["example.com/zone"].as_str()),
        (5, "1")
    );
}

#[test]
fn each_fault_is_found() {
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: &[(&str, Value, &[&str])] = &[
        ("not an object", json!([]), &["(the whole input)"]),
        ("no name", json!({}), &["name"]),
        ("bad name", json!({"name": "Demo_1"}), &["name"]),
        ("long name", json!({"name": "a".repeat(25)}), &["name"]),
        ("name of a wrong type", json!({"name": 7}), &["name"]),
        ("unknown field", json!({"name": "a", "colour": 1}), &["colour"]),
        ("unknown field below", json!({"name": "a", "pools": {"w": {"size": {"cpu": 1}}}}), &["pools.w.size.cpu"]),
        ("unknown version", json!({"name": "a", "kubernetesVersion": "1.35.0"}), &["kubernetesVersion"]),
        ("version as a number", json!({"name": "a", "kubernetesVersion": 1.37}), &["kubernetesVersion"]),
        ("even count", json!({"name": "a", "controlPlane": {"count": 2}}), &["controlPlane.count"]),
        ("zero count", json!({"name": "a", "controlPlane": {"count": 0}}), &["controlPlane.count"]),
        ("seven", json!({"name": "a", "controlPlane": {"count": 7}}), &["controlPlane.count"]),
        ("negative", json!({"name": "a", "pools": {"w": {"count": -1}}}), &["pools.w.count"]),
        ("fraction", json!({"name": "a", "pools": {"w": {"count": 1.5}}}), &["pools.w.count"]),
        ("text count", json!({"name": "a", "pools": {"w": {"count": "2"}}}), &["pools.w.count"]),
        ("too many", json!({"name": "a", "pools": {"w": {"count": 1001}}}), &["pools.w.count"]),
        ("pool name", json!({"name": "a", "pools": {"W": {}}}), &["pools.W"]),
        ("reserved pool name", json!({"name": "a", "pools": {"control-plane": {}}}), &["pools.control-plane"]),
        ("pools as a list", json!({"name": "a", "pools": []}), &["pools"]),
        ("pool as a number", json!({"name": "a", "pools": {"w": 2}}), &["pools.w"]),
        ("no memory", json!({"name": "a", "controlPlane": {"size": {"memoryMib": 0}}}), &["controlPlane.size.memoryMib"]),
        ("control plane too small", json!({"name": "a", "controlPlane": {"size": {"memoryMib": 512}}}), &["controlPlane.size.memoryMib"]),
        ("too much CPU", json!({"name": "a", "pools": {"w": {"size": {"cpuMillis": 4_000_000_000u64}}}}), &["pools.w.size.cpuMillis"]),
        ("label value", json!({"name": "a", "pools": {"w": {"labels": {"a": 1}}}}), &["pools.w.labels.a"]),
        ("label key", json!({"name": "a", "pools": {"w": {"labels": {"-a": "x"}}}}), &["pools.w.labels.-a"]),
        ("label of Kubernetes", json!({"name": "a", "pools": {"w": {"labels": {"node-role.kubernetes.io/x": ""}}}}), &["pools.w.labels.node-role.kubernetes.io/x"]),
        ("no CIDR", json!({"name": "a", "network": {"podCidr": "10.0.0.1"}}), &["network.podCidr"]),
        ("host bits", json!({"name": "a", "network": {"podCidr": "10.0.0.1/16"}}), &["network.podCidr"]),
        ("IPv6", json!({"name": "a", "network": {"podCidr": "fd00::/16"}}), &["network.podCidr"]),
        ("loopback", json!({"name": "a", "network": {"serviceCidr": "127.0.0.0/16"}}), &["network.serviceCidr"]),
        ("overlap", json!({"name": "a", "network": {"podCidr": "10.96.0.0/15"}}), &["network.serviceCidr"]),
        ("overlap with the machines", json!({"name": "a", "network": {"podCidr": "10.0.0.0/9", "serviceCidr": "172.16.0.0/16"}}), &["network.podCidr"]),
        ("no room", json!({"name": "a", "pools": {"w": {"count": 4}}, "network": {"podCidr": "10.1.0.0/22"}}), &["network.podCidr"]),
    ];
    for (what, input, want) in cases {
        assert_eq!(&keys(input), want, "{what}: {input}");
    }
    let fits =
        json!({"name": "a", "pools": {"w": {"count": 3}}, "network": {"podCidr": "10.1.0.0/22"}});
    assert_eq!(
        keys(&fits),
        [""; 0],
        "three workers and one control-plane machine fit a /22"
    );
}

#[test]
fn all_faults_at_once_with_value_and_allowed() {
    let input = json!({
        "name": "Nope", "kubernetesVersion": "1.0.0", "controlPlane": {"count": 2, "cuont": 1},
        "pools": {"w": {"count": 5000, "size": {"memoryMib": 1}}}, "extra": {},
        "network": {"podCidr": "10.77.0.0/16", "serviceCidr": "x"},
    });
    let faults = parse(&input, &around()).unwrap_err();
    let got: Vec<&str> = faults.list().iter().map(|f| f.key.as_str()).collect();
    #[rustfmt::skip]
    assert_eq!(got, [
        "name", "kubernetesVersion", "controlPlane.count", "controlPlane.cuont", "pools.w.count",
        "pools.w.size.memoryMib", "network.serviceCidr", "network.podCidr", "extra",
    ]);
    let version = &faults.list()[1];
    assert_eq!(version.value, "\"1.0.0\"");
    assert_eq!(
        version.allowed,
        "a version with a stemcell: 1.9.9, 1.36.3, 1.37.2"
    );
}

#[test]
fn without_stemcells_the_fault_says_how_to_make_one() {
    let faults = parse(&json!({"name": "a"}), &Surroundings::default()).unwrap_err();
    assert!(
        faults.list()[0].allowed.contains("windlass stemcell build"),
        "{faults}"
    );
}

#[test]
fn faults_are_bounded() {
    let many: serde_json::Map<String, Value> =
        (0..500).map(|i| (format!("k{i}"), json!(1))).collect();
    let faults = parse(&Value::Object(many), &around())
        .unwrap_err()
        .into_vec();
    assert_eq!(faults.len(), fault::FAULTS_MAX + 1);
    assert_eq!(faults.last().unwrap().value, "401 more faults");
}

#[test]
fn text_that_is_no_document_is_one_fault() {
    for text in ["a: b: c", "{", "a: 1\na: 2", "- &x [*x]"] {
        assert_eq!(from_text(text).unwrap_err().list().len(), 1, "{text:?}");
    }
    assert!(from_text(&" ".repeat(raw::INPUT_BYTES_MAX + 1)).is_err());
}

#[test]
fn the_schema_of_the_api_and_the_parser_know_the_same_fields() {
    let size = || {
        Some(RawMachineSize {
            cpu_millis: Some(1000),
            memory_mib: Some(2048),
            disk_mib: Some(1024),
        })
    };
    let labels = [("a".to_owned(), "b".to_owned())].into();
    let pool = RawPool {
        count: Some(1),
        size: size(),
        labels: Some(labels),
        kubelet: Some([("maxPods".to_owned(), json!(60))].into()),
        update: Some(RawUpdatePolicy {
            max_unavailable: Some("25%".to_owned()),
            max_surge: Some("10%".to_owned()),
            canaries: Some(1),
            strategy: Some("inPlace".to_owned()),
        }),
        self_fence: Some(RawSelfFence {
            after_seconds: Some(60),
        }),
    };
    let raw = RawClusterSpec {
        name: "a".to_owned(),
        kubernetes_version: Some("1.37.2".to_owned()),
        control_plane: Some(RawControlPlane {
            count: Some(1),
            size: size(),
            kubelet: Some([("maxPods".to_owned(), json!(60))].into()),
            update: Some(RawControlPlaneUpdate {
                strategy: Some("inPlace".to_owned()),
            }),
        }),
        pools: Some([("w".to_owned(), pool)].into()),
        network: Some(RawNetwork {
            pod_cidr: Some("10.1.0.0/16".into()),
            service_cidr: Some("10.2.0.0/16".into()),
        }),
        drain: Some(RawDrain {
            timeout_seconds: Some(30),
            on_timeout: Some("delete".into()),
            evict_unmanaged: Some(true),
            delete_empty_dir_data: Some(false),
            load_balancer_seconds: Some(5),
            grace_period_max_seconds: Some(60),
        }),
        gates: Some(vec![
            RawGate {
                name: "shop".into(),
                http: Some(RawHttpGate {
                    url: "http://shop/".into(),
                    timeout_seconds: Some(30),
                    success_threshold: Some(2),
                }),
                ..RawGate::default()
            },
            RawGate {
                name: "errors".into(),
                promql: Some(RawPromqlGate {
                    url: None,
                    service: Some(RawServicePort {
                        namespace: "monitoring".into(),
                        name: "prometheus".into(),
                        port: Some(9090),
                    }),
                    query: "up == 1".into(),
                    expect: Some("empty".into()),
                    initial_delay_seconds: Some(1),
                    interval_seconds: Some(5),
                    timeout_seconds: Some(30),
                    success_threshold: Some(2),
                }),
                ..RawGate::default()
            },
            RawGate {
                name: "smoke".into(),
                job: Some(RawJobGate {
                    namespace: "shop".into(),
                    cron_job: "smoke".into(),
                    timeout_seconds: Some(30),
                }),
                ..RawGate::default()
            },
        ]),
        maintenance: Some(RawMaintenance {
            windows: Some(vec![RawWindow {
                days: Some(vec!["mon".into(), "sat".into()]),
                start: "02:00".into(),
                duration_minutes: 90,
                time_zone: Some("Europe/Berlin".into()),
            }]),
            freezes: Some(vec![RawFreeze {
                from: "2030-12-20T00:00:00Z".into(),
                to: "2031-01-02T00:00:00Z".into(),
                reason: "peak season".into(),
            }]),
        }),
        labels: Some([("stage".to_owned(), "canary".to_owned())].into()),
        backup: Some(RawBackup {
            every_minutes: Some(60),
            keep: Some(24),
        }),
    };
    let value = serde_json::to_value(&raw).unwrap();
    let spec = parse(&value, &around()).unwrap();
    assert_eq!(
        serde_json::to_value(&spec).unwrap(),
        value,
        "field by field, and in both directions"
    );
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        "[a-z0-9./:-]{0,20}".prop_map(Value::String),
    ];
    let key = prop_oneof![
        Just("name"),
        Just("pools"),
        Just("count"),
        Just("size"),
        Just("network"),
        Just("podCidr"),
        Just("serviceCidr"),
        Just("controlPlane"),
        Just("kubernetesVersion"),
        Just("labels"),
        Just("x"),
    ];
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((key.clone(), inner), 0..8).prop_map(|list| list
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

proptest! {
    /// No input panics; a refused one has a fault; an accepted one survives the store and, given
    /// again, is accepted unchanged.
    #[test]
    fn any_input_is_judged(input in json_value()) {
        match parse(&input, &around()) {
            Err(faults) => prop_assert!(!faults.is_empty()),
            Ok(spec) => {
                let stored = serde_json::to_value(&spec).unwrap();
                prop_assert_eq!(parse(&stored, &around()).unwrap(), spec);
            }
        }
    }

    /// Whatever is accepted has networks that are apart and big enough.
    #[test]
    fn accepted_networks_are_sound(
        pod in (any::<[u8; 2]>(), 8u8..=24), service in (any::<[u8; 2]>(), 12u8..=24), workers in 0u32..40,
    ) {
        let net = |(octets, prefix): ([u8; 2], u8)| {
            let address = std::net::Ipv4Addr::new(10, octets[0], octets[1], 0);
            Ipv4Net::new(address, prefix).unwrap().trunc()
        };
        let input = json!({"name": "a", "pools": {"w": {"count": workers}},
            "network": {"podCidr": net(pod).to_string(), "serviceCidr": net(service).to_string()}});
        if let Ok(spec) = parse(&input, &around()) {
            let (pod, service) = (spec.network.pod_cidr, spec.network.service_cidr);
            prop_assert!(!pod.contains(&service) && !service.contains(&pod));
            let machines: Ipv4Net = "10.77.0.0/16".parse().unwrap();
            prop_assert!(!machines.contains(&pod) && !pod.contains(&machines));
            prop_assert!(!machines.contains(&service) && !service.contains(&machines));
            prop_assert!(pod.subnets(24).unwrap().count() as u32 > workers);
        }
    }

    /// Any text is read or refused with one fault.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        if let Err(faults) = from_text(&text) {
            prop_assert_eq!(faults.list().len(), 1);
        }
    }
}
