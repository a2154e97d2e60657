//! `service`: units started, stopped, restarted, enabled and disabled.
//!
//! # Invariants
//! * A unit that is as desired is left alone; a running one is restarted only when it was started for
//!   another configuration than the one named.
//! * The configuration is remembered when systemd has queued the start with it, and forgotten when
//!   the start fails. A crash in between restarts the unit once more; it never leaves one running with
//!   an old configuration.

use windlass_common::error::ErrorClass;
use windlass_common::id::Digest;
use windlass_common::step::{Payload, Service, UnitGoal, UnitState};

use super::{Context, Failure, Run, lock};
use crate::history::UnitMemory;
use crate::units::{BootState, Job, UnitError, UnitStatus};

/// What is seen of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    status: UnitStatus,
    boot: BootState,
    memory: UnitMemory,
}

/// What has to be done about a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Change {
    boot: Option<bool>,
    reset_failed: bool,
    job: Option<Job>,
}

pub(super) async fn run(
    context: &Context,
    run: &Run,
    service: &Service,
) -> Result<Payload, Failure> {
    reload_if_needed(context, service).await?;
    for goal in &service.units {
        run.stage(format!("{} to be {}", goal.unit, word(goal.state)));
        watch(context, goal);
        let seen = observe(context, &goal.unit).await?;
        let change = plan(goal, &seen)?;
        apply(context, run, goal, change).await?;
        if goal.wait {
            confirm(context, goal).await?;
        }
    }
    Ok(Payload::None)
}

/// The unit is watched from before its start on, so that its way up is reported.
fn watch(context: &Context, goal: &UnitGoal) {
    let active = goal.state == UnitState::Active;
    context
        .watched
        .send_if_modified(|watched| watched.insert(goal.unit.clone(), active) != Some(active));
}

/// Units whose files were written since systemd read them are read again, once for all.
async fn reload_if_needed(context: &Context, service: &Service) -> Result<(), Failure> {
    for goal in &service.units {
        let missing = context.units.state(&goal.unit).await?.load_state == "not-found";
        if missing || context.units.needs_reload(&goal.unit).await? {
            return Ok(context.units.reload().await?);
        }
    }
    Ok(())
}

async fn observe(context: &Context, unit: &str) -> Result<Seen, Failure> {
    let status = context.units.state(unit).await?;
    if status.load_state == "not-found" {
        let unit = unit.to_owned();
        return Err(UnitError::Missing { unit }.into());
    }
    let boot = context.units.boot_state(unit).await?;
    let memory = lock(&context.history).unit(unit).unwrap_or_default();
    Ok(Seen {
        status,
        boot,
        memory,
    })
}

/// Pure: what differs.
fn plan(goal: &UnitGoal, seen: &Seen) -> Result<Change, Failure> {
    let boot = match (goal.enabled, seen.boot) {
        (true, BootState::Disabled) => Some(true),
        (false, BootState::Enabled) => Some(false),
        (true, BootState::Enabled) | (false, BootState::Disabled) | (_, BootState::Fixed) => None,
    };
    let load = seen.status.load_state.as_str();
    if goal.state == UnitState::Active && load != "loaded" {
        let message = format!("{} is {load}; its files have to be put right", goal.unit);
        return Err(Failure::new(ErrorClass::Operator, message));
    }
    let other_configuration =
        goal.configuration.is_some() && seen.memory.configuration != goal.configuration;
    let job = match (goal.state, seen.status.active_state.as_str()) {
        (UnitState::Active, "active" | "reloading" | "activating") if other_configuration => {
            Some(Job::Restart)
        }
        (UnitState::Active, "active" | "reloading") => None,
        // Joins the start that is under way.
        (UnitState::Active, _) => Some(Job::Start),
        (UnitState::Inactive, "inactive" | "failed") => None,
        (UnitState::Inactive, _) => Some(Job::Stop),
    };
    Ok(Change {
        boot,
        reset_failed: seen.status.active_state == "failed",
        job,
    })
}

async fn apply(
    context: &Context,
    run: &Run,
    goal: &UnitGoal,
    change: Change,
) -> Result<(), Failure> {
    let (units, unit) = (&context.units, goal.unit.as_str());
    if let Some(enabled) = change.boot {
        units.set_boot_state(unit, enabled).await?;
        let word = if enabled { "enabled" } else { "disabled" };
        run.changed(format!("{unit}: {word} at boot"));
    }
    if change.reset_failed {
        units.reset_failed(unit).await?;
    }
    let Some(job) = change.job else {
        return remember(context, run, goal, goal.configuration).await;
    };
    let queued = units.queue(job, unit).await?;
    // Before the wait: a unit that takes longer to start than this step may take is joined, not
    // restarted, when the step comes again.
    remember(context, run, goal, goal.configuration).await?;
    if goal.wait
        && let Err(error) = queued.done().await
    {
        remember(context, run, goal, None).await?;
        return Err(error.into());
    }
    {
        let word = match job {
            Job::Start => "started",
            Job::Stop => "stopped",
            Job::Restart => "restarted for another configuration",
        };
        run.changed(format!("{unit}: {word}"));
    }
    Ok(())
}

/// Looks again: a `Type=simple` unit counts as started even when it dies at once.
async fn confirm(context: &Context, goal: &UnitGoal) -> Result<(), Failure> {
    let status = context.units.state(&goal.unit).await?;
    let reached = match goal.state {
        UnitState::Active => matches!(status.active_state.as_str(), "active" | "reloading"),
        UnitState::Inactive => matches!(status.active_state.as_str(), "inactive" | "failed"),
    };
    if reached {
        return Ok(());
    }
    let message = format!(
        "{} was {} and is {} ({}) right after; its log says why",
        goal.unit,
        word(goal.state),
        status.active_state,
        status.sub_state
    );
    Err(Failure::new(ErrorClass::Retry, message))
}

/// Remembers what the unit is asked to be, and for an active one the configuration it was started with.
async fn remember(
    context: &Context,
    run: &Run,
    goal: &UnitGoal,
    configuration: Option<Digest>,
) -> Result<(), Failure> {
    let history = context.history.clone();
    let unit = goal.unit.clone();
    let active = goal.state == UnitState::Active;
    let named = goal.configuration.is_some();
    run.blocking(move || {
        let mut history = lock(&history);
        let old = history.unit(&unit).unwrap_or_default().configuration;
        let memory = UnitMemory {
            // A goal without configuration says nothing about it, and stopping changes nothing.
            configuration: if active && named { configuration } else { old },
            active,
        };
        Ok(history.remember_unit(&unit, memory)?)
    })
    .await
}

fn word(state: UnitState) -> &'static str {
    match state {
        UnitState::Active => "started",
        UnitState::Inactive => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_touched_only_where_it_differs() {
        let (old, new) = (Some(Digest::of(b"old")), Some(Digest::of(b"new")));
        let active = UnitState::Active;
        let inactive = UnitState::Inactive;
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            // goal, its configuration, state seen, configuration remembered, job
            (active, None, "active", old, None),
            (active, old, "active", old, None),
            (active, new, "active", old, Some(Job::Restart)),
            (active, new, "active", None, Some(Job::Restart)),
            (active, new, "activating", old, Some(Job::Restart)),
            (active, old, "activating", old, Some(Job::Start)),
            (active, new, "inactive", old, Some(Job::Start)),
            (active, None, "failed", None, Some(Job::Start)),
            (active, None, "deactivating", None, Some(Job::Start)),
            (inactive, None, "active", old, Some(Job::Stop)),
            (inactive, new, "active", old, Some(Job::Stop)),
            (inactive, None, "activating", None, Some(Job::Stop)),
            (inactive, None, "inactive", old, None),
            (inactive, None, "failed", old, None),
        ];
        for (state, configuration, seen_state, remembered, want) in cases {
            let goal = goal(state, configuration);
            let change = plan(&goal, &seen(seen_state, remembered)).unwrap();
            assert_eq!(change.job, want, "{state:?} {seen_state}");
            assert_eq!(change.reset_failed, seen_state == "failed");
        }
    }

    fn goal(state: UnitState, configuration: Option<Digest>) -> UnitGoal {
        UnitGoal {
            unit: "a.service".to_owned(),
            state,
            enabled: true,
            configuration,
            wait: true,
        }
    }

    fn seen(active_state: &str, configuration: Option<Digest>) -> Seen {
        Seen {
            status: UnitStatus {
                load_state: "loaded".to_owned(),
                active_state: active_state.to_owned(),
                sub_state: String::new(),
            },
            boot: BootState::Enabled,
            memory: UnitMemory {
                configuration,
                active: true,
            },
        }
    }

    #[test]
    fn boot_states_change_only_where_the_unit_has_a_say() {
        for (enabled, boot, want) in [
            (true, BootState::Enabled, None),
            (true, BootState::Disabled, Some(true)),
            (true, BootState::Fixed, None),
            (false, BootState::Enabled, Some(false)),
            (false, BootState::Disabled, None),
            (false, BootState::Fixed, None),
        ] {
            let goal = UnitGoal {
                enabled,
                ..goal(UnitState::Active, None)
            };
            let seen = Seen {
                boot,
                ..seen("active", None)
            };
            assert_eq!(plan(&goal, &seen).unwrap().boot, want);
        }
    }

    #[test]
    fn a_masked_unit_is_not_started() {
        let mut masked = seen("inactive", None);
        masked.status.load_state = "masked".to_owned();
        assert!(plan(&goal(UnitState::Active, None), &masked).is_err());
        assert!(plan(&goal(UnitState::Inactive, None), &masked).is_ok());
    }
}
