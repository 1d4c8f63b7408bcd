//! The state machine in memory, fed by committed log entries, with snapshots in files.

use super::snapshot_dir::{Loaded, SnapshotDir};
use super::types::{
    Entry, LogId, Outcome, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership, TypeConfig,
};
use crate::codec::{self, Kind};
use crate::command::Response;
use crate::state::{State, decode_snapshot};
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// The state as readers see it.
pub struct Shared {
    state: RwLock<Arc<State>>,
    applied: watch::Sender<u64>,
}

impl Shared {
    /// A state that nothing was applied to.
    pub fn new() -> Self {
        Self { state: RwLock::default(), applied: watch::Sender::new(0) }
    }

    /// The state now.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows the last applied index.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn replace(&self, state: State, index: u64) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        self.applied.send_replace(index);
    }
}

/// The state machine that openraft drives.
pub struct Machine {
    shared: Arc<Shared>,
    dir: Arc<SnapshotDir>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// The machine as the snapshot left it; the log brings the rest.
    pub fn new(shared: Arc<Shared>, dir: SnapshotDir, loaded: Option<Loaded>) -> Self {
        let mut machine = Self { shared, dir: Arc::new(dir), applied: None, membership: StoredMembership::default() };
        if let Some(Loaded { meta, state }) = loaded {
            machine.adopt(meta, state);
        }
        machine
    }

    fn adopt(&mut self, meta: SnapshotMeta, state: State) {
        self.shared.replace(state, meta.last_log_id.map_or(0, |id| id.index));
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership;
    }
}

/// Applies entries of the log, in order.
pub fn apply_entries(
    state: &mut State,
    applied: &mut Option<LogId>,
    members: &mut StoredMembership,
    entries: impl IntoIterator<Item = Entry>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for entry in entries {
        assert!(Some(entry.log_id) > *applied, "entries are applied once, in order");
        *applied = Some(entry.log_id);
        outcomes.push(match entry.payload {
            EntryPayload::Blank => Ok(Response::Done),
            EntryPayload::Normal(command) => state.apply(&command),
            EntryPayload::Membership(membership) => {
                *members = StoredMembership::new(Some(entry.log_id), membership);
                Ok(Response::Done)
            }
        });
    }
    outcomes
}

fn snapshot_error(context: &str, error: impl std::fmt::Display) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::error(format!("{context}: {error}"))).into()
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = {
            let mut guard = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            // Copies the state only if a reader holds the present one; volumes are shared between the copies.
            apply_entries(Arc::make_mut(&mut guard), &mut self.applied, &mut self.membership, entries)
        };
        self.shared.applied.send_replace(self.applied.map_or(0, |id| id.index));
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: self.applied.map_or_else(|| "empty".to_owned(), |id| format!("{}-{}", id.leader_id, id.index)),
        };
        Builder { meta, state: self.shared.state(), dir: Arc::clone(&self.dir) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<Vec<u8>>) -> Result<(), StorageError> {
        let (dir, meta) = (Arc::clone(&self.dir), meta.clone());
        let install = move || {
            let state = decode_snapshot(&snapshot).map_err(io::Error::other)?;
            dir.save(&meta, &snapshot)?;
            io::Result::Ok((meta, state))
        };
        let installed = tokio::task::spawn_blocking(install).await.map_err(|e| snapshot_error("install", e))?;
        let (meta, state) = installed.map_err(|e| snapshot_error("install", e))?;
        self.adopt(meta, state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let dir = Arc::clone(&self.dir);
        let read = tokio::task::spawn_blocking(move || dir.read()).await.map_err(|e| snapshot_error("read", e))?;
        let current = read.map_err(|e| snapshot_error("read", e))?;
        Ok(current.map(|(meta, record)| Snapshot { meta, snapshot: Box::new(record) }))
    }
}

/// Writes one snapshot, off the thread that applies.
pub struct Builder {
    meta: SnapshotMeta,
    state: Arc<State>,
    dir: Arc<SnapshotDir>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, state, dir) = (self.meta.clone(), Arc::clone(&self.state), Arc::clone(&self.dir));
        let build = move || {
            let record = codec::encode(Kind::State, state.as_ref()).map_err(io::Error::other)?;
            drop(state);
            dir.save(&meta, &record)?;
            io::Result::Ok(Snapshot { meta, snapshot: Box::new(record) })
        };
        let built = tokio::task::spawn_blocking(build).await.map_err(|e| snapshot_error("build", e))?;
        built.map_err(|e| snapshot_error("build", e))
    }
}
