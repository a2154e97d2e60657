//! Windlass.

pub mod provider;
