//! What replacements that died have in common: pure, from what is kept about each death.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Incarnation, MachineName};

use super::Verdict;

/// Deaths that are kept for each machine; 600 bytes each at most.
pub const DEATHS_MAX: usize = 8;
/// Longest error of a step that is kept, characters.
pub const ERROR_MAX: usize = 300;

/// How a replacement died before it had proven itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Death {
    /// Which rebirth of the machine.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// When it was judged so, Unix milliseconds.
    pub at_ms: u64,
    /// What it was judged to be.
    pub verdict: Verdict,
    /// Version of the stemcell it was made from.
    pub stemcell: String,
    /// Kubernetes version of its components.
    pub kubernetes_version: String,
    /// Names of units and conditions that spoke against it.
    pub troubles: BTreeSet<String>,
    /// The step of its making that failed, that was tried again, or that it was in when its task ended.
    pub step: Option<FailedStep>,
}

/// A step that was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedStep {
    /// What it was to do, for example `create-machine`.
    pub name: String,
    /// Why it failed, at most [`ERROR_MAX`] characters; none where another machine's failure ended its task before.
    pub error: Option<String>,
}

/// What several deaths share, the most telling first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Factor {
    /// The same step failed for the same reason; numbers and the machines' own names do not count.
    Step {
        /// Its name.
        name: String,
        /// Why it failed, as one of them says.
        error: String,
    },
    /// They were in the same step; of some nobody knows more, since the failure of another one ended their task.
    Stage(String),
    /// The same unit or condition spoke against them.
    Trouble(String),
    /// The same stemcell, which no machine of the pool has that works.
    Stemcell(String),
    /// The same Kubernetes version, which no machine of the pool has that works.
    Kubernetes(String),
    /// They were judged alike.
    Verdict(Verdict),
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Factor::Step { name, error } => write!(f, "step {name} failed: {error}"),
            Factor::Stage(name) => write!(f, "they did not get beyond step {name}"),
            Factor::Trouble(name) => write!(f, "{name} did not work"),
            Factor::Stemcell(version) => {
                write!(
                    f,
                    "stemcell {version}, which none of the pool has that works"
                )
            }
            Factor::Kubernetes(version) => {
                write!(
                    f,
                    "Kubernetes {version}, which none of the pool has that works"
                )
            }
            Factor::Verdict(verdict) => write!(f, "the verdict {verdict}"),
        }
    }
}

/// What sort of cause it is: the most telling of what is shared.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum CauseKind {
    /// The same step of their making failed alike, or was as far as they got.
    Step,
    /// The same unit or condition spoke against them.
    Trouble,
    /// The same stemcell, which no machine of the pool has that works.
    Stemcell,
    /// The same Kubernetes version, which no machine of the pool has that works.
    Kubernetes,
    /// Nothing but how they were judged, or nothing at all.
    None,
}

impl CauseKind {
    /// All of them.
    pub const ALL: [CauseKind; 5] = [
        CauseKind::Step,
        CauseKind::Trouble,
        CauseKind::Stemcell,
        CauseKind::Kubernetes,
        CauseKind::None,
    ];

    /// Its name, as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            CauseKind::Step => "step",
            CauseKind::Trouble => "trouble",
            CauseKind::Stemcell => "stemcell",
            CauseKind::Kubernetes => "kubernetes",
            CauseKind::None => "none",
        }
    }
}

/// What the deaths of a pool's replacements have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cause {
    /// Deaths that were looked at.
    pub deaths: usize,
    /// What most of them share with how many do: what more share first, then the most telling.
    pub shared: Vec<(Factor, usize)>,
}

impl Cause {
    /// What sort it is.
    pub fn kind(&self) -> CauseKind {
        let kinds = self.shared.iter().map(|(factor, _)| match factor {
            Factor::Step { .. } | Factor::Stage(_) => CauseKind::Step,
            Factor::Trouble(_) => CauseKind::Trouble,
            Factor::Stemcell(_) => CauseKind::Stemcell,
            Factor::Kubernetes(_) => CauseKind::Kubernetes,
            Factor::Verdict(_) => CauseKind::None,
        });
        kinds.min().unwrap_or(CauseKind::None)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shared.is_empty() {
            return f.write_str("they have nothing in common that was seen");
        }
        f.write_str(match self.kind() {
            CauseKind::None => "they have nothing in common but ",
            _ => "in common: ",
        })?;
        for (at, (factor, count)) in self.shared.iter().enumerate() {
            let comma = if at == 0 { "" } else { "; " };
            write!(f, "{comma}{factor} ({count} of {})", self.deaths)?;
        }
        Ok(())
    }
}

/// What more than half of `deaths`, and two at least, have in common. `working` are stemcell and Kubernetes version
/// of the pool's machines that work: what those have as well explains nothing, and where none works there is nothing
/// to compare with.
pub fn common(deaths: &[(&MachineName, &Death)], working: &BTreeSet<(String, String)>) -> Cause {
    let mut counts: BTreeMap<Key, (usize, Factor)> = BTreeMap::new();
    let stemcells: BTreeSet<&String> = working.iter().map(|(stemcell, _)| stemcell).collect();
    let versions: BTreeSet<&String> = working.iter().map(|(_, version)| version).collect();
    // Where one failed before the others could, all were in it.
    let steps = deaths.iter().filter_map(|(_, death)| death.step.as_ref());
    let stages: BTreeSet<&String> = steps
        .filter(|step| step.error.is_none())
        .map(|step| &step.name)
        .collect();
    for (machine, death) in deaths {
        let mut factors = vec![Factor::Verdict(death.verdict)];
        factors.extend(death.troubles.iter().cloned().map(Factor::Trouble));
        let compares = !working.is_empty();
        if compares && !stemcells.contains(&death.stemcell) {
            factors.push(Factor::Stemcell(death.stemcell.clone()));
        }
        let version = &death.kubernetes_version;
        if compares && !version.is_empty() && !versions.contains(version) {
            factors.push(Factor::Kubernetes(version.clone()));
        }
        if let Some(FailedStep { name, error }) = death.step.clone() {
            factors.extend(stages.contains(&name).then(|| Factor::Stage(name.clone())));
            factors.extend(error.map(|error| Factor::Step { name, error }));
        }
        for factor in factors {
            let key = match &factor {
                Factor::Step { name, error } => Key {
                    step: Some((name.clone(), gist(error, machine))),
                    other: None,
                },
                other => Key {
                    step: None,
                    other: Some(other.clone()),
                },
            };
            counts.entry(key).or_insert((0, factor)).0 += 1;
        }
    }
    let most = |count: usize| count >= 2 && count * 2 > deaths.len();
    let mut shared: Vec<_> = counts.into_values().filter(|(n, _)| most(*n)).collect();
    shared.sort_by(|(a, factor), (b, other)| b.cmp(a).then_with(|| factor.cmp(other)));
    Cause {
        deaths: deaths.len(),
        shared: shared.into_iter().map(|(n, factor)| (factor, n)).collect(),
    }
}

/// What has to be the same for two deaths to share a factor.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    step: Option<(String, String)>,
    other: Option<Factor>,
}

/// An error without what differs from machine to machine: its name, and all digits.
fn gist(error: &str, machine: &MachineName) -> String {
    let nameless = error.replace(machine.as_str(), "");
    nameless.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(stemcell: &str, troubles: &[&str], step: Option<(&str, &str)>) -> Death {
        Death {
            incarnation: Incarnation(2),
            at_ms: 1,
            verdict: Verdict::MachineGone,
            stemcell: stemcell.to_owned(),
            kubernetes_version: "1.37.2".to_owned(),
            troubles: troubles.iter().map(|name| (*name).to_owned()).collect(),
            step: step.map(|(name, error)| FailedStep {
                name: name.to_owned(),
                error: Some(error.to_owned()).filter(|error| !error.is_empty()),
            }),
        }
    }

    #[test]
    #[rustfmt::skip] // one case per line
    fn the_common_cause_by_case() {
        let full = Some(("create-machine", "no room for machine w-0: 7 MiB free"));
        let full_too = Some(("create-machine", "no room for machine w-1: 12 MiB free"));
        let net = Some(("await-agent", "did not connect"));
        let told_full = "step create-machine failed: no room for machine w-0: 7 MiB free";
        let gone = "the verdict MachineGone";
        let bad_stemcell = "stemcell b, which none of the pool has that works";
        type Case<'a> = (&'a str, Vec<Death>, &'a str, Vec<(&'a str, usize)>);
        let cases: Vec<Case<'_>> = vec![
            ("none",       vec![], "a", vec![]),
            ("one",        vec![death("a", &[], full)], "a", vec![]),
            ("same error", vec![death("a", &[], full), death("a", &[], full_too)], "a", vec![(told_full, 2), (gone, 2)]),
            ("step, not error", vec![death("a", &[], full), death("a", &[], Some(("create-machine", "denied")))], "a", vec![(gone, 2)]),
            ("most",       vec![death("a", &[], full), death("a", &[], full_too), death("a", &[], net)], "a", vec![(gone, 3), (told_full, 2)]),
            ("half",       vec![death("a", &[], full), death("a", &[], full_too), death("a", &[], net), death("a", &[], net)], "a", vec![(gone, 4)]),
            ("ended before", vec![death("a", &[], net), death("a", &[], Some(("await-agent", "")))], "a", vec![("they did not get beyond step await-agent", 2), (gone, 2)]),
            ("condition",  vec![death("a", &["kubelet"], None), death("a", &["etcd", "kubelet"], None)], "a", vec![("kubelet did not work", 2), (gone, 2)]),
            ("stemcell",   vec![death("b", &[], None), death("b", &[], None)], "a", vec![(bad_stemcell, 2), (gone, 2)]),
            ("of all",     vec![death("b", &[], None), death("b", &[], None)], "b", vec![(gone, 2)]),
        ];
        let names = ["w-0", "w-1", "w-2", "w-3"].map(|name| MachineName::new(name).unwrap());
        for (what, deaths, works, wanted) in cases {
            let deaths: Vec<_> = names.iter().zip(&deaths).collect();
            let working = [(works.to_owned(), "1.37.2".to_owned())].into();
            let cause = common(&deaths, &working);
            let found: Vec<_> = cause.shared.iter().map(|(factor, n)| (factor.to_string(), *n)).collect();
            let wanted: Vec<_> = wanted.into_iter().map(|(factor, n)| (factor.to_owned(), n)).collect();
            assert_eq!(found, wanted, "{what}");
            assert_eq!(cause.deaths, deaths.len(), "{what}");
        }
    }

    #[test]
    fn a_version_counts_when_no_machine_that_works_has_it() {
        let name = MachineName::new("w-0").unwrap();
        let one = death("a", &[], None);
        let deaths = [(&name, &one), (&name, &one)];
        let cause = common(&deaths, &[("a".to_owned(), "1.36.3".to_owned())].into());
        let version = Factor::Kubernetes("1.37.2".to_owned());
        assert!(cause.shared.contains(&(version, 2)), "{cause}");
        assert_eq!(cause.kind(), CauseKind::Kubernetes);
        // Where none works there is nothing to compare with.
        assert_eq!(common(&deaths, &BTreeSet::new()).kind(), CauseKind::None);
        let all = [("a".to_owned(), "1.37.2".to_owned())].into();
        let cause = common(&deaths, &all);
        assert_eq!(cause.kind(), CauseKind::None);
        let told = cause.to_string();
        assert!(told.contains("nothing in common but the verdict"), "{told}");
        let told = common(&[], &BTreeSet::new()).to_string();
        assert!(told.contains("nothing in common that was seen"), "{told}");
    }
}
