//! Records of this room as bytes: bincode inside an own header. The only place that names bincode.
//!
//! ```text
//! offset  bytes  field      little-endian
//! 0       4      magic      "ARM1"
//! 4       2      version    of the payload's types, from 1
//! 6       2      kind       what the payload is
//! 8       4      length     of the payload in bytes
//! 12      8      checksum   XXH3-64 of bytes 0..12 and the payload
//! 20      length payload    bincode 2, standard configuration (variable-length integers, little-endian)
//! ```
//!
//! Any bytes decode to a value or an error. A length beyond the kind's limit is refused before anything is allocated.

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3;

/// Marks the start of a record.
pub const MAGIC: [u8; 4] = *b"ARM1";
/// Version of the payload types. History: 1, the first; 2, in-sync minimum of a volume and replacements of lanes; 3, devices
/// that lanes part with, and the size in a grant; 4, shards of a node and ordinals of devices; 5, lanes that are unverified
/// after a restore, and the incarnation of a group.
pub const VERSION: u16 = 6;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 20;
/// Largest encoded command: a create with 64 lanes and labels, or a full batch of lane changes.
pub const COMMAND_BYTES_MAX: usize = 1024 * 1024;
/// Largest Raft message other than a snapshot.
pub const RPC_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest snapshot.
pub const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024 * 1024;

const LENGTH_OFFSET: usize = 8;
const CHECKSUM_OFFSET: usize = 12;

const _: () = {
    assert!(CHECKSUM_OFFSET + size_of::<u64>() == HEADER_BYTES);
    assert!(SNAPSHOT_BYTES_MAX <= u32::MAX as usize);
    // One Raft message holds at least the largest log entry.
    assert!(2 * COMMAND_BYTES_MAX <= RPC_BYTES_MAX);
};

/// What a record holds. The number is part of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// [`crate::Command`].
    Command = 1,
    /// The answer to a command: response or error.
    Outcome = 2,
    /// A Raft log entry.
    LogEntry = 3,
    /// A Raft vote.
    Vote = 4,
    /// A Raft log position.
    LogPosition = 5,
    /// Whose log this is.
    Identity = 6,
    /// What a snapshot covers: membership and log position.
    SnapshotMeta = 7,
    /// The whole state.
    State = 8,
    /// A call to another node.
    Request = 9,
    /// The answer to a call.
    Reply = 10,
    /// The question for a read index.
    ReadIndex = 11,
    /// Who sends a message to whom.
    Envelope = 12,
}

impl Kind {
    /// Largest payload of this kind, in bytes.
    pub fn bytes_max(self) -> usize {
        match self {
            Self::Command => COMMAND_BYTES_MAX,
            Self::Outcome | Self::LogEntry => 2 * COMMAND_BYTES_MAX,
            Self::Vote | Self::LogPosition | Self::Identity | Self::ReadIndex | Self::Envelope => 4096,
            Self::SnapshotMeta => 1024 * 1024,
            Self::State => SNAPSHOT_BYTES_MAX,
            Self::Request | Self::Reply => RPC_BYTES_MAX,
        }
    }
}

/// Why bytes are no record, or a value does not fit into one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// Fewer bytes than the header says, or more.
    #[error("{found} bytes instead of {expected}")]
    Length {
        /// Bytes there should be.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Not a record.
    #[error("no record of the metadata service (bad magic)")]
    Magic,
    /// Written by a newer or unknown program.
    #[error("version {found} of the record is not known (this program knows {VERSION})")]
    Version {
        /// The record's version.
        found: u16,
    },
    /// Another kind of record.
    #[error("a record of kind {found} instead of {expected:?}")]
    Kind {
        /// The wanted kind.
        expected: Kind,
        /// The number found.
        found: u16,
    },
    /// Larger than its kind allows.
    #[error("a {kind:?} record of {bytes} bytes is larger than {} bytes", .kind.bytes_max())]
    TooLarge {
        /// The kind.
        kind: Kind,
        /// Its size.
        bytes: usize,
    },
    /// The bytes changed since they were written.
    #[error("the checksum of the record does not match")]
    Checksum,
    /// The checksum is right but the payload is not.
    #[error("the payload of the {0:?} record does not decode: {1}")]
    Payload(Kind, String),
}

/// Encodes a value as one record.
///
/// # Errors
/// The value is larger than its kind allows.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut record = vec![0; HEADER_BYTES];
    bincode::serde::encode_into_std_write(value, &mut record, bincode::config::standard())
        .map_err(|e| CodecError::Payload(kind, e.to_string()))?;
    let bytes = record.len() - HEADER_BYTES;
    if bytes > kind.bytes_max() {
        return Err(CodecError::TooLarge { kind, bytes });
    }
    record[..4].copy_from_slice(&MAGIC);
    record[4..6].copy_from_slice(&VERSION.to_le_bytes());
    record[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    record[LENGTH_OFFSET..CHECKSUM_OFFSET].copy_from_slice(&(bytes as u32).to_le_bytes());
    let sum = checksum(&record[..CHECKSUM_OFFSET], &record[HEADER_BYTES..]);
    record[CHECKSUM_OFFSET..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    Ok(record)
}

/// Decodes a value from exactly one record.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode<T: DeserializeOwned>(kind: Kind, record: &[u8]) -> Result<T, CodecError> {
    let (value, rest) = decode_prefix(kind, record)?;
    if !rest.is_empty() {
        return Err(CodecError::Length { expected: record.len() - rest.len(), found: record.len() });
    }
    Ok(value)
}

/// Decodes a value from the record at the start of `bytes` and returns what follows it.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_prefix<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<(T, &[u8]), CodecError> {
    let (payload, rest) = open(kind, bytes)?;
    let config = bincode::config::standard().with_limit::<SNAPSHOT_BYTES_MAX>();
    let (value, used) =
        bincode::serde::decode_from_slice(payload, config).map_err(|e| CodecError::Payload(kind, e.to_string()))?;
    if used != payload.len() {
        return Err(CodecError::Length { expected: used, found: payload.len() });
    }
    Ok((value, rest))
}

/// Checks that `bytes` are exactly one sound record of this kind, without decoding its payload.
///
/// # Errors
/// What is wrong with the bytes.
pub fn check(kind: Kind, bytes: &[u8]) -> Result<(), CodecError> {
    let (payload, rest) = open(kind, bytes)?;
    match rest.is_empty() {
        true => Ok(()),
        false => Err(CodecError::Length { expected: HEADER_BYTES + payload.len(), found: bytes.len() }),
    }
}

/// Checks header and checksum; returns payload and rest.
fn open(kind: Kind, bytes: &[u8]) -> Result<(&[u8], &[u8]), CodecError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(CodecError::Length { expected: HEADER_BYTES, found: bytes.len() });
    };
    if header[..4] != MAGIC {
        return Err(CodecError::Magic);
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != VERSION {
        return Err(CodecError::Version { found: version });
    }
    let found = u16::from_le_bytes([header[6], header[7]]);
    if found != kind as u16 {
        return Err(CodecError::Kind { expected: kind, found });
    }
    let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    if length > kind.bytes_max() {
        return Err(CodecError::TooLarge { kind, bytes: length });
    }
    if rest.len() < length {
        return Err(CodecError::Length { expected: HEADER_BYTES + length, found: bytes.len() });
    }
    let (payload, rest) = rest.split_at(length);
    let (_, sum) = header.split_at(CHECKSUM_OFFSET);
    if checksum(&header[..CHECKSUM_OFFSET], payload).to_le_bytes() != sum {
        return Err(CodecError::Checksum);
    }
    Ok((payload, rest))
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.digest()
}
