//! The encoding of every kind of body, pinned: a published body never changes (new content is a new
//! kind), and a released agent has to be understood for as long as it runs.
//!
//! Each file in `golden/` is one frame in hex, of the value below. A new kind gets a value here and a
//! file by running this test with `WINDLASS_GOLDEN_NEW=1`, which writes the files that are missing
//! and never one that is there.

#![allow(clippy::unwrap_used, reason = "a test: what is wrong ends it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write};
use std::path::PathBuf;

use windlass_common::condition::{Condition, Conditions, State};
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, Epoch, Incarnation, MachineName};
use windlass_common::probe::Nonce;
use windlass_common::report::{
    FileSystem, FileSystems, Heartbeat, Report, Scope, UnitReport, Vitals,
};
use windlass_common::secret::{Secret, SecretBytes};
use windlass_common::step::*;
use windlass_common::wire::frame::Frame;
use windlass_common::wire::message::*;
use windlass_common::wire::probe::*;
use windlass_common::wire::session::*;

#[derive(Default)]
struct Golden {
    seen: BTreeSet<u16>,
    faults: Vec<String>,
}

impl Golden {
    fn pin<B: Body + PartialEq + Debug>(&mut self, value: B) {
        self.seen.insert(B::KIND);
        let Some((_, name)) = KINDS.iter().find(|(kind, _)| *kind == B::KIND) else {
            self.faults
                .push(format!("{:#06x} is not in KINDS", B::KIND));
            return;
        };
        let name = name.rsplit("::").next().unwrap().trim();
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(format!("{:04x}-{name}.hex", B::KIND));
        let bytes = Frame::of(&value).unwrap().to_bytes();
        let Ok(text) = std::fs::read_to_string(&path) else {
            if std::env::var_os("WINDLASS_GOLDEN_NEW").is_some() {
                std::fs::write(&path, to_hex(&bytes)).unwrap();
            } else {
                self.faults.push(format!("{name} has no golden file"));
            }
            return;
        };
        let golden = from_hex(&text);
        if golden != bytes {
            self.faults.push(format!(
                "{name} is encoded as\n{}instead of\n{text}",
                to_hex(&bytes)
            ));
            return;
        }
        let frame = Frame::from_datagram(&golden, golden.len()).unwrap();
        assert_eq!(frame.body::<B>().unwrap(), value);
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn every_kind_is_encoded_as_it_was_when_it_was_published() {
    let mut golden = Golden::default();
    enrollment(&mut golden);
    control(&mut golden);
    probes(&mut golden);
    conditions(&mut golden);
    file_systems(&mut golden);
    streams(&mut golden);
    steps(&mut golden);
    for (kind, name) in KINDS {
        if !golden.seen.contains(kind) {
            golden
                .faults
                .push(format!("{name} ({kind:#06x}) is not pinned here"));
        }
    }
    assert!(golden.faults.is_empty(), "{}", golden.faults.join("\n"));
}

fn enrollment(golden: &mut Golden) {
    golden.pin(EnrollRequest {
        token: Secret::new("ab".repeat(32)),
        cluster: ClusterName::new("demo").unwrap(),
        machine: MachineName::new("demo-cp-0").unwrap(),
        incarnation: Incarnation(7),
        request_der: vec![0x30, 0x82, 1, 0],
    });
    golden.pin(LapsedRequest {
        chain_der: vec![vec![0x30, 1], vec![0x30, 2]],
        request_der: vec![0x30, 0x82, 1, 0],
        last_signature: vec![0x30, 3],
        next_signature: vec![0x30, 4],
    });
    golden.pin(EnrollResponse {
        chain_der: vec![vec![0x30, 1], vec![0x30, 2]],
        roots_der: vec![vec![0x30, 3]],
    });
    golden.pin(Refusal {
        code: RefusalCode::Unreachable,
        message: "cannot connect".to_owned(),
    });
}

fn conditions(golden: &mut Golden) {
    let condition = |name: &str, state, scope| Condition {
        name: name.to_owned(),
        subject: "/var/lib/etcd".to_owned(),
        state,
        says: "4.20 % of its space are free".to_owned(),
        source: "statvfs /var/lib/etcd".to_owned(),
        scope,
        at_unix_ms: 1_795_000_000_000,
        since_unix_ms: 1_794_999_000_000,
    };
    golden.pin(Conditions {
        at_unix_ms: 1_795_000_000_500,
        conditions: vec![
            condition("disk-space", State::Good, Scope::Machine),
            condition("disk-inodes", State::Bad, Scope::Host),
            condition("etcd", State::Unknown, Scope::Machine),
        ],
    });
}

fn file_systems(golden: &mut Golden) {
    let file_system = |point: &str, inodes_total, scope| FileSystem {
        point: point.to_owned(),
        used_bytes: 1 << 33,
        total_bytes: 1 << 35,
        inodes_used: 70_000,
        inodes_total,
        scope,
    };
    golden.pin(FileSystems {
        at_unix_ms: 1_795_000_000_500,
        file_systems: vec![
            file_system("/", 1 << 20, Scope::Host),
            file_system("/var/lib/etcd", 0, Scope::Machine),
        ],
    });
}

fn probes(golden: &mut Golden) {
    let nonce = Nonce(*b"sixteen bytes ..");
    let answer = EchoAnswer {
        chain_der: vec![vec![0x30, 1], vec![0x30, 2]],
        signature: vec![0x30, 3],
    };
    golden.pin(ProbeAsk {
        nonce,
        machine: MachineName::new("demo-w-1").unwrap(),
        incarnation: Incarnation(3),
        agent: "10.0.0.9:7445".parse().unwrap(),
        kubelet: "10.0.0.9:10250".parse().unwrap(),
        deadline_ms: 2_000,
    });
    golden.pin(ProbeAnswer {
        nonce,
        found: ProbeFound::Agent(answer.clone()),
    });
    golden.pin(Echo { nonce });
    golden.pin(answer);
    golden.pin(DirectorAsk { nonce });
    golden.pin(DirectorAnswer { nonce, heard: true });
}

fn control(golden: &mut Golden) {
    let tune = Tune {
        heartbeat_interval_ms: 500,
        report_interval_ms: 2_000,
    };
    golden.pin(Hello {
        protocols: vec![2, 1],
        agent_version: "0.1.0".to_owned(),
        capabilities: vec!["tunnel".to_owned()],
        boot_id: "3f0e".to_owned(),
        epoch: Epoch(300),
        unfinished: vec![StepId("task-1/kubelet".to_owned())],
    });
    golden.pin(Welcome {
        protocol: 1,
        epoch: Epoch(70_000),
        tune,
    });
    golden.pin(tune);
    golden.pin(Tune2 {
        heartbeat_interval_ms: 10_000,
        report_interval_ms: 30_000,
        detail: Detail::Units,
    });
    golden.pin(RenewRequest {
        request_der: vec![0x30, 4],
    });
    golden.pin(RenewResponse {
        chain_der: vec![vec![0x30, 5]],
        roots_der: vec![vec![0x30, 6], vec![0x30, 7]],
    });
    golden.pin(TrustBundle {
        roots_der: vec![vec![0x30, 6], vec![0x30, 7]],
    });
    golden.pin(RenewNow {});
    golden.pin(TrustHeld {
        roots: vec![Digest::of(b"old"), Digest::of(b"new")],
        certificate: Digest::of(b"leaf"),
    });
    let unit = UnitReport {
        active_state: "active".to_owned(),
        sub_state: "running".to_owned(),
        restarts: 3,
    };
    golden.pin(Report {
        at_unix_ms: 1_700_000_000_000,
        boot_id: "3f0e".to_owned(),
        uptime_s: 12,
        agent_version: "0.1.0".to_owned(),
        components: BTreeMap::from([("kubelet".to_owned(), "1.37.2".to_owned())]),
        units: BTreeMap::from([("kubelet.service".to_owned(), unit)]),
        vitals: Vitals {
            memory_used_bytes: 1 << 28,
            memory_total_bytes: 1 << 31,
            memory_scope: Scope::Machine,
            cpu_used_ms: 4_321,
            cpu_scope: Scope::Machine,
            disk_used_bytes: 1 << 33,
            disk_total_bytes: 1 << 35,
            load1_centi: 42,
            load_scope: Scope::Host,
        },
    });
    golden.pin(Heartbeat {
        sequence: 9,
        at_unix_ms: 1_700_000_000_000,
        units_unhealthy: 1,
        memory_used_bp: 5_000,
        disk_used_bp: 10_000,
        epoch: Epoch(2),
    });
}

fn streams(golden: &mut Golden) {
    golden.pin(ArtifactRequest {
        digest: Digest::of(b"artifact"),
        offset: 1 << 40,
    });
    golden.pin(ArtifactHeader { bytes: 250 });
    let machine = || MachineName::new("demo-w-0").unwrap();
    golden.pin(ArtifactsHeld {
        port: 7445,
        digests: vec![Digest::of(b"artifact"), Digest::of(b"other")],
    });
    golden.pin(ArtifactAsk {
        digest: Digest::of(b"artifact"),
        offset: 1 << 20,
        failed: vec![PeerFailure {
            machine: machine(),
            incarnation: Incarnation(300),
            fault: PeerFault::Lied,
        }],
    });
    let offer = |address: &str| PeerOffer {
        machine: machine(),
        incarnation: Incarnation(2),
        address: address.parse().unwrap(),
    };
    golden.pin(ArtifactPeers {
        bytes: 1 << 33,
        peers: vec![offer("10.77.0.3:7445"), offer("[fd00::3]:7445")],
    });
    golden.pin(ArtifactWait { wait_ms: 70_000 });
    golden.pin(ArtifactGrant {
        digest: Digest::of(b"artifact"),
        machine: machine(),
        incarnation: Incarnation(2),
        life_ms: 60_000,
    });
    golden.pin(TunnelRequest {
        target: TunnelTarget::ApiServer,
    });
    golden.pin(TunnelOpen {});
    golden.pin(StepHeader {
        id: StepId("task-1/kubelet".to_owned()),
        epoch: Epoch(2),
        deadline_ms: 60_000,
        labels: BTreeMap::from([("operator".to_owned(), "admin".to_owned())]),
    });
    golden.pin(Progress::Output {
        stream: OutputStream::Stderr,
        bytes: b"line\n".to_vec(),
    });
    golden.pin(StepResult {
        id: StepId("task-1/kubelet".to_owned()),
        outcome: Outcome::Failed {
            class: ErrorClass::Operator,
            message: "disk full".to_owned(),
        },
        payload: Payload::Requests(BTreeMap::from([("kubelet".to_owned(), vec![0x30, 8])])),
        changes: vec!["wrote /etc/x".to_owned()],
        elapsed_ms: 251,
    });
}

fn steps(golden: &mut Golden) {
    golden.pin(Fetch {
        digest: Digest::of(b"artifact"),
        bytes: 1 << 20,
    });
    golden.pin(Keys {
        keys: vec![KeySpec {
            name: "kubelet-client".to_owned(),
            path: "/etc/k/key.pem".to_owned(),
        }],
    });
    let file = |path: &str, content| FileSpec {
        path: path.to_owned(),
        mode: 0o640,
        uid: 0,
        gid: 1000,
        content,
    };
    golden.pin(Configure {
        files: vec![
            file("/etc/a", FileContent::Text("a: 1\n".to_owned())),
            file(
                "/etc/b",
                FileContent::Secret(SecretBytes::new(vec![1, 255])),
            ),
            file("/etc/c", FileContent::Artifact(Digest::of(b"artifact"))),
        ],
        links: BTreeMap::from([("/opt/current".to_owned(), "1.37.2".to_owned())]),
        absent: vec!["/etc/old".to_owned()],
        routes: Some(vec![Route {
            destination: "10.200.1.0/24".parse().unwrap(),
            via: "10.77.0.3".parse().unwrap(),
        }]),
        sysctls: BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]),
    });
    sessions(golden);
    golden.pin(Disk {
        device: "/dev/sdb".to_owned(),
        mount_path: "/var/lib/etcd".to_owned(),
    });
    golden.pin(Service {
        units: vec![UnitGoal {
            unit: "kubelet.service".to_owned(),
            state: UnitState::Inactive,
            enabled: true,
            configuration: Some(Digest::of(b"configuration")),
            wait: false,
        }],
    });
    let unit = "kubelet.service".to_owned();
    golden.pin(Gate {
        checks: vec![
            Check::UnitActive { unit },
            Check::TcpOpen {
                address: "10.77.0.2:2379".parse().unwrap(),
            },
            Check::Https {
                address: "[fd00::1]:6443".parse().unwrap(),
                server_name: "kubernetes".to_owned(),
                path: "/readyz".to_owned(),
                ca_path: "/etc/ca.pem".to_owned(),
                client: Some(ClientFiles {
                    certificate_path: "/etc/c.pem".to_owned(),
                    key_path: "/etc/k.pem".to_owned(),
                }),
            },
        ],
        interval_ms: 100,
    });
    golden.pin(Collect {
        units: vec!["kubelet.service".to_owned()],
        lines: 200,
        diagnostics: true,
    });
    golden.pin(Exec {
        argv: vec!["true".to_owned()],
    });
    golden.pin(AgentUpgrade {
        digest: Digest::of(b"agent"),
        bytes: 10_000_000,
        origin: "debian12-1.37.2-0a1b2c3d".to_owned(),
        trial_s: 60,
    });
    let peer = |name: &str, host: u8| EtcdPeer {
        name: name.to_owned(),
        url: format!("https://10.77.0.{host}:2380"),
    };
    golden.pin(Etcd {
        address: "127.0.0.1:2379".parse().unwrap(),
        ca_path: "/etc/ca.pem".to_owned(),
        client: ClientFiles {
            certificate_path: "/etc/c.pem".to_owned(),
            key_path: "/etc/k.pem".to_owned(),
        },
        action: EtcdAction::AddLearner {
            peer: peer("demo-cp-1", 3),
            beside: vec![peer("demo-cp-0", 2)],
        },
    });
    golden.pin(EtcdData {
        address: "127.0.0.1:2379".parse().unwrap(),
        ca_path: "/etc/ca.pem".to_owned(),
        client: ClientFiles {
            certificate_path: "/etc/c.pem".to_owned(),
            key_path: "/etc/k.pem".to_owned(),
        },
        action: EtcdDataAction::Restore(EtcdRestore {
            restore: EtcdRestoreId {
                id: "t12-3fa9c0".to_owned(),
                unfinished: vec!["t11-0a1b2c".to_owned()],
            },
            source: EtcdSource::Snapshot {
                digest: Digest::of(b"snapshot"),
                bytes: 20_512,
            },
            member: peer("demo-cp-0", 2),
            members: vec![peer("demo-cp-0", 2), peer("demo-cp-1", 3)],
            token: "demo-t12-3fa9c0".to_owned(),
            bump_revision: 1_000_000_000,
        }),
    });
    let pod = |name: &str, how| EvictPod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: "2d6c4a58-8f0e-4a56-9a0b-0d7c1a7f6f10".to_owned(),
        grace_seconds: Some(30).filter(|_| how == EvictHow::Delete),
        how,
    };
    golden.pin(Evict {
        address: "127.0.0.1:7443".parse().unwrap(),
        server_name: "demo.windlass.internal".to_owned(),
        ca_path: "/etc/ca.pem".to_owned(),
        client: ClientFiles {
            certificate_path: "/etc/c.pem".to_owned(),
            key_path: "/etc/k.pem".to_owned(),
        },
        node: "demo-workers-0-i1".to_owned(),
        pods: vec![
            pod("web-0", EvictHow::Evict),
            pod("web-1", EvictHow::Delete),
        ],
    });
    golden.pin(Hold {
        unit: "kube-apiserver.service".to_owned(),
        for_ms: 2500,
    });
}

fn sessions(golden: &mut Golden) {
    let origin = || Origin {
        operator: "ann".to_owned(),
        request: "r0123456789abcdef".to_owned(),
        epoch: Epoch(3),
    };
    golden.pin(FollowLogs {
        origin: origin(),
        units: vec!["kubelet.service".to_owned()],
        lines: 10,
    });
    golden.pin(OpenShell {
        origin: origin(),
        term: "xterm".to_owned(),
        rows: 24,
        columns: 300,
    });
    golden.pin(RunCommand {
        origin: origin(),
        argv: vec!["tar".to_owned(), "-x".to_owned()],
    });
    golden.pin(SendSnapshot {
        origin: origin(),
        name: "00000000000000004711-0badcafe.db".to_owned(),
    });
    golden.pin(WatchVitals {
        origin: origin(),
        interval_ms: 2000,
    });
    golden.pin(SessionOpen {});
    golden.pin(SessionInput {
        bytes: vec![3, 255],
    });
    golden.pin(SessionOutput {
        stream: OutputStream::Stderr,
        bytes: b"line\n".to_vec(),
    });
    golden.pin(SessionResize {
        rows: 50,
        columns: 132,
    });
    golden.pin(SessionEnd::Exit(137));
    golden.pin(VitalsSample {
        at_unix_ms: 1_700_000_000_000,
        vitals: Vitals {
            memory_used_bytes: 1 << 30,
            memory_total_bytes: 2 << 30,
            memory_scope: Scope::Machine,
            cpu_used_ms: 12_345,
            cpu_scope: Scope::Machine,
            disk_used_bytes: 5,
            disk_total_bytes: 10,
            load1_centi: 150,
            load_scope: Scope::Host,
        },
    });
}
