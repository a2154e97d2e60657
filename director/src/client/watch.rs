//! Follows a task over server-sent events, across restarts of the director.

use std::time::{Duration, Instant};

use hyper::Method;

use super::{Client, ClientError, Lines};
use crate::model::{TaskEvent, TaskId};

/// How long a director may be away before a watch gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(250);

/// A task that is being followed.
#[derive(Debug)]
pub struct Watch<'a> {
    client: &'a Client,
    id: TaskId,
    lines: Option<Lines>,
    last_event_id: Option<String>,
    /// Since when the director has been away.
    away: Option<Instant>,
}

/// What a watch has to say.
#[derive(Debug)]
pub enum Watched {
    /// An event of the task.
    Event(TaskEvent),
    /// The director went away; the watch goes on trying.
    Away,
    /// The director ended the stream: the task is over, or there is more in a new stream.
    Ended,
}

/// Starts to follow a task.
pub fn follow<'a>(client: &'a Client, id: &TaskId) -> Watch<'a> {
    Watch {
        client,
        id: id.clone(),
        lines: None,
        last_event_id: None,
        away: None,
    }
}

impl Watch<'_> {
    /// What comes next. After [`Watched::Ended`] of a task that is not over, a further call connects
    /// again.
    ///
    /// # Errors
    /// When there is no such task, or the director stays away for a minute.
    pub async fn next(&mut self) -> Result<Watched, ClientError> {
        loop {
            let Some(lines) = &mut self.lines else {
                match self.connect().await {
                    Ok(lines) => {
                        self.away = None;
                        self.lines = Some(lines);
                    }
                    Err(error @ ClientError::Unreachable { .. }) => {
                        let first = self.away.is_none();
                        let away = self.away.get_or_insert_with(Instant::now);
                        if away.elapsed() > PATIENCE {
                            return Err(error);
                        }
                        if first {
                            return Ok(Watched::Away);
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            match event(lines, &mut self.last_event_id).await {
                Ok(Some(event)) => return Ok(Watched::Event(event)),
                Ok(None) => {
                    self.lines = None;
                    return Ok(Watched::Ended);
                }
                Err(ClientError::Unreachable { .. }) => self.lines = None,
                Err(error) => return Err(error),
            }
        }
    }

    async fn connect(&self) -> Result<Lines, ClientError> {
        let path = format!("/v1/tasks/{}/events", self.id);
        let last = self
            .last_event_id
            .as_deref()
            .map(|id| ("last-event-id", id));
        self.client
            .lines(Method::GET, &path, None, last.as_slice())
            .await
    }
}

/// The next event of a stream.
async fn event(
    lines: &mut Lines,
    last: &mut Option<String>,
) -> Result<Option<TaskEvent>, ClientError> {
    let mut data = String::new();
    let mut id = None;
    while let Some(line) = lines.next().await? {
        if let Some(text) = line.strip_prefix("data:") {
            data.push_str(text.strip_prefix(' ').unwrap_or(text));
        } else if let Some(text) = line.strip_prefix("id:") {
            id = Some(text.trim().to_owned());
        } else if line.is_empty() && !data.is_empty() {
            let event = serde_json::from_str(&data)
                .map_err(|error| lines.unexpected(&error.to_string()))?;
            // An event without an id is not covered by the last one: a new stream begins with a snapshot.
            *last = id;
            return Ok(Some(event));
        }
    }
    Ok(None)
}
