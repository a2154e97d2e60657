//! Whether a cluster may be changed now, and until when: its maintenance windows and freezes. Pure.
//!
//! Time zones are those of the database that is part of the program, so that every director says the same.
//!
//! # Invariants
//! * A freeze closes every window.
//! * A window is open for as many minutes as it says, also in nights in which clocks are set.
//!
//! # Not here
//! What waits for a window (rollout): machines of a change that were not begun with. Repairs never do.

use jiff::civil::{Date, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::maintenance::{Day, MaintenanceSpec, WindowSpec};

use crate::health::from_jiff;
use crate::model;

/// Days around one that windows which touch it may open on: a window is open for a week at most, and comes
/// again after a week at most.
const DAYS: i32 = 8;
/// Windows in a row that are looked at as one; who waits for the end of more looks again then.
const ROW_MAX: usize = 16;

/// Whether a cluster may be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// It may.
    Open {
        /// Until then at least; for ever when there is no end.
        until: Option<Timestamp>,
    },
    /// It may not.
    Closed {
        /// When it may; never, as far as is known, when there is none.
        until: Option<Timestamp>,
        /// Why, for people.
        why: String,
    },
}

impl Outlook {
    /// When it has to be asked again.
    pub fn until(&self) -> Option<Timestamp> {
        match self {
            Outlook::Open { until } | Outlook::Closed { until, .. } => *until,
        }
    }
}

/// An [`Outlook`] as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WindowView {
    /// Whether machines may be changed now.
    pub open: bool,
    /// Until when that is so; absent: for ever, as far as is known.
    pub until: Option<model::Timestamp>,
    /// Why they may not.
    pub why: Option<String>,
}

impl From<Outlook> for WindowView {
    fn from(outlook: Outlook) -> WindowView {
        let until = outlook.until().map(from_jiff);
        let why = match outlook {
            Outlook::Open { .. } => None,
            Outlook::Closed { why, .. } => Some(why),
        };
        WindowView {
            open: why.is_none(),
            until,
            why,
        }
    }
}

impl std::fmt::Display for WindowView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.why, self.until) {
            (None, None) => f.write_str("open"),
            (None, Some(until)) => write!(f, "open until {until}"),
            (Some(why), None) => write!(f, "closed: {why}"),
            (Some(why), Some(until)) => write!(f, "opens at {until}: {why}"),
        }
    }
}

/// Whether a cluster may be changed at `now`.
pub fn outlook(spec: &MaintenanceSpec, now: Timestamp) -> Outlook {
    let windows: Vec<Window<'_>> = match spec.windows.iter().map(Window::of).collect() {
        Ok(windows) => windows,
        Err(why) => return Outlook::Closed { until: None, why },
    };
    match closed(spec, &windows, now) {
        None => Outlook::Open {
            until: end(spec, &windows, now),
        },
        Some((why, _)) => Outlook::Closed {
            until: opening(spec, &windows, now),
            why,
        },
    }
}

/// Whether a name is one of a time zone.
pub fn is_time_zone(name: &str) -> bool {
    zone(name).is_some()
}

fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

struct Window<'a> {
    spec: &'a WindowSpec,
    zone: TimeZone,
}

impl<'a> Window<'a> {
    fn of(spec: &'a WindowSpec) -> Result<Window<'a>, String> {
        let zone = zone(&spec.time_zone).ok_or_else(|| {
            let name = &spec.time_zone;
            format!("this director knows no time zone {name}; change the window")
        })?;
        Ok(Window { spec, zone })
    }

    /// When it opens and closes around a moment, in order.
    fn openings(&self, around: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let today = self.zone.to_datetime(around).date();
        let on = |days: i32| self.opening(today.checked_add(days.days()).ok()?);
        (-DAYS..=DAYS).filter_map(on).collect()
    }

    fn opening(&self, date: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.spec.days.contains(&day(date.weekday())) {
            return None;
        }
        let at = date.at(self.spec.start.hour(), self.spec.start.minute(), 0, 0);
        let opens = self.zone.to_timestamp(at).ok()?;
        let open = SignedDuration::from_mins(i64::from(self.spec.duration_minutes));
        Some((opens, opens.checked_add(open).ok()?))
    }
}

fn day(weekday: Weekday) -> Day {
    Day::ALL[usize::from(weekday.to_monday_zero_offset().unsigned_abs())]
}

/// Why nothing may be changed at a moment, and until when at least that is so.
fn closed(
    spec: &MaintenanceSpec,
    windows: &[Window<'_>],
    at: Timestamp,
) -> Option<(String, Option<Timestamp>)> {
    let frozen = spec
        .freezes
        .iter()
        .filter(|f| f.from.0 <= at && at < f.to.0);
    if let Some(freeze) = frozen.max_by_key(|freeze| freeze.to) {
        let why = format!("frozen until {}: {}", freeze.to.0, freeze.reason);
        return Some((why, Some(freeze.to.0)));
    }
    if windows.is_empty() {
        return None;
    }
    let all = || windows.iter().flat_map(|window| window.openings(at));
    if all().any(|(opens, closes)| opens <= at && at < closes) {
        return None;
    }
    let next = all()
        .map(|(opens, _)| opens)
        .filter(|opens| *opens > at)
        .min();
    Some(("no maintenance window is open".to_owned(), next))
}

/// The first moment from `now` on at which the cluster may be changed.
fn opening(spec: &MaintenanceSpec, windows: &[Window<'_>], now: Timestamp) -> Option<Timestamp> {
    let mut at = now;
    // Each freeze is left once, and after each comes one window at most.
    for _ in 0..=2 * (spec.freezes.len() + 1) {
        match closed(spec, windows, at) {
            None => return Some(at),
            Some((_, next)) => at = next?,
        }
    }
    None
}

/// The first moment after `now`, which is open, at which it is not.
fn end(spec: &MaintenanceSpec, windows: &[Window<'_>], now: Timestamp) -> Option<Timestamp> {
    let freezes = spec.freezes.iter().map(|freeze| freeze.from.0);
    let freeze = freezes.filter(|from| *from > now).min();
    if windows.is_empty() {
        return freeze;
    }
    let mut end = now;
    for _ in 0..ROW_MAX {
        let all = windows.iter().flat_map(|window| window.openings(end));
        let open = all.filter(|(opens, closes)| *opens <= end && end < *closes);
        match open.map(|(_, closes)| closes).max() {
            Some(closes) => end = closes,
            None => break,
        }
    }
    Some(freeze.map_or(end, |freeze| freeze.min(end)))
}

#[cfg(test)]
mod tests;
