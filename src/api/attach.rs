//! Attaching volumes to nodes: attach, take over, detach, and putting a member out.

use super::devices::find_device_row;
use super::problem::Problem;
use super::{Api, forward};
use crate::agent::view::VolumeRow;
use crate::agent::{Node, handover};
use crate::shard::control::{AttachDone, AttachRefusal, ShardCommand};
use ashlar_model::{DeviceId, NodeId};
use ashlar_raft::Command;
use ashlar_raft::command::DetachBy;
use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
const DETACH_TIMEOUT: Duration = Duration::from_secs(30);
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);
const EJECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A volume that is just being let go on this node is attached anew when it is gone.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const BUSY_REPEATS: u32 = 20;

/// How a volume is attached.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachBody {
    /// Name or number of the node; the one that is asked if absent.
    node: Option<String>,
    /// Take it from the node that holds it: cleanly if that one answers, else at once.
    #[serde(default)]
    takeover: bool,
}

/// How a volume is detached.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DetachBody {
    /// Also if its holder does not answer and is not known to be down.
    #[serde(default)]
    force: bool,
}

/// A member to be put out.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EjectBody {
    /// Identity of the device, or its beginning.
    device: String,
}

/// A volume is attached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Attached {
    /// Name of the volume.
    pub attached: String,
    /// Name of the node.
    pub node: String,
    /// Name of the node that it was taken from.
    pub from: Option<String>,
    /// `clean` or `taken_over`, if it was taken from another node.
    #[schema(value_type = Option<String>)]
    pub handover: Option<&'static str>,
}

/// A volume is not attached any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Detached {
    /// Name of the volume.
    pub detached: String,
    /// It was attached before.
    pub was_attached: bool,
    /// Its lanes were closed cleanly; if not, the next attach recovers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean: Option<bool>,
}

/// A member is being put out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Ejecting {
    /// Name of the volume.
    pub volume: String,
    /// The device.
    #[schema(value_type = String, format = "uuid")]
    pub ejecting: DeviceId,
}

/// The volume in this node's view; a volume that was created a moment ago on another node may need a moment.
async fn wait_for_row(node: &Node, name: &str) -> Result<VolumeRow, Problem> {
    let mut views = node.views.clone();
    let found = views.wait_for(|view| view.find_volume(name).is_some());
    let view = match tokio::time::timeout(Duration::from_secs(1), found).await {
        Ok(Ok(view)) => view.clone(),
        _ => return Err(Problem::not_found("volume", name)),
    };
    node.wait_pushed(view.version, VIEW_TIMEOUT).await;
    view.find_volume(name).cloned().ok_or_else(|| Problem::not_found("volume", name))
}

/// Attach a volume to a node
///
/// Opening its NBD export does the same.
#[utoipa::path(
    post, path = "/v1/volumes/{name}/attach", operation_id = "attach_volume", tag = "volumes",
    request_body = AttachBody, params(("name" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "It is attached", body = Attached)),
)]
pub(super) async fn attach(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<AttachBody>,
) -> Result<Response, Problem> {
    let node = api.node()?;
    if let Some(wanted) = &body.node {
        let view = node.view();
        let row = view.find_node(wanted).ok_or_else(|| Problem::not_found("node", wanted))?;
        if row.id != node.id {
            let json = json!({ "node": body.node, "takeover": body.takeover });
            let path = format!("/v1/volumes/{name}/attach");
            return forward::to_node(&api, &headers, &row.api_address, &path, &json, ATTACH_TIMEOUT).await;
        }
    }
    if !node.config.roles.target {
        let detail = format!("node {} has no target role", node.config.name);
        return Err(Problem::conflict(
            "node_unfit",
            "this node serves no volumes",
            detail,
            "attach it on another node",
        ));
    }
    let row = wait_for_row(node, &name).await?;
    let user = row.user().filter(|user| *user != node.id);
    let handed_over = body.takeover && user.is_some();
    if handed_over {
        handover::ask_holder(&api.client, &node.view(), node.id, &row, false).await;
    }
    let done = attach_here(node, &row, handed_over).await?;
    let from = user.filter(|_| handed_over);
    Ok(Json(attach_view(node, &row, from, done)).into_response())
}

async fn attach_here(node: &Node, row: &VolumeRow, takeover: bool) -> Result<AttachDone, Problem> {
    let volume = row.spec.id;
    let mut repeats = 0;
    loop {
        let answer = node.ask_shard(ATTACH_TIMEOUT, |done| ShardCommand::Attach { volume, takeover, done }).await;
        match answer {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(refusal)) if refusal.retry && repeats < BUSY_REPEATS => repeats += 1,
            Ok(Err(refusal)) => return Err(refused(refusal)),
            Err(why) => {
                let hint = "look at `ashlar volume show` for what it waits for";
                return Err(Problem::unavailable("attach_pending", why, hint));
            }
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

fn refused(refusal: AttachRefusal) -> Problem {
    if refusal.retry {
        return Problem::unavailable("attach_refused", refusal.message, "repeat it");
    }
    let hint = "detach it there, or take it over with --takeover";
    Problem::conflict("attached_elsewhere", "the volume was not attached", refusal.message, hint)
}

/// `from`: the node that it was taken from.
fn attach_view(node: &Node, row: &VolumeRow, from: Option<NodeId>, done: AttachDone) -> Attached {
    let view = node.view();
    let name = |id: NodeId| view.node(id).map_or_else(|| id.to_string(), |node| node.name.clone());
    let how = from.map(|_| if done.clean { "clean" } else { "taken_over" });
    let (attached, node) = (row.spec.name.clone(), node.config.name.clone());
    Attached { attached, node, from: from.map(name), handover: how }
}

/// Detach a volume
#[utoipa::path(
    post, path = "/v1/volumes/{name}/detach", operation_id = "detach_volume", tag = "volumes",
    request_body = DetachBody, params(("name" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "It is not attached any more", body = Detached)),
)]
pub(super) async fn detach(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<DetachBody>,
) -> Result<Response, Problem> {
    let node = api.node()?;
    let row = wait_for_row(node, &name).await?;
    let Some(holder) = row.user() else {
        return Ok(detached(&row, false, None));
    };
    if holder == node.id {
        return detach_here(node, &row).await;
    }
    let address = node.view().node(holder).map(|holder| holder.api_address.clone());
    let json = json!({ "force": body.force });
    let path = format!("/v1/volumes/{name}/detach");
    let passed_on = match &address {
        Some(address) => forward::to_node(&api, &headers, address, &path, &json, DETACH_TIMEOUT).await,
        None => Err(Problem::unavailable("node_unreachable", "the holder is gone", "use --force")),
    };
    match passed_on {
        Err(problem) if problem.code == "node_unreachable" => {
            let by = DetachBy::Operator { epoch: row.epoch, force: body.force };
            node.metadata.propose(Command::Detach { volume: row.spec.id, by }).await?;
            Ok(detached(&row, true, Some(false)))
        }
        other => other,
    }
}

async fn detach_here(node: &Node, row: &VolumeRow) -> Result<Response, Problem> {
    let volume = row.spec.id;
    let ended = node.ask_shard(DETACH_TIMEOUT, |done| ShardCommand::Detach { volume, done }).await;
    let clean = ended.map_err(|why| Problem::unavailable("detach_pending", why, "look at `ashlar volume show`"))?;
    let mut views = node.views.clone();
    let gone = views.wait_for(|view| {
        let now = view.volumes.iter().find(|other| other.spec.id == volume);
        now.is_none_or(|now| now.holder.is_none() || now.epoch != row.epoch)
    });
    if tokio::time::timeout(VIEW_TIMEOUT, gone).await.is_err() {
        // Nobody writes here: an attachment of an earlier run of this daemon is cleared by hand.
        let by = DetachBy::Operator { epoch: row.epoch, force: true };
        node.metadata.propose(Command::Detach { volume, by }).await?;
    }
    Ok(detached(row, true, Some(clean)))
}

fn detached(row: &VolumeRow, was_attached: bool, clean: Option<bool>) -> Response {
    Json(Detached { detached: row.spec.name.clone(), was_attached, clean }).into_response()
}

/// Put a member out of the in-sync sets of an attached volume
///
/// The node that writes the volume does it. The member comes back like one that was away.
#[utoipa::path(
    post, path = "/v1/volumes/{name}/eject", operation_id = "eject_member", tag = "volumes",
    request_body = EjectBody, params(("name" = String, Path, description = "Name or identity")),
    responses((status = 200, description = "It is being put out", body = Ejecting)),
)]
pub(super) async fn eject(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(body): Json<EjectBody>,
) -> Result<Response, Problem> {
    let node = api.node()?;
    let row = wait_for_row(node, &name).await?;
    let view = node.view();
    let device = find_device_row(&view, &body.device)?.id;
    let (volume, holder) = (row.spec.id, row.holder);
    let not_attached = || {
        let detail = format!("volume '{}' is not attached; only its writer changes its members", row.spec.name);
        let hint = "attach it with `ashlar volume attach NAME`, or replace the device";
        Problem::conflict("not_attached", "nothing was changed", detail, hint)
    };
    let holder = holder.ok_or_else(not_attached)?;
    if holder != node.id {
        let address = view.node(holder).map(|holder| holder.api_address.clone()).ok_or_else(not_attached)?;
        let path = format!("/v1/volumes/{name}/eject");
        return forward::to_node(&api, &headers, &address, &path, &json!({ "device": device }), EJECT_TIMEOUT).await;
    }
    let told = node.ask_shard(EJECT_TIMEOUT, |done| ShardCommand::Eject { volume, device, done }).await;
    match told {
        Ok(true) => Ok(Json(Ejecting { volume: row.spec.name.clone(), ejecting: device }).into_response()),
        Ok(false) => Err(not_attached()),
        Err(why) => Err(Problem::unavailable("eject_pending", why, "look at `ashlar volume show`")),
    }
}
