//! Every bound that both sides rely on, each with its arithmetic.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::rate::Rate;

/// Largest body of one frame. The largest is a `configure` step: about 40 files of a control-plane
/// machine, certificates and audit policy included, come to 120 KiB; 1 MiB leaves eight times that.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest frame an unauthenticated peer may send: a token, two names and a CSR are under 2 KiB.
pub const ENROLL_FRAME_BYTES_MAX: usize = 8 << 10;
/// Largest heartbeat: fits one QUIC datagram on a path with the minimum MTU of 1200 bytes.
pub const HEARTBEAT_BYTES_MAX: usize = 1024;
/// Frames that wait to be written down one control stream: certificates, root bundles, settings.
/// Each is pushed once at a time, and the stream's window holds over a hundred of them, so that a full
/// queue means an agent that has stopped reading; its session is closed.
pub const CONTROL_QUEUE: usize = 32;
/// Largest body the director sends down a control stream: two root CAs and a certificate chain are
/// under 8 KiB. A full queue of these is 2 MiB.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 << 10;
/// Root CAs that an agent trusts at most: the one there is and the one that takes its place, and as many
/// again.
pub const ROOTS_MAX: usize = 4;
/// Labels of one step: an operator and a request today, and eight times as many.
pub const STEP_LABELS_MAX: usize = 16;
/// Longest name or value of a label, bytes. With all of them a header is under 10 KiB, a hundredth of a frame.
pub const STEP_LABEL_BYTES_MAX: usize = 256;
/// Longest deadline of a step that an agent keeps; a director that wants more sends the step again. The
/// longest work, a snapshot of [`SNAPSHOT_BYTES_MAX`] over a link of 1 MiB/s, takes three hours: twice that.
pub const STEP_DEADLINE_MAX: Duration = Duration::from_secs(6 * 3600);
/// Largest journal that is read, bytes. Owners rewrite theirs at a few MiB, and each entry is a frame at most
/// ([`FRAME_BYTES_MAX`]): this is as large as 256 of the largest, and what an agent would have to hold of it.
pub const JOURNAL_BYTES_MAX: u64 = 256 << 20;
/// Steps that run on one machine at a time; a plan gives one machine at most 4 parallel branches.
pub const STEPS_IN_FLIGHT_MAX: u32 = 8;
/// Bidirectional streams the director may hold open to one agent: the steps in flight, and 64 for
/// tunnels, logs and artifacts.
pub const STREAMS_TO_AGENT_MAX: u32 = STEPS_IN_FLIGHT_MAX + 64;
/// Bidirectional streams an agent may hold open: control, and artifact downloads.
pub const STREAMS_FROM_AGENT_MAX: u32 = 8;
/// Piece of output or artifact in one frame or read.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Output of one step that is kept with its result; what is longer is cut and says so.
pub const STEP_OUTPUT_BYTES_MAX: usize = 256 << 10;
/// Heartbeats by default; see [`suspect_after`].
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Silence from which on a machine is suspect: three heartbeats missed, and a quarter of the interval
/// for jitter. Looked for four times in an interval, so that at the default of 500 ms a death is
/// noticed after at most 1.625 s + 0.125 s = 1.75 s.
pub fn suspect_after(interval: Duration) -> Duration {
    interval * 3 + interval / 4
}
/// What a heartbeat costs a director at most, the update of its health state included: measured 28 to 36
/// us (`docs/benchmarks.md`).
pub const HEARTBEAT_CPU: Duration = Duration::from_micros(50);
/// What an agent that connects again costs a director, its handshake, hello and report together: measured 0.9 to 1.5 ms
/// (`docs/benchmarks.md`).
pub const ARRIVAL_CPU: Duration = Duration::from_millis(1);
/// The longest interval that a director chooses because of the size of its fleet: a death is suspected
/// after 3.5 of them, 5.25 s, before [`LINK_IDLE_TIMEOUT`] ends the connection.
pub const HEARTBEAT_INTERVAL_PACED_MAX: Duration = Duration::from_millis(1500);
/// What a director may ask for between heartbeats, milliseconds. At the shortest, a heartbeat of about
/// 100 us costs an agent 0.2 % of a core; at the longest, keep-alives still hold the connection.
pub const HEARTBEAT_INTERVAL_MS: RangeInclusive<u32> = 50..=60_000;
/// Between two looks of an agent at its machine, by default.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// What a director may ask for between two looks, milliseconds. A look reads a dozen files, about
/// 1 ms of CPU: 0.2 % of a core at the shortest.
pub const REPORT_INTERVAL_MS: RangeInclusive<u32> = 500..=600_000;
/// QUIC idle timeout of the link: a connection without any packet for this long is closed.
pub const LINK_IDLE_TIMEOUT: Duration = Duration::from_secs(6);
/// Reconnect backoff of an agent: first wait, and cap. Both jittered by half.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// See [`RECONNECT_FIRST`].
pub const RECONNECT_CAP: Duration = Duration::from_secs(15);
/// Pause after which an agent that has not been answered says again the first packet of its hello, of 1,200 bytes: a
/// director that is up is found within this and [`RECONNECT_FIRST`], where a round trip takes no longer.
pub const KNOCK_AGAIN: Duration = Duration::from_millis(500);
/// Pause after which an agent that was answered and is not served yet says again what it said last. A director keeps
/// it in line for [`HANDSHAKE_WAITS_MAX`], twice this, unless more come than its line holds: a fleet of 10,000 says it
/// 5,000 times a second, a fifth of a core, and none of it stays out of line for longer than this.
pub const KNOCK_IN_LINE: Duration = Duration::from_secs(2);
/// How long an agent that was answered waits for its turn: 30,000 handshakes of a director that gets through 1,000 a
/// second. Waiting costs next to nothing, and a new attempt a millisecond on both sides, which a fleet that waits for a
/// director does not have.
pub const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long a proof of address (QUIC Retry) counts: for the attempt in which it was given.
pub const ADDRESS_PROOF_LIFE: Duration = TURN_TIMEOUT.saturating_add(HELLO_TIMEOUT);
/// How long an attempt goes on without a sound from the director, while it may be starting and there is another address
/// to try; otherwise for [`HELLO_TIMEOUT`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// For how long an agent without a link asks that often; a director's host starts again in less. Two packets of
/// 1,200 bytes a second: 24 MB/s of 10,000 agents, for two minutes.
pub const RECONNECT_EAGER: Duration = Duration::from_secs(120);
/// Life of an agent's certificate; renewed at two thirds of it.
pub const AGENT_CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long after its end a certificate may still be followed by a new one without a token. A director
/// that is lost on a Friday evening may be rebuilt from its backup in the next week: 7 days, on top of
/// the 8 to 24 hours that certificates have left when it goes.
pub const LAPSED_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates that come with a request after the end of the last one: the leaf and its issuer. They come from a
/// stranger, whose frame of [`ENROLL_FRAME_BYTES_MAX`] would hold a dozen, 0.1 ms of CPU each to verify.
pub const LAPSED_CHAIN_MAX: usize = 2;
/// Most hours that a director's configuration may set [`LAPSED_GRACE`] to: 90 days. A stolen disk is worth
/// a certificate for as long.
pub const LAPSED_GRACE_HOURS_MAX: u32 = 90 * 24;
/// How long one key seals session tickets; it opens them for twice as long. A ticket is good for 12 to 24
/// hours, no longer than the certificate in it by default.
pub const TICKET_KEY_PERIOD: Duration = Duration::from_secs(12 * 3600);
/// Session tickets that the director sends on each connection. An attempt uses one up, answered or not:
/// four last for a director that is away for [`LINK_IDLE_TIMEOUT`], in which nothing is noticed, and four
/// attempts of [`HELLO_TIMEOUT`], 26 s. A ticket is about 1.3 KiB.
pub const TICKETS_PER_CONNECTION: usize = 4;
/// Life of an enrollment token: from creating the machine to its first connection.
pub const ENROLLMENT_TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// How long after a step's deadline the director still waits for the agent's answer: the agent stops
/// at the deadline by itself, and says what became of it; a link that breaks meanwhile is noticed in
/// [`LINK_IDLE_TIMEOUT`].
pub const STEP_ANSWER_GRACE: Duration = Duration::from_secs(10);
/// Progress of one step that waits to be sent or received: output chunks of 64 KiB make 1 MiB.
pub const PROGRESS_QUEUE: usize = 16;
/// Events that a slow subscriber may be behind before it has to read the table of sessions again; a
/// cluster of 300 machines that all connect and report at once.
pub const EVENTS_QUEUE: usize = 1024;
/// Packets that wait for the gateway, in bytes as the kernel counts them: 2.3 KiB for a first packet, 0.75
/// KiB for a heartbeat. 16 MiB are the hellos of 2,400 agents that come at once, three packets each with a ticket, which
/// take a quarter of a second to read, and the heartbeats of a second of 10,000 agents.
pub const GATEWAY_RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// How long a peer may take for the handshake, and again for its first frame.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a frame of an agent's control stream may take from its first byte to its last. The longest that
/// agents send are reports of some 8 KiB: on a path that takes a second and loses every other packet, those
/// are there in a third of this.
pub const CONTROL_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way from which on a new peer has to prove its address first (QUIC Retry). A
/// handshake takes about 2 ms of CPU, so that this many are a quarter of a second of work.
pub const HANDSHAKES_BEFORE_RETRY: usize = 128;
/// Handshakes under way at most: half a second of work, so that an honest one is over within
/// [`HANDSHAKE_GIVES_WAY_AFTER`] however many come. Further peers that have proven their address wait for a
/// place; when all places are held for longer the oldest gives way, so that strangers keep nobody out.
pub const HANDSHAKES_MAX: usize = 256;
/// First packets that wait for a place: what a director with 1,000 handshakes a second gets through in
/// [`HANDSHAKE_WAITS_MAX`]. Each is about 3 KiB, 12 MiB, and [`FIRST_FLIGHT_BYTES_MAX`] more where a peer
/// repeats itself. Beyond them the oldest ones are dropped, and come again.
pub const HANDSHAKES_WAITING_MAX: usize = 4096;
/// What a peer may send after its first packet before its handshake begins. The first flight of an agent is two
/// packets of 1,200 bytes, and it repeats it twice while it waits; 4096 of these are 32 MiB.
pub const FIRST_FLIGHT_BYTES_MAX: usize = 8 << 10;
/// How long a first packet waits: an agent that was answered goes on for [`HELLO_TIMEOUT`], and a
/// handshake that begins when its peer has gone is work for nothing.
pub const HANDSHAKE_WAITS_MAX: Duration = Duration::from_secs(4);
/// Connections at most that are no sessions: handshakes, and those that have ended. QUIC keeps an ended
/// one for three timeouts of its path, 0.9 s where no packet has shown how fast that is. Beyond it first
/// packets are dropped, and come again.
pub const STRANGERS_MAX: usize = 4096;
/// Resident bytes of all of these: one that stands half open takes 46 kB, 190 MB for all, and the rest is
/// what an allocator keeps of them.
pub const HANDSHAKES_BYTES_MAX: usize = 256 << 20;
/// How long a handshake keeps its place when others need it: an honest one is two round trips.
pub const HANDSHAKE_GIVES_WAY_AFTER: Duration = Duration::from_secs(1);
/// Enrollments under way at most; each may hold a blocking thread for one transaction of the store.
pub const ENROLLMENTS_MAX: usize = 64;
/// Sessions at most: 20,000 machines, and 480 that take the place of others whose sessions are not over yet, an
/// incarnation each. Of about 56 kB each with TLS state and report, they are 1.1 GB.
pub const SESSIONS_MAX: usize = 20_480;
/// Artifacts that the director sends to one machine at a time; the rest of its streams waits.
pub const ARTIFACTS_PER_AGENT_MAX: usize = 4;
/// How long an agent may take for one [`CHUNK_BYTES`] of an artifact: a link of 2.2 kB/s manages it.
pub const ARTIFACT_CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Buffer of a tunnel in each direction, bytes: 2 MiB for 64 tunnels, on a machine that has little.
pub const TUNNEL_BUFFER_BYTES: usize = 16 << 10;
/// How long opening a tunnel may take: one round trip, and a connect on the machine itself.
pub const TUNNEL_OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one stream that the director may be ahead of an agent: a whole frame, so that a frame never
/// waits for its own reader to ask for the rest.
pub const STREAM_TO_AGENT_WINDOW_BYTES: u32 = FRAME_BYTES_MAX as u32 + (64 << 10);
/// Bytes of one stream that an agent may be ahead of the director: four chunks of output.
pub const STREAM_FROM_AGENT_WINDOW_BYTES: u32 = 4 * CHUNK_BYTES as u32;
/// Bytes of all streams that one end may be ahead of the other: what all of them may be ahead by
/// themselves, so that streams nobody reads never hold up the control stream. That is 85 MiB towards an
/// agent, which trusts its director, and 20 MiB towards the director, most of it only for streams that
/// the director itself has opened and does not read; an agent's own 8 streams come to 2 MiB.
pub const TO_AGENT_WINDOW_BYTES: u32 = STREAMS_OF_A_LINK_MAX * STREAM_TO_AGENT_WINDOW_BYTES;
/// See [`TO_AGENT_WINDOW_BYTES`].
pub const FROM_AGENT_WINDOW_BYTES: u32 = STREAMS_OF_A_LINK_MAX * STREAM_FROM_AGENT_WINDOW_BYTES;
/// Streams of one connection, whoever opens them.
const STREAMS_OF_A_LINK_MAX: u32 = STREAMS_TO_AGENT_MAX + STREAMS_FROM_AGENT_MAX;
/// Datagrams that wait for their reader, in bytes: a dozen heartbeats; the newest count.
pub const DATAGRAM_BUFFER_BYTES: usize = 16 << 10;
/// Failed attempts (handshakes and enrollments) of one address, from which on further ones are refused
/// unseen; IPv6 addresses count by /64. An attempt that fails costs 2 ms of CPU at most, so that one
/// address costs 3 % of a core. What succeeds is not counted: a whole fleet may come from one address.
pub const FAILURES_PER_SOURCE: Rate = Rate {
    every: Duration::from_micros(62_500),
    burst: 256,
};
/// Addresses whose failures are remembered: 64 bytes each, 1 MiB. Those that rested are forgotten
/// first; beyond that, new ones are not remembered, and the places for handshakes bound them.
pub const SOURCES_MAX: usize = 16_384;
/// Sessions that one machine may open. An agent that crashes at once is started again once a second.
pub const SESSIONS_PER_MACHINE: Rate = Rate {
    every: Duration::from_secs(1),
    burst: 30,
};
/// Frames on the control stream of one agent: reports, renewals and what one machine has to announce
/// come to less than 10 a second.
pub const FRAMES_PER_AGENT: Rate = Rate {
    every: Duration::from_millis(20),
    burst: 200,
};
/// Reports of one agent: it looks twice a second at most, and changes of units go at once.
pub const REPORTS_PER_AGENT: Rate = Rate {
    every: Duration::from_millis(100),
    burst: 100,
};
/// Requests of one agent for a new certificate, 100 µs of CPU each: it looks once a second at most.
pub const RENEWALS_PER_AGENT: Rate = Rate {
    every: Duration::from_millis(500),
    burst: 20,
};
/// Datagrams of one agent: a heartbeat each 50 ms at the fastest, doubled; the burst is what a path
/// may have held back for [`LINK_IDLE_TIMEOUT`] at that pace.
pub const DATAGRAMS_PER_AGENT: Rate = Rate {
    every: Duration::from_millis(25),
    burst: 240,
};
/// Streams of one agent: an artifact each. Beyond it they wait, as they do for their places.
pub const STREAMS_PER_AGENT: Rate = Rate {
    every: Duration::from_millis(20),
    burst: 100,
};
/// Interval in which refusals of one reason have a bounded number of lines in the log.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Lines that refusals of one reason may have in one interval, strangers' and machines' apart: a flood
/// of one kind writes 10 lines of about 200 bytes in 10 s, 17 MiB a day.
pub const LOG_LINES_PER_REASON: u32 = 10;

/// UDP port of an agent's peer endpoint.
pub const PEER_PORT: u16 = 7445;
/// Artifacts that one machine announces, the newest first. An upgrade brings about eight; the director
/// remembers 32 bytes of each, 2 KiB a machine and 40 MiB for 20 000 that all have this many.
pub const ARTIFACTS_HELD_MAX: usize = 64;
/// Peers named in one offer, and failures named in one question.
pub const PEER_FAILURES_MAX: usize = 4;
/// Machines that the director offers to nobody for what they failed: all of a large cluster, of about 250 bytes
/// each, 1 MiB. Beyond it the first of them are forgotten.
pub const PEERS_SHUNNED_MAX: usize = 4096;
/// Transfers that the director lets one machine serve at a time. Copies grow fourfold a round: 1,000
/// machines have theirs after five.
pub const PEER_UPLOADS_MAX: usize = 3;
/// Copies of an artifact that the director makes in a cluster before it lets peers do the rest: one
/// machine may be lost without starting again.
pub const ARTIFACT_SEEDS: usize = 2;
/// Connections that an agent takes from peers: its uploads, as many that wind down, and one in reserve.
/// Each holds one chunk and one send window, so that all are under 2.5 MiB.
pub const PEER_CONNECTIONS_MAX: usize = 2 * PEER_UPLOADS_MAX + 1;
/// Bytes that an agent is ahead of the peer it serves: 256 MiB/s at a round trip of a millisecond.
pub const PEER_SEND_WINDOW_BYTES: u32 = 256 << 10;
/// Bytes that a peer may be ahead of the agent that fetches from it.
pub const PEER_RECEIVE_WINDOW_BYTES: u32 = 512 << 10;
/// How fast an agent serves all of its peers together: half of a gigabit link, the rest is the pods'.
pub const PEER_SERVE_BYTES_PER_S: u64 = 64 << 20;
/// How long a connection between peers may be silent, and a peer may take for one chunk.
pub const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting with a peer may take: on one network it takes milliseconds.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Slowest peer that is borne with, bytes a second over its whole transfer: a third of the rate above,
/// shared by three, is eighty times this.
pub const PEER_BYTES_PER_S_MIN: u64 = 256 << 10;
/// How long a machine may begin a transfer that it was granted.
pub const PEER_GRANT_LIFE: Duration = Duration::from_secs(60);
/// How long a peer's request waits for its grant, which may take the longer way: from the director over
/// another connection.
pub const PEER_GRANT_WAIT: Duration = Duration::from_secs(1);
/// Grants that an agent remembers: those of its uploads, given again a few times within their life.
pub const PEER_GRANTS_MAX: usize = 64;
/// How long an agent tries to reach another machine for its director, whatever the director asks. A packet
/// that is lost goes again after 0.15 s, 0.45 s, 1.05 s and 2.25 s, so that half of this is enough on a path
/// that loses a third.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Probes that one agent makes at a time, each a UDP and a TCP socket; further ones are answered as not
/// tried. A director asks three machines about one, so that a cluster of which half is silent spreads three
/// questions to each machine that is left.
pub const PROBES_IN_FLIGHT_MAX: usize = 16;
/// Certificates of a proof that another machine answered: the leaf, its issuer, and two more where a CA is being
/// replaced. Each takes a verification of its signature, 0.1 ms.
pub const PROBE_CHAIN_MAX: usize = 4;
/// An agent's own words on why it did not try that are kept, in characters: 6,000 of them, one for each question
/// that may wait ([`PROBES_WAITING_MAX`]), are 4.8 MB at the worst.
pub const PROBE_WHY_CHARS_MAX: usize = 200;
/// Before an agent that is asked again knocks again at a machine that refused its connection.
pub const PROBE_AGAIN: Duration = Duration::from_millis(150);
/// Questions of one director that wait for their answer: three about each of a thousand machines that fall
/// silent at once, and as many again.
pub const PROBES_WAITING_MAX: usize = 6_000;
/// Sessions (followed logs, shells, watched usage) on one machine at a time: a few operators with a few
/// windows each; a quarter of [`STREAMS_TO_AGENT_MAX`] stays for tunnels.
pub const SESSIONS_ON_MACHINE_MAX: usize = 32;
/// Largest snapshot of etcd that is sent, bytes: a quota is 8 GiB at most, and a database outgrows it by what
/// was written until its alarm went off.
pub const SNAPSHOT_BYTES_MAX: u64 = 10 << 30;
/// Shortest and longest pause between two samples of usage, milliseconds. A sample costs the machine
/// four small reads and 60 bytes.
pub const VITALS_INTERVAL_MS: std::ops::RangeInclusive<u32> = 500..=60_000;
/// Largest agent program, bytes: one that is shipped has 10 MiB, one built for debugging 150 MiB.
pub const AGENT_BYTES_MAX: u64 = 256 << 20;
/// Largest file of a component, in bytes: Kubernetes' programs have 60 to 90 MiB stripped, and twice that otherwise.
pub const COMPONENT_BYTES_MAX: u64 = 512 << 20;
/// How long a new agent may be on trial on one boot of its machine, seconds. It connects within two;
/// the rest is for a director that restarts meanwhile. A machine whose new agent hangs is out of reach
/// for as long.
pub const AGENT_TRIAL_S: RangeInclusive<u32> = 10..=600;
/// What a director asks for.
pub const AGENT_TRIAL_DEFAULT_S: u32 = 60;
/// Pods that one step tells to leave. A kubelet runs 110 by default, and a wave of a drain is a part of them; each
/// takes an API server some milliseconds.
pub const EVICTIONS_MAX: usize = 64;
/// Longest message of an API server about one of them that is passed on, bytes: it names a budget, two at most. All
/// of a step come to 32 KiB.
pub const EVICT_MESSAGE_MAX: usize = 512;
