//! The link, end to end: a real gateway, real agents' link code, real QUIC on loopback and real
//! certificates. What the other rooms decide (tokens, incarnations, files) is decided by a small
//! implementation of the gateway's traits; what the machine does, by a handler with a journal.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test: what is wrong ends it"
)]

mod artifacts;
mod certificates;
mod confirmed;
mod crowd;
mod down;
mod faults;
mod floods;
mod forge;
mod half_open;
mod health;
mod hellos;
mod hostile;
mod lapsed;
mod log;
mod namespaces;
mod pace;
mod paths;
mod probes;
mod process;
mod reach;
mod refusals;
mod resumption;
mod rotation;
mod sessions;
mod silence;
mod tokens;
mod upgrades;
mod world;
