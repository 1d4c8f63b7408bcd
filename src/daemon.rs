//! Composition root: the one file that names every room. Locks the data directory, starts the rooms, stops them.

mod descriptors;
pub mod identity;
pub mod restore;

use crate::agent::leader::Leader;
use crate::agent::metadata::{Metadata, RemoteMetadata};
use crate::agent::transport::HttpTransport;
use crate::agent::view::ClusterView;
use crate::agent::{Node, devices::DeviceList, node_spec, run};
use crate::api::problem::Problem;
use crate::api::{self, Api, Bootstrap, BootstrapKind, Registered};
use crate::client::{Call, HttpClient};
use crate::config::Config;
use crate::front::doors::Doors;
use crate::front::tls::TlsDoors;
use crate::observe::logs;
use crate::shard::ShardSet;
use crate::shard::control::{ShardCommand, ShardOptions, ShardRequest};
use crate::shard::scrub::ScrubOptions;
use crate::tls::{TlsError, server_config};
use anyhow::{Context, Result, bail};
use ashlar_model::{ClusterId, NodeId, SessionId};
use ashlar_raft::service::Timings;
use ashlar_raft::{MetaOptions, MetaService};
use identity::{DirectoryLock, Identity, LockError};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// One: with more of them a message between tasks often wakes another thread, which was up to a fifth of the idle time. What
/// waits for a disk has threads of its own; what computes for long would hold up Raft's heartbeats.
const WORKER_THREADS: usize = 1;
/// Time to record that volumes are detached, once they are.
const DETACH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a start waits for addresses that another process has.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);
const ADDRESS_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for volumes to be detached cleanly on the way out.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(15);

/// Exit code when another daemon runs on the data directory.
pub const EXIT_LOCKED: u8 = 4;
const EXIT_FAILED: u8 = 1;

/// Runs the daemon until a signal ends it.
pub fn run(config: Config) -> ExitCode {
    if let Err(error) = logs::start(config.log_format, &config.log_filter) {
        eprintln!("ashlar: {error:#}");
        return ExitCode::from(2);
    }
    if let Err(error) = std::fs::create_dir_all(&config.data_dir) {
        tracing::error!("cannot use data_dir {}: {error}; create it or correct data_dir", config.data_dir.display());
        return ExitCode::from(EXIT_FAILED);
    }
    descriptors::raise_limit();
    let _lock = match DirectoryLock::take(&config.data_dir) {
        Ok(lock) => lock,
        Err(error @ LockError::Held(_)) => {
            tracing::error!("cannot use data_dir {}: {error}; stop it first", config.data_dir.display());
            return ExitCode::from(EXIT_LOCKED);
        }
        Err(error) => {
            tracing::error!("cannot lock data_dir {}: {error}", config.data_dir.display());
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("control")
        .enable_all()
        .build();
    let result = runtime.context("start the runtime").and_then(|runtime| {
        let result = runtime.block_on(serve(Arc::new(config)));
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the daemon ends: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

async fn serve(config: Arc<Config>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let (bootstrap, requests) = mpsc::channel(1);
    let session = SessionId(uuid::Uuid::new_v4());
    let client = HttpClient::new();
    let api = Arc::new(Api::new(config.clone(), client, session, bootstrap));
    let listener = TcpListener::bind(config.api_address)
        .await
        .with_context(|| format!("listen on api_address {}; is another daemon running?", config.api_address))?;
    tracing::info!(name = config.name, api = %config.api_address, data = %config.data_address, "daemon starts");
    let router = api::router(api.clone());
    let mut server = tokio::spawn(async move { axum::serve(listener, router).await });
    match identity::load(&config.data_dir)? {
        Some(known) => {
            let node = start_node(&api, known).await?;
            drop(api.node.set(node));
        }
        None => tracing::info!("no identity yet: waits for `ashlar cluster init` or `ashlar node join`"),
    }
    tokio::spawn(bootstrap_loop(api.clone(), requests));
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stops"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stops"),
        ended = &mut server => bail!("the API server ended: {ended:?}"),
    }
    if let Some(node) = api.node.get() {
        tokio::select! {
            () = stop(node) => {}
            _ = terminate.recv() => tracing::warn!("second SIGTERM: stops at once"),
            _ = interrupt.recv() => tracing::warn!("second SIGINT: stops at once"),
        }
    }
    tracing::info!("daemon ends");
    Ok(())
}

/// Volumes go first: their clean marks need the metadata service.
async fn stop(node: &Node) {
    match node.ask_shards(SHUTDOWN_TIMEOUT, ShardCommand::Shutdown).await {
        Ok(_) => tracing::info!("volumes are detached, devices are closed"),
        Err(why) => tracing::warn!("the data plane did not stop cleanly ({why}); the next attach recovers"),
    }
    // The end of each attachment is on its way; others need not wait until this node is found down.
    let mut views = node.views.clone();
    let detached = views.wait_for(|view| view.volumes.iter().all(|row| row.holder != Some(node.id)));
    if tokio::time::timeout(DETACH_TIMEOUT, detached).await.is_err() {
        tracing::warn!("an attachment of this node is still recorded; the next attach releases it");
    }
    if let Some(handle) = node.metadata.local() {
        handle.shutdown().await;
    }
}

/// Starts everything that needs an identity.
async fn start_node(api: &Arc<Api>, mut identity: Identity) -> Result<Arc<Node>> {
    let config = api.config.clone();
    if identity.name != config.name {
        bail!(
            "this data directory belongs to node '{}', the configuration says '{}'; a node keeps its name",
            identity.name,
            config.name
        );
    }
    let metadata = if config.roles.meta {
        start_member(api, &mut identity).await?
    } else {
        Metadata::Remote(Arc::new(RemoteMetadata::new(api.client.clone(), identity.members.clone())))
    };
    let (shards, requests) = start_shards(ShardOptions {
        cluster: identity.cluster,
        node: identity.node,
        shards: config.shards,
        data_address: config.data_address,
        nbd_socket: config.roles.target.then(|| config.nbd_socket.clone()),
        nbd_address: config.nbd_address.filter(|_| config.roles.target),
        doors: doors(&config)?,
        scrub: ScrubOptions { bytes_per_s: config.scrub_bytes_per_s, pause_us: config.scrub_pause.as_micros() as u64 },
        spin: Duration::from_micros(u64::from(config.spin_us)),
    })
    .await
    .context("start the data plane")?;
    let leader = metadata.local().map(|member| Arc::new(Leader::new(member.clone(), api.client.clone())));
    let (views_sender, views) = watch::channel(Arc::new(ClusterView::default()));
    tokio::spawn(metadata.clone().follow(views_sender));
    let node = Arc::new(Node {
        id: identity.node,
        cluster: identity.cluster,
        session: api.session,
        devices: DeviceList::load(&config.data_dir, &config.devices)?,
        config,
        metadata,
        shards,
        leader,
        registered: AtomicBool::new(false),
        views: views.clone(),
        pushed: watch::Sender::new(0),
    });
    run::start(&node, api.client.clone(), requests);
    if node.metadata.local().is_none() {
        tokio::spawn(remember_members(node.clone(), identity, views));
    }
    Ok(node)
}

/// What guests are told; a daemon that serves none needs no certificates.
fn doors(config: &Config) -> Result<Doors> {
    let tls = config.nbd.tls.as_ref().filter(|_| config.roles.target);
    let tls = tls.map(|tls| Ok(TlsDoors { config: server_config(&tls.files)?, required: tls.required }));
    let tls = tls.transpose().map_err(|error: TlsError| error).context("set up TLS for NBD (nbd.tls)")?;
    Ok(Doors { limits: config.nbd.limits, policy: config.nbd.policy.clone(), tls })
}

/// Starts the data plane. A daemon that was killed just before may hold its addresses for a moment longer: the kernel lets
/// go of what a ring was accepting on only after the process is gone.
async fn start_shards(options: ShardOptions) -> Result<(ShardSet, mpsc::Receiver<ShardRequest>)> {
    let began = std::time::Instant::now();
    loop {
        let error = match crate::shard::start(options.clone()) {
            Ok(started) => return Ok(started),
            Err(error) => error,
        };
        let taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
        if !error.downcast_ref().is_some_and(taken) || began.elapsed() > ADDRESS_PATIENCE {
            return Err(error);
        }
        tracing::warn!("{error}; tries again");
        tokio::time::sleep(ADDRESS_PAUSE).await;
    }
}

async fn start_member(api: &Api, identity: &mut Identity) -> Result<Metadata> {
    let options = MetaOptions {
        node: identity.node,
        cluster: Some(identity.cluster),
        dir: api.config.data_dir.join("meta"),
        timings: Timings::default(),
        faults: None,
    };
    let transport = Arc::new(HttpTransport::new(api.client.clone()));
    let handle = MetaService::start(options, transport).await.context("start the metadata service")?;
    if let Some(name) = identity.founding.clone() {
        let spec = node_spec(&api.config, api.session);
        handle.init(identity.cluster, &name, spec).await.context("found the cluster")?;
        identity.founding = None;
        identity::store(&api.config.data_dir, identity)?;
        tracing::info!(cluster = %identity.cluster, name, "cluster founded");
    }
    let others = Arc::new(RemoteMetadata::new(api.client.clone(), identity.members.clone()));
    Ok(Metadata::Local { member: handle, others })
}

/// A node that is no member must find the members again after a restart.
async fn remember_members(node: Arc<Node>, mut identity: Identity, mut views: watch::Receiver<Arc<ClusterView>>) {
    while views.changed().await.is_ok() {
        let members = views.borrow_and_update().meta_addresses();
        if !members.is_empty() && members != identity.members {
            identity.members = members;
            if let Err(error) = identity::store(&node.config.data_dir, &identity) {
                tracing::warn!("cannot remember the members of the metadata service: {error:#}");
            }
        }
    }
}

/// One request at a time, so that two cannot both give the node an identity.
async fn bootstrap_loop(api: Arc<Api>, mut requests: mpsc::Receiver<Bootstrap>) {
    while let Some(Bootstrap { kind, answer }) = requests.recv().await {
        let result = match api.node.get() {
            Some(node) => Ok(node.clone()),
            None => bootstrap(&api, kind).await,
        };
        if let Ok(node) = &result {
            drop(api.node.set(node.clone()));
        }
        drop(answer.send(result));
    }
}

async fn bootstrap(api: &Arc<Api>, kind: BootstrapKind) -> Result<Arc<Node>, Problem> {
    let data_dir = &api.config.data_dir;
    let failed = |what: &str, error: anyhow::Error| {
        tracing::error!("{what}: {error:#}");
        Problem::unavailable("bootstrap_failed", format!("{what}: {error:#}"), "correct it and repeat the command")
    };
    // An attempt that failed half-way left an identity; it is completed, not replaced.
    let known = identity::load(data_dir).map_err(|error| failed("the identity is not readable", error))?;
    let identity = match (known, kind) {
        (Some(known), _) => known,
        (None, BootstrapKind::Init(name)) => new_cluster(api, name)?,
        (None, BootstrapKind::Join(address)) => register(api, &address).await?,
    };
    identity::store(data_dir, &identity).map_err(|error| failed("the identity cannot be written", error))?;
    start_node(api, identity).await.map_err(|error| failed("the node does not start", error))
}

fn new_cluster(api: &Api, name: String) -> Result<Identity, Problem> {
    if !api.config.roles.meta {
        let detail = format!("node {} has no meta role", api.config.name);
        return Err(Problem::conflict(
            "node_unfit",
            "this node cannot found a cluster",
            detail,
            "found it on a node with the meta role, then join this one",
        ));
    }
    Ok(Identity {
        cluster: ClusterId(uuid::Uuid::new_v4()),
        node: NodeId(1),
        name: api.config.name.clone(),
        founding: Some(name),
        members: Vec::new(),
    })
}

/// Asks a member for a number. The answer is the same if it is asked again.
async fn register(api: &Api, address: &str) -> Result<Identity, Problem> {
    let unavailable = |detail: String| {
        Problem::unavailable(
            "join_failed",
            detail,
            "give the URL of a running node of the cluster, for instance http://10.0.0.7:7070",
        )
    };
    let session =
        identity::join_session(&api.config.data_dir, api.session).map_err(|e| unavailable(format!("{e:#}")))?;
    let spec = serde_json::to_value(node_spec(&api.config, session)).map_err(|e| unavailable(e.to_string()))?;
    let call = Call::post_json(address, "/v1/nodes", &spec, REGISTER_TIMEOUT);
    let answer = api.client.call(call).await.map_err(|error| unavailable(error.to_string()))?;
    if !answer.status.is_success() {
        return Err(serde_json::from_slice::<Problem>(&answer.body)
            .unwrap_or_else(|_| unavailable(format!("{address} answered {}", answer.status))));
    }
    let registered: Registered = serde_json::from_slice(&answer.body)
        .map_err(|error| unavailable(format!("{address} answered nonsense: {error}")))?;
    let mut members = registered.members;
    if !members.iter().any(|member| member == address) {
        members.push(address.to_owned());
    }
    Ok(Identity {
        cluster: registered.cluster_id.parse().map_err(|error| unavailable(format!("no cluster id: {error}")))?,
        node: NodeId(registered.node_id),
        name: api.config.name.clone(),
        founding: None,
        members,
    })
}
