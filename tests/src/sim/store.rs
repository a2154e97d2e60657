//! The store: kept in the world, with a point at which the director may die before and after each commit.

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;
use windlass_director::model::{Machine, Revision, StepRecord, StepState, Task};
use windlass_director::store::{
    Change, Entry, Expect, Kind, Store, StoreError, StoreFuture, Write,
};

use super::coverage::{self, Fault, Place, Point};
use super::life::Life;
use super::mutation::Mutation;
use super::state::State;

impl State {
    /// Entries of a kind whose names begin so.
    pub fn entries_of(&self, kind: Kind, prefix: &str) -> Vec<Entry> {
        self.entries
            .range((kind, prefix.to_owned())..)
            .take_while(|((k, name), _)| *k == kind && name.starts_with(prefix))
            .map(|((_, name), (revision, body))| Entry {
                name: name.clone(),
                revision: *revision,
                body: body.clone(),
            })
            .collect()
    }

    /// Makes all writes or none.
    pub fn commit(&mut self, writes: &[Write]) -> Result<Revision, StoreError> {
        for write in writes {
            let found = self.entries.get(&(write.kind, write.name.clone()));
            let meets = match write.expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::At(revision) => found.is_some_and(|(at, _)| *at == revision),
            };
            if !meets {
                return Err(StoreError::Conflict {
                    kind: write.kind,
                    name: write.name.clone(),
                    expected: write.expect,
                });
            }
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        for write in writes {
            let key = (write.kind, write.name.clone());
            match &write.body {
                Some(body) => self.entries.insert(key, (revision, body.clone())),
                None => self.entries.remove(&key),
            };
        }
        self.learn(writes);
        Ok(revision)
    }

    /// Notes which steps a task may have, and what the records now say.
    fn learn(&mut self, writes: &[Write]) {
        for write in writes {
            let Some(body) = &write.body else { continue };
            match write.kind {
                Kind::Task => {
                    let Ok(task) = serde_json::from_slice::<Task>(body) else {
                        continue;
                    };
                    let plans = [Some(&task.plan), task.again.as_ref(), task.cleanup.as_ref()];
                    for step in plans.into_iter().flatten().flat_map(|plan| &plan.steps) {
                        let key = format!("{}/{}", task.id, step.key);
                        let (name, place, _) = *coverage::kind(&step.action);
                        if name != step.action.name() || matches!(place, Place::Elsewhere(_)) {
                            let what = step.action.name();
                            self.violated(6, format!("no fault strikes {what}, which is planned"));
                        }
                        self.actions.insert(key, name);
                    }
                    self.tell(format!("{} is {}", task.id, task.state));
                }
                Kind::Machine => self.learn_fenced(body),
                Kind::Step => {
                    let Ok(record) = serde_json::from_slice::<StepRecord>(body) else {
                        continue;
                    };
                    if record.state == StepState::Running {
                        self.running.insert(write.name.clone(), record.attempts);
                    } else {
                        self.running.remove(&write.name);
                    }
                    let why = record.error.map(|error| error.message);
                    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                    self.tell(format!(
                        "{} {:?} attempt {}{why}",
                        write.name, record.state, record.attempts
                    ));
                    let ready = self.actions.get(&write.name) == Some(&"await-node");
                    if ready
                        && record.state == StepState::Succeeded
                        && let Some(machine) = write.name.split('/').rev().nth(1)
                        && let Ok(machine) = windlass_common::id::MachineName::new(machine)
                    {
                        self.said_ready(&machine);
                    }
                }
                _ => {}
            }
        }
    }

    /// Notes that a machine is shut out from now on.
    fn learn_fenced(&mut self, body: &[u8]) {
        // Most records say nothing of it, and are not worth reading.
        let says = std::str::from_utf8(body).is_ok_and(|text| text.contains("\"fenced\":true"));
        let record = says.then(|| serde_json::from_slice::<Machine>(body));
        if let Some(Ok(machine)) = record
            && self
                .shut_out
                .insert((machine.name.clone(), machine.incarnation))
        {
            self.fencing(&machine.name);
        }
    }

    /// The steps that writes are about, and whether each begins.
    fn steps_in(&self, writes: &[Write]) -> Vec<(&'static str, bool)> {
        let steps = writes.iter().filter(|write| write.kind == Kind::Step);
        steps
            .filter_map(|write| {
                let record: StepRecord = serde_json::from_slice(write.body.as_ref()?).ok()?;
                let action = self.actions.get(&write.name)?;
                Some((*action, record.state == StepState::Running))
            })
            .collect()
    }
}

/// Whether the store refuses; and whether the director dies here.
fn strike(state: &mut State, steps: &[(&'static str, bool)], before: bool) -> Option<Fault> {
    let faults: &[Fault] = if before {
        &[Fault::DirectorDies, Fault::StoreRefuses]
    } else {
        &[Fault::DirectorDies]
    };
    let mut struck = None;
    for (step, begins) in steps {
        let point = match (before, begins) {
            (true, true) => Point::BeforeIntent,
            (false, true) => Point::AfterIntent,
            (true, false) => Point::BeforeEnd,
            (false, false) => Point::AfterEnd,
        };
        match struck {
            None => struck = state.strike(step, point, faults),
            Some(fault) => state.coverage.note(step, fault, point),
        }
    }
    struck
}

impl Store for Life {
    fn get<'a>(&'a self, kind: Kind, name: &'a str) -> StoreFuture<'a, Option<Entry>> {
        let state = self.site.lock();
        let found = state.entries.get(&(kind, name.to_owned()));
        let found = found.map(|(revision, body)| Entry {
            name: name.to_owned(),
            revision: *revision,
            body: body.clone(),
        });
        Box::pin(async { Ok(found) })
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        let found = self.site.lock().entries_of(kind, prefix);
        Box::pin(async { Ok(found) })
    }

    fn newest(&self, kind: Kind, limit: u32) -> StoreFuture<'_, Vec<Entry>> {
        let mut found = self.site.lock().entries_of(kind, "");
        found.reverse();
        found.truncate(limit as usize);
        Box::pin(async { Ok(found) })
    }

    fn commit(&self, writes: Vec<Write>) -> StoreFuture<'_, Revision> {
        Box::pin(self.write(writes))
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }
}

impl Life {
    fn write(&self, writes: Vec<Write>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            if !self.faulty {
                return self.site.lock().commit(&writes);
            }
            self.alive().await;
            let mut steps = self.site.lock().steps_in(&writes);
            if writes.iter().any(|write| write.kind == Kind::Task) {
                steps.push(("task", false));
            }
            if steps.is_empty() {
                self.point(Point::BeforeEffect).await;
            }
            self.site.pause(0..=4).await;
            self.alive().await;
            let struck = strike(&mut self.site.lock(), &steps, true);
            match struck {
                Some(Fault::DirectorDies) => self.die().await,
                Some(_) => {
                    let mut state = self.site.lock();
                    let ms = state.dice.within(1_000..=90_000);
                    state.store_refuses_until = state.now + ms;
                }
                None => {}
            }
            let result = {
                let mut state = self.site.lock();
                if state.store_refuses_until > state.now {
                    Err(refused(&writes))
                } else if state.mutation == Some(Mutation::StoreLies) && steps.iter().any(|s| s.1) {
                    Ok(Revision(state.revision)) // never written
                } else {
                    state.commit(&writes)
                }
            };
            if result.is_ok() && strike(&mut self.site.lock(), &steps, false).is_some() {
                self.die().await;
            }
            result
        })
    }
}

fn refused(writes: &[Write]) -> StoreError {
    StoreError::Damaged {
        kind: writes.first().map_or(Kind::Meta, |write| write.kind),
        name: "(disk)".into(),
        source: "no space left on device".into(),
    }
}
