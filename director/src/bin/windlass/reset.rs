//! `windlass director reset`: removes everything a director made on this host, in whatever state it is.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;
use windlass_director::config::{Config, DataDir};
use windlass_director::provider::Provider;
use windlass_director::store::DirectoryLock;

use crate::Session;
use crate::cluster::confirm;
use crate::daemon;
use crate::failure::Failure;

pub(crate) async fn run(session: &Session, yes: bool) -> Result<ExitCode, Failure> {
    let dir = session.data_dir()?;
    let config = Config::load(&dir).map_err(|error| Failure::of(&error))?;
    let word = config.local.name.as_str();
    let question = format!(
        "This destroys every cluster of the director in {}, with all data.\nType its name ({word}) to go on: ",
        dir.path().display()
    );
    if !yes && !confirm(&question, word)? {
        return Err(Failure::failed("nothing was removed"));
    }
    daemon::stop(&dir).await?;
    // No director may start while its machines go.
    let lock = DirectoryLock::acquire(dir.path()).map_err(|error| Failure::of(&error))?;
    daemon::provider(&config)?
        .reset()
        .await
        .map_err(|error| Failure::of(&error))?;
    let kept = keep_backups(&dir, &config)?;
    forget(&dir)?;
    drop(lock);
    let answer = json!({"dataDir": dir.path(), "kept": kept});
    session.output.answer(&answer, || {
        let mut text =
            "all machines, disks and networks of the director are gone, and its state".to_owned();
        for path in &kept {
            text.push_str(&format!("; {} stays", path.display()));
        }
        text
    });
    Ok(ExitCode::SUCCESS)
}

/// What was backed up is deleted by name alone, and the key that opens it stays with it, also for what is in a bucket.
/// Where nothing was, nothing stays. Returns what does.
fn keep_backups(dir: &DataDir, config: &Config) -> Result<Vec<PathBuf>, Failure> {
    let backups = &config.backup.directory;
    let used = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
    };
    let mut kept = Vec::new();
    if std::fs::read_dir(backups).is_ok_and(|mut entries| entries.any(used)) {
        kept.push(backups.clone());
    } else {
        remove(backups, |path| std::fs::remove_dir_all(path))?;
    }
    if !kept.is_empty() || config.backup.s3.is_some() {
        kept.push(dir.backup_key());
    } else {
        remove(&dir.backup_key(), |path| std::fs::remove_file(path))?;
    }
    Ok(kept)
}

/// Removes the director's own files, the configuration last: until then the reset can be repeated.
fn forget(dir: &DataDir) -> Result<(), Failure> {
    let store = dir.store();
    let with = |suffix: &str| {
        let mut path = store.clone().into_os_string();
        path.push(suffix);
        path.into()
    };
    let files = [
        store.clone(),
        with("-wal"),
        with("-shm"),
        dir.seal_key(),
        dir.log(),
        dir.context(),
    ];
    for file in &files {
        remove(file, |path| std::fs::remove_file(path))?;
    }
    for tree in [dir.operator(), dir.provider(), dir.artifacts()] {
        remove(&tree, |path| std::fs::remove_dir_all(path))?;
    }
    remove(&dir.config(), |path| std::fs::remove_file(path))
}

fn remove(path: &Path, how: impl Fn(&Path) -> std::io::Result<()>) -> Result<(), Failure> {
    match how(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::failed(
            format!("cannot remove {}: {error}", path.display()),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}
