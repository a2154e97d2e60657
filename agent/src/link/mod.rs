//! The link: the agent's end of the connection to its director.
//!
//! `Link::run` enrolls if there is no certificate, connects, says hello, sends reports and
//! heartbeats, hands steps to the [`Handler`], and comes back when the connection breaks. It decides
//! nothing about the machine.
//!
//! # Invariants
//! * The machine's key is made here, is on disk (0600) before anybody hears of it, and never leaves.
//! * The director is the one whose root CA has the pinned digest; once enrolled, the one whose root is
//!   among those it handed out last.
//! * At most [`STEPS_IN_FLIGHT_MAX`](windlass_common::limits::STEPS_IN_FLIGHT_MAX) steps run at a time,
//!   and one step id runs once: a step that is sent again while it runs is attached to.
//! * A broken connection stops no step.
//!
//! # After a crash
//! A key without a certificate enrolls again with the same key, which the token allows. A certificate
//! that was being renewed is the old one or the new one, whole.
//!
//! # Not here
//! What a step does and its journal, and the check of the epoch: the [`Handler`]'s.

mod handler;

pub use handler::{Handler, HelloFacts, ProgressSink, StepFuture};
