//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Shortest pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `probe` gives a value; fails with the last reason after `deadline`.
///
/// The pause between two looks only bounds the cost of looking: a look that starts a program is paid by what is
/// looked at, on the same cores, so that looking takes a third of the time at most.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let looked = Instant::now();
        let reason = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "not yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() > deadline {
            bail!(
                "{what}: gave up after {:.0} s: {reason}",
                deadline.as_secs_f64()
            );
        }
        std::thread::park_timeout(PAUSE.max(2 * looked.elapsed()));
    }
}
