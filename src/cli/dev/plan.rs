//! What a development cluster consists of: decided once, stored in `DIR/dev.json`, so that a stop and a start meet the
//! same nodes at the same ports. Pure, but for the choice of free ports.

use super::super::client::CliError;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket that the system takes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Most nodes of one machine's cluster.
const NODES_MAX: usize = 32;

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DevRequest {
    /// Absolute directory.
    pub dir: PathBuf,
    /// Nodes; fits the roles if absent.
    pub nodes: Option<usize>,
    /// Copies.
    pub replicas: u8,
    /// Volume.
    pub volume: String,
    /// Its size.
    pub size_bytes: u64,
    /// Size of each device file.
    pub device_bytes: u64,
    /// Treat the files as if they had power-loss protection.
    pub power_loss_protected: bool,
    /// Treat aligned 4 KiB writes to the files as never torn.
    pub atomic_writes: bool,
    /// The first node has no devices; the others only store.
    pub disaggregated: bool,
    /// Zones.
    pub zones: usize,
    /// Lanes of the volume.
    pub lanes: Option<u16>,
    /// Device files of each node that stores.
    pub devices: u16,
    /// Shards of each daemon.
    pub shards: u16,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodePlan {
    /// Name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// `host:port` of its API.
    pub api: String,
    /// `host:port` of its data plane.
    pub data: String,
    /// Roles.
    pub roles: Vec<String>,
    /// Zone.
    pub zone: Option<String>,
    /// Device files.
    pub devices: Vec<PathBuf>,
    /// Shards of its daemon.
    #[serde(default = "one")]
    pub shards: u16,
}

/// What a plan from before there were several has.
fn one() -> u16 {
    1
}

/// The whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DevPlan {
    /// Nodes in order; the first founds the cluster.
    pub nodes: Vec<NodePlan>,
    /// Copies.
    pub replicas: u8,
    /// Volume.
    pub volume: String,
    /// Its size.
    pub size_bytes: u64,
    /// Size of each device file.
    pub device_bytes: u64,
    /// Treat the files as if they had power-loss protection.
    pub power_loss_protected: bool,
    /// Treat aligned 4 KiB writes to the files as never torn.
    #[serde(default)]
    pub atomic_writes: bool,
    /// Lanes of the volume.
    pub lanes: Option<u16>,
}

impl NodePlan {
    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    /// Its NBD socket, if it serves guests.
    pub fn nbd_socket(&self) -> Option<PathBuf> {
        self.roles.iter().any(|role| role == "target").then(|| self.dir.join("nbd.sock"))
    }

    /// Its configuration.
    pub fn config_text(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let roles: Vec<String> = self.roles.iter().map(|role| quoted(role)).collect();
        let mut text = String::from("# Written by `ashlar dev`.\n");
        let _ = writeln!(text, "name = {}", quoted(&self.name));
        let _ = writeln!(text, "data_dir = {}", quoted(&self.dir.display().to_string()));
        let _ = writeln!(text, "roles = [{}]", roles.join(", "));
        let _ = writeln!(text, "api_address = {}", quoted(&self.api));
        let _ = writeln!(text, "data_address = {}", quoted(&self.data));
        if let Some(socket) = self.nbd_socket() {
            let _ = writeln!(text, "nbd_socket = {}", quoted(&socket.display().to_string()));
        }
        if self.shards != 1 {
            let _ = writeln!(text, "shards = {}", self.shards);
        }
        if let Some(zone) = &self.zone {
            let _ = writeln!(text, "\n[labels]\nzone = {}", quoted(zone));
        }
        text
    }
}

impl DevPlan {
    /// Decides names, roles, zones and ports.
    ///
    /// # Errors
    /// The request contradicts itself, or the directory's path is too long for sockets.
    pub fn new(request: &DevRequest) -> Result<Self, CliError> {
        let least = usize::from(request.replicas) + usize::from(request.disaggregated);
        let count = request.nodes.unwrap_or_else(|| least.max(3));
        check(request, count, least)?;
        let ports = free_ports(2 * count)?;
        let metas = match count {
            0..3 => 1,
            3..5 => 3,
            _ => 5,
        };
        let node = |i: usize| {
            let name = format!("n{}", i + 1);
            let dir = request.dir.join(&name);
            let (store, target) = if request.disaggregated { (i > 0, i == 0) } else { (true, true) };
            let roles = [("store", store), ("target", target), ("meta", i < metas)];
            NodePlan {
                api: format!("127.0.0.1:{}", ports[2 * i]),
                data: format!("127.0.0.1:{}", ports[2 * i + 1]),
                roles: roles.iter().filter(|(_, has)| *has).map(|(role, _)| (*role).to_owned()).collect(),
                zone: (request.zones > 1).then(|| format!("z{}", i % request.zones + 1)),
                devices: (0..if store { request.devices } else { 0 })
                    .map(|device| dir.join(format!("device{device}.img")))
                    .collect(),
                shards: request.shards,
                name,
                dir,
            }
        };
        Ok(Self {
            nodes: (0..count).map(node).collect(),
            replicas: request.replicas,
            volume: request.volume.clone(),
            size_bytes: request.size_bytes,
            device_bytes: request.device_bytes,
            power_loss_protected: request.power_loss_protected,
            atomic_writes: request.atomic_writes,
            lanes: request.lanes,
        })
    }

    /// Bytes that the device files take.
    pub fn disk_bytes(&self) -> u64 {
        let files: usize = self.nodes.iter().map(|node| node.devices.len()).sum();
        self.device_bytes.saturating_mul(files as u64)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The NBD URI of the volume, at the first node that serves guests.
    pub fn nbd_uri(&self) -> Option<String> {
        let path = self.nodes.iter().find_map(NodePlan::nbd_socket)?;
        Some(nbd_uri(&self.volume, &path))
    }
}

/// `nbd+unix:///EXPORT?socket=PATH`
pub fn nbd_uri(volume: &str, socket: &Path) -> String {
    let address = ashlar_nbd::uri::Address::Unix { path: socket.to_owned() };
    ashlar_nbd::uri::Uri { address, export: volume.to_owned() }.to_string()
}

fn check(request: &DevRequest, count: usize, least: usize) -> Result<(), CliError> {
    if count < least || count > NODES_MAX || request.zones == 0 {
        return Err(CliError::usage(
            format!("{count} nodes are not possible"),
            format!("{} replicas need {least} nodes here, and {NODES_MAX} is the most", request.replicas),
            "change --nodes, --replicas or --roles",
        ));
    }
    if request.device_bytes < ashlar_model::limits::DEVICE_BYTES_MIN {
        return Err(CliError::usage(
            "--device-size is too small",
            format!("a device has at least {}", ashlar_model::units::ByteSize(ashlar_model::limits::DEVICE_BYTES_MIN)),
            "leave it out for 4GiB",
        ));
    }
    ashlar_model::limits::check_name("volume", &request.volume)
        .map_err(|why| CliError::usage("--volume is not usable", why, "choose another name"))?;
    let longest = request.dir.join(format!("n{count}")).join("nbd.sock");
    if longest.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(CliError::usage(
            format!("--dir is too long: {}", request.dir.display()),
            format!("the path of a socket has at most {SOCKET_PATH_BYTES_MAX} bytes"),
            "use a shorter directory, for instance --dir /tmp/ashlar-dev",
        ));
    }
    Ok(())
}

/// Free ports of the loopback address: all are held until all are chosen, so that none comes twice.
fn free_ports(count: usize) -> Result<Vec<u16>, CliError> {
    let choose = || -> std::io::Result<Vec<u16>> {
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        listeners.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
    };
    choose().map_err(|error| CliError::failed("no free ports", error, "close some programs and try again"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ashlar_model::units::GIB;

    pub(crate) fn request() -> DevRequest {
        DevRequest {
            dir: "/tmp/d".into(),
            nodes: None,
            replicas: 3,
            volume: "vol".into(),
            size_bytes: 2 * GIB,
            device_bytes: 4 * GIB,
            power_loss_protected: false,
            atomic_writes: false,
            disaggregated: false,
            zones: 1,
            lanes: None,
            devices: 1,
            shards: 1,
        }
    }

    #[test]
    fn three_alike_nodes_by_default() {
        let plan = DevPlan::new(&request()).unwrap();
        assert_eq!(plan.nodes.len(), 3);
        assert!(plan.nodes.iter().all(|node| node.roles == ["store", "target", "meta"] && node.devices.len() == 1));
        assert_eq!(plan.disk_bytes(), 12 * GIB);
        assert_eq!(plan.nbd_uri().unwrap(), "nbd+unix:///vol?socket=/tmp/d/n1/nbd.sock");
        let mut ports: Vec<&String> = plan.nodes.iter().flat_map(|node| [&node.api, &node.data]).collect();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }

    #[test]
    fn disaggregated_has_a_first_node_without_devices() {
        let plan = DevPlan::new(&DevRequest { disaggregated: true, zones: 2, ..request() }).unwrap();
        assert_eq!(plan.nodes.len(), 4);
        assert_eq!(plan.nodes[0].roles, ["target", "meta"]);
        assert!(plan.nodes[0].devices.is_empty());
        assert_eq!(plan.nodes[3].roles, ["store"]);
        assert_eq!(plan.nodes[1].nbd_socket(), None);
        assert_eq!(plan.nodes[2].zone.as_deref(), Some("z1"));
    }

    #[test]
    fn contradictions_are_usage_errors() {
        let wrong = [
            DevRequest { nodes: Some(2), ..request() },
            DevRequest { nodes: Some(3), disaggregated: true, ..request() },
            DevRequest { device_bytes: 1, ..request() },
            DevRequest { volume: "a b".into(), ..request() },
            DevRequest { dir: format!("/{}", "x".repeat(100)).into(), ..request() },
        ];
        for request in wrong {
            assert_eq!(DevPlan::new(&request).unwrap_err().exit, 2, "{request:?}");
        }
    }

    #[test]
    fn the_configuration_is_accepted_by_the_daemon() {
        let plan = DevPlan::new(&DevRequest { zones: 3, ..request() }).unwrap();
        let config = crate::config::parse(&plan.nodes[1].config_text(), Default::default()).unwrap();
        assert_eq!(config.name, "n2");
        assert_eq!(config.labels.zone.as_deref(), Some("z2"));
        assert_eq!(config.shards, 1);
        let plan = DevPlan::new(&DevRequest { devices: 3, shards: 2, ..request() }).unwrap();
        let config = crate::config::parse(&plan.nodes[1].config_text(), Default::default()).unwrap();
        assert_eq!((config.shards, plan.nodes[1].devices.len()), (2, 3));
        assert!(plan.nodes[1].devices[2].ends_with("n2/device2.img"));
    }
}
