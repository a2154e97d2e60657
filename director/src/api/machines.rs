//! Machines with their agents: list, show, logs, exec.

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::step::Collect;

use super::extract::{Name, Query, Text};
use super::problem::Problem;
use super::stream::node_output;
use super::{ApiState, List};
use crate::model::{Caller, MachineFilter, MachineView};
use crate::spec::{self, Faults};

/// Most words of a command.
const ARGV_MAX: usize = 256;
/// Longest command, bytes over all its words.
const ARGV_BYTES_MAX: usize = 64 << 10;
/// Most lines of logs.
const LINES_MAX: u32 = 10_000;

/// Which machines to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct MachineQuery {
    /// Only of this cluster.
    cluster: Option<String>,
}

/// Which logs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// A systemd unit; all when not given.
    unit: Option<String>,
    /// Newest lines, 1 to 10000; 100 when not given.
    lines: Option<u32>,
    /// Adds processes, mounts, addresses, routes, disks and unit states.
    #[serde(default)]
    diagnostics: bool,
}

/// A command to run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments; no shell is involved.
    #[schema(example = json!(["cat", "/etc/hostname"]), max_items = 256)]
    pub argv: Vec<String>,
}

/// One line of the stream that exec and logs answer with; `exit` or `failed` is the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum NodeOutput {
    /// What is being done.
    Stage {
        /// For people.
        text: String,
    },
    /// A piece of output.
    Output {
        /// Where it came from.
        source: Source,
        /// The bytes, base64.
        data: String,
    },
    /// It ended.
    Exit {
        /// Exit code; 128 + signal when killed by one; 0 for logs.
        code: i32,
    },
    /// It did not end, or not well.
    Failed {
        /// Who acts.
        #[schema(value_type = String)]
        class: ErrorClass,
        /// What failed, and what to do.
        message: String,
    },
}

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Machines with their agents' state, by name.
#[utoipa::path(get, path = "/v1/machines", operation_id = "listMachines",
    tag = "machines", params(MachineQuery),
    responses((status = 200, body = List<MachineView>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(state): State<ApiState>,
    Query(query): Query<MachineQuery>,
) -> Result<Json<List<MachineView>>, Problem> {
    let cluster = match query.cluster {
        None => None,
        // A filter for a cluster that is not there is a mistake and not an empty list.
        Some(text) => {
            let Name(name) = Name::<ClusterName>::read(&text)?;
            state.director.cluster(&name).await?;
            Some(name)
        }
    };
    let items = state.director.machines(&MachineFilter { cluster }).await?;
    Ok(Json(List { items }))
}

/// One machine.
#[utoipa::path(get, path = "/v1/machines/{name}", operation_id = "getMachine",
    tag = "machines",
    params(("name" = String, Path)),
    responses((status = 200, body = MachineView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(state): State<ApiState>,
    Name(name): Name<MachineName>,
) -> Result<Json<MachineView>, Problem> {
    Ok(Json(state.director.machine(&name).await?))
}

/// Logs of a machine: a stream of JSON lines.
#[utoipa::path(get, path = "/v1/machines/{name}/logs", operation_id = "getMachineLogs",
    tag = "machines",
    params(("name" = String, Path), LogsQuery),
    responses((status = 200, body = NodeOutput, content_type = "application/x-ndjson"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn logs(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Problem> {
    let mut faults = Faults::default();
    let lines = query.lines.unwrap_or(100);
    if !(1..=LINES_MAX).contains(&lines) {
        faults.add("lines", lines.to_string(), format!("1 to {LINES_MAX}"));
    }
    let unit = query.unit.map(|unit| {
        let sound = !unit.is_empty()
            && unit.len() <= 255
            && !unit.starts_with('-')
            && unit
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
        if !sound {
            faults.add("unit", format!("{unit:?}"), "the name of a systemd unit");
        }
        if unit.contains('.') {
            unit
        } else {
            format!("{unit}.service")
        }
    });
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let collect = Collect {
        units: unit.into_iter().collect(),
        lines,
        diagnostics: query.diagnostics,
    };
    let events = state.director.node_logs(&name, collect, &caller).await?;
    Ok(node_output(events))
}

/// Run a command on a machine as root, at most once; audited. Answers with a stream of JSON lines.
#[utoipa::path(post, path = "/v1/machines/{name}/exec", operation_id = "execOnMachine",
    tag = "machines",
    params(("name" = String, Path)), request_body = ExecRequest,
    responses((status = 200, body = NodeOutput, content_type = "application/x-ndjson"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn exec(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
    Text(body): Text,
) -> Result<Response, Problem> {
    let argv = argv(&body)?;
    let events = state.director.node_exec(&name, argv, &caller).await?;
    Ok(node_output(events))
}

fn argv(body: &str) -> Result<Vec<String>, Problem> {
    let request: ExecRequest = serde_json::from_value(spec::from_text(body)?).map_err(|error| {
        Problem::new(
            400,
            "malformed",
            format!("the body is no exec request: {error}"),
        )
    })?;
    let mut faults = Faults::default();
    let bytes: usize = request.argv.iter().map(String::len).sum();
    if request.argv.is_empty() || request.argv.len() > ARGV_MAX || bytes > ARGV_BYTES_MAX {
        let value = format!("{} words, {bytes} bytes", request.argv.len());
        let allowed = format!("1 to {ARGV_MAX} words of at most {ARGV_BYTES_MAX} bytes together");
        faults.add("argv", value, allowed);
    }
    if request.argv.iter().any(|word| word.contains('\0')) {
        faults.add("argv", "a word with a NUL byte", "words without NUL bytes");
    }
    if faults.is_empty() {
        Ok(request.argv)
    } else {
        Err(faults.into())
    }
}
