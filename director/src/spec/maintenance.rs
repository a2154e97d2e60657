//! When a cluster may be changed.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde_json::Value;
use windlass_common::maintenance::{
    Day, FREEZES_MAX, FreezeSpec, MaintenanceSpec, Moment, TimeOfDay, WINDOW_MINUTES_MAX,
    WINDOWS_MAX, WindowSpec,
};

use super::Fields;
use super::fault::{Faults, shown};
use crate::maintenance::is_time_zone;

/// How long a window is open, minutes.
const MINUTES: RangeInclusive<u32> = 1..=WINDOW_MINUTES_MAX;
/// Longest reason, characters.
pub(crate) const REASON_MAX: usize = 200;

/// Reads `maintenance` of a cluster.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<MaintenanceSpec> {
    let Some(value) = fields.take("maintenance") else {
        return Some(MaintenanceSpec::default());
    };
    let mut inner = Fields::open(value, &fields.path("maintenance"), faults)?;
    let windows = list(&mut inner, "windows", WINDOWS_MAX, faults, window);
    let freezes = list(&mut inner, "freezes", FREEZES_MAX, faults, freeze);
    inner.close(faults);
    Some(MaintenanceSpec {
        windows: windows?,
        freezes: freezes?,
    })
}

/// Reads a list, each of its faults named.
fn list<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    most: usize,
    faults: &mut Faults,
    one: impl Fn(&Value, &str, &mut Faults) -> Option<T>,
) -> Option<Vec<T>> {
    let Some(value) = fields.take(key) else {
        return Some(Vec::new());
    };
    let path = fields.path(key);
    let Some(list) = value.as_array().filter(|list| list.len() <= most) else {
        faults.add(
            path,
            shown(value),
            format!("a list of at most {most} {key}"),
        );
        return None;
    };
    let read = list
        .iter()
        .enumerate()
        .filter_map(|(index, value)| one(value, &format!("{path}.{index}"), faults));
    Some(read.collect())
}

fn window(value: &Value, path: &str, faults: &mut Faults) -> Option<WindowSpec> {
    let mut fields = Fields::open(value, path, faults)?;
    let days = days(&mut fields, faults);
    let allowed = "a time of day, 00:00 to 23:59";
    let start = fields.required("start", allowed, faults, |text| {
        text.parse::<TimeOfDay>().ok()
    });
    let allowed = format!("not given: a window has minutes, 1 to {WINDOW_MINUTES_MAX}");
    let duration = match fields.number("durationMinutes", 0, &MINUTES, "minutes", faults) {
        Some(0) => {
            let missing = allowed.trim_start_matches("not given: ").to_owned();
            faults.add(fields.path("durationMinutes"), "not given", missing);
            None
        }
        duration => duration,
    };
    let allowed = "a time zone of IANA's database, for example Europe/Berlin";
    let zone = fields.optional("timeZone", "UTC".to_owned(), allowed, faults, |text| {
        is_time_zone(text).then(|| text.to_owned())
    });
    fields.close(faults);
    Some(WindowSpec {
        days: days?,
        start: start?,
        duration_minutes: duration?,
        time_zone: zone?,
    })
}

/// The days of a window; all of them when none are named.
fn days(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<BTreeSet<Day>> {
    let Some(value) = fields.take("days") else {
        return Some(Day::ALL.into());
    };
    let list = value.as_array().filter(|list| !list.is_empty());
    let days = list.and_then(|list| {
        let day = |value: &Value| value.as_str()?.parse::<Day>().ok();
        list.iter().map(day).collect::<Option<BTreeSet<Day>>>()
    });
    if days.is_none() {
        let allowed = "a list of mon, tue, wed, thu, fri, sat, sun";
        faults.add(fields.path("days"), shown(value), allowed);
    }
    days
}

fn freeze(value: &Value, path: &str, faults: &mut Faults) -> Option<FreezeSpec> {
    let mut fields = Fields::open(value, path, faults)?;
    let allowed = "a moment like 2030-12-20T00:00:00Z";
    let moment = |text: &str| text.parse::<Moment>().ok();
    let from = fields.required("from", allowed, faults, moment);
    let to = fields.required("to", allowed, faults, moment);
    let allowed = "why, in at most 200 characters";
    let reason = fields.required("reason", allowed, faults, |text| {
        let fits = !text.trim().is_empty() && text.chars().count() <= REASON_MAX;
        fits.then(|| text.to_owned())
    });
    let (from, to) = (from?, to?);
    if to <= from {
        faults.add(fields.path("to"), String::from(to), "later than from");
        return None;
    }
    fields.close(faults);
    Some(FreezeSpec {
        from,
        to,
        reason: reason?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(maintenance: Value) -> Result<MaintenanceSpec, String> {
        let input = json!({ "maintenance": maintenance });
        let mut faults = Faults::default();
        let read = Fields::open(&input, "", &mut faults)
            .and_then(|mut fields| parse(&mut fields, &mut faults));
        read.filter(|_| faults.is_empty()).ok_or(faults.to_string())
    }

    #[test]
    fn windows_are_read_with_their_defaults_and_every_fault_is_named() {
        let read_one = read(json!({
            "windows": [{"start": "02:00", "durationMinutes": 90}],
            "freezes": [{"from": "2030-12-20T00:00:00Z", "to": "2031-01-02T00:00:00+01:00", "reason": "peak"}],
        }));
        let spec = read_one.unwrap();
        assert_eq!(spec.windows[0].days.len(), 7);
        assert_eq!(spec.windows[0].time_zone, "UTC");
        // What the API shows can be sent back.
        assert_eq!(read(serde_json::to_value(&spec).unwrap()), Ok(spec));
        let said = read(json!({
            "windows": [
                {"start": "2am", "durationMinutes": 0, "timeZone": "Mars/Olympus", "days": ["monday"]},
                {"days": []},
            ],
            "freezes": [
                {"from": "2030-12-20", "to": "2031-01-02T00:00:00Z", "reason": ""},
                {"from": "2030-12-20T00:00:00Z", "to": "2030-12-20T00:00:00Z", "reason": "x", "by": "ann"},
            ],
        }))
        .unwrap_err();
        for key in [
            "windows.0.start",
            "windows.0.durationMinutes",
            "windows.0.timeZone",
            "windows.0.days",
            "windows.1.start",
            "windows.1.durationMinutes",
            "windows.1.days",
            "freezes.0.from",
            "freezes.0.reason",
            "freezes.1.to",
        ] {
            let key = format!("maintenance.{key}");
            assert!(said.contains(&key), "{key} is not named in {said}");
        }
    }
}
