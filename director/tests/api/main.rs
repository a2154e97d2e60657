//! The API over real TLS, with the real director, store, gateway and provider behind it. Needs root.
//!
//! Each case has a director of its own in a directory of its own. The stemcell is signed and verified as
//! any other, but nothing in it boots: what needs a machine is tested end to end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod audit;
mod rig;
mod roles;
mod rotation;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hyper::Method;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;
use windlass_common::id::DiskName;
use windlass_director::api::{Problem, openapi_json};
use windlass_director::client::{Client, ClientError};
use windlass_director::provider::Provider;

use rig::{Rig, Stranger};

type Case = fn(&tokio::runtime::Runtime) -> Result<(), Failed>;

fn main() -> ExitCode {
    let cases: [(&str, Case); 19] = [
        ("only_operators_of_this_director_are_served", |r| {
            r.block_on(only_operators())
        }),
        ("the_document_describes_what_is_served", |r| {
            r.block_on(document())
        }),
        ("what_is_not_there_is_a_problem", |r| {
            r.block_on(not_there())
        }),
        ("every_fault_of_a_cluster_comes_at_once", |r| {
            r.block_on(faults())
        }),
        ("bodies_are_bounded_and_read_as_json_or_yaml", |r| {
            r.block_on(bodies())
        }),
        ("dry_runs_plan_and_change_nothing", |r| {
            r.block_on(dry_run())
        }),
        ("a_campaign_is_planned_ordered_and_cancelled", |r| {
            r.block_on(campaign())
        }),
        ("a_task_is_ordered_followed_resumed_and_cancelled", |r| {
            r.block_on(task())
        }),
        ("what_was_ordered_is_audited_under_its_operator", |r| {
            r.block_on(audit())
        }),
        (
            "what_operators_do_on_machines_is_audited_with_its_outcome_and_what_they_may_not",
            |r| r.block_on(audit::of_reach()),
        ),
        ("each_route_is_open_to_its_roles_and_no_other", |r| {
            r.block_on(roles::every_route())
        }),
        ("a_role_is_what_the_store_says_at_the_moment", |r| {
            r.block_on(roles::at_once())
        }),
        ("a_revoked_operator_is_out_in_the_middle_of_a_stream", |r| {
            r.block_on(roles::revoked_in_a_stream())
        }),
        (
            "an_older_directory_s_first_operator_becomes_its_admin",
            |r| r.block_on(roles::adopted()),
        ),
        ("a_rotated_ca_leaves_out_who_did_not_renew", |r| {
            r.block_on(rotation::rotated())
        }),
        (
            "orphaned_disks_are_listed_and_go_when_they_are_named",
            |r| r.block_on(disks()),
        ),
        ("a_cluster_s_api_is_nobody_s_without_a_machine", |r| {
            r.block_on(roles::no_api_server())
        }),
        ("ctrl_c_ends_the_waiting_and_not_the_task", |r| {
            r.block_on(interrupted())
        }),
        ("a_server_that_stops_ends_its_streams", |r| {
            r.block_on(stop())
        }),
    ];
    let root = nix::unistd::geteuid().is_root();
    let trials = cases.into_iter().map(|(name, case)| {
        let run = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            case(&runtime)
        };
        // The director refuses to start without the provider's rights; said, not passed over.
        Trial::test(name, run).with_ignored_flag(!root)
    });
    let mut arguments = Arguments::from_args();
    // Providers change the host's network; one at a time keeps the figures of a failure readable.
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

pub(crate) fn problem(result: Result<Value, ClientError>) -> Problem {
    match result {
        Err(ClientError::Problem(problem)) => problem,
        other => panic!("no problem: {other:?}"),
    }
}

async fn only_operators() -> Result<(), Failed> {
    let rig = Rig::start().await;
    assert_eq!(rig.client.get("/v1/health").await?["status"], "ok");
    for stranger in [Stranger::OtherCa, Stranger::Agent] {
        let refused = rig.stranger(stranger).get("/v1/health").await;
        assert!(
            matches!(refused, Err(ClientError::Unreachable { .. })),
            "{stranger:?}: {refused:?}"
        );
    }
    let refused = rig.speaking_tls12().await;
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    let (status, body) = rig.without_certificate("/v1/clusters").await;
    assert_eq!(
        (status, body["code"].as_str()),
        (401, Some("unauthenticated")),
        "{body}"
    );
    let metrics = rig.text("/metrics").await;
    for wanted in [
        "windlass_api_refusals_total{reason=\"handshake\"} 3",
        "windlass_api_refusals_total{reason=\"caller\"} 1",
        "windlass_gateway_refusals_total{reason=\"not_current\"} 0",
    ] {
        assert!(
            metrics.lines().any(|line| line == wanted),
            "{wanted}: {metrics}"
        );
    }
    // A client that expects another director does not talk to this one.
    let other = rig.client_of_other_director().get("/v1/health").await;
    assert!(
        matches!(other, Err(ClientError::Unreachable { .. })),
        "{other:?}"
    );
    rig.end().await;
    Ok(())
}

async fn document() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let served = rig.client.get("/v1/openapi.json").await?;
    assert_eq!(served, serde_json::from_str::<Value>(&openapi_json())?);
    assert!(
        served["openapi"]
            .as_str()
            .is_some_and(|version| version.starts_with("3.1"))
    );
    // Every GET without parameters in its path answers with what the document says it has.
    for (path, item) in served["paths"].as_object().unwrap() {
        if item.get("get").is_none() || path.contains('{') {
            continue;
        }
        let content = &item["get"]["responses"]["200"]["content"]["application/json"];
        // A stream has an end of its own.
        if content.is_null() {
            continue;
        }
        let answer = rig.client.get(path).await?;
        let schema = &content["schema"];
        let name = schema["$ref"]
            .as_str()
            .and_then(|text| text.rsplit('/').next())
            .unwrap();
        let required = served["components"]["schemas"][name]["required"]
            .as_array()
            .unwrap();
        for field in required {
            assert!(
                answer.get(field.as_str().unwrap()).is_some(),
                "{path}: {field} of {name}"
            );
        }
    }
    rig.end().await;
    Ok(())
}

async fn not_there() -> Result<(), Failed> {
    let rig = Rig::start().await;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("/v1/clusters/none", 404, "not-found"),
        ("/v1/clusters/No%20Name", 404, "not-found"),
        ("/v1/machines/none", 404, "not-found"),
        ("/v1/machines?cluster=none", 404, "not-found"),
        ("/v1/machines?colour=blue", 400, "malformed"),
        ("/v1/tasks/t1-000000", 404, "not-found"),
        ("/v1/tasks/1", 404, "not-found"),
        ("/v1/tasks/t1-000000/events", 404, "not-found"),
        ("/v1/machines/none/logs?lines=0", 422, "invalid"),
        ("/v1/machines/none/logs?unit=-x", 422, "invalid"),
        ("/v1/nothing", 404, "no-such-route"),
        ("/", 404, "no-such-route"),
    ];
    for (path, status, code) in cases {
        let problem = problem(rig.client.get(path).await);
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (status, code),
            "{path}: {problem:?}"
        );
        assert!(!problem.message.is_empty());
    }
    let wrong = problem(rig.client.delete("/v1/health").await);
    assert_eq!((wrong.status, wrong.code.as_str()), (405, "no-such-method"));
    rig.end().await;
    Ok(())
}

async fn faults() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let machines = rig.config.local.cidr.to_string();
    let input = json!({
        "name": "Nope", "colour": 1, "kubernetesVersion": "9.9.9", "controlPlane": {"count": 2},
        "network": {"serviceCidr": machines},
    });
    let problem = problem(rig.client.post("/v1/clusters", input.to_string()).await);
    assert_eq!((problem.status, problem.code.as_str()), (422, "invalid"));
    let keys: Vec<&str> = problem
        .faults
        .iter()
        .map(|fault| fault.key.as_str())
        .collect();
    #[rustfmt::skip]
    assert_eq!(keys, ["name", "kubernetesVersion", "controlPlane.count", "network.serviceCidr", "colour"]);
    let allowed = &problem.faults[1].allowed;
    assert!(
        allowed.contains(rig::KUBERNETES),
        "the versions there are, are named: {allowed}"
    );
    rig.end().await;
    Ok(())
}

async fn bodies() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let yaml = "name: demo\npools:\n  web: {count: 1}\n".to_owned();
    let plan = rig.client.post("/v1/clusters?dry_run=true", yaml).await?;
    assert_eq!(plan["cluster"], "demo");
    let broken = problem(rig.client.post("/v1/clusters", "{".to_owned()).await);
    assert_eq!((broken.status, broken.faults.len()), (422, 1));
    let long = "#".repeat(windlass_director::spec::INPUT_BYTES_MAX + 1);
    let long = problem(rig.client.post("/v1/clusters", long).await);
    assert_eq!((long.status, long.code.as_str()), (413, "malformed"));
    rig.end().await;
    Ok(())
}

async fn dry_run() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let spec = json!({"name": "demo", "pools": {"workers": {"count": 1}}}).to_string();
    let plan = rig.client.post("/v1/clusters?dry_run=true", spec).await?;
    let keys: Vec<&str> = plan["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["key"].as_str().unwrap())
        .collect();
    assert!(keys.contains(&"machine/demo-workers-0/create"), "{keys:?}");
    assert!(
        plan["steps"][0]["why"]
            .as_str()
            .is_some_and(|why| !why.is_empty())
    );
    let clusters = rig.client.get("/v1/clusters").await?;
    assert_eq!(clusters["items"], json!([]), "nothing was made");
    assert_eq!(rig.client.get("/v1/tasks").await?["items"], json!([]));
    let absent = problem(rig.client.delete("/v1/clusters/demo?dry_run=true").await);
    assert_eq!(absent.status, 404);
    rig.end().await;
    Ok(())
}

async fn campaign() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let bad = json!({"clusters": ["nobody"], "all": true, "kubernetesVersion": "9.9.9", "waves": ["1", "no"]});
    let faults = problem(rig.client.post("/v1/campaigns", bad.to_string()).await);
    let keys: Vec<&str> = faults.faults.iter().map(|f| f.key.as_str()).collect();
    assert_eq!((faults.status, keys), (422, vec!["waves", "clusters"]));
    let absent = json!({"clusters": ["nobody"], "kubernetesVersion": "9.9.9", "maxInFlight": 0});
    let faults = problem(rig.client.post("/v1/campaigns", absent.to_string()).await);
    let keys: Vec<&str> = faults.faults.iter().map(|f| f.key.as_str()).collect();
    let want = vec!["maxInFlight", "clusters", "kubernetesVersion"];
    assert_eq!((faults.status, keys), (422, want));
    ordered(&rig.client).await?;
    let asked =
        json!({"all": true, "newestStemcell": true, "waves": ["1"], "soakSeconds": 60}).to_string();
    let plan = rig
        .client
        .post("/v1/campaigns?dry_run=true", asked.clone())
        .await?;
    assert_eq!(plan["waves"], json!([["demo"]]));
    assert_eq!(rig.client.get("/v1/campaigns").await?["items"], json!([]));
    let made = rig.client.post("/v1/campaigns", asked.clone()).await?;
    let path = format!("/v1/campaigns/{}", made["id"].as_str().unwrap());
    // The cluster is being made: it is left for later, and one campaign has it.
    assert_eq!(made["members"][0]["state"], "Waiting");
    let taken = problem(rig.client.post("/v1/campaigns", asked).await);
    assert_eq!(taken.status, 409);
    rig.client
        .post(&format!("{path}/pause"), String::new())
        .await?;
    assert_eq!(rig.client.get(&path).await?["state"], "Paused");
    rig.client
        .post(&format!("{path}/resume"), String::new())
        .await?;
    let cancelled = rig
        .client
        .post(&format!("{path}/cancel"), String::new())
        .await?;
    assert!(["Cancelling", "Cancelled"].contains(&cancelled["state"].as_str().unwrap()));
    let none = problem(
        rig.client
            .post("/v1/campaigns/c9-000000/retry", String::new())
            .await,
    );
    assert_eq!(none.status, 404);
    let overview = rig.client.get("/v1/overview").await?;
    assert_eq!(overview["items"][0]["name"], "demo");
    rig.end().await;
    Ok(())
}

async fn task() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let (id, first) = ordered(&rig.client).await?;
    let events = format!("/v1/tasks/{id}/events");
    let mut stream = rig.client.lines(Method::GET, &events, None, &[]).await?;
    let snapshot = rig::event(&mut stream).await?.unwrap();
    assert_eq!(snapshot.name, "snapshot");
    assert_eq!(snapshot.data["task"]["id"], id);
    assert!(snapshot.id.is_some(), "a snapshot can be resumed from");
    // An order that is there already is a conflict, and one of the same name finds it.
    let other = json!({"name": "demo", "pools": {"workers": {"count": 3}}}).to_string();
    let conflict = problem(rig.client.post("/v1/clusters", other).await);
    assert_eq!(
        (conflict.status, conflict.code.as_str()),
        (409, "conflict"),
        "{conflict:?}"
    );
    rig.client
        .post(&format!("/v1/tasks/{id}/cancel"), String::new())
        .await?;
    // The stream ends by itself when the task is over.
    let mut last = None;
    while let Some(event) = rig::event(&mut stream).await? {
        last = Some(event);
    }
    let task = rig.client.get(&format!("/v1/tasks/{id}")).await?;
    assert!(
        ["Cancelled", "Failed"].contains(&task["state"].as_str().unwrap()),
        "{task:#}"
    );
    assert!(last.is_some(), "what happened since the snapshot was told");
    assert_ne!(first["state"], task["state"]);
    // Who has seen the end gets nothing again; who has not gets it.
    let revision = task["revision"].to_string();
    let seen = [("last-event-id", revision.as_str())];
    let mut stream = rig.client.lines(Method::GET, &events, None, &seen).await?;
    assert!(rig::event(&mut stream).await?.is_none());
    let mut stream = rig
        .client
        .lines(Method::GET, &events, None, &[("last-event-id", "0")])
        .await?;
    let again = rig::event(&mut stream).await?.unwrap();
    assert_eq!(again.data["task"]["state"], task["state"]);
    rig.end().await;
    Ok(())
}

/// Orders a cluster; returns its task's id and the task.
pub(crate) async fn ordered(client: &Client) -> Result<(String, Value), Failed> {
    let spec = json!({"name": "demo", "pools": {}}).to_string();
    let task = client.post("/v1/clusters", spec).await?;
    let id = task["id"].as_str().unwrap().to_owned();
    assert_eq!(task["operator"], rig::OPERATOR);
    Ok((id, task))
}

async fn audit() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let (id, _) = ordered(&rig.client).await?;
    rig.client
        .post(&format!("/v1/tasks/{id}/cancel"), String::new())
        .await?;
    let log = rig.client.get("/v1/audit?limit=50").await?;
    let entries = log["items"].as_array().unwrap();
    let by_operator: Vec<&str> = entries
        .iter()
        .filter(|entry| entry["actor"] == rig::OPERATOR)
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert!(by_operator.contains(&"cluster.create"), "{log:#}");
    assert!(by_operator.contains(&"task.cancel"), "{log:#}");
    rig.end().await;
    Ok(())
}

async fn disks() -> Result<(), Failed> {
    let rig = Rig::start().await;
    for name in ["gone-cp-0-d1", "gone-cp-1-d2"] {
        let name = DiskName::new(name)?;
        rig.provider.create_disk(&name, 64 << 20).await?;
    }
    let listed = async || -> Result<Vec<Value>, Failed> {
        let answer = rig.client.get("/v1/disks").await?;
        Ok(answer["items"].as_array().unwrap().clone())
    };
    let both = listed().await?;
    assert_eq!(both.len(), 2, "{both:?}");
    assert_eq!(both[0]["name"], "gone-cp-0-d1");
    assert_eq!(both[0]["bytes"], 64 << 20);
    assert!(both.iter().all(|disk| disk["machine"].is_null()));
    let gone = rig.client.delete("/v1/disks/gone-cp-0-d1").await?;
    assert_eq!(gone, both[0]);
    assert_eq!(listed().await?, [both[1].clone()]);
    let again = problem(rig.client.delete("/v1/disks/gone-cp-0-d1").await);
    assert_eq!((again.status, again.code.as_str()), (404, "not-found"));
    let log = rig.client.get("/v1/audit?action=disk.&limit=10").await?;
    assert_eq!(log["items"][0]["subject"], "disk/gone-cp-0-d1", "{log:#}");
    rig.end().await;
    Ok(())
}

async fn stop() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let (id, _) = ordered(&rig.client).await?;
    let events = format!("/v1/tasks/{id}/events");
    let mut stream = rig.client.lines(Method::GET, &events, None, &[]).await?;
    rig::event(&mut stream).await?.unwrap();
    let client = rig.client.clone();
    let began = std::time::Instant::now();
    rig.end().await;
    assert!(
        began.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    let gone = client.get("/v1/health").await;
    assert!(
        matches!(gone, Err(ClientError::Unreachable { .. })),
        "{gone:?}"
    );
    Ok(())
}

async fn interrupted() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let mut waiting = tokio::process::Command::new(env!("CARGO_BIN_EXE_windlass"))
        .arg("--context")
        .arg(rig.context())
        .args(["cluster", "create", "demo", "--pool", "none=0", "--wait"])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let mut said = tokio::io::BufReader::new(waiting.stderr.take().unwrap()).lines();
    let first = said.next_line().await?.unwrap();
    assert!(first.contains("steps done"), "{first}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waiting.id().unwrap())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    let mut rest = String::new();
    while let Some(line) = said.next_line().await? {
        rest.push_str(&line);
    }
    assert_eq!(waiting.wait().await?.code(), Some(130), "{rest}");
    let tasks = rig.client.get("/v1/tasks").await?;
    let id = tasks["items"][0]["id"].as_str().unwrap();
    assert_ne!(tasks["items"][0]["state"], "Cancelled", "it goes on");
    for hint in [
        format!("windlass task watch {id}"),
        format!("windlass task cancel {id}"),
    ] {
        assert!(rest.contains(&hint), "{hint} is not in: {rest}");
    }
    rig.client
        .post(&format!("/v1/tasks/{id}/cancel"), String::new())
        .await?;
    // What it made is gone then: nothing is being made while the provider is reset.
    let path = format!("/v1/tasks/{id}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while rig.client.get(&path).await?["endedAt"].is_null() {
        assert!(Instant::now() < deadline, "the cancel does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.end().await;
    Ok(())
}
