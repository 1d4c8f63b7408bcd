//! A simulated device for tests: volatile cache, crashes, torn writes, reordering, errors; all from one seed.
//!
//! It must never know what the engine wants with its bytes.

mod checks;
pub mod workload;

use crate::engine::{Effect, FormatOptions, IoError, IoId, StoreEngine, format};
use ashlar_model::{AlignedBuffer, Payload};
use std::collections::HashSet;

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct Prng(pub u64);

impl Prng {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Bytes that a device keeps together in a power cut.
const SECTOR: usize = 512;

/// A write in the device's volatile cache, or still on its way.
#[derive(Clone, Debug)]
struct CachedWrite {
    offset: usize,
    bytes: Vec<u8>,
}

impl CachedWrite {
    fn new(offset: u64, parts: &[Payload]) -> Self {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        Self { offset: offset as usize, bytes: parts.concat() }
    }
}

/// The device.
#[derive(Debug)]
pub struct SimDevice {
    /// What survives a power cut.
    media: Vec<u8>,
    /// What reads see.
    view: Vec<u8>,
    cache: Vec<CachedWrite>,
    pending: Vec<Effect>,
    /// Acknowledged writes need a flush.
    volatile: bool,
    /// Offsets of pages that cannot be read.
    pub unreadable: HashSet<u64>,
    /// Fail the next write.
    pub fail_writes: bool,
    /// The device's randomness.
    pub prng: Prng,
}

impl SimDevice {
    /// A formatted device.
    pub fn formatted(options: &FormatOptions, volatile: bool, seed: u64) -> Self {
        let mut prng = Prng(seed);
        // Not zeroes: what was there before must not matter.
        let fill = prng.next_u64() as u8;
        let mut media = vec![fill; options.size_bytes as usize];
        for (offset, bytes) in format(options).expect("options fit") {
            media[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
        let view = media.clone();
        let (cache, pending, unreadable) = (vec![], vec![], HashSet::new());
        Self { media, view, cache, pending, volatile, unreadable, fail_writes: false, prng }
    }

    /// Flips one bit.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        for bytes in [&mut self.media, &mut self.view] {
            bytes[offset as usize] ^= 1 << (bit % 8);
        }
    }

    /// Bytes as a read would see them.
    pub fn bytes(&self, offset: u64, bytes: usize) -> &[u8] {
        &self.view[offset as usize..offset as usize + bytes]
    }

    /// Operations that are not complete.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Takes the engine's effects; gives those that are not for the device.
    pub fn take(&mut self, engine: &mut StoreEngine) -> Vec<Effect> {
        let mut effects = Vec::new();
        engine.effects(&mut effects);
        let device = |e: &Effect| matches!(e, Effect::Read { .. } | Effect::Write { .. } | Effect::Flush { .. });
        let (mine, rest): (Vec<_>, Vec<_>) = effects.into_iter().partition(device);
        self.pending.extend(mine);
        rest
    }

    /// Completes one operation, any of those pending.
    pub fn complete_one(&mut self, engine: &mut StoreEngine) {
        let i = self.prng.below(self.pending.len() as u64) as usize;
        let (io, result) = self.perform(i);
        engine.io_done(io, result);
    }

    fn perform(&mut self, i: usize) -> (IoId, Result<Option<AlignedBuffer>, IoError>) {
        match self.pending.swap_remove(i) {
            Effect::Read { io, offset, bytes } => {
                let pages = (offset..offset + bytes as u64).step_by(4096);
                if pages.into_iter().any(|page| self.unreadable.contains(&page)) {
                    return (io, Err(IoError("unreadable sector".into())));
                }
                (io, Ok(Some(AlignedBuffer::copied_from(self.bytes(offset, bytes)))))
            }
            Effect::Write { io, offset, parts } => {
                if self.fail_writes {
                    return (io, Err(IoError("write error".into())));
                }
                let write = CachedWrite::new(offset, &parts);
                for page in (offset..offset + write.bytes.len() as u64).step_by(4096) {
                    self.unreadable.remove(&page);
                }
                apply(&mut self.view, &write, |_| true);
                if self.volatile {
                    self.cache.push(write);
                } else {
                    apply(&mut self.media, &write, |_| true);
                }
                (io, Ok(None))
            }
            Effect::Flush { io } => {
                for write in self.cache.drain(..) {
                    apply(&mut self.media, &write, |_| true);
                }
                (io, Ok(None))
            }
            _ => unreachable!("only device operations are kept"),
        }
    }

    /// A power cut: of what was not flushed, and of what was on its way, any part survives, in any order.
    pub fn crash(&mut self) {
        let mut lost = std::mem::take(&mut self.cache);
        for effect in std::mem::take(&mut self.pending) {
            if let Effect::Write { offset, parts, .. } = effect {
                lost.push(CachedWrite::new(offset, &parts));
            }
        }
        let places: Vec<_> = lost.iter().map(|write| write.offset..write.offset + write.bytes.len()).collect();
        let style = self.prng.below(4);
        while !lost.is_empty() {
            let write = lost.swap_remove(self.prng.below(lost.len() as u64) as usize);
            let fate = if style == 3 { 2 } else { self.prng.below(3) };
            let prng = &mut self.prng;
            match fate {
                0 => {}
                1 => apply(&mut self.media, &write, |_| true),
                _ => {
                    let keep = 1 + prng.below(8);
                    apply(&mut self.media, &write, |_| prng.below(8) < keep);
                }
            }
        }
        for place in places {
            self.view[place.clone()].copy_from_slice(&self.media[place]);
        }
    }
}

fn apply(target: &mut [u8], write: &CachedWrite, mut keep: impl FnMut(usize) -> bool) {
    for (i, sector) in write.bytes.chunks(SECTOR).enumerate() {
        if keep(i) {
            let at = write.offset + i * SECTOR;
            target[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}
