//! Steps of a plan as they are being collected, and how the planner speaks of them.
//!
//! A step is asked for, waited for and looked up in many places. In all of them it is a [`Key`], which costs next to
//! nothing to mention; the name that a plan has for it is made once, when it is added.

use std::borrow::Cow;

use rustc_hash::FxHashMap;
use windlass_common::id::{DiskName, MachineName, NodeName};

use crate::model::{Action, Disruption, Invariant, PlanStep, StepKey};

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// One that a cluster has once, by its name.
    Cluster(&'static str),
    /// What is done to a machine, or waited for of it.
    Machine(MachineName, Verb),
    /// The same in the part of a restore that comes before everything else.
    Restore(MachineName, Verb),
    /// A disk is made.
    CreateDisk(DiskName),
    /// A disk is deleted.
    DeleteDisk(DiskName),
    /// The object of a Node is removed.
    DropNode(NodeName),
    /// A place where steps meet.
    Checkpoint(Cow<'static, str>),
}

impl Key {
    /// The endpoint is as it should be.
    pub(super) const ENDPOINT: Key = Key::Cluster("endpoint/ensure");
    /// The API answers.
    pub(super) const API: Key = Key::Cluster("api/await");
    /// The add-ons are applied.
    pub(super) const ADDONS: Key = Key::Cluster("addons/apply");

    /// The checkpoint of this name.
    pub(super) fn checkpoint(of: impl Into<Cow<'static, str>>) -> Key {
        Key::Checkpoint(of.into())
    }

    /// What a plan calls it. `text` is where that is put together.
    fn name(&self, text: &mut String) -> StepKey {
        let parts = match self {
            Key::Cluster(name) => [name, "", "", ""],
            Key::Machine(machine, verb) => ["machine/", machine.as_str(), "/", verb.name()],
            Key::Restore(machine, verb) => ["restore/", machine.as_str(), "/", verb.name()],
            Key::CreateDisk(disk) => ["disk/", disk.as_str(), "/", "create"],
            Key::DeleteDisk(disk) => ["disk/", disk.as_str(), "/", "delete"],
            Key::DropNode(node) => ["node/", node.as_str(), "/", "drop"],
            Key::Checkpoint(of) => ["checkpoint/", of, "", ""],
        };
        text.clear();
        text.extend(parts);
        StepKey(text.as_str().into())
    }
}

/// What a plan calls a step of a machine.
pub(crate) fn machine_key(machine: &MachineName, verb: Verb) -> StepKey {
    verb.of(machine).name(&mut String::new())
}

macro_rules! verbs {
    ($($verb:ident $name:literal,)*) => {
        /// What is done to a machine, or waited for of it: [`Action`] says what each of them is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Verb {
            $($verb,)*
        }

        impl Verb {
            /// The last part of what a plan calls the step.
            fn name(self) -> &'static str {
                match self {
                    $(Verb::$verb => $name,)*
                }
            }
        }
    };
}

verbs! {
    AddMember "add-member",
    AddRoutes "add-routes",
    AttachDisk "attach-disk",
    AwaitAgent "await-agent",
    AwaitControlPlane "await-control-plane",
    AwaitGates "await-gates",
    AwaitNode "await-node",
    Configure "configure",
    Create "create",
    Delete "delete",
    Drain "drain",
    Fence "fence",
    Forget "forget",
    GrowDisk "grow-disk",
    JoinEndpoint "join-endpoint",
    LeaveEndpoint "leave-endpoint",
    MountDisk "mount-disk",
    MoveLeader "move-leader",
    PromoteMember "promote-member",
    PruneRoutes "prune-routes",
    Reboot "reboot",
    RemoveMember "remove-member",
    RenewCertificates "renew-certificates",
    RestartKubelet "restart-kubelet",
    RestoreMember "restore-member",
    SaveSnapshot "save-snapshot",
    SetMemberAside "set-member-aside",
    Stage "stage",
    Start "start",
    StartMember "start-member",
    StopApi "stop-api",
    StopComponents "stop-components",
    StopMember "stop-member",
    Uncordon "uncordon",
    UpgradeAgent "upgrade-agent",
}

impl Verb {
    /// The step that does it to a machine.
    pub(super) fn of(self, machine: &MachineName) -> Key {
        Key::Machine(machine.clone(), self)
    }
}

/// Steps in the order in which they were added; what a step waits for is dropped when it is not planned.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) list: Vec<PlanStep>,
    /// Where each of them is in the list.
    at: FxHashMap<Key, usize>,
    /// Where names are put together.
    text: String,
}

impl Steps {
    pub(super) fn add(
        &mut self,
        key: Key,
        action: Action,
        why: impl Into<Cow<'static, str>>,
        guard: Invariant,
        disrupts: Disruption,
        after: impl IntoIterator<Item = Key>,
    ) {
        let planned = |key: Key| self.at.get(&key).map(|at| self.list[*at].key.clone());
        let mut after: Vec<StepKey> = after.into_iter().filter_map(planned).collect();
        after.sort_unstable();
        after.dedup();
        self.list.push(PlanStep {
            key: key.name(&mut self.text),
            action,
            why: why.into(),
            guard,
            disrupts,
            after,
        });
        self.at.insert(key, self.list.len() - 1);
    }

    /// A place where the steps `after` meet; not added when none of them is planned.
    pub(super) fn checkpoint(
        &mut self,
        of: impl Into<Cow<'static, str>>,
        why: &'static str,
        guard: Invariant,
        after: impl IntoIterator<Item = Key>,
    ) {
        let after: Vec<_> = after.into_iter().filter(|key| self.has(key)).collect();
        if after.is_empty() {
            return;
        }
        let of = of.into();
        let action = Action::Checkpoint {
            of: of.clone().into_owned(),
        };
        let key = Key::Checkpoint(of);
        self.add(key, action, why, guard, Disruption::Nothing, after);
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.at.contains_key(key)
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &PlanStep)> {
        let mut keys: Vec<(&Key, usize)> = self.at.iter().map(|(key, at)| (key, *at)).collect();
        keys.sort_unstable_by_key(|(_, at)| *at);
        keys.into_iter().map(|(key, at)| (key, &self.list[at]))
    }
}
