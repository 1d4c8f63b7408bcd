//! Nodes: list, show, and the registration of a node that joins.

use super::Api;
use super::page::{Page, PageQuery};
use super::problem::Problem;
use super::shapes::{LabelsShape, NodeSpecShape};
use super::watch::{self, Kind, WatchLine, WatchQuery};
use ashlar_model::{DeviceId, NodeId, SessionId};
use ashlar_raft::command::NodeSpec;
use ashlar_raft::outs::Outs;
use ashlar_raft::state::entities::{Admin, Labels, Liveness, Node, NodeState};
use ashlar_raft::{Command, Response, State};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use axum::response::{IntoResponse, Response as HttpResponse};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// What a joining node is told.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// Its number.
    pub node_id: u64,
    /// The cluster.
    pub cluster_id: String,
    /// API addresses of the members of the metadata service.
    pub members: Vec<String>,
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub struct NodeView {
    /// Its number, never used again.
    #[schema(value_type = u64)]
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `up`, `suspect`, `down`, `out`, `draining` or `removed`.
    #[schema(value_type = String)]
    pub state: NodeState,
    /// Of `store`, `target` and `meta`.
    #[schema(value_type = Vec<String>)]
    pub roles: Vec<&'static str>,
    /// It leads the metadata service.
    pub leads_metadata: bool,
    /// `host:port` of its HTTP API.
    pub api_address: String,
    /// `host:port` of its data plane.
    pub data_address: String,
    /// Threads of its data plane.
    pub shards: u16,
    /// Where it stands.
    #[schema(value_type = LabelsShape)]
    pub labels: Labels,
    /// The run of its daemon that registered last.
    #[schema(value_type = String, format = "uuid")]
    pub session: SessionId,
    /// Its devices, as many as were ever added and not removed.
    pub device_count: usize,
    /// Lanes on its devices.
    pub lane_count: u64,
    /// What keeps it from being given up, apart from time, if it is down.
    pub not_out_because: Option<String>,
}

/// A node, and what is on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct NodeDetail {
    /// The node.
    #[serde(flatten)]
    pub node: NodeView,
    /// Its devices.
    #[schema(value_type = Vec<String>)]
    pub devices: Vec<DeviceId>,
    /// Names of the volumes that are attached to it.
    pub attached_volumes: Vec<String>,
}

/// All nodes
#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "list_nodes", tag = "nodes", params(PageQuery),
    responses((
        status = 200, description = "The nodes, by number",
        content((Page<NodeView> = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn list(
    Shared(api): Shared<Arc<Api>>,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, Problem> {
    if query.is_watch()? {
        return watch::stream(&api, Kind::Nodes, None).await;
    }
    let asked = query.of("nodes")?;
    let (state, stale) = api.read_state().await?;
    let leader = api.node()?.metadata.local().and_then(|handle| handle.leader()).map(|(id, _)| id);
    let (page, next) = asked.cut(shown(&state), |node| node.id.0);
    let items = page.into_iter().map(|node| node_view(&state, node, leader == Some(node.id))).collect();
    Ok(Json(Page { items, next, stale }).into_response())
}

/// One node
#[utoipa::path(
    get, path = "/v1/nodes/{name}", operation_id = "get_node", tag = "nodes",
    params(("name" = String, Path, description = "Name or number"), WatchQuery),
    responses((
        status = 200, description = "The node",
        content((NodeDetail = "application/json"), (WatchLine = "application/x-ndjson")),
    )),
)]
pub(super) async fn show(
    Shared(api): Shared<Arc<Api>>,
    Path(name): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<HttpResponse, Problem> {
    let (state, _) = api.read_state().await?;
    let leader = api.node()?.metadata.local().and_then(|handle| handle.leader()).map(|(id, _)| id);
    let node = find(&state, &name)?;
    if query.watch {
        return watch::stream(&api, Kind::Nodes, Some(name)).await;
    }
    Ok(Json(node_detail(&state, node, leader == Some(node.id))).into_response())
}

/// Nodes that were not removed, by number.
pub(super) fn shown(state: &State) -> impl Iterator<Item = &Node> {
    state.nodes().filter(|node| node.admin != Admin::Removed)
}

/// A node by name or number.
pub(super) fn find<'a>(state: &'a State, name: &str) -> Result<&'a Node, Problem> {
    let by_number = || name.parse().ok().and_then(|id| state.node(NodeId(id)));
    state.node_by_name(name).or_else(by_number).ok_or_else(|| Problem::not_found("node", name))
}

pub(super) fn node_detail(state: &State, node: &Node, leads: bool) -> NodeDetail {
    NodeDetail {
        node: node_view(state, node, leads),
        devices: state.devices().filter(|device| device.node == node.id).map(|device| device.id).collect(),
        attached_volumes: state.attached_to(node.id).map(|volume| volume.name.clone()).collect(),
    }
}

pub(super) fn node_view(state: &State, node: &Node, leads: bool) -> NodeView {
    let mut roles = Vec::new();
    for (has, role) in [(node.roles.store, "store"), (node.roles.target, "target"), (node.roles.meta, "meta")] {
        if has {
            roles.push(role);
        }
    }
    NodeView {
        id: node.id,
        name: node.name.clone(),
        state: node.state(),
        roles,
        leads_metadata: leads,
        api_address: node.api_address.clone(),
        data_address: node.data_address.clone(),
        shards: node.shards,
        labels: node.labels.clone(),
        session: node.session,
        device_count: state.devices().filter(|device| device.node == node.id).count(),
        lane_count: state
            .devices()
            .filter(|device| device.node == node.id)
            .map(|device| u64::from(device.lane_count))
            .sum(),
        not_out_because: not_out_because(state, node),
    }
}

/// What keeps a node that is down from being given up, apart from time.
fn not_out_because(state: &State, node: &Node) -> Option<String> {
    let is_down = node.liveness == Liveness::Down && node.roles.store && node.admin != Admin::Removed;
    is_down.then(|| Outs::of(state).brake(node)).flatten().map(|brake| brake.to_string())
}

/// Register a node
///
/// What a daemon that joins asks for. The leader takes it into the metadata service by itself if it has that role.
#[utoipa::path(
    post, path = "/v1/nodes", operation_id = "register_node", tag = "nodes", request_body = NodeSpecShape,
    responses((status = 200, description = "It is registered, or was with this session", body = Registered)),
)]
pub(super) async fn register(
    Shared(api): Shared<Arc<Api>>,
    Json(spec): Json<NodeSpec>,
) -> Result<Json<Registered>, Problem> {
    let node = api.node()?;
    let name = spec.name.clone();
    let response = node.metadata.propose(Command::AddNode { id: None, node: spec }).await?;
    let Response::Node(id) = response else {
        return Err(Problem::unavailable("unavailable", format!("unexpected answer: {response:?}"), "repeat"));
    };
    tracing::info!(node = id.0, name, "node registered");
    let mut members = node.view().meta_addresses();
    if members.is_empty() {
        members.push(api.config.api_address.to_string());
    }
    Ok(Json(Registered { node_id: id.0, cluster_id: node.cluster.to_string(), members }))
}
