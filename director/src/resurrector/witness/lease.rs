//! Whether a Lease was renewed in a silence: a value, told the time.
//!
//! The first reading in a silence is what later ones are compared with. What a kubelet wrote is never read as
//! a time, and how old it was at the first reading says nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use windlass_common::id::{Incarnation, MachineName};
use windlass_common::limits::SESSIONS_MAX;

use crate::resurrector::Lease;
use crate::rollout::world::LeaseMark;

/// A renewal that was seen longer ago than this is none any more: the kubelet has missed four by then.
pub const RENEWAL_AGE_MAX: Duration = Duration::from_secs(40);

/// The silent machines whose Leases are watched.
#[derive(Debug, Default)]
pub(super) struct Watches(BTreeMap<MachineName, Watch>);

#[derive(Debug)]
struct Watch {
    incarnation: Incarnation,
    since: Duration,
    mark: LeaseMark,
    /// When a reading differed from the one before.
    renewed: Option<Duration>,
}

/// What a reading comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) lease: Lease,
    /// For how long it has been watched.
    pub(super) watched: Duration,
    /// How long ago the last renewal was seen.
    pub(super) renewed: Option<Duration>,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let watched = self.watched.as_secs_f32();
        match self.renewed {
            Some(ago) if self.lease == Lease::Renewed => {
                write!(f, "renewed {:.1} s ago, in this silence", ago.as_secs_f32())
            }
            Some(ago) => write!(
                f,
                "not renewed any more, last {:.0} s ago",
                ago.as_secs_f32()
            ),
            None => write!(f, "not seen to be renewed, watched for {watched:.1} s"),
        }
    }
}

impl Watches {
    /// Takes a reading at `now` of the Lease of a machine that was last heard of at `heard`, both since any
    /// one moment.
    pub(super) fn read(
        &mut self,
        machine: &MachineName,
        incarnation: Incarnation,
        mark: LeaseMark,
        heard: Option<Duration>,
        now: Duration,
    ) -> Reading {
        let fresh = Watch {
            incarnation,
            since: now,
            mark: mark.clone(),
            renewed: None,
        };
        if self.0.len() >= SESSIONS_MAX && !self.0.contains_key(machine) {
            self.0.pop_first();
        }
        let watch = self.0.entry(machine.clone()).or_insert(fresh);
        // What was read before it was last heard of belongs to another silence.
        let other = heard.is_some_and(|heard| watch.since < heard);
        if other || watch.incarnation != incarnation {
            *watch = Watch {
                incarnation,
                since: now,
                mark: mark.clone(),
                renewed: None,
            };
        }
        if watch.mark != mark {
            watch.mark = mark;
            watch.renewed = Some(now);
        }
        let renewed = watch.renewed.map(|at| now.saturating_sub(at));
        let lease = match renewed {
            Some(ago) if ago <= RENEWAL_AGE_MAX => Lease::Renewed,
            Some(_) | None => Lease::Unknown,
        };
        Reading {
            lease,
            watched: now.saturating_sub(watch.since),
            renewed,
        }
    }

    /// The machine is heard of: its silence is over.
    pub(super) fn heard(&mut self, machine: &MachineName) {
        self.0.remove(machine);
    }
}
