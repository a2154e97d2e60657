//! Freezes of a director, from the order to what a cluster shows.

use windlass_common::id::FreezeName;

use super::repair::tests::{demo, impatient};
use super::tests::{Rig, ann, spec};
use super::{ChangeOrder, FreezeOrder, PlanRequest, ServiceError, StemcellChoice};
use crate::config::Forensics;
use crate::model::{AuditFilter, Caller, Role, TaskState, Timestamp};

fn order(from: Option<u64>, to: u64) -> FreezeOrder {
    let at = |seconds: u64| Timestamp::from_unix_ms(Timestamp::now().unix_ms() + seconds * 1000);
    FreezeOrder {
        from: from.map(at),
        to: at(to),
        reason: "year-end".to_owned(),
    }
}

fn called(text: &str) -> FreezeName {
    FreezeName::new(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_is_changed_while_its_director_is_frozen() {
    let rig = Rig::new().await;
    let director = impatient(&rig, Forensics::default()).await;
    let viewer = Caller {
        role: Role::Operator,
        ..ann()
    };
    let refused = director
        .freeze(&called("a"), order(None, 60), &viewer)
        .await;
    assert!(
        matches!(refused, Err(ServiceError::Forbidden { .. })),
        "{refused:?}"
    );
    for (from, to) in [(None, 0), (Some(100), 100), (Some(200), 100)] {
        let refused = director.freeze(&called("a"), order(from, to), &ann()).await;
        assert!(
            matches!(refused, Err(ServiceError::Invalid { .. })),
            "{refused:?}"
        );
    }
    let later = director
        .freeze(&called("later"), order(Some(7200), 9000), &ann())
        .await;
    let later = later.unwrap();
    director
        .freeze(&called("now"), order(None, 60), &ann())
        .await
        .unwrap();
    let longer = director
        .freeze(&called("now"), order(None, 3600), &ann())
        .await;
    let longer = longer.unwrap();
    assert_eq!(director.freezes().await.unwrap(), [longer.clone(), later]);

    let mut wanted = spec("demo");
    for pool in wanted.pools.values_mut() {
        pool.count = 3;
    }
    let request = PlanRequest::Apply(wanted.clone(), StemcellChoice::Keep);
    let window = director
        .plan_cluster(request)
        .await
        .unwrap()
        .window
        .unwrap();
    assert_eq!((window.open, window.until), (false, Some(longer.to)));
    let task = director
        .apply_cluster(wanted, &ChangeOrder::default(), &ann())
        .await;
    let task = task.unwrap().id;
    let state = async |state: TaskState| {
        while director.task(&task).await.unwrap().state != state {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, state(TaskState::Waiting))
        .await
        .expect("in time");
    let shown = director.overview().await.unwrap();
    let window = shown[0].window.as_ref().unwrap();
    assert!(
        window
            .why
            .as_ref()
            .unwrap()
            .contains("all clusters (now): year-end"),
        "{window:?}"
    );

    director.thaw(&called("now"), &ann()).await.unwrap();
    tokio::time::timeout(limit, state(TaskState::Succeeded))
        .await
        .expect("in time");
    let again = director.thaw(&called("now"), &ann()).await;
    assert!(
        matches!(again, Err(ServiceError::NotFound { .. })),
        "{again:?}"
    );
    let log = director.audit(200, &AuditFilter::default()).await.unwrap();
    let count = |action: &str| log.iter().filter(|entry| entry.action == action).count();
    assert_eq!((count("director.freeze"), count("director.thaw")), (3, 1));
    assert_eq!(director.cluster(&demo()).await.unwrap().spec.pools.len(), 1);
    director.shutdown().await;
}
