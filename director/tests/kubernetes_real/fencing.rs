//! Clients of a machine that was replaced are refused when they write, each with its own certificate; those of its
//! successor, which have the same users, are not.

use std::net::SocketAddr;

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use windlass_common::id::Incarnation;
use windlass_common::secret::Secret;
use windlass_common::step::ClientFiles;
use windlass_director::kubernetes::addons::{self, GONE_NODES, SYSTEM_NAMESPACE};
use windlass_director::kubernetes::client::{ApiError, Client, Node, Resource};
use windlass_director::kubernetes::facts::ClusterFacts;
use windlass_director::kubernetes::pki::{
    ClientIdentity, ClusterPki, Profile, machine_certificates,
};
use windlass_director::kubernetes::render;

use crate::machine::{Machine, block_on, client_of, until};

const EVENT: Resource = Resource {
    api_version: "v1",
    kind: "Event",
    plural: "events",
    namespaced: true,
};
/// The clients whose users are the same on every machine, and that may write something by themselves.
const SHARED: [Profile; 3] = [
    Profile::ControllerManager,
    Profile::Scheduler,
    Profile::KubeProxy,
];

/// A new object that the user of `profile` may create.
async fn write(client: &Client, profile: Profile, name: &str) -> Result<Value, ApiError> {
    let namespace = if profile == Profile::KubeProxy {
        "default"
    } else {
        SYSTEM_NAMESPACE
    };
    let metadata = json!({"name": format!("{}-{name}", profile.name()), "namespace": namespace});
    match profile {
        Profile::KubeProxy => {
            let object = json!({
                "apiVersion": "v1", "kind": "Event", "metadata": metadata, "reason": "Fencing",
                "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "any", "namespace": ""},
            });
            client.create(&EVENT, Some(namespace), &object).await
        }
        _ => {
            let object = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": metadata, "spec": {"holderIdentity": name}});
            client
                .create(&Resource::LEASE, Some(namespace), &object)
                .await
        }
    }
}

/// What a controller acts with.
async fn token(client: &Client) -> Result<Value, ApiError> {
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 600}});
    let namespace = Some(SYSTEM_NAMESPACE);
    let account = "deployment-controller";
    client
        .create_under(
            &Resource::SERVICE_ACCOUNT,
            namespace,
            account,
            "token",
            &request,
        )
        .await
}

fn refused(answer: Result<Value, ApiError>, node: &str) -> bool {
    match answer {
        Ok(_) => false,
        Err(error) => {
            let said = error.to_string();
            let wanted = format!("{node} was replaced: its machine has to be switched off");
            assert!(said.contains(&wanted), "refused for another reason: {said}");
            assert_eq!(error.code(), Some(403), "{said}");
            true
        }
    }
}

/// `machine` is the first of the cluster, and runs everything.
pub(crate) fn a_gone_incarnation_writes_nothing(
    machine: &Machine<'_>,
    cluster: &ClusterFacts,
    pki: &ClusterPki,
    (director, bootstrap): (&Client, &Client),
) {
    let facts = &cluster.machines[0];
    let node = facts.node_name.as_str();
    let address = SocketAddr::new(cluster.endpoint.address.into(), cluster.endpoint.port);
    let client = |profile: Profile| {
        let files = ClientFiles {
            certificate_path: profile.certificate_path(),
            key_path: profile.key_path(),
        };
        let ca = render::KUBERNETES_CA_PATH;
        machine.client(address, &cluster.endpoint.name, ca, &files)
    };
    // The next incarnation, with certificates of its own. Whether its keys are does not matter here.
    let mut next = facts.clone();
    next.node_name = facts.name.node_name(Incarnation(2)).unwrap();
    let request = |profile: &Profile| {
        let key = std::fs::read_to_string(machine.path(&profile.key_path())).unwrap();
        let key = KeyPair::from_pem(&key).unwrap();
        let request = CertificateParams::default().serialize_request(&key);
        (profile.name().to_owned(), request.unwrap().der().to_vec())
    };
    let requests = Profile::of(&next.role).iter().map(request).collect();
    let issued = machine_certificates(pki, cluster, &next, &requests, Timestamp::now()).unwrap();
    let successor = |profile: Profile| {
        let key = std::fs::read_to_string(machine.path(&profile.key_path())).unwrap();
        let identity = ClientIdentity {
            certificate_pem: issued[profile.name()].clone(),
            key_pem: Secret::new(key),
            expires_at: Timestamp::MAX,
        };
        let authority = &pki.kubernetes.certificate_pem;
        client_of(address, &cluster.endpoint.name, authority, &identity)
    };
    for profile in SHARED {
        block_on(write(&client(profile), profile, "current")).unwrap();
    }
    block_on(token(&client(Profile::ControllerManager))).unwrap();

    let gone = |patch: Value| {
        let namespace = Some(SYSTEM_NAMESPACE);
        block_on(director.merge_patch(&Resource::CONFIG_MAP, namespace, GONE_NODES, &patch))
            .unwrap();
    };
    gone(addons::gone_patch(&facts.name, 1));
    // API servers see a changed list a moment later.
    let mut tries = 0;
    until("the old scheduler is refused", || {
        tries += 1;
        let scheduler = client(Profile::Scheduler);
        let answer = block_on(write(
            &scheduler,
            Profile::Scheduler,
            &format!("try-{tries}"),
        ));
        refused(answer, node).then_some(())
    });
    for profile in SHARED {
        let answer = block_on(write(&client(profile), profile, "replaced"));
        assert!(refused(answer, node), "{profile:?} still writes");
    }
    let old = client(Profile::ControllerManager);
    assert!(refused(block_on(token(&old)), node), "it gets tokens");
    let again = json!({"metadata": {"labels": {"zombie": ""}}});
    let kubelet = client(Profile::KubeletClient);
    let patched = block_on(kubelet.merge_patch(&Resource::NODE, None, node, &again));
    assert!(refused(patched, node), "its kubelet still writes");
    // Reviews of access and what is read are no writes.
    block_on(old.list::<Node>(&Resource::NODE, None, None)).unwrap();
    for profile in SHARED {
        block_on(write(&successor(profile), profile, "successor")).unwrap();
    }
    block_on(token(&successor(Profile::ControllerManager))).unwrap();
    // Who is no machine is not looked at.
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "fencing", "namespace": "default"}});
    block_on(bootstrap.apply(&object)).unwrap();

    gone(addons::anew_patch(&facts.name));
    let mut tries = 0;
    until("a machine of that name begins anew", || {
        tries += 1;
        let name = format!("anew-{tries}");
        block_on(write(&old, Profile::ControllerManager, &name)).ok()
    });
}
