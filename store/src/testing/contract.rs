//! What every device does, whatever it is made of. Run by each implementation of [`Device`].
//!
//! It must never know which device it checks: not its kind, and not how it was opened.

use super::Prng;
use crate::device::{ATOMIC_WRITE_BYTES_MAX, Device, DeviceOp, IoResult, SECTOR_BYTES, WRITE_PARTS_MAX};
use crate::engine::IoId;
use crate::layout::PAGE_BYTES;
use ashlar_model::units::{KIB, MIB};
use ashlar_model::{AlignedBuffer, Payload, Pieces};
use smallvec::smallvec;
use std::collections::BTreeMap;

/// Smallest device that can be checked.
pub const SIZE_BYTES_MIN: u64 = 8 * MIB;

/// Checks a device of at least [`SIZE_BYTES_MIN`]; what is on it is overwritten. `make` opens it: each call the same
/// device, after the one before has been dropped. Panics with what is wrong.
pub fn check_device<D: Device>(mut make: impl FnMut() -> D) {
    let properties = make().properties();
    assert!(properties.size_bytes >= SIZE_BYTES_MIN, "{properties:?} is too small for this check");
    assert!(properties.size_bytes.is_multiple_of(PAGE_BYTES), "{properties:?}");
    let unit = properties.atomic_write_bytes;
    assert!(unit.is_power_of_two() && (SECTOR_BYTES..=ATOMIC_WRITE_BYTES_MAX).contains(&unit), "{properties:?}");

    nothing_in_flight_completes_nothing(&mut Bench::new(make()));
    what_is_written_is_read_back(&mut Bench::new(make()));
    parts_follow_each_other(&mut Bench::new(make()));
    reads_of_many_sizes_and_places(&mut Bench::new(make()));
    each_operation_completes_once(&mut Bench::new(make()));
    overlapping_operations_see_each_other(&mut Bench::new(make()));
    what_cannot_be_done_fails_and_does_nothing(&mut Bench::new(make()));
    a_discard_leaves_its_neighbours_alone(&mut Bench::new(make()));

    let expected = flushed_pattern(&mut Bench::new(make()));
    let mut bench = Bench::new(make());
    for (offset, bytes) in expected {
        assert!(bench.read(offset, bytes.len()) == bytes, "what was flushed is not there after a reopen: at {offset}");
    }
    assert_eq!(bench.device.properties(), properties, "the device has changed");
}

/// A device, and names for operations.
struct Bench<D> {
    device: D,
    next: u64,
}

impl<D: Device> Bench<D> {
    fn new(device: D) -> Self {
        Self { device, next: 1 << 40 }
    }

    fn name(&mut self) -> IoId {
        self.next += 1;
        IoId(self.next)
    }

    fn size(&self) -> u64 {
        self.device.properties().size_bytes
    }

    /// Submits all, and waits for all.
    fn run(&mut self, ops: Vec<DeviceOp>) -> BTreeMap<IoId, IoResult> {
        let names: Vec<IoId> = ops.iter().map(DeviceOp::io).collect();
        ops.into_iter().for_each(|op| self.device.submit(op));
        assert_eq!(self.device.in_flight(), names.len());
        let (mut results, mut done) = (BTreeMap::new(), Vec::new());
        while results.len() < names.len() {
            self.device.complete(&mut done);
            assert!(!done.is_empty(), "nothing completes, and {} are in flight", self.device.in_flight());
            for (io, result) in done.drain(..) {
                assert!(names.contains(&io), "{io:?} completed and was never submitted");
                assert!(results.insert(io, result).is_none(), "{io:?} completed twice");
            }
            assert_eq!(self.device.in_flight(), names.len() - results.len());
        }
        results
    }

    fn one(&mut self, op: DeviceOp) -> IoResult {
        self.run(vec![op]).into_values().next().expect("one operation, one result")
    }

    fn done(&mut self, op: DeviceOp) {
        let what = format!("{op:?}");
        match self.one(op) {
            Ok(None) => {}
            other => panic!("{what}: {other:?}"),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let op = self.write_op(offset, bytes);
        self.done(op);
    }

    fn write_op(&mut self, offset: u64, bytes: &[u8]) -> DeviceOp {
        DeviceOp::Write { io: self.name(), offset, parts: smallvec![Payload::copied_from(bytes)], durable: false }
    }

    fn read_op(&mut self, offset: u64, bytes: usize) -> DeviceOp {
        DeviceOp::Read { io: self.name(), offset, bytes }
    }

    fn read(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        let op = self.read_op(offset, bytes);
        buffer_of(self.one(op), bytes).to_vec()
    }

    fn flush(&mut self) {
        let op = DeviceOp::Flush { io: self.name() };
        self.done(op);
    }
}

fn buffer_of(result: IoResult, bytes: usize) -> AlignedBuffer {
    let buffer = result.expect("a read succeeds").expect("a read gives a buffer");
    assert_eq!(buffer.len(), bytes, "a read gives as much as was asked for");
    buffer
}

/// Bytes that are nowhere else: each seed gives others.
fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let (mut prng, mut pattern) = (Prng(seed), Vec::with_capacity(bytes as usize));
    for _ in 0..bytes / 8 {
        pattern.extend_from_slice(&prng.next_u64().to_le_bytes());
    }
    pattern
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    if found != expected {
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        panic!("{what}: {} bytes for {}, first difference at {differs:?}", found.len(), expected.len());
    }
}

fn nothing_in_flight_completes_nothing<D: Device>(bench: &mut Bench<D>) {
    let mut done = Vec::new();
    assert_eq!(bench.device.in_flight(), 0);
    bench.device.complete(&mut done);
    assert!(done.is_empty(), "{done:?}");
}

fn what_is_written_is_read_back<D: Device>(bench: &mut Bench<D>) {
    let end = bench.size();
    for (seed, (offset, bytes)) in
        [(0, 4 * KIB), (4 * KIB, 8 * KIB), (MIB, MIB), (end - 4 * KIB, 4 * KIB), (end - 64 * KIB, 64 * KIB)]
            .into_iter()
            .enumerate()
    {
        let expected = pattern(100 + seed as u64, bytes);
        bench.write(offset, &expected);
        assert_same(&bench.read(offset, bytes as usize), &expected, "read back");
    }
}

fn parts_follow_each_other<D: Device>(bench: &mut Bench<D>) {
    // Slices of one buffer in another order, so that order, place and sharing all show.
    let source = Payload::copied_from(&pattern(7, 64 * KIB));
    let page = PAGE_BYTES as usize;
    for count in [2, 3, 17, WRITE_PARTS_MAX] {
        let parts: Pieces = (0..count).map(|i| source.slice(i * 5 % 16 * page, page)).collect();
        let expected: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let op = DeviceOp::Write { io: bench.name(), offset: 12 * KIB, parts, durable: false };
        bench.done(op);
        assert_same(&bench.read(12 * KIB, expected.len()), &expected, "parts");
    }
    let (long, short) = (source.slice(0, 9 * page), source.slice(10 * page, page));
    let op = DeviceOp::Write {
        io: bench.name(),
        offset: 0,
        parts: smallvec![short.clone(), long.clone(), short.clone()],
        durable: false,
    };
    bench.done(op);
    assert_same(&bench.read(page as u64, 10 * page), &[&long[..], &short[..]].concat(), "parts of many lengths");
}

fn reads_of_many_sizes_and_places<D: Device>(bench: &mut Bench<D>) {
    let area = pattern(8, 2 * MIB);
    bench.write(0, &area);
    let mut prng = Prng(9);
    let pages = 2 * MIB / PAGE_BYTES;
    for i in 0..200 {
        let count = if i % 2 == 0 { 1 + prng.below(16) } else { 1 + prng.below(pages) };
        let first = prng.below(pages - count + 1);
        let (offset, bytes) = ((first * PAGE_BYTES) as usize, (count * PAGE_BYTES) as usize);
        let found = bench.read(offset as u64, bytes);
        assert_same(&found, &area[offset..offset + bytes], "a part of what was written");
    }
}

fn each_operation_completes_once<D: Device>(bench: &mut Bench<D>) {
    const COUNT: u64 = 256;
    let place = |i: u64| i * 7 % COUNT * 8 * KIB;
    let writes: Vec<DeviceOp> = (0..COUNT).map(|i| bench.write_op(place(i), &pattern(1000 + i, 8 * KIB))).collect();
    for (io, result) in bench.run(writes) {
        assert!(matches!(result, Ok(None)), "{io:?}: {result:?}");
    }
    // Reads, writes elsewhere, flushes and discards elsewhere, all at once.
    let mut ops = Vec::new();
    let mut expected = BTreeMap::new();
    for i in 0..COUNT {
        let read = bench.read_op(place(i), 8 * KIB as usize);
        expected.insert(read.io(), pattern(1000 + i, 8 * KIB));
        ops.push(read);
        let behind = COUNT * 8 * KIB + i * 8 * KIB;
        ops.push(match i % 8 {
            0 => DeviceOp::Flush { io: bench.name() },
            1 => DeviceOp::Discard { io: bench.name(), offset: behind, bytes: 8 * KIB },
            _ => bench.write_op(behind, &pattern(i, 4 * KIB)),
        });
    }
    for (io, result) in bench.run(ops) {
        match expected.remove(&io) {
            Some(bytes) => assert_same(&buffer_of(result, bytes.len()), &bytes, "a read among others"),
            None => assert!(matches!(result, Ok(None)), "{io:?}: {result:?}"),
        }
    }
    assert!(expected.is_empty());
}

fn overlapping_operations_see_each_other<D: Device>(bench: &mut Bench<D>) {
    let mut model = pattern(20, 64 * KIB);
    bench.write(MIB, &model);
    let mut prng = Prng(21);
    for i in 0..100 {
        let count = 1 + prng.below(8);
        let first = prng.below(16 - count + 1);
        let at = (first * PAGE_BYTES) as usize;
        let bytes = pattern(2000 + i, count * PAGE_BYTES);
        bench.write(MIB + at as u64, &bytes);
        model[at..at + bytes.len()].copy_from_slice(&bytes);
        if prng.one_in(8) {
            bench.flush();
        }
        assert_same(&bench.read(MIB, model.len()), &model, "one write over the other");
    }
}

fn what_cannot_be_done_fails_and_does_nothing<D: Device>(bench: &mut Bench<D>) {
    let end = bench.size();
    let (last, expected) = (end - 64 * KIB, pattern(30, 64 * KIB));
    bench.write(last, &expected);
    let first = pattern(31, 16 * KIB);
    bench.write(0, &first);
    let overflow = u64::MAX / PAGE_BYTES * PAGE_BYTES;
    let mut places = vec![(end, 4096), (end - 4 * KIB, 8192), (end + MIB, 4096), (overflow, 4096), (overflow, 65536)];
    places.extend([(512, 4096), (1, 4096), (end - 512, 4096), (0, 0)]);
    for (offset, bytes) in places {
        let parts = if bytes == 0 { Pieces::new() } else { smallvec![Payload::copied_from(&pattern(32, bytes))] };
        for op in [
            DeviceOp::Write { io: bench.name(), offset, parts, durable: false },
            bench.read_op(offset, bytes as usize),
            DeviceOp::Discard { io: bench.name(), offset, bytes },
        ] {
            let what = format!("{op:?}");
            assert!(bench.one(op).is_err(), "{what} succeeds");
        }
    }
    let page = Payload::copied_from(&pattern(33, PAGE_BYTES));
    let op =
        DeviceOp::Write { io: bench.name(), offset: 0, parts: smallvec![page; WRITE_PARTS_MAX + 1], durable: false };
    assert!(bench.one(op).is_err(), "a write of too many parts succeeds");
    for op in [bench.read_op(0, 4095), DeviceOp::Discard { io: bench.name(), offset: 0, bytes: 512 }] {
        assert!(bench.one(op).is_err(), "a part of a page");
    }
    assert_same(&bench.read(last, expected.len()), &expected, "the end after operations that failed");
    assert_same(&bench.read(0, first.len()), &first, "the beginning after operations that failed");
    assert_eq!(bench.size(), end);
    // A device that refuses works on.
    bench.write(0, &expected);
    assert_same(&bench.read(0, expected.len()), &expected, "a write after operations that failed");
}

fn a_discard_leaves_its_neighbours_alone<D: Device>(bench: &mut Bench<D>) {
    for (seed, (offset, bytes)) in
        [(64 * KIB, 64 * KIB), (68 * KIB, 4 * KIB), (100 * KIB, 300 * KIB), (MIB, MIB)].into_iter().enumerate()
    {
        let area = pattern(40 + seed as u64, 3 * MIB);
        bench.write(0, &area);
        let op = DeviceOp::Discard { io: bench.name(), offset, bytes };
        bench.done(op);
        let (start, end) = (offset as usize, (offset + bytes) as usize);
        assert_same(&bench.read(0, start), &area[..start], "before a discard");
        assert_same(&bench.read(end as u64, area.len() - end), &area[end..], "behind a discard");
        // Whatever it reads as, it can be read and written again.
        bench.read(offset, bytes as usize);
        let again = pattern(50 + seed as u64, bytes);
        bench.write(offset, &again);
        assert_same(&bench.read(offset, bytes as usize), &again, "a write over a discard");
        assert_same(&bench.read(0, start), &area[..start], "before a write over a discard");
    }
}

/// Writes, some over others, then a flush: all this is durable.
fn flushed_pattern<D: Device>(bench: &mut Bench<D>) -> Vec<(u64, Vec<u8>)> {
    let end = bench.size();
    let mut expected = Vec::new();
    for (i, offset) in [0, 256 * KIB, MIB, end - 64 * KIB].into_iter().enumerate() {
        bench.write(offset, &pattern(60, 64 * KIB));
        let bytes = pattern(70 + i as u64, 64 * KIB);
        bench.write(offset, &bytes);
        expected.push((offset, bytes));
    }
    bench.flush();
    // One over what was flushed, durable by itself.
    let (offset, bytes) = (MIB + 16 * KIB, pattern(80, 8 * KIB));
    let parts = smallvec![Payload::copied_from(&bytes)];
    let op = DeviceOp::Write { io: bench.name(), offset, parts, durable: true };
    bench.done(op);
    let (_, around) = expected.iter_mut().find(|(at, _)| *at == MIB).expect("written above");
    around[16 * KIB as usize..24 * KIB as usize].copy_from_slice(&bytes);
    expected
}
