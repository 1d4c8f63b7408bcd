//! A simulated device: volatile cache, crashes, torn writes, reordering, and the faults of disks; all from one seed.
//!
//! It must never know what the engine wants with its bytes.

use super::Prng;
use super::cached::CachedWrite;
use super::faults::{FaultCounts, Faults, strikes};
use super::lies::Lies;
use crate::device::{Device, DeviceOp, DeviceProperties, IoResult, SECTOR_BYTES};
use crate::engine::{Effect, FormatOptions, IoError, IoId, StoreEngine, format, read_superblocks};
use crate::layout::{Layout, PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};
use crate::table::VolumeTable;
use ashlar_model::AlignedBuffer;
use ashlar_model::checksum::metadata_checksum;
use std::collections::HashSet;
use std::ops::Range;

/// An operation that is not complete.
#[derive(Debug)]
struct Pending {
    op: DeviceOp,
    /// Others that must complete first.
    behind: u64,
    stuck: bool,
}

/// The device.
#[derive(Debug)]
pub struct SimDevice {
    /// What survives a power cut.
    media: Vec<u8>,
    /// What reads see.
    view: Vec<u8>,
    cache: Vec<CachedWrite>,
    /// Writes that may strike a second time.
    echoes: Vec<CachedWrite>,
    /// Places that reads see otherwise than the medium has them, and no flush will change that: a flush failed.
    abandoned: Vec<Range<usize>>,
    pending: Vec<Pending>,
    /// Acknowledged writes need a flush.
    volatile: bool,
    counts: FaultCounts,
    /// Bytes that a power cut does not tear, and that the device promises not to: a power of two, [`SECTOR_BYTES`]
    /// unless set.
    pub atomic_write_bytes: u32,
    /// Faults by chance.
    pub faults: Faults,
    /// Writes that are acknowledged and not carried out.
    pub lies: Lies,
    /// Offsets of pages that cannot be read.
    pub unreadable: HashSet<u64>,
    /// Fail every write.
    pub fail_writes: bool,
    /// Fail every read.
    pub fail_reads: bool,
    /// Fail every flush. Of what a failed flush was to save, a part is on the medium; a later flush saves the rest no
    /// more, though reads still see it (as in Linux, which takes the pages for clean then).
    pub fail_flushes: bool,
    /// Fail every write for lack of space.
    pub full: bool,
    /// The device's randomness.
    pub prng: Prng,
}

impl SimDevice {
    /// A device of `size_bytes` with something on it, all the same byte.
    pub fn blank(size_bytes: u64, volatile: bool, seed: u64) -> Self {
        let mut prng = Prng(seed);
        // Not zeroes: what was there before must not matter.
        let fill = prng.next_u64() as u8;
        let media = vec![fill; size_bytes as usize];
        Self {
            view: media.clone(),
            media,
            cache: Vec::new(),
            echoes: Vec::new(),
            abandoned: Vec::new(),
            pending: Vec::new(),
            volatile,
            counts: FaultCounts::default(),
            atomic_write_bytes: SECTOR_BYTES,
            faults: Faults::default(),
            lies: Lies::default(),
            unreadable: HashSet::new(),
            fail_writes: false,
            fail_reads: false,
            fail_flushes: false,
            full: false,
            prng,
        }
    }

    /// A formatted device.
    pub fn formatted(options: &FormatOptions, volatile: bool, seed: u64) -> Self {
        let mut device = Self::blank(options.size_bytes, volatile, seed);
        for (offset, bytes) in format(options).expect("options fit") {
            device.put(offset, &bytes);
        }
        device
    }

    /// A device of the format before the present one, which has no spare blocks.
    pub fn formatted_without_spares(options: &FormatOptions, volatile: bool, seed: u64) -> Self {
        let mut device = Self::formatted(options, volatile, seed);
        let [a, b] = [SUPERBLOCK_A, SUPERBLOCK_B].map(|offset| Some(device.bytes(offset, PAGE_BYTES as usize)));
        let mut sb = read_superblocks(a, b).expect("just formatted");
        let (log_bytes, table_bytes) = (sb.layout.log.bytes, sb.layout.table_bytes());
        let layout = Layout::without_spares(sb.layout.size_bytes, Some(log_bytes), Some(table_bytes));
        sb.layout = layout.expect("it fits with spares");
        let granules = vec![0; sb.layout.granule_count.div_ceil(64) as usize];
        let table = VolumeTable::default().encode(0, std::iter::empty(), &granules);
        let offset = sb.layout.table_offset(0, 0);
        (sb.table_bytes, sb.table_checksum) =
            (table.len() as u64, metadata_checksum(sb.device.as_u128(), offset, &table));
        for copy in [0, 1] {
            device.put(sb.layout.table_offset(0, copy), &AlignedBuffer::copied_from(&table));
        }
        for offset in [SUPERBLOCK_A, SUPERBLOCK_B] {
            device.put(offset, &sb.encode(offset));
        }
        device
    }

    /// Puts bytes on the medium, as another program would.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        let write = CachedWrite { offset: offset as usize, bytes: bytes.to_vec() };
        write.apply(&mut self.media);
        write.apply(&mut self.view);
    }

    /// How often faults have bitten.
    pub fn counts(&self) -> FaultCounts {
        self.counts
    }

    /// Flips one bit.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.counts.rotten += 1;
        for bytes in [&mut self.media, &mut self.view] {
            bytes[offset as usize] ^= 1 << (bit % 8);
        }
    }

    /// Bytes as a read would see them.
    pub fn bytes(&self, offset: u64, bytes: usize) -> &[u8] {
        &self.view[offset as usize..offset as usize + bytes]
    }

    /// Operations that are not complete, stuck ones too.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Operations that are stuck now.
    pub fn stuck(&self) -> usize {
        self.pending.iter().filter(|one| one.stuck).count()
    }

    /// Lets stuck operations go on like any other.
    pub fn release_stuck(&mut self) {
        self.pending.iter_mut().for_each(|one| one.stuck = false);
    }

    /// Takes the engine's effects; gives those that are not for the device.
    pub fn take(&mut self, engine: &mut StoreEngine) -> Vec<Effect> {
        let (mut effects, mut rest) = (Vec::new(), Vec::new());
        engine.effects(&mut effects);
        for effect in effects {
            match DeviceOp::from_effect(effect) {
                Ok(op) => self.submit(op),
                Err(effect) => rest.push(effect),
            }
        }
        rest
    }

    /// Completes one operation, any of those pending; nothing happens if all are stuck.
    pub fn complete_one(&mut self, engine: &mut StoreEngine) {
        if let Some((io, result)) = self.perform_any() {
            engine.io_done(io, result);
        }
    }

    fn perform_any(&mut self) -> Option<(IoId, IoResult)> {
        // When nothing else is left to do, even a slow operation comes to its end.
        let ready = |one: &Pending| !one.stuck && one.behind == 0;
        let patient = self.pending.iter().any(ready);
        let may = |one: &Pending| !one.stuck && (one.behind == 0 || !patient);
        let count = self.pending.iter().filter(|one| may(one)).count() as u64;
        if count == 0 {
            return None;
        }
        let chosen = self.prng.below(count) as usize;
        let at = (0..self.pending.len()).filter(|i| may(&self.pending[*i])).nth(chosen)?;
        let op = self.pending.swap_remove(at).op;
        for other in self.pending.iter_mut().filter(|other| other.behind > 0) {
            other.behind -= 1;
            self.counts.slowed += u64::from(other.behind == 0);
        }
        let result = op.check(self.properties().size_bytes).and_then(|()| match &op {
            DeviceOp::Read { offset, bytes, .. } => self.read(*offset, *bytes),
            DeviceOp::Write { offset, parts, durable, .. } => {
                let write = CachedWrite::new(*offset, parts);
                let place = write.place();
                self.write(write).and_then(|done| if *durable { self.flush_place(&place) } else { Ok(done) })
            }
            DeviceOp::Flush { .. } => self.flush(),
            DeviceOp::Discard { offset, bytes, .. } => self.discard(*offset as usize, *bytes as usize),
        });
        Some((op.io(), result))
    }

    fn read(&mut self, offset: u64, bytes: usize) -> IoResult {
        if self.fail_reads {
            self.counts.read_errors += 1;
            return Err(IoError("read error".into()));
        }
        let range = offset..offset + bytes as u64;
        if self.faults.cover(Some(&range)) {
            if strikes(&mut self.prng, self.faults.unreadable_one_in) {
                let page = self.prng.below(bytes as u64 / PAGE_BYTES);
                self.unreadable.insert(offset + page * PAGE_BYTES);
            }
            if strikes(&mut self.prng, self.faults.rot_one_in) {
                let (at, bit) = (self.prng.below(bytes as u64), self.prng.below(8));
                self.flip_bit(offset + at, bit as u8);
            }
        }
        if range.step_by(PAGE_BYTES as usize).any(|page| self.unreadable.contains(&page)) {
            self.counts.unreadable += 1;
            return Err(IoError("unreadable sector".into()));
        }
        Ok(Some(AlignedBuffer::copied_from(self.bytes(offset, bytes))))
    }

    fn write(&mut self, mut write: CachedWrite) -> IoResult {
        if self.fail_writes {
            self.counts.write_errors += 1;
            return Err(IoError("write error".into()));
        }
        if self.full {
            self.counts.full += 1;
            return Err(IoError("no space left on device".into()));
        }
        if self.lies.tell(write.offset, &write.bytes, &mut self.view, &mut self.media) {
            return Ok(None);
        }
        let range = write.place().start as u64..write.place().end as u64;
        let mut again = false;
        if self.faults.cover(Some(&range)) {
            if strikes(&mut self.prng, self.faults.lose_one_in) {
                self.counts.lost += 1;
                return Ok(None);
            }
            if strikes(&mut self.prng, self.faults.misdirect_one_in)
                && let Some(offset) = self.elsewhere(&range)
            {
                self.counts.misdirected += 1;
                write.offset = offset as usize;
                self.land(write);
                return Ok(None);
            }
            again = strikes(&mut self.prng, self.faults.duplicate_one_in);
        }
        let stale = self.echoes.extract_if(.., |echo| echo.touches(&write));
        let stale: Vec<CachedWrite> = stale.collect();
        if again {
            self.echoes.push(write.clone());
        }
        self.land(write);
        for echo in stale {
            self.counts.duplicated += 1;
            self.land(echo);
        }
        Ok(None)
    }

    /// Puts bytes where reads see them, and on the medium or in the cache before it.
    fn land(&mut self, write: CachedWrite) {
        for page in write.place().step_by(PAGE_BYTES as usize) {
            self.unreadable.remove(&(page as u64));
        }
        write.apply(&mut self.view);
        if self.volatile {
            self.cache.push(write);
        } else {
            write.apply(&mut self.media);
        }
    }

    /// An aligned place for as many bytes that shares none with `range`.
    fn elsewhere(&mut self, range: &Range<u64>) -> Option<u64> {
        let whole = 0..self.properties().size_bytes;
        let within = self.faults.only.as_ref().unwrap_or(&whole);
        let bytes = range.end - range.start;
        let pages = |bytes: u64| bytes / PAGE_BYTES;
        // Places before the range, and places behind it: first pages, and one past the last.
        let first = pages(within.start.next_multiple_of(PAGE_BYTES));
        let before = first..(pages(range.start) + 1).saturating_sub(pages(bytes)).max(first);
        let behind = pages(range.end)..(pages(within.end) + 1).saturating_sub(pages(bytes)).max(pages(range.end));
        let (before_count, count) = (before.end - before.start, before.end - before.start + behind.end - behind.start);
        if count == 0 {
            return None;
        }
        let chosen = self.prng.below(count);
        let page = if chosen < before_count { before.start + chosen } else { behind.start + chosen - before_count };
        Some(page * PAGE_BYTES)
    }

    /// What is cached for a place becomes durable, and nothing else.
    fn flush_place(&mut self, place: &Range<usize>) -> IoResult {
        let here = |write: &mut CachedWrite| write.place().start < place.end && place.start < write.place().end;
        let fails = self.fail_flushes;
        for write in self.cache.extract_if(.., here) {
            if !fails || self.prng.one_in(2) {
                write.apply(&mut self.media);
            }
            if fails {
                self.abandoned.push(write.place());
            }
        }
        self.counts.flush_errors += u64::from(fails);
        if fails { Err(IoError("flush error".into())) } else { Ok(None) }
    }

    fn flush(&mut self) -> IoResult {
        self.echoes.clear();
        if !self.fail_flushes {
            for write in self.cache.drain(..) {
                write.apply(&mut self.media);
            }
            return Ok(None);
        }
        self.counts.flush_errors += 1;
        for write in self.cache.drain(..) {
            if self.prng.one_in(2) {
                write.apply(&mut self.media);
            }
            self.abandoned.push(write.place());
        }
        Err(IoError("flush error".into()))
    }

    /// What was there stays, or is zeroes, or something else.
    fn discard(&mut self, offset: usize, bytes: usize) -> IoResult {
        self.counts.discards += 1;
        self.lies.overwritten(offset, bytes);
        let fill = match self.prng.below(3) {
            0 => return Ok(None),
            1 => 0,
            _ => self.prng.next_u64() as u8,
        };
        for target in [&mut self.media, &mut self.view] {
            target[offset..offset + bytes].fill(fill);
        }
        Ok(None)
    }

    /// The process that drives the device dies: each operation on its way is carried out as a whole or not at all, and
    /// what the device had taken stays, flushed or not.
    pub fn kill(&mut self) {
        self.lies.make_good(&mut self.view, &mut self.media, &mut self.unreadable);
        for Pending { op, .. } in std::mem::take(&mut self.pending) {
            if self.prng.one_in(2) || op.check(self.properties().size_bytes).is_err() {
                continue;
            }
            // Nobody is left to learn how it went.
            let _ = match op {
                DeviceOp::Write { offset, parts, .. } => self.write(CachedWrite::new(offset, &parts)),
                DeviceOp::Discard { offset, bytes, .. } => self.discard(offset as usize, bytes as usize),
                DeviceOp::Flush { .. } => self.flush(),
                DeviceOp::Read { .. } => Ok(None),
            };
        }
    }

    /// A power cut: of what was not flushed, and of what was on its way, any part survives, in any order.
    pub fn crash(&mut self) {
        self.lies.make_good(&mut self.view, &mut self.media, &mut self.unreadable);
        let mut lost = std::mem::take(&mut self.cache);
        self.echoes.clear();
        for Pending { op, .. } in std::mem::take(&mut self.pending) {
            match op {
                _ if op.check(self.properties().size_bytes).is_err() => {}
                DeviceOp::Write { offset, parts, .. } => lost.push(CachedWrite::new(offset, &parts)),
                DeviceOp::Discard { offset, bytes, .. } if self.prng.one_in(2) => {
                    self.discard(offset as usize, bytes as usize).expect("a discard has no faults");
                }
                _ => {}
            }
        }
        let mut places: Vec<_> = lost.iter().map(CachedWrite::place).collect();
        places.append(&mut self.abandoned);
        let unit = self.atomic_write_bytes.max(SECTOR_BYTES) as usize;
        let style = self.prng.below(4);
        while !lost.is_empty() {
            let write = lost.swap_remove(self.prng.below(lost.len() as u64) as usize);
            let fate = if style == 3 { 2 } else { self.prng.below(3) };
            let prng = &mut self.prng;
            match fate {
                0 => {}
                1 => write.apply(&mut self.media),
                _ => {
                    let keep = 1 + prng.below(8);
                    let torn = write.tear(&mut self.media, unit, || prng.below(8) < keep);
                    self.counts.torn += u64::from(torn);
                }
            }
        }
        for place in places {
            self.view[place.clone()].copy_from_slice(&self.media[place]);
        }
    }
}

impl Device for SimDevice {
    fn properties(&self) -> DeviceProperties {
        DeviceProperties {
            size_bytes: self.media.len() as u64 / PAGE_BYTES * PAGE_BYTES,
            volatile_cache: self.volatile,
            atomic_write_bytes: self.atomic_write_bytes,
            block_device: true,
        }
    }

    fn submit(&mut self, op: DeviceOp) {
        let mut pending = Pending { op, behind: 0, stuck: false };
        if self.faults.cover(pending.op.range().as_ref()) {
            pending.stuck = strikes(&mut self.prng, self.faults.stick_one_in);
            self.counts.stuck += u64::from(pending.stuck);
            if !pending.stuck && strikes(&mut self.prng, self.faults.slow_one_in) {
                pending.behind = self.faults.slow_by;
            }
        }
        self.pending.push(pending);
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn complete(&mut self, out: &mut Vec<(IoId, IoResult)>) {
        out.extend(self.perform_any());
    }
}
