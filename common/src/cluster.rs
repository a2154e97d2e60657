//! What a cluster should be: the schema of the API, of `cluster create -f` and of the store.
//!
//! [`ClusterSpec`] is always valid: it is made by the director's parser, which reports every fault
//! of an input at once, and is read back from the store as it was written.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::gate::GateSpec;
use crate::id::{ClusterName, PoolName};
use crate::maintenance::MaintenanceSpec;

/// Desired state of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Unique within the director; cannot change.
    pub name: ClusterName,
    /// Kubernetes version, for example `1.37.2`; a stemcell with it has to be there.
    pub kubernetes_version: String,
    /// Control-plane machines.
    pub control_plane: ControlPlaneSpec,
    /// Worker pools, by name.
    pub pools: BTreeMap<PoolName, PoolSpec>,
    /// Pod and Service networks.
    pub network: ClusterNetwork,
    /// What is allowed in order to get a node empty before its machine goes.
    #[serde(default)]
    pub drain: DrainSpec,
    /// What has to be so before a change goes on from one machine to the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateSpec>,
    /// When machines may be changed.
    #[serde(default, skip_serializing_if = "MaintenanceSpec::is_empty")]
    pub maintenance: MaintenanceSpec,
    /// By which clusters are chosen; they change nothing in the cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How often it is backed up, and how many backups are kept.
    #[serde(default)]
    pub backup: BackupSpec,
}

/// How often a cluster is backed up, and how many of these backups are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackupSpec {
    /// Between two backups, minutes; 0 makes none.
    pub every_minutes: u32,
    /// How many scheduled ones are kept, 1 to [`BACKUPS_KEPT_MAX`]; those that were ordered stay.
    pub keep: u32,
}

/// Between two backups, minutes: from what costs a small cluster nothing to a month.
pub const BACKUP_MINUTES: std::ops::RangeInclusive<u32> = 5..=43_200;
/// Most scheduled backups that are kept: hourly ones for 40 days.
pub const BACKUPS_KEPT_MAX: u32 = 1000;

impl Default for BackupSpec {
    /// Every six hours, for a week: who finds in the morning what went wrong in the night loses half a working
    /// day at most, and who finds it after a week-end still has what was before. One of 100 MiB of etcd is about
    /// 20 MiB.
    fn default() -> Self {
        Self {
            every_minutes: 360,
            keep: 28,
        }
    }
}

/// What is allowed in order to get a node empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainSpec {
    /// How long a drain waits for PodDisruptionBudgets, seconds, 1 to 14400.
    pub timeout_seconds: u32,
    /// What happens to pods that are still there then.
    pub on_timeout: OnTimeout,
    /// Whether pods that no controller makes again are evicted, and lost; otherwise they stop the drain
    /// before it begins.
    pub evict_unmanaged: bool,
    /// Whether pods with `emptyDir` volumes are evicted, and the data lost; otherwise they stop the drain
    /// before it begins.
    pub delete_empty_dir_data: bool,
    /// How long load balancers outside of the cluster get to notice that a node goes, seconds, 0 to 600.
    /// Nobody waits when no Service is reached from outside.
    pub load_balancer_seconds: u32,
    /// Longest time a pod gets to end, seconds, 0 to 14400; its own `terminationGracePeriodSeconds` when
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_max_seconds: Option<u32>,
}

/// What happens to pods that are still on a node when its drain has no time left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnTimeout {
    /// The drain fails and names who blocks it.
    Fail,
    /// They are deleted past their budgets, and each one is recorded.
    Delete,
}

impl Default for DrainSpec {
    /// Ten minutes for budgets, then fail; ten seconds for load balancers; whatever has a controller may
    /// leave.
    fn default() -> Self {
        Self {
            timeout_seconds: 600,
            on_timeout: OnTimeout::Fail,
            evict_unmanaged: false,
            delete_empty_dir_data: true,
            load_balancer_seconds: 10,
            grace_period_max_seconds: None,
        }
    }
}

/// Fields of `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1) that replace those of the director, by name.
pub type KubeletSettings = BTreeMap<String, serde_json::Value>;

/// Most fields of [`KubeletSettings`]; the whole configuration has about 120.
pub const KUBELET_SETTINGS_MAX: usize = 64;
/// Largest [`KubeletSettings`] as JSON, bytes.
pub const KUBELET_SETTINGS_BYTES_MAX: usize = 16 << 10;

/// Control-plane machines of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlaneSpec {
    /// 1, 3 or 5.
    pub count: u32,
    /// Shape of each machine.
    pub size: MachineSize,
    /// What its kubelets are told besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kubelet: KubeletSettings,
    /// How its machines come to another stemcell.
    #[serde(default, skip_serializing_if = "ControlPlaneUpdate::is_default")]
    pub update: ControlPlaneUpdate,
}

/// How machines of a control plane, one at a time, come to another stemcell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControlPlaneUpdate {
    /// In place where that is possible, or as new machines.
    pub strategy: UpdateStrategy,
}

impl ControlPlaneUpdate {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a machine comes to another stemcell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UpdateStrategy {
    /// It is made anew from it.
    #[default]
    Replace,
    /// It gets its components and goes on, where the two differ in these alone; it is made anew otherwise.
    InPlace,
}

impl UpdateStrategy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A pool of equal workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolSpec {
    /// Number of machines, 0 to 1000.
    pub count: u32,
    /// Shape of each machine.
    pub size: MachineSize,
    /// Node labels the director sets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What its kubelets are told besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kubelet: KubeletSettings,
    /// How its machines are taken out of service for a change.
    #[serde(default)]
    pub update: UpdatePolicy,
    /// Whether a machine that alone is cut off ends its pods; it does not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_fence: Option<SelfFence>,
}

/// When a worker that alone is cut off ends its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelfFence {
    /// How long neither the director nor an API server may have been heard while other machines hear the director,
    /// seconds, [`SELF_FENCE_SECONDS`].
    pub after_seconds: u32,
}

/// Seconds of [`SelfFence`]: from well above what a restart of a director or a handover of leaders takes to an hour.
pub const SELF_FENCE_SECONDS: std::ops::RangeInclusive<u32> = 30..=3600;

impl Default for SelfFence {
    /// Two minutes: three times as long as Kubernetes takes to call a node NotReady.
    fn default() -> Self {
        Self { after_seconds: 120 }
    }
}

/// How many machines of a pool a change may take at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatePolicy {
    /// Machines below the pool's count that may be out of service; percent are rounded down.
    #[serde(default)]
    pub max_unavailable: Amount,
    /// Machines above the pool's count that may exist meanwhile; percent are rounded up.
    #[serde(default = "one")]
    pub max_surge: Amount,
    /// So many machines are changed first, and the others only once these are in service again.
    #[serde(default)]
    pub canaries: u32,
    /// In place where that is possible, or as new machines.
    #[serde(default, skip_serializing_if = "UpdateStrategy::is_default")]
    pub strategy: UpdateStrategy,
}

fn one() -> Amount {
    Amount::Count(1)
}

impl Default for UpdatePolicy {
    /// One machine more than the pool has, none less.
    fn default() -> Self {
        Self {
            max_unavailable: Amount::default(),
            max_surge: one(),
            canaries: 0,
            strategy: UpdateStrategy::Replace,
        }
    }
}

/// A number of machines: `2`, or `"25%"` of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AmountText", into = "AmountText")]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So many of a hundred, 0 to 100.
    Percent(u8),
}

/// An [`Amount`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AmountText {
    Number(u32),
    Text(String),
}

/// A text is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number of machines nor 0% to 100%")]
pub struct AmountError(String);

impl Default for Amount {
    fn default() -> Self {
        Amount::Count(0)
    }
}

impl Amount {
    /// Of `total`, percent rounded down.
    pub fn at_most(self, total: u32) -> u32 {
        match self {
            Amount::Count(count) => count,
            Amount::Percent(percent) => (u64::from(total) * u64::from(percent) / 100) as u32,
        }
    }

    /// Of `total`, percent rounded up.
    pub fn at_least(self, total: u32) -> u32 {
        match self {
            Amount::Count(count) => count,
            Amount::Percent(percent) => {
                (u64::from(total) * u64::from(percent)).div_ceil(100) as u32
            }
        }
    }
}

impl std::str::FromStr for Amount {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let digits = |text: &str| -> Option<u32> {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        };
        let amount = match text.strip_suffix('%') {
            Some(percent) => digits(percent)
                .and_then(|n| u8::try_from(n).ok())
                .filter(|n| *n <= 100)
                .map(Amount::Percent),
            None => digits(text).map(Amount::Count),
        };
        amount.ok_or_else(|| AmountError(text.chars().take(80).collect()))
    }
}

impl TryFrom<AmountText> for Amount {
    type Error = AmountError;
    fn try_from(text: AmountText) -> Result<Self, AmountError> {
        match text {
            AmountText::Number(count) => Ok(Amount::Count(count)),
            AmountText::Text(text) => text.parse(),
        }
    }
}

impl From<Amount> for AmountText {
    fn from(amount: Amount) -> AmountText {
        match amount {
            Amount::Count(count) => AmountText::Number(count),
            Amount::Percent(percent) => AmountText::Text(format!("{percent}%")),
        }
    }
}

/// Shape of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineSize {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Persistent data disk of control-plane machines (etcd), MiB.
    pub disk_mib: u32,
}

/// Networks inside a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterNetwork {
    /// Addresses of pods; each machine gets a /24 of it.
    pub pod_cidr: Ipv4Net,
    /// Addresses of Services.
    pub service_cidr: Ipv4Net,
}

/// Pods of one machine: a network of this prefix length out of [`ClusterNetwork::pod_cidr`].
pub const NODE_POD_PREFIX: u8 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_numbers_or_percent() {
        let pool = r#"{"count":3,"size":{"cpuMillis":1,"memoryMib":1,"diskMib":1},"update":{"maxUnavailable":"25%"}}"#;
        let pool: PoolSpec = serde_json::from_str(pool).unwrap();
        assert_eq!(pool.update.max_unavailable, Amount::Percent(25));
        assert_eq!(pool.update.max_surge, Amount::Count(1));
        let text = serde_json::to_string(&pool.update).unwrap();
        assert_eq!(
            text,
            r#"{"maxUnavailable":"25%","maxSurge":1,"canaries":0}"#
        );
        for bad in ["101%", "-1", "", "%", "1.5", "+1"] {
            assert!(bad.parse::<Amount>().is_err(), "{bad}");
        }
        assert_eq!(Amount::Percent(25).at_most(7), 1);
        assert_eq!(Amount::Percent(25).at_least(7), 2);
        assert_eq!(Amount::Percent(100).at_most(u32::MAX), u32::MAX);
    }
}
