//! Replies, from bytes to [`Reply`].
//!
//! Chunks of several replies may be mixed; each is put where its cookie says. It must never send.

use super::pending::{Kind, Pending};
use super::{Client, ClientError, MESSAGE_BYTES_MAX, Reply, protocol, take};
use crate::export::Extent;
use crate::wire::{self, Cookie, ErrorNumber, Headers};
use std::io::{BufReader, Read, Write};

impl<S: Read + Write> Client<S> {
    /// Reads chunks until one request is answered.
    pub(super) fn receive_reply(&mut self) -> Result<Reply, ClientError> {
        loop {
            let magic = u32::from_be_bytes(self.bytes()?);
            let (cookie, last) = match magic {
                wire::MAGIC_REPLY_SIMPLE if self.export.headers != Headers::Extended => (self.simple_reply()?, true),
                wire::MAGIC_REPLY_STRUCTURED if self.export.headers == Headers::Structured => self.chunk()?,
                wire::MAGIC_REPLY_EXTENDED if self.export.headers == Headers::Extended => self.chunk()?,
                _ => return protocol(format!("wrong reply magic {magic:#x}")),
            };
            if last {
                let pending = self.pending.remove(&cookie).expect("a reply to a request just looked up");
                return Ok(Reply { cookie, result: pending.finish()? });
            }
        }
    }

    fn simple_reply(&mut self) -> Result<Cookie, ClientError> {
        let error = u32::from_be_bytes(self.bytes()?);
        let cookie = Cookie(u64::from_be_bytes(self.bytes()?));
        let structured = self.export.headers.is_structured();
        let (pending, stream) = self.pending(cookie)?;
        if error != 0 {
            pending.fail(ErrorNumber::from_wire(error), String::new());
        } else if pending.kind == Kind::BlockStatus || (structured && pending.kind == Kind::Read) {
            return protocol("a simple reply where a structured reply was agreed");
        } else if pending.kind == Kind::Read {
            let (offset, length) = (pending.offset_bytes, pending.length_bytes as u32); // the server took it
            stream.read_exact(pending.data(offset, length)?)?;
        }
        Ok(cookie)
    }

    /// One chunk. Returns its cookie and whether it is the last.
    fn chunk(&mut self) -> Result<(Cookie, bool), ClientError> {
        let flags = u16::from_be_bytes(self.bytes()?);
        let kind = u16::from_be_bytes(self.bytes()?);
        let cookie = Cookie(u64::from_be_bytes(self.bytes()?));
        let (offset, length) = match self.export.headers {
            Headers::Extended => (Some(u64::from_be_bytes(self.bytes()?)), u64::from_be_bytes(self.bytes()?)),
            Headers::Simple | Headers::Structured => (None, u64::from(u32::from_be_bytes(self.bytes()?))),
        };
        let Ok(length) = u32::try_from(length) else { return protocol(format!("a chunk of {length} bytes")) };
        let context = self.export.allocation_context;
        let last = flags & wire::CHUNK_FLAG_DONE != 0;
        let (pending, stream) = self.pending(cookie)?;
        if offset.is_some_and(|offset| offset != pending.offset_bytes) {
            return protocol("a reply that names another offset than its request");
        }
        match kind {
            wire::CHUNK_NONE if length == 0 && last => {}
            wire::CHUNK_OFFSET_DATA if length > 8 => {
                let offset = u64::from_be_bytes(take(stream)?);
                stream.read_exact(pending.data(offset, length - 8)?)?;
            }
            wire::CHUNK_OFFSET_HOLE if length == 12 => {
                let offset = u64::from_be_bytes(take(stream)?);
                let hole = u32::from_be_bytes(take(stream)?);
                if hole == 0 {
                    return protocol("an empty hole");
                }
                pending.data(offset, hole)?.fill(0);
            }
            wire::CHUNK_BLOCK_STATUS if length >= 12 && length % 8 == 4 => {
                if Some(u32::from_be_bytes(take(stream)?)) != context {
                    return protocol("block status for a context that was not chosen");
                }
                for _ in 0..length / 8 {
                    let extent = u32::from_be_bytes(take(stream)?);
                    let state = u32::from_be_bytes(take(stream)?);
                    pending.extent(Extent::from_wire(u64::from(extent), state))?;
                }
            }
            wire::CHUNK_BLOCK_STATUS_EXT if offset.is_some() && length >= 24 && length % 16 == 8 => {
                if Some(u32::from_be_bytes(take(stream)?)) != context {
                    return protocol("block status for a context that was not chosen");
                }
                if u32::from_be_bytes(take(stream)?) != length / 16 {
                    return protocol("a number of extents that does not match the chunk");
                }
                for _ in 0..length / 16 {
                    let extent = u64::from_be_bytes(take(stream)?);
                    let state = u64::from_be_bytes(take(stream)?);
                    pending.extent(Extent::from_wire(extent, state as u32))?; // what base:allocation says is in these
                }
            }
            _ if kind & wire::CHUNK_ERROR_BIT != 0 && (6..=MESSAGE_BYTES_MAX).contains(&length) => {
                let error = u32::from_be_bytes(take(stream)?);
                let message_bytes = usize::from(u16::from_be_bytes(take(stream)?));
                let mut rest = vec![0; length as usize - 6];
                stream.read_exact(&mut rest)?;
                let Some(message) = rest.get(..message_bytes) else {
                    return protocol("an error message longer than its chunk");
                };
                pending.fail(ErrorNumber::from_wire(error), String::from_utf8_lossy(message).into_owned());
            }
            _ => return protocol(format!("chunk type {kind} with {length} bytes and flags {flags:#x}")),
        }
        Ok((cookie, last))
    }

    fn pending(&mut self, cookie: Cookie) -> Result<(&mut Pending, &mut BufReader<S>), ClientError> {
        match self.pending.get_mut(&cookie) {
            Some(pending) => Ok((pending, &mut self.stream)),
            None => protocol(format!("a reply to the unknown cookie {}", cookie.0)),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        take(&mut self.stream)
    }
}
