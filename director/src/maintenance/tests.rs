//! Windows in nights in which clocks are set, freezes that meet windows, and what always holds.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn spec(value: Value) -> MaintenanceSpec {
    serde_json::from_value(value).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn nightly(zone: &str) -> Value {
    json!({"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "start": "02:30",
        "durationMinutes": 120, "timeZone": zone})
}

fn told(outlook: &Outlook) -> (bool, Option<String>) {
    let open = matches!(outlook, Outlook::Open { .. });
    (open, outlook.until().map(|until| until.to_string()))
}

#[test]
fn windows_open_by_the_clocks_of_their_place() {
    let berlin = spec(json!({"windows": [nightly("Europe/Berlin")]}));
    let york = spec(json!({"windows": [nightly("America/New_York")]}));
    let weekend = spec(json!({"windows": [
        {"days": ["sat"], "start": "22:00", "durationMinutes": 1440, "timeZone": "UTC"},
        {"days": ["sun"], "start": "22:00", "durationMinutes": 60, "timeZone": "UTC"},
    ]}));
    let lordhowe = spec(
        json!({"windows": [{"days": ["sun"], "start": "01:45", "durationMinutes": 60,
        "timeZone": "Australia/Lord_Howe"}]}),
    );
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("a night in winter",               &berlin,   "2030-01-10T01:29:59Z", false, "2030-01-10T01:30:00Z"),
        ("its first moment",                &berlin,   "2030-01-10T01:30:00Z", true,  "2030-01-10T03:30:00Z"),
        ("its last moment",                 &berlin,   "2030-01-10T03:29:59Z", true,  "2030-01-10T03:30:00Z"),
        ("its end is not in it",            &berlin,   "2030-01-10T03:30:00Z", false, "2030-01-11T01:30:00Z"),
        ("a night in summer",               &berlin,   "2030-07-10T00:30:00Z", true,  "2030-07-10T02:30:00Z"),
        ("spring: 02:30 is skipped",        &berlin,   "2030-03-31T01:29:00Z", false, "2030-03-31T01:30:00Z"),
        ("spring: it is as long as ever",   &berlin,   "2030-03-31T01:30:00Z", true,  "2030-03-31T03:30:00Z"),
        ("autumn: the first 02:30",         &berlin,   "2030-10-27T00:30:00Z", true,  "2030-10-27T02:30:00Z"),
        ("autumn: not the second too",      &berlin,   "2030-10-27T02:30:00Z", false, "2030-10-28T01:30:00Z"),
        ("spring elsewhere",                &york,     "2030-03-10T07:30:00Z", true,  "2030-03-10T09:30:00Z"),
        ("windows in a row are one",        &weekend,  "2030-01-05T23:00:00Z", true,  "2030-01-06T23:00:00Z"),
        ("over midnight",                   &weekend,  "2030-01-06T21:59:00Z", true,  "2030-01-06T23:00:00Z"),
        ("a week is waited",                &weekend,  "2030-01-06T23:00:00Z", false, "2030-01-12T22:00:00Z"),
        ("half an hour is skipped",         &lordhowe, "2030-10-05T15:00:00Z", false, "2030-10-05T15:15:00Z"),
    ];
    for (name, spec, now, open, until) in cases {
        let want = (open, Some(until.to_owned()));
        assert_eq!(told(&outlook(spec, at(now))), want, "{name}");
    }
}

#[test]
fn a_freeze_closes_every_window() {
    let freeze = json!({"from": "2030-12-20T00:00:00Z", "to": "2031-01-02T00:00:00Z", "reason": "peak season"});
    let later = json!({"from": "2031-01-01T00:00:00Z", "to": "2031-01-03T02:00:00Z", "reason": "inventory"});
    let alone = spec(json!({"freezes": [freeze]}));
    let both = spec(json!({"windows": [nightly("UTC")], "freezes": [freeze, later]}));
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("nothing is said",           &spec(json!({})), "2030-01-01T00:00:00Z", true,  None),
        ("before a freeze",           &alone, "2030-12-19T00:00:00Z", true,  Some("2030-12-20T00:00:00Z")),
        ("in a freeze",               &alone, "2030-12-24T00:00:00Z", false, Some("2031-01-02T00:00:00Z")),
        ("its end is not in it",      &alone, "2031-01-02T00:00:00Z", true,  None),
        ("a freeze ends a window",    &both,  "2030-12-19T03:00:00Z", true,  Some("2030-12-19T04:30:00Z")),
        ("freezes that overlap",      &both,  "2030-12-24T03:00:00Z", false, Some("2031-01-03T02:30:00Z")),
        ("out of window and freeze",  &both,  "2031-01-03T02:00:00Z", false, Some("2031-01-03T02:30:00Z")),
    ];
    for (name, spec, now, open, until) in cases {
        let want = (open, until.map(str::to_owned));
        assert_eq!(told(&outlook(spec, at(now))), want, "{name}");
    }
    let Outlook::Closed { why, .. } = outlook(&both, at("2031-01-01T12:00:00Z")) else {
        panic!("it is frozen");
    };
    assert_eq!(why, "frozen until 2031-01-03T02:00:00Z: inventory");
}

#[test]
fn a_zone_that_nobody_knows_closes() {
    let lost = spec(json!({"windows": [nightly("Europe/Atlantis")]}));
    let found = outlook(&lost, at("2030-01-01T02:30:00Z"));
    let Outlook::Closed { until: None, why } = found else {
        panic!("{found:?}");
    };
    assert!(why.contains("Europe/Atlantis"), "{why}");
    assert!(is_time_zone("Europe/Berlin") && !is_time_zone("../etc/passwd"));
}

fn any_spec() -> impl Strategy<Value = MaintenanceSpec> {
    let zone = prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Pacific/Apia",
    ]);
    let days = prop::collection::btree_set(prop::sample::select(Day::ALL.to_vec()), 1..4);
    let window = (days, 0..24u8, 0..60u8, 1..3000u32, zone).prop_map(
        |(days, hour, minute, duration_minutes, zone)| WindowSpec {
            days,
            start: format!("{hour:02}:{minute:02}").parse().unwrap(),
            duration_minutes,
            time_zone: zone.to_owned(),
        },
    );
    let freeze = (0..400i64, 1..60i64).prop_map(|(day, days)| {
        let moment = |days: i64| {
            let at = Timestamp::from_second(1_893_456_000 + days * 86_400 + 4321);
            windlass_common::maintenance::Moment(at.unwrap())
        };
        windlass_common::maintenance::FreezeSpec {
            from: moment(day),
            to: moment(day + days),
            reason: "because".to_owned(),
        }
    });
    let windows = prop::collection::vec(window, 0..4);
    let freezes = prop::collection::vec(freeze, 0..4);
    (windows, freezes).prop_map(|(windows, freezes)| MaintenanceSpec { windows, freezes })
}

proptest! {
    /// What is said of now holds until the moment that is named; there it turns, unless many windows in a row
    /// were looked at as one.
    #[test]
    fn an_outlook_holds_as_long_as_it_says(
        spec in any_spec(), second in 1_893_456_000i64..1_928_000_000, part in 0.0..1.0f64,
    ) {
        let now = Timestamp::from_second(second).unwrap();
        let found = outlook(&spec, now);
        let open = matches!(found, Outlook::Open { .. });
        if let Some(until) = found.until() {
            prop_assert!(until > now);
            let passed = (until.as_second() - second) as f64 * part;
            let between = Timestamp::from_second(second + passed as i64).unwrap();
            if between < until {
                let then = outlook(&spec, between);
                prop_assert_eq!(matches!(then, Outlook::Open { .. }), open);
                if !open {
                    prop_assert_eq!(then.until(), Some(until));
                }
            }
            let then = outlook(&spec, until);
            let opens = matches!(then, Outlook::Open { .. });
            prop_assert!(open || opens);
        } else {
            prop_assert!(open, "weekly windows and freezes that end open some day");
        }
    }
}
