//! Placement: a pure function from the state and a request to a decision with its explanation.
//!
//! Members of a copyset stand on different nodes, always. The spread level asks for more (racks, zones): hard refuses
//! with the exact reason, soft falls to the next level and says so. Whatever the level, members prefer different zones,
//! then racks, then partners that they share copysets with already (beyond the scatter width), then little load.
//!
//! ```text
//! candidates   the rules that take a device out, and what is left
//! capacity     what may be promised, and what is kept for losses
//! choose       the members of each lane: copysets used again, or new ones
//! moves        members that have to go elsewhere, and why; balance: those that only even things out
//! sites        devices as places for a single member
//! explain      the same for people: every device with its rule
//! ```
//!
//! Invariant: no clock, no randomness. Ties are broken by a hash of volume, lane and device, so volumes spread over
//! equally good devices.

mod balance;
mod candidates;
mod capacity;
mod choose;
mod explain;
mod moves;
mod sites;
mod standstill;

pub use capacity::CapacityNote;
pub use explain::{CandidateNote, Explanation, LaneNote, Rule, explain_volume};
pub use moves::{Move, MovePlan, Reason, Waiting, moves, moves_within, must_vacate};
pub use sites::Budget;

use crate::state::State;
use crate::state::entities::{Locality, Node, Spread, SpreadLevel, lane_bytes};
use ashlar_model::limits::REPLICAS_MAX;
use ashlar_model::{DeviceId, NodeId, VolumeGeometry, VolumeId};
use candidates::{Candidate, domains};
use choose::Planner;
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

/// The decision without its explanation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Members of each lane's copyset, in order.
    pub lanes: Vec<Vec<DeviceId>>,
    /// Said when a soft spread falls to the next level.
    pub fallback: Option<String>,
    /// Said when a wish for a copy on the attach node was not granted for all lanes.
    pub remote: Option<String>,
}

/// Why there is no decision.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct NoPlacement {
    /// One sentence with numbers.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

impl NoPlacement {
    fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: hint.into() }
    }
}

/// Why there is no placement.
#[derive(Clone, PartialEq, Eq, Serialize, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct PlacementRefusal {
    /// One sentence with numbers.
    pub reason: String,
    /// What to do.
    pub hint: String,
    /// The candidates and what removed them.
    pub explanation: Box<Explanation>,
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

/// Decides where the lanes of a new volume go, and explains it: looks at every device for that.
///
/// # Errors
/// The exact reason if the request cannot be met.
pub fn plan(state: &State, request: &PlacementRequest) -> Result<Placement, PlacementRefusal> {
    let mut explanation = Explanation::of(state, request);
    match decide(state, request) {
        Ok(Decision { lanes, fallback, remote }) => {
            (explanation.fallback, explanation.remote) = (fallback, remote);
            explanation.describe_lanes(state, &lanes);
            Ok(Placement { lanes, explanation })
        }
        Err(NoPlacement { reason, hint }) => Err(PlacementRefusal { reason, hint, explanation: explanation.into() }),
    }
}

/// The decision alone, as a create needs it.
///
/// # Errors
/// The exact reason if the request cannot be met.
pub fn decide(state: &State, request: &PlacementRequest) -> Result<Decision, NoPlacement> {
    if request.replicas == 0 || usize::from(request.replicas) > REPLICAS_MAX || request.geometry.lane_count == 0 {
        let reason = format!("a volume has 1 to {REPLICAS_MAX} replicas and at least one lane");
        return Err(NoPlacement::new(reason, "ask for 3 replicas"));
    }
    let lane_bytes = lane_bytes(request.geometry);
    let candidates = candidates::gather(state, request, lane_bytes);
    let (is_strict, fallback) = check_domains(request, &candidates)?;
    check_locality(state, request, &candidates)?;
    CapacityNote::of(state, request).check(state)?;
    let lanes = Planner::new(state, request, candidates, lane_bytes, is_strict).lanes()?;
    let remote = explain::remote(state, request, &lanes);
    Ok(Decision { lanes, fallback, remote })
}

/// Are there enough failure domains? Returns whether members must not share one of the wanted level, and what is said
/// of a soft spread that falls to the next one.
fn check_domains(request: &PlacementRequest, candidates: &[Candidate]) -> Result<(bool, Option<String>), NoPlacement> {
    let wanted = usize::from(request.replicas);
    let nodes = domains(candidates.iter().map(|c| c.machine));
    if nodes < wanted {
        return Err(NoPlacement::new(
            format!("{wanted} replicas need {wanted} nodes with a usable device, there are {nodes}"),
            "add devices on more nodes (`ashlar device add`), or ask for fewer replicas",
        ));
    }
    let level = request.spread.level;
    let domains = domains(candidates.iter().filter(|c| c.is_labelled).map(|c| c.wanted));
    if domains >= wanted {
        return Ok((!request.spread.soft, None));
    }
    let (name, next) = match level {
        SpreadLevel::Zone => ("zones", "racks and nodes"),
        SpreadLevel::Rack => ("racks", "nodes"),
        SpreadLevel::Node => ("nodes", "nodes"),
    };
    if !request.spread.soft {
        return Err(NoPlacement::new(
            format!(
                "{wanted} replicas spread over {name} need {wanted} {name} with a usable device, there are {domains}"
            ),
            format!(
                "add devices in more {name} (labels in the nodes' configuration), or ask for fewer replicas or a softer spread"
            ),
        ));
    }
    let fallback = format!(
        "{wanted} replicas would need {wanted} {name}, there are {domains}: spread over {next} instead, as far apart as possible"
    );
    Ok((false, Some(fallback)))
}

/// A demand for a copy on the attach node must be one that can be met.
fn check_locality(state: &State, request: &PlacementRequest, candidates: &[Candidate]) -> Result<(), NoPlacement> {
    if request.locality != Locality::Require {
        return Ok(());
    }
    let Some(id) = request.attach_node else {
        let reason = "locality 'require' needs the node that will attach the volume";
        return Err(NoPlacement::new(reason, "name it with --on NODE, or ask for locality 'prefer'"));
    };
    if candidates.iter().any(|candidate| candidate.node == id) {
        return Ok(());
    }
    let name = state.node(id).map_or_else(|| id.to_string(), |node| node.name.clone());
    let why = explain::why_unusable(state, request, id);
    Err(NoPlacement::new(
        format!("locality 'require': node {name} has no usable device: {why}"),
        "choose another node with --on NODE, or ask for locality 'prefer'",
    ))
}

/// The devices that each device shares copysets with.
pub fn partners(state: &State) -> BTreeMap<DeviceId, BTreeSet<DeviceId>> {
    state.devices_in_copysets().map(|(device, sets)| (device, sets.partners().collect())).collect()
}

fn tie_break(volume: VolumeId, lane: u16, device: DeviceId) -> u64 {
    let mut bytes = [0; 34];
    bytes[..16].copy_from_slice(&volume.as_u128().to_le_bytes());
    bytes[16..32].copy_from_slice(&device.as_u128().to_le_bytes());
    bytes[32..].copy_from_slice(&lane.to_le_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
