//! Telling pods of a machine's own node to leave, with the identity of its kubelet.
//!
//! # Invariants
//! * A machine tells only pods to leave that are bound to its own node: API servers refuse anything else of a
//!   node (the Node authorizer and NodeRestriction), and the agent looks before it asks.
//! * Each pod is named with its uid: a later one of the same name is left alone.
//! * Who leaves when, and whether past a budget, is the director's to decide; an agent asks what it is told, once.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::ClientFiles;

/// Tells pods of this machine's node to leave. Says what became of each as soon as it is known: an
/// [`EvictAnswer`] as JSON in a line of output. That none is left unanswered is not promised: a connection may break.
///
/// Repeating it is harmless: a pod that was told to leave is told again, and one that is gone is gone.
///
/// Sent only to agents that name the capability
/// [`EVICT`](crate::wire::message::EVICT).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evict {
    /// Where the machine's components reach the API; on loopback.
    pub address: SocketAddr,
    /// Name that the API server's certificate has to carry.
    pub server_name: String,
    /// PEM bundle that the API server's certificate is verified against.
    pub ca_path: String,
    /// Client certificate and key of the machine's kubelet.
    pub client: ClientFiles,
    /// The machine's node.
    pub node: String,
    /// Who is told; 1 to [`crate::limits::EVICTIONS_MAX`].
    pub pods: Vec<EvictPod>,
}

/// One pod that is told to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: another pod of this name stays.
    pub uid: String,
    /// A shorter time to end than its own, seconds.
    pub grace_seconds: Option<u64>,
    /// Whether its budgets count.
    pub how: EvictHow,
}

/// How a pod is told to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EvictHow {
    /// By the Eviction API: its budgets count.
    Evict,
    /// By deletion: they do not.
    Delete,
}

/// What became of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvictAnswer {
    /// Uid of the pod.
    pub uid: String,
    /// What the API server said.
    pub outcome: EvictOutcome,
}

/// What an API server said to one pod being told to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum EvictOutcome {
    /// The pod is told to end.
    Accepted,
    /// There is no such pod any more; what has its name is another one.
    Gone,
    /// It is not bound to this node, as far as the API server knows; nothing was asked.
    Elsewhere,
    /// Not now (429): a budget keeps it.
    Kept {
        /// In the API server's words, at most [`crate::limits::EVICT_MESSAGE_MAX`] bytes.
        message: String,
        /// How long the API server wants to be left alone, seconds.
        retry_after_seconds: Option<u32>,
    },
    /// The node's identity may not (401, 403).
    Forbidden {
        /// As above.
        message: String,
    },
    /// Anything else; whether the pod was told is not known where there is no status.
    Failed {
        /// Of HTTP; nothing when the API server did not answer.
        status: Option<u16>,
        /// As above.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directors read what agents of other releases say.
    #[test]
    fn answers_are_written_as_they_always_were() {
        let message = || "no".to_owned();
        let kept = |retry_after_seconds| EvictOutcome::Kept {
            message: message(),
            retry_after_seconds,
        };
        let failed = |status| EvictOutcome::Failed {
            status,
            message: message(),
        };
        let forbidden = EvictOutcome::Forbidden { message: message() };
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            (EvictOutcome::Accepted,  r#""accepted""#),
            (EvictOutcome::Gone,      r#""gone""#),
            (EvictOutcome::Elsewhere, r#""elsewhere""#),
            (kept(Some(10)),          r#"{"kept":{"message":"no","retryAfterSeconds":10}}"#),
            (kept(None),              r#"{"kept":{"message":"no","retryAfterSeconds":null}}"#),
            (forbidden,               r#"{"forbidden":{"message":"no"}}"#),
            (failed(Some(500)),       r#"{"failed":{"status":500,"message":"no"}}"#),
            (failed(None),            r#"{"failed":{"status":null,"message":"no"}}"#),
        ];
        for (outcome, text) in cases {
            let answer = EvictAnswer {
                uid: "u".to_owned(),
                outcome,
            };
            let written = serde_json::to_string(&answer).unwrap();
            assert_eq!(written, format!(r#"{{"uid":"u","outcome":{text}}}"#));
            assert_eq!(
                serde_json::from_str::<EvictAnswer>(&written).unwrap(),
                answer
            );
        }
    }
}
