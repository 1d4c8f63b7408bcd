//! The transmission phase: payload, back-pressure, replies, the end.

use crate::bytes::*;
use crate::refusals::transmitting;
use ashlar_nbd::export::{Extent, Features};
use ashlar_nbd::reply::ChunkOrder;
use ashlar_nbd::session::{CloseReason, Operation, Outcome, Request, Session};
use ashlar_nbd::wire::{Cookie, ErrorNumber};

fn accept(session: &mut Session, input: &[u8]) -> Request {
    match session.receive(input) {
        (28, Outcome::Request(request)) => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_carry_their_fields() {
    let mut session = transmitting(Features::ALL, true, true);
    let read = accept(&mut session, &request(1 | 4, 0, 9, 1024, 512));
    let operation = Operation::Read { dont_fragment: true };
    assert_eq!(read, Request { cookie: Cookie(9), operation, offset_bytes: 1024, length_bytes: 512, fua: true });
    let zero = accept(&mut session, &request(2, 6, 9, 0, 512));
    assert_eq!(zero.operation, Operation::WriteZeroes { no_hole: true, fast: false });
    let status = accept(&mut session, &request(8, 7, 9, 0, 512));
    assert_eq!(status.operation, Operation::BlockStatus { one_extent: true });
    assert_eq!(session.requests_inflight(), 3);
}

#[test]
fn payload_of_a_write_is_the_callers() {
    let mut session = transmitting(Features::ALL, true, false);
    let write = accept(&mut session, &[request(0, 1, 5, 0, 1024), vec![1; 2000]].concat());
    assert_eq!(session.payload_pending_bytes(), 1024);
    session.payload_taken(1000);
    session.payload_taken(24);
    assert_eq!(session.payload_pending_bytes(), 0);
    accept(&mut session, &request(0, 0, 6, 0, 512));
    assert_eq!(&*session.reply_done(write.handle()), b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x05\0\0\0\0");
}

#[test]
#[should_panic(expected = "payload would be read as requests")]
fn payload_must_be_taken() {
    let mut session = transmitting(Features::ALL, true, false);
    accept(&mut session, &request(0, 1, 5, 0, 1024));
    session.payload_taken(1000);
    session.receive(&[]);
}

#[test]
fn payload_of_a_refused_write_is_skipped() {
    let features = Features { read_only: true, ..Features::ALL };
    let mut session = transmitting(features, true, false);
    let mut input = request(0, 1, 5, 0, 1024);
    input.extend([0xee; 1024]);
    input.extend(request(0, 0, 6, 0, 512));
    assert_eq!(session.receive(&input[..700]), (700, Outcome::NeedMore));
    let (consumed, outcome) = session.receive(&input[700..]);
    assert_eq!(consumed, 28 + 1024 - 700);
    assert!(matches!(outcome, Outcome::Send(_)));
    let (consumed, outcome) = session.receive(&input[28 + 1024..]);
    assert_eq!(consumed, 28);
    assert!(matches!(outcome, Outcome::Request(Request { cookie: Cookie(6), .. })));
}

#[test]
fn payload_too_long_to_skip_closes() {
    let mut session = transmitting(Features::ALL, true, false);
    let input = request(0, 1, 5, 0, (128 << 20) + 1);
    let reason = CloseReason::PayloadTooLong((128 << 20) + 1);
    assert_eq!(session.receive(&input), (28, Outcome::Close { reason }));
}

#[test]
fn transmission_out_of_step_closes() {
    let mut session = transmitting(Features::ALL, true, false);
    let reason = CloseReason::RequestMagic(0x4745_5420);
    let (_, outcome) = session.receive(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    assert_eq!(outcome, Outcome::Close { reason });
    assert_eq!(session.receive(&[]), (0, Outcome::Close { reason }));
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut session = transmitting(Features::ALL, true, false);
    let requests: Vec<Request> = (0..128).map(|cookie| accept(&mut session, &request(0, 0, cookie, 0, 512))).collect();
    let next = request(0, 0, 128, 0, 512);
    assert_eq!(session.receive(&next), (0, Outcome::Busy));
    session.reply_error(requests[64].handle(), ErrorNumber::Io, "the disk died");
    accept(&mut session, &next);
    assert_eq!(session.receive(&[]), (0, Outcome::Busy));
}

#[test]
fn disconnect_waits_for_the_replies() {
    let mut session = transmitting(Features::ALL, true, false);
    let read = accept(&mut session, &request(0, 0, 1, 0, 512));
    let flush = accept(&mut session, &request(0, 3, 2, 0, 0));
    let disconnect = [request(0, 2, 3, 0, 0), request(0, 3, 4, 0, 0)].concat();
    assert_eq!(session.receive(&disconnect), (28, Outcome::Busy));
    session.reply_done(flush.handle());
    assert_eq!(session.receive(&disconnect[28..]), (0, Outcome::Busy));
    session.reply_read(&read);
    let reason = CloseReason::Disconnected;
    assert_eq!(session.receive(&disconnect[28..]), (0, Outcome::Close { reason }));
    assert!(reason.is_orderly());
}

#[test]
fn disconnect_of_an_idle_session_closes_at_once() {
    let mut session = transmitting(Features::ALL, true, false);
    let reason = CloseReason::Disconnected;
    assert_eq!(session.receive(&request(0, 2, 3, 0, 0)), (28, Outcome::Close { reason }));
}

#[test]
fn simple_replies_when_nothing_was_negotiated() {
    let mut session = transmitting(Features::ALL, false, false);
    let read = accept(&mut session, &request(0, 0, 1, 512, 512));
    let write = accept(&mut session, &request(0, 3, 2, 0, 0));
    let failed = accept(&mut session, &request(0, 4, 3, 0, 512));
    assert_eq!(&*session.reply_read(&read), b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01");
    assert_eq!(&*session.reply_done(write.handle()), b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x02");
    let error = session.reply_error(failed.handle(), ErrorNumber::ShuttingDown, "unseen");
    assert_eq!(&*error, b"\x67\x44\x66\x98\0\0\0\x6c\0\0\0\0\0\0\0\x03");
    // DF is not advertised without structured replies.
    let (_, outcome) = session.receive(&request(4, 0, 4, 0, 512));
    assert_eq!(outcome, Outcome::Send(b"\x67\x44\x66\x98\0\0\0\x16\0\0\0\0\0\0\0\x04".to_vec()));
    assert_eq!(session.requests_inflight(), 0);
}

#[test]
fn a_read_in_pieces_may_still_fail() {
    let mut session = transmitting(Features::ALL, true, false);
    let read = accept(&mut session, &request(0, 0, 1, 0, 4096));
    let data = session.chunk_data(read.handle(), 0, 512, ChunkOrder::More);
    assert_eq!(data[4..8], [0, 0, 0, 1]);
    let hole = session.chunk_hole(read.handle(), 512, 512, ChunkOrder::More);
    assert_eq!(hole[4..8], [0, 0, 0, 2]);
    assert_eq!(session.requests_inflight(), 1);
    let error = session.reply_error(read.handle(), ErrorNumber::Io, "a block is gone");
    assert_eq!(error[4..8], [0, 1, 0x80, 1]);
    assert_eq!(error[20..], *b"\0\0\0\x05\0\x0fa block is gone");
    assert_eq!(session.requests_inflight(), 0);
}

#[test]
fn block_status_replies() {
    let mut session = transmitting(Features::ALL, true, true);
    let status = accept(&mut session, &request(0, 7, 1, 0, 4096));
    let mut out = b"before".to_vec();
    let extents = [Extent { length_bytes: 4096, hole: true, zero: true }];
    session.reply_block_status(status.handle(), &extents, &mut out);
    let reply = b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x01\0\0\0\x0c\0\0\0\x01\0\0\x10\0\0\0\0\x03";
    assert_eq!(out, [&b"before"[..], reply].concat());
}

#[test]
fn extents_that_cannot_be_told_are_an_error() {
    let some = Extent { length_bytes: 4096, hole: false, zero: false };
    let empty = Extent { length_bytes: 0, ..some };
    for extents in [vec![], vec![empty], vec![some, empty], vec![some; (1 << 20) + 1]] {
        let mut session = transmitting(Features::ALL, true, true);
        let status = accept(&mut session, &request(0, 7, 1, 0, 4096));
        let mut out = Vec::new();
        session.reply_block_status(status.handle(), &extents, &mut out);
        assert_eq!(out[..8], *b"\x66\x8e\x33\xef\0\x01\x80\x01", "{} extents", extents.len());
        assert_eq!(out[20..24], [0, 0, 0, 5]);
        assert_eq!(session.requests_inflight(), 0);
    }
}
