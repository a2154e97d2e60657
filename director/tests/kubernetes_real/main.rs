//! What this director renders, on the real binaries: etcd, API server, controllers, kube-proxy,
//! kubelet and containerd of the release under test.
//!
//! `WINDLASS_TEST_COMPONENTS` names the folder with the binaries; `kubelet` needs a stemcell besides
//! (`WINDLASS_TEST_ROOTFS`). Needs root (namespaces), `nft`, `ip`, `nsenter`, `setpriv`, `haproxy`.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod contract;
mod drains;
mod evictions;
mod fencing;
mod hazards;
mod kubelet;
mod machine;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_common::cluster::{
    ClusterNetwork, ClusterSpec, ControlPlaneSpec, MachineSize, PoolSpec,
};
use windlass_common::id::{ClusterName, Incarnation, MachineName, PoolName};
use windlass_common::step::{ClientFiles, Configure};
use windlass_director::kubernetes::addons;
use windlass_director::kubernetes::client::{ApiError, Client, Node, Resource};
use windlass_director::kubernetes::facts::{
    ClusterFacts, Endpoint, HostTraits, Images, MachineFacts, Role, pod_cidr,
};
use windlass_director::kubernetes::pki::{
    self, ClientIdentity, ClusterPki, Profile, Revocations, machine_certificates,
};
use windlass_director::kubernetes::render::{self, Phase, Trust};

use crate::machine::{Machine, World, block_on, client_of, until, write_private};

const ENDPOINT: &str = "10.88.0.2";

fn facts(version: String, control_planes: u32, workers: u32) -> ClusterFacts {
    let size = MachineSize {
        cpu_millis: 1000,
        memory_mib: 1024,
        disk_mib: 1024,
    };
    let pool = PoolName::new("workers").unwrap();
    let network = ClusterNetwork {
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
    };
    let machine = |index: u32| {
        let (kind, role) = if index < control_planes {
            ("control", Role::ControlPlane)
        } else {
            ("workers", Role::Worker { pool: pool.clone() })
        };
        let name = MachineName::new(format!("demo-{kind}-{index}")).unwrap();
        MachineFacts {
            node_name: name.node_name(Incarnation::FIRST).unwrap(),
            name,
            role,
            zone: None,
            address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 88, 0, 10)) + index),
            pod_cidr: pod_cidr(network.pod_cidr, index).unwrap(),
            host: HostTraits {
                cgroup_v1: true,
                restrict_oom_score_adj: true,
                read_only_conntrack: true,
                shared_disk: true,
            },
            kubelet: BTreeMap::new(),
            etcd: Default::default(),
            emulates: None,
            runs: None,
        }
    };
    ClusterFacts {
        secrets: Default::default(),
        machines: (0..control_planes + workers).map(machine).collect(),
        endpoint: Endpoint {
            name: "demo.windlass.internal".to_owned(),
            address: ENDPOINT.parse().unwrap(),
            port: 6443,
        },
        upstream_dns: Vec::new(),
        images: Images::default(),
        spec: ClusterSpec {
            name: ClusterName::new("demo").unwrap(),
            kubernetes_version: version,
            control_plane: ControlPlaneSpec {
                count: control_planes,
                size,
                kubelet: BTreeMap::new(),
                update: Default::default(),
            },
            pools: BTreeMap::from([(
                pool,
                PoolSpec {
                    count: workers,
                    size,
                    labels: BTreeMap::new(),
                    kubelet: BTreeMap::new(),
                    update: Default::default(),
                    self_fence: None,
                },
            )]),
            network,
            drain: Default::default(),
            gates: Vec::new(),
            maintenance: Default::default(),
            labels: Default::default(),
            backup: Default::default(),
        },
    }
}

/// Keys, certificates and files of a machine, as the director and an agent do it.
fn prepare(
    cluster: &ClusterFacts,
    pki: &ClusterPki,
    facts: &MachineFacts,
    machine: &Machine<'_>,
) -> Configure {
    let write = |path: &str, mode: u32, bytes: &[u8]| machine.write(path, mode, bytes);
    let configure = prepare_with(cluster, pki, facts, write);
    for (name, value) in &configure.sysctls {
        machine.run("sysctl", &["-qw", &format!("{name}={value}")]);
    }
    configure
}

/// The same, as far as it is files.
fn prepare_with(
    cluster: &ClusterFacts,
    pki: &ClusterPki,
    facts: &MachineFacts,
    write: impl Fn(&str, u32, &[u8]),
) -> Configure {
    let requests = machine::make_keys(&render::keys_step(facts), &write);
    let certificates =
        machine_certificates(pki, cluster, facts, &requests, Timestamp::now()).unwrap();
    let configure =
        render::configure_step(cluster, facts, &Trust::from(pki), &certificates).unwrap();
    machine::write_files(&configure, &write);
    if facts.role == Role::ControlPlane {
        // Members of etcd refuse everybody as long as they have no list of whom they refuse.
        let mut revocations = Revocations::default();
        let name = cluster.spec.name.as_str();
        revocations.settle(pki, name, Timestamp::now()).unwrap();
        let list = revocations.list().unwrap();
        let step = render::revocations_step(list, &revocations.clients());
        machine::write_files(&step, &write);
    }
    configure
}

fn start(machine: &mut Machine<'_>, configure: &Configure, phase: Phase) {
    for goal in render::service(phase, configure).units {
        machine.start(goal.unit.trim_end_matches(".service"));
    }
}

fn endpoint_client(cluster: &ClusterFacts, pki: &ClusterPki, identity: &ClientIdentity) -> Client {
    let address = SocketAddr::new(cluster.endpoint.address.into(), cluster.endpoint.port);
    client_of(
        address,
        &cluster.endpoint.name,
        &pki.kubernetes.certificate_pem,
        identity,
    )
}

#[test]
fn one_control_plane_serves_and_says_no_to_everybody_else() {
    let world = World::new();
    let cluster = facts(world.kubernetes_version(), 1, 1);
    let pki = ClusterPki::generate(&cluster.spec.name, Timestamp::now()).unwrap();
    let control = &cluster.machines[0];
    let mut machine = world.machine(control, &[ENDPOINT]);
    let configure = prepare(&cluster, &pki, control, &machine);
    for phase in [Phase::Etcd, Phase::ApiServer] {
        start(&mut machine, &configure, phase);
        println!("{} after {:.2?}", phase.name(), machine.gate(phase));
    }

    let name = &cluster.spec.name;
    let now = Timestamp::now();
    let bootstrap = pki::bootstrap_identity(&pki, name, now).unwrap();
    let bootstrap = endpoint_client(&cluster, &pki, &bootstrap);
    let director = pki::director_identity(&pki, name, now).unwrap();
    let director = endpoint_client(&cluster, &pki, &director);
    let before = std::time::Instant::now();
    block_on(async {
        // Twice: applying is idempotent.
        for object in [
            addons::bootstrap_objects(&cluster),
            addons::bootstrap_objects(&cluster),
        ] {
            for object in object {
                bootstrap.apply(&object).await.unwrap();
            }
        }
    });
    println!("add-ons applied twice in {:.2?}", before.elapsed());

    machine.start_api_proxy();
    start(&mut machine, &configure, Phase::Controllers);
    println!("controllers after {:.2?}", machine.gate(Phase::Controllers));
    director_has_its_rights_and_no_more(&director);
    block_on(nodes_are_labelled(&cluster, &bootstrap, &director));
    block_on(controllers_work(&bootstrap));
    println!(
        "pods made and judged {:.2?} after the add-ons",
        before.elapsed()
    );
    aggregated_ones_know_who_speaks_to_them(&bootstrap);
    secrets_are_encrypted(&machine, control, &bootstrap);
    strangers_are_refused(&machine, control, &cluster, &pki);
    let kubectl = operator_uses_kubectl(&world, &machine, &cluster, &pki);
    let nodes = (control, &cluster.machines[1]);
    evictions::nodes_evict_their_own_pods(&machine, &cluster, nodes, &bootstrap, &kubectl);
    drains::drains_leave_what_is_not_theirs(&director, &bootstrap);
    let server = pki::director_identity(&pki, name, now).unwrap();
    let servers = [endpoint_client(&cluster, &pki, &server)];
    fencing::a_gone_incarnation_writes_nothing(&machine, &cluster, &pki, (&director, &bootstrap));
    hazards::hazards_are_found(control, (&director, &servers), &bootstrap, &kubectl);
    contract::evictions_are_answered_as_the_simulated_ones(control, &bootstrap, kubectl);
    kube_proxy_programs_services(&mut machine);
    kubelet_reads_its_configuration(&mut machine);
    containerd_reads_its_configuration(&world, &machine);
    network_rules_load(&machine);
}

/// What the director needs, and what would make it more than that.
fn director_has_its_rights_and_no_more(director: &Client) {
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (true,  "list",   "",                          "nodes",                 "", ""),
        (true,  "patch",  "",                          "nodes",                 "", ""),
        (true,  "delete", "",                          "nodes",                 "", ""),
        (true,  "create", "",                          "pods/eviction",         "default", ""),
        (true,  "list",   "policy",                    "poddisruptionbudgets",  "", ""),
        (true,  "list",   "",                          "services",              "", ""),
        (true,  "list",   "storage.k8s.io",            "volumeattachments",     "", ""),
        (true,  "list",   "admissionregistration.k8s.io", "validatingwebhookconfigurations", "", ""),
        (true,  "list",   "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", ""),
        (false, "patch",  "admissionregistration.k8s.io", "validatingwebhookconfigurations", "", ""),
        (true,  "get",    "coordination.k8s.io",       "leases",                "kube-node-lease", ""),
        (true,  "patch",  "apps",                      "deployments",           "kube-system", "coredns"),
        (true,  "patch",  "",                          "configmaps",            "kube-system", "windlass-gone-nodes"),
        (false, "patch",  "",                          "configmaps",            "kube-system", "other"),
        (false, "patch",  "admissionregistration.k8s.io", "validatingadmissionpolicies", "", ""),
        (false, "create", "",                          "nodes",                 "", ""),
        (false, "patch",  "",                          "nodes/status",          "", ""),
        (false, "get",    "",                          "nodes/proxy",           "", ""),
        (false, "create", "",                          "pods",                  "kube-system", ""),
        (false, "create", "",                          "pods/exec",             "kube-system", ""),
        (false, "get",    "",                          "secrets",               "kube-system", ""),
        (false, "create", "",                          "serviceaccounts/token", "kube-system", ""),
        (false, "create", "apps",                      "deployments",           "kube-system", ""),
        (false, "patch",  "apps",                      "deployments",           "kube-system", "other"),
        (false, "patch",  "apps",                      "deployments",           "default", "coredns"),
        (false, "patch",  "rbac.authorization.k8s.io", "clusterroles",          "", ""),
        (false, "impersonate", "",                     "users",                 "", ""),
    ];
    block_on(async {
        for (want, verb, group, resource, namespace, name) in cases {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource,
                    "subresource": subresource, "namespace": namespace, "name": name,
                }},
            });
            let kind = &Resource::SELF_SUBJECT_ACCESS_REVIEW;
            let answer = director.create(kind, None, &review).await.unwrap();
            let got = answer["status"]["allowed"] == json!(true);
            assert_eq!(
                got, want,
                "{verb} {group} {resource}/{subresource} {namespace} {name}"
            );
        }
    });
}

async fn nodes_are_labelled(cluster: &ClusterFacts, bootstrap: &Client, director: &Client) {
    for machine in &cluster.machines {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": machine.node_name},
            "status": {"addresses": [{"type": "InternalIP", "address": machine.address}]},
        });
        bootstrap
            .create(&Resource::NODE, None, &node)
            .await
            .unwrap();
        let patch = addons::node_patch(cluster, machine);
        for _ in 0..2 {
            director
                .merge_patch(&Resource::NODE, None, machine.node_name.as_str(), &patch)
                .await
                .unwrap();
        }
    }
    let nodes: Vec<Node> = director.list(&Resource::NODE, None, None).await.unwrap();
    assert_eq!(nodes.len(), cluster.machines.len());
    for (node, machine) in nodes.iter().zip(&cluster.machines) {
        assert_eq!(node.name, machine.node_name.as_str());
        assert_eq!(node.pod_cidr, Some(machine.pod_cidr.to_string()));
        assert_eq!(
            node.labels["windlass.internal/machine"],
            machine.name.as_str()
        );
        assert!(!node.is_ready());
    }
    let selector = Some("node-role.kubernetes.io/control-plane");
    let control: Vec<Node> = director
        .list(&Resource::NODE, None, selector)
        .await
        .unwrap();
    assert_eq!(control.len(), 1);
    let error = director
        .get::<Value>(&Resource::NODE, None, "nobody")
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(
        !director
            .delete(&Resource::NODE, None, "nobody")
            .await
            .unwrap()
    );
}

/// The controller manager makes pods of the Deployment with tokens that the API server accepts.
async fn controllers_work(bootstrap: &Client) {
    let deadline = std::time::Instant::now() + machine::PATIENCE;
    loop {
        let pods: Vec<Value> = bootstrap
            .list(
                &Resource::POD,
                Some("kube-system"),
                Some("k8s-app=kube-dns"),
            )
            .await
            .unwrap();
        // The scheduler has looked at the pod when it says why it cannot place it.
        let judged = |pod: &Value| pod.pointer("/status/conditions/0/reason").is_some();
        if !pods.is_empty() && pods.iter().all(judged) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{pods:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let root: Value = bootstrap
        .get(
            &Resource::CONFIG_MAP,
            Some("kube-system"),
            "kube-root-ca.crt",
        )
        .await
        .unwrap();
    assert!(
        root["data"]["ca.crt"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
}

fn secrets_are_encrypted(machine: &Machine<'_>, facts: &MachineFacts, bootstrap: &Client) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"},
        "stringData": {"word": "a-word-in-the-clear"},
    });
    block_on(bootstrap.create(&Resource::SECRET, Some("default"), &secret)).unwrap();
    let stored = etcdctl(
        machine,
        facts,
        Profile::ApiServerEtcdClient,
        &[
            "get",
            "/registry/secrets/default/s",
            "--print-value-only",
            "--hex",
        ],
    );
    let prefix: String = "k8s:enc:secretbox:v1:key1:"
        .bytes()
        .map(|b| format!("\\x{b:02x}"))
        .collect();
    assert!(stored.unwrap().starts_with(&prefix));
}

fn etcdctl(
    machine: &Machine<'_>,
    facts: &MachineFacts,
    profile: Profile,
    arguments: &[&str],
) -> Result<String, String> {
    let endpoint = format!("--endpoints=https://{}:2379", facts.address);
    let files = [
        format!("--cert={}", profile.certificate_path()),
        format!("--key={}", profile.key_path()),
        format!("--cacert={}", render::ETCD_CA_PATH),
    ];
    let mut all = vec![endpoint.as_str()];
    all.extend(files.iter().map(String::as_str));
    all.extend(arguments);
    let output = machine
        .command(&machine.component("etcdctl"), &all)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

/// API servers add to what is applied what they need, and name nobody else.
fn aggregated_ones_know_who_speaks_to_them(bootstrap: &Client) {
    let (namespace, name) = (Some("kube-system"), "extension-apiserver-authentication");
    let found = machine::until("API servers say whom they trust", || {
        let found = block_on(bootstrap.get::<Value>(&Resource::CONFIG_MAP, namespace, name));
        let data = found.unwrap()["data"].clone();
        data["requestheader-client-ca-file"]
            .is_string()
            .then_some(data)
    });
    let names: Value =
        serde_json::from_str(found["requestheader-allowed-names"].as_str().unwrap()).unwrap();
    assert_eq!(names, json!([pki::FRONT_PROXY_NAME, pki::NO_FRONT_PROXY]));
}

fn strangers_are_refused(
    machine: &Machine<'_>,
    control: &MachineFacts,
    cluster: &ClusterFacts,
    pki: &ClusterPki,
) {
    // Without a certificate: health only.
    let get = |path: &str| {
        let url = format!("https://{}:6443{path}", control.address);
        let format = ["-s", "-o", "/dev/null", "-w", "%{http_code}"];
        let ca = machine.path(render::KUBERNETES_CA_PATH);
        machine::run(
            "curl",
            &[&format[..], &["--cacert", ca.to_str().unwrap(), &url]].concat(),
        )
    };
    assert_eq!(get("/readyz"), "200");
    assert_eq!(get("/livez"), "200");
    assert_eq!(get("/version"), "401");
    assert_eq!(get("/api/v1/nodes"), "401");

    // What an API server proves itself with to aggregated ones makes nobody a user of another one.
    let file = |path: &str| machine.path(path).to_str().unwrap().to_owned();
    let url = format!("https://{}:6443/api/v1/secrets", control.address);
    let code = machine::run(
        "curl",
        &[
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cacert",
            &file(render::KUBERNETES_CA_PATH),
            "--cert",
            &file(&Profile::FrontProxyClient.certificate_path()),
            "--key",
            &file(&Profile::FrontProxyClient.key_path()),
            "-H",
            "X-Remote-User: root",
            "-H",
            "X-Remote-Group: system:masters",
            &url,
        ],
    );
    assert_eq!(code, "401");

    // A node sees its own objects and nobody else's secrets.
    let address = SocketAddr::new(cluster.endpoint.address.into(), cluster.endpoint.port);
    let files = ClientFiles {
        certificate_path: Profile::KubeletClient.certificate_path(),
        key_path: Profile::KubeletClient.key_path(),
    };
    let node = machine.client(
        address,
        &cluster.endpoint.name,
        render::KUBERNETES_CA_PATH,
        &files,
    );
    block_on(async {
        let own = control.node_name.as_str();
        node.get::<Node>(&Resource::NODE, None, own).await.unwrap();
        let secret = node
            .get::<Value>(&Resource::SECRET, Some("default"), "s")
            .await;
        assert_eq!(secret.unwrap_err().code(), Some(403));
        // NodeRestriction: not another node's labels, and not its own role.
        let label = json!({"metadata": {"labels": {"node-role.kubernetes.io/evil": ""}}});
        let other = cluster.machines[1].node_name.as_str();
        for name in [own, other] {
            let patched = node.merge_patch(&Resource::NODE, None, name, &label).await;
            assert_eq!(patched.unwrap_err().code(), Some(403), "{name}");
        }
    });

    // A client of the front proxy's authority is no user, and no client of etcd is the API server's.
    let front = ClientFiles {
        certificate_path: Profile::FrontProxyClient.certificate_path(),
        key_path: Profile::FrontProxyClient.key_path(),
    };
    let front = machine.client(
        address,
        &cluster.endpoint.name,
        render::KUBERNETES_CA_PATH,
        &front,
    );
    let answer = block_on(front.list::<Node>(&Resource::NODE, None, None));
    assert_eq!(answer.unwrap_err().code(), Some(401));
    for profile in [Profile::KubeletClient, Profile::FrontProxyClient] {
        assert!(
            etcdctl(
                machine,
                control,
                profile,
                &["--command-timeout=1s", "get", "/"]
            )
            .is_err(),
            "{profile:?}"
        );
    }

    // A server that cannot prove the endpoint's name is not talked to.
    let identity = pki::director_identity(pki, &cluster.spec.name, Timestamp::now()).unwrap();
    let wrong = client_of(
        address,
        "other.windlass.internal",
        &pki.kubernetes.certificate_pem,
        &identity,
    );
    let error = block_on(wrong.probe("/readyz")).unwrap_err();
    assert!(matches!(error, ApiError::Tls(_)), "{error:?}");
}

/// Returns what runs `kubectl` as an administrator of the cluster.
fn operator_uses_kubectl(
    world: &World,
    machine: &Machine<'_>,
    cluster: &ClusterFacts,
    pki: &ClusterPki,
) -> impl Fn(&[&str]) -> String {
    let kubeconfig = pki::operator_kubeconfig(
        pki,
        &cluster.spec.name,
        &cluster.endpoint,
        "alice",
        Timestamp::now(),
    )
    .unwrap();
    let path = machine.path("/etc/operator.kubeconfig");
    write_private(&path, kubeconfig.expose());
    let program = world.component("kubectl");
    let kubectl = move |arguments: &[&str]| {
        let config = ["--kubeconfig", path.to_str().unwrap()];
        machine::run(&program, &[&config[..], arguments].concat())
    };
    assert_eq!(kubectl(&["auth", "can-i", "*", "*"]).trim(), "yes");
    let who = kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo}"]);
    assert!(who.contains("windlass:operator:alice"), "{who}");
    assert!(!who.contains("system:masters"), "{who}");
    kubectl
}

fn kube_proxy_programs_services(machine: &mut Machine<'_>) {
    machine.start("kube-proxy");
    until("kube-proxy's rules", || {
        let output = machine
            .command("nft", &["list", "ruleset"])
            .output()
            .unwrap();
        let rules = String::from_utf8_lossy(&output.stdout).into_owned();
        rules.contains("10.96.0.10").then_some(())
    });
    no_lenient_decoding(&machine.log("kube-proxy"));
}

/// The kubelet has read everything when it looks for the container runtime, which is not there.
fn kubelet_reads_its_configuration(machine: &mut Machine<'_>) {
    machine.start("kubelet");
    let log = machine.ended("kubelet");
    no_lenient_decoding(&log);
    assert!(log.contains("containerd.sock"), "{log}");
}

fn no_lenient_decoding(log: &str) {
    for word in ["lenient", "strict decoding", "unknown field"] {
        assert!(!log.contains(word), "{log}");
    }
}

fn containerd_reads_its_configuration(world: &World, machine: &Machine<'_>) {
    let config = "--config=/etc/containerd/config.toml";
    let dump = machine.run(&world.component("containerd"), &[config, "config", "dump"]);
    for line in [
        "sandbox = 'registry.windlass.internal/pause:1'",
        "restrict_oom_score_adj = true",
        "bin_dirs = ['/opt/windlass/components/cni-plugins/current']",
        "BinaryName = '/opt/windlass/components/runc/current/runc'",
        "SystemdCgroup = true",
    ] {
        assert!(dump.contains(line), "{line} is not in {dump}");
    }
}

fn network_rules_load(machine: &Machine<'_>) {
    for _ in 0..2 {
        machine.run("nft", &["-f", "/etc/windlass/network.nft"]);
    }
    let rules = machine.run("nft", &["list", "table", "ip", "windlass"]);
    assert_eq!(rules.matches("masquerade").count(), 1, "{rules}");
}

#[test]
fn three_control_planes_share_one_etcd() {
    let world = World::new();
    let cluster = facts(world.kubernetes_version(), 3, 0);
    let pki = ClusterPki::generate(&cluster.spec.name, Timestamp::now()).unwrap();
    let mut machines: Vec<_> = cluster
        .control_planes()
        .into_iter()
        .enumerate()
        .map(|(index, facts)| {
            let extra: &[&str] = if index == 2 { &[ENDPOINT] } else { &[] };
            let machine = world.machine(facts, extra);
            let configure = prepare(&cluster, &pki, facts, &machine);
            (machine, configure)
        })
        .collect();
    for (machine, configure) in &mut machines {
        start(machine, configure, Phase::Etcd);
    }
    for (machine, _) in &mut machines {
        println!("etcd after {:.2?}", machine.gate(Phase::Etcd));
    }
    let control = &cluster.machines[0];
    let members = etcdctl(
        &machines[0].0,
        control,
        Profile::ApiServerEtcdClient,
        &["member", "list"],
    );
    assert_eq!(members.unwrap().matches("started").count(), 3);

    // An API server's certificate does not make a member.
    let peer = SocketAddr::new(cluster.machines[1].address.into(), 2380);
    let probe = |profile: Profile| {
        let files = ClientFiles {
            certificate_path: profile.certificate_path(),
            key_path: profile.key_path(),
        };
        let node = cluster.machines[1].node_name.as_str();
        let client = machines[0]
            .0
            .client(peer, node, render::ETCD_CA_PATH, &files);
        machines[0].0.inside(|| block_on(client.probe("/members")))
    };
    probe(Profile::EtcdPeer).unwrap();
    let refused = probe(Profile::ApiServerEtcdClient).unwrap_err();
    assert!(refused.code().is_none(), "{refused}");

    let (machine, configure) = &mut machines[2];
    start(machine, configure, Phase::ApiServer);
    println!("API server after {:.2?}", machine.gate(Phase::ApiServer));
    machine.start_api_proxy();
    start(machine, configure, Phase::Controllers);
    println!("controllers after {:.2?}", machine.gate(Phase::Controllers));

    // One member down: the API server knows the others.
    drop(machines.remove(0));
    let director = pki::bootstrap_identity(&pki, &cluster.spec.name, Timestamp::now()).unwrap();
    let client = endpoint_client(&cluster, &pki, &director);
    until("a write with one member of three down", || {
        let label =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}});
        block_on(client.apply(&label)).ok()
    });
}
