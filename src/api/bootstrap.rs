//! How a node gets into a cluster: found one, or join one. The daemon does it; here are the requests.

use super::Api;
use super::problem::Problem;
use crate::agent::Node;
use axum::Json;
use axum::extract::State as Shared;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::oneshot;
use utoipa::ToSchema;

/// What the daemon is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BootstrapKind {
    /// Found a cluster of this name.
    Init(String),
    /// Join the cluster that the node with this API address belongs to.
    Join(String),
}

/// A request to the daemon.
pub struct Bootstrap {
    /// What.
    pub kind: BootstrapKind,
    /// Answered when the node belongs to the cluster.
    pub answer: oneshot::Sender<Result<Arc<Node>, Problem>>,
}

/// A cluster to be founded.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InitBody {
    /// Name of the cluster.
    #[serde(default = "default_name")]
    name: String,
}

fn default_name() -> String {
    "ashlar".into()
}

/// A cluster to be joined.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JoinBody {
    /// API of a node that belongs to it.
    endpoint: String,
}

/// The node's place in its cluster.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Founded {
    /// The cluster.
    pub cluster_id: String,
    /// Number of the node.
    pub node_id: u64,
    /// Name of the node.
    pub node_name: String,
}

/// Found a cluster with this node
#[utoipa::path(
    post, path = "/v1/cluster", operation_id = "init_cluster", tag = "cluster", request_body = InitBody,
    responses((status = 200, description = "It is founded", body = Founded)),
)]
pub(super) async fn init(Shared(api): Shared<Arc<Api>>, Json(body): Json<InitBody>) -> Result<Json<Founded>, Problem> {
    ashlar_model::limits::check_name("cluster", &body.name)
        .map_err(|why| Problem::invalid(why, "choose another name"))?;
    ask(&api, BootstrapKind::Init(body.name)).await
}

/// Make this node join a cluster
#[utoipa::path(
    post, path = "/v1/join", operation_id = "join_cluster", tag = "cluster", request_body = JoinBody,
    responses((status = 200, description = "It belongs to it", body = Founded)),
)]
pub(super) async fn join(Shared(api): Shared<Arc<Api>>, Json(body): Json<JoinBody>) -> Result<Json<Founded>, Problem> {
    let address = body.endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
    ask(&api, BootstrapKind::Join(address)).await
}

async fn ask(api: &Api, kind: BootstrapKind) -> Result<Json<Founded>, Problem> {
    if let Some(node) = api.node.get() {
        return Err(Problem::conflict(
            "already_initialised",
            "this node belongs to a cluster already",
            format!("it is node {} of cluster {}", node.id, node.cluster),
            "look at it with `ashlar cluster status`; to start over, stop the daemon and use an empty data directory",
        ));
    }
    let stopping = || Problem::unavailable("stopping", "the daemon is stopping", "start it again");
    let (answer, answered) = oneshot::channel();
    api.bootstrap.send(Bootstrap { kind, answer }).await.map_err(|_| stopping())?;
    let node = answered.await.map_err(|_| stopping())??;
    Ok(Json(Founded { cluster_id: node.cluster.to_string(), node_id: node.id.0, node_name: node.config.name.clone() }))
}
