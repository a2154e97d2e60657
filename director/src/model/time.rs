//! Wall-clock time of records: milliseconds since the Unix epoch, shown as RFC 3339 in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A moment on the wall clock, to the millisecond.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, format = DateTime, example = "2030-01-31T12:00:00.000Z")]
pub struct Timestamp(u64);

/// Why a text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time {0:?} must be RFC 3339, for example 2030-01-31T12:00:00Z, from 1970 on")]
pub struct TimestampError(String);

/// Latest moment that RFC 3339 can write: 9999-12-30T22:00:00Z, in milliseconds.
const LATEST_UNIX_MS: u64 = 253_402_207_200_000;

impl Timestamp {
    /// The given number of milliseconds after 1970-01-01T00:00:00Z; capped at the year 9999.
    pub fn from_unix_ms(ms: u64) -> Self {
        Self(ms.min(LATEST_UNIX_MS))
    }

    /// This moment; a clock before 1970 counts as 1970.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self::from_unix_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn unix_ms(self) -> u64 {
        self.0
    }

    /// Milliseconds from `earlier` to this moment; zero when the clock went back.
    pub fn ms_since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<jiff::Timestamp> for Timestamp {
    /// A moment before 1970 counts as 1970.
    fn from(time: jiff::Timestamp) -> Self {
        Self::from_unix_ms(u64::try_from(time.as_millisecond()).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(ms) {
            Ok(time) => f.pad(&format!("{time:.3}")),
            Err(_) => f.pad("invalid"),
        }
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(value: &str) -> Result<Self, TimestampError> {
        let bad = || TimestampError(value.chars().take(80).collect());
        let time: jiff::Timestamp = value.parse().map_err(|_| bad())?;
        u64::try_from(time.as_millisecond())
            .map(Self::from_unix_ms)
            .map_err(|_| bad())
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;
    fn try_from(value: String) -> Result<Self, TimestampError> {
        value.parse()
    }
}

impl From<Timestamp> for String {
    fn from(value: Timestamp) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_through_text() {
        for ms in [0, 1, 1_700_000_000_123, LATEST_UNIX_MS] {
            let time = Timestamp::from_unix_ms(ms);
            assert_eq!(time.to_string().parse(), Ok(time), "{time}");
        }
        assert_eq!(Timestamp::from_unix_ms(u64::MAX).unix_ms(), LATEST_UNIX_MS);
        assert_eq!(
            Timestamp::from_unix_ms(5).to_string(),
            "1970-01-01T00:00:00.005Z"
        );
        assert!("yesterday".parse::<Timestamp>().is_err());
        assert!("1960-01-01T00:00:00Z".parse::<Timestamp>().is_err());
    }
}
