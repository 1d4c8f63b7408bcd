//! Nodes, devices and volumes by the exact answers of the state machine.

mod fixture;

use ashlar_model::{ClusterId, NodeId, VolumeId};
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{Admin, DeviceState, Liveness, NodeState, Spread, SpreadLevel};
use ashlar_raft::{Command, Response, State};
use fixture::*;

fn admin(node: u64, admin: Admin) -> Command {
    Command::SetNodeAdmin { id: NodeId(node), admin }
}

#[test]
fn nothing_before_the_cluster_and_one_cluster_only() {
    let mut state = State::default();
    assert_eq!(code(state.apply(&Command::AddNode { id: None, node: node_spec(1, None) })), "not_initialised");
    let mut state = cluster(&[None]);
    let init = |id, node_id| Command::InitCluster {
        cluster: ClusterId::from_u128(id),
        name: "test".to_owned(),
        node_id,
        node: node_spec(1, None),
    };
    assert_eq!(state.apply(&init(1, NodeId(1))), Ok(Response::Node(NodeId(1))));
    assert_eq!(code(state.apply(&init(2, NodeId(1)))), "already_initialised");
}

#[test]
fn a_node_joins_restarts_and_goes() {
    let mut state = cluster(&[None; 2]);
    // Repeated by the same run; claimed by another machine.
    assert_eq!(state.apply(&Command::AddNode { id: None, node: node_spec(2, None) }), Ok(Response::Node(NodeId(2))));
    let mut thief = node_spec(2, None);
    thief.session = session(999);
    assert_eq!(code(state.apply(&Command::AddNode { id: None, node: thief.clone() })), "name_taken");
    thief.name = "n3".to_owned();
    assert_eq!(code(state.apply(&Command::AddNode { id: Some(NodeId(1)), node: thief })), "id_taken");
    // It restarts at another address. A late duplicate of the earlier run changes nothing.
    let mut restarted = node_spec(2, Some("z1"));
    (restarted.session, restarted.api_address) = (session(201), "10.9.9.9:7000".to_owned());
    let update = Command::UpdateNode { id: NodeId(2), node: restarted.clone() };
    assert_eq!(state.apply(&update), Ok(Response::Done));
    assert_eq!(state.apply(&update), Ok(Response::Done));
    assert_eq!(code(state.apply(&Command::UpdateNode { id: NodeId(2), node: node_spec(2, None) })), "stale_session");
    assert_eq!(code(state.apply(&set_liveness(2, Liveness::Down))), "stale_session");
    assert_eq!(state.node(NodeId(2)).unwrap().api_address, "10.9.9.9:7000");
    restarted.name = "other".to_owned();
    assert_eq!(code(state.apply(&Command::UpdateNode { id: NodeId(2), node: restarted })), "invalid");
    // It goes for good. Its number stays used, its name is free.
    assert_eq!(state.apply(&admin(2, Admin::Draining)), Ok(Response::Done));
    assert_eq!(state.node(NodeId(2)).unwrap().state(), NodeState::Draining);
    assert_eq!(state.apply(&admin(2, Admin::Removed)), Ok(Response::Done));
    assert_eq!(code(state.apply(&admin(2, Admin::Active))), "node_removed");
    assert_eq!(state.device(device(2)).unwrap().state, DeviceState::Out);
    assert_eq!(state.apply(&Command::AddNode { id: None, node: node_spec(2, None) }), Ok(Response::Node(NodeId(3))));
    assert_eq!(code(state.apply(&set_liveness(9, Liveness::Up))), "node_not_found");
}

#[test]
fn a_device_that_has_failed_is_never_used_again() {
    let mut state = with_volume();
    let set = |state| Command::SetDeviceState { id: device(1), state };
    state.apply(&set(DeviceState::Draining)).unwrap();
    state.apply(&set(DeviceState::Failed)).unwrap();
    let before = state.clone();
    // An operator who takes the emptying back has not seen that it failed meanwhile.
    for wanted in [DeviceState::In, DeviceState::Full, DeviceState::Draining] {
        assert_eq!(code(state.apply(&set(wanted))), "device_unfit", "{wanted:?}");
    }
    assert_eq!(before, state);
    assert_eq!(state.apply(&set(DeviceState::Failed)), Ok(Response::Done), "the node says it again");
    assert_eq!(state.apply(&Command::DeleteVolume { volume: VOLUME }), Ok(Response::Done));
    assert_eq!(state.apply(&set(DeviceState::Out)), Ok(Response::Done), "it may go for good");
}

#[test]
fn a_node_that_forgot_its_number_gets_it_again_while_it_holds_nothing() {
    let mut state = cluster(&[None]);
    state.apply(&Command::AddNode { id: None, node: node_spec(2, None) }).unwrap();
    let mut again = node_spec(2, None);
    again.session = session(222);
    let add = Command::AddNode { id: None, node: again };
    assert_eq!(state.apply(&add), Ok(Response::Node(NodeId(2))));
    assert_eq!(state.node(NodeId(2)).unwrap().session, session(222));
}

#[test]
fn what_is_in_use_does_not_go() {
    let mut state = with_volume();
    assert_eq!(code(state.apply(&admin(1, Admin::Removed))), "in_use");
    let out = Command::SetDeviceState { id: device(1), state: DeviceState::Out };
    assert_eq!(code(state.apply(&out)), "in_use");
    open(&mut state, &attach(1, 1, false)).unwrap();
    assert_eq!(code(state.apply(&Command::DeleteVolume { volume: VOLUME })), "attached");
    state.apply(&detach_holder(1, 1)).unwrap();
    assert_eq!(state.apply(&Command::DeleteVolume { volume: VOLUME }), Ok(Response::Done));
    assert_eq!(state.apply(&Command::DeleteVolume { volume: VOLUME }), Ok(Response::Done), "repeated");
    assert_eq!(state.apply(&out), Ok(Response::Done));
    assert_eq!(code(state.apply(&Command::SetDeviceState { id: device(1), state: DeviceState::In })), "id_taken");
    assert_eq!(code(state.apply(&add_device(1, 1))), "id_taken");
    assert_eq!(code(state.apply(&add_device(9, 9))), "node_not_found");
}

#[test]
fn a_device_moves_only_from_a_dead_node() {
    let mut state = cluster(&[None; 2]);
    assert_eq!(state.apply(&add_device(1, 1)), Ok(Response::Done), "the node says it again");
    assert_eq!(code(state.apply(&add_device(1, 2))), "in_use");
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    assert_eq!(state.apply(&add_device(1, 2)), Ok(Response::Done));
    assert_eq!(state.node_of_device(device(1)).unwrap().id, NodeId(2));
}

#[test]
fn deleted_volumes_are_known_until_every_device_reclaimed_them() {
    let mut state = with_volume();
    state.apply(&Command::DeleteVolume { volume: VOLUME }).unwrap();
    assert_eq!(state.copysets().count(), 0);
    assert!(state.devices().all(|device| device.committed_bytes == 0 && device.lane_count == 0));
    let again = create(VOLUME, "w", vec![vec![device(1)]]);
    assert_eq!(code(state.apply(&Command::CreateVolume(again))), "id_taken");
    for number in 1..=3 {
        assert_eq!(state.deleted_on(device(number)).collect::<Vec<_>>(), vec![VOLUME]);
        let reclaimed = Command::Reclaimed { device: device(number), volumes: vec![VOLUME, VolumeId::from_u128(7)] };
        assert_eq!(state.apply(&reclaimed), Ok(Response::Done));
        assert_eq!(state.deleted_on(device(number)).count(), 0);
    }
    assert_eq!(code(state.apply(&Command::DeleteVolume { volume: VOLUME })), "volume_not_found");
}

#[test]
fn a_create_is_checked_and_remembered() {
    let mut state = cluster(&[Some("a"), Some("a"), Some("b")]);
    let id = VolumeId::from_u128(1);
    let mut good = create(id, "v", vec![vec![device(1), device(3)]]);
    good.token = Some("t".to_owned());
    let refused = |state: &mut State, change: &dyn Fn(&mut ashlar_raft::command::CreateVolume)| {
        let mut bad = good.clone();
        bad.token = None;
        change(&mut bad);
        code(state.apply(&Command::CreateVolume(bad)))
    };
    assert_eq!(refused(&mut state, &|v| v.name = "-".to_owned()), "invalid");
    assert_eq!(refused(&mut state, &|v| v.geometry.size_bytes = 4095), "invalid");
    assert_eq!(refused(&mut state, &|v| v.geometry.lane_count = 2), "invalid");
    assert_eq!(refused(&mut state, &|v| v.replicas = 4), "invalid");
    assert_eq!(refused(&mut state, &|v| v.in_sync_min = 0), "invalid");
    assert_eq!(refused(&mut state, &|v| v.in_sync_min = 3), "invalid");
    assert_eq!(refused(&mut state, &|v| v.replicas = 3), "placement_refused");
    assert_eq!(refused(&mut state, &|v| v.lanes = vec![vec![device(1), device(1)]]), "placement_refused");
    assert_eq!(refused(&mut state, &|v| v.lanes = vec![vec![device(1), device(8)]]), "placement_refused");
    let hard = Spread { level: SpreadLevel::Zone, soft: false };
    assert_eq!(
        refused(&mut state, &|v| (v.spread, v.lanes) = (hard, vec![vec![device(1), device(2)]])),
        "placement_refused"
    );
    assert_eq!(state.apply(&Command::CreateVolume(good.clone())), Ok(Response::Volume(id)));
    // With the token the first answer comes again, whatever identity the repetition has.
    let mut again = good.clone();
    again.id = VolumeId::from_u128(2);
    assert_eq!(state.apply(&Command::CreateVolume(again.clone())), Ok(Response::Volume(id)));
    again.name = "other".to_owned();
    assert_eq!(code(state.apply(&Command::CreateVolume(again))), "token_reused");
    // Without one the identity tells.
    let mut same = good.clone();
    same.token = None;
    assert_eq!(state.apply(&Command::CreateVolume(same.clone())), Ok(Response::Volume(id)));
    same.id = VolumeId::from_u128(3);
    assert_eq!(code(state.apply(&Command::CreateVolume(same))), "name_taken");
    assert_eq!(state.volumes().count(), 1);
}

#[test]
fn volumes_grow_only() {
    let mut state = with_volume();
    let resize = |size_bytes| Command::ResizeVolume { volume: VOLUME, size_bytes };
    assert_eq!(state.apply(&resize(2 << 30)), Ok(Response::Done));
    assert_eq!(state.apply(&resize(2 << 30)), Ok(Response::Done));
    assert_eq!(code(state.apply(&resize(1 << 30))), "invalid");
    assert_eq!(state.device(device(1)).unwrap().committed_bytes, 2 << 30);
}

#[test]
fn a_volume_that_writes_to_all_opens_with_any_one() {
    let mut state = cluster(&[None; 3]);
    let mut all = create(VOLUME, "v", vec![vec![device(1), device(2), device(3)]]);
    all.quorum = ashlar_model::cluster::QuorumPolicy::All;
    state.apply(&Command::CreateVolume(all)).unwrap();
    state.apply(&set_liveness(2, Liveness::Down)).unwrap();
    state.apply(&set_liveness(3, Liveness::Down)).unwrap();
    assert_eq!(state.volume_health(state.volume(VOLUME).unwrap()), VolumeHealth::Degraded);
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    assert_eq!(state.volume_health(state.volume(VOLUME).unwrap()), VolumeHealth::Unavailable);
}

#[test]
fn health_follows_devices_and_sets() {
    let mut state = with_volume();
    let health = |state: &State| state.volume_health(state.volume(VOLUME).unwrap());
    assert_eq!(health(&state), VolumeHealth::Healthy);
    state.apply(&set_liveness(3, Liveness::Down)).unwrap();
    assert_eq!(health(&state), VolumeHealth::Degraded);
    // Two of three are needed while all three count as in sync.
    state.apply(&set_liveness(2, Liveness::Down)).unwrap();
    assert_eq!(health(&state), VolumeHealth::Unavailable);
    state.apply(&set_liveness(2, Liveness::Up)).unwrap();
    open(&mut state, &attach(1, 1, false)).unwrap();
    cas(&mut state, change(1, 0, &[1, 2])).unwrap();
    assert_eq!(health(&state), VolumeHealth::Degraded);
    let replicas = state.replicas_on(device(3)).map(|replica| (replica.lane.lane, replica.in_sync)).collect::<Vec<_>>();
    assert_eq!(replicas, vec![(0, false), (1, true)]);
    assert_eq!(state.attached_to(NodeId(1)).count(), 1);
    let names = |after| state.volumes_after(after).map(|volume| volume.name.as_str()).collect::<Vec<_>>();
    assert_eq!((names(None), names(Some("a")), names(Some("v"))), (vec!["v"], vec!["v"], vec![]));
    assert_eq!(
        state.volume_spec(state.volume_by_name("v").unwrap()).lanes,
        vec![vec![device(1), device(2), device(3)]; 2]
    );
}

/// Every node computes from it which shard has the device.
#[test]
fn a_device_has_a_place_of_its_own_on_its_node() {
    let mut state = cluster(&[None; 2]);
    let at = |number: u64, node: u64, place: u32| match add_device(number, node) {
        Command::AddDevice { id, node, name, class, capacity_bytes, .. } => {
            Command::AddDevice { id, node, name, class, capacity_bytes, ordinal: place }
        }
        other => other,
    };
    let ordinal = |state: &State, number| state.device(device(number)).unwrap().ordinal;
    assert_eq!(code(state.apply(&at(5, 1, 1))), "in_use", "device 1 of node 1 has it");
    assert_eq!(state.apply(&at(5, 1, 0)), Ok(Response::Done));
    assert_eq!(state.apply(&at(5, 1, 0)), Ok(Response::Done), "the node says it again");
    assert_eq!((ordinal(&state, 1), ordinal(&state, 5)), (1, 0));
    assert_eq!(code(state.apply(&at(6, 1, u32::MAX))), "limit_reached");
    // It moves into another machine, where its place is taken.
    assert_eq!(state.apply(&set_liveness(1, Liveness::Down)), Ok(Response::Done));
    assert_eq!(code(state.apply(&at(1, 2, 2))), "in_use");
    assert_eq!(state.apply(&at(1, 2, 0)), Ok(Response::Done));
    // A device that is gone for good leaves its place to another.
    assert_eq!(state.apply(&Command::SetDeviceState { id: device(5), state: DeviceState::Out }), Ok(Response::Done));
    assert_eq!(state.apply(&at(7, 1, 0)), Ok(Response::Done));
}

#[test]
fn a_node_says_how_many_shards_it_has() {
    let mut state = cluster(&[None]);
    let update = |shards, run| {
        let node = ashlar_raft::command::NodeSpec { shards, session: session(run), ..node_spec(1, None) };
        Command::UpdateNode { id: NodeId(1), node }
    };
    assert_eq!(state.apply(&update(4, 101)), Ok(Response::Done));
    assert_eq!(state.node(NodeId(1)).unwrap().shards, 4);
    assert_eq!(code(state.apply(&update(0, 102))), "invalid");
    assert_eq!(code(state.apply(&update(65, 102))), "invalid");
}

#[test]
fn what_a_node_says_of_its_space_does_not_change_what_operators_decided() {
    let mut state = cluster(&[None]);
    let mark = |state: &mut State, full| {
        assert_eq!(state.apply(&Command::MarkFull { id: device(1), full }), Ok(Response::Done));
        state.device(device(1)).unwrap().state
    };
    assert_eq!(mark(&mut state, true), DeviceState::Full);
    assert_eq!(mark(&mut state, true), DeviceState::Full);
    assert_eq!(mark(&mut state, false), DeviceState::In);
    for decided in [DeviceState::Draining, DeviceState::Failed, DeviceState::Out] {
        state.apply(&Command::SetDeviceState { id: device(1), state: decided }).unwrap();
        assert_eq!((mark(&mut state, true), mark(&mut state, false)), (decided, decided));
    }
}
