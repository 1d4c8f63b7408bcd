//! Openraft and redb: the only place that names them. The rest of the room sees [`Engine`].

mod campaign;
pub mod disk;
mod log_store;
mod machine;
mod members;
mod network;
pub mod offline;
mod serve;
mod snapshot_dir;
#[cfg(test)]
mod suite;
mod types;

use crate::codec::{self, Kind};
use crate::command::{Command, Response};
use crate::refusal::Refusal;
use crate::service::{Membership, MetaError, MetaMetrics, MetaOptions, StartError, Timings};
use crate::state::State;
use crate::transport::{RpcKind, Transport};
use ashlar_model::{ClusterId, NodeId};
use campaign::Contact;
use log_store::{Identity, LogStore};
use machine::{Machine, Shared};
use network::{Caller, Network};
use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::{BasicNode, Config, ServerState, SnapshotPolicy};
use serde::de::DeserializeOwned;
use snapshot_dir::{LogBounds, SnapshotDir};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use types::Raft;

/// File of the log store.
const LOG_FILE: &str = "raft.redb";
/// Time limit of sending and installing a snapshot.
const SNAPSHOT_TIMEOUT_MS: u64 = 60_000;
/// Pause between two tries to reach a leader.
const LEADER_RETRY: Duration = Duration::from_millis(50);

/// One running member of the group.
pub struct Engine {
    caller: Arc<Caller>,
    log: LogStore,
    raft: Raft,
    timings: Timings,
    leader: watch::Receiver<Option<NodeId>>,
    contact: Arc<Contact>,
    /// A later group of the cluster has spoken: this one is over.
    superseded: OnceLock<()>,
}

impl Engine {
    /// Opens the directory, recovers, and starts Raft.
    pub async fn start(options: MetaOptions, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        let MetaOptions { node, cluster, dir, timings, faults } = options;
        let config = Arc::new(config(&timings)?);
        let shared = Arc::new(Shared::new());
        let opening = {
            let shared = Arc::clone(&shared);
            move || open(&dir, Identity::new(node, cluster, None), shared, faults)
        };
        let (log, machine, identity) =
            tokio::task::spawn_blocking(opening).await.map_err(|e| StartError::Raft(e.to_string()))??;
        let cluster = identity.cluster.map_or_else(OnceLock::new, OnceLock::from);
        let incarnation = identity.incarnation.map_or_else(OnceLock::new, OnceLock::from);
        let caller = Arc::new(Caller { node, cluster, incarnation, transport, shared });
        let raft = Raft::new(node.0, config, Network(Arc::clone(&caller)), log.clone(), machine)
            .await
            .map_err(|e| StartError::Raft(e.to_string()))?;
        let leader = follow_leader(&raft);
        let contact = Arc::new(Contact::new(identity.is_catching_up));
        campaign::watch(raft.clone(), Arc::clone(&caller), Arc::downgrade(&contact), timings);
        let engine = Self { caller, log, raft, timings, leader, contact, superseded: OnceLock::new() };
        if let Some(later) = identity.superseded_by {
            let why = format!("group {later} of the cluster has taken the place of this node's");
            tracing::error!("the metadata service does not run here: {why}; {}", serve::JOIN_ANEW);
            engine.superseded.get_or_init(|| ());
            engine.shutdown().await;
        }
        Ok(engine)
    }

    pub fn node(&self) -> NodeId {
        self.caller.node
    }

    pub fn state(&self) -> Arc<State> {
        self.caller.shared.state()
    }

    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.caller.shared.watch()
    }

    pub fn watch_leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.leader.clone()
    }

    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.timings.request_ms_max)
    }

    /// Makes this node the only voter of a new group, and waits until it leads.
    pub async fn init(&self, cluster: ClusterId, address: &str) -> Result<(), MetaError> {
        let known = *self.caller.cluster.get_or_init(|| cluster);
        if known != cluster {
            return Err(Refusal::AlreadyInitialised.into());
        }
        let incarnation = *self.caller.incarnation.get_or_init(|| 0);
        let identity = Identity::new(self.node(), Some(cluster), Some(incarnation));
        self.log.set_identity(identity).await.map_err(|e| MetaError::Stopped(e.to_string()))?;
        self.contact.has_caught_up();
        let members = BTreeMap::from([(self.node().0, BasicNode::new(address))]);
        match self.raft.initialize(members).await {
            Ok(()) => {}
            // An earlier init of this very node was cut short: go on with it.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) if self.membership().voters == [self.node()] => {}
            Err(RaftError::APIError(_)) => return Err(Refusal::AlreadyInitialised.into()),
            Err(RaftError::Fatal(e)) => return Err(MetaError::Stopped(e.to_string())),
        }
        let leads = self.raft.wait(Some(self.request_timeout())).current_leader(self.node().0, "init").await;
        leads.map(|_| ()).map_err(|e| MetaError::Unavailable(e.to_string()))
    }

    /// Commits a command here, as the leader.
    pub async fn propose(&self, command: Command) -> Result<Response, MetaError> {
        // A command that does not fit into a log entry must not reach the log store: that would stop the node.
        codec::encode(Kind::Command, &command).map_err(|e| MetaError::BadRequest(e.to_string()))?;
        let written = tokio::time::timeout(self.request_timeout(), self.raft.client_write(command)).await;
        match written.map_err(|_| no_quorum())? {
            Ok(response) => Ok(response.data?),
            Err(error) => Err(self.write_error(error)),
        }
    }

    /// Up to where the log must be applied for a linearizable read; only the leader knows.
    pub async fn read_index(&self) -> Result<u64, MetaError> {
        let confirmed = tokio::time::timeout(self.request_timeout(), self.raft.ensure_linearizable()).await;
        match confirmed.map_err(|_| no_quorum())? {
            Ok(position) => Ok(position.map_or(0, |id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => Err(self.not_leader(forward)),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => Err(no_quorum()),
            Err(RaftError::Fatal(e)) => Err(MetaError::Stopped(e.to_string())),
        }
    }

    /// Waits until this node has applied the log up to `index`.
    pub async fn wait_applied(&self, index: u64) -> Result<(), MetaError> {
        let mut applied = self.watch_applied();
        let reached = tokio::time::timeout(self.request_timeout(), applied.wait_for(|now| *now >= index)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(MetaError::Stopped("the state machine is gone".to_owned())),
            Err(_) => Err(MetaError::Unavailable("this node lags behind".to_owned())),
        }
    }

    /// Runs something at the leader: here or through a call there. Tries again through an election and lost messages,
    /// so what runs must bear repeating.
    pub async fn at_leader<T, F>(&self, local: impl Fn() -> F, kind: RpcKind, record: Vec<u8>) -> Result<T, MetaError>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<T, MetaError>>,
    {
        let deadline = Instant::now() + self.request_timeout();
        loop {
            if self.has_stopped() {
                return Err(MetaError::Stopped("the metadata service has ended on this node; see its log".to_owned()));
            }
            let result = match self.leader() {
                None => Err(MetaError::NotLeader { leader: None }),
                Some((leader, _)) if leader == self.node() => local().await,
                Some((leader, address)) => self.ask_leader(leader, &address, kind, &record, deadline).await,
            };
            match result {
                Err(MetaError::NotLeader { .. } | MetaError::Unavailable(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(LEADER_RETRY).await;
                }
                result => return result,
            }
        }
    }

    async fn ask_leader<T: DeserializeOwned>(
        &self,
        leader: NodeId,
        address: &str,
        kind: RpcKind,
        record: &[u8],
        deadline: Instant,
    ) -> Result<T, MetaError> {
        // A leader that died just now is known as the leader until the next election: do not wait for it that long.
        let patience = Duration::from_millis(4 * self.timings.election_ms_max);
        let timeout = patience.min(deadline.saturating_duration_since(Instant::now()));
        let answer = self.caller.call(leader, address, kind, record, timeout).await;
        let answer = answer.map_err(|e| MetaError::Unavailable(format!("leader {leader}: {e}")))?;
        codec::decode(Kind::Outcome, &answer).map_err(|e| MetaError::Unavailable(format!("leader {leader}: {e}")))?
    }

    /// The leader with its address, as far as this node knows.
    pub fn leader(&self) -> Option<(NodeId, String)> {
        if self.has_stopped() {
            return None; // what it knows last stays so for ever
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader?;
        let joined = metrics.membership_config.membership().get_node(&leader);
        Some((NodeId(leader), self.caller.address(leader, joined)?))
    }

    pub fn membership(&self) -> Membership {
        split(self.raft.metrics().borrow().membership_config.membership())
    }

    pub fn metrics(&self) -> MetaMetrics {
        let membership = self.membership();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => "stopped",
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "stopped",
        };
        let last_log_index = metrics.last_log_index.unwrap_or(0);
        let lag = metrics
            .replication
            .iter()
            .flatten()
            .filter_map(|(node, matched)| Some((NodeId(*node), last_log_index.saturating_sub((*matched)?.index))));
        MetaMetrics {
            role,
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            last_log_index,
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            quorum_ack_ms: metrics.millis_since_quorum_ack,
            lag: lag.collect(),
            membership,
        }
    }

    pub fn has_stopped(&self) -> bool {
        self.superseded.get().is_some() || self.raft.metrics().borrow().running_state.is_err()
    }

    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!("the raft task ended badly: {error}");
        }
    }

    fn write_error(&self, error: RaftError<u64, ClientWriteError<u64, BasicNode>>) -> MetaError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => self.not_leader(forward),
            RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => MetaError::BadRequest(e.to_string()),
            RaftError::Fatal(e) => MetaError::Stopped(e.to_string()),
        }
    }

    fn not_leader(&self, forward: ForwardToLeader<u64, BasicNode>) -> MetaError {
        let leader = forward.leader_id.and_then(|id| {
            let address = self.caller.address(id, forward.leader_node.as_ref())?;
            Some((NodeId(id), address))
        });
        MetaError::NotLeader { leader }
    }
}

/// Voters and learners.
fn split(members: &openraft::Membership<u64, BasicNode>) -> Membership {
    let mut voters = members.voter_ids().map(NodeId).collect::<Vec<_>>();
    voters.sort();
    let learners = members.learner_ids().map(NodeId).collect();
    Membership { voters, learners, is_changing: members.get_joint_config().len() > 1 }
}

fn no_quorum() -> MetaError {
    MetaError::Unavailable("no quorum answered in time".to_owned())
}

fn config(timings: &Timings) -> Result<Config, StartError> {
    let config = Config {
        cluster_name: "ashlar".to_owned(),
        enable_elect: false, // see `campaign`
        heartbeat_interval: timings.heartbeat_ms,
        election_timeout_min: timings.election_ms_min,
        election_timeout_max: timings.election_ms_max,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timings.snapshot_after_entries),
        max_in_snapshot_log_to_keep: timings.log_keep_entries,
        // A follower that lags by more than a snapshot gets the snapshot.
        replication_lag_threshold: timings.snapshot_after_entries.saturating_mul(2),
        ..Config::default()
    };
    config.validate().map_err(|e| StartError::Timings(e.to_string()))
}

fn open(
    dir: &Path,
    expected: Identity,
    shared: Arc<Shared>,
    faults: Option<Arc<disk::DiskFaults>>,
) -> Result<(LogStore, Machine, Identity), StartError> {
    let failed = |source| StartError::Io { context: format!("create {}", dir.display()), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let (log, identity) = LogStore::open(&dir.join(LOG_FILE), expected, faults)?;
    snapshot_dir::sync_dir(dir).map_err(failed)?;
    let bounds = log.bounds().map_err(|e| StartError::LogStore { path: dir.join(LOG_FILE), message: e.to_string() })?;
    let bounds = LogBounds { purged: bounds.0.map(|id| id.index), last: bounds.1.map(|id| id.index) };
    let (snapshots, loaded) = SnapshotDir::open(dir, bounds)?;
    Ok((log, Machine::new(shared, snapshots, loaded), identity))
}

/// A watch that changes only when the leader does. Ends with the raft task.
fn follow_leader(raft: &Raft) -> watch::Receiver<Option<NodeId>> {
    // Of all that is measured only what changes rarely: every heartbeat changes the rest.
    let mut metrics = raft.server_metrics();
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            let leader = metrics.borrow_and_update().current_leader.map(NodeId);
            sender.send_if_modified(|known| std::mem::replace(known, leader) != leader);
            if metrics.changed().await.is_err() || sender.is_closed() {
                return;
            }
        }
    });
    receiver
}
