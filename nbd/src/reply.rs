//! Reply headers of the transmission phase as small values on the stack.
//!
//! A header is built without allocating, so that a caller can send it and the payload in one
//! vectored write without copying. Which kind of reply a client gets is the session's decision;
//! nothing here knows sessions.

use crate::export::Extent;
use crate::wire::{self, Cookie, ErrorNumber, Headers};
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

/// A reply header that payload may follow. The longest is an extended hole chunk.
pub type Header = Short<48>;

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

    fn chunk(headers: Headers, to: Handle, last: bool, kind: u16, length_bytes: u32) -> Self {
        let flags = if last { wire::CHUNK_FLAG_DONE } else { 0 };
        let extended = headers == Headers::Extended;
        let magic = if extended { wire::MAGIC_REPLY_EXTENDED } else { wire::MAGIC_REPLY_STRUCTURED };
        let start = Self::new()
            .push(&magic.to_be_bytes())
            .push(&flags.to_be_bytes())
            .push(&kind.to_be_bytes())
            .push(&to.cookie.0.to_be_bytes());
        if extended {
            start.push(&to.offset_bytes.to_be_bytes()).push(&u64::from(length_bytes).to_be_bytes())
        } else {
            start.push(&length_bytes.to_be_bytes())
        }
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

/// What a reply says of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The client's name for it.
    pub cookie: Cookie,
    /// Its offset, as the client gave it; only extended headers repeat that.
    pub offset_bytes: u64,
}

/// Whether a chunk ends the reply to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkOrder {
    /// More chunks follow for the same cookie.
    More,
    /// The request is answered.
    Last,
}

/// Reply without error and without content that ends a request. As a simple one, the data of a read follows.
pub(crate) fn done(headers: Headers, to: Handle) -> Header {
    match headers {
        Headers::Simple => Header::simple(to.cookie, 0),
        _ => Header::chunk(headers, to, true, wire::CHUNK_NONE, 0),
    }
}

/// Chunk header that `length_bytes` of data follow.
pub(crate) fn data(headers: Headers, to: Handle, last: bool, offset_bytes: u64, length_bytes: u32) -> Header {
    let content_bytes = length_bytes.checked_add(8).expect("a data chunk longer than 4 GiB");
    Header::chunk(headers, to, last, wire::CHUNK_OFFSET_DATA, content_bytes).push(&offset_bytes.to_be_bytes())
}

/// Chunk that says a range reads as zeroes; nothing follows.
pub(crate) fn hole(headers: Headers, to: Handle, last: bool, offset_bytes: u64, length_bytes: u32) -> Header {
    Header::chunk(headers, to, last, wire::CHUNK_OFFSET_HOLE, 12)
        .push(&offset_bytes.to_be_bytes())
        .push(&length_bytes.to_be_bytes())
}

/// Error reply; ends the request. A simple one has no room for the message.
pub(crate) fn error(headers: Headers, to: Handle, error: ErrorNumber, message: &str) -> ErrorReply {
    const PREFIX_BYTES: usize = 6;
    let header_bytes = match headers {
        Headers::Simple => return ErrorReply::simple(to.cookie, error.to_wire()),
        Headers::Structured => wire::REPLY_CHUNK_BYTES,
        Headers::Extended => wire::EXTENDED_HEADER_BYTES,
    };
    let message = cut(message, ERROR_REPLY_BYTES - header_bytes - PREFIX_BYTES);
    let content_bytes = PREFIX_BYTES + message.len();
    ErrorReply::chunk(headers, to, true, wire::CHUNK_ERROR, content_bytes as u32)
        .push(&error.to_wire().to_be_bytes())
        .push(&(message.len() as u16).to_be_bytes())
        .push(message.as_bytes())
}

/// Appends a complete block status reply for `base:allocation`; ends the request. An extent that is too long for the
/// client is cut, and what comes after it left out: a reply may cover less than was asked for.
pub(crate) fn block_status(headers: Headers, to: Handle, extents: &[Extent], out: &mut Vec<u8>) {
    let context = ALLOCATION_CONTEXT_ID.to_be_bytes();
    if headers == Headers::Extended {
        let content_bytes = 8 + extents.len() * 16;
        out.reserve(wire::EXTENDED_HEADER_BYTES + content_bytes);
        let kind = wire::CHUNK_BLOCK_STATUS_EXT;
        out.extend_from_slice(&Header::chunk(headers, to, true, kind, content_bytes as u32).push(&context));
        out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
        for extent in extents {
            out.extend_from_slice(&extent.length_bytes.to_be_bytes());
            out.extend_from_slice(&u64::from(extent.state()).to_be_bytes());
        }
        return;
    }
    let longer = extents.iter().position(|extent| extent.length_bytes > Extent::COMPACT_BYTES_MAX);
    let extents = &extents[..longer.map_or(extents.len(), |at| at + 1)];
    let content_bytes = 4 + extents.len() * 8;
    out.reserve(wire::REPLY_CHUNK_BYTES + content_bytes);
    let kind = wire::CHUNK_BLOCK_STATUS;
    out.extend_from_slice(&Header::chunk(headers, to, true, kind, content_bytes as u32).push(&context));
    for extent in extents {
        out.extend_from_slice(&(extent.length_bytes.min(Extent::COMPACT_BYTES_MAX) as u32).to_be_bytes());
        out.extend_from_slice(&extent.state().to_be_bytes());
    }
}

/// The longest start of `text` that has at most `bytes_max` bytes and is whole characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use Headers::{Extended, Simple, Structured};

    const TO: Handle = Handle { cookie: Cookie(0x0102_0304_0506_0708), offset_bytes: 0x1112_1314_1516_1718 };

    /// Magic, flags, type and cookie of a chunk.
    fn start(headers: Headers, flags: u8, kind: [u8; 2]) -> Vec<u8> {
        let magic = if headers == Extended { [0x6e, 0x8a, 0x27, 0x8c] } else { [0x66, 0x8e, 0x33, 0xef] };
        [&magic[..], &[0, flags], &kind, &[1, 2, 3, 4, 5, 6, 7, 8]].concat()
    }

    /// The offset of an extended header, and the length.
    fn length(headers: Headers, bytes: u8) -> Vec<u8> {
        let offset = [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18];
        if headers == Extended { [&offset[..], &[0; 7], &[bytes]].concat() } else { vec![0, 0, 0, bytes] }
    }

    #[test]
    fn simple_replies_by_exact_bytes() {
        assert_eq!(&*done(Simple, TO), b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
        let failed = b"\x67\x44\x66\x98\0\0\0\x05\x01\x02\x03\x04\x05\x06\x07\x08";
        assert_eq!(&*error(Simple, TO, ErrorNumber::Io, "unseen"), failed);
    }

    #[test]
    fn chunks_by_exact_bytes() {
        for headers in [Structured, Extended] {
            let none = [start(headers, 1, [0, 0]), length(headers, 0)].concat();
            assert_eq!(*done(headers, TO), none);
            let expected = [start(headers, 0, [0, 1]), length(headers, 72), vec![0, 0, 0, 0, 0, 0, 0x10, 0]].concat();
            assert_eq!(*data(headers, TO, false, 4096, 64), expected);
            let place = vec![0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0];
            let expected = [start(headers, 1, [0, 2]), length(headers, 12), place].concat();
            assert_eq!(*hole(headers, TO, true, 4096, 512), expected);
            let expected = [start(headers, 1, [0x80, 1]), length(headers, 8), b"\0\0\0\x1c\0\x02no".to_vec()].concat();
            assert_eq!(*error(headers, TO, ErrorNumber::NoSpace, "no"), expected);
        }
    }

    const EXTENTS: [Extent; 2] =
        [Extent { length_bytes: 512, hole: false, zero: false }, Extent { length_bytes: 1024, hole: true, zero: true }];

    #[test]
    fn block_status_by_exact_bytes() {
        let mut out = Vec::new();
        block_status(Structured, TO, &EXTENTS, &mut out);
        let content = b"\0\0\0\x01\0\0\x02\0\0\0\0\0\0\0\x04\0\0\0\0\x03".to_vec();
        assert_eq!(out, [start(Structured, 1, [0, 5]), length(Structured, 20), content].concat());
        let mut out = Vec::new();
        block_status(Extended, TO, &EXTENTS, &mut out);
        let first = b"\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0".to_vec();
        let second = b"\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\x03".to_vec();
        assert_eq!(out, [start(Extended, 1, [0, 6]), length(Extended, 40), first, second].concat());
    }

    #[test]
    fn an_extent_longer_than_a_compact_header_can_say_is_cut_and_ends_the_reply() {
        let long = Extent { length_bytes: 5 << 30, hole: true, zero: true };
        let mut out = Vec::new();
        block_status(Structured, TO, &[EXTENTS[0], long, EXTENTS[0]], &mut out);
        assert_eq!(out[24..], b"\0\0\x02\0\0\0\0\0\xff\xff\0\0\0\0\0\x03"[..]);
        let mut out = Vec::new();
        block_status(Extended, TO, &[long], &mut out);
        assert_eq!(out[40..48], (5u64 << 30).to_be_bytes());
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        for headers in [Structured, Extended] {
            let reply = error(headers, TO, ErrorNumber::Io, &"ä".repeat(500));
            assert_eq!(reply.len(), ERROR_REPLY_BYTES);
        }
        assert_eq!(cut("aä", 2), "a");
    }
}
