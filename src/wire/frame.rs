//! The header of every frame: 128 bytes, little-endian, checksummed.

use ashlar_model::limits::WRITE_BYTES_MAX;
use ashlar_model::units::BLOCK_BYTES;
use std::mem::{offset_of, size_of};
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `ASHW` in memory order.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ASHW");
/// Version of the data plane's language; peers that differ refuse each other at hello.
pub const VERSION: u16 = 5;
/// Bytes of a header.
pub const HEADER_BYTES: usize = size_of::<Header>();
/// Longest body: a list of several hundred thousand entries.
pub const BODY_BYTES_MAX: usize = 32 << 20;
/// Longest payload.
pub const PAYLOAD_BYTES_MAX: usize = WRITE_BYTES_MAX;

const _: () = {
    assert!(HEADER_BYTES == 128);
    assert!(offset_of!(Header, volume) == 16);
    assert!(offset_of!(Header, device) == 32);
    assert!(offset_of!(Header, epoch) == 48);
    assert!(offset_of!(Header, start) == 64);
    assert!(offset_of!(Header, words) == 72);
    assert!(offset_of!(Header, body_checksum) == 112);
    assert!(offset_of!(Header, header_checksum) == 120);
    assert!(PAYLOAD_BYTES_MAX.is_multiple_of(BLOCK_BYTES));
};

/// Fixed part of every frame; after it come `body_bytes` of body and `payload_bytes` of payload.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Debug, Default)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U16,
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Bytes of the body.
    pub body_bytes: U32,
    /// Bytes of the payload, whole blocks.
    pub payload_bytes: U32,
    /// Volume id, big-endian as in its text form.
    pub volume: [u8; 16],
    /// Device id, the same.
    pub device: [u8; 16],
    /// Writer's epoch.
    pub epoch: U64,
    /// Lane.
    pub lane: U16,
    /// Zero.
    pub reserved: U16,
    /// Blocks concerned.
    pub count: U32,
    /// First block concerned.
    pub start: U64,
    /// Meaning by kind.
    pub words: [U64; 5],
    /// XXH3-64 of the body, seeded with the kind; zero without a body.
    pub body_checksum: U64,
    /// XXH3-64 of the 120 bytes before.
    pub header_checksum: U64,
}

/// Kinds of frames.
pub mod kind {
    #![allow(missing_docs)]
    pub const SEAL: u8 = 1;
    pub const START: u8 = 2;
    pub const WRITE: u8 = 3;
    pub const HEARTBEAT: u8 = 4;
    pub const READ: u8 = 5;
    pub const JOIN_START: u8 = 6;
    pub const COPY: u8 = 7;
    pub const REPAIR: u8 = 8;
    pub const DIGEST: u8 = 9;
    pub const CONFIRM: u8 = 10;
    pub const SEALED: u8 = 16;
    pub const ACK: u8 = 17;
    pub const READ_DONE: u8 = 18;
    pub const READ_REFUSED: u8 = 19;
    pub const JOIN_READY: u8 = 20;
    pub const JOIN_LOST: u8 = 21;
    pub const COPY_DONE: u8 = 22;
    pub const FENCED: u8 = 23;
    pub const DEVICE_FAILED: u8 = 24;
    pub const REPAIRED: u8 = 25;
    pub const NOT_SERVED: u8 = 26;
    pub const LOST_DATA: u8 = 27;
    pub const DAMAGED: u8 = 28;
    pub const DIGESTS: u8 = 29;
    pub const CONFIRMED: u8 = 30;
    pub const HELLO: u8 = 64;
    pub const WELCOME: u8 = 65;
    pub const REFUSED: u8 = 66;
    pub const CREDIT: u8 = 67;
}

/// Flags of frames.
pub mod flag {
    #![allow(missing_docs)]
    pub const MEMBER: u8 = 1;
    pub const ZEROES: u8 = 2;
    pub const MAP_ONLY: u8 = 4;
    pub const FULL: u8 = 8;
    pub const STAMPS: u8 = 16;
    pub const BACKGROUND: u8 = 32;
    pub const LOST: u8 = 64;
}

impl Header {
    /// Completes a header: magic, version, lengths, checksums.
    pub fn seal(mut self, body: &[u8], payload_bytes: usize) -> Self {
        assert!(body.len() <= BODY_BYTES_MAX && payload_bytes <= PAYLOAD_BYTES_MAX, "frames are bounded");
        self.magic = U32::new(MAGIC);
        self.version = U16::new(VERSION);
        self.body_bytes = U32::new(body.len() as u32);
        self.payload_bytes = U32::new(payload_bytes as u32);
        self.body_checksum = U64::new(if body.is_empty() { 0 } else { body_checksum(self.kind, body) });
        self.header_checksum = U64::new(self.checksum());
        self
    }

    /// XXH3-64 of everything before the checksum.
    pub fn checksum(&self) -> u64 {
        xxh3_64_with_seed(&self.as_bytes()[..offset_of!(Header, header_checksum)], u64::from(MAGIC))
    }
}

/// Checksum of a body.
pub fn body_checksum(kind: u8, body: &[u8]) -> u64 {
    xxh3_64_with_seed(body, u64::from(kind))
}
