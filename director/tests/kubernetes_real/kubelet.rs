//! The real kubelet under the cases that the simulated one is run against (`tests/src/sim`): in a machine of the local
//! provider, made from the stemcell, on which nothing but its units acts.
//!
//! `WINDLASS_TEST_ROOTFS` names the root file system of a stemcell, `WINDLASS_TEST_BIN` the folder with the director.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_common::contract::kubelet::{self, Act, Kubelet, Sight};
use windlass_common::id::MachineName;
use windlass_director::kubernetes::addons;
use windlass_director::kubernetes::client::{Client, Resource};
use windlass_director::kubernetes::facts::MachineFacts;
use windlass_director::kubernetes::pki::{self, ClusterPki};
use windlass_director::kubernetes::render::{self, Phase};
use windlass_director::provider::local::{LocalConfig, LocalProvider};
use windlass_director::provider::{MachineRequest, MachineSize, Provider};

use crate::machine::{self, PATIENCE, block_on, client_of, until};
use crate::{facts, prepare_with};

const NAMESPACE: Option<&str> = Some("default");
/// How long a Node that is not heard of stays Ready: twice as long as a kubelet takes to be heard of again.
const GRACE: &str = "--node-monitor-grace-period=20s --node-monitor-period=1s";
const CONTROLLERS: &str = "kube-controller-manager";

/// A machine, whose end takes all with it.
struct Host {
    provider: LocalProvider,
    runtime: tokio::runtime::Runtime,
    name: MachineName,
    dir: tempfile::TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for unit in ["kube-apiserver", "kubelet"] {
                let log = self.run(&format!("journalctl --unit {unit} --lines 30 --no-pager"));
                let log = log.map(|log| String::from_utf8_lossy(&log.stdout).into_owned());
                eprintln!("--- {unit}\n{}", log.unwrap_or_default());
            }
        }
        let reset = self.runtime.block_on(self.provider.reset());
        if let Err(error) = reset {
            eprintln!("a machine stays behind: {error}");
        }
    }
}

fn folder(variable: &str) -> PathBuf {
    let named = std::env::var_os(variable);
    PathBuf::from(named.unwrap_or_else(|| panic!("{variable} is not set")))
}

impl Host {
    fn new(machine: &MachineFacts) -> Self {
        let rootfs = folder("WINDLASS_TEST_ROOTFS").canonicalize().unwrap();
        let stemcell = rootfs.parent().unwrap().to_owned();
        // Beside the root, on a file system that bears another overlay.
        let mut dir = tempfile::Builder::new();
        let dir = dir
            .prefix("windlass-kubelet-")
            .tempdir_in(&stemcell)
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let bin = folder("WINDLASS_TEST_BIN").canonicalize().unwrap();
        let provider = LocalProvider::new(LocalConfig {
            dir: dir.path().join("data"),
            name: format!("k{:x}", std::process::id() & 0xf_ffff),
            cidr: "10.88.0.0/24".parse().unwrap(),
            director_exe: bin.join("windlass-director"),
            runc: "runc".into(),
            zones: Vec::new(),
        })
        .unwrap();
        let request = MachineRequest {
            name: machine.name.clone(),
            incarnation: windlass_common::id::Incarnation::FIRST,
            stemcell,
            size: MachineSize {
                cpu_millis: 4_000,
                memory_bytes: 2 << 30,
                disk_bytes: 64 << 20,
            },
            zone: None,
            address: machine.address,
            hostname: machine.node_name.clone(),
            settings: b"{}".to_vec(),
            tags: BTreeMap::new(),
        };
        runtime.block_on(provider.create_machine(request)).unwrap();
        let name = machine.name.clone();
        let host = Self {
            provider,
            runtime,
            name,
            dir,
        };
        until("the machine's systemd", || {
            let up = host.run("systemctl is-system-running")?;
            let state = String::from_utf8_lossy(&up.stdout).trim().to_owned();
            matches!(state.as_str(), "running" | "degraded").then_some(())
        });
        // Nobody but these tests acts on it.
        host.says(
            "systemctl disable --quiet --now windlass-agent-guard.path windlass-agent.service",
        );
        host
    }

    fn init(&self) -> Option<String> {
        let machine = self
            .dir
            .path()
            .join("data/machines")
            .join(self.name.as_str());
        let pid = fs::read_to_string(machine.join("init.pid")).ok()?;
        Some(pid.trim().to_owned())
    }

    /// Runs a shell command in the machine.
    fn run(&self, script: &str) -> Option<Output> {
        let init = self.init()?;
        let mut command = Command::new("nsenter");
        command.args([
            "-t", &init, "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--",
        ]);
        command.args(["/bin/bash", "-c", script]).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Some(command.output().unwrap())
    }

    /// The same, for one that has to succeed; what it printed.
    fn says(&self, script: &str) -> String {
        let output = self.run(script).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}: {out} {err}");
        out
    }

    /// Where an absolute path of the machine is seen from outside.
    fn path(&self, path: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.init().unwrap()));
        root.join(path.trim_start_matches('/'))
    }
}

struct RealKubelet<'a> {
    host: &'a Host,
    admin: &'a Client,
    node: String,
    /// What the Node said, and when, as it was when its kubelet was started or stopped last.
    before: Option<String>,
    /// Lines of the kubelet that say that it was not heard, until now.
    missed: usize,
    began: Instant,
}

impl RealKubelet<'_> {
    fn nodes(&self) -> Vec<Value> {
        block_on(self.admin.list(&Resource::NODE, None, None)).unwrap()
    }

    fn node(&self) -> Option<Value> {
        let mut nodes = self.nodes().into_iter();
        nodes.find(|node| node["metadata"]["name"] == json!(self.node))
    }

    fn condition(of: &Value) -> Option<&Value> {
        let mut conditions = of["status"]["conditions"].as_array()?.iter();
        conditions.find(|condition| condition["type"] == "Ready")
    }

    fn said(&self) -> Option<String> {
        let node = self.node()?;
        let at = Self::condition(&node)?["lastHeartbeatTime"].as_str()?;
        Some(at.to_owned())
    }

    fn pod(&self, name: &str) -> Option<Value> {
        match block_on(self.admin.get(&Resource::POD, NAMESPACE, name)) {
            Ok(pod) => Some(pod),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn misses(&self) -> usize {
        let log = self
            .host
            .says("journalctl --unit kubelet --no-pager --output cat");
        let words = [
            "Failed to update lease",
            "Failed to ensure lease exists",
            "Unable to update node status",
        ];
        let lines = log.lines();
        lines
            .filter(|line| words.iter().any(|word| line.contains(word)))
            .count()
    }

    fn unit(&self, verb: &str, unit: &str) {
        self.host.says(&format!("systemctl {verb} {unit}"));
    }
}

impl Kubelet for RealKubelet<'_> {
    fn begin(&mut self) {
        self.unit("stop", "kubelet");
        let pods: Vec<Value> = block_on(self.admin.list(&Resource::POD, NAMESPACE, None)).unwrap();
        let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().unwrap();
            block_on(
                self.admin
                    .delete_with(&Resource::POD, NAMESPACE, name, &now),
            )
            .unwrap();
        }
        block_on(self.admin.delete(&Resource::NODE, None, &self.node)).unwrap();
        self.before = None;
    }

    fn act(&mut self, act: Act) {
        println!("{:.1?}: {act:?}", self.began.elapsed());
        let pods = &Resource::POD;
        match act {
            Act::Start => {
                self.before = self.said();
                // What is said within one second has one date.
                if let Some(before) = &self.before {
                    let second: Timestamp = before.parse().unwrap();
                    let next = second + Duration::from_secs(1);
                    until("the next second", || {
                        (Timestamp::now() >= next).then_some(())
                    });
                }
                self.unit("start", "kubelet");
            }
            Act::Stop => {
                self.unit("stop", "kubelet");
                self.before = self.said();
            }
            Act::Silence => self.unit("stop", "kube-apiserver"),
            Act::Answer => {
                self.unit("start", "kube-apiserver");
                until("the API server", || {
                    block_on(self.admin.probe("/readyz")).ok()
                });
            }
            Act::Miss => until("the kubelet to miss its Node", || {
                (self.misses() > self.missed).then_some(())
            }),
            Act::Cordon => {
                let closed = json!({"spec": {"unschedulable": true}});
                let patch = self
                    .admin
                    .merge_patch(&Resource::NODE, None, &self.node, &closed);
                block_on(patch).unwrap();
            }
            Act::Drop => {
                assert!(block_on(self.admin.delete(&Resource::NODE, None, &self.node)).unwrap());
            }
            Act::Run(name) => {
                let pod = json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                    "spec": {
                        "nodeName": self.node,
                        "automountServiceAccountToken": false,
                        "terminationGracePeriodSeconds": 2,
                        "containers": [{
                            "name": "it", "image": "registry.windlass.internal/pause:1",
                            "imagePullPolicy": "Never",
                        }],
                    },
                });
                block_on(self.admin.create(pods, NAMESPACE, &pod)).unwrap();
            }
            Act::Tell(name) => {
                assert!(block_on(self.admin.delete(pods, NAMESPACE, name)).unwrap());
            }
            Act::See(_) | Act::Until(_) => unreachable!("looked at elsewhere"),
        }
        // What is missed from now on.
        self.missed = self.misses();
        self.began = Instant::now();
    }

    fn sees(&mut self, sight: Sight) -> bool {
        let node = || self.node();
        let status = |node: &Value| Self::condition(node).map(|it| it["status"].clone());
        let closed = |node: &Value| node["spec"]["unschedulable"] == json!(true);
        match sight {
            Sight::Registered => {
                let nodes = self.nodes();
                let names = nodes.iter().map(|node| &node["metadata"]["name"]);
                names.eq([&json!(self.node)])
            }
            Sight::Absent => self.nodes().is_empty(),
            Sight::Ready => node().is_some_and(|node| status(&node) == Some(json!("True"))),
            Sight::NotReady => node().is_some_and(|node| status(&node) != Some(json!("True"))),
            Sight::OfBefore => self.said().is_some_and(|said| Some(said) == self.before),
            Sight::OfNow => self.said().is_some_and(|said| Some(said) != self.before),
            Sight::Cordoned => node().is_some_and(|node| closed(&node)),
            Sight::Open => node().is_some_and(|node| !closed(&node)),
            Sight::Runs(name) => self.pod(name).is_some_and(|pod| {
                let ready = Self::condition(&pod).is_some_and(|it| it["status"] == "True");
                let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
                ready && *restarts == json!(0) && pod["metadata"]["deletionTimestamp"].is_null()
            }),
            Sight::Overdue(name) => self.pod(name).is_some_and(|pod| {
                let end = pod["metadata"]["deletionTimestamp"].as_str();
                let end: Option<Timestamp> = end.map(|end| end.parse().unwrap());
                end.is_some_and(|end| end < Timestamp::now())
            }),
            Sight::Gone(name) => self.pod(name).is_none(),
        }
    }

    fn wait(&mut self) -> bool {
        std::thread::park_timeout(Duration::from_millis(100));
        self.began.elapsed() < PATIENCE
    }
}

#[test]
fn a_kubelet_does_what_the_simulated_one_does() {
    let version = {
        let rootfs = folder("WINDLASS_TEST_ROOTFS");
        let kubelet = rootfs.join("opt/windlass/components/kubelet");
        let mut versions = fs::read_dir(&kubelet)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name());
        let version = versions.find(|name| *name != "current").unwrap();
        version.into_string().unwrap()
    };
    let mut cluster = facts(version, 1, 0);
    let host = Host::new(&cluster.machines[0]);
    cluster.machines[0].host = host.provider.host_traits();
    let control = &cluster.machines[0];
    let pki = ClusterPki::generate(&cluster.spec.name, Timestamp::now()).unwrap();
    let write = |path: &str, mode: u32, bytes: &[u8]| {
        machine::write_at(&host.path(path), mode, bytes);
    };
    let configure = prepare_with(&cluster, &pki, control, write);
    let env = host.path(&render::env_path(CONTROLLERS));
    let flags = fs::read_to_string(&env).unwrap();
    let flags = flags.trim().strip_suffix('"').unwrap().to_owned();
    fs::write(&env, format!("{flags} {GRACE}\"\n")).unwrap();

    host.says("systemctl daemon-reload");
    for phase in [
        Phase::Runtime,
        Phase::Etcd,
        Phase::ApiServer,
        Phase::Controllers,
    ] {
        for goal in render::service(phase, &configure).units {
            host.says(&format!("systemctl start {}", goal.unit));
        }
    }
    let address = SocketAddr::new(control.address.into(), cluster.endpoint.port);
    let authority = &pki.kubernetes.certificate_pem;
    let identity = pki::bootstrap_identity(&pki, &cluster.spec.name, Timestamp::now()).unwrap();
    let admin = client_of(address, &cluster.endpoint.name, authority, &identity);
    until("the API server", || block_on(admin.probe("/readyz")).ok());
    // Who may do what; what runs in pods is left out.
    for object in addons::bootstrap_objects(&cluster) {
        if object["kind"] != "Deployment" && object["kind"] != "DaemonSet" {
            block_on(admin.apply(&object)).unwrap();
        }
    }
    until("the namespace's account", || {
        let kind = &Resource::SERVICE_ACCOUNT;
        block_on(admin.get::<Value>(kind, NAMESPACE, "default")).ok()
    });

    let mut faults = Vec::new();
    for case in kubelet::CASES {
        println!("--- {}", case.name);
        let mut real = RealKubelet {
            host: &host,
            admin: &admin,
            node: control.node_name.to_string(),
            before: None,
            missed: 0,
            began: Instant::now(),
        };
        faults.extend(kubelet::run(case, &mut real));
    }
    assert_eq!(faults, Vec::<String>::new());
}
