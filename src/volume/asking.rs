//! W13, the first half: which member a read is asked of, and what happens when it does not answer, refuses or goes away.
//!
//! A member that does not answer in time is asked no more for a while, and another one is asked besides: the first
//! answer counts. That is safe whatever the late one says, because the read began before it and is checked when it is
//! delivered.

use super::engine::VolumeEngine;
use super::lane::{LanePhase, Mask, bit, slots_of};
use crate::wire::message::ToReplica;
use ashlar_model::mutation::{Mutation, broken, mark};
use ashlar_model::units::CHUNK_BLOCKS;
use ashlar_model::{BlockRange, DeviceId, Stamp};
use std::cmp::Reverse;

/// After a refusal the same member is not asked again for this long.
pub(super) const REFUSED_PAUSE_US: u64 = 10_000;
/// A read that lacks grants asks for them at most this often.
const GRANT_ASK_US: u64 = 5_000;
/// A read without an answer is asked again of the same member after this, if there is no other: the question or the
/// answer was lost.
const ASK_AGAIN_US: u64 = 1_000_000;
/// A member that did not answer a read in time is avoided for this long.
const SLOW_US: u64 = 1_000_000;
/// Bounds of the time in which an answer is expected; between them it follows the answers of late.
const PATIENCE_US: std::ops::RangeInclusive<u64> = 10_000..=500_000;
/// An answer is late after so many times the mean time of answers.
const PATIENCE_TIMES: u64 = 8;

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
    /// A join: what the source holds, in short, to be compared with what the joiner holds.
    JoinDigest { join: u64 },
    /// A join: content to copy.
    JoinData { join: u64 },
    /// Damage that this device reported: its own answer, then a good copy.
    Repair { device: DeviceId },
}

impl Purpose {
    /// Somebody waits for it.
    pub fn is_of_guest(self) -> bool {
        matches!(self, Purpose::Client { .. } | Purpose::Edge { .. })
    }

    /// Nobody waits for it: it takes the credits of the background.
    fn is_background(self) -> bool {
        matches!(self, Purpose::JoinMap { .. } | Purpose::JoinData { .. } | Purpose::Repair { .. })
    }
}

/// A version, and the checksum that is recorded for it.
pub(super) type Newest = (Stamp, Option<u32>);

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
    /// Slots that were asked before, and may still answer.
    pub also: Mask,
    pub asked_us: u64,
    /// When the first member was asked; zero: none was.
    pub began_us: u64,
    /// When the next member is asked; an earlier alarm is void.
    pub late_us: u64,
    /// Of a damaged block to copy: what is newest at the sources that were asked.
    pub newest: Option<Newest>,
    /// When the last of them answered; zero: none has.
    pub newest_us: u64,
    /// Damage seen: slot, block, checksum that is recorded there.
    pub damage: Vec<(usize, u64, u32)>,
    pub not_before_us: u64,
}

impl Read {
    pub fn new(purpose: Purpose, number: usize, range: BlockRange) -> Self {
        Self {
            purpose,
            number,
            range,
            map_only: false,
            tried: 0,
            asked: None,
            also: 0,
            asked_us: 0,
            began_us: 0,
            late_us: 0,
            newest: None,
            newest_us: 0,
            damage: Vec::new(),
            not_before_us: 0,
        }
    }

    /// True if the slot was asked, or showed damage.
    pub fn concerns(&self, slot: usize) -> bool {
        self.asked == Some(slot)
            || (self.tried | self.also) & bit(slot) != 0
            || self.damage.iter().any(|(at, ..)| *at == slot)
    }

    pub fn lock_owner(&self) -> Option<u64> {
        match self.purpose {
            Purpose::Edge { request } => Some(request),
            _ => None,
        }
    }

    pub fn is_join(&self) -> bool {
        matches!(self.purpose, Purpose::JoinMap { .. } | Purpose::JoinDigest { .. } | Purpose::JoinData { .. })
    }

    fn is_client_visible(&self) -> bool {
        self.purpose.is_of_guest()
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
        self.reads.insert(id, Read::new(purpose, number, range));
        self.ask(id, slot);
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
        let candidates = self.able_slots(read) & !read.tried & !read.also;
        if candidates == 0 {
            if read.also != 0 && self.now_us >= read.asked_us + ASK_AGAIN_US {
                // Nobody answers: the questions may be lost.
                self.reads.get_mut(&id).expect("looked up above").also = 0;
                return self.try_ask(id);
            }
            let untried = slots_of(lane.in_sync & !read.tried).any(|slot| !lane.slots[slot].failed);
            if untried {
                self.held_reads.push(id);
            } else if read.tried != 0 && read.newest_us != 0 && read.newest_us < self.now_us {
                // It has waited for one that is out now, and who was asked before may be sound again.
                mark("sources of a damaged block are asked once more");
                self.reads.get_mut(&id).expect("looked up above").tried = 0;
                self.try_ask(id);
            } else {
                self.fail_read(id);
            }
            return;
        }
        let slot = self.choose(number, candidates, range);
        self.ask(id, slot);
    }

    /// Sends the question, and sets the time by which an answer is expected.
    fn ask(&mut self, id: u64, slot: usize) {
        let patience_us = self.read_patience_us(self.reads[&id].purpose);
        let (now_us, late_us) = (self.now_us, self.now_us + patience_us);
        let read = self.reads.get_mut(&id).expect("only reads that exist are asked");
        if read.began_us == 0 {
            read.began_us = now_us;
        }
        read.asked = Some(slot);
        (read.asked_us, read.late_us) = (now_us, late_us);
        let (number, range, map_only, purpose) = (read.number, read.range, read.map_only, read.purpose);
        self.late_reads.push(Reverse((late_us, id)));
        let lane = &self.lanes[number];
        let prefix_min = match purpose {
            Purpose::JoinMap { .. } | Purpose::JoinDigest { .. } | Purpose::JoinData { .. } => {
                lane.join.as_ref().map_or(0, |join| join.base)
            }
            _ => 0,
        };
        if let Purpose::JoinDigest { .. } = purpose {
            let seed = self.digest_seed(number);
            self.send(number, slot, ToReplica::Digest { request: id, range, seed, prefix_min });
            return;
        }
        let background = purpose.is_background();
        self.send(number, slot, ToReplica::Read { request: id, range, map_only, prefix_min, background });
    }

    /// A device of this machine if there is one; else the chunks are spread over the members. One that has owed the answer
    /// to a write for longer than a read should take would not answer this one in time either.
    fn choose(&self, number: usize, candidates: Mask, range: BlockRange) -> usize {
        let lane = &self.lanes[number];
        let patience_us = self.guests_patience_us();
        let slow = |slot: &usize| {
            lane.slots[*slot].slow_until_us > self.now_us || lane.lag_us(*slot, self.now_us) > patience_us
        };
        let quick = slots_of(candidates).filter(|slot| !slow(slot)).fold(0, |mask, slot| mask | bit(slot));
        let candidates = if quick != 0 { quick } else { candidates };
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
        let Some((_, read)) = self.take_answered(device, id) else { return };
        if read.also != 0 {
            // Another member has the question.
            let asked = slots_of(read.also).next();
            let also = read.also & !asked.map_or(0, bit);
            let late_us = now_us + self.read_patience_us(read.purpose);
            self.late_reads.push(Reverse((late_us, id)));
            self.reads.insert(id, Read { asked, also, late_us, ..read });
            return;
        }
        if let Purpose::Fetch { index } = read.purpose {
            self.drop_fetch(read.number, index); // the tick asks again
            return;
        }
        if let (Purpose::Repair { device }, 0) = (read.purpose, read.tried) {
            self.postpone_repair(read.range.start, device);
            return;
        }
        self.reads.insert(id, Read { not_before_us: now_us + REFUSED_PAUSE_US, asked: None, ..read });
        self.held_reads.push(id);
    }

    pub(super) fn drop_fetch(&mut self, number: usize, index: u64) {
        if let Some(retained) = self.lanes[number].retained_mut(index) {
            retained.fetching = false;
        }
    }

    /// The read that this device was asked for, removed, and the slot that answered. Who else was asked stays in `also`.
    pub(super) fn take_answered(&mut self, device: DeviceId, id: u64) -> Option<(usize, Read)> {
        let read = self.reads.get(&id)?;
        let slot = self.lanes[read.number].slot_of(device)?;
        let asked = read.asked.map_or(0, bit) | read.also;
        if asked & bit(slot) == 0 {
            return None; // an answer to an earlier question
        }
        let mut read = self.reads.remove(&id).expect("just seen");
        if read.purpose.is_of_guest() {
            // The first answer counts, whoever gives it: if all are slow, all are waited for longer.
            self.answer_us = (self.answer_us * 7 + self.now_us.saturating_sub(read.began_us)) / 8;
        }
        read.also = asked & !bit(slot);
        read.asked = None;
        Some((slot, read))
    }

    /// Time in which a member should answer a read, in microseconds.
    fn read_patience_us(&self, purpose: Purpose) -> u64 {
        if purpose.is_of_guest() { self.guests_patience_us() } else { *PATIENCE_US.end() }
    }

    fn guests_patience_us(&self) -> u64 {
        (self.answer_us * PATIENCE_TIMES).clamp(*PATIENCE_US.start(), *PATIENCE_US.end())
    }

    /// True while reads wait for answers: the shard's clock should be fine enough to notice a late one.
    pub fn awaits_reads(&self) -> bool {
        !self.late_reads.is_empty()
    }

    /// Looks after the reads whose time is up.
    pub(super) fn tend_late_reads(&mut self) {
        while let Some(Reverse((late_us, id))) = self.late_reads.peek().copied()
            && late_us <= self.now_us
        {
            self.late_reads.pop();
            if self.reads.get(&id).is_some_and(|read| read.asked.is_some() && read.late_us == late_us) {
                self.on_read_late(id);
            }
        }
    }

    fn on_read_late(&mut self, id: u64) {
        let read = &self.reads[&id];
        let (number, slot) = (read.number, read.asked.expect("checked by the caller"));
        self.lanes[number].slots[slot].slow_until_us = self.now_us + SLOW_US;
        match read.purpose {
            Purpose::Repair { .. } => return, // has a patience of its own
            Purpose::Fetch { .. } => mark("a recovery fetch is late"),
            Purpose::Client { .. } | Purpose::Edge { .. } => {}
            Purpose::JoinMap { .. } | Purpose::JoinDigest { .. } | Purpose::JoinData { .. } => {}
        }
        let others = self.able_slots(read) & !read.tried & !read.also & !bit(slot);
        if others != 0 {
            mark("a late read is asked elsewhere");
            self.counters.late_reads += 1;
            let next = self.choose(number, others, read.range);
            self.reads.get_mut(&id).expect("looked at it").also |= bit(slot);
            self.ask(id, next);
        } else if self.now_us >= read.asked_us + ASK_AGAIN_US {
            mark("a lost read is asked again");
            let able = self.able_slots(read) & !read.tried;
            let next = if able != 0 { self.choose(number, able, read.range) } else { slot };
            self.reads.get_mut(&id).expect("looked at it").also = bit(slot) & !bit(next);
            self.ask(id, next);
        } else {
            let again_us = read.asked_us + ASK_AGAIN_US;
            self.reads.get_mut(&id).expect("looked at it").late_us = again_us;
            self.late_reads.push(Reverse((again_us, id)));
        }
    }

    /// Members that can answer a read.
    fn able_slots(&self, read: &Read) -> Mask {
        let lane = &self.lanes[read.number];
        if let Purpose::Fetch { index } = read.purpose {
            return lane.retained_at(index).map_or(0, |retained| retained.holders & lane.started_slots());
        }
        // A copy source needs the writes before the join (it checks that itself); later ones reach the joiner live.
        if read.is_join() || broken(Mutation::ReadAnyMember) {
            lane.source_slots()
        } else {
            lane.readable_slots(read.range)
        }
    }

    /// The link is gone: whatever this device was asked is asked again.
    pub(super) fn reroute_reads(&mut self, device: DeviceId) {
        let lanes = &self.lanes;
        let slot_of = |read: &Read| lanes[read.number].slot_of(device);
        let asked =
            |read: &Read| slot_of(read).is_some_and(|slot| read.asked == Some(slot) || read.also & bit(slot) != 0);
        let mut lost: Vec<(u64, usize)> = Vec::new();
        for (id, read) in self.reads.iter().filter(|(_, read)| asked(read)) {
            lost.push((*id, slot_of(read).expect("it was asked")));
        }
        lost.sort_unstable();
        for (id, slot) in lost {
            let read = self.reads.get_mut(&id).expect("listed above");
            read.also &= !bit(slot);
            if read.asked != Some(slot) {
                continue;
            }
            read.asked = None;
            match read.purpose {
                Purpose::Fetch { index } => {
                    let number = read.number;
                    self.reads.remove(&id);
                    self.drop_fetch(number, index);
                }
                _ => self.held_reads.push(id),
            }
        }
    }

    /// Enough members have promised lately that no newer writer can have been served.
    pub(super) fn is_granted(&self, number: usize) -> bool {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_waits_for_is_in_the_foreground() {
        let front = [Purpose::Client { request: 1 }, Purpose::Edge { request: 1 }, Purpose::Fetch { index: 1 }];
        let device = DeviceId::from_u128(1);
        let back = [Purpose::JoinMap { join: 1 }, Purpose::JoinData { join: 1 }, Purpose::Repair { device }];
        assert!(!front.iter().any(|purpose| purpose.is_background()));
        assert!(back.iter().all(|purpose| purpose.is_background()));
    }
}
