//! A cluster set up by hand, as an operator does it: configuration files, `ashlar node`, `cluster init`, `node join`,
//! `device add`, `volume create`. For roles that `ashlar dev` does not offer.

use super::cluster::{end_all, keep_logs};
use super::net::Place;
use super::tools::{self, Finished};
use super::{api, process, wait_for};
use serde_json::Value;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// One daemon.
pub struct ManualNode {
    pub name: String,
    pub api: String,
    pub data: String,
    dir: PathBuf,
    /// Its network namespace, if it does not share the test's.
    place: Option<Place>,
    child: Option<Child>,
}

/// Daemons that end with it.
pub struct ManualCluster {
    dir: PathBuf,
    pub nodes: Vec<ManualNode>,
}

impl ManualCluster {
    /// Starts daemons with these names and roles (as in the configuration file); they belong to no cluster yet.
    #[track_caller]
    pub fn start(test: &str, roles: &[(&str, &str)]) -> Self {
        Self::start_with(test, roles, "")
    }

    /// The same, with further lines at the top of each configuration file.
    #[track_caller]
    pub fn start_with(test: &str, roles: &[(&str, &str)], lines: &str) -> Self {
        let mut ports = free_ports(2 * roles.len()).into_iter();
        let mut address = || format!("127.0.0.1:{}", ports.next().expect("enough ports"));
        Self::start_at(test, roles, |_| lines.to_owned(), |_| (None, address(), address()))
    }

    /// As [`Self::start`], each in a zone: name, roles, zone.
    #[track_caller]
    pub fn start_in_zones(test: &str, nodes: &[(&str, &str, &str)]) -> Self {
        let mut ports = free_ports(2 * nodes.len()).into_iter();
        let mut address = || format!("127.0.0.1:{}", ports.next().expect("enough ports"));
        let roles = nodes.iter().map(|(name, roles, _)| (*name, *roles)).collect::<Vec<_>>();
        let zone = |number: u8| format!("[labels]\nzone = \"{}\"", nodes[usize::from(number) - 1].2);
        Self::start_at(test, &roles, zone, |_| (None, address(), address()))
    }

    /// As [`Self::start`], each in a network namespace of its own: see [`super::net::in_own_network`].
    #[track_caller]
    pub fn start_apart(test: &str, roles: &[(&str, &str)]) -> Self {
        Self::start_at(
            test,
            roles,
            |_| String::new(),
            |number| {
                let place = Place::new(number);
                let address = place.address;
                (Some(place), format!("{address}:7070"), format!("{address}:7071"))
            },
        )
    }

    /// `lines` gives the nth daemon, from 1, the end of its configuration file; `addresses` its place, API address and data
    /// address.
    #[track_caller]
    fn start_at(
        test: &str,
        roles: &[(&str, &str)],
        lines: impl Fn(u8) -> String,
        mut addresses: impl FnMut(u8) -> (Option<Place>, String, String),
    ) -> Self {
        let dir = tempfile::Builder::new().prefix(&format!("ashlar-{test}-")).tempdir().expect("a temporary directory");
        let mut cluster = Self { dir: dir.keep(), nodes: Vec::new() };
        for ((name, roles), number) in roles.iter().zip(1..) {
            let (place, api, data) = addresses(number);
            let lines = lines(number);
            let dir = cluster.dir.join(name);
            std::fs::create_dir_all(&dir).expect("a node's directory");
            let node = ManualNode { name: (*name).to_owned(), api, data, dir, place, child: None };
            let ManualNode { name, api, data, dir, .. } = &node;
            let dir_text = dir.display();
            let config = format!(
                "name = \"{name}\"\ndata_dir = \"{dir_text}\"\nroles = [{roles}]\n\
                 api_address = \"{api}\"\ndata_address = \"{data}\"\n{lines}\n"
            );
            std::fs::write(dir.join("node.toml"), config).expect("a node's configuration");
            cluster.nodes.push(node);
        }
        for node in &mut cluster.nodes {
            node.start();
        }
        for node in &cluster.nodes {
            wait_for(&format!("{} answers", node.name), Duration::from_secs(10), || api::get(&node.api, "/healthz"));
        }
        cluster
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A node.
    #[track_caller]
    pub fn node(&self, name: &str) -> &ManualNode {
        self.nodes.iter().find(|node| node.name == name).expect("a node of this cluster")
    }

    /// The volume's URI at a target.
    pub fn uri(&self, volume: &str, node: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.node(node).dir.join("nbd.sock").display())
    }

    /// Runs `ashlar` against a node's API.
    #[track_caller]
    pub fn cli(&self, node: &str, arguments: &[&str]) -> Finished {
        tools::ashlar(&format!("http://{}", self.node(node).api), arguments)
    }

    /// Founds the cluster with the first node, lets the others join, and waits until all are ready.
    #[track_caller]
    pub fn found_and_join(&self) {
        let (first, others) = self.nodes.split_first().expect("at least one node");
        self.cli(&first.name, &["cluster", "init", "--name", "e2e"]).expect_code(0);
        for node in others {
            // The node to join is the one whose API `ASHLAR_ENDPOINT` names.
            self.cli(&node.name, &["node", "join", "--endpoint", &format!("http://{}", first.api)]).expect_code(0);
        }
        for node in &self.nodes {
            wait_for(&format!("{} is ready", node.name), Duration::from_secs(30), || api::get(&node.api, "/readyz"));
        }
    }

    /// Gives a node a file as its device, with further options of `device add`.
    #[track_caller]
    pub fn add_device(&self, node: &str, bytes: u64, options: &[&str]) {
        let path = self.node(node).dir.join("device0.img");
        let file = File::create(&path).expect("a device file");
        file.set_len(bytes).expect("a device file's size");
        self.add_device_at(node, &path, options);
    }

    /// Gives a node this file or block device.
    #[track_caller]
    pub fn add_device_at(&self, node: &str, path: &Path, options: &[&str]) {
        let path = path.display().to_string();
        self.cli(node, &[&["device", "add", &path], options].concat()).expect_code(0);
    }

    /// Process of a node that runs.
    #[track_caller]
    pub fn pid(&self, node: &str) -> i32 {
        self.node(node).child.as_ref().expect("it runs").id() as i32
    }

    /// SIGKILL of these nodes at once.
    #[track_caller]
    pub fn kill_at_once(&mut self, names: &[&str]) {
        for node in self.nodes.iter_mut().filter(|node| names.contains(&node.name.as_str())) {
            let mut child = node.child.take().expect("it runs");
            child.kill().expect("SIGKILL of a child");
            child.wait().expect("the end of a child");
        }
    }

    /// Sends a signal to a node.
    #[track_caller]
    pub fn signal(&self, node: &str, signal: i32) {
        let pid = self.pid(node);
        assert!(process::signal(pid, &self.dir, signal), "{node} (pid {pid}) is no daemon of this test");
    }

    /// Where a node is, if it is apart.
    #[track_caller]
    pub fn place(&self, node: &str) -> &Place {
        self.node(node).place.as_ref().expect("a node with a network namespace of its own")
    }

    /// A volume, as a node tells it.
    pub fn volume(&self, node: &str, volume: &str) -> Result<Value, String> {
        api::get(&self.node(node).api, &format!("/v1/volumes/{volume}"))
    }

    /// Waits until a volume is healthy, as a node tells it. Returns the volume.
    #[track_caller]
    pub fn wait_healthy(&self, node: &str, volume: &str, timeout: Duration) -> Value {
        wait_for(&format!("{volume} is healthy"), timeout, || {
            let shown = self.volume(node, volume)?;
            if shown["health"] == "healthy" { Ok(shown) } else { Err(shown.to_string()) }
        })
    }

    /// Starts nodes again.
    #[track_caller]
    pub fn start_again(&mut self, names: &[&str]) {
        for node in self.nodes.iter_mut().filter(|node| names.contains(&node.name.as_str())) {
            node.start();
        }
    }
}

impl ManualNode {
    #[track_caller]
    fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.dir.join("log")).expect("a log file");
        let binary = tools::ashlar_binary();
        let mut command = self.place.as_ref().map_or_else(|| Command::new(&binary), |place| place.command(&binary));
        command.arg("node").arg("--config").arg(self.dir.join("node.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.child = Some(command.spawn().expect("a daemon"));
    }
}

impl Drop for ManualCluster {
    fn drop(&mut self) {
        for pid in process::daemons_under(&self.dir) {
            process::signal(pid, &self.dir, libc::SIGKILL);
        }
        for mut child in self.nodes.iter_mut().filter_map(|node| node.child.take()) {
            drop(child.wait());
        }
        end_all(&self.dir);
        if std::thread::panicking() {
            keep_logs(&self.dir);
        } else {
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}

/// Free ports of the loopback address: all are held until all are chosen, so that none comes twice.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("its address").port()).collect()
}
