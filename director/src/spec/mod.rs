//! From raw input to a valid [`ClusterSpec`]: one parser for the API, `cluster create -f` and flags.
//!
//! [`parse`] reads the whole input and reports every fault in it at once, each with its key, its value
//! and what is allowed. What it returns is valid: nobody downstream checks again. Pure: no I/O, no
//! clock; what it must know of the world comes in as [`Surroundings`].
//!
//! Not here: whether the name is taken or the host has room, which only the director's store and its
//! provider can say at the moment they act.

mod backup;
mod drain;
mod fault;
mod fields;
mod gates;
mod kubelet;
mod maintenance;
mod network;
mod raw;
mod self_fence;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use serde_json::Value;
use windlass_common::cluster::{
    ClusterSpec, ControlPlaneSpec, MachineSize, PoolSpec, UpdatePolicy,
};
use windlass_common::id::{ClusterName, PoolName};

pub use fault::{Faults, shown};
pub use raw::{
    INPUT_BYTES_MAX, RawBackup, RawClusterSpec, RawControlPlane, RawControlPlaneUpdate, RawDrain,
    RawFreeze, RawGate, RawHttpGate, RawJobGate, RawMachineSize, RawMaintenance, RawNetwork,
    RawPool, RawPromqlGate, RawSelfFence, RawServicePort, RawUpdatePolicy, RawWindow, from_text,
};

pub(crate) use fields::Fields;
pub(crate) use maintenance::REASON_MAX;
pub(crate) use network::usable as usable_network;

/// Allowed numbers of control-plane machines: odd, since an even member adds a vote to lose and none
/// to spare; at most 5, since each write waits for a majority.
pub const CONTROL_PLANE_COUNTS: [u32; 3] = [1, 3, 5];
/// Most machines in a pool.
pub const POOL_COUNT_MAX: u32 = 1000;
/// Most pools in a cluster; each is at least one line of a plan and one column of a rollout.
pub const POOLS_MAX: usize = 32;
/// Most labels of a pool.
pub const LABELS_MAX: usize = 32;
/// Pool names that would collide with the names of control-plane machines.
pub const POOL_NAMES_RESERVED: [&str; 3] = ["control-plane", "cp", "master"];

/// CPU, thousandths: from what a kubelet needs to run at all to the largest common machine.
const CPU_MILLIS: std::ops::RangeInclusive<u32> = 100..=256_000;
/// Memory of a worker, MiB; below this the kubelet evicts everything.
const WORKER_MEMORY_MIB: std::ops::RangeInclusive<u32> = 256..=4_194_304;
/// Memory of a control-plane machine, MiB; its processes alone use about 510.
const CONTROL_PLANE_MEMORY_MIB: std::ops::RangeInclusive<u32> = 1024..=4_194_304;
/// Data disk, MiB; etcd's default quota of 2 GiB would not fit its own defragmentation below 512 MiB.
const DISK_MIB: std::ops::RangeInclusive<u32> = 512..=16_777_216;

/// Size of a control-plane machine when none is given.
pub const CONTROL_PLANE_SIZE: MachineSize = MachineSize {
    cpu_millis: 2000,
    memory_mib: 2048,
    disk_mib: 10_240,
};
/// Size of a worker when none is given.
pub const WORKER_SIZE: MachineSize = MachineSize {
    cpu_millis: 2000,
    memory_mib: 2048,
    disk_mib: 10_240,
};

/// What a spec is judged against.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Kubernetes versions for which there is a stemcell.
    pub kubernetes_versions: BTreeSet<KubernetesVersion>,
    /// Networks the pods and Services must stay clear of, each with what it is.
    pub reserved: Vec<(String, Ipv4Net)>,
}

/// A Kubernetes version, ordered as versions are and not as texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubernetesVersion {
    numbers: (u32, u32, u32),
    text: String,
}

impl KubernetesVersion {
    /// Reads `1.37.2`; a leading `v` is dropped. `None` when it is not three numbers.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts = text.split('.').map(|part| {
            let plain = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| part.parse::<u32>().ok()).flatten()
        });
        let numbers = (parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then(|| Self {
            numbers,
            text: text.to_owned(),
        })
    }

    /// The version as text, without `v`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Parses a cluster from JSON (or YAML that [`from_text`] made JSON of).
///
/// # Errors
/// All faults of the input, in the order of its keys; never an empty list.
pub fn parse(input: &Value, around: &Surroundings) -> Result<ClusterSpec, Faults> {
    let mut faults = Faults::default();
    let spec = cluster(input, around, &mut faults);
    match spec {
        Some(spec) if faults.is_empty() => Ok(spec),
        Some(_) | None => Err(faults),
    }
}

fn cluster(input: &Value, around: &Surroundings, faults: &mut Faults) -> Option<ClusterSpec> {
    let mut fields = Fields::open(input, "", faults)?;
    let name = fields.required("name", NAME_ALLOWED, faults, |text| {
        ClusterName::new(text).ok()
    });
    let kubernetes_version = version(&mut fields, around, faults);
    let control_plane = control_plane(&mut fields, faults);
    let pools = pools(&mut fields, faults);
    let machines = control_plane.as_ref().map_or(0, |c| u64::from(c.count))
        + pools
            .values()
            .map(|pool| u64::from(pool.count))
            .sum::<u64>();
    let network = network::parse(&mut fields, machines, around, faults);
    let drain = drain::parse(&mut fields, faults);
    let gates = gates::parse(&mut fields, faults);
    let maintenance = maintenance::parse(&mut fields, faults);
    let labels = labels(&mut fields, faults);
    let backup = backup::parse(&mut fields, faults);
    fields.close(faults);
    Some(ClusterSpec {
        name: name?,
        kubernetes_version: kubernetes_version?,
        control_plane: control_plane?,
        pools,
        network: network?,
        drain: drain?,
        gates,
        maintenance: maintenance?,
        labels,
        backup: backup?,
    })
}

const NAME_ALLOWED: &str = "a DNS label of 1 to 24 characters: lower-case letters, digits and '-', \
     starting with a letter and not ending with '-'";

fn version(fields: &mut Fields<'_>, around: &Surroundings, faults: &mut Faults) -> Option<String> {
    let known: Vec<&str> = around
        .kubernetes_versions
        .iter()
        .map(KubernetesVersion::as_str)
        .collect();
    let allowed = if known.is_empty() {
        "a version with a stemcell, and there is none yet: build one with `windlass stemcell build`"
            .to_owned()
    } else {
        format!("a version with a stemcell: {}", known.join(", "))
    };
    match fields.take("kubernetesVersion") {
        None => match known.last() {
            Some(newest) => Some((*newest).to_owned()),
            None => {
                faults.add(fields.path("kubernetesVersion"), "not given", allowed);
                None
            }
        },
        Some(value) => {
            let version = value.as_str().and_then(KubernetesVersion::new);
            match version {
                Some(version) if around.kubernetes_versions.contains(&version) => {
                    Some(version.as_str().to_owned())
                }
                Some(_) | None => {
                    faults.add(fields.path("kubernetesVersion"), shown(value), allowed);
                    None
                }
            }
        }
    }
}

fn control_plane(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<ControlPlaneSpec> {
    let default = ControlPlaneSpec {
        count: 1,
        size: CONTROL_PLANE_SIZE,
        kubelet: BTreeMap::new(),
        update: Default::default(),
    };
    let Some(value) = fields.take("controlPlane") else {
        return Some(default);
    };
    let mut inner = Fields::open(value, &fields.path("controlPlane"), faults)?;
    let count = match inner.take("count") {
        None => Some(default.count),
        Some(value) => {
            let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
            let count = count.filter(|count| CONTROL_PLANE_COUNTS.contains(count));
            if count.is_none() {
                let allowed = "1, 3 or 5: etcd needs a majority, so an even count adds a machine \
                     that can fail and none that may";
                faults.add(inner.path("count"), shown(value), allowed);
            }
            count
        }
    };
    let size = size(&mut inner, default.size, &CONTROL_PLANE_MEMORY_MIB, faults);
    let kubelet = kubelet::parse(&mut inner, faults);
    let update = update::of_control_plane(&mut inner, faults);
    inner.close(faults);
    Some(ControlPlaneSpec {
        count: count?,
        size: size?,
        kubelet,
        update: update?,
    })
}

fn size(
    fields: &mut Fields<'_>,
    default: MachineSize,
    memory: &std::ops::RangeInclusive<u32>,
    faults: &mut Faults,
) -> Option<MachineSize> {
    let Some(value) = fields.take("size") else {
        return Some(default);
    };
    let mut inner = Fields::open(value, &fields.path("size"), faults)?;
    let cpu = inner.number(
        "cpuMillis",
        default.cpu_millis,
        &CPU_MILLIS,
        "thousandths of a CPU",
        faults,
    );
    let memory = inner.number("memoryMib", default.memory_mib, memory, "MiB", faults);
    let disk = inner.number("diskMib", default.disk_mib, &DISK_MIB, "MiB", faults);
    inner.close(faults);
    Some(MachineSize {
        cpu_millis: cpu?,
        memory_mib: memory?,
        disk_mib: disk?,
    })
}

fn pools(fields: &mut Fields<'_>, faults: &mut Faults) -> BTreeMap<PoolName, PoolSpec> {
    let mut pools = BTreeMap::new();
    let Some(value) = fields.take("pools") else {
        if let Ok(name) = PoolName::new("workers") {
            let pool = PoolSpec {
                count: 2,
                size: WORKER_SIZE,
                labels: BTreeMap::new(),
                kubelet: BTreeMap::new(),
                update: UpdatePolicy::default(),
                self_fence: None,
            };
            pools.insert(name, pool);
        }
        return pools;
    };
    let path = fields.path("pools");
    let Some(map) = value.as_object() else {
        faults.add(path, shown(value), "a map of pool name to pool");
        return pools;
    };
    if map.len() > POOLS_MAX {
        faults.add(
            path,
            format!("{} pools", map.len()),
            format!("at most {POOLS_MAX} pools"),
        );
        return pools;
    }
    for (key, value) in map {
        let path = fault::join(&path, key);
        let name = PoolName::new(key.as_str()).ok();
        let name = name.filter(|name| !POOL_NAMES_RESERVED.contains(&name.as_str()));
        if name.is_none() {
            let reserved = POOL_NAMES_RESERVED.join(", ");
            let allowed = format!("as its name {NAME_ALLOWED}, and none of {reserved}");
            faults.add(path.clone(), shown(&Value::String(key.clone())), allowed);
        }
        if let (Some(pool), Some(name)) = (pool(value, &path, faults), name) {
            pools.insert(name, pool);
        }
    }
    pools
}

fn pool(value: &Value, path: &str, faults: &mut Faults) -> Option<PoolSpec> {
    let mut fields = Fields::open(value, path, faults)?;
    let count = fields.number("count", 2, &(0..=POOL_COUNT_MAX), "machines", faults);
    let size = size(&mut fields, WORKER_SIZE, &WORKER_MEMORY_MIB, faults);
    let labels = labels(&mut fields, faults);
    let kubelet = kubelet::parse(&mut fields, faults);
    let update = update::parse(&mut fields, faults);
    let self_fence = self_fence::parse(&mut fields, faults);
    fields.close(faults);
    Some(PoolSpec {
        count: count?,
        size: size?,
        labels,
        kubelet,
        update: update?,
        self_fence: self_fence?,
    })
}

fn labels(fields: &mut Fields<'_>, faults: &mut Faults) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let Some(value) = fields.take("labels") else {
        return labels;
    };
    let path = fields.path("labels");
    let Some(map) = value.as_object() else {
        faults.add(path, shown(value), "a map of label key to label value");
        return labels;
    };
    if map.len() > LABELS_MAX {
        faults.add(
            path,
            format!("{} labels", map.len()),
            format!("at most {LABELS_MAX} labels"),
        );
        return labels;
    }
    for (key, value) in map {
        let path = fault::join(&path, key);
        let key_ok = label_key(key);
        if !key_ok {
            let allowed = "as its key an optional DNS subdomain and '/', then 1 to 63 letters, \
                 digits, '-', '_' or '.', beginning and ending with a letter or digit; \
                 kubernetes.io and k8s.io prefixes belong to Kubernetes";
            faults.add(path.clone(), shown(&Value::String(key.clone())), allowed);
        }
        match value.as_str().filter(|text| text.is_empty() || label_name(text)) {
            Some(text) if key_ok => {
                labels.insert(key.clone(), text.to_owned());
            }
            Some(_) => {}
            None => faults.add(
                path,
                shown(value),
                "a text of at most 63 letters, digits, '-', '_' or '.', beginning and ending with a \
                 letter or digit (quote numbers and booleans)",
            ),
        }
    }
    labels
}

/// The name part of a label's key, and a label's value when not empty.
fn label_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn label_key(key: &str) -> bool {
    let Some((prefix, name)) = key.split_once('/') else {
        return label_name(key);
    };
    let subdomain = prefix.len() <= 253
        && prefix.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
    let theirs = ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|domain| prefix == *domain || prefix.ends_with(&format!(".{domain}")));
    subdomain && !theirs && label_name(name)
}
