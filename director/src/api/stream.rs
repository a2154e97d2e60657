//! Streams: server-sent events of a task, JSON lines of a node's output.
//!
//! A stream ends with its source, when the client goes, or when the server stops; a slow client holds
//! back its own source only.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::Serialize;
use windlass_common::error::ErrorClass;
use windlass_common::step::{Outcome, OutputStream, Payload, Progress, StepResult};
use windlass_common::wire::session::SessionEnd;

use super::machines::{NodeOutput, Source};
use crate::model::{TaskEvent, Usage};
use crate::service::NodeEvent;

/// Silence after which a comment is sent, so that a client knows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Server-sent events of a task. `last` is the id of the last event the client has.
///
/// Only a snapshot carries an id: it alone says all there is to know up to a revision.
pub(super) fn task_events(events: BoxStream<'static, TaskEvent>, last: Option<String>) -> Response {
    let mut first = true;
    let events = events.filter_map(move |event| {
        let known =
            std::mem::take(&mut first) && snapshot_id(&event).is_some_and(|id| Some(id) == last);
        let event = (!known).then(|| Ok::<_, Infallible>(sse(&event)));
        std::future::ready(event)
    });
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

fn snapshot_id(event: &TaskEvent) -> Option<String> {
    match event {
        TaskEvent::Snapshot { task } => Some(task.revision.to_string()),
        TaskEvent::Step { .. } | TaskEvent::Progress { .. } | TaskEvent::State { .. } => None,
    }
}

fn sse(event: &TaskEvent) -> Event {
    let name = match event {
        TaskEvent::Snapshot { .. } => "snapshot",
        TaskEvent::Step { .. } => "step",
        TaskEvent::Progress { .. } => "progress",
        TaskEvent::State { .. } => "state",
    };
    // JSON has no line breaks outside of strings, and none inside them: they are escaped.
    let data = serde_json::to_string(event).unwrap_or_default();
    let sse = Event::default().event(name).data(data);
    match snapshot_id(event) {
        Some(id) => sse.id(id),
        None => sse,
    }
}

/// JSON lines of what a node sends, the end last.
pub(super) fn node_output(events: BoxStream<'static, NodeEvent>) -> Response {
    ndjson(events.map(output).boxed())
}

/// JSON lines of machines' usage.
pub(super) fn usage(samples: BoxStream<'static, Usage>) -> Response {
    ndjson(samples)
}

fn ndjson<T: Serialize + 'static>(items: BoxStream<'static, T>) -> Response {
    let lines = items.map(|item| {
        let mut line = serde_json::to_string(&item).unwrap_or_default();
        line.push('\n');
        Ok::<_, Infallible>(line)
    });
    let ndjson = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (ndjson, Body::from_stream(lines)).into_response()
}

fn output(event: NodeEvent) -> NodeOutput {
    match event {
        NodeEvent::Progress(Progress::Stage(text)) => NodeOutput::Stage { text },
        NodeEvent::Progress(Progress::Output { stream, bytes }) => NodeOutput::Output {
            source: match stream {
                OutputStream::Stdout => Source::Stdout,
                OutputStream::Stderr => Source::Stderr,
            },
            data: STANDARD.encode(bytes),
        },
        NodeEvent::Result(result) => ended(*result),
        NodeEvent::Ended(SessionEnd::Exit(code)) => NodeOutput::Exit { code },
        NodeEvent::Ended(SessionEnd::Failed(message)) => NodeOutput::Failed {
            class: ErrorClass::Operator,
            message,
        },
        NodeEvent::Lost(message) => NodeOutput::Failed {
            class: ErrorClass::Retry,
            message,
        },
    }
}

fn ended(result: StepResult) -> NodeOutput {
    match result.outcome {
        Outcome::Converged | Outcome::Changed => NodeOutput::Exit {
            code: match result.payload {
                Payload::Exit(code) => code,
                Payload::None | Payload::Requests(_) => 0,
            },
        },
        Outcome::Failed { class, message } => NodeOutput::Failed { class, message },
        Outcome::Unknown { message } | Outcome::Refused { message } => NodeOutput::Failed {
            class: ErrorClass::Operator,
            message,
        },
    }
}
