//! Who asked for what, and what came of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Role, Timestamp};

/// One line of the audit log; never changed, never deleted by the director.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Grows by one with each entry.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// Who: an operator's name, or `director`.
    pub actor: String,
    /// The role that the operator had then; none for what the director did by itself, and in lines of before
    /// roles were written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// What, for example `cluster.create`.
    pub action: String,
    /// On what, for example `cluster/demo`.
    pub subject: String,
    /// Details without secrets: what was asked.
    pub detail: String,
    /// The request that it was part of; empty for what no operator asked.
    #[serde(default)]
    pub request: String,
    /// What came of it. Empty in the line that is written before something is done: a task says
    /// by itself how it ends, and what ends with its request has a second line.
    #[serde(default)]
    pub outcome: String,
}

/// Which lines of the audit log to show; an absent field matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only of this operator.
    pub actor: Option<String>,
    /// Only actions that begin so, for example `node.`.
    pub action: Option<String>,
    /// Only what this is about: all of the subject, for example `cluster/demo`.
    pub subject: Option<String>,
    /// Only from this moment on.
    pub since: Option<Timestamp>,
}

impl AuditFilter {
    /// Whether a line is to be shown.
    pub fn matches(&self, entry: &AuditEntry) -> bool {
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        is(&self.actor, &entry.actor)
            && is(&self.subject, &entry.subject)
            && self.since.is_none_or(|since| entry.at >= since)
            && self
                .action
                .as_deref()
                .is_none_or(|action| entry.action.starts_with(action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_matches_what_it_names() {
        let at = Timestamp::from_unix_ms(1000);
        let entry = AuditEntry {
            sequence: 1,
            at,
            actor: "ann".into(),
            role: Some(Role::Admin),
            action: "node.exec".into(),
            subject: "machine/demo-cp-0".into(),
            detail: String::new(),
            request: String::new(),
            outcome: String::new(),
        };
        let all = AuditFilter::default;
        let some = |text: &str| Some(text.to_owned());
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("nothing named",      all(), true),
            ("the actor",          AuditFilter { actor: some("ann"), ..all() }, true),
            ("another actor",      AuditFilter { actor: some("an"), ..all() }, false),
            ("the action's area",  AuditFilter { action: some("node."), ..all() }, true),
            ("another action",     AuditFilter { action: some("cluster."), ..all() }, false),
            ("the subject",        AuditFilter { subject: some("machine/demo-cp-0"), ..all() }, true),
            ("part of a subject",  AuditFilter { subject: some("machine/demo"), ..all() }, false),
            ("the very moment",    AuditFilter { since: Some(at), ..all() }, true),
            ("a later moment",     AuditFilter { since: Some(Timestamp::from_unix_ms(1001)), ..all() }, false),
            ("all of it at once",  AuditFilter { actor: some("ann"), action: some("node.exec"), subject: some("x"), since: None }, false),
        ];
        for (name, filter, want) in cases {
            assert_eq!(filter.matches(&entry), want, "{name}");
        }
    }
}
