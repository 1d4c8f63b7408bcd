//! A volume that is attached to this node, or about to be: what for, and who waits for it.

use super::control::{AttachDone, AttachFor, AttachRefusal};
use crate::volume::VolumeEngine;
use std::collections::BTreeSet;
use tokio::sync::oneshot;

/// Waits for an attach by command.
pub(super) type Waiter = oneshot::Sender<Result<AttachDone, AttachRefusal>>;

/// A volume with its writer on this node.
pub(super) struct Attached {
    pub engine: VolumeEngine,
    /// Number of the writer in this session of the daemon.
    pub attempt: u64,
    /// What the metadata service is asked for.
    pub asked: AttachFor,
    pub asked_at_us: u64,
    /// What it granted; a writer that cares for a volume may be granted the volume for guests later.
    pub granted: Option<AttachFor>,
    /// The grant needed no recovery.
    pub opened_clean: bool,
    /// Attached by command: stays without guests.
    pub pinned: bool,
    pub guests: BTreeSet<u64>,
    /// Guests that wait for the volume, or for its end to attach it anew.
    pub waiting_guests: Vec<u64>,
    pub waiters: Vec<Waiter>,
    pub detach_waiters: Vec<oneshot::Sender<bool>>,
    pub quiet_since_us: u64,
    pub closing: bool,
}

impl Attached {
    /// A writer that asks for its epoch.
    pub fn new(engine: VolumeEngine, attempt: u64, purpose: AttachFor, now_us: u64) -> Self {
        Self {
            engine,
            attempt,
            asked: purpose,
            asked_at_us: now_us,
            granted: None,
            opened_clean: false,
            pinned: false,
            guests: BTreeSet::new(),
            waiting_guests: Vec::new(),
            waiters: Vec::new(),
            detach_waiters: Vec::new(),
            quiet_since_us: now_us,
            closing: false,
        }
    }

    /// Guests may use it.
    pub fn serves_guests(&self) -> bool {
        self.granted.is_some_and(|granted| granted != AttachFor::Maintenance) && !self.closing
    }

    /// It is attached only to be brought in sync.
    pub fn is_maintenance(&self) -> bool {
        self.granted.unwrap_or(self.asked) == AttachFor::Maintenance
    }

    /// The metadata service has not yet given what was asked for.
    pub fn is_asking(&self) -> bool {
        let is_upgrade = self.is_maintenance() && self.asked != AttachFor::Maintenance;
        self.granted.is_none() || is_upgrade
    }

    /// Somebody uses it or waits for it.
    pub fn is_used(&self) -> bool {
        self.pinned || !self.guests.is_empty() || !self.waiting_guests.is_empty()
    }
}
