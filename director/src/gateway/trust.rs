//! Whom each connected agent trusts, whose certificate it holds, and what of both is out of date.
//!
//! What an agent holds it says itself, once it is on its disk; the certificate it connected with proves
//! the same. What it lacks is decided by [`lacks`] and pushed: the roots first, since an agent with a
//! certificate of a CA that its peers do not know yet could not talk to them.
//!
//! # Not here
//! When the CA changes, and when the older generation may be dropped: the rotation's.

use std::time::Duration;

use tokio::time::Instant;

use windlass_common::id::Digest;
use windlass_common::limits::ROOTS_MAX;
use windlass_common::transport::Close;
use windlass_common::wire::message::{Body, RenewNow, TrustBundle, TrustHeld, since};

use crate::pki::DirectorCa;

use super::SessionTrust;
use super::server::Shared;
use super::session::Session;

/// How long an agent may take to do what it was pushed before it is pushed again: it writes two small
/// files, and one that could not may have got room since.
const PUSH_AGAIN: Duration = Duration::from_secs(30);

/// What is known of one session's agent.
#[derive(Debug)]
pub(super) struct Standing {
    /// Generation of the certificate that is on the agent's disk.
    certificate: Option<u32>,
    /// The certificate that was issued last over this session, and its generation.
    issued: Option<(Digest, u32)>,
    /// Roots on its disk, once it has said so.
    roots: Option<Vec<Digest>>,
    /// What was pushed last, for which roots, and when.
    pushed: Option<(Lacks, Vec<Digest>, Instant)>,
}

/// What an agent lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacks {
    Nothing,
    /// The roots that are trusted now.
    Roots,
    /// A certificate of the generation that issues now.
    Certificate,
}

/// The one decision: roots first, then the certificate.
fn lacks(
    roots: Option<&[Digest]>,
    certificate: Option<u32>,
    wanted: &[Digest],
    issues: u32,
) -> Lacks {
    if roots != Some(wanted) {
        return Lacks::Roots;
    }
    if certificate < Some(issues) {
        return Lacks::Certificate;
    }
    Lacks::Nothing
}

impl Standing {
    /// Of an agent that connected with a certificate of this generation.
    pub(super) fn new(certificate: u32) -> Standing {
        Standing {
            certificate: Some(certificate),
            issued: None,
            roots: None,
            pushed: None,
        }
    }

    pub(super) fn view(&self) -> SessionTrust {
        SessionTrust {
            certificate: self.certificate,
            roots: self.roots.clone(),
        }
    }

    /// A certificate goes to the agent; it counts once the agent says that it holds it.
    pub(super) fn issued(&mut self, leaf: Digest, generation: u32) {
        self.issued = Some((leaf, generation));
    }

    fn holds(&mut self, held: TrustHeld) {
        if let Some((leaf, generation)) = self.issued
            && leaf == held.certificate
        {
            self.certificate = Some(generation);
        }
        self.roots = Some(held.roots);
    }

    /// What to push now, unless it was pushed already.
    fn next_push(&mut self, wanted: &[Digest], issues: u32, now: Instant) -> Lacks {
        let lacks = lacks(self.roots.as_deref(), self.certificate, wanted, issues);
        let again = self.pushed.as_ref().is_some_and(|(what, roots, at)| {
            *what == lacks && roots == wanted && now.duration_since(*at) < PUSH_AGAIN
        });
        if again {
            return Lacks::Nothing;
        }
        self.pushed = Some((lacks, wanted.to_vec(), now));
        lacks
    }
}

/// The agent says what it holds.
pub(super) fn took_held(shared: &Shared, session: &Session, held: TrustHeld) {
    if held.roots.len() > ROOTS_MAX {
        let roots = held.roots.len();
        tracing::info!(machine = %session.identity, roots, "an agent trusts too many roots");
        return;
    }
    session.standing().holds(held);
    shared.sessions.trust_changed();
    bring_up(&shared.doors.ca, session);
}

/// Pushes what the agent lacks, if its protocol has it.
fn bring_up(ca: &DirectorCa, session: &Session) {
    if since(TrustBundle::KIND) > session.protocol {
        return;
    }
    let wanted = ca.root_digests();
    let issues = ca.agents_from();
    let lacks = session
        .standing()
        .next_push(&wanted, issues, Instant::now());
    let pushed = match lacks {
        Lacks::Nothing => Ok(()),
        Lacks::Roots => session.push(&TrustBundle {
            roots_der: ca.roots_der(),
        }),
        Lacks::Certificate => session.push(&RenewNow {}),
    };
    if let Err(error) = pushed {
        // It is told again when it comes back.
        tracing::info!(machine = %session.identity, %error, "an agent is not told of the CA");
    }
}

/// Brings every session up to date with the CA, and closes those whose certificate is of a generation
/// that was dropped.
pub(super) fn bring_all_up(shared: &Shared) {
    let ca = &shared.doors.ca;
    for session in shared.sessions.all() {
        if is_trusted(ca, &session) {
            bring_up(ca, &session);
        } else {
            tracing::info!(machine = %session.identity, "closing a session whose CA was dropped");
            shared.sessions.remove(&session);
            session.close(Close::Unauthenticated);
        }
    }
}

/// Whether the generation of the session's certificate still counts.
pub(super) fn is_trusted(ca: &DirectorCa, session: &Session) -> bool {
    let certificate = session.standing().certificate;
    certificate.is_some_and(|generation| ca.trusts(generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_come_before_the_certificate_and_nothing_is_pushed_twice_at_once() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let both = [new, old];
        #[rustfmt::skip]
        let cases: [(Option<&[Digest]>, u32, u32, Lacks); 6] = [
            // on its disk, its certificate's generation, the one that issues
            (None,         1, 1, Lacks::Roots),
            (Some(&[old]), 1, 1, Lacks::Roots),
            (Some(&[old]), 1, 2, Lacks::Roots),
            (Some(&both),  1, 1, Lacks::Nothing),
            (Some(&both),  1, 2, Lacks::Certificate),
            (Some(&both),  2, 2, Lacks::Nothing),
        ];
        for (roots, certificate, issues, wanted) in cases {
            let found = lacks(roots, Some(certificate), &both, issues);
            assert_eq!(found, wanted, "{roots:?} {certificate} {issues}");
        }

        let now = Instant::now();
        let mut standing = Standing::new(1);
        assert_eq!(standing.next_push(&both, 2, now), Lacks::Roots);
        assert_eq!(standing.next_push(&both, 2, now), Lacks::Nothing);
        assert_eq!(standing.next_push(&both, 2, now + PUSH_AGAIN), Lacks::Roots);
        standing.issued(Digest::of(b"leaf"), 2);
        standing.holds(TrustHeld {
            roots: both.to_vec(),
            certificate: Digest::of(b"another leaf"),
        });
        assert_eq!(standing.next_push(&both, 2, now), Lacks::Certificate);
        standing.holds(TrustHeld {
            roots: both.to_vec(),
            certificate: Digest::of(b"leaf"),
        });
        assert_eq!(standing.next_push(&both, 2, now), Lacks::Nothing);
        // The older one is dropped.
        assert_eq!(standing.next_push(&[new], 2, now), Lacks::Roots);
    }
}
