//! The CA is rotated under agents that are connected, off, or given up.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast::error::TryRecvError;

use windlass_common::cluster::MachineSize;
use windlass_common::id::{Epoch, Incarnation, NodeName};
use windlass_common::pki::MachineIdentity;
use windlass_common::step::Outcome;
use windlass_common::transport::Close;
use windlass_director::backup::hold::Hold;
use windlass_director::gateway::Event;
use windlass_director::model::{self, CaStatus, Caller, MachinePhase, MachineRole, Role};
use windlass_director::rotation::{Links, Phase, Rotations};
use windlass_director::store::Commit;

use crate::certificates::{agent, connect, welcomed};
use crate::world::{Director, Machine, exec, identity, no_progress, wait_for};

/// The record of a machine that is not deleted.
fn record(of: &MachineIdentity) -> model::Machine {
    model::Machine {
        phase: MachinePhase::Ready,
        ..model::Machine::planned(
            model::MachineDraft {
                name: of.machine.clone(),
                cluster: of.cluster.clone(),
                role: MachineRole::ControlPlane,
                incarnation: of.incarnation,
                node_name: NodeName::new(of.machine.as_str()).unwrap(),
                address: [10, 0, 0, 1].into(),
                pod_cidr: "10.244.0.0/24".parse().unwrap(),
                stemcell: "1.37.2".to_owned(),
                kubernetes_version: "1.37.2".to_owned(),
                size: MachineSize {
                    cpu_millis: 1000,
                    memory_mib: 1024,
                    disk_mib: 1024,
                },
                data_disk: None,
            },
            model::Timestamp::now(),
        )
    }
}

fn ann() -> Caller {
    Caller {
        operator: "ann".to_owned(),
        role: Role::Admin,
        request: String::new(),
    }
}

/// Rotations over the director's store, which knows these machines.
async fn rotations(director: &Director, machines: &[&str]) -> Rotations {
    let records = director.vault.clone();
    let mut commit = Commit::default();
    let first = director.ca.to_pem();
    records
        .put_secret(&mut commit, "director-ca", first.expose())
        .unwrap();
    for name in machines {
        commit.put(&record(&identity(name, 1))).unwrap();
    }
    records.commit(commit).await.unwrap();
    let links: Arc<dyn Links> = Arc::new(director.gateway().clone());
    let hold = Hold::load(&records).await.unwrap();
    Rotations::start(records, director.ca.clone(), links, &hold)
}

/// Waits until the rotation is as `wanted`.
async fn until(rotations: &Rotations, what: &str, wanted: impl Fn(&CaStatus) -> bool) -> CaStatus {
    let deadline = tokio::time::Instant::now() + crate::world::PATIENCE;
    loop {
        let status = rotations.status().await.unwrap();
        if wanted(&status) {
            return status;
        }
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "waited for {what}: {status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_agents_move_over_and_one_that_was_off_catches_up() {
    let mut director = Director::start().await;
    let names = ["demo-w-0", "demo-w-1", "demo-w-2"];
    let dirs = names.map(|_| tempfile::tempdir().unwrap());
    let settings = names.map(|name| director.settings(name, 1));
    let mut machines: Vec<Machine> = settings
        .iter()
        .zip(&dirs)
        .map(|(settings, dir)| Machine::boot(settings.clone(), dir.path()))
        .collect();
    for machine in &machines {
        director.connected(machine).await;
    }
    machines.pop().unwrap().stop().await;
    wait_for("the machine to be off", || {
        (director.gateway().connected().len() == 2).then_some(())
    })
    .await;
    let before = director.gateway().connected();
    let mut events = director.gateway().subscribe();
    let old = agent(&director.ca, &identity("demo-w-0", 1), Timestamp::now());
    let (old_root, born_with) = (director.ca.root_digest(), settings[0].ca_digest);
    let secret = director.ca.derive(b"gateway endpoint");

    let rotations = rotations(&director, &names).await;
    rotations.order(&[], &ann()).await.unwrap();
    let status = until(&rotations, "the live agents to follow", |status| {
        status
            .rotation
            .as_ref()
            .is_some_and(|rotation| rotation.renewed == 2)
    })
    .await;
    let rotation = status.rotation.unwrap();
    assert_eq!((rotation.phase, rotation.machines), (Phase::Reissue, 3));
    assert_eq!(rotation.waiting.len(), 1);
    assert_eq!(rotation.waiting[0].machine.as_str(), names[2]);
    // New machines are born with the new root.
    assert_ne!(director.ca.root_digest(), old_root);
    assert_eq!(director.ca.roots().len(), 2);

    // It knows the old root alone, and finds its director all the same.
    machines.push(Machine::boot(settings[2].clone(), dirs[2].path()));
    let status = until(&rotations, "the old CA to be dropped", |status| {
        status.rotation.is_none()
    })
    .await;
    assert_eq!((status.generation, status.abandoned.len()), (2, 0));
    // It is written down before it is so in memory.
    wait_for("the old root to be gone", || {
        (director.ca.roots().len() == 1).then_some(())
    })
    .await;
    assert_eq!(director.ca.derive(b"gateway endpoint"), secret);

    // Nobody was cut off on the way.
    loop {
        match events.try_recv() {
            Ok(Event::Disconnected { identity, reason }) => panic!("{identity}: {reason}"),
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(_) => break,
        }
    }
    let after = director.gateway().connected();
    for name in &machines[..2] {
        assert_eq!(before[&name.name].since, after[&name.name].since);
    }
    // The old root is forgotten everywhere, and what it stood for is refused.
    let new_root = director.ca.root_digest();
    wait_for("all agents to trust the new root alone", || {
        let views = director.gateway().connected();
        let alone = |roots: &Vec<_>| *roots == [new_root];
        (views.len() == 3
            && views
                .values()
                .all(|view| view.trust.roots.as_ref().is_some_and(alone)))
        .then_some(())
    })
    .await;
    assert!(refused(connect(&director, Some(old)).await).await);

    // What is on their disks brings them back, whatever they were born with.
    assert_ne!(born_with, new_root);
    drop(rotations);
    director.gateway().shutdown(crate::world::PATIENCE).await;
    director.start_again(Epoch(2)).await;
    for machine in &machines {
        director.connected(machine).await;
        let done = director
            .gateway()
            .run_step(
                &machine.name,
                Incarnation(1),
                exec("t1/x", &["x"]),
                no_progress(),
            )
            .await;
        assert_eq!(done.unwrap().outcome, Outcome::Changed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_given_up_is_cut_off_with_the_old_ca() {
    let director = Director::start().await;
    let me = identity("demo-w-0", 1);
    director.records.make_current(&me);
    // It is connected, and never does what it is told.
    let credentials = agent(&director.ca, &me, Timestamp::now());
    let connection = connect(&director, Some(credentials)).await.unwrap();
    let _streams = welcomed(&connection).await;
    let rotations = rotations(&director, &["demo-w-0"]).await;
    rotations.order(&[], &ann()).await.unwrap();
    let status = until(&rotations, "the machine to be waited for", |status| {
        let waiting = status.rotation.as_ref().map(|rotation| &rotation.waiting);
        waiting.is_some_and(|waiting| waiting.len() == 1)
    })
    .await;
    let rotation = status.rotation.unwrap();
    assert_eq!(rotation.phase, Phase::Overlap);
    assert_eq!(connection.close_reason(), None);

    let unknown = windlass_common::id::MachineName::new("demo-w-9").unwrap();
    assert!(rotations.order(&[unknown], &ann()).await.is_err());
    rotations
        .order(std::slice::from_ref(&me.machine), &ann())
        .await
        .unwrap();
    let status = until(&rotations, "the old CA to be dropped", |status| {
        status.rotation.is_none()
    })
    .await;
    assert_eq!(status.abandoned, ["demo-w-0"]);
    let error = connection.closed().await;
    assert_eq!(Close::of(&error), Some(Close::Unauthenticated));
}

/// Whether the director ends a connection before it welcomes the peer.
async fn refused(connected: Result<quinn::Connection, quinn::ConnectionError>) -> bool {
    match connected {
        Err(_) => true,
        Ok(connection) => {
            let closed = tokio::time::timeout(crate::world::PATIENCE, connection.closed());
            closed.await.is_ok()
        }
    }
}
