//! An upgrade over several minors of Kubernetes: one leg after the other.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Digest, MachineName};

use super::DrainForecast;

/// How far a cluster is on its way over several minors.
///
/// # Invariants
/// * While a leg is under way, the cluster's spec has the version of that leg and not the one that was ordered.
/// * Each leg is at most one minor later than the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// What ran when it was ordered: the oldest version of the control plane.
    pub from: String,
    /// Its legs, in order; the last one leads to what was ordered. Two at least.
    pub legs: Vec<Leg>,
    /// The leg that is under way, or was when its task ended: an index of `legs`.
    pub at: usize,
}

impl Upgrade {
    /// The leg that is under way.
    pub fn leg(&self) -> Option<&Leg> {
        self.legs.get(self.at)
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
        let version = |at: usize| self.legs.get(at).map(|leg| leg.kubernetes_version.as_str());
        let before = self.at.checked_sub(1).and_then(version);
        write!(
            f,
            "leg {} of {}, Kubernetes {} to {}",
            self.at + 1,
            self.legs.len(),
            before.unwrap_or(&self.from),
            version(self.at).unwrap_or("?")
        )?;
        match self.target() {
            Some(target) if self.goes_on() => write!(f, ", on the way to {target}"),
            _ => Ok(()),
        }
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
    /// Machines that come into service in it, in the order of its plan.
    #[schema(value_type = Vec<String>)]
    pub machines: Vec<MachineName>,
    /// Minors that the API servers of the cluster have meanwhile, oldest and newest.
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

/// All legs of an upgrade, in the plan of one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LegsForecast {
    /// The leg whose plan this is: an index of `legs`.
    pub at: usize,
    /// All of them as they were planned when the upgrade was ordered.
    pub legs: Vec<LegForecast>,
}
