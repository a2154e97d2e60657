//! Updates outside of maintenance windows, and directors that die while they wait.

use windlass_common::clock::Clock;
use windlass_common::maintenance::{FreezeSpec, Moment};

use super::*;

/// 02:00 to 03:00 UTC, each day.
const WINDOW: &str = r#"{"windows": [{"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
    "start": "02:00", "durationMinutes": 60, "timeZone": "UTC"}]}"#;

fn at(text: &str) -> jiff::Timestamp {
    text.parse().unwrap()
}

impl Rig {
    /// A life by this clock, in which tasks go on.
    async fn by(&self, clock: &Clock) -> Director {
        let mut director = self.immortal().await;
        let (records, world) = (director.records.clone(), director.world.clone());
        director.rollouts = Rollouts::with_clock(records, world, clock.clone());
        director.rollouts.resume().await.unwrap();
        director
    }

    /// An update that waits, or would if it were not its window.
    async fn order_in_windows(&self) -> TaskId {
        let task = self.order_replacement().await;
        let director = self.immortal().await;
        let mut cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
        cluster.spec.maintenance = serde_json::from_str(WINDOW).unwrap();
        let mut commit = Commit::default();
        commit.put(&cluster).unwrap();
        director.records.commit(commit).await.unwrap();
        task
    }
}

/// Waits until a task is in this state.
async fn until(director: &Director, task: &TaskId, state: TaskState) -> Task {
    let found = async {
        loop {
            let found = director.records.task(task).await.unwrap().unwrap();
            if found.state == state {
                return found;
            }
            assert!(!found.state.is_over(), "{:?}", found.error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let limit = Duration::from_secs(3600);
    tokio::time::timeout(limit, found)
        .await
        .expect("in an hour")
}

#[tokio::test(start_paused = true)]
async fn an_update_waits_for_its_window_through_restarts_and_goes_on_by_itself() {
    let rig = Rig::new();
    let task = rig.order_in_windows().await;
    let clock = Clock::by_hand(at("2030-01-01T12:00:00Z"));
    let director = rig.by(&clock).await;
    let waiting = until(&director, &task, TaskState::Waiting).await;
    assert_eq!(
        waiting.held.as_deref(),
        Some("opens at 2030-01-02T02:00:00.000Z: no maintenance window is open")
    );
    let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
    assert!(cluster.message.unwrap().contains("2030-01-02T02:00"));
    director.rollouts.abandon();
    // Another director waits on.
    let director = rig.by(&clock).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let still = director.records.task(&task).await.unwrap().unwrap();
    assert_eq!(
        (still.state, &still.steps),
        (TaskState::Waiting, &waiting.steps)
    );
    clock.set(at("2030-01-02T02:00:00Z"));
    let over = until(&director, &task, TaskState::Succeeded).await;
    assert_eq!((over.held, over.ignore_window), (None, None));
    let cluster: Cluster = director.records.get("demo").await.unwrap().unwrap();
    assert_eq!(
        (cluster.phase, cluster.message),
        (ClusterPhase::Ready, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_window_that_closes_finds_the_machine_finished_that_was_begun_with() {
    let rig = Rig::new();
    let task = rig.order_in_windows().await;
    rig.sim.state.lock().unwrap().stuck = ["demo-".to_owned()].into();
    let clock = Clock::by_hand(at("2030-01-02T02:59:00Z"));
    let director = rig.by(&clock).await;
    // A machine is taken, and the window closes.
    let drains = async {
        loop {
            let found = director.records.task(&task).await.unwrap().unwrap();
            let mut steps = found.steps.iter();
            if steps
                .any(|(key, step)| key.0.ends_with("/drain") && step.state == StepState::Running)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    drains.await;
    clock.set(at("2030-01-02T03:00:00Z"));
    rig.sim.state.lock().unwrap().stuck.clear();
    let waiting = until(&director, &task, TaskState::Waiting).await;
    let (done, all) = waiting.progress();
    assert!(done > 0 && done < all, "{done} of {all}");
    rig.assert_whole("the window has closed").await;
    // Paused by an operator it stays, whatever the window says.
    director.rollouts.pause(&task, true);
    until(&director, &task, TaskState::Paused).await;
    clock.set(at("2030-01-03T02:00:00Z"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    until(&director, &task, TaskState::Paused).await;
    director.rollouts.pause(&task, false);
    until(&director, &task, TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_has_an_update_go_on_outside_of_its_window() {
    let rig = Rig::new();
    let task = rig.order_in_windows().await;
    let clock = Clock::by_hand(at("2030-01-01T12:00:00Z"));
    let director = rig.by(&clock).await;
    until(&director, &task, TaskState::Waiting).await;
    assert!(director.rollouts.ignore_window(&task, "incident 7".into()));
    let over = until(&director, &task, TaskState::Succeeded).await;
    assert_eq!(over.ignore_window.as_deref(), Some("incident 7"));
}

#[tokio::test(start_paused = true)]
async fn a_freeze_of_the_director_holds_what_runs_and_its_end_lets_it_go_on() {
    let rig = Rig::new();
    let task = rig.order_in_windows().await;
    // The window of the cluster is open.
    let clock = Clock::by_hand(at("2030-01-02T02:30:00Z"));
    let director = rig.by(&clock).await;
    let freeze = FreezeSpec {
        from: Moment(at("2030-01-02T00:00:00Z")),
        to: Moment(at("2030-01-02T02:45:00Z")),
        reason: "all clusters (move): the data centre moves".to_owned(),
    };
    director.rollouts.freeze(vec![freeze]);
    let waiting = until(&director, &task, TaskState::Waiting).await;
    assert_eq!(
        waiting.held.as_deref(),
        Some(
            "opens at 2030-01-02T02:45:00.000Z: frozen until 2030-01-02T02:45:00Z: all clusters (move): the data \
             centre moves"
        )
    );
    director.rollouts.freeze(Vec::new());
    until(&director, &task, TaskState::Succeeded).await;
}
