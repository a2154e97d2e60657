//! Collects the faults of an input, each said so that it can be put right.

use serde_json::Value;

use crate::model::FieldFault;

/// Most faults that are reported at once; an input with more is garbage, and the rest is counted.
pub(super) const FAULTS_MAX: usize = 100;
/// Longest value shown, in characters.
const SHOWN_MAX: usize = 80;

/// All faults of an input, in the order in which they were met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    list: Vec<FieldFault>,
    more: usize,
}

impl Faults {
    /// Adds one; from `FAULTS_MAX` on it is only counted.
    pub fn add(
        &mut self,
        key: impl Into<String>,
        value: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        if self.list.len() >= FAULTS_MAX {
            self.more += 1;
            return;
        }
        let key: String = key.into();
        self.list.push(FieldFault {
            key: if key.is_empty() {
                "(the whole input)".to_owned()
            } else {
                key
            },
            value: value.into(),
            allowed: allowed.into(),
        });
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The faults.
    pub fn list(&self) -> &[FieldFault] {
        &self.list
    }

    /// The faults; when some were only counted, the last one says how many.
    pub fn into_vec(mut self) -> Vec<FieldFault> {
        if self.more > 0 {
            self.list.push(FieldFault {
                key: "…".to_owned(),
                value: format!("{} more faults", self.more),
                allowed: "put the ones above right first".to_owned(),
            });
        }
        self.list
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, fault) in self.list.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            let (key, value, allowed) = (&fault.key, &fault.value, &fault.allowed);
            write!(f, "{separator}  {key}: {value}; allowed: {allowed}")?;
        }
        if self.more > 0 {
            write!(f, "\n  … and {} more", self.more)?;
        }
        Ok(())
    }
}

/// A value as a fault shows it: JSON, on one line, cut at a bounded length.
pub fn shown(value: &Value) -> String {
    let text = match value {
        Value::Object(map) => format!("an object of {} fields", map.len()),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    };
    if text.chars().count() <= SHOWN_MAX {
        return text;
    }
    let mut cut: String = text.chars().take(SHOWN_MAX).collect();
    cut.push('…');
    cut
}

/// `path.key`, the key shortened when it is absurdly long.
pub(super) fn join(path: &str, key: &str) -> String {
    let key: String = key.chars().take(SHOWN_MAX).collect();
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}
