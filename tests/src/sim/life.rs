//! One life of a director: everything it reaches goes through here, until it dies.
//!
//! From then on nothing that this life has begun goes on; what it has sent may still arrive.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast, watch};
use windlass_director::model::{Action, Plan, Task, TaskKind};
use windlass_director::rollout::world::{Registry, World};
use windlass_director::rollout::{Done, EffectError, Effects, Rollback, StepOrder};
use windlass_director::store::Change;

use super::coverage::{Fault, Point};
use super::fixtures::Fixtures;
use super::link::{self, Sent};
use super::state::Site;

/// When a request arrives that its sender sends after it was taken for dead, milliseconds after its death.
const LATE_MS: std::ops::RangeInclusive<u64> = 1_000..=300_000;

/// Changes of the store that wait for who watches; nobody does.
const CHANGES: usize = 16;

tokio::task_local! {
    static ACTION: &'static str;
}

/// One life.
pub struct Life {
    /// The world it acts on.
    pub site: Site,
    /// What every seed uses.
    pub fixtures: Arc<Fixtures>,
    /// Its epoch, once it has one.
    pub epoch: OnceLock<u64>,
    /// Which incarnations it lets in.
    pub registry: OnceLock<Arc<Registry>>,
    /// Changes of its store.
    pub changes: broadcast::Sender<Change>,
    /// Whether anything goes wrong in it.
    pub faulty: bool,
    /// Requests to agents that are on their way or waited for, by id.
    underway: Mutex<BTreeMap<String, Sent>>,
    dead: watch::Sender<bool>,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Life({:?})", self.epoch)
    }
}

/// The kind of the step that this is done for.
pub fn action() -> &'static str {
    ACTION.try_with(|action| *action).unwrap_or("-")
}

/// Does this as a step of that kind.
pub async fn doing<T>(kind: &'static str, what: impl Future<Output = T>) -> T {
    ACTION.scope(kind, what).await
}

impl Life {
    /// A life that begins.
    pub fn new(site: &Site, fixtures: &Arc<Fixtures>, faulty: bool) -> Arc<Self> {
        Arc::new(Self {
            site: site.clone(),
            fixtures: Arc::clone(fixtures),
            epoch: OnceLock::new(),
            registry: OnceLock::new(),
            changes: broadcast::channel(CHANGES).0,
            faulty,
            underway: Mutex::default(),
            dead: watch::Sender::new(false),
        })
    }

    /// Returns when this life is over.
    pub async fn death(&self) {
        let mut dead = self.dead.subscribe();
        // The sender is kept here.
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// Whether it is over.
    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Ends it. Some directors that are taken for dead only stand still: what they were sending they send when
    /// others may have taken over.
    pub fn kill(&self) {
        if self.dead.send_replace(true) {
            return;
        }
        let underway = std::mem::take(&mut *self.underway());
        for sent in underway.into_values() {
            let late = {
                let mut state = self.site.lock();
                let late = state.faults.on && state.dice.chance(500);
                late.then(|| {
                    let (fault, point) = (Fault::FormerLife, Point::BeforeEffect);
                    state.coverage.note(sent.action, fault, point);
                    state.tell(format!("FAULT {fault:?} {point:?} {}", sent.action));
                    state.dice.within(LATE_MS)
                })
            };
            if let Some(ms) = late {
                link::post(&self.site, &self.fixtures, sent, ms);
            }
        }
    }

    fn underway(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Sent>> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is on its way, until [`Life::arrived`].
    pub fn sends(&self, sent: &Sent) {
        self.underway()
            .insert(sent.request.id.0.clone(), sent.clone());
    }

    /// It is not waited for any more.
    pub fn arrived(&self, id: &str) {
        self.underway().remove(id);
    }

    /// Ends it; nothing comes after.
    pub async fn die(&self) {
        self.kill();
        self.alive().await;
    }

    /// Never returns once this life is over.
    pub async fn alive(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// A point of an effect at which the director may die.
    pub async fn point(&self, point: Point) {
        self.alive().await;
        let strike = {
            let mut state = self.site.lock();
            state.strike(action(), point, &[Fault::DirectorDies])
        };
        if strike.is_some() {
            self.die().await;
        }
    }

    /// Whether one of these strikes what is being done.
    pub fn strike(&self, point: Point, of: &[Fault]) -> Option<Fault> {
        self.site.lock().strike(action(), point, of)
    }
}

/// The real effects, with the kind of each step known to what they reach.
#[derive(Debug)]
pub struct Watched {
    /// The real ones.
    pub world: Arc<World>,
    /// The life they are of.
    pub life: Arc<Life>,
}

impl Effects for Watched {
    fn perform(&self, order: StepOrder) -> BoxFuture<'_, Result<Done, EffectError>> {
        Box::pin(async move {
            let name = order.action.name();
            self.life.site.lock().begins_machine(&order);
            let done = ACTION.scope(name, self.world.perform(order)).await;
            if let Err(error) = &done {
                self.life
                    .site
                    .lock()
                    .search("an error", &format!("{error:?}"));
            }
            done
        })
    }

    fn plan_cleanup<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Plan, EffectError>> {
        Box::pin(async move {
            let mut plan = self.world.plan_cleanup(task).await?;
            let mut state = self.life.site.lock();
            // The way back waits for nothing.
            state.keeps_to(None);
            if task.kind == TaskKind::CreateCluster {
                // The cancel is the order: it names what the create has made.
                let made = state.disks.keys().cloned().collect::<Vec<_>>();
                state.ordered.disks_named.extend(made);
                state.ordered.going = true;
            }
            if let Some(mutation) = state.mutation {
                mutation.spoil(&mut plan);
            }
            Ok(plan)
        })
    }

    fn fits<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<bool, EffectError>> {
        self.world.fits(task)
    }

    fn plan_again<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Plan, EffectError>> {
        Box::pin(async move {
            let mut plan = self.world.plan_again(task).await?;
            let mut state = self.life.site.lock();
            state.tell(format!(
                "{} is planned anew: {} steps",
                task.id,
                plan.steps.len()
            ));
            let fenced = plan.steps.iter().filter_map(|step| match &step.action {
                Action::Fence { machine, .. } => Some(machine.clone()),
                _ => None,
            });
            state.repairs_at_once(fenced);
            if let Some(mutation) = state.mutation {
                mutation.spoil(&mut plan);
            }
            Ok(plan)
        })
    }

    fn plan_next<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Option<Plan>, EffectError>> {
        Box::pin(async move {
            let next = self.world.plan_next(task).await?;
            if next.is_some() {
                // Each of its machines is begun with anew.
                self.life.site.lock().ordered.begun.clear();
            }
            Ok(next)
        })
    }

    fn plan_rollback<'a>(&'a self, task: &'a Task) -> BoxFuture<'a, Result<Rollback, EffectError>> {
        self.life.site.lock().keeps_to(None);
        self.world.plan_rollback(task)
    }
}
