//! A network of a test's own: each daemon in a network namespace, all joined by a bridge in another one, and links that
//! lose packets without a word to anybody.
//!
//! No namespace has a name: a thread of the test keeps the bridge's, file descriptors keep the others. So everything
//! here, rules of loss included, ends with the test's process, however that ends. What is lost is lost on the wire, on
//! arrival at the next interface: no sender is told.

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::tools;

/// The bridge's own address; nodes follow from 10.77.0.1.
const BRIDGE_ADDRESS: &str = "10.77.0.254/24";
const TABLE: &str = "loss";

/// Which packets of a node are lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// Those that it sends: it hears and is not heard.
    Sent,
    /// Those that are sent to it: it is heard and does not hear.
    Received,
    /// All.
    All,
}

/// The place of one node.
#[derive(Debug)]
pub struct Place {
    namespace: OwnedFd,
    /// The bridge's end of the node's cable.
    port: String,
    pub address: Ipv4Addr,
}

/// Runs a test in a network namespace of its own, in which [`Place::new`] works and everything the test starts runs.
/// Where that cannot be, says why and returns: only root may make namespaces.
pub fn in_own_network(test: impl FnOnce() + Send) {
    let run = || match set_up() {
        Ok(()) => test(),
        Err(why) => println!("SKIPPED, no network of its own: {why}"),
    };
    let result = std::thread::scope(|scope| scope.spawn(run).join());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Moves this thread into a new namespace and makes the bridge there.
fn set_up() -> Result<(), String> {
    // SAFETY: geteuid only reads.
    if unsafe { libc::geteuid() } != 0 {
        return Err("only root may make one".into());
    }
    for tool in ["ip", "nft"] {
        let probe = Command::new(tool).arg("--version").output();
        probe.map_err(|error| format!("{tool}: {error}; it is in Debian's iproute2 or nftables"))?;
    }
    leave_for_new_namespace().map_err(|error| format!("unshare: {error}"))?;
    tools::must("ip", &["link", "set", "lo", "up"]);
    tools::must("ip", &["link", "add", "bridge0", "type", "bridge"]);
    tools::must("ip", &["address", "add", BRIDGE_ADDRESS, "dev", "bridge0"]);
    tools::must("ip", &["link", "set", "bridge0", "up"]);
    tools::must("nft", &["add", "table", "netdev", TABLE]);
    Ok(())
}

fn leave_for_new_namespace() -> std::io::Result<()> {
    // SAFETY: changes only the network namespace of the calling thread, which is one of ours and no other's.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

impl Place {
    /// Makes a namespace and lays a cable from it to the bridge. To be called by the thread of [`in_own_network`].
    #[track_caller]
    pub fn new(number: u8) -> Self {
        let made = std::thread::spawn(|| {
            leave_for_new_namespace()?;
            File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        });
        let namespace = made.join().expect("a short thread").expect("a network namespace");
        let place = Self { namespace, port: format!("port{number}"), address: Ipv4Addr::new(10, 77, 0, number) };
        // SAFETY: gettid only reads. The kernel takes a thread's number where it wants a process's.
        let here = unsafe { libc::gettid() }.to_string();
        let port = place.port.as_str();
        let cable = ["link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", &here];
        place.must("ip", &cable);
        place.must("ip", &["link", "set", "lo", "up"]);
        place.must("ip", &["address", "add", &format!("{}/24", place.address), "dev", "eth0"]);
        place.must("ip", &["link", "set", "eth0", "up"]);
        tools::must("ip", &["link", "set", port, "master", "bridge0", "up"]);
        place.must("nft", &["add", "table", "netdev", TABLE]);
        place
    }

    /// A command that runs at this place.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.namespace.as_raw_fd();
        let enter = move || {
            // SAFETY: the descriptor is inherited by the child, which calls this before exec; setns allocates nothing.
            if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: the closure makes one system call and reads errno.
        unsafe { command.pre_exec(enter) };
        command
    }

    #[track_caller]
    fn must(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command(program);
        command.args(arguments);
        let finished = tools::Running::start(command).finish(std::time::Duration::from_secs(10));
        finished.expect_code(0);
        finished.stdout
    }

    /// From now on these packets are lost.
    #[track_caller]
    pub fn lose(&self, lost: Lost) {
        if lost != Lost::Received {
            // On arrival at the bridge.
            tools::must("nft", &[&self.rules("sent", &self.port)]);
        }
        if lost != Lost::Sent {
            self.must("nft", &[&self.rules("received", "eth0")]);
        }
    }

    fn rules(&self, what: &str, interface: &str) -> String {
        let chain = format!("{what}-{}", self.port);
        format!(
            "add chain netdev {TABLE} {chain} {{ type filter hook ingress device {interface} priority 0; policy drop; }}; \
             add rule netdev {TABLE} {chain} counter drop"
        )
    }

    /// The cable is whole again. Returns how many packets were lost.
    #[track_caller]
    pub fn mend(&self) -> u64 {
        let mut lost = 0;
        let chain = format!("-{}", self.port);
        let here = tools::must("nft", &["list", "table", "netdev", TABLE]);
        if here.contains(&format!("sent{chain} ")) {
            lost += counted(&tools::must("nft", &["list", "chain", "netdev", TABLE, &format!("sent{chain}")]));
            remove(&format!("sent{chain}"), |arguments| tools::must("nft", arguments));
        }
        if self.must("nft", &["list", "table", "netdev", TABLE]).contains("received") {
            lost += counted(&self.must("nft", &["list", "chain", "netdev", TABLE, &format!("received{chain}")]));
            remove(&format!("received{chain}"), |arguments| self.must("nft", arguments));
        }
        lost
    }
}

fn remove(chain: &str, nft: impl Fn(&[&str]) -> String) {
    nft(&["flush", "chain", "netdev", TABLE, chain]);
    nft(&["delete", "chain", "netdev", TABLE, chain]);
}

/// Packets of the counter of a chain.
fn counted(listing: &str) -> u64 {
    let mut words = listing.split_ascii_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
