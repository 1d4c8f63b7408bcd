//! What is being emptied, and how far it is: nodes and devices that operators drain or retire, and those that are lost.
//! Pure: derived from the metadata, so nothing can be out of date.
//!
//! ```text
//! drain-NODE        an operator empties a node
//! retire-DEVICE     an operator empties a device
//! rebuild-NODE      a node is out: its replicas are made anew elsewhere
//! rebuild-DEVICE    the same for a device that has failed
//! ```

use super::operation_view::{OperationState, short};
use super::volume_view::node_name;
use ashlar_model::DeviceId;
use ashlar_raft::State;
use ashlar_raft::placement::{self, MovePlan};
use ashlar_raft::state::entities::{Admin, Device, DeviceState, Liveness};
use serde::Serialize;
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// What kind of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EmptyingKind {
    /// An operator empties a node.
    Drain,
    /// An operator empties a device.
    Retire,
    /// What was on it is made anew elsewhere.
    Rebuild,
}

/// Something that is being emptied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// What kind of work it is.
    pub kind: EmptyingKind,
    /// Its node's name.
    pub node: String,
    /// The devices that shall have no lanes.
    pub devices: BTreeSet<DeviceId>,
    /// It is this device alone.
    pub device: Option<DeviceId>,
}

impl Subject {
    /// Its operation's name.
    pub fn id(&self) -> String {
        let word = match self.kind {
            EmptyingKind::Drain => "drain",
            EmptyingKind::Retire => "retire",
            EmptyingKind::Rebuild => "rebuild",
        };
        format!("{word}-{}", self.device.map_or_else(|| self.node.clone(), short))
    }
}

/// How far it is.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct Emptying {
    /// Its name.
    pub id: String,
    /// What kind of work.
    pub kind: EmptyingKind,
    /// Name of the node.
    pub node: String,
    /// The device, if it is one alone.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub device: Option<DeviceId>,
    /// How it stands.
    pub state: OperationState,
    /// Why it waits.
    pub reason: Option<String>,
    /// Lanes that it holds still.
    pub lanes_left: u64,
    /// Those of them that change a member now.
    pub lanes_moving: u64,
    /// Bytes that are promised to lanes there still: so much is copied at most.
    pub bytes_left_max: u64,
    /// It can be taken back.
    pub cancellable: bool,
}

/// Everything that is being emptied, or is empty and still marked so.
pub fn subjects(state: &State) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for node in state.nodes().filter(|node| node.admin != Admin::Removed) {
        let kind = match (node.liveness, node.admin) {
            (Liveness::Out, _) => EmptyingKind::Rebuild,
            (_, Admin::Draining) => EmptyingKind::Drain,
            _ => continue,
        };
        let own = state.devices().filter(|device| device.node == node.id && device.state != DeviceState::Out);
        let devices = own.map(|device| device.id).collect();
        subjects.push(Subject { kind, node: node.name.clone(), devices, device: None });
    }
    for device in state.devices() {
        let kind = match device.state {
            DeviceState::Failed => EmptyingKind::Rebuild,
            DeviceState::Draining => EmptyingKind::Retire,
            _ => continue,
        };
        subjects.push(subject_of_device(state, device, kind));
    }
    subjects
}

/// A device alone.
pub fn subject_of_device(state: &State, device: &Device, kind: EmptyingKind) -> Subject {
    let node = node_name(state, device.node);
    Subject { kind, node, devices: [device.id].into(), device: Some(device.id) }
}

/// How far everything is. What is done is left out, as with all operations.
pub fn emptyings(state: &State) -> Vec<Emptying> {
    let mut open = subjects(state);
    open.retain(|subject| lanes_left(state, subject) > 0);
    if open.is_empty() {
        return Vec::new();
    }
    let plan = placement::moves(state);
    open.iter().map(|subject| emptying(state, subject, &plan)).collect()
}

/// The one of a name, also if it is over.
pub fn find(state: &State, id: &str) -> Option<Emptying> {
    emptyings(state).into_iter().find(|one| one.id == id).or_else(|| finished(state, id))
}

/// The operation of a name that is over.
fn finished(state: &State, id: &str) -> Option<Emptying> {
    let over = |subject: &Subject| subject.id() == id && lanes_left(state, subject) == 0;
    subjects(state).iter().find(|subject| over(subject)).map(|subject| emptying(state, subject, &MovePlan::default()))
}

fn lanes_left(state: &State, subject: &Subject) -> u64 {
    held(state, subject).map(|device| u64::from(device.lane_count)).sum()
}

fn held<'a>(state: &'a State, subject: &'a Subject) -> impl Iterator<Item = &'a Device> {
    subject.devices.iter().filter_map(|device| state.device(*device))
}

/// One of them, given what the planner says.
pub fn emptying(state: &State, subject: &Subject, plan: &MovePlan) -> Emptying {
    let lanes_left = lanes_left(state, subject);
    let changes = state.volumes().flat_map(|volume| &volume.lanes).filter_map(|lane| lane.replacement.as_deref());
    let lanes_moving = changes.filter(|change| subject.devices.contains(&change.leaving)).count() as u64;
    let begins = plan.moves.iter().any(|one| subject.devices.contains(&one.leaving));
    let waiting = plan.waiting.iter().find(|one| subject.devices.contains(&one.leaving));
    let (standing, reason) = if lanes_left == 0 {
        (OperationState::Done, None)
    } else if lanes_moving > 0 || begins {
        (OperationState::Running, None)
    } else {
        let volume = |id| state.volume(id).map_or_else(|| "?".to_owned(), |volume| volume.name.clone());
        let why = waiting.map(|one| format!("lane {} of volume {}: {}", one.lane, volume(one.volume), one.why));
        (OperationState::Waiting, Some(why.unwrap_or_else(|| "its turn has not come: few lanes move at a time".into())))
    };
    Emptying {
        id: subject.id(),
        kind: subject.kind,
        node: subject.node.clone(),
        device: subject.device,
        state: standing,
        reason,
        lanes_left,
        lanes_moving,
        bytes_left_max: held(state, subject).map(|device| device.committed_bytes).sum(),
        cancellable: subject.kind != EmptyingKind::Rebuild,
    }
}
