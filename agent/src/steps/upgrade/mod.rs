//! `agent-upgrade`: puts another agent into the place of this one.
//!
//! The agent fetches the new program, stages it beside its own, writes down that there is a trial, and
//! ends. Before its unit's next start the *guard*, a script of the stemcell that needs neither agent to
//! work, asks the staged program for its version and switches to it. The director sends the same step
//! again over the next connection: the new agent that answers it has shown that it runs, connects and
//! works on steps, and ends the trial. If none does, the guard brings the old one back (it was started too
//! often, or its time is over), and the old one answers the step with the reason.
//!
//! # Invariants
//! * The program in place is only ever changed by the guard, under the lock of `upgrade/lock`; the agent
//!   confirms under the same lock, so that what was answered is what runs.
//! * There is a trial only after the new program is whole, synced and staged.
//! * On trial nothing is written that the old agent could not read: the journal's kinds of entries are
//!   those of the release before ([`crate::history`]).
//! * The agent that was confirmed last keeps the one before it as `windlass-agent.previous`.
//!
//! # After a crash
//! Whatever the files say goes on: a staged program is switched to at the next start, one on trial stays on
//! trial, one that was given up is taken out. The guard's tests (`agent/tests/guard.rs`) go through every
//! state of the files.
//!
//! # Not here
//! The guard (`stemcells/rootfs/opt/windlass/bin/windlass-agent-guard`).

mod trial;

use std::fs::{self, File};
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::step::{AgentUpgrade, Fetch, Payload, StepId};

use super::{Context, Failure, Run, fetch};
use crate::host::tree::{Attributes, TreeError};
use crate::host::{Host, STATE_DIR};
use trial::{GivenUp, Trial};

/// The agent's program.
pub const PROGRAM: &str = "/opt/windlass/bin/windlass-agent";
/// What switches and brings back.
const GUARD: &str = "/opt/windlass/bin/windlass-agent-guard";
/// The program of this process, whatever has its name by now.
const SELF: &str = "/proc/self/exe";
/// Largest file that is read here: a trial or its outcome is under 1 KiB.
const RECORD_BYTES_MAX: u64 = 16 << 10;

/// Why the agent was not upgraded.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The machine brought the old agent back.
    #[error("rolled back to agent {version}: {why}")]
    RolledBack {
        /// Version of the old agent, which says this.
        version: String,
        /// Why the new one was given up.
        why: String,
    },
    /// Nothing would bring the old agent back.
    #[error(
        "{GUARD} is missing: without it nothing brings this agent back if the new one fails; upgrade the \
         machine's stemcell instead"
    )]
    NoGuard,
    /// Another upgrade is not over.
    #[error(
        "the agent of {origin} is on trial since step {step}; it is confirmed or rolled back within \
         {seconds} s"
    )]
    OtherTrial {
        /// Where that one is from.
        origin: String,
        /// The step that ordered it.
        step: StepId,
        /// How long its trial lasts on one boot.
        seconds: u32,
    },
    /// What runs is not what is in place.
    #[error("{PROGRAM} is not the program that runs; the agent is about to be started again")]
    Replaced,
    /// A file failed.
    #[error("cannot {action} {path}; check the machine's disk")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of ours failed.
    #[error("the new agent cannot be staged")]
    Stage(#[source] TreeError),
}

impl UpgradeError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::RolledBack { .. } | Self::NoGuard | Self::File { .. } => ErrorClass::Operator,
            Self::OtherTrial { .. } | Self::Replaced => ErrorClass::Retry,
            Self::Stage(source) => source.class(),
        }
    }
}

/// What there is on the machine when the step arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// This process.
    running: Digest,
    /// What the next start would run, apart from what the guard does before.
    in_place: Option<Digest>,
    trial: Option<Trial>,
    given_up: Option<GivenUp>,
    guarded: bool,
}

/// What the step means then.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// The new agent runs already, and is not on trial.
    Nothing,
    /// This is the new agent, reached by the step that ordered it.
    Confirm(Trial),
    /// Stage the new one, and end.
    Stage,
}

fn decide(step: &StepId, wanted: &Digest, seen: Seen) -> Result<Decision, UpgradeError> {
    if let Some(GivenUp { step: of, why }) = seen.given_up
        && of == *step
    {
        let version = crate::version();
        return Err(UpgradeError::RolledBack { version, why });
    }
    if let Some(trial) = seen.trial {
        if trial.step == *step && trial.new == seen.running {
            return Ok(Decision::Confirm(trial));
        }
        if trial.step != *step {
            return Err(UpgradeError::OtherTrial {
                origin: trial.origin,
                step: trial.step,
                seconds: trial.seconds,
            });
        }
        // Staged by a run of this step that was cut off before the agent ended: staged again.
    }
    if seen.in_place != Some(seen.running) {
        return Err(UpgradeError::Replaced);
    }
    if seen.running == *wanted {
        return Ok(Decision::Nothing);
    }
    if !seen.guarded {
        return Err(UpgradeError::NoGuard);
    }
    Ok(Decision::Stage)
}

/// The files of an upgrade.
#[derive(Debug, Clone)]
struct Files {
    host: Host,
}

impl Files {
    fn name(file: &str) -> String {
        format!("{STATE_DIR}/upgrade/{file}")
    }

    fn path(&self, file: &str) -> PathBuf {
        self.host.path(&Self::name(file))
    }

    /// Holds off the guard, and is held off by it: for milliseconds, or for as long as a new agent takes
    /// to say its version.
    fn lock(&self) -> Result<Flock<File>, UpgradeError> {
        let path = self.path("lock");
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed("make the directory", dir))?;
        }
        let file = File::create(&path).map_err(failed("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("lock", &path)(errno.into()))
    }

    fn see(&self) -> Result<Seen, UpgradeError> {
        let program = self.host.path(PROGRAM);
        Ok(Seen {
            running: digest(Path::new(SELF))?.ok_or(UpgradeError::Replaced)?,
            in_place: digest(&program)?,
            trial: self.read("trial")?.as_deref().and_then(Trial::parse),
            given_up: self.read("outcome")?.as_deref().and_then(GivenUp::parse),
            guarded: self.host.path(GUARD).is_file(),
        })
    }

    fn read(&self, file: &str) -> Result<Option<String>, UpgradeError> {
        let path = self.path(file);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| {
            io::Read::read_to_string(&mut io::Read::take(file, RECORD_BYTES_MAX), &mut text)
        });
        match read {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// The trial's own file goes last: without it the others mean nothing.
    fn end_trial(&self) -> Result<(), UpgradeError> {
        for file in ["starts", "until", "trial"] {
            let removed = self.host.tree().remove(&Self::name(file));
            removed.map_err(UpgradeError::Stage)?;
        }
        Ok(())
    }

    fn stage(&self, trial: &Trial) -> Result<(), UpgradeError> {
        const PROGRAM_MODE: Attributes = Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        const RECORD_MODE: Attributes = Attributes {
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        let _held = self.lock()?;
        self.end_trial()?;
        let artifact = self.host.path(&Host::artifact_path(&trial.new));
        let tree = self.host.tree();
        let staged = tree.stage(&format!("{PROGRAM}.new"), PROGRAM_MODE, |file| {
            io::copy(&mut File::open(&artifact)?, file).map(|_| ())
        });
        staged
            .and_then(|staged| {
                staged.sync()?;
                let (_, directory) = staged.publish()?;
                crate::host::tree::sync_directory(&directory)?;
                tree.write(
                    &Self::name("trial"),
                    RECORD_MODE,
                    trial.to_text().as_bytes(),
                )
            })
            .map_err(UpgradeError::Stage)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UpgradeError {
    let path = path.to_owned();
    move |source| UpgradeError::File {
        action,
        path,
        source,
    }
}

/// Digest of a file; `None` when it is not there.
fn digest(path: &Path) -> Result<Option<Digest>, UpgradeError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; windlass_common::limits::CHUNK_BYTES];
    loop {
        let read = io::Read::read(&mut file, &mut buffer).map_err(failed("read", path))?;
        if read == 0 {
            return Ok(Some(hasher.finish()));
        }
        hasher.update(&buffer[..read]);
    }
}

pub(super) async fn run(
    context: &Context,
    run: &Run,
    step: &StepId,
    upgrade: &AgentUpgrade,
) -> Result<Payload, Failure> {
    let files = Files {
        host: context.host.clone(),
    };
    let (seeing, id, wanted) = (files.clone(), step.clone(), upgrade.digest);
    let looked = run.blocking(move || {
        let _held = seeing.lock()?;
        let seen = seeing.see()?;
        let running = seen.running;
        let decision = decide(&id, &wanted, seen)?;
        if let Decision::Confirm(_) = decision {
            seeing.end_trial()?;
        }
        Ok((decision, running))
    });
    let (decision, running) = looked.await?;
    match decision {
        Decision::Nothing => return Ok(Payload::None),
        Decision::Confirm(trial) => {
            let (version, origin) = (crate::version(), &trial.origin);
            tracing::info!(version, origin, "this agent is confirmed");
            run.changed(format!(
                "~ agent {version} of {origin} ({}) in the place of {}",
                trial.new, trial.old
            ));
            return Ok(Payload::None);
        }
        Decision::Stage => {}
    }
    let program = Fetch {
        digest: upgrade.digest,
        bytes: upgrade.bytes,
    };
    fetch::run(context, run, &program).await?;
    let trial = Trial::new(step, running, upgrade);
    run.blocking(move || Ok(files.stage(&trial)?)).await?;
    run.stage(format!(
        "the agent of {} starts, and has {} s to come back",
        upgrade.origin, upgrade.trial_s
    ));
    tracing::info!(
        origin = upgrade.origin,
        "another agent is staged; this one ends for it"
    );
    context.leave.send_replace(true);
    // The end of the process ends this, and the step is sent again.
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> StepId {
        StepId(text.to_owned())
    }

    #[test]
    fn what_is_found_says_what_the_step_means() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let trial = |step: &str| Trial {
            step: id(step),
            old,
            new,
            seconds: 60,
            origin: "s".to_owned(),
        };
        let calm = Seen {
            running: old,
            in_place: Some(old),
            trial: None,
            given_up: None,
            guarded: true,
        };
        let given_up = |step: &str| {
            let (step, why) = (id(step), "it ended 5 times".to_owned());
            Some(GivenUp { step, why })
        };
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("at first",                         calm.clone(), "Stage"),
            ("done by an earlier step",          Seen { running: new, in_place: Some(new), ..calm.clone() }, "Nothing"),
            ("staged, and cut off",              Seen { trial: Some(trial("a")), ..calm.clone() }, "Stage"),
            ("the new one, on trial",            Seen { running: new, in_place: Some(new), trial: Some(trial("a")), ..calm.clone() }, "Confirm"),
            ("the new one, of another step",     Seen { running: new, in_place: Some(new), trial: Some(trial("b")), ..calm.clone() }, "on trial since step b"),
            ("staged by another step",           Seen { trial: Some(trial("b")), ..calm.clone() }, "on trial since step b"),
            ("rolled back",                      Seen { given_up: given_up("a"), ..calm.clone() }, "it ended 5 times"),
            ("being rolled back, new one alive", Seen { running: new, in_place: Some(old), given_up: given_up("a"), ..calm.clone() }, "it ended 5 times"),
            ("given up, files not gone yet",     Seen { trial: Some(trial("a")), given_up: given_up("a"), ..calm.clone() }, "it ended 5 times"),
            ("an earlier step rolled back",      Seen { given_up: given_up("b"), ..calm.clone() }, "Stage"),
            ("rolled back under its feet",       Seen { running: new, in_place: Some(old), given_up: given_up("b"), ..calm.clone() }, "about to be started again"),
            ("an old stemcell",                  Seen { guarded: false, ..calm.clone() }, "is missing"),
            ("an old stemcell, nothing to do",   Seen { running: new, in_place: Some(new), guarded: false, ..calm }, "Nothing"),
        ];
        for (name, seen, want) in cases {
            let got = match decide(&id("a"), &new, seen) {
                Ok(decision) => format!("{decision:?}"),
                Err(error) => error.to_string(),
            };
            assert!(got.contains(want), "{name}: {got}");
        }
    }
}
