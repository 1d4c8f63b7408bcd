//! Damage that a replica reports by itself: looked at there, read elsewhere, rewritten in place or by a write.

use super::*;
use crate::volume::Failure;

fn serving(devices: &'static str) -> Rig {
    Setup::of(devices).serving()
}

fn reported(rig: &mut Rig, name: char, range: BlockRange) -> Vec<String> {
    let envelope = Envelope { lane: Envelope::ALL_LANES, ..envelope(0, name) };
    rig.on(Event::Message { envelope, message: ToWriter::Damaged { range } })
}

/// Damaged; the recorded checksum is that of `fill`.
fn bad(fill: u8) -> impl FnOnce(BlockRange) -> ReadReply {
    move |range| ReadReply {
        conditions: vec![BlockCondition::Bad(checksums(range, fill)[0])],
        ..zeroes(range, stamp(5, 1))
    }
}

fn unknown(range: BlockRange) -> ReadReply {
    ReadReply { conditions: vec![BlockCondition::Unknown], ..zeroes(range, stamp(5, 1)) }
}

fn counts(rig: &Rig) -> (u64, u64) {
    (rig.engine.counters().damaged_blocks, rig.engine.counters().repaired_blocks)
}

#[test]
fn a_reported_block_is_looked_at_read_elsewhere_and_rewritten_in_place() {
    let mut rig = serving("ABC");
    assert_eq!(reported(&mut rig, 'B', run(4, 1)), ["B: read [4+1]"]);
    assert_eq!(rig.serve_with('B', bad(7)), ["alarm", "A: read [4+1]"]);
    assert_eq!(rig.serve('A', 7), ["B: repair 4=7"]);
    assert_eq!(rig.tell('B', ToWriter::Repaired { block: 4 }), NOTHING);
    assert_eq!(counts(&rig), (1, 1));
    // Done: the same report begins anew.
    assert_eq!(reported(&mut rig, 'B', run(4, 1)), ["B: read [4+1]"]);
}

#[test]
fn a_block_that_is_sound_by_now_is_left_alone() {
    let mut rig = serving("ABC");
    reported(&mut rig, 'B', run(4, 1));
    assert_eq!(rig.serve('B', 7), NOTHING);
    assert_eq!(counts(&rig), (0, 0));
    assert_eq!(rig.engine.counters().reads, 0);
}

#[test]
fn a_good_copy_of_another_version_is_not_written() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    assert_eq!(rig.serve_with('A', bad(6)), ["alarm", "B: read [4+1]"]);
    assert_eq!(rig.serve('B', 7), NOTHING);
    assert_eq!(reported(&mut rig, 'A', run(4, 1)), ["A: read [4+1]"]);
}

#[test]
fn damage_on_two_members_is_rewritten_on_both() {
    let mut rig = serving("ABC");
    reported(&mut rig, 'A', run(4, 1));
    assert_eq!(rig.serve_with('A', bad(7)), ["alarm", "B: read [4+1]"]);
    assert_eq!(rig.serve_with('B', bad(7)), ["alarm", "C: read [4+1]"]);
    assert_eq!(rig.serve('C', 7), ["A: repair 4=7", "B: repair 4=7"]);
}

#[test]
fn damage_on_every_member_is_alarmed_and_left() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    rig.serve_with('A', bad(7));
    assert_eq!(rig.serve_with('B', bad(7)), ["alarm", "alarm"]);
    assert_eq!(rig.pass_ms(60_000).tick(), NOTHING);
}

#[test]
fn four_at_a_time_and_a_block_once() {
    let mut rig = serving("AB");
    let first = ["A: read [0+1]", "A: read [1+1]", "A: read [2+1]", "A: read [3+1]"];
    assert_eq!(reported(&mut rig, 'A', run(0, 6)), first);
    assert_eq!(reported(&mut rig, 'A', run(0, 6)), NOTHING);
    assert_eq!(reported(&mut rig, 'B', run(0, 1)), NOTHING);
    assert_eq!(rig.serve('A', 7), ["A: read [4+1]"]);
    assert_eq!(rig.serve('A', 7), ["A: read [5+1]"]);
    assert_eq!(rig.serve('A', 7), ["B: read [0+1]"]);
}

#[test]
fn one_at_a_time_while_guests_have_work() {
    let mut rig = serving("AB");
    rig.write(1, run(9, 1));
    assert_eq!(reported(&mut rig, 'A', run(0, 3)), ["A: read [0+1]"]);
    assert_eq!(rig.tick(), NOTHING);
    rig.ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(rig.tick(), ["A: read [1+1]", "A: read [2+1]"]);
}

#[test]
fn switched_off_nothing_is_repaired() {
    let settings = Settings { repairs_max: 0, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::of("AB") }.serving();
    assert_eq!(reported(&mut rig, 'A', run(0, 3)), NOTHING);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn what_waits_is_bounded() {
    let most = crate::volume::repair::WAITING_MAX as u64;
    let mut rig = serving("AB");
    for chunk in 0..5 {
        reported(&mut rig, 'A', run(chunk * 1024, 1024));
    }
    let mut looked_at = 0;
    while !rig.reads.is_empty() {
        rig.serve('A', 7);
        looked_at += 1;
    }
    assert_eq!(looked_at, most + 4);
}

#[test]
fn blocks_outside_the_volume_and_of_strangers_are_ignored() {
    let mut rig = serving("AB");
    assert_eq!(reported(&mut rig, 'A', run(16 * 1024, 2)), NOTHING);
    assert_eq!(reported(&mut rig, 'X', run(0, 2)), NOTHING);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn a_stale_member_is_looked_at_when_it_is_back() {
    let mut rig = Setup { copyset: "ABC", in_sync: "AB", ..Setup::default() }.serving();
    assert_eq!(reported(&mut rig, 'C', run(0, 1)), NOTHING);
}

#[test]
fn a_repair_waits_for_a_member_with_a_good_copy() {
    let mut rig = serving("AB");
    rig.down('B');
    reported(&mut rig, 'A', run(4, 1));
    assert_eq!(rig.serve_with('A', bad(7)), ["alarm"]);
    rig.up('B');
    assert_eq!(rig.ack('B', 0), ["B: read [4+1]"]);
    assert_eq!(rig.serve('B', 7), ["A: repair 4=7"]);
}

#[test]
fn one_that_finds_no_good_copy_makes_room_and_comes_again_without_being_counted_again() {
    let settings = Settings { repairs_max: 1, eject_after_us: 60_000_000, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::of("AB") }.serving();
    rig.down('B');
    reported(&mut rig, 'A', run(4, 2));
    assert_eq!(rig.serve_with('A', bad(7)), ["alarm"]);
    assert_eq!(rig.pass_ms(10_000).tick(), ["A: read [5+1]"]);
    assert_eq!(rig.serve('A', 7), NOTHING);
    rig.up('B');
    rig.ack('A', 0);
    assert_eq!(rig.ack('B', 0), NOTHING);
    assert_eq!(rig.tick(), ["B: read [4+1]"]);
    assert_eq!(rig.serve('B', 7), ["A: repair 4=7"]);
    assert_eq!(counts(&rig), (1, 0));
}

#[test]
fn a_refused_repair_makes_room_after_a_while_and_the_block_is_looked_at_again() {
    let settings = Settings { repairs_max: 1, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::of("AB") }.serving();
    reported(&mut rig, 'A', run(4, 1));
    rig.serve_with('A', bad(7));
    rig.serve('B', 7);
    assert_eq!(reported(&mut rig, 'A', run(5, 1)), NOTHING);
    rig.pass_ms(10_000);
    assert_eq!(rig.tick(), ["A: read [5+1]"]);
    assert_eq!(rig.serve('A', 7), ["A: read [4+1]"]);
    rig.serve('A', 7);
    rig.pass_ms(20_000);
    assert_eq!(rig.tick(), NOTHING);
}

/// Symptom: a block stays damaged for as long as the link lasts. Cause: a write overtakes its repair, which is refused; the
/// new content is damaged, too, and the report of that, which comes once, was ignored while the refused repair was waited for.
#[test]
fn damage_that_is_reported_during_a_repair_that_is_never_answered_is_not_forgotten() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    rig.serve_with('A', bad(7));
    assert_eq!(rig.serve('B', 7), ["A: repair 4=7"]);
    assert_eq!(reported(&mut rig, 'A', run(4, 1)), NOTHING);
    assert_eq!(rig.pass_ms(10_000).tick(), ["A: read [4+1]"]);
    assert_eq!(rig.serve_with('A', bad(9)), ["alarm", "B: read [4+1]"]);
    assert_eq!(rig.serve('B', 9), ["A: repair 4=9"]);
}

#[test]
fn a_member_that_refuses_to_be_looked_at_is_asked_again() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    assert_eq!(rig.refuse('A'), NOTHING);
    assert_eq!(rig.tick(), ["A: read [4+1]"]);
}

#[test]
fn over_a_new_link_the_report_comes_anew() {
    let mut rig = serving("ABC");
    reported(&mut rig, 'A', run(4, 1));
    assert_eq!(rig.down('A'), NOTHING);
    rig.up('A');
    rig.ack('A', 0);
    assert_eq!(rig.tick(), NOTHING);
    rig.reads.clear();
    assert_eq!(reported(&mut rig, 'A', run(4, 1)), ["A: read [4+1]"]);
}

#[test]
fn unknown_content_is_written_again_under_the_lock() {
    let mut rig = serving("ABC");
    reported(&mut rig, 'A', run(4, 1));
    assert_eq!(rig.serve_with('A', unknown), ["alarm", "B: read [4+1]"]);
    // A guest's write to the block waits for its turn, a read for the end.
    assert_eq!(rig.write(1, run(4, 1)), NOTHING);
    let writes = ["A: write 1 [4+1]=7 c1 s0", "B: write 1 [4+1]=7 c1 s0", "C: write 1 [4+1]=7 c1 s0"];
    assert_eq!(rig.serve('B', 7), writes);
    rig.ack('A', 1);
    let next = ["A: write 2 [4+1]=1 c1 s0", "B: write 2 [4+1]=1 c1 s0", "C: write 2 [4+1]=1 c1 s0"];
    assert_eq!(rig.ack('C', 1), next);
    assert_eq!(counts(&rig), (1, 1));
    assert_eq!((rig.engine.counters().writes, rig.engine.counters().written_bytes), (1, 4096));
    rig.ack('B', 1);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn unknown_zeroes_stay_zeroes() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    rig.serve_with('A', unknown);
    let writes = ["A: write 1 [4+1]=zeroes c1 s0", "B: write 1 [4+1]=zeroes c1 s0"];
    assert_eq!(rig.serve_with('B', |range| zeroes(range, Stamp::default())), writes);
}

#[test]
fn a_block_unknown_on_two_members_is_written_once() {
    let mut rig = serving("ABC");
    reported(&mut rig, 'A', run(4, 1));
    reported(&mut rig, 'B', run(4, 1));
    assert_eq!(rig.serve_with('A', unknown), ["alarm", "B: read [4+1]"]);
    assert_eq!(rig.serve_with('B', unknown), ["alarm", "C: read [4+1]"]);
    rig.serve('C', 7);
    rig.ack('A', 1);
    rig.ack('C', 1);
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn what_a_guest_finds_unknown_is_written_again_after_the_guest_has_its_bytes() {
    let mut rig = serving("AB");
    rig.read(9, run(4, 1));
    assert_eq!(rig.serve_with('A', unknown), ["alarm", "B: read [4+1]"]);
    assert_eq!(rig.serve('B', 7), ["9: read [4+1]=7"]);
    assert_eq!(rig.tick(), ["B: read [4+1]"]);
    assert_eq!(rig.serve('B', 7), ["A: write 1 [4+1]=7 c1 s0", "B: write 1 [4+1]=7 c1 s0"]);
    assert_eq!(counts(&rig), (1, 0));
}

#[test]
fn content_that_nobody_knows_is_alarmed_and_gives_the_lock_back() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    rig.serve_with('A', unknown);
    assert_eq!(rig.serve_with('B', unknown), ["alarm", "alarm"]);
    assert_eq!(rig.write(1, run(4, 1)), ["A: write 1 [4+1]=1 c1 s0", "B: write 1 [4+1]=1 c1 s0"]);
}

#[test]
fn no_guest_is_answered_for_a_rewrite_when_the_volume_ends() {
    let mut rig = serving("AB");
    reported(&mut rig, 'A', run(4, 1));
    rig.serve_with('A', unknown);
    rig.write(1, run(4, 1));
    let fenced = rig.tell('A', ToWriter::Fenced { promised: Epoch(6) });
    assert_eq!(fenced, [format!("1: failed: {}", Failure::Fenced), "closed unclean".into()]);
}
