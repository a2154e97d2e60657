//! Gates: what users want to be so before a change goes on from one machine to the next.

use serde::{Deserialize, Serialize};

/// Most gates of a cluster; each may take two hours for each machine.
pub const GATES_MAX: usize = 8;
/// Longest time that one gate may take, seconds.
pub const GATE_TIMEOUT_MAX_SECONDS: u32 = 3600;
/// Longest time that is waited before a gate is looked at first, seconds.
pub const GATE_DELAY_MAX_SECONDS: u32 = 3600;

/// Something that has to be so before a change goes on from one machine to the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateSpec {
    /// Unique in the cluster; a DNS label.
    pub name: String,
    /// What has to be so.
    #[serde(flatten)]
    pub check: GateCheck,
}

/// What a gate looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GateCheck {
    /// A URL that has to answer.
    Http(HttpGate),
    /// A query of Prometheus that has to come out as expected.
    Promql(PromqlGate),
    /// A Job of the cluster that has to succeed.
    Job(JobGate),
}

/// A URL that has to answer 200, asked by the director.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGate {
    /// `http://host:port/path`.
    pub url: String,
    /// How long it may take until it does, seconds, 1 to 3600.
    pub timeout_seconds: u32,
    /// How often it has to do so in a row, a second apart, 1 to 100.
    pub success_threshold: u32,
}

/// An instant query of Prometheus, or of whoever speaks its HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PromqlGate {
    /// Who is asked.
    #[serde(flatten)]
    pub server: PromqlServer,
    /// The query: an instant vector, or a scalar.
    pub query: String,
    /// How it has to come out.
    pub expect: PromqlExpect,
    /// How long nobody looks, since metrics tell of the past, seconds, 0 to 3600.
    pub initial_delay_seconds: u32,
    /// Time between two looks, seconds, 1 to 300.
    pub interval_seconds: u32,
    /// How long it may take from the first look on, seconds, 1 to 3600.
    pub timeout_seconds: u32,
    /// How often it has to come out as expected in a row, 1 to 100.
    pub success_threshold: u32,
}

/// Where Prometheus is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PromqlServer {
    /// `http://host:port`, with a path where one stands in front of `/api/v1`; asked by the director.
    Url(String),
    /// A Service of the cluster, asked by its API servers for the director.
    Service(ServicePort),
}

/// A port of a Service of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
}

impl ServicePort {
    /// How the API of Kubernetes names it, in paths of its proxy and in roles.
    pub fn proxied(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }
}

/// How a query has to come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PromqlExpect {
    /// There are samples, and none of them is 0 or not a number: a condition that holds.
    #[default]
    NonZero,
    /// There are no samples: an alert that does not fire.
    Empty,
}

/// A Job that is made from a CronJob of the cluster, as `kubectl create job --from` does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobGate {
    /// Namespace of the CronJob; the director may make Jobs in it.
    pub namespace: String,
    /// The CronJob whose template is used; one that is for gates alone is suspended.
    pub cron_job: String,
    /// How long the Job may take, seconds, 1 to 3600. How often its pod may fail is its `backoffLimit`.
    pub timeout_seconds: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_stored_as_they_are_written() {
        for text in [
            r#"{"name":"a","http":{"url":"http://a/","timeoutSeconds":1,"successThreshold":1}}"#,
            r#"{"name":"a","promql":{"url":"http://a","query":"up","expect":"nonZero","initialDelaySeconds":0,"intervalSeconds":5,"timeoutSeconds":60,"successThreshold":1}}"#,
            r#"{"name":"a","promql":{"service":{"namespace":"m","name":"p","port":9090},"query":"up","expect":"empty","initialDelaySeconds":0,"intervalSeconds":5,"timeoutSeconds":60,"successThreshold":1}}"#,
            r#"{"name":"a","job":{"namespace":"m","cronJob":"smoke","timeoutSeconds":60}}"#,
        ] {
            let gate: GateSpec = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&gate).unwrap(), text);
        }
        assert!(serde_json::from_str::<GateSpec>(r#"{"name":"a"}"#).is_err());
    }
}
