//! Emptying nodes and devices, taking that back, and removing what is empty.

use super::Api;
use super::devices::find_device;
use super::drain_view::{EmptyingKind, Subject, emptying, subject_of_device, subjects};
use super::nodes::find_node;
use super::problem::Problem;
use ashlar_model::DeviceId;
use ashlar_raft::placement::{Budget, Move, MovePlan, moves_within};
use ashlar_raft::state::entities::{Admin, DeviceState};
use ashlar_raft::{Command, MetaError, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    /// Say what would be done, and do nothing.
    #[serde(default)]
    dry_run: bool,
    /// Begin although some lanes have no other place now: they stay until there is one.
    #[serde(default)]
    force: bool,
}

pub(super) async fn drain_node(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Json(body): Json<DrainBody>,
) -> Result<Json<Value>, Problem> {
    let state = fresh_state(&api).await?;
    let node = find_node(&state, &name)?;
    let devices = state.devices().filter(|device| device.node == node.id).map(|device| device.id).collect();
    let subject = Subject { kind: EmptyingKind::Drain, node: node.name.clone(), devices, device: None };
    begin(&api, &state, subject, Command::SetNodeAdmin { id: node.id, admin: Admin::Draining }, &body).await
}

pub(super) async fn retire_device(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
    Json(body): Json<DrainBody>,
) -> Result<Json<Value>, Problem> {
    let state = fresh_state(&api).await?;
    let device = find_device(&state, &id)?;
    if device.state == DeviceState::Failed {
        return Err(Problem::conflict(
            "device_failed",
            "nothing was changed",
            format!("device {} has failed: its lanes are rebuilt elsewhere already", device.id),
            "look at `ashlar operation list`",
        ));
    }
    let subject = subject_of_device(&state, device, EmptyingKind::Retire);
    let command = Command::SetDeviceState { id: device.id, state: DeviceState::Draining };
    begin(&api, &state, subject, command, &body).await
}

/// The state as a quorum has it: what is decided must not be decided on old knowledge.
async fn fresh_state(api: &Api) -> Result<Arc<State>, Problem> {
    match api.read_state().await? {
        (state, false) => Ok(state),
        (_, true) => Err(MetaError::Unavailable("no leader with a quorum answers".into()).into()),
    }
}

async fn begin(
    api: &Api,
    state: &State,
    subject: Subject,
    command: Command,
    body: &DrainBody,
) -> Result<Json<Value>, Problem> {
    let mut trial = state.clone();
    trial.apply(&command).map_err(Problem::from)?;
    let plan = moves_within(&trial, Budget::UNLIMITED, |_| true);
    let mine = |leaving: &DeviceId| subject.devices.contains(leaving);
    let blocked = plan.waiting.iter().filter(|one| mine(&one.leaving)).collect::<Vec<_>>();
    if let Some(first) = blocked.first().filter(|_| !body.force && !body.dry_run) {
        let volume = state.volume(first.volume).map_or_else(|| "?".to_owned(), |volume| volume.name.clone());
        return Err(Problem::conflict(
            "nowhere_to_go",
            "nothing was changed",
            format!("lane {} of volume {volume}: {}", first.lane, first.why),
            "add a node or a device, or begin with --force: what has no place stays until there is one",
        ));
    }
    let attached = state.volumes().filter(|volume| {
        let holder = volume.attachment.and_then(|held| state.node(held.node));
        subject.device.is_none() && holder.is_some_and(|node| node.name == subject.node)
    });
    let answer = json!({
        "id": subject.id(),
        "node": subject.node,
        "device": subject.device,
        "lanes": emptying(&trial, &subject, &plan).lanes_left,
        "bytes_max": bytes_of(&plan, &subject.devices),
        "blocked": blocked,
        "attached_volumes": attached.map(|volume| &volume.name).collect::<Vec<_>>(),
        "done": !body.dry_run,
    });
    if !body.dry_run {
        api.node()?.metadata.propose(command).await?;
        tracing::info!(id = subject.id(), "emptying begins");
    }
    Ok(Json(answer))
}

fn bytes_of(plan: &MovePlan, devices: &BTreeSet<DeviceId>) -> u64 {
    plan.moves.iter().filter(|one: &&Move| devices.contains(&one.leaving)).map(|one| one.bytes_max).sum()
}

pub(super) async fn resume_node(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let state = fresh_state(&api).await?;
    let node = find_node(&state, &name)?;
    let command = Command::SetNodeAdmin { id: node.id, admin: Admin::Active };
    let devices = state.devices().filter(|device| device.node == node.id).map(|device| device.id).collect();
    take_back(&api, &state, command, &devices).await
}

pub(super) async fn resume_device(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let state = fresh_state(&api).await?;
    let device = find_device(&state, &id)?;
    if !matches!(device.state, DeviceState::Draining | DeviceState::In) {
        let detail = format!("device {} is {:?}", device.id, device.state).to_lowercase();
        let hint = "only a device that is being emptied can be taken back; replace one that has failed";
        return Err(Problem::conflict("not_draining", "nothing was changed", detail, hint));
    }
    let command = Command::SetDeviceState { id: device.id, state: DeviceState::In };
    take_back(&api, &state, command, &[device.id].into()).await
}

/// Ends the emptying of what `id` names, for `ashlar operation cancel`.
pub(super) async fn cancel(api: &Api, state: &State, id: &str) -> Option<Result<Json<Value>, Problem>> {
    let subject = subjects(state).into_iter().find(|subject| subject.id() == id)?;
    let command = match (subject.kind, subject.device) {
        (EmptyingKind::Rebuild, _) => {
            let detail = "what is lost has to be made anew";
            let hint = "start the node or replace the device: what comes back is used again";
            return Some(Err(Problem::conflict("not_cancellable", "nothing was changed", detail, hint)));
        }
        (_, Some(device)) => Command::SetDeviceState { id: device, state: DeviceState::In },
        (_, None) => Command::SetNodeAdmin { id: state.node_by_name(&subject.node)?.id, admin: Admin::Active },
    };
    Some(take_back(api, state, command, &subject.devices).await)
}

/// In normal use again. Changes under way whose new device is not in sync yet are taken back.
async fn take_back(
    api: &Api,
    state: &State,
    command: Command,
    devices: &BTreeSet<DeviceId>,
) -> Result<Json<Value>, Problem> {
    let metadata = &api.node()?.metadata;
    metadata.propose(command).await?;
    let mut taken_back = BTreeSet::new();
    for volume in state.volumes() {
        let changes = volume.lanes.iter().filter_map(|lane| lane.replacement.as_deref());
        taken_back.extend(
            changes
                .filter(|change| devices.contains(&change.leaving))
                .map(|change| (volume.id, change.leaving, change.joining)),
        );
    }
    let mut count = 0;
    for (volume, leaving, joining) in taken_back {
        // Those that are in sync by now have moved, and stay where they are.
        count += u64::from(metadata.propose(Command::CancelReplacement { volume, leaving, joining }).await.is_ok());
    }
    Ok(Json(json!({ "done": true, "taken_back": count })))
}

pub(super) async fn remove_node(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Problem> {
    let state = fresh_state(&api).await?;
    let node = find_node(&state, &name)?;
    if node.id == api.node()?.id {
        let hint = "ask another node";
        return Err(Problem::conflict("own_node", "nothing was changed", "a node does not remove itself", hint));
    }
    api.node()?.metadata.propose(Command::SetNodeAdmin { id: node.id, admin: Admin::Removed }).await?;
    tracing::info!(node = node.name, "node removed");
    Ok(Json(json!({ "removed": node.name })))
}

pub(super) async fn remove_device(
    Shared(api): Shared<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let state = fresh_state(&api).await?;
    let device = find_device(&state, &id)?;
    api.node()?.metadata.propose(Command::SetDeviceState { id: device.id, state: DeviceState::Out }).await?;
    tracing::info!(device = %device.id, "device removed");
    Ok(Json(json!({ "removed": device.id })))
}
