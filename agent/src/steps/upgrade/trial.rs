//! What the agent and the guard of its stemcell (`windlass-agent-guard`) tell one another by files.
//!
//! Lines of `name=value`; unknown names are skipped, so that either side may be the older one.

use windlass_common::id::Digest;
use windlass_common::step::{AgentUpgrade, StepId};

/// A new agent that is staged, or runs unconfirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trial {
    /// The step that ordered it, which alone confirms it.
    pub(super) step: StepId,
    /// The agent before it.
    pub(super) old: Digest,
    /// The new one.
    pub(super) new: Digest,
    /// How long it has on one boot, seconds.
    pub(super) seconds: u32,
    /// Where the new one is from, for people.
    pub(super) origin: String,
}

impl Trial {
    pub(super) fn new(step: &StepId, old: Digest, upgrade: &AgentUpgrade) -> Trial {
        Trial {
            step: step.clone(),
            old,
            new: upgrade.digest,
            seconds: upgrade.trial_s,
            origin: upgrade.origin.clone(),
        }
    }

    pub(super) fn to_text(&self) -> String {
        format!(
            "step={}\nold={}\nnew={}\nseconds={}\norigin={}\n",
            self.step,
            self.old.hex(),
            self.new.hex(),
            self.seconds,
            self.origin
        )
    }

    /// `None`: it is no record of a trial, and the guard takes it for none either.
    pub(super) fn parse(text: &str) -> Option<Trial> {
        Some(Trial {
            step: StepId(field(text, "step")?.to_owned()),
            old: digest(text, "old")?,
            new: digest(text, "new")?,
            seconds: field(text, "seconds")?.parse().ok()?,
            origin: field(text, "origin").unwrap_or_default().to_owned(),
        })
    }
}

/// A trial that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// The step that had ordered it.
    pub(super) step: StepId,
    /// Why.
    pub(super) why: String,
}

impl GivenUp {
    pub(super) fn parse(text: &str) -> Option<GivenUp> {
        Some(GivenUp {
            step: StepId(field(text, "step")?.to_owned()),
            why: field(text, "why")?.to_owned(),
        })
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn digest(text: &str, name: &str) -> Option<Digest> {
    format!("sha256:{}", field(text, name)?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_as_it_was_written() {
        let upgrade = AgentUpgrade {
            digest: Digest::of(b"new"),
            bytes: 3,
            origin: "debian12-1.37.2-0a1b2c3d".to_owned(),
            trial_s: 60,
        };
        let step = StepId("t1-00ff00/machine/demo-cp-0/upgrade-agent~2".to_owned());
        let trial = Trial::new(&step, Digest::of(b"old"), &upgrade);
        let text = trial.to_text();
        assert_eq!(Trial::parse(&text), Some(trial.clone()));
        let later = format!("later=what is not known yet\n{text}");
        assert_eq!(Trial::parse(&later), Some(trial));
        for name in ["step", "old", "new", "seconds"] {
            let cut: String = text
                .lines()
                .filter(|line| !line.starts_with(name))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(Trial::parse(&cut), None, "without {name}");
        }
    }
}
