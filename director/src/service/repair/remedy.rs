//! Remedies: units through the agent, restarts through the provider; replacements, and restarts of what serves, as tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use windlass_common::error::ErrorChain;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::step::{Outcome, Service, Step, StepId, StepRequest, UnitGoal, UnitState};

use super::now_ms;
use super::replace::ReplaceOrder;
use super::sight::Sight;
use crate::gateway::unwatched;
use crate::health::{Mends, counting, failing_units, mends, of_session};
use crate::model::{Caller, Machine, Role, Task, Timestamp};
use crate::resurrector::{ACTOR, Begun, CaseRecord, Outlook, Rung};
use crate::service::draft::random_u32;
use crate::service::kept::KeepWish;
use crate::service::{Inner, ServiceError, ServiceResult};
use crate::store::{Commit, StoreError};

/// How long a machine whose user space still works gets to shut down before its power is cut.
const REBOOT_GRACE: Duration = Duration::from_secs(30);
/// How long the restart of units may take.
const UNITS_LIMIT: Duration = Duration::from_secs(120);
/// After a remedy could not be begun, it is not tried again for this long.
const AGAIN: Duration = Duration::from_secs(15);
/// The units of a node that run its pods, in the order in which they start.
const RUNTIME: [&str; 2] = ["containerd.service", "kubelet.service"];

/// What is to be done in one go.
pub(super) enum Order {
    /// To one machine, by its agent or the provider.
    One(MachineName, Rung),
    /// A restart by a task, after its pods have left it.
    InTurn(MachineName),
    /// Replacements in one cluster, by one task.
    Replace(ClusterName, BTreeSet<MachineName>),
}

/// What `outlooks` come to. What has to wait for something of the outside is said there instead.
pub(super) fn orders(
    outlooks: &mut BTreeMap<MachineName, Outlook>,
    sight: &Sight,
    director: &Inner,
    now: u64,
) -> Vec<Order> {
    let failed = director.repairs.board().failed.clone();
    let mut orders = Vec::new();
    let mut replaced: BTreeMap<ClusterName, BTreeSet<MachineName>> = BTreeMap::new();
    for (name, outlook) in outlooks {
        let Outlook::Act { rung } = *outlook else {
            continue;
        };
        let Some(machine) = sight.machine(name) else {
            continue;
        };
        if let Some((until_ms, why)) = failed.get(name).filter(|(until_ms, _)| *until_ms > now) {
            let why = format!("{rung} could not be begun: {why}");
            *outlook = Outlook::Wait {
                until_ms: *until_ms,
                why,
            };
            continue;
        }
        let in_turn = rung == Rung::Reboot
            && sight.leaves_in_turn(machine, || fails_to_run_pods(director, machine));
        if in_turn && let Some(task) = sight.closed(machine) {
            let why = format!("{task} works on its cluster; the restart follows it");
            *outlook = Outlook::Refused { rung, why };
            continue;
        }
        if rung != Rung::Replace {
            orders.push(match in_turn {
                true => Order::InTurn(name.clone()),
                false => Order::One(name.clone(), rung),
            });
            continue;
        }
        if let Some(task) = sight.tasks.get(&machine.cluster)
            && !sight.joins(machine)
        {
            let why = format!("{task} works on its cluster; the replacement follows it");
            *outlook = Outlook::Refused { rung, why };
            continue;
        }
        let of_cluster = replaced.entry(machine.cluster.clone()).or_default();
        of_cluster.insert(name.clone());
    }
    orders.extend(
        replaced
            .into_iter()
            .map(|(cluster, names)| Order::Replace(cluster, names)),
    );
    orders
}

/// Writes a remedy down and has it begin; what it comes to is seen by the next rounds.
pub(super) async fn carry_out(director: Arc<Inner>, sight: &Sight, order: Order, now: u64) {
    match order {
        Order::One(name, rung) => {
            let machine = sight.machine(&name).cloned();
            let record = machine
                .as_ref()
                .and_then(|machine| sight.case(machine).cloned());
            let (Some(machine), Some(record)) = (machine, record) else {
                return;
            };
            if let Err(error) = begin(&director, &machine, record, rung, now).await {
                failed(&director, &[name].into(), &error);
            }
        }
        Order::InTurn(name) => {
            let names = [name.clone()].into();
            place(director.clone(), names, async move {
                director.restart_in_turn(&name, &actor()).await
            });
        }
        Order::Replace(cluster, names) => {
            place(director.clone(), names.clone(), async move {
                let keep = director.repairs.config.forensics.keep;
                let order = ReplaceOrder {
                    accept_downtime: false,
                    keep: if keep { KeepWish::Policy } else { KeepWish::No },
                };
                director.replace(&cluster, &names, &order, &actor()).await
            });
        }
    }
}

/// Has an order about machines placed. Orders are placed one at a time, and some take long: the loop goes on meanwhile.
fn place(
    director: Arc<Inner>,
    names: BTreeSet<MachineName>,
    ordered: impl Future<Output = ServiceResult<Task>> + Send + 'static,
) {
    director
        .repairs
        .board()
        .acting
        .extend(names.iter().cloned());
    tokio::spawn(async move {
        if let Err(error) = ordered.await {
            failed(&director, &names, &error);
        }
        director
            .repairs
            .board()
            .acting
            .retain(|name| !names.contains(name));
        director.repairs.wake.notify_one();
    });
}

/// The resurrector as somebody who orders.
fn actor() -> Caller {
    Caller {
        operator: ACTOR.to_owned(),
        role: Role::Operator,
        request: String::new(),
    }
}

fn failed(director: &Inner, names: &BTreeSet<MachineName>, error: &ServiceError) {
    let why = ErrorChain(error).to_string();
    let until_ms = now_ms() + u64::try_from(AGAIN.as_millis()).unwrap_or(u64::MAX);
    let mut board = director.repairs.board();
    for name in names {
        tracing::warn!(machine = %name, error = %why, "a remedy cannot be begun");
        board.failed.insert(name.clone(), (until_ms, why.clone()));
    }
}

async fn begin(
    director: &Arc<Inner>,
    machine: &Machine,
    mut record: CaseRecord,
    rung: Rung,
    now: u64,
) -> ServiceResult<()> {
    let verdict = record.case.verdict;
    if rung == Rung::Reboot {
        let view = director.provider.machine(&machine.name).await;
        let boots = view.ok().flatten().map(|view| view.boots);
        record.begun = Some(Begun { rung, boots });
    }
    record.case.tried(rung, now);
    record.failure = None;
    let mut commit = Commit::default();
    commit.put(&record)?;
    let subject = format!("machine/{}", machine.name);
    let said = format!("{verdict}: {rung}");
    director
        .records
        .audit(&mut commit, ACTOR, "node.repair", &subject, &said);
    director.records.commit(commit).await?;
    tracing::info!(machine = %machine.name, %verdict, remedy = %rung, "a remedy begins");
    let director = Arc::clone(director);
    let machine = machine.clone();
    director.repairs.board().acting.insert(machine.name.clone());
    tokio::spawn(async move {
        let done = match rung {
            Rung::Units => restart(&director, &machine, &failing(&director, &machine)).await,
            Rung::Runtime => restart(&director, &machine, &RUNTIME.map(str::to_owned)).await,
            Rung::Reboot | Rung::Replace => reboot(&director, &machine, verdict.is_down()).await,
        };
        if let Err(why) = &done {
            tracing::warn!(machine = %machine.name, remedy = %rung, error = %why, "a remedy failed");
        }
        ended(&director, &machine.name, done.err()).await;
        director.repairs.board().acting.remove(&machine.name);
        director.repairs.wake.notify_one();
    });
    Ok(())
}

/// Goes on with restarts whose end was not seen.
pub(super) async fn take_up(director: Arc<Inner>) {
    let records: Vec<CaseRecord> = match director.records.list().await {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "cases cannot be read");
            return;
        }
    };
    for record in records {
        let Some(begun) = record.begun else { continue };
        let found = director
            .records
            .get::<Machine>(record.machine.as_str())
            .await;
        let view = director.provider.machine(&record.machine).await;
        let boots = view.ok().flatten().map(|view| view.boots);
        let machine = found
            .ok()
            .flatten()
            .filter(|m| m.incarnation == record.incarnation);
        let done = match machine {
            // It was replaced since, or was started since.
            None => Ok(()),
            Some(_) if boots > begun.boots => Ok(()),
            Some(machine) => reboot(&director, &machine, record.case.verdict.is_down()).await,
        };
        ended(&director, &record.machine, done.err()).await;
    }
}

/// Notes that a remedy is over, and why it failed.
async fn ended(director: &Inner, name: &MachineName, failure: Option<String>) {
    loop {
        let found = director.records.get::<CaseRecord>(name.as_str()).await;
        let Ok(Some(mut record)) = found else {
            return; // the machine is gone; or the store is, and the restart is looked at again later
        };
        record.begun = None;
        record.failure.clone_from(&failure);
        let mut commit = Commit::default();
        if commit.put(&record).is_err() {
            return;
        }
        match director.records.commit(commit).await {
            Err(StoreError::Conflict { .. }) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(machine = %name, error = %ErrorChain(&error), "the end of a remedy cannot be written");
                return;
            }
        }
    }
}

async fn reboot(director: &Inner, machine: &Machine, down: bool) -> Result<(), String> {
    let grace = if down { Duration::ZERO } else { REBOOT_GRACE };
    let done = director.provider.reboot_machine(&machine.name, grace).await;
    done.map(drop)
        .map_err(|error| ErrorChain(&error).to_string())
}

/// Whether what runs a machine's pods is known not to work: nobody would end them, and a drain would wait in vain.
pub(super) fn fails_to_run_pods(director: &Inner, machine: &Machine) -> bool {
    let failing = failing(director, machine);
    failing.iter().any(|unit| RUNTIME.contains(&unit.as_str()))
}

fn failing(director: &Inner, machine: &Machine) -> Vec<String> {
    let session = director.gateway.session(&machine.name, machine.incarnation);
    let Some(session) = session else {
        return Vec::new();
    };
    let report = session.report.as_ref();
    let mut units: Vec<String> = report
        .into_iter()
        .flat_map(|(_, report)| failing_units(report))
        .map(|(name, _)| name.clone())
        .collect();
    // Those that run and do not answer.
    for condition in counting(&of_session(&session, Timestamp::now())) {
        if let Mends::Unit(unit) = mends(&condition.name)
            && !units.iter().any(|name| name == unit)
        {
            units.push(unit.to_owned());
        }
    }
    units
}

/// Has the agent stop these units and start them again, the last one first.
async fn restart(director: &Inner, machine: &Machine, units: &[String]) -> Result<(), String> {
    if units.is_empty() {
        return Ok(());
    }
    let goal = |unit: &String, state| UnitGoal {
        unit: unit.clone(),
        state,
        enabled: true,
        configuration: None,
        wait: true,
    };
    let stops = units
        .iter()
        .rev()
        .map(|unit| goal(unit, UnitState::Inactive));
    let starts = units.iter().map(|unit| goal(unit, UnitState::Active));
    let random = random_u32().map_err(|error| error.to_string())?;
    let limit_ms = u64::try_from(UNITS_LIMIT.as_millis()).unwrap_or(u64::MAX);
    let request = StepRequest {
        id: StepId(format!("repair/{random:08x}")),
        epoch: director.epoch.get(),
        deadline_ms: limit_ms,
        step: Step::Service(Service {
            units: stops.chain(starts).collect(),
        }),
        labels: Default::default(),
    };
    // What it does is in the machine's journal.
    let agents = &director.world.agents;
    let result = agents
        .run_step(&machine.name, machine.incarnation, request, unwatched())
        .await
        .map_err(|error| ErrorChain(&error).to_string())?;
    match result.outcome {
        Outcome::Converged | Outcome::Changed => Ok(()),
        Outcome::Failed { message, .. }
        | Outcome::Unknown { message }
        | Outcome::Refused { message } => Err(message),
    }
}
