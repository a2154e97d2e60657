//! Names of backups of the director itself: `director-<time>.age`.

use std::fmt;

use crate::model::Timestamp;

const PREFIX: &str = "director-";
const SUFFIX: &str = ".age";

/// Name of a backup of the director, also of its file or object; names sort as their moments do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnName(String);

impl OwnName {
    /// That of the backup of a moment.
    pub fn at(at: Timestamp) -> Self {
        let time: String = at
            .to_string()
            .chars()
            .filter(|c| !matches!(c, ':' | '-'))
            .collect();
        Self(format!("{PREFIX}{time}{SUFFIX}"))
    }

    /// The name that a file or object has, if it is one of these.
    pub fn read(text: &str) -> Option<Self> {
        let time = text.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let good = |c: char| c.is_ascii_digit() || matches!(c, 'T' | 'Z' | '.');
        (!time.is_empty() && time.chars().all(good)).then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OwnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is too many of these, when so many are kept: the oldest.
pub(super) fn surplus(mut names: Vec<OwnName>, keep: u32) -> Vec<OwnName> {
    names.sort();
    let surplus = names.len().saturating_sub(keep as usize);
    names.truncate(surplus);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_nothing_else_is_one_of_them() {
        let names = [2, 4, 1, 3].map(|day| OwnName::at(Timestamp::from_unix_ms(day * 86_400_000)));
        for name in &names {
            assert_eq!(OwnName::read(name.as_str()).as_ref(), Some(name));
        }
        for other in [
            "director-notes.txt",
            "director-notes.age",
            "director-.age",
            ".director-x.age.7.part",
        ] {
            assert_eq!(OwnName::read(other), None, "{other}");
        }
        assert_eq!(
            surplus(names.to_vec(), 2),
            [names[2].clone(), names[0].clone()]
        );
        assert!(surplus(names.to_vec(), 9).is_empty());
    }
}
