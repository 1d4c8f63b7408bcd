//! Group commit: what waits becomes one log write; when it and its data are durable, all of it is answered.
//!
//! An idle device commits at once; a busy one shares log writes and flushes: one flush is in flight at a time, and another
//! log write only starts beside one that is, when there is enough for it. A group counts only when all before it do: a
//! replay stops at the first gap. It must never know what a record means.

use super::types::Purpose;
use super::{Mutation, StoreEngine};
use crate::disk::{self, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeaderDisk};
use crate::layout::PAGE_BYTES;
use crate::record::Record;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::{AlignedBuffer, Pieces};
use std::collections::VecDeque;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Log bytes of the largest request, with some to spare.
pub(super) const REQUEST_LOG_BYTES_MAX: u64 = 40 * PAGE_BYTES;
const _: () = assert!(REQUEST_LOG_BYTES_MAX >= (WRITE_BLOCKS_MAX as u64 + 1) * PAGE_BYTES);

/// Lazy records that start a group on their own.
const LAZY_MAX: usize = 64;

/// Log writes in flight. In a device's busy queue a log write takes as long as any other: what comes meanwhile would wait
/// for that one, and then for its own.
const WRITES_MAX: usize = 4;
/// Records that a log write waits for while another one is in flight: its page costs an eighth of theirs.
const SHARED_RECORDS: usize = 8;

/// Empty lists that are kept: those of a few groups.
const SPARE_MAX: usize = 16;

/// A record waiting for its group.
#[derive(Debug)]
pub(super) struct Pending {
    pub record: Record,
    pub payloads: Pieces,
    pub op: Option<u64>,
}

/// What a flush in flight will prove of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flushing {
    Nothing,
    Record,
    All,
}

/// A group that is not complete.
#[derive(Debug)]
struct Group {
    lsn: u64,
    /// Records in groups before it.
    records_before: u64,
    /// The log write is done.
    written: bool,
    /// Its log write completes when it is durable.
    through: bool,
    /// The records are durable: data may go over old data.
    recorded: bool,
    /// Operations whose data writes are not done.
    data_left: usize,
    /// Some of its data does not lie in the log.
    has_data: bool,
    flushing: Flushing,
    durable: bool,
    ops: Vec<u64>,
    /// Operations whose data waits for the records.
    intents: Vec<u64>,
}

/// A place between two groups: nothing before it needs the log any more once a checkpoint says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cut {
    /// Position in the log.
    pub position: u64,
    /// Number of the next group.
    pub lsn: u64,
    /// Checksum of the last one.
    pub previous: u64,
}

/// The log ring. Positions count bytes since open; modulo the ring's size they are offsets.
#[derive(Default, Debug)]
pub(super) struct Log {
    pub head: u64,
    pub tail: u64,
    pub next_lsn: u64,
    pub previous: u64,
    pub completed: u64,
    pending: VecDeque<Pending>,
    /// Bytes that `pending` takes at most.
    pending_cost: u64,
    /// Records that were ever appended, and those of them that have a group.
    appended: u64,
    grouped: u64,
    /// A group shall end after this record.
    cut_after: Option<u64>,
    cut: Option<Cut>,
    groups: VecDeque<Group>,
    /// Lists of operations without any, to be used again.
    spare: Vec<Vec<u64>>,
    /// Where the records of a group are put together.
    records: Vec<u8>,
    /// Log writes in flight.
    writing: usize,
    flushing: bool,
    lazy: usize,
}

impl Log {
    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.tail - self.head
    }

    /// Records that were ever appended.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// Records, from the first one on, that are complete.
    pub fn completed_records(&self) -> u64 {
        self.groups.front().map_or(self.grouped, |group| group.records_before)
    }

    fn list(&mut self) -> Vec<u64> {
        self.spare.pop().unwrap_or_default()
    }

    fn give_back(&mut self, mut list: Vec<u64>) {
        if self.spare.len() < SPARE_MAX {
            list.clear();
            self.spare.push(list);
        }
    }

    fn here(&self) -> Cut {
        Cut { position: self.tail, lsn: self.next_lsn, previous: self.previous }
    }

    /// Ends a group after what has been appended so far.
    pub fn ask_for_cut(&mut self) {
        let none = self.pending.is_empty();
        self.cut_after = (!none).then_some(self.appended);
        self.cut = none.then(|| self.here());
    }

    /// The cut that was asked for, once everything before it is complete.
    pub fn complete_cut(&self) -> Option<Cut> {
        self.cut.filter(|cut| self.completed + 1 >= cut.lsn)
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
    /// True if `bytes` of log fit, with a group to spare.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let fits = self.log.used() + self.log.pending_cost + self.log_reserve() + bytes <= self.log_max();
        fits || self.broken(Mutation::NoReserve)
    }

    /// Log bytes that stay free for what has no request: a group, and ends of the ring that are too short for one.
    fn log_reserve(&self) -> u64 {
        self.layout().group_bytes_max() + 16 * PAGE_BYTES
    }

    /// Log bytes that may be in use: the ring, but no more than an open should have to read. Checkpoints begin at half of
    /// it. The largest request fits, however low the limit.
    fn log_max(&self) -> u64 {
        let wanted = self.log_limit().saturating_mul(2).max(REQUEST_LOG_BYTES_MAX);
        self.layout().log.bytes.min(wanted.saturating_add(self.log_reserve()))
    }

    /// Adds a record to the next group.
    pub(super) fn append(&mut self, record: Record, payloads: Pieces, op: Option<u64>) {
        self.log.pending_cost += cost(&record);
        self.log.appended += 1;
        self.log.pending.push_back(Pending { record, payloads, op });
    }

    /// Adds a record that may wait for another one's group. Settles of one lane in a row become one.
    pub(super) fn append_lazy(&mut self, record: Record) {
        let cut = self.log.cut_after == Some(self.log.appended);
        if let (
            Some(Pending { record: Record::Settle(key, index, config, member), .. }),
            Record::Settle(key2, index2, config2, member2),
        ) = (self.log.pending.back_mut(), &record)
            && (*key, *member) == (*key2, *member2)
            && !cut
        {
            *index = (*index).max(*index2);
            *config = (*config).max(*config2);
            return;
        }
        self.log.lazy += 1;
        self.append(record, Pieces::new(), None);
    }

    /// Completes and flushes what can be, and lets data go over older data whose records have become durable.
    pub(super) fn commit_step(&mut self) {
        let mut intents = self.log.list();
        self.advance_groups(&mut intents);
        for op in intents.drain(..) {
            self.send_intent(op);
        }
        self.log.give_back(intents);
    }

    /// Writes what waits, if the time has come. Called once for all that an event or a batch of them brought, so that its
    /// records share a group; and the group goes before what else there is to do: in a device's queue everything waits
    /// for the log.
    pub(super) fn start_groups(&mut self) {
        if !self.group_due() {
            return;
        }
        let rest = std::mem::take(&mut self.effects);
        while self.group_due() {
            self.write_group();
        }
        self.effects.extend(rest);
    }

    fn group_due(&self) -> bool {
        let log = &self.log;
        let waited_for = log.cut_after.is_some() || self.drop_waits_for_log();
        let urgent = log.pending.len() > log.lazy || log.lazy > LAZY_MAX || waited_for;
        let enough = log.writing == 0 || (log.writing < WRITES_MAX && log.pending.len() >= SHARED_RECORDS);
        urgent && enough && !log.pending.is_empty()
    }

    fn write_group(&mut self) {
        let mut records = std::mem::take(&mut self.log.records);
        records.clear();
        records.resize(GROUP_HEADER_BYTES, 0);
        let (mut parts, mut payload_blocks) = (Pieces::new(), 0u32);
        let mut group = Group {
            lsn: self.log.next_lsn,
            records_before: self.log.grouped,
            written: false,
            through: false,
            recorded: false,
            data_left: 0,
            has_data: false,
            flushing: Flushing::Nothing,
            durable: false,
            ops: self.log.list(),
            intents: self.log.list(),
        };
        let (mut count, mut budget) = (0u32, self.layout().group_bytes_max() - 2 * PAGE_BYTES);
        while self.log.cut_after != Some(self.log.grouped) {
            let Some(pending) = self.log.pending.pop_front_if(|one| cost(&one.record) <= budget) else { break };
            let cost = cost(&pending.record);
            budget -= cost;
            count += 1;
            self.log.grouped += 1;
            payload_blocks += pending.record.payload_blocks();
            group.has_data |= pending.record.has_data_elsewhere();
            pending.record.encode(&mut records);
            let logged = !pending.payloads.is_empty();
            parts.extend(pending.payloads);
            self.log.pending_cost -= cost;
            self.log.lazy -= usize::from(matches!(pending.record, Record::Settle(..)));
            if let Some(op) = pending.op {
                group.ops.push(op);
                group.data_left += usize::from(self.op_grouped(op, group.lsn, logged));
                if self.is_intent(op) {
                    group.intents.push(op);
                }
            }
        }
        assert!(count > 0, "every record fits an empty group");
        self.send_group(group, records, count, payload_blocks, parts);
        if self.log.cut_after == Some(self.log.grouped) {
            self.log.cut_after = None;
            self.log.cut = Some(self.log.here());
        }
    }

    fn send_group(&mut self, mut group: Group, mut records: Vec<u8>, count: u32, blocks: u32, parts: Pieces) {
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
        self.log.records = records;
        let bytes = head.len() as u64 + u64::from(blocks) * PAGE_BYTES;
        let ring = self.layout().log;
        if self.log.tail % ring.bytes + bytes > ring.bytes {
            self.log.tail += ring.bytes - self.log.tail % ring.bytes;
        }
        let offset = ring.offset + self.log.tail % ring.bytes;
        self.log.tail += bytes;
        assert!(self.log.used() <= ring.bytes, "the log's reserve is kept: {} of {}", self.log.used(), ring.bytes);
        let mut all = Pieces::with_capacity(1 + parts.len());
        all.push(head);
        all.extend(parts);
        self.log.next_lsn += 1;
        self.log.previous = checksum;
        self.log.writing += 1;
        assert!(self.log.writing <= WRITES_MAX, "{} log writes in flight", self.log.writing);
        let lsn = group.lsn;
        group.through = self.needs_no_more(&group);
        let through = group.through;
        self.log.groups.push_back(group);
        self.issue(Purpose::GroupWrite { lsn }, offset, all, through);
    }

    pub(super) fn group_written(&mut self, lsn: u64) {
        self.log.writing -= 1;
        let group = self.log.groups.iter_mut().find(|group| group.lsn == lsn).expect("it was being written");
        group.written = true;
        (group.recorded, group.durable) = (group.through, group.through);
    }

    /// True if a durable log write is all that a group needs: its data lies in it, and no group before it waits for a flush.
    /// That spares a flush, which could begin only when the write has been heard of.
    fn needs_no_more(&self, group: &Group) -> bool {
        let first = self.log.groups.is_empty() || self.broken(Mutation::DurableAlone);
        self.flush_needed() && first && !group.has_data
    }

    /// Nothing is answered that a replay would not reach: its group and all before it have been written.
    pub(super) fn assert_replayable(&self, lsn: u64) {
        let mut up_to = self.log.groups.iter().take_while(|group| group.lsn <= lsn);
        assert!(up_to.all(|group| group.written) || self.broken(Mutation::NoChain), "group {lsn} is behind a gap");
    }

    pub(super) fn group_flushed(&mut self) {
        self.log.flushing = false;
        for group in &mut self.log.groups {
            match std::mem::replace(&mut group.flushing, Flushing::Nothing) {
                Flushing::All => (group.recorded, group.durable) = (true, true),
                Flushing::Record => group.recorded = true,
                Flushing::Nothing => {}
            }
        }
    }

    /// An operation of group `lsn` has all its data on the device. Without flushes, and with the group's records
    /// durable, nothing more is needed for it: it does not wait for the rest of the group.
    pub(super) fn group_data_done(&mut self, op: u64, lsn: u64) {
        let flush = self.flush_needed();
        let group = self.log.groups.iter_mut().find(|group| group.lsn == lsn).expect("its operation is not answered");
        group.data_left -= 1;
        if group.recorded && !flush {
            group.ops.retain(|one| *one != op);
            self.op_durable(op);
        }
    }

    /// Completes and flushes what can be; adds the operations whose data may go over older data now.
    fn advance_groups(&mut self, intents: &mut Vec<u64>) {
        let (flush, free) = (self.flush_needed(), !self.log.flushing);
        let gaps = self.broken(Mutation::NoChain);
        let (mut cover, mut done) = (false, self.log.list());
        let ops = &self.ops;
        // Those behind one that is still being written would not be found after a crash.
        let found = self.log.groups.iter_mut().take_while(|group| group.written || gaps);
        for group in found.filter(|group| group.written && !group.durable) {
            let all = group.data_left == 0;
            if !flush {
                if !group.recorded {
                    done.extend(group.ops.extract_if(.., |op| ops.get(*op).is_some_and(|op| op.data_left == 0)));
                }
                (group.recorded, group.durable) = (true, all);
            } else if free && all {
                (group.flushing, cover) = (Flushing::All, true);
            } else if free && !group.recorded && !group.intents.is_empty() {
                (group.flushing, cover) = (Flushing::Record, true);
            }
            if group.recorded {
                intents.append(&mut group.intents);
            }
        }
        if cover {
            self.log.flushing = true;
            self.issue_flush(Purpose::GroupFlush);
        }
        for op in done.drain(..) {
            self.op_durable(op);
        }
        self.log.give_back(done);
        self.complete_groups();
    }

    fn complete_groups(&mut self) {
        let mut done = self.log.list();
        while let Some(at) = self.log.groups.iter().position(|group| group.durable) {
            let mut group = self.log.groups.remove(at).expect("just found");
            done.append(&mut group.ops);
            self.log.give_back(group.ops);
            self.log.give_back(group.intents);
        }
        self.log.completed = self.log.groups.front().map_or(self.log.next_lsn, |group| group.lsn) - 1;
        for op in done.drain(..) {
            self.op_durable(op);
        }
        self.log.give_back(done);
    }

    pub(super) fn flush_needed(&self) -> bool {
        self.options.flush_needed && !self.sb.power_loss_protected && !self.broken(Mutation::NoFlush)
    }

    /// True if an aligned block is never torn.
    pub(super) fn atomic(&self) -> bool {
        self.options.atomic || self.sb.atomic_declared
    }

    /// True if checkpoints do not keep up: the log is half way from where they start to where it may not grow any more.
    pub(super) fn log_is_behind(&self) -> bool {
        self.log.used() > (self.log_limit() + self.log_max()) / 2
    }

    /// Log bytes in use that start a checkpoint.
    pub(super) fn log_limit(&self) -> u64 {
        (self.layout().log.bytes / 2).min(self.options.restart_log_bytes)
    }
}
