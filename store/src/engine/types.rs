//! What the engine exchanges with its driver and its opener, and the formatting of a device.
//!
//! It must never know the engine's state.

use crate::api::{Reply, Token};
use crate::disk::{Superblock, SuperblockFault};
use crate::layout::{Area, Layout, SUPERBLOCK_A, SUPERBLOCK_B};
use crate::map::GRANULE_MAP_BYTES;
use crate::table::VolumeTable;
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::{AlignedBuffer, ClusterId, DeviceId, Pieces};
use std::fmt;

/// The engine's name for a device operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct IoId(pub u64);

/// Why a device operation failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct IoError(pub String);

/// Something for the driver to do. Device operations may be carried out and completed in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Read `bytes` from `offset`; complete with a buffer of exactly that length.
    Read {
        /// Name.
        io: IoId,
        /// Device offset, whole blocks.
        offset: u64,
        /// Length, whole blocks.
        bytes: usize,
    },
    /// Write the parts one after the other from `offset`.
    Write {
        /// Name.
        io: IoId,
        /// Device offset, whole blocks.
        offset: u64,
        /// Bytes.
        parts: Pieces,
        /// Completes only when these bytes are durable: no flush is needed for them.
        durable: bool,
    },
    /// Make every write that completed before this was issued durable.
    Flush {
        /// Name.
        io: IoId,
    },
    /// Answer of a request.
    Reply {
        /// The caller's name of the request.
        token: Token,
        /// The answer.
        reply: Reply,
    },
    /// The scrub met a block that is damaged, and that a read of the volume sees; it says more. What only snapshots see is
    /// counted ([`Stats::snapshot_bad_blocks`]): peers can repair live blocks only.
    Damaged {
        /// Volume.
        volume: ashlar_model::VolumeId,
        /// Block.
        block: u64,
        /// Snapshot generation of the layer that holds it.
        generation: u32,
    },
    /// The device is open.
    Opened,
    /// It cannot be opened.
    OpenFailed(OpenError),
}

/// How to open a device.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Bytes of the device as it is now.
    pub size_bytes: u64,
    /// Refuse another cluster's device.
    pub cluster: Option<ClusterId>,
    /// Completed writes need a flush to be durable. Ignored when the device was declared power-loss protected.
    pub flush_needed: bool,
    /// The device never tears an aligned 4 KiB write. Taken as true when that was declared at formatting.
    pub atomic: bool,
    /// A number that no other open of the device had: random, on a real one. It tells pages of a checkpoint that a
    /// crash cut short from those of a later one with the same number.
    pub nonce: u64,
    /// Bytes of overwritten blocks kept in memory before a checkpoint writes them back. At twice as many, writes of data
    /// wait for it.
    pub pinned_bytes_max: u64,
    /// Bytes of log in use before a checkpoint moves its head. At twice as many, requests wait for it: that, and a group or
    /// two, is what an open reads at most.
    pub restart_log_bytes: u64,
    /// Bytes of checksum pages in memory.
    pub checksum_cache_bytes: u64,
    /// Bytes of memory that the map may take for each granule of the device, about. What chunks do not need themselves is for
    /// those with moved blocks: others are overwritten in place, or by the log.
    pub map_bytes_per_granule: usize,
    /// Unanswered operations from which on the device counts as busy: a block that is overwritten then goes to its place
    /// after its record (if the device has atomic 4 KiB writes), which costs a second wait and saves a second write.
    pub busy_operations: usize,
    /// A rule to break, to see that tests notice.
    #[cfg(any(test, feature = "testing"))]
    pub mutation: Option<super::Mutation>,
}

impl OpenOptions {
    /// Usual options.
    pub fn new(size_bytes: u64, flush_needed: bool) -> Self {
        Self {
            size_bytes,
            cluster: None,
            flush_needed,
            atomic: false,
            nonce: 0,
            pinned_bytes_max: 128 << 20,
            restart_log_bytes: 256 << 20,
            checksum_cache_bytes: 256 << 20,
            map_bytes_per_granule: GRANULE_MAP_BYTES,
            busy_operations: 6,
            #[cfg(any(test, feature = "testing"))]
            mutation: None,
        }
    }
}

/// Why a device cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// No superblock at either place.
    #[error("this is not an Ashlar device: there is no superblock")]
    NotAshlar,
    /// The device belongs to another cluster.
    #[error("the device belongs to cluster {found}, not to this cluster {expected}")]
    OtherCluster {
        /// This cluster.
        expected: ClusterId,
        /// The device's.
        found: ClusterId,
    },
    /// A newer program formatted it.
    #[error("the device has format version {found}; this program knows version {known}")]
    Version {
        /// The device's.
        found: u32,
        /// Known here.
        known: u32,
    },
    /// Superblocks are there, but neither is intact.
    #[error("both superblocks are damaged")]
    DamagedSuperblocks,
    /// The device shrank.
    #[error("the device was formatted with {formatted} bytes and has {found} now")]
    SizeMismatch {
        /// When formatted.
        formatted: u64,
        /// Now.
        found: u64,
    },
    /// The table does not match its checksum.
    #[error("the volume table is damaged: {0}")]
    DamagedTable(String),
    /// The map contradicts itself.
    #[error("the map is inconsistent: {0}")]
    Inconsistent(String),
    /// The log lost groups that had completed.
    #[error("the log is damaged: group {lsn} does not verify, though groups up to {completed} had completed")]
    LogCorruption {
        /// The first group that does not verify.
        lsn: u64,
        /// Known to have completed.
        completed: u64,
    },
    /// The device failed.
    #[error("device error while opening: {0}")]
    Io(String),
}

/// Figures of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Data bytes in use.
    pub used_bytes: u64,
    /// Data bytes of the device.
    pub total_bytes: u64,
    /// Chunk slots in use.
    pub used_slots: u64,
    /// Chunk slots of the device.
    pub total_slots: u64,
    /// Log bytes in use.
    pub log_used_bytes: u64,
    /// Bytes of the log ring.
    pub log_bytes: u64,
    /// Overwritten blocks waiting for write-back.
    pub pinned_bytes: u64,
    /// Bytes written to the device since open, of all kinds.
    pub written_bytes: u64,
    /// Bytes of accepted data writes since open.
    pub accepted_bytes: u64,
    /// Damaged blocks met by reads since open.
    pub bad_blocks: u64,
    /// Data bytes that the scrub has read since open.
    pub scrubbed_bytes: u64,
    /// Damaged blocks that the scrub met since open.
    pub scrub_bad_blocks: u64,
    /// Those of them that only snapshots see, or nobody any more: they are not reported for repair.
    pub snapshot_bad_blocks: u64,
    /// Whole passes of the scrub since open.
    pub scrub_passes: u64,
    /// Blocks repaired since open.
    pub repaired_blocks: u64,
    /// Chunks found with damaged metadata since open.
    pub damaged_chunks: u64,
    /// Copies of the volume table found damaged at open.
    pub damaged_tables: u64,
    /// Granules that nobody owned at open, though they were marked as in use.
    pub leaked_granules: u64,
    /// Slots whose map page has not been read since open.
    pub unread_slots: u64,
    /// Chunks whose checksums are in memory.
    pub cached_chunks: u64,
    /// Data writes of each class since open, by granule: fresh, logged, intent.
    pub classes: [u64; 3],
    /// Those of them that put a block at its granule's spare place, beside its old content.
    pub moves: u64,
    /// Blocks of the log that the open had to follow one by one: those that only the log holds, and those that the crash
    /// may have torn.
    #[cfg(any(test, feature = "testing"))]
    pub replayed_blocks: u64,
    /// Torn, unacknowledged writes dropped at open.
    pub dropped_writes: u64,
    /// Checkpoints since open.
    pub checkpoints: u64,
}

/// Physical blocks in a row, see [`physical_block`](crate::layout::physical_block); a spare block is alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub first: u64,
    pub count: u32,
}

/// What a device operation is for.
#[derive(Debug)]
pub(super) enum Purpose {
    GroupWrite { lsn: u64 },
    GroupFlush,
    Data { op: u64, place: Place },
    WriteBack { slot: u32, first: u16, place: Place },
    Repair { op: u64, place: Place, slot: u32 },
    RepairFlush { op: u64 },
    Checkpoint,
    Read { read: u64, piece: usize },
    LoadMap { slot: u32 },
    LoadSums { slot: u32, as_of: u64 },
    OpenFlush,
    DropCopy { place: Place },
    DropFlush,
    Recovery(u64),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Purpose::GroupWrite { .. } => "write of the log",
            Purpose::GroupFlush | Purpose::RepairFlush { .. } | Purpose::OpenFlush | Purpose::DropFlush => "flush",
            Purpose::Data { .. } => "write of data",
            Purpose::WriteBack { .. } => "write-back of data",
            Purpose::Repair { .. } => "repair of a block",
            Purpose::Checkpoint => "checkpoint",
            Purpose::Read { .. } => "read",
            Purpose::DropCopy { .. } => "copy of a block",
            Purpose::LoadMap { .. } => "read of a map page",
            Purpose::LoadSums { .. } => "read of a checksum page",
            Purpose::Recovery(_) => "recovery",
        })
    }
}

/// How to format a device.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Cluster that it joins.
    pub cluster: ClusterId,
    /// New identity.
    pub device: DeviceId,
    /// Bytes of the device.
    pub size_bytes: u64,
    /// Declared by an operator: acknowledged writes survive a power cut without a flush.
    pub power_loss_protected: bool,
    /// Declared by an operator: the device never tears an aligned 4 KiB write.
    pub atomic_declared: bool,
    /// Log ring; default by size.
    pub log_bytes: Option<u64>,
    /// One copy of the volume table; default by size.
    pub table_bytes: Option<u64>,
}

/// What must be written to format a device: offsets and pages, in this order, then one flush.
///
/// # Errors
/// A sentence that says why the device cannot be formatted so.
pub fn format(options: &FormatOptions) -> Result<Vec<(u64, AlignedBuffer)>, String> {
    let layout = Layout::new(options.size_bytes, options.log_bytes, options.table_bytes)?;
    let granules = vec![0; layout.granule_count.div_ceil(64) as usize];
    let table = VolumeTable::default().encode(0, std::iter::empty(), &granules);
    if table.len() as u64 > layout.table_bytes() {
        return Err(format!("a volume table of {} bytes is too small for this device", layout.table_bytes()));
    }
    let mut sb = Superblock {
        cluster: options.cluster,
        device: options.device,
        power_loss_protected: options.power_loss_protected,
        atomic_declared: options.atomic_declared,
        layout,
        sequence: 1,
        table_bytes: table.len() as u64,
        table_checksum: metadata_checksum(options.device.as_u128(), layout.table_offset(0, 0), &table),
        ..Superblock::blank()
    };
    let second = sb.encode(SUPERBLOCK_B);
    sb.sequence = 2;
    let first = sb.encode(SUPERBLOCK_A);
    let copies = [0, 1].map(|copy| (layout.table_offset(0, copy), AlignedBuffer::copied_from(&table)));
    Ok(copies.into_iter().chain([(SUPERBLOCK_B, second), (SUPERBLOCK_A, first)]).collect())
}

/// The layout that [`format()`] would choose.
///
/// # Errors
/// A sentence that says what does not fit.
pub fn layout_of(options: &FormatOptions) -> Result<Layout, String> {
    Layout::new(options.size_bytes, options.log_bytes, options.table_bytes)
}

/// Chooses among both superblock pages (`None`: unreadable).
///
/// # Errors
/// Why there is no usable one.
pub fn read_superblocks(a: Option<&[u8]>, b: Option<&[u8]>) -> Result<Superblock, OpenError> {
    let decode = |offset, page: Option<&[u8]>| match page {
        Some(page) => Superblock::decode(offset, page),
        None => Err(SuperblockFault::Damaged),
    };
    match (decode(SUPERBLOCK_A, a), decode(SUPERBLOCK_B, b)) {
        (Ok(a), Ok(b)) => Ok(if a.sequence >= b.sequence { a } else { b }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(SuperblockFault::Version(found)), _) | (_, Err(SuperblockFault::Version(found))) => {
            Err(OpenError::Version { found, known: crate::disk::FORMAT_VERSION })
        }
        (Err(SuperblockFault::Foreign), Err(SuperblockFault::Foreign)) => Err(OpenError::NotAshlar),
        _ => Err(OpenError::DamagedSuperblocks),
    }
}

impl Superblock {
    /// A stand-in until the device's own is read.
    pub(super) fn blank() -> Self {
        let none = Area { offset: 0, bytes: 0 };
        let layout = Layout {
            size_bytes: 0,
            log: none,
            tables: none,
            slots: none,
            slot_count: 0,
            data: none,
            granule_count: 0,
            spares: none,
        };
        Self {
            cluster: ClusterId::from_u128(0),
            device: DeviceId::from_u128(0),
            power_loss_protected: false,
            atomic_declared: false,
            flushes: false,
            atomic: false,
            layout,
            sequence: 0,
            generation: 0,
            head_offset: 0,
            head_lsn: 1,
            head_previous: 0,
            completed_lsn: 0,
            table_half: 0,
            table_bytes: 0,
            table_checksum: 0,
            scrub_slot: 0,
        }
    }
}
