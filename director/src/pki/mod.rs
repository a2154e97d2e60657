//! The director's own PKI: its root CA, the issuers below it, and what they issue.
//!
//! Three issuers, so that each door trusts one of them and a certificate for one door opens no other:
//! *agents* for the gateway's clients, *operators* for the API's, *servers* for both ends' servers.
//!
//! # Invariants
//! * Time comes in as an argument.
//! * An issued name is the caller's; from a request only the public key is taken.
//! * Keys leave only through [`Generation::to_pem`], for a caller that seals them.
//! * During a rotation there are two generations; the older one is trusted until it is dropped.
//!
//! # Not here
//! The clusters' PKI; who may have a certificate.

mod ca;
mod generation;
mod issuer;
mod server;
#[cfg(test)]
mod tests;
mod token;
mod verifier;

pub use ca::{Chain, DirectorCa, OperatorCredentials, ServerCertificate, Stage};
pub use generation::Generation;
pub use issuer::{CaError, IssueError};
pub use server::ServerDoor;
pub use token::EnrollmentToken;
