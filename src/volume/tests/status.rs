//! Health, and the words for why it is not good.

use super::*;
use crate::volume::status::{Health, MemberState};

fn name(letter: char) -> String {
    device(letter).to_string()
}

fn health(rig: &Rig) -> (Health, Option<String>) {
    let status = rig.engine.status();
    (status.health, status.reason)
}

fn suspended(reason: impl Into<String>) -> (Health, Option<String>) {
    (Health::Suspended, Some(reason.into()))
}

fn degraded(reason: impl Into<String>) -> (Health, Option<String>) {
    (Health::Degraded, Some(reason.into()))
}

#[test]
fn all_members_in_sync_is_healthy() {
    let rig = Setup::default().serving();
    assert_eq!(health(&rig), (Health::Healthy, None));
    let lane = &rig.engine.status().lanes[0];
    assert_eq!((lane.phase.as_str(), lane.last, lane.settled, &lane.join), ("serving", 0, 0, &None));
    assert!(lane.members.iter().all(|member| member.state == MemberState::InSync && member.reachable));
}

#[test]
fn without_an_epoch_it_waits_for_the_metadata_service() {
    let rig = Setup::default().idle();
    assert_eq!(health(&rig), suspended("waits for the metadata service to grant the volume"));
}

#[test]
fn an_opening_volume_names_who_it_waits_for() {
    let mut rig = Setup { clean: None, ..Setup::default() }.granted();
    let envelope = envelope(Envelope::ALL_LANES, 'A');
    rig.on(Event::Message { envelope, message: ToWriter::Sealed { lanes: vec![] } });
    let expected =
        format!("opening: lane 0 needs 2 of its 3 in-sync devices, 1 answered; waits for {}, {}", name('B'), name('C'));
    assert_eq!(health(&rig), suspended(expected));
}

#[test]
fn an_opening_volume_says_how_far_it_is() {
    let mut rig = Setup { clean: None, ..Setup::of("A") }.granted();
    let envelope = envelope(Envelope::ALL_LANES, 'A');
    rig.on(Event::Message { envelope, message: ToWriter::Sealed { lanes: vec![] } });
    assert_eq!(health(&rig), suspended("opening: lane 0 copies 0 unsettled writes"));
    rig.ack('A', 0);
    assert_eq!(health(&rig), suspended("opening: waits for the metadata service"));
    rig.cas_done();
    assert_eq!(health(&rig), suspended("opening: waits for the read grants of an earlier writer to run out"));
    rig.pass_ms(1_070).tick();
    assert_eq!(health(&rig), (Health::Healthy, None));
}

#[test]
fn a_member_away_is_degraded() {
    let mut rig = Setup::default().serving();
    rig.down('C');
    assert_eq!(health(&rig), degraded(format!("lane 0: {} cannot be reached", name('C'))));
}

#[test]
fn a_member_that_lags_is_degraded_after_a_second() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack('A', 1);
    rig.ack('B', 1);
    assert_eq!(health(&rig), (Health::Healthy, None));
    rig.pass_ms(1_001).tick();
    assert_eq!(health(&rig), degraded(format!("lane 0: {} is catching up", name('C'))));
}

#[test]
fn stale_joining_and_failed_devices_are_named() {
    let mut rig = Setup { in_sync: "AB", ..Setup::default() }.serving();
    assert_eq!(health(&rig), degraded(format!("lane 0: {} is out of sync", name('C'))));
    rig.tick();
    assert_eq!(health(&rig), degraded(format!("lane 0: {} is being resynchronised", name('C'))));
    let join = rig.engine.status().lanes[0].join.clone().unwrap();
    assert_eq!((join.device, join.chunks_done, join.copied_bytes), (device('C'), 0, 0));
    rig.tell('C', ToWriter::DeviceFailed { reason: "gone".into() });
    assert_eq!(health(&rig), degraded(format!("lane 0: {} has failed; replace it", name('C'))));
}

#[test]
fn too_few_members_is_suspended_and_says_what_to_start() {
    let mut rig = Setup::of("AB").serving();
    rig.down('B');
    let expected =
        format!("lane 0 needs 2 of its 2 in-sync devices, 1 can be reached; missing: {}. Start their nodes", name('B'));
    assert_eq!(health(&rig), suspended(expected));
}

#[test]
fn a_full_device_suspends_only_when_the_quorum_needs_it() {
    let mut rig = Setup::default().serving();
    rig.write(1, run(0, 1));
    rig.ack_full('C', 0);
    assert_eq!(health(&rig).0, Health::Healthy);
    rig.ack_full('B', 0);
    let devices = format!("{}, {}", name('B'), name('C'));
    let expected = format!("full: {devices}. Writes to new blocks wait; trim or delete something, or add devices");
    assert_eq!(health(&rig), suspended(expected));
    rig.ack('B', 1);
    assert_ne!(health(&rig).0, Health::Suspended);
}

#[test]
fn a_policy_minimum_is_named() {
    let rig = Setup { in_sync: "A", in_sync_min: 2, ..Setup::of("ABC") }.serving();
    let away = format!("{}, {}", device('B'), device('C'));
    let expected =
        "lane 0 has 1 in-sync devices, the volume's minimum is 2; writes wait until one of these is back in sync";
    assert_eq!(health(&rig), suspended(format!("{expected}: {away}")));
}

#[test]
fn writes_that_wait_for_a_lagging_member_name_it() {
    let settings = Settings { eject_lag_bytes: 4096, ..Settings::default() };
    let mut rig = Setup { settings, ..Setup::default() }.serving();
    rig.write(1, run(0, 2));
    rig.ack('A', 1);
    rig.ack('B', 1);
    let expected = format!("writes wait for {}, which lags and may not be ejected now", name('C'));
    assert_eq!(health(&rig), suspended(expected));
}

#[test]
fn the_end_is_named() {
    let mut rig = Setup::of("A").serving();
    rig.write(1, run(0, 1));
    rig.on(Event::Close);
    assert_eq!(health(&rig), suspended("is being detached"));
    rig.tell('A', ToWriter::Fenced { promised: Epoch(6) });
    assert_eq!(health(&rig), suspended("another node has taken the volume over"));
}

#[test]
fn counters_count_requests_and_bytes() {
    let mut rig = Setup::of("A").serving();
    rig.write(1, run(0, 2));
    rig.zero(2, run(9, 1));
    rig.read(3, run(20, 4));
    let counters = rig.engine.status().counters;
    assert_eq!((counters.writes, counters.written_bytes), (2, 3 * 4096));
    assert_eq!((counters.reads, counters.read_bytes), (1, 4 * 4096));
}
