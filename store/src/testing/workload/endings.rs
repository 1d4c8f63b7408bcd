//! How a run ends: with rot, with a device that fails, with one that lies, or just so.
//!
//! Then damage may show and the device may refuse to open; wrong or old data may never show.

use super::{CHUNKS, CrashRun, VOLUMES};
use crate::testing::Faults;

/// Flipped bits of one ending.
const FLIPS_MAX: u64 = 3;

impl CrashRun {
    pub(super) fn end(&mut self) {
        match self.prng.below(8) {
            0..=2 => self.end_with_rot(),
            3..=4 => self.end_with_failure(),
            5..=6 => self.end_with_lies(),
            _ => {
                self.quiesce();
                self.check_all();
            }
        }
        self.count_engine();
    }

    /// One more commit says that all before it was complete: from then on damage is damage, not a torn tail.
    fn prove_complete(&mut self) {
        self.quiesce();
        if self.prng.one_in(2) {
            self.settle_all();
            self.narrow = self.started_lane();
        }
        for volume in 0..VOLUMES {
            self.promise(volume);
            self.quiesce();
        }
    }

    fn end_with_rot(&mut self) {
        self.coverage.endings[0] += 1;
        self.prove_complete();
        self.lenient = true;
        for _ in 0..=self.prng.below(FLIPS_MAX) {
            let place = if self.narrow.is_some() { self.place_in_pages() } else { self.random_place() };
            let bit = self.prng.below(8) as u8;
            self.device.flip_bit(place, bit);
        }
        self.reopen_damaged();
    }

    /// Writes or flushes fail from now on: the device is latched, and after a repair nothing acknowledged is missing.
    fn end_with_failure(&mut self) {
        self.coverage.endings[1] += 1;
        self.lenient = true;
        match self.prng.below(3) {
            0 => self.device.fail_writes = true,
            1 => self.device.fail_flushes = true,
            _ => self.device.full = true,
        }
        for _ in 0..self.prng.below(60) {
            if self.engine.failed().is_none() {
                self.step();
            }
        }
        (self.device.fail_writes, self.device.fail_flushes, self.device.full) = (false, false, false);
        self.lenient = false;
        self.crash();
    }

    /// Writes to pages and data get lost, go astray or come twice.
    fn end_with_lies(&mut self) {
        self.coverage.endings[2] += 1;
        let layout = self.engine.superblock().layout;
        self.lenient = true;
        let mut faults = Faults { only: Some(layout.slots.offset..layout.spares.end()), ..Faults::default() };
        match self.prng.below(4) {
            0 => faults.lose_one_in = 10,
            1 => faults.misdirect_one_in = 10,
            2 => faults.duplicate_one_in = 10,
            _ => (faults.rot_one_in, faults.unreadable_one_in) = (10, 10),
        }
        self.device.faults = faults;
        for _ in 0..self.prng.below(200) {
            self.step();
        }
        self.device.faults = Faults::default();
        // A lie about what the map says may be found while running: then the device is latched.
        if self.engine.failed().is_none() {
            self.prove_complete();
        }
        self.reopen_damaged();
    }

    /// Opens what was damaged; then goes on writing, and loses power again: once it has opened it always opens.
    fn reopen_damaged(&mut self) {
        self.power_cut();
        if let Err(error) = self.open_to_end() {
            self.coverage.refused += 1;
            let text = error.to_string();
            return assert!(text.contains("damaged") || text.contains("inconsistent"), "{text}");
        }
        self.check_lanes();
        self.asked.clear();
        for _ in 0..3 {
            for _ in 0..self.prng.below(60) {
                self.step();
            }
            if let Some(reason) = self.engine.failed() {
                // What background reads found of the damage may still latch the device.
                assert!(reason.contains("contradicts itself"), "{reason}");
                self.coverage.refused += 1;
                return;
            }
            self.power_cut();
            self.open_to_end().expect("a damaged device that opened once opens again");
            self.check_lanes();
            self.asked.clear();
            self.collect();
        }
        self.finish_drops();
        self.check_all();
    }

    /// A chunk of a lane that can be written.
    fn started_lane(&mut self) -> Option<(u64, u16, u64)> {
        let volume = self.prng.below(VOLUMES);
        let lane = self.volumes[&volume].lanes.keys().next().copied();
        lane.map(|lane| (volume, lane, self.prng.below(CHUNKS)))
    }
}
