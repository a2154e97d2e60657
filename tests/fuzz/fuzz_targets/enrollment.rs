//! What a stranger may send: one small frame, a certificate request in it, and the decision of a store
//! in memory that knows one token. No stranger is let in, and nobody twice with two keys.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use windlass_common::limits::ENROLL_FRAME_BYTES_MAX;
use windlass_common::pki::PublicKey;
use windlass_common::wire::frame;
use windlass_common::wire::message::EnrollRequest;

/// The token of the corpus.
const TOKEN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    let mut bound: Option<Vec<u8>> = None;
    // As from several connections, one after the other.
    loop {
        let request = pin!(frame::expect::<EnrollRequest>(
            &mut stream,
            ENROLL_FRAME_BYTES_MAX
        ))
        .poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(request)) = request else {
            return;
        };
        let Ok(key) = PublicKey::from_request(&request.request_der) else {
            continue;
        };
        // An uncompressed point of P-256, whatever the request said.
        assert_eq!((key.as_bytes().len(), key.as_bytes()[0]), (65, 4));
        if request.token.expose() != TOKEN {
            continue;
        }
        let first = bound.get_or_insert_with(|| key.as_bytes().to_vec());
        if first == key.as_bytes() {
            assert!(!request.machine.to_string().is_empty());
        }
    }
});
