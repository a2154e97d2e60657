//! Refusing: one counter and one line in the log for each, and no flood of lines.
//!
//! # Invariants
//! * Every refusal is counted.
//! * In each interval a bounded number of refusals of strangers, and as many of machines, have a line of
//!   their own for each reason ([`Gate`]); the rest is one line with their number. So the log grows by a
//!   bounded amount, whatever peers do.
//! * Strangers do not use up the lines of machines.

use std::array;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use quinn::ConnectionError;

use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::wire::frame::FrameError;

use super::counters::{Counters, Reason};
use crate::gate::Gate;

/// Who is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer<'a> {
    pub(super) address: SocketAddr,
    /// Its identity, once a certificate has shown it.
    pub(super) machine: Option<&'a str>,
}

impl Peer<'_> {
    pub(super) fn stranger(address: SocketAddr) -> Peer<'static> {
        Peer {
            address,
            machine: None,
        }
    }
}

/// Counts refusals, and writes them to the log.
#[derive(Debug)]
pub(super) struct Refusals {
    pub(super) counters: Counters,
    /// For each reason: strangers', then machines'.
    gates: Mutex<[[Gate; 2]; Reason::ALL.len()]>,
}

impl Default for Refusals {
    fn default() -> Self {
        Refusals {
            counters: Counters::default(),
            gates: Mutex::new(array::from_fn(|_| [Gate::default(); 2])),
        }
    }
}

impl Refusals {
    /// Counts a refusal, and logs it if its turn has come. What a peer may cause is `info`; what no
    /// peer of this release does is `warn`.
    pub(super) fn refuse(
        &self,
        reason: Reason,
        peer: Peer<'_>,
        class: ErrorClass,
        error: &dyn Error,
    ) {
        self.counters.refused(reason);
        if !self.admit(reason, peer.machine.is_some(), Instant::now()) {
            return;
        }
        let (reason, address) = (reason.name(), peer.address);
        let machine = peer.machine.unwrap_or("-");
        let error = ErrorChain(error);
        match class {
            ErrorClass::Bug => {
                tracing::warn!(reason, peer = %address, machine, %error, "peer refused");
            }
            ErrorClass::Operator | ErrorClass::Retry => {
                tracing::info!(reason, peer = %address, machine, %error, "peer refused");
            }
        }
    }

    /// Counts a refusal of something that names no peer; the next summary has it.
    pub(super) fn refuse_nameless(&self, reason: Reason) {
        self.counters.refused(reason);
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates[reason as usize][0].hold();
    }

    fn admit(&self, reason: Reason, known: bool, now: Instant) -> bool {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates[reason as usize][usize::from(known)].admit(now)
    }

    /// Says how many refusals had no line of their own since it was last asked.
    pub(super) fn summarise(&self) {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, pair) in Reason::ALL.iter().zip(gates.iter_mut()) {
            let held: u64 = pair.iter_mut().map(Gate::take_held).sum();
            if held > 0 {
                let reason = reason.name();
                tracing::warn!(reason, count = held, "further peers refused");
            }
        }
    }
}

/// Why a handshake that failed did. TLS tells its reasons by the alert that it sends.
pub(super) fn handshake_reason(error: &ConnectionError) -> Reason {
    let fault = match error {
        ConnectionError::TransportError(fault) => fault,
        ConnectionError::TimedOut => return Reason::HandshakeTimeout,
        ConnectionError::VersionMismatch
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => return Reason::HandshakeFailed,
    };
    // RFC 9001: a TLS alert is the low byte of this range of codes. RFC 8446 numbers the alerts.
    match u64::from(fault.code).checked_sub(0x100) {
        // An alert of many meanings; the words are ours (`authorize`).
        Some(46) if fault.reason.contains("is not current") => Reason::NotCurrent,
        Some(42 | 46 | 51) => Reason::CertificateInvalid,
        Some(43) => Reason::CertificatePurpose,
        Some(44) => Reason::NotCurrent,
        // One alert for both ends of the validity; only rustls' words tell them apart.
        Some(45) if fault.reason.contains("not valid yet") => Reason::CertificateNotYetValid,
        Some(45) => Reason::CertificateExpired,
        Some(48) => Reason::UnknownIssuer,
        Some(49) => Reason::OtherDirector,
        Some(120) => Reason::NoProtocol,
        _ => Reason::HandshakeFailed,
    }
}

/// Why a frame is refused; `None` when the stream ended because its connection did.
pub(super) fn frame_reason(error: &FrameError) -> Option<Reason> {
    match error {
        FrameError::Io(source) => match source.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Some(Reason::FrameTruncated)
            }
            _ => None,
        },
        FrameError::Closed => Some(Reason::FrameTruncated),
        FrameError::TooSlow { .. } => Some(Reason::FrameSlow),
        FrameError::TooLong { .. } => Some(Reason::FrameTooLong),
        FrameError::Unexpected { .. } => Some(Reason::FrameUnexpected),
        FrameError::Body { .. } => Some(Reason::FrameMalformed),
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::limits::LOG_LINES_PER_REASON;

    use super::*;

    #[test]
    fn strangers_do_not_use_up_the_lines_of_machines() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for _ in 0..10 * LOG_LINES_PER_REASON {
            refusals.admit(Reason::NotCurrent, false, now);
        }
        assert!(!refusals.admit(Reason::NotCurrent, false, now));
        assert!(refusals.admit(Reason::NotCurrent, true, now));
        assert!(refusals.admit(Reason::Version, false, now));
    }
}
