//! The harness of the end-to-end scenarios: a director of its own, driven as a user drives it.
//!
//! Everything goes through the command line and `kubectl`; the only look behind the curtain is
//! [`host`], for what a scenario breaks on purpose and for what must not be left behind.
//!
//! [`sim`] is the other half: the same code without hardware, thousands of times.

pub mod canaries;
pub mod damage;
pub mod host;
pub mod kubectl;
pub mod load;
pub mod parts;
pub mod s3;
pub mod sim;
pub mod stemcells;
pub mod wait;
pub mod world;
