//! A device in memory that begins as a fixed image and is cheap to begin anew.
//!
//! It must never fail nor reorder: faults are the simulated device's.

use crate::device::DeviceOp;
use crate::engine::{Effect, StoreEngine};
use crate::layout::PAGE_BYTES;
use ashlar_model::AlignedBuffer;
use std::collections::BTreeMap;

/// Device operations after which an engine that is still not idle never will be.
const STEPS_MAX: usize = 200_000;

/// The image, and the pages that differ from it.
#[derive(Clone, Debug)]
pub struct Memory<'a> {
    image: &'a [u8],
    changed: BTreeMap<u64, Box<[u8]>>,
}

impl<'a> Memory<'a> {
    /// A device with this on it.
    pub fn new(image: &'a [u8]) -> Self {
        Self { image, changed: BTreeMap::new() }
    }

    /// Bytes from any place.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        self.read_into(offset, &mut buffer);
        buffer
    }

    fn read_into(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        buffer.copy_from_slice(&self.image[offset as usize..end as usize]);
        for (at, page) in self.changed.range(offset / PAGE_BYTES * PAGE_BYTES..end) {
            let (from, to) = (offset.max(*at), end.min(at + PAGE_BYTES));
            let part = &page[(from - at) as usize..(to - at) as usize];
            buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
    }

    /// Puts bytes at any place.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (start, within) = (at / PAGE_BYTES * PAGE_BYTES, (at % PAGE_BYTES) as usize);
            let count = (bytes.len() - done).min(PAGE_BYTES as usize - within);
            let old = &self.image[start as usize..(start + PAGE_BYTES) as usize];
            let page = self.changed.entry(start).or_insert_with(|| old.into());
            page[within..within + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    /// All bytes.
    pub fn image(&self) -> Vec<u8> {
        self.read(0, self.image.len())
    }

    /// Carries out what the engine wants until it wants nothing more; gives what is not for the device.
    ///
    /// # Panics
    /// If that takes forever, or the engine wants something beyond the device.
    pub fn run(&mut self, engine: &mut StoreEngine) -> Vec<Effect> {
        let (mut rest, mut effects) = (Vec::new(), Vec::new());
        let mut steps = 0;
        loop {
            engine.effects(&mut effects);
            if effects.is_empty() {
                return rest;
            }
            steps += effects.len();
            assert!(steps < STEPS_MAX, "the engine does not come to rest");
            for effect in effects.drain(..) {
                match DeviceOp::from_effect(effect) {
                    Ok(op) => self.perform(engine, &op),
                    Err(effect) => rest.push(effect),
                }
            }
        }
    }

    fn perform(&mut self, engine: &mut StoreEngine, op: &DeviceOp) {
        op.check(self.image.len() as u64).expect("the engine stays on its device");
        let mut read = None;
        match op {
            DeviceOp::Read { offset, bytes, .. } => {
                let mut buffer = AlignedBuffer::zeroed(*bytes);
                self.read_into(*offset, &mut buffer);
                read = Some(buffer);
            }
            DeviceOp::Write { offset, parts, .. } => {
                let mut at = *offset;
                for part in parts {
                    self.write(at, part);
                    at += part.len() as u64;
                }
            }
            DeviceOp::Flush { .. } | DeviceOp::Discard { .. } => {}
        }
        engine.io_done(op.io(), Ok(read));
    }
}
