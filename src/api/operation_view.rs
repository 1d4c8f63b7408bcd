//! Long work on volumes, derived from what the metadata says and what the volumes' writers report. Pure: nothing is
//! stored, so nothing can be out of date or left over.
//!
//! ```text
//! rejoin-VOLUME-DEVICE    a member that is out of sync comes back in
//! replace-VOLUME-DEVICE   a member leaves, which is the DEVICE of the name, and another takes its place
//! ```

use super::reports;
use super::volume_view::{dead_holder, node_name};
use ashlar_model::{DeviceId, NodeId};
use ashlar_raft::State;
use ashlar_raft::state::entities::{DeviceState, Liveness, Volume};
use ashlar_raft::state::{LaneView, VolumeHealth};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Characters of a device's identity in the name of an operation.
const PREFIX_CHARS: usize = 8;

/// What kind of work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationKind {
    /// A member that is out of sync comes back in.
    Rejoin,
    /// A member leaves and another takes its place.
    Replace,
}

/// How it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Some lane copies.
    Running,
    /// None does; the reason is given.
    Waiting,
    /// Every lane has the device in sync.
    Done,
}

/// One operation.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct Operation {
    /// Its name: the same from its begin to its end.
    pub id: String,
    /// What kind of work.
    pub kind: OperationKind,
    /// Name of the volume.
    pub volume: String,
    /// The device that comes; the first of several.
    #[schema(value_type = String, format = "uuid")]
    pub device: DeviceId,
    /// All devices that come: lanes that leave one device may go to several.
    #[schema(value_type = Vec<String>)]
    pub joining: Vec<DeviceId>,
    /// Name of the node of the first.
    pub node: String,
    /// The device that goes, of a replacement.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub leaving: Option<DeviceId>,
    /// How it stands.
    pub state: OperationState,
    /// Why it waits.
    pub reason: Option<String>,
    /// Lanes that have the device in sync.
    pub lanes_done: u64,
    /// Lanes that want it.
    pub lanes_total: u64,
    /// Bytes copied in the lanes that copy now.
    pub copied_bytes: u64,
    /// Bytes that the device turned out to hold already, in the lanes that copy now.
    pub compared_bytes: u64,
    /// How much of it is done, by chunks.
    pub percent: f64,
    /// Bytes per second, if it was looked at twice.
    pub rate_bytes_per_s: Option<u64>,
    /// Seconds that are left at this pace.
    pub eta_s: Option<u64>,
    /// It can be taken back.
    pub cancellable: bool,
}

/// Reports of nodes; `None` for a node that did not answer.
pub type Reports = BTreeMap<NodeId, Option<Value>>;

/// The name of an operation.
pub fn operation_id(kind: OperationKind, volume: &str, device: DeviceId) -> String {
    let word = match kind {
        OperationKind::Rejoin => "rejoin",
        OperationKind::Replace => "replace",
    };
    format!("{word}-{volume}-{}", short(device))
}

/// The beginning of a device's identity, for names.
pub fn short(device: DeviceId) -> String {
    device.to_string().chars().take(PREFIX_CHARS).collect()
}

/// A volume with work to do.
pub fn has_work(state: &State, volume: &Volume) -> bool {
    volume.lanes.iter().map(|lane| state.lane_view(lane)).any(|lane| !missing(&lane).is_empty())
}

/// Members that a lane wants and does not have.
fn missing(lane: &LaneView) -> Vec<DeviceId> {
    lane.members.iter().filter(|member| !lane.in_sync.contains(member)).copied().collect()
}

/// All work on a volume, in order of names.
pub fn operations_of(state: &State, volume: &Volume, reports: &Reports) -> Vec<Operation> {
    let lanes: Vec<LaneView> = volume.lanes.iter().map(|lane| state.lane_view(lane)).collect();
    let mut found = BTreeMap::<(OperationKind, DeviceId), BTreeSet<DeviceId>>::new();
    for lane in &lanes {
        for device in missing(lane) {
            let replaced = lane.replacement.filter(|replacement| replacement.joining == device);
            let key =
                replaced.map_or((OperationKind::Rejoin, device), |change| (OperationKind::Replace, change.leaving));
            found.entry(key).or_default().insert(device);
        }
    }
    let report = volume.attachment.map(|held| (held.node, reports.get(&held.node).and_then(Option::as_ref)));
    let work = |((kind, named), joining)| operation(state, volume, &lanes, kind, named, &joining, report);
    let mut operations: Vec<Operation> = found.into_iter().filter_map(work).collect();
    operations.sort_by(|one, other| one.id.cmp(&other.id));
    operations
}

fn operation(
    state: &State,
    volume: &Volume,
    lanes: &[LaneView],
    kind: OperationKind,
    named: DeviceId,
    joining: &BTreeSet<DeviceId>,
    report: Option<(NodeId, Option<&Value>)>,
) -> Option<Operation> {
    let device = *joining.first()?;
    let leaving = (kind == OperationKind::Replace).then_some(named);
    let wants = |lane: &&LaneView| lane.members.iter().any(|member| joining.contains(member));
    let has =
        |lane: &&LaneView| lane.members.iter().any(|member| joining.contains(member) && lane.in_sync.contains(member));
    let (lanes_total, lanes_done) =
        (lanes.iter().filter(wants).count() as u64, lanes.iter().filter(wants).filter(has).count() as u64);
    let of_volume = report.and_then(|(_, report)| reports::of_volume(report?, &volume.id.to_string()));
    let joins = of_volume.as_ref().map_or_else(Vec::new, |report| joins_of(report, joining));
    let sum = |field: &str| joins.iter().filter_map(|join| join[field].as_u64()).sum::<u64>();
    let part = |join: &&Value| {
        let (done, total) = (join["chunks_done"].as_u64().unwrap_or(0), join["chunks_total"].as_u64().unwrap_or(0));
        if total == 0 { 0.0 } else { done as f64 / total as f64 }
    };
    let parts: f64 = joins.iter().map(|join| part(&join)).sum();
    let percent = 100.0 * (lanes_done as f64 + parts) / lanes_total.max(1) as f64;
    let running = !joins.is_empty();
    Some(Operation {
        id: operation_id(kind, &volume.name, named),
        kind,
        volume: volume.name.clone(),
        device,
        joining: joining.iter().copied().collect(),
        node: state.node_of_device(device).map_or_else(|| "?".into(), |node| node.name.clone()),
        leaving,
        state: if running { OperationState::Running } else { OperationState::Waiting },
        reason: (!running).then(|| waits_for(state, volume, device, report, of_volume.as_ref())),
        lanes_done,
        lanes_total,
        copied_bytes: sum("copied_bytes"),
        compared_bytes: sum("compared_bytes"),
        percent: (percent * 10.0).round() / 10.0,
        rate_bytes_per_s: None,
        eta_s: None,
        cancellable: leaving.is_some(),
    })
}

fn joins_of(report: &Value, devices: &BTreeSet<DeviceId>) -> Vec<Value> {
    let wanted = devices.iter().map(DeviceId::to_string).collect::<Vec<_>>();
    let lanes = report["status"]["lanes"].as_array().map_or(&[][..], Vec::as_slice);
    let is_wanted = |join: &&Value| wanted.iter().any(|device| join["device"] == *device);
    lanes.iter().map(|lane| &lane["join"]).filter(is_wanted).cloned().collect()
}

/// Why nothing is being copied.
fn waits_for(
    state: &State,
    volume: &Volume,
    device: DeviceId,
    report: Option<(NodeId, Option<&Value>)>,
    of_volume: Option<&Value>,
) -> String {
    if state.device(device).is_none_or(|device| matches!(device.state, DeviceState::Failed | DeviceState::Out)) {
        return format!("device {device} has failed; replace it");
    }
    if let Some(node) = state.node_of_device(device).filter(|node| node.liveness != Liveness::Up) {
        return format!("node {} is not up; start it", node.name);
    }
    match (report, of_volume) {
        (None, _) if state.volume_health(volume) == VolumeHealth::Unavailable => {
            "too few in-sync members are up to open the volume; start their nodes".into()
        }
        (None, _) => "the volume is attached nowhere; a caretaker begins soon".into(),
        (Some((holder, None)), _) => {
            let silent = || format!("node {}, which has the volume, does not answer", node_name(state, holder));
            dead_holder(state, volume).unwrap_or_else(silent)
        }
        (Some(_), None) if volume.attachment.is_some_and(|held| state.has_holder_ended(&held)) => {
            "the daemon that had the volume has restarted; a caretaker begins soon".into()
        }
        (Some((holder, Some(_))), None) => format!("node {} is about to attach it", node_name(state, holder)),
        (Some(_), Some(report)) if report["status"]["health"] == "suspended" => {
            format!("the volume is suspended: {}", report["status"]["reason"].as_str().unwrap_or("?"))
        }
        (Some(_), Some(_)) => "its turn has not come: few lanes join at a time, and some time after a failure".into(),
    }
}

/// What the same operation looked like a moment before gives its pace.
pub fn with_pace(now: Operation, before: Option<&Operation>, seconds: f64) -> Operation {
    let Some(before) = before.filter(|_| now.state == OperationState::Running && seconds > 0.0) else { return now };
    let bytes = |operation: &Operation| operation.copied_bytes + operation.compared_bytes;
    let rate = bytes(&now).saturating_sub(bytes(before)) as f64 / seconds;
    let pace = (now.percent - before.percent) / seconds;
    let eta_s = (pace > 0.0).then(|| ((100.0 - now.percent) / pace).ceil() as u64);
    Operation { rate_bytes_per_s: Some(rate as u64), eta_s, ..now }
}

/// The operation of a name that is over: its volume has the device where it should be, or no more where it should not.
pub fn finished(state: &State, id: &str) -> Option<Operation> {
    let (word, rest) = id.split_once('-')?;
    let kind = match word {
        "rejoin" => OperationKind::Rejoin,
        "replace" => OperationKind::Replace,
        _ => return None,
    };
    let (name, prefix) = rest.rsplit_once('-')?;
    let volume = state.volume_by_name(name)?;
    let device = state.devices().find(|device| device.id.to_string().starts_with(prefix))?.id;
    let lanes: Vec<LaneView> = volume.lanes.iter().map(|lane| state.lane_view(lane)).collect();
    let holders = lanes.iter().filter(|lane| lane.members.contains(&device)).count() as u64;
    let is_over = match kind {
        OperationKind::Rejoin => holders > 0,
        OperationKind::Replace => holders == 0,
    };
    is_over.then(|| Operation {
        id: id.to_owned(),
        kind,
        volume: name.to_owned(),
        device,
        joining: vec![device],
        node: state.node_of_device(device).map_or_else(|| "?".into(), |node| node.name.clone()),
        leaving: (kind == OperationKind::Replace).then_some(device),
        state: OperationState::Done,
        reason: None,
        lanes_done: holders,
        lanes_total: holders,
        copied_bytes: 0,
        compared_bytes: 0,
        percent: 100.0,
        rate_bytes_per_s: None,
        eta_s: None,
        cancellable: false,
    })
}

#[cfg(test)]
mod tests;
