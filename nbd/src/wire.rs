//! The fixed numbers of the NBD protocol. All integers on the wire are big-endian.
//!
//! Nothing here decides anything; it must never know sessions, limits or policy.
//! Source: `doc/proto.md` of the NetworkBlockDevice project.

use std::fmt;

/// First eight bytes a server sends: `NBDMAGIC`.
pub const MAGIC_GREETING: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second magic of the greeting, and the start of every option of the client.
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply of the server.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Start of every request in the transmission phase.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const MAGIC_REPLY_SIMPLE: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const MAGIC_REPLY_STRUCTURED: u32 = 0x668e_33ef;

/// Start of every request after extended headers were agreed.
pub const MAGIC_REQUEST_EXTENDED: u32 = 0x21e4_1c71;
/// Start of every reply chunk after extended headers were agreed.
pub const MAGIC_REPLY_EXTENDED: u32 = 0x6e8a_278c;

/// Port registered with IANA for NBD.
pub const PORT_DEFAULT: u16 = 10809;

/// Length of the greeting in bytes: two magics and the handshake flags.
pub const GREETING_BYTES: usize = 18;
/// Length of the client flags in bytes.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// Length of an option header in bytes: magic, option, data length.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Length of an option reply header in bytes: magic, option, reply type, data length.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;
/// Length of a request header in bytes: magic, flags, command, cookie, offset, length.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Length of an extended header in bytes, of a request (magic, flags, command, cookie, offset, length) and of a reply chunk
/// (magic, flags, type, cookie, offset of the request, length).
pub const EXTENDED_HEADER_BYTES: usize = 32;
/// Length of a simple reply header in bytes: magic, error, cookie.
pub const REPLY_SIMPLE_BYTES: usize = 16;
/// Length of a structured reply chunk header in bytes: magic, flags, type, cookie, length.
pub const REPLY_CHUNK_BYTES: usize = 20;
/// Reserved zero bytes after the answer to `EXPORT_NAME`, unless `NO_ZEROES` was agreed.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;
/// Longest string (export name, description, error message) the protocol permits, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// Handshake flag of server and client: fixed newstyle negotiation.
pub const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of server and client: no padding after the answer to `EXPORT_NAME`.
pub const HANDSHAKE_NO_ZEROES: u16 = 1 << 1;

/// Option: choose an export the old way and start transmission; errors cannot be answered.
pub const OPTION_EXPORT_NAME: u32 = 1;
/// Option: end the session.
pub const OPTION_ABORT: u32 = 2;
/// Option: list the exports.
pub const OPTION_LIST: u32 = 3;
/// Option: upgrade the connection to TLS.
pub const OPTION_STARTTLS: u32 = 5;
/// Option: describe an export.
pub const OPTION_INFO: u32 = 6;
/// Option: choose an export and start transmission.
pub const OPTION_GO: u32 = 7;
/// Option: use structured replies.
pub const OPTION_STRUCTURED_REPLY: u32 = 8;
/// Option: list metadata contexts.
pub const OPTION_LIST_META_CONTEXT: u32 = 9;
/// Option: choose metadata contexts for block status.
pub const OPTION_SET_META_CONTEXT: u32 = 10;

/// Option: use extended headers: 64-bit lengths, and one kind of reply.
pub const OPTION_EXTENDED_HEADERS: u32 = 11;

/// Option reply: done.
pub const REPLY_ACK: u32 = 1;
/// Option reply: one listed export.
pub const REPLY_SERVER: u32 = 2;
/// Option reply: one piece of information about an export.
pub const REPLY_INFO: u32 = 3;
/// Option reply: one metadata context.
pub const REPLY_META_CONTEXT: u32 = 4;
/// Bit set in every error reply type.
pub const REPLY_ERROR_BIT: u32 = 1 << 31;
/// Option error: the server does not know this option.
pub const REPLY_ERR_UNSUP: u32 = REPLY_ERROR_BIT + 1;
/// Option error: forbidden by the server's policy.
pub const REPLY_ERR_POLICY: u32 = REPLY_ERROR_BIT + 2;
/// Option error: the option or its data is malformed.
pub const REPLY_ERR_INVALID: u32 = REPLY_ERROR_BIT + 3;
/// Option error: TLS must be started first.
pub const REPLY_ERR_TLS_REQD: u32 = REPLY_ERROR_BIT + 5;
/// Option error: no such export.
pub const REPLY_ERR_UNKNOWN: u32 = REPLY_ERROR_BIT + 6;
/// Option error: the server is shutting down.
pub const REPLY_ERR_SHUTDOWN: u32 = REPLY_ERROR_BIT + 7;
/// Option error: the client must ask for the block sizes.
pub const REPLY_ERR_BLOCK_SIZE_REQD: u32 = REPLY_ERROR_BIT + 8;
/// Option error: the request or its reply is too big.
pub const REPLY_ERR_TOO_BIG: u32 = REPLY_ERROR_BIT + 9;

/// Option error: extended headers were agreed, and what was asked for is their predecessor.
pub const REPLY_ERR_EXT_HEADER_REQD: u32 = REPLY_ERROR_BIT + 10;

/// Information about an export: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information about an export: canonical name.
pub const INFO_NAME: u16 = 1;
/// Information about an export: description for humans.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information about an export: block size constraints.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the flags field is valid; always set.
pub const EXPORT_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: the export is read-only.
pub const EXPORT_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `FLUSH` is served.
pub const EXPORT_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: the command flag `FUA` is served.
pub const EXPORT_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: the export behaves like a rotating disk.
pub const EXPORT_ROTATIONAL: u16 = 1 << 4;
/// Transmission flag: `TRIM` is served.
pub const EXPORT_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `WRITE_ZEROES` is served.
pub const EXPORT_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: the command flag `DF` is served (structured replies only).
pub const EXPORT_SEND_DF: u16 = 1 << 7;
/// Transmission flag: several connections see one coherent device.
pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CACHE` is served.
pub const EXPORT_SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: the command flag `FAST_ZERO` is served.
pub const EXPORT_SEND_FAST_ZERO: u16 = 1 << 11;

/// Command: read.
pub const COMMAND_READ: u16 = 0;
/// Command: write; the payload follows the header.
pub const COMMAND_WRITE: u16 = 1;
/// Command: disconnect; has no reply.
pub const COMMAND_DISC: u16 = 2;
/// Command: make all answered writes durable.
pub const COMMAND_FLUSH: u16 = 3;
/// Command: the range is no longer needed.
pub const COMMAND_TRIM: u16 = 4;
/// Command: the range will be read soon.
pub const COMMAND_CACHE: u16 = 5;
/// Command: write zeroes.
pub const COMMAND_WRITE_ZEROES: u16 = 6;
/// Command: describe the allocation of a range.
pub const COMMAND_BLOCK_STATUS: u16 = 7;

/// Command flag: answer only when this command's data is durable; valid on every command.
pub const COMMAND_FLAG_FUA: u16 = 1 << 0;
/// Command flag of `WRITE_ZEROES`: keep the range allocated.
pub const COMMAND_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag of `READ`: answer in a single content chunk.
pub const COMMAND_FLAG_DF: u16 = 1 << 2;
/// Command flag of `BLOCK_STATUS`: answer with one extent.
pub const COMMAND_FLAG_REQ_ONE: u16 = 1 << 3;
/// Command flag of `WRITE_ZEROES`: fail quickly if it would be no faster than a write.
pub const COMMAND_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Command flag of extended headers: the length is that of a payload which follows; set on every `WRITE`.
pub const COMMAND_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Chunk flag: last chunk of this reply.
pub const CHUNK_FLAG_DONE: u16 = 1 << 0;
/// Chunk type: no content.
pub const CHUNK_NONE: u16 = 0;
/// Chunk type: offset and data.
pub const CHUNK_OFFSET_DATA: u16 = 1;
/// Chunk type: offset and length of zeroes.
pub const CHUNK_OFFSET_HOLE: u16 = 2;
/// Chunk type: extents of one metadata context.
pub const CHUNK_BLOCK_STATUS: u16 = 5;
/// Chunk type: extents of one metadata context, with 64-bit lengths; only with extended headers.
pub const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Bit set in every error chunk type.
pub const CHUNK_ERROR_BIT: u16 = 1 << 15;
/// Chunk type: error number and message.
pub const CHUNK_ERROR: u16 = CHUNK_ERROR_BIT + 1;
/// Chunk type: error number, message and offset of the failure.
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR_BIT + 2;

/// Namespace of the metadata contexts defined by the protocol itself.
pub const CONTEXT_NAMESPACE_BASE: &str = "base:";
/// The allocation context: which ranges are holes and which read as zeroes.
pub const CONTEXT_BASE_ALLOCATION: &str = "base:allocation";
/// Extent flag of `base:allocation`: not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// Extent flag of `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// An error number of a reply. The values are fixed by the protocol, not by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorNumber {
    /// `EPERM`: not permitted, for example a write to a read-only export.
    NotPermitted = 1,
    /// `EIO`: the device failed.
    Io = 5,
    /// `ENOMEM`: no memory now; the client may retry.
    NoMemory = 12,
    /// `EINVAL`: the request is wrong.
    Invalid = 22,
    /// `ENOSPC`: beyond the end of the device, or no space left.
    NoSpace = 28,
    /// `EOVERFLOW`: the answer does not fit in one chunk.
    Overflow = 75,
    /// `ENOTSUP`: a fast zero is not possible here.
    NotSupported = 95,
    /// `ESHUTDOWN`: the server is going away.
    ShuttingDown = 108,
}

impl ErrorNumber {
    /// The value on the wire.
    pub fn to_wire(self) -> u32 {
        self as u32
    }

    /// The error for a non-zero value from the wire. A number the protocol does not list counts as
    /// `EINVAL`, as the protocol asks of clients.
    pub fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::ShuttingDown,
            _ => Self::Invalid,
        }
    }
}

impl fmt::Display for ErrorNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotPermitted => "EPERM",
            Self::Io => "EIO",
            Self::NoMemory => "ENOMEM",
            Self::Invalid => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::Overflow => "EOVERFLOW",
            Self::NotSupported => "ENOTSUP",
            Self::ShuttingDown => "ESHUTDOWN",
        })
    }
}

/// The client's name for a request, returned in its reply. The client chooses it and a server
/// only echoes it; a broken client may use one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

/// The headers of the transmission phase, as agreed in the handshake. A later one can all that those before it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Headers {
    /// Simple replies.
    #[default]
    Simple,
    /// Structured replies: in chunks, with messages.
    Structured,
    /// Extended headers: as structured ones, with 64-bit lengths in both directions.
    Extended,
}

impl Headers {
    /// Replies come in chunks.
    pub fn is_structured(self) -> bool {
        self >= Self::Structured
    }
}
