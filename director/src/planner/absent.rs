//! Plans a cluster that should not be there.

use std::collections::BTreeSet;

use windlass_common::id::DiskName;

use super::Observed;
use super::steps::{Steps, machine_key};
use crate::model::{Action, Disruption, Invariant, StepKey};

pub(super) fn plan(disks: &BTreeSet<DiskName>, observed: &Observed, steps: &mut Steps) {
    for machine in observed.machines.keys() {
        steps.add(
            machine_key(machine, "delete"),
            Action::DeleteMachine {
                machine: machine.clone(),
            },
            "the cluster is to be deleted",
            Invariant::OneIncarnation,
            Disruption::Api,
            [],
        );
    }
    for (disk, found) in &observed.disks {
        if !disks.contains(disk) {
            continue;
        }
        let holder = found.attached_to.iter().map(|m| machine_key(m, "delete"));
        steps.add(
            StepKey(format!("disk/{disk}/delete")),
            Action::DeleteDisk { disk: disk.clone() },
            "the order to delete the cluster names this disk",
            Invariant::NamedDeletion,
            Disruption::Data,
            holder,
        );
    }
    if observed.endpoint {
        steps.add(
            StepKey("endpoint/delete".to_owned()),
            Action::DeleteEndpoint,
            "the cluster is to be deleted",
            Invariant::StepEnds,
            Disruption::Api,
            [],
        );
    }
    if observed.records {
        let all: Vec<_> = steps.list.iter().map(|step| step.key.clone()).collect();
        steps.add(
            StepKey("cluster/forget".to_owned()),
            Action::ForgetCluster,
            "nothing of the cluster is left; its addresses and keys are given up last",
            Invariant::OneIncarnation,
            Disruption::Nothing,
            all,
        );
    }
}
