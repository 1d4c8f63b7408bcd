//! What a device has acknowledged as durable: the naive model of its store.
//!
//! After a power cut each block must hold the last acknowledged write, or one that was submitted after it. It must
//! never look into the store.

use super::workload::values_of;
use super::world::VOLUME;
use crate::check::content::{Content, Held, LOST};
use ashlar_model::{BlockRange, Stamp};
use ashlar_store::api::{BlockState, Body, ReadResult, Reply, Request, StoreError, Token};
use std::collections::{BTreeMap, HashMap};

/// A write that has been submitted and not answered.
#[derive(Clone, Debug)]
struct Asked {
    sequence: u64,
    stamp: Stamp,
    range: BlockRange,
    /// Values of each block.
    values: Vec<[u64; 2]>,
}

impl Asked {
    fn blocks(&self) -> impl Iterator<Item = (u64, Held)> + '_ {
        let held = |values: &[u64; 2]| Held { stamp: self.stamp, values: *values };
        self.range.blocks().zip(self.values.iter().map(held))
    }
}

/// The model of one device's store.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    /// What is durable for certain.
    pub content: Content,
    /// It was told that content is lost.
    pub lost: bool,
    /// Per block, which submission that was.
    sequences: BTreeMap<u64, u64>,
    asked: HashMap<Token, Asked>,
    /// Releases of everything that are not answered, each with the submission that it came after.
    releases: HashMap<Token, u64>,
    /// Everything up to this submission was released.
    released: u64,
    next: u64,
    /// The highest promise that was durable.
    promised: u64,
}

impl Shadow {
    /// A request goes to the store.
    pub fn submitted(&mut self, token: Token, request: &Request) {
        if let Request::Release { volume: VOLUME, .. } = request {
            self.releases.insert(token, self.next);
        }
        let Request::Write(write) = request else { return };
        let values = match &write.body {
            Body::Held => return,
            Body::Tombstone => vec![[0, 0]; write.range.count as usize],
            Body::Lost => {
                self.lost = true;
                vec![LOST; write.range.count as usize]
            }
            Body::Data { payload, .. } => {
                (0..write.range.count as usize).map(|i| values_of(payload.block(i)).unwrap_or_default()).collect()
            }
        };
        self.next += 1;
        let asked = Asked { sequence: self.next, stamp: write.stamp, range: write.range, values };
        self.asked.insert(token, asked);
    }

    /// The store answered; gives what is durable because of it, or was until something newer took its place.
    pub fn answered(&mut self, token: Token, reply: &Reply) -> Vec<(u64, Held)> {
        if let Reply::Error(StoreError::Failed(_)) = reply {
            return Vec::new(); // what became of it shows when the device is opened again
        }
        if let Reply::Sealed { promised, .. } = reply {
            self.promised = self.promised.max(promised.0);
        }
        if let Some(released) = self.releases.remove(&token).filter(|_| *reply == Reply::Done) {
            self.released = self.released.max(released);
            let gone = |block: &u64| self.sequences.get(block).is_none_or(|sequence| *sequence <= released);
            self.content.retain(|block, _| !gone(block));
        }
        let Some(asked) = self.asked.remove(&token) else { return Vec::new() };
        if *reply != Reply::Done {
            return Vec::new();
        }
        for (block, held) in asked.blocks().filter(|_| asked.sequence > self.released) {
            // A later write of the same block may have been answered before.
            let sequence = self.sequences.entry(block).or_default();
            if *sequence < asked.sequence {
                *sequence = asked.sequence;
                self.content.insert(block, held);
            }
        }
        asked.blocks().collect()
    }

    /// What has not been answered and may be durable all the same.
    pub fn unanswered(&self) -> Vec<(u64, Held)> {
        self.asked.values().flat_map(Asked::blocks).collect()
    }

    /// The store was opened again and read this: compares, and takes it as certain.
    ///
    /// # Errors
    /// A block that holds what it must not.
    pub fn reopened(&mut self, read: &ReadResult) -> Result<(), String> {
        for (i, block) in read.range.blocks().enumerate() {
            let values = match (read.states[i], &read.payload) {
                (BlockState::Zero, _) => [0, 0],
                (BlockState::Data(_), Some(payload)) => {
                    values_of(payload.block(i)).ok_or_else(|| format!("block {block} is torn"))?
                }
                _ => continue, // damage shows; that it is never wrong is all that a store can do
            };
            let acknowledged = self.content.get(&block).copied();
            let sequence = self.sequences.get(&block).copied().unwrap_or(0);
            let mut allowed: Vec<(u64, Held)> = vec![(sequence, acknowledged.unwrap_or_default())];
            if self.releases.values().any(|released| *released >= sequence) {
                allowed.push((0, Held::default()));
            }
            for asked in self.asked.values().filter(|asked| asked.sequence > sequence) {
                allowed.extend(asked.blocks().filter(|(b, _)| *b == block).map(|(_, held)| (asked.sequence, held)));
            }
            // Of several writes of the same value the newest that the store's stamp admits; a join makes it forget stamps.
            let same = allowed.iter().filter(|(_, held)| held.values == values);
            let admitted = |held: &Held| held.stamp <= read.stamps[i];
            let Some((sequence, held)) = same.max_by_key(|(sequence, held)| (admitted(held), held.stamp, *sequence))
            else {
                return Err(format!(
                    "after a restart block {block} holds {values:?} of {:?}; allowed was {allowed:?}",
                    read.stamps[i]
                ));
            };
            if *sequence > 0 {
                self.content.insert(block, *held);
                self.sequences.insert(block, *sequence);
            } else {
                self.content.remove(&block);
            }
        }
        Ok(())
    }

    /// The store was opened again and keeps this promise.
    ///
    /// # Errors
    /// If it had promised more.
    pub fn still_promised(&self, epoch: u64) -> Result<(), String> {
        if epoch < self.promised {
            return Err(format!("after a restart the promise is {epoch}; it had promised {}", self.promised));
        }
        Ok(())
    }

    /// Nothing is on its way any more.
    pub fn forget_asked(&mut self) {
        self.asked.clear();
        self.releases.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::lane::EntryOrigin;
    use ashlar_model::units::BLOCK_BYTES;
    use ashlar_model::{Epoch, LaneKey, Payload, VolumeId};

    fn stamp(index: u64) -> Stamp {
        Stamp { epoch: Epoch(1), index }
    }

    fn write(index: u64, value: u8) -> Request {
        Request::Write(ashlar_store::api::Write {
            key: LaneKey { volume: VolumeId::from_u128(1), lane: 0 },
            stamp: stamp(index),
            range: BlockRange::new(7, 1),
            body: Body::Data { payload: Payload::copied_from(&[value; BLOCK_BYTES]), checksums: [0].into() },
            origin: EntryOrigin::Live,
            listed: true,
            generation: 0,
        })
    }

    fn read(index: u64, value: u8) -> ReadResult {
        ReadResult {
            range: BlockRange::new(7, 1),
            payload: Some(Payload::copied_from(&[value; BLOCK_BYTES])),
            states: vec![BlockState::Data(0)],
            stamps: vec![stamp(index)],
        }
    }

    #[test]
    fn an_acknowledged_write_or_a_later_one_must_be_there() {
        let mut shadow = Shadow::default();
        for (token, index) in [(1, 1), (2, 2), (3, 3)] {
            shadow.submitted(Token(token), &write(index, index as u8));
        }
        assert_eq!(shadow.answered(Token(2), &Reply::Done).len(), 1);
        assert_eq!(shadow.answered(Token(1), &Reply::Done).len(), 1);
        assert_eq!(shadow.content[&7].values, values_of(&[2; BLOCK_BYTES]).unwrap(), "an older one changes nothing");
        assert!(shadow.clone().reopened(&read(2, 2)).is_ok());
        assert!(shadow.clone().reopened(&read(3, 3)).is_ok());
        assert!(shadow.clone().reopened(&read(1, 1)).is_err());
        assert!(shadow.clone().reopened(&read(3, 4)).is_err());
        let zeroes = ReadResult { payload: None, states: vec![BlockState::Zero], ..read(0, 0) };
        assert!(shadow.reopened(&zeroes).is_err());
    }
}
