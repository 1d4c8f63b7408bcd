//! The sizing of the specification, measured: `cargo test -p ashlar-raft --release --test scale -- --ignored --nocapture`.

mod fixture;

use ashlar_model::{NodeId, VolumeGeometry, VolumeId};
use ashlar_raft::codec::{self, Kind};
use ashlar_raft::placement::{PlacementRequest, plan};
use ashlar_raft::state::decode_snapshot;
use ashlar_raft::{Command, State};
use fixture::*;
use std::time::Instant;

#[test]
#[ignore = "a measurement, a minute long"]
fn a_petabyte() {
    let (nodes, devices, volumes) = (1_000u64, 10_000u64, 100_000u128);
    let mut state: State = cluster(&[Some("z")]);
    for number in 2..=nodes {
        let mut spec = node_spec(number, Some(["a", "b", "c"][number as usize % 3]));
        spec.api_address = format!("n{number}:1");
        state.apply(&Command::AddNode { id: Some(NodeId(number)), node: spec }).unwrap();
    }
    for number in 2..=devices {
        state.apply(&add_device(number, number % nodes + 1)).unwrap();
    }
    let start = Instant::now();
    let request = PlacementRequest {
        volume: VolumeId::from_u128(0),
        geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 8 },
        replicas: 3,
        spread: Default::default(),
        locality: Default::default(),
        attach_node: None,
        class: None,
    };
    let placement = plan(&state, &request).unwrap();
    println!("plan of 8 lanes on {devices} devices: {:?}", start.elapsed());
    drop(placement);
    let start = Instant::now();
    for number in 0..volumes {
        let set = |lane: u64| {
            let first = (number as u64 * 7 + lane * 13) % (devices - 3) + 1;
            vec![device(first), device(first + 1), device(first + 2)]
        };
        let mut create = create(VolumeId::from_u128(number), &format!("v{number}"), (0..8).map(set).collect());
        create.token = Some(format!("t{number}"));
        state.apply(&Command::CreateVolume(create)).unwrap();
    }
    println!("{volumes} creates applied in {:?}", start.elapsed());
    let start = Instant::now();
    let copy = state.clone();
    println!("copy of the state: {:?}", start.elapsed());
    let start = Instant::now();
    let record = codec::encode(Kind::State, &copy).unwrap();
    println!("encoded {} MiB in {:?}", record.len() >> 20, start.elapsed());
    let start = Instant::now();
    let decoded = decode_snapshot(&record).unwrap();
    println!("decoded in {:?}", start.elapsed());
    assert_eq!(decoded, state);
    let start = Instant::now();
    println!("{} replicas on one device, found in {:?}", state.replicas_on(device(77)).count(), start.elapsed());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}
