//! The runner against a temporary root, without systemd and without a director.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use windlass_common::journal::sim::SimDisk;
use windlass_common::step::Progress;
use windlass_common::step::{Check, Configure, Exec, FileContent, FileSpec, Gate, OutputStream};

use super::*;
use crate::history::History;
use crate::host::Host;
use crate::steps::fetch::{ArtifactSource, Opening, SourceError, Wanted};
use crate::units::Units;

#[derive(Debug)]
struct NoArtifacts;

impl ArtifactSource for NoArtifacts {
    fn open(&self, _: Wanted) -> Opening<'_> {
        Box::pin(async { Err(SourceError::NotFound("none here".to_owned())) })
    }
}

fn runner(root: &Path, disk: &SimDisk) -> Runner {
    let history = History::open(disk.clone()).unwrap();
    Runner::new(Context {
        host: Host::open(root).unwrap(),
        units: Arc::new(Units::default()),
        artifacts: Arc::new(NoArtifacts),
        history: Arc::new(Mutex::new(history)),
        watched: watch::channel(BTreeMap::new()).0,
        leave: watch::channel(false).0,
        director: None,
    })
}

fn request(id: &str, epoch: u64, step: Step) -> StepRequest {
    StepRequest {
        labels: Default::default(),
        id: StepId(id.to_owned()),
        epoch: Epoch(epoch),
        deadline_ms: 20_000,
        step,
    }
}

fn file(path: &str, text: &str) -> Step {
    Step::Configure(Configure {
        files: vec![FileSpec {
            path: path.to_owned(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            content: FileContent::Text(text.to_owned()),
        }],
        ..Configure::default()
    })
}

fn exec(argv: &[&str]) -> Step {
    let argv = argv.iter().map(|s| (*s).to_owned()).collect();
    Step::Exec(Exec { argv })
}

#[tokio::test]
async fn a_lower_epoch_is_refused_also_after_a_restart() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let first = runner(root.path(), &disk);
    let done = first
        .step(
            request("a", 5, file("/etc/a", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert_eq!(done.outcome, Outcome::Changed);
    drop(first);
    let second = runner(root.path(), &disk);
    let refused = second
        .step(
            request("b", 4, file("/etc/b", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert!(matches!(refused.outcome, Outcome::Refused { message } if message.contains("epoch 4")));
    assert!(!root.path().join("etc/b").exists());
    second.see_epoch(Epoch(9));
    let refused = second
        .step(
            request("c", 8, file("/etc/c", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert!(matches!(refused.outcome, Outcome::Refused { .. }));
}

#[tokio::test]
async fn a_step_that_succeeded_is_not_run_again_and_one_that_failed_is() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    std::fs::create_dir_all(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/d"), "in the way").unwrap();
    let runner = runner(root.path(), &disk);
    let first = runner
        .step(
            request("a", 1, file("/etc/a", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    std::fs::remove_file(root.path().join("etc/a")).unwrap();
    let again = runner
        .step(
            request("a", 1, file("/etc/a", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert_eq!(again, first);
    assert!(!root.path().join("etc/a").exists());
    // The same id with other content is another desire, and converges.
    let other = runner
        .step(
            request("a", 1, file("/etc/a", "2")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert_eq!(other.outcome, Outcome::Changed);

    let failing = || request("f", 1, file("/etc/d/file", "1"));
    let failed = runner
        .step(failing(), Reporter::quiet(), CancelToken::never())
        .await;
    assert!(matches!(failed.outcome, Outcome::Failed { .. }));
    std::fs::remove_file(root.path().join("etc/d")).unwrap();
    assert_eq!(
        runner
            .step(failing(), Reporter::quiet(), CancelToken::never())
            .await
            .outcome,
        Outcome::Changed
    );
}

#[tokio::test]
async fn malformed_steps_are_refused_and_not_remembered() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let refused = runner
        .step(
            request("a", 1, file("/usr/bin/x", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert!(matches!(refused.outcome, Outcome::Refused { .. }));
    assert_eq!(lock(&runner.context().history).step(&refused.id), None);
}

#[tokio::test]
async fn exec_streams_its_output_and_runs_once() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let counter = root.path().join("counter");
    let script = format!(
        "echo out; echo err >&2; echo x >> {}; exit 3",
        counter.display()
    );
    let (sink, mut progress) = ProgressSink::channel(16);
    let order = || request("x", 1, exec(&["sh", "-c", &script]));
    let done = runner
        .step(order(), Reporter::new(sink), CancelToken::never())
        .await;
    assert_eq!(
        (done.outcome.clone(), done.payload.clone()),
        (Outcome::Changed, Payload::Exit(3))
    );
    let mut output = BTreeMap::new();
    while let Ok(Progress::Output { stream, bytes }) = progress.try_recv() {
        let name = if stream == OutputStream::Stdout {
            "out"
        } else {
            "err"
        };
        output.insert(name, String::from_utf8(bytes).unwrap());
    }
    assert_eq!(
        output,
        BTreeMap::from([("out", "out\n".to_owned()), ("err", "err\n".to_owned())])
    );
    assert_eq!(
        runner
            .step(order(), Reporter::quiet(), CancelToken::never())
            .await,
        done
    );
    let other = runner
        .step(
            request("x", 1, exec(&["true"])),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert!(matches!(other.outcome, Outcome::Refused { .. }));
    assert_eq!(std::fs::read_to_string(counter).unwrap(), "x\n");
}

#[tokio::test]
async fn exec_is_killed_with_its_children_at_its_deadline() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let pid_file = root.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
    let mut order = request("x", 1, exec(&["sh", "-c", &script]));
    order.deadline_ms = 1_000;
    let killed = runner
        .step(order, Reporter::quiet(), CancelToken::never())
        .await;
    assert!(
        matches!(&killed.outcome, Outcome::Unknown { message } if message.contains("deadline"))
    );
    gone(&pid_file).await;
    // Known as over: sent again, it does not run again.
    let again = runner
        .step(
            request("x", 1, exec(&["sh", "-c", &script])),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert_eq!(again, killed);
}

#[tokio::test]
async fn a_cancelled_exec_is_killed_with_its_children_and_never_runs_again() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let pid_file = root.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
    let order = || request("x", 1, exec(&["sh", "-c", &script]));
    let (cancel, token) = CancelToken::channel();
    let begun = async {
        while std::fs::read_to_string(&pid_file).map_or(true, |pid| !pid.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.send_replace(true);
    };
    let (killed, ()) = tokio::join!(runner.step(order(), Reporter::quiet(), token), begun);
    assert!(
        matches!(&killed.outcome, Outcome::Unknown { message } if message.contains("cancelled")),
        "{killed:?}"
    );
    gone(&pid_file).await;
    let after = self::runner(root.path(), &disk.after_power_cut(1));
    let again = after
        .step(order(), Reporter::quiet(), CancelToken::never())
        .await;
    assert_eq!(again, killed);
}

#[tokio::test]
async fn a_cancelled_gate_ends_and_a_cancelled_step_that_waits_does_not_begin() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gate = Step::Gate(Gate {
        checks: vec![Check::TcpOpen { address }],
        interval_ms: 10,
    });
    let (cancel, token) = CancelToken::channel();
    let (sink, mut progress) = ProgressSink::channel(16);
    let looked = async {
        progress.recv().await.unwrap();
        cancel.send_replace(true);
    };
    let gate = runner.step(request("g", 1, gate), Reporter::new(sink), token);
    let (ended, ()) = tokio::join!(gate, looked);
    assert!(
        matches!(&ended.outcome, Outcome::Failed { class: ErrorClass::Operator, message } if message.contains("cancelled")),
        "{ended:?}"
    );

    // Cancelled while another step holds what it touches.
    let held = runner.locks.acquire(locks::of(&file("/etc/a", "1"))).await;
    let (cancel, token) = CancelToken::channel();
    cancel.send_replace(true);
    let refused = runner
        .step(
            request("a", 1, file("/etc/a", "1")),
            Reporter::quiet(),
            token,
        )
        .await;
    assert!(
        matches!(refused.outcome, Outcome::Refused { .. }),
        "{refused:?}"
    );
    drop(held);
    assert!(!root.path().join("etc/a").exists());
    // Sent again, it is done.
    let done = runner
        .step(
            request("a", 1, file("/etc/a", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert_eq!(done.outcome, Outcome::Changed);
}

/// Waits until the process in the file is gone, or a zombie that whoever inherited it reaps.
async fn gone(pid_file: &Path) {
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let state = format!("/proc/{}/stat", pid.trim());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&state).is_ok_and(|stat| !stat.contains(") Z ")) {
        let now = std::time::Instant::now();
        assert!(now < deadline, "the grandchild still runs");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn exec_that_a_crash_interrupted_is_unknown_and_never_runs_again() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let marker = root.path().join("ran");
    let script = format!("echo x >> {}; sleep 600", marker.display());
    let order = || request("x", 1, exec(&["sh", "-c", &script]));
    let first = runner(root.path(), &disk);
    // The agent dies while it runs: the future is dropped, then the machine loses power.
    let ran = async {
        while !marker.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = first.step(order(), Reporter::quiet(), CancelToken::never()) => panic!("{done:?}"),
        () = ran => {}
    }
    let second = runner(root.path(), &disk.after_power_cut(1));
    let after = second
        .step(order(), Reporter::quiet(), CancelToken::never())
        .await;
    assert!(
        matches!(after.outcome, Outcome::Unknown { .. }),
        "{after:?}"
    );
    assert_eq!(std::fs::read_to_string(&marker).unwrap(), "x\n");
}

#[tokio::test]
async fn a_step_is_not_begun_when_the_journal_fails() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    disk.crash_at(disk.calls());
    let failed = runner
        .step(
            request("a", 1, file("/etc/a", "1")),
            Reporter::quiet(),
            CancelToken::never(),
        )
        .await;
    assert!(matches!(
        failed.outcome,
        Outcome::Failed {
            class: ErrorClass::Retry,
            ..
        }
    ));
    assert!(!root.path().join("etc/a").exists());
}

#[tokio::test]
async fn a_gate_says_what_it_waited_for_and_is_looked_at_anew() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let gate = Gate {
        checks: vec![Check::TcpOpen { address }],
        interval_ms: 10,
    };
    let order = |deadline_ms| StepRequest {
        labels: Default::default(),
        deadline_ms,
        ..request("g", 1, Step::Gate(gate.clone()))
    };
    let (sink, mut progress) = ProgressSink::channel(16);
    let failed = runner
        .step(order(200), Reporter::new(sink), CancelToken::never())
        .await;
    let named = format!("tcp {address}: does not connect");
    assert!(
        matches!(&failed.outcome, Outcome::Failed { class: ErrorClass::Retry, message } if message.contains(&named)),
        "{failed:?}"
    );
    assert!(
        matches!(progress.try_recv().unwrap(), Progress::Stage(stage) if stage.contains(&named))
    );
    let _listener = tokio::net::TcpListener::bind(address).await.unwrap();
    assert_eq!(
        runner
            .step(order(10_000), Reporter::quiet(), CancelToken::never())
            .await
            .outcome,
        Outcome::Converged
    );
}

#[tokio::test]
async fn steps_that_touch_the_same_thing_follow_one_another() {
    let locks = Locks::default();
    let things = |step: &Step| locks::of(step);
    let held = locks.acquire(things(&file("/etc/a", "1"))).await;
    let _other = locks.acquire(things(&file("/etc/b", "1"))).await;
    let mut second = Box::pin(locks.acquire(things(&file("/etc/a", "2"))));
    let waits = tokio::time::timeout(Duration::from_millis(20), &mut second).await;
    assert!(waits.is_err());
    drop(held);
    tokio::time::timeout(Duration::from_secs(5), second)
        .await
        .unwrap();
}

#[tokio::test]
async fn one_id_runs_once_at_a_time() {
    let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
    let runner = runner(root.path(), &disk);
    let mut order = request("x", 1, exec(&["sleep", "600"]));
    order.deadline_ms = 500;
    let (first, second) = tokio::join!(
        runner.step(order.clone(), Reporter::quiet(), CancelToken::never()),
        runner.step(order.clone(), Reporter::quiet(), CancelToken::never()),
    );
    assert!(matches!(first.outcome, Outcome::Unknown { .. }));
    assert!(matches!(second.outcome, Outcome::Refused { .. }));
}

/// Seed 6502 of the simulation: it waits behind another step while a director takes over.
#[tokio::test]
async fn a_step_that_waited_is_begun_for_the_director_in_charge_alone() {
    for asked_again in [false, true] {
        let (root, disk) = (tempfile::tempdir().unwrap(), SimDisk::default());
        let runner = runner(root.path(), &disk);
        let order = request("x", 1, file("/etc/a", "1"));
        let held = runner.locks.acquire(locks::of(&order.step)).await;
        let mut step =
            Box::pin(runner.step(order.clone(), Reporter::quiet(), CancelToken::never()));
        // It is admitted, and waits.
        while runner
            .context()
            .history
            .lock()
            .unwrap()
            .unfinished()
            .is_empty()
        {
            tokio::select! {
                biased;
                over = &mut step => panic!("it did not wait: {over:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        runner.see_epoch(Epoch(2));
        if asked_again {
            runner.asked_again(&order.id, Epoch(2));
        }
        drop(held);
        let over = step.await.outcome;
        let expected = match asked_again {
            true => matches!(over, Outcome::Changed),
            false => matches!(over, Outcome::Refused { .. }),
        };
        assert!(expected, "asked again: {asked_again}, {over:?}");
        // Who is in charge asks for it.
        let order = request("x", 2, file("/etc/a", "1"));
        let then = runner.step(order, Reporter::quiet(), CancelToken::never());
        let then = then.await.outcome;
        assert!(
            matches!(then, Outcome::Changed | Outcome::Converged),
            "{then:?}"
        );
    }
}
