//! The agent's own process makes way for another one, with the guard of the stemcell, against a real
//! gateway. The unit is played by a thread: the guard, then whatever program is in place, again and again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Epoch, Incarnation};
use windlass_common::step::{AgentUpgrade, Outcome, Step, StepId, StepRequest};

use crate::process::{PATIENCE, binary, machine, step, write_file};
use crate::world::{Director, exec, machine_name, no_progress, wait_for};

const GUARD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../stemcells/rootfs/opt/windlass/bin/windlass-agent-guard"
);
const PROGRAM: &str = "opt/windlass/bin/windlass-agent";

/// The agent's unit on a machine that is a directory.
struct Unit {
    root: PathBuf,
    running: Arc<Mutex<Option<Child>>>,
    starts: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Unit {
    fn start(root: &Path) -> Unit {
        for (path, text) in [
            ("proc/sys/kernel/random/boot_id", "one\n"),
            ("proc/uptime", "100.0 1.0\n"),
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        }
        let bin = root.join(PROGRAM);
        fs::create_dir_all(bin.parent().unwrap()).unwrap();
        fs::copy(binary(), &bin).unwrap();
        fs::copy(GUARD, bin.with_file_name("windlass-agent-guard")).unwrap();
        let mut unit = Unit {
            root: root.to_owned(),
            running: Arc::default(),
            starts: Arc::default(),
            over: Arc::default(),
            thread: None,
        };
        let root = root.to_owned();
        let (running, starts) = (unit.running.clone(), unit.starts.clone());
        let over = unit.over.clone();
        unit.thread = Some(std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                guard(&root, "start");
                let child = Command::new(root.join(PROGRAM))
                    .arg("--root")
                    .arg(&root)
                    .stdin(Stdio::null())
                    .spawn();
                // Busy: a child of another test has the program open for as long as it starts.
                let Ok(child) = child else { continue };
                starts.fetch_add(1, Ordering::Relaxed);
                *running.lock().unwrap() = Some(child);
                loop {
                    let mut running = running.lock().unwrap();
                    if over.load(Ordering::Relaxed) {
                        let _ = running.as_mut().unwrap().kill();
                    }
                    if running.as_mut().unwrap().try_wait().unwrap().is_some() {
                        break;
                    }
                    drop(running);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }));
        unit
    }

    fn kill(&self) {
        if let Some(child) = self.running.lock().unwrap().as_mut() {
            let _ = child.kill();
        }
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join(path)).ok()
    }

    fn on_trial(&self) -> bool {
        self.root.join("var/lib/windlass/upgrade/trial").exists()
    }

    fn in_place(&self) -> Digest {
        Digest::of(&self.read(PROGRAM).unwrap())
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn guard(root: &Path, what: &str) {
    let status = Command::new("dash")
        .args([GUARD, what])
        .env("WINDLASS_ROOT", root)
        .status();
    assert!(status.unwrap().success());
}

/// Publishes a program and asks for it.
fn upgrade(director: &Director, dir: &Path, id: &str, program: &[u8]) -> StepRequest {
    let digest = Digest::of(program);
    let path = dir.join(digest.hex());
    fs::write(&path, program).unwrap();
    let artifacts = &director.records.artifacts;
    artifacts.lock().unwrap().insert(digest, path);
    StepRequest {
        labels: Default::default(),
        id: StepId(id.to_owned()),
        epoch: Epoch(1),
        deadline_ms: 120_000,
        step: Step::AgentUpgrade(AgentUpgrade {
            digest,
            bytes: program.len() as u64,
            origin: "debian12-test".to_owned(),
            trial_s: 60,
        }),
    }
}

/// This release's agent, as another build of it: programs may be followed by anything.
fn other_build() -> Vec<u8> {
    let mut program = fs::read(binary()).unwrap();
    program.write_all(b"\nanother build\n").unwrap();
    program
}

fn script(text: &str) -> Vec<u8> {
    format!("#!/bin/sh\n[ \"$1\" = --version ] && echo windlass-agent 9.9.9 && exit\n{text}\n")
        .into()
}

fn why(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Failed {
            class: ErrorClass::Operator,
            message,
        } => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_makes_way_for_another_build_that_confirms_itself() {
    let director = Director::start().await;
    let (root, dir) = (machine(&director), tempfile::tempdir().unwrap());
    let unit = Unit::start(root.path());
    let written = step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    let (old, program) = (unit.in_place(), other_build());
    let order = || upgrade(&director, dir.path(), "t/upgrade", &program);

    // What runs beside it is let finish.
    let beside = exec("t/beside", &["sh", "-c", "sleep 1"]);
    let name = machine_name("demo-cp-0");
    let gateway = director.gateway();
    let beside = gateway.run_step(&name, Incarnation::FIRST, beside, no_progress());
    let (beside, upgraded) = tokio::join!(beside, step(&director, order()));
    assert_eq!(beside.unwrap().outcome, Outcome::Changed);
    assert_eq!(upgraded.outcome, Outcome::Changed, "{upgraded:?}");
    assert!(
        upgraded.changes[0].contains("of debian12-test"),
        "{upgraded:?}"
    );
    assert_eq!(unit.in_place(), Digest::of(&program));
    let previous = unit.read(&format!("{PROGRAM}.previous")).unwrap();
    assert_eq!(Digest::of(&previous), old);
    assert!(!unit.on_trial());
    assert_eq!(unit.starts.load(Ordering::Relaxed), 2);
    // It remembers what its predecessor did, and what it was asked itself.
    let again = step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    assert_eq!(again, written);
    assert_eq!(step(&director, order()).await, upgraded);
    let twice = upgrade(&director, dir.path(), "t/once-more", &program);
    assert_eq!(step(&director, twice).await.outcome, Outcome::Converged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_do_not_prove_themselves_are_rolled_back() {
    let director = Director::start().await;
    let (root, dir) = (machine(&director), tempfile::tempdir().unwrap());
    let unit = Unit::start(root.path());
    step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    let old = unit.in_place();
    let often = "ended 5 times";
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("no program at all",       b"\x7fELF".to_vec(),   "asked for its version"),
        ("says no version",         b"#!/bin/sh\nexit 1\n".to_vec(), "the new agent says: nothing"),
        ("crashes at once",         script("exit 1"),      often),
        ("ends in peace at once",   script("exit 0"),      often),
    ];
    for (number, (name, program, want)) in cases.into_iter().enumerate() {
        let id = format!("t/broken-{number}");
        let ended = step(&director, upgrade(&director, dir.path(), &id, &program)).await;
        let said = why(&ended.outcome);
        assert!(said.starts_with("rolled back to agent "), "{name}: {said}");
        assert!(said.contains(want), "{name}: {said}");
        assert_eq!(unit.in_place(), old, "{name}");
        assert!(!unit.on_trial(), "{name}");
        // Asked again, it has the same answer and tries nothing.
        let starts = unit.starts.load(Ordering::Relaxed);
        let again = step(&director, upgrade(&director, dir.path(), &id, &program)).await;
        assert_eq!(again.outcome, ended.outcome, "{name}");
        assert_eq!(unit.starts.load(Ordering::Relaxed), starts, "{name}");
    }
    // The same program may be tried anew, by another step.
    let program = other_build();
    let upgraded = step(
        &director,
        upgrade(&director, dir.path(), "t/good", &program),
    )
    .await;
    assert_eq!(upgraded.outcome, Outcome::Changed, "{upgraded:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_hangs_is_rolled_back_when_its_time_is_over() {
    let director = Director::start().await;
    let (root, dir) = (machine(&director), tempfile::tempdir().unwrap());
    let unit = Unit::start(root.path());
    step(&director, write_file("t/configure", 1, "a: 1\n")).await;
    let old = unit.in_place();
    let program = script("exec sleep 600");
    let order = upgrade(&director, dir.path(), "t/hangs", &program);
    let asked = step(&director, order);
    tokio::pin!(asked);
    let hung = wait_for("the new agent to hang", || {
        (unit.on_trial() && unit.starts.load(Ordering::Relaxed) == 2).then_some(())
    });
    tokio::select! {
        ended = &mut asked => panic!("{ended:?}"),
        () = hung => {}
    }
    assert_eq!(unit.in_place(), Digest::of(&program));
    // The machine reboots: its minute begins anew.
    fs::write(root.path().join("proc/sys/kernel/random/boot_id"), "two\n").unwrap();
    fs::write(root.path().join("proc/uptime"), "1.0 1.0\n").unwrap();
    unit.kill();
    wait_for("the next start", || {
        (unit.starts.load(Ordering::Relaxed) == 3).then_some(())
    })
    .await;
    fs::write(root.path().join("proc/uptime"), "59.0 1.0\n").unwrap();
    assert!(unit.on_trial());
    fs::write(root.path().join("proc/uptime"), "61.5 1.0\n").unwrap();
    let path = root.path().to_owned();
    let watched = tokio::task::spawn_blocking(move || guard(&path, "watch"));
    tokio::time::timeout(PATIENCE, watched)
        .await
        .unwrap()
        .unwrap();
    // On a machine the guard restarts the unit.
    unit.kill();
    let ended = asked.await;
    assert!(
        why(&ended.outcome).contains("could not confirm it within 60 s"),
        "{ended:?}"
    );
    assert_eq!(unit.in_place(), old);
}
