//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Looks until `probe` gives a value; fails with the last reason after `deadline`.
///
/// The pause between two looks only bounds the cost of looking.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
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
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
