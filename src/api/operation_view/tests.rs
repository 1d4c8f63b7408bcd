//! Operations of a small cluster, as its state and reports change.

use super::super::volume_view::volume_view;
use super::*;
use ashlar_model::cluster::{LaneCas, QuorumPolicy};
use ashlar_model::{ClusterId, Epoch, SessionId, VolumeGeometry, VolumeId};
use ashlar_raft::Command;
use ashlar_raft::command::{Attach, CreateVolume, NodeSpec};
use ashlar_raft::state::entities::{AttachMode, Labels, Locality, Roles, Spread};
use serde_json::json;

const VOLUME: VolumeId = VolumeId::from_u128(0xF0);

fn device(number: u64) -> DeviceId {
    DeviceId::from_u128(u128::from(number) << 96)
}

fn session(node: u64) -> SessionId {
    SessionId::from_u128(u128::from(node))
}

fn spec(number: u64) -> NodeSpec {
    NodeSpec {
        name: format!("n{number}"),
        api_address: format!("127.0.0.1:{number}"),
        data_address: format!("127.0.0.1:{number}"),
        labels: Labels::default(),
        roles: Roles { store: true, target: true, meta: true },
        session: session(number),
        shards: 1,
    }
}

/// Four nodes with a device each, a volume `v` of two lanes on the first three, attached to node 1.
fn state() -> State {
    let mut state = State::default();
    for number in 1..=4 {
        let node = spec(number);
        let command = match number {
            1 => {
                let (cluster, name) = (ClusterId::from_u128(1), "test".to_owned());
                Command::InitCluster { cluster, name, node_id: NodeId(1), node }
            }
            _ => Command::AddNode { id: None, node },
        };
        state.apply(&command).unwrap();
        let (name, class, capacity_bytes) = ("/dev/x".to_owned(), "ssd".to_owned(), 1 << 40);
        let id = device(number);
        state.apply(&Command::AddDevice { id, node: NodeId(number), name, class, capacity_bytes, ordinal: 0 }).unwrap();
    }
    let create = CreateVolume {
        id: VOLUME,
        name: "v-1".into(),
        labels: Default::default(),
        geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 2 },
        replicas: 3,
        quorum: QuorumPolicy::Majority,
        in_sync_min: 1,
        spread: Spread::default(),
        locality: Locality::None,
        class: None,
        lanes: vec![vec![device(1), device(2), device(3)]; 2],
        token: None,
    };
    state.apply(&Command::CreateVolume(create)).unwrap();
    let (node, mode) = (NodeId(1), AttachMode::ReadWrite);
    let attach = Attach { volume: VOLUME, node, session: session(1), attempt: 1, mode, takeover: false };
    state.apply(&Command::Attach(attach)).unwrap();
    state
}

fn set(state: &mut State, lane: u16, version: u64, in_sync: &[u64]) {
    let in_sync = in_sync.iter().map(|number| device(*number)).collect();
    let cas = LaneCas { volume: VOLUME, lane, epoch: Epoch(1), version, in_sync, clean: None, base: None };
    state.apply(&Command::LaneCas(vec![cas])).unwrap();
}

fn report(joiner: Option<u64>) -> Reports {
    let join = joiner.map(|number| {
        json!({
            "device": device(number), "chunks_done": 1, "chunks_total": 2, "copied_bytes": 4096,
            "compared_bytes": 8192,
        })
    });
    let lanes = json!([{ "lane": 0, "join": null }, { "lane": 1, "join": join }]);
    let volume = json!({ "id": VOLUME.to_string(), "status": { "health": "degraded", "lanes": lanes } });
    [(NodeId(1), Some(json!({ "volumes": [volume] })))].into()
}

fn operations(state: &State, reports: &Reports) -> Vec<Operation> {
    operations_of(state, state.volume(VOLUME).unwrap(), reports)
}

#[test]
fn a_whole_volume_has_nothing_to_do() {
    assert!(!has_work(&state(), state().volume(VOLUME).unwrap()));
    assert_eq!(operations(&state(), &report(None)), vec![]);
}

#[test]
fn a_member_that_is_out_rejoins_and_says_how_far_it_is() {
    let mut state = state();
    set(&mut state, 0, 0, &[1, 2]);
    set(&mut state, 1, 0, &[1, 2]);
    set(&mut state, 0, 1, &[1, 2, 3]);
    let [rejoin] = &operations(&state, &report(Some(3)))[..] else { panic!("one operation") };
    assert_eq!((rejoin.id.as_str(), rejoin.state), ("rejoin-v-1-00000003", OperationState::Running));
    assert_eq!((rejoin.lanes_done, rejoin.lanes_total, rejoin.percent), (1, 2, 75.0));
    assert_eq!((rejoin.copied_bytes, rejoin.compared_bytes, rejoin.cancellable), (4096, 8192, false));
    let before = Operation { percent: 65.0, copied_bytes: 0, compared_bytes: 0, ..rejoin.clone() };
    let paced = with_pace(rejoin.clone(), Some(&before), 0.5);
    assert_eq!((paced.rate_bytes_per_s, paced.eta_s), (Some(24_576), Some(2)));
    set(&mut state, 1, 1, &[1, 2, 3]);
    assert_eq!(operations(&state, &report(None)), vec![]);
    assert_eq!(finished(&state, "rejoin-v-1-00000003").unwrap().state, OperationState::Done);
    assert_eq!(finished(&state, "rejoin-v-1-00000004"), None, "it is no member");
    assert_eq!(finished(&state, "rejoin-w-00000003"), None);
    assert_eq!(finished(&state, "nonsense"), None);
}

#[test]
fn a_replacement_is_named_after_who_leaves_and_keeps_its_name() {
    let mut state = state();
    let (leaving, joining) = (device(3), device(4));
    state.apply(&Command::ReplaceDevice { volume: VOLUME, leaving, joining }).unwrap();
    let [replace] = &operations(&state, &report(Some(4)))[..] else { panic!("one operation") };
    let expected = ("replace-v-1-00000003", Some(leaving), joining, true);
    assert_eq!((replace.id.as_str(), replace.leaving, replace.device, replace.cancellable), expected);
    assert_eq!(finished(&state, &replace.id).map(|done| done.state), Some(OperationState::Done), "if not listed");
    set(&mut state, 0, 0, &[1, 2, 4]);
    set(&mut state, 1, 0, &[1, 2, 4]);
    assert_eq!(operations(&state, &report(None)), vec![]);
    assert_eq!(finished(&state, "replace-v-1-00000003").unwrap().state, OperationState::Done);
}

#[test]
fn what_it_waits_for_is_said() {
    let mut state = state();
    set(&mut state, 0, 0, &[1, 2]);
    let reason = |state: &State, reports: &Reports| operations(state, reports)[0].reason.clone().unwrap();
    assert!(reason(&state, &report(None)).contains("its turn"));
    assert!(reason(&state, &[(NodeId(1), None)].into()).contains("n1, which has the volume, does not answer"));
    let (id, liveness) = (NodeId(3), Liveness::Down);
    state.apply(&Command::SetNodeLiveness { id, session: session(3), liveness }).unwrap();
    assert_eq!(reason(&state, &report(None)), "node n3 is not up; start it");
    state.apply(&Command::SetDeviceState { id: device(3), state: DeviceState::Failed }).unwrap();
    assert!(reason(&state, &report(None)).contains("has failed; replace it"));
}

#[test]
fn what_to_do_about_a_holder_that_is_down_is_said() {
    let mut state = state();
    set(&mut state, 0, 0, &[1, 2]);
    let silent: Reports = [(NodeId(1), None)].into();
    let (id, liveness) = (NodeId(1), Liveness::Down);
    state.apply(&Command::SetNodeLiveness { id, session: session(1), liveness }).unwrap();
    let reason = operations(&state, &silent)[0].reason.clone().unwrap();
    let advice = ["node n1", "is down", "`ashlar volume attach v-1 --node NODE`", "`ashlar volume detach v-1`"];
    assert!(advice.iter().all(|word| reason.contains(word)), "{reason}");
    let view = json!(volume_view(&state, state.volume(VOLUME).unwrap(), &silent, false));
    let shown = view["reason"].as_str().unwrap();
    assert!(view["health"] == "degraded" && shown.contains(&reason), "{view}");
    // It is back: what its daemon had is over, and no person is needed.
    let node = NodeSpec { session: session(9), ..spec(1) };
    state.apply(&Command::UpdateNode { id, node }).unwrap();
    let idle: Reports = [(NodeId(1), Some(json!({ "volumes": [] })))].into();
    let reason = operations(&state, &idle)[0].reason.clone().unwrap();
    assert!(reason.contains("a caretaker begins soon"), "{reason}");
}
