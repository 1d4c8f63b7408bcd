//! Group commit: what waits becomes one log write; when it and its data are durable, all of it is answered.
//!
//! One log write is in flight at a time. It must never know what a record means.

use super::types::Purpose;
use super::{IMAGE_COST, StoreEngine};
use crate::disk::{self, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeaderDisk};
use crate::layout::PAGE_BYTES;
use crate::record::Record;
use ashlar_model::{AlignedBuffer, Payload};
use std::collections::VecDeque;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Lazy records that start a group on their own.
const LAZY_MAX: usize = 64;

/// A record waiting for its group.
#[derive(Debug)]
pub(super) struct Pending {
    pub record: Record,
    pub payloads: Vec<Payload>,
    pub op: Option<u64>,
}

/// A group that is not complete.
#[derive(Debug)]
struct Group {
    lsn: u64,
    log_done: bool,
    /// Operations whose data writes are in flight.
    data_left: usize,
    flushing: bool,
    durable: bool,
    ops: Vec<u64>,
    images: usize,
}

/// The log ring. Positions count bytes since open; modulo the ring's size they are offsets.
#[derive(Default, Debug)]
pub(super) struct Log {
    pub head: u64,
    pub tail: u64,
    pub next_lsn: u64,
    pub previous: u64,
    pub completed: u64,
    pub pending: VecDeque<Pending>,
    pub images: VecDeque<Pending>,
    /// Bytes that `pending` takes at most.
    pub pending_cost: u64,
    /// Images whose groups are not complete.
    pub images_left: usize,
    groups: VecDeque<Group>,
    writing: bool,
    lazy: usize,
}

impl Log {
    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.tail - self.head
    }

    /// True if everything accepted is complete.
    pub fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.images.is_empty() && self.groups.is_empty()
    }
}

/// Bytes that a record takes at most. What an open dropped goes into one group, whatever it is.
fn cost(record: &Record) -> u64 {
    if let Record::Dropped { .. } = record {
        return 16;
    }
    PAGE_BYTES * (1 + u64::from(record.payload_blocks()))
}

impl StoreEngine {
    /// True if `bytes` of log and images of `slots` more slots fit, with a checkpoint still possible afterwards.
    pub(super) fn has_room(&self, bytes: u64, slots: usize) -> bool {
        let reserve = self.layout().group_bytes_max() + 16 * PAGE_BYTES;
        let images = (self.log.images.len() + self.dirty.len() + slots) as u64 * IMAGE_COST;
        self.log.used() + self.log.pending_cost + images + reserve + bytes <= self.layout().log.bytes
    }

    /// Adds a record to the next group.
    pub(super) fn append(&mut self, record: Record, payloads: Vec<Payload>, op: Option<u64>) {
        self.log.pending_cost += cost(&record);
        self.log.pending.push_back(Pending { record, payloads, op });
    }

    /// Adds a record that may wait for another one's group. Settles of one lane in a row become one.
    pub(super) fn append_lazy(&mut self, record: Record) {
        if let (
            Some(Pending { record: Record::Settle(key, index, config, member), .. }),
            Record::Settle(key2, index2, config2, member2),
        ) = (self.log.pending.back_mut(), &record)
            && (*key, *member) == (*key2, *member2)
        {
            *index = (*index).max(*index2);
            *config = (*config).max(*config2);
            return;
        }
        self.log.lazy += 1;
        self.append(record, Vec::new(), None);
    }

    /// Writes the next group if there is one, completes and flushes what can be.
    pub(super) fn commit_step(&mut self) {
        self.advance_groups();
        let urgent = self.log.pending.len() > self.log.lazy || self.log.lazy > LAZY_MAX || self.draining();
        if !self.log.writing && (!self.log.images.is_empty() || (!self.log.pending.is_empty() && urgent)) {
            self.write_group();
        }
    }

    fn write_group(&mut self) {
        let max = self.layout().group_bytes_max();
        let mut records = vec![0u8; GROUP_HEADER_BYTES];
        let mut parts = vec![];
        let mut payload_blocks = 0u32;
        let mut group = Group {
            lsn: self.log.next_lsn,
            log_done: false,
            data_left: 0,
            flushing: false,
            durable: false,
            ops: vec![],
            images: 0,
        };
        let (mut count, mut budget) = (0u32, max - 2 * PAGE_BYTES);
        loop {
            // Images may take half of a group, so that requests do not wait behind all of them.
            let image = self.log.images.front().is_some_and(|i| budget > max / 2 && cost(&i.record) <= budget);
            let queue = if image { &mut self.log.images } else { &mut self.log.pending };
            let Some(pending) = queue.pop_front_if(|one| cost(&one.record) <= budget) else { break };
            let cost = cost(&pending.record);
            budget -= cost;
            count += 1;
            payload_blocks += pending.record.payload_blocks();
            pending.record.encode(&mut records);
            parts.extend(pending.payloads);
            if image {
                group.images += 1;
                continue;
            }
            self.log.pending_cost -= cost;
            self.log.lazy -= usize::from(matches!(pending.record, Record::Settle(..)));
            if let Some(op) = pending.op {
                group.ops.push(op);
                group.data_left += usize::from(self.op_grouped(op, group.lsn));
            }
        }
        assert!(count > 0, "every record fits an empty group");
        self.send_group(group, records, count, payload_blocks, parts);
    }

    fn send_group(&mut self, group: Group, mut records: Vec<u8>, count: u32, blocks: u32, parts: Vec<Payload>) {
        let header = GroupHeaderDisk {
            magic: GROUP_MAGIC,
            checksum: U64::new(0),
            lsn: U64::new(group.lsn),
            previous: U64::new(self.log.previous),
            completed: U64::new(self.log.completed),
            generation: U64::new(self.sb.generation),
            record_bytes: U32::new((records.len() - GROUP_HEADER_BYTES) as u32),
            record_count: U32::new(count),
            payload_blocks: U32::new(blocks),
            reserved: U32::new(0),
        };
        records[..GROUP_HEADER_BYTES].copy_from_slice(header.as_bytes());
        let checksum = disk::group_checksum(self.sb.device, group.lsn, &records);
        records[8..16].copy_from_slice(&checksum.to_le_bytes());
        let head = AlignedBuffer::copied_from(&records).freeze();
        let bytes = head.len() as u64 + u64::from(blocks) * PAGE_BYTES;
        let ring = self.layout().log;
        if self.log.tail % ring.bytes + bytes > ring.bytes {
            self.log.tail += ring.bytes - self.log.tail % ring.bytes;
        }
        let offset = ring.offset + self.log.tail % ring.bytes;
        self.log.tail += bytes;
        assert!(self.log.used() <= ring.bytes, "the log's reserve is kept: {} of {}", self.log.used(), ring.bytes);
        let mut all = vec![head];
        all.extend(parts);
        self.log.next_lsn += 1;
        self.log.previous = checksum;
        self.log.writing = true;
        self.log.groups.push_back(group);
        self.issue_write(Purpose::GroupWrite, offset, all);
    }

    pub(super) fn group_written(&mut self) {
        self.log.writing = false;
        let group = self.log.groups.iter_mut().find(|group| !group.log_done).expect("a group was being written");
        group.log_done = true;
    }

    pub(super) fn group_flushed(&mut self, lsn: u64) {
        for group in self.log.groups.iter_mut().filter(|group| group.flushing && group.lsn <= lsn) {
            group.durable = true;
        }
    }

    /// An operation of group `lsn` has all its data on the device.
    pub(super) fn group_data_done(&mut self, lsn: u64) {
        let group = self.log.groups.iter_mut().find(|group| group.lsn == lsn).expect("its operation is not answered");
        group.data_left -= 1;
    }

    fn advance_groups(&mut self) {
        let flush = self.flush_needed();
        let flushing = self.log.groups.iter().any(|group| group.flushing && !group.durable);
        let mut flush_lsn = None;
        for group in &mut self.log.groups {
            let written = group.log_done && group.data_left == 0;
            if written && !flush {
                group.durable = true;
            } else if written && !flushing && !group.durable {
                group.flushing = true;
                flush_lsn = Some(group.lsn);
            }
        }
        if let Some(lsn) = flush_lsn {
            self.issue_flush(Purpose::GroupFlush { lsn });
        }
        let mut done = Vec::new();
        let images_left = &mut self.log.images_left;
        self.log.groups.retain_mut(|group| {
            if group.durable {
                *images_left -= group.images;
                done.append(&mut group.ops);
            }
            !group.durable
        });
        self.log.completed = self.log.groups.front().map_or(self.log.next_lsn, |group| group.lsn) - 1;
        for op in done {
            self.op_durable(op);
        }
    }

    pub(super) fn flush_needed(&self) -> bool {
        self.options.flush_needed && !self.sb.power_loss_protected
    }
}
