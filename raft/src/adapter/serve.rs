//! Calls that arrive from other nodes. Bytes are checked before openraft sees them.

use super::Engine;
use super::log_store::Identity;
use super::network::{Envelope, SnapshotHead};
use super::types::TypeConfig;
use crate::codec::{self, CodecError, Kind};
use crate::service::MetaError;
use crate::state::decode_snapshot;
use crate::transport::RpcKind;
use openraft::Snapshot;
use openraft::error::{Fatal, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};

impl Engine {
    /// Serves one call and returns the encoded answer.
    pub async fn serve(&self, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, MetaError> {
        let (envelope, record) = codec::decode_prefix::<Envelope>(Kind::Envelope, body).map_err(bad)?;
        self.check(&envelope)?;
        match kind {
            RpcKind::Append => {
                let request: AppendEntriesRequest<TypeConfig> = codec::decode(Kind::Request, record).map_err(bad)?;
                self.join_cluster_of(&envelope).await?;
                let answer = self.raft.append_entries(request).await.map_err(stopped)?;
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    self.contact.heard();
                }
                reply(&answer)
            }
            RpcKind::Vote => {
                let request: VoteRequest<u64> = codec::decode(Kind::Request, record).map_err(bad)?;
                reply(&self.raft.vote(request).await.map_err(stopped)?)
            }
            RpcKind::Snapshot => {
                let (head, state) = codec::decode_prefix::<SnapshotHead>(Kind::SnapshotMeta, record).map_err(bad)?;
                // A damaged snapshot is refused here; once openraft has it, an error would stop the node.
                decode_snapshot(state).map_err(bad)?;
                self.join_cluster_of(&envelope).await?;
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
                Err(MetaError::BadRequest(format!("this is cluster {ours}, not cluster {theirs}")))
            }
            _ => Ok(()),
        }
    }

    /// A node that waits to be taken in belongs to the cluster whose leader speaks to it first.
    async fn join_cluster_of(&self, envelope: &Envelope) -> Result<(), MetaError> {
        let (Some(cluster), None) = (envelope.cluster, self.caller.cluster.get()) else { return Ok(()) };
        if *self.caller.cluster.get_or_init(|| cluster) != cluster {
            return Err(MetaError::BadRequest("two clusters want this node".to_owned()));
        }
        let identity = Identity { node: self.node(), cluster: Some(cluster) };
        self.log.set_identity(identity).await.map_err(|e| MetaError::Stopped(e.to_string()))
    }
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
