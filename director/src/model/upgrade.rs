//! An upgrade to a later minor of Kubernetes: one leg after the other.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Digest, MachineName};

use super::DrainForecast;
use crate::kubernetes::facts::minor_of;

/// How far a cluster is on its way to a later minor.
///
/// # Invariants
/// * While a leg is under way, the cluster's spec has the version of that leg and not the one that was ordered.
/// * Each leg is at most one minor later than the one before it.
/// * Machines of the control plane that are newer than what there was emulate it, until a leg raises them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// What ran when it was ordered: the oldest version of the control plane.
    pub from: String,
    /// Its legs, in order; the last one leads to what was ordered. One alone only where API servers emulate already:
    /// it raises them, or goes back.
    pub legs: Vec<Leg>,
    /// The leg that is under way, or was when its task ended: an index of `legs`.
    pub at: usize,
}

impl Upgrade {
    /// The leg that is under way.
    pub fn leg(&self) -> Option<&Leg> {
        self.legs.get(self.at)
    }

    /// What ran before the leg that is under way.
    pub fn before(&self) -> &str {
        let before = self.at.checked_sub(1).and_then(|at| self.legs.get(at));
        before.map_or(&self.from, |leg| &leg.kubernetes_version)
    }

    /// Whether a leg comes after the one that is under way.
    pub fn goes_on(&self) -> bool {
        self.at + 1 < self.legs.len()
    }

    /// The version that was ordered.
    pub fn target(&self) -> Option<&str> {
        self.legs.last().map(|leg| leg.kubernetes_version.as_str())
    }
}

impl fmt::Display for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leg {} of {}, ", self.at + 1, self.legs.len())?;
        let (Some(leg), Some(target)) = (self.leg(), self.target()) else {
            return f.write_str("which is none of them");
        };
        let (before, version) = (self.before(), &leg.kubernetes_version);
        match leg
            .emulates
            .filter(|minor| minor_of(version) > Some(*minor))
        {
            _ if leg.raises(before) => write!(f, "raising Kubernetes {version} to what it is")?,
            None => write!(f, "Kubernetes {before} to {version}")?,
            Some(minor) => write!(f, "Kubernetes {before} to {version}, emulating 1.{minor}")?,
        }
        if target == version {
            return Ok(());
        }
        write!(f, ", on the way to {target}")
    }
}

/// One leg of an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Leg {
    /// Where it leads.
    pub kubernetes_version: String,
    /// Version of the stemcell that machines are made from.
    pub stemcell: String,
    /// Whether it makes workers anew too. Those that may stay until the last leg do: kubelets may be three minors
    /// older than API servers, and so pods move once.
    pub workers: bool,
    /// Minor that API servers and controllers emulate in it and after it, until a later leg raises them; absent
    /// where they are nothing but what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulates: Option<u32>,
}

impl Leg {
    /// Whether it has API servers stop emulating, where `before` is the version that ran before it.
    pub fn raises(&self, before: &str) -> bool {
        self.emulates.is_none() && self.kubernetes_version == before
    }
}

/// A leg as it is planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LegForecast {
    /// Where it leads.
    pub kubernetes_version: String,
    /// Version of the stemcell that machines are made from.
    pub stemcell: String,
    /// Digest over the decisions of its plan.
    #[schema(value_type = String)]
    pub hash: Digest,
    /// Number of its steps.
    pub steps: usize,
    /// Whether the cluster's API is down in the course of it.
    #[serde(default)]
    pub api_down: bool,
    /// Machines that come into service in it, in the order of its plan.
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineName>,
    /// Machines whose components are started anew in place, in the order of its plan.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub restarted: Vec<MachineName>,
    /// Minor that API servers and controllers emulate from it on; absent where they are nothing but what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulates: Option<u32>,
    /// Where the control plane can go back to once the leg was cancelled, and until the next one begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_back: Option<WayBack>,
    /// Minors that API servers are to their clients meanwhile, oldest and newest: what they emulate counts.
    pub api_servers: (u32, u32),
    /// Minors that the kubelets of the cluster have meanwhile, oldest and newest.
    pub kubelets: (u32, u32),
    /// How long it takes, in seconds, by what steps of this director have taken before: a forecast, which no hash
    /// covers. Absent while nothing is known to go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// What its drains are expected to do with the pods and budgets of now; absent when it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drains: Option<DrainForecast>,
}

/// Whether the control plane can go back to the minor that it emulates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum WayBack {
    /// It can.
    #[serde(rename_all = "camelCase")]
    Open {
        /// To this version.
        kubernetes_version: String,
    },
    /// It cannot.
    Closed {
        /// Why.
        why: String,
    },
}

/// All legs of an upgrade, in the plan of one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LegsForecast {
    /// The leg whose plan this is: an index of `legs`.
    pub at: usize,
    /// All of them as they were planned when the upgrade was ordered.
    pub legs: Vec<LegForecast>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leg_says_what_it_does() {
        let leg = |version: &str, emulates: Option<u32>| Leg {
            kubernetes_version: version.into(),
            stemcell: format!("s-{version}"),
            workers: emulates.is_none(),
            emulates,
        };
        let says = |from: &str, legs: &[Leg]| -> Vec<String> {
            let upgrade = |at| Upgrade {
                from: from.into(),
                legs: legs.to_vec(),
                at,
            };
            (0..legs.len()).map(|at| upgrade(at).to_string()).collect()
        };
        let legs = [
            leg("1.37.2", Some(36)),
            leg("1.38.0", Some(37)),
            leg("1.38.0", None),
        ];
        assert_eq!(
            says("1.36.3", &legs),
            [
                "leg 1 of 3, Kubernetes 1.36.3 to 1.37.2, emulating 1.36, on the way to 1.38.0",
                "leg 2 of 3, Kubernetes 1.37.2 to 1.38.0, emulating 1.37",
                "leg 3 of 3, raising Kubernetes 1.38.0 to what it is",
            ]
        );
        assert_eq!(
            says("1.37.2", &[leg("1.37.2", None)]),
            ["leg 1 of 1, raising Kubernetes 1.37.2 to what it is"]
        );
        assert_eq!(
            says("1.37.2", &[leg("1.36.3", Some(36))]),
            ["leg 1 of 1, Kubernetes 1.37.2 to 1.36.3"]
        );
    }
}
