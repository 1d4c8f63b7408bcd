//! Metadata of a data directory that no daemon uses: founded anew with a backup, or with what this member had.
//!
//! Either way a new group of the same cluster begins, with this node as its only voter and a number that no group before
//! had; members of earlier groups refuse it and end. What the directory held is moved aside, never removed.

use super::identity::{self, DirectoryLock, Identity, LockError};
use crate::cli::OfflineTask;
use crate::config::Config;
use ashlar_model::NodeId;
use ashlar_raft::State;
use ashlar_raft::offline::{self, Founding};
use ashlar_raft::state::decode_snapshot;
use ashlar_raft::state::entities::Admin;
use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const EXIT_FAILED: u8 = 1;
const EXIT_CONFLICT: u8 = 4;
const EXIT_UNSAFE: u8 = 6;
/// 2025-01-01: before it no clock is right, and from it on epochs are counted.
const CLOCK_BEGINS_S: u64 = 1_735_689_600;
/// Epochs that a restore leaves for each second since then: no volume is attached more often for long.
const EPOCHS_PER_S: u64 = 4;

/// Why nothing was done.
struct Refused {
    exit: u8,
    what: String,
    why: String,
    hint: String,
}

fn refused(exit: u8, what: &str, why: impl Display, hint: impl Into<String>) -> Refused {
    Refused { exit, what: what.into(), why: why.to_string(), hint: hint.into() }
}

/// What a new group is founded with.
struct Source {
    identity: Identity,
    state: State,
    /// Number of the group that this directory belonged to, if it is known.
    former: u64,
}

/// Carries a task out; says what was done, or why nothing was.
pub fn run(config: &Config, task: &OfflineTask) -> ExitCode {
    match perform(config, task) {
        Ok(said) => {
            said.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(Refused { exit, what, why, hint }) => {
            eprintln!("error: {what}\n  why: {why}\n  do:  {hint}");
            ExitCode::from(exit)
        }
    }
}

fn perform(config: &Config, task: &OfflineTask) -> Result<Vec<String>, Refused> {
    if !config.roles.meta {
        let why = format!("node {} has no meta role in its configuration", config.name);
        return Err(refused(EXIT_CONFLICT, "nothing was changed", why, "do it on a meta node"));
    }
    let _lock = lock(config)?;
    let known = identity::load(&config.data_dir)
        .map_err(|why| refused(EXIT_FAILED, "the identity is not readable", format!("{why:#}"), "correct it"))?;
    if let Some(known) = known.as_ref().filter(|known| known.name != config.name) {
        let why = format!("the data directory is that of node {}, the configuration of {}", known.name, config.name);
        return Err(refused(EXIT_CONFLICT, "nothing was changed", why, "give the configuration that belongs to it"));
    }
    let source = match task {
        OfflineTask::Restore { file, yes, overwrite } => from_backup(config, known, file, *yes, *overwrite)?,
        OfflineTask::Recover { sure } => from_member(config, known, *sure)?,
    };
    found(config, source)
}

fn lock(config: &Config) -> Result<DirectoryLock, Refused> {
    let dir = config.data_dir.display();
    let failed = |why: &dyn Display| refused(EXIT_FAILED, &format!("cannot use data_dir {dir}"), why, "correct it");
    fs::create_dir_all(&config.data_dir).map_err(|error| failed(&error))?;
    DirectoryLock::take(&config.data_dir).map_err(|error| match error {
        LockError::Held(_) => refused(EXIT_CONFLICT, "nothing was changed", error, "stop the daemon first"),
        LockError::Io(error) => failed(&error),
    })
}

fn from_backup(
    config: &Config,
    known: Option<Identity>,
    file: &Path,
    yes: bool,
    overwrite: bool,
) -> Result<Source, Refused> {
    let unreadable = |why: &dyn Display| {
        let hint = "give a file that `ashlar cluster backup` of this version has written";
        refused(EXIT_FAILED, &format!("cannot read the backup {}", file.display()), why, hint)
    };
    let record = fs::read(file).map_err(|error| unreadable(&error))?;
    let state = decode_snapshot(&record).map_err(|error| unreadable(&error))?;
    let cluster = state.cluster().ok_or_else(|| unreadable(&"it holds no cluster"))?.clone();
    let identity = match known {
        Some(known) => known,
        None => new_identity(config, &state)?,
    };
    check_node(&state, &identity)?;
    let meta = meta_dir(config);
    if offline::is_used(&meta) && !overwrite {
        let why = format!("{} holds metadata already, maybe newer than the backup", meta.display());
        let hint = "if a majority of the meta nodes can be started, start them; if this is the last one that is left, \
                    `ashlar cluster recover`; to go back to the backup all the same, add --overwrite";
        return Err(refused(EXIT_UNSAFE, "nothing was changed", why, hint));
    }
    if !yes {
        let why = format!(
            "node {} would found a new group of cluster {} ({}) with {}; {}",
            identity.name,
            cluster.name,
            cluster.id,
            contents(&state),
            if offline::is_used(&meta) { "the metadata that is here would be moved aside" } else { "nothing is here" }
        );
        return Err(refused(EXIT_UNSAFE, "nothing was changed", why, "stop all daemons of the cluster, and add --yes"));
    }
    let former = offline::read(&meta, identity.node).map_or(0, |found| found.incarnation);
    Ok(Source { identity, state, former })
}

/// A directory without an identity becomes that of the node with this name.
fn new_identity(config: &Config, state: &State) -> Result<Identity, Refused> {
    let found = state.node_by_name(&config.name).zip(state.cluster());
    let Some((node, cluster)) = found else {
        let why = format!("the backup knows no node '{}'", config.name);
        return Err(refused(EXIT_CONFLICT, "nothing was changed", why, names(state)));
    };
    let name = config.name.clone();
    Ok(Identity { cluster: cluster.id, node: node.id, name, founding: None, members: Vec::new() })
}

fn check_node(state: &State, identity: &Identity) -> Result<(), Refused> {
    let conflict = |why: String, hint: String| Err(refused(EXIT_CONFLICT, "nothing was changed", why, hint));
    if state.cluster().is_none_or(|cluster| cluster.id != identity.cluster) {
        let why = format!("the data directory belongs to cluster {}, the metadata to another one", identity.cluster);
        return conflict(why, "use the metadata of this cluster".to_owned());
    }
    let is_it =
        |id: NodeId| state.node(id).is_some_and(|node| node.name == identity.name && node.admin != Admin::Removed);
    if !is_it(identity.node) {
        let why = format!("the metadata knows no node {} with number {}", identity.name, identity.node);
        return conflict(why, names(state));
    }
    Ok(())
}

fn names(state: &State) -> String {
    let meta = state.nodes().filter(|node| node.roles.meta && node.admin != Admin::Removed);
    let names = meta.map(|node| node.name.as_str()).collect::<Vec<_>>();
    format!("do it on one of its meta nodes: {}", names.join(", "))
}

fn from_member(config: &Config, known: Option<Identity>, sure: bool) -> Result<Source, Refused> {
    let meta = meta_dir(config);
    let hint = "do it on a meta node that still has its metadata; with a backup, `ashlar cluster restore`";
    let Some(identity) = known else {
        return Err(refused(EXIT_CONFLICT, "nothing was changed", "the data directory is that of no node", hint));
    };
    let found = offline::read(&meta, identity.node)
        .map_err(|why| refused(EXIT_FAILED, "the metadata cannot be read", why, hint))?;
    if found.state.cluster().is_none() {
        return Err(refused(EXIT_CONFLICT, "nothing was changed", "there is no cluster in it", hint));
    }
    if !found.voters.contains(&identity.node) {
        eprintln!("warning: this node did not vote: take one that did if there is one left");
    }
    check_node(&found.state, &identity)?;
    let voter = |id: &NodeId| found.state.node(*id).map_or_else(|| id.to_string(), |node| node.name.clone());
    let voters = found.voters.iter().map(voter).collect::<Vec<_>>().join(", ");
    let what = format!(
        "it has {} up to index {} ({} entries at the end may never have been acknowledged); the voters were {voters}",
        contents(&found.state),
        found.last_index,
        found.uncertain
    );
    if !sure {
        let hint = "start the other voters if a majority can still be had; of those that are left take the one with the \
                    highest index; then add --yes-i-know-that-other-voters-are-lost";
        return Err(refused(EXIT_UNSAFE, "nothing was changed", what, hint));
    }
    println!("{what}");
    Ok(Source { identity, state: found.state, former: found.incarnation })
}

fn contents(state: &State) -> String {
    let (nodes, devices) = (state.nodes().count(), state.devices().count());
    format!("{nodes} nodes, {devices} devices, {} volumes", state.volumes().count())
}

fn meta_dir(config: &Config) -> PathBuf {
    config.data_dir.join("meta")
}

/// Writes the new group beside the old one, then puts it in its place.
fn found(config: &Config, source: Source) -> Result<Vec<String>, Refused> {
    let Source { identity, mut state, former } = source;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = now_s.checked_sub(CLOCK_BEGINS_S).ok_or_else(|| {
        refused(EXIT_FAILED, "nothing was changed", "the clock of this machine is years behind", "set it")
    })?;
    let restored = state
        .restore(seconds * EPOCHS_PER_S)
        .map_err(|why| refused(EXIT_FAILED, "nothing was changed", why, "use another backup"))?;
    // Two restores of one second are two groups.
    let unique = u64::from(uuid::Uuid::new_v4().as_u128() as u16);
    let incarnation = (now_s << 16 | unique).max(former + 1);
    let (meta, new) = (meta_dir(config), config.data_dir.join("meta.new"));
    let aside = config.data_dir.join(format!("meta.before-{incarnation}"));
    let Identity { node, cluster, .. } = identity;
    let founding = Founding { node, api_address: config.api_address.to_string(), cluster, incarnation };
    let failed = |why: &dyn Display| refused(EXIT_FAILED, "the metadata is not written", why, "correct it and repeat");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(|error| failed(&error))?; // of an attempt that was cut short
    }
    offline::found(&new, &founding, &state).map_err(|error| failed(&error))?;
    identity::store(&config.data_dir, &Identity { founding: None, ..identity.clone() })
        .map_err(|error| failed(&format!("{error:#}")))?;
    let moved = offline::is_used(&meta);
    if moved {
        fs::rename(&meta, &aside).map_err(|error| failed(&error))?;
    } else if meta.exists() {
        fs::remove_dir(&meta).map_err(|error| failed(&error))?;
    }
    fs::rename(&new, &meta).map_err(|error| failed(&error))?;
    File::open(&config.data_dir).and_then(|dir| dir.sync_all()).map_err(|error| failed(&error))?;
    let mut said = vec![format!(
        "node {} is the only voter of group {incarnation} of cluster {cluster}, with {}",
        identity.name,
        contents(&state)
    )];
    if moved {
        said.push(format!("what was there is in {}", aside.display()));
    }
    said.push(format!(
        "{} volumes ({} were attached): their {} lanes are looked at on all their devices before they are served again",
        restored.volumes, restored.attached, restored.lanes
    ));
    if restored.kept > 0 {
        said.push(format!("{} devices keep what volumes had left there", restored.kept));
    }
    said.push(
        "next: start this daemon; on each other meta node move `meta` in its data_dir away, then start it".to_owned(),
    );
    said.push(
        "not known here is what was done since: volumes and nodes that came are unknown, and if two devices of one volume were \
         replaced since, do not start the old ones"
            .to_owned(),
    );
    Ok(said)
}
