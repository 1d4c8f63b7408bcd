//! Calls that arrive from other nodes. Bytes are checked before openraft sees them.

use super::Engine;
use super::log_store::Identity;
use super::network::{Envelope, SnapshotHead};
use super::types::TypeConfig;
use crate::codec::{self, CodecError, Kind};
use crate::service::MetaError;
use crate::state::decode_snapshot;
use crate::transport::RpcKind;
use ashlar_model::NodeId;
use openraft::Snapshot;
use openraft::error::{Fatal, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use std::sync::Arc;

/// What a member of a group that is over has to do.
pub(super) const JOIN_ANEW: &str =
    "stop its daemon, move the directory `meta` in its data_dir away, and start it again: it joins anew";

impl Engine {
    /// Serves one call and returns the encoded answer.
    pub async fn serve(&self, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, MetaError> {
        let (envelope, record) = codec::decode_prefix::<Envelope>(Kind::Envelope, body).map_err(bad)?;
        self.check(&envelope)?;
        match kind {
            RpcKind::Append => {
                let request: AppendEntriesRequest<TypeConfig> = codec::decode(Kind::Request, record).map_err(bad)?;
                self.join_group_of(&envelope).await?;
                let is_complete = brings_up_to_date(&request);
                let answer = self.raft.append_entries(request).await.map_err(stopped)?;
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    self.contact.heard();
                }
                if is_complete && matches!(answer, AppendEntriesResponse::Success) {
                    self.note_caught_up().await?;
                }
                reply(&answer)
            }
            RpcKind::Vote => {
                let request: VoteRequest<u64> = codec::decode(Kind::Request, record).map_err(bad)?;
                if self.contact.is_catching_up() {
                    return Err(MetaError::Unavailable(
                        "its log is new: it votes once a leader has filled it".to_owned(),
                    ));
                }
                reply(&self.raft.vote(request).await.map_err(stopped)?)
            }
            RpcKind::Snapshot => {
                let (head, state) = codec::decode_prefix::<SnapshotHead>(Kind::SnapshotMeta, record).map_err(bad)?;
                // A damaged snapshot is refused here; once openraft has it, an error would stop the node.
                decode_snapshot(state).map_err(bad)?;
                self.join_group_of(&envelope).await?;
                self.contact.heard();
                let snapshot = Snapshot { meta: head.meta, snapshot: Box::new(state.to_vec()) };
                let installed = self.raft.install_full_snapshot(head.vote, snapshot).await;
                reply(&installed.map_err(|e: Fatal<u64>| MetaError::Stopped(e.to_string()))?)
            }
            RpcKind::Probe => {
                let () = codec::decode(Kind::Request, record).map_err(bad)?;
                reply(&self.would_welcome_election())
            }
            RpcKind::Propose => {
                let command = codec::decode(Kind::Command, record).map_err(bad)?;
                outcome(&self.propose(command).await)
            }
            RpcKind::ReadIndex => {
                let () = codec::decode(Kind::ReadIndex, record).map_err(bad)?;
                outcome(&self.read_index().await)
            }
        }
    }

    fn check(&self, envelope: &Envelope) -> Result<(), MetaError> {
        if envelope.to != self.node() {
            return Err(MetaError::BadRequest(format!("this is node {}, not node {}", self.node(), envelope.to)));
        }
        match (envelope.cluster, self.caller.cluster.get()) {
            (Some(theirs), Some(ours)) if theirs != *ours => {
                return Err(MetaError::BadRequest(format!("this is cluster {ours}, not cluster {theirs}")));
            }
            _ => {}
        }
        match (envelope.incarnation, self.caller.incarnation.get()) {
            (Some(theirs), Some(ours)) if theirs != *ours => Err(self.other_group(envelope.from, theirs, *ours)),
            _ => Ok(()),
        }
    }

    /// The metadata was restored or recovered without one of the two. A member of the earlier group ends: what it knows is
    /// of a life that is over, and with others of its kind it could still find a quorum.
    fn other_group(&self, from: NodeId, theirs: u64, ours: u64) -> MetaError {
        if theirs < ours {
            self.speak_to(from);
            return MetaError::BadRequest(format!(
                "the metadata was restored or recovered without node {from}: it belongs to group {theirs}, this is {ours}; {JOIN_ANEW}"
            ));
        }
        let why = format!(
            "the metadata was restored or recovered without this node: it belongs to group {ours}, node {from} to {theirs}; {JOIN_ANEW}"
        );
        if self.superseded.set(()).is_ok() {
            tracing::error!("{why}");
            let (raft, log) = (self.raft.clone(), self.log.clone());
            let identity = Identity { superseded_by: Some(theirs), ..self.identity() };
            tokio::spawn(async move {
                // Also after a restart it must find no quorum among others of its kind.
                if let Err(error) = log.set_identity(identity).await {
                    tracing::error!("that the group is over could not be recorded: {error}");
                }
                raft.shutdown().await
            });
        }
        MetaError::Stopped(why)
    }

    fn identity(&self) -> Identity {
        let (cluster, incarnation) = (self.caller.cluster.get().copied(), self.caller.incarnation.get().copied());
        Identity { is_catching_up: self.contact.is_catching_up(), ..Identity::new(self.node(), cluster, incarnation) }
    }

    async fn note_caught_up(&self) -> Result<(), MetaError> {
        if !self.contact.is_catching_up() {
            return Ok(());
        }
        let identity = Identity { is_catching_up: false, ..self.identity() };
        self.log.set_identity(identity).await.map_err(|e| MetaError::Stopped(e.to_string()))?;
        self.contact.has_caught_up();
        Ok(())
    }

    /// A member of an earlier group learns of this one by any message: nobody else may have a reason to send it one.
    fn speak_to(&self, node: NodeId) {
        let caller = Arc::clone(&self.caller);
        let timeout = self.request_timeout();
        tokio::spawn(async move {
            let Some(address) = caller.address(node.0, None) else { return };
            let Ok(question) = codec::encode(Kind::Request, &()) else { return };
            // It refuses, and that it has heard is all that is wanted.
            drop(caller.call(node, &address, RpcKind::Probe, &question, timeout).await);
        });
    }

    /// A node that waits to be taken in belongs to the cluster, and to the group, whose leader speaks to it first.
    async fn join_group_of(&self, envelope: &Envelope) -> Result<(), MetaError> {
        let (known_cluster, known_group) = (&self.caller.cluster, &self.caller.incarnation);
        let Some(cluster) = envelope.cluster else { return Ok(()) };
        let news = known_group.get().is_none() && envelope.incarnation.is_some();
        if known_cluster.get().is_some() && !news {
            return Ok(());
        }
        if *known_cluster.get_or_init(|| cluster) != cluster {
            return Err(MetaError::BadRequest("two clusters want this node".to_owned()));
        }
        if let Some(incarnation) = envelope.incarnation
            && *known_group.get_or_init(|| incarnation) != incarnation
        {
            return Err(MetaError::BadRequest("two groups of the cluster want this node".to_owned()));
        }
        self.log.set_identity(self.identity()).await.map_err(|e| MetaError::Stopped(e.to_string()))
    }
}

/// True if a log that holds all of this has everything that a quorum has ever acknowledged: the leader has committed an entry
/// of its own term, and with it everything before.
fn brings_up_to_date(request: &AppendEntriesRequest<TypeConfig>) -> bool {
    let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
    let term = request.vote.leader_id().term;
    request
        .leader_commit
        .is_some_and(|commit| commit.leader_id.term == term && last.is_some_and(|last| last.index >= commit.index))
}

fn reply<T: serde::Serialize>(answer: &T) -> Result<Vec<u8>, MetaError> {
    codec::encode(Kind::Reply, answer).map_err(bad)
}

fn outcome<T: serde::Serialize>(answer: &Result<T, MetaError>) -> Result<Vec<u8>, MetaError> {
    codec::encode(Kind::Outcome, answer).map_err(bad)
}

fn bad(error: CodecError) -> MetaError {
    MetaError::BadRequest(error.to_string())
}

fn stopped(error: RaftError<u64>) -> MetaError {
    MetaError::Stopped(error.to_string())
}
