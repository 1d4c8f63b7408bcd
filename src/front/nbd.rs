//! One NBD connection between its protocol session and a volume: byte ranges become block ranges, replies become
//! segments. Pure: it sees no socket, and the volume only as requests and outcomes.

mod reply;
mod steps;
#[cfg(test)]
mod tests;

use crate::reactor::Outbox;
use crate::volume::{ClientRequest, Operation, Outcome, RequestId};
use ashlar_model::VolumeId;
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::limits::REQUEST_BYTES_MAX;
use ashlar_nbd::export::{BlockSizes, ExportInfo, Features, ListedExport, Refusal};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{self, Operation as Command, Session};
use rustc_hash::FxHashMap;
use steps::Steps;

/// A connection's output above which no further request is taken from it.
const OUTBOX_BYTES_MAX: usize = 64 << 20;

/// Longest read or write that clients are told of, in bytes: what all of them can do, and what they assume if they do not ask.
const ADVERTISED_BYTES_MAX: u32 = 32 << 20;

// Requests are counted by their length: the session admits none that the volume would not.
const _: () = {
    assert!(Limits::PRODUCTION.payload_bytes_max as usize == REQUEST_BYTES_MAX);
    assert!(ADVERTISED_BYTES_MAX as usize <= REQUEST_BYTES_MAX);
};

/// What the connection wants from the node.
#[derive(Debug)]
pub enum Want {
    /// Answer with [`NbdDoor::exports`].
    List,
    /// Answer with [`NbdDoor::export`] or [`NbdDoor::refuse`]; the volume is not attached for it.
    Find {
        /// Export name.
        name: String,
    },
    /// Attach the volume and answer with [`NbdDoor::opened`] or [`NbdDoor::refuse`].
    Open {
        /// Export name.
        name: String,
    },
    /// The clear text has ended: what the door has not taken, and all that comes, goes through TLS first.
    StartTls,
    /// Give this to the connection's volume.
    Request(ClientRequest),
    /// Send what the outbox holds, then close.
    Close {
        /// For the log.
        reason: String,
        /// The guest asked for it, or just went away.
        orderly: bool,
    },
}

/// A write whose payload is still arriving.
struct Arriving {
    request: session::Request,
    buffer: AlignedBuffer,
    /// Where the payload begins in the buffer.
    offset: usize,
    filled: usize,
}

/// A guest's request under way.
struct Pending {
    request: session::Request,
    steps: Steps,
}

/// One connection.
pub struct NbdDoor {
    session: Session,
    volume: Option<VolumeId>,
    arriving: Option<Arriving>,
    pending: FxHashMap<RequestId, Pending>,
    bytes_in_flight: usize,
    closed: bool,
}

impl NbdDoor {
    /// A new connection; the greeting goes out first.
    pub fn new(outbox: &mut Outbox, tls: session::Tls) -> Self {
        outbox.bytes(&Session::greeting());
        Self {
            session: Session::with_tls(Limits::PRODUCTION, tls),
            volume: None,
            arriving: None,
            pending: FxHashMap::default(),
            bytes_in_flight: 0,
            closed: false,
        }
    }

    /// The volume that it serves.
    pub fn volume(&self) -> Option<VolumeId> {
        self.volume
    }

    /// Bytes of requests under way, without what has been announced and has not arrived: a guest that stops in a write, or
    /// is slow, keeps no room from others.
    pub fn bytes_in_flight(&self) -> usize {
        let missing = self.arriving.as_ref().map_or(0, |write| write.request.length_bytes as usize - write.filled);
        self.bytes_in_flight - missing
    }

    /// Still in the handshake.
    pub fn is_negotiating(&self) -> bool {
        self.session.is_negotiating()
    }

    /// The client has said goodbye, and is owed what it asked for before.
    pub fn is_disconnecting(&self) -> bool {
        self.session.is_disconnecting()
    }

    /// Takes received bytes and returns how many; the rest must be given again later. `room` says whether the volume
    /// takes another request, given the bytes in flight on this connection.
    pub fn receive(
        &mut self,
        input: &[u8],
        outbox: &mut Outbox,
        wants: &mut Vec<Want>,
        next_id: &mut u64,
        room: impl Fn(usize) -> bool,
    ) -> usize {
        let mut taken = 0;
        // Behind a goodbye there is nothing but its end, which must come though the client takes no replies.
        while !self.closed && (outbox.len() < OUTBOX_BYTES_MAX || self.session.is_disconnecting()) {
            if self.arriving.is_some() {
                taken += self.take_payload(&input[taken..], outbox, wants, next_id);
                if self.arriving.is_some() {
                    return taken;
                }
                continue;
            }
            if self.volume.is_some() && !room(self.bytes_in_flight) {
                return taken;
            }
            let (some, outcome) = self.session.receive(&input[taken..]);
            taken += some;
            match outcome {
                session::Outcome::NeedMore | session::Outcome::Busy => return taken,
                session::Outcome::Send(bytes) => outbox.bytes(&bytes),
                session::Outcome::StartTls(bytes) => {
                    outbox.bytes(&bytes);
                    wants.push(Want::StartTls);
                    return taken;
                }
                session::Outcome::ListExports => wants.push(Want::List),
                session::Outcome::FindExport { name } => wants.push(Want::Find { name }),
                session::Outcome::OpenExport { name } => wants.push(Want::Open { name }),
                session::Outcome::Request(request) => self.begin(request, outbox, wants, next_id),
                session::Outcome::Close { reason } => {
                    self.closed = true;
                    wants.push(Want::Close { reason: reason.to_string(), orderly: reason.is_orderly() });
                }
            }
        }
        taken
    }

    fn take_payload(&mut self, input: &[u8], outbox: &mut Outbox, wants: &mut Vec<Want>, next_id: &mut u64) -> usize {
        let arriving = self.arriving.as_mut().expect("checked by the caller");
        let left = arriving.request.length_bytes as usize - arriving.filled;
        let some = left.min(input.len());
        let at = arriving.offset + arriving.filled;
        arriving.buffer[at..at + some].copy_from_slice(&input[..some]);
        arriving.filled += some;
        self.session.payload_taken(some as u32);
        if some == left {
            let Arriving { request, buffer, .. } = self.arriving.take().expect("looked at above");
            self.start(request, Steps::write(&request, buffer), outbox, wants, next_id);
        }
        some
    }

    fn begin(&mut self, request: session::Request, outbox: &mut Outbox, wants: &mut Vec<Want>, next_id: &mut u64) {
        self.bytes_in_flight += steps::bytes_under_way(&request);
        match request.operation {
            Command::Write => {
                let range = steps::covering(request.offset_bytes, request.length_bytes);
                let offset = (request.offset_bytes % ashlar_model::units::BLOCK_BYTES as u64) as usize;
                // What the client does not fill, old content will.
                let whole = request.length_bytes == range.bytes() as u64;
                let buffer =
                    if whole { AlignedBuffer::recycled(range.bytes()) } else { AlignedBuffer::zeroed(range.bytes()) };
                self.arriving = Some(Arriving { request, buffer, offset, filled: 0 });
            }
            // Everything acknowledged is durable on a quorum: a flush has nothing left to do.
            Command::Flush | Command::Cache => self.done(&request, outbox),
            // Writing zeroes out is no faster than writing.
            Command::WriteZeroes { no_hole: true, fast: true } => {
                self.release(&request);
                let number = ashlar_nbd::wire::ErrorNumber::NotSupported;
                let message = "zeroes without a hole are written like data";
                outbox.bytes(&self.session.reply_error(request.handle(), number, message));
            }
            _ => self.start(request, Steps::of(&request), outbox, wants, next_id),
        }
    }

    fn start(
        &mut self,
        request: session::Request,
        mut steps: Steps,
        outbox: &mut Outbox,
        wants: &mut Vec<Want>,
        next_id: &mut u64,
    ) {
        match steps.next() {
            Some(operation) => self.request(request, steps, operation, wants, next_id),
            None => self.done(&request, outbox), // a trim of less than a block
        }
    }

    fn request(
        &mut self,
        request: session::Request,
        steps: Steps,
        operation: Operation,
        wants: &mut Vec<Want>,
        next_id: &mut u64,
    ) {
        *next_id += 1;
        let id = RequestId(*next_id);
        self.pending.insert(id, Pending { request, steps });
        wants.push(Want::Request(ClientRequest { id, operation }));
    }

    /// The volume answered.
    pub fn outcome(
        &mut self,
        id: RequestId,
        outcome: Outcome,
        outbox: &mut Outbox,
        wants: &mut Vec<Want>,
        next_id: &mut u64,
    ) {
        let Some(Pending { request, mut steps }) = self.pending.remove(&id) else { return };
        if self.closed {
            return;
        }
        match outcome {
            Outcome::Written => match steps.next() {
                Some(operation) => self.request(request, steps, operation, wants, next_id),
                None => self.done(&request, outbox),
            },
            Outcome::Read(runs) => {
                self.release(&request);
                reply::read(&mut self.session, &request, &runs, outbox);
            }
            Outcome::Map(runs) => {
                steps.found(&runs);
                match steps.next() {
                    Some(operation) => self.request(request, steps, operation, wants, next_id),
                    None => {
                        self.release(&request);
                        reply::block_status(&mut self.session, &request, steps.map(), outbox);
                    }
                }
            }
            Outcome::Failed(failure) => {
                self.release(&request);
                reply::failure(&mut self.session, &request, &failure, outbox);
            }
        }
    }

    fn release(&mut self, request: &session::Request) {
        self.bytes_in_flight -= steps::bytes_under_way(request);
    }

    fn done(&mut self, request: &session::Request, outbox: &mut Outbox) {
        self.release(request);
        outbox.bytes(&self.session.reply_done(request.handle()));
    }

    /// Answers [`Want::List`].
    pub fn exports(&mut self, names: impl Iterator<Item = String>, outbox: &mut Outbox) {
        let exports: Vec<ListedExport> = names.map(|name| ListedExport { name, description: String::new() }).collect();
        outbox.bytes(&self.session.answer_exports(&exports));
    }

    /// Answers [`Want::Find`].
    pub fn export(&mut self, name: &str, size_bytes: u64, read_only: bool, outbox: &mut Outbox) {
        outbox.bytes(&self.session.answer_export(&info(name, size_bytes, read_only)));
    }

    /// Answers [`Want::Open`]: the volume is attached here.
    pub fn opened(&mut self, volume: VolumeId, name: &str, size_bytes: u64, read_only: bool, outbox: &mut Outbox) {
        self.volume = Some(volume);
        outbox.bytes(&self.session.answer_export(&info(name, size_bytes, read_only)));
        if !self.session.is_transmitting() {
            self.volume = None; // the client will ask again
        }
    }

    /// Answers [`Want::Find`] and [`Want::Open`]: no.
    pub fn refuse(&mut self, refusal: Refusal, message: &str, outbox: &mut Outbox, wants: &mut Vec<Want>) {
        match self.session.refuse(refusal, message) {
            session::Outcome::Send(bytes) => outbox.bytes(&bytes),
            session::Outcome::Close { reason } => {
                self.closed = true;
                wants.push(Want::Close { reason: reason.to_string(), orderly: reason.is_orderly() });
            }
            _ => {}
        }
    }
}

/// What every volume offers.
fn info(name: &str, size_bytes: u64, read_only: bool) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: None,
        size_bytes,
        block_sizes: BlockSizes { min_bytes: 512, preferred_bytes: 4096, max_bytes: ADVERTISED_BYTES_MAX },
        features: Features { read_only, ..Features::ALL },
    }
}
