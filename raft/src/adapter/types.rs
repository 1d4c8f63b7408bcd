//! Openraft's names for our types.

use crate::command::{Command, Response};
use crate::refusal::Refusal;
use openraft::BasicNode;

/// The answer of the state machine to one command.
pub type Outcome = Result<Response, Refusal>;

openraft::declare_raft_types!(
    /// Our commands and answers; a snapshot is the encoded state.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = BasicNode,
        SnapshotData = Vec<u8>,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type StorageError = openraft::StorageError<u64>;
pub type StorageIOError = openraft::StorageIOError<u64>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, BasicNode>;
pub type StoredMembership = openraft::StoredMembership<u64, BasicNode>;
pub type Snapshot = openraft::Snapshot<TypeConfig>;
