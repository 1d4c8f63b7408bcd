//! Opening a device: superblock and table; then the log (`scan`), what was torn (`verify`), and the replay (`redo`).
//!
//! Bytes from the device are judged, never trusted. It must never drop what was acknowledged.

use super::scan::Scan;
use super::types::{Effect, IoError, OpenError, Purpose, read_superblocks};
use super::verify::Latest;
use super::{Phase, StoreEngine};
use crate::alloc::Allocator;
use crate::layout::{CHUNKS_MAX, PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B, TABLE_COPIES};
use crate::map::{ChunkMap, ordered_chunks_max};
use crate::record::Record;
use crate::table::{TableContent, VolumeTable};
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::{AlignedBuffer, Payload, Pieces};
use rustc_hash::FxHashMap;

/// What a device read of the recovery is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    Superblock(usize),
    Table {
        copy: u64,
    },
    Window {
        position: u64,
        bytes: u64,
    },
    /// One page of a group that could not be read as a whole.
    Patch,
    /// A part of a write; or one block of it, where the part could not be read as a whole.
    Verify {
        group: usize,
        record: usize,
        part: usize,
        block: Option<u64>,
    },
}

/// State of a running open.
#[derive(Debug)]
pub(super) struct Recovery {
    wants: FxHashMap<u64, Want>,
    next_tag: u64,
    superblocks: [Option<Payload>; 2],
    pub scan: Scan,
    /// Whether a fresh block of an incomplete write holds what its record says: (group, record, block).
    pub verified: FxHashMap<(usize, usize, u64), bool>,
    /// Map pages that the replay still needs, once it knows which.
    pub needed: Option<Vec<u32>>,
    pub latest: Latest,
}

impl Recovery {
    pub fn new() -> Self {
        Self {
            wants: FxHashMap::default(),
            next_tag: 0,
            superblocks: [None, None],
            scan: Scan::default(),
            verified: FxHashMap::default(),
            needed: None,
            latest: Latest::default(),
        }
    }

    pub fn reading(&self) -> usize {
        self.wants.len()
    }
}

impl StoreEngine {
    pub(super) fn recover_start(&mut self) {
        self.recover_read(Want::Superblock(0), SUPERBLOCK_A, PAGE_BYTES as usize);
        self.recover_read(Want::Superblock(1), SUPERBLOCK_B, PAGE_BYTES as usize);
    }

    pub(super) fn recovery(&mut self) -> &mut Recovery {
        match &mut self.phase {
            Phase::Opening(recovery) => recovery,
            _ => unreachable!("only while opening"),
        }
    }

    pub(super) fn recover_read(&mut self, want: Want, offset: u64, bytes: usize) {
        let recovery = self.recovery();
        recovery.next_tag += 1;
        let tag = recovery.next_tag;
        recovery.wants.insert(tag, want);
        self.issue_read(Purpose::Recovery(tag), offset, bytes);
    }

    pub(super) fn open_failed(&mut self, error: OpenError) {
        tracing::error!(%error, "store device cannot be opened");
        let reason = error.to_string();
        self.fail(reason);
        let Some(Effect::OpenFailed(last)) = self.effects.last_mut() else { unreachable!("fail says so last") };
        *last = error;
    }

    pub(super) fn recover_done(&mut self, tag: u64, result: Result<Option<AlignedBuffer>, IoError>) {
        let want = self.recovery().wants.remove(&tag).expect("recovery asked for it");
        let result = match result {
            Ok(Some(buffer)) => Ok(buffer.freeze()),
            Ok(None) => Err(IoError("the read gave no bytes".into())),
            Err(error) => Err(error),
        };
        match want {
            Want::Superblock(i) => {
                self.recovery().superblocks[i] = result.ok();
                if self.recovery().reading() == 0 {
                    self.recover_superblock();
                }
            }
            Want::Table { copy } => self.recover_table(copy, result),
            Want::Window { position, bytes } => self.scan_window(position, bytes, result),
            Want::Patch => self.scan_patch(result),
            Want::Verify { group, record, part, block } => self.verify_done((group, record), part, block, result.ok()),
        }
    }

    fn recover_superblock(&mut self) {
        let [a, b] = std::mem::take(&mut self.recovery().superblocks);
        let sb = match read_superblocks(a.as_deref(), b.as_deref()) {
            Ok(sb) => sb,
            Err(error) => return self.open_failed(error),
        };
        if let Some(expected) = self.options.cluster
            && expected != sb.cluster
        {
            return self.open_failed(OpenError::OtherCluster { expected, found: sb.cluster });
        }
        let (formatted, found) = (sb.layout.size_bytes, self.options.size_bytes);
        if found < formatted {
            return self.open_failed(OpenError::SizeMismatch { formatted, found });
        }
        self.map = ChunkMap::new(sb.layout.slot_count);
        if sb.layout.has_spares() {
            let bytes = self.options.map_bytes_per_granule;
            self.map.allow_ordered(ordered_chunks_max(sb.layout.granule_count, bytes));
        }
        self.granules = Allocator::new(sb.layout.granule_count);
        self.slots = Allocator::new(sb.layout.slot_count);
        self.sb = sb;
        self.recover_read_table(0);
    }

    fn recover_read_table(&mut self, copy: u64) {
        let bytes = self.sb.table_bytes.max(1).next_multiple_of(PAGE_BYTES) as usize;
        let offset = self.sb.layout.table_offset(self.sb.table_half, copy);
        self.recover_read(Want::Table { copy }, offset, bytes);
    }

    fn recover_table(&mut self, copy: u64, result: Result<Payload, IoError>) {
        let content = result.map_err(|error| error.to_string()).and_then(|bytes| self.check_table(&bytes));
        match content {
            Ok(content) => self.take_table(content),
            Err(text) if copy + 1 < TABLE_COPIES => {
                tracing::error!("the first copy of the volume table is damaged ({text}): using the second");
                self.stats.damaged_tables += 1;
                // The next checkpoint writes both anew.
                self.checkpoint_wanted = true;
                self.recover_read_table(copy + 1);
            }
            Err(text) => self.open_failed(OpenError::DamagedTable(text)),
        }
    }

    fn check_table(&self, bytes: &[u8]) -> Result<TableContent, String> {
        let layout = &self.sb.layout;
        let bytes = bytes.get(..self.sb.table_bytes as usize).ok_or("it is cut short")?;
        let offset = layout.table_offset(self.sb.table_half, 0);
        if metadata_checksum(self.sb.device.as_u128(), offset, bytes) != self.sb.table_checksum {
            return Err("its checksum does not match the superblock's".into());
        }
        let content = VolumeTable::decode(bytes).ok_or("it does not decode")?;
        if content.directory.iter().any(|entry| entry.slot >= layout.slot_count) {
            return Err("it names a slot that does not exist".into());
        }
        if content.directory.iter().any(|entry| entry.chunk >= CHUNKS_MAX) {
            return Err("it names a chunk that no volume has".into());
        }
        Ok(content)
    }

    fn take_table(&mut self, content: TableContent) {
        let layout = self.sb.layout;
        let Some(granules) = Allocator::from_words(layout.granule_count, content.granules) else {
            return self.open_failed(OpenError::DamagedTable("its granules are not this device's".into()));
        };
        let mut chunks = rustc_hash::FxHashSet::default();
        for entry in &content.directory {
            let name = (entry.key.volume, entry.chunk, entry.generation);
            if !chunks.insert(name) || !self.slots.claim(entry.slot) {
                let text = format!("chunk {} of volume {} has two slots", entry.chunk, entry.key.volume);
                return self.open_failed(OpenError::Inconsistent(text));
            }
        }
        self.granules = granules;
        let scrub = u32::try_from(self.sb.scrub_slot).unwrap_or(0);
        self.scrub.slot = if scrub < layout.slot_count { scrub } else { 0 };
        self.table = content.table;
        for (key, state) in self.table.lanes() {
            for entry in &state.list {
                self.map.list(key.volume, entry.stamp, entry.range, entry.generation);
            }
        }
        self.map.restore(content.directory);
        self.load_begin();
        self.scan_start();
    }

    /// What was judged is to become durable before anything builds on it.
    pub(super) fn recover_end(&mut self) {
        self.phase = Phase::Finishing;
        if self.flush_needed() {
            self.issue_flush(Purpose::OpenFlush);
        } else {
            self.finish_open();
        }
    }

    pub(super) fn finish_open(&mut self) {
        let decided = (self.flush_needed(), self.atomic());
        let before = (self.sb.flushes, self.sb.atomic);
        if decided != before {
            let fresh = self.sb.sequence <= 2;
            if !fresh {
                tracing::warn!(?before, ?decided, "the device's (needs flushes, is atomic) is not what it was");
            }
            self.checkpoint_wanted = true;
        }
        // They go into the first group, before any group that calls the judged ones complete.
        for (lsn, ordinal) in std::mem::take(&mut self.dropped_now) {
            self.append(Record::Dropped { lsn, ordinal }, Pieces::new(), None);
        }
        self.phase = Phase::Open;
        self.load_rest();
        self.effects.push(Effect::Opened);
    }

    /// The map contradicts itself: nothing is guessed, the device is of no use.
    pub(super) fn inconsistent(&mut self, text: String) {
        if matches!(self.phase, Phase::Opening(_) | Phase::Finishing) {
            self.open_failed(OpenError::Inconsistent(text));
        } else {
            self.fail(text);
        }
    }
}
