//! A cluster made by `ashlar dev --detach` for one test: its own directory, its own processes, and a guard that ends
//! them, whatever happens. After a failure the logs are kept and their ends are printed.

use super::tools::{self, Finished};
use super::{api, process, report, wait_for};
use ashlar_nbd::client::{Client, Socket};
use ashlar_nbd::uri::Uri;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(90);
/// No single reply of a healthy or recovering volume takes this long.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines of each log that a failed test prints.
const TAIL_LINES: usize = 40;

/// So many shards, and as many devices, have the nodes of clusters whose test says nothing about it. With two or more a
/// volume is not on the shard where its guests come in.
const SHARDS_VARIABLE: &str = "ASHLAR_TEST_SHARDS";

/// Name of the volume that `ashlar dev` makes.
pub const VOLUME: &str = "vol";

/// A node, as `cluster.json` says.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub pid: Option<i32>,
    /// `http://host:port`
    pub api: String,
    pub nbd_socket: Option<PathBuf>,
    pub dir: PathBuf,
    pub devices: Vec<PathBuf>,
}

/// A running cluster; dropping it ends it.
pub struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    /// Starts a cluster with these further arguments of `ashlar dev`.
    #[track_caller]
    pub fn start(test: &str, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix(&format!("ashlar-{test}-")).tempdir().expect("a temporary directory");
        let cluster = Self { dir: dir.keep() };
        let started = Instant::now();
        let shards = std::env::var(SHARDS_VARIABLE).unwrap_or_default();
        let more = ["--shards", &shards, "--devices", &shards];
        let more = if shards.is_empty() || arguments.contains(&more[0]) { &[][..] } else { &more[..] };
        cluster.dev(arguments.iter().copied().chain(more.iter().copied()).chain(["--detach"])).expect_code(0);
        report(&format!("cluster of {test} ready in {:.1} s", started.elapsed().as_secs_f64()));
        cluster
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs `ashlar dev ARGUMENTS --dir DIR`.
    #[track_caller]
    pub fn dev<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Finished {
        let mut command = std::process::Command::new(tools::ashlar_binary());
        command.arg("dev").args(arguments).arg("--dir").arg(&self.dir);
        tools::Running::start(command).finish(START_TIMEOUT)
    }

    /// The nodes, as `cluster.json` has them now.
    #[track_caller]
    pub fn nodes(&self) -> Vec<Node> {
        let path = self.dir.join("cluster.json");
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file: Value = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file["nodes"].as_array().expect("cluster.json lists nodes").iter().map(node_of).collect()
    }

    /// One node.
    #[track_caller]
    pub fn node(&self, name: &str) -> Node {
        let found = self.nodes().into_iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("cluster.json has no node {name}"))
    }

    /// The volume's URI at a node.
    #[track_caller]
    pub fn uri_at(&self, node: &str) -> String {
        self.uri_of(VOLUME, node)
    }

    /// Any volume's URI at a node.
    #[track_caller]
    pub fn uri_of(&self, volume: &str, node: &str) -> String {
        let socket = self.node(node).nbd_socket.unwrap_or_else(|| panic!("{node} is no target"));
        format!("nbd+unix:///{volume}?socket={}", socket.display())
    }

    /// A client of the volume at a node.
    #[track_caller]
    pub fn open_at(&self, node: &str) -> Client<Socket> {
        open(&self.uri_at(node))
    }

    /// Runs `ashlar ARGUMENTS` against a node's API.
    #[track_caller]
    pub fn cli(&self, node: &str, arguments: &[&str]) -> Finished {
        tools::ashlar(&self.node(node).api, arguments)
    }

    /// GET from a node's API.
    pub fn get(&self, node: &str, path: &str) -> Result<Value, String> {
        api::get(&self.node(node).api, path)
    }

    /// The volume, by `ashlar volume show -o json`.
    #[track_caller]
    pub fn show_volume(&self, node: &str) -> Value {
        let shown = self.cli(node, &["volume", "show", VOLUME, "-o", "json"]);
        shown.expect_code(0);
        serde_json::from_str(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {}", shown.stdout))
    }

    /// Sum of a metric of a node.
    pub fn metric(&self, node: &str, name: &str) -> f64 {
        api::metric(&self.node(node).api, name).unwrap_or(0.0)
    }

    /// Name of the leader of the metadata service, as a quorum says.
    #[track_caller]
    pub fn leader(&self) -> String {
        wait_for("a leader", Duration::from_secs(15), || {
            let nodes = self.nodes();
            let mut why = "nobody answers".to_owned();
            for node in nodes {
                match api::get(&node.api, "/v1/cluster") {
                    Ok(status) if status["stale"] == false => match status["metadata"]["leader"].as_str() {
                        Some(leader) => return Ok(leader.to_owned()),
                        None => why = status.to_string(),
                    },
                    Ok(status) => why = status.to_string(),
                    Err(error) => why = error,
                }
            }
            Err(why)
        })
    }

    /// SIGKILL of one node, by the command.
    #[track_caller]
    pub fn kill(&self, node: &str) {
        self.dev(["kill", node]).expect_code(0);
    }

    /// SIGKILL of these nodes at once.
    #[track_caller]
    pub fn kill_at_once(&self, names: &[&str]) {
        let pids: Vec<i32> = names.iter().map(|name| self.node(name).pid.expect("it runs")).collect();
        for pid in &pids {
            assert!(process::signal(*pid, &self.dir, libc::SIGKILL), "pid {pid} is no daemon of this test");
        }
        assert!(process::wait_gone(&pids, &self.dir, Duration::from_secs(10)), "{names:?} survive SIGKILL");
    }

    /// Starts what is down, or one node, and waits until it is ready. Returns how long that took.
    #[track_caller]
    pub fn start_again(&self, node: Option<&str>) -> Duration {
        let started = Instant::now();
        self.dev(["start"].into_iter().chain(node)).expect_code(0);
        started.elapsed()
    }

    /// Waits until the volume's health is this, as a node tells it. Returns the volume.
    #[track_caller]
    pub fn wait_health(&self, node: &str, wanted: &str, timeout: Duration) -> Value {
        wait_for(&format!("volume {wanted}"), timeout, || {
            let volume = self.get(node, &format!("/v1/volumes/{VOLUME}"))?;
            if volume["health"] == wanted { Ok(volume) } else { Err(volume.to_string()) }
        })
    }

    /// Waits until the volume is attached nowhere, after its last guest has gone.
    #[track_caller]
    pub fn wait_detached(&self, node: &str) {
        wait_for("volume detached", Duration::from_secs(20), || {
            let volume = self.get(node, &format!("/v1/volumes/{VOLUME}"))?;
            if volume["attached"].is_null() { Ok(()) } else { Err(volume.to_string()) }
        });
    }

    /// Puts these lines in front of every node's configuration; they count from the next start.
    #[track_caller]
    pub fn configure(&self, lines: &str) {
        for node in self.nodes() {
            let path = node.dir.join("node.toml");
            let text = std::fs::read_to_string(&path).expect("a node's configuration");
            std::fs::write(&path, format!("{lines}\n{text}")).expect("a node's configuration");
        }
    }

    /// A node's log.
    pub fn log(&self, node: &str) -> String {
        let bytes = std::fs::read(self.dir.join(node).join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Every node answers, and the volume takes a write and gives it back.
    #[track_caller]
    pub fn assert_alive(&self, target: &str) {
        for node in self.nodes() {
            let answer = api::call(&node.api, "/readyz", Duration::from_secs(5));
            let answer = answer.unwrap_or_else(|error| panic!("{} is not alive: {error}", node.name));
            assert_eq!(answer.status, 200, "{}: {}", node.name, answer.body);
        }
        let mut client = self.open_at(target);
        client.write(0, &[0xA5; 4096]).expect("a write after the insult");
        assert_eq!(client.read(0, 4096).expect("a read after the insult"), [0xA5; 4096]);
        client.disconnect().expect("an orderly goodbye");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let mut command = std::process::Command::new(tools::ashlar_binary());
        command.args(["dev", "stop", "--dir"]).arg(&self.dir);
        let stopped = tools::Running::start(command).finish(Duration::from_secs(60));
        end_all(&self.dir);
        if failed {
            keep_logs(&self.dir);
        } else {
            drop(std::fs::remove_dir_all(&self.dir));
            assert_eq!(stopped.code, Some(0), "dev stop failed: {}", stopped.text());
        }
    }
}

/// Ends every daemon that is left under a directory.
pub fn end_all(dir: &Path) {
    let left = process::daemons_under(dir);
    for pid in &left {
        process::signal(*pid, dir, libc::SIGCONT);
        process::signal(*pid, dir, libc::SIGKILL);
    }
    if !process::wait_gone(&left, dir, Duration::from_secs(10)) {
        eprintln!("daemons of {} survive SIGKILL: {left:?}", dir.display());
    }
}

/// Prints the ends of the logs and keeps all small files; the device files go, they are large.
pub fn keep_logs(dir: &Path) {
    eprintln!("--- logs are kept in {}", dir.display());
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut nodes: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    nodes.sort();
    for node in nodes {
        eprintln!("--- end of {}\n{}", node.join("log").display(), tools::tail(&node.join("log"), TAIL_LINES));
        let files = std::fs::read_dir(&node).into_iter().flatten().flatten().map(|entry| entry.path());
        for image in files.filter(|path| path.extension().is_some_and(|extension| extension == "img")) {
            drop(std::fs::remove_file(image));
        }
    }
}

fn node_of(entry: &Value) -> Node {
    let text = |key: &str| entry[key].as_str().unwrap_or_else(|| panic!("{key} of a node in cluster.json: {entry}"));
    let devices = entry["devices"].as_array().expect("devices of a node in cluster.json");
    Node {
        name: text("name").to_owned(),
        pid: entry["pid"].as_i64().map(|pid| i32::try_from(pid).expect("a pid")),
        api: text("api").to_owned(),
        nbd_socket: entry["nbd_socket"].as_str().map(PathBuf::from),
        dir: text("dir").into(),
        devices: devices.iter().filter_map(Value::as_str).map(PathBuf::from).collect(),
    }
}

/// Opens an export, with a deadline on every reply.
#[track_caller]
pub fn open(uri: &str) -> Client<Socket> {
    try_open(uri).unwrap_or_else(|error| panic!("open {uri}: {error}"))
}

/// As [`open`], for those that expect a refusal.
pub fn try_open(uri: &str) -> Result<Client<Socket>, ashlar_nbd::client::ClientError> {
    let uri: Uri = uri.parse().expect("a good URI");
    let socket = Socket::connect(&uri.address)?;
    socket.set_timeout(Some(REPLY_TIMEOUT))?;
    Client::connect(socket, &uri.export)
}
