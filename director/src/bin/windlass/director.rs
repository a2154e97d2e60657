//! `windlass director …`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use serde_json::json;
use windlass_common::error::ErrorChain;
use windlass_director::api::FreezeClusters;
use windlass_director::client::{Client, Context};
use windlass_director::config::{Config, DataDir, InitError, InitRequest, init};
use windlass_director::service::DirectorStatus;

use crate::Session;
use crate::args::{DirectorCommand, InitArgs};
use crate::cluster::pairs;
use crate::daemon::{self, Expected, Running};
use crate::failure::{CONFLICT, Failure, UNREACHABLE, USAGE};
use crate::output::age;

pub(crate) async fn run(session: &Session, command: DirectorCommand) -> Result<ExitCode, Failure> {
    match command {
        DirectorCommand::Init(arguments) => make(session, arguments).await,
        DirectorCommand::Start { foreground: true } => {
            let dir = session.data_dir()?;
            Config::load(&dir).map_err(|error| Failure::of(&error))?;
            let program = daemon::beside("windlass-director")?;
            let error = Command::new(&program)
                .arg("--data-dir")
                .arg(dir.path())
                .exec();
            Err(Failure::failed(format!(
                "cannot run {}: {error}",
                program.display()
            )))
        }
        DirectorCommand::Start { foreground: false } => start(session).await,
        DirectorCommand::Stop => stop(session).await,
        DirectorCommand::Status => status(session).await,
        DirectorCommand::Freeze {
            name,
            from,
            until,
            reason,
        } => {
            let order = FreezeClusters {
                from,
                to: until,
                reason,
            };
            crate::freeze::order(session, &name, &order).await
        }
        DirectorCommand::Freezes => crate::freeze::list(session).await,
        DirectorCommand::Thaw { name } => crate::freeze::end(session, &name).await,
        DirectorCommand::Backup { to } => crate::director_backup::take(session, &to).await,
        DirectorCommand::BackupKey { write } => {
            crate::director_backup::key(session, write.as_deref())
        }
        DirectorCommand::Adopt(arguments) => {
            crate::director_backup::adopt(session, arguments).await
        }
        DirectorCommand::RotateCa(arguments) => crate::rotate::run(session, arguments).await,
        DirectorCommand::Reset { yes } => crate::reset::run(session, yes).await,
    }
}

async fn make(session: &Session, arguments: InitArgs) -> Result<ExitCode, Failure> {
    let dir = session.data_dir()?;
    let request = InitRequest {
        name: Some(arguments.name),
        cidr: arguments.cidr,
        api: arguments.api,
        gateway: arguments.gateway,
        stemcells: arguments.stemcells,
        trusted_keys: arguments.trusted_keys,
        operator: Some(arguments.operator),
    };
    let made = init(&dir, request).await.map_err(|error| match &error {
        InitError::Exists(_) | InitError::NotEmpty { .. } | InitError::Lock(_) => {
            Failure::new(CONFLICT, ErrorChain(&error).to_string())
        }
        InitError::Invalid(_) | InitError::Operator(_) => {
            Failure::new(USAGE, ErrorChain(&error).to_string())
        }
        _ => Failure::of(&error),
    })?;
    session.output.answer(&made, || {
        let start = match &session.data_dir {
            Some(_) => format!("export WINDLASS_DIR={}\nwindlass director start", made.data_dir.display()),
            None => "windlass director start".to_owned(),
        };
        format!(
            "director {} is set up in {}; its API will be {}\nKeep a copy of {} elsewhere: without it \
             the store's secrets are lost. Keep one of {} as well: it opens backups.\nNext:\n{start}",
            made.id,
            made.data_dir.display(),
            made.url,
            made.seal_key.display(),
            made.backup_key.display()
        )
    });
    Ok(ExitCode::SUCCESS)
}

async fn start(session: &Session) -> Result<ExitCode, Failure> {
    let dir = session.data_dir()?;
    let config = Config::load(&dir).map_err(|error| Failure::of(&error))?;
    let client = Client::new(Context::load(&dir.context())?);
    let (pid, was) = match daemon::running(&dir)? {
        Some(Running { pid }) => (
            daemon::await_answer(&client, &dir, Expected::Running(pid)).await?,
            true,
        ),
        None => (daemon::start(&dir, &config, &client).await?, false),
    };
    let answer = json!({"pid": pid, "url": format!("https://{}", client.address()), "log": dir.log(), "alreadyRunning": was});
    session.output.answer(&answer, || {
        let runs = if was { "runs already" } else { "runs" };
        format!(
            "director {runs} (pid {pid}) at https://{}; log: {}",
            client.address(),
            dir.log().display()
        )
    });
    Ok(ExitCode::SUCCESS)
}

async fn stop(session: &Session) -> Result<ExitCode, Failure> {
    let dir = session.data_dir()?;
    let stopped = daemon::stop(&dir).await?;
    let answer = json!({"stopped": stopped});
    session.output.answer(&answer, || match stopped {
        Some(pid) => format!("director (pid {pid}) stopped; its machines go on running"),
        None => format!("no director runs in {}", dir.path().display()),
    });
    Ok(ExitCode::SUCCESS)
}

async fn status(session: &Session) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    let answer = client.get("/v1/status").await.map_err(Failure::from);
    let answer = match answer {
        Ok(answer) => answer,
        Err(failure) if failure.code == UNREACHABLE => {
            return Err(why_unreachable(session, failure));
        }
        Err(failure) => return Err(failure),
    };
    let status: DirectorStatus = client.typed(&answer)?;
    session.output.answer(&answer, || describe(&status));
    Ok(ExitCode::SUCCESS)
}

/// What can be said about a director that does not answer, when it is one of this host.
fn why_unreachable(session: &Session, failure: Failure) -> Failure {
    let Ok(dir) = session.data_dir() else {
        return failure;
    };
    let state = match daemon::running(&dir) {
        Ok(Some(Running { pid })) => running_mute(&dir, pid),
        Ok(None) if dir.config().exists() => {
            format!(
                "no director runs in {}; `windlass director start` starts it",
                dir.path().display()
            )
        }
        Ok(None) | Err(_) => return failure,
    };
    Failure::new(failure.code, format!("{}\n{state}", failure.message))
}

fn running_mute(dir: &DataDir, pid: i32) -> String {
    format!(
        "a director runs in {} (pid {pid}) but does not answer; look at {}",
        dir.path().display(),
        dir.log().display()
    )
}

fn describe(status: &DirectorStatus) -> String {
    let clusters: Vec<String> = status
        .clusters
        .iter()
        .map(|(phase, count)| format!("{count} {phase}"))
        .collect();
    let clusters = if clusters.is_empty() {
        "none".to_owned()
    } else {
        clusters.join(", ")
    };
    let mut rows = vec![
        (
            "Director",
            format!(
                "{} (version {}, pid {}, epoch {})",
                status.id, status.version, status.pid, status.epoch
            ),
        ),
        (
            "Up",
            format!("{} (since {})", age(status.started_at), status.started_at),
        ),
        ("Data", status.data_dir.display().to_string()),
        ("Gateway", format!("{} (UDP)", status.gateway_address)),
        ("Clusters", clusters),
        (
            "Machines",
            format!(
                "{}, {} agents connected",
                status.machines, status.agents_connected
            ),
        ),
        ("Tasks", format!("{} unfinished", status.tasks_unfinished)),
        ("Stemcells", status.stemcells.to_string()),
    ];
    if let Some(hold) = &status.hold {
        let what = format!(
            "restored from the backup of {}: nothing is done to machines before `windlass director adopt`",
            hold.backup_at
        );
        rows.push(("On hold", what));
    }
    for fault in &status.provider_faults {
        rows.push(("Provider", fault.clone()));
    }
    pairs(rows)
}
