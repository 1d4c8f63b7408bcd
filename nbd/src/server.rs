//! A thin blocking server: one connection, one thread, one request at a time.
//!
//! It is the simplest shell that drives a [`Session`], for tests, tools and as an example of how a
//! shell takes payload; the daemon has its own on the reactor. It decides nothing about the
//! protocol and must never know what stands behind a [`Backend`].

use crate::export::{ExportInfo, Extent, ListedExport, Refusal};
use crate::hangup;
use crate::limits::Limits;
use crate::reply::Handle;
use crate::session::{CloseReason, Operation, Outcome, Request, Session, Tls};
use crate::wire::{self, ErrorNumber};
use std::io::{self, Read, Write};
use std::sync::Arc;

const RECEIVE_BYTES: usize = 64 << 10;

/// The exports of a server.
pub trait Exports {
    /// All exports, for the client's listing.
    fn list(&self) -> Vec<ListedExport>;

    /// The export of this name, to be described.
    ///
    /// # Errors
    /// Why not, and a sentence for the client.
    fn find(&self, name: &str) -> Result<Arc<dyn Backend>, (Refusal, String)>;

    /// The export of this name, to be served to this client from now on.
    ///
    /// # Errors
    /// As [`Self::find`].
    fn open(&self, name: &str) -> Result<Arc<dyn Backend>, (Refusal, String)> {
        self.find(name)
    }

    /// Something was received from the client that has opened an export, and it ends with these bytes, at most as many as
    /// a goodbye has (see [`hangup::ends_with_goodbye`]). Requests before them are still to come.
    fn received(&self, _last: &[u8]) {}
}

/// A device. Ranges are inside the device and aligned to the minimum block size. A backend that
/// says so (`ExportInfo::features`) must be coherent over several connections.
pub trait Backend: Send + Sync {
    /// Size, block sizes and promises.
    fn info(&self) -> ExportInfo;

    /// Fills the buffer from the device.
    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), ErrorNumber>;

    /// Writes; with `fua`, durably.
    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), ErrorNumber>;

    /// Makes all finished writes durable.
    fn flush(&self) -> Result<(), ErrorNumber>;

    /// The range is no longer needed.
    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<(), ErrorNumber>;

    /// Zeroes the range; `no_hole`: keep it allocated.
    fn zero(&self, offset_bytes: u64, length_bytes: u64, no_hole: bool, fua: bool) -> Result<(), ErrorNumber>;

    /// Appends the allocation of a range: consecutive extents that cover exactly the range.
    fn extents(&self, offset_bytes: u64, length_bytes: u64, out: &mut Vec<Extent>) -> Result<(), ErrorNumber>;
}

/// Serves one connection until it ends. Returns why the session was closed, or `None` when the
/// client went away without a word. What it sent before it went away is still carried out, unheard: it may have been
/// followed by a goodbye.
///
/// # Errors
/// The connection failed.
pub fn serve(stream: impl Read + Write, exports: &dyn Exports, limits: Limits) -> io::Result<Option<CloseReason>> {
    serve_with_tls(Clear(stream), exports, limits, Tls::Unavailable)
}

/// A stream that can become one inside TLS.
pub trait Transport: Read + Write {
    /// From now on bytes are read and written inside TLS, of which this is the server. `received` was read too much, and
    /// is the beginning of what the client sends.
    ///
    /// # Errors
    /// There is no TLS. That the client breaks it is an error of reading or writing.
    fn start_tls(&mut self, received: &[u8]) -> io::Result<()>;
}

/// A stream without TLS.
struct Clear<S>(S);

impl<S: Read> Read for Clear<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<S: Write> Write for Clear<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<S: Read + Write> Transport for Clear<S> {
    fn start_tls(&mut self, _received: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// As [`serve`], to clients that may, or must, start TLS.
///
/// # Errors
/// The connection failed, or TLS on it.
pub fn serve_with_tls(
    stream: impl Transport,
    exports: &dyn Exports,
    limits: Limits,
    tls: Tls,
) -> io::Result<Option<CloseReason>> {
    let mut connection = Connection {
        stream,
        session: Session::with_tls(limits, tls),
        received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
        start: 0,
        end: 0,
        last: Vec::with_capacity(2 * wire::EXTENDED_HEADER_BYTES),
        backend: None,
        payload: Vec::new(),
        extents: Vec::new(),
        unheard: false,
    };
    connection.run(exports)
}

struct Connection<S> {
    stream: S,
    session: Session,
    received: Box<[u8]>,
    /// `received[start..end]` is not consumed yet.
    start: usize,
    end: usize,
    /// The last bytes of all that was received after the last payload: a goodbye may come in two parts.
    last: Vec<u8>,
    backend: Option<Arc<dyn Backend>>,
    payload: Vec<u8>,
    extents: Vec<Extent>,
    /// The client takes no more replies.
    unheard: bool,
}

impl<S: Transport> Connection<S> {
    fn run(&mut self, exports: &dyn Exports) -> io::Result<Option<CloseReason>> {
        self.send(&Session::greeting())?;
        loop {
            let (consumed, outcome) = self.session.receive(&self.received[self.start..self.end]);
            self.start += consumed;
            match outcome {
                Outcome::NeedMore => {
                    self.flush()?;
                    if !self.receive(exports)? {
                        return Ok(None);
                    }
                }
                Outcome::Busy => unreachable!("every question and request is answered at once"),
                Outcome::Send(bytes) => self.send(&bytes)?,
                Outcome::StartTls(bytes) => {
                    self.send(&bytes)?;
                    self.flush()?;
                    self.stream.start_tls(&self.received[self.start..self.end])?;
                    (self.start, self.end) = (0, 0);
                }
                Outcome::ListExports => {
                    let bytes = self.session.answer_exports(&exports.list());
                    self.send(&bytes)?;
                }
                Outcome::FindExport { name } => self.answer_export(exports.find(&name), false)?,
                Outcome::OpenExport { name } => {
                    self.answer_export(exports.open(&name), true)?;
                    // Requests may have come with the question.
                    exports.received(&self.last);
                }
                Outcome::Request(request) => self.request(&request, exports)?,
                Outcome::Close { reason } => {
                    self.flush()?;
                    return Ok(Some(reason));
                }
            }
        }
    }

    /// False if there is nothing more.
    fn receive(&mut self, exports: &dyn Exports) -> io::Result<bool> {
        self.start = 0;
        self.end = self.stream.read(&mut self.received)?;
        hangup::keep_last(&mut self.last, &self.received[..self.end]);
        if self.end > 0 && self.session.is_transmitting() {
            exports.received(&self.last);
        }
        Ok(self.end > 0)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.unheard {
            return Ok(());
        }
        let sent = self.stream.write_all(bytes);
        self.unless_gone(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = if self.unheard { Ok(()) } else { self.stream.flush() };
        self.unless_gone(flushed)
    }

    fn unless_gone(&mut self, sent: io::Result<()>) -> io::Result<()> {
        match sent {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.unheard = true;
                Ok(())
            }
            sent => sent,
        }
    }

    fn answer_export(&mut self, found: Result<Arc<dyn Backend>, (Refusal, String)>, keep: bool) -> io::Result<()> {
        match found {
            Ok(backend) => {
                let bytes = self.session.answer_export(&backend.info());
                self.backend = keep.then_some(backend);
                self.send(&bytes)
            }
            Err((refusal, message)) => match self.session.refuse(refusal, &message) {
                Outcome::Send(bytes) => self.send(&bytes),
                // The next call of receive says Close again.
                _ => Ok(()),
            },
        }
    }

    fn request(&mut self, request: &Request, exports: &dyn Exports) -> io::Result<()> {
        let backend = Arc::clone(self.backend.as_ref().expect("a request after an export was opened"));
        let Request { operation, offset_bytes, length_bytes, fua, .. } = *request;
        let handle = request.handle();
        let result = match operation {
            Operation::Read { .. } => {
                self.payload.resize(length_bytes as usize, 0);
                match backend.read(offset_bytes, &mut self.payload) {
                    Ok(()) => {
                        let header = self.session.reply_read(request);
                        self.send(&header)?;
                        let data = std::mem::take(&mut self.payload);
                        let sent = self.send(&data);
                        self.payload = data;
                        return sent;
                    }
                    Err(error) => Err(error),
                }
            }
            Operation::Write => {
                self.take_payload(length_bytes as u32, exports)?;
                backend.write(offset_bytes, &self.payload, fua)
            }
            Operation::Flush => backend.flush(),
            Operation::Trim => backend.trim(offset_bytes, length_bytes, fua),
            Operation::Cache => Ok(()),
            Operation::WriteZeroes { fast: true, .. } => Err(ErrorNumber::NotSupported),
            Operation::WriteZeroes { no_hole, fast: false } => backend.zero(offset_bytes, length_bytes, no_hole, fua),
            Operation::BlockStatus { one_extent } => {
                self.extents.clear();
                match backend.extents(offset_bytes, length_bytes, &mut self.extents) {
                    Ok(()) => return self.reply_block_status(handle, one_extent),
                    Err(error) => Err(error),
                }
            }
        };
        match result {
            Ok(()) => {
                let header = self.session.reply_done(handle);
                self.send(&header)
            }
            Err(error) => {
                let reply = self.session.reply_error(handle, error, "the device failed the request");
                self.send(&reply)
            }
        }
    }

    fn reply_block_status(&mut self, handle: Handle, one_extent: bool) -> io::Result<()> {
        if one_extent {
            self.extents.truncate(1);
        }
        let mut bytes = Vec::new();
        self.session.reply_block_status(handle, &self.extents, &mut bytes);
        self.send(&bytes)
    }

    /// Moves the payload of a WRITE into `self.payload`: first what is already in the receive
    /// buffer, the rest straight from the connection.
    fn take_payload(&mut self, length_bytes: u32, exports: &dyn Exports) -> io::Result<()> {
        let length = length_bytes as usize;
        self.payload.resize(length, 0);
        let present = length.min(self.end - self.start);
        self.payload[..present].copy_from_slice(&self.received[self.start..self.start + present]);
        self.start += present;
        if present < length {
            self.stream.read_exact(&mut self.payload[present..])?;
            self.last.clear(); // no goodbye begins inside payload
            exports.received(&self.last);
        }
        self.session.payload_taken(length_bytes);
        Ok(())
    }
}
