//! All refusals of a request, in one place.
//!
//! A raw header goes in; a [`Request`] that cannot be wrong comes out, or an error number with a
//! sentence for the client. It must never know how a request is served or answered.

use super::{Operation, Request};
use crate::export::{BlockSizes, Features};
use crate::limits::Limits;
use crate::wire::{self, Cookie, ErrorNumber};

/// A request header as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawRequest {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: Cookie,
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u32,
}

/// What a request is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) limits: Limits,
    pub(super) size_bytes: u64,
    pub(super) block_sizes: BlockSizes,
    pub(super) features: Features,
    /// Structured replies were agreed.
    pub(super) structured: bool,
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
    fn field<const N: usize>(header: &[u8; wire::REQUEST_HEADER_BYTES], start: usize) -> [u8; N] {
        header[start..start + N].try_into().expect("a field inside the header")
    }
    let raw = RawRequest {
        flags: u16::from_be_bytes(field(header, 4)),
        command: u16::from_be_bytes(field(header, 6)),
        cookie: Cookie(u64::from_be_bytes(field(header, 8))),
        offset_bytes: u64::from_be_bytes(field(header, 16)),
        length_bytes: u32::from_be_bytes(field(header, 24)),
    };
    (u32::from_be_bytes(field(header, 0)), raw)
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
        if has_payload && length_bytes > terms.limits.payload_bytes_max {
            return refuse(ErrorNumber::Invalid, "the request is longer than the maximum");
        }
        if offset_bytes.checked_add(u64::from(length_bytes)).is_none_or(|end| end > terms.size_bytes) {
            let fills = matches!(operation, Operation::Write | Operation::WriteZeroes { .. });
            let error = if fills { ErrorNumber::NoSpace } else { ErrorNumber::Invalid };
            return refuse(error, "the range ends after the end of the export");
        }
        let block_bytes = terms.block_sizes.min_bytes;
        if !offset_bytes.is_multiple_of(u64::from(block_bytes)) || !length_bytes.is_multiple_of(block_bytes) {
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
        Operation::Read { .. } => given(terms.features.dont_fragment && terms.structured, wire::COMMAND_FLAG_DF),
        Operation::WriteZeroes { .. } => {
            wire::COMMAND_FLAG_NO_HOLE | given(terms.features.fast_zero, wire::COMMAND_FLAG_FAST_ZERO)
        }
        Operation::BlockStatus { .. } => wire::COMMAND_FLAG_REQ_ONE,
        Operation::Write | Operation::Flush | Operation::Trim | Operation::Cache => 0,
    }
}
