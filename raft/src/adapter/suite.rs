//! Openraft's own storage tests on our store.

use super::log_store::{Identity, LogStore};
use super::machine::{Machine, Shared};
use super::snapshot_dir::{LogBounds, SnapshotDir};
use super::types::{StorageError, TypeConfig};
use ashlar_model::NodeId;
use openraft::testing::{StoreBuilder, Suite};
use std::sync::Arc;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::new(NodeId(0), None, None);
        let (log, _) = LogStore::open(&dir.path().join("raft.redb"), identity, None).unwrap();
        let (snapshots, loaded) = SnapshotDir::open(dir.path(), LogBounds::default()).unwrap();
        Ok((dir, log, Machine::new(Arc::new(Shared::new()), snapshots, loaded)))
    }
}

#[test]
fn openraft_storage_suite() {
    Suite::test_all(Builder).unwrap();
}
