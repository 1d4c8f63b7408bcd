//! A request on its way, and what has come back for it so far.
//!
//! It checks that the pieces of a read fill the range exactly once, in whatever order they come.
//! It must never touch the connection.

use super::{Answer, ClientError, ServerError, protocol};
use crate::export::Extent;
use crate::wire::ErrorNumber;

/// What a request's reply contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Read,
    BlockStatus,
}

/// A request that is not completely answered.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) kind: Kind,
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u64,
    data: Vec<u8>,
    /// Start and end of the pieces received, relative to the request, in bytes.
    pieces: Vec<(usize, usize)>,
    extents: Vec<Extent>,
    error: Option<ServerError>,
}

impl Pending {
    pub(super) fn new(kind: Kind, offset_bytes: u64, length_bytes: u64) -> Self {
        let (data, pieces, extents) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind, offset_bytes, length_bytes, data, pieces, extents, error: None }
    }

    /// Where a piece of a read belongs.
    pub(super) fn data(&mut self, offset_bytes: u64, length_bytes: u32) -> Result<&mut [u8], ClientError> {
        let inside = offset_bytes.checked_sub(self.offset_bytes).is_some_and(|start| {
            start.checked_add(u64::from(length_bytes)).is_some_and(|end| end <= self.length_bytes)
        });
        if self.kind != Kind::Read || !inside {
            return protocol(format!("data at {offset_bytes}+{length_bytes} that was not asked for"));
        }
        let start = (offset_bytes - self.offset_bytes) as usize;
        let end = start + length_bytes as usize;
        if self.pieces.iter().any(|&(first, after)| start < after && first < end) {
            return protocol(format!("data at {offset_bytes}+{length_bytes} twice"));
        }
        self.pieces.push((start, end));
        self.data.resize(self.length_bytes as usize, 0);
        Ok(&mut self.data[start..end])
    }

    pub(super) fn extent(&mut self, extent: Extent) -> Result<(), ClientError> {
        if self.kind != Kind::BlockStatus || extent.length_bytes == 0 {
            return protocol("an extent that is empty or was not asked for");
        }
        self.extents.push(extent);
        Ok(())
    }

    /// The first error is kept.
    pub(super) fn fail(&mut self, error: ErrorNumber, message: String) {
        self.error.get_or_insert(ServerError { error, message });
    }

    /// The result, after the last chunk.
    pub(super) fn finish(self) -> Result<Result<Answer, ServerError>, ClientError> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        match self.kind {
            Kind::Plain => Ok(Ok(Answer::Done)),
            Kind::Read => {
                // The pieces do not overlap, so their sum tells whether they cover the request.
                let received: usize = self.pieces.iter().map(|(start, end)| end - start).sum();
                if received != self.length_bytes as usize {
                    return protocol(format!("{received} bytes for a read of {}", self.length_bytes));
                }
                Ok(Ok(Answer::Data(self.data)))
            }
            Kind::BlockStatus if self.extents.is_empty() => protocol("a block status without extents"),
            Kind::BlockStatus => Ok(Ok(Answer::Extents(self.extents))),
        }
    }
}
