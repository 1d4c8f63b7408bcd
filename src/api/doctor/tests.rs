//! Findings of a small cluster, as things go wrong.

use super::*;
use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::{ClusterId, DeviceId, NodeId, SessionId, VolumeGeometry, VolumeId};
use ashlar_raft::Command;
use ashlar_raft::command::{CreateVolume, NodeSpec};
use ashlar_raft::state::entities::{Labels, Locality, Roles, Spread};
use serde_json::json;

fn device(number: u64) -> DeviceId {
    DeviceId::from_u128(u128::from(number) << 96)
}

/// Three nodes with a device each, and a volume on all of them.
fn state(replicas: u8) -> State {
    let mut state = State::default();
    for number in 1..=3u64 {
        let node = NodeSpec {
            name: format!("n{number}"),
            api_address: format!("127.0.0.1:{number}"),
            data_address: format!("127.0.0.1:{number}"),
            labels: Labels { zone: Some("z".into()).filter(|_| number > 1), ..Labels::default() },
            roles: Roles { store: true, target: true, meta: true },
            session: SessionId::from_u128(u128::from(number)),
            shards: 1,
        };
        let (cluster, name, node_id) = (ClusterId::from_u128(1), "c".to_owned(), NodeId(1));
        let command = match number {
            1 => Command::InitCluster { cluster, name, node_id, node },
            _ => Command::AddNode { id: None, node },
        };
        state.apply(&command).unwrap();
        let (name, class, capacity_bytes) = ("/dev/x".to_owned(), "ssd".to_owned(), 1 << 30);
        let id = device(number);
        state.apply(&Command::AddDevice { id, node: NodeId(number), name, class, capacity_bytes, ordinal: 0 }).unwrap();
    }
    let create = CreateVolume {
        id: VolumeId::from_u128(1),
        name: "v".into(),
        labels: Default::default(),
        geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 2 },
        replicas,
        quorum: QuorumPolicy::Majority,
        in_sync_min: 1,
        spread: Spread::default(),
        locality: Locality::None,
        class: None,
        lanes: vec![(1..=u64::from(replicas)).map(device).collect(); 2],
        token: None,
    };
    state.apply(&Command::CreateVolume(create)).unwrap();
    state
}

/// Every node reports its device, with these numbers.
fn reports(used_bytes: u64, bad_blocks: u64) -> Reports {
    let report = |number: u64| {
        let open = json!({
            "id": device(number), "used_bytes": used_bytes, "bad_blocks": bad_blocks, "repaired_blocks": 1, "failed": null,
        });
        (NodeId(number), Some(json!({ "devices": [open] })))
    };
    (1..=3).map(report).collect()
}

fn codes(state: &State, reports: &Reports) -> Vec<(Severity, &'static str)> {
    examine(state, reports).iter().map(|finding| (finding.severity, finding.code)).collect()
}

fn silence(state: &mut State, node: u64, liveness: Liveness) {
    let session = SessionId::from_u128(u128::from(node));
    state.apply(&Command::SetNodeLiveness { id: NodeId(node), session, liveness }).unwrap();
}

#[test]
fn a_whole_cluster_has_no_findings_and_a_single_copy_is_a_note() {
    assert_eq!(codes(&state(3), &reports(0, 1)), []);
    assert_eq!(codes(&state(1), &reports(0, 0)), [(Severity::Note, "volume_single_copy")]);
}

#[test]
fn lost_nodes_say_what_becomes_of_their_lanes() {
    let mut state = state(3);
    silence(&mut state, 3, Liveness::Down);
    let found = examine(&state, &reports(0, 0));
    assert_eq!((found[0].code, found[1].code), ("node_down", "volume_degraded"));
    assert_eq!(found[0].why, "its 2 lanes are rebuilt elsewhere 10 min after it fell silent");
    silence(&mut state, 2, Liveness::Down);
    let found = examine(&state, &reports(0, 0));
    let braked = "its 2 lanes are not rebuilt: all nodes of zone z are silent: it is expected to come back as it was";
    assert_eq!((found[0].why.as_str(), found[2].code), (braked, "volume_unavailable"));
    silence(&mut state, 2, Liveness::Up);
    silence(&mut state, 3, Liveness::Out);
    let found = examine(&state, &reports(0, 0));
    let codes = found.iter().map(|finding| finding.code).collect::<Vec<_>>();
    assert_eq!(codes, ["node_out", "volume_degraded", "moves_wait"]);
    assert!(found[2].why.contains("no device can take it"), "{}", found[2].why);
    state.apply(&Command::SetSetting { key: "moves_max".into(), value: 0 }).unwrap();
    assert!(examine(&state, &reports(0, 0)).iter().any(|finding| finding.code == "moves_stopped"));
}

#[test]
fn devices_that_fail_decay_fill_up_or_are_not_there_are_told() {
    let mut state = state(3);
    let device_codes = |state: &State, reports: &Reports| {
        let codes = codes(state, reports).into_iter().filter(|(_, code)| code.starts_with("device"));
        codes.collect::<Vec<_>>()
    };
    assert_eq!(device_codes(&state, &reports(0, 2)), [(Severity::Warning, "device_decays"); 3]);
    assert_eq!(device_codes(&state, &reports(920 << 20, 0)), [(Severity::Warning, "device_nearly_full"); 3]);
    let mut away = reports(0, 0);
    away.insert(NodeId(2), Some(json!({ "devices": [] })));
    assert_eq!(device_codes(&state, &away), [(Severity::Error, "device_not_serving")]);
    away.insert(NodeId(2), None);
    assert_eq!(device_codes(&state, &away), [], "the node itself is told of elsewhere");
    state.apply(&Command::SetDeviceState { id: device(2), state: DeviceState::Failed }).unwrap();
    assert_eq!(device_codes(&state, &reports(0, 0)), [(Severity::Warning, "device_failed")]);
}

#[test]
fn many_findings_of_a_kind_are_counted() {
    let many = vec![finding(Severity::Note, "x", "x", "", ""); 25];
    let told = limited(many);
    assert_eq!((told.len(), told[TOLD_MAX].what.as_str()), (TOLD_MAX + 1, "and 15 more like these"));
}
