//! Tasks: list, show, follow, pause, cancel, retry.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Name, Query};
use super::problem::Problem;
use super::stream::task_events;
use super::{ApiState, List};
use crate::model::{Caller, Task, TaskEvent, TaskId};

/// All tasks, newest first.
#[utoipa::path(get, path = "/v1/tasks", operation_id = "listTasks", tag = "tasks",
    responses((status = 200, body = List<Task>),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<List<Task>>, Problem> {
    let items = state.director.tasks().await?;
    Ok(Json(List { items }))
}

/// One task.
#[utoipa::path(get, path = "/v1/tasks/{id}", operation_id = "getTask", tag = "tasks",
    params(("id" = String, Path)),
    responses((status = 200, body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn show(
    State(state): State<ApiState>,
    Name(id): Name<TaskId>,
) -> Result<Json<Task>, Problem> {
    Ok(Json(state.director.task(&id).await?))
}

/// Follow a task by server-sent events, to its end.
///
/// The first event is a snapshot of the whole task, so that nothing is missed however often a client
/// connects. An event's id is the revision of the task that the client then has; one that connects
/// again with `Last-Event-ID` and has missed nothing gets no snapshot.
#[utoipa::path(get, path = "/v1/tasks/{id}/events", operation_id = "followTask", tag = "tasks",
    params(("id" = String, Path), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, body = TaskEvent, content_type = "text/event-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn events(
    State(state): State<ApiState>,
    Name(id): Name<TaskId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok());
    let events = state.director.watch_task(&id).await?;
    Ok(task_events(events, last.map(str::to_owned)))
}

/// Stop a task; a create removes what it had made.
#[utoipa::path(post, path = "/v1/tasks/{id}/cancel", operation_id = "cancelTask", tag = "tasks",
    params(("id" = String, Path)),
    responses((status = 202, description = "Being stopped", body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<TaskId>,
) -> Result<(axum::http::StatusCode, Json<Task>), Problem> {
    let task = state.director.cancel_task(&id, &caller).await?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(task)))
}

/// Pause a task: machines that it has begun with are finished, and no other one is begun with.
#[utoipa::path(post, path = "/v1/tasks/{id}/pause", operation_id = "pauseTask", tag = "tasks",
    params(("id" = String, Path)),
    responses((status = 202, description = "It pauses", body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn pause(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<TaskId>,
) -> Result<(axum::http::StatusCode, Json<Task>), Problem> {
    let task = state.director.pause_task(&id, &caller).await?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(task)))
}

/// How to go on.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ResumeQuery {
    /// Why it does not wait for the cluster's maintenance window any more, 1 to 200 characters.
    ignore_window: Option<String>,
}

/// Go on with a task that pauses, or that waits for a maintenance window.
#[utoipa::path(post, path = "/v1/tasks/{id}/resume", operation_id = "resumeTask", tag = "tasks",
    params(("id" = String, Path), ResumeQuery),
    responses((status = 202, description = "It goes on", body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<TaskId>,
    Query(query): Query<ResumeQuery>,
) -> Result<(axum::http::StatusCode, Json<Task>), Problem> {
    if let Some(reason) = query.ignore_window {
        state.director.ignore_window(&id, reason, &caller).await?;
    }
    let task = state.director.resume_task(&id, &caller).await?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(task)))
}

/// Order what a failed task did not get done, planned anew.
#[utoipa::path(post, path = "/v1/tasks/{id}/retry", operation_id = "retryTask", tag = "tasks",
    params(("id" = String, Path)),
    responses((status = 202, description = "Ordered; the task that does it", body = Task),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn retry(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Name(id): Name<TaskId>,
) -> Result<(axum::http::StatusCode, Json<Task>), Problem> {
    let task = state.director.retry_task(&id, &caller).await?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(task)))
}
