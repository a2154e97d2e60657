//! `windlass`: the command line of a director.
//!
//! # Invariants
//! * Standard output carries what was asked for (with `--json`, one JSON value); progress and errors go
//!   to standard error.
//! * Exit codes are stable: see [`failure`].
//!
//! # Not here
//! Decisions: everything except `director init|start|stop|reset` and `stemcell build` is asked of the
//! director's API.

mod agents;
mod args;
mod bundle;
mod campaign;
mod change;
mod cluster;
mod cluster_backup;
mod collect;
mod daemon;
mod director;
mod director_backup;
mod disk;
mod exec;
mod failure;
mod freeze;
mod kept;
mod node;
mod operator;
mod output;
mod overview;
mod plan;
mod progress;
mod renewal;
mod reset;
mod restore;
mod rotate;
mod shell;
mod shown;
mod stemcell;
mod task;
#[cfg(test)]
mod tests;
mod top;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use windlass_director::client::{Client, Context};
use windlass_director::config::DataDir;

use args::{Arguments, Command};
use failure::{Failure, USAGE};
use output::Output;

/// Where a director lives when nothing else is said.
const DEFAULT_DATA_DIR: &str = "/var/lib/windlass";

/// What every command has at hand.
struct Session {
    data_dir: Option<PathBuf>,
    context: Option<PathBuf>,
    output: Output,
}

impl Session {
    /// The director's data directory.
    fn data_dir(&self) -> Result<DataDir, Failure> {
        let path = self
            .data_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
        DataDir::new(&path).map_err(|error| {
            Failure::failed(format!("cannot tell where {} is: {error}", path.display()))
        })
    }

    /// A client of the director that was named, or of the one that is found.
    fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(Context::load(&self.context_path()?)?))
    }

    fn context_path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.context {
            return Ok(path.clone());
        }
        if self.data_dir.is_none()
            && let Some(home) = args::home()
        {
            let own = home.join(".config/windlass/context.toml");
            if own.exists() {
                return Ok(own);
            }
        }
        Ok(self.data_dir()?.context())
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let session = Session {
        data_dir: arguments.data_dir,
        context: arguments.context,
        output: Output {
            json: arguments.json,
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(&session, arguments.command)),
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            session.output.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(session: &Session, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Director(command) => director::run(session, command).await,
        Command::Stemcell(command) => stemcell::run(session, command).await,
        Command::Cluster(command) => cluster::run(session, command).await,
        Command::Node(command) => node::run(session, command).await,
        Command::Disk(command) => disk::run(session, command).await,
        Command::Upgrade(asked) => campaign::upgrade(session, asked).await,
        Command::Campaign(command) => campaign::run(session, command).await,
        Command::Top { once, interval } => overview::run(session, once, interval).await,
        Command::Task(command) => task::run(session, command).await,
        Command::Operator(command) => operator::run(session, command).await,
        Command::Context(command) => rotate::context(session, command).await,
        Command::Audit(arguments) => operator::audit(session, arguments).await,
        Command::Completions { shell } => {
            args::completions(shell);
            Ok(ExitCode::SUCCESS)
        }
    }
}
