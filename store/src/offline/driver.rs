//! Drives an engine on a device that is only read: what the engine writes stays in memory, over what the device holds.
//!
//! It must never know why the engine reads or writes.

use super::map::OfflineDevice;
use super::ranges::Ranges;
use crate::engine::{Effect, IoError, OpenError, StoreEngine};
use crate::layout::PAGE_BYTES;
use ashlar_model::AlignedBuffer;
use std::collections::BTreeMap;

/// A device, pages over it, and what an engine said about it.
#[derive(Debug)]
pub(super) struct Driver<'a> {
    device: &'a OfflineDevice,
    /// Pages that were written, by device offset.
    overlay: BTreeMap<u64, Box<[u8]>>,
    /// How the open went, once it has ended.
    pub opened: Option<Result<(), OpenError>>,
    /// Damaged blocks that the engine named.
    pub damaged: Ranges,
    /// Bytes of data that verified so far.
    pub verified_bytes: u64,
    /// Pages that could not be read, and why.
    pub unreadable: BTreeMap<u64, String>,
}

impl<'a> Driver<'a> {
    pub fn new(device: &'a OfflineDevice) -> Self {
        Self {
            device,
            overlay: BTreeMap::new(),
            opened: None,
            damaged: Ranges::default(),
            verified_bytes: 0,
            unreadable: BTreeMap::new(),
        }
    }

    /// Bytes written over the device.
    pub fn overlay_bytes(&self) -> u64 {
        self.overlay.len() as u64 * PAGE_BYTES
    }

    /// Writes whole pages over the device.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (at, page) in (offset..).step_by(PAGE_BYTES as usize).zip(bytes.chunks(PAGE_BYTES as usize)) {
            self.overlay.insert(at, page.into());
        }
    }

    /// Carries out all that the engine wants, until it wants nothing more.
    pub fn run_until_idle(&mut self, engine: &mut StoreEngine) {
        let mut effects = Vec::new();
        loop {
            engine.effects(&mut effects);
            if effects.is_empty() {
                return;
            }
            for effect in effects.drain(..) {
                match effect {
                    Effect::Read { io, offset, bytes } => engine.io_done(io, self.read(offset, bytes).map(Some)),
                    Effect::Write { io, offset, parts, .. } => {
                        let mut at = offset;
                        for part in parts {
                            self.write(at, &part);
                            at += part.len() as u64;
                        }
                        engine.io_done(io, Ok(None));
                    }
                    Effect::Flush { io } => engine.io_done(io, Ok(None)),
                    Effect::Damaged { volume, block, .. } => self.damaged.insert(volume, block),
                    Effect::Opened => self.opened = Some(Ok(())),
                    Effect::OpenFailed(error) => self.opened = Some(Err(error)),
                    Effect::Reply { .. } => unreachable!("nothing is asked of the engine"),
                }
            }
        }
    }

    fn read(&mut self, offset: u64, bytes: usize) -> Result<AlignedBuffer, IoError> {
        let over = self.overlay.range(offset..offset + bytes as u64);
        let mut buffer = match self.device.read(offset, bytes) {
            Ok(buffer) => buffer,
            // What was written is there, whatever the medium says.
            Err(_) if over.clone().count() as u64 * PAGE_BYTES == bytes as u64 => AlignedBuffer::zeroed(bytes),
            Err(error) => {
                // The engine reads page by page where a longer read fails.
                if bytes as u64 == PAGE_BYTES {
                    self.unreadable.insert(offset, error.to_string());
                }
                return Err(error);
            }
        };
        for (at, page) in over {
            let at = (at - offset) as usize;
            buffer[at..at + page.len()].copy_from_slice(page);
        }
        Ok(buffer)
    }
}
