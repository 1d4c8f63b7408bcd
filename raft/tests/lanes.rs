//! Rules M1 to M4 of the replication protocol by their exact answers, and every refusal around them.

mod fixture;

use ashlar_model::cluster::{EpochRow, LaneCas, LaneGrant};
use ashlar_model::{Epoch, NodeId};
use ashlar_raft::command::DetachBy;
use ashlar_raft::state::entities::Liveness;
use ashlar_raft::{Command, Response};
use fixture::*;

fn grant(version: u64, in_sync: &[u64], clean: Option<u64>, rows: &[(u64, u64)]) -> LaneGrant {
    LaneGrant {
        in_sync: in_sync.iter().map(|number| device(*number)).collect(),
        version,
        clean,
        rows: rows.iter().map(|(epoch, base)| EpochRow { epoch: Epoch(*epoch), base: *base }).collect(),
        trusted: Vec::new(),
        unverified: false,
    }
}

#[test]
fn m1_open_takes_clean_and_appends_the_row() {
    let mut state = with_volume();
    let first = open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(first.epoch, Epoch(1));
    // A fresh volume is clean at index 0: nothing to recover.
    assert_eq!(first.lanes, vec![grant(0, &[1, 2, 3], Some(0), &[(1, 0)]); 2]);
    // The next open of the same node finds the mark taken.
    let second = open(&mut state, &attach(1, 2, false)).unwrap();
    assert_eq!(second.epoch, Epoch(2));
    assert_eq!(second.lanes, vec![grant(0, &[1, 2, 3], None, &[(1, 0)]); 2]);
}

#[test]
fn m1_the_same_attempt_gets_the_same_answer_whatever_changed() {
    let mut state = with_volume();
    let first = open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(cas(&mut state, change(1, 0, &[1, 2])), Ok(record(1, 1, &[1, 2])));
    assert_eq!(cas(&mut state, change(1, 1, &[1])), Ok(record(1, 2, &[1])));
    assert_eq!(open(&mut state, &attach(1, 1, false)), Ok(first.clone()));
    let close = LaneCas { clean: Some(9), ..change(1, 2, &[1]) };
    assert_eq!(cas(&mut state, close), Ok(record(1, 3, &[1])));
    assert_eq!(open(&mut state, &attach(1, 1, false)), Ok(first));
    // The next epoch sees the record as it is now.
    let next = open(&mut state, &attach(1, 2, false)).unwrap();
    assert_eq!(next.lanes[0], grant(3, &[1], Some(9), &[(1, 0), (2, 9)]));
    assert_eq!(next.lanes[1], grant(0, &[1, 2, 3], None, &[(1, 0)]));
}

#[test]
fn m1_a_superseded_attempt_grants_nothing() {
    let mut state = with_volume();
    open(&mut state, &attach(1, 1, false)).unwrap();
    open(&mut state, &attach(2, 1, true)).unwrap();
    // The duplicate even asks for a takeover.
    assert_eq!(code(open(&mut state, &attach(1, 1, true))), "superseded");
    assert_eq!(state.volume(VOLUME).unwrap().epoch, Epoch(2));
    // A new attempt is a new request.
    assert_eq!(code(open(&mut state, &attach(1, 2, false))), "attached_elsewhere");
    assert_eq!(open(&mut state, &attach(1, 2, true)).unwrap().epoch, Epoch(3));
    // After its own detach the attempt is over as well.
    assert_eq!(state.apply(&detach_holder(1, 2)), Ok(Response::Detached(true)));
    assert_eq!(code(open(&mut state, &attach(1, 2, false))), "superseded");
    assert_eq!(code(open(&mut state, &attach(1, 1, false))), "superseded");
}

#[test]
fn one_writer_only() {
    let mut state = with_volume();
    open(&mut state, &attach(1, 1, false)).unwrap();
    let refused = open(&mut state, &attach(2, 1, false)).unwrap_err();
    assert_eq!(refused.code(), "attached_elsewhere");
    assert!(refused.to_string().contains("n1"), "it names the holder: {refused}");
    // Its being down changes nothing: takeover must be said.
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    assert_eq!(code(open(&mut state, &attach(2, 1, false))), "attached_elsewhere");
    // A restarted node takes over from itself without being asked.
    let mut restarted = node_spec(1, None);
    restarted.session = session(101);
    state.apply(&Command::UpdateNode { id: ashlar_model::NodeId(1), node: restarted }).unwrap();
    assert_eq!(code(open(&mut state, &attach(1, 2, false))), "stale_session");
    let mut again = attach(1, 1, false);
    again.session = session(101);
    assert_eq!(open(&mut state, &again).unwrap().epoch, Epoch(2));
}

#[test]
fn m2_applies_in_the_current_epoch_and_version_only() {
    let mut state = with_volume();
    open(&mut state, &attach(1, 1, false)).unwrap();
    // Wrong version, wrong epoch: the record is the answer, and nothing changed.
    assert_eq!(cas(&mut state, change(1, 5, &[1])), Ok(record(1, 0, &[1, 2, 3])));
    assert_eq!(cas(&mut state, change(0, 0, &[1])), Ok(record(1, 0, &[1, 2, 3])));
    // Applied; its repetition is answered with the record.
    assert_eq!(cas(&mut state, change(1, 0, &[1, 3])), Ok(record(1, 1, &[1, 3])));
    assert_eq!(cas(&mut state, change(1, 0, &[1, 3])), Ok(record(1, 1, &[1, 3])));
    // The grant of a new epoch freezes the set.
    open(&mut state, &attach(2, 1, true)).unwrap();
    assert_eq!(cas(&mut state, change(1, 1, &[1])), Ok(record(2, 1, &[1, 3])));
    // The answer is in copyset order, whatever order was given.
    assert_eq!(cas(&mut state, change(2, 1, &[3, 2, 1])), Ok(record(2, 2, &[1, 2, 3])));
}

#[test]
fn m2_recovery_appends_its_row_once() {
    let mut state = with_volume();
    open(&mut state, &attach(1, 1, false)).unwrap();
    open(&mut state, &attach(1, 2, false)).unwrap();
    let recovered = LaneCas { base: Some(40), ..change(2, 0, &[1, 2]) };
    assert_eq!(cas(&mut state, recovered), Ok(record(2, 1, &[1, 2])));
    let again = LaneCas { base: Some(41), ..change(2, 1, &[1, 2]) };
    assert_eq!(code(cas(&mut state, again)), "base_conflict");
    let backwards = LaneCas { clean: Some(39), ..change(2, 1, &[1, 2]) };
    assert_eq!(code(cas(&mut state, backwards)), "base_conflict");
    let next = open(&mut state, &attach(1, 3, false)).unwrap();
    assert_eq!(next.lanes[0], grant(1, &[1, 2], None, &[(1, 0), (2, 40)]));
    // The base never goes back over epochs.
    let lower = LaneCas { base: Some(39), ..change(3, 1, &[1]) };
    assert_eq!(code(cas(&mut state, lower)), "base_conflict");
}

#[test]
fn m4_the_last_member_stays() {
    let mut state = with_volume();
    open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(code(cas(&mut state, change(1, 0, &[]))), "empty_set");
    assert_eq!(code(cas(&mut state, change(1, 0, &[1, 9]))), "not_a_member");
    // Outdated ones get the record all the same.
    assert_eq!(cas(&mut state, change(1, 7, &[])), Ok(record(1, 0, &[1, 2, 3])));
    assert_eq!(code(cas(&mut state, LaneCas { lane: 2, ..change(1, 0, &[1]) })), "lane_not_found");
}

#[test]
fn rows_are_bounded() {
    let mut state = with_volume();
    for attempt in 1..=100 {
        let epoch = open(&mut state, &attach(1, attempt, false)).unwrap().epoch.0;
        if attempt > 1 {
            let recovered = LaneCas { base: Some(attempt), ..change(epoch, attempt - 2, &[1, 2]) };
            cas(&mut state, recovered).unwrap();
        }
    }
    let rows = |state: &ashlar_raft::State| state.volume(VOLUME).unwrap().lanes[0].rows.clone();
    assert_eq!(rows(&state).len(), ashlar_raft::state::lanes::ROWS_MAX);
    assert_eq!(rows(&state).last().unwrap(), &EpochRow { epoch: Epoch(100), base: 100 });
    // A clean close with a member missing keeps them; with all members, the present epoch's row is enough.
    cas(&mut state, LaneCas { clean: Some(200), ..change(100, 99, &[1, 2]) }).unwrap();
    assert_eq!(rows(&state).len(), ashlar_raft::state::lanes::ROWS_MAX);
    cas(&mut state, LaneCas { clean: Some(200), ..change(100, 100, &[1, 2, 3]) }).unwrap();
    assert_eq!(rows(&state), vec![EpochRow { epoch: Epoch(100), base: 100 }]);
}

#[test]
fn detach_by_the_holder_and_by_others() {
    let mut state = with_volume();
    assert_eq!(state.apply(&detach_holder(3, 1)), Ok(Response::Detached(false)));
    open(&mut state, &attach(1, 1, false)).unwrap();
    // Not the holder: no effect.
    assert_eq!(state.apply(&detach_holder(3, 2)), Ok(Response::Detached(false)));
    assert_eq!(state.apply(&detach_holder(1, 2)), Ok(Response::Detached(false)));
    assert_eq!(state.apply(&detach_holder(1, 1)), Ok(Response::Detached(true)));
    assert_eq!(state.apply(&detach_holder(1, 1)), Ok(Response::Detached(false)));

    open(&mut state, &attach(1, 3, false)).unwrap();
    assert_eq!(code(state.apply(&detach_operator(1, true))), "epoch_changed");
    assert_eq!(code(state.apply(&detach_operator(2, false))), "holder_alive");
    state.apply(&set_liveness(1, Liveness::Suspect)).unwrap();
    assert_eq!(code(state.apply(&detach_operator(2, false))), "holder_alive");
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    assert_eq!(state.apply(&detach_operator(2, false)), Ok(Response::Detached(true)));
    // Detached without closing: the next open recovers.
    assert_eq!(open(&mut state, &attach(2, 1, false)).unwrap().lanes[0].clean, None);
    assert_eq!(state.apply(&detach_operator(3, true)), Ok(Response::Detached(true)));
}

#[test]
fn a_batch_answers_each() {
    let mut state = with_volume();
    open(&mut state, &attach(1, 1, false)).unwrap();
    let batch = vec![change(1, 0, &[1, 2]), change(1, 0, &[]), LaneCas { lane: 1, ..change(1, 0, &[2]) }];
    let Ok(Response::LaneCas(results)) = state.apply(&Command::LaneCas(batch)) else { panic!() };
    assert_eq!(results[0], Ok(record(1, 1, &[1, 2])));
    assert_eq!(results[1], Ok(record(1, 1, &[1, 2])), "outdated by the first");
    assert_eq!(results[2], Ok(record(1, 1, &[2])));
    let many = vec![change(1, 0, &[1]); ashlar_raft::command::LANE_CAS_BATCH_MAX + 1];
    assert_eq!(code(state.apply(&Command::LaneCas(many))), "limit_reached");
}

/// The attach of a writer that has ended meanwhile may still arrive: nobody would ever detach it.
#[test]
fn an_attach_that_was_ended_before_it_arrived_grants_nothing() {
    let mut state = with_volume();
    assert_eq!(state.apply(&detach_holder(1, 3)), Ok(Response::Detached(false)));
    assert_eq!(code(open(&mut state, &attach(1, 3, false))), "superseded");
    assert_eq!(code(open(&mut state, &attach(1, 2, false))), "superseded");
    open(&mut state, &attach(2, 1, false)).unwrap();
    // Also while another has it, and the holder of the same session is left alone.
    assert_eq!(state.apply(&detach_holder(1, 4)), Ok(Response::Detached(false)));
    assert_eq!(code(open(&mut state, &attach(1, 4, true))), "superseded");
    let granted = open(&mut state, &attach(1, 6, true)).unwrap();
    assert_eq!(state.apply(&detach_holder(1, 5)), Ok(Response::Detached(false)));
    assert_eq!(open(&mut state, &attach(1, 6, false)), Ok(granted));
    // What a session that is over says changes nothing.
    let old = DetachBy::Holder { node: NodeId(1), session: session(99), attempt: 9 };
    state.apply(&Command::Detach { volume: VOLUME, by: old }).unwrap();
    assert_eq!(state.volume(VOLUME).unwrap().attempts.iter().filter(|seen| seen.node == NodeId(1)).count(), 1);
    open(&mut state, &attach(1, 7, false)).unwrap();
}

/// A writer gives way to a successor of its node, which ends before it hears of its grant: it says so for both of them. Its
/// attach may arrive at any time.
#[test]
fn a_successor_that_ends_unheard_leaves_nobody_attached() {
    let steps = [Command::Attach(attach(1, 2, false)), detach_holder(1, 1), detach_holder(1, 2)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut state = with_volume();
        open(&mut state, &attach(1, 1, false)).unwrap();
        for step in order {
            drop(state.apply(&steps[step])); // refused or not
        }
        assert_eq!(state.volume(VOLUME).unwrap().attachment, None, "{order:?}");
        open(&mut state, &attach(2, 1, false)).unwrap();
    }
}

#[test]
fn a_grant_names_the_size_as_it_is() {
    let mut state = with_volume();
    assert_eq!(open(&mut state, &attach(1, 1, false)).unwrap().size_bytes, 1 << 30);
    state.apply(&Command::ResizeVolume { volume: VOLUME, size_bytes: 2 << 30 }).unwrap();
    assert_eq!(open(&mut state, &attach(2, 1, true)).unwrap().size_bytes, 2 << 30);
}
