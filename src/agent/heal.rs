//! The leader begins what the planner decides: members leave devices that are lost or shall be emptied, and come closer to
//! what volumes ask for. Writers and caretakers do the copying; here only wishes are recorded.
//!
//! It acts when the metadata has changed and then rests for a while, so that a cluster of any size keeps most of the
//! leader's processor for itself.

use ashlar_model::{DeviceId, Epoch, VolumeId};
use ashlar_raft::placement::{Budget, Move, MovePlan, moves_within, must_vacate};
use ashlar_raft::settings::LOCALITY_AFTER_MS;
use ashlar_raft::state::entities::{AttachMode, Locality};
use ashlar_raft::{Command, MetaHandle, State};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Shortest pause between two plans.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// A plan is followed by a pause of so many times its own time.
const PAUSE_FACTOR: u32 = 16;
/// After a wish was refused: the state has changed, or this node leads no more.
const PAUSE_REFUSED: Duration = Duration::from_secs(1);

/// Without a change it looks again after so long.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// Runs the duty until the service stops; idle while another node leads.
pub async fn run(handle: MetaHandle) {
    let (mut versions, mut leaders) = (handle.watch(), handle.watch_leader());
    let mut homes = Homes::default();
    loop {
        versions.borrow_and_update();
        leaders.borrow_and_update();
        let mut look_again = LOOK_AGAIN_MAX;
        if handle.is_leader() {
            let state = handle.state();
            let (settled, next) = homes.look(&state, Instant::now());
            look_again = next.unwrap_or(LOOK_AGAIN_MAX);
            let pause = act(&handle, settled).await;
            tokio::time::sleep(pause).await;
        } else {
            homes = Homes::default();
        }
        let alive = tokio::select! {
            changed = versions.changed() => changed.is_ok(),
            changed = leaders.changed() => changed.is_ok(),
            () = tokio::time::sleep(look_again) => true,
        };
        if !alive {
            return;
        }
    }
}

/// Since when volumes that want copies where they are used have been where they are.
#[derive(Debug, Default)]
struct Homes(BTreeMap<VolumeId, (Epoch, Instant)>);

impl Homes {
    /// Those that have stayed for long enough, and when the next one will have.
    fn look(&mut self, state: &State, now: Instant) -> (BTreeSet<VolumeId>, Option<Duration>) {
        let after = Duration::from_millis(state.setting(&LOCALITY_AFTER_MS));
        let mut known = BTreeMap::new();
        for volume in state.volumes().filter(|volume| volume.locality != Locality::None) {
            if volume.attachment.is_some_and(|held| held.mode == AttachMode::ReadWrite) {
                let before = self.0.get(&volume.id).filter(|(epoch, _)| *epoch == volume.epoch);
                known.insert(volume.id, before.copied().unwrap_or((volume.epoch, now)));
            }
        }
        self.0 = known;
        let left = |since: Instant| after.saturating_sub(now.saturating_duration_since(since));
        let settled = self.0.iter().filter(|(_, (_, since))| left(*since).is_zero()).map(|(id, _)| *id).collect();
        let next = self.0.values().map(|(_, since)| left(*since)).filter(|left| !left.is_zero()).min();
        (settled, next)
    }
}

/// Plans once and records the wishes. The answer is how long to rest.
async fn act(handle: &MetaHandle, settled: BTreeSet<VolumeId>) -> Duration {
    let state = handle.state();
    let began = Instant::now();
    // Not here: it would hold up Raft's heartbeats.
    let plan = move || {
        let plan = moves_within(&state, Budget::of(&state), |volume| settled.contains(&volume));
        let leaving = plan.moves.iter().map(|one| one.leaving).collect::<BTreeSet<_>>();
        let lost = leaving.into_iter().filter(|device| must_vacate(&state, *device)).collect::<BTreeSet<_>>();
        (plan, lost) // and the state is let go of
    };
    let Ok((plan, lost)) = tokio::task::spawn_blocking(plan).await else { return PAUSE_REFUSED };
    let pause = (began.elapsed() * PAUSE_FACTOR).max(PAUSE_MIN);
    for command in commands(&plan) {
        let Command::MoveLanes { volume, lanes, leaving, joining } = &command else { continue };
        // Taken back since: what stays must not begin to go.
        if lost.contains(leaving) && !handle.with_state(|state| must_vacate(state, *leaving)) {
            continue;
        }
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
    use ashlar_model::cluster::QuorumPolicy;
    use ashlar_model::{ClusterId, NodeId, SessionId, VolumeGeometry};
    use ashlar_raft::command::{Attach, CreateVolume, NodeSpec};
    use ashlar_raft::placement::Reason;
    use ashlar_raft::state::entities::{Labels, Roles, Spread};

    #[test]
    fn a_volume_has_settled_when_nobody_else_has_attached_it_for_a_while() {
        let mut state = State::default();
        let (node, session) = (NodeId(1), SessionId::from_u128(1));
        let spec = NodeSpec {
            name: "n1".into(),
            api_address: "127.0.0.1:1".into(),
            data_address: "127.0.0.1:2".into(),
            labels: Labels::default(),
            roles: Roles { store: true, target: true, meta: true },
            session,
            shards: 1,
        };
        let (cluster, name) = (ClusterId::from_u128(1), "c".to_owned());
        state.apply(&Command::InitCluster { cluster, name, node_id: node, node: spec }).unwrap();
        let (id, class, capacity_bytes) = (DeviceId::from_u128(1), "ssd".to_owned(), 1 << 40);
        state.apply(&Command::AddDevice { id, node, name: "d".into(), class, capacity_bytes, ordinal: 0 }).unwrap();
        for (number, locality) in [(1, Locality::Prefer), (2, Locality::None)] {
            let create = CreateVolume {
                id: VolumeId::from_u128(number),
                name: format!("v{number}"),
                labels: BTreeMap::new(),
                geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 1 },
                replicas: 1,
                quorum: QuorumPolicy::Majority,
                in_sync_min: 1,
                spread: Spread::default(),
                locality,
                class: None,
                lanes: vec![vec![id]],
                token: None,
            };
            state.apply(&Command::CreateVolume(create)).unwrap();
        }
        let attach = |state: &mut State, attempt| {
            for number in [1, 2] {
                let (volume, mode) = (VolumeId::from_u128(number), AttachMode::ReadWrite);
                state.apply(&Command::Attach(Attach { volume, node, session, attempt, mode, takeover: true })).unwrap();
            }
        };
        state.apply(&Command::SetSetting { key: LOCALITY_AFTER_MS.key.into(), value: 5_000 }).unwrap();
        let (mut homes, began, second) = (Homes::default(), Instant::now(), Duration::from_secs(1));
        assert_eq!(homes.look(&state, began), (BTreeSet::new(), None));
        attach(&mut state, 1);
        assert_eq!(homes.look(&state, began), (BTreeSet::new(), Some(5 * second)));
        assert_eq!(homes.look(&state, began + 3 * second), (BTreeSet::new(), Some(2 * second)));
        assert_eq!(homes.look(&state, began + 5 * second), ([VolumeId::from_u128(1)].into(), None));
        attach(&mut state, 2);
        assert_eq!(homes.look(&state, began + 6 * second), (BTreeSet::new(), Some(5 * second)), "anew");
    }

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
