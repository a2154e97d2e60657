//! Which zone a machine is put into, and which machine leaves when there are too many. Pure.
//!
//! # Invariants
//! * The machines of a pool, and those of a control plane, are spread: no zone has two more than another, as far as
//!   their number was free to choose.
//! * A machine stays in its zone in all of its incarnations: its disk is there.
//!
//! # Not here
//! That one zone is changed after the other ([`super::plan`]).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use windlass_common::id::{MachineName, ZoneName};

use crate::model::{Machine, MachinePhase};

/// Puts machines that were just drafted, and are in no zone, into those of the provider: each where fewest of its role
/// stay, the first of these in the provider's order.
pub fn spread(machines: &mut [Machine], zones: &[ZoneName]) {
    let new = |machine: &Machine| {
        machine.zone.is_none()
            && machine.phase == MachinePhase::Planned
            && machine.incarnation.0 == 1
    };
    for at in 0..machines.len() {
        if !new(&machines[at]) || machines[at].is_surplus() {
            continue;
        }
        let role = &machines[at].role;
        let alike = machines
            .iter()
            .filter(|m| m.role == *role && !m.is_surplus());
        let mut held: BTreeMap<&ZoneName, usize> = BTreeMap::new();
        for zone in alike.filter_map(|machine| machine.zone.as_ref()) {
            *held.entry(zone).or_default() += 1;
        }
        let fewest = zones
            .iter()
            .min_by_key(|zone| held.get(zone).copied().unwrap_or(0));
        machines[at].zone = fewest.cloned();
    }
}

/// Machines of which the first are to leave, in an order in which those who stay are spread: who shares a zone with most
/// of those after it goes first, and of several such the first.
pub fn crowded_first(machines: &[Machine]) -> Vec<MachineName> {
    let mut after: BTreeMap<Option<&ZoneName>, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, &MachineName)> = Vec::new();
    for machine in machines.iter().rev() {
        let others = after.entry(machine.zone.as_ref()).or_default();
        ranked.push((*others, &machine.name));
        *others += 1;
    }
    ranked.reverse();
    ranked.sort_by_key(|(others, _)| Reverse(*others));
    ranked.into_iter().map(|(_, name)| name.clone()).collect()
}
