//! The planner on ten thousand random clusters: what is hard holds, what is soft gives way only when it must, devices
//! fill evenly, and the explanation says what the decision did.

mod fixture;

use ashlar_model::{DeviceId, NodeId, VolumeGeometry, VolumeId};
use ashlar_raft::placement::{Explanation, Placement, PlacementRequest, Rule, domain_of, plan};
use ashlar_raft::settings::{OVERCOMMIT_PERCENT, RESERVE_DOMAIN_PERCENT, RESERVE_PERCENT};
use ashlar_raft::state::entities::{Admin, Device, DeviceState, Liveness, Locality, Node, Spread, SpreadLevel};
use ashlar_raft::{Command, Response, State};
use fixture::*;
use std::collections::{BTreeMap, BTreeSet};

const TOPOLOGIES: u64 = 10_000;
const LEVELS: [SpreadLevel; 3] = [SpreadLevel::Zone, SpreadLevel::Rack, SpreadLevel::Node];

/// The same numbers in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }

    /// True once in so many times.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn one_of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.below(choice.len() as u64) as usize]
    }
}

fn must(state: &mut State, command: &Command) {
    state.apply(command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"));
}

/// Up to twelve nodes in up to four zones and a few racks, some without labels, without devices, without the store role.
fn topology(dice: &mut Dice) -> State {
    let (nodes, zones, racks) = (1 + dice.below(12), 1 + dice.below(4), 1 + dice.below(3));
    let labels_missing = dice.one_of(&[0, 6]);
    let mut state = cluster(&[None]);
    for number in 1..=nodes {
        let mut spec = node_spec(number, None);
        let zone = dice.below(zones);
        let has_label = |dice: &mut Dice| labels_missing == 0 || !dice.once_in(labels_missing);
        spec.labels.zone = has_label(dice).then(|| format!("z{zone}"));
        spec.labels.rack = has_label(dice).then(|| format!("r{}", dice.below(racks)));
        spec.roles.store = number == 1 || !dice.once_in(8);
        let store = spec.roles.store;
        let command = match number {
            1 => Command::UpdateNode { id: NodeId(1), node: spec },
            _ => Command::AddNode { id: Some(NodeId(number)), node: spec },
        };
        must(&mut state, &command);
        for ordinal in 0..if store { dice.below(4) } else { 0 } {
            let Command::AddDevice { id, node, name, .. } = add_device(number * 10 + ordinal, number) else { continue };
            let class = dice.one_of(&["nvme", "nvme", "nvme", "hdd"]).to_owned();
            let capacity_bytes = dice.one_of(&[1 << 38, 1 << 40, 1 << 41]);
            let ordinal = 100 + ordinal as u32;
            must(&mut state, &Command::AddDevice { id, node, name, class, capacity_bytes, ordinal });
        }
    }
    state
}

/// Things that take nodes and devices out of the choice.
fn trouble(dice: &mut Dice, state: &mut State) {
    for number in state.nodes().map(|node| node.id.0).collect::<Vec<_>>() {
        if dice.once_in(8) {
            must(state, &set_liveness(number, dice.one_of(&[Liveness::Suspect, Liveness::Down])));
        }
        if dice.once_in(12) {
            must(state, &Command::SetNodeAdmin { id: NodeId(number), admin: Admin::Draining });
        }
        if dice.once_in(16) {
            let mut node = node_spec(number, None);
            node.labels = state.node(NodeId(number)).unwrap().labels.clone();
            node.roles.store = false;
            must(state, &Command::UpdateNode { id: NodeId(number), node });
        }
    }
    for id in state.devices().map(|device| device.id).collect::<Vec<_>>() {
        if dice.once_in(12) {
            let device_state = dice.one_of(&[DeviceState::Full, DeviceState::Failed, DeviceState::Draining]);
            must(state, &Command::SetDeviceState { id, state: device_state });
        }
    }
}

fn any_request(dice: &mut Dice, state: &State, number: u64) -> PlacementRequest {
    let nodes = state.nodes().count() as u64;
    let lane_count = 1 + dice.below(8) as u16;
    // Mostly small beside the devices; sometimes so large that devices fill up.
    let lane_bytes = dice.one_of(&[1u64 << 30, 1 << 32, 1 << 38]);
    PlacementRequest {
        volume: VolumeId::from_u128(u128::from(number)),
        geometry: VolumeGeometry { size_bytes: lane_bytes * u64::from(lane_count), lane_count },
        replicas: 1 + dice.below(3) as u8,
        spread: Spread { level: dice.one_of(&LEVELS), soft: dice.once_in(2) },
        locality: dice.one_of(&[Locality::None, Locality::None, Locality::Prefer, Locality::Require]),
        attach_node: (!dice.once_in(4)).then(|| NodeId(1 + dice.below(nodes))),
        class: dice.once_in(4).then(|| "nvme".to_owned()),
    }
}

fn create_planned(state: &mut State, request: &PlacementRequest, placement: &Placement) {
    let mut create = create(request.volume, &format!("v{}", request.volume), placement.lanes.clone());
    (create.spread, create.geometry, create.replicas) = (request.spread, request.geometry, request.replicas);
    (create.locality, create.class) = (request.locality, request.class.clone());
    assert_eq!(state.apply(&Command::CreateVolume(create)), Ok(Response::Volume(request.volume)));
}

/// The test's own reading of the rules but for room: what the planner's explanation is held against.
fn is_usable(request: &PlacementRequest, node: &Node, device: &Device) -> bool {
    request.class.as_ref().is_none_or(|class| *class == device.class)
        && node.roles.store
        && node.admin == Admin::Active
        && node.liveness == Liveness::Up
        && device.state == DeviceState::In
        && (request.spread.soft || domain_of(node, request.spread.level).is_some())
}

fn check_explanation(state: &State, request: &PlacementRequest, explanation: &Explanation) {
    let ids = |note: &ashlar_raft::placement::CandidateNote| note.device;
    let noted = explanation.candidates.iter().map(ids).collect::<Vec<_>>();
    assert_eq!(noted, state.devices().map(|device| device.id).collect::<Vec<_>>(), "every device is explained");
    for note in &explanation.candidates {
        let (node, device) = (state.node(note.node).unwrap(), state.device(note.device).unwrap());
        let lane_bytes = ashlar_raft::state::entities::lane_bytes(request.geometry);
        let has_room = note.committed_bytes + lane_bytes <= note.committed_bytes_max;
        assert_eq!(note.removed_by.is_none(), is_usable(request, node, device) && has_room, "{note:?}");
        assert_eq!(note.removed_by == Some(Rule::NoRoom), is_usable(request, node, device) && !has_room, "{note:?}");
    }
}

/// The test's own account of the reserve: capacity of the largest domain of the first level that has more than three.
fn check_account(state: &State, request: &PlacementRequest, explanation: &Explanation) {
    let account = explanation.capacity.as_ref().unwrap();
    let of_class = |device: &&Device| request.class.as_ref().is_none_or(|class| *class == device.class);
    let devices = || state.devices().filter(of_class).map(|device| (device, state.node(device.node).unwrap()));
    let counting = devices().filter(|(device, node)| {
        let is_kept = matches!(device.state, DeviceState::In | DeviceState::Full);
        is_kept && node.roles.store && node.admin == Admin::Active
    });
    let counting = counting.map(|(device, node)| (device.capacity_bytes, node)).collect::<Vec<_>>();
    let largest = LEVELS.into_iter().find_map(|level| {
        let mut sums = BTreeMap::<_, u64>::new();
        for (bytes, node) in &counting {
            *sums.entry(domain_of(node, level)?).or_default() += bytes;
        }
        (sums.len() > 3).then(|| sums.into_values().max().unwrap())
    });
    let percent = state.setting(&RESERVE_DOMAIN_PERCENT);
    let capacity = counting.iter().map(|(bytes, _)| bytes).sum::<u64>();
    assert_eq!(account.capacity_bytes, capacity);
    assert_eq!(account.reserve_bytes, largest.unwrap_or(0) * percent / 100);
    assert_eq!(account.reserve_domain.is_some(), account.reserve_bytes > 0);
    assert_eq!(account.committed_bytes, devices().map(|(device, _)| device.committed_bytes).sum::<u64>());
    let rate = u128::from(state.setting(&OVERCOMMIT_PERCENT) * (100 - state.setting(&RESERVE_PERCENT)));
    let most = u128::from(capacity - account.reserve_bytes) * rate / 10_000;
    assert_eq!(u128::from(account.committed_bytes_max), most);
}

fn check_placement(state: &State, request: &PlacementRequest, placement: &Placement) {
    let explanation = &placement.explanation;
    let account = explanation.capacity.as_ref().unwrap();
    if account.reserve_domain.is_some() {
        assert!(account.committed_bytes + account.wanted_bytes <= account.committed_bytes_max, "{account:?}");
    }
    let possible = explanation.candidates.iter().filter(|note| note.removed_by.is_none());
    let possible = possible.map(|note| (note.device, note)).collect::<BTreeMap<_, _>>();
    let lane_bytes = ashlar_raft::state::entities::lane_bytes(request.geometry);
    let mut taken = BTreeMap::<DeviceId, u64>::new();
    assert_eq!(placement.lanes.len(), usize::from(request.geometry.lane_count));
    for members in &placement.lanes {
        assert_eq!(members.len(), usize::from(request.replicas));
        let nodes = members.iter().map(|member| state.node_of_device(*member).unwrap()).collect::<Vec<_>>();
        assert_eq!(nodes.iter().map(|node| node.id).collect::<BTreeSet<_>>().len(), nodes.len(), "one node, one copy");
        for member in members {
            let note = possible.get(member).expect("a device that a rule removed was chosen");
            let taken = taken.entry(*member).or_default();
            *taken += lane_bytes;
            assert!(note.committed_bytes + *taken <= note.committed_bytes_max, "more than may be promised");
        }
        if !request.spread.soft {
            let domains = nodes.iter().map(|node| domain_of(node, request.spread.level).unwrap());
            assert_eq!(domains.collect::<BTreeSet<_>>().len(), nodes.len(), "a hard spread is kept");
        }
        if request.locality == Locality::Require {
            assert_eq!(Some(nodes[0].id), request.attach_node, "the local copy comes first");
        }
    }
    let is_scarce = taken
        .iter()
        .any(|(device, taken)| possible[device].committed_bytes_max - possible[device].committed_bytes < 4 * taken);
    if !is_scarce {
        check_soft(state, request, placement, &possible.keys().copied().collect::<Vec<_>>());
    }
}

/// With room everywhere, members are apart as far as the cluster allows, and a fall is said exactly when there is one.
fn check_soft(state: &State, request: &PlacementRequest, placement: &Placement, possible: &[DeviceId]) {
    let replicas = usize::from(request.replicas);
    let nodes = |devices: &[DeviceId]| {
        devices.iter().map(|device| state.node_of_device(*device).unwrap().clone()).collect::<Vec<_>>()
    };
    let there = nodes(possible);
    let labelled = |level| there.iter().filter_map(|node| domain_of(node, level)).collect::<BTreeSet<_>>().len();
    let must_fall = request.spread.soft && labelled(request.spread.level) < replicas;
    assert_eq!(placement.explanation.fallback.is_some(), must_fall);
    let domains = |nodes: &[Node], level| nodes.iter().map(|node| domain_of(node, level)).collect::<BTreeSet<_>>();
    let has_racks = there.iter().all(|node| node.labels.rack.is_some() && node.labels.zone.is_some());
    for members in &placement.lanes {
        let members = nodes(members);
        let level = request.spread.level;
        let most = domains(&there, level).len().min(replicas);
        assert_eq!(domains(&members, level).len(), most, "apart at the wanted level: {members:?}");
        if has_racks && level == SpreadLevel::Zone && must_fall {
            let most = domains(&there, SpreadLevel::Rack).len().min(replicas);
            assert_eq!(domains(&members, SpreadLevel::Rack).len(), most, "one level lower, not two: {members:?}");
        }
    }
}

/// A request that could be met is not refused.
fn check_refusal(state: &State, request: &PlacementRequest, reason: &str, explanation: &Explanation) {
    let usable = explanation.candidates.iter().filter(|note| note.removed_by.is_none()).collect::<Vec<_>>();
    let nodes = usable.iter().map(|note| state.node(note.node).unwrap()).collect::<Vec<_>>();
    let replicas = usize::from(request.replicas);
    let count = nodes.iter().map(|node| node.id).collect::<BTreeSet<_>>().len();
    let level = request.spread.level;
    let domains = nodes.iter().filter_map(|node| domain_of(node, level)).collect::<BTreeSet<_>>().len();
    let is_local = nodes.iter().any(|node| Some(node.id) == request.attach_node);
    let is_possible = count >= replicas
        && (request.spread.soft || domains >= replicas)
        && (request.locality != Locality::Require || is_local);
    if is_possible && reason.contains("beside the reserve") {
        let account = explanation.capacity.as_ref().unwrap();
        assert!(account.committed_bytes + account.wanted_bytes > account.committed_bytes_max, "{reason}");
        assert!(reason.contains(account.reserve_domain.as_ref().unwrap()), "{reason}");
    } else if is_possible {
        // Some device could take a lane, but not all lanes found their place.
        let lanes = u64::from(request.geometry.lane_count);
        let lane_bytes = ashlar_raft::state::entities::lane_bytes(request.geometry);
        let is_scarce = usable.iter().any(|n| n.committed_bytes_max - n.committed_bytes < lanes * lane_bytes);
        assert!(is_scarce, "refused without need: {reason}");
        assert!(reason.contains("no room"), "{reason}");
    } else {
        assert!(reason.contains("there are") || reason.contains("locality"), "{reason}");
    }
}

#[test]
fn ten_thousand_clusters() {
    let (mut placed, mut refused, mut fell) = (0, 0, 0);
    for seed in 0..TOPOLOGIES {
        let mut dice = Dice(seed);
        let mut state = topology(&mut dice);
        let mut set = |key: &str, values: &[u64]| {
            if dice.once_in(3) {
                must(&mut state, &Command::SetSetting { key: key.to_owned(), value: dice.one_of(values) });
            }
        };
        set("scatter_width", &[2, 4, 30]);
        set("overcommit_percent", &[50, 100, 1_000]);
        set("reserve_percent", &[0, 20]);
        set("reserve_domain_percent", &[0, 50]);
        for number in 0..4 {
            if number == 2 {
                trouble(&mut dice, &mut state);
            }
            let request = any_request(&mut dice, &state, seed << 8 | number);
            match plan(&state, &request) {
                Ok(placement) => {
                    assert_eq!(Ok(&placement), plan(&state, &request).as_ref(), "pure");
                    check_explanation(&state, &request, &placement.explanation);
                    check_account(&state, &request, &placement.explanation);
                    check_placement(&state, &request, &placement);
                    create_planned(&mut state, &request, &placement);
                    placed += 1;
                    fell += u64::from(placement.explanation.fallback.is_some());
                }
                Err(refusal) => {
                    check_explanation(&state, &request, &refusal.explanation);
                    check_account(&state, &request, &refusal.explanation);
                    check_refusal(&state, &request, &refusal.reason, &refusal.explanation);
                    assert!(!refusal.hint.is_empty());
                    refused += 1;
                }
            }
        }
    }
    println!("{placed} placed, {fell} of them one level lower, {refused} refused");
    assert!(placed > TOPOLOGIES && refused > TOPOLOGIES / 2 && fell > TOPOLOGIES / 10, "all ways were gone");
}

/// Equal devices, equal zones or none: after a hundred lanes per device none differs from the mean by more than 5 %.
#[test]
fn equal_devices_fill_evenly() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let zones = dice.one_of(&[0, 3, 4, 5]);
        let nodes = (4 + dice.below(20)).next_multiple_of(zones.max(1));
        let zone_names = (0..nodes).map(|n| (zones > 0).then(|| format!("z{}", n % zones.max(1)))).collect::<Vec<_>>();
        let mut state = cluster(&zone_names.iter().map(Option::as_deref).collect::<Vec<_>>());
        let per_node = 1 + dice.below(3);
        for number in 1..=nodes {
            for ordinal in 1..per_node {
                must(&mut state, &add_device(number + 1_000 * ordinal, number));
            }
        }
        let devices = nodes * per_node;
        let mut lanes = 0;
        let mut number = 0;
        while lanes < devices * 100 {
            let lane_count = dice.one_of(&[4u16, 8, 16]);
            let geometry = VolumeGeometry { size_bytes: u64::from(lane_count) << 28, lane_count };
            let replicas = if dice.once_in(5) { 2 } else { 3 };
            let volume = VolumeId::from_u128(u128::from(seed << 32 | number));
            let request = PlacementRequest {
                volume,
                geometry,
                replicas,
                spread: Spread::default(),
                locality: Locality::None,
                attach_node: None,
                class: None,
            };
            let placement = plan(&state, &request).unwrap();
            create_planned(&mut state, &request, &placement);
            lanes += u64::from(lane_count) * u64::from(replicas);
            number += 1;
        }
        let loads = state.devices().map(|device| device.committed_bytes as f64).collect::<Vec<_>>();
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let (least, most) = loads.iter().fold((f64::MAX, 0f64), |(a, b), load| (a.min(*load), b.max(*load)));
        let shape = format!("seed {seed}: {nodes} nodes, {per_node} devices each, {zones} zones");
        assert!(least >= 0.95 * mean && most <= 1.05 * mean, "{shape}: {least} to {most}, mean {mean}");
        let widest = state.devices_in_copysets().map(|(_, sets)| sets.partners().len()).max().unwrap();
        assert!(widest <= 16, "{shape}: a device has {widest} partners");
    }
}
