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

impl Engine {
    /// Serves one call and returns the encoded answer.
    pub async fn serve(&self, kind: RpcKind, body: &[u8]) -> Result<Vec<u8>, MetaError> {
        let (envelope, record) = codec::decode_prefix::<Envelope>(Kind::Envelope, body).map_err(bad)?;
        self.check(&envelope)?;
        match kind {
            RpcKind::Append => {
                let request: AppendEntriesRequest<TypeConfig> = codec::decode(Kind::Request, record).map_err(bad)?;
                self.join_group_of(&envelope).await?;
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
        const DO: &str =
            "stop its daemon, move the directory `meta` in its data_dir away, and start it again: it joins anew";
        if theirs < ours {
            self.speak_to(from);
            return MetaError::BadRequest(format!(
                "the metadata was restored or recovered without node {from}: it belongs to group {theirs}, this is {ours}; {DO}"
            ));
        }
        let why = format!(
            "the metadata was restored or recovered without this node: it belongs to group {ours}, node {from} to {theirs}; {DO}"
        );
        if self.superseded.set(()).is_ok() {
            tracing::error!("{why}");
            let raft = self.raft.clone();
            tokio::spawn(async move { raft.shutdown().await });
        }
        MetaError::Stopped(why)
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
        let identity = Identity { node: self.node(), cluster: Some(cluster), incarnation: known_group.get().copied() };
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
