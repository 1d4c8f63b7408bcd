//! Explanations of placements, for people and for the API.

use super::PlacementRequest;
use super::candidates::removed_by;
use super::capacity::{CapacityNote, Promises};
use crate::state::State;
use crate::state::entities::{Device, Locality, Node, Volume, lane_bytes};
use ashlar_model::{DeviceId, NodeId};
use serde::Serialize;
use std::collections::BTreeMap;

/// A rule that takes a device out of the choice.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Not the wanted device class.
    OtherClass,
    /// Its node has no store role.
    NoStoreRole,
    /// Its node is being drained or removed.
    NodeDraining,
    /// Its node is suspect or down.
    NodeNotUp,
    /// It is full, failed, draining or out.
    DeviceNotIn,
    /// Its node lacks the label of a hard spread.
    NoLabel,
    /// Too many bytes are promised already.
    NoRoom,
}

impl Rule {
    /// The rule in words: what is the matter with a device.
    pub fn words(self) -> &'static str {
        match self {
            Self::OtherClass => "of another class",
            Self::NoStoreRole => "on a node without the store role",
            Self::NodeDraining => "on a node that is being emptied",
            Self::NodeNotUp => "on a node that is not up",
            Self::DeviceNotIn => "full, failed, draining or out",
            Self::NoLabel => "on a node without the label of the spread",
            Self::NoRoom => "without room: too much of it is promised",
        }
    }
}

/// What was thought of one device.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct CandidateNote {
    /// The device.
    pub device: DeviceId,
    /// Its node.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// The node's zone.
    pub zone: Option<String>,
    /// The node's rack.
    pub rack: Option<String>,
    /// Bytes promised before.
    pub committed_bytes: u64,
    /// Bytes that may be promised.
    pub committed_bytes_max: u64,
    /// The rule that removed it; `None`: it could be chosen.
    pub removed_by: Option<Rule>,
}

/// The members of one lane.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct LaneNote {
    /// Number of the lane.
    pub lane: u16,
    /// Names of the members' nodes, in order.
    pub nodes: Vec<String>,
    /// Their zones.
    pub zones: Vec<Option<String>>,
}

/// How a placement came about.
#[derive(Clone, PartialEq, Eq, Serialize, Debug, Default)]
pub struct Explanation {
    /// Every device of the cluster.
    pub candidates: Vec<CandidateNote>,
    /// The account of them all together, with its reserves.
    pub capacity: Option<Box<CapacityNote>>,
    /// Said when a soft spread fell to the next level.
    pub fallback: Option<String>,
    /// Said when a wish for a copy on the attach node was not granted for all lanes.
    pub remote: Option<String>,
    /// The lanes.
    pub lanes: Vec<LaneNote>,
}

impl Explanation {
    /// What is thought of every device, before anything is decided.
    pub(super) fn of(state: &State, request: &PlacementRequest) -> Self {
        let (promises, lane_bytes) = (Promises::of(state), lane_bytes(request.geometry));
        let mut explanation = Self { capacity: Some(CapacityNote::of(state, request).into()), ..Self::default() };
        for device in state.devices() {
            let Some(node) = state.node(device.node) else { continue };
            let bytes_max = promises.bytes_max(device.capacity_bytes);
            let removed_by = removed_by(request, node, device, bytes_max, lane_bytes);
            explanation.note(node, device, bytes_max, removed_by);
        }
        explanation
    }

    fn note(&mut self, node: &Node, device: &Device, committed_bytes_max: u64, removed_by: Option<Rule>) {
        self.candidates.push(CandidateNote {
            device: device.id,
            node: node.id,
            node_name: node.name.clone(),
            zone: node.labels.zone.clone(),
            rack: node.labels.rack.clone(),
            committed_bytes: device.committed_bytes,
            committed_bytes_max,
            removed_by,
        });
    }

    pub(super) fn describe_lanes(&mut self, state: &State, lanes: &[Vec<DeviceId>]) {
        self.lanes =
            lanes.iter().enumerate().map(|(number, members)| lane_note(state, number as u16, members)).collect();
    }
}

fn lane_note(state: &State, lane: u16, members: &[DeviceId]) -> LaneNote {
    let nodes = || members.iter().map(|member| state.node_of_device(*member));
    LaneNote {
        lane,
        nodes: nodes().map(|node| node.map_or_else(|| "?".to_owned(), |node| node.name.clone())).collect(),
        zones: nodes().map(|node| node.and_then(|node| node.labels.zone.clone())).collect(),
    }
}

/// Explains where an existing volume sits, with what would be thought of every device today.
pub fn explain_volume(state: &State, volume: &Volume) -> Explanation {
    let request = PlacementRequest {
        volume: volume.id,
        geometry: volume.geometry,
        replicas: volume.replicas,
        spread: volume.spread,
        locality: Locality::None,
        attach_node: None,
        class: volume.class.clone(),
    };
    let mut explanation = Explanation::of(state, &request);
    if let Some(account) = &mut explanation.capacity {
        account.wanted_bytes = 0; // it is among what is promised
    }
    let lanes = state.volume_spec(volume).lanes;
    explanation.describe_lanes(state, &lanes);
    explanation
}

/// What is said of lanes without the wished copy on the attach node.
pub(super) fn remote(state: &State, request: &PlacementRequest, lanes: &[Vec<DeviceId>]) -> Option<String> {
    let id = request.attach_node.filter(|_| request.locality == Locality::Prefer)?;
    let is_there = |device: &DeviceId| state.device(*device).is_some_and(|device| device.node == id);
    let without = lanes.iter().filter(|members| !members.iter().any(is_there)).count();
    if without == 0 {
        return None;
    }
    let name = state.node(id).map_or_else(|| id.to_string(), |node| node.name.clone());
    let why = match without == lanes.len() {
        true => format!("it has no usable device: {}", why_unusable(state, request, id)),
        false => "its devices have no room for more".to_owned(),
    };
    Some(format!("{without} of {} lanes have no copy on node {name}: {why}", lanes.len()))
}

/// Why none of a node's devices can be used: rules with the number of devices.
pub(super) fn why_unusable(state: &State, request: &PlacementRequest, id: NodeId) -> String {
    let (promises, lane_bytes) = (Promises::of(state), lane_bytes(request.geometry));
    let Some(node) = state.node(id) else { return "there is no such node".to_owned() };
    let mut counts = BTreeMap::<&str, usize>::new();
    for device in state.devices().filter(|device| device.node == id) {
        let bytes_max = promises.bytes_max(device.capacity_bytes);
        if let Some(rule) = removed_by(request, node, device, bytes_max, lane_bytes) {
            *counts.entry(rule.words()).or_default() += 1;
        }
    }
    match counts.is_empty() {
        true => "it has no devices".to_owned(),
        false => counts.iter().map(|(words, count)| format!("{count} {words}")).collect::<Vec<_>>().join(", "),
    }
}
