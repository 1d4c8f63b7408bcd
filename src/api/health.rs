//! Is the process alive, and does it do its work.

use super::Api;
use crate::agent::Node;
use crate::agent::devices::DeviceOpen;
use ashlar_raft::MetaHandle;
use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn healthz() -> Json<Value> {
    Json(json!({ "alive": true }))
}

pub(super) async fn readyz(Shared(api): Shared<Arc<Api>>) -> (StatusCode, Json<Value>) {
    let reason = match api.node.get() {
        None => Some("the node belongs to no cluster; use `ashlar cluster init` or `ashlar node join`".to_owned()),
        Some(node) => waits_for(node).await,
    };
    match reason {
        None => (StatusCode::OK, Json(json!({ "ready": true }))),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reason": reason }))),
    }
}

/// A device that failed does not make the node unready: the rest serves.
async fn waits_for(node: &Arc<Node>) -> Option<String> {
    if node.metadata.local().is_some_and(MetaHandle::has_stopped) {
        return Some("the metadata service has ended on this node; its log says why".into());
    }
    if let Some(handle) = node.metadata.local()
        && handle.leader().is_none()
    {
        return Some("the metadata service has no leader".into());
    }
    if !node.is_registered() {
        return Some("the cluster does not know this run of the daemon yet".into());
    }
    let opening = node.devices.states().into_iter().find(|(_, state)| *state == DeviceOpen::Opening);
    if let Some((path, _)) = opening {
        return Some(format!("device {} is being opened", path.display()));
    }
    node.shard_status().await.err()
}
