//! Each fault, by its exact effects.

use super::{PAGE, PAGES, blank, content, flush, pages_of, read, run, try_read, try_write, write, write_op};
use crate::device::{Device, DeviceOp};
use crate::engine::{IoError, IoId};
use crate::testing::{FaultCounts, Faults, SimDevice};
use std::collections::BTreeSet;

fn error(text: &str) -> IoError {
    IoError(text.into())
}

#[test]
fn a_lost_write_changes_nothing() {
    for volatile in [false, true] {
        let mut device = blank(volatile);
        write(&mut device, 3, 7, 2);
        flush(&mut device);
        device.faults.lose_one_in = 1;
        write(&mut device, 3, 8, 2);
        assert_eq!(read(&mut device, 3, 2), content(7, 2));
        flush(&mut device);
        device.crash();
        assert_eq!(read(&mut device, 3, 2), content(7, 2));
        assert_eq!(device.counts(), FaultCounts { lost: 1, ..FaultCounts::default() });
    }
}

#[test]
fn a_misdirected_write_is_elsewhere_and_only_there() {
    let mut places = BTreeSet::new();
    for seed in 0..300 {
        let mut device = SimDevice::blank(PAGES * PAGE, seed % 2 == 0, seed);
        let before = device.bytes(0, 1)[0];
        let byte = before ^ 0x55;
        device.faults.misdirect_one_in = 1;
        write(&mut device, 10, byte, 3);
        let at = pages_of(&device, byte);
        assert!(at.len() == 3 && at[2] == at[0] + 2 && at.iter().all(|page| !(10..13).contains(page)), "{at:?}");
        assert_eq!(pages_of(&device, before).len() as u64, PAGES - 3);
        flush(&mut device);
        device.crash();
        assert_eq!(pages_of(&device, byte), at);
        assert_eq!(device.counts(), FaultCounts { misdirected: 1, ..FaultCounts::default() });
        places.insert(at[0]);
    }
    let possible: Vec<u64> = (0..=7).chain(13..=PAGES - 3).collect();
    assert!(places.iter().all(|page| possible.contains(page)), "{places:?}");
    assert!(places.contains(&0) && places.contains(&7) && places.contains(&13) && places.contains(&(PAGES - 3)));
}

#[test]
fn where_there_is_no_elsewhere_a_write_goes_to_its_place() {
    let mut device = blank(false);
    device.faults.misdirect_one_in = 1;
    write(&mut device, 20, 9, 40);
    assert_eq!(read(&mut device, 20, 40), content(9, 40));
    assert_eq!(device.counts(), FaultCounts::default());
}

#[test]
fn a_duplicate_strikes_over_a_newer_write_before_a_flush() {
    let mut device = blank(true);
    device.faults.duplicate_one_in = 1;
    write(&mut device, 4, 1, 2);
    assert_eq!(read(&mut device, 4, 2), content(1, 2));
    assert_eq!(device.counts().duplicated, 0, "nothing newer yet");
    device.faults.duplicate_one_in = 0;
    write(&mut device, 7, 5, 1);
    write(&mut device, 5, 2, 2);
    assert_eq!(read(&mut device, 4, 3), [content(1, 2), content(2, 1)].concat());
    assert_eq!(device.counts(), FaultCounts { duplicated: 1, ..FaultCounts::default() });
    write(&mut device, 4, 3, 2);
    assert_eq!(read(&mut device, 4, 2), content(3, 2), "once");
    flush(&mut device);
    device.crash();
    assert_eq!(read(&mut device, 4, 2), content(3, 2));
    assert_eq!(device.counts().duplicated, 1);
}

#[test]
fn a_flush_ends_what_could_strike_again() {
    let mut device = blank(true);
    device.faults.duplicate_one_in = 1;
    write(&mut device, 4, 1, 2);
    flush(&mut device);
    write(&mut device, 4, 2, 2);
    assert_eq!(read(&mut device, 4, 2), content(2, 2));
    device.crash();
    device.faults.duplicate_one_in = 0;
    write(&mut device, 4, 3, 2);
    assert_eq!(read(&mut device, 4, 2), content(3, 2));
    assert_eq!(device.counts().duplicated, 0);
}

#[test]
fn a_latent_error_lasts_until_the_page_is_written() {
    let mut device = blank(true);
    write(&mut device, 0, 4, 4);
    device.faults.unreadable_one_in = 1;
    assert_eq!(try_read(&mut device, 0, 4).unwrap_err(), error("unreadable sector"));
    device.faults.unreadable_one_in = 0;
    assert_eq!(device.unreadable.len(), 1);
    let bad = device.unreadable.iter().next().unwrap() / PAGE;
    assert!(bad < 4);
    for page in 0..4 {
        assert_eq!(try_read(&mut device, page, 1).is_err(), page == bad);
    }
    device.crash();
    assert!(try_read(&mut device, bad, 1).is_err());
    write(&mut device, bad, 6, 1);
    assert_eq!(read(&mut device, bad, 1), content(6, 1));
    assert_eq!(device.counts().unreadable, 3);
}

#[test]
fn bits_rot_for_good() {
    let mut device = blank(false);
    write(&mut device, 0, 0, PAGES);
    device.faults.rot_one_in = 1;
    let first = read(&mut device, 2, 2);
    device.faults.rot_one_in = 0;
    assert_eq!(first.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    device.crash();
    assert_eq!(read(&mut device, 2, 2), first);
    device.flip_bit(0, 3);
    assert_eq!(read(&mut device, 0, 1)[0], 8);
    assert_eq!(device.counts(), FaultCounts { rotten: 2, ..FaultCounts::default() });
}

#[test]
fn a_slow_operation_is_overtaken_so_often() {
    let mut device = blank(false);
    device.faults = Faults { slow_one_in: 1, slow_by: 5, ..Faults::default() };
    device.submit(write_op(99, 0, 1, 1));
    device.faults = Faults::default();
    (0..20).for_each(|io| device.submit(write_op(io, 1 + io, 1, 1)));
    let mut done = Vec::new();
    for others in 0..5 {
        assert_eq!((done.len(), device.counts().slowed), (others, 0));
        device.complete(&mut done);
        assert!(done.iter().all(|(io, _)| io.0 != 99));
    }
    assert_eq!(device.counts(), FaultCounts { slowed: 1, ..FaultCounts::default() });
    while device.in_flight() > 0 {
        device.complete(&mut done);
    }
    assert_eq!(done.len(), 21);
}

#[test]
fn a_slow_operation_comes_to_its_end_when_nothing_else_is_left() {
    let mut device = blank(false);
    device.faults = Faults { slow_one_in: 1, slow_by: 5, ..Faults::default() };
    write(&mut device, 0, 1, 1);
    assert_eq!(device.counts(), FaultCounts::default());
}

#[test]
fn a_stuck_operation_waits_for_its_release() {
    let mut device = blank(true);
    device.faults.stick_one_in = 1;
    device.submit(write_op(9, 0, 1, 1));
    device.submit(DeviceOp::Flush { io: IoId(10) });
    device.faults.stick_one_in = 0;
    write(&mut device, 1, 2, 1);
    let mut done = Vec::new();
    device.complete(&mut done);
    assert!(done.is_empty());
    assert_eq!((device.in_flight(), device.stuck(), device.pending()), (2, 2, 2));
    assert!(pages_of(&device, 1).is_empty());
    device.release_stuck();
    device.complete(&mut done);
    device.complete(&mut done);
    assert_eq!(done.len(), 2);
    assert_eq!(pages_of(&device, 1), [0]);
    assert_eq!(device.counts(), FaultCounts { stuck: 2, ..FaultCounts::default() });
}

#[test]
fn switches_fail_operations_and_nothing_is_written() {
    let mut device = blank(false);
    write(&mut device, 0, 1, 2);
    (device.fail_writes, device.fail_reads, device.fail_flushes) = (true, true, true);
    assert_eq!(try_write(&mut device, 0, 2, 1).unwrap_err(), error("write error"));
    assert_eq!(try_read(&mut device, 0, 1).unwrap_err(), error("read error"));
    assert_eq!(run(&mut device, DeviceOp::Flush { io: IoId(1) }).unwrap_err(), error("flush error"));
    (device.fail_writes, device.fail_reads, device.fail_flushes, device.full) = (false, false, false, true);
    assert_eq!(try_write(&mut device, 0, 2, 1).unwrap_err(), error("no space left on device"));
    device.full = false;
    assert_eq!(read(&mut device, 0, 2), content(1, 2));
    let expected = FaultCounts { full: 1, read_errors: 1, write_errors: 1, flush_errors: 1, ..FaultCounts::default() };
    assert_eq!(device.counts(), expected);
}

#[test]
fn faults_strike_only_where_they_may() {
    let mut device = blank(false);
    let only = Some(16 * PAGE..32 * PAGE);
    device.faults =
        Faults { lose_one_in: 1, stick_one_in: 1, rot_one_in: 1, unreadable_one_in: 1, only, ..Faults::default() };
    for (page, pages) in [(0, 16), (15, 2), (31, 2), (32, 8), (0, 64)] {
        write(&mut device, page, page as u8, pages);
        assert_eq!(read(&mut device, page, pages), content(page as u8, pages));
    }
    flush(&mut device);
    assert_eq!(device.counts(), FaultCounts::default());
    device.faults.stick_one_in = 0;
    write(&mut device, 16, 7, 16);
    assert_eq!(pages_of(&device, 7), [0; 0]);
    assert_eq!(device.counts(), FaultCounts { lost: 1, ..FaultCounts::default() });
}

#[test]
fn misdirected_writes_stay_where_faults_may_strike() {
    for seed in 0..100 {
        let mut device = SimDevice::blank(PAGES * PAGE, false, seed);
        write(&mut device, 0, 1, PAGES);
        device.faults = Faults { misdirect_one_in: 1, only: Some(16 * PAGE..24 * PAGE), ..Faults::default() };
        write(&mut device, 18, 2, 2);
        let at = pages_of(&device, 2);
        assert!(at.len() == 2 && (16..24).contains(&at[0]) && (16..24).contains(&at[1]), "{at:?}");
        assert!(!at.contains(&18) && !at.contains(&19));
        assert_eq!(device.counts().misdirected, 1);
    }
}

#[test]
fn a_fault_strikes_about_as_often_as_it_says_and_the_same_for_a_seed() {
    let lost = |seed| {
        let mut device = SimDevice::blank(PAGES * PAGE, false, seed);
        device.faults.lose_one_in = 10;
        (0..1000).for_each(|i| write(&mut device, i % PAGES, 3, 1));
        (device.counts().lost, device.prng.0)
    };
    assert!((60..140).contains(&lost(5).0), "{}", lost(5).0);
    assert_eq!(lost(5), lost(5));
    assert_ne!(lost(5), lost(6));
}

#[test]
fn a_lie_is_made_good_by_a_crash_unless_the_device_was_convicted() {
    for (volatile, convicted, misdirected) in [(false, false, false), (true, false, true), (true, true, true)] {
        let mut device = blank(volatile);
        write(&mut device, 3, 7, 2);
        write(&mut device, 9, 9, 2);
        flush(&mut device);
        (device.lies.count, device.lies.within) = (1, 0..PAGES * PAGE);
        device.lies.to = if misdirected { vec![9 * PAGE] } else { Vec::new() };
        write(&mut device, 3, 8, 2);
        flush(&mut device);
        assert_eq!(read(&mut device, 3, 2), content(7, 2));
        assert_eq!(read(&mut device, 9, 2), content(if misdirected { 8 } else { 9 }, 2));
        write(&mut device, 4, 5, 1); // no lie any more
        if convicted {
            device.lies.convict();
        }
        device.kill();
        assert_eq!(read(&mut device, 3, 1), content(if convicted { 7 } else { 8 }, 1));
        assert_eq!(read(&mut device, 4, 1), content(5, 1), "newer than the lie");
        assert_eq!(read(&mut device, 9, 2), content(if convicted { 8 } else { 9 }, 2));
    }
}
