//! What a connection still has to send: small headers gathered, payloads as they lie in memory.

use ashlar_model::Payload;
use std::collections::VecDeque;
use std::ops::Deref;

/// Memory for small bytes that is asked for at once: a frame's header and body, and what gathers in a busy round.
const TAIL_BYTES_MIN: usize = 256;
const TAIL_BYTES_MAX: usize = 16 << 10;

/// A piece of a send.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Headers and other small bytes.
    Bytes(Vec<u8>),
    /// Part of a shared buffer: not copied.
    Shared {
        /// The buffer.
        payload: Payload,
        /// First byte.
        offset: usize,
        /// Number of bytes.
        bytes: usize,
    },
}

impl Deref for Segment {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Segment::Bytes(bytes) => bytes,
            Segment::Shared { payload, offset, bytes } => &payload[*offset..*offset + *bytes],
        }
    }
}

/// Bytes in order of sending.
#[derive(Debug, Default)]
pub struct Outbox {
    segments: VecDeque<Segment>,
    /// Small bytes at the end, still growing.
    tail: Vec<u8>,
    bytes: usize,
}

impl Outbox {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Lets `write` append small bytes.
    pub fn append<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let before = self.tail.len();
        let value = write(&mut self.tail);
        self.bytes += self.tail.len() - before;
        value
    }

    /// Appends small bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.append(|tail| tail.extend_from_slice(bytes));
    }

    /// Appends part of a shared buffer without copying it.
    pub fn shared(&mut self, payload: &Payload, offset: usize, bytes: usize) {
        assert!(offset + bytes <= payload.len(), "a segment lies inside its payload");
        if bytes == 0 {
            return;
        }
        self.close_tail();
        self.bytes += bytes;
        self.segments.push_back(Segment::Shared { payload: payload.clone(), offset, bytes });
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            // As much as this time: growing step by step would copy the same bytes again.
            let next = Vec::with_capacity(self.tail.len().clamp(TAIL_BYTES_MIN, TAIL_BYTES_MAX));
            self.segments.push_back(Segment::Bytes(std::mem::replace(&mut self.tail, next)));
        }
    }

    /// Takes up to `segments_max` segments from the front.
    pub fn take(&mut self, segments_max: usize) -> Vec<Segment> {
        self.close_tail();
        let count = self.segments.len().min(segments_max);
        if count == 0 {
            return Vec::new();
        }
        let taken: Vec<Segment> = self.segments.drain(..count).collect();
        self.bytes -= taken.iter().map(|segment| segment.len()).sum::<usize>();
        taken
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_length_are_kept() {
        let mut outbox = Outbox::default();
        let payload = Payload::copied_from(&[7; 4096]);
        outbox.bytes(b"ab");
        outbox.bytes(b"cd");
        outbox.shared(&payload, 1, 3);
        outbox.bytes(b"e");
        assert_eq!(outbox.len(), 8);
        let first = outbox.take(2);
        assert_eq!((&*first[0], &*first[1]), (&b"abcd"[..], &[7u8, 7, 7][..]));
        assert_eq!(outbox.len(), 1);
        assert_eq!(&*outbox.take(9)[0], b"e");
        assert!(outbox.is_empty() && outbox.take(9).is_empty());
    }
}
