//! The server side of one NBD connection as a pure state machine.
//!
//! The caller feeds received bytes to [`Session::receive`] in a loop and does what the outcomes
//! say; it answers questions and requests later, in any order. The session never sees a socket,
//! clock or thread, never knows what an export is made of, and holds no payload: the data of a
//! WRITE goes from the caller's receive buffer to wherever the caller wants it.
//!
//! ```text
//! send session.greeting()
//! loop {
//!     let (consumed, outcome) = session.receive(input);   // drop `consumed` bytes from the input
//!     match outcome {
//!         NeedMore          => receive more bytes, then call again
//!         Busy              => answer a question or request first, then call again
//!         Send(bytes)       => send, call again (with the rest of the input, even if empty)
//!         ListExports       => later: answer_exports or refuse
//!         FindExport        => later: answer_export or refuse
//!         OpenExport        => later: answer_export (transmission begins) or refuse
//!         StartTls(bytes)   => send; all input after what was consumed is of TLS: the session gets what is inside
//!         Request(request)  => if a WRITE: take the payload, saying payload_taken;
//!                              later, in any order: one reply; call again at once
//!         Close { reason }  => close the connection
//!     }
//! }
//! ```

mod gather;
mod handshake;
mod options;
mod transmission;
mod validate;

use crate::export::{ExportInfo, Extent, ListedExport, Refusal};
use crate::limits::Limits;
use crate::reply::{ChunkOrder, ErrorReply, Handle, Header};
use crate::wire::{self, Cookie, ErrorNumber};
use handshake::Handshake;
use transmission::Transmission;

/// Server side of one connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    Transmission(Transmission),
    Closed(CloseReason),
}

/// What the caller has to do after [`Session::receive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All input is consumed; call again with more.
    NeedMore,
    /// Nothing more is taken until the caller has answered something: a question, or, when the
    /// limit of requests in flight is reached or the client is disconnecting, a request.
    Busy,
    /// Send these bytes, then call again. They count as no request in flight: a caller that queues
    /// them must stop calling while its queue is full, or a client that never reads fills it.
    Send(Vec<u8>),
    /// Answer with [`Session::answer_exports`] or [`Session::refuse`].
    ListExports,
    /// Describe an export: [`Session::answer_export`] or [`Session::refuse`].
    FindExport {
        /// The name the client gave; empty means the default export.
        name: String,
    },
    /// Open an export for this connection: [`Session::answer_export`] or [`Session::refuse`].
    OpenExport {
        /// The name the client gave; empty means the default export.
        name: String,
    },
    /// Send these bytes, the last in the clear, and begin TLS as its server. What was not consumed of the input belongs to
    /// TLS; the session goes on with what TLS makes of it. What the client said before is forgotten.
    StartTls(Vec<u8>),
    /// A valid request; answer it with one of the reply functions. A WRITE's payload must be taken
    /// first ([`Session::payload_taken`]), even if the request then fails: clients do not expect a
    /// reply to what they are still sending.
    Request(Request),
    /// Close the connection. Replies still owed can no longer be sent and must be dropped.
    Close {
        /// Why; `Display` is fit for a log.
        reason: CloseReason,
    },
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The client said goodbye after the transmission phase; everything is answered.
    #[error("the client disconnected")]
    Disconnected,
    /// The client ended the handshake.
    #[error("the client aborted the handshake")]
    Aborted,
    /// `EXPORT_NAME` has no way to say no but to close.
    #[error("the export was refused and the client's option EXPORT_NAME has no error reply")]
    ExportRefused,
    /// The client set flags this server does not know.
    #[error("unknown client flags {0:#x}")]
    ClientFlagsUnknown(u32),
    /// A client without fixed newstyle may only send `EXPORT_NAME`.
    #[error("option {0} from a client that did not agree to the fixed newstyle handshake")]
    NotFixedNewstyle(u32),
    /// The handshake is out of step.
    #[error("wrong option magic {0:#x}")]
    OptionMagic(u64),
    /// The option data is absurdly long.
    #[error("option {option} has {length_bytes} bytes of data")]
    OptionTooLong {
        /// Option number.
        option: u32,
        /// Length of its data in bytes.
        length_bytes: u32,
    },
    /// The name in `EXPORT_NAME` is too long, or not UTF-8.
    #[error("the export name in EXPORT_NAME is malformed")]
    ExportNameInvalid,
    /// The client haggles without end.
    #[error("more than {0} options")]
    TooManyOptions(u32),
    /// The transmission is out of step.
    #[error("wrong request magic {0:#x}")]
    RequestMagic(u32),
    /// A refused WRITE has a payload too long to skip.
    #[error("a payload of {0} bytes is too long to be skipped")]
    PayloadTooLong(u64),
    /// `EXPORT_NAME` has no way to say that TLS must be started first.
    #[error("the option EXPORT_NAME before TLS was started")]
    TlsRequired,
    /// `EXPORT_NAME` has no place for extended headers.
    #[error("the old option EXPORT_NAME after extended headers were agreed")]
    ExportNameWithExtendedHeaders,
}

impl CloseReason {
    /// The client left in the way the protocol foresees.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Aborted | Self::ExportRefused)
    }
}

/// A request that passed all checks: inside the export, aligned, permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Echoed in the reply.
    pub cookie: Cookie,
    /// What to do.
    pub operation: Operation,
    /// Start of the range in bytes; 0 for a flush.
    pub offset_bytes: u64,
    /// Length of the range in bytes; 0 only for a flush. Of a read or write at most `Limits::payload_bytes_max`; beyond
    /// 4 GiB only with extended headers.
    pub length_bytes: u64,
    /// Reply only when the data of this command is durable. Legal on every command.
    pub fua: bool,
}

impl Request {
    /// What its replies say of it.
    pub fn handle(&self) -> Handle {
        Handle { cookie: self.cookie, offset_bytes: self.offset_bytes }
    }
}

/// The command of a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read the range.
    Read {
        /// Answer in one chunk, or with `EOVERFLOW` if the range is longer than 64 KiB.
        dont_fragment: bool,
    },
    /// Write the range; `length_bytes` of payload follow.
    Write,
    /// Make every write answered so far durable.
    Flush,
    /// The contents are no longer needed.
    Trim,
    /// The range will be read soon; may do nothing.
    Cache,
    /// Write zeroes.
    WriteZeroes {
        /// Keep the range allocated.
        no_hole: bool,
        /// Fail quickly with `ENOTSUP` if this is no faster than a write.
        fast: bool,
    },
    /// Describe the allocation of the range: [`Session::reply_block_status`].
    BlockStatus {
        /// Answer with exactly one extent, no longer than the range.
        one_extent: bool,
    },
}

/// What a server has of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Nothing: the client is told so.
    #[default]
    Unavailable,
    /// The client may start it. Exports that want it are refused with `Refusal::TlsRequired` until it has.
    Optional,
    /// The client must start it before it asks for anything.
    Required,
}

impl Session {
    /// A session, without TLS, for a connection that was just accepted.
    pub fn new(limits: Limits) -> Self {
        Self::with_tls(limits, Tls::Unavailable)
    }

    /// A session for a connection that was just accepted.
    pub fn with_tls(limits: Limits, tls: Tls) -> Self {
        limits.check();
        Self { phase: Phase::Handshake(Handshake::new(limits, tls)) }
    }

    /// The bytes a server sends before anything else.
    pub fn greeting() -> [u8; wire::GREETING_BYTES] {
        handshake::greeting()
    }

    /// Takes bytes from the client. Returns how many of `input` were consumed and what to do next.
    /// Call in a loop, with the rest of the input even if that is empty, until `NeedMore`, `Busy`
    /// or `Close`. How the bytes are split over calls makes no difference.
    ///
    /// # Panics
    /// If payload of a WRITE has not been taken: its bytes would be read as requests.
    pub fn receive(&mut self, input: &[u8]) -> (usize, Outcome) {
        let mut rest = input;
        let outcome = match &mut self.phase {
            Phase::Handshake(handshake) => handshake.receive(&mut rest),
            Phase::Transmission(transmission) => transmission.receive(&mut rest),
            Phase::Closed(reason) => Outcome::Close { reason: *reason },
        };
        if let Outcome::Close { reason } = outcome {
            self.phase = Phase::Closed(reason);
        }
        if matches!(outcome, Outcome::NeedMore) {
            assert!(rest.is_empty());
        }
        (input.len() - rest.len(), outcome)
    }

    /// Answers `ListExports`. Returns the bytes to send.
    ///
    /// # Panics
    /// If that was not asked.
    pub fn answer_exports(&mut self, exports: &[ListedExport]) -> Vec<u8> {
        self.handshake().answer_exports(exports)
    }

    /// Answers `FindExport` or `OpenExport`. Returns the bytes to send; after `OpenExport` the
    /// transmission phase begins.
    ///
    /// # Panics
    /// If neither was asked, if the export cannot be expressed (see the fields' documentation), or
    /// if it advertises longer requests than `Limits::payload_bytes_max`.
    pub fn answer_export(&mut self, export: &ExportInfo) -> Vec<u8> {
        let (bytes, transmission) = self.handshake().answer_export(export);
        if let Some(transmission) = transmission {
            self.phase = Phase::Transmission(transmission);
        }
        bytes
    }

    /// Refuses what was asked (`ListExports`, `FindExport`, `OpenExport`); the client sees
    /// `message`. Returns `Send`, or `Close` for an old client that cannot be told.
    ///
    /// # Panics
    /// If nothing was asked.
    pub fn refuse(&mut self, refusal: Refusal, message: &str) -> Outcome {
        let outcome = self.handshake().refuse(refusal, message);
        if let Outcome::Close { reason } = outcome {
            self.phase = Phase::Closed(reason);
        }
        outcome
    }

    /// Payload bytes of the last WRITE that the caller has not taken yet.
    pub fn payload_pending_bytes(&self) -> u32 {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.payload_pending_bytes(),
            Phase::Handshake(_) | Phase::Closed(_) => 0,
        }
    }

    /// The caller took this many bytes of the payload of the last WRITE from the connection.
    ///
    /// # Panics
    /// If the payload is not that long.
    pub fn payload_taken(&mut self, bytes: u32) {
        self.transmission().payload_taken(bytes);
    }

    /// Requests handed out and not yet answered.
    pub fn requests_inflight(&self) -> u32 {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.requests_inflight(),
            Phase::Handshake(_) | Phase::Closed(_) => 0,
        }
    }

    /// Whether replies are structured, so that a read may be answered in several chunks.
    pub fn is_structured(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(transmission) if transmission.is_structured())
    }

    /// Whether the handshake goes on.
    pub fn is_negotiating(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Whether the client has said goodbye, and some of what it asked for before is not answered.
    pub fn is_disconnecting(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(transmission) if transmission.is_disconnecting())
    }

    /// Whether the transmission phase has been reached.
    pub fn is_transmitting(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    /// Bytes of input held inside the session; at most `Limits::option_data_bytes_max`.
    pub fn buffered_bytes(&self) -> usize {
        match &self.phase {
            Phase::Handshake(handshake) => handshake.buffered_bytes(),
            Phase::Transmission(transmission) => transmission.buffered_bytes(),
            Phase::Closed(_) => 0,
        }
    }

    /// Answers a request that succeeded and has no content. Also ends a read whose chunks were all
    /// sent with [`ChunkOrder::More`].
    ///
    /// # Panics
    /// As all reply functions: if no request is in flight, or the session is not transmitting.
    pub fn reply_done(&mut self, to: Handle) -> Header {
        self.transmission().reply_done(to)
    }

    /// Answers a request that failed. With structured replies the client gets the message (cut to
    /// about 160 bytes), and a read may fail after some of its chunks were sent.
    pub fn reply_error(&mut self, to: Handle, error: ErrorNumber, message: &str) -> ErrorReply {
        self.transmission().reply_error(to, error, message)
    }

    /// Answers a whole READ; the caller sends the header and then exactly the request's data.
    pub fn reply_read(&mut self, request: &Request) -> Header {
        self.transmission().reply_read(request)
    }

    /// A piece of the answer to a READ; the caller sends the header and then `length_bytes` of data.
    ///
    /// # Panics
    /// If replies are not structured.
    pub fn chunk_data(&mut self, to: Handle, offset_bytes: u64, length_bytes: u32, order: ChunkOrder) -> Header {
        self.transmission().chunk_data(to, offset_bytes, length_bytes, order)
    }

    /// A piece of the answer to a READ that reads as zeroes; no data follows.
    ///
    /// # Panics
    /// If replies are not structured.
    pub fn chunk_hole(&mut self, to: Handle, offset_bytes: u64, length_bytes: u32, order: ChunkOrder) -> Header {
        self.transmission().chunk_hole(to, offset_bytes, length_bytes, order)
    }

    /// Answers a BLOCK_STATUS: appends the complete reply to `out`. The extents are consecutive from
    /// the start of the range, of blocks; all but the last end inside the range. They may cover
    /// less than the range. If there is none, one is empty, or there are more than 2^20, the client
    /// gets an error.
    pub fn reply_block_status(&mut self, to: Handle, extents: &[Extent], out: &mut Vec<u8>) {
        self.transmission().reply_block_status(to, extents, out);
    }

    fn handshake(&mut self) -> &mut Handshake {
        match &mut self.phase {
            Phase::Handshake(handshake) => handshake,
            Phase::Transmission(_) | Phase::Closed(_) => panic!("an answer outside the handshake"),
        }
    }

    fn transmission(&mut self) -> &mut Transmission {
        match &mut self.phase {
            Phase::Transmission(transmission) => transmission,
            Phase::Handshake(_) | Phase::Closed(_) => panic!("a reply outside the transmission phase"),
        }
    }
}
