//! Clients of a machine that was replaced are refused when they write, and with certificates of a control plane's whatever
//! they ask, each with its own certificate; those of its successor, which have the same users, are not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use windlass_common::id::{Digest, Incarnation};
use windlass_common::secret::Secret;
use windlass_common::step::{ClientFiles, Configure, FileContent};
use windlass_director::kubernetes::addons::{self, GONE_NODES, SYSTEM_NAMESPACE};
use windlass_director::kubernetes::client::{ApiError, Client, Node, Resource};
use windlass_director::kubernetes::facts::ClusterFacts;
use windlass_director::kubernetes::pki::{
    Certificates, ClientIdentity, ClusterPki, KUBELET_CALLER_USER, Profile, Revocations,
    machine_certificates,
};
use windlass_director::kubernetes::render;
use x509_parser::pem::parse_x509_pem;

use crate::machine::{Machine, block_on, client_of, until};

const EVENT: Resource = Resource {
    api_version: "v1",
    kind: "Event",
    plural: "events",
    namespaced: true,
};
const REVIEW: Resource = Resource {
    api_version: "authorization.k8s.io/v1",
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    namespaced: false,
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
    // What is read is no write.
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

    let of_file = |profile: &Profile| {
        let pem = std::fs::read_to_string(machine.path(&profile.certificate_path())).unwrap();
        (profile.name().to_owned(), pem)
    };
    let own: Certificates = Profile::of(&facts.role).iter().map(of_file).collect();
    let (first, second) = (Incarnation(1), Incarnation(2));
    let mut ledger = Revocations::default();
    ledger.note(&facts.name, first, &own);
    ledger.note(&facts.name, second, &issued);
    let settle = |ledger: &mut Revocations| {
        let name = cluster.spec.name.as_str();
        ledger.settle(pki, name, Timestamp::now()).unwrap();
        configure(&ledger.list().unwrap(), &ledger.clients())
    };
    let nobody = authorization(&settle(&mut ledger));
    ledger.revoke(&facts.name, first, Timestamp::now());
    let some = authorization(&settle(&mut ledger));
    ledger.pardon(&facts.name, first);
    let pardoned = authorization(&settle(&mut ledger));
    assert_eq!(pardoned, nobody);

    for profile in CLIENTS {
        block_on(read(&client(profile))).unwrap();
    }
    let changed = Instant::now();
    machine.replace(render::AUTHORIZATION_PATH, &some);
    let manager = client(Profile::ControllerManager);
    until("the old controller manager is denied", || {
        // A connection that was open before is denied like any other.
        denied(block_on(read(&manager))).then_some(())
    });
    println!(
        "denied {:.2?} after the list was written",
        changed.elapsed()
    );
    for profile in CLIENTS {
        let asked = Instant::now();
        assert!(
            denied(block_on(read(&client(profile)))),
            "{profile:?} still reads"
        );
        println!("{profile:?} denied in {:.2?}", asked.elapsed());
        block_on(read(&successor(profile))).unwrap();
    }
    let secrets = |client: &Client| block_on(client.list::<Value>(&Resource::SECRET, None, None));
    assert!(denied(secrets(&manager)));
    secrets(&successor(Profile::ControllerManager)).unwrap();
    assert!(denied(block_on(write(
        &manager,
        Profile::ControllerManager,
        "denied"
    ))));
    // So do kubelets learn it of who calls them.
    let caller = Profile::ApiServerKubeletClient;
    let asks = successor(Profile::KubeletClient);
    let answer = |fingerprint: Option<&str>| block_on(review(&asks, node, fingerprint));
    let (gone, current) = (fingerprint(&own, caller), fingerprint(&issued, caller));
    assert_eq!(answer(Some(&gone)), (false, true));
    for other in [Some(current.as_str()), Some("0"), Some(""), None] {
        assert_eq!(answer(other), (true, false), "{other:?}");
    }

    let changed = Instant::now();
    machine.replace(render::AUTHORIZATION_PATH, &pardoned);
    until("it is accepted again", || block_on(read(&manager)).ok());
    println!(
        "accepted {:.2?} after the list was written",
        changed.elapsed()
    );
    assert_eq!(answer(Some(&gone)), (true, false));

    // As many as a ledger holds, and one that was not there.
    let before = measure(&manager);
    let many: Vec<String> = (0..6144 / 8 * 5)
        .map(|i| format!("{i:016x}{}", "0".repeat(48)))
        .collect();
    let one = fingerprint(&own, Profile::Scheduler);
    let many: BTreeSet<&str> = many.iter().chain([&one]).map(String::as_str).collect();
    let changed = Instant::now();
    machine.replace(
        render::AUTHORIZATION_PATH,
        &authorization(&configure(&[], &many)),
    );
    until("a full list is read", || {
        denied(block_on(read(&client(Profile::Scheduler)))).then_some(())
    });
    println!(
        "{} read in {:.2?}; a read takes {before:.2?} without them, {:.2?} with them",
        many.len(),
        changed.elapsed(),
        measure(&manager)
    );
    machine.replace(render::AUTHORIZATION_PATH, &nobody);
    until("nobody is denied again", || {
        block_on(read(&client(Profile::Scheduler))).ok()
    });
}

/// Whoever comes to API servers from a machine of a control plane.
const CLIENTS: [Profile; 5] = [
    Profile::KubeletClient,
    Profile::KubeProxy,
    Profile::ApiServerKubeletClient,
    Profile::ControllerManager,
    Profile::Scheduler,
];

/// What everybody may read who has proven to be somebody.
async fn read(client: &Client) -> Result<(), ApiError> {
    client.probe("/version").await
}

/// Whether kubelets would let who calls them with a certificate of this fingerprint: allowed, and denied.
async fn review(client: &Client, node: &str, fingerprint: Option<&str>) -> (bool, bool) {
    let extra = fingerprint.map(|fingerprint| {
        json!({"authentication.kubernetes.io/credential-id": [format!("X509SHA256={fingerprint}")]})
    });
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": KUBELET_CALLER_USER, "extra": extra, "resourceAttributes":
            {"version": "v1", "resource": "nodes", "subresource": "proxy", "name": node, "verb": "get"}}});
    let answer = client.create(&REVIEW, None, &review).await.unwrap();
    let is = |what: &str| answer["status"][what].as_bool().unwrap_or(false);
    (is("allowed"), is("denied"))
}

/// Whether an answer is that of the list, and of no other reason.
fn denied<T>(answer: Result<T, ApiError>) -> bool {
    answer.is_err_and(|error| {
        let said = error.to_string();
        assert!(
            said.contains("this-machine-was-replaced"),
            "refused for another reason: {said}"
        );
        true
    })
}

fn configure(list: &[u8], clients: &BTreeSet<&str>) -> Configure {
    render::revocations_step(list.to_vec(), clients)
}

fn authorization(configure: &Configure) -> String {
    let mut files = configure.files.iter();
    let file = files.find(|file| file.path == render::AUTHORIZATION_PATH);
    match &file.unwrap().content {
        FileContent::Text(text) => text.clone(),
        other => panic!("{other:?} is no text"),
    }
}

/// SHA-256 of a certificate, hex.
fn fingerprint(certificates: &Certificates, profile: Profile) -> String {
    let (_, pem) = parse_x509_pem(certificates[profile.name()].as_bytes()).unwrap();
    Digest::of(&pem.contents).hex()
}

/// How long a read takes, of a hundred.
fn measure(client: &Client) -> Duration {
    let began = Instant::now();
    block_on(async {
        for _ in 0..100 {
            read(client).await.unwrap();
        }
    });
    began.elapsed() / 100
}
