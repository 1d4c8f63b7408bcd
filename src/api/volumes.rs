//! Volumes: list, show, create, delete.

use super::page::{Page, PageQuery};
use super::problem::Problem;
use super::shapes;
use super::volume_view::{VolumeView, volume_view};
use super::watch::{self, Kind, WatchLine, WatchQuery};
use super::{Api, idempotency, reports};
use ashlar_model::cluster::QuorumPolicy;
use ashlar_model::units::{BLOCK_BYTES, ByteSize, CHUNK_BYTES, GIB};
use ashlar_model::{VolumeGeometry, VolumeId};
use ashlar_raft::command::{CreateVolume, DetachBy};
use ashlar_raft::placement::{self, NoPlacement, PlacementRequest};
use ashlar_raft::state::entities::{AttachMode, Locality, Spread, SpreadLevel, Volume, VolumeLabels};
use ashlar_raft::{Command, MetaError, Refusal, Response, State};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response as HttpResponse};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

pub(super) const VIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// A plan is made on a state that may change before it is committed: plan again.
const PLANS_MAX: u32 = 3;

/// A volume to be created.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    /// Unique in the cluster.
    name: String,
    /// Exact size; or `size`.
    size_bytes: Option<u64>,
    /// Size as people write it: `10GiB`.
    size: Option<String>,
    /// Copies of every block, 1 to 3.
    #[serde(default = "default_replicas")]
    #[schema(default = default_replicas)]
    replicas: u8,
    /// Units of replication, 1 to 64; fits the size if absent.
    lanes: Option<u16>,
    /// Who must have a write before it is acknowledged.
    #[serde(default)]
    #[schema(schema_with = shapes::quorum)]
    quorum: QuorumPolicy,
    /// Writes wait while a lane has fewer in-sync members.
    #[serde(default = "default_min_in_sync")]
    #[schema(default = default_min_in_sync)]
    min_in_sync: u8,
    /// `zone`, `rack` or `node`, with `:soft` or `:hard`.
    spread: Option<String>,
    /// Whether a copy shall be on the node that attaches it. Absent: `prefer` if a node is named, else `none`.
    #[schema(schema_with = shapes::locality)]
    locality: Option<Locality>,
    /// Node that will attach it, for locality.
    attach_node: Option<String>,
    /// The only class of devices that it may use.
    class: Option<String>,
    /// Free labels.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    labels: VolumeLabels,
}

/// A volume, as one member of the metadata service tells it.
#[derive(Serialize, ToSchema)]
pub struct VolumeDetail {
    /// The volume.
    #[serde(flatten)]
    pub volume: VolumeView,
    /// No quorum vouched for it: it may be old.
    pub stale: bool,
}

/// A volume was deleted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct VolumeDeleted {
    /// Its name.
    pub deleted: String,
    /// Its identity.
    #[schema(value_type = String, format = "uuid")]
    pub id: VolumeId,
    /// Bytes that guests saw.
    pub size_bytes: u64,
    /// Copies of every block.
    pub replicas: u8,
    /// Names of the nodes that kept copies.
    pub nodes: Vec<String>,
}

fn default_replicas() -> u8 {
    3
}

fn default_min_in_sync() -> u8 {
    1
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// Also while it is attached.
    #[serde(default)]
    force: bool,
}

pub(super) fn find<'a>(state: &'a State, name: &str) -> Result<&'a Volume, Problem> {
    let by_id = || name.parse().ok().and_then(|id| state.volume(id));
    state.volume_by_name(name).or_else(by_id).ok_or_else(|| Problem::not_found("volume", name))
}

/// All volumes
#[utoipa::path(
    get, path = "/v1/volumes", operation_id = "list_volumes", tag = "volumes", params(PageQuery),
    responses((
        status = 200, description = "The volumes, by name",
        content((Page<VolumeView> = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn list(
    Shared(api): Shared<Arc<Api>>,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, Problem> {
    if query.is_watch()? {
        return watch::stream(&api, Kind::Volumes, None).await;
    }
    let asked = query.of::<String>("volumes")?;
    let (state, stale) = api.read_state().await?;
    let (volumes, next) = asked.cut(state.volumes_after(asked.after.as_deref()), |volume| volume.name.clone());
    let holders = volumes.iter().filter_map(|volume| volume.attachment.map(|held| held.node)).collect();
    let reports = reports::gather(&api, &state, holders).await;
    let items = volumes.iter().map(|volume| volume_view(&state, volume, &reports, false)).collect();
    Ok(Json(Page { items, next, stale }).into_response())
}

/// One volume, with its lanes and members
#[utoipa::path(
    get, path = "/v1/volumes/{name}", operation_id = "get_volume", tag = "volumes",
    params(("name" = String, Path, description = "Name or identity"), WatchQuery),
    responses((
        status = 200, description = "The volume",
        content((VolumeDetail = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn show(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<HttpResponse, Problem> {
    let (state, stale) = api.read_state().await?;
    let volume = find(&state, &name)?;
    if query.watch {
        return watch::stream(&api, Kind::Volumes, Some(name)).await;
    }
    let holder = volume.attachment.iter().map(|held| held.node).collect();
    let reports = reports::gather(&api, &state, holder).await;
    Ok(Json(VolumeDetail { volume: volume_view(&state, volume, &reports, true), stale }).into_response())
}

/// Create a volume
///
/// With an `Idempotency-Key` a repeated request gets the volume of the first one; another request with the same key is
/// refused. The cluster remembers the latest 16 384 keys.
#[utoipa::path(
    post, path = "/v1/volumes", operation_id = "create_volume", tag = "volumes", request_body = CreateBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 128 characters, new for every volume")),
    responses((status = 200, description = "It is there", body = VolumeView)),
)]
pub(super) async fn create(
    Shared(api): Shared<Arc<Api>>,
    headers: HeaderMap,
    Json(body): Json<CreateBody>,
) -> Result<Json<VolumeView>, Problem> {
    let node = api.node()?;
    let token = idempotency::key_of(&headers)?;
    let mut notes = Vec::new();
    let (command, created) = plan_and_propose(&api, &body, token, &mut notes).await?;
    let (state, _) = api.read_state().await?;
    let volume = state.volume(created).ok_or_else(|| idempotency::deleted(&body.name))?;
    if created != command.id {
        idempotency::check_same(volume, &command)?;
    }
    // A guest may open the export on this node right after the answer.
    node.wait_pushed(state.version(), VIEW_TIMEOUT).await;
    Ok(Json(VolumeView { notes, ..volume_view(&state, volume, &Default::default(), true) }))
}

/// The command that went through, and the volume that is there because of it: that of the first request if this one
/// repeats it.
async fn plan_and_propose(
    api: &Api,
    body: &CreateBody,
    token: Option<String>,
    notes: &mut Vec<String>,
) -> Result<(CreateVolume, VolumeId), Problem> {
    let id = VolumeId(uuid::Uuid::new_v4());
    let mut attempt = 1;
    loop {
        let (state, stale) = api.read_state().await?;
        if stale {
            return Err(MetaError::Unavailable("no leader with a quorum answers".into()).into());
        }
        let command = decide(&state, id, body, token.clone(), notes)?;
        drop(state);
        match api.node()?.metadata.propose(Command::CreateVolume(command.clone())).await {
            Ok(Response::Volume(created)) => return Ok((command, created)),
            Ok(other) => {
                return Err(Problem::unavailable("unavailable", format!("unexpected answer: {other:?}"), "repeat it"));
            }
            Err(MetaError::Refused(Refusal::Placement(why))) if attempt < PLANS_MAX => {
                tracing::debug!("the placement did not hold any more: {why}");
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
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
    let size_bytes = exact_size(body.size_bytes, body.size.as_deref())?;
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

/// A size in whole blocks, of the two ways to give one.
pub(super) fn exact_size(size_bytes: Option<u64>, size: Option<&str>) -> Result<u64, Problem> {
    let bytes = match (size_bytes, size) {
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

/// Delete a volume and all its data
#[utoipa::path(
    delete, path = "/v1/volumes/{name}", operation_id = "delete_volume", tag = "volumes",
    params(("name" = String, Path, description = "Name or identity"), DeleteQuery),
    responses((status = 200, description = "It is deleted", body = VolumeDeleted)),
)]
pub(super) async fn delete(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Json<VolumeDeleted>, Problem> {
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
    let Volume { id, name, geometry, replicas, .. } = volume;
    Ok(Json(VolumeDeleted { deleted: name, id, size_bytes: geometry.size_bytes, replicas, nodes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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
        assert_eq!(exact_size(Some(5000), None).unwrap(), 8192);
        assert_eq!(exact_size(None, Some("2GiB")).unwrap(), 2 * GIB);
        assert!(exact_size(None, None).is_err());
        assert!(exact_size(Some(5000), Some("2GiB")).is_err());
        assert!(exact_size(None, Some("2gib")).is_err());
    }
}
