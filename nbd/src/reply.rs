//! Reply headers of the transmission phase as small values on the stack.
//!
//! A header is built without allocating, so that a caller can send it and the payload in one
//! vectored write without copying. Which kind of reply a client gets is the session's decision;
//! nothing here knows sessions.

use crate::export::Extent;
use crate::wire::{self, Cookie, ErrorNumber};
use std::fmt;
use std::ops::Deref;

/// Metadata context id the server gives to `base:allocation`.
pub(crate) const ALLOCATION_CONTEXT_ID: u32 = 1;

/// Up to `CAPACITY` bytes on the stack; dereferences to the bytes that are set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Short<const CAPACITY: usize> {
    bytes: [u8; CAPACITY],
    length: u8,
}

/// A reply header that payload may follow. The longest is a hole chunk.
pub type Header = Short<32>;

/// A complete error reply with its message, which is cut to fit.
pub type ErrorReply = Short<ERROR_REPLY_BYTES>;

const ERROR_REPLY_BYTES: usize = 192;

impl<const CAPACITY: usize> Short<CAPACITY> {
    const FITS: () = assert!(CAPACITY <= u8::MAX as usize);

    fn new() -> Self {
        let () = Self::FITS;
        Self { bytes: [0; CAPACITY], length: 0 }
    }

    fn push(mut self, bytes: &[u8]) -> Self {
        let start = usize::from(self.length);
        let end = start + bytes.len();
        self.bytes[start..end].copy_from_slice(bytes);
        self.length = end as u8;
        self
    }

    fn chunk(cookie: Cookie, last: bool, kind: u16, length_bytes: u32) -> Self {
        let flags = if last { wire::CHUNK_FLAG_DONE } else { 0 };
        Self::new()
            .push(&wire::MAGIC_REPLY_STRUCTURED.to_be_bytes())
            .push(&flags.to_be_bytes())
            .push(&kind.to_be_bytes())
            .push(&cookie.0.to_be_bytes())
            .push(&length_bytes.to_be_bytes())
    }

    fn simple(cookie: Cookie, error: u32) -> Self {
        Self::new()
            .push(&wire::MAGIC_REPLY_SIMPLE.to_be_bytes())
            .push(&error.to_be_bytes())
            .push(&cookie.0.to_be_bytes())
    }
}

impl<const CAPACITY: usize> Deref for Short<CAPACITY> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl<const CAPACITY: usize> fmt::Debug for Short<CAPACITY> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Short").field(&&**self).finish()
    }
}

/// Whether a chunk ends the reply to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkOrder {
    /// More chunks follow for the same cookie.
    More,
    /// The request is answered.
    Last,
}

/// Simple reply without error; the data of a read follows.
pub(crate) fn simple_done(cookie: Cookie) -> Header {
    Header::simple(cookie, 0)
}

/// Simple reply with an error; nothing follows.
pub(crate) fn simple_error(cookie: Cookie, error: ErrorNumber) -> ErrorReply {
    ErrorReply::simple(cookie, error.to_wire())
}

/// Structured reply without content that ends a request.
pub(crate) fn chunk_none(cookie: Cookie) -> Header {
    Header::chunk(cookie, true, wire::CHUNK_NONE, 0)
}

/// Chunk header that `length_bytes` of data follow.
pub(crate) fn chunk_data(cookie: Cookie, last: bool, offset_bytes: u64, length_bytes: u32) -> Header {
    let content_bytes = length_bytes.checked_add(8).expect("a data chunk longer than 4 GiB");
    Header::chunk(cookie, last, wire::CHUNK_OFFSET_DATA, content_bytes).push(&offset_bytes.to_be_bytes())
}

/// Chunk that says a range reads as zeroes; nothing follows.
pub(crate) fn chunk_hole(cookie: Cookie, last: bool, offset_bytes: u64, length_bytes: u32) -> Header {
    Header::chunk(cookie, last, wire::CHUNK_OFFSET_HOLE, 12)
        .push(&offset_bytes.to_be_bytes())
        .push(&length_bytes.to_be_bytes())
}

/// Structured error reply; ends the request.
pub(crate) fn chunk_error(cookie: Cookie, error: ErrorNumber, message: &str) -> ErrorReply {
    const PREFIX_BYTES: usize = 6;
    let room_bytes = ERROR_REPLY_BYTES - wire::REPLY_CHUNK_BYTES - PREFIX_BYTES;
    let message = cut(message, room_bytes);
    let content_bytes = PREFIX_BYTES + message.len();
    ErrorReply::chunk(cookie, true, wire::CHUNK_ERROR, content_bytes as u32)
        .push(&error.to_wire().to_be_bytes())
        .push(&(message.len() as u16).to_be_bytes())
        .push(message.as_bytes())
}

/// Appends a complete block status reply for `base:allocation`; ends the request.
pub(crate) fn block_status(cookie: Cookie, extents: &[Extent], out: &mut Vec<u8>) {
    let content_bytes = 4 + extents.len() * Extent::WIRE_BYTES;
    let header = Header::chunk(cookie, true, wire::CHUNK_BLOCK_STATUS, content_bytes as u32)
        .push(&ALLOCATION_CONTEXT_ID.to_be_bytes());
    out.reserve(header.len() + content_bytes);
    out.extend_from_slice(&header);
    out.extend(extents.iter().flat_map(|extent| extent.to_wire()));
}

/// The longest start of `text` that has at most `bytes_max` bytes and is whole characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

    #[test]
    fn simple_replies_by_exact_bytes() {
        let done = b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(&*simple_done(COOKIE), done);
        let failed = b"\x67\x44\x66\x98\0\0\0\x05\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(&*simple_error(COOKIE, ErrorNumber::Io), failed);
    }

    #[test]
    fn chunks_by_exact_bytes() {
        let none = b"\x66\x8e\x33\xef\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0";
        assert_eq!(&*chunk_none(COOKIE), none);
        let data = b"\x66\x8e\x33\xef\0\0\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\
            \0\0\0\0\0\0\x10\0";
        assert_eq!(&*chunk_data(COOKIE, false, 4096, 512), data);
        let hole = b"\x66\x8e\x33\xef\0\x01\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\
            \0\0\0\0\0\0\x10\0\0\0\x02\0";
        assert_eq!(&*chunk_hole(COOKIE, true, 4096, 512), hole);
        let error = b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x08\
            \0\0\0\x1c\0\x02no";
        assert_eq!(&*chunk_error(COOKIE, ErrorNumber::NoSpace, "no"), error);
    }

    #[test]
    fn block_status_by_exact_bytes() {
        let mut out = Vec::new();
        let extents = [
            Extent { length_bytes: 512, hole: false, zero: false },
            Extent { length_bytes: 1024, hole: true, zero: true },
        ];
        block_status(COOKIE, &extents, &mut out);
        let expected = b"\x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x14\
            \0\0\0\x01\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03";
        assert_eq!(out, expected);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let reply = chunk_error(COOKIE, ErrorNumber::Io, &"ä".repeat(500));
        assert_eq!(reply.len(), ERROR_REPLY_BYTES);
        assert_eq!(cut("aä", 2), "a");
    }
}
