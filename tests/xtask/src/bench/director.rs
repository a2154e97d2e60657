//! A director of the benchmarks: set up, driven through the command line, and removed.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build::{self, Binaries, Profile};
use crate::prerequisites;
use crate::shell::{capture, step};

/// A running director; its machines and its directory are removed when dropped.
pub(super) struct Director {
    pub(super) binaries: Binaries,
    pub(super) dir: PathBuf,
    pub(super) stemcell: PathBuf,
}

impl Director {
    /// Builds what users run and starts a director of its own.
    pub(super) fn start() -> Result<Director> {
        prerequisites::install()?;
        let binaries = build::binaries(Profile::Release)?;
        let stemcells = build::stemcell(&binaries, build::KUBERNETES[0])?;
        let stemcell = build::newest_stemcell(build::KUBERNETES[0])?;
        let director = Director {
            binaries,
            dir: build::state().join("bench"),
            stemcell,
        };
        if director.dir.join("director.toml").exists() {
            director.remove()?;
        }
        step(
            "setting up a director",
            director
                .windlass(&["director", "init", "--name", "bench", "--stemcells"])
                .arg(&stemcells),
        )?;
        step(
            "starting the director",
            &mut director.windlass(&["director", "start"]),
        )?;
        Ok(director)
    }

    /// The command line, not yet started.
    pub(super) fn windlass(&self, arguments: &[&str]) -> std::process::Command {
        let mut windlass = self.binaries.privileged("windlass");
        windlass.arg("--data-dir").arg(&self.dir).args(arguments);
        windlass
    }

    /// What the command line prints with `--json`.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = capture(&mut self.windlass(&[&["--json"], arguments].concat()))?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// The entries of a list that the command line prints with `--json`.
    pub(super) fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.json(arguments)?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("{} prints no list but {other}", arguments.join(" ")),
        }
    }

    fn remove(&self) -> Result<()> {
        capture(&mut self.windlass(&["director", "reset", "--yes"]))?;
        Ok(())
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("cannot remove the director of the benchmark: {error:#}");
        }
    }
}
