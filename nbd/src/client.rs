//! A blocking NBD client over any `Read + Write`.
//!
//! It negotiates with GO, extended headers or else structured replies, and `base:allocation` as far as the server has them.
//! Requests may be pipelined: the `send_*` functions return a cookie at once, [`Client::receive`]
//! returns replies in the order the server gives them. The plain functions (`read`, `write`, ...)
//! send one request and wait for its reply. It is strict: whatever the protocol forbids a server
//! is a [`ClientError::Protocol`].
//!
//! It must never know what kind of server it talks to, and it retries nothing: after an error of
//! the connection it is dead, and what was in flight may or may not have been done.

mod handshake;
mod pending;
mod receive;
mod socket;

pub use socket::Socket;

use crate::export::{BlockSizes, Extent, Features, ListedExport};
use crate::uri::Uri;
use crate::wire::{self, Cookie, ErrorNumber, Headers};
use pending::{Kind, Pending};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufReader, Read, Write};

/// Longest chunk header content and message this client accepts from a server, in bytes.
const MESSAGE_BYTES_MAX: u32 = 64 << 10;

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Client<S: Read + Write> {
    stream: BufReader<S>,
    export: Negotiated,
    cookie_next: u64,
    pending: BTreeMap<Cookie, Pending>,
    /// Replies that came while another was waited for.
    ready: VecDeque<Reply>,
    dead: bool,
}

/// What server and client agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// What the export promises.
    pub features: Features,
    /// Block sizes, the protocol's defaults if the server gave none.
    pub block_sizes: BlockSizes,
    /// The headers of requests and replies.
    pub headers: Headers,
    /// Id of `base:allocation`, if block status is available.
    pub allocation_context: Option<u32>,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which request.
    pub cookie: Cookie,
    /// What came back, or the server's error. After an error the connection is still good.
    pub result: Result<Answer, ServerError>,
}

/// The content of a successful reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request has no content.
    Done,
    /// The bytes of a read, complete.
    Data(Vec<u8>),
    /// The extents of a block status.
    Extents(Vec<Extent>),
}

/// A request was answered with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server answered {error}: {message}")]
pub struct ServerError {
    /// The error number.
    pub error: ErrorNumber,
    /// The server's message; empty with simple replies.
    pub message: String,
}

/// Why a client call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed or timed out; requests in flight may or may not have been done.
    #[error("failed to talk to the server: {0}")]
    Io(#[source] io::Error),
    /// The server closed the connection; requests in flight may or may not have been done.
    #[error("the server closed the connection")]
    Closed,
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused an option, for example because the export is unknown.
    #[error("the server refused the option ({reply_type:#x}): {message}")]
    Refused {
        /// Option reply type, `wire::REPLY_ERR_*`.
        reply_type: u32,
        /// The server's message.
        message: String,
    },
    /// The request was answered with an error; the connection is good.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// An earlier error ended this connection.
    #[error("the connection is dead after an earlier error")]
    Dead,
    /// The length needs extended headers, which the server does not have; the connection is good.
    #[error("a length beyond 32 bits needs extended headers, which the server does not have")]
    TooLong,
    /// Nothing is in flight, so no reply can come.
    #[error("no request is in flight")]
    Idle,
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionAborted => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

fn protocol<T>(what: impl Into<String>) -> Result<T, ClientError> {
    Err(ClientError::Protocol(what.into()))
}

/// How a WRITE_ZEROES is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// Answer only when durable.
    pub fua: bool,
    /// Keep the range allocated.
    pub no_hole: bool,
    /// Fail with `ENOTSUP` if it is no faster than a write.
    pub fast: bool,
}

/// A request as the client sends it, unchecked: for tests that send what is forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    /// Command number, `wire::COMMAND_*`.
    pub command: u16,
    /// Command flags, `wire::COMMAND_FLAG_*`.
    pub flags: u16,
    /// Start of the range in bytes.
    pub offset_bytes: u64,
    /// Length of the range in bytes.
    pub length_bytes: u64,
}

impl Client<Socket> {
    /// Connects to a URI and opens its export.
    pub fn open(uri: &Uri) -> Result<Self, ClientError> {
        Self::connect(Socket::connect(&uri.address)?, &uri.export)
    }
}

impl<S: Read + Write> Client<S> {
    /// Negotiates on a fresh connection and opens the export.
    pub fn connect(stream: S, export: &str) -> Result<Self, ClientError> {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let export = handshake::go(&mut stream, export)?;
        Ok(Self { stream, export, cookie_next: 1, pending: BTreeMap::new(), ready: VecDeque::new(), dead: false })
    }

    /// Lists the exports on a fresh connection, and ends it.
    pub fn list(stream: S) -> Result<Vec<ListedExport>, ClientError> {
        handshake::list(&mut BufReader::new(stream))
    }

    /// What was agreed.
    pub fn export(&self) -> &Negotiated {
        &self.export
    }

    /// The connection, for example to set timeouts.
    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    /// Requests sent whose replies have not been received.
    pub fn requests_inflight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a READ.
    pub fn send_read(&mut self, offset_bytes: u64, length_bytes: u32) -> Result<Cookie, ClientError> {
        let length_bytes = u64::from(length_bytes);
        self.send(ClientRequest { command: wire::COMMAND_READ, flags: 0, offset_bytes, length_bytes }, &[])
    }

    /// Sends a WRITE. Blocks if the server takes no more: bound what is in flight.
    pub fn send_write(&mut self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<Cookie, ClientError> {
        let length_bytes = data.len() as u64;
        let command = wire::COMMAND_WRITE;
        self.send(ClientRequest { command, flags: fua_flag(fua), offset_bytes, length_bytes }, data)
    }

    /// Sends a FLUSH.
    pub fn send_flush(&mut self) -> Result<Cookie, ClientError> {
        self.send(ClientRequest { command: wire::COMMAND_FLUSH, flags: 0, offset_bytes: 0, length_bytes: 0 }, &[])
    }

    /// Sends a TRIM.
    pub fn send_trim(&mut self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<Cookie, ClientError> {
        let command = wire::COMMAND_TRIM;
        self.send(ClientRequest { command, flags: fua_flag(fua), offset_bytes, length_bytes }, &[])
    }

    /// Sends a WRITE_ZEROES.
    pub fn send_zeroes(
        &mut self,
        offset_bytes: u64,
        length_bytes: u64,
        options: ZeroOptions,
    ) -> Result<Cookie, ClientError> {
        let ZeroOptions { fua, no_hole, fast } = options;
        let no_hole = if no_hole { wire::COMMAND_FLAG_NO_HOLE } else { 0 };
        let fast = if fast { wire::COMMAND_FLAG_FAST_ZERO } else { 0 };
        let flags = fua_flag(fua) | no_hole | fast;
        self.send(ClientRequest { command: wire::COMMAND_WRITE_ZEROES, flags, offset_bytes, length_bytes }, &[])
    }

    /// Sends a BLOCK_STATUS.
    pub fn send_block_status(&mut self, offset_bytes: u64, length_bytes: u64) -> Result<Cookie, ClientError> {
        let command = wire::COMMAND_BLOCK_STATUS;
        self.send(ClientRequest { command, flags: 0, offset_bytes, length_bytes }, &[])
    }

    /// Sends any request, unchecked. The payload is sent as given.
    ///
    /// # Errors
    /// `TooLong` for a length beyond 32 bits without extended headers; nothing is sent then.
    pub fn send(&mut self, request: ClientRequest, payload: &[u8]) -> Result<Cookie, ClientError> {
        let ClientRequest { command, mut flags, offset_bytes, length_bytes } = request;
        let extended = self.export.headers == Headers::Extended;
        if !extended && length_bytes > u64::from(u32::MAX) {
            return Err(ClientError::TooLong);
        }
        if extended && command == wire::COMMAND_WRITE {
            flags |= wire::COMMAND_FLAG_PAYLOAD_LEN;
        }
        let cookie = Cookie(self.cookie_next);
        self.cookie_next += 1;
        let magic = if extended { wire::MAGIC_REQUEST_EXTENDED } else { wire::MAGIC_REQUEST };
        let mut header = Vec::with_capacity(wire::EXTENDED_HEADER_BYTES);
        header.extend_from_slice(&magic.to_be_bytes());
        header.extend_from_slice(&flags.to_be_bytes());
        header.extend_from_slice(&command.to_be_bytes());
        header.extend_from_slice(&cookie.0.to_be_bytes());
        header.extend_from_slice(&offset_bytes.to_be_bytes());
        if extended {
            header.extend_from_slice(&length_bytes.to_be_bytes());
        } else {
            header.extend_from_slice(&(length_bytes as u32).to_be_bytes());
        }
        let kind = match command {
            wire::COMMAND_READ => Kind::Read,
            wire::COMMAND_BLOCK_STATUS => Kind::BlockStatus,
            _ => Kind::Plain,
        };
        self.attempt(|client| {
            client.pending.insert(cookie, Pending::new(kind, offset_bytes, length_bytes));
            let stream = client.stream.get_mut();
            stream.write_all(&header)?;
            stream.write_all(payload)?;
            stream.flush()?;
            Ok(cookie)
        })
    }

    /// Waits for the next reply to any request.
    ///
    /// # Errors
    /// `Idle` if nothing is in flight; otherwise the connection is dead.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        if let Some(reply) = self.ready.pop_front() {
            return Ok(reply);
        }
        if self.pending.is_empty() && !self.dead {
            return Err(ClientError::Idle);
        }
        self.attempt(Self::receive_reply)
    }

    /// Waits for the reply to one request; replies to others are kept for [`Client::receive`].
    pub fn wait(&mut self, cookie: Cookie) -> Result<Answer, ClientError> {
        if let Some(index) = self.ready.iter().position(|reply| reply.cookie == cookie) {
            let reply = self.ready.remove(index).expect("a reply at a position just found");
            return Ok(reply.result?);
        }
        loop {
            if !self.pending.contains_key(&cookie) && !self.dead {
                return Err(ClientError::Idle);
            }
            let reply = self.attempt(Self::receive_reply)?;
            if reply.cookie == cookie {
                return Ok(reply.result?);
            }
            self.ready.push_back(reply);
        }
    }

    /// Reads a range.
    pub fn read(&mut self, offset_bytes: u64, length_bytes: u32) -> Result<Vec<u8>, ClientError> {
        let cookie = self.send_read(offset_bytes, length_bytes)?;
        match self.wait(cookie)? {
            Answer::Data(data) => Ok(data),
            answer => unreachable!("a read was answered with {answer:?}"),
        }
    }

    /// Writes a range.
    pub fn write(&mut self, offset_bytes: u64, data: &[u8]) -> Result<(), ClientError> {
        let cookie = self.send_write(offset_bytes, data, false)?;
        self.wait(cookie).map(drop)
    }

    /// Makes all answered writes durable.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let cookie = self.send_flush()?;
        self.wait(cookie).map(drop)
    }

    /// Trims a range.
    pub fn trim(&mut self, offset_bytes: u64, length_bytes: u64) -> Result<(), ClientError> {
        let cookie = self.send_trim(offset_bytes, length_bytes, false)?;
        self.wait(cookie).map(drop)
    }

    /// Zeroes a range.
    pub fn zero(&mut self, offset_bytes: u64, length_bytes: u64) -> Result<(), ClientError> {
        let cookie = self.send_zeroes(offset_bytes, length_bytes, ZeroOptions::default())?;
        self.wait(cookie).map(drop)
    }

    /// Asks for the allocation of a range; the answer may cover less or more than was asked.
    pub fn block_status(&mut self, offset_bytes: u64, length_bytes: u64) -> Result<Vec<Extent>, ClientError> {
        let cookie = self.send_block_status(offset_bytes, length_bytes)?;
        match self.wait(cookie)? {
            Answer::Extents(extents) => Ok(extents),
            answer => unreachable!("a block status was answered with {answer:?}"),
        }
    }

    /// Says goodbye, receives the replies still in flight and waits until the server closes.
    pub fn disconnect(mut self) -> Result<Vec<Reply>, ClientError> {
        let disc = ClientRequest { command: wire::COMMAND_DISC, flags: 0, offset_bytes: 0, length_bytes: 0 };
        let cookie = self.send(disc, &[])?;
        self.pending.remove(&cookie);
        let mut replies = Vec::from(std::mem::take(&mut self.ready));
        while !self.pending.is_empty() {
            replies.push(self.receive()?);
        }
        match self.stream.read(&mut [0])? {
            0 => Ok(replies),
            _ => protocol("bytes after the last reply"),
        }
    }

    /// Runs `action` unless the connection is dead; an error kills it.
    fn attempt<T>(&mut self, action: impl FnOnce(&mut Self) -> Result<T, ClientError>) -> Result<T, ClientError> {
        if self.dead {
            return Err(ClientError::Dead);
        }
        let result = action(self);
        self.dead = result.is_err();
        result
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { wire::COMMAND_FLAG_FUA } else { 0 }
}

fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], ClientError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
