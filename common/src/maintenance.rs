//! When a cluster may be changed: windows that come again, and freezes.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most windows of a cluster.
pub const WINDOWS_MAX: usize = 32;
/// Most freezes of a cluster.
pub const FREEZES_MAX: usize = 32;
/// Longest window, minutes: a week.
pub const WINDOW_MINUTES_MAX: u32 = 7 * 24 * 60;

/// When a cluster may be changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MaintenanceSpec {
    /// Machines are begun with inside of one of these alone; at any time when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<WindowSpec>,
    /// No machine is begun with during one of these, whatever the windows say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freezes: Vec<FreezeSpec>,
}

impl MaintenanceSpec {
    /// Whether the cluster may be changed at any time.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty() && self.freezes.is_empty()
    }

    /// The same with more freezes.
    pub fn with_freezes(&self, more: &[FreezeSpec]) -> MaintenanceSpec {
        let mut spec = self.clone();
        spec.freezes.extend_from_slice(more);
        spec
    }
}

/// A window that comes again each week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WindowSpec {
    /// Days on which it opens; never empty.
    pub days: BTreeSet<Day>,
    /// When it opens on these days, by the clocks of its time zone. A time that clocks skip in spring is taken
    /// as much later, one that they show twice in autumn is the first.
    pub start: TimeOfDay,
    /// How long it is open, minutes that pass, 1 to [`WINDOW_MINUTES_MAX`].
    pub duration_minutes: u32,
    /// Name in the time zone database of IANA, for example `Europe/Berlin`.
    pub time_zone: String,
}

/// A time in which nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FreezeSpec {
    /// Its first moment.
    pub from: Moment,
    /// The first moment after it; later than `from`.
    pub to: Moment,
    /// Why, for people.
    pub reason: String,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    /// All of them, Monday first.
    pub const ALL: [Day; 7] = [
        Day::Mon,
        Day::Tue,
        Day::Wed,
        Day::Thu,
        Day::Fri,
        Day::Sat,
        Day::Sun,
    ];
}

impl FromStr for Day {
    type Err = NotATime;
    fn from_str(text: &str) -> Result<Day, NotATime> {
        let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let at = names.iter().position(|name| *name == text);
        at.map(|at| Day::ALL[at]).ok_or_else(|| NotATime::of(text))
    }
}

/// A text is no day, no time of a day or no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not mon to sun, not 00:00 to 23:59, or not a moment like 2030-01-31T12:00:00Z")]
pub struct NotATime(String);

impl NotATime {
    fn of(text: &str) -> NotATime {
        NotATime(text.chars().take(80).collect())
    }
}

/// A time by the clocks of a place, to the minute: `02:30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay {
    hour: i8,
    minute: i8,
}

impl TimeOfDay {
    /// Hour, 0 to 23.
    pub fn hour(self) -> i8 {
        self.hour
    }

    /// Minute, 0 to 59.
    pub fn minute(self) -> i8 {
        self.minute
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl FromStr for TimeOfDay {
    type Err = NotATime;
    fn from_str(text: &str) -> Result<TimeOfDay, NotATime> {
        let number = |digits: &str, most: i8| -> Option<i8> {
            let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
            let number = plain.then(|| digits.parse().ok()).flatten()?;
            (number <= most).then_some(number)
        };
        let parts = text.split_once(':');
        let time = parts.and_then(|(hour, minute)| {
            Some(TimeOfDay {
                hour: number(hour, 23)?,
                minute: number(minute, 59)?,
            })
        });
        time.ok_or_else(|| NotATime::of(text))
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = NotATime;
    fn try_from(text: String) -> Result<TimeOfDay, NotATime> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        time.to_string()
    }
}

/// A moment, written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(pub jiff::Timestamp);

impl FromStr for Moment {
    type Err = NotATime;
    fn from_str(text: &str) -> Result<Moment, NotATime> {
        text.parse().map(Moment).map_err(|_| NotATime::of(text))
    }
}

impl TryFrom<String> for Moment {
    type Error = NotATime;
    fn try_from(text: String) -> Result<Moment, NotATime> {
        text.parse()
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for text in ["00:00", "02:30", "23:59"] {
            assert_eq!(text.parse::<TimeOfDay>().unwrap().to_string(), text);
        }
        for bad in ["", "24:00", "12:60", "1:30", "+1:30", "12-30", "12:30:00"] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
        let days: Vec<Day> = serde_json::from_str(r#"["mon","sun"]"#).unwrap();
        assert_eq!(days, [Day::Mon, Day::Sun]);
        assert!("Mon".parse::<Day>().is_err());
        let moment: Moment = "2030-01-31T12:00:00+01:00".parse().unwrap();
        assert_eq!(String::from(moment), "2030-01-31T11:00:00Z");
    }
}
