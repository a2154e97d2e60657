//! Machines with their agents: list, show, logs, usage, exec, shell.

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, MachineName};
use windlass_common::limits::VITALS_INTERVAL_MS;
use windlass_common::step::Collect;

use super::access::Admitted;
use super::extract::{Name, Query, Text};
use super::problem::Problem;
use super::shell::Door;
use super::stream::{node_output, usage};
use super::{ApiState, List};
use crate::model::{Caller, MachineFilter, MachineView, Usage};
use crate::resurrector::witness::Judgement;
use crate::service::{FreshToken, Terminal};
use crate::spec::{self, Faults};

/// Most words of a command.
const ARGV_MAX: usize = 256;
/// Longest command, bytes over all its words.
const ARGV_BYTES_MAX: usize = 64 << 10;
/// Most units of one request.
const UNITS_MAX: usize = 32;
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
    /// systemd units, separated by commas; all when not given.
    unit: Option<String>,
    /// Newest lines, 1 to 10000; 100 when not given.
    lines: Option<u32>,
    /// Adds processes, mounts, addresses, routes, disks and unit states.
    #[serde(default)]
    diagnostics: bool,
    /// Goes on with what is logged from now on, until the client closes the connection.
    #[serde(default)]
    follow: bool,
}

/// Whose usage to watch, and how often.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// Only of this cluster.
    cluster: Option<String>,
    /// Only of this machine.
    machine: Option<String>,
    /// Between two samples, milliseconds, 500 to 60000; 2000 when not given.
    interval_ms: Option<u32>,
}

/// The terminal a shell is shown on.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ShellQuery {
    /// Its kind, as in TERM; `dumb` when not given.
    term: Option<String>,
    /// Its lines, 24 when not given.
    rows: Option<u16>,
    /// Its columns, 80 when not given.
    columns: Option<u16>,
}

/// A command that reads its caller's input.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CommandQuery {
    /// Program and arguments, a JSON list of strings; no shell is involved.
    #[param(example = json!("[\"tar\",\"-x\"]"))]
    argv: String,
}

/// How the token gets to the machine.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TokenQuery {
    /// Answer with the machine's settings in place of having the provider bring them there.
    #[serde(default)]
    tell: bool,
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

/// Asks every witness about a machine now, and says what the evidence means. Takes up to 3 seconds.
#[utoipa::path(get, path = "/v1/machines/{name}/evidence", operation_id = "getMachineEvidence",
    tag = "machines",
    params(("name" = String, Path)),
    responses((status = 200, body = Judgement),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn evidence(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
) -> Result<Json<Judgement>, Problem> {
    Ok(Json(state.director.machine_evidence(&name, &caller).await?))
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
    let units = units(query.unit.as_deref().unwrap_or(""), &mut faults);
    if query.follow && query.diagnostics {
        faults.add("diagnostics", "true", "false together with follow");
    }
    if !faults.is_empty() {
        return Err(faults.into());
    }
    if query.follow {
        let events = state
            .director
            .follow_logs(&name, units, lines, &caller)
            .await?;
        return Ok(node_output(events));
    }
    let collect = Collect {
        units,
        lines,
        diagnostics: query.diagnostics,
    };
    let events = state.director.node_logs(&name, collect, &caller).await?;
    Ok(node_output(events))
}

/// Names of units, separated by commas; `.service` goes without saying.
fn units(text: &str, faults: &mut Faults) -> Vec<String> {
    let names: Vec<&str> = text.split(',').filter(|name| !name.is_empty()).collect();
    if names.len() > UNITS_MAX {
        faults.add(
            "unit",
            names.len().to_string(),
            format!("at most {UNITS_MAX} units"),
        );
    }
    let unit = |name: &&str| {
        let sound = name.len() <= 255
            && !name.starts_with('-')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
        if !sound {
            faults.add("unit", format!("{name:?}"), "the name of a systemd unit");
        }
        match name.contains('.') {
            true => (*name).to_owned(),
            false => format!("{name}.service"),
        }
    };
    names.iter().map(unit).collect()
}

/// Usage of machines as it is: a stream of JSON lines, until the client closes the connection.
#[utoipa::path(get, path = "/v1/usage", operation_id = "watchUsage",
    tag = "machines", params(UsageQuery),
    responses((status = 200, body = Usage, content_type = "application/x-ndjson"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn watch(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<UsageQuery>,
) -> Result<Response, Problem> {
    let interval_ms = query.interval_ms.unwrap_or(2000);
    if !VITALS_INTERVAL_MS.contains(&interval_ms) {
        let mut faults = Faults::default();
        let (least, most) = (VITALS_INTERVAL_MS.start(), VITALS_INTERVAL_MS.end());
        faults.add(
            "intervalMs",
            interval_ms.to_string(),
            format!("{least} to {most}"),
        );
        return Err(faults.into());
    }
    let cluster = query.cluster.map(|name| Name::<ClusterName>::read(&name));
    let cluster = cluster.transpose()?.map(|Name(name)| name);
    let machine = query.machine.map(|name| Name::<MachineName>::read(&name));
    let machine = machine.transpose()?.map(|Name(name)| name);
    let samples = state
        .director
        .watch_usage(cluster.as_ref(), machine.as_ref(), interval_ms, &caller)
        .await?;
    Ok(usage(samples))
}

/// A shell as root on a machine, on a terminal of its own; audited.
///
/// Takes `Connection: Upgrade` and `Upgrade: windlass-session`. After the 101 both sides send frames:
/// kind (u16), length (u32, both big endian) and body, as on the agents' link. The client sends
/// `SessionInput` and `SessionResize`; the answers are `SessionOutput` and, last, `SessionEnd`. Closing
/// the connection ends the shell and what it started.
#[utoipa::path(get, path = "/v1/machines/{name}/shell", operation_id = "openShell",
    tag = "machines", params(("name" = String, Path), ShellQuery),
    responses((status = 101, description = "The terminal follows"),
        (status = 426, description = "Not asked for an upgrade", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn shell(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Extension(admitted): Extension<Admitted>,
    Name(name): Name<MachineName>,
    Query(query): Query<ShellQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let door = Door::of(&state, request)?;
    let terminal = Terminal {
        term: query.term.unwrap_or_else(|| "dumb".to_owned()),
        rows: query.rows.unwrap_or(24),
        columns: query.columns.unwrap_or(80),
    };
    let standing = admitted.standing(&state, &caller);
    let reach = state.director.open_shell(&name, terminal, &caller).await?;
    Ok(door.relay(reach, standing))
}

/// Run a command on a machine as root with the caller's input; audited.
///
/// Takes `Connection: Upgrade` and `Upgrade: windlass-session`. After the 101 both sides send frames as for
/// a shell: the client sends `SessionInput`, one without bytes at the end of the input; the answers are
/// `SessionOutput`, both outputs apart, and, last, `SessionEnd`. Closing the connection ends the command and
/// what it started.
#[utoipa::path(get, path = "/v1/machines/{name}/command", operation_id = "runCommand",
    tag = "machines", params(("name" = String, Path), CommandQuery),
    responses((status = 101, description = "The command runs"),
        (status = 426, description = "Not asked for an upgrade", body = Problem,
            content_type = "application/problem+json"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn command(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Extension(admitted): Extension<Admitted>,
    Name(name): Name<MachineName>,
    Query(query): Query<CommandQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let argv: Vec<String> = serde_json::from_str(&query.argv).map_err(|error| {
        let message = format!("argv is no JSON list of strings: {error}");
        Problem::new(400, "malformed", message)
    })?;
    let argv = checked(argv)?;
    let door = Door::of(&state, request)?;
    let standing = admitted.standing(&state, &caller);
    let reach = state.director.run_command(&name, argv, &caller).await?;
    Ok(door.relay(reach, standing))
}

/// Give a machine that has no certificate that counts a fresh one-time token; audited.
///
/// For a machine that was cut off for longer than its certificate and the grace window. It keeps what it is
/// and all it has. The token counts for an hour, for this incarnation and the first key that shows it;
/// earlier ones that nobody has used stop counting. A machine that is connected is refused with 409.
#[utoipa::path(post, path = "/v1/machines/{name}/token", operation_id = "enrollMachine",
    tag = "machines", params(("name" = String, Path), TokenQuery),
    responses((status = 200, body = FreshToken),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn enroll(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(name): Name<MachineName>,
    Query(query): Query<TokenQuery>,
) -> Result<Response, Problem> {
    let fresh = state
        .director
        .enroll_node(&name, !query.tell, &caller)
        .await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(fresh)).into_response())
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
    checked(request.argv)
}

fn checked(argv: Vec<String>) -> Result<Vec<String>, Problem> {
    let mut faults = Faults::default();
    let bytes: usize = argv.iter().map(String::len).sum();
    if argv.is_empty() || argv.len() > ARGV_MAX || bytes > ARGV_BYTES_MAX {
        let value = format!("{} words, {bytes} bytes", argv.len());
        let allowed = format!("1 to {ARGV_MAX} words of at most {ARGV_BYTES_MAX} bytes together");
        faults.add("argv", value, allowed);
    }
    if argv.iter().any(|word| word.contains('\0')) {
        faults.add("argv", "a word with a NUL byte", "words without NUL bytes");
    }
    if faults.is_empty() {
        Ok(argv)
    } else {
        Err(faults.into())
    }
}
