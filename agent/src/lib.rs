//! The agent on every machine.

pub mod link;
