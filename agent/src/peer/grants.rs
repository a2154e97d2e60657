//! Who may have what, for a while. A value: the time is passed in.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use windlass_common::id::{Digest, Incarnation, MachineName};
use windlass_common::limits::{PEER_GRANT_LIFE, PEER_GRANTS_MAX};
use windlass_common::wire::message::ArtifactGrant;

/// The grants there are, at most [`PEER_GRANTS_MAX`]; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Grants(VecDeque<(ArtifactGrant, Instant)>);

impl Grants {
    /// Adds a grant; its life is at most [`PEER_GRANT_LIFE`], whatever it says.
    pub(super) fn add(&mut self, grant: ArtifactGrant, now: Instant) {
        let life = Duration::from_millis(grant.life_ms.into()).min(PEER_GRANT_LIFE);
        self.0.retain(|(known, until)| {
            let same = known.digest == grant.digest
                && known.machine == grant.machine
                && known.incarnation == grant.incarnation;
            !same && *until > now
        });
        if self.0.len() >= PEER_GRANTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((grant, now + life));
    }

    /// Whether this incarnation of a machine of the own cluster may have this artifact now.
    pub(super) fn allows(
        &self,
        machine: &MachineName,
        incarnation: Incarnation,
        digest: Digest,
        now: Instant,
    ) -> bool {
        self.0.iter().any(|(grant, until)| {
            grant.machine == *machine
                && grant.incarnation == incarnation
                && grant.digest == digest
                && *until > now
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(machine: &str, digest: &[u8], life_ms: u32) -> ArtifactGrant {
        ArtifactGrant {
            digest: Digest::of(digest),
            machine: MachineName::new(machine).unwrap(),
            incarnation: Incarnation(2),
            life_ms,
        }
    }

    #[test]
    fn a_grant_is_for_one_incarnation_one_artifact_and_a_while() {
        let now = Instant::now();
        let mut grants = Grants::default();
        grants.add(grant("demo-w-0", b"a", 1_000), now);
        let later = now + Duration::from_millis(1_000);
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases: [(&str, u32, &[u8], Instant, bool); 6] = [
            ("demo-w-0", 2, b"a", now,                               true),
            ("demo-w-0", 2, b"a", later - Duration::from_millis(1),  true),
            ("demo-w-0", 2, b"a", later,                             false),
            ("demo-w-0", 1, b"a", now,                               false),
            ("demo-w-1", 2, b"a", now,                               false),
            ("demo-w-0", 2, b"b", now,                               false),
        ];
        for (machine, incarnation, digest, at, wanted) in cases {
            let name = MachineName::new(machine).unwrap();
            let allowed = grants.allows(&name, Incarnation(incarnation), Digest::of(digest), at);
            assert_eq!(allowed, wanted, "{machine} {incarnation} {digest:?}");
        }
    }

    #[test]
    fn grants_are_bounded_in_number_and_life() {
        let now = Instant::now();
        let mut grants = Grants::default();
        for number in 0..=PEER_GRANTS_MAX {
            grants.add(grant(&format!("demo-w-{number}"), b"a", u32::MAX), now);
        }
        assert_eq!(grants.0.len(), PEER_GRANTS_MAX);
        let allowed = |machine: &str, at| {
            let name = MachineName::new(machine).unwrap();
            grants.allows(&name, Incarnation(2), Digest::of(b"a"), at)
        };
        assert!(!allowed("demo-w-0", now));
        assert!(allowed("demo-w-1", now));
        assert!(!allowed("demo-w-1", now + PEER_GRANT_LIFE));
    }
}
