//! Reading the log from its head: groups that chain, up to the first that does not.
//!
//! A group that does not verify ends the log, unless something proves that it had completed. A page that cannot be read is
//! one that does not verify. It must never apply anything.

use super::StoreEngine;
use super::recover::Want;
use super::types::{IoError, OpenError};
use crate::disk::GroupHeaderDisk;
use crate::group;
use crate::layout::PAGE_BYTES;
use crate::record::Record;
use ashlar_model::{AlignedBuffer, Payload};

const WINDOW_BYTES: u64 = 1 << 20;
/// Pages of the log that a medium may lose. With more of them it is the device that fails: it might say so of every group.
const UNREADABLE_MAX: u32 = 64;

/// A group that verified.
#[derive(Debug)]
pub(super) struct ReadGroup {
    pub lsn: u64,
    /// Records, with the number of their first payload block.
    pub records: Vec<(Record, usize)>,
    /// All payload blocks.
    pub payload: Option<Payload>,
}

/// Progress of the scan.
#[derive(Debug, Default)]
pub(super) struct Scan {
    position: u64,
    lsn: u64,
    previous: u64,
    generation: u64,
    /// Largest completed number seen.
    pub completed: u64,
    pub groups: Vec<ReadGroup>,
    window: Option<(u64, Payload)>,
    /// The beginning of the ring: the log may go on there, so it is looked at again and again.
    beginning: Option<Payload>,
    /// A read ahead failed: only what is needed is read until a group was found.
    exact: bool,
    /// The page whose read failed last.
    failed: Option<u64>,
    /// Pages that cannot be read.
    unreadable: u32,
    /// A group that is read page by page.
    patch: Option<Patch>,
    /// Pages searched after the end of the chain.
    searched: Option<u64>,
}

/// A group with a page that cannot be read: zeroes stand for it.
#[derive(Debug)]
struct Patch {
    position: u64,
    bytes: AlignedBuffer,
    done: usize,
}

/// What the bytes at a position are.
enum Found {
    /// A group: header, checksum, bytes in all.
    Group(ReadGroup, GroupHeaderDisk, u64),
    Nothing,
    /// A read was started.
    Wait,
}

impl Scan {
    fn put_window(&mut self, position: u64, bytes: Payload) {
        if position == 0 {
            self.beginning = Some(bytes);
        } else {
            self.window = Some((position, bytes));
        }
    }
}

impl StoreEngine {
    pub(super) fn scan_start(&mut self) {
        let sb = &self.sb;
        let scan = Scan {
            position: sb.head_offset,
            lsn: sb.head_lsn,
            previous: sb.head_previous,
            completed: sb.completed_lsn,
            ..Scan::default()
        };
        self.recovery().scan = scan;
        self.log.head = self.sb.head_offset;
        self.log.tail = self.sb.head_offset;
        self.scan_step();
    }

    pub(super) fn scan_window(&mut self, position: u64, bytes: u64, result: Result<Payload, IoError>) {
        let scan = &mut self.recovery().scan;
        match result {
            Ok(bytes) => scan.put_window(position, bytes),
            Err(_) if !scan.exact => scan.exact = true,
            Err(error) if scan.unreadable >= UNREADABLE_MAX => return self.scan_failed(position, &error),
            // Nobody has written there since: it proves nothing.
            Err(_) if scan.searched.is_some() => {
                scan.unreadable += 1;
                scan.searched = scan.searched.map(|done| done + PAGE_BYTES);
            }
            Err(_) if bytes > PAGE_BYTES => {
                let bytes = AlignedBuffer::zeroed(bytes as usize);
                scan.patch = Some(Patch { position, bytes, done: 0 });
                return self.patch_next();
            }
            Err(_) if scan.failed != Some(position) => scan.failed = Some(position),
            Err(error) => {
                tracing::warn!(position, %error, "a page of the log cannot be read");
                scan.unreadable += 1;
                scan.put_window(position, AlignedBuffer::zeroed(bytes as usize).freeze());
            }
        }
        self.scan_step();
    }

    fn scan_failed(&mut self, position: u64, error: &IoError) {
        self.open_failed(OpenError::Io(format!("read of the log at {position}: {error}")));
    }

    fn patch_next(&mut self) {
        let ring = self.sb.layout.log;
        let patch = self.recovery().scan.patch.as_ref().expect("a group is read page by page");
        let offset = ring.offset + patch.position + patch.done as u64;
        self.recover_read(Want::Patch, offset, PAGE_BYTES as usize);
    }

    /// A page of a group, or zeroes in its place: then the group's checksum, or the checksum of its block, does not match.
    pub(super) fn scan_patch(&mut self, result: Result<Payload, IoError>) {
        let scan = &mut self.recovery().scan;
        let patch = scan.patch.as_mut().expect("a group is read page by page");
        let position = patch.position + patch.done as u64;
        match result {
            Ok(page) => patch.bytes[patch.done..patch.done + PAGE_BYTES as usize].copy_from_slice(&page),
            Err(_) if scan.failed != Some(position) => {
                scan.failed = Some(position);
                return self.patch_next();
            }
            Err(error) if scan.unreadable >= UNREADABLE_MAX => return self.scan_failed(position, &error),
            Err(error) => {
                tracing::warn!(position, %error, "a page of the log cannot be read");
                scan.unreadable += 1;
            }
        }
        patch.done += PAGE_BYTES as usize;
        if patch.done < patch.bytes.len() {
            return self.patch_next();
        }
        let Patch { position, bytes, .. } = scan.patch.take().expect("just seen");
        scan.put_window(position, bytes.freeze());
        self.scan_step();
    }

    /// Bytes of the ring, or starts to read them.
    fn fetch(&mut self, position: u64, bytes: u64) -> Option<Payload> {
        let ring = self.sb.layout.log;
        let scan = &mut self.recovery().scan;
        let beginning = scan.beginning.as_ref().map(|window| (0, window));
        let window = scan.window.as_ref().map(|(start, window)| (*start, window));
        for (start, window) in beginning.into_iter().chain(window) {
            if position >= start && position + bytes <= start + window.len() as u64 {
                return Some(window.slice((position - start) as usize, bytes as usize));
            }
        }
        let length = if scan.exact { bytes } else { bytes.max(WINDOW_BYTES).min(ring.bytes - position) };
        self.recover_read(Want::Window { position, bytes: length }, ring.offset + position, length as usize);
        None
    }

    fn scan_step(&mut self) {
        loop {
            if self.recovery().scan.searched.is_some() {
                return self.search_step();
            }
            match self.next_group() {
                Found::Wait => return,
                Found::Group(group, header, bytes) => self.scan_accept(group, &header, bytes),
                Found::Nothing => self.recovery().scan.searched = Some(0),
            }
        }
    }

    /// The next group: where the last one ended, or at the start of the ring if it did not fit there. If both places have
    /// one, an open gave up what it could not read at the first place, and went on at the other: the later open's counts.
    fn next_group(&mut self) -> Found {
        let place = self.recovery().scan.position % self.sb.layout.log.bytes;
        let here = self.group_at(place);
        let fits = place + self.sb.layout.group_bytes_max() <= self.sb.layout.log.bytes;
        if place == 0 || fits || matches!(here, Found::Wait) {
            return here;
        }
        match (here, self.group_at(0)) {
            (here, Found::Nothing) => here,
            (Found::Group(group, header, end), Found::Group(_, other, _))
                if header.generation.get() >= other.generation.get() =>
            {
                Found::Group(group, header, end)
            }
            (_, at_start) => at_start,
        }
    }

    fn scan_accept(&mut self, group: ReadGroup, header: &GroupHeaderDisk, place_end: u64) {
        let ring = self.sb.layout.log.bytes;
        let scan = self.recovery();
        let scan = &mut scan.scan;
        scan.exact = false;
        scan.lsn = group.lsn + 1;
        scan.previous = header.checksum.get();
        scan.generation = header.generation.get();
        scan.completed = scan.completed.max(header.completed.get());
        // A group whose end lies before the tail came after a wrap.
        let at = scan.position % ring;
        let ahead = if place_end > at { place_end - at } else { ring - at + place_end };
        scan.position += ahead;
        scan.groups.push(group);
    }

    /// Parses the group at a place. Its end, within the ring, comes with it.
    fn group_at(&mut self, place: u64) -> Found {
        let (lsn, previous, generation) = {
            let scan = &self.recovery().scan;
            (scan.lsn, scan.previous, scan.generation)
        };
        let Some(page) = self.fetch(place, PAGE_BYTES) else { return Found::Wait };
        let Some((header, area)) = group::header_at(&self.sb.layout, place, &page) else { return Found::Nothing };
        if !group::is_next(&header, lsn, previous, generation) {
            return Found::Nothing;
        }
        let payload_bytes = u64::from(header.payload_blocks.get()) * PAGE_BYTES;
        let Some(bytes) = self.fetch(place, area + payload_bytes) else { return Found::Wait };
        let read = group::records(self.sb.device, &self.sb.layout, &header, &bytes);
        let Some(records) = read else { return Found::Nothing };
        let payload = (payload_bytes > 0).then(|| bytes.slice(area as usize, payload_bytes as usize));
        Found::Group(ReadGroup { lsn, records, payload }, header, place + area + payload_bytes)
    }

    /// Past the end of the chain: a later group that says the missing one had completed proves corruption.
    fn search_step(&mut self) {
        let ring = self.sb.layout.log.bytes;
        let limit = ring.min(4 * self.sb.layout.group_bytes_max());
        loop {
            let scan = &self.recovery().scan;
            let (done, position, lsn) = (scan.searched.expect("searching"), scan.position, scan.lsn);
            if done >= limit {
                break;
            }
            let place = (position + done) % ring;
            let Some(page) = self.fetch(place, PAGE_BYTES) else { return };
            if let Some((header, area)) = group::header_at(&self.sb.layout, place, &page)
                && header.lsn.get() > lsn
                && header.completed.get() >= lsn
            {
                let Some(bytes) = self.fetch(place, area) else { return };
                if group::verifies(self.sb.device, &header, &bytes) {
                    let completed = header.completed.get();
                    return self.open_failed(OpenError::LogCorruption { lsn, completed });
                }
            }
            let scan = &mut self.recovery().scan;
            scan.searched = Some(done + PAGE_BYTES);
        }
        self.scan_end();
    }

    fn scan_end(&mut self) {
        let scan = &mut self.recovery().scan;
        scan.window = None;
        let (position, lsn, previous, completed) = (scan.position, scan.lsn, scan.previous, scan.completed);
        let generation = scan.generation;
        if lsn <= completed {
            return self.open_failed(OpenError::LogCorruption { lsn, completed });
        }
        // No two opens have the same: else groups that one of them gave up could chain to the other's again.
        self.sb.generation = self.sb.generation.max(generation) + 1 + (self.options.nonce & u64::from(u32::MAX));
        self.log.tail = position;
        self.log.next_lsn = lsn;
        self.log.previous = previous;
        self.log.completed = lsn - 1;
        self.redo_start();
    }
}
