//! Byte ranges to block operations, by exact effects.

use super::steps::{Steps, bytes_under_way, covering};
use crate::volume::Operation;
use ashlar_model::BlockRange;
use ashlar_nbd::session::{Operation as Command, Request};
use ashlar_nbd::wire::Cookie;

fn request(operation: Command, offset_bytes: u64, length_bytes: u64) -> Request {
    Request { cookie: Cookie(1), operation, offset_bytes, length_bytes, fua: false }
}

/// (first block, blocks, kind, head bytes, tail bytes)
fn all(mut steps: Steps) -> Vec<(u64, u32, &'static str, u32, u32)> {
    let mut seen = Vec::new();
    while let Some(operation) = steps.next() {
        let range = operation.range();
        seen.push(match operation {
            Operation::Read { .. } => (range.start, range.count, "read", 0, 0),
            Operation::Map { .. } => (range.start, range.count, "map", 0, 0),
            Operation::Zero { .. } => (range.start, range.count, "zero", 0, 0),
            Operation::Write { head_bytes, tail_bytes, .. } => {
                (range.start, range.count, "write", head_bytes, tail_bytes)
            }
        });
    }
    seen
}

#[test]
fn reads_cover_the_blocks_they_touch() {
    let read = Command::Read { dont_fragment: false };
    assert_eq!(all(Steps::of(&request(read, 512, 512))), [(0, 1, "read", 0, 0)]);
    assert_eq!(all(Steps::of(&request(read, 4095, 2))), [(0, 2, "read", 0, 0)]);
    assert_eq!(covering(8192, 4096), BlockRange::new(2, 1));
}

#[test]
fn trims_round_inwards() {
    assert_eq!(all(Steps::of(&request(Command::Trim, 512, 4096))), []);
    assert_eq!(all(Steps::of(&request(Command::Trim, 512, 12_288))), [(1, 2, "zero", 0, 0)]);
}

#[test]
fn zeroes_keep_what_lies_around_them() {
    let zeroes = Command::WriteZeroes { no_hole: false, fast: false };
    assert_eq!(all(Steps::of(&request(zeroes, 512, 1024))), [(0, 1, "write", 512, 2560)]);
    assert_eq!(
        all(Steps::of(&request(zeroes, 4096 - 512, 512 + 8192 + 1024))),
        [(0, 1, "write", 3584, 0), (1, 2, "zero", 0, 0), (3, 1, "write", 0, 3072)]
    );
}

#[test]
fn large_zeroes_are_cut_into_steps() {
    let zeroes = Command::WriteZeroes { no_hole: false, fast: false };
    let steps = all(Steps::of(&request(zeroes, 4096, 130 << 20)));
    assert_eq!(steps.len(), 3);
    assert_eq!(steps[0], (1, (64 << 8) - 1, "zero", 0, 0));
    assert_eq!(steps.iter().map(|step| u64::from(step.1)).sum::<u64>(), 130 << 8);
    let fill = Command::WriteZeroes { no_hole: true, fast: false };
    assert_eq!(all(Steps::of(&request(fill, 0, 2 << 20))), [(0, 256, "write", 0, 0), (256, 256, "write", 0, 0)]);
}

#[test]
fn block_status_is_bounded() {
    let status = Command::BlockStatus { one_extent: false };
    let steps = all(Steps::of(&request(status, 512, 1 << 40)));
    assert_eq!(steps.len(), 1024 + 1);
    assert_eq!((steps[0], steps[1]), ((0, 64 << 8, "map", 0, 0), (64 << 8, 64 << 8, "map", 0, 0)));
    assert_eq!(steps.iter().map(|step| u64::from(step.1)).sum::<u64>(), (64 << 18) + 1);
}

/// What each step finds is what `holds` says of its blocks; the runs that come out, and how many steps they took.
fn mapped(operation: Command, offset_bytes: u64, length_bytes: u64, holds: fn(u64) -> bool) -> (Vec<(u64, bool)>, u32) {
    let mut steps = Steps::of(&request(operation, offset_bytes, length_bytes));
    let mut count = 0;
    while let Some(operation) = steps.next() {
        let range = operation.range();
        let mut runs: Vec<(u32, bool)> = Vec::new();
        for block in range.start..range.end() {
            match runs.last_mut() {
                Some((blocks, kind)) if *kind == holds(block) => *blocks += 1,
                _ => runs.push((1, holds(block))),
            }
        }
        steps.found(&runs);
        count += 1;
    }
    (steps.map().to_vec(), count)
}

#[test]
fn runs_go_on_from_step_to_step() {
    let status = Command::BlockStatus { one_extent: false };
    let (runs, steps) = mapped(status, 512, 200 << 20, |block| block >= 100 << 8);
    assert_eq!((runs, steps), (vec![(100 << 8, false), ((100 << 8) + 1, true)], 4));
}

#[test]
fn one_extent_ends_where_the_next_begins() {
    let status = Command::BlockStatus { one_extent: true };
    assert_eq!(mapped(status, 0, 1 << 30, |block| block < 3).1, 1);
    let (runs, steps) = mapped(status, 0, 64 << 20, |_| false);
    assert_eq!((runs, steps), (vec![(64 << 8, false)], 5));
}

#[test]
fn a_map_ends_when_it_has_enough_extents() {
    let status = Command::BlockStatus { one_extent: false };
    let (runs, steps) = mapped(status, 0, 4 << 30, |block| block % 2 == 0);
    assert_eq!((runs.len(), steps), (9 << 14, 9), "the step with extent number 2^17 + 1 is the last");
}

#[test]
fn payloads_and_maps_take_room() {
    for (operation, bytes) in [
        (Command::Read { dont_fragment: false }, 64 << 20),
        (Command::Write, 64 << 20),
        (Command::Trim, 4096),
        (Command::WriteZeroes { no_hole: false, fast: false }, 4096),
        (Command::WriteZeroes { no_hole: true, fast: false }, 1 << 20),
        (Command::BlockStatus { one_extent: true }, 4096),
        (Command::BlockStatus { one_extent: false }, 32 * (16 << 10)),
    ] {
        assert_eq!(bytes_under_way(&request(operation, 0, 64 << 20)), bytes, "{operation:?}");
    }
}
