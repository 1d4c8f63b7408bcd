//! A volume as people see it: its metadata merged with what its writer reports. Pure.

use super::operation_view::{Operation, operations_of};
use super::reports;
use super::shapes::{self, SpreadShape};
use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::{DeviceId, Epoch, NodeId, SessionId, VolumeId};
use ashlar_raft::State;
use ashlar_raft::state::VolumeHealth;
use ashlar_raft::state::entities::{
    AttachMode, Attachment, DeviceState, Liveness, Locality, Spread, Volume, VolumeLabels,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A volume.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = Volume)]
pub struct VolumeView {
    /// Its identity, never used again.
    #[schema(value_type = String, format = "uuid")]
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Bytes that guests see.
    pub size_bytes: u64,
    /// Units of replication.
    pub lane_count: u16,
    /// Copies of every block.
    pub replicas: u8,
    /// Who must have a write before it is acknowledged.
    #[schema(schema_with = shapes::quorum)]
    pub quorum: QuorumPolicy,
    /// Writes wait while a lane has fewer members in sync.
    pub min_in_sync: u8,
    /// How its copies are kept apart.
    #[schema(value_type = SpreadShape)]
    pub spread: Spread,
    /// Whether a copy shall be on the node that attaches it.
    #[schema(schema_with = shapes::locality)]
    pub locality: Locality,
    /// The only class of devices that it may use.
    pub class: Option<String>,
    /// Free labels.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: VolumeLabels,
    /// Rises with every attach.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Who has it for guests.
    pub attached: Option<AttachedView>,
    /// Name of the node that only brings its members in sync, and gives way.
    pub caretaker: Option<String>,
    /// `healthy`, `degraded` (writable, a copy missing), `suspended` (waits, nothing lost) or `unavailable`.
    pub health: String,
    /// Why it is not healthy.
    pub reason: Option<String>,
    /// What was not granted as it was asked for; told when it is created.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What is being done for it; told of one volume, not in lists.
    pub operations: Vec<Operation>,
    /// What its writer has counted since the attach; told of one volume that is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub counters: Option<Value>,
    /// Its lanes: phase, members, in-sync set, copyset; told of one volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub lanes: Option<Value>,
}

/// Who has a volume for guests.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = Attachment)]
pub struct AttachedView {
    /// Number of the node.
    #[schema(value_type = u64)]
    pub node_id: NodeId,
    /// Its name.
    pub node: String,
    /// The run of its daemon.
    #[schema(value_type = String, format = "uuid")]
    pub session: SessionId,
    /// What it may do: `read-write`.
    #[schema(value_type = String)]
    pub mode: AttachMode,
    /// NBD connections that serve it; null while the node does not answer.
    #[schema(value_type = Option<u64>)]
    pub connections: Value,
}

/// The volume, with lanes and members if `with_lanes`.
pub fn volume_view(
    state: &State,
    volume: &Volume,
    reports: &BTreeMap<NodeId, Option<Value>>,
    with_lanes: bool,
) -> VolumeView {
    let id = volume.id.to_string();
    let holder_report = volume.attachment.map(|held| reports.get(&held.node).and_then(Option::as_ref));
    let attached = holder_report.flatten().and_then(|report| reports::of_volume(report, &id));
    let (health, reason) = health(state, volume, holder_report, attached.as_ref());
    let is_user = |held: &Attachment| held.mode != AttachMode::Maintenance;
    let attachment = volume.attachment.filter(is_user).map(|held| AttachedView {
        node_id: held.node,
        node: node_name(state, held.node),
        session: held.session,
        mode: held.mode,
        connections: attached.as_ref().map_or(Value::Null, |report| report["connections"].clone()),
    });
    let caretaker = volume.attachment.filter(|held| !is_user(held)).map(|held| node_name(state, held.node));
    VolumeView {
        id: volume.id,
        name: volume.name.clone(),
        size_bytes: volume.geometry.size_bytes,
        lane_count: volume.geometry.lane_count,
        replicas: volume.replicas,
        quorum: volume.quorum,
        min_in_sync: volume.in_sync_min,
        spread: volume.spread,
        locality: volume.locality,
        class: volume.class.clone(),
        labels: volume.labels.clone(),
        epoch: volume.epoch,
        attached: attachment,
        caretaker,
        health,
        reason,
        notes: Vec::new(),
        operations: if with_lanes { operations_of(state, volume, reports) } else { Vec::new() },
        counters: attached.as_ref().filter(|_| with_lanes).map(|report| report["status"]["counters"].clone()),
        lanes: with_lanes.then(|| lanes(state, volume, attached.as_ref())),
    }
}

fn health(
    state: &State,
    volume: &Volume,
    holder_report: Option<Option<&Value>>,
    attached: Option<&Value>,
) -> (String, Option<String>) {
    if let Some(report) = attached {
        let health = report["status"]["health"].as_str().unwrap_or("suspended").to_owned();
        return (health, report["status"]["reason"].as_str().map(|reason| name_devices(state, volume, reason)));
    }
    let (known, reason) = match state.volume_health(volume) {
        VolumeHealth::Healthy => ("healthy", None),
        VolumeHealth::Degraded => ("degraded", Some(missing(state, volume))),
        VolumeHealth::Unavailable => ("unavailable", Some(missing(state, volume))),
    };
    if let Some(dead) = dead_holder(state, volume) {
        let health = if known == "healthy" { "degraded" } else { known };
        return (health.into(), Some(reason.map_or(dead.clone(), |reason| format!("{dead}; {reason}"))));
    }
    let unverified = state.unverified_lanes(volume.id);
    if unverified > 0 && known == "healthy" {
        let why = "have not been looked at since the metadata was restored: a caretaker or the next attach does";
        return ("degraded".into(), Some(format!("{unverified} lanes {why}")));
    }
    let holder = volume.attachment.map(|held| node_name(state, held.node));
    match (holder, holder_report) {
        (Some(holder), Some(None)) if reason.is_none() => {
            ("degraded".into(), Some(format!("node {holder}, to which it is attached, does not answer")))
        }
        _ => (known.into(), reason),
    }
}

/// What to do about a volume whose holder is down. Nobody takes it from there unasked, not even to bring it in sync: guests
/// may still run behind a partition.
pub fn dead_holder(state: &State, volume: &Volume) -> Option<String> {
    let is_lost = |held: &Attachment| {
        held.mode != AttachMode::Maintenance && !state.is_holder_alive(held) && !state.has_holder_ended(held)
    };
    let holder = node_name(state, volume.attachment.filter(is_lost)?.node);
    let name = &volume.name;
    Some(format!(
        "node {holder}, to which it is attached, is down: attach it elsewhere (`ashlar volume attach {name} --node NODE`) \
         or let it go (`ashlar volume detach {name}`)"
    ))
}

/// Which members are missing, and on which nodes.
fn missing(state: &State, volume: &Volume) -> String {
    let mut words = Vec::new();
    for lane in &volume.lanes {
        let view = state.lane_view(lane);
        for device in &view.members {
            let replaced = view.replacement.filter(|replacement| replacement.joining == *device);
            let word = match (member_state(state, *device, view.in_sync.contains(device)), replaced) {
                ("in_sync", _) => continue,
                ("stale", Some(replacement)) => format!(
                    "device {device} on node {} takes the place of {}",
                    node_of(state, *device),
                    replacement.leaving
                ),
                (other, _) => format!("device {device} on node {} is {other}", node_of(state, *device)),
            };
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    words.join("; ")
}

fn member_state(state: &State, device: DeviceId, in_sync: bool) -> &'static str {
    let failed = state.device(device).is_none_or(|d| matches!(d.state, DeviceState::Failed | DeviceState::Out));
    let down = state.node_of_device(device).is_none_or(|node| node.liveness != Liveness::Up);
    match (failed, down, in_sync) {
        (true, _, _) => "failed",
        (false, true, true) => "behind",
        (false, _, false) => "stale",
        (false, false, true) => "in_sync",
    }
}

fn lanes(state: &State, volume: &Volume, attached: Option<&Value>) -> Value {
    let reported = attached.and_then(|report| report["status"]["lanes"].as_array());
    let lanes = volume.lanes.iter().enumerate().map(|(number, lane)| {
        let view = state.lane_view(lane);
        let report = reported.and_then(|lanes| lanes.iter().find(|report| report["lane"] == number));
        let mut json = match report {
            Some(report) => report.clone(),
            None => {
                let devices = state.devices_of(lane);
                json!({ "lane": number, "phase": "detached", "members": members(state, &devices, &view.in_sync) })
            }
        };
        if let Some(members) = json["members"].as_array_mut() {
            for member in members {
                let device: Option<DeviceId> = member["device"].as_str().and_then(|text| text.parse().ok());
                member["node"] = device.map_or(Value::Null, |device| node_of(state, device).into());
            }
        }
        json["copyset"] = json!(view.copyset);
        json["replacement"] = json!(view.replacement);
        json["version"] = json!(view.version);
        json["in_sync"] = json!(view.in_sync);
        json["clean"] = json!(view.clean);
        json["unverified"] = json!(lane.unverified);
        json
    });
    Value::Array(lanes.collect())
}

fn members(state: &State, members: &[DeviceId], in_sync: &[DeviceId]) -> Vec<Value> {
    let member = |device: &DeviceId| {
        let state_word = member_state(state, *device, in_sync.contains(device));
        json!({ "device": device, "state": state_word, "reachable": state.is_device_alive(*device) })
    };
    members.iter().map(member).collect()
}

/// The writer knows devices by identity only; people know nodes.
fn name_devices(state: &State, volume: &Volume, reason: &str) -> String {
    let mut text = reason.to_owned();
    let mut seen = std::collections::BTreeSet::new();
    for device in volume.lanes.iter().flat_map(|lane| state.devices_of(lane)) {
        let id = device.to_string();
        if seen.insert(device) && text.contains(&id) {
            text = text.replace(&id, &format!("{id} on node {}", node_of(state, device)));
        }
    }
    text
}

fn node_of(state: &State, device: DeviceId) -> String {
    state.node_of_device(device).map_or_else(|| "?".into(), |node| node.name.clone())
}

/// Name of a node, or its number if it is gone.
pub fn node_name(state: &State, id: NodeId) -> String {
    state.node(id).map_or_else(|| id.to_string(), |node| node.name.clone())
}
