//! The contract, the randomness, and what power cuts leave.

use super::{PAGE, PAGES, blank, flush, pages_of, read, run, write, write_op};
use crate::device::{Device, DeviceOp, DeviceProperties, IoResult};
use crate::engine::IoId;
use crate::testing::{FaultCounts, Faults, Prng, SimDevice, check_device};
use ashlar_model::units::MIB;
use std::cell::RefCell;
use std::rc::Rc;

/// A device that several owners open one after the other: each open comes after a power cut.
struct Opened(Rc<RefCell<SimDevice>>);

impl Opened {
    fn new(device: &Rc<RefCell<SimDevice>>) -> Self {
        device.borrow_mut().crash();
        Self(Rc::clone(device))
    }
}

impl Device for Opened {
    fn properties(&self) -> DeviceProperties {
        self.0.borrow().properties()
    }
    fn submit(&mut self, op: DeviceOp) {
        self.0.borrow_mut().submit(op);
    }
    fn in_flight(&self) -> usize {
        self.0.borrow().in_flight()
    }
    fn complete(&mut self, out: &mut Vec<(IoId, IoResult)>) {
        self.0.borrow_mut().complete(out);
    }
}

#[test]
fn it_keeps_the_contract() {
    for seed in 0..4 {
        let device = Rc::new(RefCell::new(SimDevice::blank(8 * MIB + 1024, seed % 2 == 0, seed)));
        check_device(|| Opened::new(&device));
        let counts = device.borrow().counts();
        assert_eq!(counts, FaultCounts { discards: counts.discards, torn: counts.torn, ..FaultCounts::default() });
        // Slow is not wrong.
        device.borrow_mut().faults = Faults { slow_one_in: 3, ..Faults::default() };
        check_device(|| Opened::new(&device));
        assert!(device.borrow().counts().slowed > 10);
    }
}

/// The crash workload's seeds mean the same as before there were faults.
#[test]
fn without_faults_only_completions_and_crashes_draw() {
    let mut device = blank(true);
    let mut prng = Prng(1);
    prng.next_u64();
    for op in [write_op(1, 0, 1, 2), write_op(2, 2, 2, 2), DeviceOp::Flush { io: IoId(3) }] {
        device.submit(op);
    }
    let mut left = vec![1, 2, 3];
    while device.in_flight() > 0 {
        let mut done = Vec::new();
        let expected = left.swap_remove(prng.below(left.len() as u64) as usize);
        device.complete(&mut done);
        assert!(matches!(&done[..], [(IoId(io), Ok(None))] if *io == expected), "{done:?}");
    }
    assert_eq!(device.prng.0, prng.0);
}

/// What a failed flush did not save is lost, whatever is flushed afterwards; what was written again is not.
#[test]
fn a_flush_after_a_failed_one_saves_nothing_of_it() {
    let mut device = blank(true);
    write(&mut device, 0, 1, PAGES);
    flush(&mut device);
    (0..32).for_each(|page| write(&mut device, page, 2, 1));
    device.fail_flushes = true;
    run(&mut device, DeviceOp::Flush { io: IoId(1) }).unwrap_err();
    device.fail_flushes = false;
    assert_eq!(pages_of(&device, 2).len(), 32, "reads still see it");
    write(&mut device, 0, 3, 1);
    flush(&mut device);
    device.crash();
    assert_eq!(pages_of(&device, 3), [0]);
    let (lost, saved) = (pages_of(&device, 1).len(), pages_of(&device, 2).len());
    assert!(saved > 4 && lost > 32 + 4 && lost + saved == 63, "{lost} {saved}");
}

/// Pages of a crash's outcome that hold both the old bytes and the new.
fn torn_at(unit: u32, pages: u64) -> (u64, Vec<usize>) {
    let (mut torn, mut lengths) = (0, Vec::new());
    for seed in 0..200 {
        let mut device = SimDevice::blank(PAGES * PAGE, true, seed);
        device.atomic_write_bytes = unit;
        write(&mut device, 0, 1, PAGES);
        flush(&mut device);
        write(&mut device, 4, 2, pages);
        device.crash();
        torn += device.counts().torn;
        // Runs of the same byte: their lengths say where it was torn.
        let found = read(&mut device, 4, pages);
        lengths.extend(found.chunk_by(|a, b| a == b).map(<[u8]>::len));
        let mixed = found.contains(&1) && found.contains(&2);
        assert_eq!(mixed, device.counts().torn == 1);
    }
    (torn, lengths)
}

#[test]
fn a_power_cut_tears_at_the_promised_unit() {
    let (torn, lengths) = torn_at(512, 4);
    assert!(torn > 20 && lengths.contains(&512) && lengths.iter().all(|length| length % 512 == 0));
    let (torn, lengths) = torn_at(4096, 4);
    assert!(torn > 20 && lengths.contains(&4096) && lengths.iter().all(|length| length % 4096 == 0));
    assert_eq!(torn_at(4096, 1).0, 0, "one page, one unit");
    assert_eq!(torn_at(16384, 4).0, 0, "four pages in one aligned unit");
    assert!(torn_at(16384, 8).0 > 20);
}

#[test]
fn the_promise_is_in_the_properties() {
    let mut device = blank(true);
    assert_eq!(device.properties().atomic_write_bytes, 512);
    device.atomic_write_bytes = 4096;
    let expected = DeviceProperties {
        size_bytes: PAGES * PAGE,
        volatile_cache: true,
        atomic_write_bytes: 4096,
        block_device: true,
    };
    assert_eq!(device.properties(), expected);
}

#[test]
fn a_discard_on_its_way_may_have_happened_at_a_power_cut() {
    let mut changed = 0;
    for seed in 0..100 {
        let mut device = SimDevice::blank(PAGES * PAGE, true, seed);
        write(&mut device, 0, 0xA5, PAGES);
        flush(&mut device);
        device.submit(DeviceOp::Discard { io: IoId(1), offset: 8 * PAGE, bytes: 4 * PAGE });
        device.crash();
        assert_eq!(device.in_flight(), 0);
        let whole = pages_of(&device, 0xA5);
        assert!(whole.len() as u64 == PAGES || whole == (0..8).chain(12..PAGES).collect::<Vec<_>>());
        changed += u64::from((whole.len() as u64) < PAGES);
    }
    assert!((10..70).contains(&changed), "{changed}");
}
