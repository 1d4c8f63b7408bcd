//! Raft's messages on the way out: encode, call the transport, decode.
//!
//! Every message begins with an [`Envelope`]: a node that took over another one's address, or belongs to another
//! cluster, must not answer for it.

use super::machine::Shared;
use super::types::{SnapshotMeta, TypeConfig, Vote};
use crate::codec::{self, Kind};
use crate::transport::{RpcKind, Transport, TransportError};
use ashlar_model::{ClusterId, NodeId};
use openraft::BasicNode;
use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{OptionalSend, Snapshot};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Wait before an unreachable node is tried again: short, so that a restarted node hears from the leader before it
/// would campaign.
const RETRY: Duration = Duration::from_millis(200);

/// The start of every message between metadata nodes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Envelope {
    /// The sender's cluster, if it knows.
    pub cluster: Option<ClusterId>,
    /// Which group of it, if it knows.
    pub incarnation: Option<u64>,
    /// The sender.
    pub from: NodeId,
    /// The intended receiver.
    pub to: NodeId,
}

/// What a call to another node needs.
pub struct Caller {
    /// This node.
    pub node: NodeId,
    /// Our cluster, once known.
    pub cluster: OnceLock<ClusterId>,
    /// Which group of it, once known.
    pub incarnation: OnceLock<u64>,
    /// The way out.
    pub transport: Arc<dyn Transport>,
    /// Where the present addresses are looked up.
    pub shared: Arc<Shared>,
}

impl Caller {
    /// The API address of a node: as it registered last, else as it joined the group.
    pub fn address(&self, node: u64, joined: Option<&BasicNode>) -> Option<String> {
        let registered = self.shared.state().node(NodeId(node)).map(|node| node.api_address.clone());
        registered.or_else(|| joined.map(|node| node.addr.clone()))
    }

    /// Calls a node with an encoded record; the envelope is put before it.
    pub async fn call(
        &self,
        to: NodeId,
        address: &str,
        kind: RpcKind,
        record: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let (cluster, incarnation) = (self.cluster.get().copied(), self.incarnation.get().copied());
        let envelope = Envelope { cluster, incarnation, from: self.node, to };
        let mut body = codec::encode(Kind::Envelope, &envelope).map_err(refused)?;
        body.extend_from_slice(record);
        self.transport.call(to, address, kind, body, timeout).await
    }
}

fn refused(error: codec::CodecError) -> TransportError {
    TransportError::Refused(error.to_string())
}

/// Makes clients for openraft.
pub struct Network(pub Arc<Caller>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer { caller: Arc::clone(&self.0), target, joined: node.clone() }
    }
}

/// The way to one member.
pub struct Peer {
    caller: Arc<Caller>,
    target: u64,
    joined: BasicNode,
}

impl Peer {
    async fn exchange<A: DeserializeOwned>(
        &self,
        kind: RpcKind,
        record: Result<Vec<u8>, codec::CodecError>,
        timeout: Duration,
    ) -> Result<A, TransportError> {
        let record = record.map_err(refused)?;
        let address = self.caller.address(self.target, Some(&self.joined)).unwrap_or_default();
        let answer = self.caller.call(NodeId(self.target), &address, kind, &record, timeout).await?;
        codec::decode(Kind::Reply, &answer).map_err(refused)
    }
}

fn rpc_error<E: std::error::Error>(error: TransportError) -> RPCError<u64, BasicNode, RaftError<u64, E>> {
    match error {
        TransportError::Timeout => RPCError::Network(NetworkError::new(&error)),
        TransportError::Unreachable(_) | TransportError::Refused(_) => RPCError::Unreachable(Unreachable::new(&error)),
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let record = codec::encode(Kind::Request, &rpc);
        self.exchange(RpcKind::Append, record, option.hard_ttl()).await.map_err(rpc_error)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        let record = codec::encode(Kind::Request, &rpc);
        self.exchange(RpcKind::Vote, record, option.hard_ttl()).await.map_err(rpc_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let record =
            codec::encode(Kind::SnapshotMeta, &SnapshotHead { vote, meta: snapshot.meta }).map(|mut record| {
                record.extend_from_slice(&snapshot.snapshot);
                record
            });
        let answer = tokio::select! {
            answer = self.exchange(RpcKind::Snapshot, record, option.hard_ttl()) => answer,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        answer.map_err(|error| match error {
            TransportError::Timeout => StreamingError::Network(NetworkError::new(&error)),
            _ => StreamingError::Unreachable(Unreachable::new(&error)),
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

/// What comes before the state's record in a snapshot message.
#[derive(Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The leader's vote.
    pub vote: Vote,
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
}
