//! What a node may do to pods, as the agent's `evict` step does it: to those of its own node, within their budgets
//! or past them, and to no others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::watch;
use windlass_agent::history::History;
use windlass_agent::host::Host;
use windlass_agent::link::ProgressSink;
use windlass_agent::steps::fetch::{Opening, SourceError, Wanted};
use windlass_agent::steps::{self, ArtifactSource, Context, Reporter, Run};
use windlass_agent::units::Units;
use windlass_common::journal::DirStorage;
use windlass_common::step::{
    ClientFiles, Evict, EvictAnswer, EvictHow, EvictOutcome, EvictPod, Progress, Step, StepId,
};
use windlass_director::kubernetes::client::{Client, Resource};
use windlass_director::kubernetes::facts::{ClusterFacts, MachineFacts};
use windlass_director::kubernetes::pki::Profile;
use windlass_director::kubernetes::render;

use crate::machine::{Machine, block_on, until};

const NAMESPACE: &str = "evictions";

#[derive(Debug)]
struct NoArtifacts;

impl ArtifactSource for NoArtifacts {
    fn open(&self, _: Wanted) -> Opening<'_> {
        Box::pin(async { Err(SourceError::NotFound("none here".to_owned())) })
    }
}

/// Carries out the step as the agent of `machine` does, and returns what became of each pod.
fn as_agent(machine: &Machine<'_>, step: Evict) -> Vec<EvictOutcome> {
    let root = machine.path("/");
    let journal = root.join("var/lib/windlass/journal");
    let step = Step::Evict(step);
    let id = StepId("t1/evict".to_owned());
    let faults = steps::check::check(&id, &step);
    assert!(faults.is_empty(), "{faults:?}");
    machine.inside(|| {
        block_on(async {
            let history = History::open(DirStorage::open(&journal).unwrap()).unwrap();
            let context = Context {
                host: Host::open(&root).unwrap(),
                units: Arc::new(Units::default()),
                artifacts: Arc::new(NoArtifacts),
                history: Arc::new(Mutex::new(history)),
                watched: watch::channel(BTreeMap::new()).0,
                leave: watch::channel(false).0,
                director: None,
            };
            let (sink, mut progress) = ProgressSink::channel(64);
            let run = Run::new(Reporter::new(sink));
            steps::run(&context, &run, &id, &step).await.unwrap();
            drop(run);
            let mut said = Vec::new();
            while let Some(item) = progress.recv().await {
                if let Progress::Output { bytes, .. } = item {
                    said.extend(bytes);
                }
            }
            let lines = said.split(|byte| *byte == b'\n');
            lines
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice::<EvictAnswer>(line).unwrap().outcome)
                .collect()
        })
    })
}

/// A pod that nobody starts: no kubelet runs here.
async fn bind(admin: &Client, name: &str, node: &MachineFacts) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "nodeName": node.node_name,
            "automountServiceAccountToken": false,
            "containers": [{"name": "it", "image": "registry.windlass.internal/none:1"}],
        },
    });
    let made = admin.create(&Resource::POD, Some(NAMESPACE), &pod).await;
    made.unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn pod(admin: &Client, name: &str) -> Value {
    let found = admin.get(&Resource::POD, Some(NAMESPACE), name).await;
    found.unwrap()
}

/// `own` is the machine that runs; `other` is one of whose node there are pods.
pub(crate) fn nodes_evict_their_own_pods(
    machine: &Machine<'_>,
    cluster: &ClusterFacts,
    (own, other): (&MachineFacts, &MachineFacts),
    admin: &Client,
    kubectl: impl Fn(&[&str]) -> String,
) {
    kubectl(&["create", "namespace", NAMESPACE]);
    // Pods are refused until the controller has made it.
    until("the namespace's account", || {
        let account = ["-n", NAMESPACE, "get", "serviceaccounts", "-o", "name"];
        kubectl(&account).contains("default").then_some(())
    });
    let uids: BTreeMap<&str, String> = [
        ("web", own),
        ("kept", own),
        ("past", own),
        ("again", own),
        ("strange", other),
    ]
    .into_iter()
    .map(|(name, node)| (name, block_on(bind(admin, name, node))))
    .collect();
    kubectl(&[
        "-n",
        NAMESPACE,
        "create",
        "poddisruptionbudget",
        "kept",
        "--selector=app=kept",
        "--min-available=1",
    ]);
    // Budgets count pods that run.
    let ready = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    kubectl(&[
        "-n",
        NAMESPACE,
        "patch",
        "pod",
        "kept",
        "--subresource=status",
        "--type=merge",
        "-p",
        ready,
    ]);
    until("the budget counts", || {
        let healthy = ["-o", "jsonpath={.status.currentHealthy}"];
        let budget = ["-n", NAMESPACE, "get", "poddisruptionbudget", "kept"];
        (kubectl(&[&budget[..], &healthy].concat()) == "1").then_some(())
    });

    let named = |name: &str, uid: &str, how| EvictPod {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        grace_seconds: None,
        how,
    };
    let evict = |name: &str| named(name, &uids[name], EvictHow::Evict);
    let step = |pods: Vec<EvictPod>| Evict {
        pods,
        ..render::evict_step(cluster, own)
    };
    let outcomes = as_agent(
        machine,
        step(vec![
            evict("web"),
            evict("kept"),
            evict("strange"),
            named(
                "again",
                "00000000-0000-0000-0000-000000000000",
                EvictHow::Evict,
            ),
            named(
                "absent",
                "00000000-0000-0000-0000-000000000000",
                EvictHow::Evict,
            ),
            named("past", &uids["past"], EvictHow::Delete),
        ]),
    );
    println!("a node's own evictions: {outcomes:#?}");
    let [web, kept, strange, again, absent, past] = &outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!(web, &EvictOutcome::Accepted);
    let EvictOutcome::Kept { message, .. } = kept else {
        panic!("{kept:?}")
    };
    assert!(message.contains("disruption budget"), "{message}");
    assert_eq!(strange, &EvictOutcome::Elsewhere);
    assert_eq!(again, &EvictOutcome::Gone, "another pod of its name");
    assert_eq!(absent, &EvictOutcome::Elsewhere);
    assert_eq!(past, &EvictOutcome::Accepted);
    // A budget does not hold what is deleted, and that a node may as well.
    let deleted = named("kept", &uids["kept"], EvictHow::Delete);
    assert_eq!(
        as_agent(machine, step(vec![deleted])),
        [EvictOutcome::Accepted]
    );
    block_on(async {
        for (name, ends) in [
            ("web", true),
            ("kept", true),
            ("past", true),
            ("again", false),
            ("strange", false),
        ] {
            let found = pod(admin, name).await;
            let told = found["metadata"]["deletionTimestamp"].is_string();
            assert_eq!(told, ends, "{name}: {found:#}");
        }
    });

    // As another node it is nobody, whatever the step says.
    let as_other = Evict {
        pods: vec![evict("strange")],
        ..render::evict_step(cluster, other)
    };
    let outcomes = as_agent(machine, as_other);
    let [EvictOutcome::Forbidden { message }] = &outcomes[..] else {
        panic!("a node acts as another one: {outcomes:?}")
    };
    println!("as another node: {message}");
    // And where nobody looks first, NodeRestriction does.
    let files = ClientFiles {
        certificate_path: Profile::KubeletClient.certificate_path(),
        key_path: Profile::KubeletClient.key_path(),
    };
    let address = (cluster.endpoint.address, cluster.endpoint.port).into();
    let name = &cluster.endpoint.name;
    let node = machine.client(address, name, render::KUBERNETES_CA_PATH, &files);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": "strange", "namespace": NAMESPACE},
    });
    block_on(async {
        let namespace = Some(NAMESPACE);
        let evicted = node
            .create_under(&Resource::POD, namespace, "strange", "eviction", &eviction)
            .await;
        let deleted = node
            .delete_with(&Resource::POD, namespace, "strange", &json!({}))
            .await;
        for error in [
            evicted.map(drop).unwrap_err(),
            deleted.map(drop).unwrap_err(),
        ] {
            assert_eq!(error.code(), Some(403), "{error}");
            let said = error.to_string();
            assert!(said.contains("spec.nodeName set to itself"), "{said}");
        }
    });
    audited(machine, own);
}

/// The API server's own account of who asked.
fn audited(machine: &Machine<'_>, own: &MachineFacts) {
    let log = std::fs::read_to_string(machine.path("/var/log/kubernetes/audit.log")).unwrap();
    let entries = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<(String, String)> = entries
        .filter(|entry| entry["objectRef"]["namespace"] == NAMESPACE)
        .filter(|entry| {
            entry["objectRef"]["subresource"] == "eviction" || entry["verb"] == "delete"
        })
        .filter(|entry| entry["responseStatus"]["code"].as_u64().unwrap() < 300)
        .map(|entry| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                text(&entry["objectRef"]["name"]),
                text(&entry["user"]["username"]),
            )
        })
        .collect();
    let user = format!("system:node:{}", own.node_name);
    let want = ["web", "past", "kept"].map(|name| (name.to_owned(), user.clone()));
    assert_eq!(told, want);
}
