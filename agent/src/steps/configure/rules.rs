//! nftables rules of a file: which tables it is about, what is in them, and how they are made what they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::ConfigureError;
use crate::host::command;

/// Families of tables.
const FAMILIES: [&str; 6] = ["ip", "ip6", "inet", "arp", "bridge", "netdev"];
/// Words behind which the family and the name of a table may be.
const OBJECTS: [&str; 6] = ["table", "chain", "rule", "set", "map", "element"];
/// Longest name of a table, bytes (`NFT_NAME_MAXLEN`).
const NAME_MAX: usize = 255;
/// Longest content of a table that is kept, bytes; of what helpers print, no more is read.
const TABLE_BYTES_MAX: usize = 1 << 20;

/// A table by family and name, as `nft` takes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Table(String);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is in tables; `None` for one that is not there.
pub(super) type Tables = BTreeMap<Table, Option<String>>;

/// The tables that a text of rules is about. Rules are about others only by `include` and `flush ruleset`, which ours
/// have not.
pub(super) fn tables(rules: &str) -> BTreeSet<Table> {
    let lines = rules
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let words: Vec<&str> = lines
        .flat_map(|line| line.split(|c: char| c.is_whitespace() || "{};".contains(c)))
        .filter(|word| !word.is_empty())
        .collect();
    let mut found = BTreeSet::new();
    for (index, word) in words.iter().enumerate() {
        let (first, second) = (words.get(index + 1), words.get(index + 2));
        let (family, name) = match first {
            Some(family) if OBJECTS.contains(word) && FAMILIES.contains(family) => {
                (*family, second)
            }
            // The family is left out.
            Some(_) if *word == "table" => ("ip", first),
            _ => continue,
        };
        found.extend(
            name.filter(|name| is_name(name))
                .map(|name| Table(format!("{family} {name}"))),
        );
    }
    found
}

fn is_name(word: &str) -> bool {
    let mut bytes = word.bytes();
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    word.len() <= NAME_MAX
        && bytes.next().is_some_and(letter)
        && bytes.all(|byte| letter(byte) || byte.is_ascii_digit() || b"/\\.-".contains(&byte))
}

/// What is in tables now.
pub(super) async fn observe(tables: BTreeSet<Table>) -> Result<Tables, ConfigureError> {
    let mut seen = Tables::new();
    for table in tables {
        let words = table.0.split(' ');
        let argv: Vec<&str> = ["nft", "list", "table"].into_iter().chain(words).collect();
        let output = command::run(&argv, None)
            .await
            .map_err(ConfigureError::NoNft)?;
        let content = match output.status.success() {
            true if output.stdout.len() < TABLE_BYTES_MAX => Some(output.stdout),
            true => {
                return Err(failed(
                    "keep",
                    format!("table {table} has more than {TABLE_BYTES_MAX} bytes"),
                ));
            }
            false if output.stderr.contains("No such file or directory") => None,
            false => return Err(failed("list", output.stderr)),
        };
        seen.insert(table, content);
    }
    Ok(seen)
}

/// Loads a text of rules: all of it, or nothing.
pub(super) async fn load(rules: &str) -> Result<(), ConfigureError> {
    let output = command::run(&["nft", "-f", "-"], Some(rules))
        .await
        .map_err(ConfigureError::NoNft)?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed("load", output.stderr))
}

fn failed(action: &'static str, said: String) -> ConfigureError {
    let said = said.trim().chars().take(1000).collect();
    ConfigureError::Nft { action, said }
}

/// The rules that make tables what they were, whatever is in them now.
pub(super) fn former(tables: &Tables) -> String {
    let mut script = String::new();
    for (table, content) in tables {
        let content = content.as_deref().unwrap_or_default();
        // Made first, since one that is not there cannot be deleted.
        let _ = write!(
            script,
            "table {table} {{}}\ndelete table {table}\n{content}\n"
        );
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(rules: &str) -> Vec<String> {
        tables(rules).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tables_are_found_however_they_are_written() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("",                                                              &[][..]),
            ("table ip windlass {}\ndelete table ip windlass\n",              &["ip windlass"]),
            ("table inet a{chain b{type filter hook input priority 0;}}",     &["inet a"]),
            ("# table ip no\ntable ip6 yes { } # table ip neither\n",         &["ip6 yes"]),
            ("table plain { chain ip { } }",                                  &["ip plain"]),
            ("add rule inet filter input udp dport 7443 drop",                &["inet filter"]),
            ("flush chain ip nat out; delete set bridge x y",                 &["bridge x", "ip nat"]),
            ("table ip $(reboot) {}",                                         &[]),
        ];
        for (rules, want) in cases {
            assert_eq!(names(rules), want, "{rules}");
        }
    }

    #[test]
    fn what_was_is_said_in_one_transaction() {
        let table = |name: &str| Table(name.to_owned());
        let was = Tables::from([
            (table("inet new"), None),
            (table("ip old"), Some("table ip old {\n}\n".to_owned())),
        ]);
        assert_eq!(
            former(&was),
            "table inet new {}\ndelete table inet new\n\n\
             table ip old {}\ndelete table ip old\ntable ip old {\n}\n\n"
        );
        assert_eq!(former(&Tables::new()), "");
    }
}
