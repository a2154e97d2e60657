//! A Job that stands for a gate: made from the template of a CronJob, followed to its end, removed.
//!
//! # Invariants
//! * Its name is made of gate, task and machine: a director that starts anew finds the one it made.
//! * It ends by itself, and is removed by the cluster, also when no director comes back: it has a deadline
//!   and a `ttlSecondsAfterFinished`.
//!
//! # Not here
//! How often its pod may fail (`backoffLimit` of the template), and what it runs as: its namespace decides.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use windlass_common::error::ErrorChain;
use windlass_common::gate::JobGate;
use windlass_common::id::{Digest, MachineName};

use crate::kubernetes::addons::{GATES, GATES_LABEL};
use crate::kubernetes::client::{ApiError, Client, Resource};
use crate::model::TaskId;
use crate::rollout::ProgressSink;

/// Pause between two looks at a Job.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How much longer than its gate a Job may live: its log is read before the cluster ends it.
const DEADLINE_GRACE_SECONDS: u32 = 60;
/// How long the cluster keeps a Job that nobody removed, seconds.
const KEPT_SECONDS: u32 = 3600;
/// How long a right that was granted a moment ago may take to be known.
const RIGHTS: Duration = Duration::from_secs(20);
/// What is read of a pod's log.
const LOG_LINES: u32 = 10;
const LOG_BYTES: u32 = 4096;
/// What is repeated of it, characters.
const LOG_SHOWN: usize = 1500;
/// Says for whom a Job was made.
const ORDER_ANNOTATION: &str = "windlass.internal/gate";

/// A Job to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobOrder {
    gate: JobGate,
    name: String,
    /// For people: gate, task and machine.
    order: String,
}

impl fmt::Display for JobOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.gate.namespace, self.name)
    }
}

/// How far a Job is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    Running(String),
    Complete,
    Failed(String),
}

/// Why a Job could not be looked at or made.
enum Trouble {
    /// It may pass.
    Passing(String),
    /// It stays.
    Lasting(String),
}

impl JobOrder {
    /// The Job of a gate, for a machine that a task has changed.
    pub(super) fn new(gate: &str, job: &JobGate, task: &TaskId, machine: &MachineName) -> Self {
        let order = format!("gate {gate} of task {task} after machine {machine}");
        let digest = Digest::of(order.as_bytes()).to_string();
        let digest = digest.rsplit(':').next().unwrap_or_default();
        // A Job's name is a label of its pods, and leaves room for their own.
        let gate: String = gate.chars().take(30).collect();
        let gate = gate.trim_end_matches('-');
        Self {
            gate: job.clone(),
            name: format!("gate-{gate}-{}", &digest[..10]),
            order,
        }
    }

    /// Runs the Job to its end, or goes on with the one that there is; why the gate is shut.
    pub(in crate::rollout::world) async fn run(
        &self,
        client: &Client,
        progress: &ProgressSink,
    ) -> Result<(), String> {
        let began = Instant::now();
        let deadline = began + Duration::from_secs(u64::from(self.gate.timeout_seconds));
        let outcome = loop {
            let last = match self.look(client, began).await {
                Ok(State::Complete) => break Ok(()),
                Ok(State::Failed(why)) => break Err(format!("failed: {why}")),
                Ok(State::Running(how)) => how,
                Err(Trouble::Passing(why)) => why,
                Err(Trouble::Lasting(why)) => break Err(why),
            };
            if Instant::now() + LOOK_INTERVAL > deadline {
                break Err(format!("is not done: {last}"));
            }
            progress.stage(format!("Job {self}: {last}"));
            sleep(LOOK_INTERVAL).await;
        };
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(why) => Err(self.with_log(client, why).await),
        };
        let background = json!({"propagationPolicy": "Background"});
        let namespace = Some(self.gate.namespace.as_str());
        let removed = client
            .delete_with(&Resource::JOB, namespace, &self.name, &background)
            .await;
        if let Err(error) = removed {
            // The cluster removes it when its time has come.
            tracing::warn!(job = %self, error = %ErrorChain(&error), "a gate's Job is left behind");
        }
        outcome
    }

    /// How far it is; makes it when there is none.
    async fn look(&self, client: &Client, began: Instant) -> Result<State, Trouble> {
        let namespace = Some(self.gate.namespace.as_str());
        let refused = |error: ApiError| trouble(&error, began.elapsed() < RIGHTS);
        match client
            .get::<Value>(&Resource::JOB, namespace, &self.name)
            .await
        {
            Ok(job) => return Ok(state(&job)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(refused(error)),
        }
        let from = &self.gate.cron_job;
        let template = client
            .get::<Value>(&Resource::CRON_JOB, namespace, from)
            .await;
        let template = template.map_err(|error| match error.is_not_found() {
            true => Trouble::Lasting(format!(
                "cannot be made: there is no CronJob {}/{from}; create it, with `suspend: true` if it is for \
                 gates alone",
                self.gate.namespace
            )),
            false => refused(error),
        })?;
        let job = self.object(&template).map_err(Trouble::Lasting)?;
        match client.create(&Resource::JOB, namespace, &job).await {
            Ok(_) => Ok(State::Running("was made".to_owned())),
            // An answer that was lost, or another director that is on its way out.
            Err(error) if error.is_conflict() => Ok(State::Running("is there".to_owned())),
            Err(error) => Err(refused(error)),
        }
    }

    /// The Job out of the CronJob's template.
    fn object(&self, cron_job: &Value) -> Result<Value, String> {
        let template = &cron_job["spec"]["jobTemplate"];
        let mut spec = template["spec"].clone();
        let Some(fields) = spec.as_object_mut() else {
            return Err(format!(
                "cannot be made: CronJob {} has no spec.jobTemplate.spec",
                self.gate.cron_job
            ));
        };
        let limit = u64::from(self.gate.timeout_seconds + DEADLINE_GRACE_SECONDS);
        let own = fields.get("activeDeadlineSeconds").and_then(Value::as_u64);
        let deadline = own.map_or(limit, |own| own.min(limit));
        fields.insert("activeDeadlineSeconds".to_owned(), json!(deadline));
        fields.insert("ttlSecondsAfterFinished".to_owned(), json!(KEPT_SECONDS));
        let mut annotations = template["metadata"]["annotations"].clone();
        if !annotations.is_object() {
            annotations = json!({});
        }
        // As `kubectl create job --from` says it.
        annotations["cronjob.kubernetes.io/instantiate"] = json!("manual");
        annotations[ORDER_ANNOTATION] = json!(self.order);
        Ok(json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": self.name,
                "namespace": self.gate.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": annotations,
            },
            "spec": spec,
        }))
    }

    /// Adds the last lines of its newest pod to why it failed.
    async fn with_log(&self, client: &Client, why: String) -> String {
        let namespace = self.gate.namespace.as_str();
        let of_job = format!("batch.kubernetes.io/job-name={}", self.name);
        let pods = client
            .list::<Value>(&Resource::POD, Some(namespace), Some(&of_job))
            .await;
        let pods = pods.unwrap_or_default();
        let created = |pod: &&Value| pod["metadata"]["creationTimestamp"].to_string();
        let Some(pod) = pods.iter().max_by_key(created) else {
            return why;
        };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        match client.pod_log(namespace, name, LOG_LINES, LOG_BYTES).await {
            Ok(log) if !log.trim().is_empty() => {
                format!("{why}; pod {name} said last: {}", last_of(&log))
            }
            Ok(_) => format!("{why}; pod {name} wrote nothing"),
            Err(_) => match waits(pod) {
                Some(waits) => format!("{why}; pod {name} waits: {waits}"),
                None => why,
            },
        }
    }
}

fn trouble(error: &ApiError, young: bool) -> Trouble {
    let text = format!("cannot be run: {}", ErrorChain(error));
    match error.code() {
        // Rights are known a moment after they were granted.
        Some(401 | 403) if young => Trouble::Passing(text),
        Some(400..=407 | 409..=428 | 430..=499) => Trouble::Lasting(text),
        _ => Trouble::Passing(text),
    }
}

/// What the conditions of a Job say.
fn state(job: &Value) -> State {
    let conditions = job["status"]["conditions"].as_array();
    let mut holding = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition["status"] == "True");
    let ended = holding.find(|condition| {
        let kind = condition["type"].as_str();
        matches!(kind, Some("Complete" | "Failed"))
    });
    match ended {
        Some(condition) if condition["type"] == "Complete" => State::Complete,
        Some(condition) => {
            let text = |key: &str| condition[key].as_str().unwrap_or_default();
            State::Failed(format!("{}: {}", text("reason"), text("message")))
        }
        None => {
            let count = |key: &str| job["status"][key].as_u64().unwrap_or(0);
            State::Running(format!(
                "{} of its pods run, {} have failed",
                count("active"),
                count("failed")
            ))
        }
    }
}

/// Why a pod's container does not run, if its status says so.
fn waits(pod: &Value) -> Option<String> {
    let container = pod["status"]["containerStatuses"].as_array()?.first()?;
    let waiting = container["state"]["waiting"].as_object()?;
    let text = |key: &str| waiting.get(key).and_then(Value::as_str).unwrap_or_default();
    let said = format!("{} {}", text("reason"), text("message"));
    Some(said.trim().chars().take(LOG_SHOWN).collect())
}

/// The end of a log as one line, without control characters.
fn last_of(log: &str) -> String {
    let lines: Vec<String> = log
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    let all = lines.join(" | ");
    let skip = all.chars().count().saturating_sub(LOG_SHOWN);
    all.chars().skip(skip).collect()
}

/// Takes back the rights that no gate needs any more: those in namespaces that no object of `wanted` is in.
pub(in crate::rollout::world) async fn prune(
    client: &Client,
    wanted: &[Value],
) -> Result<(), ApiError> {
    let kept: BTreeSet<&str> = wanted
        .iter()
        .filter(|object| object["metadata"]["name"] == GATES)
        .filter_map(|object| object["metadata"]["namespace"].as_str())
        .collect();
    for resource in [Resource::ROLE_BINDING, Resource::ROLE] {
        let found: Vec<Value> = client.list(&resource, None, Some(GATES_LABEL)).await?;
        for object in &found {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
            let (namespace, name) = (text("namespace"), text("name"));
            if name == GATES && !kept.contains(namespace) {
                client.delete(&resource, Some(namespace), name).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(gate: &str, machine: &str) -> JobOrder {
        let job = JobGate {
            namespace: "shop".into(),
            cron_job: "smoke".into(),
            timeout_seconds: 300,
        };
        let task = TaskId::new(7, [1, 2, 3]);
        JobOrder::new(gate, &job, &task, &MachineName::new(machine).unwrap())
    }

    #[test]
    fn a_job_is_named_for_its_gate_task_and_machine() {
        let one = order("smoke", "demo-w-0");
        assert_eq!(one, order("smoke", "demo-w-0"));
        assert_ne!(one.name, order("smoke", "demo-w-1").name);
        assert_ne!(one.name, order("other", "demo-w-0").name);
        assert!(one.name.starts_with("gate-smoke-"), "{}", one.name);
        let long = order(&format!("a{}b", "-".repeat(61)), "demo-w-0");
        assert!(long.name.len() <= 52, "{}", long.name);
        assert!(!long.name.contains("--"), "{}", long.name);
    }

    #[test]
    fn a_job_is_the_template_with_a_deadline_and_an_end() {
        let cron_job = json!({"spec": {"schedule": "0 0 31 2 *", "suspend": true, "jobTemplate": {
            "metadata": {"labels": {"app": "smoke"}, "annotations": {"team": "shop"}},
            "spec": {"backoffLimit": 0, "template": {"spec": {"containers": []}}}}}});
        let job = order("smoke", "demo-w-0").object(&cron_job).unwrap();
        assert_eq!(job["metadata"]["labels"], json!({"app": "smoke"}));
        assert_eq!(job["metadata"]["annotations"]["team"], "shop");
        assert_eq!(
            job["metadata"]["annotations"][ORDER_ANNOTATION],
            "gate smoke of task t7-010203 after machine demo-w-0"
        );
        assert_eq!(job["spec"]["backoffLimit"], 0);
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 360);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 3600);
        let mut hasty = cron_job.clone();
        hasty["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] = json!(5);
        let job = order("smoke", "demo-w-0").object(&hasty).unwrap();
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 5);
        assert!(order("smoke", "demo-w-0").object(&json!({})).is_err());
    }

    #[test]
    fn a_job_is_over_when_its_conditions_say_so() {
        let job = |conditions: Value| json!({"status": {"active": 1, "conditions": conditions}});
        let of = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "m"});
        #[rustfmt::skip] // one case per line
        let cases = [
            (json!({}),                                                  State::Running("0 of its pods run, 0 have failed".into())),
            (job(json!([])),                                             State::Running("1 of its pods run, 0 have failed".into())),
            (job(json!([of("Suspended", "True")])),                      State::Running("1 of its pods run, 0 have failed".into())),
            (job(json!([of("FailureTarget", "True")])),                  State::Running("1 of its pods run, 0 have failed".into())),
            (job(json!([of("Complete", "False")])),                      State::Running("1 of its pods run, 0 have failed".into())),
            (job(json!([of("SuccessCriteriaMet", "True"), of("Complete", "True")])), State::Complete),
            (job(json!([of("FailureTarget", "True"), of("Failed", "True")])),        State::Failed("R: m".into())),
        ];
        for (job, want) in cases {
            assert_eq!(state(&job), want, "{job}");
        }
    }

    #[test]
    fn the_end_of_a_log_is_one_bounded_line() {
        assert_eq!(last_of("a\n\n\u{1b}[31mb\r\n"), "a | [31mb");
        let long = last_of(&format!("{}end", "x".repeat(5000)));
        assert!(long.ends_with("end") && long.chars().count() == LOG_SHOWN);
    }
}
