//! Cluster DNS: CoreDNS behind the Service `kube-dns` at the tenth address of the Service network.

use serde_json::{Value, json};

use super::super::CLUSTER_DOMAIN;
use super::super::facts::ClusterFacts;
use super::super::render::CONTROL_PLANE_TAINT;
use super::SYSTEM_NAMESPACE;

/// User and group inside the container; any but root.
const USER: u32 = 65_532;

/// What CoreDNS may read; applied with bootstrap rights, never changed by the director.
pub(super) fn rights() -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:coredns",
            },
            "subjects": [
                {"kind": "ServiceAccount", "name": "coredns", "namespace": SYSTEM_NAMESPACE},
            ],
        }),
    ]
}

/// The service itself.
pub(super) fn objects(cluster: &ClusterFacts) -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata("coredns"),
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata("coredns"),
            "data": {"Corefile": corefile(cluster)},
        }),
        service(cluster),
        deployment(cluster),
    ]
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "namespace": SYSTEM_NAMESPACE,
        "labels": {"k8s-app": "kube-dns", "app.kubernetes.io/managed-by": "windlass"},
    })
}

fn corefile(cluster: &ClusterFacts) -> String {
    let upstream: Vec<String> = cluster
        .upstream_dns
        .iter()
        .map(ToString::to_string)
        .collect();
    // The name servers are named rather than read from the machine's resolver: that file may be empty,
    // and CoreDNS then refuses to start.
    let forward = if upstream.is_empty() {
        String::new()
    } else {
        format!(
            "    forward . {} {{\n        max_concurrent 1000\n    }}\n    loop\n",
            upstream.join(" ")
        )
    };
    format!(
        ".:53 {{
    errors
    health {{
        lameduck 5s
    }}
    ready
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus :9153
{forward}    cache 30
    reload
    loadbalance
}}
"
    )
}

fn service(cluster: &ClusterFacts) -> Value {
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "targetPort": port});
    let mut metadata = metadata("kube-dns");
    metadata["labels"]["kubernetes.io/name"] = json!("CoreDNS");
    metadata["annotations"] = json!({"prometheus.io/port": "9153", "prometheus.io/scrape": "true"});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": cluster.dns_service_address(),
            "selector": {"k8s-app": "kube-dns"},
            "ports": [port("dns", "UDP", 53), port("dns-tcp", "TCP", 53), port("metrics", "TCP", 9153)],
        },
    })
}

/// Whether all pods of a Deployment run as its latest template says.
pub fn rolled_out(deployment: &Value) -> bool {
    let status = &deployment["status"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    number(&status["observedGeneration"]) >= number(&deployment["metadata"]["generation"])
        && ["replicas", "updatedReplicas", "availableReplicas"]
            .iter()
            .all(|count| number(&status[*count]) == wanted)
}

/// Two replicas once two machines can carry them; a single one while there is nothing to spread over.
fn replicas(cluster: &ClusterFacts) -> u32 {
    if cluster.workers().len() >= 2 { 2 } else { 1 }
}

fn deployment(cluster: &ClusterFacts) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata("coredns"),
        "spec": {
            "replicas": replicas(cluster),
            "selector": {"matchLabels": {"k8s-app": "kube-dns"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": template_metadata(cluster),
                "spec": pod(cluster),
            },
        },
    })
}

/// Pods are made anew when the authorities of the cluster change: CoreDNS reads its own at start alone.
fn template_metadata(cluster: &ClusterFacts) -> Value {
    let mut metadata = json!({"labels": {"k8s-app": "kube-dns"}});
    if cluster.secrets.addons > 0 {
        let revision = cluster.secrets.addons.to_string();
        metadata["annotations"] = json!({"windlass.internal/trust": revision});
    }
    metadata
}

fn pod(cluster: &ClusterFacts) -> Value {
    json!({
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            {"key": CONTROL_PLANE_TAINT, "effect": "NoSchedule"},
        ],
        // Never two on one machine while another is free, and that includes machines that are not Ready
        // yet: in a new cluster both would otherwise land on the first. Counted per revision, so that a
        // rollout has room.
        "topologySpreadConstraints": [{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            "matchLabelKeys": ["pod-template-hash"],
        }],
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
            // Port 53 without a capability.
            "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "53"}],
        },
        "containers": [container(cluster)],
        "volumes": [{
            "name": "config",
            "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]},
        }],
    })
}

fn container(cluster: &ClusterFacts) -> Value {
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "containerPort": port});
    let http = |path: &str, port: u16| json!({"path": path, "port": port, "scheme": "HTTP"});
    json!({
        "name": "coredns",
        "image": cluster.images.coredns,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [port("dns", "UDP", 53), port("dns-tcp", "TCP", 53), port("metrics", "TCP", 9153)],
        "resources": {
            "requests": {"cpu": "100m", "memory": "70Mi"},
            "limits": {"memory": "170Mi"},
        },
        "livenessProbe": {
            "httpGet": http("/health", 8080),
            "initialDelaySeconds": 60,
            "timeoutSeconds": 5,
            "failureThreshold": 5,
        },
        // The first look comes before CoreDNS has read the cluster; with the default of 10 s DNS would
        // serve that much later.
        "readinessProbe": {"httpGet": http("/ready", 8181), "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
    })
}
