//! The protocol between agent and director.
//!
//! QUIC with TLS 1.3; on each stream a sequence of frames ([`frame`]), each a kind, a length and a
//! body; bodies are the types of [`message`], [`crate::step`] and [`crate::report`] in the encoding
//! of [`codec`].
//!
//! | stream | opened by | first frame | then |
//! | --- | --- | --- | --- |
//! | enrollment ([`ALPN_ENROLL`]) | agent | `EnrollRequest` or `LapsedRequest` | `EnrollResponse` or `Refusal`, end |
//! | control ([`ALPN`]) | agent | `Hello` | `Welcome` or `Refusal`; then `Report` up, `Tune` and `Tune2` down, `RenewRequest` up, `RenewResponse` down, `TrustBundle` and `RenewNow` down, `TrustHeld` up |
//! | artifact | agent | `ArtifactRequest` | `ArtifactHeader` or `Refusal`, then raw bytes to the end |
//! | artifact, protocol 2 | agent | `ArtifactAsk` | the same, or `ArtifactPeers`, or `ArtifactWait`, end |
//! | from a peer ([`ALPN_PEER`]) | agent | `ArtifactRequest` | the same as from the director |
//! | probe ([`ALPN_PEER`]), protocol 2 | agent | `Echo` | `EchoAnswer` or `Refusal`, end |
//! | step | director | `StepHeader`, then the step's body | `Progress`*, `StepResult` |
//! | session, protocol 2 | director | `FollowLogs`, `OpenShell` or `WatchVitals` | `SessionOpen` or `Refusal`; then `SessionOutput` or `VitalsSample` up, `SessionInput` and `SessionResize` down, `SessionEnd` up |
//! | tunnel | director | `TunnelRequest` | `TunnelOpen` or `Refusal`, then raw bytes both ways |
//!
//! With protocol 2, `ArtifactsHeld`, `ProbeAnswer`, `Conditions` and `FileSystems` go up the control stream, `ArtifactGrant`
//! and `ProbeAsk` down it.
//!
//! Heartbeats are datagrams: one frame each. They go first, then the control stream, then steps, then
//! the rest; and no stream takes another's window, so that health is never queued behind work.
//!
//! With protocol 2 the director's half of a step's stream stays open until the result is there, and
//! resetting it with [`STEP_CANCELLED`](crate::transport::STEP_CANCELLED) cancels the step. A stream that
//! ends in any other way, or with its connection, stops no step.
//!
//! # Invariants
//! * A published body never changes: new content is a new kind. Golden bytes pin each one.
//! * A kind that came after the first agents of its protocol version is sent only to agents that name its
//!   capability when they say hello ([`message::capability`]).
//! * A kind with the bit [`frame::OPTIONAL`] that a peer does not know is skipped; any other unknown
//!   kind ends the stream.
//! * No length is trusted: frames and decoding are capped ([`crate::limits`]).
//! * The director sends nothing before the client is authenticated.

pub mod codec;
pub mod frame;
pub mod message;
pub mod probe;
pub mod session;
pub mod step;

/// Protocol of enrolled agents.
pub const ALPN: &[u8] = b"windlass/1";
/// Protocol of machines that have no certificate yet.
pub const ALPN_ENROLL: &[u8] = b"windlass-enroll/1";
/// Protocol between agents of one cluster. The first frame of a stream says what is asked for.
pub const ALPN_PEER: &[u8] = b"windlass-peer/1";
/// The newest protocol version that this release speaks.
///
/// Version 2 has every kind of version 1 unchanged; [`message`] says which kinds are newer.
pub const PROTOCOL: u16 = 2;
/// The protocol versions that this release understands, highest first: this one and the one before.
pub const PROTOCOLS: &[u16] = &[PROTOCOL, PROTOCOL - 1];

/// The newest protocol version that both ends understand, if there is one.
pub fn common_protocol(theirs: &[u16]) -> Option<u16> {
    PROTOCOLS
        .iter()
        .copied()
        .find(|version| theirs.contains(version))
}
