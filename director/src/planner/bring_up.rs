//! How one machine is brought up: from what the provider makes of it to a node that is Ready.
//!
//! # Invariants
//! * Only what is missing is planned: a machine that is half made goes on where it was.
//! * An earlier incarnation is gone before the next is made, and a disk that another machine has is not taken.
//! * A member of etcd that goes on has to find its data: an empty disk is made only for one that joins, or that begins
//!   a cluster.
//! * What a machine runs with is written before its components start, and those that it gets in place are staged before
//!   that. Components start once their machine has joined etcd, and once others know the way to its pods.
//! * A step is in the plan once, whoever of [`super::present`], [`super::takedown`] and [`super::members`] asked for it:
//!   one that waits for a step which is not in the plan waits for nothing.
//!
//! # After a crash
//! Nothing is kept; plan again.
//!
//! # Not here
//! Which machines need this, and when ([`super::present`], [`super::takedown`]). How a member joins etcd
//! ([`super::members`]).

use windlass_common::id::MachineName;

use super::present::{Need, ROUTES, Site, api_shown_by, data_lost, short_of_disk};
use super::steps::{Steps, addons_key, checkpoint_key, endpoint_key, machine_key};
use super::{DesiredMachine, PlanError, members, takedown};
use crate::model::{Action, Disruption, Invariant, StepKey};

/// Whatever is missing of one machine, up to its started components.
pub(super) fn bring_up(
    site: &Site<'_>,
    name: &MachineName,
    after: &[StepKey],
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let mut after = after.to_vec();
    if takedown::may_run(site, name) {
        takedown::stop(name, false, &after, steps);
        after = vec![machine_key(name, "stop-components")];
    }
    let reboots = takedown::reboot(site, name, &after, steps);
    if reboots {
        after = vec![machine_key(name, "reboot")];
    }
    let mut agent = prepare(site, name, &after, steps)?;
    // What was stopped before a reboot is known to run once it was told to.
    agent.start |= reboots && steps.has(&machine_key(name, "stop-components"));
    if agent.start {
        start_up(site, name, agent, &after, steps);
    } else if reboots {
        await_agent(name, agent.mount, &after, steps);
    }
    Ok(())
}

/// Whatever is missing of one machine before its agent is told anything.
pub(super) fn prepare(
    site: &Site<'_>,
    name: &MachineName,
    after: &[StepKey],
    steps: &mut Steps,
) -> Result<Agent, PlanError> {
    let machine = &site.machines[name];
    let found = site.found(name);
    if found.is_some_and(|f| f.incarnation != machine.incarnation)
        && !steps.has(&machine_key(name, "delete"))
    {
        takedown::delete(
            site,
            name,
            "another incarnation of it is wanted",
            after,
            steps,
        );
    }
    let usable = found.filter(|f| f.incarnation == machine.incarnation && f.complete);
    if usable.is_none() {
        let why = match found {
            Some(f) if f.incarnation == machine.incarnation => "its creation was cut off",
            Some(_) => "another incarnation of it is wanted",
            None => "it does not exist",
        };
        steps.add(
            machine_key(name, "create"),
            Action::CreateMachine {
                machine: name.clone(),
            },
            why,
            Invariant::OneIncarnation,
            Disruption::Nothing,
            after.iter().cloned().chain([machine_key(name, "delete")]),
        );
    }
    let mounted = usable.is_some_and(|f| f.mounted);
    if machine.disk.is_some() {
        attach(site, name, mounted, steps)?;
    }
    let mount =
        machine.disk.is_some() && (steps.has(&machine_key(name, "attach-disk")) || !mounted);
    let start = mount
        || short_of_disk(site.observed, name, machine)
        || usable.is_none_or(|f| f.started != Some(machine.components));
    // Routes may have been told it as it will be, without the switch to other components.
    let configure = usable.is_none_or(|f| f.configured != Some(machine.configuration))
        || (start && machine.refit.is_some());
    Ok(Agent {
        mount,
        configure,
        start,
    })
}

/// Makes and attaches a machine's data disk, also one that is attached and was not mounted yet: what had
/// attached it may have ended before it was written down where it is.
fn attach(
    site: &Site<'_>,
    name: &MachineName,
    mounted: bool,
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let machine = &site.machines[name];
    let Some(disk) = &machine.disk else {
        return Ok(());
    };
    let create_disk = StepKey(format!("disk/{disk}/create"));
    let holder = site.observed.disks.get(disk).map(|disk| &disk.attached_to);
    match holder {
        Some(Some(holder)) if holder != name => {
            return Err(PlanError::DiskHeld {
                disk: disk.clone(),
                holder: holder.clone(),
            });
        }
        Some(_) => {}
        // A member that goes on has to find its disk; one that joins, or begins a cluster, makes it.
        None if data_lost(machine, site.found(name), site.observed)
            && !site.joining.contains(name) =>
        {
            let (members, others) = site.other_votes(name);
            return Err(PlanError::DiskLost {
                disk: disk.clone(),
                machine: name.clone(),
                others,
                members,
            });
        }
        None => steps.add(
            create_disk.clone(),
            Action::CreateDisk {
                disk: disk.clone(),
                machine: name.clone(),
            },
            "etcd's data has to outlive its machine",
            Invariant::NamedDeletion,
            Disruption::Nothing,
            [machine_key(name, "remove-member")],
        ),
    }
    let attached = holder == Some(&Some(name.clone()));
    if !attached || !mounted || steps.has(&machine_key(name, "create")) {
        let why = if attached {
            "its data disk is not mounted, and where it is has to be known for that"
        } else {
            "its data disk is not attached"
        };
        steps.add(
            machine_key(name, "attach-disk"),
            Action::AttachDisk {
                disk: disk.clone(),
                machine: name.clone(),
            },
            why,
            Invariant::OneIncarnation,
            Disruption::Nothing,
            [create_disk, machine_key(name, "create")],
        );
    }
    Ok(())
}

/// What an agent has to do before its components start.
pub(super) struct Agent {
    pub(super) mount: bool,
    pub(super) configure: bool,
    /// Whether its components have to start at all.
    pub(super) start: bool,
}

impl Agent {
    /// All of it.
    pub(super) fn whole(self) -> Agent {
        Agent {
            configure: true,
            start: true,
            ..self
        }
    }
}

/// Waits for a machine's agent, and has it mount the data disk.
pub(super) fn await_agent(name: &MachineName, mount: bool, after: &[StepKey], steps: &mut Steps) {
    let machine = || name.clone();
    let gates = after.iter().cloned();
    steps.add(
        machine_key(name, "await-agent"),
        Action::AwaitAgent { machine: machine() },
        "its agent has to be connected to be told anything",
        Invariant::StepEnds,
        Disruption::Nothing,
        gates.chain([machine_key(name, "create")]),
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
}

/// Brings the components that a machine is to run in place beside those that it runs. Returns whether it needs any.
pub(super) fn stage(
    site: &Site<'_>,
    name: &MachineName,
    after: &[StepKey],
    steps: &mut Steps,
) -> bool {
    let Some(refit) = &site.machines[name].refit else {
        return false;
    };
    let key = machine_key(name, "stage");
    if !steps.has(&key) {
        steps.add(
            key,
            Action::StageComponents {
                machine: name.clone(),
                stemcell: refit.stemcell.clone(),
            },
            &format!(
                "it gets {} in place; what it runs stays beside",
                refit.changes
            ),
            Invariant::StepEnds,
            Disruption::Nothing,
            after
                .iter()
                .cloned()
                .chain([machine_key(name, "await-agent")]),
        );
    }
    true
}

pub(super) fn start_up(
    site: &Site<'_>,
    name: &MachineName,
    agent: Agent,
    after: &[StepKey],
    steps: &mut Steps,
) {
    let machine = || name.clone();
    if !steps.has(&machine_key(name, "await-agent")) {
        await_agent(name, agent.mount, after, steps);
    }
    let only_member = site.members == 1 && site.machines[name].control_plane();
    let disrupts = if only_member && site.needs[name] == Need::Restart {
        Disruption::Api
    } else {
        Disruption::Nothing
    };
    let wanted = &site.machines[name];
    if let Some(disk) = &wanted.disk
        && short_of_disk(site.observed, name, wanted)
    {
        steps.add(
            machine_key(name, "grow-disk"),
            Action::GrowDisk {
                disk: disk.clone(),
                machine: machine(),
            },
            "its data disk is smaller than is wanted, and etcd's quota follows its size",
            Invariant::EtcdQuorum,
            disrupts,
            [
                machine_key(name, "await-agent"),
                machine_key(name, "mount-disk"),
                machine_key(name, "move-leader"),
            ],
        );
    }
    stage(site, name, after, steps);
    if agent.configure {
        let (configures, _) = whys(wanted);
        steps.add(
            machine_key(name, "configure"),
            Action::Configure { machine: machine() },
            configures,
            Invariant::VersionSkew,
            Disruption::Nothing,
            [
                machine_key(name, "await-agent"),
                machine_key(name, "stage"),
                machine_key(name, "grow-disk"),
                machine_key(name, "add-routes"),
                // What it is told of members is told once they are.
                checkpoint_key(members::JOINED),
                machine_key(name, "move-leader"),
            ],
        );
    }
    let (_, starts) = whys(wanted);
    steps.add(
        machine_key(name, "start"),
        Action::StartComponents { machine: machine() },
        starts,
        Invariant::EtcdQuorum,
        disrupts,
        [
            machine_key(name, "await-agent"),
            machine_key(name, "mount-disk"),
            machine_key(name, "grow-disk"),
            machine_key(name, "configure"),
            machine_key(name, "promote-member"),
            machine_key(name, "move-leader"),
            checkpoint_key(ROUTES),
        ],
    );
}

/// Why a machine is configured, and why its components start.
fn whys(wanted: &DesiredMachine) -> (&'static str, &'static str) {
    match &wanted.refit {
        None => (
            "its configuration differs from what is wanted",
            "its components do not run with this configuration",
        ),
        Some(_) => (
            "its links are switched to the components that were staged",
            "units whose components were switched run the former ones; all have to be healthy, or it goes back",
        ),
    }
}

/// Waits for a machine's API server.
pub(super) fn await_control_plane(name: &MachineName, steps: &mut Steps) {
    if steps.has(&machine_key(name, "await-control-plane")) {
        return;
    }
    if !steps.has(&machine_key(name, "await-agent")) {
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
        "its member of etcd and its API server have to answer before anything is asked of it",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        [machine_key(name, "start"), machine_key(name, "await-agent")],
    );
}

pub(super) fn await_node(site: &Site<'_>, name: &MachineName, steps: &mut Steps) {
    let reboots = steps.has(&machine_key(name, "reboot"));
    let back = reboots.then(|| machine_key(name, "await-agent"));
    steps.add(
        machine_key(name, "await-node"),
        Action::AwaitNode {
            machine: name.clone(),
            node: site.machines[name].node.clone(),
        },
        "the machine counts once its node is Ready and labelled",
        Invariant::StepEnds,
        Disruption::Nothing,
        [
            machine_key(name, "start"),
            machine_key(name, "await-control-plane"),
            machine_key(name, "join-endpoint"),
            api_shown_by(site),
            // The director's right to look at nodes is one of the add-ons.
            addons_key(),
            endpoint_key(),
        ]
        .into_iter()
        .chain(back),
    );
}
