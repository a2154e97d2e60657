//! `windlass task …`.

use std::process::ExitCode;

use serde_json::Value;
use windlass_director::client::Client;
use windlass_director::model::{StepState, Task, TaskId};

use crate::args::TaskCommand;
use crate::cluster::{ordered, pairs, segment};
use crate::failure::{Failure, NOT_FOUND};
use crate::output::{age, duration, table};
use crate::{Session, progress};

pub(crate) async fn run(session: &Session, command: TaskCommand) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    match command {
        TaskCommand::List => list(session, &client).await,
        TaskCommand::Show { id } => {
            let answer = client.get(&format!("/v1/tasks/{}", segment(&id))).await?;
            let task: Task = client.typed(&answer)?;
            session.output.answer(&answer, || describe(&task));
            Ok(ExitCode::SUCCESS)
        }
        TaskCommand::Watch { id } => progress::wait(session, &client, &parse(&id)?).await,
        TaskCommand::Pause { id, wait } => {
            let (answer, task) = order(&client, &id, "pause").await?;
            if wait {
                return progress::paused(session, &client, &task.id).await;
            }
            session.output.answer(&answer, || {
                format!(
                    "task {id} is {}: `windlass task resume {id}` goes on with it",
                    task.state
                )
            });
            Ok(ExitCode::SUCCESS)
        }
        TaskCommand::Resume {
            id,
            ignore_window,
            wait,
        } => {
            let how = ignore_window.map_or_else(String::new, |reason| {
                format!("?ignore_window={}", segment(&reason))
            });
            let (answer, _) = order(&client, &id, &format!("resume{how}")).await?;
            ordered(session, &client, &answer, wait).await
        }
        TaskCommand::Retry { id, wait } => {
            let (answer, _) = order(&client, &id, "retry").await?;
            ordered(session, &client, &answer, wait).await
        }
        TaskCommand::Cancel { id, wait } => {
            let (answer, task) = order(&client, &id, "cancel").await?;
            if wait {
                return progress::cancelled(session, &client, &task.id).await;
            }
            session.output.answer(&answer, || {
                format!(
                    "task {id} is {}: `windlass task watch {id}` follows it",
                    task.state
                )
            });
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Asks something of a task; returns the task that the answer is about.
async fn order(client: &Client, id: &str, what: &str) -> Result<(Value, Task), Failure> {
    let path = format!("/v1/tasks/{}/{what}", segment(id));
    let answer = client.post(&path, String::new()).await?;
    let task = client.typed(&answer)?;
    Ok((answer, task))
}

fn parse(id: &str) -> Result<TaskId, Failure> {
    id.parse()
        .map_err(|error: windlass_director::model::TaskIdError| {
            Failure::new(NOT_FOUND, error.to_string())
        })
}

async fn list(session: &Session, client: &Client) -> Result<ExitCode, Failure> {
    let answer = client.get("/v1/tasks").await?;
    let tasks: Vec<Task> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let rows = tasks.iter().map(|task| {
            let (done, all) = task.progress();
            vec![
                task.id.to_string(),
                task.kind.to_string(),
                task.cluster.to_string(),
                task.state.to_string(),
                format!("{done}/{all}"),
                task.operator.clone(),
                took(task),
                age(task.created_at),
            ]
        });
        table(
            &[
                "ID", "KIND", "CLUSTER", "STATE", "STEPS", "OPERATOR", "TOOK", "AGE",
            ],
            rows,
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// How long a task has run.
fn took(task: &Task) -> String {
    let Some(started) = task.started_at else {
        return "-".to_owned();
    };
    let ended = task
        .ended_at
        .unwrap_or_else(windlass_director::model::Timestamp::now);
    duration(ended.ms_since(started))
}

fn describe(task: &Task) -> String {
    let mut rows = vec![
        ("Task", task.id.to_string()),
        ("Kind", task.kind.to_string()),
        ("Cluster", task.cluster.to_string()),
        ("State", task.state.to_string()),
        ("Operator", task.operator.clone()),
        (
            "Ordered",
            format!("{} ({} ago)", task.created_at, age(task.created_at)),
        ),
        ("Took", took(task)),
    ];
    if let Some(held) = &task.held {
        rows.push(("Window", held.clone()));
    }
    if let Some(reason) = &task.ignore_window {
        rows.push(("Ignores windows", reason.clone()));
    }
    if let Some(error) = &task.error {
        rows.push(("Error", error.message.clone()));
    }
    let plans = std::iter::once(&task.plan)
        .chain(&task.again)
        .chain(&task.cleanup);
    let steps = plans.flat_map(|plan| &plan.steps).map(|step| {
        let record = task.steps.get(&step.key);
        let state = record.map_or("waiting", |record| match record.state {
            StepState::Running => "running",
            StepState::Succeeded => "done",
            StepState::Failed => "failed",
            StepState::Cancelled => "cancelled",
        });
        let took = record.map_or(String::new(), |record| {
            let ended = record
                .ended_at
                .unwrap_or_else(windlass_director::model::Timestamp::now);
            duration(ended.ms_since(record.started_at))
        });
        let error = record.and_then(|record| record.error.as_ref());
        let error = error.map_or(String::new(), |error| error.message.clone());
        vec![step.key.to_string(), state.to_owned(), took, error]
    });
    let steps = table(&["STEP", "STATE", "TOOK", "ERROR"], steps);
    format!("{}\n\n{steps}", pairs(rows))
}
