//! A directory of the metadata service that no daemon uses: read what one member had, and found a new group with a state.

use super::log_store::{Identity, LogStore};
use super::snapshot_dir::{LogBounds, SnapshotDir, sync_dir};
use super::types::{LogId, SnapshotMeta, StoredMembership, Vote};
use super::{LOG_FILE, machine::apply_entries};
use crate::codec::{self, Kind};
use crate::service::StartError;
use crate::state::State;
use ashlar_model::{ClusterId, NodeId};
use openraft::{BasicNode, CommittedLeaderId, Membership};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Term and index that a founded group begins with.
const FIRST: (u64, u64) = (1, 1);

/// What a member's directory holds.
#[derive(Debug)]
pub struct Found {
    /// Its cluster, if it belonged to one.
    pub cluster: Option<ClusterId>,
    /// Its group.
    pub incarnation: u64,
    /// The state with everything that is in its log.
    pub state: State,
    /// Last index of the log.
    pub last_index: u64,
    /// Entries of which this member does not know whether they were committed. They are in the state.
    pub uncertain: u64,
    /// Who voted.
    pub voters: Vec<NodeId>,
}

/// Whose group is founded.
#[derive(Clone, Debug)]
pub struct Founding {
    /// The only member.
    pub node: NodeId,
    /// Its API address.
    pub api_address: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The group: a number that no group of this cluster had.
    pub incarnation: u64,
}

/// True if the directory holds metadata, whole or not.
pub fn is_used(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Reads what a member had: its snapshot and all of its log, committed or not. An entry that a lost majority had
/// acknowledged is in the log of each of its members, but not each of them knew that it was committed.
///
/// # Errors
/// The directory is missing, damaged or somebody else's.
pub fn read(dir: &Path, node: NodeId) -> Result<Found, StartError> {
    let path = dir.join(LOG_FILE);
    let failed = |message: String| StartError::LogStore { path: path.clone(), message };
    if !path.exists() {
        return Err(failed("there is none; nothing can be read here".to_owned()));
    }
    let (log, identity) = LogStore::open(&path, Identity::new(node, None, None), None)?;
    let (purged, last) = log.bounds().map_err(|e| failed(e.to_string()))?;
    let bounds = LogBounds { purged: purged.map(|id| id.index), last: last.map(|id| id.index) };
    let (_, loaded) = SnapshotDir::open(dir, bounds)?;
    let (mut state, mut applied, mut membership) = match loaded {
        Some(loaded) => (loaded.state, loaded.meta.last_log_id, loaded.meta.last_membership),
        None => (State::default(), None, StoredMembership::default()),
    };
    let next = applied.map_or(0, |id| id.index + 1);
    let entries = log.entries_from(next).map_err(|e| failed(e.to_string()))?;
    if entries.first().is_some_and(|entry| entry.log_id.index != next) {
        return Err(failed(format!("entry {next} is missing")));
    }
    let committed = log.known_committed().map_err(|e| failed(e.to_string()))?.max(applied);
    apply_entries(&mut state, &mut applied, &mut membership, entries);
    let last_index = applied.map_or(0, |id| id.index);
    Ok(Found {
        cluster: identity.cluster,
        incarnation: identity.incarnation.unwrap_or(0),
        state,
        last_index,
        uncertain: last_index - committed.map_or(0, |id| id.index),
        voters: super::split(membership.membership()).voters,
    })
}

/// Founds a group of one member in an empty directory, with exactly this state.
///
/// # Errors
/// The directory is in use or cannot be written.
pub fn found(dir: &Path, founding: &Founding, state: &State) -> Result<(), StartError> {
    let failed = |source| StartError::Io { context: format!("write {}", dir.display()), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let path = dir.join(LOG_FILE);
    if is_used(dir) {
        return Err(StartError::LogStore { path, message: "the directory is not empty".to_owned() });
    }
    let Founding { node, api_address, cluster, incarnation } = founding;
    let (term, index) = FIRST;
    let log_id = LogId::new(CommittedLeaderId::new(term, node.0), index);
    let members = BTreeMap::from([(node.0, BasicNode::new(api_address))]);
    let membership = Membership::new(vec![BTreeSet::from([node.0])], members);
    let meta = SnapshotMeta {
        last_log_id: Some(log_id),
        last_membership: StoredMembership::new(Some(log_id), membership),
        snapshot_id: format!("founded-{incarnation}"),
    };
    let record = codec::encode(Kind::State, state).map_err(|e| failed(std::io::Error::other(e)))?;
    let (snapshots, _) = SnapshotDir::open(dir, LogBounds::default())?;
    snapshots.save(&meta, &record).map_err(failed)?;
    let identity = Identity::new(*node, Some(*cluster), Some(*incarnation));
    let (log, _) = LogStore::open(&path, identity, None)?;
    let voted = log.set_first_vote(&Vote::new(term, node.0));
    voted.map_err(|e| StartError::LogStore { path, message: e.to_string() })?;
    sync_dir(dir).map_err(failed)
}
