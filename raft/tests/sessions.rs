//! Who is alive, by the leader's bookkeeping.

mod fixture;

use ashlar_model::NodeId;
use ashlar_raft::outs::{Brake, Outs};
use ashlar_raft::placement::Domain;
use ashlar_raft::sessions::{SessionLimits, Sessions, Verdict};
use ashlar_raft::state::entities::Liveness;
use ashlar_raft::{Command, State};
use fixture::*;

const LIMITS: SessionLimits = SessionLimits { suspect_after_ms: 3_000, down_after_ms: 10_000, down_out_ms: 60_000 };

fn verdict(node: u64, liveness: Liveness) -> Verdict {
    Verdict { node: NodeId(node), session: session(node * 100), liveness }
}

#[test]
fn silence_makes_suspect_then_down_and_a_renewal_up() {
    let mut state = cluster(&[None; 2]);
    let mut sessions = Sessions::new(0);
    sessions.renew(NodeId(1), session(100), 2_000);
    sessions.renew(NodeId(2), session(200), 2_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 4_999), vec![]);
    sessions.renew(NodeId(1), session(100), 5_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 5_000), vec![verdict(2, Liveness::Suspect)]);
    state.apply(&set_liveness(2, Liveness::Suspect)).unwrap();
    assert_eq!(sessions.verdicts(&state, LIMITS, 7_999), vec![]);
    sessions.renew(NodeId(1), session(100), 12_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 12_000), vec![verdict(2, Liveness::Down)]);
    state.apply(&set_liveness(2, Liveness::Down)).unwrap();
    sessions.renew(NodeId(2), session(200), 13_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 13_000), vec![verdict(2, Liveness::Up)]);
}

#[test]
fn a_new_leader_gives_everybody_a_full_period() {
    let mut state = cluster(&[None; 3]);
    state.apply(&set_liveness(3, Liveness::Down)).unwrap();
    let mut sessions = Sessions::new(100_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 102_999), vec![], "and does not call the dead alive");
    // An earlier run's renewal says nothing about the present one.
    sessions.renew(NodeId(2), session(201), 109_000);
    sessions.renew(NodeId(1), session(100), 109_000);
    let expected = vec![verdict(2, Liveness::Down)];
    assert_eq!(sessions.verdicts(&state, LIMITS, 110_000), expected);
    sessions.renew(NodeId(77), session(1), 0);
    sessions.retain_known(&state);
    assert_eq!(sessions.silence_ms(NodeId(77), session(1), 100_500), 500);
}

/// Verdicts a minute after everybody was heard, but for these nodes.
fn verdicts_without(state: &State, silent: &[u64], now_ms: u64) -> Vec<Verdict> {
    let mut sessions = Sessions::new(0);
    for node in state.nodes().filter(|node| !silent.contains(&node.id.0)) {
        sessions.renew(node.id, node.session, now_ms);
    }
    sessions.verdicts(state, LIMITS, now_ms)
}

#[test]
fn long_silence_makes_out_once_it_is_recorded_as_down_and_a_renewal_up() {
    let mut state = cluster(&[None; 3]);
    assert_eq!(verdicts_without(&state, &[3], 60_000), vec![verdict(3, Liveness::Down)], "one step at a time");
    state.apply(&set_liveness(3, Liveness::Down)).unwrap();
    assert_eq!(verdicts_without(&state, &[3], 59_999), vec![]);
    assert_eq!(verdicts_without(&state, &[3], 60_000), vec![verdict(3, Liveness::Out)]);
    state.apply(&set_liveness(3, Liveness::Out)).unwrap();
    assert_eq!(verdicts_without(&state, &[3], 60_000), vec![]);
    // A new leader has heard nobody yet, which makes nothing better.
    assert_eq!(verdicts_without(&state, &[1, 2, 3], 1_000), vec![]);
    assert_eq!(verdicts_without(&state, &[], 61_000), vec![verdict(3, Liveness::Up)]);
}

#[test]
fn no_more_nodes_go_out_at_a_time_than_their_share() {
    let mut state = cluster(&[None; 10]);
    for node in [2, 3, 4] {
        state.apply(&set_liveness(node, Liveness::Down)).unwrap();
    }
    let out = |state: &State| {
        let verdicts = verdicts_without(state, &[2, 3, 4], 60_000);
        verdicts.iter().map(|one| (one.node.0, one.liveness)).collect::<Vec<_>>()
    };
    assert_eq!(out(&state), [(2, Liveness::Out), (3, Liveness::Out)], "two of ten are 20 %");
    state.apply(&set_liveness(2, Liveness::Out)).unwrap();
    assert_eq!(out(&state), [(3, Liveness::Out)]);
    state.apply(&set_liveness(3, Liveness::Out)).unwrap();
    assert_eq!(out(&state), []);
    let node = state.node(NodeId(4)).unwrap();
    assert_eq!(Outs::of(&state).brake(node), Some(Brake::TooMany { out: 2, out_max: 2 }));
    let set = |value| Command::SetSetting { key: "out_percent_max".into(), value };
    state.apply(&set(0)).unwrap();
    assert_eq!(Outs::of(&state).brake(state.node(NodeId(4)).unwrap()), Some(Brake::TooMany { out: 2, out_max: 0 }));
    state.apply(&set(30)).unwrap();
    assert_eq!(out(&state), [(4, Liveness::Out)]);
}

#[test]
fn a_whole_zone_that_is_silent_stays_and_a_zone_of_one_node_is_only_a_node() {
    let mut state = cluster(&[Some("a"), Some("a"), Some("b"), Some("b"), Some("c")]);
    state.apply(&Command::SetSetting { key: "out_percent_max".into(), value: 100 }).unwrap();
    for node in [3, 4, 5] {
        state.apply(&set_liveness(node, Liveness::Down)).unwrap();
    }
    assert_eq!(verdicts_without(&state, &[3, 4, 5], 60_000), vec![verdict(5, Liveness::Out)]);
    let brake = Outs::of(&state).brake(state.node(NodeId(3)).unwrap());
    assert_eq!(brake, Some(Brake::WholeDomain(Domain::Zone(None, "b".into()))));
    assert_eq!(brake.unwrap().to_string(), "all nodes of zone b are silent: it is expected to come back as it was");
}

/// All nodes but these are heard.
fn hear(sessions: &mut Sessions, state: &State, silent: &[u64], now_ms: u64) {
    for node in state.nodes().filter(|node| !silent.contains(&node.id.0)) {
        sessions.renew(node.id, node.session, now_ms);
    }
}

#[test]
fn a_zone_that_comes_back_one_node_after_the_other_has_its_time_again() {
    let mut state = cluster(&[Some("a"), Some("a"), Some("b"), Some("b"), Some("b"), Some("c")]);
    state.apply(&Command::SetSetting { key: "out_percent_max".into(), value: 100 }).unwrap();
    let mut sessions = Sessions::new(0);
    let silent = [3, 4, 5];
    for node in silent {
        state.apply(&set_liveness(node, Liveness::Down)).unwrap();
    }
    for now_ms in [10_000, 60_000, 200_000] {
        hear(&mut sessions, &state, &silent, now_ms);
        assert_eq!(sessions.verdicts(&state, LIMITS, now_ms), vec![], "the whole zone is silent");
    }
    // One of them is back. The others boot more slowly.
    hear(&mut sessions, &state, &[3, 5], 201_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 201_000), vec![verdict(4, Liveness::Up)]);
    state.apply(&set_liveness(4, Liveness::Up)).unwrap();
    hear(&mut sessions, &state, &[3, 5], 202_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 202_000), vec![], "not given up");
    hear(&mut sessions, &state, &[3], 260_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 260_000), vec![verdict(5, Liveness::Up)]);
    state.apply(&set_liveness(5, Liveness::Up)).unwrap();
    // It has had its time since the zone was silent as a whole: it was lost by itself.
    hear(&mut sessions, &state, &[3], 261_000);
    assert_eq!(sessions.verdicts(&state, LIMITS, 261_000), vec![verdict(3, Liveness::Out)]);
    state.apply(&set_liveness(3, Liveness::Out)).unwrap();
    // Who is out stays out when its neighbours fall silent too.
    for node in [4, 5] {
        state.apply(&set_liveness(node, Liveness::Down)).unwrap();
    }
    hear(&mut sessions, &state, &silent, 300_000);
    assert!(sessions.verdicts(&state, LIMITS, 300_000).iter().all(|one| one.node != NodeId(3)));
}
