//! How likely it is that three devices that fail at the same moment hold every copy of some lane.
//!
//! Exact: each set of three devices that some lane uses is one of C(n, 3) equally likely losses. A draw of random
//! losses checks that count. Beside it: the same number of lanes, each on three random devices of different nodes.

use crate::cluster::{Shape, mixed, planned, request};
use ashlar_model::DeviceId;
use ashlar_raft::State;
use std::collections::{BTreeMap, HashSet};

const DEVICES: [u64; 4] = [30, 100, 300, 1_000];
const DEVICES_PER_NODE: u64 = 5;
const LANES_PER_DEVICE: u64 = 100;
const LANES_PER_VOLUME: u64 = 16;
const DRAWS: u64 = 10_000_000;

/// One policy in one cluster.
pub struct Policy {
    /// Sets of three devices that hold a lane.
    pub sets: usize,
    /// Share of all sets of three.
    pub exact: f64,
    /// Share of the draws that hit one.
    pub drawn: f64,
}

/// One cluster.
pub struct Row {
    pub devices: u64,
    pub lanes: u64,
    /// Most devices that one shares lanes with.
    pub widest: usize,
    pub copysets: Policy,
    pub random: Policy,
}

/// Three places, in order.
type Triple = [u32; 3];

/// Computes and prints the table.
pub fn run() -> Vec<Row> {
    println!(
        "three random devices fail at once: probability that a lane loses all its copies ({LANES_PER_DEVICE} lanes \
         of three copies on each device)"
    );
    println!(
        "{:>7} {:>8} {:>9} {:>8} {:>12} {:>12} {:>8} {:>12} {:>12} {:>7}",
        "devices", "lanes", "partners", "copysets", "exact", "drawn", "random", "exact", "drawn", "factor"
    );
    let rows = DEVICES.map(row);
    for row in &rows {
        let Row { devices, lanes, widest, copysets, random } = row;
        println!(
            "{devices:>7} {lanes:>8} {widest:>9} {:>8} {:>10.5} % {:>10.5} % {:>8} {:>10.5} % {:>10.5} % {:>7.1}",
            copysets.sets,
            copysets.exact * 100.0,
            copysets.drawn * 100.0,
            random.sets,
            random.exact * 100.0,
            random.drawn * 100.0,
            random.exact / copysets.exact,
        );
    }
    rows.into()
}

fn row(devices: u64) -> Row {
    let shape = Shape {
        nodes: devices / DEVICES_PER_NODE,
        devices_per_node: DEVICES_PER_NODE,
        zones: 1,
        racks: 1,
        device_bytes: 1 << 40,
    };
    let mut state = shape.build();
    let lanes = devices * LANES_PER_DEVICE / 3;
    let mut planned_lanes = 0;
    for number in 0.. {
        let lane_count = LANES_PER_VOLUME.min(lanes - planned_lanes);
        if lane_count == 0 {
            break;
        }
        let request = request(number, lane_count << 30, lane_count as u16);
        let command = planned(&state, &request, number);
        state.apply(&command).expect("what was planned can be created");
        planned_lanes += lane_count;
    }
    let places = state.devices().zip(0..).map(|(device, place)| (device.id, place)).collect::<BTreeMap<_, u32>>();
    let copysets = state.copysets().map(|set| sorted([0, 1, 2].map(|i| places[&set.members[i]]))).collect();
    let widest = state.devices_in_copysets().map(|(_, sets)| sets.partners().len()).max().unwrap_or(0);
    let random = random_sets(&state, &places, lanes);
    Row { devices, lanes, widest, copysets: policy(devices, &copysets), random: policy(devices, &random) }
}

/// Each lane on three random devices of different nodes.
fn random_sets(state: &State, places: &BTreeMap<DeviceId, u32>, lanes: u64) -> HashSet<Triple> {
    let nodes = state.devices().map(|device| device.node).collect::<Vec<_>>();
    assert_eq!(nodes.len(), places.len());
    let mut draws = Draws(1);
    let mut sets = HashSet::new();
    for _ in 0..lanes {
        let set = loop {
            let set = draws.triple(nodes.len() as u32);
            let [a, b, c] = set.map(|place| nodes[place as usize]);
            if a != b && b != c && a != c {
                break set;
            }
        };
        sets.insert(set);
    }
    sets
}

fn policy(devices: u64, sets: &HashSet<Triple>) -> Policy {
    let all = devices as f64 * (devices - 1) as f64 * (devices - 2) as f64 / 6.0;
    let mut draws = Draws(2);
    let hits = (0..DRAWS).filter(|_| sets.contains(&draws.triple(devices as u32))).count();
    Policy { sets: sets.len(), exact: sets.len() as f64 / all, drawn: hits as f64 / DRAWS as f64 }
}

/// The same random numbers in every run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        ((u128::from(mixed(self.0)) * u128::from(limit)) >> 64) as u32
    }

    /// Three different ones.
    fn triple(&mut self, limit: u32) -> Triple {
        loop {
            let triple = sorted([self.below(limit), self.below(limit), self.below(limit)]);
            if triple[0] != triple[1] && triple[1] != triple[2] {
                return triple;
            }
        }
    }
}

fn sorted(mut triple: Triple) -> Triple {
    triple.sort_unstable();
    triple
}
