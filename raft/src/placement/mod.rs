//! Placement: a pure function from the state and a request to a decision with its explanation.
//!
//! Members of a copyset stand on different nodes, always. The spread level asks for more (racks, zones): hard refuses
//! with the exact reason, soft falls to the next level and says so. Whatever the level, members prefer different zones,
//! then racks, then partners that they share copysets with already (beyond the scatter width), then little load.
//!
//! Invariant: no clock, no randomness. Ties are broken by a hash of volume, lane and device, so volumes spread over
//! equally good devices.

mod balance;
mod explain;
mod moves;
mod sites;

pub use explain::{CandidateNote, Explanation, LaneNote, Rule, explain_volume};
pub use moves::{Move, MovePlan, Reason, Waiting, moves, moves_within};
pub use sites::Budget;

use crate::settings::{OVERCOMMIT_PERCENT, SCATTER_WIDTH};
use crate::state::State;
use crate::state::entities::{Admin, Device, DeviceState, Liveness, Locality, Node, Spread, SpreadLevel, lane_bytes};
use ashlar_model::limits::REPLICAS_MAX;
use ashlar_model::{DeviceId, NodeId, VolumeGeometry, VolumeId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What shall be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementRequest {
    /// The volume: breaks ties.
    pub volume: VolumeId,
    /// Size and lanes.
    pub geometry: VolumeGeometry,
    /// Replicas of each lane, 1 to 3.
    pub replicas: u8,
    /// Wanted spread.
    pub spread: Spread,
    /// Wish for a replica on the attach node.
    pub locality: Locality,
    /// Where the volume will be attached, if known.
    pub attach_node: Option<NodeId>,
    /// Only devices of this class.
    pub class: Option<String>,
}

/// The decision: goes into [`crate::command::CreateVolume::lanes`].
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Placement {
    /// Members of each lane's copyset, in order.
    pub lanes: Vec<Vec<DeviceId>>,
    /// How it came about.
    pub explanation: Explanation,
}

/// Why there is no placement.
#[derive(Clone, PartialEq, Eq, Serialize, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct PlacementRefusal {
    /// One sentence with numbers.
    pub reason: String,
    /// The candidates and what removed them.
    pub explanation: Explanation,
}

/// A failure domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Domain {
    /// Region and zone.
    Zone(Option<String>, String),
    /// Region, zone and rack.
    Rack(Option<String>, Option<String>, String),
    /// A machine.
    Node(NodeId),
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Domain::Zone(_, zone) => write!(f, "zone {zone}"),
            Domain::Rack(_, _, rack) => write!(f, "rack {rack}"),
            Domain::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// The failure domain of a node at a level; `None` if the node lacks the label.
pub fn domain_of(node: &Node, level: SpreadLevel) -> Option<Domain> {
    let labels = &node.labels;
    match level {
        SpreadLevel::Zone => Some(Domain::Zone(labels.region.clone(), labels.zone.clone()?)),
        SpreadLevel::Rack => Some(Domain::Rack(labels.region.clone(), labels.zone.clone(), labels.rack.clone()?)),
        SpreadLevel::Node => Some(Domain::Node(node.id)),
    }
}

/// A device that may be used, with what the choice looks at.
struct Candidate {
    device: DeviceId,
    node: NodeId,
    /// Numbers of its domains; equal numbers are the same domain. Unlabelled nodes share the domain "unknown".
    zone: u32,
    rack: u32,
    /// At the wanted level.
    wanted: u32,
    /// Its node has the label of the wanted level; else its domain is unknown and counts for nothing.
    labelled: bool,
    capacity_bytes: u64,
    /// Bytes promised, this request's share included.
    committed_bytes: u64,
    committed_bytes_max: u64,
}

/// Decides where the lanes of a new volume go.
///
/// # Errors
/// The exact reason if the request cannot be met.
pub fn plan(state: &State, request: &PlacementRequest) -> Result<Placement, PlacementRefusal> {
    let mut explanation = Explanation::default();
    match Planner::new(state, request, &mut explanation).and_then(|mut planner| planner.lanes()) {
        Ok(lanes) => {
            explanation.describe_lanes(state, &lanes);
            Ok(Placement { lanes, explanation })
        }
        Err(reason) => Err(PlacementRefusal { reason, explanation }),
    }
}

struct Planner<'a> {
    request: &'a PlacementRequest,
    candidates: Vec<Candidate>,
    /// Devices that each device shares copysets with.
    partners: BTreeMap<DeviceId, BTreeSet<DeviceId>>,
    scatter_width: usize,
    /// Members must not share a domain of the wanted level.
    strict: bool,
    lane_bytes: u64,
}

impl<'a> Planner<'a> {
    fn new(state: &State, request: &'a PlacementRequest, explanation: &mut Explanation) -> Result<Self, String> {
        if request.replicas == 0 || usize::from(request.replicas) > REPLICAS_MAX || request.geometry.lane_count == 0 {
            return Err(format!("a volume has 1 to {REPLICAS_MAX} replicas and at least one lane"));
        }
        let lane_bytes = lane_bytes(request.geometry);
        let candidates = candidates(state, request, lane_bytes, explanation);
        let strict = check_domains(request, &candidates, explanation)?;
        if request.locality == Locality::Require {
            let Some(node) = request.attach_node else {
                return Err("locality 'require' needs the node that will attach the volume".to_owned());
            };
            if !candidates.iter().any(|candidate| candidate.node == node) {
                return Err(format!("locality 'require': node {node} has no usable device"));
            }
        }
        let scatter_width = state.setting(&SCATTER_WIDTH) as usize;
        let partners = partners(state);
        Ok(Self { request, candidates, partners, scatter_width, strict, lane_bytes })
    }

    fn lanes(&mut self) -> Result<Vec<Vec<DeviceId>>, String> {
        (0..self.request.geometry.lane_count).map(|lane| self.lane(lane)).collect()
    }

    /// Picks the members of one lane, best first, and counts its bytes.
    fn lane(&mut self, lane: u16) -> Result<Vec<DeviceId>, String> {
        let mut chosen: Vec<usize> = Vec::with_capacity(usize::from(self.request.replicas));
        for position in 0..self.request.replicas {
            let best = (0..self.candidates.len())
                .filter(|index| self.is_allowed(*index, &chosen))
                .min_by_key(|index| self.rank(*index, &chosen, lane));
            let Some(best) = best else {
                return Err(self.exhausted(lane, position));
            };
            chosen.push(best);
        }
        let members = chosen.iter().map(|index| self.candidates[*index].device).collect::<Vec<_>>();
        for index in chosen {
            self.candidates[index].committed_bytes += self.lane_bytes;
        }
        for member in &members {
            self.partners.entry(*member).or_default().extend(members.iter().filter(|other| *other != member));
        }
        Ok(members)
    }

    fn is_allowed(&self, index: usize, chosen: &[usize]) -> bool {
        let candidate = &self.candidates[index];
        let fits = candidate.committed_bytes + self.lane_bytes <= candidate.committed_bytes_max;
        let clash =
            |other: &Candidate| other.node == candidate.node || (self.strict && other.wanted == candidate.wanted);
        let local_first = self.request.locality == Locality::Require && chosen.is_empty();
        let local = !local_first || self.request.attach_node == Some(candidate.node);
        fits && local && !chosen.iter().any(|other| clash(&self.candidates[*other]))
    }

    /// Smaller is better.
    fn rank(&self, index: usize, chosen: &[usize], lane: u16) -> impl Ord {
        let candidate = &self.candidates[index];
        let others = || chosen.iter().map(|other| &self.candidates[*other]);
        let wants_local = self.request.locality != Locality::None && chosen.is_empty();
        let remote = wants_local && self.request.attach_node != Some(candidate.node);
        let same_wanted = others().filter(|other| other.wanted == candidate.wanted).count();
        let same_zone = others().filter(|other| other.zone == candidate.zone).count();
        let same_rack = others().filter(|other| other.rack == candidate.rack).count();
        let scattered = others().any(|other| self.would_scatter(candidate.device, other.device));
        let load = (u128::from(candidate.committed_bytes) << 20) / u128::from(candidate.capacity_bytes.max(1));
        let tie = tie_break(self.request.volume, lane, candidate.device);
        (remote, same_wanted, same_zone, same_rack, scattered, load, tie)
    }

    /// True if sharing a copyset would give one of the two more partners than the scatter width.
    fn would_scatter(&self, one: DeviceId, other: DeviceId) -> bool {
        let full = |device: DeviceId, partner: DeviceId| {
            let known = self.partners.get(&device);
            known.is_some_and(|set| set.len() >= self.scatter_width && !set.contains(&partner))
        };
        full(one, other) || full(other, one)
    }

    fn exhausted(&self, lane: u16, position: u8) -> String {
        let roomy = |c: &&Candidate| c.committed_bytes + self.lane_bytes <= c.committed_bytes_max;
        let nodes = self.candidates.iter().filter(roomy).map(|c| c.node).collect::<BTreeSet<_>>();
        format!(
            "no room for replica {} of lane {lane}: {} more bytes fit on {} nodes only, {} are needed",
            position + 1,
            self.lane_bytes,
            nodes.len(),
            self.request.replicas
        )
    }
}

/// The devices that pass every rule; the others are noted with the rule that removed them.
fn candidates(
    state: &State,
    request: &PlacementRequest,
    lane_bytes: u64,
    explanation: &mut Explanation,
) -> Vec<Candidate> {
    let overcommit = u128::from(state.setting(&OVERCOMMIT_PERCENT));
    let mut numbers = BTreeMap::<Option<Domain>, u32>::new();
    let mut number = |node: &Node, level| {
        let next = numbers.len() as u32;
        // Nodes without the label share one "unknown" domain: they may well stand together.
        *numbers.entry(domain_of(node, level)).or_insert(next)
    };
    let mut candidates = Vec::new();
    for device in state.devices() {
        let Some(node) = state.node(device.node) else { continue };
        let committed_bytes_max =
            (u128::from(device.capacity_bytes) * overcommit / 100).min(u128::from(u64::MAX / 2)) as u64;
        let removed = removed_by(request, node, device, committed_bytes_max, lane_bytes);
        explanation.note(node, device, committed_bytes_max, removed);
        if removed.is_some() {
            continue;
        }
        candidates.push(Candidate {
            device: device.id,
            node: node.id,
            zone: number(node, SpreadLevel::Zone),
            rack: number(node, SpreadLevel::Rack),
            wanted: number(node, request.spread.level),
            labelled: domain_of(node, request.spread.level).is_some(),
            capacity_bytes: device.capacity_bytes,
            committed_bytes: device.committed_bytes,
            committed_bytes_max,
        });
    }
    candidates
}

fn removed_by(
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
    } else if !request.spread.soft && domain_of(node, request.spread.level).is_none() {
        Some(Rule::NoLabel)
    } else if device.committed_bytes.saturating_add(lane_bytes) > committed_bytes_max {
        Some(Rule::NoRoom)
    } else {
        None
    }
}

/// Are there enough failure domains? Returns whether members must not share one of the wanted level.
fn check_domains(
    request: &PlacementRequest,
    candidates: &[Candidate],
    explanation: &mut Explanation,
) -> Result<bool, String> {
    let wanted = usize::from(request.replicas);
    let nodes = candidates.iter().map(|c| c.node).collect::<BTreeSet<_>>().len();
    if nodes < wanted {
        return Err(format!("{wanted} replicas need {wanted} nodes with a usable device, there are {nodes}"));
    }
    let level = request.spread.level;
    let domains = candidates.iter().filter(|c| c.labelled).map(|c| c.wanted).collect::<BTreeSet<_>>().len();
    if domains >= wanted {
        return Ok(!request.spread.soft);
    }
    let name = match level {
        SpreadLevel::Zone => "zones",
        SpreadLevel::Rack => "racks",
        SpreadLevel::Node => "nodes",
    };
    if !request.spread.soft {
        return Err(format!(
            "{wanted} replicas spread over {name} need {wanted} {name} with a usable device, there are {domains}"
        ));
    }
    let next = match level {
        SpreadLevel::Zone => "racks and nodes",
        SpreadLevel::Rack | SpreadLevel::Node => "nodes",
    };
    explanation.fallback = Some(format!(
        "{wanted} replicas would need {wanted} {name}, there are {domains}: spread over {next} instead, as far apart as possible"
    ));
    Ok(false)
}

fn partners(state: &State) -> BTreeMap<DeviceId, BTreeSet<DeviceId>> {
    let mut partners = BTreeMap::<DeviceId, BTreeSet<DeviceId>>::new();
    for set in state.copysets() {
        for member in &set.members {
            partners.entry(*member).or_default().extend(set.members.iter().filter(|other| *other != member));
        }
    }
    partners
}

fn tie_break(volume: VolumeId, lane: u16, device: DeviceId) -> u64 {
    let mut bytes = [0; 34];
    bytes[..16].copy_from_slice(&volume.as_u128().to_le_bytes());
    bytes[16..32].copy_from_slice(&device.as_u128().to_le_bytes());
    bytes[32..].copy_from_slice(&lane.to_le_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
