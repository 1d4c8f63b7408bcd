//! How many guests come in, and how long they may take to say what they want.
//!
//! Pure: it is told who is there and what time it is.

use super::policy::Policy;
use super::tls::TlsDoors;
use ashlar_nbd::session::Tls;

/// Guests that a shard has room for, besides the links to other shards.
pub const GUESTS_MAX: u32 = 4096;

/// A line of the log about guests that are turned away, at most once in this time; a flood would fill the disk.
const NOTICE_US: u64 = 10_000_000;

/// Bounds of a node's NBD doors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DoorLimits {
    /// Connections of guests, over all shards of the daemon; more are closed at once. It leaves room for links.
    pub connections_max: u32,
    /// Connections that have the same export open; more are refused with a message.
    pub export_connections_max: u32,
    /// Connections that have not yet opened an export; more are closed at once.
    pub handshakes_max: u32,
    /// How long a guest may take to open an export; not counting what it waits for us.
    pub handshake_us: u64,
}

/// What a node's NBD doors are told.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// How many guests come in.
    pub limits: DoorLimits,
    /// Which of them may open what.
    pub policy: Policy,
    /// Certificates, if there is TLS.
    pub tls: Option<TlsDoors>,
}

impl Doors {
    /// What a session is to offer.
    pub fn tls(&self) -> Tls {
        match &self.tls {
            None => Tls::Unavailable,
            Some(TlsDoors { required: false, .. }) => Tls::Optional,
            Some(TlsDoors { required: true, .. }) => Tls::Required,
        }
    }
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self { connections_max: 256, export_connections_max: 64, handshakes_max: 64, handshake_us: 10_000_000 }
    }
}

/// Why a guest is turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    /// All connections are in use.
    #[error("there are {0} NBD connections already (nbd.connections_max)")]
    Connections(u32),
    /// Too many that have not said what they want.
    #[error("{0} NBD connections are in their handshake already (nbd.handshakes_max)")]
    Handshakes(u32),
    /// The export has enough.
    #[error("the export has {0} connections already (nbd.export_connections_max of this node)")]
    Export(u32),
}

impl DoorLimits {
    /// Whether one more may come in, with so many there and so many of them in their handshake.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, connections: usize, handshakes: usize) -> Result<(), Full> {
        if connections >= self.connections_max as usize {
            Err(Full::Connections(self.connections_max))
        } else if handshakes >= self.handshakes_max as usize {
            Err(Full::Handshakes(self.handshakes_max))
        } else {
            Ok(())
        }
    }

    /// Whether one more may open an export that so many have open.
    ///
    /// # Errors
    /// Why not; fit for the guest.
    pub fn admit_to_export(&self, connections: usize) -> Result<(), Full> {
        if connections >= self.export_connections_max as usize {
            Err(Full::Export(self.export_connections_max))
        } else {
            Ok(())
        }
    }
}

/// Guests that were turned away: each kind has its own line of the log.
#[derive(Debug, Default)]
pub struct TurnedAway {
    /// At the door.
    pub at_the_door: Notice<1>,
    /// By an export that has enough connections.
    pub by_the_export: Notice<1>,
    /// By a rule of the export.
    pub by_a_rule: Notice<1>,
    /// For taking too long.
    pub late: Notice<1>,
    /// For breaking the protocol, or TLS: each may have its own reason.
    pub out_of_step: Notice<16>,
}

/// When to say again what happens all the time: so many times in ten seconds.
#[derive(Debug, Default)]
pub struct Notice<const LINES: u32> {
    since_us: Option<u64>,
    said: u32,
    unsaid: u64,
}

impl<const LINES: u32> Notice<LINES> {
    /// It happened. If it is to be said now: how many times it happened since it was last said, this time included.
    pub fn due(&mut self, now_us: u64) -> Option<u64> {
        self.unsaid += 1;
        if self.since_us.is_none_or(|since_us| now_us >= since_us + NOTICE_US) {
            (self.since_us, self.said) = (Some(now_us), 0);
        }
        if self.said == LINES {
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_named() {
        let limits = DoorLimits { connections_max: 3, export_connections_max: 2, handshakes_max: 2, handshake_us: 1 };
        assert_eq!(limits.admit(2, 1), Ok(()));
        assert_eq!(limits.admit(3, 1), Err(Full::Connections(3)));
        assert_eq!(limits.admit(2, 2), Err(Full::Handshakes(2)));
        assert_eq!(limits.admit_to_export(1), Ok(()));
        let full = limits.admit_to_export(2).expect_err("two are there");
        assert_eq!(full.to_string(), "the export has 2 connections already (nbd.export_connections_max of this node)");
    }

    #[test]
    fn a_flood_is_said_once_with_its_size() {
        let mut notice = Notice::<1>::default();
        assert_eq!(notice.due(5), Some(1));
        assert_eq!((0..100).filter_map(|now_us| notice.due(now_us)).count(), 0);
        assert_eq!(notice.due(5 + NOTICE_US), Some(101));
        assert_eq!(notice.due(6 + NOTICE_US), None);
    }

    #[test]
    fn what_has_many_reasons_has_several_lines() {
        let mut notice = Notice::<3>::default();
        assert_eq!([5, 6, 7, 8, 9].map(|now_us| notice.due(now_us)), [Some(1), Some(1), Some(1), None, None]);
        assert_eq!([5, 6].map(|after_us| notice.due(NOTICE_US + after_us)), [Some(3), Some(1)]);
    }
}
