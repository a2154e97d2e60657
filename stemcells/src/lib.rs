//! Builds stemcells: versioned, signed root file systems that machines boot from.
//!
//! ```text
//! recipe ─┐                    ┌─ base      Debian by mmdebstrap          cached
//! lock ───┼─ inputs digest ────┼─ sources   components: binaries          cached, one by one
//! agent ──┘   (done already?)  ├─ images    OCI images, unpacked          cached
//!                              └─ assemble  rootfs, manifest, signature   renamed into place
//! ```
//!
//! # Invariants
//! * What has its final name, in the cache or in the output, is complete and never changes.
//! * A digest that was seen once is in the lock; other bytes are refused from then on.
//! * The same inputs are not built twice.
//!
//! # After a crash
//! The next build removes what was staged and goes on behind the last cached part.
//!
//! # Not here
//! The manifest's types and the check before use: [`windlass_common::stemcell`].

pub mod assemble;
pub mod base;
pub mod builder;
pub mod cli;
pub mod digest;
pub mod files;
pub mod home;
pub mod image;
mod inputs;

pub mod lock;
pub mod prerequisites;
pub mod progress;
pub mod prune;
pub mod recipe;
pub mod sbom;
pub mod seed;
pub mod sign;
pub mod sources;
pub mod tool;
