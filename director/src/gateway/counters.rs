//! What the gateway counts: refusals by reason, and traffic.
//!
//! # Invariants
//! * Both lists are closed enums, so that the number of labels is bounded by this file.
//! * A counter only grows, from zero at the start of the process.
//! * Counting is one relaxed atomic addition: it waits for nobody and allocates nothing.
//!
//! # After a crash
//! All start at zero again, as the readers of such counters expect.
//!
//! # Not here
//! The line that a refusal writes to the log ([`super::refuse`]); how counters are shown (`api`).

use std::array;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A closed enum whose variants have a name each.
macro_rules! named {
    ($(#[$about:meta])* $kind:ident { $($(#[$doc:meta])* $variant:ident => $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $kind { $($(#[$doc])* $variant,)+ }

        impl $kind {
            /// Every variant, in the order of their declaration.
            pub const ALL: &[$kind] = &[$($kind::$variant),+];

            /// Its name in logs and metrics: lower case, words joined by underscores.
            pub fn name(self) -> &'static str {
                match self { $($kind::$variant => $name,)+ }
            }
        }
    };
}

named! {
    /// Why a peer, or something it sent, was refused.
    Reason {
        /// A datagram that is no QUIC packet, or of no connection that a director ever made.
        StrayDatagram => "stray_datagram",
        /// Too many handshakes or enrollments of this address have failed.
        SourceBusy => "source_busy",
        /// More handshakes under way than there are places; the oldest gave way.
        HandshakesFull => "handshakes_full",
        /// The handshake, or the hello after it, was not over in time.
        HandshakeTimeout => "handshake_timeout",
        /// The handshake makes no sense, or the peer ended it.
        HandshakeFailed => "handshake_failed",
        /// No protocol of ours was offered in the handshake.
        NoProtocol => "no_protocol",
        /// No certificate where one is needed.
        NoCertificate => "no_certificate",
        /// The certificate's issuer is not ours.
        UnknownIssuer => "unknown_issuer",
        /// The certificate is over.
        CertificateExpired => "certificate_expired",
        /// The certificate is not valid yet: one of the two clocks is wrong.
        CertificateNotYetValid => "certificate_not_yet_valid",
        /// A certificate that was issued for another door: an operator's or a server's.
        CertificatePurpose => "certificate_purpose",
        /// The certificate cannot be read, is not signed by who it says, or its key is not the peer's.
        CertificateInvalid => "certificate_invalid",
        /// A machine of another director.
        OtherDirector => "other_director",
        /// The incarnation was replaced, deleted or never made.
        NotCurrent => "not_current",
        /// The CA that issued the certificate was dropped.
        CaDropped => "ca_dropped",
        /// Hello without a protocol version that is understood here.
        Version => "version",
        /// There are as many sessions as there may be.
        SessionsFull => "sessions_full",
        /// The machine opens sessions faster than any agent does.
        SessionRate => "session_rate",
        /// A frame longer than allowed in its place.
        FrameTooLong => "frame_too_long",
        /// A frame that ends before its announced length.
        FrameTruncated => "frame_truncated",
        /// A frame that did not end within the time it has once it has begun.
        FrameSlow => "frame_slow",
        /// A kind that is unknown, or not allowed in its place.
        FrameUnexpected => "frame_unexpected",
        /// A body that is not what its kind says.
        FrameMalformed => "frame_malformed",
        /// The agent does not read what it is told on its control stream.
        SlowReader => "slow_reader",
        /// The agent closed its control stream, and not the connection.
        ControlClosed => "control_closed",
        /// The agent broke the rules of QUIC: more streams or bytes than it was given.
        TransportViolation => "transport_violation",
        /// A datagram of the link that is no heartbeat; skipped.
        DatagramMalformed => "datagram_malformed",
        /// More frames on the control stream than any agent sends.
        FrameRate => "frame_rate",
        /// More reports than any agent sends.
        ReportRate => "report_rate",
        /// More requests for certificates than any agent sends.
        RenewalRate => "renewal_rate",
        /// More datagrams than any agent sends.
        DatagramRate => "datagram_rate",
        /// A request for a new certificate that cannot be granted.
        RenewalRefused => "renewal_refused",
        /// The certificate ran out during the session.
        CertificateLapsed => "certificate_lapsed",
        /// A request for an artifact that cannot be read, or did not come in time.
        ArtifactRequest => "artifact_request",
        /// An answer to no question that is open: it came late, was made up, or again.
        ProbeUnasked => "probe_unasked",
        /// A machine claims that another one answered, and its proof is none.
        ProbeUnproven => "probe_unproven",
        /// As many enrollments under way as there may be.
        EnrollmentsFull => "enrollments_full",
        /// An enrollment request that cannot be read, or without proof of possession.
        EnrollmentMalformed => "enrollment_malformed",
        /// No such token.
        TokenUnknown => "token_unknown",
        /// A token that came too late.
        TokenExpired => "token_expired",
        /// A token of another machine or incarnation.
        TokenOtherMachine => "token_other_machine",
        /// A token that another key has used.
        TokenOtherKey => "token_other_key",
        /// A token whose machine has had a session since.
        TokenSpent => "token_spent",
        /// The director's own store or issuer failed; the peer may come again.
        Internal => "internal",
    }
}

impl Reason {
    /// Whether it is found in the peer's certificate, which is looked at once the peer has answered.
    pub(super) fn is_of_certificate(self) -> bool {
        matches!(
            self,
            Reason::UnknownIssuer
                | Reason::CertificateExpired
                | Reason::CertificateNotYetValid
                | Reason::CertificatePurpose
                | Reason::CertificateInvalid
                | Reason::OtherDirector
                | Reason::NotCurrent
        )
    }
}

named! {
    /// What goes through the gateway.
    Total {
        /// Handshakes that were begun.
        HandshakesBegun => "handshakes_begun",
        /// Peers that had to prove their address first.
        HandshakesRetried => "handshakes_retried",
        /// Handshakes that succeeded.
        Handshakes => "handshakes",
        /// Machines that got a first certificate.
        Enrollments => "enrollments",
        /// Sessions that were welcomed.
        Sessions => "sessions_opened",
        /// Heartbeats that were taken.
        Heartbeats => "heartbeats",
        /// Reports that were taken.
        Reports => "reports",
        /// Certificates that were renewed.
        Renewals => "renewals",
        /// UDP datagrams received.
        DatagramsReceived => "datagrams_received",
        /// UDP payload bytes received.
        BytesReceived => "bytes_received",
        /// UDP payload bytes sent.
        BytesSent => "bytes_sent",
    }
}

/// The counters of one gateway.
#[derive(Debug)]
pub(super) struct Counters {
    refusals: [AtomicU64; Reason::ALL.len()],
    totals: [AtomicU64; Total::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            refusals: array::from_fn(|_| AtomicU64::new(0)),
            totals: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Counters {
    pub(super) fn refused(&self, reason: Reason) {
        self.refusals[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add(&self, total: Total, count: u64) {
        self.totals[total as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn count(&self, total: Total) {
        self.add(total, 1);
    }

    pub(super) fn snapshot(
        &self,
        sessions: usize,
        handshakes: usize,
        waiting: usize,
    ) -> CounterView {
        let refusals = Reason::ALL.iter().zip(&self.refusals);
        let totals = Total::ALL.iter().zip(&self.totals);
        CounterView {
            sessions,
            handshakes,
            waiting,
            refusals: refusals
                .map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
                .collect(),
            totals: totals
                .map(|(total, count)| (*total, count.load(Ordering::Relaxed)))
                .collect(),
        }
    }
}

/// The counters at one moment; every reason and every total is there, also those at zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterView {
    /// Sessions open now.
    pub sessions: usize,
    /// Handshakes under way now.
    pub handshakes: usize,
    /// First packets that wait for a handshake now.
    pub waiting: usize,
    /// Refusals since the start, by reason.
    pub refusals: BTreeMap<Reason, u64>,
    /// Traffic since the start.
    pub totals: BTreeMap<Total, u64>,
}

impl CounterView {
    /// Refusals for this reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refusals.get(&reason).copied().unwrap_or(0)
    }

    /// One of the totals.
    pub fn total(&self, total: Total) -> u64 {
        self.totals.get(&total).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_variant_has_a_place_and_a_name_of_its_own() {
        let counters = Counters::default();
        for (at, reason) in Reason::ALL.iter().enumerate() {
            for _ in 0..=at {
                counters.refused(*reason);
            }
        }
        for (at, total) in Total::ALL.iter().enumerate() {
            counters.add(*total, 100 + at as u64);
        }
        let view = counters.snapshot(7, 8, 9);
        assert_eq!((view.sessions, view.handshakes, view.waiting), (7, 8, 9));
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(view.refused(*reason), at as u64 + 1, "{reason:?}");
        }
        for (at, total) in Total::ALL.iter().enumerate() {
            assert_eq!(view.total(*total), 100 + at as u64, "{total:?}");
        }
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        let names: BTreeSet<_> = Total::ALL.iter().map(|total| total.name()).collect();
        assert_eq!(names.len(), Total::ALL.len());
    }
}
