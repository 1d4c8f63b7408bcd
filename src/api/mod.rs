//! The HTTP API: JSON for people's tools under `/v1`, health and metrics, and calls between nodes under `/internal`.
//!
//! Any node answers. A node outside the metadata service passes requests on to a member, once.
//!
//! Invariant: it decides nothing about data; it checks requests, asks the metadata service or the shard, and words the
//! answer.

mod attach;
mod bootstrap;
pub mod cluster;
mod devices;
mod disregard;
mod doctor;
mod drain;
mod drain_view;
mod forward;
mod health;
mod idempotency;
mod internal;
mod metrics;
mod nodes;
mod openapi;
mod operation_view;
mod operations;
mod page;
pub mod problem;
mod rejections;
mod replace;
mod reports;
mod resize;
mod settings;
mod shapes;
mod volume_view;
mod volumes;
mod watch;
mod what_if;

pub use bootstrap::{Bootstrap, BootstrapKind, Founded};
pub use nodes::Registered;

use crate::agent::Node;
use crate::client::HttpClient;
use crate::config::Config;
use ashlar_model::SessionId;
use ashlar_raft::{RpcKind, State};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State as Shared};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use problem::Problem;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest body of a `/v1` request.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// `/v1` requests worked on at a time; more are told to come back.
const REQUESTS_INFLIGHT_MAX: usize = 256;
/// Longest wait for the quorum's word on a read; then the local state is told, marked as stale.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handlers share.
pub struct Api {
    /// What the daemon was told.
    pub config: Arc<Config>,
    /// To other nodes.
    pub client: HttpClient,
    /// This run of the daemon.
    pub session: SessionId,
    /// The node, once it belongs to a cluster.
    pub node: OnceLock<Arc<Node>>,
    /// Asks the daemon to found or join a cluster.
    pub bootstrap: mpsc::Sender<Bootstrap>,
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    permits: Semaphore,
    watches: watch::Watches,
}

impl Api {
    /// The state of an API that belongs to no cluster yet.
    pub fn new(
        config: Arc<Config>,
        client: HttpClient,
        session: SessionId,
        bootstrap: mpsc::Sender<Bootstrap>,
    ) -> Self {
        Self {
            config,
            client,
            session,
            node: OnceLock::new(),
            bootstrap,
            requests: Mutex::default(),
            permits: Semaphore::new(REQUESTS_INFLIGHT_MAX),
            watches: watch::Watches::default(),
        }
    }

    fn node(&self) -> Result<&Arc<Node>, Problem> {
        self.node.get().ok_or_else(Problem::no_cluster)
    }

    /// The state, as a quorum vouches for it; without one, as this node knows it (`true`: stale).
    async fn read_state(&self) -> Result<(Arc<State>, bool), Problem> {
        let node = self.node()?;
        let Some(handle) = node.metadata.local() else {
            return Err(Problem::unavailable(
                "not_a_member",
                "this node is no member of the metadata service",
                "ask another node",
            ));
        };
        match tokio::time::timeout(READ_TIMEOUT, handle.linearizable_state()).await {
            Ok(Ok(state)) if state.cluster().is_some() => Ok((state, false)),
            _ => {
                let state = handle.state();
                if state.cluster().is_none() {
                    let detail = "this node has not received the metadata yet";
                    return Err(Problem::unavailable("unavailable", detail, "wait a moment and repeat"));
                }
                Ok((state, true))
            }
        }
    }
}

/// Work that grows with the cluster, beside the thread that carries Raft's heartbeats.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let failed = |_| Problem::unavailable("unavailable", "the work ended early", "look at the daemon's log");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// Routes of `/v1` that a member of the metadata service answers. Each is registered with its description.
fn member_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default()
        .routes(routes!(nodes::list, nodes::register))
        .routes(routes!(nodes::show, drain::remove_node))
        .routes(routes!(drain::drain_node))
        .routes(routes!(drain::resume_node))
        .routes(routes!(devices::list))
        .routes(routes!(devices::show, drain::remove_device))
        .routes(routes!(drain::retire_device))
        .routes(routes!(drain::resume_device))
        .routes(routes!(replace::replace))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::show, volumes::delete))
        .routes(routes!(resize::resize))
        .routes(routes!(what_if::explain))
        .routes(routes!(what_if::what_if))
        .routes(routes!(doctor::doctor))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show))
        .routes(routes!(operations::cancel))
        .routes(routes!(cluster::status))
        .routes(routes!(cluster::backup))
        .routes(routes!(disregard::disregard))
        .routes(routes!(settings::list))
        .routes(routes!(settings::set))
}

/// Routes of `/v1` that the node answers that is asked, or passes on to the node that is meant.
fn local_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::default()
        .routes(routes!(openapi::show))
        .routes(routes!(bootstrap::init))
        .routes(routes!(bootstrap::join))
        .routes(routes!(devices::add))
        .routes(routes!(attach::attach))
        .routes(routes!(attach::detach))
        .routes(routes!(attach::eject))
}

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    let v1 = member_routes()
        .route_layer(from_fn_with_state(api.clone(), forward::to_member))
        .merge(local_routes())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(rejections::as_problems))
        .layer(from_fn_with_state(api.clone(), admit));
    let (v1, _) = v1.split_for_parts();
    let mut internal = Router::new()
        .route("/internal/session", post(internal::session))
        .route("/internal/propose", post(internal::propose))
        .route("/internal/view", get(internal::view))
        .route("/internal/status", get(internal::status))
        .route("/internal/release", post(internal::release))
        .layer(DefaultBodyLimit::max(2 * BODY_BYTES_MAX));
    for kind in RpcKind::ALL {
        let path = format!("/internal/raft/{}", kind.name());
        let serve = move |api: Shared<Arc<Api>>, headers, body| internal::raft(api, kind, headers, body);
        let limit = DefaultBodyLimit::max(kind.body_bytes_max() + 4096);
        internal = internal.route(&path, post(serve).layer(limit));
    }
    Router::new()
        .merge(v1)
        .merge(internal)
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(unknown_path)
        .with_state(api)
}

/// Bounds what is worked on at a time, and counts.
async fn admit(Shared(api): Shared<Arc<Api>>, request: Request, next: Next) -> Response {
    // What anybody may make up must not grow the table.
    use axum::http::Method;
    let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS];
    let method = match known.contains(request.method()) {
        true => request.method().to_string(),
        false => "other".to_owned(),
    };
    let response = match api.permits.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => {
            Problem::unavailable("busy", "too many requests at a time", "wait a moment and repeat").into_response()
        }
    };
    let key = (method, response.status().as_u16());
    *api.requests.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    response
}

async fn unknown_path(request: Request) -> Problem {
    let detail = format!("there is nothing at {} {}", request.method(), request.uri().path());
    Problem::new(axum::http::StatusCode::NOT_FOUND, "path_not_found", "not found", detail, "the API is under /v1")
}
