//! Opening a device: superblock, table, pages; then the log (`scan`), what was torn (`redo`), and a checkpoint.
//!
//! Bytes from the device are judged, never trusted. It must never drop what was acknowledged.

use super::scan::Scan;
use super::types::{Effect, IoError, OpenError, Purpose, read_superblocks};
use super::{Phase, StoreEngine};
use crate::alloc::Allocator;
use crate::layout::{PAGE_BYTES, SLOT_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};
use crate::map::{Chunk, ChunkMap};
use crate::table::{DirectoryEntry, VolumeTable};
use ashlar_model::checksum::metadata_checksum;
use ashlar_model::{AlignedBuffer, Payload};
use std::collections::{BTreeMap, HashMap, VecDeque};

const READ_BYTES: u64 = 1 << 20;
const READS_MAX: usize = 16;

/// What a device read of the recovery is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    Superblock(usize),
    Table,
    Slots { first: u32, count: u32 },
    Window { position: u64 },
    Verify { group: usize, record: usize, part: usize },
}

/// State of a running open.
#[derive(Debug)]
pub(super) struct Recovery {
    wants: HashMap<u64, Want>,
    next_tag: u64,
    superblocks: [Option<Payload>; 2],
    directory: BTreeMap<u32, DirectoryEntry>,
    queue: VecDeque<(u32, u32)>,
    /// Slots whose map page is damaged or not what the directory says.
    pub damaged: Vec<u32>,
    pub scan: Scan,
    /// Whether a fresh block of an incomplete write holds what its record says: (group, record, block).
    pub verified: HashMap<(usize, usize, u64), bool>,
}

impl Recovery {
    pub fn new() -> Self {
        Self {
            wants: HashMap::new(),
            next_tag: 0,
            superblocks: [None, None],
            directory: BTreeMap::new(),
            queue: VecDeque::new(),
            damaged: vec![],
            scan: Scan::default(),
            verified: HashMap::new(),
        }
    }

    pub fn directory_entry(&self, slot: u32) -> Option<DirectoryEntry> {
        self.directory.get(&slot).copied()
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
            Want::Table => match result {
                Ok(bytes) => self.recover_table(&bytes),
                Err(error) => self.open_failed(OpenError::Io(format!("read of the volume table: {error}"))),
            },
            Want::Slots { first, count } => self.recover_slots(first, count, result.ok()),
            Want::Window { position } => self.scan_window(position, result),
            Want::Verify { group, record, part } => self.verify_done(group, record, part, result.ok()),
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
        let half = sb.layout.table[sb.table_half as usize];
        let bytes = sb.table_bytes.max(1).next_multiple_of(PAGE_BYTES) as usize;
        self.map = ChunkMap::new(sb.layout.slot_count);
        self.granules = Allocator::new(sb.layout.granule_count);
        self.slots = Allocator::new(sb.layout.slot_count);
        self.sb = sb;
        self.recover_read(Want::Table, half.offset, bytes);
    }

    fn recover_table(&mut self, bytes: &[u8]) {
        let damaged = |text: &str| OpenError::DamagedTable(text.into());
        let offset = self.sb.layout.table[self.sb.table_half as usize].offset;
        let Some(bytes) = bytes.get(..self.sb.table_bytes as usize) else {
            return self.open_failed(damaged("it is cut short"));
        };
        if metadata_checksum(self.sb.device.as_u128(), offset, bytes) != self.sb.table_checksum {
            return self.open_failed(damaged("its checksum does not match the superblock's"));
        }
        let Some((table, directory)) = VolumeTable::decode(bytes) else {
            return self.open_failed(damaged("it does not decode"));
        };
        self.table = table;
        let slot_count = self.sb.layout.slot_count;
        if directory.iter().any(|entry| entry.slot >= slot_count) {
            return self.open_failed(damaged("it names a slot that does not exist"));
        }
        let recovery = self.recovery();
        recovery.directory = directory.into_iter().map(|entry| (entry.slot, entry)).collect();
        let per_read = (READ_BYTES / SLOT_BYTES) as u32;
        let queue = &mut recovery.queue;
        for slot in recovery.directory.keys().copied() {
            match queue.back_mut() {
                Some((first, count)) if *first + *count == slot && *count < per_read => *count += 1,
                _ => queue.push_back((slot, 1)),
            }
        }
        self.recover_slots_next();
    }

    fn recover_slots_next(&mut self) {
        while self.recovery().reading() < READS_MAX {
            let Some((first, count)) = self.recovery().queue.pop_front() else { break };
            let offset = self.sb.layout.slot_offset(first);
            self.recover_read(Want::Slots { first, count }, offset, count as usize * SLOT_BYTES as usize);
        }
        if self.recovery().reading() == 0 {
            self.scan_start();
        }
    }

    fn recover_slots(&mut self, first: u32, count: u32, bytes: Option<Payload>) {
        match bytes {
            Some(bytes) => {
                for (slot, pages) in (first..first + count).zip(bytes.chunks_exact(SLOT_BYTES as usize)) {
                    self.recover_slot(slot, pages);
                }
            }
            None if count > 1 => {
                let singles = (first..first + count).map(|slot| (slot, 1));
                self.recovery().queue.extend(singles);
            }
            None => self.recovery().damaged.push(first),
        }
        self.recover_slots_next();
    }

    fn recover_slot(&mut self, slot: u32, pages: &[u8]) {
        let expected = self.recovery().directory_entry(slot).expect("only listed slots are read");
        let chunk = Chunk::decode(self.sb.device, self.sb.layout.slot_offset(slot), slot, pages);
        match chunk {
            Ok(Some(chunk)) if chunk.key.volume == expected.key.volume && chunk.chunk == expected.chunk => {
                self.map.put(slot, Some(chunk));
            }
            // Newer than the directory, then the log has its image; else it is damaged.
            _ => self.recovery().damaged.push(slot),
        }
    }
}
