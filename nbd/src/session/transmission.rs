//! The transmission phase: request headers in, reply headers out.
//!
//! It counts requests in flight but keeps nothing about them; the caller remembers what it was
//! asked. It must never hold payload. Accepting a request allocates nothing.

use super::gather::{self, Gather};
use super::validate::{self, Refused, Terms};
use super::{CloseReason, Operation, Outcome, Request};
use crate::export::{ExportInfo, Extent};
use crate::limits::Limits;
use crate::reply::{self, ChunkOrder, ErrorReply, Header};
use crate::wire::{self, Cookie, ErrorNumber};

/// Most extents in one block status reply, given by the protocol.
const EXTENTS_MAX: usize = 1 << 20;

/// State of one transmission phase.
#[derive(Debug)]
pub(super) struct Transmission {
    terms: Terms,
    gather: Gather,
    inflight: u32,
    /// Payload of an accepted WRITE that the caller still has to take.
    payload_pending_bytes: u32,
    /// A request that is refused as soon as its payload has passed.
    refused: Option<RefusedRequest>,
    /// DISC was received: nothing more is read, what is in flight is still answered.
    disconnecting: bool,
}

#[derive(Debug)]
struct RefusedRequest {
    cookie: Cookie,
    refused: Refused,
    /// Payload that is still to be dropped.
    skip_bytes: u32,
}

impl Transmission {
    pub(super) fn new(limits: Limits, export: &ExportInfo, structured: bool, allocation: bool) -> Self {
        if allocation {
            assert!(structured);
        }
        let terms = Terms {
            limits,
            size_bytes: export.size_bytes,
            block_sizes: export.block_sizes,
            features: export.features,
            structured,
            allocation,
        };
        // The client may use what it was told.
        assert!(export.block_sizes.max_bytes <= limits.payload_bytes_max);
        Self {
            terms,
            gather: Gather::with_capacity(wire::REQUEST_HEADER_BYTES),
            inflight: 0,
            payload_pending_bytes: 0,
            refused: None,
            disconnecting: false,
        }
    }

    pub(super) fn payload_pending_bytes(&self) -> u32 {
        self.payload_pending_bytes
    }

    pub(super) fn requests_inflight(&self) -> u32 {
        self.inflight
    }

    pub(super) fn is_structured(&self) -> bool {
        self.terms.structured
    }

    pub(super) fn buffered_bytes(&self) -> usize {
        self.gather.held_bytes()
    }

    pub(super) fn payload_taken(&mut self, bytes: u32) {
        assert!(bytes <= self.payload_pending_bytes);
        self.payload_pending_bytes -= bytes;
    }

    /// Takes input up to the next outcome.
    pub(super) fn receive(&mut self, input: &mut &[u8]) -> Outcome {
        assert_eq!(self.payload_pending_bytes, 0, "payload would be read as requests");
        if let Some(refused) = self.refused.take() {
            return self.refuse(refused, input);
        }
        if self.disconnecting {
            return match self.inflight {
                0 => Outcome::Close { reason: CloseReason::Disconnected },
                _ => Outcome::Busy,
            };
        }
        if self.inflight >= self.terms.limits.requests_inflight_max {
            return Outcome::Busy;
        }
        match self.gather.fixed(input) {
            Some(header) => self.request(&header, input),
            None => Outcome::NeedMore,
        }
    }

    fn request(&mut self, header: &[u8; wire::REQUEST_HEADER_BYTES], input: &mut &[u8]) -> Outcome {
        let (magic, raw) = validate::split_request(header);
        if magic != wire::MAGIC_REQUEST {
            return Outcome::Close { reason: CloseReason::RequestMagic(magic) };
        }
        if raw.command == wire::COMMAND_DISC {
            self.disconnecting = true;
            return match self.inflight {
                0 => Outcome::Close { reason: CloseReason::Disconnected },
                _ => Outcome::Busy,
            };
        }
        match validate::validate(&raw, &self.terms) {
            Ok(request) => {
                self.inflight += 1;
                if request.operation == Operation::Write {
                    self.payload_pending_bytes = request.length_bytes;
                }
                Outcome::Request(request)
            }
            Err(refused) => {
                // Only a WRITE brings bytes along that must go.
                let skip_bytes = if raw.command == wire::COMMAND_WRITE { raw.length_bytes } else { 0 };
                if skip_bytes > self.terms.limits.payload_skip_bytes_max {
                    return Outcome::Close { reason: CloseReason::PayloadTooLong(skip_bytes) };
                }
                self.refuse(RefusedRequest { cookie: raw.cookie, refused, skip_bytes }, input)
            }
        }
    }

    /// Answers a refused request once its payload has passed: libnbd gives up on a reply to a
    /// request it is still sending.
    fn refuse(&mut self, mut request: RefusedRequest, input: &mut &[u8]) -> Outcome {
        gather::skip(input, &mut request.skip_bytes);
        if request.skip_bytes > 0 {
            self.refused = Some(request);
            return Outcome::NeedMore;
        }
        Outcome::Send(self.error(request.cookie, request.refused.error, request.refused.message).to_vec())
    }

    pub(super) fn reply_done(&mut self, cookie: Cookie) -> Header {
        self.answered();
        if self.terms.structured { reply::chunk_none(cookie) } else { reply::simple_done(cookie) }
    }

    pub(super) fn reply_error(&mut self, cookie: Cookie, error: ErrorNumber, message: &str) -> ErrorReply {
        self.answered();
        self.error(cookie, error, message)
    }

    pub(super) fn reply_read(&mut self, request: &Request) -> Header {
        assert!(matches!(request.operation, Operation::Read { .. }));
        if self.terms.structured {
            self.chunk_data(request.cookie, request.offset_bytes, request.length_bytes, ChunkOrder::Last)
        } else {
            self.answered();
            reply::simple_done(request.cookie)
        }
    }

    pub(super) fn chunk_data(&mut self, cookie: Cookie, offset: u64, length: u32, order: ChunkOrder) -> Header {
        let last = self.chunk(length, order);
        reply::chunk_data(cookie, last, offset, length)
    }

    pub(super) fn chunk_hole(&mut self, cookie: Cookie, offset: u64, length: u32, order: ChunkOrder) -> Header {
        let last = self.chunk(length, order);
        reply::chunk_hole(cookie, last, offset, length)
    }

    pub(super) fn reply_block_status(&mut self, cookie: Cookie, extents: &[Extent], out: &mut Vec<u8>) {
        assert!(self.terms.allocation);
        assert!(!extents.is_empty());
        assert!(extents.len() <= EXTENTS_MAX);
        self.answered();
        reply::block_status(cookie, extents, out);
    }

    fn chunk(&mut self, length_bytes: u32, order: ChunkOrder) -> bool {
        assert!(self.terms.structured, "a simple reply cannot be sent in pieces");
        assert!(length_bytes > 0);
        assert!(self.inflight > 0);
        let last = order == ChunkOrder::Last;
        if last {
            self.answered();
        }
        last
    }

    fn error(&self, cookie: Cookie, error: ErrorNumber, message: &str) -> ErrorReply {
        if self.terms.structured {
            reply::chunk_error(cookie, error, message)
        } else {
            reply::simple_error(cookie, error)
        }
    }

    fn answered(&mut self) {
        assert!(self.inflight > 0, "a reply to no request");
        self.inflight -= 1;
    }
}
