//! What operators do on machines and clusters is in the audit log: who, with which role, on what, and what came of
//! it; and so is what they may not do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use hyper::Method;
use hyper_util::rt::TokioIo;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use windlass_director::client::{Client, ClientError};
use windlass_director::model::Role;

use crate::ordered;
use crate::rig::Rig;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// The machine, whose agent is a process on this host.
const MACHINE: &str = "demo-cp-0";

/// The machine's agent, on a root that is a directory.
struct Agent {
    process: Child,
    _root: tempfile::TempDir,
}

impl Agent {
    /// Starts it with settings that have a fresh token.
    async fn start(client: &Client) -> Result<Agent, Failed> {
        let path = format!("/v1/machines/{MACHINE}/token?tell=true");
        let fresh = client.post(&path, String::new()).await?;
        let mut settings: Value = serde_json::from_str(fresh["settings"].as_str().unwrap())?;
        // There is no bridge with machines here: the director is on this host's loopback.
        let status = client.get("/v1/status").await?;
        settings["directors"] = json!([status["gatewayAddress"]]);
        let root = tempfile::tempdir()?;
        let dir = root.path().join("etc/windlass");
        fs::create_dir_all(&dir)?;
        let file = dir.join("settings.json");
        fs::write(&file, settings.to_string())?;
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600))?;
        let process = Command::new(binary())
            .arg("--root")
            .arg(root.path())
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Agent {
            process,
            _root: root,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The agent's binary, built if it is not the newest.
fn binary() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "windlass-agent"])
        .status();
    assert!(built.unwrap().success(), "the agent is not built");
    Path::new(env!("CARGO_BIN_EXE_windlass")).with_file_name("windlass-agent")
}

/// How something is asked for, and for how long.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// To the end of its answer.
    Whole(&'static str),
    /// With a body, to the end of its answer.
    Post(&'static str, &'static str),
    /// Until its answer begins; then the operator leaves.
    Begun(&'static str),
    /// To the first line of its answer; then the operator leaves.
    FirstLine(&'static str),
    /// Over an upgraded connection, to its end.
    Session(&'static str),
    /// Over an upgraded connection, which the operator leaves at once.
    Left(&'static str),
}

impl Ask {
    fn method(self) -> Method {
        match self {
            Ask::Post(..) => Method::POST,
            Ask::Whole(_) | Ask::Begun(_) | Ask::FirstLine(_) | Ask::Session(_) | Ask::Left(_) => {
                Method::GET
            }
        }
    }

    fn path(self) -> &'static str {
        match self {
            Ask::Whole(path)
            | Ask::Post(path, _)
            | Ask::Begun(path)
            | Ask::FirstLine(path)
            | Ask::Session(path)
            | Ask::Left(path) => path,
        }
    }

    async fn ask(self, client: &Client) -> Result<(), ClientError> {
        let body = match self {
            Ask::Post(_, body) => Some(body.to_owned()),
            _ => None,
        };
        match self {
            Ask::Whole(path) | Ask::Post(path, _) => {
                let mut lines = client.lines(self.method(), path, body, &[]).await?;
                while lines.next().await?.is_some() {}
            }
            Ask::Begun(path) => drop(client.lines(Method::GET, path, None, &[]).await?),
            Ask::FirstLine(path) => {
                let mut lines = client.lines(Method::GET, path, None, &[]).await?;
                lines.next().await?;
            }
            Ask::Session(path) => {
                let upgraded = client.upgrade(path, "windlass-session").await?;
                let mut said = Vec::new();
                // However it is closed.
                let _ = TokioIo::new(upgraded).read_to_end(&mut said).await;
            }
            Ask::Left(path) => drop(client.upgrade(path, "windlass-session").await?),
        }
        Ok(())
    }
}

/// What may be asked for, by whom, and what the log says of it.
struct Row {
    name: &'static str,
    least: Role,
    ask: Ask,
    action: &'static str,
    subject: &'static str,
    /// How it ends; `None` where that is up to what comes first.
    outcome: Option<&'static str>,
}

#[rustfmt::skip] // one row per line, so that a missing one shows
const ROWS: &[Row] = &[
    Row { name: "logs",        least: Role::Operator, ask: Ask::Whole("/v1/machines/demo-cp-0/logs?lines=1"),                              action: "node.logs",           subject: "machine/demo-cp-0", outcome: Some("done") },
    Row { name: "collect",     least: Role::Operator, ask: Ask::Whole("/v1/machines/demo-cp-0/logs?lines=1&diagnostics=true"),             action: "node.logs",           subject: "machine/demo-cp-0", outcome: Some("done") },
    Row { name: "following",   least: Role::Operator, ask: Ask::Begun("/v1/machines/demo-cp-0/logs?lines=1&follow=true"),                  action: "node.logs",           subject: "machine/demo-cp-0", outcome: None },
    Row { name: "exec",        least: Role::Admin,    ask: Ask::Post("/v1/machines/demo-cp-0/exec", r#"{"argv":["sh","-c","exit 3"]}"#),   action: "node.exec",           subject: "machine/demo-cp-0", outcome: Some("exit 3") },
    Row { name: "exec -i",     least: Role::Admin,    ask: Ask::Session("/v1/machines/demo-cp-0/command?argv=%5B%22true%22%5D"),           action: "node.exec",           subject: "machine/demo-cp-0", outcome: Some("exit 0") },
    Row { name: "shell",       least: Role::Admin,    ask: Ask::Left("/v1/machines/demo-cp-0/shell"),                                      action: "node.shell",          subject: "machine/demo-cp-0", outcome: None },
    Row { name: "top",         least: Role::Operator, ask: Ask::FirstLine("/v1/usage?machine=demo-cp-0&intervalMs=500"),                   action: "node.top",            subject: "machine/demo-cp-0", outcome: Some("ended: the operator left") },
    Row { name: "credentials", least: Role::Admin,    ask: Ask::Post("/v1/clusters/demo/credentials", ""),                                 action: "cluster.credentials", subject: "cluster/demo",      outcome: Some("granted") },
    // Every operator may ask; the cluster decides by the group, and nobody answers here.
    Row { name: "tunnel",      least: Role::Viewer,   ask: Ask::Post("/v1/clusters/demo/kubernetes/api/v1/namespaces", "{}"),              action: "cluster.kubernetes",  subject: "cluster/demo",      outcome: Some("503") },
];

pub(crate) async fn of_reach() -> Result<(), Failed> {
    let rig = Rig::start().await;
    let looked = AssertUnwindSafe(look(&rig)).catch_unwind().await;
    // In any case, since what the provider made would be in the way of the next run.
    rig.end().await;
    looked.unwrap_or_else(|panic| resume_unwind(panic))
}

async fn look(rig: &Rig) -> Result<(), Failed> {
    let (id, _) = ordered(&rig.client).await?;
    until("the machine's record", async || {
        let machines = rig.client.get("/v1/machines?cluster=demo").await?;
        let mut names = machines["items"].as_array().unwrap().iter();
        Ok(names.any(|machine| machine["name"] == MACHINE))
    })
    .await?;
    // Nothing is to be done on this host as on a machine.
    let task = format!("/v1/tasks/{id}");
    // One that has failed already stands still.
    let _ = rig
        .client
        .post(&format!("{task}/pause"), String::new())
        .await;
    until("the task to stand still", async || {
        let state = rig.client.get(&task).await?["state"].clone();
        Ok(["Pausing", "Paused", "Failed"]
            .iter()
            .any(|still| state == *still))
    })
    .await?;
    let _agent = Agent::start(&rig.client).await?;
    until("the agent", async || {
        let machine = rig.client.get(&format!("/v1/machines/{MACHINE}")).await?;
        Ok(machine["agent"]["connected"] == true)
    })
    .await?;

    let clients = [
        (
            Role::Viewer,
            "vic",
            rig.operator("vic", Role::Viewer).await?,
        ),
        (
            Role::Operator,
            "oda",
            rig.operator("oda", Role::Operator).await?,
        ),
        (Role::Admin, "ada", rig.operator("ada", Role::Admin).await?),
    ];
    for row in ROWS {
        let path = row.ask.path().split('?').next().unwrap();
        for (role, name, client) in &clients {
            let what = format!("{} by {role}", row.name);
            let before = newest(&rig.client).await?;
            let asked = tokio::time::timeout(PATIENCE, row.ask.ask(client)).await?;
            let mut lines = Vec::new();
            // The last one is written when what was asked for has ended.
            until(&what, async || {
                lines = since(&rig.client, before, name).await?;
                Ok(lines.last().is_some_and(|line| line["outcome"] != ""))
            })
            .await?;
            for line in &lines {
                assert_eq!(line["role"], role.to_string(), "{what}: {line:#}");
                assert_ne!(line["request"], "", "{what}: {line:#}");
            }
            let last = lines.last().unwrap();
            let said = |line: &Value| json!([line["action"], line["subject"]]);
            if *role < row.least {
                assert!(asked.is_err(), "{what} is refused");
                assert_eq!(lines.len(), 1, "{what}: {lines:#?}");
                assert_eq!(said(last), json!(["request.failed", path]), "{what}");
                assert_eq!(last["detail"], row.ask.method().as_str(), "{what}");
                assert_eq!(last["outcome"], "403", "{what}");
                continue;
            }
            let wanted = json!([row.action, row.subject]);
            assert!(
                lines.iter().all(|line| said(line) == wanted),
                "{what}: {lines:#?}"
            );
            if let Some(outcome) = row.outcome {
                assert_eq!(last["outcome"], outcome, "{what}: {last:#}");
            }
            if row.action.starts_with("node.") {
                asked?;
                assert_eq!(lines.len(), 2, "{what}: {lines:#?}");
                assert_eq!(lines[0]["outcome"], "", "{what}: before it began");
            }
        }
    }
    Ok(())
}

/// The number of the newest line of the audit log.
async fn newest(client: &Client) -> Result<u64, Failed> {
    let log = client.get("/v1/audit?limit=1").await?;
    Ok(log["items"][0]["sequence"].as_u64().unwrap())
}

/// An operator's lines after one, in their order.
async fn since(client: &Client, before: u64, actor: &str) -> Result<Vec<Value>, Failed> {
    let log = client
        .get(&format!("/v1/audit?actor={actor}&limit=50"))
        .await?;
    let lines = log["items"].as_array().unwrap().iter().rev();
    let later = lines.filter(|line| line["sequence"].as_u64() > Some(before));
    Ok(later.cloned().collect())
}

async fn until(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<bool, Failed>,
) -> Result<(), Failed> {
    let deadline = Instant::now() + PATIENCE;
    while !look().await? {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
