//! Steps, restarts, artifacts, tunnels and renewals over an honest link.

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use jiff::Timestamp;
use windlass_agent::link::FetchError;
use windlass_common::clock::Clock;
use windlass_common::condition::{Condition, Conditions, ETCD, State};
use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Epoch, Incarnation};
use windlass_common::limits::{AGENT_CERTIFICATE_LIFE, ANSWER_TIMEOUT, STEPS_IN_FLIGHT_MAX};
use windlass_common::report::Scope;
use windlass_common::step::{Outcome, Payload, Progress};
use windlass_common::transport::Close;
use windlass_common::wire::message::{RefusalCode, TunnelTarget};
use windlass_director::gateway::{DeliveryError, Event, Gateway};

use crate::certificates::{agent, connect, welcomed};
use crate::world::{
    Director, Machine, exec, gateway, identity, machine_name, no_progress, wait_for,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_enrolls_connects_reports_and_runs_a_step() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut events = director.gateway().subscribe();
    let machine = Machine::boot(director.settings("demo-cp-0", 1), dir.path());
    director.connected(&machine).await;

    let (sender, mut progress) = mpsc::channel(4);
    let run = director.gateway().run_step(
        &machine.name,
        machine.incarnation,
        exec("t1/print", &["print", "300"]),
        sender,
    );
    // More progress than all queues together hold: it is received while the step runs.
    let read = async {
        let mut output = Vec::new();
        while let Some(item) = progress.recv().await {
            match item {
                Progress::Output { bytes, .. } => output.extend(bytes),
                Progress::Stage(_) => {}
            }
        }
        output
    };
    let (result, output) = tokio::join!(run, read);
    let result = result.unwrap();
    assert_eq!(result.outcome, Outcome::Changed);
    assert_eq!(result.payload, Payload::Exit(0));
    let wanted: String = (0..300).map(|number| format!("{number}\n")).collect();
    assert_eq!(String::from_utf8(output).unwrap(), wanted);

    let view = wait_for("a heartbeat and a report", || {
        let view = director.gateway().connected().remove(&machine.name)?;
        (view
            .last_heartbeat
            .is_some_and(|(_, beat)| beat.sequence > 2)
            && view.report.is_some())
        .then_some(view)
    })
    .await;
    assert_eq!(view.identity, identity("demo-cp-0", 1));
    assert_eq!(view.hello.boot_id, "boot-1");
    assert_eq!(view.report.unwrap().1.uptime_s, 1);
    machine.steps.report(77);
    wait_for("the changed report", || {
        let view = director.gateway().connected().remove(&machine.name)?;
        (view.report?.1.uptime_s == 77).then_some(())
    })
    .await;
    let who = identity("demo-cp-0", 1);
    assert_eq!(
        events.recv().await.unwrap(),
        Event::Connected {
            identity: who.clone()
        }
    );
    assert_eq!(
        events.recv().await.unwrap(),
        Event::ReportChanged { identity: who }
    );
    assert_eq!(*machine.steps.epochs.lock().unwrap(), [Epoch(1)]);

    let name = machine.name.clone();
    machine.stop().await;
    wait_for("the end of the session", || {
        director.gateway().connected().is_empty().then_some(())
    })
    .await;
    let gone = director
        .gateway()
        .run_step(&name, Incarnation(1), exec("t1/x", &[]), no_progress())
        .await;
    assert!(matches!(gone, Err(DeliveryError::NotConnected { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_outlives_a_restart_of_the_director_and_runs_once() {
    let mut director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;

    let lost = {
        let gateway = director.gateway().clone();
        let name = machine.name.clone();
        tokio::spawn(async move {
            let request = exec("t1/hold", &["hold"]);
            gateway
                .run_step(&name, Incarnation(1), request, no_progress())
                .await
        })
    };
    wait_for("the step to begin", || {
        (machine.steps.begun("t1/hold") == 1).then_some(())
    })
    .await;
    director.gateway().shutdown(Duration::from_secs(5)).await;
    let error = lost.await.unwrap().unwrap_err();
    assert!(matches!(error, DeliveryError::Lost { .. }), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Retry);

    director.start_again(Epoch(2)).await;
    director.connected(&machine).await;
    // Attaches to the step that still runs, then lets it end.
    let (sender, mut progress) = mpsc::channel(4);
    let again = director.gateway().run_step(
        &machine.name,
        machine.incarnation,
        exec("t1/hold", &["hold"]),
        sender,
    );
    let other = director.gateway().run_step(
        &machine.name,
        machine.incarnation,
        exec("t1/hold", &["print", "1"]),
        no_progress(),
    );
    let release = async {
        // The refusal of other content under the same id shows that the step is running still.
        let refused = other.await.unwrap().outcome;
        assert!(matches!(refused, Outcome::Refused { .. }), "{refused:?}");
        machine.steps.release.send_replace(true);
    };
    let (result, ()) = tokio::join!(again, release);
    assert_eq!(result.unwrap().outcome, Outcome::Changed);
    assert!(progress.recv().await.is_none());
    // From the journal.
    let third = director
        .gateway()
        .run_step(
            &machine.name,
            machine.incarnation,
            exec("t1/hold", &["hold"]),
            no_progress(),
        )
        .await;
    assert_eq!(third.unwrap().outcome, Outcome::Changed);
    assert_eq!(machine.steps.begun("t1/hold"), 1);
    assert_eq!(*machine.steps.epochs.lock().unwrap(), [Epoch(1), Epoch(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_whose_caller_goes_is_cancelled_and_no_other() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let run = |id: &'static str| {
        let (gateway, name) = (director.gateway().clone(), machine.name.clone());
        tokio::spawn(async move {
            let request = exec(id, &["hold"]);
            let result = gateway.run_step(&name, Incarnation(1), request, no_progress());
            result.await.unwrap().outcome
        })
    };
    let (dropped, kept) = (run("t1/dropped"), run("t1/kept"));
    wait_for("both steps to begin", || {
        (machine.steps.begun("t1/dropped") == 1 && machine.steps.begun("t1/kept") == 1)
            .then_some(())
    })
    .await;
    dropped.abort();
    let ended = wait_for("the cancelled step to end", || {
        machine.steps.outcome("t1/dropped")
    })
    .await;
    assert!(matches!(ended, Outcome::Unknown { .. }), "{ended:?}");
    // The journal answers whoever asks again.
    let (name, again) = (&machine.name, exec("t1/dropped", &["hold"]));
    let gateway = director.gateway();
    let asked = gateway.run_step(name, machine.incarnation, again, no_progress());
    assert_eq!(asked.await.unwrap().outcome, ended);
    assert_eq!(machine.steps.outcome("t1/kept"), None);
    machine.steps.release.send_replace(true);
    assert_eq!(kept.await.unwrap(), Outcome::Changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_with_its_link_cancels_nothing() {
    let mut director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let (gateway, name) = (director.gateway().clone(), machine.name.clone());
    let running = tokio::spawn(async move {
        let request = exec("t1/hold", &["hold"]);
        let result = gateway.run_step(&name, Incarnation(1), request, no_progress());
        result.await
    });
    wait_for("the step to begin", || {
        (machine.steps.begun("t1/hold") == 1).then_some(())
    })
    .await;
    // As a director stops: links, then callers.
    director.gateway().close();
    running.abort();
    director.gateway().shutdown(Duration::from_secs(5)).await;
    director.start_again(Epoch(2)).await;
    director.connected(&machine).await;
    machine.steps.release.send_replace(true);
    let again = exec("t1/hold", &["hold"]);
    let gateway = director.gateway();
    let asked = gateway.run_step(&machine.name, machine.incarnation, again, no_progress());
    assert_eq!(asked.await.unwrap().outcome, Outcome::Changed);
    assert_eq!(machine.steps.begun("t1/hold"), 1);
}

#[test]
fn a_director_that_is_killed_is_found_again_before_the_idle_timeout() {
    let machines = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The gateway has a runtime of its own, whose end takes it away without a word.
    let doomed = tokio::runtime::Runtime::new().unwrap();
    let mut director = doomed.block_on(Director::start());
    let machine = machines.block_on(async {
        let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
        wait_for("the connection", || {
            machine.link.is_connected().then_some(())
        })
        .await;
        machine
    });
    doomed.block_on(director.connected(&machine));
    doomed.shutdown_background();

    let began = std::time::Instant::now();
    let next = tokio::runtime::Runtime::new().unwrap();
    next.block_on(async {
        director.start_again(Epoch(2)).await;
        director.connected(&machine).await;
    });
    let took = began.elapsed();
    // The idle timeout is 6 s; a stateless reset answers the next heartbeat.
    assert!(took < Duration::from_secs(3), "{took:?}");
    machines.block_on(machine.stop());
}

#[test]
fn a_director_that_was_away_for_longer_is_found_soon_after_its_start() {
    const FLEET: usize = 8;
    let machines = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let doomed = tokio::runtime::Runtime::new().unwrap();
    let mut director = doomed.block_on(Director::start());
    let fleet: Vec<Machine> = machines.block_on(async {
        let boot = |number| {
            let name = format!("demo-w-{number}");
            Machine::boot(director.settings(&name, 1), &dir.path().join(name))
        };
        (0..FLEET).map(boot).collect()
    });
    let all = |connected: bool| {
        let found = fleet
            .iter()
            .all(|machine| machine.link.is_connected() == connected);
        found.then_some(())
    };
    machines.block_on(wait_for("the connections", || all(true)));
    doomed.shutdown_background();
    machines.block_on(async {
        wait_for("the links to break", || all(false)).await;
        // Into the attempts that nobody answers.
        tokio::time::sleep(ANSWER_TIMEOUT * 2).await;
    });

    let next = tokio::runtime::Runtime::new().unwrap();
    let took = next.block_on(async {
        director.start_again(Epoch(2)).await;
        let began = std::time::Instant::now();
        for machine in &fleet {
            director.connected(machine).await;
        }
        began.elapsed()
    });
    // At most 0.7 s until the next packet of each, and what eight handshakes take.
    assert!(took < Duration::from_secs(2), "{took:?}");
    machines.block_on(async {
        for machine in fleet {
            machine.stop().await;
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_steps_run_at_once_than_the_limit_says() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let limit = STEPS_IN_FLIGHT_MAX;
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..2 * limit {
        let (gateway, name) = (director.gateway().clone(), machine.name.clone());
        runs.spawn(async move {
            let request = exec(&format!("t1/{number}"), &["hold"]);
            let result = gateway.run_step(&name, Incarnation(1), request, no_progress());
            result.await.unwrap().outcome
        });
    }
    wait_for("the first half to run", || {
        (machine.steps.begun.lock().unwrap().len() >= limit as usize).then_some(())
    })
    .await;
    machine.steps.release.send_replace(true);
    while let Some(outcome) = runs.join_next().await {
        assert_eq!(outcome.unwrap(), Outcome::Changed);
    }
    assert_eq!(*machine.steps.running_most.lock().unwrap(), limit);
    let begun = machine.steps.begun.lock().unwrap();
    assert_eq!(begun.len(), 2 * limit as usize);
    assert!(begun.values().all(|&times| times == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_is_fetched_from_any_byte() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_001u32).map(|at| (at % 251) as u8).collect();
    let digest = Digest::of(&content);
    let path = dir.path().join("artifact");
    std::fs::File::create(&path)
        .unwrap()
        .write_all(&content)
        .unwrap();
    director
        .records
        .artifacts
        .lock()
        .unwrap()
        .insert(digest, path);
    let machine = Machine::boot(director.settings("demo-w-0", 1), &dir.path().join("id"));

    // Before there is a connection: the call waits for one.
    let mut stream = machine.link.fetch(digest, 0).await.unwrap();
    assert_eq!(stream.bytes(), content.len() as u64);
    let mut got = Vec::new();
    while got.len() < 1_000_000 {
        let chunk = stream.chunk().await.unwrap().unwrap();
        got.extend_from_slice(&chunk);
    }
    drop(stream);
    let mut stream = machine.link.fetch(digest, got.len() as u64).await.unwrap();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert_eq!(Digest::of(&got), digest);

    let at_end = machine.link.fetch(digest, content.len() as u64).await;
    assert!(at_end.unwrap().chunk().await.unwrap().is_none());
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (digest, content.len() as u64 + 1, RefusalCode::Malformed),
        (digest, u64::MAX, RefusalCode::Malformed),
        (Digest::of(b"other"), 0, RefusalCode::NotFound),
    ];
    for (digest, offset, wanted) in cases {
        match machine.link.fetch(digest, offset).await {
            Err(FetchError::Refused { code, .. }) => assert_eq!(code, wanted),
            other => panic!("{digest} at {offset}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_carries_bytes_both_ways_and_ends_with_them() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let api_server = listener.local_addr().unwrap();
    // Answers with what it was sent, backwards, once the client has ended its half.
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        tcp.read_to_end(&mut bytes).await.unwrap();
        bytes.reverse();
        tcp.write_all(&bytes).await.unwrap();
    });
    let settings = director.settings("demo-cp-0", 1);
    let machine = Machine::boot_with(settings, dir.path(), api_server);
    director.connected(&machine).await;
    let open = |gateway: Gateway| {
        let name = machine.name.clone();
        async move {
            gateway
                .open_tunnel(&name, Incarnation(1), TunnelTarget::ApiServer)
                .await
        }
    };
    let mut tunnel = open(director.gateway().clone()).await.unwrap();
    let sent: Vec<u8> = (0..2_000_000u32).map(|at| (at % 247) as u8).collect();
    tunnel.write_all(&sent).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut got = Vec::new();
    tunnel.read_to_end(&mut got).await.unwrap();
    got.reverse();
    assert_eq!(Digest::of(&got), Digest::of(&sent));
    server.await.unwrap();

    // Nothing listens any more.
    match open(director.gateway().clone()).await {
        Err(DeliveryError::Refused { message, .. }) => {
            assert!(message.contains(&api_server.to_string()), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_at_two_thirds_of_their_life_without_dropping_the_link() {
    let clock = Clock::by_hand(Timestamp::now());
    let director = Director::start_with(|config| config.clock = clock.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot_at(&clock, director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    let address = director.gateway().connected()[&machine.name].address;
    let read = || std::fs::read_to_string(dir.path().join("identity.pem")).unwrap();
    let mut held = read();
    // Not before it is due.
    clock.advance(AGENT_CERTIFICATE_LIFE / 3);
    machine.steps.report(7);
    wait_for("a report", || {
        let view = director.gateway().connected().remove(&machine.name)?;
        (view.report?.1.uptime_s == 7).then_some(())
    })
    .await;
    assert_eq!(read(), held);
    clock.advance(AGENT_CERTIFICATE_LIFE / 3);
    // Three lives of a certificate, and one connection.
    for _ in 0..4 {
        let fresh = wait_for("a new certificate on disk", || {
            let now = read();
            (now != held).then_some(now)
        })
        .await;
        // A new key as well.
        assert_ne!(held.lines().nth(1), fresh.lines().nth(1));
        held = fresh;
        clock.advance(AGENT_CERTIFICATE_LIFE * 3 / 4);
    }
    assert_eq!(
        director.gateway().connected()[&machine.name].address,
        address
    );
    // The new one is of use: the machine comes back with it, and without its token.
    machine.stop().await;
    let machine = Machine::boot_at(&clock, director.settings("demo-w-0", 1), dir.path());
    director.connected(&machine).await;
    assert_eq!(director.records.redemptions().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_renewed_ends_the_session_when_it_is_over() {
    let clock = Clock::by_hand(Timestamp::now());
    let director = Director::start_with(|config| config.clock = clock.clone()).await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    // An hour.
    let credentials = agent(&director.ca, &me, clock.now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let _control = welcomed(&connection).await;
    wait_for("the session", || {
        director.gateway().connected().remove(&me.machine)
    })
    .await;
    clock.advance(Duration::from_secs(3598));
    assert_eq!(connection.close_reason(), None);
    clock.advance(Duration::from_secs(2));
    let error = connection.closed().await;
    assert_eq!(Close::of(&error), Some(Close::Expired));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_cannot_be_had_twice() {
    let director = Director::start().await;
    let second = gateway(&director.config, &director.ca, &director.records, Epoch(2)).await;
    let error = second.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Operator);
    assert!(error.to_string().contains(&director.address.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_machine_that_does_not_come_ends_at_the_deadline() {
    let director = Director::start().await;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(50);
    let waited = director
        .gateway()
        .wait_connected(&machine_name("demo-w-9"), Incarnation(1), deadline)
        .await;
    assert!(matches!(waited, Err(DeliveryError::NotConnected { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_that_changes_is_told_at_once() {
    let director = Director::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut events = director.gateway().subscribe();
    let machine = Machine::boot(director.settings("demo-cp-0", 1), dir.path());
    director.connected(&machine).await;
    let seen = || {
        let view = director.gateway().connected().remove(&machine.name)?;
        Some(view.conditions?.1)
    };
    wait_for("what is said on connecting", seen).await;
    for state in [State::Bad, State::Good, State::Unknown] {
        while events.try_recv().is_ok() {}
        let condition = Condition {
            name: ETCD.to_owned(),
            subject: String::new(),
            state,
            says: "no leader".to_owned(),
            source: "/health".to_owned(),
            scope: Scope::Machine,
            at_unix_ms: 1,
            since_unix_ms: 1,
        };
        // Nothing else is reported in between: the machine repeats nothing by itself here.
        let said = Conditions {
            at_unix_ms: 1,
            conditions: vec![condition],
        };
        machine.steps.conditions.send_replace(said.clone().into());
        wait_for("the change", || (*seen()? == said).then_some(())).await;
        let told = events.recv().await.unwrap();
        let identity = identity("demo-cp-0", 1);
        assert_eq!(told, Event::ReportChanged { identity });
    }
}
