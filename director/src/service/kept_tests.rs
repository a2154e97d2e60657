//! Machines that are kept after their replacement, from the order to the end of what is kept.

use std::time::Duration;

use super::repair::tests::{impatient, lose, serves, worker};
use super::tests::{Rig, ann};
use super::{Director, KeptMachine, RecreateOrder, ServiceError};
use crate::config::Forensics;
use crate::model::{AuditFilter, Timestamp};
use crate::provider::Power;

fn keeping(reason: &str) -> RecreateOrder {
    RecreateOrder {
        accept_downtime: false,
        keep: Some(reason.to_owned()),
    }
}

async fn audited(director: &Director, action: &str) -> Vec<String> {
    let log = director.audit(200, &AuditFilter::default()).await.unwrap();
    let of = log.into_iter().filter(|entry| entry.action == action);
    of.map(|entry| format!("{}: {}", entry.actor, entry.detail))
        .collect()
}

fn only(mut kept: Vec<KeptMachine>) -> KeptMachine {
    assert_eq!(kept.len(), 1, "{kept:?}");
    kept.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_has_a_machine_kept_and_deletes_it_by_name() {
    let rig = Rig::new().await;
    let rules = Forensics {
        max_kept: 1,
        ..Forensics::default()
    };
    let director = impatient(&rig, rules).await;
    let order = keeping("it hangs");
    let task = director.recreate_node(&worker(), order, &ann()).await;
    let task = task.unwrap();
    let step = task
        .plan
        .steps
        .iter()
        .find(|s| s.key.0.ends_with("/delete"));
    let why = &step.unwrap().why;
    assert!(why.contains("is kept, off, as demo-w-0-i1-"), "{why}");
    serves(&director, 2).await;
    let kept = only(director.kept_machines().await.unwrap());
    assert_eq!((kept.machine.clone(), kept.incarnation.0), (worker(), 1));
    assert_eq!(
        (kept.operator.as_str(), kept.reason.as_str()),
        ("ann", "it hangs")
    );
    assert_eq!(kept.cluster.as_ref().unwrap().as_str(), "demo");
    let life_ms = kept.delete_at.unix_ms() - kept.kept_at.unix_ms();
    assert_eq!(life_ms, 7 * 24 * 3_600_000);
    {
        let state = rig.sim.state.lock().unwrap();
        let view = &state.machines[&worker()].view;
        assert_eq!((view.incarnation.0, view.power), (2, Power::Running));
        assert_eq!(state.machines.len(), 3, "it is no machine any more");
    }
    // The record of its successor says nothing of it.
    let record = director.machine(&worker()).await.unwrap().machine;
    assert_eq!(record.keep, None);

    // There is no room for another, and none is taken: neither by an order nor in the records.
    let refused = director.recreate_node(&worker(), keeping(""), &ann()).await;
    let refused = refused.unwrap_err().to_string();
    for part in [
        "cannot be kept",
        kept.name.as_str(),
        "kept_max",
        "node kept delete",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let record = director.machine(&worker()).await.unwrap().machine;
    assert_eq!((record.wanted, record.keep), (None, None));
    let plain = RecreateOrder::default();
    director
        .recreate_node(&worker(), plain, &ann())
        .await
        .unwrap();
    serves(&director, 3).await;
    assert_eq!(director.kept_machines().await.unwrap().len(), 1);

    director
        .delete_kept_machine(&kept.name, &ann())
        .await
        .unwrap();
    assert!(director.kept_machines().await.unwrap().is_empty());
    let again = director.delete_kept_machine(&kept.name, &ann()).await;
    assert!(
        matches!(again, Err(ServiceError::NotFound { .. })),
        "{again:?}"
    );
    let log = audited(&director, "machine.kept.delete").await;
    assert_eq!(log, [format!("ann: incarnation 1, kept as {}", kept.name)]);
    director.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_director_keeps_what_it_replaces_until_it_is_too_old() {
    let rig = Rig::new().await;
    let rules = Forensics {
        keep: true,
        max_kept: 1,
        max_age: Duration::from_secs(3600),
    };
    let director = impatient(&rig, rules).await;
    // Of one that is no more nothing can be kept, and that keeps nobody from replacing it.
    lose(&rig);
    serves(&director, 2).await;
    assert!(director.kept_machines().await.unwrap().is_empty());
    rig.sim.state.lock().unwrap().cut(&worker());
    serves(&director, 3).await;
    let kept = only(director.kept_machines().await.unwrap());
    assert_eq!(
        (kept.incarnation.0, kept.operator.as_str()),
        (2, "resurrector")
    );
    // There is no room for the next one, which is replaced nevertheless.
    director.release_node(&worker(), &ann()).await.unwrap();
    rig.sim.state.lock().unwrap().cut(&worker());
    serves(&director, 4).await;
    only(director.kept_machines().await.unwrap());

    let end = kept.delete_at.unix_ms();
    let young = Timestamp::from_unix_ms(end - 1);
    director.inner.delete_old_kept(young).await.unwrap();
    only(director.kept_machines().await.unwrap());
    let old = Timestamp::from_unix_ms(end);
    director.inner.delete_old_kept(old).await.unwrap();
    assert!(director.kept_machines().await.unwrap().is_empty());
    let log = audited(&director, "machine.kept.delete").await;
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].starts_with("director: incarnation 2"), "{log:?}");
    director.shutdown().await;
}
