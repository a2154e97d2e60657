//! Refuses steps that are malformed or reach beyond what steps may touch, before anything is done.
//!
//! All faults of a step are named at once.

use std::net::SocketAddr;

use windlass_common::limits::{AGENT_BYTES_MAX, AGENT_TRIAL_S, EVICTIONS_MAX};
use windlass_common::step::{
    AgentUpgrade, Check, ClientFiles, Collect, Configure, Disk, Etcd, EtcdAction, EtcdData,
    EtcdDataAction, EtcdPeer, EtcdRestoreId, EtcdSource, Evict, Exec, Fetch, FileSpec, Gate,
    HOLD_MS_MAX, Hold, Keys, MEMBERS_MAX, RESTORE_ID_MAX, SNAPSHOTS_KEPT_MAX, STEP_ID_MAX, Service,
    Step, StepId, UNFINISHED_RESTORES_MAX,
};

use crate::host::STATE_DIR;
use crate::host::tree::components;
use crate::units;

/// Directories beneath which steps may write.
const WRITABLE: [&str; 7] = [
    "/etc/",
    "/opt/windlass/",
    "/var/lib/windlass/",
    "/var/lib/kubelet/",
    "/var/lib/etcd/",
    "/var/lib/containerd/",
    "/run/",
];
/// The agent's own; steps write here only through their own kind.
const OURS: [&str; 5] = ["journal", "identity", "artifacts", "disks", "upgrade"];

/// Most files, links, absent paths, routes or sysctls of one `configure` step: a cluster of 1000
/// machines needs 1000 routes.
const CONFIGURE_ENTRIES_MAX: usize = 4096;
/// Largest artifact, in bytes: container images of a large add-on come to 2 GiB.
const ARTIFACT_BYTES_MAX: u64 = 64 << 30;

/// Every fault of a step; empty if it may run.
pub fn check(id: &StepId, step: &Step) -> Vec<String> {
    let mut faults = Faults(Vec::new());
    if id.0.is_empty() || id.0.len() > STEP_ID_MAX || id.0.chars().any(char::is_control) {
        faults.add(format!(
            "the step id must be 1 to {STEP_ID_MAX} bytes of text"
        ));
    }
    match step {
        Step::Fetch(fetch) => check_fetch(&mut faults, fetch),
        Step::Keys(keys) => check_keys(&mut faults, keys),
        Step::Configure(configure) => check_configure(&mut faults, configure),
        Step::Disk(disk) => check_disk(&mut faults, disk),
        Step::Service(service) => check_service(&mut faults, service),
        Step::Gate(gate) => check_gate(&mut faults, gate),
        Step::Collect(collect) => check_collect(&mut faults, collect),
        Step::Exec(exec) => check_exec(&mut faults, exec),
        Step::AgentUpgrade(upgrade) => check_upgrade(&mut faults, upgrade),
        Step::Etcd(etcd) => check_etcd(&mut faults, etcd),
        Step::EtcdData(data) => check_etcd_data(&mut faults, data),
        Step::Evict(evict) => check_evict(&mut faults, evict),
        Step::Hold(hold) => check_hold(&mut faults, hold),
    }
    faults.0
}

struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, fault: impl Into<String>) {
        // A malformed step of a thousand entries needs no thousand messages.
        if self.0.len() < 20 {
            self.0.push(fault.into());
        }
    }

    fn count(&mut self, what: &str, count: usize, min: usize, max: usize) {
        if count < min || count > max {
            self.add(format!("{count} {what}; {min} to {max} are allowed"));
        }
    }

    fn writable(&mut self, path: &str) {
        if let Err(error) = components(path) {
            return self.add(error.to_string());
        }
        let ours = OURS.iter().any(|dir| {
            let own = format!("{STATE_DIR}/{dir}");
            path == own || path.starts_with(&format!("{own}/"))
        });
        if ours || !WRITABLE.iter().any(|dir| path.starts_with(dir)) {
            self.add(format!(
                "{path} is not beneath {} (the agent's own state excepted)",
                WRITABLE.join(", ")
            ));
        }
    }

    fn readable(&mut self, path: &str) {
        if let Err(error) = components(path) {
            self.add(error.to_string());
        }
    }

    fn unit(&mut self, unit: &str) {
        if let Err(error) = units::check_name(unit) {
            self.add(error.to_string());
        }
    }
}

fn check_fetch(faults: &mut Faults, fetch: &Fetch) {
    if fetch.bytes > ARTIFACT_BYTES_MAX {
        let bytes = fetch.bytes;
        faults.add(format!(
            "an artifact of {bytes} bytes; {ARTIFACT_BYTES_MAX} are allowed"
        ));
    }
}

fn check_keys(faults: &mut Faults, keys: &Keys) {
    faults.count("keys", keys.keys.len(), 1, 16);
    let mut names = std::collections::BTreeSet::new();
    for key in &keys.keys {
        faults.writable(&key.path);
        if key.name.is_empty() || key.name.len() > 64 || !names.insert(&key.name) {
            faults.add(format!(
                "key name {:?} must be unique and 1 to 64 bytes",
                key.name
            ));
        }
    }
}

fn check_configure(faults: &mut Faults, configure: &Configure) {
    let counts = [
        ("files", configure.files.len()),
        ("links", configure.links.len()),
        ("absent paths", configure.absent.len()),
        ("routes", configure.routes.as_ref().map_or(0, Vec::len)),
        ("sysctls", configure.sysctls.len()),
    ];
    for (what, count) in counts {
        faults.count(what, count, 0, CONFIGURE_ENTRIES_MAX);
    }
    let mut paths = std::collections::BTreeSet::new();
    let files = configure.files.iter().map(|file| &file.path);
    for path in files.chain(configure.links.keys()).chain(&configure.absent) {
        faults.writable(path);
        if !paths.insert(path) {
            faults.add(format!("{path} is named twice"));
        }
    }
    for FileSpec { path, mode, .. } in &configure.files {
        if mode & !0o1777 != 0 {
            faults.add(format!("mode {mode:o} of {path} has bits beyond 1777"));
        }
    }
    for (path, target) in &configure.links {
        if target.is_empty() || target.len() > 1024 || target.contains('\0') {
            faults.add(format!("the target of link {path} must be 1 to 1024 bytes"));
        }
    }
    for (name, value) in &configure.sysctls {
        let named = !name.is_empty()
            && name.len() <= 128
            && !name.starts_with(['.', '/'])
            && name.split(['.', '/']).all(|part| !part.is_empty())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
        if !named || value.is_empty() || value.len() > 256 || value.contains(char::is_control) {
            faults.add(format!(
                "sysctl {name:?} = {value:?} is no kernel parameter"
            ));
        }
    }
}

fn check_disk(faults: &mut Faults, disk: &Disk) {
    faults.readable(&disk.device);
    if !disk.device.starts_with("/dev/") {
        faults.add(format!("device {} is not beneath /dev", disk.device));
    }
    match components(&disk.mount_path) {
        Err(error) => faults.add(error.to_string()),
        Ok(parts) => {
            // Beneath /var/lib or /mnt, and no file of ours.
            let allowed = matches!(parts.as_slice(), ["var", "lib", _, ..] | ["mnt", _, ..])
                && !disk.mount_path.starts_with(STATE_DIR)
                && disk
                    .mount_path
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(&b));
            if !allowed {
                faults.add(format!(
                    "{} is no place to mount a disk; beneath /var/lib or /mnt are",
                    disk.mount_path
                ));
            }
        }
    }
}

fn check_service(faults: &mut Faults, service: &Service) {
    faults.count("units", service.units.len(), 1, 64);
    for goal in &service.units {
        faults.unit(&goal.unit);
    }
}

fn check_gate(faults: &mut Faults, gate: &Gate) {
    faults.count("checks", gate.checks.len(), 1, 16);
    if !(10..=60_000).contains(&gate.interval_ms) {
        faults.add(format!(
            "an interval of {} ms; 10 to 60 000 are allowed",
            gate.interval_ms
        ));
    }
    for check in &gate.checks {
        match check {
            Check::UnitActive { unit } => faults.unit(unit),
            Check::TcpOpen { .. } => {}
            Check::Https {
                path,
                ca_path,
                client,
                ..
            } => {
                if !path.starts_with('/') || path.len() > 1024 || path.contains(char::is_whitespace)
                {
                    faults.add(format!("{path:?} is no path of a request"));
                }
                faults.readable(ca_path);
                if let Some(client) = client {
                    faults.readable(&client.certificate_path);
                    faults.readable(&client.key_path);
                }
            }
        }
    }
}

fn check_collect(faults: &mut Faults, collect: &Collect) {
    faults.count("units", collect.units.len(), 0, 64);
    faults.count("lines", collect.lines as usize, 1, 10_000);
    for unit in &collect.units {
        faults.unit(unit);
    }
}

fn check_exec(faults: &mut Faults, exec: &Exec) {
    faults.count("arguments", exec.argv.len(), 1, 256);
    if exec.argv.iter().any(|argument| argument.contains('\0')) {
        faults.add("an argument holds a zero byte");
    }
}

fn check_etcd(faults: &mut Faults, etcd: &Etcd) {
    check_own(faults, "member", etcd.address, &etcd.ca_path, &etcd.client);
    match &etcd.action {
        EtcdAction::AddLearner { peer, beside } => {
            faults.count("members", beside.len(), 1, MEMBERS_MAX);
            check_peer(faults, peer);
            for other in beside {
                check_peer(faults, other);
                if other.url == peer.url {
                    faults.add(format!("{} joins beside itself", peer.name));
                }
            }
        }
        EtcdAction::Promote { peer } | EtcdAction::Remove { peer } => check_peer(faults, peer),
        EtcdAction::Snapshot { keep } => {
            let most = SNAPSHOTS_KEPT_MAX as usize;
            faults.count("snapshots", *keep as usize, 1, most);
        }
        EtcdAction::Report
        | EtcdAction::MoveLeader
        | EtcdAction::Defragment
        | EtcdAction::DisarmAlarms => {}
    }
}

/// What a machine acts through is its own.
fn check_own(
    faults: &mut Faults,
    what: &str,
    address: SocketAddr,
    ca_path: &str,
    client: &ClientFiles,
) {
    if !address.ip().is_loopback() {
        faults.add(format!(
            "{address} is not on loopback: a machine acts through its own {what} only"
        ));
    }
    faults.readable(ca_path);
    faults.readable(&client.certificate_path);
    faults.readable(&client.key_path);
}

fn check_etcd_data(faults: &mut Faults, data: &EtcdData) {
    check_own(faults, "member", data.address, &data.ca_path, &data.client);
    match &data.action {
        EtcdDataAction::Inspect => {}
        EtcdDataAction::SetAside(restore) => check_restore(faults, restore),
        EtcdDataAction::Restore(restore) => {
            check_restore(faults, &restore.restore);
            faults.count("members", restore.members.len(), 1, MEMBERS_MAX);
            for peer in &restore.members {
                check_peer(faults, peer);
            }
            if !restore.members.contains(&restore.member) {
                faults.add(format!(
                    "{} is none of the members that etcd begins with",
                    restore.member.name
                ));
            }
            if !is_plain(&restore.token, b"") {
                faults.add("the token of a restore must be letters, digits and dashes");
            }
            if restore.bump_revision == 0 {
                faults.add("revisions that were given out must not be given out again");
            }
            if let EtcdSource::Snapshot { bytes, .. } = restore.source
                && !(1..=ARTIFACT_BYTES_MAX).contains(&bytes)
            {
                faults.add(format!(
                    "a snapshot of {bytes} bytes; 1 to {ARTIFACT_BYTES_MAX} are allowed"
                ));
            }
        }
    }
}

fn check_restore(faults: &mut Faults, restore: &EtcdRestoreId) {
    let (unfinished, most) = (restore.unfinished.len(), UNFINISHED_RESTORES_MAX);
    faults.count("restores without an end", unfinished, 0, most);
    for id in restore
        .unfinished
        .iter()
        .chain([&restore.id])
        .take(most + 1)
    {
        if id.len() > RESTORE_ID_MAX || !is_plain(id, b"") {
            faults.add(format!(
                "the id of a restore must be 1 to {RESTORE_ID_MAX} letters, digits and dashes"
            ));
        }
    }
    if restore.unfinished.contains(&restore.id) {
        faults.add("a restore is not one of those before it");
    }
}

/// Whether a text may be part of an argument of a program: nothing of it looks like an option or a list.
fn is_plain(text: &str, also: &[u8]) -> bool {
    (1..=253).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || also.contains(&b))
}

/// A peer is named in arguments of a program: nothing of it may look like an option or a list.
fn check_peer(faults: &mut Faults, peer: &EtcdPeer) {
    let address = peer.url.strip_prefix("https://");
    if !is_plain(&peer.name, b"") || !address.is_some_and(|address| is_plain(address, b".:")) {
        faults.add(format!(
            "{:?} at {:?} is no member of etcd: a name, and https://HOST:PORT",
            peer.name, peer.url
        ));
    }
}

/// An agent that stands still could let nobody go on.
fn check_hold(faults: &mut Faults, hold: &Hold) {
    let named = units::check_name(&hold.unit).is_ok() && hold.unit.ends_with(".service");
    if !named || hold.unit == "windlass-agent.service" {
        faults.add(format!("{:?} is no service that may be held", hold.unit));
    }
    if hold.for_ms == 0 || hold.for_ms > HOLD_MS_MAX {
        faults.add(format!(
            "{} ms is no time to hold a unit for; 1 to {HOLD_MS_MAX} are allowed",
            hold.for_ms
        ));
    }
}

/// Namespace, name and uid go into a path and a selector: nothing of them may end either.
fn check_evict(faults: &mut Faults, evict: &Evict) {
    let way = "way to the API";
    check_own(faults, way, evict.address, &evict.ca_path, &evict.client);
    faults.count("pods", evict.pods.len(), 1, EVICTIONS_MAX);
    for (what, text) in [("node", &evict.node), ("server", &evict.server_name)] {
        if !is_plain(text, b".") {
            faults.add(format!("{text:?} is no name of a {what}"));
        }
    }
    for pod in &evict.pods {
        let named = is_plain(&pod.namespace, b"") && is_plain(&pod.name, b".");
        if !named || !is_plain(&pod.uid, b"") {
            faults.add(format!(
                "{:?}/{:?} with uid {:?} is no pod",
                pod.namespace, pod.name, pod.uid
            ));
        }
    }
}

fn check_upgrade(faults: &mut Faults, upgrade: &AgentUpgrade) {
    if !(1..=AGENT_BYTES_MAX).contains(&upgrade.bytes) {
        let bytes = upgrade.bytes;
        faults.add(format!(
            "an agent of {bytes} bytes; 1 to {AGENT_BYTES_MAX} are allowed"
        ));
    }
    let (least, most) = (AGENT_TRIAL_S.start(), AGENT_TRIAL_S.end());
    if !AGENT_TRIAL_S.contains(&upgrade.trial_s) {
        let seconds = upgrade.trial_s;
        faults.add(format!(
            "a trial of {seconds} s; {least} to {most} are allowed"
        ));
    }
    let origin = &upgrade.origin;
    if origin.is_empty() || origin.len() > 100 || origin.contains(char::is_control) {
        faults.add("the origin of an agent must be 1 to 100 bytes of text");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use windlass_common::step::{EvictHow, EvictPod, FileContent, KeySpec, UnitGoal, UnitState};

    fn faults(step: Step) -> usize {
        check(&StepId("t/s".to_owned()), &step).len()
    }

    fn file(path: &str, mode: u32) -> Step {
        Step::Configure(Configure {
            files: vec![FileSpec {
                path: path.to_owned(),
                mode,
                uid: 0,
                gid: 0,
                content: FileContent::Text(String::new()),
            }],
            ..Configure::default()
        })
    }

    #[test]
    fn a_service_is_held_for_a_moment_and_never_the_agent() {
        let hold = |unit: &str, for_ms| {
            let unit = unit.to_owned();
            faults(Step::Hold(Hold { unit, for_ms }))
        };
        let api = "kube-apiserver.service";
        assert_eq!(hold(api, HOLD_MS_MAX), 0);
        for (unit, for_ms) in [
            (api, 0),
            (api, HOLD_MS_MAX + 1),
            ("windlass-agent.service", 1),
            ("multi-user.target", 1),
            ("../x.service", 1),
        ] {
            assert_eq!(hold(unit, for_ms), 1, "{unit} for {for_ms} ms");
        }
    }

    #[test]
    fn files_go_only_where_steps_may_write() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("/etc/kubernetes/kubelet.yaml", 0o644, 0),
            ("/opt/windlass/components/kubelet/current", 0o755, 0),
            ("/var/lib/windlass/pki/x", 0o600, 0),
            ("/run/windlass/x", 0o600, 0),
            ("/usr/bin/sh", 0o755, 1),
            ("/etcetera", 0o644, 1),
            ("/etc/../usr/bin/sh", 0o644, 1),
            ("/var/lib/windlass/journal/journal", 0o644, 1),
            ("/var/lib/windlass/identity/key.pem", 0o644, 1),
            ("/var/lib/windlass/artifacts/sha256/00", 0o644, 1),
            ("/var/lib/windlass/upgrade/trial", 0o600, 1),
            ("/opt/windlass-evil/x", 0o644, 1),
            ("etc/x", 0o644, 1),
            ("/etc/x", 0o4755, 1),
        ];
        for (path, mode, want) in cases {
            assert_eq!(faults(file(path, mode)), want, "{path} {mode:o}");
        }
    }

    #[test]
    fn restores_name_members_and_nothing_else() {
        let peer = |name: &str| EtcdPeer {
            name: name.to_owned(),
            url: "https://10.77.0.2:2380".to_owned(),
        };
        let step = |token: &str, member: &str, id: &str| {
            faults(Step::EtcdData(EtcdData {
                address: "127.0.0.1:2379".parse().unwrap(),
                ca_path: "/etc/ca.pem".to_owned(),
                client: ClientFiles {
                    certificate_path: "/etc/c.pem".to_owned(),
                    key_path: "/etc/k.pem".to_owned(),
                },
                action: EtcdDataAction::Restore(windlass_common::step::EtcdRestore {
                    restore: EtcdRestoreId {
                        id: id.to_owned(),
                        unfinished: vec!["t11-3fa9c0".to_owned()],
                    },
                    source: EtcdSource::Own,
                    member: peer(member),
                    members: vec![peer("demo-cp-0")],
                    token: token.to_owned(),
                    bump_revision: 1,
                }),
            }))
        };
        assert_eq!(step("demo-t12-3fa9c0", "demo-cp-0", "t12-3fa9c0"), 0);
        assert_eq!(step("a,b", "demo-cp-0", "t12-3fa9c0"), 1);
        assert_eq!(step("demo", "demo-cp-1", "t12-3fa9c0"), 1);
        assert_eq!(step("demo", "demo-cp-0", "../data"), 1);
        assert_eq!(step("demo", "demo-cp-0", "t11-3fa9c0"), 1);
    }

    #[test]
    fn evictions_go_through_the_machine_itself_and_name_pods() {
        let step = |address: &str, node: &str, name: &str, pods: usize| {
            let pod = EvictPod {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                uid: "2d6c4a58-8f0e-4a56-9a0b-0d7c1a7f6f10".to_owned(),
                grace_seconds: None,
                how: EvictHow::Evict,
            };
            faults(Step::Evict(Evict {
                address: address.parse().unwrap(),
                server_name: "demo.windlass.internal".to_owned(),
                ca_path: "/etc/ca.pem".to_owned(),
                client: ClientFiles {
                    certificate_path: "/etc/c.pem".to_owned(),
                    key_path: "/etc/k.pem".to_owned(),
                },
                node: node.to_owned(),
                pods: vec![pod; pods],
            }))
        };
        let (own, node) = ("127.0.0.1:6444", "demo-workers-0-i1");
        assert_eq!(step(own, node, "web-7f.x", 1), 0);
        assert_eq!(step(own, node, "web", EVICTIONS_MAX), 0);
        assert_eq!(step(own, node, "web", EVICTIONS_MAX + 1), 1);
        assert_eq!(step(own, node, "web", 0), 1);
        assert_eq!(step("10.77.0.2:6443", node, "web", 1), 1);
        assert_eq!(step(own, "demo,metadata.name=x", "web", 1), 1);
        for name in ["../nodes/x", "web?x", "web eviction", "", "-web", "a%2fb"] {
            assert_eq!(step(own, node, name, 1), 1, "{name}");
        }
    }

    #[test]
    fn every_fault_is_named() {
        let many = Step::Configure(Configure {
            links: BTreeMap::from([("/usr/x".to_owned(), String::new())]),
            absent: vec![
                "/usr/y".to_owned(),
                "/etc/z".to_owned(),
                "/etc/z".to_owned(),
            ],
            sysctls: BTreeMap::from([
                ("../etc/passwd".to_owned(), "1".to_owned()),
                ("net.ipv4.ip_forward".to_owned(), "1\n2".to_owned()),
                ("net.ipv4.conf.eth0/1.forwarding".to_owned(), "1".to_owned()),
            ]),
            ..Configure::default()
        });
        assert_eq!(faults(many), 6);
        let unit = UnitGoal {
            unit: "no unit".to_owned(),
            state: UnitState::Active,
            enabled: true,
            configuration: None,
            wait: true,
        };
        assert_eq!(faults(Step::Service(Service { units: vec![unit] })), 1);
        let key = KeySpec {
            name: String::new(),
            path: "/home/x".to_owned(),
        };
        assert_eq!(faults(Step::Keys(Keys { keys: vec![key] })), 2);
        let device = |device: &str, mount_path: &str| {
            faults(Step::Disk(Disk {
                device: device.to_owned(),
                mount_path: mount_path.to_owned(),
            }))
        };
        assert_eq!(device("/dev/vdb", "/var/lib/etcd"), 0);
        assert_eq!(device("/etc/x", "/"), 2);
        assert_eq!(device("/dev/vdb", "/var/lib/windlass/x"), 1);
        let agent = |bytes, origin: &str, trial_s| {
            faults(Step::AgentUpgrade(AgentUpgrade {
                digest: windlass_common::id::Digest::of(b"agent"),
                bytes,
                origin: origin.to_owned(),
                trial_s,
            }))
        };
        assert_eq!(agent(10 << 20, "debian12-1.37.2-0a1b2c3d", 60), 0);
        assert_eq!(agent(0, "a\nstep=b", 0), 3);
        assert_eq!(faults(Step::Exec(Exec { argv: Vec::new() })), 1);
        assert_eq!(
            check(&StepId(String::new()), &file("/etc/x", 0o644)).len(),
            1
        );
    }
}
