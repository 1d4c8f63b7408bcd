//! Volumes: list, show, create, delete.

use super::problem::Problem;
use super::volume_view::volume_view;
use super::{Api, reports};
use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::units::{BLOCK_BYTES, ByteSize, CHUNK_BYTES, GIB};
use ashlar_model::{VolumeGeometry, VolumeId};
use ashlar_raft::command::{CreateVolume, DetachBy};
use ashlar_raft::placement::{self, NoPlacement, PlacementRequest};
use ashlar_raft::state::entities::{AttachMode, Locality, Spread, SpreadLevel, Volume, VolumeLabels};
use ashlar_raft::{Command, MetaError, Refusal, State};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const VIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// A plan is made on a state that may change before it is committed: plan again.
const PLANS_MAX: u32 = 3;
const LIST_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    name: String,
    /// Exact size; or `size`.
    size_bytes: Option<u64>,
    /// Size as people write it.
    size: Option<String>,
    #[serde(default = "default_replicas")]
    replicas: u8,
    lanes: Option<u16>,
    #[serde(default)]
    quorum: QuorumPolicy,
    /// Writes wait while a lane has fewer in-sync members.
    #[serde(default = "default_min_in_sync")]
    min_in_sync: u8,
    /// `zone`, `rack` or `node`, with `:soft` or `:hard`.
    spread: Option<String>,
    /// Absent: `prefer` if a node is named, else `none`.
    locality: Option<Locality>,
    /// Node that will attach it, for locality.
    attach_node: Option<String>,
    class: Option<String>,
    #[serde(default)]
    labels: VolumeLabels,
}

fn default_replicas() -> u8 {
    3
}

fn default_min_in_sync() -> u8 {
    1
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    after: String,
    limit: Option<usize>,
}

#[derive(Deserialize)]
pub(super) struct DeleteQuery {
    #[serde(default)]
    force: bool,
}

pub(super) fn find<'a>(state: &'a State, name: &str) -> Result<&'a Volume, Problem> {
    let by_id = || name.parse().ok().and_then(|id| state.volume(id));
    state.volume_by_name(name).or_else(by_id).ok_or_else(|| Problem::not_found("volume", name))
}

pub(super) async fn list(
    Shared(api): Shared<Arc<Api>>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let limit = query.limit.unwrap_or(LIST_MAX).clamp(1, LIST_MAX);
    let mut volumes: Vec<&Volume> = state.volumes().filter(|volume| volume.name > query.after).collect();
    volumes.sort_by(|one, other| one.name.cmp(&other.name));
    let next = (volumes.len() > limit).then(|| volumes[limit - 1].name.clone());
    volumes.truncate(limit);
    let holders = volumes.iter().filter_map(|volume| volume.attachment.map(|held| held.node)).collect();
    let reports = reports::gather(&api, &state, holders).await;
    let items: Vec<Value> = volumes.iter().map(|volume| volume_view(&state, volume, &reports, false)).collect();
    Ok(Json(json!({ "items": items, "next": next, "stale": stale })))
}

pub(super) async fn show(Shared(api): Shared<Arc<Api>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let volume = find(&state, &name)?;
    let holder = volume.attachment.iter().map(|held| held.node).collect();
    let reports = reports::gather(&api, &state, holder).await;
    let mut view = volume_view(&state, volume, &reports, true);
    view["stale"] = stale.into();
    Ok(Json(view))
}

pub(super) async fn create(
    Shared(api): Shared<Arc<Api>>,
    headers: HeaderMap,
    Json(body): Json<CreateBody>,
) -> Result<Json<Value>, Problem> {
    let node = api.node()?;
    let token = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let id = VolumeId(uuid::Uuid::new_v4());
    let mut notes = Vec::new();
    for attempt in 1.. {
        let (state, stale) = api.read_state().await?;
        if stale {
            return Err(MetaError::Unavailable("no leader with a quorum answers".into()).into());
        }
        let command = decide(&state, id, &body, token.clone(), &mut notes)?;
        drop(state);
        match node.metadata.propose(Command::CreateVolume(command)).await {
            Ok(_) => break,
            Err(MetaError::Refused(Refusal::Placement(why))) if attempt < PLANS_MAX => {
                tracing::debug!("the placement did not hold any more: {why}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (state, _) = api.read_state().await?;
    let volume = find(&state, &body.name)?;
    // A guest may open the export on this node right after the answer.
    node.wait_pushed(state.version(), VIEW_TIMEOUT).await;
    let mut view = volume_view(&state, volume, &Default::default(), true);
    view["notes"] = json!(notes);
    Ok(Json(view))
}

/// The planner's decision as a command, with what people should know of it. Runs on whichever member was asked; the
/// leader checks it when it applies.
fn decide(
    state: &State,
    id: VolumeId,
    body: &CreateBody,
    token: Option<String>,
    notes: &mut Vec<String>,
) -> Result<CreateVolume, Problem> {
    let size_bytes = size_of(body)?;
    let geometry = VolumeGeometry { size_bytes, lane_count: body.lanes.unwrap_or_else(|| default_lanes(size_bytes)) };
    if geometry.lane_count == 0 || geometry.lane_count > ashlar_model::limits::LANES_MAX {
        return Err(Problem::invalid(
            "a volume has 1 to 64 lanes",
            "leave --lanes out to have a number that fits the size",
        ));
    }
    let spread = body.spread.as_deref().map_or(Ok(Spread::default()), parse_spread)?;
    let attach_node = body
        .attach_node
        .as_deref()
        .map(|name| state.node_by_name(name).map(|node| node.id).ok_or_else(|| Problem::not_found("node", name)));
    let attach_node = attach_node.transpose()?;
    let locality = locality_of(body)?;
    // A repeated create must reach the state machine, which knows the token, even if nothing could be placed now.
    let request = PlacementRequest {
        volume: id,
        geometry,
        replicas: body.replicas,
        spread,
        locality,
        attach_node,
        class: body.class.clone(),
    };
    let lanes = match placement::decide(state, &request) {
        Ok(decision) => {
            // The default gives way silently: it asks for nothing.
            let fallback = decision.fallback.filter(|_| body.spread.is_some());
            *notes = fallback.into_iter().chain(decision.remote).collect();
            decision.lanes
        }
        Err(_) if token.is_some() && state.volume_by_name(&body.name).is_some() => {
            vec![Vec::new(); usize::from(geometry.lane_count)]
        }
        Err(refused) => return Err(placement_problem(state, refused)),
    };
    Ok(CreateVolume {
        id,
        name: body.name.clone(),
        labels: body.labels.clone(),
        geometry,
        replicas: body.replicas,
        quorum: body.quorum,
        in_sync_min: body.min_in_sync,
        spread,
        locality,
        class: body.class.clone(),
        lanes,
        token,
    })
}

fn placement_problem(state: &State, refused: NoPlacement) -> Problem {
    let NoPlacement { reason, hint } = refused;
    let nodes: std::collections::BTreeSet<_> = state.devices().map(|device| device.node).collect();
    Problem::conflict(
        "placement_refused",
        "the volume cannot be placed",
        format!("{reason} (nodes with devices: {}, devices: {})", nodes.len(), state.devices().count()),
        hint,
    )
}

/// Who names a node wants a copy there.
fn locality_of(body: &CreateBody) -> Result<Locality, Problem> {
    match (body.locality, &body.attach_node) {
        (Some(Locality::None), Some(node)) => Err(Problem::invalid(
            format!("locality 'none' asks for no copy on node '{node}'"),
            "leave the node out, or ask for locality 'prefer' or 'require'",
        )),
        (Some(Locality::Require), None) => Err(Problem::invalid(
            "locality 'require' needs the node that will attach the volume",
            "name it with --on NODE, or ask for locality 'prefer'",
        )),
        (Some(locality), _) => Ok(locality),
        (None, node) => Ok(if node.is_some() { Locality::Prefer } else { Locality::None }),
    }
}

fn size_of(body: &CreateBody) -> Result<u64, Problem> {
    let bytes = match (body.size_bytes, &body.size) {
        (Some(bytes), None) => bytes,
        (None, Some(text)) => text.parse::<ByteSize>().map_err(|why| Problem::invalid(why, "write it like 10GiB"))?.0,
        _ => return Err(Problem::invalid("give either size_bytes or size", "for instance {\"size\": \"10GiB\"}")),
    };
    let block = BLOCK_BYTES as u64;
    bytes.checked_next_multiple_of(block).ok_or_else(|| Problem::invalid("the size is too large", "ask for less"))
}

/// Enough lanes that a volume is spread over several devices, few enough that each stays busy.
fn default_lanes(size_bytes: u64) -> u16 {
    let chunks = size_bytes.div_ceil(CHUNK_BYTES as u64).max(1);
    (size_bytes / (64 * GIB)).clamp(4, 32).min(chunks) as u16
}

fn parse_spread(text: &str) -> Result<Spread, Problem> {
    let (level, softness) = text.split_once(':').unwrap_or((text, "hard"));
    let level = match level {
        "zone" => SpreadLevel::Zone,
        "rack" => SpreadLevel::Rack,
        "node" => SpreadLevel::Node,
        _ => {
            return Err(Problem::invalid(
                format!("'{text}' is no spread"),
                "write zone, rack or node, with :soft if it may give way",
            ));
        }
    };
    match softness {
        "soft" | "hard" => Ok(Spread { level, soft: softness == "soft" }),
        _ => Err(Problem::invalid(format!("'{softness}' is neither soft nor hard"), "write for instance zone:soft")),
    }
}

pub(super) async fn delete(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Json<Value>, Problem> {
    let node = api.node()?;
    let (state, _) = api.read_state().await?;
    let volume = find(&state, &name)?.clone();
    let nodes: Vec<String> =
        state.nodes_of_volume(&volume).iter().map(|id| super::volume_view::node_name(&state, *id)).collect();
    if let Some(held) = volume.attachment.filter(|held| held.mode != AttachMode::Maintenance) {
        let holder = super::volume_view::node_name(&state, held.node);
        if !query.force {
            let problem = Problem::from(Refusal::Attached { volume: volume.id, holder_name: holder });
            let named = format!("'{}'", volume.name);
            return Err(Problem { detail: problem.detail.replace(&volume.id.to_string(), &named), ..problem });
        }
        let by = DetachBy::Operator { epoch: volume.epoch, force: true };
        node.metadata.propose(Command::Detach { volume: volume.id, by }).await?;
    }
    drop(state);
    node.metadata.propose(Command::DeleteVolume { volume: volume.id }).await?;
    tracing::info!(volume = %volume.id, name, "volume deleted");
    Ok(Json(json!({
        "deleted": volume.name, "id": volume.id, "size_bytes": volume.geometry.size_bytes,
        "replicas": volume.replicas, "nodes": nodes,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_follow_the_size() {
        assert_eq!(default_lanes(1), 1);
        assert_eq!(default_lanes(2 * GIB), 4);
        assert_eq!(default_lanes(1024 * GIB), 16);
        assert_eq!(default_lanes(1 << 48), 32);
    }

    #[test]
    fn spreads_read_as_written() {
        assert_eq!(parse_spread("zone:soft").unwrap(), Spread { level: SpreadLevel::Zone, soft: true });
        assert_eq!(parse_spread("node").unwrap(), Spread { level: SpreadLevel::Node, soft: false });
        for text in ["", "zones", "zone:", "zone:maybe"] {
            assert_eq!(parse_spread(text).unwrap_err().code, "invalid", "{text}");
        }
    }

    #[test]
    fn who_names_a_node_wants_a_copy_there() {
        let wish = |json: Value| {
            let mut body = json!({ "name": "v", "size_bytes": 4096 });
            body.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
            locality_of(&serde_json::from_value(body).unwrap())
        };
        assert_eq!(wish(json!({})).unwrap(), Locality::None);
        assert_eq!(wish(json!({ "attach_node": "n1" })).unwrap(), Locality::Prefer);
        assert_eq!(wish(json!({ "attach_node": "n1", "locality": "require" })).unwrap(), Locality::Require);
        assert_eq!(wish(json!({ "locality": "prefer" })).unwrap(), Locality::Prefer, "of whichever node attaches it");
        assert_eq!(wish(json!({ "attach_node": "n1", "locality": "none" })).unwrap_err().code, "invalid");
        assert_eq!(wish(json!({ "locality": "require" })).unwrap_err().code, "invalid");
    }

    #[test]
    fn sizes_are_exact_or_readable_and_whole_blocks() {
        let body = |json: Value| serde_json::from_value::<CreateBody>(json).unwrap();
        assert_eq!(size_of(&body(json!({ "name": "v", "size_bytes": 5000 }))).unwrap(), 8192);
        assert_eq!(size_of(&body(json!({ "name": "v", "size": "2GiB" }))).unwrap(), 2 * GIB);
        assert!(size_of(&body(json!({ "name": "v" }))).is_err());
        assert!(size_of(&body(json!({ "name": "v", "size": "2gib" }))).is_err());
    }
}
