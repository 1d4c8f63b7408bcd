//! Who is alive, by the leader's bookkeeping.

mod fixture;

use ashlar_model::NodeId;
use ashlar_raft::sessions::{SessionLimits, Sessions, Verdict};
use ashlar_raft::state::entities::Liveness;
use fixture::*;

const LIMITS: SessionLimits = SessionLimits { suspect_after_ms: 3_000, down_after_ms: 10_000 };

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
