//! Volumes that are attached to a node, and who waits for them to be let go.
//!
//! A volume that is attached when its Node object goes is taken for in use: Kubernetes waits six minutes before it
//! gives it to another node. The taint `node.kubernetes.io/out-of-service` says that the machine is proven off, so
//! that its pods are removed and its volumes detached at once. It is set after the proof, never before.

use std::future::Future;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use windlass_common::id::NodeName;

use super::DrainError;
use super::api::{change_taints, failed, taints_of, taints_patch};
use crate::kubernetes::client::{Client, Resource};

/// How long the volumes of a machine that is off get to be detached before its Node object is deleted all the same:
/// a driver takes seconds, and one that has to be started elsewhere first some tens of them.
pub const DETACH_LIMIT: Duration = Duration::from_secs(240);
/// Pause between two looks at volumes.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Volumes that are named in one line.
const NAMED: usize = 5;
/// See the module.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Attachment {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: String,
    #[serde(default)]
    source: Source,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    persistent_volume_name: Option<String>,
}

impl Attachment {
    /// What it is looked for under: `kubectl describe volumeattachment` takes it.
    pub(super) fn name(&self) -> &str {
        &self.metadata.name
    }

    /// For people: the volume, or the name where it has none.
    fn volume(&self) -> &str {
        let volume = self.spec.source.persistent_volume_name.as_deref();
        volume.unwrap_or(self.name())
    }
}

/// What is attached to a node.
///
/// # Errors
/// [`DrainError::Api`].
pub(super) async fn attached(
    client: &Client,
    node: &NodeName,
) -> Result<Vec<Attachment>, DrainError> {
    let mut attached: Vec<Attachment> = client
        .list(&Resource::VOLUME_ATTACHMENT, None, None)
        .await
        .map_err(failed("list the attached volumes", node))?;
    attached.retain(|attachment| attachment.spec.node_name == node.as_str());
    Ok(attached)
}

/// Waits until no volume is attached to a node that is drained: one that is still there when its machine goes is
/// taken for in use, for minutes.
///
/// # Errors
/// [`DrainError::Attached`] at the deadline, [`DrainError::Api`].
pub(super) async fn detached(
    client: &Client,
    node: &NodeName,
    deadline: Instant,
) -> Result<(), DrainError> {
    let left = await_none(|| attached(client, node), deadline, |_| ()).await?;
    if left.is_empty() {
        return Ok(());
    }
    Err(DrainError::Attached {
        node: node.clone(),
        volumes: left.iter().map(|a| a.name().to_owned()).collect(),
    })
}

/// What became of the volumes of a node whose machine is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// None was attached, or there is no Node object to say it with.
    Nothing,
    /// All were detached.
    All {
        /// How many.
        volumes: usize,
    },
    /// These are attached after the limit. Nothing writes to them: the machine is off.
    Left {
        /// Their names.
        volumes: Vec<String>,
    },
}

impl Released {
    /// For people; nothing is said of a node without volumes.
    pub fn told(&self) -> Option<String> {
        match self {
            Released::Nothing => None,
            Released::All { volumes } => Some(format!("{volumes} volumes were detached from it")),
            Released::Left { volumes } => Some(format!(
                "volumes {} were not detached from it in time, and nothing writes to them; look at the driver that \
                 has to detach them: kubectl describe volumeattachment",
                volumes.join(", ")
            )),
        }
    }
}

/// Has Kubernetes detach the volumes of a node whose machine is **proven off**, and waits for it, `limit` at most. A
/// node without volumes costs one look. `progress` hears which are waited for, when that changes.
///
/// Done again after a crash, it goes on with what is attached then; the limit begins anew.
///
/// # Errors
/// [`DrainError::Api`]; the taint may be set by then, which is as it should be.
pub async fn release_volumes(
    client: &Client,
    node: &NodeName,
    limit: Duration,
    progress: impl Fn(String),
) -> Result<Released, DrainError> {
    let deadline = Instant::now() + limit;
    let volumes = attached(client, node).await?.len();
    if volumes == 0 || !set_out_of_service(client, node).await? {
        return Ok(Released::Nothing);
    }
    // What Kubernetes' controllers would do as well, a moment later: a pod that is there keeps its volume.
    super::api::remove_pods(client, node).await?;
    let tell = |left: &[Attachment]| progress(waits_for(left));
    let left = await_none(|| attached(client, node), deadline, tell).await?;
    Ok(match left.is_empty() {
        true => Released::All { volumes },
        false => Released::Left {
            volumes: left.iter().map(|a| a.volume().to_owned()).collect(),
        },
    })
}

/// Looks until nothing is left, or until the deadline; returns what is left then.
async fn await_none<F>(
    look: impl Fn() -> F,
    deadline: Instant,
    tell: impl Fn(&[Attachment]),
) -> Result<Vec<Attachment>, DrainError>
where
    F: Future<Output = Result<Vec<Attachment>, DrainError>>,
{
    let mut told = Vec::new();
    loop {
        let left = look().await?;
        if left.is_empty() || Instant::now() >= deadline {
            return Ok(left);
        }
        if left != told {
            tell(&left);
            told = left;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn waits_for(left: &[Attachment]) -> String {
    let named: Vec<&str> = left.iter().take(NAMED).map(Attachment::volume).collect();
    let more = match left.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = named.join(", ");
    format!("{} volumes to be detached: {named}{more}", left.len())
}

/// Says that a machine is off and does not come back; false when it has no Node object.
async fn set_out_of_service(client: &Client, node: &NodeName) -> Result<bool, DrainError> {
    match change_taints(client, node, out_of_service_patch).await {
        Err(DrainError::Api { source, .. }) if source.is_not_found() => Ok(false),
        changed => changed.map(|()| true),
    }
}

fn out_of_service_patch(node: &Value) -> Option<Value> {
    let mut taints = taints_of(node);
    let says = |taint: &Value| taint["key"] == OUT_OF_SERVICE && taint["effect"] == "NoExecute";
    if taints.iter().any(says) {
        return None;
    }
    taints.push(json!({"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}));
    Some(taints_patch(node, &taints))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;

    fn attachment(name: &str, volume: Option<&str>) -> Attachment {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"attacher": "csi.example.com", "nodeName": "demo-w-0-i1",
                "source": {"persistentVolumeName": volume}},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_tainted_once_and_keeps_its_other_taints() {
        let node = |taints: Value| json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": taints}});
        let unreachable = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"});
        let ours = json!({"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"});
        let patch = out_of_service_patch(&node(json!([unreachable]))).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([unreachable, ours]));
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let bare = json!({"metadata": {"resourceVersion": "8"}, "spec": {}});
        let patch = out_of_service_patch(&bare).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([ours]));
        assert_eq!(
            out_of_service_patch(&node(json!([unreachable, ours]))),
            None
        );
        // One that only keeps new pods away does not detach anything.
        let weak = json!({"key": OUT_OF_SERVICE, "effect": "NoSchedule"});
        let patch = out_of_service_patch(&node(json!([weak]))).unwrap();
        assert_eq!(patch["spec"]["taints"], json!([weak, ours]));
    }

    /// Plays looks at the attached volumes; returns what was told and what is left.
    async fn play(looks: &[&[&str]], limit: Duration) -> (Vec<String>, Vec<String>) {
        let looks = looks.iter().map(|names| {
            let names = names.iter().map(|name| attachment("csi-1", Some(name)));
            names.collect::<Vec<_>>()
        });
        let looks: RefCell<VecDeque<Vec<Attachment>>> = RefCell::new(looks.collect());
        let told = RefCell::new(Vec::new());
        let look = || async {
            let mut looks = looks.borrow_mut();
            let now = looks.front().cloned().unwrap_or_default();
            if looks.len() > 1 {
                looks.pop_front();
            }
            Ok(now)
        };
        let tell = |left: &[Attachment]| told.borrow_mut().push(waits_for(left));
        let left = await_none(look, Instant::now() + limit, tell)
            .await
            .unwrap();
        let left = left.iter().map(|a| a.volume().to_owned()).collect();
        (told.into_inner(), left)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_told_when_it_changes() {
        let began = Instant::now();
        let looks: &[&[&str]] = &[&["a", "b"], &["a", "b"], &["b"], &[]];
        let (told, left) = play(looks, DETACH_LIMIT).await;
        let wanted = [
            "2 volumes to be detached: a, b",
            "1 volumes to be detached: b",
        ];
        assert_eq!(told, wanted);
        assert_eq!(left, [""; 0]);
        assert_eq!(began.elapsed(), LOOK_INTERVAL * 3);
        let (told, left) = play(&[&[]], DETACH_LIMIT).await;
        assert!(told.is_empty() && left.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let began = Instant::now();
        let (told, left) = play(&[&["a"]], Duration::from_secs(240)).await;
        assert_eq!((told.len(), left), (1, vec!["a".to_owned()]));
        assert_eq!(began.elapsed(), Duration::from_secs(240));
    }

    #[test]
    fn many_are_not_all_named() {
        let many: Vec<_> = (0..7)
            .map(|n| attachment(&format!("csi-{n}"), None))
            .collect();
        let line = waits_for(&many);
        assert!(line.starts_with("7 volumes"), "{line}");
        assert!(line.ends_with("csi-4 and 2 more"), "{line}");
    }
}
