//! The input schema as types: what the OpenAPI document shows and what the command line fills in.
//!
//! Input is not read through these types: serde stops at the first fault, [`super::parse`] does not.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::fault::Faults;

/// Largest input, in bytes: 32 pools with 32 labels each come to 150 KiB.
pub const INPUT_BYTES_MAX: usize = 256 << 10;

/// A cluster as it is asked for. Everything but the name has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawClusterSpec {
    /// Unique within the director: a DNS label of at most 24 characters.
    #[schema(
        example = "demo",
        max_length = 24,
        pattern = "^[a-z]([a-z0-9-]*[a-z0-9])?$"
    )]
    pub name: String,
    /// A Kubernetes version with a stemcell; the newest one when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "1.37.2")]
    pub kubernetes_version: Option<String>,
    /// Control-plane machines; one when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<RawControlPlane>,
    /// Worker pools by name; `workers` with two machines when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pools: Option<BTreeMap<String, RawPool>>,
    /// Pod and Service networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<RawNetwork>,
    /// What is allowed in order to get a node empty before its machine goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<RawDrain>,
    /// What has to be so before a change goes on from one machine to the next; at most 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gates: Option<Vec<RawGate>>,
    /// When machines may be changed; at any time when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<RawMaintenance>,
    /// By which clusters are chosen, for example in a campaign; keys and values as of labels in Kubernetes. They
    /// change nothing in the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = json!({"stage": "canary"}))]
    pub labels: Option<BTreeMap<String, String>>,
    /// How often it is backed up, and how many backups are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<RawBackup>,
}

/// When machines may be changed, as it is asked for. Orders, repairs and what is begun do not wait.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawMaintenance {
    /// Machines are begun with inside of one of these alone; at any time when there are none. At most 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<RawWindow>>,
    /// No machine is begun with during one of these, whatever the windows say. At most 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freezes: Option<Vec<RawFreeze>>,
}

/// A window that comes again each week, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawWindow {
    /// Days on which it opens: mon, tue, wed, thu, fri, sat, sun; all of them when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<Vec<String>>,
    /// When it opens on these days, by the clocks of its time zone. A time that clocks skip in spring is taken
    /// as much later, one that they show twice in autumn is the first.
    #[schema(example = "02:00", pattern = "^[0-2][0-9]:[0-5][0-9]$")]
    pub start: String,
    /// How long it is open, minutes that pass, 1 to 10080 (a week).
    #[schema(minimum = 1, maximum = 10_080)]
    pub duration_minutes: u32,
    /// Name of a time zone in IANA's database; UTC when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Europe/Berlin")]
    pub time_zone: Option<String>,
}

/// A time in which nothing changes, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawFreeze {
    /// Its first moment, RFC 3339.
    #[schema(example = "2030-12-20T00:00:00Z")]
    pub from: String,
    /// The first moment after it.
    #[schema(example = "2031-01-02T00:00:00Z")]
    pub to: String,
    /// Why, in at most 200 characters.
    pub reason: String,
}

/// How often a cluster is backed up, and how many of these backups are kept, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawBackup {
    /// Between two backups, minutes, 5 to 43200, or 0 for none; 360 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 43_200, example = 360)]
    pub every_minutes: Option<u32>,
    /// How many scheduled ones are kept, 1 to 1000, the newest; 28 when not given. What operators ordered stays until
    /// it is deleted by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000, example = 28)]
    pub keep: Option<u32>,
}

/// Something that has to be so before a change goes on, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawGate {
    /// Unique in the cluster; a DNS label.
    pub name: String,
    /// A URL that has to answer 200, asked by the director.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<RawHttpGate>,
    /// Instead: a query of Prometheus that has to come out as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promql: Option<RawPromqlGate>,
    /// Instead: a Job of the cluster that has to succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<RawJobGate>,
}

/// An instant query of Prometheus, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawPromqlGate {
    /// Where its HTTP API is, asked by the director; without TLS, and without a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "http://prometheus.example:9090")]
    pub url: Option<String>,
    /// Instead: a Service of the cluster, asked through its API servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<RawServicePort>,
    /// A query for an instant vector or a scalar.
    #[schema(example = "sum(rate(http_requests_total{code=~\"5..\"}[5m])) < 1")]
    pub query: String,
    /// `nonZero`: there are samples, and none of them is 0 or not a number; `empty`: there are none, as of an
    /// alert that does not fire; `nonZero` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "nonZero")]
    pub expect: Option<String>,
    /// How long nobody looks, since metrics tell of the past, seconds, 0 to 3600; 0 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3600)]
    pub initial_delay_seconds: Option<u32>,
    /// Time between two looks, seconds, 1 to 300; 10 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 300)]
    pub interval_seconds: Option<u32>,
    /// How long it may take from the first look on, seconds, 1 to 3600; 300 when not given. Then the change
    /// fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
    /// How often it has to come out as expected in a row, 1 to 100; 1 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub success_threshold: Option<u32>,
}

/// A port of a Service, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawServicePort {
    /// Its namespace.
    #[schema(example = "monitoring")]
    pub namespace: String,
    /// Its name.
    #[schema(example = "prometheus")]
    pub name: String,
    /// Its port; 9090 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65535)]
    pub port: Option<u32>,
}

/// A Job that is made from a CronJob of the cluster, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawJobGate {
    /// Namespace of the CronJob; the director may make Jobs in it.
    #[schema(example = "shop")]
    pub namespace: String,
    /// The CronJob whose template is used; one that is for gates alone is suspended.
    #[schema(example = "smoke")]
    pub cron_job: String,
    /// How long the Job may take, seconds, 1 to 3600; 300 when not given. Then the change fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
}

/// A URL that has to answer 200, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawHttpGate {
    /// Without TLS, and without a user.
    #[schema(example = "http://shop.example:8080/healthz")]
    pub url: String,
    /// How long it may take until it answers, seconds, 1 to 3600; 60 when not given. Then the change fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
    /// How often it has to answer in a row, a second apart, 1 to 100; 1 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub success_threshold: Option<u32>,
}

/// What is allowed in order to get a node empty, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawDrain {
    /// How long a drain waits for PodDisruptionBudgets, seconds, 1 to 14400; 600 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 14_400)]
    pub timeout_seconds: Option<u32>,
    /// What happens to pods that are still there then: `fail` stops the change and names who blocks it,
    /// `delete` deletes them past their budgets and records each one; `fail` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "fail")]
    pub on_timeout: Option<String>,
    /// Whether pods that no controller makes again are evicted, and lost; otherwise they stop a drain before
    /// it begins, as when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evict_unmanaged: Option<bool>,
    /// Whether pods with `emptyDir` volumes are evicted, and the data lost, as when not given; otherwise they
    /// stop a drain before it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_empty_dir_data: Option<bool>,
    /// How long load balancers outside get to notice that a node goes, seconds, 0 to 600; 10 when not given.
    /// Nobody waits when no Service is reached from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 600)]
    pub load_balancer_seconds: Option<u32>,
    /// Longest time a pod gets to end, seconds, 0 to 14400; its own when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 14_400)]
    pub grace_period_max_seconds: Option<u32>,
}

/// Control-plane machines as they are asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawControlPlane {
    /// 1, 3 or 5; 1 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    pub count: Option<u32>,
    /// Shape of each machine; at least 1024 MiB of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<RawMachineSize>,
    /// What its kubelets are told besides, as in a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub kubelet: Option<BTreeMap<String, Value>>,
    /// How its machines, one at a time, come to another stemcell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<RawControlPlaneUpdate>,
}

/// How machines of a control plane come to another stemcell, as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawControlPlaneUpdate {
    /// `replace` when not given, or `inPlace`, as in a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "inPlace")]
    pub strategy: Option<String>,
}

/// A worker pool as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawPool {
    /// Machines, 0 to 1000; 2 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 2, maximum = 1000)]
    pub count: Option<u32>,
    /// Shape of each machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<RawMachineSize>,
    /// Node labels the director sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Fields of KubeletConfiguration (kubelet.config.k8s.io/v1beta1) that replace the director's; those that it
    /// has to set itself are refused. Machines take a change over in place, one after the other, and one whose
    /// kubelet does not come back with it gets its former settings again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!({"maxPods": 60}))]
    pub kubelet: Option<BTreeMap<String, Value>>,
    /// How its machines are taken out of service for a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<RawUpdatePolicy>,
    /// Whether a machine that alone is cut off ends its pods; it does not when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_fence: Option<RawSelfFence>,
}

/// When a worker ends its own pods by a restart: neither director nor API servers were heard for so long, and another
/// machine of the cluster still hears the director.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawSelfFence {
    /// Seconds, 30 to 3600; 120 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 30, maximum = 3600, example = 120)]
    pub after_seconds: Option<u32>,
}

/// How a pool's machines are taken out of service for a change. Amounts are numbers of machines, or
/// percent of the pool, for example `25%`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawUpdatePolicy {
    /// Machines below the pool's count that may be out of service; 0 when not given, percent rounded down.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "25%")]
    pub max_unavailable: Option<String>,
    /// Machines above the pool's count that may exist meanwhile; 1 when not given, percent rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "1")]
    pub max_surge: Option<String>,
    /// So many machines are changed first, and the others once these are in service; 0 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canaries: Option<u32>,
    /// `replace` when not given: machines are made anew from another stemcell. `inPlace`: where it differs from theirs
    /// in components alone, with the same minor of Kubernetes, they get these and their pods go on; the plan says why
    /// they are made anew otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "inPlace")]
    pub strategy: Option<String>,
}

/// Shape of a machine as it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawMachineSize {
    /// Thousandths of a CPU, 100 to 256000; 2000 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100, maximum = 256_000)]
    pub cpu_millis: Option<u32>,
    /// Memory in MiB, from 256; 2048 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 256)]
    pub memory_mib: Option<u32>,
    /// Persistent data disk of control-plane machines (etcd) in MiB, from 512; 10240 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 512)]
    pub disk_mib: Option<u32>,
}

/// Networks as they are asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RawNetwork {
    /// Addresses of pods, one /24 per machine; 10.244.0.0/16 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.244.0.0/16")]
    pub pod_cidr: Option<String>,
    /// Addresses of Services; 10.96.0.0/16 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.96.0.0/16")]
    pub service_cidr: Option<String>,
}

/// Reads a text as JSON or YAML (JSON is YAML); what it holds is judged by [`super::parse`].
///
/// # Errors
/// One fault, with the line, when the text is neither, is too long or names a key twice.
pub fn from_text(text: &str) -> Result<Value, Faults> {
    let mut faults = Faults::default();
    if text.len() > INPUT_BYTES_MAX {
        let allowed = format!("at most {INPUT_BYTES_MAX} bytes");
        faults.add("", format!("{} bytes", text.len()), allowed);
        return Err(faults);
    }
    serde_saphyr::from_str::<Value>(text).map_err(|error| {
        let line = error.to_string();
        let line = line.lines().next().unwrap_or("cannot be read").to_owned();
        faults.add("", line, "one YAML or JSON document with unique keys");
        faults
    })
}
