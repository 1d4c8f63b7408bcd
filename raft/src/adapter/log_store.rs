//! Raft's log and vote in one redb file.
//!
//! Every write is one transaction with an fsync before it is reported; openraft waits for each, so writes are in
//! order. Truncating and purging are one transaction each, so a crash leaves the log before or after them. A failed
//! write stops the node: redb refuses all further use of the file, and openraft shuts down on the error.

use super::disk::{DiskFaults, FaultyFile};
use super::types::{Entry, LogId, StorageError, StorageIOError, TypeConfig, Vote};
use crate::codec::{self, Kind};
use crate::service::StartError;
use ashlar_model::{ClusterId, NodeId};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

/// Log index -> [`Kind::LogEntry`] record.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// Single records by name.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// redb's page cache; the log is short, so little suffices.
const CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Entries sent to a follower in one message, in bytes: far below the message limit, one entry at least.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

const _: () = assert!(READ_BYTES_MAX + 2 * codec::COMMAND_BYTES_MAX < codec::RPC_BYTES_MAX);

/// Whose log this is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The cluster, once known.
    pub cluster: Option<ClusterId>,
    /// Which group of that cluster, once known: 0, and another one with each restore of its metadata.
    pub incarnation: Option<u64>,
    /// The log is a new one of a node that may have had another one: until a leader has brought it up to date it must not
    /// vote, since what it had acknowledged and whom it had elected is gone.
    pub is_catching_up: bool,
    /// A later group of the cluster has spoken: this log is of a life that is over.
    pub superseded_by: Option<u64>,
}

impl Identity {
    /// A node that may belong to a cluster already.
    pub fn new(node: NodeId, cluster: Option<ClusterId>, incarnation: Option<u64>) -> Self {
        Self { node, cluster, incarnation, is_catching_up: false, superseded_by: None }
    }
}

/// What can go wrong in here.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file.
    #[error("{0}")]
    Redb(#[from] redb::Error),
    /// A record in it.
    #[error("{0}")]
    Codec(#[from] codec::CodecError),
    /// The worker thread died.
    #[error("{0}")]
    Worker(#[from] tokio::task::JoinError),
}

macro_rules! via_redb_error {
    ($($error:ty),*) => {$(
        impl From<$error> for LogError {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        }
    )*};
}
via_redb_error!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

/// The log store. Clones share the file.
#[derive(Clone)]
pub struct LogStore {
    db: Arc<Database>,
}

impl LogStore {
    /// Opens or creates the file and checks whose it is.
    pub fn open(
        path: &Path,
        expected: Identity,
        faults: Option<Arc<DiskFaults>>,
    ) -> Result<(Self, Identity), StartError> {
        let failed = |message: String| StartError::LogStore { path: path.to_owned(), message };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let db = match faults {
            None => builder.create(path),
            Some(faults) => {
                let file = FaultyFile::open(path, faults).map_err(|e| failed(e.to_string()))?;
                builder.create_with_backend(file)
            }
        };
        let db = db.map_err(|e| failed(e.to_string()))?;
        let store = Self { db: Arc::new(db) };
        let found = store.claim(expected).map_err(|e| failed(e.to_string()))?;
        let other_cluster = matches!((found.cluster, expected.cluster), (Some(one), Some(other)) if one != other);
        if found.node != expected.node || other_cluster {
            let describe = |identity: Identity| match identity.cluster {
                Some(cluster) => format!("node {} of cluster {cluster}", identity.node),
                None => format!("node {}", identity.node),
            };
            return Err(StartError::WrongIdentity {
                path: path.to_owned(),
                found: describe(found),
                expected: describe(expected),
            });
        }
        Ok((store, found))
    }

    /// Reads the identity, writes it into a new file, and completes it with the cluster.
    fn claim(&self, expected: Identity) -> Result<Identity, LogError> {
        let txn = self.begin()?;
        txn.open_table(LOG)?;
        let found = {
            let mut meta = txn.open_table(META)?;
            let stored = meta.get(IDENTITY)?.map(|record| codec::decode::<Identity>(Kind::Identity, record.value()));
            let stored = stored.transpose()?;
            // A group that is founded here says so; everybody else finds one.
            let is_catching_up = expected.cluster.is_some() && expected.incarnation.is_none();
            let mut identity: Identity = stored.unwrap_or(Identity { is_catching_up, ..expected });
            if identity.node == expected.node && identity.cluster.is_none() {
                identity.cluster = expected.cluster;
            }
            identity.incarnation = identity.incarnation.or(expected.incarnation);
            if stored != Some(identity) {
                meta.insert(IDENTITY, codec::encode(Kind::Identity, &identity)?.as_slice())?;
            }
            (identity, stored != Some(identity))
        };
        let (found, is_new) = found;
        // A full disk must not keep a node from starting with what it has.
        if is_new {
            txn.commit()?;
        } else {
            txn.abort()?;
        }
        Ok(found)
    }

    /// Notes which cluster this node belongs to.
    pub async fn set_identity(&self, identity: Identity) -> Result<(), LogError> {
        let record = codec::encode(Kind::Identity, &identity)?;
        self.put_meta(IDENTITY, record, Durability::Immediate).await
    }

    /// Records a vote before Raft runs: its first election goes to a later term.
    pub fn set_first_vote(&self, vote: &Vote) -> Result<(), LogError> {
        let txn = self.begin()?;
        txn.open_table(META)?.insert(VOTE, codec::encode(Kind::Vote, vote)?.as_slice())?;
        Ok(txn.commit()?)
    }

    /// Up to where the log is known to be committed; the leader may know more.
    pub fn known_committed(&self) -> Result<Option<LogId>, LogError> {
        Ok(self.get_meta::<Option<LogId>>(COMMITTED, Kind::LogPosition)?.flatten())
    }

    /// All entries from an index on.
    pub fn entries_from(&self, index: u64) -> Result<Vec<Entry>, LogError> {
        self.read_entries(index.., usize::MAX)
    }

    /// What the log holds: (purged up to, last).
    pub fn bounds(&self) -> Result<(Option<LogId>, Option<LogId>), LogError> {
        let purged: Option<LogId> = self.get_meta(PURGED, Kind::LogPosition)?;
        let log = self.db.begin_read()?.open_table(LOG)?;
        let last: Option<Entry> =
            log.last()?.map(|(_, record)| codec::decode(Kind::LogEntry, record.value())).transpose()?;
        Ok((purged, last.map(|entry| entry.log_id).or(purged)))
    }

    fn begin(&self) -> Result<redb::WriteTransaction, LogError> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        Ok(txn)
    }

    fn get_meta<T: serde::de::DeserializeOwned>(&self, key: &str, kind: Kind) -> Result<Option<T>, LogError> {
        let meta = self.db.begin_read()?.open_table(META)?;
        let Some(record) = meta.get(key)? else { return Ok(None) };
        Ok(Some(codec::decode(kind, record.value())?))
    }

    async fn put_meta(&self, key: &'static str, record: Vec<u8>, durability: Durability) -> Result<(), LogError> {
        self.write(move |txn| {
            txn.set_durability(durability)?;
            txn.open_table(META)?.insert(key, record.as_slice())?;
            Ok(())
        })
        .await
    }

    /// One transaction on a blocking thread: an fsync must not hold up the runtime.
    async fn write(
        &self,
        change: impl FnOnce(&mut redb::WriteTransaction) -> Result<(), LogError> + Send + 'static,
    ) -> Result<(), LogError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut txn = store.begin()?;
            change(&mut txn)?;
            Ok(txn.commit()?)
        })
        .await?
    }

    /// Entries of a range, at least one if there is one, then until `bytes_max` is reached.
    fn read_entries(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        let log = self.db.begin_read()?.open_table(LOG)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in log.range(range)? {
            let (_, record) = row?;
            bytes += record.value().len();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(codec::decode(Kind::LogEntry, record.value())?);
        }
        Ok(entries)
    }
}

fn reading(error: LogError) -> StorageError {
    StorageIOError::read_logs(AnyError::new(&error)).into()
}

fn writing(error: LogError) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read_entries(range, usize::MAX).map_err(reading)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read_entries(start..end, READ_BYTES_MAX).map_err(reading)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let (last_purged_log_id, last_log_id) = self.bounds().map_err(reading)?;
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let save = async || self.put_meta(VOTE, codec::encode(Kind::Vote, vote)?, Durability::Immediate).await;
        save().await.map_err(|e| StorageIOError::write_vote(AnyError::new(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.get_meta(VOTE, Kind::Vote).map_err(|e| StorageIOError::read_vote(AnyError::new(&e)).into())
    }

    /// Not flushed: a restart that has lost it applies less of the log at first and learns the rest from the leader.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let save =
            async || self.put_meta(COMMITTED, codec::encode(Kind::LogPosition, &committed)?, Durability::None).await;
        save().await.map_err(writing)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let stored: Option<Option<LogId>> = self.get_meta(COMMITTED, Kind::LogPosition).map_err(reading)?;
        Ok(stored.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encode = |entry: Entry| Ok((entry.log_id.index, codec::encode(Kind::LogEntry, &entry)?));
        let records: Vec<(u64, Vec<u8>)> =
            entries.into_iter().map(encode).collect::<Result<_, LogError>>().map_err(writing)?;
        let appended = self.write(move |txn| {
            let mut log = txn.open_table(LOG)?;
            for (index, record) in &records {
                log.insert(index, record.as_slice())?;
            }
            Ok(())
        });
        appended.await.map_err(writing)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let removed = self.write(move |txn| {
            txn.open_table(LOG)?.retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        });
        removed.await.map_err(writing)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let removed = self.write(move |txn| {
            txn.open_table(LOG)?.retain_in(..=log_id.index, |_, _| false)?;
            let record = codec::encode(Kind::LogPosition, &log_id)?;
            txn.open_table(META)?.insert(PURGED, record.as_slice())?;
            Ok(())
        });
        removed.await.map_err(writing)
    }
}
