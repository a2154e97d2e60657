//! What a stranger may send: one small frame, and a certificate request in it. Whatever it says, the key in it is one
//! that the stranger has, of the only kind there is, and the name that it asks for is one machine's and no other's.
//!
//! Whether its token counts is decided by the director (`service::enrollment`), with properties of its own.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use windlass_common::limits::ENROLL_FRAME_BYTES_MAX;
use windlass_common::pki::{MachineIdentity, PublicKey};
use windlass_common::wire::frame;
use windlass_common::wire::message::EnrollRequest;

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
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
        let claim = MachineIdentity {
            director: "d1".parse().expect("a name"),
            cluster: request.cluster,
            machine: request.machine,
            incarnation: request.incarnation,
        };
        // What a certificate would say is what was claimed.
        assert_eq!(claim.to_string().parse(), Ok(claim));
        let Ok(key) = PublicKey::from_request(&request.request_der) else {
            continue;
        };
        // An uncompressed point of P-256, whatever the request said.
        assert_eq!((key.as_bytes().len(), key.as_bytes()[0]), (65, 4));
    }
});
