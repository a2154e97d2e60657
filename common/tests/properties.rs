//! What holds for any bytes that a peer may send and any value that is sent: codec, frames, bodies and
//! the settings of a machine.
//!
//! The bodies come from `golden/`, one of each kind, so that a new kind is tested with no line here.

#![allow(clippy::unwrap_used, reason = "a test: what is wrong ends it")]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::select;
use tokio::io::{AsyncRead, ReadBuf};

use windlass_common::id::{ClusterName, Digest, DirectorId, Epoch, Incarnation, MachineName};
use windlass_common::limits::{ENROLL_FRAME_BYTES_MAX, FRAME_BYTES_MAX};
use windlass_common::report::{Heartbeat, Report, Scope, UnitReport, Vitals};
use windlass_common::secret::Secret;
use windlass_common::settings::Settings;
use windlass_common::step::Fetch;
use windlass_common::wire::codec;
use windlass_common::wire::frame::{self, Frame, FrameError, HEADER_BYTES, OPTIONAL};
use windlass_common::wire::message::{Body, EnrollRequest, KINDS, StepHeader, recode};

/// One frame of each kind.
fn golden() -> &'static [Frame] {
    static FRAMES: OnceLock<Vec<Frame>> = OnceLock::new();
    FRAMES.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut frames = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            let byte =
                |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
            frames.push(Frame::from_datagram(&bytes, bytes.len()).unwrap());
        }
        frames.sort_by_key(|frame| frame.kind);
        frames
    })
}

fn any_frame() -> impl Strategy<Value = Frame> {
    select(golden())
}

/// Reading from memory never waits.
fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("a read from memory waits"),
    }
}

/// Bytes that arrive in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl<'a> Pieces<'a> {
    fn new(bytes: &'a [u8], sizes: &'a [usize]) -> Pieces<'a> {
        let sizes = sizes.iter().cycle();
        Pieces { bytes, sizes }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = *self.sizes.next().unwrap();
        let (piece, rest) = self
            .bytes
            .split_at(size.min(into.remaining()).min(self.bytes.len()));
        into.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// Reads frames until the stream ends or breaks.
fn read_all(bytes: &[u8], sizes: &[usize]) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut stream, mut frames) = (Pieces::new(bytes, sizes), Vec::new());
    loop {
        match now(frame::read(&mut stream, FRAME_BYTES_MAX)) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, Ok(())),
            Err(error) => return (frames, Err(error)),
        }
    }
}

fn any_name() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,20}[a-z0-9])?"
}

fn any_report() -> impl Strategy<Value = Report> {
    let unit = (any::<String>(), any::<String>(), any::<u32>());
    let unit = unit.prop_map(|(active_state, sub_state, restarts)| UnitReport {
        active_state,
        sub_state,
        restarts,
    });
    let scope = || select(vec![Scope::Machine, Scope::Host]);
    let vitals = (any::<[u64; 5]>(), any::<u32>(), scope(), scope(), scope());
    let vitals = vitals.prop_map(|(bytes, load1_centi, memory, cpu, load)| Vitals {
        memory_used_bytes: bytes[0],
        memory_total_bytes: bytes[1],
        memory_scope: memory,
        cpu_used_ms: bytes[2],
        cpu_scope: cpu,
        disk_used_bytes: bytes[3],
        disk_total_bytes: bytes[4],
        load1_centi,
        load_scope: load,
    });
    let texts = || btree_map(any::<String>(), any::<String>(), 0..4);
    (
        any::<(u64, u64)>(),
        any::<(String, String)>(),
        texts(),
        btree_map(any::<String>(), unit, 0..6),
        vitals,
    )
        .prop_map(
            |((at_unix_ms, uptime_s), (boot_id, agent_version), components, units, vitals)| {
                Report {
                    at_unix_ms,
                    boot_id,
                    uptime_s,
                    agent_version,
                    components,
                    units,
                    vitals,
                }
            },
        )
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let names = (any_name(), any_name(), any_name());
    let rest = (any::<u32>(), "[0-9a-f]{64}", any::<Vec<u8>>());
    let addresses = vec(any::<std::net::SocketAddr>(), 0..4);
    (names, rest, addresses).prop_map(
        |(names, (incarnation, token, pinned), directors)| Settings {
            director_id: DirectorId::new(names.0).unwrap(),
            directors,
            ca_digest: Digest::of(&pinned),
            token: Secret::new(token),
            cluster: ClusterName::new(names.1).unwrap(),
            machine: MachineName::new(names.2).unwrap(),
            incarnation: Incarnation(incarnation),
        },
    )
}

#[test]
fn there_is_a_body_of_each_kind_here() {
    let kinds: Vec<u16> = golden().iter().map(|frame| frame.kind).collect();
    assert!(KINDS.iter().all(|(kind, _)| kinds.contains(kind)));
}

proptest! {
    /// However a stream is cut into packets, the same frames come out of it.
    #[test]
    fn frames_do_not_depend_on_how_their_bytes_arrive(
        frames in vec(any_frame(), 0..8),
        sizes in vec(1usize..200, 1..20),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let (read, ended) = read_all(&bytes, &sizes);
        prop_assert_eq!(read, frames);
        prop_assert!(ended.is_ok());
    }

    /// A stream that ends too early gives the frames before its end, whole, and says that it was cut.
    #[test]
    fn a_cut_stream_is_never_a_shorter_frame(
        frames in vec(any_frame(), 1..6),
        cut in any::<prop::sample::Index>(),
        sizes in vec(1usize..200, 1..20),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let cut = cut.index(bytes.len());
        let mut whole = Vec::new();
        let mut at = 0;
        for frame in frames {
            at += HEADER_BYTES + frame.body.len();
            if at > cut {
                at -= HEADER_BYTES + frame.body.len();
                break;
            }
            whole.push(frame);
        }
        let (read, ended) = read_all(&bytes[..cut], &sizes);
        prop_assert_eq!(read, whole);
        if at == cut {
            prop_assert!(ended.is_ok());
        } else {
            prop_assert!(matches!(ended, Err(FrameError::Io(_))), "{ended:?}");
        }
    }

    /// A length beyond the limit is refused by its header alone: nothing is read or reserved for it.
    #[test]
    fn a_length_beyond_the_limit_is_refused_unread(
        kind in any::<u16>(),
        max in 0usize..FRAME_BYTES_MAX,
        over in 1u32..1 << 31,
    ) {
        let length = u32::try_from(max).unwrap() + over;
        let mut header = kind.to_be_bytes().to_vec();
        header.extend(length.to_be_bytes());
        let refused = now(frame::read(&mut header.as_slice(), max));
        prop_assert!(matches!(refused, Err(FrameError::TooLong { .. })), "{refused:?}");
        prop_assert!(Frame::from_datagram(&header, max).is_err());
    }

    /// Bytes that were changed on the way are refused, or mean something that is encoded in one way.
    #[test]
    fn damaged_bodies_are_refused_or_mean_one_thing(
        mut frame in any_frame(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
        more in vec(any::<u8>(), 0..12),
    ) {
        for (at, byte) in damage {
            if !frame.body.is_empty() {
                let at = at.index(frame.body.len());
                frame.body[at] ^= byte;
            }
        }
        frame.body.truncate(keep.index(frame.body.len() + 1));
        frame.body.extend(more);
        if let Ok(once) = recode(&frame) {
            let twice = recode(&once);
            prop_assert_eq!(twice.unwrap(), once);
        }
    }

    /// A body is whole or refused: no beginning of one is another, and nothing may follow it.
    #[test]
    fn no_part_of_a_body_is_a_body(
        frame in any_frame(),
        keep in any::<prop::sample::Index>(),
        more in vec(any::<u8>(), 1..12),
    ) {
        prop_assert_eq!(&recode(&frame).unwrap(), &frame);
        let mut longer = frame.clone();
        longer.body.extend(more);
        prop_assert!(recode(&longer).is_err());
        if !frame.body.is_empty() {
            let mut shorter = frame;
            shorter.body.truncate(keep.index(shorter.body.len()));
            prop_assert!(recode(&shorter).is_err());
        }
    }

    /// Optional kinds that nobody knows change nothing; others end the exchange.
    #[test]
    fn unknown_kinds_are_skipped_only_where_they_say_so(
        kind in any::<u16>(),
        body in vec(any::<u8>(), 0..100),
        wanted in any::<u64>(),
    ) {
        prop_assume!(KINDS.iter().all(|(known, _)| *known != kind));
        let heartbeat = Heartbeat {
            sequence: wanted,
            at_unix_ms: 1,
            units_unhealthy: 2,
            memory_used_bp: 3,
            disk_used_bp: 4,
            epoch: Epoch(5),
        };
        let mut bytes = Frame { kind, body }.to_bytes();
        bytes.extend(Frame::of(&heartbeat).unwrap().to_bytes());
        let read = now(frame::expect::<Heartbeat>(&mut bytes.as_slice(), FRAME_BYTES_MAX));
        if kind & OPTIONAL == 0 {
            prop_assert!(matches!(read, Err(FrameError::Unexpected { .. })), "{read:?}");
        } else {
            prop_assert_eq!(read.unwrap(), heartbeat);
        }
    }

    /// What a machine reports arrives as it is, whatever its units are called.
    #[test]
    fn reports_arrive_as_they_were_sent(report in any_report()) {
        let bytes = codec::encode(&report).unwrap();
        prop_assert_eq!(codec::decode::<Report>(&bytes).unwrap(), report);
    }

    /// What a stranger may say fits its frame, and is read as it was meant.
    #[test]
    fn requests_to_enroll_arrive_as_they_were_sent(
        settings in any_settings(),
        request_der in vec(any::<u8>(), 0..2_000),
    ) {
        let request = EnrollRequest {
            token: settings.token,
            cluster: settings.cluster,
            machine: settings.machine,
            incarnation: settings.incarnation,
            request_der,
        };
        let bytes = Frame::of(&request).unwrap().to_bytes();
        let read = now(frame::expect::<EnrollRequest>(&mut bytes.as_slice(), ENROLL_FRAME_BYTES_MAX));
        let shown = format!("{request:?}");
        prop_assert!(!shown.contains(request.token.expose()));
        prop_assert_eq!(read.unwrap(), request);
    }

    /// Settings are read as they were written, and never show their token.
    #[test]
    fn settings_are_read_as_they_were_written(settings in any_settings()) {
        let text = serde_json::to_string(&settings).unwrap();
        let read: Settings = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let shown = format!("{read:?}");
        prop_assert!(!shown.contains(settings.token.expose()));
    }

    /// Settings that were damaged are refused or say something whole; an error never shows the token.
    #[test]
    fn damaged_settings_are_refused_or_whole(
        settings in any_settings(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = serde_json::to_vec(&settings).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let cut = &bytes[..keep.index(bytes.len())];
        prop_assert!(serde_json::from_slice::<Settings>(cut).is_err());
        match serde_json::from_slice::<Settings>(&bytes) {
            Ok(read) => {
                let text = serde_json::to_vec(&read).unwrap();
                let again: Settings = serde_json::from_slice(&text).unwrap();
                prop_assert_eq!(serde_json::to_vec(&again).unwrap(), text);
            }
            Err(error) => {
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.contains(settings.token.expose()), "{shown}");
            }
        }
    }

    /// A field that is missing, or one that nobody knows, is an error: no machine takes settings by half.
    #[test]
    fn settings_have_each_field_once(settings in any_settings(), extra in "[a-z_]{1,12}") {
        let value = serde_json::to_value(&settings).unwrap();
        let fields: BTreeMap<String, serde_json::Value> = serde_json::from_value(value).unwrap();
        for name in fields.keys() {
            let mut fewer = fields.clone();
            fewer.remove(name);
            let text = serde_json::to_string(&fewer).unwrap();
            prop_assert!(serde_json::from_str::<Settings>(&text).is_err(), "{name}");
        }
        prop_assume!(!fields.contains_key(&extra));
        let mut more = fields;
        more.insert(extra, serde_json::Value::Null);
        let text = serde_json::to_string(&more).unwrap();
        prop_assert!(serde_json::from_str::<Settings>(&text).is_err());
    }
}

/// The fuzzer begins with a frame of each kind, and with a request of each kind of step.
/// `WINDLASS_GOLDEN_NEW=1` writes what is not there.
#[test]
fn the_fuzzer_begins_with_every_kind() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/frames");
    let names: BTreeMap<u16, &str> = KINDS.iter().copied().collect();
    let header = golden().iter().find(|frame| frame.kind == StepHeader::KIND);
    let header = header.unwrap().to_bytes();
    let mut seeds = BTreeMap::new();
    for frame in golden() {
        let (kind, bytes) = (frame.kind, frame.to_bytes());
        let name = names[&kind].rsplit("::").next().unwrap().to_lowercase();
        // From the first step on, all are steps.
        if kind >= Fetch::KIND {
            let request = [header.as_slice(), &bytes].concat();
            seeds.insert(format!("step-{kind:04x}"), request);
        }
        seeds.insert(format!("{kind:04x}-{name}"), bytes);
    }
    let mut missing = Vec::new();
    for (name, bytes) in seeds {
        let path = corpus.join(&name);
        if std::env::var_os("WINDLASS_GOLDEN_NEW").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        if std::fs::read(&path).ok() != Some(bytes) {
            missing.push(name);
        }
    }
    assert!(
        missing.is_empty(),
        "not in the corpus, or not as golden: {missing:?}"
    );
}
