//! What kubelets are told besides: fields of `KubeletConfiguration`.
//!
//! Names and values are those of kubelet.config.k8s.io/v1beta1 and are not judged here: a kubelet that refuses
//! them does not become Ready, and goes back to what it had. Fields that the link between a node, its cluster
//! and the director rests on are refused.

use serde_json::Value;
use windlass_common::cluster::{KUBELET_SETTINGS_BYTES_MAX, KUBELET_SETTINGS_MAX, KubeletSettings};

use super::Fields;
use super::fault::{Faults, join, shown};

/// Fields that are the director's: identity, addresses, the runtime, and how a node is found alive.
const OWNED: [&str; 29] = [
    "address",
    "apiVersion",
    "authentication",
    "authorization",
    "cgroupDriver",
    "clusterDNS",
    "clusterDomain",
    "containerRuntimeEndpoint",
    "enableServer",
    "failCgroupV1",
    "failSwapOn",
    "healthzBindAddress",
    "healthzPort",
    "kind",
    "nodeLeaseDurationSeconds",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "port",
    "providerID",
    "readOnlyPort",
    "registerNode",
    "registerWithTaints",
    "resolvConf",
    "rotateCertificates",
    "serverTLSBootstrap",
    "staticPodPath",
    "staticPodURL",
    "tlsCertFile",
    "tlsPrivateKeyFile",
];

/// Reads `kubelet` of a pool or of the control plane.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> KubeletSettings {
    let Some(value) = fields.take("kubelet") else {
        return KubeletSettings::new();
    };
    let path = fields.path("kubelet");
    let Some(map) = value.as_object() else {
        let allowed = "a map of fields of KubeletConfiguration (kubelet.config.k8s.io/v1beta1)";
        faults.add(path, shown(value), allowed);
        return KubeletSettings::new();
    };
    if map.len() > KUBELET_SETTINGS_MAX {
        let allowed = format!("at most {KUBELET_SETTINGS_MAX} fields");
        faults.add(path, format!("{} fields", map.len()), allowed);
        return KubeletSettings::new();
    }
    let bytes = value.to_string().len();
    if bytes > KUBELET_SETTINGS_BYTES_MAX {
        let allowed = format!("at most {KUBELET_SETTINGS_BYTES_MAX} bytes of JSON");
        faults.add(path, format!("{bytes} bytes"), allowed);
        return KubeletSettings::new();
    }
    let mut settings = KubeletSettings::new();
    for (key, value) in map {
        if OWNED.contains(&key.as_str()) {
            let allowed = "not given: the director sets it on every machine";
            faults.add(join(&path, key), shown(value), allowed);
        } else if !named(key) {
            let allowed = "as its key the name of a field, letters and digits";
            let key = Value::String(key.clone());
            faults.add(path.clone(), shown(&key), allowed);
        } else if !value.is_null() {
            settings.insert(key.clone(), value.clone());
        }
    }
    settings
}

fn named(key: &str) -> bool {
    (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(kubelet: Value) -> Result<KubeletSettings, Faults> {
        let (mut faults, input) = (Faults::default(), json!({"kubelet": kubelet}));
        let mut fields = Fields::open(&input, "pools.w", &mut faults).unwrap();
        let settings = parse(&mut fields, &mut faults);
        if faults.is_empty() {
            Ok(settings)
        } else {
            Err(faults)
        }
    }

    #[test]
    fn fields_pass_unless_they_are_the_directors() {
        let given = json!({"maxPods": 40, "evictionHard": {"memory.available": "200Mi"}, "cpuManagerPolicy": null});
        let settings = read(given).unwrap();
        assert_eq!(
            settings.keys().collect::<Vec<_>>(),
            ["evictionHard", "maxPods"]
        );
        for bad in [
            json!({"authorization": {"mode": "AlwaysAllow"}}),
            json!({"staticPodPath": "/tmp"}),
            json!({"": 1}),
            json!({"a.b": 1}),
            json!([1]),
            json!({"maxPods": "x".repeat(KUBELET_SETTINGS_BYTES_MAX)}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
        let many: serde_json::Map<_, _> = (0..=KUBELET_SETTINGS_MAX)
            .map(|i| (format!("f{i}"), json!(1)))
            .collect();
        assert!(read(Value::Object(many)).is_err());
    }

    #[test]
    fn what_is_owned_is_sorted_and_named_once() {
        assert!(OWNED.is_sorted());
        assert!(OWNED.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
