//! The section `[resurrector]`: how patient repairs are and what they may do.

use std::time::Duration;

use serde_json::Value;

use super::{Forensics, ResurrectorConfig};
use crate::resurrector::{GuardPolicy, LadderPolicy, Mode, Policy};
use crate::spec::{Faults, Fields, shown};

/// Seconds of a pause or a patience: up to a day.
const SECONDS: std::ops::RangeInclusive<u32> = 0..=86_400;
/// Machines of a pool or a cluster.
const MACHINES: std::ops::RangeInclusive<u32> = 1..=10_000;
/// Machines that are kept: each may be as large as its root disk.
const KEPT: std::ops::RangeInclusive<u32> = 0..=100;
/// Hours that one is kept: up to a quarter of a year.
const KEPT_HOURS: std::ops::RangeInclusive<u32> = 1..=2_160;
const PERCENT: std::ops::RangeInclusive<u32> = 1..=100;

pub(super) fn read(value: &Value, faults: &mut Faults) -> Option<ResurrectorConfig> {
    let mut fields = Fields::open(value, "resurrector", faults)?;
    let allowed = "on, observe or off";
    let mode = fields.optional(
        "mode",
        Mode::default(),
        allowed,
        faults,
        |text| match text {
            "on" => Some(Mode::On),
            "observe" => Some(Mode::Observe),
            "off" => Some(Mode::Off),
            _ => None,
        },
    );
    let (ladder, guard) = (LadderPolicy::default(), GuardPolicy::default());
    let mut seconds = |key, default_ms: u64| {
        let default = u32::try_from(default_ms / 1000).unwrap_or(u32::MAX);
        let seconds = fields.number(key, default, &SECONDS, "seconds", faults)?;
        Some(u64::from(seconds) * 1000)
    };
    let watch_first = seconds("watch_first_s", guard.watch_first_ms);
    let poison = seconds("poison_s", guard.poison_ms);
    let degraded = seconds("degraded_s", ladder.degraded_ms);
    let agent_lost = seconds("agent_lost_s", ladder.agent_lost_ms);
    let hung = seconds("hung_s", ladder.hung_ms);
    let settle = seconds("settle_s", ladder.settle_ms);
    let reboot = seconds("reboot_s", ladder.reboot_ms);
    let replace_first = seconds("replace_first_s", ladder.replace_first_ms);
    let replace_cap = seconds("replace_cap_s", ladder.replace_cap_ms);
    let forget = seconds("forget_s", ladder.forget_ms);
    let mut number = |key, default, range, unit| fields.number(key, default, range, unit, faults);
    let storm_percent = number("storm_percent", guard.storm_percent, &PERCENT, "percent");
    let storm_min = number("storm_min", guard.storm_min, &MACHINES, "machines");
    let unavailable = guard.pool_max_unavailable;
    let unavailable = number("pool_max_unavailable", unavailable, &MACHINES, "machines");
    let poison_after = number("poison_after", guard.poison_after, &MACHINES, "machines");
    let forensics = Forensics::default();
    let key = "keep_for_forensics";
    let keep = match fields.take(key) {
        None => Some(forensics.keep),
        Some(value) => {
            let keep = value.as_bool();
            if keep.is_none() {
                faults.add(fields.path(key), shown(value), "true or false");
            }
            keep
        }
    };
    let kept_max = fields.number("kept_max", forensics.max_kept, &KEPT, "machines", faults);
    let hours = u32::try_from(forensics.max_age.as_secs() / 3600).unwrap_or(u32::MAX);
    let kept_hours = fields.number("kept_hours", hours, &KEPT_HOURS, "hours", faults);
    fields.close(faults);
    Some(ResurrectorConfig {
        mode: mode?,
        policy: Policy {
            ladder: LadderPolicy {
                degraded_ms: degraded?,
                agent_lost_ms: agent_lost?,
                hung_ms: hung?,
                settle_ms: settle?,
                reboot_ms: reboot?,
                replace_first_ms: replace_first?,
                replace_cap_ms: replace_cap?,
                forget_ms: forget?,
            },
            guard: GuardPolicy {
                watch_first_ms: watch_first?,
                storm_percent: storm_percent?,
                storm_min: storm_min?,
                pool_max_unavailable: unavailable?,
                poison_after: poison_after?,
                poison_ms: poison?,
            },
        },
        forensics: Forensics {
            keep: keep?,
            max_kept: kept_max?,
            max_age: Duration::from_secs(u64::from(kept_hours?) * 3600),
        },
    })
}
