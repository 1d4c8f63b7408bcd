//! What the workload asks for.

use super::{Asked, CHUNK, CHUNKS, CrashRun, Entry, LANES, LOST, Lane, SNAPSHOTS_MAX, USED, VOLUMES, Version};
use super::{lane_key, volume_id};
use crate::api::{Body, Request, Token, Write};
use crate::layout::SLOT_BYTES;
use ashlar_model::checksum::block_checksums;
use ashlar_model::lane::{EntryOrigin, ListEntry};
use ashlar_model::units::{GRANULE_BYTES, KIB};
use ashlar_model::{BlockRange, Epoch, Payload, Stamp, VolumeId};

fn content(volume: VolumeId, range: BlockRange, id: u64) -> Body {
    let bytes = id.to_le_bytes().repeat(range.bytes() / 8);
    let checksums: Vec<u32> = block_checksums(volume, range.start, &bytes).collect();
    Body::Data { payload: Payload::copied_from(&bytes), checksums: checksums.into() }
}

impl CrashRun {
    pub(super) fn submit_random(&mut self) {
        if let Some((volume, lane, _)) = self.narrow.filter(|(volume, ..)| self.volumes[volume].changing.is_none()) {
            return if self.prng.one_in(4) { self.read(volume, lane) } else { self.write(volume, lane) };
        }
        let volume = self.prng.below(VOLUMES);
        let lane = self.prng.below(u64::from(LANES)) as u16;
        let state = &self.volumes[&volume];
        if state.changing.is_some() {
            return;
        }
        let started = state.lanes.contains_key(&lane);
        match self.prng.below(100) {
            _ if !started => self.change(volume, lane, 0),
            0..=1 => self.change(volume, lane, 0),
            2 => self.change(volume, lane, 1),
            3 if self.prng.one_in(3) => self.change(volume, lane, 2),
            4..=6 => self.promise(volume),
            7..=16 => self.settle(volume, lane),
            17..=33 => self.read(volume, lane),
            34 => self.snapshot(volume),
            35 => self.drop_generation(volume),
            36 => self.engine.checkpoint(),
            37 => self.engine.scrub(8 * GRANULE_BYTES as u64),
            _ => self.write(volume, lane),
        }
    }

    fn random_range(&mut self, lane: u16) -> BlockRange {
        let any = self.prng.below(CHUNKS);
        let chunk = self.narrow.map_or(any, |(_, _, chunk)| chunk) * u64::from(LANES) + u64::from(lane);
        // Whole granules take new space each time.
        let kind = if (self.narrow.is_some() || self.follows) && !self.prng.one_in(4) { 0 } else { self.prng.below(5) };
        let (start, count) = match kind {
            0 => {
                let granules = if self.follows { 2 } else { 1 + self.prng.below(2) };
                (self.prng.below(USED / 16) * 16, 16 * granules)
            }
            1 => (self.prng.below(USED), 1 + self.prng.below(32)),
            2 => (self.prng.below(64), 1),
            _ => (self.prng.below(24), 1 + self.prng.below(3)),
        };
        BlockRange::new(chunk * CHUNK + start, count.min(USED - start) as u32)
    }

    /// In half of the runs one block of what was written last, often: before its write is durable, or soon after.
    fn range_to_write(&mut self, volume: u64, lane: u16) -> BlockRange {
        let last = self.last.get(&(volume, lane)).copied().filter(|_| self.follows && self.prng.one_in(2));
        let range = match last {
            Some(last) => BlockRange::new(last.start + self.prng.below(u64::from(last.count)), 1),
            None => self.random_range(lane),
        };
        self.last.insert((volume, lane), range);
        range
    }

    pub(super) fn write(&mut self, volume: u64, lane: u16) {
        let range = self.range_to_write(volume, lane);
        let id = self.next_id;
        self.next_id += 1;
        let token = self.next_token;
        let kind = self.prng.below(20);
        let state = self.volumes.get_mut(&volume).expect("there are two");
        let generation = state.generation;
        let model = state.lanes.get_mut(&lane).expect("started");
        let copy = kind == 0;
        let index = if copy { model.settled.max(1) } else { model.next };
        model.next += u64::from(!copy);
        let stamp = Stamp { epoch: Epoch(model.epoch), index };
        let tombstone = kind < 5;
        let origin = if copy { EntryOrigin::Copy } else { EntryOrigin::Live };
        if !copy {
            let entry = ListEntry { stamp, range, tombstone, origin, generation };
            model.entries.push(Entry { entry, token, acked: false });
        }
        let settled = model.settled;
        let id = match kind {
            0..5 => 0,
            5 => LOST,
            _ => id,
        };
        for block in range.blocks() {
            let version = Version { id, stamp, token, acked: false, generation };
            self.blocks.entry((volume, block)).or_default().push(version);
        }
        let body = match id {
            0 => Body::Tombstone,
            LOST => Body::Lost,
            id => content(volume_id(volume), range, id),
        };
        let write = Write { key: lane_key(volume, lane), stamp, range, body, origin, listed: !copy, generation };
        self.ask(Asked::Write { volume, lane, range, settled }, Request::Write(write));
    }

    fn read(&mut self, volume: u64, lane: u16) {
        let range = self.random_range(lane);
        let id = volume_id(volume);
        if self.prng.one_in(8) {
            self.ask(Asked::Map, Request::Map { volume: id, range });
            return;
        }
        let snapshots: Vec<u32> = self.volumes[&volume].snapshots.iter().copied().collect();
        let pick = self.prng.below(3 * (snapshots.len() as u64 + 1)) as usize;
        let (generation, request) = match snapshots.get(pick) {
            Some(generation) => (*generation, Request::ReadSnapshot { volume: id, range, generation: *generation }),
            None => (u32::MAX, Request::Read { volume: id, range }),
        };
        // On a damaged device nobody has looked which unacknowledged writes a power cut has left.
        let certain = |version: &&Version| !self.lenient || version.acked;
        let floor = |block| {
            let all = self.blocks.get(&(volume, block)).map_or(&[][..], Vec::as_slice);
            let seen: Vec<&Version> = super::checks::seen(all, generation).collect();
            seen.iter().rposition(certain).map_or(0, |at| at + 1)
        };
        let floor = range.blocks().map(floor).collect();
        self.ask(Asked::Read { volume, floor, generation }, request);
    }

    fn snapshot(&mut self, volume: u64) {
        let state = self.volumes.get_mut(&volume).expect("there are two");
        if state.snapshots.len() < SNAPSHOTS_MAX && state.dropping.is_none() {
            state.snapshots.insert(state.generation);
            state.generation += 1;
        }
    }

    fn drop_generation(&mut self, volume: u64) {
        let state = self.volumes.get_mut(&volume).expect("there are two");
        let count = state.snapshots.len() as u64;
        if count == 0 || state.dropping.is_some() {
            return;
        }
        let pick = self.prng.below(count) as usize;
        let generation = *state.snapshots.iter().nth(pick).expect("below their number");
        // Nobody may still be reading what is dropped.
        if self.asked.values().any(|asked| matches!(asked, Asked::Read { generation: one, .. } if *one == generation)) {
            return;
        }
        state.snapshots.remove(&generation);
        let into = state.snapshots.range(generation..).next().copied().unwrap_or(state.generation);
        state.dropping = Some((generation, into));
        let request = Request::DropGeneration { volume: volume_id(volume), generation, into };
        self.ask(Asked::Drop { volume }, request);
    }

    pub(super) fn promise(&mut self, volume: u64) {
        self.next_epoch += 1;
        let epoch = self.next_epoch;
        let state = self.volumes.get_mut(&volume).expect("there are two");
        state.promised_max = state.promised_max.max(epoch);
        self.ask(Asked::Promise { volume, epoch }, Request::Promise { volume: volume_id(volume), epoch: Epoch(epoch) });
    }

    fn settle(&mut self, volume: u64, lane: u16) {
        let key = lane_key(volume, lane);
        let Some((_, state)) = self.engine.lanes().find(|(one, _)| *one == key) else { return };
        let index = state.settled + self.prng.below(state.prefix.saturating_sub(state.settled) + 1);
        let member = !self.prng.one_in(10);
        let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
        if member {
            model.settled = model.settled.max(index);
        } else {
            model.dropped = model.dropped.max(index);
        }
        self.engine.submit(Token(0), Request::Settle { key, index, config: 1, member });
    }

    /// Everything is settled and checkpointed: neither the log nor a list names a chunk.
    pub(super) fn settle_all(&mut self) {
        for (volume, lane) in (0..VOLUMES).flat_map(|volume| (0..LANES).map(move |lane| (volume, lane))) {
            let key = lane_key(volume, lane);
            let Some(index) = self.engine.lanes().find(|(one, _)| *one == key).map(|(_, state)| state.prefix) else {
                continue;
            };
            let model = self.volumes.get_mut(&volume).and_then(|v| v.lanes.get_mut(&lane)).expect("started");
            model.settled = model.settled.max(index);
            self.engine.submit(Token(0), Request::Settle { key, index, config: 1, member: true });
        }
        self.engine.checkpoint();
        self.quiesce();
    }

    /// Start (0), join (1) or deletion (2), alone on its volume.
    fn change(&mut self, volume: u64, lane: u16, what: u64) {
        let state = &self.volumes[&volume];
        let busy = self.asked.values().any(|asked| match asked {
            Asked::Write { volume: other, .. } | Asked::Promise { volume: other, .. } => *other == volume,
            // A deletion ends it.
            Asked::Drop { volume: other } => what != 2 && *other == volume,
            Asked::Read { volume: other, .. } => what == 2 && *other == volume,
            _ => false,
        });
        if busy {
            return;
        }
        let mut after = state.lanes.clone();
        let token = self.next_token;
        self.next_epoch += 1;
        let epoch = self.next_epoch;
        let key = lane_key(volume, lane);
        let request = if what == 2 {
            after.clear();
            match token.is_multiple_of(2) {
                true => Request::Release { volume: volume_id(volume), epoch: Epoch(epoch) },
                false => Request::Forget { volume: volume_id(volume) },
            }
        } else {
            let model = after.entry(lane).or_insert_with(|| Lane { next: 1, ..Lane::default() });
            (model.epoch, model.base) = (epoch, model.next - 1);
            let (epoch, config, base) = (Epoch(epoch), 1, model.base);
            if what == 1 {
                model.entries.clear();
                Request::JoinStart { key, epoch, config, join: epoch.0, base }
            } else {
                Request::Start { key, epoch, config, base }
            }
        };
        let state = self.volumes.get_mut(&volume).expect("there are two");
        state.kept = if matches!(request, Request::Release { .. }) { epoch } else { 0 };
        if what != 2 || state.kept > 0 {
            state.promised_max = state.promised_max.max(epoch);
        }
        state.changing = Some((token, after));
        self.ask(Asked::Change { volume }, request);
    }

    /// A place somewhere on the device, by areas rather than by bytes.
    pub(super) fn random_place(&mut self) -> u64 {
        let layout = self.engine.superblock().layout;
        let used = layout.log.offset + self.prng.below(64 * KIB);
        let area = match self.prng.below(6) {
            0 => return self.prng.below(2) * crate::layout::SUPERBLOCK_B + self.prng.below(256),
            1 => return used,
            2 => layout.tables,
            3 => layout.slots,
            4 if layout.has_spares() => layout.spares,
            _ => layout.data,
        };
        area.offset + self.prng.below(area.bytes)
    }

    /// A place in the pages of the slots that are taken first.
    pub(super) fn place_in_pages(&mut self) -> u64 {
        self.engine.superblock().layout.slots.offset + self.prng.below(8 * SLOT_BYTES)
    }
}
