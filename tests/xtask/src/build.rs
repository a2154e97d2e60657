//! Builds what the other commands run: the binaries, the static agent and the stemcells.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::shell::{capture, cargo, privileged, root, step};

/// The newest Kubernetes version that is built here, and the one before it.
pub(crate) const KUBERNETES: [&str; 2] = ["1.37.2", "1.36.3"];

/// The test that is scenarios on real clusters.
pub(crate) const SCENARIOS: &str = "e2e";

/// How the director and its tools are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Quick to build, with assertions; what the tests run.
    Dev,
    /// What users run.
    Release,
}

impl Profile {
    /// The directory of what it builds.
    fn dir(self) -> PathBuf {
        target().join(match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        })
    }
}

/// Where things were built.
#[derive(Debug, Clone)]
pub(crate) struct Binaries {
    /// Directory with `windlass`, `windlass-director` and `windlass-stemcell`.
    pub(crate) dir: PathBuf,
    /// The static agent.
    pub(crate) agent: PathBuf,
}

impl Binaries {
    /// A command of one of the binaries, as root.
    pub(crate) fn privileged(&self, name: &str) -> Command {
        privileged(self.dir.join(name))
    }
}

/// Compiles the director, the command line, the stemcell builder and the agent.
pub(crate) fn binaries(profile: Profile) -> Result<Binaries> {
    match profile {
        Profile::Dev => for_tests()?,
        Profile::Release => step(
            "building the director, the command line and the stemcell builder",
            optimised().args(["-p", "windlass-director", "-p", "windlass-stemcell"]),
        )?,
    }
    Ok(Binaries {
        dir: profile.dir(),
        agent: agent()?,
    })
}

/// The same with all programs that measure, at once: Cargo unifies the features of what is built together, and one after
/// the other would compile most crates twice.
pub(crate) fn with_tools() -> Result<Binaries> {
    Ok(Binaries {
        dir: tools(Profile::Release)?,
        agent: agent()?,
    })
}

/// Compiles all programs, and returns their directory.
pub(crate) fn tools(profile: Profile) -> Result<PathBuf> {
    match profile {
        Profile::Dev => for_tests()?,
        Profile::Release => step(
            "building all programs, optimised",
            optimised().arg("--workspace"),
        )?,
    }
    Ok(profile.dir())
}

fn optimised() -> Command {
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--release", "--bins"]);
    build
}

/// Compiles all programs and all tests as every suite runs them. Always this whole: another selection has other features.
pub(crate) fn for_tests() -> Result<()> {
    step("building all programs and tests", &mut whole())
}

/// The unit tests of the agent, built with everything else.
pub(crate) fn agent_tests() -> Result<PathBuf> {
    for_tests()?;
    executable(whole(), "windlass_agent")
}

/// The program or the test of this name that a build makes; nothing is left to be built by then.
pub(crate) fn executable(mut build: Command, name: &str) -> Result<PathBuf> {
    let said = capture(build.args(["--message-format", "json"]))?;
    let messages = said.lines().map(serde_json::from_str::<serde_json::Value>);
    let made = messages.flatten().find_map(|message| {
        let wanted = message["target"]["name"] == name;
        Some(PathBuf::from(
            message["executable"].as_str().filter(|_| wanted)?,
        ))
    });
    made.with_context(|| format!("cargo does not say where {name} is"))
}

fn whole() -> Command {
    let mut build = cargo();
    build.args(["build", "--quiet", "--locked", "--workspace"]);
    build.args(["--bins", "--tests"]);
    build
}

/// Compiles the agent as it is shipped: static, small. A target directory of its own keeps its
/// compiler flags from invalidating every other build.
pub(crate) fn agent() -> Result<PathBuf> {
    agent_build("")
}

/// Another build of it, whose version ends with `+next`.
pub(crate) fn next_agent() -> Result<PathBuf> {
    let built = agent_build("next")?;
    let kept = target().join("static/windlass-agent-next");
    std::fs::copy(&built, &kept).with_context(|| format!("cannot copy {built:?}"))?;
    Ok(kept)
}

/// The tests of the workspace by name, but for the scenarios on real clusters.
pub(crate) fn tests() -> Result<Vec<String>> {
    let said =
        capture(cargo().args(["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
    let metadata: Metadata =
        serde_json::from_str(&said).context("cargo metadata says something else")?;
    let targets = metadata.packages.into_iter().flat_map(|of| of.targets);
    let tests = targets.filter(|target| target.kind == ["test"] && target.name != SCENARIOS);
    Ok(tests.map(|target| target.name).collect())
}

/// The part of `cargo metadata` that is read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn agent_build(name: &str) -> Result<PathBuf> {
    const TRIPLE: &str = "x86_64-unknown-linux-gnu";
    let target = target().join("static");
    step(
        "building the static agent",
        cargo()
            .args([
                "build",
                "--quiet",
                "--locked",
                "--profile",
                "agent",
                "-p",
                "windlass-agent",
            ])
            .args(["--target", TRIPLE, "--bins"])
            .env("CARGO_TARGET_DIR", &target)
            .env("WINDLASS_BUILD", name)
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-C target-feature=+crt-static -C relocation-model=static",
            ),
    )?;
    Ok(target.join(TRIPLE).join("agent/windlass-agent"))
}

/// Builds the stemcell of a Kubernetes version (nothing to do: a few seconds) and returns the
/// directory that holds all stemcells.
pub(crate) fn stemcell(binaries: &Binaries, kubernetes: &str) -> Result<PathBuf> {
    let output = stemcells();
    step(
        &format!("building the stemcell for Kubernetes {kubernetes}"),
        binaries
            .privileged("windlass-stemcell")
            .args(["build", "--kubernetes", kubernetes, "--agent"])
            .arg(&binaries.agent)
            .arg("--output")
            .arg(&output),
    )?;
    // Every change of the agent makes another stemcell of a gigabyte; those in use are spared.
    capture(
        binaries
            .privileged("windlass-stemcell")
            .args(["prune", "--keep", "2", "--output"])
            .arg(&output),
    )?;
    Ok(output)
}

/// The directory of all stemcells that this checkout built.
pub(crate) fn stemcells() -> PathBuf {
    state().join("stemcells")
}

/// State that outlives a run: stemcells, the demo's director. Ignored by git.
pub(crate) fn state() -> PathBuf {
    root().join(".windlass")
}

/// The newest stemcell of a Kubernetes version, by the link that the builder keeps.
pub(crate) fn newest_stemcell(kubernetes: &str) -> Result<PathBuf> {
    let link = stemcells().join(format!("latest-{kubernetes}"));
    link.canonicalize()
        .with_context(|| format!("no stemcell at {}", link.display()))
}

/// One directory with a link to every program of a stemcell's components; tests that run a component
/// by itself take it from there.
pub(crate) fn components(stemcell: &Path) -> Result<PathBuf> {
    let flat = state().join("components");
    if flat.exists() {
        std::fs::remove_dir_all(&flat).with_context(|| format!("cannot clear {flat:?}"))?;
    }
    std::fs::create_dir_all(&flat).with_context(|| format!("cannot make {flat:?}"))?;
    let components = stemcell.join("rootfs/opt/windlass/components");
    for component in std::fs::read_dir(&components).with_context(|| format!("{components:?}"))? {
        for program in std::fs::read_dir(component?.path().join("current"))? {
            let program = program?;
            std::os::unix::fs::symlink(program.path(), flat.join(program.file_name()))
                .with_context(|| format!("cannot link {:?}", program.path()))?;
        }
    }
    Ok(flat)
}

/// `kubectl` out of a stemcell; the host has the same architecture.
pub(crate) fn kubectl(stemcell: &Path) -> PathBuf {
    stemcell.join("rootfs/opt/windlass/components/kubectl/current/kubectl")
}

pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
