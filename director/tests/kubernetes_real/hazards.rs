//! What stands in the way of a change, as the director's own role sees it, and pods that a node waits for.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use windlass_director::drain::{Course, HazardKind, Rehearsal, await_system_pods, rehearse_now};
use windlass_director::kubernetes::client::{Client, Resource};
use windlass_director::kubernetes::facts::MachineFacts;

use crate::machine::block_on;

const SYSTEM: &str = "kube-system";

/// Calls `director` through each of `servers`, and sees what `admin` has made; `node` has a Node and no kubelet.
pub(crate) fn hazards_are_found(
    node: &MachineFacts,
    (director, servers): (&Client, &[Client]),
    admin: &Client,
    kubectl: impl Fn(&[&str]) -> String,
) {
    block_on(async {
        let sequence = vec![vec![node.node_name.to_string()]];
        let course = |minor: Option<u32>| Course {
            sequence: sequence.clone(),
            joining: BTreeSet::new(),
            policy: Default::default(),
            minor,
        };
        let rehearsed = async |minor| {
            rehearse_now(director, servers, &course(minor))
                .await
                .unwrap()
        };
        let webhooks = |rehearsal: &Rehearsal| -> Vec<String> {
            assert!(rehearsal.unknown.is_empty(), "{:?}", rehearsal.unknown);
            let hazards = rehearsal.hazards.iter();
            let of = hazards.filter(|hazard| hazard.kind == HazardKind::Webhook);
            of.map(|hazard| hazard.at.clone()).collect()
        };
        assert!(webhooks(&rehearsed(None).await).is_empty());
        for kind in ["Validating", "Mutating"] {
            admin.apply(&webhook(kind)).await.unwrap();
        }
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "guard", "namespace": SYSTEM},
            "spec": {"selector": {"app": "guard"}, "ports": [{"port": 443}]},
        });
        admin.apply(&service).await.unwrap();
        pod(admin, "guard", node).await;
        ready(&kubectl, "guard", "True");
        let rehearsal = rehearsed(None).await;
        println!("{:#?}", rehearsal.hazards);
        assert_eq!(
            webhooks(&rehearsal),
            [
                "validatingwebhookconfiguration guards, webhook guard.windlass.internal",
                "mutatingwebhookconfiguration guards, webhook guard.windlass.internal",
            ]
        );
        // API servers say what they were asked for; of what they serve nothing is gone in their own minor.
        let metrics = servers[0].metrics().await.unwrap();
        assert!(
            metrics.contains("apiserver_request_total"),
            "it is no list of metrics"
        );
        let later = rehearsed(Some(99)).await;
        println!("removed by 1.99: {:#?}", later.hazards);
        assert_eq!(webhooks(&later).len(), 2);

        // A node waits for this pod until it is Ready.
        let wait = async || {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
            await_system_pods(director, &node.node_name, deadline).await
        };
        wait().await.unwrap();
        ready(&kubectl, "guard", "False");
        let refused = wait().await.unwrap_err().to_string();
        assert!(refused.contains("on it are not: guard;"), "{refused}");

        for resource in [&Resource::VALIDATING_WEBHOOKS, &Resource::MUTATING_WEBHOOKS] {
            assert!(admin.delete(resource, None, "guards").await.unwrap());
        }
        let now = json!({"gracePeriodSeconds": 0});
        let deleted = admin.delete_with(&Resource::POD, Some(SYSTEM), "guard", &now);
        assert!(deleted.await.unwrap());
        wait().await.unwrap();
    });
}

/// One that is asked about nothing that there is.
fn webhook(kind: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}WebhookConfiguration"),
        "metadata": {"name": "guards"},
        "webhooks": [{
            "name": "guard.windlass.internal",
            "clientConfig": {"service": {"namespace": SYSTEM, "name": "guard"}},
            "rules": [{
                "apiGroups": ["nobody.windlass.internal"],
                "apiVersions": ["v1"],
                "resources": ["things"],
                "operations": ["CREATE"],
            }],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }],
    })
}

async fn pod(admin: &Client, name: &str, node: &MachineFacts) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": SYSTEM, "labels": {"app": name}},
        "spec": {
            "nodeName": node.node_name,
            "automountServiceAccountToken": false,
            "containers": [{"name": "it", "image": "registry.windlass.internal/none:1"}],
        },
    });
    admin
        .create(&Resource::POD, Some(SYSTEM), &pod)
        .await
        .unwrap();
}

/// Says of a pod what its kubelet would.
fn ready(kubectl: &impl Fn(&[&str]) -> String, name: &str, status: &str) {
    let patch = json!({"status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": status}],
    }});
    let patch = patch.to_string();
    let pod = [
        "-n",
        SYSTEM,
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--type=merge",
    ];
    kubectl(&[&pod[..], &["-p", &patch]].concat());
}
