//! Who may connect: a machine that was to go, and whose removal has failed, and one that is fenced.

use super::*;
use windlass_common::pki::MachineIdentity;

use crate::gateway::IncarnationRegistry;
use crate::rollout::EffectError;

impl Director {
    /// Tells a machine the routes of its cluster.
    async fn tell_routes(&self, task: &TaskId, machine: &Machine) -> Result<(), EffectError> {
        let key = StepKey(format!("machine/{}/add-routes", machine.name).into());
        let order = StepOrder {
            task: task.clone(),
            cluster: name(),
            key: key.clone(),
            action: Action::AddRoutes {
                machine: machine.name.clone(),
            },
            attempt: 1,
            limit: Duration::from_secs(60),
            progress: ProgressSink {
                events: tokio::sync::broadcast::channel(1).0,
                key,
            },
        };
        self.world.perform(order).await.map(drop)
    }

    fn lets_in(&self, machine: &Machine) -> bool {
        self.world.registry.is_current(&MachineIdentity {
            director: self.world.birth.director.clone(),
            cluster: name(),
            machine: machine.name.clone(),
            incarnation: machine.incarnation,
        })
    }
}

/// Seed 1287 of the simulation: it was to be deleted, its provider took too long, and the next order kept it.
#[tokio::test(start_paused = true)]
async fn what_is_told_anything_is_let_in_again_unless_it_is_fenced() {
    let rig = Rig::new();
    let create = rig.order_create().await;
    rig.run(&create, usize::MAX, Stop::No).await.unwrap();
    rig.sim.state.lock().unwrap().stored_elsewhere = true;
    let director = rig.immortal().await;
    let worker = MachineName::new("demo-w-0").unwrap();
    let mut worker: Machine = director
        .records
        .get(worker.as_str())
        .await
        .unwrap()
        .unwrap();

    director.world.registry.expel(&worker.name);
    assert!(!director.lets_in(&worker));
    director.tell_routes(&create, &worker).await.unwrap();
    assert!(director.lets_in(&worker));

    director.world.registry.expel(&worker.name);
    worker.fenced = true;
    let mut commit = Commit::default();
    commit.put(&worker).unwrap();
    director.records.commit(commit).await.unwrap();
    // What the simulated agents answer does not matter.
    let _ = director.tell_routes(&create, &worker).await;
    assert!(!director.lets_in(&worker));
}
