//! Maintenance windows: when they are, the clock that they go by, and whether they are kept.
//!
//! # Invariants
//! * Who judges counts the machines that were begun with by itself, from the steps that are carried out, and not by what
//!   a task remembers.
//! * A step that was decided on while the window was open may begin a while later: a store may refuse, and clocks jump.
//!
//! # Not here
//! Time zones and freezes (`director/src/maintenance`).

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};
use windlass_common::id::MachineName;
use windlass_common::maintenance::MaintenanceSpec;
use windlass_director::maintenance::{Outlook, outlook};
use windlass_director::model::Action;
use windlass_director::rollout::StepOrder;

use super::dice::Dice;
use super::state::{Site, State};

/// When the world begins, in seconds since 1970.
const BEGAN: i64 = 1_893_456_000;
/// How often its clock is moved.
const TICK: Duration = Duration::from_secs(20);
/// How long after it was decided a step may begin, milliseconds.
const LATE_MS: u64 = 1_800_000;

/// Windows that a cluster has, if it has any: four a day, with two hours or more between them.
pub fn throw(dice: &mut Dice) -> Value {
    if !dice.chance(300) {
        return json!({});
    }
    let (hour, minutes) = (dice.within(0..=5), dice.within(60..=240));
    let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let windows = (0..4).map(|quarter| {
        json!({
            "days": days,
            "start": format!("{:02}:00", hour + 6 * quarter),
            "durationMinutes": minutes,
            "timeZone": "Europe/Berlin",
        })
    });
    json!({"windows": windows.collect::<Vec<_>>()})
}

/// What a moment of the world is called by its clock.
pub fn moment(ms: u64) -> Timestamp {
    let since = i64::try_from(ms).unwrap_or(i64::MAX);
    let at = BEGAN.saturating_mul(1000).saturating_add(since);
    Timestamp::from_millisecond(at).unwrap_or(Timestamp::MAX)
}

impl Site {
    /// Moves the clock that directors go by, for ever.
    pub async fn tick(self) {
        loop {
            sleep(TICK).await;
            let now = self.lock().now;
            self.clock().set(moment(now));
        }
    }
}

impl State {
    /// A step is about to be carried out: outside of windows it may only go on with what was begun.
    pub fn begins_machine(&mut self, order: &StepOrder) {
        if !begins(&order.action) {
            return;
        }
        let Some(machine) = order.action.machine() else {
            return;
        };
        let Some(windows) = self.ordered.windows.clone() else {
            return;
        };
        if !self.ordered.begun.insert(machine.clone()) {
            return;
        }
        let open = |ms: u64| matches!(outlook(&windows, moment(ms)), Outlook::Open { .. });
        if !open(self.now) && !open(self.now.saturating_sub(LATE_MS)) {
            let problem = format!("{} begins outside of the window", order.key);
            self.violated(6, problem);
        }
    }

    /// Who has died is repaired at any time.
    pub fn repairs_at_once(&mut self, machines: impl Iterator<Item = MachineName>) {
        self.ordered.begun.extend(machines);
    }

    /// A task begins that keeps to these windows, or to none.
    pub fn keeps_to(&mut self, windows: Option<MaintenanceSpec>) {
        self.ordered.windows = windows.filter(|windows| !windows.is_empty());
        self.ordered.begun.clear();
    }
}

/// Whether a machine that was not begun with is changed by this.
fn begins(action: &Action) -> bool {
    matches!(
        action,
        Action::CreateMachine { .. }
            | Action::Configure { .. }
            | Action::StartComponents { .. }
            | Action::Drain { .. }
            | Action::LeaveEndpoint { .. }
            | Action::StopComponents { .. }
            | Action::Fence { .. }
            | Action::DeleteMachine { .. }
    )
}
