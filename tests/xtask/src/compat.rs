//! The suite `compat`: this release beside the one before it, whose protocol it still speaks.
//!
//! The older release is built from this repository's own history (`tests/compat.toml` says which
//! commit). Then its agent, a process on a machine that is a directory, is served by this gateway, and
//! this agent by its gateway: enrollment, steps and output, renewal, a restart of either end.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::build;
use crate::shell::{capture, cargo, command, root, step};

/// What `tests/compat.toml` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Previous {
    /// The newest protocol of the older release.
    protocol: u16,
    /// The last commit that speaks no newer one.
    commit: String,
}

pub(crate) fn run() -> Result<()> {
    let path = root().join("tests/compat.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
    let previous: Previous =
        toml::from_str(&text).with_context(|| format!("{path:?} is malformed"))?;
    have(&previous.commit)?;
    let source = check_out(&previous.commit)?;
    let old_agent = source.join("target/debug/windlass-agent");
    step(
        "building the older agent",
        // With the test, so that what both releases depend on is compiled alike.
        older(&source)
            .args(["build", "--quiet", "--locked", "--workspace"])
            .args(["--bin", "windlass-agent", "--test", "link"]),
    )?;
    build::for_tests()?;
    let test = ["test", "--quiet", "--locked", "--workspace"];
    let processes = ["--test", "link", "--", "process::"];
    step(
        &format!(
            "the agent of protocol {} under this gateway",
            previous.protocol
        ),
        cargo()
            .args(test)
            .args(processes)
            .env("WINDLASS_TEST_AGENT", &old_agent)
            .env("WINDLASS_TEST_PROTOCOL", previous.protocol.to_string()),
    )?;
    step(
        &format!(
            "this agent under the gateway of protocol {}",
            previous.protocol
        ),
        older(&source).args(test).args(processes).env(
            "WINDLASS_TEST_AGENT",
            build::target().join("debug/windlass-agent"),
        ),
    )
}

/// Sees to it that the commit is there: a shallow clone has to fetch it.
fn have(commit: &str) -> Result<()> {
    let there = || {
        let object = format!("{commit}^{{commit}}");
        capture(command("git").args(["cat-file", "-e", &object])).is_ok()
    };
    if there() {
        return Ok(());
    }
    let fetches = [
        vec!["fetch", "--quiet", "origin", commit],
        vec!["fetch", "--quiet", "--unshallow"],
    ];
    let mut faults = Vec::new();
    for fetch in fetches {
        match capture(command("git").args(&fetch)) {
            Ok(_) if there() => return Ok(()),
            Ok(_) => {}
            Err(error) => faults.push(error.to_string()),
        }
    }
    bail!(
        "commit {commit} of tests/compat.toml is not in this clone and cannot be fetched; clone with \
         its whole history: {}",
        faults.join("; ")
    )
}

/// The older release's sources, below the target directory.
fn check_out(commit: &str) -> Result<PathBuf> {
    let dir = build::target().join("compat").join(commit);
    if dir.join("Cargo.toml").exists() {
        return Ok(dir);
    }
    // Complete under its name, or not there at all.
    let fresh = dir.with_extension("new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("cannot clear {fresh:?}"))?;
    }
    std::fs::create_dir_all(&fresh).with_context(|| format!("cannot make {fresh:?}"))?;
    let archive = fresh.join("source.tar");
    capture(
        command("git")
            .args(["archive", "--format=tar", "--output"])
            .arg(&archive)
            .arg(commit),
    )?;
    capture(
        command("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(&fresh),
    )?;
    std::fs::remove_file(&archive).with_context(|| format!("cannot remove {archive:?}"))?;
    std::fs::rename(&fresh, &dir).with_context(|| format!("cannot rename {fresh:?}"))?;
    Ok(dir)
}

/// `cargo` in the older sources. It shares what both releases compile alike, and keeps its binaries to
/// itself.
fn older(source: &Path) -> Command {
    let mut cargo = cargo();
    cargo
        .current_dir(source)
        .env("CARGO_BUILD_BUILD_DIR", build::target())
        .env("CARGO_TARGET_DIR", source.join("target"));
    cargo
}
