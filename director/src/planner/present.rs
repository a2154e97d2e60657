//! Plans a cluster that should be there.

use std::collections::BTreeMap;

use windlass_common::id::{ClusterName, Digest, DiskName, MachineName};

use super::{DesiredMachine, Observed, ObservedMachine, PlanError, Steps, machine_key};
use crate::model::{Action, Disruption, Invariant, StepKey};

pub(super) fn plan(
    cluster: &ClusterName,
    machines: &BTreeMap<MachineName, DesiredMachine>,
    addons: Digest,
    observed: &Observed,
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let first = machines
        .iter()
        .find(|(_, machine)| machine.control_plane)
        .map(|(name, _)| name)
        .ok_or_else(|| PlanError::NoControlPlane(cluster.clone()))?;
    if !(observed.endpoint && observed.endpoint_current) {
        steps.add(
            endpoint_key(),
            Action::EnsureEndpoint,
            "clients reach the cluster's API at its endpoint only",
            Invariant::StepEnds,
            Disruption::Nothing,
            [],
        );
    }
    remove_surplus(machines, observed, steps)?;
    for (name, machine) in machines {
        let found = observed.machines.get(name);
        make(name, machine, found, observed, steps)?;
    }
    let wanting = wanting_nodes(machines, observed, steps);
    let addons_due = observed.addons != Some(addons);
    await_control_planes(machines, first, addons_due || !wanting.is_empty(), steps);
    if addons_due {
        steps.add(
            StepKey("addons/apply".to_owned()),
            Action::ApplyAddons,
            "roles, cluster DNS and the other add-ons differ from what was applied last",
            Invariant::StepEnds,
            Disruption::Nothing,
            [machine_key(first, "await-control-plane")],
        );
    }
    for name in wanting {
        steps.add(
            machine_key(&name, "await-node"),
            Action::AwaitNode {
                machine: name.clone(),
                node: machines[&name].node.clone(),
            },
            "the machine counts once its node is Ready",
            Invariant::StepEnds,
            Disruption::Nothing,
            [
                machine_key(&name, "start"),
                machine_key(first, "await-control-plane"),
                // The director's right to look at nodes is one of the add-ons.
                StepKey("addons/apply".to_owned()),
                endpoint_key(),
            ],
        );
    }
    drop_nodes(machines, first, observed, steps);
    Ok(())
}

fn endpoint_key() -> StepKey {
    StepKey("endpoint/ensure".to_owned())
}

/// Deletes machines that are of no use: unwanted workers, and workers of another incarnation.
fn remove_surplus(
    machines: &BTreeMap<MachineName, DesiredMachine>,
    observed: &Observed,
    steps: &mut Steps,
) -> Result<(), PlanError> {
    for (name, found) in &observed.machines {
        let wanted = machines.get(name);
        if wanted.is_some_and(|wanted| wanted.incarnation == found.incarnation) {
            continue;
        }
        let control_plane = wanted.is_some_and(|wanted| wanted.control_plane);
        let holds_data = observed
            .disks
            .values()
            .any(|disk| disk.attached_to.as_ref() == Some(name));
        if control_plane || holds_data {
            return Err(PlanError::ControlPlaneMachine {
                machine: name.clone(),
                found: format!("incarnation {}", found.incarnation),
                wanted: wanted.map_or("no such machine".to_owned(), |wanted| {
                    format!("incarnation {}", wanted.incarnation)
                }),
            });
        }
        steps.add(
            machine_key(name, "delete"),
            Action::DeleteMachine {
                machine: name.clone(),
            },
            "it is not wanted, or not this incarnation of it",
            Invariant::OneIncarnation,
            Disruption::Pods,
            [],
        );
    }
    Ok(())
}

/// Whatever is missing of one machine, up to its started components.
fn make(
    name: &MachineName,
    machine: &DesiredMachine,
    found: Option<&ObservedMachine>,
    observed: &Observed,
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let usable = found.filter(|f| f.incarnation == machine.incarnation && f.complete);
    if usable.is_none() {
        steps.add(
            machine_key(name, "create"),
            Action::CreateMachine {
                machine: name.clone(),
            },
            match found {
                Some(f) if f.incarnation == machine.incarnation => "its creation was cut off",
                Some(_) => "another incarnation of it is wanted",
                None => "it does not exist",
            },
            Invariant::OneIncarnation,
            Disruption::Nothing,
            [machine_key(name, "delete")],
        );
    }
    if let Some(disk) = &machine.disk {
        attach(name, disk, observed, steps)?;
    }
    let mount = machine.disk.is_some()
        && (steps.has(&machine_key(name, "attach-disk")) || !usable.is_some_and(|f| f.mounted));
    let configure = usable.is_none_or(|f| f.configured != Some(machine.configuration));
    let start =
        mount || configure || usable.is_none_or(|f| f.started != Some(machine.configuration));
    if start {
        run_agent_steps(name, mount, configure, steps);
    }
    Ok(())
}

fn attach(
    name: &MachineName,
    disk: &DiskName,
    observed: &Observed,
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let create_disk = StepKey(format!("disk/{disk}/create"));
    let holder = observed.disks.get(disk).map(|disk| &disk.attached_to);
    match holder {
        Some(Some(holder)) if holder != name => {
            return Err(PlanError::DiskHeld {
                disk: disk.clone(),
                holder: holder.clone(),
            });
        }
        Some(_) => {}
        None => steps.add(
            create_disk.clone(),
            Action::CreateDisk {
                disk: disk.clone(),
                machine: name.clone(),
            },
            "etcd's data has to outlive its machine",
            Invariant::NamedDeletion,
            Disruption::Nothing,
            [],
        ),
    }
    if holder != Some(&Some(name.clone())) || steps.has(&machine_key(name, "create")) {
        steps.add(
            machine_key(name, "attach-disk"),
            Action::AttachDisk {
                disk: disk.clone(),
                machine: name.clone(),
            },
            "its data disk is not attached",
            Invariant::OneIncarnation,
            Disruption::Nothing,
            [create_disk, machine_key(name, "create")],
        );
    }
    Ok(())
}

fn run_agent_steps(name: &MachineName, mount: bool, configure: bool, steps: &mut Steps) {
    let machine = || name.clone();
    steps.add(
        machine_key(name, "await-agent"),
        Action::AwaitAgent { machine: machine() },
        "its agent has to be connected to be told anything",
        Invariant::StepEnds,
        Disruption::Nothing,
        [machine_key(name, "create")],
    );
    if mount {
        steps.add(
            machine_key(name, "mount-disk"),
            Action::MountDisk { machine: machine() },
            "its data disk is not mounted",
            Invariant::OneIncarnation,
            Disruption::Nothing,
            [
                machine_key(name, "attach-disk"),
                machine_key(name, "await-agent"),
            ],
        );
    }
    if configure {
        steps.add(
            machine_key(name, "configure"),
            Action::Configure { machine: machine() },
            "its configuration differs from what is wanted",
            Invariant::VersionSkew,
            Disruption::Nothing,
            [machine_key(name, "await-agent")],
        );
    }
    steps.add(
        machine_key(name, "start"),
        Action::StartComponents { machine: machine() },
        "its components do not run with this configuration",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        [
            machine_key(name, "await-agent"),
            machine_key(name, "mount-disk"),
            machine_key(name, "configure"),
        ],
    );
}

/// Machines whose node was not seen Ready, or is about to change.
fn wanting_nodes(
    machines: &BTreeMap<MachineName, DesiredMachine>,
    observed: &Observed,
    steps: &Steps,
) -> Vec<MachineName> {
    machines
        .keys()
        .filter(|name| {
            steps.has(&machine_key(name, "start"))
                || !observed.machines.get(*name).is_some_and(|f| f.ready)
        })
        .cloned()
        .collect()
}

/// Waits for each API server that is started, and for the first one whenever the API is needed.
fn await_control_planes(
    machines: &BTreeMap<MachineName, DesiredMachine>,
    first: &MachineName,
    needed: bool,
    steps: &mut Steps,
) {
    for (name, machine) in machines {
        let started = machine.control_plane && steps.has(&machine_key(name, "start"));
        let asked = needed && name == first;
        if !started && !asked {
            continue;
        }
        if !started {
            steps.add(
                machine_key(name, "await-agent"),
                Action::AwaitAgent {
                    machine: name.clone(),
                },
                "its agent has to be connected to be asked anything",
                Invariant::StepEnds,
                Disruption::Nothing,
                [],
            );
        }
        steps.add(
            machine_key(name, "await-control-plane"),
            Action::AwaitControlPlane {
                machine: name.clone(),
            },
            "its API server has to answer before anything is asked of it",
            Invariant::EtcdQuorum,
            Disruption::Nothing,
            [machine_key(name, "start"), machine_key(name, "await-agent")],
        );
    }
}

/// Removes the Node objects of machines that are deleted.
fn drop_nodes(
    machines: &BTreeMap<MachineName, DesiredMachine>,
    first: &MachineName,
    observed: &Observed,
    steps: &mut Steps,
) {
    for (name, found) in &observed.machines {
        if !steps.has(&machine_key(name, "delete")) || !found.ready {
            continue;
        }
        if machines.get(name).is_some_and(|m| m.node == found.node) {
            continue;
        }
        steps.add(
            machine_key(name, "drop-node"),
            Action::DropNode {
                machine: name.clone(),
                node: found.node.clone(),
            },
            "its machine is gone, so its pods have to be moved and its name given up",
            Invariant::OneIncarnation,
            Disruption::Pods,
            [
                machine_key(name, "delete"),
                machine_key(first, "await-control-plane"),
            ],
        );
    }
}
