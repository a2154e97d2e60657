//! What has been struck, and where: step kind × fault × point.
//!
//! The cells that have to be struck follow from the types: every kind of step that a plan may have is given its
//! place ([`Place`]) by an exhaustive `match`, and every fault says at which places and points it strikes. A new
//! kind of step, fault or point that nobody has thought of here does not compile, or leaves cells empty.

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;
use windlass_director::model::Action;

/// A fault that the simulation causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The director dies.
    DirectorDies,
    /// The store refuses to write for a while.
    StoreRefuses,
    /// The provider fails before it has done anything.
    ProviderFails,
    /// The provider does what it was asked, and its answer is lost.
    ProviderAnswerLost,
    /// The provider takes minutes.
    ProviderSlow,
    /// The provider makes half a machine.
    HalfMade,
    /// A request to an agent is lost with its link.
    RequestLost,
    /// An agent's answer is lost with its link.
    AnswerLost,
    /// A request arrives twice, the second time late.
    Duplicated,
    /// A request arrives late, after others that were sent later.
    Delayed,
    /// A director that is taken for dead stood still: it sends what it was sending when others are in charge.
    FormerLife,
    /// The agent is killed.
    AgentDies,
    /// The machine loses power and starts again after a while.
    MachineDies,
    /// The machine stands still for a while, as a paused VM does.
    MachineFrozen,
    /// A step fails on its machine.
    StepFails,
    /// A step takes longer than its deadline.
    StepSlow,
    /// The cluster's API refuses everything for a while.
    ApiRefuses,
    /// The API does what it was asked, and its answer is lost.
    ApiAnswerLost,
    /// Budgets let no pod go for a while.
    PodsHeld,
    /// A gate is shut.
    GateShut,
    /// All clocks jump minutes ahead.
    ClockJumps,
}

/// Where in a step it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Point {
    /// Before the intent is written down.
    BeforeIntent,
    /// After that, before anything is done.
    AfterIntent,
    /// When something is asked for.
    BeforeEffect,
    /// When it was done.
    AfterEffect,
    /// Before it is written down that the step is over.
    BeforeEnd,
    /// After that.
    AfterEnd,
}

/// Whom a step asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The provider.
    Provider,
    /// An agent, which carries it out.
    Agent,
    /// The cluster's API.
    Api,
    /// A machine, whether it is connected.
    Connection,
    /// Nobody: it only changes records.
    Records,
    /// No plan of the simulation has it; what tries its faults instead.
    Elsewhere(&'static str),
}

/// Gives each kind of step its place, whether it is rare (in few plans, or once in one: each of its points is met
/// seldom), and its name.
macro_rules! kinds {
    ($($kind:ident $name:literal $place:expr, $rare:literal;)*) => {
        /// Every kind of step.
        pub const KINDS: &[(&str, Place, bool)] = &[$(($name, $place, $rare)),*];

        /// The kind of a step.
        pub fn kind(action: &Action) -> &'static (&'static str, Place, bool) {
            match action {
                $(Action::$kind { .. } => &($name, $place, $rare),)*
            }
        }
    };
}

/// Plans of restores.
const RESTORE: Place =
    Place::Elsewhere("director/src/rollout/tests/restore.rs, tests/tests/e2e/restore.rs");
/// Plans of rotations and renewals.
const ROTATE: Place =
    Place::Elsewhere("director/src/rollout/tests/renewal.rs, tests/tests/e2e/rotation.rs");
/// Control planes that change their size.
const MEMBERS: Place =
    Place::Elsewhere("director/src/planner/tests/membership.rs, tests/tests/e2e/etcd.rs");
/// Data disks that get larger.
const GROW: Place =
    Place::Elsewhere("director/src/rollout/tests/update.rs, tests/tests/e2e/repair.rs");
/// Components that are changed in place.
const REFIT: Place =
    Place::Elsewhere("director/src/rollout/tests/refit.rs, tests/tests/e2e/refit.rs");
/// Machines that serve and are restarted.
const REBOOT: Place = Place::Elsewhere("director/src/rollout/tests/reboot.rs");
/// Real requests, and real files of an agent.
const REAL: Place = Place::Elsewhere("tests/tests/e2e");

kinds! {
    EnsureEndpoint "ensure-endpoint" Place::Provider, true;
    CreateDisk "create-disk" Place::Provider, true;
    CreateMachine "create-machine" Place::Provider, false;
    AttachDisk "attach-disk" Place::Provider, true;
    AwaitAgent "await-agent" Place::Connection, false;
    MountDisk "mount-disk" Place::Agent, true;
    GrowDisk "grow-disk" GROW, false;
    Configure "configure" Place::Agent, false;
    StageComponents "stage-components" REFIT, false;
    StartComponents "start-components" Place::Agent, false;
    AwaitControlPlane "await-control-plane" Place::Agent, false;
    ApplyAddons "apply-addons" Place::Api, true;
    AwaitNode "await-node" Place::Api, false;
    DropNode "drop-node" Place::Api, true;
    DeleteMachine "delete-machine" Place::Provider, true;
    DeleteDisk "delete-disk" Place::Provider, true;
    DeleteEndpoint "delete-endpoint" Place::Provider, true;
    ForgetCluster "forget-cluster" Place::Records, true;
    AwaitApi "await-api" Place::Api, true;
    LeaveEndpoint "leave-endpoint" Place::Provider, true;
    JoinEndpoint "join-endpoint" Place::Provider, true;
    Drain "drain" Place::Api, true;
    Uncordon "uncordon" Place::Api, true;
    StopComponents "stop-components" Place::Agent, true;
    Fence "fence" Place::Provider, true;
    AddRoutes "add-routes" Place::Agent, false;
    PruneRoutes "prune-routes" Place::Agent, true;
    ForgetMachine "forget-machine" Place::Records, true;
    AwaitGates "await-gates" Place::Api, true;
    UpgradeAgent "upgrade-agent" REAL, false;
    RenewCertificates "renew-certificates" ROTATE, false;
    AddMember "add-member" MEMBERS, false;
    StartMember "start-member" MEMBERS, false;
    PromoteMember "promote-member" MEMBERS, false;
    MoveLeader "move-leader" Place::Agent, true;
    SaveSnapshot "save-snapshot" Place::Agent, true;
    RemoveMember "remove-member" MEMBERS, false;
    SpreadTrust "spread-trust" ROTATE, false;
    RewriteSecrets "rewrite-secrets" ROTATE, false;
    AwaitDns "await-dns" ROTATE, false;
    Checkpoint "checkpoint" Place::Records, true;
    StopApi "stop-api" RESTORE, false;
    StopMember "stop-member" RESTORE, false;
    RestoreMember "restore-member" RESTORE, false;
    SetMemberAside "set-member-aside" RESTORE, false;
    RestartKubelet "restart-kubelet" RESTORE, false;
    SettleNodes "settle-nodes" RESTORE, false;
    RebootMachine "reboot-machine" REBOOT, false;
}

/// Whether each point of a kind of step is met seldom.
pub fn is_rare(step: &str) -> bool {
    // A command of an operator is no step of a plan, and rare as well.
    step == "exec" || KINDS.iter().any(|(name, _, rare)| *rare && *name == step)
}

impl Fault {
    /// Whether it strikes this step at this point.
    fn strikes(self, step: &str, place: Place, point: Point) -> bool {
        use Place::{Agent, Api, Connection, Provider, Records};
        use Point::{AfterEffect, AfterEnd, BeforeEffect, BeforeEnd, BeforeIntent};
        let acts = matches!(place, Provider | Agent | Api | Connection);
        let effect = matches!(point, BeforeEffect | AfterEffect);
        // Before and after what an agent writes into its journal; between its two writes are the effects.
        let journal = matches!(point, BeforeIntent | AfterEnd);
        match self {
            Self::DirectorDies => acts || place == Records && !effect,
            Self::StoreRefuses => {
                (acts || place == Records) && matches!(point, BeforeIntent | BeforeEnd)
            }
            Self::ProviderFails | Self::ProviderSlow | Self::ClockJumps => {
                place == Provider && point == BeforeEffect
            }
            Self::ProviderAnswerLost => place == Provider && point == AfterEffect,
            Self::HalfMade => step == "create-machine" && point == BeforeEffect,
            Self::RequestLost | Self::Duplicated | Self::Delayed | Self::FormerLife => {
                place == Agent && point == BeforeEffect
            }
            Self::AnswerLost => place == Agent && point == AfterEffect,
            Self::AgentDies => place == Agent && (effect || journal),
            Self::MachineFrozen => place == Agent && effect,
            Self::MachineDies => {
                place == Agent && (effect || journal) || place == Api && point == BeforeEffect
            }
            Self::StepFails | Self::StepSlow => place == Agent && point == BeforeEffect,
            Self::ApiRefuses => place == Api && point == BeforeEffect,
            Self::ApiAnswerLost => place == Api && point == AfterEffect,
            Self::GateShut => step == "await-gates" && point == BeforeEffect,
            Self::PodsHeld => step == "drain" && point == BeforeEffect,
        }
    }
}

/// How often each cell was struck.
#[derive(Debug, Clone, Default)]
pub struct Coverage(BTreeMap<(&'static str, Fault, Point), u64>);

impl Coverage {
    /// Counts one strike.
    pub fn note(&mut self, step: &'static str, fault: Fault, point: Point) {
        *self.0.entry((step, fault, point)).or_default() += 1;
    }

    /// Adds what another seed has struck.
    pub fn add(&mut self, other: &Coverage) {
        for (cell, count) in &other.0 {
            *self.0.entry(*cell).or_default() += count;
        }
    }

    /// Every cell that can be struck.
    pub fn reachable() -> Vec<(&'static str, Fault, Point)> {
        let mut cells = Vec::new();
        for (step, place, _) in KINDS {
            for fault in Fault::value_variants() {
                for point in Point::value_variants() {
                    if fault.strikes(step, *place, *point) {
                        cells.push((*step, *fault, *point));
                    }
                }
            }
        }
        cells
    }

    /// Cells that can be struck and were not.
    pub fn missing(&self) -> Vec<(&'static str, Fault, Point)> {
        let mut missing = Self::reachable();
        missing.retain(|cell| !self.0.contains_key(cell));
        missing
    }
}

/// A table: a row for each step kind and point, a column for each fault.
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: BTreeMap<(&str, Point), BTreeMap<Fault, u64>> = BTreeMap::new();
        for (step, fault, point) in Self::reachable() {
            rows.entry((step, point)).or_default().insert(fault, 0);
        }
        for ((step, fault, point), count) in &self.0 {
            *rows
                .entry((step, *point))
                .or_default()
                .entry(*fault)
                .or_default() += count;
        }
        for ((step, point), faults) in rows {
            write!(f, "{step:<20} {:<13}", format!("{point:?}"))?;
            for (fault, count) in faults {
                write!(f, " {fault:?} {count};")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_point_and_step_that_is_simulated_has_cells() {
        let cells = Coverage::reachable();
        for fault in Fault::value_variants() {
            assert!(cells.iter().any(|(_, of, _)| of == fault), "{fault:?}");
        }
        for point in Point::value_variants() {
            assert!(cells.iter().any(|(.., of)| of == point), "{point:?}");
        }
        for (step, place, _) in KINDS {
            let has = cells.iter().any(|(of, ..)| of == step);
            assert_eq!(has, !matches!(place, Place::Elsewhere(_)), "{step}");
        }
        let none = Coverage::default();
        assert_eq!(none.missing().len(), cells.len());
    }
}
