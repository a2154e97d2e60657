//! What a change would meet on its way although every pod leaves in time. Pure.
//!
//! # What it assumes
//! As [`super::rehearse()`]: what runs on a node is back elsewhere before the next batch of nodes is begun.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Pod;

/// Something that a change would meet on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hazard {
    /// Of which kind.
    pub kind: HazardKind,
    /// Where: a webhook, a resource or a machine.
    pub at: String,
    /// What is wrong with it.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

/// Kinds of [`Hazard`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum HazardKind {
    /// A webhook that fails closed has nobody who answers for a while.
    Webhook,
    /// An API is in use that the version to come does not serve.
    RemovedApi,
    /// A certificate expires meanwhile.
    Certificate,
    /// A file system is too full.
    Disk,
}

/// A configuration of webhooks, validating or mutating.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WebhookConfiguration {
    metadata: Metadata,
    #[serde(default)]
    webhooks: Vec<Webhook>,
}

#[derive(Debug, Clone, Deserialize)]
struct Metadata {
    #[serde(default)]
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Webhook {
    name: String,
    client_config: ClientConfig,
    #[serde(default)]
    failure_policy: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct ClientConfig {
    /// Absent where it is outside of the cluster.
    #[serde(default)]
    service: Option<ServiceName>,
}

#[derive(Debug, Clone, Deserialize)]
struct ServiceName {
    namespace: String,
    name: String,
}

/// The part of a Service that says which pods are behind it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Service {
    metadata: Metadata,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct ServiceSpec {
    /// Without one somebody else says who is behind it.
    #[serde(default)]
    selector: BTreeMap<String, String>,
}

impl Service {
    fn sends_to(&self, pod: &Pod) -> bool {
        let selected = |(key, value)| pod.labels.get(key) == Some(value);
        pod.id.namespace == self.metadata.namespace
            && pod.ready
            && !pod.terminating
            && self.spec.selector.iter().all(selected)
    }
}

/// Webhooks that fail closed and that nobody answers for while a batch of nodes is drained, or already. `kind` is that
/// of the configurations, as `kubectl` takes it.
pub(super) fn webhooks(
    kind: &str,
    configurations: &[WebhookConfiguration],
    services: &[Service],
    pods: &[Pod],
    sequence: &[Vec<String>],
) -> Vec<Hazard> {
    let mut hazards = Vec::new();
    for configuration in configurations {
        for (index, webhook) in configuration.webhooks.iter().enumerate() {
            let Some(asked) = &webhook.client_config.service else {
                continue;
            };
            if webhook.failure_policy.as_deref() == Some("Ignore") {
                continue;
            }
            let of = |service: &&Service| {
                let named = &service.metadata;
                named.namespace == asked.namespace && named.name == asked.name
            };
            let service = services.iter().find(of);
            if service.is_some_and(|service| service.spec.selector.is_empty()) {
                continue; // nobody can tell where its endpoints are
            }
            let nodes = service.into_iter().flat_map(|service| {
                let behind = pods.iter().filter(|pod| service.sends_to(pod));
                behind.filter_map(|pod| pod.node.as_ref())
            });
            let nodes: BTreeSet<&String> = nodes.collect();
            let title = format!("{}/{}", asked.namespace, asked.name);
            let why = if nodes.is_empty() {
                format!("Service {title} has no endpoint that is ready")
            } else {
                let goes = |batch: &&Vec<String>| nodes.iter().all(|node| batch.contains(node));
                if !sequence.iter().any(|batch| goes(&batch)) {
                    continue;
                }
                let nodes: Vec<&str> = nodes.into_iter().map(String::as_str).collect();
                format!(
                    "all ready endpoints of Service {title} are on {}, where pods leave at the same time",
                    nodes.join(", ")
                )
            };
            let name = &configuration.metadata.name;
            let patch = format!(
                r#"[{{"op":"add","path":"/webhooks/{index}/failurePolicy","value":"Ignore"}}]"#
            );
            hazards.push(Hazard {
                kind: HazardKind::Webhook,
                at: format!("{kind} {name}, webhook {}", webhook.name),
                why: format!("{why}; its failurePolicy is Fail, so that what it looks at is refused then"),
                remedy: format!(
                    "have pods of it run on other nodes too, or have it fail open meanwhile: kubectl patch {kind} \
                     {name} --type=json -p '{patch}'"
                ),
            });
        }
    }
    hazards
}

/// The metric of API servers that names the deprecated APIs that they were asked for.
const REQUESTED: &str = "apiserver_requested_deprecated_apis{";

/// APIs that were asked for, by what each API server says of itself, and that 1.`minor` does not serve any more.
pub(super) fn removed_apis(metrics: &[String], minor: u32) -> Vec<Hazard> {
    let mut hazards = BTreeSet::new();
    let lines = metrics.iter().flat_map(|metrics| metrics.lines());
    for line in lines {
        let sample = line
            .strip_prefix(REQUESTED)
            .and_then(|rest| rest.split_once('}'));
        let Some((labels, value)) = sample else {
            continue;
        };
        let label = |name: &str| {
            let mut labels = labels.split(',').filter_map(|label| label.split_once('='));
            let found = labels.find(|(label, _)| *label == name);
            found.map_or("", |(_, value)| value.trim_matches('"'))
        };
        let asked = value.trim().parse::<f64>().is_ok_and(|value| value > 0.0);
        let release = label("removed_release");
        let removed = release
            .strip_prefix("1.")
            .and_then(|of| of.parse::<u32>().ok());
        if !asked || removed.is_none_or(|removed| removed > minor) {
            continue;
        }
        let (resource, version) = (label("resource"), label("version"));
        let at = match label("group") {
            "" => format!("{resource} of {version}"),
            group => format!("{resource} of {group}/{version}"),
        };
        hazards.insert(Hazard {
            kind: HazardKind::RemovedApi,
            at,
            why: format!(
                "clients asked for it since an API server was started, and Kubernetes {release} does not serve it"
            ),
            remedy: "have them use a later version of it; who they are is in the API servers' audit log, in entries \
                     with the annotation k8s.io/deprecated. It counts until the API server is started again"
                .to_owned(),
        });
    }
    hazards.into_iter().collect()
}
