//! The Windlass director: owns desired state, decides, and has agents and providers act.
//!
//! The map of this crate is `docs/architecture.md`.

pub mod api;
pub mod artifacts;
pub mod backup;
pub mod bench;
pub mod campaign;
pub mod care;
pub mod client;
pub mod config;
pub mod daemon;
pub mod drain;
pub mod epoch;
mod gate;
pub mod gateway;
pub mod health;
pub mod kubernetes;
pub mod ledger;
pub mod maintenance;
pub mod model;
pub mod pki;
pub mod plan;
pub mod planner;
pub mod provider;
pub mod resurrector;
pub mod rollout;
pub mod rotation;
pub mod service;
pub mod spec;
pub mod stemcell;
pub mod store;
