//! The way to other nodes, as this room sees it: one call, bytes in and bytes out. The daemon carries it over HTTP.

use ashlar_model::NodeId;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future, so that [`Transport`] can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a call carries; the receiver hands it to [`crate::MetaHandle::serve_rpc`] unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RpcKind {
    /// Raft log entries and heartbeats.
    Append,
    /// A Raft election.
    Vote,
    /// A whole snapshot of the state, with what it covers.
    Snapshot,
    /// A command on its way to the leader.
    Propose,
    /// The question up to where the log must be applied for a linearizable read.
    ReadIndex,
    /// The question whether the other node misses its leader as well, before an election.
    Probe,
}

impl RpcKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Append, Self::Vote, Self::Snapshot, Self::Propose, Self::ReadIndex, Self::Probe];

    /// Stable lower-case name, for a path or a header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Vote => "vote",
            Self::Snapshot => "snapshot",
            Self::Propose => "propose",
            Self::ReadIndex => "read-index",
            Self::Probe => "probe",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Largest body of a request of this kind, in bytes; the receiver refuses longer ones before reading them.
    pub fn body_bytes_max(self) -> usize {
        match self {
            Self::Append => crate::codec::RPC_BYTES_MAX,
            Self::Snapshot => crate::codec::SNAPSHOT_BYTES_MAX + 2 * 1024 * 1024,
            Self::Propose => 2 * crate::codec::COMMAND_BYTES_MAX,
            Self::Vote | Self::ReadIndex | Self::Probe => 64 * 1024,
        }
    }
}

/// Why a call brought no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection: wait a little before the next try.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time; the call may have had its effect.
    #[error("no answer in time")]
    Timeout,
    /// The peer answered with an error (its service is not running, or refused the bytes).
    #[error("the peer refused: {0}")]
    Refused(String),
}

/// Carries calls to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Calls `target` at `address` (its API address, `host:port`) and returns its answer.
    ///
    /// The answer is what `serve_rpc` returned there. An error of `serve_rpc` there arrives as [`TransportError::Refused`].
    fn call<'a>(
        &'a self,
        target: NodeId,
        address: &'a str,
        kind: RpcKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, TransportError>>;
}
