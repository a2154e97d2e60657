//! Every bound that both sides rely on, each with its arithmetic.

use std::time::Duration;

/// Largest body of one frame. The largest is a `configure` step: about 40 files of a control-plane
/// machine, certificates and audit policy included, come to 120 KiB; 1 MiB leaves eight times that.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest frame an unauthenticated peer may send: a token, two names and a CSR are under 2 KiB.
pub const ENROLL_FRAME_BYTES_MAX: usize = 8 << 10;
/// Largest heartbeat: fits one QUIC datagram on a path with the minimum MTU of 1200 bytes.
pub const HEARTBEAT_BYTES_MAX: usize = 1024;
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
/// Heartbeats by default; three missed ones (2 s with jitter) make a machine suspect.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// QUIC idle timeout of the link: a connection without any packet for this long is closed.
pub const LINK_IDLE_TIMEOUT: Duration = Duration::from_secs(6);
/// Reconnect backoff of an agent: first wait, and cap. Both jittered by half.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// See [`RECONNECT_FIRST`].
pub const RECONNECT_CAP: Duration = Duration::from_secs(15);
/// Life of an agent's certificate; renewed at two thirds of it.
pub const AGENT_CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Life of an enrollment token: from creating the machine to its first connection.
pub const ENROLLMENT_TOKEN_LIFE: Duration = Duration::from_secs(3600);
