//! The disruption ledger: whether a machine may be taken out of service now. Pure.
//!
//! Rollouts, repairs and scale-in draw from one account for each pool, and one for each control plane. An
//! account is never stored: it is what the records and the witnesses say about its machines at the moment in
//! which one is to be taken, so no crash makes it wrong.
//!
//! # Invariants
//! * A machine that serves nobody costs nothing, whoever takes it.
//! * No machine that serves is taken while those left beside it are fewer than the account's floor. Machines
//!   that are down by themselves are missed like those that are taken.
//! * Of a control plane, none that serves is taken while another one is being changed.
//! * Of a pool, none that serves is taken while one of another zone is being changed: a change that goes wrong is
//!   met in one zone, and the others have all they had.
//!
//! # Not here
//! The order in which machines are taken (planner), and who is down
//! ([`crate::resurrector`]).

use std::collections::BTreeMap;

use windlass_common::id::{MachineName, PoolName, ZoneName};

/// What a machine is to its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It serves.
    Serves,
    /// It serves nobody, and not because of us; or nothing is known about it.
    Down,
    /// A task or a repair has taken it.
    Taken,
}

/// Whose account it is, with what it has to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A pool: so many of its machines serve at any moment.
    Pool {
        /// Which.
        pool: PoolName,
        /// The least number that serves.
        floor: usize,
    },
    /// The members of a cluster's etcd: a majority serves, unless there is one only.
    Etcd,
}

/// The machines of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Whose.
    pub owner: Owner,
    /// Its machines.
    pub machines: BTreeMap<MachineName, Standing>,
    /// The zones of those that are known to be in one.
    pub zones: BTreeMap<MachineName, ZoneName>,
}

/// What taking a machine costs its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Nothing: it serves nobody already.
    Nothing,
    /// One machine in service.
    One,
}

/// Why a machine has to wait.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// The pool has none to spare.
    #[error(
        "{left} other machines of pool {pool} serve, and {floor} have to{}; bring others back, or raise \
         maxUnavailable",
        missing(down, taken)
    )]
    Pool {
        /// Which.
        pool: PoolName,
        /// Others that serve.
        left: usize,
        /// The least number that serves.
        floor: usize,
        /// Others that are down by themselves.
        down: Vec<MachineName>,
        /// Others that are taken.
        taken: Vec<MachineName>,
    },
    /// A machine of another zone is being changed.
    #[error("{other} in zone {zone} is being changed; one zone of a pool at a time")]
    Zone {
        /// The other.
        other: MachineName,
        /// Its zone.
        zone: ZoneName,
    },
    /// Another member is being changed.
    #[error("control-plane machine {other} is being changed; one at a time")]
    Member {
        /// The other.
        other: MachineName,
    },
    /// etcd would lose its majority.
    #[error(
        "{left} other members of its control plane serve, and {quorum} have to{}; bring them back",
        missing(down, &[])
    )]
    Quorum {
        /// Others that serve.
        left: usize,
        /// All members.
        members: usize,
        /// A majority.
        quorum: usize,
        /// Others that are down by themselves.
        down: Vec<MachineName>,
    },
}

/// Who is missed, in words.
fn missing(down: &[MachineName], taken: &[MachineName]) -> String {
    let names = |of: &[MachineName]| {
        let names: Vec<&str> = of.iter().map(MachineName::as_str).collect();
        names.join(", ")
    };
    let mut text = String::new();
    for (of, what) in [(down, "down"), (taken, "being changed")] {
        if !of.is_empty() {
            text.push_str(&format!("; {what}: {}", names(of)));
        }
    }
    text
}

impl Account {
    /// Whether `machine` may be taken out of service now, and what that costs. One that is no machine of the
    /// account costs it nothing.
    ///
    /// # Errors
    /// What it has to wait for.
    pub fn take(&self, machine: &MachineName) -> Result<Cost, Wait> {
        if self.machines.get(machine) != Some(&Standing::Serves) {
            return Ok(Cost::Nothing);
        }
        let others = |standing: Standing| {
            let of = self.machines.iter();
            of.filter(move |(name, other)| *name != machine && **other == standing)
                .map(|(name, _)| name.clone())
        };
        let left = others(Standing::Serves).count();
        let down = || others(Standing::Down).collect();
        match &self.owner {
            Owner::Pool { pool, floor } if left < *floor => Err(Wait::Pool {
                pool: pool.clone(),
                left,
                floor: *floor,
                down: down(),
                taken: others(Standing::Taken).collect(),
            }),
            Owner::Pool { .. } => match self.elsewhere(machine, others(Standing::Taken)) {
                Some((other, zone)) => Err(Wait::Zone { other, zone }),
                None => Ok(Cost::One),
            },
            Owner::Etcd => {
                if let Some(other) = others(Standing::Taken).next() {
                    return Err(Wait::Member { other });
                }
                let members = self.machines.len();
                let quorum = members / 2 + 1;
                if members > 1 && left < quorum {
                    let down = down();
                    return Err(Wait::Quorum {
                        left,
                        members,
                        quorum,
                        down,
                    });
                }
                Ok(Cost::One)
            }
        }
    }
}

impl Account {
    /// The first of `others` that is known to be in another zone than `machine`.
    fn elsewhere(
        &self,
        machine: &MachineName,
        mut others: impl Iterator<Item = MachineName>,
    ) -> Option<(MachineName, ZoneName)> {
        let own = self.zones.get(machine)?;
        others.find_map(|other| {
            let zone = self.zones.get(&other).filter(|zone| *zone != own)?;
            Some((other, zone.clone()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Down, Serves, Taken};
    use super::*;

    fn name(number: usize) -> MachineName {
        MachineName::new(format!("m-{number}")).unwrap()
    }

    fn account(floor: Option<usize>, standings: &[Standing]) -> Account {
        let pool = PoolName::new("workers").unwrap();
        Account {
            owner: floor.map_or(Owner::Etcd, |floor| Owner::Pool { pool, floor }),
            machines: (0..).map(name).zip(standings.iter().copied()).collect(),
            zones: BTreeMap::new(),
        }
    }

    #[test]
    fn one_zone_of_a_pool_is_changed_at_a_time() {
        // The zone of each machine; the first is to be taken, and all others are as their standing says.
        type Case = (
            &'static str,
            &'static [(Standing, &'static str)],
            &'static str,
        );
        #[rustfmt::skip]
        let cases: &[Case] = &[
            ("nobody is taken",              &[(Serves, "a"), (Serves, "b"), (Serves, "b")], "one"),
            ("one of its own zone is taken", &[(Serves, "a"), (Taken, "a"), (Serves, "b")],  "one"),
            ("one of another is taken",      &[(Serves, "a"), (Taken, "b"), (Serves, "b")],  "m-1 in zone b"),
            ("one of another is down",       &[(Serves, "a"), (Down, "b"), (Serves, "b")],   "one"),
            ("it is down itself",            &[(Down, "a"), (Taken, "b"), (Serves, "b")],    "nothing"),
            ("its zone is not known",        &[(Serves, ""), (Taken, "b"), (Serves, "b")],   "one"),
            ("the other's is not",           &[(Serves, "a"), (Taken, ""), (Serves, "b")],   "one"),
        ];
        for (what, machines, wanted) in cases {
            let standings: Vec<Standing> = machines.iter().map(|(standing, _)| *standing).collect();
            let mut account = account(Some(0), &standings);
            let zones = machines.iter().map(|(_, zone)| ZoneName::new(*zone).ok());
            let known = (0..).map(name).zip(zones);
            account.zones = known.filter_map(|(of, zone)| Some((of, zone?))).collect();
            let found = match account.take(&name(0)) {
                Ok(Cost::Nothing) => "nothing".to_owned(),
                Ok(Cost::One) => "one".to_owned(),
                Err(wait) => wait.to_string(),
            };
            assert!(found.starts_with(wanted), "{what}: {found}");
        }
    }

    #[test]
    fn machines_are_taken_as_the_account_allows() {
        type Case = (
            &'static str,
            Option<usize>,
            &'static [Standing],
            &'static str,
        );
        // The first machine of each account is the one that is to be taken.
        #[rustfmt::skip]
        let cases: &[Case] = &[
            ("one to spare",                       Some(2), &[Serves, Serves, Serves],        "one"),
            ("none to spare",                      Some(3), &[Serves, Serves, Serves],        "wait: pool"),
            ("a dead one is missed",               Some(2), &[Serves, Serves, Down],          "wait: pool"),
            ("one that is taken is missed",        Some(2), &[Serves, Serves, Taken],         "wait: pool"),
            ("a dead one costs nothing",           Some(3), &[Down, Serves, Serves],          "nothing"),
            ("also when all are dead",             Some(3), &[Down, Down, Down],              "nothing"),
            ("also beside one that is taken",      Some(2), &[Down, Taken, Serves],           "nothing"),
            ("a taken one goes on",                Some(2), &[Taken, Serves, Serves],         "nothing"),
            ("two to spare, one dead",             Some(1), &[Serves, Serves, Down],          "one"),
            ("surge makes room",                   Some(3), &[Serves, Serves, Serves, Serves], "one"),
            ("the last of a pool that may be out", Some(0), &[Serves],                        "one"),
            ("three members",                      None,    &[Serves, Serves, Serves],        "one"),
            ("a dead member is missed",            None,    &[Serves, Serves, Down],          "wait: quorum"),
            ("one member at a time",               None,    &[Serves, Serves, Taken],         "wait: member"),
            ("a dead member costs nothing",        None,    &[Down, Serves, Serves],          "nothing"),
            ("nor beside one that is changed",     None,    &[Down, Taken, Serves],           "nothing"),
            ("quorum lost, both dead ones go",     None,    &[Down, Down, Serves],            "nothing"),
            ("the living one does not",            None,    &[Serves, Down, Down],            "wait: quorum"),
            ("five with one dead",                 None,    &[Serves, Serves, Serves, Serves, Down], "one"),
            ("five with two dead",                 None,    &[Serves, Serves, Serves, Down, Down],   "wait: quorum"),
            ("a cluster of one",                   None,    &[Serves],                        "one"),
        ];
        for (what, floor, standings, wanted) in cases {
            let found = match account(*floor, standings).take(&name(0)) {
                Ok(Cost::Nothing) => "nothing",
                Ok(Cost::One) => "one",
                Err(Wait::Pool { .. }) => "wait: pool",
                Err(Wait::Zone { .. }) => "wait: zone",
                Err(Wait::Member { .. }) => "wait: member",
                Err(Wait::Quorum { .. }) => "wait: quorum",
            };
            assert_eq!(found, *wanted, "{what}");
        }
    }

    #[test]
    fn who_waits_is_told_for_whom() {
        let wait = account(Some(3), &[Serves, Down, Taken, Serves]).take(&name(0));
        let said = wait.unwrap_err().to_string();
        for part in [
            "1 other machines",
            "3 have to",
            "down: m-1",
            "being changed: m-2",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
