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
use super::steps::{Key, Steps, Verb};
use super::{DesiredMachine, PlanError, members, takedown};
use crate::model::{Action, Disruption, Invariant};

/// Whatever is missing of one machine, up to its started components.
pub(super) fn bring_up(
    site: &Site<'_>,
    name: &MachineName,
    after: &[Key],
    steps: &mut Steps,
) -> Result<(), PlanError> {
    let mut after = after.to_vec();
    if takedown::may_run(site, name) {
        takedown::stop(name, false, &after, steps);
        after = vec![Verb::StopComponents.of(name)];
    }
    let reboots = takedown::reboot(site, name, &after, steps);
    if reboots {
        after = vec![Verb::Reboot.of(name)];
    }
    let mut agent = prepare(site, name, &after, steps)?;
    // What was stopped before a reboot is known to run once it was told to.
    agent.start |= reboots && steps.has(&Verb::StopComponents.of(name));
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
    after: &[Key],
    steps: &mut Steps,
) -> Result<Agent, PlanError> {
    let machine = &site.machines[name];
    let found = site.found(name);
    if found.is_some_and(|f| f.incarnation != machine.incarnation)
        && !steps.has(&Verb::Delete.of(name))
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
            Verb::Create.of(name),
            Action::CreateMachine {
                machine: name.clone(),
            },
            why,
            Invariant::OneIncarnation,
            Disruption::Nothing,
            after.iter().cloned().chain([Verb::Delete.of(name)]),
        );
    }
    let mounted = usable.is_some_and(|f| f.mounted);
    if machine.disk.is_some() {
        attach(site, name, mounted, steps)?;
    }
    let mount = machine.disk.is_some() && (steps.has(&Verb::AttachDisk.of(name)) || !mounted);
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
    let create_disk = Key::CreateDisk(disk.clone());
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
            [Verb::RemoveMember.of(name)],
        ),
    }
    let attached = holder == Some(&Some(name.clone()));
    if !attached || !mounted || steps.has(&Verb::Create.of(name)) {
        let why = if attached {
            "its data disk is not mounted, and where it is has to be known for that"
        } else {
            "its data disk is not attached"
        };
        steps.add(
            Verb::AttachDisk.of(name),
            Action::AttachDisk {
                disk: disk.clone(),
                machine: name.clone(),
            },
            why,
            Invariant::OneIncarnation,
            Disruption::Nothing,
            [create_disk, Verb::Create.of(name)],
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
pub(super) fn await_agent(name: &MachineName, mount: bool, after: &[Key], steps: &mut Steps) {
    let machine = || name.clone();
    let gates = after.iter().cloned();
    steps.add(
        Verb::AwaitAgent.of(name),
        Action::AwaitAgent { machine: machine() },
        "its agent has to be connected to be told anything",
        Invariant::StepEnds,
        Disruption::Nothing,
        gates.chain([Verb::Create.of(name)]),
    );
    if mount {
        steps.add(
            Verb::MountDisk.of(name),
            Action::MountDisk { machine: machine() },
            "its data disk is not mounted",
            Invariant::OneIncarnation,
            Disruption::Nothing,
            [Verb::AttachDisk.of(name), Verb::AwaitAgent.of(name)],
        );
    }
}

/// Brings the components that a machine is to run in place beside those that it runs. Returns whether it needs any.
pub(super) fn stage(site: &Site<'_>, name: &MachineName, after: &[Key], steps: &mut Steps) -> bool {
    let Some(refit) = &site.machines[name].refit else {
        return false;
    };
    let key = Verb::Stage.of(name);
    if !steps.has(&key) {
        steps.add(
            key,
            Action::StageComponents {
                machine: name.clone(),
                stemcell: refit.stemcell.clone(),
            },
            format!(
                "it gets {} in place; what it runs stays beside",
                refit.changes
            ),
            Invariant::StepEnds,
            Disruption::Nothing,
            after.iter().cloned().chain([Verb::AwaitAgent.of(name)]),
        );
    }
    true
}

pub(super) fn start_up(
    site: &Site<'_>,
    name: &MachineName,
    agent: Agent,
    after: &[Key],
    steps: &mut Steps,
) {
    let machine = || name.clone();
    if !steps.has(&Verb::AwaitAgent.of(name)) {
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
            Verb::GrowDisk.of(name),
            Action::GrowDisk {
                disk: disk.clone(),
                machine: machine(),
            },
            "its data disk is smaller than is wanted, and etcd's quota follows its size",
            Invariant::EtcdQuorum,
            disrupts,
            [
                Verb::AwaitAgent.of(name),
                Verb::MountDisk.of(name),
                Verb::MoveLeader.of(name),
            ],
        );
    }
    stage(site, name, after, steps);
    if agent.configure {
        let (configures, _) = whys(wanted);
        steps.add(
            Verb::Configure.of(name),
            Action::Configure { machine: machine() },
            configures,
            Invariant::VersionSkew,
            Disruption::Nothing,
            [
                Verb::AwaitAgent.of(name),
                Verb::Stage.of(name),
                Verb::GrowDisk.of(name),
                Verb::AddRoutes.of(name),
                // What it is told of members is told once they are.
                Key::checkpoint(members::JOINED),
                Verb::MoveLeader.of(name),
            ],
        );
    }
    let (_, starts) = whys(wanted);
    steps.add(
        Verb::Start.of(name),
        Action::StartComponents { machine: machine() },
        starts,
        Invariant::EtcdQuorum,
        disrupts,
        [
            Verb::AwaitAgent.of(name),
            Verb::MountDisk.of(name),
            Verb::GrowDisk.of(name),
            Verb::Configure.of(name),
            Verb::PromoteMember.of(name),
            Verb::MoveLeader.of(name),
            Key::checkpoint(ROUTES),
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
    if steps.has(&Verb::AwaitControlPlane.of(name)) {
        return;
    }
    if !steps.has(&Verb::AwaitAgent.of(name)) {
        steps.add(
            Verb::AwaitAgent.of(name),
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
        Verb::AwaitControlPlane.of(name),
        Action::AwaitControlPlane {
            machine: name.clone(),
        },
        "its member of etcd and its API server have to answer before anything is asked of it",
        Invariant::EtcdQuorum,
        Disruption::Nothing,
        [Verb::Start.of(name), Verb::AwaitAgent.of(name)],
    );
}

pub(super) fn await_node(site: &Site<'_>, name: &MachineName, steps: &mut Steps) {
    let reboots = steps.has(&Verb::Reboot.of(name));
    let back = reboots.then(|| Verb::AwaitAgent.of(name));
    steps.add(
        Verb::AwaitNode.of(name),
        Action::AwaitNode {
            machine: name.clone(),
            node: site.machines[name].node.clone(),
        },
        "the machine counts once its node is Ready and labelled",
        Invariant::StepEnds,
        Disruption::Nothing,
        [
            Verb::Start.of(name),
            Verb::AwaitControlPlane.of(name),
            Verb::JoinEndpoint.of(name),
            api_shown_by(site),
            // The director's right to look at nodes is one of the add-ons.
            Key::ADDONS,
            Key::ENDPOINT,
        ]
        .into_iter()
        .chain(back),
    );
}
