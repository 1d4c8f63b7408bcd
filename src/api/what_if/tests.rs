//! Questions about four nodes.

use super::*;
use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::{ClusterId, NodeId, VolumeGeometry, VolumeId};
use ashlar_raft::command::CreateVolume;
use ashlar_raft::state::entities::{Locality, Spread};

/// Four nodes with a device of 1 TiB each; a volume of two lanes on the first three.
fn state() -> State {
    let mut state = State::default();
    for number in 1..=4u64 {
        let session = SessionId::from_u128(u128::from(number));
        let node = NodeSpec { session, ..new_node(&format!("n{number}")) };
        let (cluster, name, node_id) = (ClusterId::from_u128(1), "c".to_owned(), NodeId(1));
        let command = match number {
            1 => Command::InitCluster { cluster, name, node_id, node },
            _ => Command::AddNode { id: None, node },
        };
        state.apply(&command).unwrap();
        let (name, class, id) = ("/dev/x".to_owned(), "ssd".to_owned(), device(number));
        let capacity_bytes = 1 << 40;
        state.apply(&Command::AddDevice { id, node: NodeId(number), name, class, capacity_bytes, ordinal: 0 }).unwrap();
    }
    let create = CreateVolume {
        id: VolumeId::from_u128(1),
        name: "v".into(),
        labels: Default::default(),
        geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 2 },
        replicas: 3,
        quorum: QuorumPolicy::Majority,
        in_sync_min: 1,
        spread: Spread::default(),
        locality: Locality::None,
        class: None,
        lanes: vec![(1..=3).map(device).collect(); 2],
        token: None,
    };
    state.apply(&Command::CreateVolume(create)).unwrap();
    state.apply(&Command::SetSetting { key: "balance_percent".into(), value: 0 }).unwrap();
    state
}

fn device(number: u64) -> DeviceId {
    DeviceId::from_u128(u128::from(number) << 96)
}

fn ask(question: Value) -> Result<Value, Problem> {
    let state = state();
    let before = state.clone();
    let answer = answer(&state, &serde_json::from_value(question).unwrap());
    assert_eq!(state, before, "nothing is changed");
    answer
}

#[test]
fn the_loss_of_a_node_moves_its_lanes_and_degrades_volumes_until_then() {
    let answer = ask(json!({ "lose": ["n3"] })).unwrap();
    let moves = json!([{ "reason": "node-out", "lanes": 2, "bytes_max": 1 << 30 }]);
    assert_eq!((&answer["moves"], &answer["to"][0]["node"]), (&moves, &json!("n4")));
    assert_eq!(
        (&answer["degraded"], &answer["unavailable"]["count"]),
        (&json!({ "count": 1, "names": ["v"] }), &json!(0))
    );
    let answer = ask(json!({ "lose": ["n3", "n2"] })).unwrap();
    assert_eq!(answer["unavailable"]["names"], json!(["v"]));
    let answer = ask(json!({ "drain": ["n3"], "lose": [device(4).to_string()] })).unwrap();
    assert_eq!((answer["lanes"].as_u64(), answer["blocked"].as_array().unwrap().len()), (Some(0), 2));
}

#[test]
fn new_devices_on_new_nodes_with_labels_get_lanes() {
    let added = json!([{ "node": "n9", "size": "1TiB" }]);
    let answer = ask(json!({ "drain": ["n3"], "lose": ["n4"], "add": added })).unwrap();
    assert_eq!((&answer["to"][0]["node"], answer["blocked"].as_array().unwrap().len()), (&json!("n9"), 0));
    // A zone of its own draws a member of each lane.
    let label = json!([{ "node": "n9", "key": "zone", "value": "b" }, { "node": "n1", "key": "zone", "value": "a" }]);
    let answer = ask(json!({ "add": added, "label": label })).unwrap();
    assert_eq!(answer["moves"], json!([{ "reason": "spread", "lanes": 2, "bytes_max": 1 << 30 }]));
}

#[test]
fn what_does_not_exist_or_makes_no_sense_is_said() {
    assert_eq!(ask(json!({ "lose": ["n8"] })).unwrap_err().code, "device_not_found");
    let label = |node: &str, key: &str| json!({ "label": [{ "node": node, "key": key, "value": "b" }] });
    assert_eq!(ask(label("n8", "zone")).unwrap_err().code, "node_not_found");
    assert_eq!(ask(label("n1", "room")).unwrap_err().code, "invalid");
    assert_eq!(ask(json!({ "add": [{ "node": "n1", "size": "big" }] })).unwrap_err().code, "invalid");
    assert_eq!(ask(json!({ "add": [{ "node": "n1", "size": "1" }] })).unwrap_err().code, "invalid");
}
