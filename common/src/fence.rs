//! What a worker is told of ending its own pods when it alone is cut off.
//!
//! The director writes it to [`PATH`] with the rest of a machine's configuration; its agent reads it anew whenever it
//! matters. It speeds up that pods of a machine nobody hears stop serving, and proves nothing: what they held is given
//! to others once the machine is proven off, as ever.
//!
//! While it counts the time that a machine is alone, its agent has told the machine's watchdog when to restart it
//! ([`WatchdogOrder`]): the pods end as well where agent or init hang in the middle of it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where a worker finds it.
pub const PATH: &str = "/etc/windlass/self-fence.json";
/// Most machines that are asked: control planes have five at most.
pub const PEERS_MAX: usize = 5;

/// Where a machine tells its watchdog something, if the provider gives it one: a pipe, or a file like it, that takes one
/// [`WatchdogOrder`] a line.
pub const WATCHDOG: &str = "/dev/windlass-watchdog";
/// Longest time after which a watchdog may be told to restart a machine: the longest that a pool may ask for, and a minute
/// for the restart.
pub const WATCHDOG_MAX: Duration = Duration::from_secs(3660);

/// What a machine tells its watchdog, which is outside of it: its hypervisor, or its monitor. The newest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogOrder {
    /// Restart this machine after so long, at once and whatever it does, unless told otherwise until then; in whole
    /// seconds, rounded up, up to [`WATCHDOG_MAX`].
    RestartIn(Duration),
    /// Do not.
    Off,
}

/// The line is none of a watchdog's orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an order for a watchdog; orders are `restart-in SECONDS`, with at most {} s, and `off`", WATCHDOG_MAX.as_secs())]
pub struct NoWatchdogOrder;

/// The line without its end.
impl fmt::Display for WatchdogOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WatchdogOrder::RestartIn(after) => {
                let up = u64::from(after.subsec_nanos() > 0);
                write!(f, "restart-in {}", after.as_secs().saturating_add(up))
            }
            WatchdogOrder::Off => f.write_str("off"),
        }
    }
}

impl FromStr for WatchdogOrder {
    type Err = NoWatchdogOrder;

    fn from_str(line: &str) -> Result<Self, NoWatchdogOrder> {
        if line == "off" {
            return Ok(WatchdogOrder::Off);
        }
        let seconds = line.strip_prefix("restart-in ").ok_or(NoWatchdogOrder)?;
        let after = Duration::from_secs(seconds.parse().map_err(|_| NoWatchdogOrder)?);
        if after > WATCHDOG_MAX {
            return Err(NoWatchdogOrder);
        }
        Ok(WatchdogOrder::RestartIn(after))
    }
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SelfFenceOrders {
    /// How long neither the director nor an API server may have been heard while peers hear the director, seconds;
    /// absent where pods are not to be ended.
    pub after_seconds: Option<u32>,
    /// Where API servers answer on this machine: its proxy, TCP.
    pub api: SocketAddr,
    /// Peer endpoints of other machines of the cluster, control planes first, at most [`PEERS_MAX`]; UDP.
    pub peers: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::SELF_FENCE_SECONDS;

    #[test]
    fn orders_of_a_watchdog_are_read_as_they_are_written() {
        let after = |ms| WatchdogOrder::RestartIn(Duration::from_millis(ms));
        #[rustfmt::skip] // one case per line
        let cases = [
            (WatchdogOrder::Off, "off"),
            (after(0),           "restart-in 0"),
            (after(1),           "restart-in 1"), // never earlier
            (after(42_000),      "restart-in 42"),
            (after(42_001),      "restart-in 43"),
            (after(3_660_000),   "restart-in 3660"),
        ];
        for (order, line) in cases {
            assert_eq!(order.to_string(), line);
            let read: WatchdogOrder = line.parse().unwrap();
            assert_eq!(read.to_string(), line);
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        for line in [
            "",
            "OFF",
            "off ",
            "restart-in",
            "restart-in ",
            "restart-in -1",
            "restart-in 1s",
            "restart-in 3661",
        ] {
            assert_eq!(
                line.parse::<WatchdogOrder>(),
                Err(NoWatchdogOrder),
                "{line:?}"
            );
        }
    }

    #[test]
    fn whatever_a_pool_may_ask_for_a_watchdog_takes() {
        let most = Duration::from_secs((*SELF_FENCE_SECONDS.end()).into());
        assert!(most < WATCHDOG_MAX);
    }
}
