//! The public face of the metadata service: start it, propose commands, read and watch the state, change its members.
//!
//! Invariant: no openraft name appears here; HTTP, clocks and identities are the daemon's.

use crate::adapter::Engine;
use crate::codec::{self, Kind};
use crate::command::{Command, NodeSpec, Response};
use crate::members::Change;
use crate::refusal::Refusal;
use crate::state::State;
use crate::transport::{RpcKind, Transport};
use ashlar_model::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Raft's timing, in milliseconds.
///
/// A follower campaigns after `election_ms_max` (the leader's lease) plus its own random time in
/// `election_ms_min..election_ms_max` of silence, checked every 1.5 heartbeats, which is also how often the leader speaks.
/// With the defaults that is 1.0 to 1.5 s, and 2.7 s for a node whose log is behind: below 3 s, and more than three missed
/// heartbeats, which a busy machine with two cores does not reach by scheduling delays alone. A heartbeat is also the time
/// limit of one append, so it stays well above the time that a slow disk needs for one commit. Heartbeats are most of
/// what an idle cluster costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timings {
    /// Between heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// Shortest random part of the election timeout.
    pub election_ms_min: u64,
    /// Longest random part, and the lease during which a leader's followers vote for nobody else.
    pub election_ms_max: u64,
    /// Time limit of a proposal or linearizable read, commit included.
    pub request_ms_max: u64,
    /// Applied commands between snapshots.
    pub snapshot_after_entries: u64,
    /// Log entries kept behind the snapshot for followers that lag a little.
    pub log_keep_entries: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat_ms: 200,
            election_ms_min: 400,
            election_ms_max: 600,
            request_ms_max: 10_000,
            snapshot_after_entries: 5_000,
            log_keep_entries: 1_000,
        }
    }
}

/// What the service needs to start.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// This node. A directory of another node is refused.
    pub node: NodeId,
    /// The cluster, if known. A directory or a peer of another cluster is refused.
    pub cluster: Option<ClusterId>,
    /// Where `raft.redb` and `snapshot-*.bin` live; created if missing.
    pub dir: PathBuf,
    /// Timing.
    pub timings: Timings,
    /// For tests: what the disk under the log does wrong. `None`: a plain file.
    pub faults: Option<Arc<DiskFaults>>,
}

pub use crate::adapter::disk::DiskFaults;

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory cannot be used.
    #[error("{context}: {source}")]
    Io {
        /// What was tried.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The log store failed.
    #[error("log store {path}: {message}")]
    LogStore {
        /// The file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The directory belongs to another node or cluster.
    #[error("{path} belongs to {found}, not to {expected}")]
    WrongIdentity {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who opened it.
        expected: String,
    },
    /// A snapshot file is damaged and the log no longer has what it held.
    #[error(
        "snapshot {path} is damaged: {message}; this node must be removed from the group and join again under a new number"
    )]
    DamagedSnapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The timings contradict each other.
    #[error("timings: {0}")]
    Timings(String),
    /// Raft did not start.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why a proposal or read brought no answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, thiserror::Error)]
pub enum MetaError {
    /// The command was refused and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This node is not the leader; ask that one.
    #[error("node {} leads", .leader.as_ref().map_or("?".to_owned(), |(id, _)| id.to_string()))]
    NotLeader {
        /// The leader with its API address, if one is known.
        leader: Option<(NodeId, String)>,
    },
    /// No answer in time, or no quorum. The command may still take effect: repeat it (all commands may be repeated).
    #[error("the metadata service is unavailable: {0}")]
    Unavailable(String),
    /// The request was malformed.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The service has stopped on this node after an error; only a restart of the daemon helps.
    #[error("the metadata service stopped: {0}")]
    Stopped(String),
}

impl MetaError {
    /// Stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::NotLeader { .. } => "not_leader",
            Self::Unavailable(_) => "unavailable",
            Self::BadRequest(_) => "bad_request",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// The members of the Raft group.
#[derive(Clone, PartialEq, Eq, Serialize, Debug, Default)]
pub struct Membership {
    /// Those who vote: 1, 3 or 5.
    pub voters: Vec<NodeId>,
    /// Those who only follow.
    pub learners: Vec<NodeId>,
    /// The voters are being changed: each decision needs a majority of the former ones and one of the new ones. `voters`
    /// names all of them.
    pub is_changing: bool,
}

/// Numbers about the service on this node.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct MetaMetrics {
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: &'static str,
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// Raft term.
    pub term: u64,
    /// Last index in the log.
    pub last_log_index: u64,
    /// Last index applied.
    pub applied_index: u64,
    /// Last index in a snapshot.
    pub snapshot_index: u64,
    /// On the leader: milliseconds since a quorum confirmed it.
    pub quorum_ack_ms: Option<u64>,
    /// On the leader: entries that each member lacks. A member that has never answered is missing here.
    pub lag: BTreeMap<NodeId, u64>,
    /// The members.
    pub membership: Membership,
}

/// Starts the service.
pub struct MetaService;

impl MetaService {
    /// Opens the directory, recovers the state and joins the group, if this node belongs to one. Otherwise it waits,
    /// until [`MetaHandle::init`] here or [`MetaHandle::add_member`] on the leader.
    ///
    /// # Errors
    /// The directory is unusable, damaged or somebody else's.
    pub async fn start(options: MetaOptions, transport: Arc<dyn Transport>) -> Result<MetaHandle, StartError> {
        let engine = Engine::start(options, transport).await?;
        Ok(MetaHandle { engine: Arc::new(engine) })
    }
}

/// A running service. Cheap to clone.
#[derive(Clone)]
pub struct MetaHandle {
    engine: Arc<Engine>,
}

impl MetaHandle {
    /// This node.
    pub fn node(&self) -> NodeId {
        self.engine.node()
    }

    /// Founds a new cluster with this node as its only member. May be repeated after a crash with the same cluster id.
    ///
    /// # Errors
    /// `already_initialised` if this node belongs to a cluster.
    pub async fn init(&self, cluster: ClusterId, name: &str, node: NodeSpec) -> Result<Response, MetaError> {
        match self.with_state(|state| state.cluster().map(|existing| existing.id)) {
            Some(existing) if existing == cluster => return Ok(Response::Node(self.node())),
            Some(_) => return Err(Refusal::AlreadyInitialised.into()),
            None => {}
        }
        self.engine.init(cluster, &node.api_address).await?;
        let command = Command::InitCluster { cluster, name: name.to_owned(), node_id: self.node(), node };
        self.propose(command).await
    }

    /// Commits a command and returns its answer. Only on the leader; see [`Self::propose_anywhere`].
    ///
    /// # Errors
    /// `Refused` by the state machine, `NotLeader`, or `Unavailable` with an unknown outcome.
    pub async fn propose(&self, command: Command) -> Result<Response, MetaError> {
        self.engine.propose(command).await
    }

    /// Commits a command, through the leader if that is another node. Waits through an election.
    ///
    /// # Errors
    /// As [`Self::propose`], but `NotLeader` only after the time limit.
    pub async fn propose_anywhere(&self, command: Command) -> Result<Response, MetaError> {
        let body = codec::encode(Kind::Command, &command).map_err(|e| MetaError::BadRequest(e.to_string()))?;
        self.engine.at_leader(|| self.engine.propose(command.clone()), RpcKind::Propose, body).await
    }

    /// The state as this node knows it: immediately, maybe a little old. Let go of it soon: while it is held, the next
    /// change copies the state.
    pub fn state(&self) -> Arc<State> {
        self.engine.state()
    }

    /// Reads the state as this node knows it.
    pub fn with_state<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.state())
    }

    /// A state that includes everything committed before the call; works on every node, costs a round to the quorum.
    ///
    /// # Errors
    /// `Unavailable` if no leader with a quorum is found in time.
    pub async fn linearizable_state(&self) -> Result<Arc<State>, MetaError> {
        let body = codec::encode(Kind::ReadIndex, &()).map_err(|e| MetaError::BadRequest(e.to_string()))?;
        let index: u64 = self.engine.at_leader(|| self.engine.read_index(), RpcKind::ReadIndex, body).await?;
        self.engine.wait_applied(index).await?;
        Ok(self.state())
    }

    /// All metadata as one record ([`Kind::State`]: versioned, checksummed) that includes everything committed before the
    /// call; [`crate::state::decode_snapshot`] reads it.
    ///
    /// # Errors
    /// As [`Self::linearizable_state`].
    pub async fn backup(&self) -> Result<Vec<u8>, MetaError> {
        let state = self.linearizable_state().await?;
        if state.cluster().is_none() {
            return Err(Refusal::NotInitialised.into());
        }
        let encoded = tokio::task::spawn_blocking(move || codec::encode(Kind::State, state.as_ref())).await;
        let record = encoded.map_err(|e| MetaError::Unavailable(e.to_string()))?;
        record.map_err(|e| MetaError::Unavailable(e.to_string()))
    }

    /// True once the service has ended here: after an error, or because a later group of the cluster has taken its place.
    pub fn has_stopped(&self) -> bool {
        self.engine.has_stopped()
    }

    /// The last applied log index; changes whenever the state may have changed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.engine.watch_applied()
    }

    /// The leader with its API address, if one is known. Changes are seen with [`Self::watch_leader`].
    pub fn leader(&self) -> Option<(NodeId, String)> {
        self.engine.leader()
    }

    /// True if this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader().is_some_and(|(id, _)| id == self.node())
    }

    /// Follows who leads.
    pub fn watch_leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.engine.watch_leader()
    }

    /// The members of the group.
    pub fn membership(&self) -> Membership {
        self.engine.membership()
    }

    /// Carries out one change of the group that [`crate::members::next_change`] decided (leader only). `address` is the API
    /// address of a node that is added.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn change_members(&self, change: &Change, address: &str) -> Result<Membership, MetaError> {
        self.engine.change_members(change, address).await
    }

    /// Takes a node into the group (leader only): first as a learner, then, as soon as the number of voters stays odd
    /// (1, 3 or 5), as a voter together with waiting learners. May be repeated.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn add_member(&self, node: NodeId, api_address: &str) -> Result<Membership, MetaError> {
        self.engine.add_member(node, api_address).await
    }

    /// Takes a node out of the group (leader only); the number of voters stays odd.
    ///
    /// # Errors
    /// As [`Self::propose`]; the last voter cannot go.
    pub async fn remove_member(&self, node: NodeId) -> Result<Membership, MetaError> {
        self.engine.remove_member(node).await
    }

    /// Numbers for status and metrics.
    pub fn metrics(&self) -> MetaMetrics {
        self.engine.metrics()
    }

    /// Serves a call that arrived from another node's [`Transport`]; the answer goes back as it is.
    ///
    /// # Errors
    /// `BadRequest` for bytes that are damaged or meant for another node or cluster, `Stopped`.
    pub async fn serve_rpc(&self, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, MetaError> {
        self.engine.serve(kind, body).await
    }

    /// Stops the service after what is being written. Later calls answer `Stopped`.
    pub async fn shutdown(&self) {
        self.engine.shutdown().await;
    }

    /// Time limit of proposals and linearizable reads.
    pub fn request_timeout(&self) -> Duration {
        self.engine.request_timeout()
    }
}
