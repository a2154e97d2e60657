//! Whether a machine runs: a look at its record, its init process, its control group and its monitor.
//!
//! Changes nothing and waits for nobody, so that it answers while another call works on the machine.
//! A frozen machine runs: its memory, its disks and its addresses are held, and it may be thawed.

use windlass_common::id::{Incarnation, MachineName};

use super::Inner;
use super::cgroup::Hierarchies;
use super::record::{Record, monitor_lives, wanted_power};
use crate::provider::{Power, PowerView, ProviderError};

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sight {
    /// The incarnation written down, if there is a record.
    recorded: Option<Incarnation>,
    /// Whether there is a directory of the machine.
    directory: bool,
    /// Its init process.
    init: Option<i32>,
    /// Processes in its control group, counted only when init is gone.
    left: usize,
    frozen: bool,
    monitor: bool,
    wanted: Power,
}

impl Inner {
    /// See [`crate::provider::Provider::power`].
    pub(super) fn power(
        &self,
        name: &MachineName,
        incarnation: Incarnation,
    ) -> Result<PowerView, ProviderError> {
        let dir = self.layout.machine(name);
        let record = match Record::load(&dir) {
            Ok(record) => record,
            // What there is of the machine is told by its processes.
            Err(ProviderError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        let (group, hierarchies) = (self.layout.cgroup(name), Hierarchies::detect()?);
        let init = record.as_ref().and_then(Record::init).map(|(pid, _)| pid);
        let left = if init.is_none() {
            hierarchies.count(&group)
        } else {
            0
        };
        let sight = Sight {
            recorded: record.as_ref().map(|record| record.incarnation),
            directory: dir.path().exists(),
            init,
            left,
            frozen: hierarchies.frozen(&group),
            monitor: monitor_lives(&dir),
            wanted: wanted_power(&dir),
        };
        Ok(judge(&sight, incarnation))
    }
}

fn judge(sight: &Sight, asked: Incarnation) -> PowerView {
    let view = |power, detail: String| PowerView { power, detail };
    if let Some(recorded) = sight.recorded.filter(|recorded| *recorded != asked) {
        let detail = format!("the machine of this name is incarnation {recorded}");
        return view(None, detail);
    }
    let frozen = if sight.frozen {
        ", its control group is frozen"
    } else {
        ""
    };
    if let Some(pid) = sight.init {
        let monitor = if sight.monitor {
            ""
        } else {
            ", its monitor is gone"
        };
        let detail = format!("its init process {pid} runs{frozen}{monitor}");
        return view(Some(Power::Running), detail);
    }
    if sight.left > 0 {
        let detail = format!(
            "its init process is gone, {} processes are left{frozen}",
            sight.left
        );
        return view(Some(Power::Running), detail);
    }
    if sight.recorded.is_none() && !sight.directory {
        return view(None, "there is nothing of it".to_owned());
    }
    let detail = match (sight.wanted, sight.monitor) {
        (Power::Stopped, _) => "no process of it is left, and it is to be off",
        (Power::Running, true) => "no process of it is left; its monitor starts it again",
        (Power::Running, false) => "no process of it is left, and its monitor is gone",
    };
    view(Some(Power::Stopped), detail.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_write_runs() {
        let up = Sight {
            recorded: Some(Incarnation(2)),
            directory: true,
            init: Some(77),
            left: 0,
            frozen: false,
            monitor: true,
            wanted: Power::Running,
        };
        let dead = Sight { init: None, ..up };
        let orphan = Sight {
            recorded: None,
            ..dead
        };
        let (on, off) = (Some(Power::Running), Some(Power::Stopped));
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("up",                    up,                                                2, on),
            ("frozen",                Sight { frozen: true, ..up },                      2, on),
            ("unattended",            Sight { monitor: false, ..up },                    2, on),
            ("another incarnation",   up,                                                1, None),
            ("init died",             dead,                                              2, off),
            ("init died, unattended", Sight { monitor: false, ..dead },                  2, off),
            ("switched off",          Sight { wanted: Power::Stopped, ..dead },          2, off),
            ("init died, some left",  Sight { left: 3, ..dead },                         2, on),
            ("some left, frozen",     Sight { left: 3, frozen: true, ..dead },           2, on),
            ("half made",             orphan,                                            2, off),
            ("leftover processes",    Sight { directory: false, left: 1, ..orphan },     2, on),
            ("nothing",               Sight { directory: false, ..orphan },              2, None),
        ];
        for (name, sight, asked, wanted) in cases {
            let view = judge(&sight, Incarnation(asked));
            assert_eq!(view.power, wanted, "{name}: {}", view.detail);
            assert_eq!(view.detail.contains("frozen"), sight.frozen, "{name}");
        }
    }
}
