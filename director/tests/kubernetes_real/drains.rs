//! Drains on a real API server: nodes that an operator has closed, and volumes that are attached.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use windlass_common::id::NodeName;
use windlass_director::drain::{self, Answer, DrainError, DrainPolicy, Drained, Order, OwnNode};
use windlass_director::kubernetes::client::{Client, Node, Resource};

use crate::machine::block_on;

/// No pod is on the node.
#[derive(Debug)]
struct NoPods;

impl OwnNode for NoPods {
    fn tell<'a>(&'a self, _: &'a [Order]) -> BoxFuture<'a, Vec<Result<Answer, String>>> {
        unreachable!("no pod is on the node")
    }
}

async fn is_closed(client: &Client, node: &NodeName) -> bool {
    let found: Node = client
        .get(&Resource::NODE, None, node.as_str())
        .await
        .unwrap();
    found.unschedulable
}

/// As the director, on a node of its own that `admin` makes.
pub(crate) fn drains_leave_what_is_not_theirs(director: &Client, admin: &Client) {
    let name = NodeName::new("demo-drained-0-i1").unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    block_on(async {
        admin.create(&Resource::NODE, None, &node).await.unwrap();
        an_operators_cordon_stays(director, admin, &name).await;
        volumes_are_waited_for(director, admin, &name).await;
        assert!(
            admin
                .delete(&Resource::NODE, None, name.as_str())
                .await
                .unwrap()
        );
    });
}

async fn an_operators_cordon_stays(director: &Client, admin: &Client, node: &NodeName) {
    let set = async |closed: Value| {
        let patch = json!({"spec": {"unschedulable": closed}});
        let name = node.as_str();
        let set = admin.merge_patch(&Resource::NODE, None, name, &patch);
        set.await.unwrap();
    };
    set(json!(true)).await;
    drain::cordon(director, node).await.unwrap();
    drain::uncordon(director, node).await.unwrap();
    assert!(is_closed(director, node).await, "an operator closed it");
    set(json!(null)).await;
    drain::cordon(director, node).await.unwrap();
    assert!(is_closed(director, node).await);
    drain::uncordon(director, node).await.unwrap();
    assert!(!is_closed(director, node).await, "we closed it");
}

async fn volumes_are_waited_for(director: &Client, admin: &Client, node: &NodeName) {
    let attachment = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": "csi-drained"},
        "spec": {
            "attacher": "csi.windlass.internal",
            "nodeName": node,
            "source": {"persistentVolumeName": "pv-drained"},
        },
    });
    let of = &Resource::VOLUME_ATTACHMENT;
    admin.create(of, None, &attachment).await.unwrap();
    let policy = DrainPolicy {
        deadline_ms: 1_000,
        load_balancer_ms: 0,
        ..DrainPolicy::default()
    };
    let drained = async || drain::drain(director, node, &NoPods, &policy, |_| ()).await;
    match drained().await {
        Err(DrainError::Attached { volumes, .. }) => assert_eq!(volumes, ["csi-drained"]),
        other => panic!("its machine would go with a volume: {other:?}"),
    }
    assert!(admin.delete(of, None, "csi-drained").await.unwrap());
    assert_eq!(drained().await.unwrap(), Drained::default());
}
