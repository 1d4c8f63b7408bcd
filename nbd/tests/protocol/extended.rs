//! Extended headers: agreed in the handshake, 32 bytes in both directions, lengths of 64 bits.

use crate::bytes::*;
use crate::client::{Script, scripted_with};
use crate::driver::{Event, run};
use crate::refusals::opened;
use crate::support;
use ashlar_nbd::client::{Client, ClientError, ClientRequest};
use ashlar_nbd::export::Extent;
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{CloseReason, Operation, Outcome, Request, Session};
use ashlar_nbd::wire::{self, Cookie, Headers};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const GIB: u64 = 1 << 30;
const SIZE_BYTES: u64 = 64 * GIB;
const PAYLOAD_LEN: u16 = 1 << 5;

fn extended(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = b"\x21\xe4\x1c\x71".to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// A session in transmission on a large export, with block status.
fn transmitting() -> Session {
    let allocation = option(10, &contexts("disk", &["base:allocation"]));
    let options = [client_flags(3), option(11, b""), allocation, option(7, &query("disk", &[]))].concat();
    opened(&options, &support::export("disk", SIZE_BYTES))
}

fn accept(session: &mut Session, input: &[u8]) -> Request {
    match session.receive(input) {
        (32, Outcome::Request(request)) => request,
        other => panic!("{other:?}"),
    }
}

/// The error number of a refusal.
fn refused(session: &mut Session, input: &[u8]) -> u32 {
    let mut rest = input;
    loop {
        let (consumed, outcome) = session.receive(rest);
        rest = &rest[consumed..];
        match outcome {
            Outcome::NeedMore => {}
            Outcome::Send(reply) => {
                assert!(rest.is_empty(), "its payload has passed");
                assert_eq!(reply[..8], *b"\x6e\x8a\x27\x8c\0\x01\x80\x01");
                return u32::from_be_bytes(reply[32..36].try_into().unwrap());
            }
            outcome => panic!("{outcome:?}"),
        }
    }
}

#[test]
fn they_are_agreed_once_and_replace_structured_replies() {
    let driver = run(&[&client_flags(3), &option(11, b"x"), &option(11, b""), &option(8, b""), &option(11, b"")]);
    let replies: Vec<u32> = split_option_replies(&driver.sent()).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(replies, [0x8000_0003, 1, 0x8000_000a, 0x8000_0003]);
    let driver = run(&[&client_flags(3), &option(8, b""), &option(11, b""), &option(7, &query("disk", &[]))]);
    assert!(driver.session.is_structured() && driver.session.is_transmitting());
    let driver = run(&[&client_flags(3), &option(11, b""), &option(1, b"disk")]);
    assert_eq!(driver.events.last(), Some(&Event::Closed(CloseReason::ExportNameWithExtendedHeaders)));
}

#[test]
fn requests_may_be_longer_than_4_gib() {
    let mut session = transmitting();
    let zero = accept(&mut session, &extended(0, 6, 9, GIB, 5 * GIB));
    let operation = Operation::WriteZeroes { no_hole: false, fast: false };
    let expected = Request { cookie: Cookie(9), operation, offset_bytes: GIB, length_bytes: 5 * GIB, fua: false };
    assert_eq!(zero, expected);
    let done = b"\x6e\x8a\x27\x8c\0\x01\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\x40\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(&*session.reply_done(zero.handle()), done);
    let status = accept(&mut session, &extended(0, 7, 10, 0, SIZE_BYTES));
    let mut out = Vec::new();
    let extent = Extent { length_bytes: SIZE_BYTES, hole: true, zero: true };
    session.reply_block_status(status.handle(), &[extent], &mut out);
    assert_eq!(out[6..8], [0, 6]);
    assert_eq!(out[40..48], SIZE_BYTES.to_be_bytes());
    // Beyond the end, and beyond what a sum can hold.
    assert_eq!(refused(&mut session, &extended(0, 6, 11, GIB, SIZE_BYTES)), 28);
    assert_eq!(refused(&mut session, &extended(0, 4, 12, 512, u64::MAX - 511)), 22);
    // Reads and writes keep their limit.
    assert_eq!(refused(&mut session, &extended(0, 0, 13, 0, 5 * GIB)), 22);
    let close = CloseReason::PayloadTooLong(5 * GIB);
    let input = extended(PAYLOAD_LEN, 1, 14, 0, 5 * GIB);
    assert_eq!(session.receive(&input), (32, Outcome::Close { reason: close }));
}

#[test]
fn a_payload_is_a_writes_and_no_others() {
    let mut session = transmitting();
    for flags in [PAYLOAD_LEN, 0] {
        accept(&mut session, &extended(flags, 1, 1, 0, 1024));
        assert_eq!(session.payload_pending_bytes(), 1024);
        session.payload_taken(1024);
    }
    // The longest that is taken, though clients are told of less.
    accept(&mut session, &extended(PAYLOAD_LEN, 1, 1, 0, 64 << 20));
    session.payload_taken(64 << 20);
    for command in [0, 3, 4, 6, 7, 200] {
        let input = [extended(PAYLOAD_LEN, command, 2, 0, 1024), vec![0xee; 1024]].concat();
        assert_eq!(refused(&mut session, &input), 22, "command {command}");
    }
    assert_eq!(refused(&mut session, &extended(0, 200, 3, 0, 1024)), 22);
    accept(&mut session, &extended(0, 0, 4, 0, 512));
}

#[test]
fn a_header_of_the_other_kind_closes() {
    let mut session = transmitting();
    let compact = [request(0, 0, 1, 0, 512), vec![0; 4]].concat();
    let reason = CloseReason::RequestMagic(wire::MAGIC_REQUEST);
    assert_eq!(session.receive(&compact), (32, Outcome::Close { reason }));
    let input = [client_flags(3), option(7, &query("disk", &[])), extended(0, 0, 1, 0, 512)].concat();
    let driver = run(&[&input]);
    let reason = CloseReason::RequestMagic(wire::MAGIC_REQUEST_EXTENDED);
    assert_eq!(driver.events.last(), Some(&Event::Closed(reason)));
}

#[test]
fn headers_may_come_in_pieces() {
    let input = [extended(PAYLOAD_LEN, 1, 1, 512, 512), vec![7; 512], extended(0, 0, 2, 0, 512)].concat();
    for piece in 1..40 {
        let mut session = transmitting();
        let (mut requests, mut held) = (Vec::new(), Vec::new());
        for bytes in input.chunks(piece) {
            held.extend_from_slice(bytes);
            loop {
                let payload = held.len().min(session.payload_pending_bytes() as usize);
                held.drain(..payload);
                session.payload_taken(payload as u32);
                if session.payload_pending_bytes() > 0 {
                    break;
                }
                let (consumed, outcome) = session.receive(&held);
                held.drain(..consumed);
                match outcome {
                    Outcome::Request(request) => requests.push((request.cookie.0, request.offset_bytes)),
                    Outcome::NeedMore => break,
                    outcome => panic!("{outcome:?}"),
                }
            }
        }
        assert_eq!(requests, [(1, 512), (2, 0)], "pieces of {piece}");
    }
}

/// A client of a large export whose server agrees to extended headers, if it does, and then says `bytes`.
fn scripted(extended: bool, bytes: &[u8]) -> Client<Script> {
    scripted_with(1 << 44, if extended { Headers::Extended } else { Headers::Structured }, bytes)
}

fn chunk(kind: u16, offset: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x6e\x8a\x27\x8c\0\x01".to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend((content.len() as u64).to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

#[test]
fn the_client_takes_long_extents_and_catches_lies() {
    let extents = b"\0\0\0\x05\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x03";
    let mut client = scripted(true, &chunk(6, 0, extents));
    let hole = Extent { length_bytes: 8 * GIB, hole: true, zero: true };
    assert_eq!(client.block_status(0, 16 * GIB).unwrap(), [hole]);
    let lies: [(&str, Vec<u8>); 5] = [
        ("another offset", chunk(6, 512, extents)),
        ("another number of extents", chunk(6, 0, &[&extents[..7], &[2], &extents[8..]].concat())),
        ("another context", chunk(6, 0, &[&[0, 0, 0, 9], &extents[4..]].concat())),
        ("half an extent", chunk(6, 0, &extents[..20])),
        ("a compact reply", b"\x66\x8e\x33\xef\0\x01\0\0\0\0\0\0\0\0\0\x01\0\0\0\0".to_vec()),
    ];
    for (case, bytes) in lies {
        let error = scripted(true, &bytes).block_status(0, 16 * GIB).unwrap_err();
        assert!(matches!(error, ClientError::Protocol(_)), "{case}: {error}");
    }
}

#[test]
fn without_them_a_long_request_is_not_sent() {
    let mut client = scripted(false, &[]);
    assert_eq!(client.export().headers, Headers::Structured);
    assert!(matches!(client.zero(0, 5 * GIB), Err(ClientError::TooLong)));
    let request = ClientRequest { command: 3, flags: 0, offset_bytes: 0, length_bytes: 0 };
    assert!(client.send(request, &[]).is_ok(), "the connection is good");
}

#[test]
fn both_ends_agree() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let exports = support::Devices(vec![Arc::new(support::Memory::new(support::export("disk", 1 << 20)))]);
        ashlar_nbd::server::serve(theirs, &exports, Limits::PRODUCTION)
    });
    let mut client = Client::connect(ours, "disk").unwrap();
    assert_eq!(client.export().headers, Headers::Extended);
    client.write(4096, &[7; 4096]).unwrap();
    let hole = |length_bytes| Extent { length_bytes, hole: true, zero: true };
    let data = Extent { length_bytes: 4096, hole: false, zero: false };
    assert_eq!(client.block_status(0, 1 << 20).unwrap(), [hole(4096), data, hole((1 << 20) - 8192)]);
    assert_eq!(client.read(0, 8192).unwrap(), [[0; 4096], [7; 4096]].concat());
    assert_eq!(client.disconnect().unwrap(), []);
    assert_eq!(server.join().unwrap().unwrap(), Some(CloseReason::Disconnected));
}
