//! The leader begins what the planner decides: members leave devices that are lost or shall be emptied, and come closer to
//! what volumes ask for. Writers and caretakers do the copying; here only wishes are recorded.
//!
//! It acts when the metadata has changed and then rests for a while, so that a cluster of any size keeps most of the
//! leader's processor for itself.

use ashlar_model::{DeviceId, VolumeId};
use ashlar_raft::placement::{self, Move, MovePlan};
use ashlar_raft::{Command, MetaHandle};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Shortest pause between two plans.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// A plan is followed by a pause of so many times its own time.
const PAUSE_FACTOR: u32 = 16;
/// After a wish was refused: the state has changed, or this node leads no more.
const PAUSE_REFUSED: Duration = Duration::from_secs(1);

/// Runs the duty until the service stops; idle while another node leads.
pub async fn run(handle: MetaHandle) {
    let (mut versions, mut leaders) = (handle.watch(), handle.watch_leader());
    loop {
        versions.borrow_and_update();
        leaders.borrow_and_update();
        if handle.is_leader() {
            let pause = act(&handle).await;
            tokio::time::sleep(pause).await;
        }
        let alive = tokio::select! {
            changed = versions.changed() => changed.is_ok(),
            changed = leaders.changed() => changed.is_ok(),
        };
        if !alive {
            return;
        }
    }
}

/// Plans once and records the wishes. The answer is how long to rest.
async fn act(handle: &MetaHandle) -> Duration {
    let state = handle.state();
    let began = Instant::now();
    // Not here: it would hold up Raft's heartbeats.
    let Ok(plan) = tokio::task::spawn_blocking(move || placement::moves(&state)).await else { return PAUSE_REFUSED };
    let pause = (began.elapsed() * PAUSE_FACTOR).max(PAUSE_MIN);
    for command in commands(&plan) {
        let Command::MoveLanes { volume, lanes, leaving, joining } = &command else { continue };
        tracing::info!(%volume, ?lanes, %leaving, %joining, "lanes change a member");
        if let Err(error) = handle.propose(command).await {
            tracing::info!("a change of members was not recorded and is decided anew: {error}");
            return pause.max(PAUSE_REFUSED);
        }
    }
    pause
}

/// One command for the lanes of a volume that go the same way, most urgent first.
fn commands(plan: &MovePlan) -> Vec<Command> {
    let mut order = Vec::new();
    let mut lanes = BTreeMap::<(VolumeId, DeviceId, DeviceId), Vec<u16>>::new();
    for Move { volume, lane, leaving, joining, .. } in &plan.moves {
        let key = (*volume, *leaving, *joining);
        let of_key = lanes.entry(key).or_default();
        if of_key.is_empty() {
            order.push(key);
        }
        of_key.push(*lane);
    }
    let command = |key: (VolumeId, DeviceId, DeviceId)| {
        let (volume, leaving, joining) = key;
        Some(Command::MoveLanes { volume, lanes: lanes.remove(&key)?, leaving, joining })
    };
    order.into_iter().filter_map(command).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_raft::placement::Reason;

    #[test]
    fn lanes_that_go_the_same_way_are_one_command_in_order_of_urgency() {
        let (volume, other) = (VolumeId::from_u128(1), VolumeId::from_u128(2));
        let device = DeviceId::from_u128;
        let one = |volume, lane, joining| {
            let joining = device(joining);
            Move { volume, lane, leaving: device(3), joining, reason: Reason::NodeOut, bytes_max: 1 }
        };
        let moves = vec![one(other, 0, 5), one(volume, 0, 4), one(other, 2, 5), one(other, 1, 4)];
        let command = |volume, lanes: &[u16], joining| {
            let (lanes, joining) = (lanes.to_vec(), device(joining));
            Command::MoveLanes { volume, lanes, leaving: device(3), joining }
        };
        let expected = [command(other, &[0, 2], 5), command(volume, &[0], 4), command(other, &[1], 4)];
        assert_eq!(commands(&MovePlan { moves, ..MovePlan::default() }), expected);
    }
}
