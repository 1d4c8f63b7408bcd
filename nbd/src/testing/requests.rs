//! Any bytes as a client's requests, answered out of order.

use super::{Answers, Event, LIMITS, Story, check_request, drive, export, features, pieces};
use crate::export::{ExportInfo, Extent, Features};
use crate::reply::ChunkOrder;
use crate::session::{Operation, Outcome, Request, Session};
use crate::wire::{self, ErrorNumber, Headers};

/// The first byte says what was agreed and promised (bits 0 and 1: simple, structured or extended headers; 2: read-only;
/// 3: block status; 4: no promise at all; 5: blocks of one byte), the second how the input is cut; the rest are requests.
pub fn check_requests(input: &[u8]) {
    let &[setup, cut, ref bytes @ ..] = input else { return };
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended, Headers::Extended][usize::from(setup & 3)];
    let bit = |number: u8| setup >> number & 1 == 1;
    let min_bytes = if bit(5) { 1 } else { 512 };
    let promises = features(!bit(4), bit(2));
    let allocation = bit(3) && headers.is_structured();
    let tell = |cut: Option<u8>| {
        let mut session = opened(headers, allocation, &export("", promises, min_bytes));
        let mut device = Device { headers, allocation, promises, min_bytes, held: Vec::new() };
        let story = drive(&mut session, bytes, pieces(cut), &mut device);
        if story.closed.is_none() {
            assert_eq!(session.requests_inflight() as usize, device.held.len());
        }
        story
    };
    assert_eq!(tell(None), tell(Some(cut)), "cut differently, it comes to something else");
}

/// A session in which the client has agreed to these headers and opened the export.
fn opened(headers: Headers, allocation: bool, export: &ExportInfo) -> Session {
    let option = |number: u32, data: &[u8]| {
        let length = (data.len() as u32).to_be_bytes();
        [&wire::MAGIC_OPTION.to_be_bytes()[..], &number.to_be_bytes(), &length, data].concat()
    };
    let mut hello = 3u32.to_be_bytes().to_vec();
    match headers {
        Headers::Simple => {}
        Headers::Structured => hello.extend(option(wire::OPTION_STRUCTURED_REPLY, &[])),
        Headers::Extended => hello.extend(option(wire::OPTION_EXTENDED_HEADERS, &[])),
    }
    if allocation {
        let context = wire::CONTEXT_BASE_ALLOCATION.as_bytes();
        let query = [&[0; 4][..], &1u32.to_be_bytes(), &(context.len() as u32).to_be_bytes(), context].concat();
        hello.extend(option(wire::OPTION_SET_META_CONTEXT, &query));
    }
    hello.extend(option(wire::OPTION_GO, &[0; 6]));
    let mut session = Session::new(LIMITS);
    let mut rest = &hello[..];
    while !session.is_transmitting() {
        let (consumed, outcome) = session.receive(rest);
        rest = &rest[consumed..];
        match outcome {
            Outcome::Send(_) => {}
            Outcome::OpenExport { .. } => drop(session.answer_export(export)),
            outcome => panic!("a handshake in order came to {outcome:?}"),
        }
    }
    assert!(rest.is_empty());
    session
}

/// Answers some requests at once and holds others.
struct Device {
    headers: Headers,
    allocation: bool,
    promises: Features,
    min_bytes: u32,
    held: Vec<Request>,
}

impl Device {
    fn reply(&self, session: &mut Session, request: &Request, story: &mut Story) {
        let to = request.handle();
        let (offset, length) = (request.offset_bytes, request.length_bytes);
        let before = session.requests_inflight();
        let mut bytes = Vec::new();
        match request.operation {
            _ if request.cookie.0 % 5 == 3 => {
                bytes.extend_from_slice(&session.reply_error(to, ErrorNumber::Io, "it is old"))
            }
            Operation::Read { dont_fragment: false } if session.is_structured() && length > 1 => {
                let first = (length / 2) as u32;
                bytes.extend_from_slice(&session.chunk_hole(to, offset, first, ChunkOrder::More));
                let second = length as u32 - first;
                bytes.extend_from_slice(&session.chunk_data(to, offset + u64::from(first), second, ChunkOrder::Last));
            }
            Operation::Read { .. } => bytes.extend_from_slice(&session.reply_read(request)),
            Operation::BlockStatus { one_extent } => {
                let hole = Extent { length_bytes: u64::from(self.min_bytes), hole: true, zero: true };
                let more = length > hole.length_bytes && !one_extent;
                let data = Extent { length_bytes: length - hole.length_bytes, hole: false, zero: false };
                let extents = if more { &[hole, data][..] } else { &[hole] };
                session.reply_block_status(to, extents, &mut bytes);
            }
            _ => bytes.extend_from_slice(&session.reply_done(to)),
        }
        assert_eq!(session.requests_inflight(), before - 1, "a reply answers one request");
        check_reply(&bytes, self.headers, request);
        story.events.push(Event::Sent(bytes));
    }
}

impl Answers for Device {
    fn answer(&mut self, session: &mut Session, outcome: Outcome, story: &mut Story) {
        match outcome {
            Outcome::Send(bytes) => {
                // A refusal: an error and nothing else.
                let magic = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                assert_eq!(magic, reply_magic(self.headers));
                story.events.push(Event::Sent(bytes));
            }
            Outcome::Request(request) => {
                check_request(&request, self.promises, self.min_bytes);
                assert!(self.allocation || !matches!(request.operation, Operation::BlockStatus { .. }));
                story.events.push(Event::Request(request));
                // The payload of a write comes first; the others are held by what only the client chooses.
                if request.operation == Operation::Write || request.cookie.0.is_multiple_of(2) {
                    self.held.push(request);
                } else {
                    self.reply(session, &request, story);
                }
            }
            outcome => panic!("{outcome:?} after the handshake"),
        }
    }

    fn busy(&mut self, session: &mut Session, story: &mut Story) {
        assert_eq!(session.requests_inflight() as usize, self.held.len());
        assert!(!self.held.is_empty(), "busy with nothing");
        // The last first: replies may overtake each other.
        let request = self.held.pop().expect("looked at it");
        self.reply(session, &request, story);
    }
}

fn reply_magic(headers: Headers) -> u32 {
    match headers {
        Headers::Simple => wire::MAGIC_REPLY_SIMPLE,
        Headers::Structured => wire::MAGIC_REPLY_STRUCTURED,
        Headers::Extended => wire::MAGIC_REPLY_EXTENDED,
    }
}

/// The right kind of header, for this request.
fn check_reply(bytes: &[u8], headers: Headers, request: &Request) {
    assert_eq!(bytes[..4], reply_magic(headers).to_be_bytes());
    assert_eq!(bytes[8..16], request.cookie.0.to_be_bytes(), "somebody else's reply");
    if headers == Headers::Extended {
        assert_eq!(bytes[16..24], request.offset_bytes.to_be_bytes());
    }
}
