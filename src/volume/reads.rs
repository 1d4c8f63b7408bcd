//! W13: reads. Asked of a member that holds the newest write, delivered only while nothing overlaps and enough members
//! grant, and asked elsewhere when a member's copy is damaged.

use super::engine::{Effect, Failure, Outcome, ReadRun, VolumeEngine, Work};
use super::lane::{LanePhase, Mask, bit, slots_of};
use crate::wire::message::{BlockCondition, Content, ReadReply, ToReplica};
use ashlar_model::checksum::block_checksum;
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS};
use ashlar_model::{BlockRange, DeviceId, Payload};

/// After a refusal the same member is not asked again for this long.
const REFUSED_PAUSE_US: u64 = 10_000;
/// A read that lacks grants asks for them at most this often.
const GRANT_ASK_US: u64 = 5_000;

/// What a read is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// A guest.
    Client { request: u64 },
    /// A block that a write changes only in part.
    Edge { request: u64 },
    /// Recovery: content of a retained write.
    Fetch { index: u64 },
    /// A join: which blocks of a chunk the source holds in which version.
    JoinMap { join: u64 },
    /// A join: content to copy.
    JoinData { join: u64 },
    /// Damage that this device reported: its own answer, then a good copy.
    Repair { device: DeviceId },
}

/// A read under way.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub purpose: Purpose,
    pub number: usize,
    pub range: BlockRange,
    pub map_only: bool,
    /// Slots that answered with damage.
    pub tried: Mask,
    pub asked: Option<usize>,
    /// Damage seen: slot, block, checksum that is recorded there.
    pub damage: Vec<(usize, u64, u32)>,
    pub not_before_us: u64,
}

impl Read {
    pub fn new(purpose: Purpose, number: usize, range: BlockRange) -> Self {
        Self { purpose, number, range, map_only: false, tried: 0, asked: None, damage: Vec::new(), not_before_us: 0 }
    }

    /// True if the slot was asked, or showed damage.
    pub fn concerns(&self, slot: usize) -> bool {
        self.asked == Some(slot) || self.tried & bit(slot) != 0 || self.damage.iter().any(|(at, ..)| *at == slot)
    }

    fn lock_owner(&self) -> Option<u64> {
        match self.purpose {
            Purpose::Edge { request } => Some(request),
            _ => None,
        }
    }

    fn is_join(&self) -> bool {
        matches!(self.purpose, Purpose::JoinMap { .. } | Purpose::JoinData { .. })
    }

    fn is_client_visible(&self) -> bool {
        matches!(self.purpose, Purpose::Client { .. } | Purpose::Edge { .. })
    }
}

impl VolumeEngine {
    pub(super) fn begin_read(&mut self, range: BlockRange, purpose: Purpose, map_only: bool) {
        let number = usize::from(self.spec.geometry.lane_of_block(range.start));
        let tried = match purpose {
            Purpose::Edge { request } => self.unknown_slots(request),
            _ => 0,
        };
        self.insert_read(Read { map_only, tried, ..Read::new(purpose, number, range) });
    }

    /// Asks one particular slot (recovery knows who holds what).
    pub(super) fn ask_slot(&mut self, number: usize, slot: usize, range: BlockRange, purpose: Purpose) {
        let id = self.next_read;
        self.next_read += 1;
        self.reads.insert(id, Read { asked: Some(slot), ..Read::new(purpose, number, range) });
        self.send(number, slot, ToReplica::Read { request: id, range, map_only: false, prefix_min: 0 });
    }

    pub(super) fn insert_read(&mut self, read: Read) {
        let id = self.next_read;
        self.next_read += 1;
        self.reads.insert(id, read);
        self.try_ask(id);
    }

    /// Asks the best member, or holds the read.
    fn try_ask(&mut self, id: u64) {
        let Some(read) = self.reads.get(&id) else { return };
        let (number, range) = (read.number, read.range);
        let lane = &self.lanes[number];
        let serving = matches!(lane.phase, LanePhase::Serving | LanePhase::Closing);
        let locked = read.is_client_visible()
            && self.lock.is_locked(range, read.lock_owner())
            && !broken(Mutation::ReadDuringWrites);
        if !serving || locked || self.now_us < read.not_before_us {
            self.held_reads.push(id);
            return;
        }
        if read.is_client_visible() && !self.is_granted(number) {
            // Asking now would be in vain: the answer could not be delivered.
            self.held_reads.push(id);
            self.ask_for_grants(number);
            return;
        }
        let lane = &self.lanes[number];
        let read = &self.reads[&id];
        // A copy source needs the writes before the join (it checks that itself); later ones reach the joiner live.
        let able = if read.is_join() || broken(Mutation::ReadAnyMember) {
            lane.source_slots()
        } else {
            lane.readable_slots(range)
        };
        let candidates = able & !read.tried;
        if candidates == 0 {
            let untried = slots_of(lane.in_sync & !read.tried).any(|slot| !lane.slots[slot].failed);
            if untried {
                self.held_reads.push(id);
            } else {
                self.fail_read(id);
            }
            return;
        }
        let slot = self.choose(number, candidates, range);
        let prefix_min = match read.purpose {
            Purpose::JoinMap { .. } | Purpose::JoinData { .. } => lane.join.as_ref().map_or(0, |join| join.base),
            _ => 0,
        };
        let map_only = read.map_only;
        self.reads.get_mut(&id).expect("looked up above").asked = Some(slot);
        self.send(number, slot, ToReplica::Read { request: id, range, map_only, prefix_min });
    }

    /// A device of this machine if there is one; else the chunks are spread over the members.
    fn choose(&self, number: usize, candidates: Mask, range: BlockRange) -> usize {
        let lane = &self.lanes[number];
        let local = slots_of(candidates).find(|slot| self.preferred.contains(&lane.slots[*slot].device));
        local.unwrap_or_else(|| {
            let turn = range.start / CHUNK_BLOCKS as u64 % u64::from(candidates.count_ones());
            slots_of(candidates).nth(turn as usize).expect("fewer than there are")
        })
    }

    pub(super) fn retry_held_reads(&mut self) {
        for id in std::mem::take(&mut self.held_reads) {
            if self.reads.get(&id).is_some_and(|read| read.asked.is_none()) {
                self.try_ask(id);
            }
        }
    }

    pub(super) fn on_read_refused(&mut self, device: DeviceId, id: u64) {
        let now_us = self.now_us;
        let Some(read) = self.take_answered(device, id) else { return };
        if let Purpose::Fetch { index } = read.purpose {
            if let Some(retained) = self.lanes[read.number].retained_mut(index) {
                retained.fetching = false; // the tick asks again
            }
            return;
        }
        if let (Purpose::Repair { device }, 0) = (read.purpose, read.tried) {
            self.postpone_repair(read.range.start, device);
            return;
        }
        self.reads.insert(id, Read { not_before_us: now_us + REFUSED_PAUSE_US, asked: None, ..read });
        self.held_reads.push(id);
    }

    /// The read that this device was asked for, removed.
    fn take_answered(&mut self, device: DeviceId, id: u64) -> Option<Read> {
        let read = self.reads.get(&id)?;
        let slot = read.asked?;
        if self.lanes[read.number].slots[slot].device != device {
            return None; // an answer to an earlier question
        }
        self.reads.remove(&id)
    }

    /// The link is gone: whatever this device was asked is asked again.
    pub(super) fn reroute_reads(&mut self, device: DeviceId) {
        let lanes = &self.lanes;
        let asked = |read: &Read| read.asked.is_some_and(|slot| lanes[read.number].slots[slot].device == device);
        let mut lost: Vec<u64> = self.reads.iter().filter(|(_, read)| asked(read)).map(|(id, _)| *id).collect();
        lost.sort_unstable();
        for id in lost {
            let read = self.reads.get_mut(&id).expect("listed above");
            read.asked = None;
            match read.purpose {
                Purpose::Fetch { index } => {
                    let number = read.number;
                    self.reads.remove(&id);
                    if let Some(retained) = self.lanes[number].retained_mut(index) {
                        retained.fetching = false;
                    }
                }
                _ => self.held_reads.push(id),
            }
        }
    }

    pub(super) fn on_read_done(&mut self, device: DeviceId, id: u64, reply: ReadReply) {
        let Some(read) = self.take_answered(device, id) else { return };
        let slot = read.asked.expect("answered reads were asked");
        let blocks = read.range.count as usize;
        let whole = reply.range == read.range
            && reply.conditions.len() == blocks
            && reply.payload.as_ref().is_none_or(|payload| payload.block_count() == read.range.count)
            && (!read.is_join() || reply.stamps.len() == blocks)
            && (reply.payload.is_some() || read.map_only || !reply.conditions.iter().any(is_data));
        if !whole {
            self.out.push(Effect::Alarm(format!("device {device} answered a read of {:?} wrongly", read.range)));
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

    /// Enough members have promised lately that no newer writer can have been served.
    fn is_granted(&self, number: usize) -> bool {
        if broken(Mutation::ReadWithoutGrants) {
            return true;
        }
        let lane = &self.lanes[number];
        lane.has_quorum(lane.granting_slots(self.now_us, self.settings.grant_us), self.spec.quorum)
    }

    fn ask_for_grants(&mut self, number: usize) {
        if self.now_us >= self.lanes[number].heartbeat_sent_us + GRANT_ASK_US {
            self.heartbeat(number);
        }
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
    fn check_blocks(&self, range: BlockRange, reply: &ReadReply) -> Vec<Option<bool>> {
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
        self.insert_read(Read { range, tried: read.tried | bit(slot), asked: None, damage, ..read.clone() });
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
    fn fail_read(&mut self, id: u64) {
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
            Purpose::JoinMap { join } | Purpose::JoinData { join } => self.give_up_join(read.number, join),
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

    pub(super) fn checked_blocks(&self, range: BlockRange, reply: &ReadReply) -> Vec<Option<bool>> {
        self.check_blocks(range, reply)
    }

    pub(super) fn read_again(&mut self, read: Read, slot: usize) {
        self.insert_read(Read { tried: read.tried | bit(slot), asked: None, ..read });
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
