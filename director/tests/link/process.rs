//! The agent's own process against a real gateway: started, killed, started again.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use windlass_common::error::ErrorClass;
use windlass_common::id::{Epoch, Incarnation};
use windlass_common::report::Scope;
use windlass_common::step::{
    ClientFiles, Configure, Evict, EvictHow, EvictPod, FileContent, FileSpec, Outcome, Payload,
    Progress, Step, StepId, StepRequest, StepResult,
};
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::message::{Detail, Tune2};
use windlass_director::gateway::DeliveryError;
use windlass_director::health;
use windlass_director::model::Timestamp;

use crate::world::{Director, Machine, exec, machine_name, no_progress, wait_for};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's binary, built if it is not the newest.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(binary) = std::env::var_os("WINDLASS_TEST_AGENT") {
            return binary.into();
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "windlass-agent"])
            .status()
            .unwrap();
        assert!(built.success());
        // `target/debug/deps/link-…` runs this.
        let exe = std::env::current_exe().unwrap();
        exe.ancestors().nth(2).unwrap().join("windlass-agent")
    })
}

/// An agent on a machine that is a directory.
struct Agent {
    child: Child,
}

impl Agent {
    /// Starts it and waits until it says that it is ready.
    fn start(root: &Path) -> Agent {
        let address = root.join("notify");
        let _ = fs::remove_file(&address);
        let notify = UnixDatagram::bind(&address).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(binary())
            .arg("--root")
            .arg(root)
            .env("NOTIFY_SOCKET", &address)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Agent { child };
        let mut state = [0; 64];
        let length = notify.recv(&mut state).unwrap();
        assert_eq!(&state[..length], b"READY=1\n");
        agent
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A machine's root with its settings.
pub(crate) fn machine(director: &Director) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("etc/windlass");
    fs::create_dir_all(&dir).unwrap();
    let settings = director.settings("demo-cp-0", 1);
    let file = dir.join("settings.json");
    fs::write(&file, serde_json::to_vec(&settings).unwrap()).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    root
}

/// Runs a step, over as many connections as it takes: a killed agent's is noticed late.
pub(crate) async fn step(director: &Director, request: StepRequest) -> StepResult {
    let deadline = Instant::now() + PATIENCE;
    let (name, incarnation) = (machine_name("demo-cp-0"), Incarnation::FIRST);
    let gateway = director.gateway();
    loop {
        let connected = gateway.wait_connected(&name, incarnation, deadline.into());
        connected.await.unwrap();
        let run = gateway.run_step(&name, incarnation, request.clone(), no_progress());
        match run.await {
            Ok(result) => return result,
            Err(DeliveryError::Lost { .. } | DeliveryError::NotConnected { .. }) => {
                assert!(Instant::now() < deadline);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub(crate) fn write_file(id: &str, epoch: u64, content: &str) -> StepRequest {
    StepRequest {
        labels: Default::default(),
        id: StepId(id.to_owned()),
        epoch: Epoch(epoch),
        deadline_ms: 30_000,
        step: Step::Configure(Configure {
            files: vec![FileSpec {
                path: "/etc/kubernetes/kubelet.yaml".to_owned(),
                mode: 0o644,
                uid: 0,
                gid: 0,
                content: FileContent::Text(content.to_owned()),
            }],
            ..Configure::default()
        }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_enrolls_converges_and_keeps_its_word_when_killed() {
    let director = Director::start().await;
    let root = machine(&director);
    let agent = Agent::start(root.path());
    let written = step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    assert_eq!(written.outcome, Outcome::Changed, "{written:?}");
    let file = root.path().join("etc/kubernetes/kubelet.yaml");
    assert_eq!(fs::read_to_string(&file).unwrap(), "a: 1\n");
    let mode = |path: &str| {
        fs::metadata(root.path().join(path))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("var/lib/windlass/identity") & 0o7777, 0o700);

    // Killed while a command runs, the agent knows that it was begun and does not run it again.
    let marker = root.path().join("ran");
    // Outlives the agent for a moment, as it would not on a machine, where it is in its unit.
    let script = format!("echo x >> {}; exec sleep 5", marker.display());
    let order = || exec("t/exec", &["sh", "-c", &script]);
    let name = machine_name("demo-cp-0");
    let interrupted = async {
        let gateway = director.gateway();
        let _ = gateway
            .run_step(&name, Incarnation::FIRST, order(), no_progress())
            .await;
    };
    // Kept until the agent is dead: a caller that goes cancels.
    tokio::pin!(interrupted);
    tokio::select! {
        () = &mut interrupted => panic!("the command ended before the agent was killed"),
        () = wait_for("the command to run", || marker.exists().then_some(())) => {}
    }
    agent.kill();
    interrupted.await;
    let agent = Agent::start(root.path());
    let after = step(&director, order()).await;
    assert!(
        matches!(after.outcome, Outcome::Unknown { .. }),
        "{after:?}"
    );
    assert_eq!(fs::read_to_string(&marker).unwrap(), "x\n");
    // What had ended before answers from the journal.
    let again = step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    assert_eq!(again, written);

    // The next director is in charge from its first word on, also after a restart of the agent.
    let taken_over = step(&director, write_file("t2/configure", 2, "a: 2\n")).await;
    assert_eq!(taken_over.outcome, Outcome::Changed);
    agent.kill();
    let agent = Agent::start(root.path());
    let stale = step(&director, write_file("t/late", 1, "a: 1\n")).await;
    assert!(
        matches!(stale.outcome, Outcome::Refused { .. }),
        "{stale:?}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "a: 2\n");

    // Told to stop, it stops.
    kill(agent.pid(), Signal::SIGTERM).unwrap();
    let mut agent = agent;
    let ended = wait_for("the agent to stop", || agent.child.try_wait().unwrap()).await;
    assert!(ended.success());
}

/// The protocol that the agent's binary speaks: this release's, unless an older one is tried.
fn protocol() -> u16 {
    let said = std::env::var("WINDLASS_TEST_PROTOCOL");
    said.map_or(PROTOCOL, |said| said.parse().unwrap())
}

/// Runs a command and returns what it printed.
async fn output(director: &Director, id: &str, argv: &[&str]) -> String {
    let (sender, mut progress) = tokio::sync::mpsc::channel(4);
    let name = machine_name("demo-cp-0");
    let gateway = director.gateway();
    let run = gateway.run_step(&name, Incarnation::FIRST, exec(id, argv), sender);
    let read = async {
        let mut output = Vec::new();
        while let Some(item) = progress.recv().await {
            match item {
                Progress::Output { bytes, .. } => output.extend(bytes),
                Progress::Stage(_) => {}
            }
        }
        String::from_utf8(output).unwrap()
    };
    let (result, output) = tokio::join!(run, read);
    assert_eq!(result.unwrap().payload, Payload::Exit(0));
    output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_either_protocol_is_served_in_full_and_sent_nothing_newer() {
    // Valid from five minutes ago: two thirds of its life are over after seven seconds.
    let mut director = Director::start_with(|config| {
        config.certificate_life = Duration::from_secs(160);
        config.tune.detail = Detail::Units;
    })
    .await;
    let root = machine(&director);
    let agent = Agent::start(root.path());
    let identity = root.path().join("var/lib/windlass/identity/identity.pem");
    let written = step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    let before = fs::read(&identity).unwrap();
    assert_eq!(written.outcome, Outcome::Changed, "{written:?}");
    let name = machine_name("demo-cp-0");
    let view = |director: &Director| director.gateway().connected().remove(&name);
    let first = view(&director).unwrap();
    assert_eq!(first.protocol, protocol());

    let said = output(&director, "t/echo", &["sh", "-c", "seq 1 20000"]).await;
    assert_eq!(said.lines().count(), 20_000);

    wait_for("a renewed certificate", || {
        (fs::read(&identity).unwrap() != before).then_some(())
    })
    .await;
    let faster = Tune2 {
        heartbeat_interval_ms: 50,
        ..Tune2::default()
    };
    let gateway = director.gateway();
    gateway.tune(&name, Incarnation::FIRST, faster).unwrap();

    // A caller that goes cancels, where the agent knows how; the link holds in any case.
    let marker = root.path().join("began");
    let script = format!("touch {}; exec sleep 600", marker.display());
    let order = exec("t/sleep", &["sh", "-c", &script]);
    tokio::select! {
        ended = gateway.run_step(&name, Incarnation::FIRST, order, no_progress()) => {
            panic!("{ended:?}")
        }
        () = wait_for("the command to run", || marker.exists().then_some(())) => {}
    }
    if protocol() >= 2 {
        let order = exec("t/sleep", &["sh", "-c", &script]);
        let ended = step(&director, order).await;
        assert!(
            matches!(ended.outcome, Outcome::Unknown { .. }),
            "{ended:?}"
        );
    }
    let beats = |director: &Director| Some(view(director)?.last_heartbeat?.1.sequence);
    let reached = beats(&director).unwrap();
    wait_for("further heartbeats", || {
        (beats(&director)? > reached + 5).then_some(())
    })
    .await;
    assert_eq!(view(&director).unwrap().since, first.since);

    gateway.shutdown(Duration::from_secs(5)).await;
    director.start_again(Epoch(2)).await;
    let again = step(&director, write_file("t2/configure", 2, "a: 2\n")).await;
    assert_eq!(again.outcome, Outcome::Changed, "{again:?}");
    assert_eq!(view(&director).unwrap().protocol, protocol());
    drop(agent);
}

/// Of a system container: its root is a directory of its host, and its data disk is mounted as a whole.
const MOUNTED: &str = "\
719 686 0:45 / / rw,relatime shared:110 - overlay overlay rw,lowerdir=/s/rootfs,upperdir=/m/upper,workdir=/m/work
751 719 7:2 / /var/lib/etcd rw,noatime shared:155 - ext4 /dev/loop2 rw
";

/// Whose each disk is that is shown of the machine.
fn disks(director: &Director) -> Option<Vec<(String, Option<Scope>)>> {
    let session = director
        .gateway()
        .connected()
        .remove(&machine_name("demo-cp-0"))?;
    session.report.as_ref()?;
    let measured = health::measured(&session, Timestamp::now());
    for one in &measured {
        assert!(!one.source.is_empty(), "{one:?}");
    }
    let disks = measured.into_iter().filter(|one| one.name == "disk");
    Some(disks.map(|one| (one.subject, one.scope)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_says_whose_its_file_systems_are_or_nobody_knows() {
    let director = Director::start().await;
    let root = machine(&director);
    for (path, content) in [
        ("proc/self/mountinfo", MOUNTED),
        ("run/systemd/container", "oci\n"),
        ("var/lib/etcd/member", ""),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let _agent = Agent::start(root.path());
    let wanted = match protocol() {
        // It reports, and has no word for it.
        ..2 => vec![("/".to_owned(), None)],
        _ => vec![
            ("/".to_owned(), Some(Scope::Host)),
            ("/var/lib/etcd".to_owned(), Some(Scope::Machine)),
        ],
    };
    wait_for("its disks", || (disks(&director)? == wanted).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_on_the_same_machine_does_not_start() {
    let director = Director::start().await;
    let root = machine(&director);
    let _first = Agent::start(root.path());
    let second = Command::new(binary())
        .arg("--root")
        .arg(root.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("in use by another process"), "{said}");
}

/// An agent that says that it can evict is asked to, and one that does not say so never hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evictions_are_asked_of_agents_that_can() {
    let director = Director::start().await;
    let evict = StepRequest {
        step: Step::Evict(Evict {
            // Nothing listens there.
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            server_name: "demo.windlass.internal".to_owned(),
            ca_path: "/etc/ca.pem".to_owned(),
            client: ClientFiles {
                certificate_path: "/etc/c.pem".to_owned(),
                key_path: "/etc/k.pem".to_owned(),
            },
            node: "demo-cp-0-i1".to_owned(),
            pods: vec![EvictPod {
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                uid: "2d6c4a58-8f0e-4a56-9a0b-0d7c1a7f6f10".to_owned(),
                grace_seconds: None,
                how: EvictHow::Evict,
            }],
        }),
        ..exec("t1/evict", &["true"])
    };
    let root = machine(&director);
    let _agent = Agent::start(root.path());
    if protocol() != PROTOCOL {
        // The agent of the release before: it serves, and is not asked.
        let served = step(&director, write_file("t0/configure", 1, "maxPods: 10\n")).await;
        assert_eq!(served.outcome, Outcome::Changed, "{served:?}");
        let (name, incarnation) = (machine_name("demo-cp-0"), Incarnation::FIRST);
        let gateway = director.gateway();
        let run = gateway.run_step(&name, incarnation, evict.clone(), no_progress());
        let refused = run.await;
        let older = matches!(
            refused,
            Err(DeliveryError::TooOld { .. } | DeliveryError::Unable { .. })
        );
        assert!(older, "{refused:?}");
    } else {
        let asked = step(&director, evict.clone()).await;
        let Outcome::Failed { class, message } = asked.outcome else {
            panic!("{asked:?}")
        };
        assert_eq!(class, ErrorClass::Retry);
        assert!(
            message.starts_with("the API is not reached at 127.0.0.1:1: does not connect"),
            "{message}"
        );
    }

    let dir = tempfile::tempdir().unwrap();
    let older = Machine::boot(director.settings("demo-cp-1", 1), dir.path());
    director.connected(&older).await;
    let run = director
        .gateway()
        .run_step(&older.name, older.incarnation, evict, no_progress());
    let refused = run.await;
    assert!(
        matches!(refused, Err(DeliveryError::Unable { lacks: "evict", .. })),
        "{refused:?}"
    );
}
