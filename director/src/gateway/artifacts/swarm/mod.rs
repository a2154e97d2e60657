//! Who has which artifact, and who gets it from whom: a value, without clock, chance or I/O.
//!
//! The director makes [`ARTIFACT_SEEDS`] copies of an artifact in a cluster; from then on machines that
//! have it serve those that do not, [`PEER_UPLOADS_MAX`] at a time each, and whoever finds all of them
//! busy waits. So the copies the director makes do not grow with the cluster.
//!
//! # Invariants
//! * A machine is offered only to its own cluster, and never once it was caught with wrong bytes.
//! * Nobody waits unless copies are being made: there are machines that have the artifact, or transfers
//!   that end or are forgotten.
//! * What one machine says about another counts only if the other was offered to it.
//!
//! # After a crash
//! Nothing is kept: agents say what they have whenever they connect.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use windlass_common::id::{ClusterName, Digest};
use windlass_common::limits::{
    ARTIFACT_SEEDS, PEER_FAILURES_MAX, PEER_UPLOADS_MAX, PEERS_SHUNNED_MAX,
};
use windlass_common::pki::MachineIdentity;
use windlass_common::wire::message::{PeerFailure, PeerFault};

/// How long a peer that failed is not offered again: a restart of its machine is over by then.
const SHUN: Duration = Duration::from_secs(60);
/// A transfer counts for as long as it would take at this rate, and [`TRANSFER_GRACE`]; one that takes
/// longer keeps nobody else waiting.
const TRANSFER_BYTES_PER_S_MIN: u64 = 1 << 20;
/// How long the end of a transfer may take: syncing the file, and saying so.
const TRANSFER_GRACE: Duration = Duration::from_secs(30);
/// How fast a copy is expected to be made when somebody has to wait for it.
const WAIT_BYTES_PER_S: u64 = 100 << 20;
/// Shortest and longest wait, before jitter.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Failures after which the director serves a machine itself.
const FAILURES_BEFORE_DIRECT: usize = 2;

type Key = (ClusterName, Digest);

/// A machine asks where to get an artifact.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) who: &'a MachineIdentity,
    /// Tells sessions of one machine apart.
    pub(super) session: usize,
    pub(super) digest: Digest,
    /// Length of the artifact.
    pub(super) bytes: u64,
    pub(super) failed: &'a [PeerFailure],
}

/// What becomes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// The director sends the bytes.
    Serve,
    /// This machine has it, at this UDP port.
    Peer(MachineIdentity, u16),
    /// Enough copies are being made.
    Wait(Duration),
}

/// All that is known about copies of artifacts.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    machines: BTreeMap<MachineIdentity, Holder>,
    copies: BTreeMap<Key, Copies>,
    /// What each machine fetches, to find its transfers when it is gone.
    fetching: BTreeMap<MachineIdentity, BTreeSet<Digest>>,
    uploads: BTreeMap<MachineIdentity, usize>,
    /// Until when; `None` is for ever.
    shunned: BTreeMap<MachineIdentity, Option<Duration>>,
}

#[derive(Debug)]
struct Holder {
    session: usize,
    port: u16,
    digests: BTreeSet<Digest>,
}

#[derive(Debug, Default)]
struct Copies {
    holders: BTreeSet<MachineIdentity>,
    /// By the machine that fetches.
    transfers: BTreeMap<MachineIdentity, Transfer>,
}

#[derive(Debug)]
struct Transfer {
    session: usize,
    from: Source,
    /// From then on it is not counted any more.
    until: Duration,
    /// Peers that were offered for it.
    offered: Vec<MachineIdentity>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Director,
    Peer(MachineIdentity),
}

impl Swarm {
    /// A machine says all that it has. What it fetched and has now is over.
    pub(super) fn hold(
        &mut self,
        who: &MachineIdentity,
        session: usize,
        port: u16,
        digests: impl IntoIterator<Item = Digest>,
    ) {
        self.forget(who);
        let digests: BTreeSet<Digest> = digests.into_iter().collect();
        for digest in &digests {
            self.end(who, *digest);
            let key = (who.cluster.clone(), *digest);
            let copies = self.copies.entry(key).or_default();
            copies.holders.insert(who.clone());
        }
        let holder = Holder {
            session,
            port,
            digests,
        };
        self.machines.insert(who.clone(), holder);
    }

    /// A session ended. What a newer one of the same machine said stays.
    pub(super) fn gone(&mut self, who: &MachineIdentity, session: usize) {
        if self.machines.get(who).is_some_and(|h| h.session == session) {
            self.forget(who);
        }
        for digest in self.fetching.get(who).cloned().unwrap_or_default() {
            let transfer = self
                .copies
                .get(&(who.cluster.clone(), digest))
                .and_then(|copies| copies.transfers.get(who));
            if transfer.is_some_and(|transfer| transfer.session == session) {
                self.end(who, digest);
            }
        }
    }

    /// The machines that have said they have it.
    pub(super) fn holders(&self, digest: &Digest) -> Vec<MachineIdentity> {
        self.copies
            .iter()
            .filter(|((_, held), _)| held == digest)
            .flat_map(|(_, copies)| copies.holders.iter().cloned())
            .collect()
    }

    /// Decides where a machine gets an artifact, and remembers it. Asking again ends what was decided
    /// before. Also returns the peers that are not offered any more because of what was said.
    pub(super) fn ask(
        &mut self,
        ask: &Ask<'_>,
        seed: u64,
        now: Duration,
    ) -> (Decision, Vec<(MachineIdentity, PeerFault)>) {
        let key = (ask.who.cluster.clone(), ask.digest);
        let offered = self.end(ask.who, ask.digest);
        let shunned = self.shun(ask, &offered, now);
        self.expire(&key, now);
        let usable = self.usable(&key, ask, now);
        let copies = self.copies.get(&key);
        let seeding = copies.map_or(0, |copies| {
            let from_here = |t: &&Transfer| t.from == Source::Director;
            copies.transfers.values().filter(from_here).count()
        });
        let decision = decide(&usable, seeding, is_direct(ask.failed), ask.bytes, seed);
        match &decision {
            Decision::Serve => self.begin(ask, Source::Director, offered, now),
            Decision::Peer(peer, _) => {
                let peer = peer.clone();
                let offered = [offered, vec![peer.clone()]].concat();
                self.begin(ask, Source::Peer(peer), offered, now);
            }
            Decision::Wait(_) => {}
        }
        (decision, shunned)
    }

    /// The peer cannot be told: the director serves instead.
    pub(super) fn serve_instead(&mut self, ask: &Ask<'_>, now: Duration) {
        let offered = self.end(ask.who, ask.digest);
        self.begin(ask, Source::Director, offered, now);
    }

    /// The director has sent all, or not. A machine that got all says so itself once it is verified.
    pub(super) fn sent(&mut self, ask: &Ask<'_>, whole: bool, now: Duration) {
        let key = (ask.who.cluster.clone(), ask.digest);
        let transfer = self
            .copies
            .get_mut(&key)
            .and_then(|copies| copies.transfers.get_mut(ask.who))
            .filter(|t| t.session == ask.session && t.from == Source::Director);
        let Some(transfer) = transfer else { return };
        if whole {
            transfer.until = now + TRANSFER_GRACE;
        } else {
            self.end(ask.who, ask.digest);
        }
    }

    fn begin(
        &mut self,
        ask: &Ask<'_>,
        from: Source,
        mut offered: Vec<MachineIdentity>,
        now: Duration,
    ) {
        if let Source::Peer(peer) = &from {
            *self.uploads.entry(peer.clone()).or_default() += 1;
        }
        // The oldest goes first.
        let excess = offered.len().saturating_sub(PEER_FAILURES_MAX);
        offered.drain(..excess);
        let longest = Duration::from_secs(ask.bytes / TRANSFER_BYTES_PER_S_MIN);
        let transfer = Transfer {
            session: ask.session,
            from,
            until: now + TRANSFER_GRACE + longest,
            offered,
        };
        let key = (ask.who.cluster.clone(), ask.digest);
        let copies = self.copies.entry(key).or_default();
        copies.transfers.insert(ask.who.clone(), transfer);
        let fetching = self.fetching.entry(ask.who.clone()).or_default();
        fetching.insert(ask.digest);
    }

    /// Forgets a transfer; returns the peers that were offered for it.
    fn end(&mut self, who: &MachineIdentity, digest: Digest) -> Vec<MachineIdentity> {
        let key = (who.cluster.clone(), digest);
        let ended = self
            .copies
            .get_mut(&key)
            .and_then(|copies| copies.transfers.remove(who));
        let Some(ended) = ended else {
            return Vec::new();
        };
        if let Source::Peer(peer) = &ended.from
            && let Some(uploads) = self.uploads.get_mut(peer)
        {
            *uploads -= 1;
            if *uploads == 0 {
                self.uploads.remove(peer);
            }
        }
        if let Some(fetching) = self.fetching.get_mut(who) {
            fetching.remove(&digest);
            if fetching.is_empty() {
                self.fetching.remove(who);
            }
        }
        self.drop_if_empty(&key);
        ended.offered
    }

    fn expire(&mut self, key: &Key, now: Duration) {
        let Some(copies) = self.copies.get(key) else {
            return;
        };
        let over: Vec<MachineIdentity> = copies
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.until <= now)
            .map(|(who, _)| who.clone())
            .collect();
        for who in over {
            self.end(&who, key.1);
        }
    }

    /// Forgets what a machine has.
    fn forget(&mut self, who: &MachineIdentity) {
        let Some(holder) = self.machines.remove(who) else {
            return;
        };
        for digest in holder.digests {
            let key = (who.cluster.clone(), digest);
            if let Some(copies) = self.copies.get_mut(&key) {
                copies.holders.remove(who);
            }
            self.drop_if_empty(&key);
        }
    }

    fn drop_if_empty(&mut self, key: &Key) {
        let empty = |copies: &Copies| copies.holders.is_empty() && copies.transfers.is_empty();
        if self.copies.get(key).is_some_and(empty) {
            self.copies.remove(key);
        }
    }

    fn shun(
        &mut self,
        ask: &Ask<'_>,
        offered: &[MachineIdentity],
        now: Duration,
    ) -> Vec<(MachineIdentity, PeerFault)> {
        self.shunned
            .retain(|_, until| until.is_none_or(|until| until > now));
        let mut news = Vec::new();
        for failure in ask.failed.iter().take(PEER_FAILURES_MAX) {
            let peer = identity(ask.who, failure);
            let until = match failure.fault {
                PeerFault::Lied => None,
                PeerFault::Unreachable
                | PeerFault::Refused
                | PeerFault::Broke
                | PeerFault::Slow => Some(now + SHUN),
            };
            let known = self.shunned.get(&peer);
            if !offered.contains(&peer) || known.is_some_and(|known| known.is_none()) {
                continue;
            }
            if known.is_none() || until.is_none() {
                news.push((peer.clone(), failure.fault));
            }
            if self.shunned.len() >= PEERS_SHUNNED_MAX {
                self.shunned.pop_first();
            }
            self.shunned.insert(peer, until);
        }
        news
    }

    /// The machines that may be offered, busy or not.
    fn usable(&self, key: &Key, ask: &Ask<'_>, now: Duration) -> Vec<Candidate> {
        let Some(copies) = self.copies.get(key) else {
            return Vec::new();
        };
        let failed: BTreeSet<MachineIdentity> =
            ask.failed.iter().map(|f| identity(ask.who, f)).collect();
        let shunned = |who: &MachineIdentity| match self.shunned.get(who) {
            Some(until) => until.is_none_or(|until| until > now),
            None => false,
        };
        copies
            .holders
            .iter()
            .filter(|who| *who != ask.who && !failed.contains(who) && !shunned(who))
            .filter_map(|who| {
                Some(Candidate {
                    who: who.clone(),
                    port: self.machines.get(who)?.port,
                    uploads: self.uploads.get(who).copied().unwrap_or(0),
                })
            })
            .collect()
    }
}

/// A machine that may be offered.
#[derive(Debug)]
struct Candidate {
    who: MachineIdentity,
    port: u16,
    uploads: usize,
}

/// Serves who has had enough of peers; offers the least busy of those that have the artifact; makes
/// copies until there are enough, those being made included; else lets wait.
fn decide(usable: &[Candidate], seeding: usize, direct: bool, bytes: u64, seed: u64) -> Decision {
    if direct {
        return Decision::Serve;
    }
    let free = |candidate: &&Candidate| candidate.uploads < PEER_UPLOADS_MAX;
    let least = usable.iter().filter(free).map(|c| c.uploads).min();
    if let Some(least) = least {
        let equal: Vec<&Candidate> = usable.iter().filter(|c| c.uploads == least).collect();
        let pick = equal[(seed % equal.len() as u64) as usize];
        return Decision::Peer(pick.who.clone(), pick.port);
    }
    if usable.len() + seeding < ARTIFACT_SEEDS {
        return Decision::Serve;
    }
    let copy = Duration::from_millis(bytes / (WAIT_BYTES_PER_S / 1000));
    let wait = copy.clamp(WAIT.0, WAIT.1);
    // From a half to one and a half of it, so that those who wait do not come at once.
    Decision::Wait(wait / 2 + wait * (seed % 1000) as u32 / 1000)
}

/// A peer that already gave some bytes makes the next one the second of whom they may be: from then on
/// the rest comes from the director, so that wrong bytes have one author.
fn is_direct(failed: &[PeerFailure]) -> bool {
    let gave_bytes = |failure: &PeerFailure| match failure.fault {
        PeerFault::Broke | PeerFault::Slow | PeerFault::Lied => true,
        PeerFault::Unreachable | PeerFault::Refused => false,
    };
    failed.len() >= FAILURES_BEFORE_DIRECT || failed.iter().any(gave_bytes)
}

/// Who is meant by a failure: a machine of the same cluster.
fn identity(who: &MachineIdentity, failure: &PeerFailure) -> MachineIdentity {
    MachineIdentity {
        machine: failure.machine.clone(),
        incarnation: failure.incarnation,
        ..who.clone()
    }
}

#[cfg(test)]
mod tests;
