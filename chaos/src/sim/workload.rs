//! Guests: unique values into few blocks, and a record of what they saw.
//!
//! Each block is two registers: its first sector and the rest, so that writes of part of a block are checked too.

use super::options::Options;
use crate::check::content::Content;
use crate::check::register::{FirstServed, Kind, Operation as Seen, check};
use crate::check::{durable, fenced};
use crate::prng::Prng;
use ashlar::volume::{ClientRequest, Operation, Outcome, RequestId};
use ashlar_model::buffer::AlignedBuffer;
use ashlar_model::units::{BLOCK_BYTES, CHUNK_BLOCKS};
use ashlar_model::{BlockRange, Payload};
use std::collections::{BTreeMap, BTreeSet};

const SECTOR_BYTES: usize = 512;

/// A request that a guest has sent.
#[derive(Clone, Debug)]
struct Sent {
    writer: usize,
    start: u64,
    range: BlockRange,
    what: What,
}

/// A value that was acknowledged: block, register (0: first sector, 1: rest), value.
pub type Written = (u64, usize, u64);

impl Sent {
    /// What the request writes, zeroes aside.
    fn written(&self) -> impl Iterator<Item = Written> + '_ {
        let (value, parts) = match self.what {
            What::Write { value, first, rest } => (value, [first, rest]),
            What::Read | What::Zero => (0, [false, false]),
        };
        let of_block = move |block| (0..2).filter(move |part| parts[*part]).map(move |part| (block, part, value));
        self.range.blocks().flat_map(of_block)
    }
}

#[derive(Clone, Copy, Debug)]
enum What {
    Read,
    Zero,
    /// Writes this value into the chosen registers (first sector, rest).
    Write {
        value: u64,
        first: bool,
        rest: bool,
    },
}

/// All guests of a run.
#[derive(Debug)]
pub struct Workload {
    blocks: Vec<u64>,
    next_value: u64,
    next_request: u64,
    sent: BTreeMap<RequestId, Sent>,
    /// Requests whose guests left before they had begun.
    left: BTreeSet<RequestId>,
    /// Requests in flight, by writer.
    counts: Vec<usize>,
    history: BTreeMap<(u64, bool), Vec<Seen>>,
    /// By lane: a later epoch may serve some while another one keeps it from being sealed.
    first_served: Vec<FirstServed>,
    /// Logical time of guests: one tick per event that they see.
    clock: u64,
    /// Requests answered well.
    pub acknowledged: u64,
    /// Reads answered with data.
    pub reads: u64,
    /// Requests answered with an error.
    pub failed: u64,
}

impl Workload {
    /// Guests that use a few blocks around the chunk borders of every lane.
    pub fn new(options: &Options) -> Self {
        let border = CHUNK_BLOCKS as u64;
        let half = options.blocks / 2;
        let blocks = (0..options.blocks).map(|i| border - half + i).collect();
        Self {
            blocks,
            next_value: 1,
            next_request: 1,
            sent: BTreeMap::new(),
            left: BTreeSet::new(),
            counts: Vec::new(),
            history: BTreeMap::new(),
            first_served: vec![FirstServed::new(); usize::from(options.lanes)],
            clock: 1,
            acknowledged: 0,
            reads: 0,
            failed: 0,
        }
    }

    /// The time that guests see.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Guests know that whatever they asked for since then is lost.
    pub fn disown_since(&mut self, clock: u64) {
        self.history.values_mut().for_each(|seen| seen.retain(|operation| operation.start <= clock));
    }

    /// Requests of a writer's guest that are not answered.
    pub fn in_flight(&self, writer: usize) -> usize {
        self.counts.get(writer).copied().unwrap_or(0)
    }

    fn lane_of(&self, block: u64) -> usize {
        (block / CHUNK_BLOCKS as u64) as usize % self.first_served.len()
    }

    fn lanes_of(&self, range: BlockRange) -> Vec<usize> {
        range.pieces(CHUNK_BLOCKS as u32).map(|piece| self.lane_of(piece.start)).collect()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The next request of a writer's guest.
    pub fn next(&mut self, writer: usize, prng: &mut Prng) -> ClientRequest {
        let first = prng.below(self.blocks.len() as u64) as usize;
        let most = (self.blocks.len() - first).min(3) as u64;
        let range = BlockRange::new(self.blocks[first], prng.between(1, most) as u32);
        let (what, operation) = match prng.below(10) {
            0..=3 => (What::Read, Operation::Read { range }),
            4 => (What::Zero, Operation::Zero { range }),
            5 => self.partial_write(BlockRange::new(range.start, 1), prng),
            _ => {
                let value = self.new_value();
                let buffer = filled(range, value);
                let what = What::Write { value, first: true, rest: true };
                (what, Operation::Write { range, buffer, head_bytes: 0, tail_bytes: 0 })
            }
        };
        let start = self.tick();
        let id = self.send(Sent { writer, start, range: operation.range(), what });
        ClientRequest { id, operation }
    }

    /// Reads everything: what a guest sees at the end.
    pub fn read_all(&mut self, writer: usize) -> ClientRequest {
        let range = BlockRange::new(self.blocks[0], self.blocks.len() as u32);
        let start = self.tick();
        let id = self.send(Sent { writer, start, range, what: What::Read });
        ClientRequest { id, operation: Operation::Read { range } }
    }

    /// A guest reads one of the blocks in use.
    pub fn read_one(&mut self, writer: usize, at: usize) -> ClientRequest {
        let range = BlockRange::new(self.blocks[at], 1);
        let start = self.tick();
        let id = self.send(Sent { writer, start, range, what: What::Read });
        ClientRequest { id, operation: Operation::Read { range } }
    }

    /// A guest writes some of the blocks in use.
    pub fn write_some(&mut self, writer: usize, first: usize, count: u32) -> ClientRequest {
        let range = BlockRange::new(self.blocks[first], count);
        let value = self.new_value();
        let buffer = filled(range, value);
        let start = self.tick();
        let id = self.send(Sent { writer, start, range, what: What::Write { value, first: true, rest: true } });
        ClientRequest { id, operation: Operation::Write { range, buffer, head_bytes: 0, tail_bytes: 0 } }
    }

    fn partial_write(&mut self, range: BlockRange, prng: &mut Prng) -> (What, Operation) {
        let value = self.new_value();
        let first = prng.chance(1, 2);
        let buffer = filled(range, value);
        let sector = SECTOR_BYTES as u32;
        let (head_bytes, tail_bytes) = if first { (0, BLOCK_BYTES as u32 - sector) } else { (sector, 0) };
        let what = What::Write { value, first, rest: !first };
        (what, Operation::Write { range, buffer, head_bytes, tail_bytes })
    }

    fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// A writer answered.
    ///
    /// # Errors
    /// If bytes are not what any one write left.
    pub fn answered(&mut self, id: RequestId, outcome: &Outcome, epoch: u64) -> Result<Vec<Written>, String> {
        if self.left.contains(&id) {
            return Ok(Vec::new()); // nobody is there to hear it
        }
        let Some(sent) = self.remove(id) else { return Err(format!("{id:?} was answered twice")) };
        let end = self.tick();
        if let Outcome::Failed(_) = outcome {
            self.failed += 1;
            self.record_write(&sent, None, epoch);
            return Ok(Vec::new());
        }
        for lane in self.lanes_of(sent.range) {
            fenced::check(&self.first_served[lane], epoch, matches!(sent.what, What::Read), end)
                .map_err(|why| format!("lane {lane}: {why}"))?;
            self.first_served[lane].entry(epoch).or_insert(end);
        }
        self.acknowledged += 1;
        match outcome {
            Outcome::Written => {
                self.record_write(&sent, Some(end), epoch);
                return Ok(sent.written().collect());
            }
            Outcome::Read(runs) => {
                self.reads += 1;
                let mut next = sent.range.start;
                for run in runs {
                    if run.range.start != next {
                        return Err(format!("a read of {:?} has a gap at block {next}", sent.range));
                    }
                    next = run.range.end();
                    self.record_read(&sent, run.range, run.payload.as_ref(), end, epoch)?;
                }
                if next != sent.range.end() {
                    return Err(format!("a read of {:?} ends at block {next}", sent.range));
                }
            }
            Outcome::Map(_) | Outcome::Failed(_) => {}
        }
        Ok(Vec::new())
    }

    fn remove(&mut self, id: RequestId) -> Option<Sent> {
        let sent = self.sent.remove(&id)?;
        self.counts[sent.writer] -= 1;
        Some(sent)
    }

    fn send(&mut self, sent: Sent) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        if self.counts.len() <= sent.writer {
            self.counts.resize(sent.writer + 1, 0);
        }
        self.counts[sent.writer] += 1;
        self.sent.insert(id, sent);
        id
    }

    /// Another writer carries a request out.
    pub fn hand_over(&mut self, id: RequestId, writer: usize) {
        if let Some(sent) = self.remove(id) {
            self.counts.resize(self.counts.len().max(writer + 1), 0);
            self.counts[writer] += 1;
            self.sent.insert(id, Sent { writer, ..sent });
        }
    }

    /// A guest left before its request had begun. Nothing is recorded of the request: whatever of it appears is what
    /// nobody wrote.
    pub fn leave(&mut self, id: RequestId) {
        if self.remove(id).is_some() {
            self.left.insert(id);
        }
    }

    /// The writer died: its guest never learns what became of its requests.
    pub fn abandon(&mut self, writer: usize, epoch: u64) {
        let lost: Vec<RequestId> =
            self.sent.iter().filter(|(_, sent)| sent.writer == writer).map(|(id, _)| *id).collect();
        for id in lost {
            let sent = self.remove(id).expect("listed above");
            self.record_write(&sent, None, epoch);
        }
    }

    fn record_write(&mut self, sent: &Sent, end: Option<u64>, epoch: u64) {
        let (kind, parts) = match sent.what {
            What::Read => return,
            What::Zero => (Kind::Zero, [true, true]),
            What::Write { value, first, rest } => (Kind::Write(value), [first, rest]),
        };
        for block in sent.range.blocks() {
            for part in [true, false].into_iter().filter(|first| parts[usize::from(!*first)]) {
                let seen = Seen { kind, start: sent.start, end, epoch };
                self.history.entry((block, part)).or_default().push(seen);
            }
        }
    }

    fn record_read(
        &mut self,
        sent: &Sent,
        range: BlockRange,
        payload: Option<&Payload>,
        end: u64,
        epoch: u64,
    ) -> Result<(), String> {
        for (i, block) in range.blocks().enumerate() {
            let zeroes = [0u8; BLOCK_BYTES];
            let bytes = payload.map_or(&zeroes[..], |payload| payload.block(i));
            let values = values_of(bytes).ok_or_else(|| format!("block {block} is a mixture of writes"))?;
            for (part, value) in [true, false].into_iter().zip(values) {
                let seen = Seen { kind: Kind::Read(value), start: sent.start, end: Some(end), epoch };
                self.history.entry((block, part)).or_default().push(seen);
            }
        }
        Ok(())
    }

    /// Judges everything that guests saw.
    ///
    /// # Errors
    /// The first register whose history no order explains.
    pub fn check(&self) -> Result<(), String> {
        for ((block, first), history) in &self.history {
            let part = if *first { "first sector" } else { "rest" };
            check(history, &self.first_served[self.lane_of(*block)])
                .map_err(|why| format!("block {block}, {part}: {why}"))?;
        }
        Ok(())
    }

    /// Judges what devices hold when nothing is under way.
    ///
    /// # Errors
    /// The acknowledged write that is lost.
    pub fn check_durable(&self, content: &Content) -> Result<(), String> {
        for ((block, first), history) in &self.history {
            let held = content.get(block).copied().unwrap_or_default();
            durable::check(history, held.values[usize::from(!*first)])
                .map_err(|why| format!("block {block}: {why}"))?;
        }
        Ok(())
    }

    /// The blocks in use, as ranges that do not cross chunks.
    pub fn ranges(&self) -> Vec<BlockRange> {
        let mut ranges: Vec<BlockRange> = Vec::new();
        for block in &self.blocks {
            match ranges.last_mut() {
                Some(last) if last.end() == *block && !block.is_multiple_of(CHUNK_BLOCKS as u64) => last.count += 1,
                _ => ranges.push(BlockRange::new(*block, 1)),
            }
        }
        ranges
    }
}

fn filled(range: BlockRange, value: u64) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(range.bytes());
    for word in buffer.chunks_exact_mut(8) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    buffer
}

/// The values of a block's two registers; `None`: it is a mixture of writes.
pub fn values_of(block: &[u8]) -> Option<[u64; 2]> {
    Some([value_of(&block[..SECTOR_BYTES])?, value_of(&block[SECTOR_BYTES..])?])
}

/// The one value that fills the bytes.
fn value_of(bytes: &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_at(8);
    rest.chunks_exact(8).all(|word| word == first).then(|| u64::from_le_bytes(first.try_into().expect("eight bytes")))
}
