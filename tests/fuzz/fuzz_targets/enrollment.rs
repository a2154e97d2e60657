//! What a stranger may send: one small frame, a certificate request in it, and the director's decision
//! about the one token there is. No stranger is let in, and nobody twice with two keys.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use windlass_common::clock::later;
use windlass_common::id::{Digest, Incarnation};
use windlass_common::limits::ENROLL_FRAME_BYTES_MAX;
use windlass_common::pki::{MachineIdentity, PublicKey};
use windlass_common::wire::frame;
use windlass_common::wire::message::EnrollRequest;
use windlass_director::model::Timestamp;
use windlass_director::pki::EnrollmentToken;
use windlass_director::store::Token;

/// The token of the corpus, and the machine it was issued for.
const TOKEN: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const INCARNATION: Incarnation = Incarnation(1);
/// The token's life, and the time between two requests: the fourth comes too late.
const LIFE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(10);

fuzz_target!(|bytes: &[u8]| {
    // The first byte: whether the machine has a session after the second request, and whether it was
    // replaced.
    let Some((flags, mut stream)) = bytes.split_first() else {
        return;
    };
    let (session, replaced) = (flags & 1 != 0, flags & 2 != 0);
    let current = INCARNATION.0 + u32::from(replaced);
    let mut token = Token {
        cluster: "demo".parse().expect("a name"),
        machine: "demo-w-0".parse().expect("a name"),
        incarnation: INCARNATION,
        expires_at: Timestamp::from_unix_ms(LIFE.as_millis() as u64),
        public_key: None,
        spent: false,
    };
    let issued = Digest::of(TOKEN.as_bytes());
    let mut now = jiff::Timestamp::UNIX_EPOCH;
    let mut first: Option<Vec<u8>> = None;
    // As from several connections, one after the other.
    for number in 0.. {
        let request = pin!(frame::expect::<EnrollRequest>(
            &mut stream,
            ENROLL_FRAME_BYTES_MAX
        ))
        .poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(request)) = request else {
            return;
        };
        now = later(now, if number == 0 { Duration::ZERO } else { PAUSE });
        token.spent |= session && number > 1 && token.public_key.is_some();
        let Ok(key) = PublicKey::from_request(&request.request_der) else {
            continue;
        };
        // An uncompressed point of P-256, whatever the request said.
        assert_eq!((key.as_bytes().len(), key.as_bytes()[0]), (65, 4));
        if EnrollmentToken::hash_of(&request.token) != issued {
            continue;
        }
        let claim = MachineIdentity {
            director: "d1".parse().expect("a name"),
            cluster: request.cluster,
            machine: request.machine,
            incarnation: request.incarnation,
        };
        let before = token.clone();
        match token.bind(&claim, key.as_bytes(), Some(Incarnation(current)), now) {
            Ok(fresh) => {
                assert_eq!(fresh, first.is_none());
                assert_eq!(first.get_or_insert_with(|| key.as_bytes().to_vec()), key.as_bytes());
                assert_eq!((&claim.cluster, &claim.machine), (&before.cluster, &before.machine));
                assert_eq!(claim.incarnation, INCARNATION);
                assert!(!before.spent && !replaced && number < 3);
                assert!(fresh || token == before);
            }
            Err(_) => assert_eq!(token, before),
        }
    }
});
