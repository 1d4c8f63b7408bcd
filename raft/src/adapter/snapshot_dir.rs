//! Snapshot files: written beside, flushed, renamed; checked when read.
//!
//! A file `snapshot-TERM-INDEX.bin` is two records of [`crate::codec`]: what it covers ([`Kind::SnapshotMeta`]) and
//! the state ([`Kind::State`]). There is one; after a crash between renaming and cleaning up there may be two.

use super::types::SnapshotMeta;
use crate::codec::{self, Kind};
use crate::service::StartError;
use crate::state::{State, decode_snapshot};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The directory of a node's snapshots.
pub struct SnapshotDir {
    dir: PathBuf,
    /// What the current file covers. The lock also keeps a build and an install apart.
    current: Mutex<Option<(SnapshotMeta, PathBuf)>>,
}

/// What the log holds, to judge which snapshots it can go on from.
#[derive(Clone, Copy, Default)]
pub struct LogBounds {
    /// Index up to which it was purged.
    pub purged: Option<u64>,
    /// Last index it ever held that is not truncated.
    pub last: Option<u64>,
}

/// A decoded snapshot.
pub struct Loaded {
    /// What it covers.
    pub meta: SnapshotMeta,
    /// The state, indexes rebuilt.
    pub state: State,
}

impl SnapshotDir {
    /// Opens the directory and loads the newest sound snapshot.
    ///
    /// A damaged one is passed over only if the log still holds all that it covered: else this node would forget
    /// what it has acknowledged.
    pub fn open(dir: &Path, log: LogBounds) -> Result<(Self, Option<Loaded>), StartError> {
        let failed = |source| StartError::Io { context: format!("read {}", dir.display()), source };
        let files = list(dir).map_err(failed)?;
        let mut damaged = None;
        let mut sound = None;
        for ((index, _), path) in files.into_iter().rev() {
            match load(&path) {
                Ok(loaded) => {
                    sound = Some((loaded, path));
                    break;
                }
                Err(error) if Some(index) > log.last => {
                    return Err(StartError::DamagedSnapshot { path, message: error.to_string() });
                }
                Err(error) => {
                    tracing::warn!("snapshot {} is damaged: {error}", path.display());
                    damaged.get_or_insert((path, error.to_string()));
                }
            }
        }
        let reached = sound.as_ref().and_then(|(loaded, _)| loaded.meta.last_log_id).map(|id| id.index);
        if reached < log.purged {
            let (path, message) = damaged.unwrap_or_else(|| (dir.to_owned(), "it is missing".to_owned()));
            return Err(StartError::DamagedSnapshot { path, message });
        }
        let current = Mutex::new(sound.as_ref().map(|(loaded, path)| (loaded.meta.clone(), path.clone())));
        Ok((Self { dir: dir.to_owned(), current }, sound.map(|(loaded, _)| loaded)))
    }

    /// Writes a snapshot, durably, and removes older ones. A newer one is left in place.
    pub fn save(&self, meta: &SnapshotMeta, state_record: &[u8]) -> io::Result<()> {
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if current.as_ref().is_some_and(|(newer, _)| newer.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
        let path = self.dir.join(format!("snapshot-{term}-{index}.bin"));
        let beside = path.with_extension("tmp");
        let mut file = File::create(&beside)?;
        file.write_all(&codec::encode(Kind::SnapshotMeta, meta).map_err(io::Error::other)?)?;
        file.write_all(state_record)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        sync_dir(&self.dir)?;
        let old = current.replace((meta.clone(), path.clone()));
        if let Some((_, old)) = old
            && old != path
            && let Err(error) = fs::remove_file(&old)
        {
            tracing::warn!("failed to remove the old snapshot {}: {error}", old.display());
        }
        Ok(())
    }

    /// The current snapshot: what it covers and the state's record.
    pub fn read(&self) -> io::Result<Option<(SnapshotMeta, Vec<u8>)>> {
        let current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((_, path)) = current.as_ref() else { return Ok(None) };
        let bytes = fs::read(path)?;
        let (meta, rest) = codec::decode_prefix(Kind::SnapshotMeta, &bytes).map_err(io::Error::other)?;
        codec::check(Kind::State, rest).map_err(io::Error::other)?;
        Ok(Some((meta, rest.to_vec())))
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Snapshot files, oldest first; removes what a crash left half-written.
fn list(dir: &Path) -> io::Result<Vec<((u64, u64), PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("snapshot-") && name.ends_with(".tmp") {
            fs::remove_file(&path)?;
        } else if let Some(position) = position_of(name) {
            files.push((position, path));
        }
    }
    files.sort();
    Ok(files)
}

fn load(path: &Path) -> Result<Loaded, Box<dyn std::error::Error>> {
    let bytes = fs::read(path)?;
    let (meta, rest) = codec::decode_prefix(Kind::SnapshotMeta, &bytes)?;
    Ok(Loaded { meta, state: decode_snapshot(rest)? })
}

/// (index, term) of a snapshot's file name: the order of age.
fn position_of(name: &str) -> Option<(u64, u64)> {
    let (term, index) = name.strip_prefix("snapshot-")?.strip_suffix(".bin")?.split_once('-')?;
    Some((index.parse().ok()?, term.parse().ok()?))
}
