//! The table of refusals: every way a request can be wrong, and its error number.

use crate::bytes::*;
use crate::driver::SIZE_BYTES;
use crate::support;
use ashlar_nbd::export::Features;
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{Outcome, Session};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZERO: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const MIB: u32 = 1 << 20;

static PAYLOAD: [u8; MIB as usize] = [0xee; MIB as usize];

/// A session in transmission, with block status.
pub fn transmitting(features: Features, structured: bool, context: bool) -> Session {
    let mut options = client_flags(3);
    if structured {
        options.extend(option(8, b""));
    }
    if context {
        options.extend(option(10, &contexts("disk", &["base:allocation"])));
    }
    options.extend(option(7, &query("disk", &[])));
    opened(&options, &ashlar_nbd::export::ExportInfo { features, ..support::export("disk", SIZE_BYTES) })
}

/// A session that these options have led to an export.
pub fn opened(options: &[u8], export: &ashlar_nbd::export::ExportInfo) -> Session {
    let mut session = Session::new(Limits::PRODUCTION);
    let mut input = options;
    loop {
        let (consumed, outcome) = session.receive(input);
        input = &input[consumed..];
        match outcome {
            Outcome::Send(_) => {}
            Outcome::OpenExport { .. } => break,
            outcome => panic!("{outcome:?}"),
        }
    }
    session.answer_export(export);
    session
}

/// The error number of the refusal, or 0 if the request is accepted. The session is structured.
fn error_of(session: &mut Session, flags: u16, command: u16, offset: u64, length: u32) -> u32 {
    let (consumed, mut outcome) = session.receive(&request(flags, command, 7, offset, length));
    assert_eq!(consumed, 28);
    // A refused write is answered when its payload has passed.
    let mut payload = if command == WRITE { length as usize } else { 0 };
    while outcome == Outcome::NeedMore {
        let now = payload.min(MIB as usize);
        assert!(now > 0);
        payload -= now;
        (_, outcome) = session.receive(&PAYLOAD[..now]);
    }
    match outcome {
        Outcome::Request(_) => 0,
        Outcome::Send(reply) => {
            assert_eq!(payload, 0);
            assert_eq!(reply[..8], *b"\x66\x8e\x33\xef\0\x01\x80\x01");
            assert_eq!(reply[8..16], 7u64.to_be_bytes());
            u32::from_be_bytes(reply[20..24].try_into().unwrap())
        }
        other => panic!("{other:?}"),
    }
}

/// Flags, command, offset, length, and the expected error, 0 if the request is accepted.
const TABLE: &[(u16, u16, u64, u32, u32)] = &[
    // Accepted, at the edges.
    (0, READ, 0, 512, 0),
    (0, READ, 0, MIB, 0),
    (DF, READ, SIZE_BYTES - 512, 512, 0),
    (0, WRITE, SIZE_BYTES - 512, 512, 0),
    (0, FLUSH, 0, 0, 0),
    (0, TRIM, 0, MIB, 0),
    (0, CACHE, 0, MIB, 0),
    (NO_HOLE | FAST_ZERO, ZERO, 0, MIB, 0),
    (REQ_ONE, STATUS, 0, MIB, 0),
    // FUA is legal on every command.
    (FUA, READ, 0, 512, 0),
    (FUA, WRITE, 0, 512, 0),
    (FUA, FLUSH, 0, 0, 0),
    (FUA, TRIM, 0, 512, 0),
    (FUA, CACHE, 0, 512, 0),
    (FUA, ZERO, 0, 512, 0),
    (FUA, STATUS, 0, 512, 0),
    // Unknown commands.
    (0, 8, 0, 512, EINVAL),
    (0, 0xffff, 0, 512, EINVAL),
    // Flags that are unknown or belong to another command.
    (32, READ, 0, 512, EINVAL),
    (0x8000, WRITE, 0, 512, EINVAL),
    (NO_HOLE, READ, 0, 512, EINVAL),
    (DF, WRITE, 0, 512, EINVAL),
    (DF, FLUSH, 0, 0, EINVAL),
    (NO_HOLE, TRIM, 0, 512, EINVAL),
    (1 << 5, CACHE, 0, 512, EINVAL),
    (REQ_ONE, ZERO, 0, 512, EINVAL),
    (FAST_ZERO, WRITE, 0, 512, EINVAL),
    (DF, STATUS, 0, 512, EINVAL),
    // Out of range.
    (0, READ, SIZE_BYTES, 512, EINVAL),
    (0, READ, SIZE_BYTES - 512, 1024, EINVAL),
    (0, TRIM, SIZE_BYTES, 512, EINVAL),
    (0, CACHE, SIZE_BYTES, 512, EINVAL),
    (0, STATUS, SIZE_BYTES, 512, EINVAL),
    (0, WRITE, SIZE_BYTES, 512, ENOSPC),
    (0, WRITE, SIZE_BYTES - 512, 1024, ENOSPC),
    (0, ZERO, SIZE_BYTES, 512, ENOSPC),
    (0, READ, u64::MAX - 511, 512, EINVAL),
    (0, WRITE, u64::MAX - 511, 1024, ENOSPC),
    (0, ZERO, u64::MAX, u32::MAX, ENOSPC),
    // Alignment.
    (0, READ, 1, 512, EINVAL),
    (0, READ, 0, 511, EINVAL),
    (0, WRITE, 256, 512, EINVAL),
    (0, WRITE, 0, 513, EINVAL),
    (0, TRIM, 0, 100, EINVAL),
    (0, ZERO, 100, 512, EINVAL),
    (0, STATUS, 0, 1, EINVAL),
    // Lengths.
    (0, READ, 0, 0, EINVAL),
    (0, WRITE, 0, 0, EINVAL),
    (0, TRIM, 0, 0, EINVAL),
    (0, CACHE, 0, 0, EINVAL),
    (0, ZERO, 0, 0, EINVAL),
    (0, STATUS, 0, 0, EINVAL),
    (0, READ, 0, 64 * MIB + 512, EINVAL),
    (0, WRITE, 0, 64 * MIB + 512, EINVAL),
    (0, WRITE, 0, 128 * MIB, EINVAL),
    (0, READ, 0, u32::MAX, EINVAL),
    // A flush has no range.
    (0, FLUSH, 512, 0, EINVAL),
    (0, FLUSH, 0, 512, EINVAL),
];

#[test]
fn table_of_refusals() {
    for case in TABLE {
        let (flags, command, offset, length, expected) = *case;
        let mut session = transmitting(Features::ALL, true, true);
        assert_eq!(error_of(&mut session, flags, command, offset, length), expected, "{case:?}");
        let inflight = u32::from(expected == 0);
        assert_eq!(session.requests_inflight(), inflight, "{case:?}");
    }
}

#[test]
fn what_is_not_advertised_is_refused() {
    let nothing = Features::default();
    let cases = [
        (0, READ, 0),
        (0, WRITE, 0),
        (FUA, WRITE, EINVAL),
        (DF, READ, EINVAL),
        (0, TRIM, EINVAL),
        (0, CACHE, EINVAL),
        (0, ZERO, EINVAL),
        (0, STATUS, EINVAL),
    ];
    for (flags, command, expected) in cases {
        let mut session = transmitting(nothing, true, false);
        assert_eq!(error_of(&mut session, flags, command, 0, 512), expected, "{command}");
    }
    let mut session = transmitting(nothing, true, false);
    assert_eq!(error_of(&mut session, 0, FLUSH, 0, 0), EINVAL);
    let slow = Features { write_zeroes: true, ..nothing };
    assert_eq!(error_of(&mut transmitting(slow, true, false), FAST_ZERO, ZERO, 0, 512), EINVAL);
    assert_eq!(error_of(&mut transmitting(slow, true, false), NO_HOLE, ZERO, 0, 512), 0);
}

#[test]
fn a_read_only_export_is_not_written() {
    let features = Features { read_only: true, ..Features::ALL };
    for command in [WRITE, TRIM, ZERO] {
        assert_eq!(error_of(&mut transmitting(features, true, true), 0, command, 0, 512), EPERM);
        // Even where another refusal would do.
        assert_eq!(error_of(&mut transmitting(features, true, true), 0, command, SIZE_BYTES, 512), EPERM);
    }
    assert_eq!(error_of(&mut transmitting(features, true, true), 0, FLUSH, 0, 0), 0);
    assert_eq!(error_of(&mut transmitting(features, true, true), 0, CACHE, 0, 512), 0);
}

#[test]
fn commands_without_payload_may_be_longer_than_the_maximum_payload() {
    let mut session = Session::new(Limits::PRODUCTION);
    let options = [client_flags(3), option(1, b"big")].concat();
    assert!(matches!(session.receive(&options), (23, Outcome::OpenExport { .. })));
    session.answer_export(&support::export("big", 8 << 30));
    for command in [TRIM, CACHE, ZERO] {
        let input = request(0, command, 1, 0, u32::MAX - 511);
        assert!(matches!(session.receive(&input), (28, Outcome::Request(_))), "{command}");
    }
}
