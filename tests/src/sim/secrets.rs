//! Canaries: every secret that a seed knows, looked for wherever it must not be (invariant 9).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;

use serde_json::Value;
use windlass_director::kubernetes::pki::ClusterPki;

/// Secrets by their text.
#[derive(Debug, Default)]
pub struct Canaries {
    /// Long-lived ones: keys of the cluster.
    keys: Vec<String>,
    /// Enrollment tokens: 64 hex digits.
    tokens: BTreeSet<String>,
}

/// Length of an enrollment token, in hex digits.
const TOKEN_DIGITS: usize = 64;

/// The texts of a document that are secret.
fn collect(value: &Value, keys: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_str() {
                    // The second line of a PEM text: the first 64 characters of its body.
                    Some(pem) if pem.contains("PRIVATE KEY") => {
                        keys.extend(pem.lines().nth(1).map(str::to_owned));
                    }
                    Some(secret) if name == "secret" => keys.push(secret.to_owned()),
                    _ => collect(field, keys),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, keys)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

impl Canaries {
    /// Knows the secrets of a cluster.
    pub fn new(pki: &ClusterPki) -> Self {
        let document = pki.to_bytes();
        let document: Value = serde_json::from_slice(document.expose()).unwrap_or_default();
        let mut keys = Vec::new();
        collect(&document, &mut keys);
        assert!(
            keys.len() >= 5 && keys.iter().all(|key| key.len() > 30),
            "a cluster has four private keys and one for encryption, and canaries are long"
        );
        Self {
            keys,
            tokens: BTreeSet::new(),
        }
    }

    /// Knows one more token.
    pub fn token(&mut self, token: &str) {
        self.tokens.insert(token.to_owned());
    }

    /// What is wrong with a text that anybody may read.
    pub fn found_in(&self, text: &str) -> Option<&'static str> {
        if text.contains("PRIVATE KEY") || self.keys.iter().any(|key| text.contains(key.as_str())) {
            return Some("a key of the cluster");
        }
        // Looked at from their ends: whatever stands before the last that is no digit is no token.
        let mut at = 0;
        while let Some(window) = text.as_bytes().get(at..at + TOKEN_DIGITS) {
            let no_digit = window.iter().rposition(|byte| !byte.is_ascii_hexdigit());
            if no_digit.is_none() && self.tokens.contains(&text[at..at + TOKEN_DIGITS]) {
                return Some("an enrollment token");
            }
            at += no_digit.unwrap_or(0) + 1;
        }
        None
    }
}

thread_local! {
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what is logged on this thread, where one seed runs at a time.
#[derive(Debug, Clone, Copy)]
pub struct LogSink;

impl io::Write for LogSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What this thread has logged since the last time.
pub fn take_log() -> String {
    String::from_utf8_lossy(&LOG.take()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_found_wherever_it_is() {
        let name = windlass_common::id::ClusterName::new("demo").unwrap();
        let pki = ClusterPki::generate(&name, jiff::Timestamp::now()).unwrap();
        let mut canaries = Canaries::new(&pki);
        let token = "0123456789abcdef".repeat(4);
        canaries.token(&token);
        assert_eq!(canaries.found_in("machine demo-cp-0: no token"), None);
        assert!(canaries.found_in(&format!("token={token}.")).is_some());
        assert!(canaries.found_in(&format!("aa{token}aa")).is_some());
        for digits in 0..=2 * TOKEN_DIGITS {
            let (before, after) = ("f".repeat(digits), "f".repeat(TOKEN_DIGITS - 1));
            let text = format!("é{before}{token}é");
            assert!(canaries.found_in(&text).is_some(), "{text}");
            let text = format!("{before}é{token}{before}");
            assert!(canaries.found_in(&text).is_some(), "{text}");
            let text = format!("{before}{}-{after}", &token[1..]);
            assert_eq!(canaries.found_in(&text), None, "{text}");
        }
        let key = pki.encryption[0].secret.expose();
        assert!(canaries.found_in(&format!("wrote {key}")).is_some());
    }
}
