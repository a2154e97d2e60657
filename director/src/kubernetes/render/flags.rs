//! Command-line flags of a unit, as the environment file that systemd reads.
//!
//! The unit says `ExecStart=… $ARGS`: systemd splits the value at white space. A value with white
//! space, quotes, backslashes or `$` would be split or expanded into something else, so it is refused
//! here rather than misread there.

use std::collections::BTreeMap;

use super::super::facts::MachineFacts;

/// Flags of one command, `--name=value`, ordered by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Flags(BTreeMap<&'static str, String>);

/// Why flags cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "--{flag} is {value:?}, which must not hold spaces, quotes, backslashes, `$` or control characters"
)]
pub struct FlagsError {
    flag: &'static str,
    value: String,
}

impl Flags {
    /// Adds a flag.
    pub(super) fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        let before = self.0.insert(name, value.to_string());
        debug_assert!(before.is_none(), "--{name} is set twice");
        self
    }

    /// The environment file.
    pub(super) fn env(&self) -> Result<String, FlagsError> {
        let mut words = Vec::with_capacity(self.0.len());
        for (flag, value) in &self.0 {
            let plain = |b: u8| b.is_ascii_graphic() && !b"\"'\\$`".contains(&b);
            if !value.bytes().all(plain) {
                return Err(FlagsError {
                    flag,
                    value: value.chars().take(80).collect(),
                });
            }
            words.push(format!("--{flag}={value}"));
        }
        Ok(format!("ARGS=\"{}\"\n", words.join(" ")))
    }
}

/// Adds which minor an API server or a controller emulates, the same flag for all of them.
pub(super) fn emulation(flags: Flags, machine: &MachineFacts) -> Flags {
    match machine.emulates {
        Some(minor) => flags.set("emulated-version", format!("1.{minor}")),
        None => flags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_systemd_would_split_are_refused() {
        for value in ["a b", "a\"b", "a'b", "a\\b", "$A", "a\nb", "a`b", "ä"] {
            assert!(Flags::default().set("x", value).env().is_err(), "{value:?}");
        }
    }

    #[test]
    fn flags_are_ordered_by_name() {
        let env = Flags::default().set("b", 1).set("a", "x=*,-y").env();
        assert_eq!(env.as_deref(), Ok("ARGS=\"--a=x=*,-y --b=1\"\n"));
    }
}
