//! W8 to W12: writes, who must have them, settled, and what is kept for members that lack them.

use super::*;

fn serving(devices: &'static str) -> Rig {
    Setup::of(devices).serving()
}

#[test]
fn a_write_goes_to_every_member_and_is_acknowledged_at_two_of_three() {
    let mut rig = serving("ABC");
    let expected = ["A: write 1 [0+4]=9 c1 s0", "B: write 1 [0+4]=9 c1 s0", "C: write 1 [0+4]=9 c1 s0"];
    assert_eq!(rig.write(9, run(0, 4)), expected);
    assert_eq!(rig.ack('C', 1), NOTHING);
    assert_eq!(rig.ack('C', 1), NOTHING); // the same member again
    assert_eq!(rig.ack('A', 1), ["9: written"]);
    assert_eq!(rig.ack('B', 1), NOTHING);
}

#[test]
fn both_of_two_and_one_of_one_must_have_it() {
    let mut rig = serving("AB");
    rig.write(9, run(0, 1));
    assert_eq!(rig.ack('A', 1), NOTHING);
    assert_eq!(rig.ack('B', 1), ["9: written"]);
    let mut rig = serving("A");
    rig.write(9, run(0, 1));
    assert_eq!(rig.ack('A', 1), ["9: written"]);
}

#[test]
fn the_policy_all_waits_for_every_member() {
    let mut rig = Setup { quorum: QuorumPolicy::All, ..Setup::default() }.serving();
    rig.write(9, run(0, 1));
    rig.ack('A', 1);
    assert_eq!(rig.ack('B', 1), NOTHING);
    assert_eq!(rig.ack('C', 1), ["9: written"]);
}

#[test]
fn a_write_durable_above_a_gap_counts() {
    let mut rig = serving("ABC");
    rig.write(8, run(0, 1));
    rig.write(9, run(1, 1));
    assert_eq!(rig.ack_single('A', 0, 2), NOTHING);
    assert_eq!(rig.ack_single('B', 0, 2), ["9: written"]);
    assert_eq!(rig.ack('C', 2), NOTHING);
    assert_eq!(rig.ack('A', 2), ["8: written"]);
}

#[test]
fn acks_of_another_epoch_volume_or_device_do_not_count() {
    let mut rig = serving("A");
    rig.write(9, run(0, 1));
    let message = ToWriter::Ack { prefix: 1, index: 0, sent_at_us: 1, full: false };
    for wrong in [
        Envelope { epoch: Epoch(4), ..envelope(0, 'A') },
        Envelope { volume: VolumeId::from_u128(1), ..envelope(0, 'A') },
        Envelope { lane: 1, ..envelope(0, 'A') },
        envelope(0, 'D'),
    ] {
        assert_eq!(rig.on(Event::Message { envelope: wrong, message: message.clone() }), NOTHING);
    }
}

#[test]
fn settled_is_what_every_member_has() {
    let mut rig = serving("ABC");
    rig.beats = true;
    rig.write(7, run(0, 1));
    rig.write(8, run(1, 1));
    rig.ack('A', 2);
    rig.ack('B', 2); // both are acknowledged, and not settled
    let beats = ["A: beat c1 s0", "B: beat c1 s0", "C: beat c1 s0"];
    assert_eq!(rig.tick(), beats);
    rig.ack('C', 1);
    let beats = ["A: beat c1 s1", "B: beat c1 s1", "C: beat c1 s1"];
    assert_eq!(rig.pass_ms(200).tick(), beats);
    assert_eq!(rig.write(9, run(2, 1))[0], "A: write 3 [2+1]=9 c1 s1");
}

#[test]
fn a_single_above_the_prefix_does_not_settle() {
    let mut rig = serving("A");
    rig.write(7, run(0, 1));
    rig.write(8, run(1, 1));
    rig.ack_single('A', 0, 2);
    assert_eq!(rig.engine.status().lanes[0].settled, 0);
}

#[test]
fn what_is_settled_is_released() {
    let mut rig = serving("ABC");
    rig.write(7, run(0, 2));
    rig.write(8, run(2, 1));
    assert_eq!(rig.retained_bytes(), 3 * 4096);
    rig.ack('A', 2);
    rig.ack('B', 2);
    assert_eq!(rig.retained_bytes(), 3 * 4096);
    rig.ack('C', 1);
    assert_eq!(rig.retained_bytes(), 4096);
    rig.ack('C', 2);
    assert_eq!(rig.retained_bytes(), 0);
}

#[test]
fn heartbeats_keep_their_period_and_slow_down_when_nobody_asks() {
    let mut rig = serving("A");
    rig.beats = true;
    assert_eq!(rig.tick(), ["A: beat c1 s0"]);
    assert_eq!(rig.pass_ms(199).tick(), NOTHING);
    assert_eq!(rig.pass_ms(1).tick(), ["A: beat c1 s0"]);
    assert_eq!(rig.pass_ms(8_799).tick(), NOTHING); // at rest after three seconds
    assert_eq!(rig.pass_ms(1).tick(), ["A: beat c1 s0"]);
    rig.read(9, run(0, 1));
    assert_eq!(rig.pass_ms(200).tick(), ["A: beat c1 s0"]);
}

#[test]
fn a_write_is_split_at_128_kib_and_at_chunks_and_acknowledged_as_a_whole() {
    let mut rig = serving("A");
    let expected = [
        "A: write 1 [990+32]=9 c1 s0",
        "A: write 2 [1022+2]=9 c1 s0",
        "A: write 3 [1024+32]=9 c1 s0",
        "A: write 4 [1056+4]=9 c1 s0",
    ];
    assert_eq!(rig.write(9, run(990, 70)), expected);
    assert_eq!(rig.ack('A', 3), NOTHING);
    assert_eq!(rig.ack('A', 4), ["9: written"]);
}

#[test]
fn chunks_go_to_their_lanes_each_with_its_own_index() {
    let mut rig = Setup { lane_count: 2, ..Setup::of("A") }.serving();
    assert_eq!(rig.write(9, run(1020, 8)), ["A: write 1 [1020+4]=9 c1 s0", "A/1: write 1 [1024+4]=9 c1 s0"]);
    assert_eq!(rig.ack_lane(1, 'A', 1), NOTHING);
    assert_eq!(rig.ack_lane(0, 'A', 1), ["9: written"]);
}

#[test]
fn zeroes_are_split_at_chunks_only() {
    let mut rig = serving("A");
    let expected = ["A: write 1 [512+512]=zeroes c1 s0", "A: write 2 [1024+512]=zeroes c1 s0"];
    assert_eq!(rig.zero(9, run(512, 1024)), expected);
}

#[test]
fn checksums_cover_each_block_in_its_place() {
    let mut rig = serving("A");
    let buffer = AlignedBuffer::copied_from(&[9; 2 * BLOCK_BYTES]);
    let operation = Operation::Write { range: run(31, 2), buffer, head_bytes: 0, tail_bytes: 0 };
    let mut effects = Vec::new();
    let request = ClientRequest { id: RequestId(9), operation };
    rig.engine.apply(rig.now_us, Event::Request(request), &mut effects);
    let Effect::Send { message: ToReplica::Write { content: Content::Data { checksums: sums, .. }, .. }, .. } =
        &effects[0]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(sums[..], checksums(run(31, 2), 9)[..]);
}

#[test]
fn overlapping_writes_go_one_after_the_other() {
    let mut rig = serving("A");
    rig.write(7, run(0, 4));
    assert_eq!(rig.write(8, run(3, 2)), NOTHING);
    assert_eq!(rig.zero(9, run(4, 1)), NOTHING); // behind 8, although its block is free
    assert_eq!(rig.write(6, run(9, 1)), ["A: write 2 [9+1]=6 c1 s0"]);
    assert_eq!(rig.ack('A', 1), ["7: written", "A: write 3 [3+2]=8 c1 s0"]);
    assert_eq!(rig.ack('A', 3), ["6: written", "8: written", "A: write 4 [4+1]=zeroes c1 s1"]);
}

#[test]
fn writes_wait_when_too_much_is_kept_for_a_member() {
    let settings = Settings { eject_lag_bytes: 4096, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::default() }.serving();
    rig.pass_ms(200); // C will not be waited for
    rig.write(7, run(0, 1));
    rig.write(8, run(1, 1));
    rig.ack('A', 2);
    rig.ack('B', 2);
    assert_eq!(rig.write(9, run(2, 1)), NOTHING);
    // Reads need not wait.
    assert_eq!(rig.read(10, run(5, 1)), ["A: read [5+1]"]);
    let expected = ["A: write 3 [2+1]=9 c1 s2", "B: write 3 [2+1]=9 c1 s2", "C: write 3 [2+1]=9 c1 s2"];
    assert_eq!(rig.ack('C', 2), expected);
}

#[test]
fn writes_go_at_the_pace_of_a_member_that_gets_on_and_not_of_one_that_hangs() {
    let settings = Settings { eject_lag_bytes: 8 * 4096, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::default() }.serving();
    for id in 1..=5 {
        assert_eq!(rig.write(id, run(id, 1)).len(), 3);
        rig.ack('A', id);
        rig.ack('B', id);
    }
    assert_eq!(rig.write(6, run(6, 1)), NOTHING); // C lacks five blocks
    assert_eq!(rig.ack('C', 1)[0], "A: write 6 [6+1]=6 c1 s1");
    assert_eq!(rig.write(7, run(7, 1)), NOTHING);
    // It gets no further: nobody waits for it.
    assert_eq!(rig.pass_ms(199).read(8, run(0, 1)).len(), 1);
    assert_eq!(rig.pass_ms(1).read(9, run(0, 1))[1], "A: write 7 [7+1]=7 c1 s1");
}

#[test]
fn writes_wait_below_the_minimum_of_members_and_reads_do_not() {
    let mut rig = Setup { in_sync_min: 2, ..Setup::of("A") }.serving();
    assert_eq!(rig.read(8, run(0, 1)), ["A: read [0+1]"]);
    assert_eq!(rig.write(9, run(0, 1)), NOTHING);
}

#[test]
fn a_returning_member_is_sent_exactly_what_it_lacks_after_its_start() {
    let mut rig = serving("ABC");
    for id in 1..=4 {
        rig.write(id, run(id, 1));
    }
    rig.ack('A', 4);
    rig.ack_single('C', 1, 3);
    rig.down('C');
    assert_eq!(rig.write(5, run(5, 1)), ["A: write 5 [5+1]=5 c1 s0", "B: write 5 [5+1]=5 c1 s0"]);
    assert_eq!(rig.up('C'), ["C: start c1 base 0"]);
    assert_eq!(rig.write(6, run(6, 1)).len(), 2); // not before it follows again
    let expected = [
        "C: write 2 [2+1]=2 c1 s0",
        "C: write 4 [4+1]=4 c1 s0",
        "C: write 5 [5+1]=5 c1 s0",
        "C: write 6 [6+1]=6 c1 s0",
    ];
    assert_eq!(rig.ack('C', 1), expected);
    assert_eq!(rig.ack('C', 1), NOTHING); // once
}

#[test]
fn a_link_that_is_lost_and_back_twice_sends_start_again() {
    let mut rig = serving("A");
    rig.write(9, run(0, 1));
    rig.down('A');
    assert_eq!(rig.down('A'), NOTHING);
    assert_eq!(rig.up('A'), ["A: start c1 base 0"]);
    assert_eq!(rig.up('A'), NOTHING);
    rig.down('A');
    assert_eq!(rig.up('A'), ["A: start c1 base 0"]);
    assert_eq!(rig.ack('A', 1), ["9: written"]); // it had become durable
}

#[test]
fn an_ack_that_was_overtaken_says_nothing_new() {
    let mut rig = serving("ABC");
    rig.write(7, run(0, 1));
    rig.ack('C', 1);
    assert_eq!(rig.ack('C', 0), NOTHING);
    assert_eq!(rig.ack('B', 1), ["7: written"]);
}

#[test]
fn a_device_that_comes_back_with_less_is_alarmed_and_the_device_not_fed() {
    let mut rig = serving("ABC");
    rig.write(7, run(0, 1));
    rig.ack('C', 1);
    rig.down('C');
    rig.up('C');
    assert_eq!(rig.ack('C', 0), ["alarm"]);
    assert_eq!(rig.engine.counters().lost_data, 1);
    assert_eq!(rig.write(8, run(1, 1)), ["A: write 2 [1+1]=8 c1 s0", "B: write 2 [1+1]=8 c1 s0"]);
    // Its acknowledgements no longer count.
    assert_eq!(rig.ack('C', 2), NOTHING);
    assert_eq!(rig.ack_single('B', 0, 2), NOTHING);
    assert_eq!(rig.ack_single('A', 0, 2), ["8: written"]);
}

/// Symptom: a write is told to the guest as durable while one member has it. Cause: the durable bits of a device that
/// was caught with lost data (I6) still count for quorums.
#[test]
fn what_a_device_that_lost_data_acknowledged_does_not_count() {
    let mut rig = serving("ABC");
    rig.write(7, run(0, 1));
    rig.ack('C', 1);
    rig.down('C');
    rig.up('C');
    rig.ack('C', 0);
    assert_eq!(rig.ack('A', 1), NOTHING);
    assert_eq!(rig.ack('B', 1), ["7: written"]);
}

/// Symptom: after the next open, members differ. Cause: settled counts the prefix from before a device lost data.
#[test]
fn nothing_settles_on_the_word_of_a_device_that_lost_data() {
    let mut rig = serving("ABC");
    rig.write(7, run(0, 1));
    rig.ack('C', 1);
    rig.down('C');
    rig.up('C');
    rig.ack('C', 0);
    rig.ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(rig.engine.status().lanes[0].settled, 0);
}

fn edges(head_bytes: u32, tail_bytes: u32, range: BlockRange) -> Operation {
    let buffer = AlignedBuffer::copied_from(&vec![9; range.bytes()]);
    Operation::Write { range, buffer, head_bytes, tail_bytes }
}

/// The bytes of write 1 as A was sent them.
fn written_bytes(rig: &mut Rig, event: Event) -> Vec<u8> {
    let mut effects = Vec::new();
    rig.engine.apply(rig.now_us, event, &mut effects);
    match &effects[0] {
        Effect::Send {
            message: ToReplica::Write { content: Content::Data { payload, checksums }, range, .. }, ..
        } => {
            let sums: Vec<u32> = block_checksums(VOLUME, range.start, payload).collect();
            assert_eq!(checksums[..], sums[..]);
            payload.to_vec()
        }
        other => panic!("{other:?}"),
    }
}

fn answer(rig: &mut Rig, reply: impl FnOnce(BlockRange) -> ReadReply) -> Event {
    let (request, range) = rig.asked('A');
    Event::Message { envelope: envelope(0, 'A'), message: ToWriter::ReadDone { request, reply: reply(range) } }
}

#[test]
fn a_write_of_part_of_blocks_keeps_the_edges() {
    let mut rig = serving("A");
    assert_eq!(rig.request(1, edges(10, 20, run(4, 3))), ["A: read [4+1]", "A: read [6+1]"]);
    assert_eq!(rig.serve('A', 7), NOTHING);
    let event = answer(&mut rig, |range| good(range, 8, stamp(5, 1)));
    let bytes = written_bytes(&mut rig, event);
    let expected = [vec![7; 10], vec![9; 3 * BLOCK_BYTES - 30], vec![8; 20]].concat();
    assert!(bytes == expected);
    assert_eq!(rig.ack('A', 1), ["1: written"]);
}

#[test]
fn a_write_inside_one_block_keeps_both_edges_of_it() {
    let mut rig = serving("A");
    assert_eq!(rig.request(1, edges(512, 1024, run(4, 1))), ["A: read [4+1]"]);
    let event = answer(&mut rig, |range| good(range, 7, stamp(5, 1)));
    let bytes = written_bytes(&mut rig, event);
    assert!(bytes == [vec![7; 512], vec![9; BLOCK_BYTES - 1536], vec![7; 1024]].concat());
}

#[test]
fn an_edge_that_was_never_written_is_zeroes() {
    let mut rig = serving("A");
    assert_eq!(rig.request(1, edges(0, 96, run(4, 2))), ["A: read [5+1]"]);
    let event = answer(&mut rig, |range| zeroes(range, Stamp::default()));
    let bytes = written_bytes(&mut rig, event);
    assert!(bytes == [vec![9; 2 * BLOCK_BYTES - 96], vec![0; 96]].concat());
}

#[test]
fn a_write_of_part_of_a_block_holds_other_writers_and_readers_off() {
    let mut rig = serving("A");
    assert_eq!(rig.request(1, edges(10, 0, run(4, 2))), ["A: read [4+1]"]);
    assert_eq!(rig.write(2, run(5, 1)), NOTHING);
    assert_eq!(rig.read(3, run(5, 1)), NOTHING);
    assert_eq!(rig.serve('A', 7), ["A: write 1 [4+2]=7 c1 s0"]);
    assert_eq!(rig.ack('A', 1), ["1: written", "A: write 2 [5+1]=2 c1 s0"]);
    assert_eq!(rig.ack('A', 2), ["2: written", "A: read [5+1]"]);
}

#[test]
fn a_write_waits_with_its_edges_until_the_blocks_are_free() {
    let mut rig = serving("A");
    rig.write(1, run(4, 1));
    assert_eq!(rig.request(2, edges(10, 0, run(4, 1))), NOTHING);
    assert_eq!(rig.ack('A', 1), ["1: written", "A: read [4+1]"]);
}

#[test]
fn a_damaged_edge_fails_the_write_and_frees_its_blocks() {
    let mut rig = serving("A");
    rig.request(1, edges(10, 0, run(4, 1)));
    assert_eq!(rig.write(2, run(4, 1)), NOTHING);
    let bad = |range| ReadReply { conditions: vec![BlockCondition::Bad(1)], ..zeroes(range, stamp(5, 1)) };
    let failed = "1: failed: block 4 is damaged on every replica that holds it";
    assert_eq!(rig.serve_with('A', bad), ["alarm", "alarm", failed, "A: write 1 [4+1]=2 c1 s0"]);
}

#[test]
fn reads_that_came_before_the_volume_served_do_not_wait_for_writes() {
    let setup = Setup { in_sync_min: 2, ..Setup::of("A") };
    let mut rig = setup.idle();
    rig.write(1, run(0, 1));
    rig.read(2, run(5, 1));
    rig.on(setup.grant());
    rig.ack('A', 0);
    assert_eq!(rig.serve('A', 3), ["2: read [5+1]=3"]);
}
