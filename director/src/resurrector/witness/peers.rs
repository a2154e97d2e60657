//! Which peers are asked, and the questions.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use windlass_common::error::ErrorChain;
use windlass_common::id::{Digest, MachineName};
use windlass_common::limits::PEER_PORT;
use windlass_common::pki::MachineIdentity;

use super::circle::ms;
use super::{ProbeView, Statement, Witness};
use crate::gateway::{About, Found, Gateway};
use crate::model::Machine;
use crate::resurrector::{Peers, Probe};

/// How long a peer may try. With 1.75 s until a machine is suspect, a death is judged within 5 s; a bad path
/// gets four tries of each packet in it.
pub const PROBE_DEADLINE: Duration = Duration::from_millis(2_500);
/// The same once the provider has said that the machine is off or gone: its agent would answer within
/// milliseconds, and each of three peers asks again every 150 ms.
pub const PROBE_DEADLINE_GONE: Duration = Duration::from_millis(500);
/// Peers that are asked. With three, one may lie and one be cut off by itself.
pub const PEERS_MAX: usize = 3;
/// TCP port of a kubelet.
const KUBELET_PORT: u16 = 10_250;

/// Up to [`PEERS_MAX`] of those that could be asked: always the same ones for one machine as long as they
/// can be, others for the next machine, so that the questions about many spread over all.
pub(super) fn choose(
    about: &MachineName,
    candidates: impl IntoIterator<Item = MachineIdentity>,
) -> Vec<MachineIdentity> {
    let rank = |peer: &MachineIdentity| {
        let pair = format!("{about} {}", peer.machine);
        *Digest::of(pair.as_bytes()).as_bytes()
    };
    let mut ranked: Vec<_> = candidates
        .into_iter()
        .filter(|peer| peer.machine != *about)
        .map(|peer| (rank(&peer), peer))
        .collect();
    ranked.sort();
    ranked.truncate(PEERS_MAX);
    ranked.into_iter().map(|(_, peer)| peer).collect()
}

/// Has peers look at a machine.
pub(super) async fn ask(
    gateway: &Gateway,
    machine: &Machine,
    identity: MachineIdentity,
    deadline: Duration,
) -> (Peers, Statement, Vec<ProbeView>) {
    let began = Instant::now();
    let chosen = choose(&machine.name, gateway.probers(&machine.cluster));
    let at = |port| SocketAddr::from((machine.address, port));
    let about = About {
        identity,
        agent: at(PEER_PORT),
        kubelet: at(KUBELET_PORT),
    };
    let probes = join_all(
        chosen
            .iter()
            .map(|peer| look(gateway, peer, &about, deadline)),
    )
    .await;
    let found: Vec<Probe> = probes.iter().map(|probe| probe.found).collect();
    let statement = Statement {
        witness: Witness::Peers,
        says: says(&probes),
        age_ms: (!probes.is_empty()).then_some(0),
        took_ms: ms(began.elapsed()),
    };
    (Peers::of(&found), statement, probes)
}

async fn look(
    gateway: &Gateway,
    peer: &MachineIdentity,
    about: &About,
    deadline: Duration,
) -> ProbeView {
    let began = Instant::now();
    let answer = gateway.probe(peer, about, deadline).await;
    let (found, why) = match answer {
        Ok(Found::Agent) => (Probe::Agent, None),
        Ok(Found::Kubelet) => (Probe::Kubelet, None),
        Ok(Found::Nobody) => (Probe::Nobody, None),
        Err(error) => (Probe::Unanswered, Some(ErrorChain(&error).to_string())),
    };
    ProbeView {
        peer: peer.machine.to_string(),
        found,
        why,
        took_ms: ms(began.elapsed()),
    }
}

fn says(probes: &[ProbeView]) -> String {
    if probes.is_empty() {
        return "no machine of the cluster can be asked: none is heard of whose agent can probe"
            .to_owned();
    }
    let word = |found| match found {
        Probe::Agent => "reaches its agent",
        Probe::Kubelet => "reaches its kubelet alone",
        Probe::Nobody => "reaches nothing",
        Probe::Unanswered => "does not say",
    };
    let each = probes
        .iter()
        .map(|p| format!("{} {}", p.peer, word(p.found)));
    each.collect::<Vec<_>>().join(", ")
}
