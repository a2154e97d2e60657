//! `windlass-director backup` and `windlass-director restore`: of a data directory, without the API.
//!
//! # Not here
//! `windlass director backup`, which asks a running director (`bin/windlass`).

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use windlass_common::error::ErrorChain;
use windlass_common::id::Epoch;

use super::director::{self, BackupError};
use super::envelope::{EnvelopeError, Identity};
use super::restore::{RestoreError, RestoreRequest, restore};
use crate::config::{Config, ConfigError, DataDir};
use crate::model::Timestamp;

#[derive(Debug, Parser)]
#[command(name = "windlass-director", version)]
enum Arguments {
    /// Back the director of a data directory up, whether it runs or not
    ///
    /// The archive holds the store with every CA, the key that opens it, and the configuration; it is sealed for
    /// the director's backup key and the recipients in director.toml (age format). It is there as a whole or
    /// not at all.
    #[command(after_help = "Example:\n  windlass-director backup --to /mnt/safe/director.age")]
    Backup {
        /// Data directory of the director
        #[arg(
            long,
            env = "WINDLASS_DIR",
            default_value = "/var/lib/windlass",
            value_name = "DIR"
        )]
        data_dir: PathBuf,
        /// File to write, which must not be there
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a backup into an empty data directory, here or on another host
    ///
    /// Everything is verified before anything is put in place. The director is then on hold: it looks, and does
    /// nothing to machines before `windlass director adopt` has shown what changed since the backup.
    /// Make sure that the director whose backup it is does not run any more.
    #[command(
        after_help = "Example:\n  windlass-director restore --from director.age --identity backup.key --data-dir /var/lib/windlass\n  windlass director start\n  windlass director adopt"
    )]
    Restore {
        /// Data directory to restore into: a new one, or one that holds stemcells, artifacts and the
        /// provider's machines only
        #[arg(
            long,
            env = "WINDLASS_DIR",
            default_value = "/var/lib/windlass",
            value_name = "DIR"
        )]
        data_dir: PathBuf,
        /// The backup
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// A private key that opens it: the director's (`windlass director backup-key`), or a recipient's
        #[arg(long, value_name = "KEYFILE")]
        identity: PathBuf,
        /// An epoch that has to be exceeded; only when clocks were wrong and agents refuse the director
        #[arg(long, value_name = "EPOCH")]
        epoch_above: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("the data directory's path is not usable")]
    DataDir(#[source] std::io::Error),
    #[error("the configuration is not usable")]
    Config(#[from] ConfigError),
    #[error("the key is not usable")]
    Key(#[from] EnvelopeError),
    #[error("the director was not backed up")]
    Backup(#[from] BackupError),
    #[error("the director was not restored")]
    Restore(#[from] RestoreError),
    #[error("the system refuses to start threads")]
    Runtime(#[source] std::io::Error),
}

/// Runs the command; `arguments` begins with its name.
pub fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    let program = std::ffi::OsString::from("windlass-director");
    let parsed = Arguments::parse_from(std::iter::once(program).chain(arguments));
    match run(parsed) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}", ErrorChain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<String, CommandError> {
    match arguments {
        Arguments::Backup { data_dir, to, json } => backup(&data_dir, &to, json),
        Arguments::Restore {
            data_dir,
            from,
            identity,
            epoch_above,
            json,
        } => {
            let dir = DataDir::new(&data_dir).map_err(CommandError::DataDir)?;
            let key = Identity::load(&identity)?;
            let request = RestoreRequest {
                archive: from,
                above: epoch_above.map(Epoch),
                now: Timestamp::now(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(CommandError::Runtime)?;
            let restored = runtime.block_on(restore(&dir, &key, &request))?;
            if json {
                return Ok(serde_json::to_string(&restored).unwrap_or_default());
            }
            Ok(format!(
                "director {} of {} is restored in {}; its epoch is above {}\n\
                 It is on hold. Look at {}, see that its stemcells are there, then:\n\
                 windlass director start\nwindlass director adopt",
                restored.id,
                restored.backup.taken_at,
                dir.path().display(),
                restored.epoch,
                dir.config().display(),
            ))
        }
    }
}

fn backup(data_dir: &Path, to: &Path, json: bool) -> Result<String, CommandError> {
    let dir = DataDir::new(data_dir).map_err(CommandError::DataDir)?;
    let config = Config::load(&dir)?;
    let key = Identity::load_or_create(&dir.backup_key())?;
    let mut recipients = vec![key.recipient()];
    recipients.extend(config.backup.recipients);
    let (manifest, bytes) = director::write_file(&dir, &recipients, Timestamp::now(), to)?;
    if json {
        let answer = serde_json::json!({"file": to, "bytes": bytes, "backup": manifest});
        return Ok(answer.to_string());
    }
    let recipients: Vec<String> = recipients.iter().map(ToString::to_string).collect();
    Ok(format!(
        "{} ({bytes} bytes) can be opened by:\n  {}",
        to.display(),
        recipients.join("\n  ")
    ))
}
