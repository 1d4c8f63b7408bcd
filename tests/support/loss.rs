//! Ways to lose a node, and to get it back: it dies, it hangs, or packets to or from it vanish.

use super::manual::ManualCluster;
use super::net::Lost;
use super::report;

/// What happens to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// SIGKILL: the kernel closes its connections, so its peers are told.
    Killed,
    /// SIGSTOP: its connections stay open and nobody is told.
    Stopped,
    /// Every packet to and from it vanishes.
    Cut,
    /// What it sends vanishes.
    Mute,
    /// What is sent to it vanishes.
    Deaf,
}

impl Loss {
    pub const ALL: [Self; 5] = [Self::Killed, Self::Stopped, Self::Cut, Self::Mute, Self::Deaf];

    pub fn name(self) -> &'static str {
        match self {
            Self::Killed => "SIGKILL",
            Self::Stopped => "SIGSTOP",
            Self::Cut => "cut off",
            Self::Mute => "not heard",
            Self::Deaf => "hears nothing",
        }
    }

    fn packets(self) -> Option<Lost> {
        match self {
            Self::Killed | Self::Stopped => None,
            Self::Cut => Some(Lost::All),
            Self::Mute => Some(Lost::Sent),
            Self::Deaf => Some(Lost::Received),
        }
    }

    /// Lets it happen to a node of a cluster with a network of its own.
    #[track_caller]
    pub fn strike(self, cluster: &mut ManualCluster, node: &str) {
        match self.packets() {
            Some(lost) => cluster.place(node).lose(lost),
            None if self == Self::Killed => cluster.kill_at_once(&[node]),
            None => cluster.signal(node, libc::SIGSTOP),
        }
    }

    /// Gives the node back.
    #[track_caller]
    pub fn undo(self, cluster: &mut ManualCluster, node: &str) {
        match self.packets() {
            Some(_) => {
                let lost = cluster.place(node).mend();
                report(&format!("{lost} packets to or from {node} were lost"));
                assert!(lost > 0, "no packet was lost: nothing was shown");
            }
            None if self == Self::Killed => cluster.start_again(&[node]),
            None => cluster.signal(node, libc::SIGCONT),
        }
    }
}
