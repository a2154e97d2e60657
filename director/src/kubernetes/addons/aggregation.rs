//! Who speaks to aggregated API servers for users of the cluster.
//!
//! API servers publish in one ConfigMap which names may forward users, and add to what is there what they accept
//! themselves (`clusterauthenticationtrust` in Kubernetes 1.36 and 1.37). Here they accept nobody: nothing stands before
//! them, and the key with which a machine speaks to aggregated ones must not make anybody a user of theirs, least of all
//! whoever has it of a machine that was replaced. What they use for aggregated ones is named here instead.
//!
//! # Invariants
//! * What is applied is what API servers make of it, so that the two do not write in turns.
//!
//! # Not here
//! Aggregated API servers themselves: they take users from whoever has a certificate of that name.

use serde_json::{Value, json};

use super::SYSTEM_NAMESPACE;
use crate::kubernetes::pki::{FRONT_PROXY_NAME, NO_FRONT_PROXY};

/// The ConfigMap, without what API servers write there.
pub(super) fn objects() -> Vec<Value> {
    let names = json!([FRONT_PROXY_NAME, NO_FRONT_PROXY]).to_string();
    vec![json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": SYSTEM_NAMESPACE},
        "data": {"requestheader-allowed-names": names},
    })]
}
