//! Clusters made by commands, as daemons would make them.

use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::{ClusterId, DeviceId, NodeId, SessionId, VolumeGeometry, VolumeId};
use ashlar_raft::command::{CreateVolume, NodeSpec};
use ashlar_raft::placement::{PlacementRequest, decide};
use ashlar_raft::state::entities::{Labels, Locality, Roles, Spread};
use ashlar_raft::{Command, State};

/// How a cluster is built.
#[derive(Clone, Copy)]
pub struct Shape {
    pub nodes: u64,
    pub devices_per_node: u64,
    /// 1: no zones.
    pub zones: u64,
    /// Racks of all zones; 1: no racks.
    pub racks: u64,
    pub device_bytes: u64,
}

impl Shape {
    pub fn devices(&self) -> u64 {
        self.nodes * self.devices_per_node
    }

    /// The founded cluster with its nodes and devices, and no volume.
    pub fn build(&self) -> State {
        let mut state = State::default();
        let mut must = |command: Command| state.apply(&command).expect("the cluster can be built");
        for number in 1..=self.nodes {
            let node = self.node(number);
            let command = match number {
                1 => Command::InitCluster {
                    cluster: ClusterId::from_u128(1),
                    name: "scale".into(),
                    node_id: NodeId(1),
                    node,
                },
                _ => Command::AddNode { id: Some(NodeId(number)), node },
            };
            must(command);
            for ordinal in 0..self.devices_per_node {
                // Identities are random in life: neighbours by identity are not neighbours in the rack.
                let seed = number * 1_000 + ordinal;
                let id = u128::from(mixed(seed)) << 64 | u128::from(seed);
                must(Command::AddDevice {
                    id: DeviceId::from_u128(id),
                    node: NodeId(number),
                    name: format!("/dev/nvme{ordinal}n1"),
                    class: "nvme".into(),
                    capacity_bytes: self.device_bytes,
                    ordinal: ordinal as u32,
                });
            }
        }
        state
    }

    fn node(&self, number: u64) -> NodeSpec {
        let rack = number % self.racks;
        let zone = rack % self.zones;
        let labels = Labels {
            region: None,
            zone: (self.zones > 1).then(|| format!("zone-{zone}")),
            rack: (self.racks > 1).then(|| format!("rack-{rack}")),
        };
        NodeSpec {
            name: format!("node-{number}"),
            api_address: format!("10.{}.{}.1:7000", number / 256, number % 256),
            data_address: format!("10.{}.{}.1:7001", number / 256, number % 256),
            labels,
            roles: Roles { store: true, target: true, meta: number <= 5 },
            session: SessionId::from_u128(u128::from(number)),
            shards: 4,
        }
    }
}

/// A volume of the default policy.
pub fn request(number: u64, size_bytes: u64, lane_count: u16) -> PlacementRequest {
    PlacementRequest {
        volume: VolumeId::from_u128(u128::from(mixed(number)) << 64 | u128::from(number)),
        geometry: VolumeGeometry { size_bytes, lane_count },
        replicas: 3,
        spread: Spread::default(),
        locality: Locality::None,
        attach_node: None,
        class: None,
    }
}

/// The command that creates it where the planner says.
pub fn planned(state: &State, request: &PlacementRequest, number: u64) -> Command {
    let decision = decide(state, request).expect("the cluster has room");
    Command::CreateVolume(CreateVolume {
        id: request.volume,
        name: format!("volume-{number}"),
        labels: Default::default(),
        geometry: request.geometry,
        replicas: request.replicas,
        quorum: QuorumPolicy::Majority,
        in_sync_min: 1,
        spread: request.spread,
        locality: request.locality,
        class: None,
        lanes: decision.lanes,
        token: Some(format!("token-{number}")),
    })
}

/// A number that looks random (splitmix64).
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
