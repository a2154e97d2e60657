//! The vocabulary that director and agent share.
//!
//! Ids, specs, reports, steps, wire messages, certificates, durable files and limits. Nothing here
//! starts a task or decides anything; both sides depend on this crate and it depends on neither.

pub mod backoff;
pub mod clock;
pub mod cluster;
pub mod condition;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
pub mod error;
pub mod fence;
pub mod gate;
pub mod id;
pub mod journal;
pub mod lapsed;
pub mod limits;
pub mod maintenance;
pub mod pki;
pub mod probe;
pub mod rate;
pub mod report;
pub mod secret;
pub mod settings;
pub mod stemcell;
pub mod step;
pub mod tls;
pub mod transport;
pub mod vital;
pub mod wire;
