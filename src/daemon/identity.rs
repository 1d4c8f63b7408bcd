//! Who this daemon is: files of the data directory that only it may use.

use crate::files::write_atomically;
use anyhow::{Context, Result};
use ashlar_model::{ClusterId, NodeId, SessionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// The node's place in its cluster, durable from the moment it has one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Number of the node.
    pub node: NodeId,
    /// Its name; a node keeps it.
    pub name: String,
    /// Name of the cluster while its founding is not known to be complete: it is repeated then.
    pub founding: Option<String>,
    /// API addresses of the metadata service, for nodes that are no members.
    pub members: Vec<String>,
}

/// Reads the identity; `None` before the node belongs to a cluster.
///
/// # Errors
/// The file exists and is not readable: the daemon must not guess.
pub fn load(data_dir: &Path) -> Result<Option<Identity>> {
    load_json(&data_dir.join("identity.json"))
}

/// Makes the identity durable.
///
/// # Errors
/// The directory cannot be written.
pub fn store(data_dir: &Path, identity: &Identity) -> Result<()> {
    write_atomically(&data_dir.join("identity.json"), &serde_json::to_vec_pretty(identity)?)
}

/// The session under which this directory asks to join. It outlives a crash: the cluster recognises the repetition.
///
/// # Errors
/// The directory cannot be read or written.
pub fn join_session(data_dir: &Path, fresh: SessionId) -> Result<SessionId> {
    let path = data_dir.join("join.json");
    if let Some(session) = load_json(&path)? {
        return Ok(session);
    }
    write_atomically(&path, &serde_json::to_vec(&fresh)?)?;
    Ok(fresh)
}

fn load_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
            Ok(Some(value))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Keeps other daemons off the data directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Why the directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon runs on it.
    #[error("another daemon (pid {0}) runs on this data directory")]
    Held(String),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl DirectoryLock {
    /// Takes the lock and writes our pid into it.
    ///
    /// # Errors
    /// Another daemon holds it, or the directory cannot be written.
    pub fn take(data_dir: &Path) -> Result<Self, LockError> {
        let path = data_dir.join("lock");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        // SAFETY: flock acts on the descriptor of `file`, which is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = std::io::Error::last_os_error();
            if error.kind() != ErrorKind::WouldBlock {
                return Err(error.into());
            }
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            return Err(LockError::Held(holder.trim().to_owned()));
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(dir.path()).unwrap();
        match DirectoryLock::take(dir.path()) {
            Err(LockError::Held(pid)) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        DirectoryLock::take(dir.path()).unwrap();
    }

    #[test]
    fn identity_survives_and_damage_is_no_absence() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let identity = Identity {
            cluster: ClusterId::from_u128(1),
            node: NodeId(3),
            name: "n3".into(),
            founding: None,
            members: vec!["127.0.0.1:1".into()],
        };
        store(dir.path(), &identity).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(identity));
        std::fs::write(dir.path().join("identity.json"), b"{").unwrap();
        assert!(load(dir.path()).is_err());
    }

    #[test]
    fn the_join_session_outlives_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let first = join_session(dir.path(), SessionId::from_u128(1)).unwrap();
        assert_eq!(join_session(dir.path(), SessionId::from_u128(2)).unwrap(), first);
    }
}
