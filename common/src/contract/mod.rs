//! What programs that are not ours answer, as cases: each is run against the real program, and against what stands in
//! for it in the simulation.
//!
//! | module | whose answers |
//! | --- | --- |
//! | [`eviction`] | an API server's, to whoever evicts a pod |
//! | [`etcd`] | a member's of etcd, to whoever changes its members |
//! | [`kubelet`] | a kubelet's, seen through its Node and its pods |
//!
//! # Invariants
//! * A case says what is given, what is asked, and every answer, refusals included. Nobody is told which of the two it
//!   asks.
//! * Nothing here waits for a time: whoever is asked brings about what is given, and says when it is so.
//!
//! # Not here
//! The real ones (`director/tests/kubernetes_real`) and the simulated ones (`tests/src/sim`). What the product makes of
//! an answer. Providers, which have cases of their own beside their trait (`director/src/provider/contract.rs`).

pub mod etcd;
pub mod eviction;
pub mod kubelet;
