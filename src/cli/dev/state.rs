//! Files of a development cluster: `DIR/dev.json` (the plan) and `DIR/cluster.json` (the contract with scripts).

use super::super::client::CliError;
use super::plan::{DevPlan, NodePlan, nbd_uri};
use super::process;
use crate::files::write_atomically;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A node in `cluster.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeEntry {
    /// Name.
    pub name: String,
    /// Its process; absent while it is down.
    pub pid: Option<u32>,
    /// `http://host:port` of its API.
    pub api: String,
    /// Its NBD socket, if it serves guests.
    pub nbd_socket: Option<PathBuf>,
    /// Its directory.
    pub dir: PathBuf,
    /// Its device files.
    pub devices: Vec<PathBuf>,
}

/// A volume in `cluster.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VolumeEntry {
    /// Name.
    pub name: String,
    /// Where to open it.
    pub nbd_uri: Option<String>,
}

/// `cluster.json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ClusterFile {
    /// Nodes.
    pub nodes: Vec<NodeEntry>,
    /// Volumes.
    pub volumes: Vec<VolumeEntry>,
}

impl ClusterFile {
    /// The contents for a plan, with the processes that `pid_of` finds.
    pub fn of(plan: &DevPlan, pid_of: impl Fn(&NodePlan) -> Option<u32>) -> Self {
        let nodes = plan.nodes.iter().map(|node| NodeEntry {
            name: node.name.clone(),
            pid: pid_of(node),
            api: format!("http://{}", node.api),
            nbd_socket: node.nbd_socket(),
            dir: node.dir.clone(),
            devices: node.devices.clone(),
        });
        let socket = plan.nodes.iter().find_map(NodePlan::nbd_socket);
        let nbd_uri = socket.map(|socket| nbd_uri(&plan.volume, &socket));
        Self { nodes: nodes.collect(), volumes: vec![VolumeEntry { name: plan.volume.clone(), nbd_uri }] }
    }
}

/// Writes `cluster.json` as things are now.
///
/// # Errors
/// The directory cannot be written.
pub fn write_cluster_file(dir: &Path, plan: &DevPlan) -> Result<(), CliError> {
    let file = ClusterFile::of(plan, process::pid_of);
    write_json(&dir.join("cluster.json"), &file)
}

/// Stores the plan.
///
/// # Errors
/// As [`write_cluster_file`].
pub fn store_plan(dir: &Path, plan: &DevPlan) -> Result<(), CliError> {
    write_json(&dir.join("dev.json"), plan)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let unwritable = |error: &dyn std::fmt::Display| {
        CliError::failed(format!("cannot write {}", path.display()), error, "check the directory and its free space")
    };
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| unwritable(&error))?;
    write_atomically(path, &bytes).map_err(|error| unwritable(&format!("{error:#}")))
}

/// The plan of a directory, if it has one.
///
/// # Errors
/// It is there and not readable.
pub fn load_plan(dir: &Path) -> Result<Option<DevPlan>, CliError> {
    let path = dir.join("dev.json");
    let unreadable = |error: &dyn std::fmt::Display| {
        CliError::failed(format!("cannot read {}", path.display()), error, "start over with `ashlar dev --fresh`")
    };
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unreadable(&error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&error)),
    }
}

/// The plan of a directory that must have one.
///
/// # Errors
/// There is none.
pub fn require_plan(dir: &Path) -> Result<DevPlan, CliError> {
    load_plan(dir)?.ok_or_else(|| {
        CliError::not_found(
            format!("there is no development cluster in {}", dir.display()),
            "start one with `ashlar dev`, or name its directory with --dir",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan::DevRequest;
    use super::super::plan::tests::request;
    use super::*;
    use serde_json::Value;

    #[test]
    fn cluster_json_has_the_documented_shape() {
        let plan = DevPlan::new(&request()).unwrap();
        let file = ClusterFile::of(&plan, |node| (node.name == "n1").then_some(42));
        let json = serde_json::to_value(&file).unwrap();
        let first = &json["nodes"][0];
        assert_eq!(first["name"], "n1");
        assert_eq!(first["pid"], 42);
        assert_eq!(first["api"], format!("http://{}", plan.nodes[0].api));
        assert_eq!(first["nbd_socket"], "/tmp/d/n1/nbd.sock");
        assert_eq!(first["dir"], "/tmp/d/n1");
        assert_eq!(first["devices"][0], "/tmp/d/n1/device0.img");
        assert!(json["nodes"][1]["pid"].is_null());
        assert_eq!(json["volumes"][0]["name"], "vol");
        assert_eq!(json["volumes"][0]["nbd_uri"], "nbd+unix:///vol?socket=/tmp/d/n1/nbd.sock");
    }

    #[test]
    fn a_plan_survives() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_plan(dir.path()).unwrap(), None);
        assert_eq!(require_plan(dir.path()).unwrap_err().exit, 3);
        let plan = DevPlan::new(&request()).unwrap();
        store_plan(dir.path(), &plan).unwrap();
        assert_eq!(load_plan(dir.path()).unwrap(), Some(plan));
    }

    #[test]
    fn a_plan_says_what_is_declared_of_its_files_and_an_older_one_says_less() {
        let dir = tempfile::tempdir().unwrap();
        let plan = DevPlan::new(&DevRequest { atomic_writes: true, ..request() }).unwrap();
        assert_eq!((plan.power_loss_protected, plan.atomic_writes), (false, true));
        store_plan(dir.path(), &plan).unwrap();
        assert_eq!(load_plan(dir.path()).unwrap().as_ref(), Some(&plan));
        let path = dir.path().join("dev.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json.as_object_mut().unwrap().remove("atomic_writes").unwrap();
        json["nodes"][0].as_object_mut().unwrap().remove("shards").unwrap();
        std::fs::write(&path, json.to_string()).unwrap();
        assert_eq!(load_plan(dir.path()).unwrap(), Some(DevPlan { atomic_writes: false, ..plan }));
    }
}
