//! Operations in flight, each with the memory that the kernel uses for it.

use super::Completion;
use super::outbox::Segment;
use ashlar_model::{AlignedBuffer, Pieces};
use io_uring::types;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

#[derive(Debug)]
pub(super) enum Operation {
    Bell { buffer: Box<[u8; 8]> },
    Timer { time: Box<types::Timespec> },
    Accept { key: u64 },
    Connect { key: u64, address: Box<libc::sockaddr_storage> },
    Receive { key: u64, buffer: Vec<u8> },
    Send { key: u64, message: Box<SendMessage> },
    Read { key: u64, buffer: AlignedBuffer },
    Write { key: u64, write: VectoredWrite },
    Flush { key: u64 },
    Discard { key: u64 },
}

fn checked(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl Operation {
    /// Reads, writes and flushes of devices.
    pub fn is_on_device(&self) -> bool {
        matches!(self, Operation::Read { .. } | Operation::Write { .. } | Operation::Flush { .. })
    }

    /// What the kernel's answer means.
    pub fn complete(self, result: i32) -> Completion {
        let result = checked(result);
        match self {
            Operation::Bell { buffer } => {
                drop(buffer);
                Completion::Rung
            }
            Operation::Timer { time } => {
                drop(time);
                Completion::Expired
            }
            Operation::Accept { key } => {
                // SAFETY: the kernel just gave this process a new descriptor that nobody else owns.
                let result = result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) });
                Completion::Accepted { key, result }
            }
            Operation::Connect { key, address } => {
                drop(address);
                Completion::Connected { key, result: result.map(|_| ()) }
            }
            Operation::Receive { key, buffer } => Completion::Received { key, buffer, result },
            Operation::Send { key, message } => {
                let result = result.and_then(|sent| {
                    if sent == message.bytes { Ok(sent) } else { Err(io::ErrorKind::WriteZero.into()) }
                });
                Completion::Sent { key, result }
            }
            Operation::Read { key, buffer } => Completion::Read { key, buffer, result },
            Operation::Write { key, write } => {
                Completion::Written { key, result: result.map(|written| written == write.bytes) }
            }
            Operation::Flush { key } => Completion::Flushed { key, result: result.map(|_| ()) },
            Operation::Discard { key } => {
                let result = match result {
                    Ok(_) => Ok(true),
                    Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
                    Err(error) => Err(error),
                };
                Completion::Discarded { key, result }
            }
        }
    }
}

/// A gathered send. The vectors point into the segments, the header at the vectors.
#[derive(Debug)]
pub(super) struct SendMessage {
    segments: Vec<Segment>,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
    bytes: usize,
}

impl SendMessage {
    pub fn new(segments: Vec<Segment>) -> Self {
        let bytes = segments.iter().map(|segment| segment.len()).sum();
        // SAFETY: all zeroes is a valid, empty message header.
        let header = unsafe { std::mem::zeroed() };
        Self { segments, vectors: Vec::new(), header, bytes }
    }

    /// Points the header at the memory; the message is in its final place by now.
    pub fn link(&mut self) {
        self.vectors = self.segments.iter().map(|segment| vector(segment)).collect();
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
    }

    pub fn header(&self) -> *const libc::msghdr {
        &raw const self.header
    }
}

/// A gathered device write.
#[derive(Debug)]
pub(super) struct VectoredWrite {
    parts: Pieces,
    vectors: Vec<libc::iovec>,
    bytes: usize,
}

impl VectoredWrite {
    pub fn new(parts: Pieces) -> Self {
        let bytes = parts.iter().map(|part| part.len()).sum();
        Self { parts, vectors: Vec::new(), bytes }
    }

    pub fn link(&mut self) {
        if self.parts.len() > 1 {
            self.vectors = self.parts.iter().map(|part| vector(part)).collect();
        }
    }

    /// The bytes, if they lie in one piece: the kernel then has no list to read.
    pub fn whole(&self) -> Option<(*const u8, u32)> {
        match &self.parts[..] {
            [part] => Some((part.as_ptr(), part.len() as u32)),
            _ => None,
        }
    }

    pub fn vectors(&self) -> (*const libc::iovec, u32) {
        (self.vectors.as_ptr(), self.vectors.len() as u32)
    }
}

fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// Operations by slot number. A slot is used again only after its completion has been taken.
#[derive(Debug, Default)]
pub(super) struct Slab {
    slots: Vec<Option<Operation>>,
    free: Vec<usize>,
}

impl Slab {
    pub fn insert(&mut self, operation: Operation) -> (u64, &mut Operation) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        (slot as u64, self.slots[slot].insert(operation))
    }

    pub fn remove(&mut self, slot: u64) -> Operation {
        let slot = slot as usize;
        let operation = self.slots[slot].take().expect("the kernel answers each operation once");
        self.free.push(slot);
        operation
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn leak_rest(self) {
        std::mem::forget(self.slots);
    }
}
