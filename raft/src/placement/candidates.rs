//! Devices as candidates: the rules that take a device out, and what the choice looks at in those that are left.

use super::capacity::Promises;
use super::{PlacementRequest, Rule, tie_break};
use crate::state::State;
use crate::state::entities::{Admin, Device, DeviceState, Labels, Liveness, Locality, Node, SpreadLevel};
use ashlar_model::{DeviceId, NodeId};
use std::collections::BTreeMap;

/// A device that may be used.
pub(super) struct Candidate {
    pub device: DeviceId,
    pub node: NodeId,
    /// Number of its node, and of its domains; equal numbers are the same domain. Unlabelled nodes share the domain "unknown".
    pub machine: u32,
    pub zone: u32,
    pub rack: u32,
    /// At the wanted level.
    pub wanted: u32,
    /// Its node has the label of the wanted level; else its domain is unknown and counts for nothing.
    pub is_labelled: bool,
    /// From the node that will attach the volume: 0 on it or no wish, 1 in its zone, 2 elsewhere.
    pub distance: u8,
    pub capacity_bytes: u64,
    /// Bytes promised, this request's share included.
    pub committed_bytes: u64,
    pub committed_bytes_max: u64,
    /// Promised bytes of a mebibyte of capacity that one lane adds.
    pub lane_load: u64,
    /// Devices that it shares copysets with.
    pub width: usize,
    /// Decides between equals.
    pub tie: u64,
}

/// Promised bytes of a mebibyte of capacity.
pub(super) fn load(committed_bytes: u64, capacity_bytes: u64) -> u64 {
    let capacity_bytes = capacity_bytes.max(1);
    match committed_bytes < 1 << 44 {
        true => (committed_bytes << 20) / capacity_bytes,
        false => u64::try_from((u128::from(committed_bytes) << 20) / u128::from(capacity_bytes)).unwrap_or(u64::MAX),
    }
}

/// How many different domains these numbers name.
pub(super) fn domains(numbers: impl Iterator<Item = u32>) -> usize {
    let mut seen = Vec::new();
    let mut count = 0;
    for number in numbers.map(|number| number as usize) {
        if number >= seen.len() {
            seen.resize(number + 1, false);
        }
        count += usize::from(!std::mem::replace(&mut seen[number], true));
    }
    count
}

/// How often members share a domain: of the wanted level, a zone, a rack.
pub(super) type Clashes = [u8; 3];

/// The least clashes of a set of members, as far as the number of domains tells.
pub(super) fn clashes_min(candidates: &[Candidate], replicas: u8) -> Clashes {
    let count = |domain: fn(&Candidate) -> u32| {
        let domains = domains(candidates.iter().map(domain));
        // Members over domains as evenly as can be: pairs that share one.
        let (replicas, domains) = (usize::from(replicas), domains.max(1));
        let (each, more) = (replicas / domains, replicas % domains);
        let pairs = |members: usize| members * members.saturating_sub(1) / 2;
        (more * pairs(each + 1) + (domains - more) * pairs(each)) as u8
    };
    [count(|c| c.wanted), count(|c| c.zone), count(|c| c.rack)]
}

/// What is the same for all devices of a node.
struct Place<'a> {
    node: &'a Node,
    zone: u32,
    rack: u32,
    wanted: u32,
    distance: u8,
}

/// The devices that pass every rule, in the order of their identities. Looks at each device once, and briefly.
pub(super) fn gather(state: &State, request: &PlacementRequest, lane_bytes: u64) -> Vec<Candidate> {
    let promises = Promises::of(state);
    let places = places(state, request);
    let mut sharing = state.devices_in_copysets().peekable();
    let mut candidates = Vec::new();
    for device in state.devices() {
        // Both lists are in the order of devices.
        while sharing.next_if(|(other, _)| *other < device.id).is_some() {}
        let width = sharing.next_if(|(other, _)| *other == device.id).map_or(0, |(_, sets)| sets.partners().len());
        let Ok(found) = places.binary_search_by_key(&device.node, |place| place.node.id) else { continue };
        let place = &places[found];
        let committed_bytes_max = promises.bytes_max(device.capacity_bytes);
        if removed_by(request, place.node, device, committed_bytes_max, lane_bytes).is_some() {
            continue;
        }
        candidates.push(Candidate {
            device: device.id,
            node: device.node,
            machine: found as u32,
            zone: place.zone,
            rack: place.rack,
            wanted: place.wanted,
            is_labelled: has_label(&place.node.labels, request.spread.level),
            distance: place.distance,
            capacity_bytes: device.capacity_bytes,
            committed_bytes: device.committed_bytes,
            committed_bytes_max,
            lane_load: load(lane_bytes, device.capacity_bytes),
            width,
            tie: tie_break(request.volume, 0, device.id),
        });
    }
    candidates
}

/// Names of a domain: region, zone, rack, node; all empty for nodes without the label, which may well stand together.
type Names<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>, NodeId);

/// The nodes in the order of their numbers, with the numbers of their domains.
fn places<'a>(state: &'a State, request: &PlacementRequest) -> Vec<Place<'a>> {
    let attach_node = request.attach_node.and_then(|id| state.node(id)).filter(|_| request.locality != Locality::None);
    let mut numbers = [const { BTreeMap::<Names<'a>, u32>::new() }; 3];
    let mut number = |node: &'a Node, level: SpreadLevel| {
        let numbers = &mut numbers[level as usize];
        let next = numbers.len() as u32;
        *numbers.entry(names(node, level)).or_insert(next)
    };
    let nodes = state.nodes().map(|node| Place {
        node,
        zone: number(node, SpreadLevel::Zone),
        rack: number(node, SpreadLevel::Rack),
        wanted: number(node, request.spread.level),
        distance: attach_node.map_or(0, |attach_node| distance(node, attach_node)),
    });
    nodes.collect()
}

fn names(node: &Node, level: SpreadLevel) -> Names<'_> {
    let Labels { region, zone, rack } = &node.labels;
    let none = NodeId::default();
    match level {
        SpreadLevel::Node => (None, None, None, node.id),
        SpreadLevel::Zone if zone.is_some() => (region.as_deref(), zone.as_deref(), None, none),
        SpreadLevel::Rack if rack.is_some() => (region.as_deref(), zone.as_deref(), rack.as_deref(), none),
        SpreadLevel::Zone | SpreadLevel::Rack => (None, None, None, none),
    }
}

fn has_label(labels: &Labels, level: SpreadLevel) -> bool {
    match level {
        SpreadLevel::Zone => labels.zone.is_some(),
        SpreadLevel::Rack => labels.rack.is_some(),
        SpreadLevel::Node => true,
    }
}

/// A machine without devices is served best from its own zone.
fn distance(node: &Node, attach_node: &Node) -> u8 {
    let (here, there) = (&node.labels, &attach_node.labels);
    if node.id == attach_node.id {
        0
    } else if here.zone.is_some() && (&here.region, &here.zone) == (&there.region, &there.zone) {
        1
    } else {
        2
    }
}

/// The first rule that takes the device out of the choice.
pub(super) fn removed_by(
    request: &PlacementRequest,
    node: &Node,
    device: &Device,
    committed_bytes_max: u64,
    lane_bytes: u64,
) -> Option<Rule> {
    if request.class.as_ref().is_some_and(|class| *class != device.class) {
        Some(Rule::OtherClass)
    } else if !node.roles.store {
        Some(Rule::NoStoreRole)
    } else if node.admin != Admin::Active {
        Some(Rule::NodeDraining)
    } else if node.liveness != Liveness::Up {
        Some(Rule::NodeNotUp)
    } else if device.state != DeviceState::In {
        Some(Rule::DeviceNotIn)
    } else if !request.spread.soft && !has_label(&node.labels, request.spread.level) {
        Some(Rule::NoLabel)
    } else if device.committed_bytes.saturating_add(lane_bytes) > committed_bytes_max {
        Some(Rule::NoRoom)
    } else {
        None
    }
}
