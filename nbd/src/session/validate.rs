//! All refusals of a request, in one place.
//!
//! A raw header goes in; a [`Request`] that cannot be wrong comes out, or an error number with a
//! sentence for the client. It must never know how a request is served or answered.

use super::{Operation, Request};
use crate::export::{BlockSizes, Features};
use crate::limits::Limits;
use crate::reply::Handle;
use crate::wire::{self, Cookie, ErrorNumber, Headers};

/// A request header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawRequest {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: Cookie,
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u64,
}

impl RawRequest {
    pub(super) fn handle(&self) -> Handle {
        Handle { cookie: self.cookie, offset_bytes: self.offset_bytes }
    }

    /// Bytes that follow the header.
    pub(super) fn payload_bytes(&self, headers: Headers) -> u64 {
        let says_so = headers == Headers::Extended && self.flags & wire::COMMAND_FLAG_PAYLOAD_LEN != 0;
        // Also without the flag that extended headers want of a write: there is no other use of its length.
        if says_so || self.command == wire::COMMAND_WRITE { self.length_bytes } else { 0 }
    }
}

/// What a request is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) limits: Limits,
    pub(super) size_bytes: u64,
    pub(super) block_sizes: BlockSizes,
    pub(super) features: Features,
    /// What was agreed.
    pub(super) headers: Headers,
    /// `base:allocation` was chosen for this export.
    pub(super) allocation: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) error: ErrorNumber,
    pub(super) message: &'static str,
}

fn refuse<T>(error: ErrorNumber, message: &'static str) -> Result<T, Refused> {
    Err(Refused { error, message })
}

/// Splits a request header into magic and fields.
pub(super) fn split_request(header: &[u8; wire::REQUEST_HEADER_BYTES]) -> (u32, RawRequest) {
    let (start, length) = header.split_first_chunk().expect("a header longer than its start");
    let length: [u8; 4] = length.try_into().expect("the rest of a header");
    split(start, u64::from(u32::from_be_bytes(length)))
}

/// Splits an extended request header into magic and fields.
pub(super) fn split_extended_request(header: &[u8; wire::EXTENDED_HEADER_BYTES]) -> (u32, RawRequest) {
    let (start, length) = header.split_first_chunk().expect("a header longer than its start");
    split(start, u64::from_be_bytes(length.try_into().expect("the rest of a header")))
}

/// The fields that both kinds of headers begin with.
fn split(start: &[u8; 24], length_bytes: u64) -> (u32, RawRequest) {
    fn field<const N: usize>(start: &[u8; 24], at: usize) -> [u8; N] {
        start[at..at + N].try_into().expect("a field inside the header")
    }
    let raw = RawRequest {
        flags: u16::from_be_bytes(field(start, 4)),
        command: u16::from_be_bytes(field(start, 6)),
        cookie: Cookie(u64::from_be_bytes(field(start, 8))),
        offset_bytes: u64::from_be_bytes(field(start, 16)),
        length_bytes,
    };
    (u32::from_be_bytes(field(start, 0)), raw)
}

/// Accepts or refuses any command but DISC.
pub(super) fn validate(raw: &RawRequest, terms: &Terms) -> Result<Request, Refused> {
    let RawRequest { flags, command, cookie, offset_bytes, length_bytes } = *raw;
    let operation = operation(command, flags)?;
    let served = terms.features;

    let flags_allowed = flags_allowed(operation, terms);
    if flags & !flags_allowed != 0 {
        return refuse(ErrorNumber::Invalid, "a flag is unknown, or not valid for this command on this export");
    }
    let writes = matches!(operation, Operation::Write | Operation::Trim | Operation::WriteZeroes { .. });
    if writes && served.read_only {
        return refuse(ErrorNumber::NotPermitted, "the export is read-only");
    }
    let is_served = match operation {
        Operation::Read { .. } | Operation::Write => true,
        Operation::Flush => served.flush,
        Operation::Trim => served.trim,
        Operation::Cache => served.cache,
        Operation::WriteZeroes { .. } => served.write_zeroes,
        Operation::BlockStatus { .. } => terms.allocation,
    };
    if !is_served {
        return refuse(ErrorNumber::Invalid, "the command was not advertised, or its context not chosen");
    }

    if operation == Operation::Flush {
        if offset_bytes != 0 || length_bytes != 0 {
            return refuse(ErrorNumber::Invalid, "a flush has offset 0 and length 0");
        }
    } else {
        if length_bytes == 0 {
            return refuse(ErrorNumber::Invalid, "the length is 0");
        }
        let has_payload = matches!(operation, Operation::Read { .. } | Operation::Write);
        if has_payload && length_bytes > u64::from(terms.limits.payload_bytes_max) {
            return refuse(ErrorNumber::Invalid, "the request is longer than the maximum");
        }
        if offset_bytes.checked_add(length_bytes).is_none_or(|end| end > terms.size_bytes) {
            let fills = matches!(operation, Operation::Write | Operation::WriteZeroes { .. });
            let error = if fills { ErrorNumber::NoSpace } else { ErrorNumber::Invalid };
            return refuse(error, "the range ends after the end of the export");
        }
        let block_bytes = u64::from(terms.block_sizes.min_bytes);
        if !offset_bytes.is_multiple_of(block_bytes) || !length_bytes.is_multiple_of(block_bytes) {
            return refuse(ErrorNumber::Invalid, "the range is not aligned to the minimum block size");
        }
    }
    let fua = flags & wire::COMMAND_FLAG_FUA != 0;
    Ok(Request { cookie, operation, offset_bytes, length_bytes, fua })
}

fn operation(command: u16, flags: u16) -> Result<Operation, Refused> {
    let has = |flag| flags & flag != 0;
    Ok(match command {
        wire::COMMAND_READ => Operation::Read { dont_fragment: has(wire::COMMAND_FLAG_DF) },
        wire::COMMAND_WRITE => Operation::Write,
        wire::COMMAND_FLUSH => Operation::Flush,
        wire::COMMAND_TRIM => Operation::Trim,
        wire::COMMAND_CACHE => Operation::Cache,
        wire::COMMAND_WRITE_ZEROES => {
            Operation::WriteZeroes { no_hole: has(wire::COMMAND_FLAG_NO_HOLE), fast: has(wire::COMMAND_FLAG_FAST_ZERO) }
        }
        wire::COMMAND_BLOCK_STATUS => Operation::BlockStatus { one_extent: has(wire::COMMAND_FLAG_REQ_ONE) },
        _ => return refuse(ErrorNumber::Invalid, "unknown command"),
    })
}

/// The flags a command may carry on this export.
fn flags_allowed(operation: Operation, terms: &Terms) -> u16 {
    let given = |promise: bool, flag: u16| if promise { flag } else { 0 };
    let fua = given(terms.features.fua, wire::COMMAND_FLAG_FUA);
    fua | match operation {
        Operation::Read { .. } => {
            given(terms.features.dont_fragment && terms.headers.is_structured(), wire::COMMAND_FLAG_DF)
        }
        Operation::WriteZeroes { .. } => {
            wire::COMMAND_FLAG_NO_HOLE | given(terms.features.fast_zero, wire::COMMAND_FLAG_FAST_ZERO)
        }
        Operation::BlockStatus { .. } => wire::COMMAND_FLAG_REQ_ONE,
        Operation::Write => given(terms.headers == Headers::Extended, wire::COMMAND_FLAG_PAYLOAD_LEN),
        Operation::Flush | Operation::Trim | Operation::Cache => 0,
    }
}
