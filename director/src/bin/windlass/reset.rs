//! `windlass director reset`: removes everything a director made on this host, in whatever state it is.

use std::path::Path;
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
    forget(&dir)?;
    drop(lock);
    let answer = json!({"dataDir": dir.path()});
    session.output.answer(&answer, || {
        format!("all machines, disks and networks of the director are gone, and its state; {} is as before init", dir.path().display())
    });
    Ok(ExitCode::SUCCESS)
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
        dir.backup_key(),
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
