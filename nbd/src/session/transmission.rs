//! The transmission phase: request headers in, reply headers out.
//!
//! It counts requests in flight but keeps nothing about them; the caller remembers what it was
//! asked. It must never hold payload. Accepting a request allocates nothing.

use super::gather::{self, Gather};
use super::validate::{self, RawRequest, Refused, Terms};
use super::{CloseReason, Operation, Outcome, Request};
use crate::export::{ExportInfo, Extent};
use crate::limits::Limits;
use crate::reply::{self, ChunkOrder, ErrorReply, Handle, Header};
use crate::wire::{self, ErrorNumber, Headers};

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
    handle: Handle,
    refused: Refused,
    /// Payload that is still to be dropped.
    skip_bytes: u64,
}

impl Transmission {
    pub(super) fn new(limits: Limits, export: &ExportInfo, headers: Headers, allocation: bool) -> Self {
        assert!(headers.is_structured() || !allocation);
        let terms = Terms {
            limits,
            size_bytes: export.size_bytes,
            block_sizes: export.block_sizes,
            features: export.features,
            headers,
            allocation,
        };
        // The client may use what it was told.
        assert!(export.block_sizes.max_bytes <= limits.payload_bytes_max);
        Self {
            terms,
            gather: Gather::with_capacity(wire::EXTENDED_HEADER_BYTES),
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

    pub(super) fn is_disconnecting(&self) -> bool {
        self.disconnecting
    }

    pub(super) fn is_structured(&self) -> bool {
        self.terms.headers.is_structured()
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
        let (expected, header) = match self.terms.headers {
            Headers::Extended => {
                let header = self.gather.fixed(input);
                (wire::MAGIC_REQUEST_EXTENDED, header.map(|header| validate::split_extended_request(&header)))
            }
            Headers::Simple | Headers::Structured => {
                let header = self.gather.fixed(input);
                (wire::MAGIC_REQUEST, header.map(|header| validate::split_request(&header)))
            }
        };
        match header {
            Some((magic, raw)) => self.request(magic, expected, raw, input),
            None => Outcome::NeedMore,
        }
    }

    fn request(&mut self, magic: u32, expected: u32, raw: RawRequest, input: &mut &[u8]) -> Outcome {
        if magic != expected {
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
                    self.payload_pending_bytes = request.length_bytes as u32; // at most `payload_bytes_max`
                }
                Outcome::Request(request)
            }
            Err(refused) => {
                let skip_bytes = raw.payload_bytes(self.terms.headers);
                if skip_bytes > u64::from(self.terms.limits.payload_skip_bytes_max) {
                    return Outcome::Close { reason: CloseReason::PayloadTooLong(skip_bytes) };
                }
                self.refuse(RefusedRequest { handle: raw.handle(), refused, skip_bytes }, input)
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
        let Refused { error, message } = request.refused;
        Outcome::Send(reply::error(self.terms.headers, request.handle, error, message).to_vec())
    }

    pub(super) fn reply_done(&mut self, to: Handle) -> Header {
        self.answered();
        reply::done(self.terms.headers, to)
    }

    pub(super) fn reply_error(&mut self, to: Handle, error: ErrorNumber, message: &str) -> ErrorReply {
        self.answered();
        reply::error(self.terms.headers, to, error, message)
    }

    pub(super) fn reply_read(&mut self, request: &Request) -> Header {
        assert!(matches!(request.operation, Operation::Read { .. }));
        if self.is_structured() {
            let length_bytes = request.length_bytes as u32; // at most `payload_bytes_max`
            self.chunk_data(request.handle(), request.offset_bytes, length_bytes, ChunkOrder::Last)
        } else {
            self.reply_done(request.handle())
        }
    }

    pub(super) fn chunk_data(&mut self, to: Handle, offset: u64, length: u32, order: ChunkOrder) -> Header {
        let last = self.chunk(length, order);
        reply::data(self.terms.headers, to, last, offset, length)
    }

    pub(super) fn chunk_hole(&mut self, to: Handle, offset: u64, length: u32, order: ChunkOrder) -> Header {
        let last = self.chunk(length, order);
        reply::hole(self.terms.headers, to, last, offset, length)
    }

    pub(super) fn reply_block_status(&mut self, to: Handle, extents: &[Extent], out: &mut Vec<u8>) {
        assert!(self.terms.allocation);
        // They come from a device: what it gets wrong fails this request, not the server.
        if !(1..=EXTENTS_MAX).contains(&extents.len()) || extents.iter().any(|extent| extent.length_bytes == 0) {
            let reply = self.reply_error(to, ErrorNumber::Io, "the device does not tell what is allocated");
            out.extend_from_slice(&reply);
            return;
        }
        self.answered();
        reply::block_status(self.terms.headers, to, extents, out);
    }

    fn chunk(&mut self, length_bytes: u32, order: ChunkOrder) -> bool {
        assert!(self.is_structured(), "a simple reply cannot be sent in pieces");
        assert!(length_bytes > 0);
        assert!(self.inflight > 0);
        let last = order == ChunkOrder::Last;
        if last {
            self.answered();
        }
        last
    }

    fn answered(&mut self) {
        assert!(self.inflight > 0, "a reply to no request");
        self.inflight -= 1;
    }
}
