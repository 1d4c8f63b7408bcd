//! Wishes of operators: other members, another size, a member out.

use super::*;

/// The volume with the devices of its only lane, and as many chunks.
fn spec_of(rig: &Rig, devices: &str, chunks: u64) -> Event {
    let mut spec = rig.engine.spec().clone();
    spec.lanes = vec![devices.chars().map(device).collect()];
    spec.geometry.size_bytes = chunks * CHUNK_BYTES as u64;
    Event::Spec(spec)
}

fn one_chunk() -> Setup {
    Setup { clean: Some(7), chunks: 1, ..Setup::default() }
}

/// D has joined in place of C, up to its promotion.
fn replaced(rig: &mut Rig) -> Vec<String> {
    assert_eq!(rig.on(spec_of(rig, "ABD", 1)), NOTHING);
    rig.up('D');
    assert!(rig.tick()[0].starts_with("D: join #1 c"));
    rig.tell('D', ToWriter::JoinReady { join: JOIN, settled: 0, suspects: vec![] });
    rig.serve_with('A', |range| zeroes(range, stamp(0, 0)))
}

#[test]
fn a_new_member_takes_the_place_of_one_that_leaves_in_one_step() {
    let mut rig = one_chunk().serving();
    assert_eq!(replaced(&mut rig), ["cas c1 ABD"]);
    rig.cas_done();
    let members: String = rig.engine.status().lanes[0].members.iter().map(|m| name_of(m.device)).collect();
    assert_eq!(members, "ABD");
    // C gets nothing any more.
    assert_eq!(rig.write(1, run(0, 1)).len(), 3);
}

#[test]
fn a_leaving_member_counts_until_it_is_replaced() {
    let mut rig = one_chunk().serving();
    rig.on(spec_of(&rig, "ABD", 1));
    rig.down('B');
    assert_eq!(rig.write(1, run(0, 1)).len(), 2); // to A and C
    rig.ack('A', 8);
    assert_eq!(rig.ack('C', 8), ["1: written"]);
}

#[test]
fn a_lost_member_is_replaced_after_its_ejection() {
    let mut rig = one_chunk().serving();
    rig.down('C');
    rig.ack('A', 7);
    rig.ack('B', 7);
    for _ in 0..60 {
        rig.pass_ms(100);
        rig.ack('A', 7);
        rig.ack('B', 7);
        rig.tick();
    }
    assert_eq!(rig.cas[0].in_sync, [device('A'), device('B')]);
    rig.cas_done();
    assert_eq!(replaced(&mut rig), ["cas c2 ABD"]);
}

#[test]
fn a_join_of_a_device_that_is_not_wanted_any_more_ends() {
    let mut rig = Setup { in_sync: "AB", ..one_chunk() }.serving();
    assert_eq!(rig.tick(), ["C: join #1 c1 base 7"]);
    rig.on(spec_of(&rig, "ABD", 1));
    rig.up('D');
    assert_eq!(rig.tick(), ["D: join #2 c1 base 7"]);
}

#[test]
fn a_member_that_is_not_wanted_goes_once_all_others_are_there() {
    let mut rig = one_chunk().serving();
    rig.on(spec_of(&rig, "AB", 1));
    assert_eq!(rig.tick(), ["cas c1 AB"]);
}

#[test]
fn a_grown_volume_takes_requests_to_its_new_end() {
    let mut rig = one_chunk().serving();
    rig.on(spec_of(&rig, "ABC", 2));
    assert_eq!(rig.write(1, run(1500, 1)).len(), 3);
}

#[test]
fn a_change_that_a_running_writer_cannot_follow_is_refused() {
    let mut rig = Setup { chunks: 2, ..one_chunk() }.serving();
    let mut spec = rig.engine.spec().clone();
    spec.quorum = QuorumPolicy::All;
    assert_eq!(rig.on(Event::Spec(spec)), ["alarm"]);
    assert_eq!(rig.engine.spec().quorum, QuorumPolicy::Majority);
}

/// Symptom: a joiner lacks what was written beyond the old end. Cause: the writer opened with a size of before.
#[test]
fn a_writer_never_knows_less_of_the_size_than_its_grant() {
    let mut rig = one_chunk().idle();
    let Event::Granted(mut grant) = one_chunk().grant() else { unreachable!("it is a grant") };
    grant.size_bytes *= 2;
    rig.on(Event::Granted(grant));
    let size_of = |rig: &Rig| rig.engine.spec().geometry.size_bytes;
    assert_eq!(size_of(&rig), 2 * CHUNK_BYTES as u64);
    assert_eq!(rig.on(spec_of(&rig, "ABC", 1)), NOTHING, "what is told next may be older still");
    assert_eq!(size_of(&rig), 2 * CHUNK_BYTES as u64);
    let mut newer = Setup { chunks: 3, ..one_chunk() }.idle();
    newer.on(one_chunk().grant());
    assert_eq!(size_of(&newer), 3 * CHUNK_BYTES as u64);
}

/// C4: who left frees its data only when the metadata service hears that the writer knows.
#[test]
fn a_departure_is_confirmed_by_one_more_compare_and_set() {
    let mut rig = one_chunk().serving();
    replaced(&mut rig);
    rig.write(1, run(0, 1));
    rig.cas_done();
    assert_eq!(rig.tick(), NOTHING, "not everything before the change is settled");
    for name in ['A', 'B', 'D'] {
        rig.ack(name, 8);
    }
    assert_eq!(rig.tick(), ["cas c2 ABD"]);
    rig.cas_done();
    assert_eq!(rig.tick(), NOTHING);
}

#[test]
fn that_a_device_is_not_wanted_any_more_is_confirmed_as_well() {
    let mut rig = Setup { in_sync: "AB", ..one_chunk() }.serving();
    rig.on(spec_of(&rig, "AB", 1));
    assert_eq!(rig.tick(), ["cas c1 AB"]);
    rig.cas_done();
    assert_eq!(rig.tick(), NOTHING);
}

/// D was to take the place of C and is refused.
fn refused() -> Rig {
    let mut rig = one_chunk().serving();
    assert_eq!(replaced(&mut rig), ["cas c1 ABD"]);
    assert_eq!(rig.on(Event::CasRefused { lane: 0 }), ["cas c1 ABC"]);
    rig
}

/// Symptom: a lane changes nothing any more, and a device that was sent away holds its writes back. Cause: a refused
/// compare-and-set is repeated for ever.
#[test]
fn a_refused_set_is_taken_back_by_recording_the_former_one() {
    let mut rig = refused();
    // A repeated refusal begins nothing anew.
    assert_eq!(rig.on(Event::CasRefused { lane: 0 }), NOTHING);
    assert_eq!(rig.tick(), ["cas c1 ABC"]);
    // Both sets count meanwhile: C and D must have what settles, and two of each what is acknowledged.
    rig.write(1, run(0, 1));
    rig.ack('A', 8);
    assert_eq!(rig.ack('C', 8), NOTHING);
    assert_eq!(rig.record("ABC"), ["1: written"]);
    rig.ack('B', 8);
    assert_eq!(rig.retained_bytes(), 0, "D holds nothing back");
    // D is not tried again at once, and then anew.
    assert_eq!(rig.pass_ms(4_000).tick(), NOTHING);
}

#[test]
fn a_refused_set_that_was_recorded_after_all_is_the_set() {
    let mut rig = refused();
    rig.record("ABD");
    let members: String = rig.engine.status().lanes[0].members.iter().map(|m| name_of(m.device)).collect();
    assert_eq!(members, "ABD");
    rig.write(1, run(0, 1));
    rig.ack('A', 8);
    assert_eq!(rig.ack('D', 8), ["1: written"]);
}

#[test]
fn a_refusal_without_a_change_under_way_changes_nothing() {
    let mut rig = one_chunk().serving();
    assert_eq!(rig.on(Event::CasRefused { lane: 0 }), NOTHING);
    assert_eq!(rig.on(Event::CasRefused { lane: 9 }), NOTHING);
    assert_eq!(rig.tick(), NOTHING);
}

impl Rig {
    /// The record has its second version now.
    fn record(&mut self, set: &str) -> Vec<String> {
        let in_sync = set.chars().map(device).collect();
        self.on(Event::CasDone { lane: 0, reply: LaneCasReply { epoch: Epoch(EPOCH), version: 2, in_sync } })
    }
}

#[test]
fn an_operator_ejects_a_member_that_is_well() {
    let mut rig = one_chunk().serving();
    rig.on(Event::Eject { device: device('B') });
    assert_eq!(rig.tick(), ["cas c1 AC"]);
    rig.cas_done();
    // It comes back like any member that was away.
    for name in ['A', 'C'] {
        rig.ack(name, 7);
    }
    assert_eq!(rig.pass_ms(500).tick(), ["B: join #1 c2 base 7"]);
}

#[test]
fn the_last_member_is_never_ejected() {
    let mut rig = Setup { clean: Some(7), chunks: 1, ..Setup::of("A") }.serving();
    rig.on(Event::Eject { device: device('A') });
    assert_eq!(rig.tick(), NOTHING);
}
