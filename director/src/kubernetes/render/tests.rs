//! Golden files per component, and what must hold for every machine.
//!
//! `UPDATE_GOLDEN=1` writes the files anew; the difference is then reviewed like code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;
use windlass_common::secret::Secret;
use windlass_common::step::UnitGoal;

use super::super::facts::HostTraits;
use super::super::fixtures::{CONTAINER, cluster};
use super::*;

fn trust() -> Trust {
    Trust {
        kubernetes_ca: "certificate of the kubernetes authority\n".to_owned(),
        etcd_ca: "certificate of the etcd authority\n".to_owned(),
        front_proxy_ca: "certificate of the front-proxy authority\n".to_owned(),
        token_keys: "public service account key\n".to_owned(),
        service_account: ServiceAccountKey {
            private_pem: Secret::new("private service account key\n".to_owned()),
            public_pem: "public service account key\n".to_owned(),
        },
        encryption: vec![EncryptionKey {
            name: "key1".to_owned(),
            secret: Secret::new("encryption key".to_owned()),
        }],
    }
}

fn certificates(machine: &MachineFacts) -> Certificates {
    let certificate = |profile: &Profile| {
        (
            profile.name().to_owned(),
            format!("certificate {}\n", profile.name()),
        )
    };
    Profile::of(&machine.role).iter().map(certificate).collect()
}

fn configure(cluster: &ClusterFacts, machine: &MachineFacts) -> Configure {
    configure_step(cluster, machine, &trust(), &certificates(machine)).unwrap()
}

fn content(file: &FileSpec) -> String {
    match &file.content {
        FileContent::Text(text) => text.clone(),
        FileContent::Secret(bytes) => String::from_utf8(bytes.expose().to_vec()).unwrap(),
        FileContent::Artifact(digest) => digest.to_string(),
    }
}

/// Everything a machine is told, by golden file name.
fn golden(cluster: &ClusterFacts, machine: &MachineFacts) -> BTreeMap<String, String> {
    let configure = configure(cluster, machine);
    let mut files: BTreeMap<String, String> = configure
        .files
        .iter()
        // Keys and certificates are placeholders here; `modes` below lists them.
        .filter(|file| !file.path.contains("/pki/"))
        .map(|file| (file.path[1..].replace('/', "__"), content(file)))
        .collect();
    let phases: Vec<_> = Phase::of(&machine.role)
        .iter()
        .map(|phase| {
            let units: Vec<String> = service(*phase, &configure)
                .units
                .into_iter()
                .map(|goal| goal.unit)
                .collect();
            json!({"phase": phase.name(), "units": units, "gate": gate(*phase)})
        })
        .collect();
    let modes: BTreeMap<_, _> = configure
        .files
        .iter()
        .map(|f| (&f.path, format!("{:o}", f.mode)))
        .collect();
    let steps = json!({
        "keys": keys_step(machine),
        "disk": disk_step(machine, "/dev/disk/by-id/data"),
        "modes": modes,
        "routes": configure.routes,
        "sysctls": configure.sysctls,
        "phases": phases,
    });
    files.insert("steps.json".to_owned(), format!("{steps:#}\n"));
    files
}

fn check_golden(case: &str, files: &BTreeMap<String, String>) {
    let directory: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/kubernetes")
        .join(case);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }
    let there: BTreeSet<String> = fs::read_dir(&directory)
        .unwrap_or_else(|e| panic!("{}: {e}; run with UPDATE_GOLDEN=1", directory.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, files.keys().cloned().collect(), "files of {case}");
    for (name, text) in files {
        let want = fs::read_to_string(directory.join(name)).unwrap();
        assert_eq!(
            *text, want,
            "{case}/{name} changed; UPDATE_GOLDEN=1 if that is intended"
        );
    }
}

#[test]
fn golden_files_of_one_control_plane_in_a_system_container() {
    let cluster = cluster(1, 2, CONTAINER);
    check_golden("one-control", &golden(&cluster, &cluster.machines[0]));
    check_golden("one-worker", &golden(&cluster, &cluster.machines[1]));
}

#[test]
fn golden_files_of_three_control_planes_on_virtual_machines() {
    let cluster = cluster(3, 1, HostTraits::default());
    check_golden("three-control", &golden(&cluster, &cluster.machines[1]));
    check_golden("three-worker", &golden(&cluster, &cluster.machines[3]));
}

#[test]
fn secrets_are_secret_and_private() {
    let cluster = cluster(1, 1, CONTAINER);
    let configure = configure(&cluster, &cluster.machines[0]);
    let secret: Vec<_> = configure
        .files
        .iter()
        .filter(|file| matches!(file.content, FileContent::Secret(_)))
        .map(|file| (file.path.as_str(), file.mode))
        .collect();
    assert_eq!(
        secret,
        [
            (api_server::ENCRYPTION_PATH, 0o600),
            (SERVICE_ACCOUNT_KEY_PATH, 0o600)
        ]
    );
    let shown = format!("{configure:?}");
    assert!(!shown.contains("private service account key"));
}

#[test]
fn a_worker_gets_nothing_of_the_control_plane() {
    let cluster = cluster(1, 1, CONTAINER);
    let configure = configure(&cluster, &cluster.machines[1]);
    for file in &configure.files {
        for word in [
            "etcd",
            "front-proxy",
            "service-account",
            "apiserver",
            "audit",
            "encryption",
        ] {
            assert!(!file.path.contains(word), "{}", file.path);
        }
    }
    assert_eq!(disk_step(&cluster.machines[1], "/dev/x"), None);
}

#[test]
fn certificates_issued_anew_restart_nothing_and_new_flags_do() {
    let cluster = cluster(1, 1, CONTAINER);
    let machine = &cluster.machines[0];
    let units = |configure: &Configure| -> BTreeMap<String, UnitGoal> {
        let phases = Phase::of(&machine.role).iter();
        let goals = phases.flat_map(|phase| service(*phase, configure).units);
        goals.map(|goal| (goal.unit.clone(), goal)).collect()
    };
    let before = units(&configure(&cluster, machine));
    let anew = certificates(machine)
        .into_iter()
        .map(|(name, pem)| (name, pem + "anew"))
        .collect();
    let after = units(&configure_step(&cluster, machine, &trust(), &anew).unwrap());
    assert_eq!(before, after);

    let mut other = trust();
    other.encryption[0].name = "key2".to_owned();
    let after = units(&configure_step(&cluster, machine, &other, &anew).unwrap());
    let changed: Vec<_> = before
        .keys()
        .filter(|unit| before[*unit] != after[*unit])
        .collect();
    assert_eq!(changed, ["kube-apiserver.service"]);

    let mut moved = cluster.clone();
    moved.endpoint.address = std::net::Ipv4Addr::new(10, 88, 0, 3);
    let after = units(&configure(&moved, machine));
    assert_eq!(before, after, "components do not know the endpoint");

    // Another control plane is a line for the proxy, and for the API server another member of etcd.
    let wider = self::cluster(3, 1, CONTAINER);
    let worker = |cluster: &ClusterFacts| {
        let machine = cluster
            .machines
            .iter()
            .find(|m| m.role != Role::ControlPlane);
        let configure = configure(cluster, machine.unwrap());
        let goals = Phase::of(&machine.unwrap().role).iter();
        let goals: Vec<UnitGoal> = goals
            .flat_map(|phase| service(*phase, &configure).units)
            .collect();
        goals
    };
    let digests = |goals: Vec<UnitGoal>| -> Vec<_> {
        goals
            .into_iter()
            .filter(|goal| goal.unit == "api-proxy.service")
            .map(|goal| goal.configuration)
            .collect()
    };
    assert_eq!(digests(worker(&cluster)), digests(worker(&wider)));
}

#[test]
fn nothing_is_rendered_from_what_makes_no_cluster() {
    let good = cluster(1, 1, CONTAINER);
    let machine = good.machines[0].clone();
    let render = |facts: &ClusterFacts, certificates: &Certificates| {
        configure_step(facts, &machine, &trust(), certificates)
    };
    let mut faulty = good.clone();
    faulty.endpoint.port = 0;
    assert!(matches!(
        render(&faulty, &certificates(&machine)),
        Err(RenderError::Facts { .. })
    ));
    let mut without = good.clone();
    without.machines[0].address = std::net::Ipv4Addr::new(10, 88, 0, 99);
    assert!(matches!(
        render(&without, &certificates(&machine)),
        Err(RenderError::Stranger { .. })
    ));
    let mut fewer = certificates(&machine);
    fewer.remove("etcd-peer");
    assert!(matches!(
        render(&good, &fewer),
        Err(RenderError::Certificates { missing, .. }) if missing == ["etcd-peer"]
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn steps_do_not_depend_on_the_order_of_machines(
        control_planes in prop::sample::select(vec![1u32, 3, 5]),
        workers in 0u32..5,
        rotate in 0usize..9,
    ) {
        let facts = cluster(control_planes, workers, CONTAINER);
        let mut other = facts.clone();
        let rotate = rotate % other.machines.len();
        other.machines.rotate_left(rotate);
        for machine in &facts.machines {
            let step = configure(&facts, machine);
            prop_assert_eq!(&step, &configure(&other, machine));
            let routes = step.routes.unwrap();
            prop_assert_eq!(routes.len(), facts.machines.len() - 1);
            prop_assert!(routes.iter().all(|r| r.destination != machine.pod_cidr));
        }
    }
}

#[test]
fn a_member_that_joins_begins_with_the_members_of_its_time() {
    let mut facts = cluster(3, 1, CONTAINER);
    let text = |facts: &ClusterFacts, machine: usize, path: &str| {
        let configure = configure(facts, &facts.machines[machine]);
        let file = configure.files.iter().find(|file| file.path == path);
        content(file.unwrap())
    };
    let api_server = env_path("kube-apiserver");
    // The third one joins, and it alone knows of itself. An API server asks the member beside it and no other, so
    // that none asks a learner.
    let began = "demo-control-0=https://10.88.0.10:2380,demo-control-2=https://10.88.0.12:2380";
    facts.machines[2].etcd.votes = false;
    facts.machines[2].etcd.initial_cluster = Some(began.to_owned());
    let joining = text(&facts, 2, &env_path("etcd"));
    assert!(
        joining.contains("existing") && joining.contains(began),
        "{joining}"
    );
    let other = text(&facts, 0, &env_path("etcd"));
    assert!(
        !other.contains("existing") && !other.contains("10.88.0.12"),
        "{other}"
    );
    for machine in 0..3 {
        let flags = text(&facts, machine, &api_server);
        assert!(
            flags.contains("--etcd-servers=https://127.0.0.1:2379 "),
            "{flags}"
        );
    }
    // With its vote, what it began with stays as it was: its member goes on undisturbed.
    facts.machines[2].etcd.votes = true;
    assert_eq!(text(&facts, 2, &env_path("etcd")), joining);
    // Two go: whoever stays does not count on them, and keeps the pace of several until they are gone.
    facts.spec.control_plane.count = 1;
    facts.machines[1].etcd.leaves = true;
    facts.machines[2].etcd.leaves = true;
    assert!(text(&facts, 0, &env_path("etcd")).contains("--election-timeout=1000"));
}

#[test]
fn a_control_plane_that_emulates_tells_its_three_components_and_no_other() {
    let plain = cluster(1, 1, HostTraits::default());
    let mut emulating = plain.clone();
    emulating.machines[0].emulates = Some(36);
    let (before, after) = (
        configure(&plain, &plain.machines[0]),
        configure(&emulating, &emulating.machines[0]),
    );
    let changed: Vec<_> = before
        .files
        .iter()
        .zip(&after.files)
        .filter(|(before, after)| before != after)
        .map(|(_, after)| (after.path.as_str(), content(after)))
        .collect();
    let units = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
    ];
    let paths: Vec<_> = changed.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(paths, units.map(env_path));
    for (path, flags) in &changed {
        assert!(flags.contains("--emulated-version=1.36"), "{path}: {flags}");
        // Only API servers have it.
        let forward = flags.contains("--emulation-forward-compatible=true");
        assert_eq!(forward, path.ends_with("/kube-apiserver.env"), "{flags}");
    }
    // Nothing but these restarts when it ends, and on a worker nothing at all.
    let goals = |configure: &Configure| -> BTreeMap<String, UnitGoal> {
        let phases = Phase::of(&Role::ControlPlane).iter();
        let goals = phases.flat_map(|phase| service(*phase, configure).units);
        goals.map(|goal| (goal.unit.clone(), goal)).collect()
    };
    let (before, after) = (goals(&before), goals(&after));
    let restarted: Vec<_> = before
        .keys()
        .filter(|unit| before[*unit] != after[*unit])
        .cloned()
        .collect();
    assert_eq!(restarted, units.map(|unit| format!("{unit}.service")));
    let worker = &plain.machines[1];
    assert_eq!(configure(&plain, worker), configure(&emulating, worker));
}

#[test]
fn api_servers_deny_certificates_and_nobody_where_there_are_none() {
    let text = |clients: &BTreeSet<&str>| {
        let step = revocations_step(b"of etcd".to_vec(), clients);
        let paths: Vec<&str> = step.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [AUTHORIZATION_PATH, ETCD_CRL_PATH]);
        content(&step.files[0])
    };
    let (one, other) = ("0123456789abcdef".repeat(4), "f".repeat(64));
    let some = text(&[one.as_str(), other.as_str()].into());
    let files = [
        ("nobody.yaml".to_owned(), text(&BTreeSet::new())),
        ("some.yaml".to_owned(), some),
    ];
    check_golden("authorization", &BTreeMap::from(files));

    // Five of the eight certificates that a ledger holds of a machine; API servers take expressions of 100 000 characters.
    let many: Vec<String> = (0..6144 / 8 * 5).map(|i| format!("{i:064x}")).collect();
    let many = text(&many.iter().map(String::as_str).collect());
    assert!(many.len() < 80_000, "{}", many.len());
}
