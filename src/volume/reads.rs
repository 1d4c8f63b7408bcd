//! W13, the second half: answers. Delivered only while nothing overlaps and enough members grant, and asked elsewhere
//! when a member's copy is damaged.

use super::asking::{Purpose, REFUSED_PAUSE_US, Read};
use super::engine::{Effect, Failure, Outcome, ReadRun, VolumeEngine, Work};
use super::lane::bit;
use crate::wire::message::{BlockCondition, Content, ReadReply};
use ashlar_model::checksum::block_checksum;
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::units::BLOCK_BYTES;
use ashlar_model::{BlockRange, DeviceId, Payload};

impl VolumeEngine {
    pub(super) fn on_read_done(&mut self, device: DeviceId, id: u64, reply: ReadReply) {
        let Some((slot, read)) = self.take_answered(device, id) else { return };
        let blocks = read.range.count as usize;
        let whole = reply.range == read.range
            && reply.conditions.len() == blocks
            && reply.payload.as_ref().is_none_or(|payload| payload.block_count() == read.range.count)
            && (!read.is_join() || reply.stamps.len() == blocks)
            && (reply.payload.is_some() || read.map_only || !reply.conditions.iter().any(is_data));
        if !whole {
            self.out.push(Effect::Alarm(format!("device {device} answered a read of {:?} wrongly", read.range)));
            if let Purpose::Fetch { index } = read.purpose {
                self.drop_fetch(read.number, index);
                return;
            }
            self.reads.insert(id, Read { asked: None, not_before_us: self.now_us + REFUSED_PAUSE_US, ..read });
            self.held_reads.push(id);
            return;
        }
        match read.purpose {
            Purpose::Client { .. } | Purpose::Edge { .. } => self.deliver(id, read, slot, reply),
            Purpose::Fetch { index } => {
                let content = self.fetched_content(&read, reply);
                self.on_fetched(read.number, slot, index, content);
            }
            Purpose::JoinMap { join } => self.on_join_map(read.number, join, &reply),
            Purpose::JoinData { join } => self.on_join_data(read, slot, join, reply),
            Purpose::JoinDigest { .. } => self.read_again(read, slot), // digests were asked for
            Purpose::Repair { device } => self.on_repair_read(read, device, slot, &reply),
        }
    }

    /// The checks come after the I/O and immediately before the reply.
    fn deliver(&mut self, id: u64, read: Read, slot: usize, reply: ReadReply) {
        let unchecked = broken(Mutation::ReadDuringWrites) || broken(Mutation::ReadCheckedWhenAsked);
        let locked = self.lock.is_locked(read.range, read.lock_owner()) && !unchecked;
        if locked || !self.is_granted(read.number) {
            self.reads.insert(id, Read { asked: None, ..read });
            self.held_reads.push(id);
            return;
        }
        if read.map_only {
            let Purpose::Client { request } = read.purpose else { unreachable!("only guests ask for maps") };
            let written = reply.conditions.iter().map(|c| *c != BlockCondition::Zero).collect();
            self.add_map(request, read.range, written);
            return;
        }
        self.deliver_data(&read, slot, &reply);
    }

    /// Good blocks go to the reader; each damaged one is read again elsewhere by itself.
    fn deliver_data(&mut self, read: &Read, slot: usize, reply: &ReadReply) {
        let checked: Vec<Option<bool>> = self.check_blocks(read.range, reply);
        let mut start = 0;
        while start < checked.len() {
            let end = start + checked[start..].iter().take_while(|c| c.is_some() == checked[start].is_some()).count();
            let run = BlockRange::new(read.range.start + start as u64, (end - start) as u32);
            if checked[start].is_some() {
                let has_data = checked[start..end].contains(&Some(true));
                let bytes = reply.payload.as_ref().filter(|_| has_data);
                let payload = bytes.map(|p| p.slice(start * BLOCK_BYTES, run.bytes()));
                self.repair_damage(read, reply);
                self.add_run(read.purpose, run, payload);
            } else {
                for at in start..end {
                    self.read_elsewhere(read, slot, at, reply.conditions[at]);
                }
            }
            start = end;
        }
    }

    /// Per block: `Some(true)` data that verifies, `Some(false)` zeroes, `None` damaged.
    pub(super) fn check_blocks(&self, range: BlockRange, reply: &ReadReply) -> Vec<Option<bool>> {
        let verifies = |i: usize, checksum: u32| {
            let payload = reply.payload.as_ref().expect("data comes with bytes");
            block_checksum(self.spec.id, range.start + i as u64, payload.block(i)) == checksum
        };
        let check = |(i, condition): (usize, &BlockCondition)| match condition {
            BlockCondition::Data(checksum) => verifies(i, *checksum).then_some(true),
            BlockCondition::Zero => Some(false),
            BlockCondition::Bad(_) | BlockCondition::Unknown => None,
        };
        reply.conditions.iter().enumerate().map(check).collect()
    }

    /// Counts the damage, and asks another member.
    pub(super) fn read_elsewhere(&mut self, read: &Read, slot: usize, at: usize, condition: BlockCondition) {
        let block = read.range.start + at as u64;
        let device = self.lanes[read.number].slots[slot].device;
        let mut damage: Vec<_> = read.damage.iter().filter(|(_, b, _)| *b == block).copied().collect();
        match condition {
            BlockCondition::Bad(checksum) => damage.push((slot, block, checksum)),
            BlockCondition::Unknown => self.note_unknown(device, block),
            BlockCondition::Data(_) | BlockCondition::Zero => {}
        }
        self.count_damage(block, device, "reading another replica");
        let range = BlockRange::new(block, 1);
        let tried = read.tried | bit(slot);
        self.insert_read(Read { range, tried, asked: None, also: 0, began_us: 0, damage, ..read.clone() });
    }

    fn add_run(&mut self, purpose: Purpose, range: BlockRange, payload: Option<Payload>) {
        match purpose {
            Purpose::Client { request } => {
                let Some(active) = self.active.get_mut(&request) else { return };
                let Work::Read { runs, blocks_left } = &mut active.work else { return };
                runs.insert(range.start, ReadRun { range, payload });
                *blocks_left -= u64::from(range.count);
                self.finish_read(request);
            }
            Purpose::Edge { request } => self.on_edge(request, range.start, payload),
            _ => unreachable!("not delivered to guests"),
        }
    }

    fn add_map(&mut self, request: u64, range: BlockRange, written: Vec<bool>) {
        let Some(active) = self.active.get_mut(&request) else { return };
        let Work::Map { runs, blocks_left } = &mut active.work else { return };
        runs.insert(range.start, written);
        *blocks_left -= u64::from(range.count);
        self.finish_read(request);
    }

    /// No member has good bytes.
    pub(super) fn fail_read(&mut self, id: u64) {
        let Some(read) = self.reads.remove(&id) else { return };
        let failure = Failure::Damaged { block: read.range.start };
        self.out.push(Effect::Alarm(format!("volume {}: {failure}", self.spec.name)));
        match read.purpose {
            Purpose::Client { request } if self.active.contains_key(&request) => {
                self.complete(request, Outcome::Failed(failure));
            }
            Purpose::Edge { request } => {
                let Some(range) = self.active.get(&request).map(|active| active.range) else { return };
                self.complete(request, Outcome::Failed(failure));
                self.release_lock(range, request);
            }
            Purpose::JoinMap { join } | Purpose::JoinDigest { join } | Purpose::JoinData { join } => {
                match read.newest {
                    Some(newest) => self.on_sources_exhausted(read.number, join, read.range, newest),
                    None => self.give_up_join(read.number, join),
                }
            }
            Purpose::Repair { device } => self.end_repair((read.range.start, device)),
            Purpose::Client { .. } | Purpose::Fetch { .. } => {}
        }
    }

    /// Content of a fetched write, or the first block that is no good.
    fn fetched_content(&self, read: &Read, reply: ReadReply) -> Result<Content, u64> {
        let good = self.check_blocks(read.range, &reply);
        if let Some(at) = good.iter().position(|check| *check != Some(true)) {
            return Err(read.range.start + at as u64);
        }
        let checksums = reply.conditions.iter().map(checksum_of).collect();
        Ok(Content::Data { payload: reply.payload.expect("every block is data"), checksums })
    }

    pub(super) fn read_again(&mut self, read: Read, slot: usize) {
        self.insert_read(Read { tried: read.tried | bit(slot), asked: None, also: 0, began_us: 0, ..read });
    }
}

fn is_data(condition: &BlockCondition) -> bool {
    matches!(condition, BlockCondition::Data(_))
}

pub(super) fn checksum_of(condition: &BlockCondition) -> u32 {
    match condition {
        BlockCondition::Data(checksum) | BlockCondition::Bad(checksum) => *checksum,
        BlockCondition::Zero | BlockCondition::Unknown => 0,
    }
}
