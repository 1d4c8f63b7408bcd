//! What an export is to this protocol: a name, a size, block sizes and promises.
//!
//! It must never know what stands behind an export, nor why one is refused.

use crate::wire;

/// Everything a client learns about one export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Canonical name, at most 4096 bytes, without NUL.
    pub name: String,
    /// A line for humans, at most 4096 bytes; sent only to clients that ask.
    pub description: Option<String>,
    /// Size in bytes: a multiple of the minimum block size, at most 2^63 - 1.
    pub size_bytes: u64,
    /// Block sizes told to the client.
    pub block_sizes: BlockSizes,
    /// What the export promises.
    pub features: Features,
}

impl ExportInfo {
    /// Stops the program on an export this protocol cannot express: the caller's bug.
    pub(crate) fn check(&self) {
        assert!(self.name.len() <= wire::STRING_BYTES_MAX);
        let description_bytes = self.description.as_ref().map_or(0, String::len);
        assert!(description_bytes <= wire::STRING_BYTES_MAX);
        self.block_sizes.check();
        assert!(self.size_bytes <= i64::MAX as u64);
        assert!(self.size_bytes.is_multiple_of(u64::from(self.block_sizes.min_bytes)));
        if self.features.fast_zero {
            assert!(self.features.write_zeroes);
        }
    }
}

/// Block sizes of an export, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every offset and length is a multiple of this: a power of two, at most 64 KiB.
    pub min_bytes: u32,
    /// Requests of this size and alignment are fast: a power of two, at least the minimum.
    pub preferred_bytes: u32,
    /// Longest READ or WRITE: a multiple of the minimum, at least 1 MiB.
    pub max_bytes: u32,
}

impl BlockSizes {
    fn check(&self) {
        assert!(self.min_bytes.is_power_of_two());
        assert!(self.min_bytes <= 64 << 10);
        assert!(self.preferred_bytes.is_power_of_two());
        assert!(self.preferred_bytes >= self.min_bytes);
        assert!(self.max_bytes >= self.preferred_bytes);
        assert!(self.max_bytes >= 1 << 20);
        assert!(self.max_bytes.is_multiple_of(self.min_bytes));
    }
}

impl Default for BlockSizes {
    /// 512 bytes, 4 KiB, 32 MiB: what the protocol lets clients assume.
    fn default() -> Self {
        Self { min_bytes: 512, preferred_bytes: 4 << 10, max_bytes: 32 << 20 }
    }
}

/// What an export promises. A request that needs a promise not made is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Writes are refused with `EPERM`.
    pub read_only: bool,
    /// FLUSH makes all answered writes durable.
    pub flush: bool,
    /// The flag FUA is honoured on every command.
    pub fua: bool,
    /// TRIM is served.
    pub trim: bool,
    /// WRITE_ZEROES is served.
    pub write_zeroes: bool,
    /// WRITE_ZEROES may be asked to fail quickly; needs `write_zeroes`.
    pub fast_zero: bool,
    /// READ may ask for an unfragmented answer; told only to clients with structured replies.
    pub dont_fragment: bool,
    /// Several connections see one coherent device, and a flush on one covers all.
    pub multi_conn: bool,
    /// CACHE is served.
    pub cache: bool,
    /// The export behaves like a rotating disk.
    pub rotational: bool,
}

impl Features {
    /// Everything that a disk which is no rotating one can promise to those who may write.
    pub const ALL: Self = Self {
        read_only: false,
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        dont_fragment: true,
        multi_conn: true,
        cache: true,
        rotational: false,
    };

    /// The transmission flags for a session with or without structured replies.
    pub fn to_wire(self, structured: bool) -> u16 {
        let flags = [
            (true, wire::EXPORT_HAS_FLAGS),
            (self.read_only, wire::EXPORT_READ_ONLY),
            (self.flush, wire::EXPORT_SEND_FLUSH),
            (self.fua, wire::EXPORT_SEND_FUA),
            (self.rotational, wire::EXPORT_ROTATIONAL),
            (self.trim, wire::EXPORT_SEND_TRIM),
            (self.write_zeroes, wire::EXPORT_SEND_WRITE_ZEROES),
            (self.dont_fragment && structured, wire::EXPORT_SEND_DF),
            (self.multi_conn, wire::EXPORT_CAN_MULTI_CONN),
            (self.cache, wire::EXPORT_SEND_CACHE),
            (self.fast_zero, wire::EXPORT_SEND_FAST_ZERO),
        ];
        flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag)
    }

    /// The promises in a server's transmission flags; unknown flags are ignored.
    pub fn from_wire(flags: u16) -> Self {
        let has = |flag| flags & wire::EXPORT_HAS_FLAGS != 0 && flags & flag != 0;
        Self {
            read_only: has(wire::EXPORT_READ_ONLY),
            flush: has(wire::EXPORT_SEND_FLUSH),
            fua: has(wire::EXPORT_SEND_FUA),
            trim: has(wire::EXPORT_SEND_TRIM),
            write_zeroes: has(wire::EXPORT_SEND_WRITE_ZEROES),
            fast_zero: has(wire::EXPORT_SEND_FAST_ZERO),
            dont_fragment: has(wire::EXPORT_SEND_DF),
            multi_conn: has(wire::EXPORT_CAN_MULTI_CONN),
            cache: has(wire::EXPORT_SEND_CACHE),
            rotational: has(wire::EXPORT_ROTATIONAL),
        }
    }
}

/// One line of the answer to LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// Name, at most 4096 bytes.
    pub name: String,
    /// A line for humans; may be empty.
    pub description: String,
}

/// Why an export is not listed, described or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No export has this name.
    Unknown,
    /// It exists but not for this client now, for example because it is attached elsewhere.
    Policy,
    /// It is served with TLS only, and that has not been started.
    TlsRequired,
    /// The server is going away.
    ShuttingDown,
}

impl Refusal {
    /// The option reply type on the wire.
    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::Unknown => wire::REPLY_ERR_UNKNOWN,
            Self::Policy => wire::REPLY_ERR_POLICY,
            Self::TlsRequired => wire::REPLY_ERR_TLS_REQD,
            Self::ShuttingDown => wire::REPLY_ERR_SHUTDOWN,
        }
    }
}

/// A run of blocks with one allocation state: the answer to BLOCK_STATUS for `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not zero, a multiple of the minimum block size.
    pub length_bytes: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

impl Extent {
    /// The longest extent of a client without extended headers, in bytes: a multiple of every block size.
    pub(crate) const COMPACT_BYTES_MAX: u64 = (1 << 32) - (64 << 10);

    /// The flags on the wire.
    pub(crate) fn state(self) -> u32 {
        let hole = if self.hole { wire::STATE_HOLE } else { 0 };
        let zero = if self.zero { wire::STATE_ZERO } else { 0 };
        hole | zero
    }

    pub(crate) fn from_wire(length_bytes: u64, state: u32) -> Self {
        Self { length_bytes, hole: state & wire::STATE_HOLE != 0, zero: state & wire::STATE_ZERO != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_survive_the_wire() {
        for bits in 0..1u16 << 12 {
            let features = Features::from_wire(bits | wire::EXPORT_HAS_FLAGS);
            assert_eq!(Features::from_wire(features.to_wire(true)), features);
        }
    }

    #[test]
    fn dont_fragment_is_told_only_with_structured_replies() {
        let features = Features { dont_fragment: true, ..Features::default() };
        assert_eq!(features.to_wire(false), wire::EXPORT_HAS_FLAGS);
        assert_eq!(features.to_wire(true), wire::EXPORT_HAS_FLAGS | wire::EXPORT_SEND_DF);
    }
}
