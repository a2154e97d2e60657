//! A stream of frames of every kind: what is taken is taken again in the same bytes, and nothing
//! panics, hangs or reserves more than the limit.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use windlass_common::limits::{FRAME_BYTES_MAX, HEARTBEAT_BYTES_MAX};
use windlass_common::report::Heartbeat;
use windlass_common::wire::frame::{self, Frame};
use windlass_common::wire::message::{Body, StepHeader, recode};
use windlass_common::wire::step::{from_frames, to_frames};

/// Reading from bytes in memory never waits.
fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("a read from memory waits"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::from_datagram(bytes, HEARTBEAT_BYTES_MAX) {
        assert_eq!(frame.to_bytes(), bytes);
        let _ = frame.body::<Heartbeat>();
    }
    let (mut stream, mut header) = (bytes, None);
    while let Ok(Some(frame)) = now(frame::read(&mut stream, FRAME_BYTES_MAX)) {
        if let Ok(once) = recode(&frame) {
            let twice = recode(&once).expect("what was encoded here is decoded here");
            assert_eq!(once, twice);
        }
        if let Some(header) = header.take()
            && let Ok(request) = from_frames(header, &frame)
        {
            let again = to_frames(&request).expect("a step that arrived can be sent");
            assert_eq!(again[1].kind, frame.kind);
        }
        if frame.kind == StepHeader::KIND {
            header = frame.body::<StepHeader>().ok();
        }
    }
});
