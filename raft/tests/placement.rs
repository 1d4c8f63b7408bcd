//! Placement: what must hold for every decision, and the exact words of refusals.

mod fixture;

use ashlar_model::{NodeId, VolumeGeometry, VolumeId};
use ashlar_raft::placement::{PlacementRequest, Rule, domain_of, plan};
use ashlar_raft::state::entities::{DeviceState, Liveness, Locality, Spread, SpreadLevel};
use ashlar_raft::{Command, Response, State};
use fixture::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn request(replicas: u8, lane_count: u16) -> PlacementRequest {
    PlacementRequest {
        volume: VolumeId::from_u128(7),
        geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count },
        replicas,
        spread: Spread::default(),
        locality: Locality::None,
        attach_node: None,
        class: None,
    }
}

fn hard(level: SpreadLevel) -> Spread {
    Spread { level, soft: false }
}

/// The volume that a plan decides can be created: planner and state machine agree.
fn apply(state: &mut State, request: &PlacementRequest, number: u128) -> Vec<Vec<ashlar_model::DeviceId>> {
    let request = PlacementRequest { volume: VolumeId::from_u128(number), ..request.clone() };
    let lanes = plan(state, &request).unwrap().lanes;
    let mut create = create(request.volume, &format!("v{number}"), lanes.clone());
    (create.spread, create.geometry) = (request.spread, request.geometry);
    assert_eq!(state.apply(&Command::CreateVolume(create)), Ok(Response::Volume(request.volume)));
    lanes
}

#[test]
fn hard_spread_refuses_with_the_exact_reason() {
    let state = cluster(&[Some("a"), Some("b"), Some("b"), None]);
    let mut wanted = request(3, 1);
    wanted.spread = hard(SpreadLevel::Zone);
    let refusal = plan(&state, &wanted).unwrap_err();
    assert_eq!(refusal.reason, "3 replicas spread over zones need 3 zones with a usable device, there are 2");
    let unlabelled = refusal.explanation.candidates.iter().find(|note| note.node == NodeId(4)).unwrap();
    assert_eq!(unlabelled.removed_by, Some(Rule::NoLabel));
    // Soft falls to the next level, says so, and still uses every zone.
    wanted.spread.soft = true;
    let placement = plan(&state, &wanted).unwrap();
    let fallback = placement.explanation.fallback.as_ref().unwrap();
    assert!(fallback.contains("there are 2: spread over racks and nodes instead"), "{fallback}");
    let nodes = &placement.explanation.lanes[0].nodes;
    assert!(nodes.contains(&"n1".to_owned()) && nodes.contains(&"n4".to_owned()), "{nodes:?}");
}

#[test]
fn too_few_nodes_and_what_removed_the_others() {
    let mut state = cluster(&[None; 5]);
    state.apply(&set_liveness(1, Liveness::Suspect)).unwrap();
    state.apply(&Command::SetDeviceState { id: device(2), state: DeviceState::Full }).unwrap();
    state
        .apply(&Command::SetNodeAdmin { id: NodeId(3), admin: ashlar_raft::state::entities::Admin::Draining })
        .unwrap();
    let refusal = plan(&state, &request(3, 1)).unwrap_err();
    assert_eq!(refusal.reason, "3 replicas need 3 nodes with a usable device, there are 2");
    let rules = refusal.explanation.candidates.iter().map(|note| note.removed_by).collect::<Vec<_>>();
    assert_eq!(rules, vec![Some(Rule::NodeNotUp), Some(Rule::DeviceNotIn), Some(Rule::NodeDraining), None, None]);
    let mut other = request(1, 1);
    other.class = Some("hdd".to_owned());
    assert_eq!(plan(&state, &other).unwrap_err().reason, "1 replicas need 1 nodes with a usable device, there are 0");
}

fn set(state: &mut State, key: &str, value: u64) {
    state.apply(&Command::SetSetting { key: key.to_owned(), value }).unwrap();
}

#[test]
fn a_share_of_every_device_is_not_promised() {
    let mut state = cluster(&[None; 3]);
    set(&mut state, "overcommit_percent", 100);
    set(&mut state, "reserve_percent", 25);
    let mut wanted = request(3, 3);
    wanted.geometry.size_bytes = 3 << 38;
    assert!(plan(&state, &wanted).is_ok(), "three quarters of a device fit exactly");
    wanted.geometry.size_bytes += 12 << 20;
    let refusal = plan(&state, &wanted).unwrap_err();
    assert!(refusal.reason.starts_with("no room for replica 1 of lane 2"), "{}", refusal.reason);
    assert!(refusal.hint.contains("reserve_percent"), "{}", refusal.hint);
    let account = refusal.explanation.capacity.unwrap();
    assert_eq!((account.reserve_domain, account.reserve_bytes), (None, 0), "three nodes could not rebuild one");
    assert_eq!(account.committed_bytes_max, 9 << 38);
}

#[test]
fn the_loss_of_the_largest_domain_is_provided_for() {
    // Zones a to d: one has two nodes, so more is kept.
    let mut state = cluster(&[Some("a"), Some("b"), Some("c"), Some("d"), Some("d")]);
    set(&mut state, "overcommit_percent", 100);
    set(&mut state, "reserve_percent", 0);
    let mut wanted = request(3, 4);
    wanted.spread = hard(SpreadLevel::Zone);
    wanted.geometry.size_bytes = 1 << 40;
    let account = plan(&state, &wanted).unwrap().explanation.capacity.unwrap();
    assert_eq!(account.reserve_domain.as_deref(), Some("zone d"));
    assert_eq!((account.capacity_bytes, account.reserve_bytes), (5 << 40, 2 << 40));
    assert_eq!((account.committed_bytes_max, account.wanted_bytes), (3 << 40, 3 << 40), "it fits exactly");
    wanted.geometry.size_bytes += 16 << 20;
    let refusal = plan(&state, &wanted).unwrap_err();
    let expected = "no room beside the reserve: 3 TiB (3298534883328 bytes) may be promised and 0 B are promised, 3 TiB more \
                    for all copies are 50331648 bytes too many; 100 % of 3 TiB may be promised, 2 TiB of 5 TiB being kept \
                    for the loss of zone d, less 0 %";
    assert_eq!(refusal.reason, expected);
    // Less may be kept, or nothing.
    set(&mut state, "reserve_domain_percent", 50);
    assert!(plan(&state, &wanted).is_ok());
    let account = plan(&state, &wanted).unwrap().explanation.capacity.unwrap();
    assert_eq!(account.reserve_bytes, 1 << 40);
    set(&mut state, "reserve_domain_percent", 0);
    assert_eq!(plan(&state, &wanted).unwrap().explanation.capacity.unwrap().reserve_domain, None);
}

#[test]
fn without_enough_zones_a_node_is_provided_for() {
    let mut state = cluster(&[Some("a"), Some("b"), Some("b"), None]);
    let account = |state: &State| plan(state, &request(3, 1)).unwrap().explanation.capacity.unwrap();
    assert_eq!(account(&state).reserve_domain.as_deref(), Some("node n1"), "of equals the first");
    assert_eq!(account(&state).reserve_bytes, 1 << 40);
    // What is down comes back, what is emptied does not count; what it holds is still promised.
    let placement = plan(&state, &request(3, 1)).unwrap();
    let mut create = create(VolumeId::from_u128(1), "v", placement.lanes);
    create.spread = Spread::default();
    state.apply(&Command::CreateVolume(create)).unwrap();
    state.apply(&set_liveness(1, Liveness::Down)).unwrap();
    assert_eq!(account(&state).capacity_bytes, 4 << 40);
    state
        .apply(&Command::SetNodeAdmin { id: NodeId(1), admin: ashlar_raft::state::entities::Admin::Draining })
        .unwrap();
    let emptied = account(&state);
    assert_eq!((emptied.capacity_bytes, emptied.reserve_domain, emptied.committed_bytes), (3 << 40, None, 3 << 30));
}

#[test]
fn room_is_counted_lane_by_lane() {
    let mut state = cluster(&[None; 3]);
    let set = |state: &mut State, value| set(state, "overcommit_percent", value);
    set(&mut state, 100);
    state.apply(&Command::SetSetting { key: "reserve_percent".to_owned(), value: 0 }).unwrap();
    let mut wanted = request(3, 4);
    wanted.geometry.size_bytes = 1 << 40;
    assert!(plan(&state, &wanted).is_ok(), "it fits exactly");
    wanted.geometry.size_bytes = (1 << 40) + (16 << 20);
    let reason = plan(&state, &wanted).unwrap_err().reason;
    assert!(reason.starts_with("no room for replica 1 of lane 3"), "{reason}");
    set(&mut state, 200);
    assert!(plan(&state, &wanted).is_ok());
}

#[test]
fn locality_is_a_wish_or_a_demand() {
    let mut state = cluster(&[None; 5]);
    let mut wanted = request(2, 8);
    (wanted.locality, wanted.attach_node) = (Locality::Prefer, Some(NodeId(4)));
    assert!(plan(&state, &wanted).unwrap().lanes.iter().all(|lane| lane[0] == device(4)));
    wanted.locality = Locality::Require;
    assert!(plan(&state, &wanted).unwrap().lanes.iter().all(|lane| lane[0] == device(4)));
    state.apply(&set_liveness(4, Liveness::Down)).unwrap();
    let reason = plan(&state, &wanted).unwrap_err().reason;
    assert_eq!(reason, "locality 'require': node n4 has no usable device: 1 on a node that is not up");
    wanted.locality = Locality::Prefer;
    assert!(plan(&state, &wanted).is_ok());
}

#[test]
fn a_target_without_devices_is_served_from_its_zone() {
    let mut state = cluster(&[Some("a"), Some("a"), Some("b"), Some("b"), Some("c")]);
    let mut target = node_spec(6, Some("b"));
    (target.roles.store, target.roles.meta) = (false, false);
    state.apply(&Command::AddNode { id: None, node: target }).unwrap();
    let mut wanted = request(2, 8);
    (wanted.locality, wanted.attach_node) = (Locality::Prefer, Some(NodeId(6)));
    let placement = plan(&state, &wanted).unwrap();
    let zone_b = [device(3), device(4)];
    assert!(placement.lanes.iter().all(|lane| zone_b.contains(&lane[0]) && !zone_b.contains(&lane[1])));
    let remote = placement.explanation.remote.unwrap();
    assert_eq!(remote, "8 of 8 lanes have no copy on node n6: it has no usable device: it has no devices");
    wanted.locality = Locality::Require;
    let refusal = plan(&state, &wanted).unwrap_err();
    assert_eq!(refusal.reason, "locality 'require': node n6 has no usable device: it has no devices");
    assert!(refusal.hint.contains("--on NODE"), "{}", refusal.hint);
}

#[test]
fn a_local_copy_is_refused_when_its_node_is_full_and_a_wish_is_granted_as_far_as_it_goes() {
    let mut state = cluster(&[None; 4]);
    set(&mut state, "overcommit_percent", 100);
    set(&mut state, "reserve_percent", 0);
    set(&mut state, "reserve_domain_percent", 0);
    // A lane is a quarter of a device and 4 MiB: three fit.
    let mut wanted = request(2, 4);
    wanted.geometry.size_bytes = (1 << 40) + (16 << 20);
    (wanted.locality, wanted.attach_node) = (Locality::Require, Some(NodeId(2)));
    let expected = "no room for replica 1 of lane 3: 274882101248 more bytes do not fit on node n2, whose emptiest device has \
                    274865324032 left (locality 'require')";
    assert_eq!(plan(&state, &wanted).unwrap_err().reason, expected);
    wanted.locality = Locality::Prefer;
    let explanation = plan(&state, &wanted).unwrap().explanation;
    let remote = explanation.remote.unwrap();
    assert_eq!(remote, "1 of 4 lanes have no copy on node n2: its devices have no room for more");
}

#[test]
fn load_is_balanced_and_scatter_is_bounded() {
    let mut state = cluster(&[None; 30]);
    for number in 0..100 {
        apply(&mut state, &request(3, 8), number);
    }
    let lanes = state.devices().map(|device| device.lane_count).collect::<Vec<_>>();
    assert!(lanes.iter().max().unwrap() - lanes.iter().min().unwrap() <= 2, "{lanes:?}");
    let mut partners = BTreeMap::<_, BTreeSet<ashlar_model::DeviceId>>::new();
    for set in state.copysets() {
        for member in &set.members {
            partners.entry(*member).or_default().extend(set.members.iter().filter(|other| *other != member));
        }
    }
    // The width is a preference: least loaded devices whose partners are all busier may exceed it a little.
    let widest = partners.values().map(|set| set.len()).max().unwrap();
    assert!(widest <= 16, "of 29 others, a device shares copysets with {widest}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn members_are_apart(
        zones in proptest::collection::vec(proptest::option::of(0u8..4), 1..12),
        down in proptest::collection::vec(any::<bool>(), 12),
        replicas in 1u8..=3, lane_count in 1u16..9, level in 0usize..3, soft in any::<bool>(),
    ) {
        let names = zones.iter().map(|zone| zone.map(|z| format!("z{z}"))).collect::<Vec<_>>();
        let mut state = cluster(&names.iter().map(Option::as_deref).collect::<Vec<_>>());
        for (number, _) in (1..).zip(&zones).filter(|(number, _)| down[*number as usize - 1]) {
            state.apply(&set_liveness(number, Liveness::Down)).unwrap();
        }
        let level = [SpreadLevel::Zone, SpreadLevel::Rack, SpreadLevel::Node][level];
        let wanted = PlacementRequest { spread: Spread { level, soft }, ..request(replicas, lane_count) };
        let up = state.nodes().filter(|node| node.liveness == Liveness::Up).collect::<Vec<_>>();
        let domains = |level| up.iter().filter_map(|node| domain_of(node, level)).collect::<BTreeSet<_>>().len();
        let possible = up.len() >= usize::from(replicas) && (soft || domains(level) >= usize::from(replicas));
        let placement = match plan(&state, &wanted) {
            Ok(placement) => placement,
            Err(refusal) => {
                prop_assert!(!possible, "{}", refusal.reason);
                return Ok(());
            }
        };
        prop_assert!(possible);
        prop_assert_eq!(&placement, &plan(&state, &wanted).unwrap(), "pure");
        for lane in &placement.lanes {
            let nodes = lane.iter().map(|member| state.node_of_device(*member).unwrap()).collect::<Vec<_>>();
            prop_assert_eq!(nodes.len(), usize::from(replicas));
            prop_assert_eq!(nodes.iter().map(|node| node.id).collect::<BTreeSet<_>>().len(), nodes.len());
            prop_assert!(nodes.iter().all(|node| node.liveness == Liveness::Up));
            // Zones are spread as far as they go, hard or soft.
            let used = nodes.iter().map(|node| domain_of(node, SpreadLevel::Zone)).collect::<BTreeSet<_>>().len();
            let there = up.iter().map(|node| domain_of(node, SpreadLevel::Zone)).collect::<BTreeSet<_>>().len();
            if level != SpreadLevel::Rack {
                prop_assert_eq!(used, there.min(usize::from(replicas)));
            }
        }
        apply(&mut state, &wanted, 1);
    }
}
