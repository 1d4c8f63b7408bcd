//! The other shards of the daemon: volumes, connections and commands that are theirs go to them, by their queues.

use super::control::ShardCommand;
use super::core::Shard;
use super::homes::{Homes, choose};
use super::thread::{ShardBusy, ShardHandle};
use crate::front::seats::Seats;
use ashlar_model::{DeviceId, ShardId, VolumeId};
use std::sync::Arc;

/// What a shard knows of the others.
pub(super) struct Siblings {
    /// This shard's number.
    pub number: u16,
    /// All of them, this one included.
    pub handles: Arc<[ShardHandle]>,
    pub homes: Arc<Homes>,
    /// What the daemon has room for, over all shards.
    pub seats: Arc<Seats>,
}

impl Siblings {
    pub fn count(&self) -> u16 {
        self.handles.len() as u16
    }

    pub fn send(&self, shard: u16, command: ShardCommand) -> Result<(), ShardBusy> {
        self.handles[usize::from(shard)].send(command)
    }
}

impl Shard {
    /// This shard, as links name it.
    pub fn here(&self) -> ShardId {
        ShardId { node: self.options.node, shard: self.siblings.number }
    }

    /// The shard of a device, if it is of this node.
    fn local_owner(&self, device: DeviceId) -> Option<u16> {
        if self.store_of(device).is_some() {
            return Some(self.siblings.number);
        }
        self.routes.get(&device).filter(|route| route.at.node == self.options.node).map(|route| route.at.shard)
    }

    /// The shard that has the volume, or shall have it from now on. None: the volume is not known.
    pub fn home_of(&self, volume: VolumeId) -> Option<u16> {
        let spec = self.specs.get(&volume)?;
        let choose = |loads: &[usize]| choose(spec, |device| self.local_owner(device), loads);
        Some(self.siblings.homes.place(volume, choose))
    }

    /// If nobody has the volume here, it may go anywhere next time.
    pub fn leave_home(&self, volume: VolumeId) {
        if !self.attached.contains_key(&volume) {
            self.siblings.homes.forget(volume, self.siblings.number);
        }
    }

    /// Devices of this node: nearer than all others, on whichever shard.
    pub fn near_devices(&self) -> Vec<DeviceId> {
        let mut near: Vec<DeviceId> = self.stores.iter().map(|store| store.id).collect();
        if self.siblings.count() > 1 {
            let ours = self.routes.values().filter(|route| route.at.node == self.options.node);
            near.extend(ours.map(|route| route.device));
        }
        near
    }

    /// A command about a volume that another shard has, or shall have, goes there. Gives back what is for this one.
    pub fn pass_on(&mut self, command: ShardCommand) -> Option<ShardCommand> {
        let Some(volume) = command.volume().filter(|_| self.siblings.count() > 1) else { return Some(command) };
        if self.attached.contains_key(&volume) {
            return Some(command);
        }
        let home = match &command {
            ShardCommand::Attach { .. } | ShardCommand::Keep(_) => self.home_of(volume),
            _ => self.siblings.homes.of_volume(volume),
        };
        let Some(home) = home.filter(|home| *home != self.siblings.number) else { return Some(command) };
        if self.siblings.send(home, command).is_err() {
            // Who asked hears nothing, and asks again.
            tracing::warn!(%volume, shard = home, "a command was dropped: the shard takes no more now");
        }
        None
    }

    /// All volumes of all shards must have been let go before any shard closes its devices: they may have members there.
    /// True once that is so.
    pub fn have_all_left(&self) -> bool {
        let homes = &self.siblings.homes;
        homes.leave(self.siblings.number);
        let all = homes.are_empty();
        if all {
            // The others need not wait for their tick.
            self.siblings.handles.iter().for_each(ShardHandle::ring);
        }
        all
    }
}
