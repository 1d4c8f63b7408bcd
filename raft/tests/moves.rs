//! Moves of members: what is decided in plain cases, and 10 000 random clusters brought to rest.

mod fixture;

use ashlar_model::cluster::LaneCas;
use ashlar_model::{DeviceId, NodeId, VolumeGeometry, VolumeId};
use ashlar_raft::command::Attach;
use ashlar_raft::placement::{self, Budget, Move, MovePlan, PlacementRequest, Reason, domain_of, moves, moves_within};
use ashlar_raft::state::entities::{Admin, AttachMode, DeviceState, Liveness, Locality, Node, Spread, SpreadLevel};
use ashlar_raft::{Command, Response, State};
use fixture::*;
use std::collections::{BTreeMap, BTreeSet};

const MIB: u64 = 1 << 20;

fn liveness(node: u64, liveness: Liveness) -> Command {
    Command::SetNodeLiveness { id: NodeId(node), session: session(node * 100), liveness }
}

fn admin(node: u64, admin: Admin) -> Command {
    Command::SetNodeAdmin { id: NodeId(node), admin }
}

fn begin(state: &mut State, moves: &[Move]) {
    for Move { volume, lane, leaving, joining, .. } in moves {
        let command = Command::MoveLanes { volume: *volume, lanes: vec![*lane], leaving: *leaving, joining: *joining };
        assert_eq!(state.apply(&command), Ok(Response::Done), "{volume} lane {lane}: {leaving} by {joining}");
    }
}

/// The writer of every volume with work to do copies and swaps; devices free what they shall.
fn copy_all(state: &mut State, attempt: &mut u64) {
    let ids = state.volumes().map(|volume| volume.id).collect::<Vec<_>>();
    for id in ids {
        let wants = |state: &State| {
            let volume = state.volume(id).unwrap();
            volume.lanes.iter().any(|lane| {
                let view = state.lane_view(lane);
                view.replacement.is_some() || view.in_sync.len() < view.members.len()
            })
        };
        if !wants(state) {
            continue;
        }
        // A writer on a node that is out would carry nothing out.
        let is_up = |node: &&Node| node.liveness == Liveness::Up;
        let (node, session) = state.nodes().find(is_up).map(|node| (node.id, node.session)).unwrap();
        let attach =
            |attempt, mode| Command::Attach(Attach { volume: id, node, session, attempt, mode, takeover: true });
        *attempt += 1;
        state.apply(&attach(*attempt, AttachMode::ReadWrite)).unwrap();
        let volume = state.volume(id).unwrap().clone();
        for (number, lane) in volume.lanes.iter().enumerate() {
            let view = state.lane_view(lane);
            let alive = |device: &&DeviceId| state.is_device_alive(**device);
            let mut in_sync = view.members.iter().filter(alive).copied().collect::<Vec<_>>();
            if in_sync.is_empty() || !view.in_sync.iter().any(|device| state.is_device_alive(*device)) {
                in_sync = view.in_sync.clone();
            }
            let (epoch, version) = (volume.epoch, view.version);
            let cas = LaneCas { volume: id, lane: number as u16, epoch, version, in_sync, clean: None, base: None };
            match state.apply(&Command::LaneCas(vec![cas])).unwrap() {
                Response::LaneCas(results) => assert!(results.iter().all(Result::is_ok), "{results:?}"),
                other => panic!("{other:?}"),
            }
        }
        *attempt += 1;
        state.apply(&attach(*attempt, AttachMode::ReadWrite)).unwrap();
    }
    let devices = state.devices().map(|device| device.id).collect::<Vec<_>>();
    for device in devices {
        let volumes = state.deleted_on(device).collect::<Vec<_>>();
        state.apply(&Command::Reclaimed { device, volumes }).unwrap();
    }
}

/// Four nodes, a volume of two lanes on the first three.
fn with_spare() -> State {
    let mut state = cluster(&[None; 4]);
    let lanes = vec![vec![device(1), device(2), device(3)]; 2];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    state
}

fn summary(plan: &MovePlan) -> Vec<(u16, DeviceId, DeviceId, Reason)> {
    plan.moves.iter().map(|one| (one.lane, one.leaving, one.joining, one.reason)).collect()
}

#[test]
fn a_node_that_is_down_keeps_its_lanes_and_one_that_is_out_gives_them_up() {
    let mut state = with_spare();
    state.apply(&Command::SetSetting { key: "balance_percent".into(), value: 0 }).unwrap();
    assert_eq!(moves(&state), MovePlan::default());
    state.apply(&liveness(3, Liveness::Down)).unwrap();
    assert_eq!(moves(&state), MovePlan::default());
    state.apply(&liveness(3, Liveness::Out)).unwrap();
    let plan = moves(&state);
    let expected = [0, 1].map(|lane| (lane, device(3), device(4), Reason::NodeOut));
    assert_eq!((summary(&plan), plan.wanted, plan.running), (expected.to_vec(), 2, 0));
    begin(&mut state, &plan.moves);
    let plan = moves(&state);
    assert_eq!((summary(&plan), plan.wanted, plan.running), (vec![], 0, 2), "they are under way");
}

#[test]
fn failed_drained_and_emptied_devices_give_up_their_lanes_and_the_worst_reason_comes_first() {
    let reason = |commands: &[Command]| {
        let mut state = with_spare();
        for command in commands {
            state.apply(command).unwrap();
        }
        moves(&state).moves.iter().map(|one| one.reason).collect::<BTreeSet<_>>()
    };
    let device_state = |state| Command::SetDeviceState { id: device(2), state };
    assert_eq!(reason(&[device_state(DeviceState::Failed)]), [Reason::DeviceFailed].into());
    assert_eq!(reason(&[device_state(DeviceState::Draining)]), [Reason::DeviceDraining].into());
    assert_eq!(reason(&[admin(2, Admin::Draining)]), [Reason::NodeDraining].into());
    let both = [admin(1, Admin::Draining), device_state(DeviceState::Failed)];
    assert_eq!(reason(&both), [Reason::DeviceFailed].into(), "one member of a lane at a time");
}

#[test]
fn lanes_with_fewest_copies_go_first_then_attached_volumes() {
    let mut state = cluster(&[None; 5]);
    let members = |numbers: [u64; 3]| vec![numbers.map(device).to_vec()];
    for (number, name) in [(1u128, "idle"), (2, "attached"), (3, "thin")] {
        state.apply(&Command::CreateVolume(create(VolumeId::from_u128(number), name, members([1, 2, 3])))).unwrap();
    }
    for number in [2, 3] {
        let (volume, mode) = (VolumeId::from_u128(number), AttachMode::ReadWrite);
        let attach = Attach { volume, node: NodeId(1), session: session(100), attempt: 1, mode, takeover: false };
        state.apply(&Command::Attach(attach)).unwrap();
    }
    let thin = LaneCas { volume: VolumeId::from_u128(3), in_sync: vec![device(1)], ..change(1, 0, &[1]) };
    cas(&mut state, thin).unwrap();
    state.apply(&admin(3, Admin::Draining)).unwrap();
    let order = moves(&state).moves.iter().map(|one| one.volume.as_u128()).collect::<Vec<_>>();
    assert_eq!(order, [3, 2, 1]);
}

#[test]
fn a_device_that_dies_on_its_way_in_is_replaced_itself_and_nothing_else_of_the_lane() {
    let mut state = cluster(&[None; 5]);
    let lanes = vec![vec![device(1), device(2), device(3)]];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    state.apply(&admin(3, Admin::Draining)).unwrap();
    let first = moves(&state).moves;
    begin(&mut state, &first);
    let joining = first[0].joining;
    let spare = if joining == device(4) { device(5) } else { device(4) };
    // Another member shall go too: not now, the set counts it.
    state.apply(&Command::SetDeviceState { id: device(2), state: DeviceState::Draining }).unwrap();
    assert_eq!(summary(&moves(&state)), []);
    state.apply(&Command::SetDeviceState { id: joining, state: DeviceState::Failed }).unwrap();
    assert_eq!(summary(&moves(&state)), [(0, joining, spare, Reason::DeviceFailed)]);
}

#[test]
fn what_cannot_move_says_why() {
    let mut state = with_volume();
    state.apply(&admin(3, Admin::Draining)).unwrap();
    let plan = moves(&state);
    assert_eq!((plan.moves.len(), plan.waiting.len(), plan.wanted), (0, 2, 2));
    let why = "no device can take it: 3 hold the lane, or their node does";
    assert_eq!(plan.waiting[0].why.replace("its node", "their node"), why);
    // A lane that nobody can read is not moved: there is nothing to copy.
    let mut state = with_spare();
    for node in [1, 2, 3] {
        state.apply(&liveness(node, Liveness::Out)).unwrap();
    }
    let plan = moves(&state);
    assert_eq!(plan.waiting[0].why, "no copy of it answers; start a node that has one");
}

/// Volumes 1 and 2 of one lane each, on these devices; one move at a time.
fn two_volumes(nodes: usize, first: [u64; 3], second: [u64; 3]) -> State {
    let mut state = cluster(&vec![None; nodes]);
    for (number, members) in [(1, first), (2, second)] {
        let lanes = vec![members.map(device).to_vec()];
        let command = create(VolumeId::from_u128(number), &format!("v{number}"), lanes);
        state.apply(&Command::CreateVolume(command)).unwrap();
    }
    state.apply(&Command::SetSetting { key: "moves_max".into(), value: 1 }).unwrap();
    state
}

fn volumes_moved(plan: &MovePlan) -> Vec<u128> {
    plan.moves.iter().map(|one| one.volume.as_u128()).collect()
}

#[test]
fn a_lane_that_too_few_copies_can_open_takes_no_other_lanes_turn() {
    let mut state = two_volumes(7, [1, 2, 3], [3, 4, 5]);
    for node in [2, 3] {
        state.apply(&liveness(node, Liveness::Out)).unwrap();
    }
    let plan = moves(&state);
    assert_eq!((volumes_moved(&plan), plan.waiting.len(), plan.wanted), (vec![2], 1, 2));
    let why = "too few copies of it answer: 1 of the 2 that an open needs; start the nodes that have them";
    assert_eq!((plan.waiting[0].volume.as_u128(), plan.waiting[0].why.as_str()), (1, why));
    // The same when its change has begun before.
    let mut state = two_volumes(7, [1, 2, 3], [3, 4, 5]);
    state.apply(&admin(2, Admin::Draining)).unwrap();
    let first = moves(&state).moves;
    assert_eq!(first[0].volume.as_u128(), 1);
    begin(&mut state, &first);
    for node in [1, 3] {
        state.apply(&liveness(node, Liveness::Out)).unwrap();
    }
    let plan = moves(&state);
    assert_eq!((volumes_moved(&plan), plan.running), (vec![2], 1));
}

#[test]
fn a_volume_that_nobody_can_open_moves_none_of_its_lanes_and_one_that_is_open_those_that_it_can() {
    let mut state = cluster(&[None; 9]);
    let lanes = vec![[1, 2, 3].map(device).to_vec(), [4, 5, 6].map(device).to_vec()];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    let mut opened = state.clone();
    open(&mut opened, &attach(9, 1, false)).unwrap();
    let lanes_moved = |mut state: State| {
        state.apply(&liveness(2, Liveness::Out)).unwrap();
        state.apply(&liveness(3, Liveness::Out)).unwrap();
        state.apply(&admin(4, Admin::Draining)).unwrap();
        let plan = moves(&state);
        let waiting = plan.waiting.iter().map(|one| (one.lane, one.why.split(':').next().unwrap().to_owned()));
        (plan.moves.iter().map(|one| one.lane).collect::<Vec<_>>(), waiting.collect::<Vec<_>>())
    };
    let few = (0, "too few copies of it answer".to_owned());
    assert_eq!(lanes_moved(state), (vec![], vec![few.clone(), (1, "nobody can open the volume".to_owned())]));
    assert_eq!(lanes_moved(opened), (vec![1], vec![few]));
}

#[test]
fn a_volume_whose_holder_is_silent_takes_no_others_turn_until_its_run_is_over() {
    let mut state = two_volumes(7, [1, 2, 3], [3, 4, 5]);
    let (volume, mode) = (VolumeId::from_u128(1), AttachMode::ReadWrite);
    let attach = Attach { volume, node: NodeId(6), session: session(600), attempt: 1, mode, takeover: false };
    state.apply(&Command::Attach(attach)).unwrap();
    state.apply(&admin(3, Admin::Draining)).unwrap();
    assert_eq!(volumes_moved(&moves(&state)), [1]);
    let mut begun = state.clone();
    begin(&mut begun, &moves(&state).moves);
    for state in [&mut state, &mut begun] {
        state.apply(&liveness(6, Liveness::Down)).unwrap();
        assert_eq!(volumes_moved(&moves(state)), [2]);
    }
    let why =
        "node n6, to which the volume is attached, is silent; start it, or attach the volume elsewhere or detach it";
    assert_eq!(moves(&state).waiting[0].why, why);
    // Its daemon has started anew: a caretaker has the volume soon.
    let node = ashlar_raft::command::NodeSpec { session: session(601), ..node_spec(6, None) };
    state.apply(&Command::UpdateNode { id: NodeId(6), node }).unwrap();
    assert_eq!(volumes_moved(&moves(&state)), [1]);
}

#[test]
fn limits_hold_and_zero_stops_everything() {
    let mut state = cluster(&[None; 6]);
    let lanes = vec![vec![device(1), device(2), device(3)]; 20];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    state.apply(&admin(3, Admin::Draining)).unwrap();
    let set = |state: &mut State, key: &str, value| {
        state.apply(&Command::SetSetting { key: key.into(), value }).unwrap();
    };
    assert_eq!(moves(&state).moves.len(), 12, "four for each of three devices");
    assert_eq!(moves_within(&state, Budget::UNLIMITED, |_| true).moves.len(), 20);
    set(&mut state, "moves_max", 5);
    let plan = moves(&state);
    assert_eq!((plan.moves.len(), plan.wanted), (5, 20));
    begin(&mut state, &plan.moves[..3]);
    assert_eq!(moves(&state).moves.len(), 2, "those under way count");
    set(&mut state, "moves_max", 0);
    assert_eq!(moves(&state).moves.len(), 0);
}

#[test]
fn members_move_apart_when_there_are_more_zones() {
    let mut state = cluster(&[Some("a"), Some("a"), Some("a")]);
    let lanes = vec![vec![device(1), device(2), device(3)]; 2];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    assert_eq!(moves(&state), MovePlan::default(), "nowhere to go");
    for (number, zone) in [(4, "b"), (5, "c")] {
        state.apply(&Command::AddNode { id: None, node: node_spec(number, Some(zone)) }).unwrap();
        state.apply(&add_device(number, number)).unwrap();
    }
    let mut attempt = 0;
    for _ in 0..2 {
        let plan = moves(&state);
        assert!(plan.moves.iter().all(|one| one.reason == Reason::Spread), "{plan:?}");
        assert_eq!(plan.moves.len(), 2);
        begin(&mut state, &plan.moves);
        copy_all(&mut state, &mut attempt);
    }
    for lane in &state.volume(VOLUME).unwrap().lanes {
        let zones =
            state.lane_view(lane).members.iter().map(|device| zone_of(&state, *device)).collect::<BTreeSet<_>>();
        assert_eq!(zones.len(), 3);
    }
}

fn zone_of(state: &State, device: DeviceId) -> Option<String> {
    state.node_of_device(device).and_then(|node| node.labels.zone.clone())
}

#[test]
fn a_volume_that_stays_somewhere_gets_its_copies_there_and_keeps_them() {
    let mut state = cluster(&[None; 4]);
    let mut command = create(VOLUME, "v", vec![vec![device(1), device(2), device(3)]; 2]);
    command.locality = Locality::Prefer;
    state.apply(&Command::CreateVolume(command)).unwrap();
    state.apply(&Command::SetSetting { key: "balance_percent".into(), value: 0 }).unwrap();
    assert_eq!(moves(&state), MovePlan::default(), "it is attached nowhere");
    state.apply(&Command::Attach(attach(4, 1, false))).unwrap();
    assert_eq!(moves_within(&state, Budget::of(&state), |_| false), MovePlan::default(), "it may not stay");
    let plan = moves(&state);
    let came = plan.moves.iter().map(|one| (one.lane, one.joining, one.reason)).collect::<Vec<_>>();
    assert_eq!(came, [0, 1].map(|lane| (lane, device(4), Reason::Locality)));
    begin(&mut state, &plan.moves);
    for lane in [0, 1] {
        let members = state.lane_view(&state.volume(VOLUME).unwrap().lanes[usize::from(lane)]).members;
        let (epoch, version) = (state.volume(VOLUME).unwrap().epoch, 0);
        let swap = LaneCas { volume: VOLUME, lane, epoch, version, in_sync: members, clean: None, base: None };
        cas(&mut state, swap).unwrap();
    }
    // Device 4 is the fullest now, and keeps what is wanted there.
    state.apply(&Command::SetSetting { key: "balance_percent".into(), value: 1 }).unwrap();
    assert!(moves(&state).moves.iter().all(|one| one.leaving != device(4)), "{:?}", moves(&state));
}

#[test]
fn nothing_is_evened_out_while_somebody_is_away() {
    let mut state = with_spare();
    assert_eq!(moves(&state).moves.len(), 1, "device 4 is empty");
    state.apply(&liveness(2, Liveness::Suspect)).unwrap();
    assert_eq!(moves(&state).moves.len(), 0);
}

#[test]
fn a_member_that_has_a_place_goes_before_one_that_has_none() {
    let mut state = cluster(&["a", "b", "c", "b"].map(Some));
    let mut command = create(VOLUME, "v", vec![vec![device(1), device(2), device(3)]]);
    command.spread = Spread { level: SpreadLevel::Zone, soft: false };
    state.apply(&Command::CreateVolume(command)).unwrap();
    for node in [1, 2] {
        state.apply(&admin(node, Admin::Draining)).unwrap();
    }
    let plan = moves(&state);
    assert_eq!(summary(&plan), [(0, device(2), device(4), Reason::NodeDraining)]);
    assert_eq!((plan.waiting.len(), plan.wanted), (0, 1), "device 1 has its turn later");
}

#[test]
fn a_lane_that_only_waits_holds_up_no_evenness() {
    let mut state = with_spare();
    state.apply(&Command::SetSetting { key: "balance_percent".into(), value: 5 }).unwrap();
    let Command::AddDevice { id, node, name, capacity_bytes, ordinal, .. } = add_device(5, 4) else { unreachable!() };
    let class = "hdd".to_owned();
    state.apply(&Command::AddDevice { id, node, name, class: class.clone(), capacity_bytes, ordinal }).unwrap();
    let mut command = create(VolumeId::from_u128(1), "alone", vec![vec![device(5)]]);
    command.class = Some(class);
    state.apply(&Command::CreateVolume(command)).unwrap();
    state.apply(&Command::SetDeviceState { id: device(5), state: DeviceState::Draining }).unwrap();
    let plan = moves(&state);
    assert_eq!((plan.waiting.len(), plan.moves.len(), plan.moves[0].reason), (1, 1, Reason::Balance));
}

#[test]
fn a_full_device_gives_lanes_to_emptier_ones_and_gets_none() {
    // As much is promised of every device; three more are empty later.
    let mut state = cluster(&[None; 3]);
    let lanes = vec![vec![device(1), device(2), device(3)]; 8];
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes))).unwrap();
    let full = |full| Command::MarkFull { id: device(2), full };
    state.apply(&full(true)).unwrap();
    assert_eq!(moves(&state), MovePlan::default(), "nowhere to go");
    state.apply(&Command::AddNode { id: None, node: node_spec(4, None) }).unwrap();
    state.apply(&add_device(4, 4)).unwrap();
    let mut attempt = 0;
    for _ in 0..20 {
        let plan = moves(&state);
        let is_right = |one: &Move| (one.joining, one.reason) == (device(4), Reason::Balance);
        assert!(plan.moves.iter().all(is_right), "{plan:?}");
        begin(&mut state, &plan.moves);
        copy_all(&mut state, &mut attempt);
    }
    let lanes = |number| state.device(device(number)).unwrap().lane_count;
    assert_eq!([1, 2, 3, 4].map(lanes).iter().sum::<u32>(), 24);
    assert!(lanes(2) <= 6 && lanes(4) >= 6, "{:?}", [1, 2, 3, 4].map(lanes));
    assert_eq!(moves(&state), MovePlan::default(), "at rest");
    state.apply(&full(false)).unwrap();
    assert_eq!(moves(&state), MovePlan::default(), "nothing goes back");
}

#[test]
fn a_full_device_of_which_little_is_promised_gives_all_the_same() {
    let mut state = cluster(&[None; 4]);
    let lanes = [[1, 2, 3], [1, 2, 3], [1, 3, 4], [1, 3, 4], [1, 2, 3]].map(|members| members.map(device).to_vec());
    state.apply(&Command::CreateVolume(create(VOLUME, "v", lanes.to_vec()))).unwrap();
    state.apply(&Command::SetSetting { key: "balance_percent".into(), value: 100 }).unwrap();
    assert_eq!(moves(&state), MovePlan::default(), "even enough");
    state.apply(&Command::MarkFull { id: device(1), full: true }).unwrap();
    let plan = moves(&state);
    assert!(!plan.moves.is_empty() && plan.moves.iter().all(|one| one.leaving == device(1)), "{plan:?}");
    state.apply(&admin(1, Admin::Draining)).unwrap();
    assert!(moves(&state).moves.iter().all(|one| one.reason == Reason::NodeDraining));
}

/// A small generator: the cases are the same on every machine.
struct Cases(u64);

impl Cases {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn random_cluster(cases: &mut Cases) -> State {
    let zones = 1 + cases.below(4);
    let nodes = 3 + cases.below(8);
    let names = ["a", "b", "c", "d"];
    let labels = (0..nodes).map(|_| names.get(cases.below(zones + 1) as usize).copied()).collect::<Vec<_>>();
    let mut state = cluster(&labels);
    let mut number = nodes;
    for node in 1..=nodes {
        for _ in 0..cases.below(3) {
            number += 1;
            state.apply(&add_device(number, node)).unwrap();
        }
    }
    for volume in 1..=1 + cases.below(6) {
        let level = [SpreadLevel::Zone, SpreadLevel::Rack, SpreadLevel::Node][cases.below(3) as usize];
        let spread = Spread { level, soft: cases.below(3) > 0 };
        let lane_count = 1 + cases.below(12) as u16;
        let geometry =
            VolumeGeometry { size_bytes: u64::from(lane_count) * (64 + cases.below(4) * 64) * MIB, lane_count };
        let replicas = 1 + cases.below(3) as u8;
        let id = VolumeId::from_u128(u128::from(volume));
        let locality = if cases.below(3) == 0 { Locality::Prefer } else { Locality::None };
        let request =
            PlacementRequest { volume: id, geometry, replicas, spread, locality, attach_node: None, class: None };
        // Hard spreads that cannot be had are refused.
        if let Ok(placement) = placement::plan(&state, &request) {
            let mut command = create(id, &format!("v{volume}"), placement.lanes);
            (command.geometry, command.replicas) = (geometry, replicas);
            (command.spread, command.locality) = (spread, locality);
            state.apply(&Command::CreateVolume(command)).unwrap();
        }
    }
    state
}

fn disturb(state: &mut State, cases: &mut Cases) {
    let nodes = state.nodes().count() as u64;
    let devices = state.devices().map(|device| device.id).collect::<Vec<_>>();
    for _ in 0..1 + cases.below(3) {
        let node = 1 + cases.below(nodes);
        let id = devices[cases.below(devices.len() as u64) as usize];
        match cases.below(6) {
            0 => state.apply(&liveness(node, Liveness::Out)).unwrap(),
            1 => state.apply(&Command::SetDeviceState { id, state: DeviceState::Failed }).unwrap(),
            // One that has failed already stays so.
            2 if cases.below(3) == 0 => state.apply(&Command::MarkFull { id, full: true }).unwrap(),
            2 => state.apply(&Command::SetDeviceState { id, state: DeviceState::Draining }).unwrap_or(Response::Done),
            3 => state.apply(&admin(node, Admin::Draining)).unwrap(),
            4 => {
                let number = state.nodes().count() as u64 + 1;
                let zone = ["a", "b", "c", "d"][cases.below(4) as usize];
                state.apply(&Command::AddNode { id: None, node: node_spec(number, Some(zone)) }).unwrap();
                state.apply(&add_device(1000 + number, number)).unwrap()
            }
            _ => {
                let mut spec = node_spec(node, ["a", "b", "c"].get(cases.below(4) as usize).copied());
                spec.session = state.node(NodeId(node)).unwrap().session;
                state.apply(&Command::UpdateNode { id: NodeId(node), node: spec }).unwrap()
            }
        };
    }
}

/// What must hold of every move before it is begun.
fn check(state: &State, plan: &MovePlan, seed: u64) {
    let mut lanes = BTreeSet::new();
    let mut coming = BTreeMap::<DeviceId, usize>::new();
    for one in &plan.moves {
        assert!(lanes.insert((one.volume, one.lane)), "seed {seed}: two moves of one lane");
        *coming.entry(one.joining).or_default() += 1;
        let volume = state.volume(one.volume).unwrap();
        let lane = state.lane_view(&volume.lanes[usize::from(one.lane)]);
        assert!(lane.members.contains(&one.leaving) && !lane.members.contains(&one.joining), "seed {seed}");
        let settled = lane.replacement.is_none() || !lane.in_sync.contains(&one.leaving);
        assert!(settled, "seed {seed}: two members of a copyset at once");
        let device = state.device(one.joining).unwrap();
        let node = state.node_of_device(one.joining).unwrap();
        let is_good = device.state == DeviceState::In && node.admin == Admin::Active && node.liveness == Liveness::Up;
        assert!(is_good, "seed {seed}: {one:?}");
        for other in lane.members.iter().filter(|member| **member != one.leaving) {
            let other = state.node_of_device(*other).unwrap();
            assert_ne!(other.id, node.id, "seed {seed}: two members on one node");
            let level = volume.spread.level;
            let apart = domain_of(node, level).is_some() && domain_of(node, level) != domain_of(other, level);
            assert!(volume.spread.soft || apart, "seed {seed}: a hard spread");
        }
    }
    assert!(coming.values().all(|count| *count <= 4), "seed {seed}");
}

/// Members that must go and for which nothing says that they cannot.
fn left_over(state: &State, plan: &MovePlan) -> usize {
    let vacates = |device: &DeviceId| {
        let (known, node) = (state.device(*device).unwrap(), state.node_of_device(*device).unwrap());
        matches!(known.state, DeviceState::Failed | DeviceState::Draining)
            || node.liveness == Liveness::Out
            || node.admin == Admin::Draining
    };
    let mut count = 0;
    for volume in state.volumes() {
        for (number, lane) in volume.lanes.iter().enumerate() {
            let waits = plan.waiting.iter().any(|one| (one.volume, usize::from(one.lane)) == (volume.id, number));
            let goes = state.devices_of(lane).iter().any(vacates);
            count += usize::from(goes && !waits);
        }
    }
    count
}

#[test]
fn ten_thousand_random_clusters_come_to_rest_by_few_moves() {
    let mut totals = BTreeMap::<Reason, usize>::new();
    for seed in 0..10_000 {
        let mut cases = Cases(seed);
        let mut state = random_cluster(&mut cases);
        disturb(&mut state, &mut cases);
        let mut attempt = 0;
        let mut vacated = BTreeSet::new();
        let mut rounds = 0;
        loop {
            let plan = moves(&state);
            assert_eq!(plan, moves(&state), "seed {seed}: the same state, the same moves");
            check(&state, &plan, seed);
            if plan.moves.is_empty() && plan.running == 0 {
                assert_eq!(left_over(&state, &plan), 0, "seed {seed}: {plan:?}");
                break;
            }
            for one in &plan.moves {
                *totals.entry(one.reason).or_default() += 1;
                if one.reason < Reason::Spread {
                    let first = vacated.insert((one.volume, one.lane, one.leaving));
                    assert!(first, "seed {seed}: it went there and back");
                }
            }
            begin(&mut state, &plan.moves);
            copy_all(&mut state, &mut attempt);
            rounds += 1;
            assert!(rounds < 200, "seed {seed} does not come to rest: {plan:?}");
        }
    }
    assert!(totals.len() == 7 && totals.values().all(|count| *count > 1000), "{totals:?}");
}

#[test]
fn growth_moves_what_the_new_devices_must_get_and_little_more() {
    for (nodes, new) in [(6u64, 2u64), (9, 1), (12, 6), (4, 4)] {
        let mut state = cluster(&vec![None; nodes as usize]);
        for volume in 1..=20 {
            let (id, lane_count) = (VolumeId::from_u128(volume), 16);
            let geometry = VolumeGeometry { size_bytes: 16 << 30, lane_count };
            let request = PlacementRequest {
                volume: id,
                geometry,
                replicas: 3,
                spread: Spread::default(),
                locality: Locality::None,
                attach_node: None,
                class: None,
            };
            let placement = placement::plan(&state, &request).unwrap();
            let mut command = create(id, &format!("v{volume}"), placement.lanes);
            command.geometry = geometry;
            state.apply(&Command::CreateVolume(command)).unwrap();
        }
        for number in nodes + 1..=nodes + new {
            state.apply(&Command::AddNode { id: None, node: node_spec(number, None) }).unwrap();
            state.apply(&add_device(number, number)).unwrap();
        }
        let total: u64 = state.devices().map(|device| device.committed_bytes).sum();
        let mean = total / (nodes + new);
        let (mut moved, mut attempt) = (0, 0);
        for _ in 0..1000 {
            let plan = moves(&state);
            if plan.moves.is_empty() {
                break;
            }
            assert!(plan.moves.iter().all(|one| one.reason == Reason::Balance));
            moved += plan.moves.iter().map(|one| one.bytes_max).sum::<u64>();
            begin(&mut state, &plan.moves);
            copy_all(&mut state, &mut attempt);
        }
        let loads = state.devices().map(|device| device.committed_bytes).collect::<Vec<_>>();
        assert!(loads.iter().all(|load| load.abs_diff(mean) * 20 <= mean), "within 5 %: {loads:?}, mean {mean}");
        assert!(moved <= new * mean * 6 / 5, "{moved} bytes moved, {} must", new * mean);
        assert_eq!(moves(&state), MovePlan::default(), "at rest");
    }
}
