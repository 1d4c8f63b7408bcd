//! What is checked while a run goes on, with the eyes of a god: sets, and what devices hold.

use super::workload::{Written, values_of};
use super::world::{VOLUME, Who, World};
use crate::check::content::{Content, Held, LOST};
use crate::check::written_off::Copy;
use crate::check::{checksums, equal, listed, members, quorum, written_off};
use ashlar_model::units::CHUNK_BLOCKS;
use ashlar_model::{BlockRange, DeviceId, LaneKey, Stamp};
use ashlar_store::api::{BlockState, Write};

impl World {
    /// The lane of a block.
    pub fn lane_of(&self, block: u64) -> u16 {
        (block / CHUNK_BLOCKS as u64 % u64::from(self.options.lanes)) as u16
    }

    /// Writes are durable somewhere.
    pub fn note_durable(&mut self, written: &[(u64, Held)]) {
        for (block, held) in written {
            for (register, value) in held.values.into_iter().enumerate().filter(|(_, value)| *value != 0) {
                self.first_stamps.entry((*block, register, value)).or_insert(held.stamp);
            }
        }
    }

    /// Writes were acknowledged: each must be durable somewhere, and counts from now on.
    pub fn note_acknowledged(&mut self, written: &[Written]) {
        for (block, register, value) in written {
            let Some(stamp) = self.first_stamps.get(&(*block, *register, *value)).copied() else {
                self.violate(format!("value {value} of block {block} was acknowledged and is durable nowhere"));
                return;
            };
            let newest = self.acknowledged.entry(*block).or_default();
            *newest = (*newest).max(stamp);
        }
    }

    /// Judges a lane's set that has just been recorded.
    pub fn check_set(&mut self, lane: u16) {
        let in_sync = self.metadata.in_sync(lane);
        self.judge(members::check(lane, &in_sync, 3));
        let of_lane = |content: &Content, world: &Self| -> Content {
            content.iter().filter(|(b, _)| world.lane_of(**b) == lane).map(|(b, held)| (*b, *held)).collect()
        };
        // A device that was replaced meanwhile is out of sight.
        let machines = in_sync.iter().filter_map(|id| self.holder(*id));
        let contents: Vec<(usize, Content)> =
            machines.map(|machine| (machine, of_lane(&self.nodes[machine].shadow.content, self))).collect();
        let settled = self.announced[usize::from(lane)];
        let views: Vec<(usize, &Content)> = contents.iter().map(|(machine, content)| (*machine, content)).collect();
        let mut verdicts = vec![equal::at_settled(&views, |_| settled)];
        if views.len() == in_sync.len() {
            let needed = in_sync.len().min(2);
            let acknowledged: Vec<(u64, Stamp)> = self.acknowledged.iter().map(|(b, stamp)| (*b, *stamp)).collect();
            let of_lane = acknowledged.into_iter().filter(|(block, _)| self.lane_of(*block) == lane);
            verdicts.extend(of_lane.map(|(block, stamp)| quorum::check(&views, block, stamp, needed)));
        }
        for (machine, content) in &views {
            let Some(store) = self.nodes[*machine].store.as_ref().filter(|store| store.is_open()) else { continue };
            let key = LaneKey { volume: VOLUME, lane };
            let Some((_, state)) = store.lanes().find(|(one, _)| *one == key) else { continue };
            let verdict = listed::check(content, &state.list, settled.max(state.settled));
            verdicts.push(verdict.map_err(|why| format!("machine {machine}: {why}")));
        }
        for verdict in verdicts {
            self.judge(verdict.map_err(|why| format!("set {in_sync:?} of lane {lane}: {why}")));
        }
    }

    /// The machine whose device this is, if it still is.
    pub fn holder(&self, device: DeviceId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == device)
    }

    /// The machines of a lane's members.
    pub fn holders(&self, lane: u16) -> Vec<usize> {
        self.metadata.members(lane).into_iter().filter_map(|id| self.holder(id)).collect()
    }

    /// Guests' blocks of which the machine's device is a member.
    fn ranges_on(&self, machine: usize) -> Vec<BlockRange> {
        let held = |range: &BlockRange| self.holders(self.lane_of(range.start)).contains(&machine);
        self.workload.ranges().into_iter().filter(held).collect()
    }

    /// Reads everything that a device holds as a member; blocks that are damaged are counted and absent.
    pub fn contents_of(&mut self, machine: usize) -> (Content, u64) {
        let (mut content, mut damaged) = (Content::new(), 0);
        for range in self.ranges_on(machine) {
            let Some(read) = self.peek(machine, range) else { continue };
            for (i, block) in range.blocks().enumerate() {
                let values = match (read.states[i], &read.payload) {
                    (BlockState::Zero, _) => Some([0, 0]),
                    (BlockState::Data(_), Some(payload)) => values_of(payload.block(i)),
                    _ => None,
                };
                match values {
                    Some(values) => {
                        content.insert(block, Held { stamp: read.stamps[i], values });
                    }
                    None => damaged += 1,
                }
            }
        }
        self.run_node(machine);
        (content, damaged)
    }

    /// What the volume holds, each lane read from its first member.
    pub fn volume_content(&mut self) -> Content {
        let mut volume = Content::new();
        for machine in 0..self.nodes.len() {
            let content = self.contents_of(machine).0;
            let first = |block: &u64| self.holders(self.lane_of(*block)).first() == Some(&machine);
            volume.extend(content.into_iter().filter(|(block, _)| first(block)));
        }
        volume
    }

    /// A replica is about to store that content is lost.
    pub fn judge_write_off(&mut self, write: &Write) {
        for block in write.range.blocks() {
            let in_sync = self.metadata.in_sync(self.lane_of(block));
            let members: Vec<usize> = (0..self.nodes.len()).filter(|m| in_sync.contains(&self.nodes[*m].id)).collect();
            let held_by = |world: &Self, machine: usize| world.nodes[machine].shadow.content.get(&block).copied();
            let held = members.iter().filter_map(|machine| held_by(self, *machine));
            let acknowledged = held.filter(|held| held.values != LOST).map(|held| held.stamp);
            // A write that nobody acknowledged may be durable all the same: lists say so.
            let stores = members.iter().filter_map(|machine| self.nodes[*machine].store.as_ref());
            let lists = stores.flat_map(|store| store.lanes()).flat_map(|(_, lane)| &lane.list);
            let listed = lists.filter(|entry| entry.range.contains(block)).map(|entry| entry.stamp);
            let older = acknowledged.chain(listed).filter(|stamp| *stamp < write.stamp);
            let Some(newest) = older.max() else { continue };
            let mut copies = Vec::new();
            for machine in members {
                let Some(held) = held_by(self, machine) else { continue };
                if self.nodes[machine].dead || !self.can_answer(machine) {
                    continue;
                }
                let read = self.peek(machine, BlockRange::new(block, 1));
                // Bytes of a newer write that is on its way do not count.
                let bytes = read.and_then(|read| read.payload);
                let good = bytes.is_some_and(|bytes| values_of(bytes.block(0)) == Some(held.values));
                copies.push(Copy { machine, stamp: held.stamp, good });
            }
            self.judge(written_off::check(block, newest, &copies));
        }
    }

    /// Nothing keeps the machine from answering.
    fn can_answer(&self, machine: usize) -> bool {
        let cut = self.network.troubles.iter().any(|trouble| trouble.machine == machine);
        let paused = self.paused.values().any(|who| *who == Who::Node(machine));
        self.nodes[machine].replica.is_some() && !cut && !paused
    }

    /// Where that damage is, for a person.
    pub fn damaged_places(&mut self) -> String {
        let mut places = Vec::new();
        for machine in 0..self.nodes.len() {
            for range in self.ranges_on(machine) {
                let Some(read) = self.peek(machine, range) else { continue };
                let bad = |state: &BlockState| matches!(state, BlockState::Bad(_) | BlockState::Unknown);
                let blocks = range.blocks().zip(&read.states).filter(|(_, state)| bad(state));
                places.extend(blocks.map(|(block, state)| format!("block {block} of machine {machine} is {state:?}")));
            }
            self.run_node(machine);
        }
        places.join(", ")
    }

    /// Blocks that are damaged on some device.
    pub fn damaged_blocks(&mut self) -> u64 {
        (0..self.nodes.len()).map(|machine| self.contents_of(machine).1).sum()
    }

    /// O3: every member holds the same bytes, they match their checksums, and nothing acknowledged is missing.
    pub fn check_contents(&mut self) {
        let contents: Vec<(usize, Content)> =
            (0..self.nodes.len()).map(|machine| (machine, self.contents_of(machine).0)).collect();
        let mut verdicts = Vec::new();
        for lane in 0..self.options.lanes {
            let of_lane = |machine: usize| -> Content {
                let all = contents[machine].1.iter().filter(|(block, _)| self.lane_of(**block) == lane);
                all.map(|(block, held)| (*block, *held)).collect()
            };
            let members: Vec<(usize, Content)> =
                self.holders(lane).into_iter().map(|machine| (machine, of_lane(machine))).collect();
            let views: Vec<(usize, &Content)> = members.iter().map(|(machine, content)| (*machine, content)).collect();
            verdicts.push(equal::altogether(&views));
        }
        let content = self.volume_content();
        verdicts.push(self.workload.check_durable(&content));
        for machine in 0..self.nodes.len() {
            for range in self.ranges_on(machine) {
                let read = self.peek(machine, range);
                verdicts.extend(read.map(|read| checksums::check(VOLUME, &read)));
            }
            self.run_node(machine);
        }
        verdicts.into_iter().for_each(|verdict| self.judge(verdict));
    }
}
