//! What a gateway does second by second, so that a slow return of a fleet names its cause.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::gateway::{Gateway, Reason, Tickets, Total};

use super::process;
use super::protocol::Moment;

/// Between two moments.
const EVERY: Duration = Duration::from_secs(1);
/// Moments that are kept: a fleet that is not back after five minutes is not coming.
const MOMENTS_MAX: usize = 300;

/// Looks at a gateway each second, until it is dropped.
#[derive(Debug)]
pub(super) struct Course {
    looker: Arc<Looker>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Looker {
    gateway: Arc<Gateway>,
    tickets: Arc<Tickets>,
    opened: Instant,
    moments: Mutex<Vec<Moment>>,
}

impl Course {
    /// From now on.
    pub(super) fn begin(gateway: Arc<Gateway>, tickets: Arc<Tickets>) -> Course {
        let looker = Arc::new(Looker {
            gateway,
            tickets,
            opened: Instant::now(),
            moments: Mutex::default(),
        });
        let looks = Arc::clone(&looker);
        let task = tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for _ in 0..MOMENTS_MAX {
                ticks.tick().await;
                let moment = looks.look();
                looks.lock().push(moment);
            }
        });
        Course { looker, task }
    }

    /// How it is now.
    pub(super) fn now(&self) -> Moment {
        self.looker.look()
    }

    /// Each second so far, and now.
    pub(super) fn moments(&self) -> Vec<Moment> {
        let mut moments = self.looker.lock().clone();
        moments.push(self.now());
        moments
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Looker {
    fn look(&self) -> Moment {
        let counters = self.gateway.counters();
        let tickets = self.tickets.counts();
        Moment {
            seconds: self.opened.elapsed().as_secs_f64(),
            connected: counters.sessions,
            under_way: counters.handshakes,
            waiting: counters.waiting,
            begun: counters.total(Total::HandshakesBegun),
            done: counters.total(Total::Handshakes),
            resumed: tickets.opened,
            tickets_refused: tickets.refused,
            retried: counters.total(Total::HandshakesRetried),
            crowded: counters.refused(Reason::HandshakesFull),
            source_busy: counters.refused(Reason::SourceBusy),
            timed_out: counters.refused(Reason::HandshakeTimeout),
            failed: counters.refused(Reason::HandshakeFailed),
            datagrams: counters.total(Total::DatagramsReceived),
            dropped: self
                .gateway
                .local_address()
                .ok()
                .and_then(|address| dropped(address.port()))
                .unwrap_or(0),
            cpu_ms: process::own_cpu_us() / 1000,
        }
    }

    /// Nothing panics while it holds it.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Moment>> {
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Datagrams that the kernel dropped at a UDP port of IPv4; `None` if it does not say.
fn dropped(port: u16) -> Option<u64> {
    drops(&fs::read_to_string("/proc/net/udp").ok()?, port)
}

/// proc(5): the second field is the local address in hexadecimal, the last one counts the drops.
fn drops(table: &str, port: u16) -> Option<u64> {
    let port = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .find(|line| {
            let local = line.split_whitespace().nth(1);
            local.is_some_and(|local| local.ends_with(&port))
        })
        .and_then(|line| line.split_whitespace().last()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_one_port_are_found() {
        let table = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  338: 0100007F:1D13 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 107 2 00000000a 4711
  339: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 108 2 00000000b 0
";
        assert_eq!(drops(table, 7443), Some(4711));
        assert_eq!(drops(table, 53), Some(0));
        assert_eq!(drops(table, 54), None);
        assert_eq!(drops("", 53), None);
    }
}
