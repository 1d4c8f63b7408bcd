//! Random command sequences: two states that apply the same commands stay equal to the byte, a refusal changes
//! nothing, and what must always hold holds after every command.

mod fixture;

use ashlar_model::cluster::LaneCas;
use ashlar_model::{Epoch, NodeId, VolumeId};
use ashlar_raft::codec::{self, Kind};
use ashlar_raft::command::{Attach, DetachBy};
use ashlar_raft::state::entities::{Admin, AttachMode, DeviceState, Liveness};
use ashlar_raft::{Command, Response, State};
use fixture::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Numbers that a command is made of; small ranges, so that commands meet.
fn command() -> impl Strategy<Value = Command> {
    let n = || 1u64..6;
    let volume = || (1u128..5).prop_map(VolumeId::from_u128);
    let session_of = |node: u64, run: u64| session(node * 100 + run);
    prop_oneof![
        1 => (n(), 0u64..3).prop_map(move |(node, run)| {
            let mut spec = node_spec(node, None);
            spec.session = session_of(node, run);
            Command::UpdateNode { id: NodeId(node), node: spec }
        }),
        1 => n().prop_map(|node| Command::AddNode { id: None, node: node_spec(node + 2, None) }),
        1 => (n(), 0u64..3, 0u8..3).prop_map(move |(node, run, live)| Command::SetNodeLiveness {
            id: NodeId(node),
            session: session_of(node, run),
            liveness: [Liveness::Up, Liveness::Suspect, Liveness::Down][live as usize],
        }),
        1 => (n(), 0u8..8).prop_map(|(node, admin)| Command::SetNodeAdmin {
            id: NodeId(node),
            admin: match admin { 0 => Admin::Removed, 1 => Admin::Draining, _ => Admin::Active },
        }),
        1 => (n(), n()).prop_map(|(number, node)| add_device(number, node)),
        1 => (n(), 0u8..8).prop_map(|(number, state)| Command::SetDeviceState {
            id: device(number),
            state: match state { 0 => DeviceState::Out, 1 => DeviceState::Failed, _ => DeviceState::In },
        }),
        3 => (volume(), 1u8..4, proptest::collection::vec(proptest::collection::vec(n(), 1..4), 1..4), any::<bool>())
            .prop_map(|(id, name, lanes, token)| {
                let lanes = lanes.into_iter().map(|lane| lane.into_iter().map(device).collect()).collect();
                let mut create = create(id, &format!("v{name}"), lanes);
                create.token = token.then(|| format!("t{name}"));
                Command::CreateVolume(create)
            }),
        1 => volume().prop_map(|volume| Command::DeleteVolume { volume }),
        1 => (volume(), 0u64..4).prop_map(|(volume, gib)| Command::ResizeVolume { volume, size_bytes: gib << 30 }),
        1 => (n(), volume()).prop_map(|(number, volume)| Command::Reclaimed { device: device(number), volumes: vec![volume] }),
        4 => (volume(), n(), 0u64..3, 1u64..6, 0u8..4).prop_map(move |(volume, node, run, attempt, how)| {
            let session = session_of(node, run);
            let mode = if how < 2 { AttachMode::Maintenance } else { AttachMode::ReadWrite };
            Command::Attach(Attach { volume, node: NodeId(node), session, attempt, mode, takeover: how == 2 })
        }),
        1 => (volume(), 0u64..6, any::<bool>()).prop_map(|(volume, epoch, force)| Command::Detach {
            volume,
            by: DetachBy::Operator { epoch: Epoch(epoch), force },
        }),
        1 => (volume(), n(), 1u64..6).prop_map(move |(volume, node, attempt)| Command::Detach {
            volume,
            by: DetachBy::Holder { node: NodeId(node), session: session_of(node, 0), attempt },
        }),
        6 => (volume(), 0u16..3, 0u64..5, 0u64..4, proptest::collection::vec(n(), 0..4), 0u64..8, 0u64..8).prop_map(
            |(volume, lane, epoch, version, members, clean, base)| Command::LaneCas(vec![LaneCas {
                volume,
                lane,
                epoch: Epoch(epoch),
                version,
                in_sync: members.into_iter().map(device).collect(),
                clean: (clean > 4).then_some(clean),
                base: (base > 5).then_some(base),
            }])
        ),
        3 => (volume(), n(), n(), any::<bool>()).prop_map(|(volume, leaving, joining, back)| {
            let (leaving, joining) = (device(leaving), device(joining));
            match back {
                true => Command::CancelReplacement { volume, leaving, joining },
                false => Command::ReplaceDevice { volume, leaving, joining },
            }
        }),
        1 => (0u64..20_000).prop_map(|value| Command::SetSetting { key: "down_after_ms".to_owned(), value }),
    ]
}

fn bytes(state: &State) -> Vec<u8> {
    codec::encode(Kind::State, state).unwrap()
}

fn check_invariants(state: &State) {
    let mut committed = BTreeMap::<_, (u64, u32)>::new();
    let mut uses = BTreeMap::<_, u32>::new();
    for volume in state.volumes() {
        assert_eq!(volume.lanes.len(), usize::from(volume.geometry.lane_count));
        for lane in &volume.lanes {
            let members = &state.copyset(lane.copyset).unwrap().members;
            let holders = state.devices_of(lane);
            assert_eq!(holders.iter().collect::<BTreeSet<_>>().len(), holders.len());
            assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), usize::from(volume.replicas));
            let in_sync = state.in_sync(lane);
            assert!(!in_sync.is_empty() && in_sync.len() <= 3, "M4");
            assert_eq!(lane.in_sync_mask.count_ones() as usize, in_sync.len(), "no bit without a device");
            assert!(lane.rows.is_sorted_by(|a, b| a.epoch < b.epoch && a.base <= b.base));
            assert!(lane.rows.iter().all(|row| row.epoch <= volume.epoch));
            *uses.entry(lane.copyset).or_default() += 1;
            for holder in holders {
                assert!(!state.deleted_on(holder).any(|id| id == volume.id), "what is wanted is not reclaimed");
                let (bytes, lanes) = committed.entry(holder).or_default();
                (*bytes, *lanes) = (*bytes + volume.lane_bytes(), *lanes + 1);
            }
        }
        for parting in &volume.parting {
            let holders = state.devices_of(&volume.lanes[usize::from(parting.lane)]);
            assert!(!holders.contains(&parting.device), "who parted is not wanted");
            assert!(!state.deleted_on(parting.device).any(|id| id == volume.id), "nor freed before its time");
        }
        if let Some(held) = volume.attachment {
            assert!(state.node(held.node).is_some_and(|node| node.admin != Admin::Removed));
            assert!(volume.epoch.0 > 0);
        }
    }
    for set in state.copysets() {
        assert_eq!(uses.get(&set.id), Some(&set.lane_count));
    }
    for device in state.devices() {
        let expected = committed.get(&device.id).copied().unwrap_or_default();
        assert_eq!((device.committed_bytes, device.lane_count), expected);
    }
}

fn epochs(state: &State) -> BTreeMap<VolumeId, (Epoch, Vec<u64>)> {
    state.volumes().map(|v| (v.id, (v.epoch, v.lanes.iter().map(|lane| lane.version).collect()))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn replicas_stay_equal_and_sound(commands in proptest::collection::vec(command(), 1..120), cut in 0usize..120) {
        let mut one = cluster(&[None; 3]);
        let mut other = cluster(&[None; 3]);
        for (step, command) in commands.iter().enumerate() {
            let (before, epochs_before) = (bytes(&one), epochs(&one));
            let response = one.apply(command);
            // The second state also goes through a snapshot on the way, and hears its commands as bytes.
            let record = codec::encode(Kind::Command, command).unwrap();
            let decoded: Command = codec::decode(Kind::Command, &record).unwrap();
            prop_assert_eq!(&response, &other.apply(&decoded));
            if step == cut {
                other = ashlar_raft::state::decode_snapshot(&bytes(&other)).unwrap();
            }
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(bytes(&one), bytes(&other));
            if response.is_err() {
                prop_assert_eq!(&before, &bytes(&one), "a refusal changes nothing: {:?}", command);
            }
            check_invariants(&one);
            for (volume, (epoch, versions)) in epochs(&one) {
                let Some((epoch_before, versions_before)) = epochs_before.get(&volume) else { continue };
                prop_assert!(*epoch_before <= epoch);
                prop_assert!(versions_before.iter().zip(&versions).all(|(before, after)| before <= after));
            }
        }
    }

    /// Repeating a command right away never has a second effect.
    #[test]
    fn commands_may_be_repeated(commands in proptest::collection::vec(command(), 1..80)) {
        let mut state = cluster(&[None; 3]);
        for command in commands {
            let first = state.apply(&command);
            let after = entities(&state);
            let second = state.apply(&command);
            prop_assert_eq!(&after, &entities(&state), "{:?}", command);
            match (&command, &first, &second) {
                (Command::Detach { .. }, Ok(_), second) => prop_assert_eq!(second, &Ok(Response::Detached(false))),
                (Command::LaneCas(_), Ok(Response::LaneCas(one)), Ok(Response::LaneCas(two))) => {
                    prop_assert!(one[0].is_err() || one == two);
                }
                (Command::DeleteVolume { .. }, Ok(_), _) => {}
                (_, Ok(_), _) => prop_assert_eq!(&first, &second, "{:?}", command),
                (_, Err(_), _) => {}
            }
        }
    }
}

/// The state without its count of commands.
fn entities(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let volumes = state.volumes().cloned().collect::<Vec<_>>();
    let nodes = state.nodes().cloned().collect::<Vec<_>>();
    let devices = state.devices().cloned().collect::<Vec<_>>();
    (volumes, nodes, devices, state.copysets().cloned().collect::<Vec<_>>())
}
