//! Stemcells on the real system: sources over loopback, a full disk, a killed build, tampering.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod build;
mod sources;
mod support;
mod verify;
