//! All shards of a daemon as the control plane sees them: each command goes to whom it concerns.

use super::control::ShardCommand;
use super::homes::Homes;
use super::thread::{ShardBusy, ShardHandle};
use std::sync::Arc;

/// Which shards a command is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum To {
    Every,
    One(u16),
}

/// A door to all running shards. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct ShardSet {
    shards: Arc<[ShardHandle]>,
    homes: Arc<Homes>,
}

impl ShardSet {
    /// These shards, in order, and their register.
    pub fn new(shards: Vec<ShardHandle>, homes: Arc<Homes>) -> Self {
        assert!(!shards.is_empty(), "a daemon has a shard");
        Self { shards: shards.into(), homes }
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.shards.len() as u16
    }

    /// Queues a command for those whom it concerns, and wakes them. Those that answer a question each do so for
    /// themselves: they are asked one by one, with [`Self::send_to`].
    ///
    /// # Errors
    /// A queue is full, or the shard has ended. A command for all of them may have reached some: it is to be repeated.
    pub fn send(&self, command: ShardCommand) -> Result<(), ShardBusy> {
        match (route(&command, &self.homes), command) {
            (To::One(shard), command) => self.send_to(shard, command),
            (To::Every, ShardCommand::Routes(routes)) => self.send_all(|| ShardCommand::Routes(routes.clone())),
            (To::Every, ShardCommand::Volumes(specs)) => self.send_all(|| ShardCommand::Volumes(specs.clone())),
            (To::Every, ShardCommand::Maintain(volumes)) => self.send_all(|| ShardCommand::Maintain(volumes.clone())),
            (To::Every, command) => unreachable!("{command:?} is asked of each shard by itself"),
        }
    }

    /// Queues a command for one shard and wakes it.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub fn send_to(&self, shard: u16, command: ShardCommand) -> Result<(), ShardBusy> {
        self.shards[usize::from(shard)].send(command)
    }

    /// Shard 0, where guests come in, comes last: what it passes on after that finds a shard that was told the same.
    fn send_all(&self, make: impl Fn() -> ShardCommand) -> Result<(), ShardBusy> {
        self.shards.iter().rev().try_for_each(|shard| shard.send(make()))
    }
}

/// Pure but for the register: what is about a volume goes to the shard that has it. If none has, shard 0 places it.
fn route(command: &ShardCommand, homes: &Homes) -> To {
    match command {
        ShardCommand::Routes(_) | ShardCommand::Volumes(_) | ShardCommand::Maintain(_) => To::Every,
        ShardCommand::OpenDevice { shard, .. } => To::One(*shard),
        ShardCommand::Reclaim { device, .. } => To::One(homes.of_device(*device).unwrap_or(0)),
        command => To::One(command.volume().and_then(|volume| homes.of_volume(volume)).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::control::LocalDevice;
    use ashlar_model::{DeviceId, VolumeId};
    use tokio::sync::oneshot;

    const VOLUME: VolumeId = VolumeId::from_u128(1);
    const DEVICE: DeviceId = DeviceId::from_u128(2);

    #[test]
    fn commands_go_to_the_shard_of_their_volume_or_device() {
        let homes = Homes::new(3);
        let detach = || ShardCommand::Detach { volume: VOLUME, done: oneshot::channel().0 };
        let cas = || ShardCommand::CasUnknown { volume: VOLUME, lane: 0 };
        let reclaim =
            || ShardCommand::Reclaim { device: DEVICE, volume: VOLUME, promise: None, done: oneshot::channel().0 };
        for command in [detach(), cas(), reclaim()] {
            assert_eq!(route(&command, &homes), To::One(0), "{command:?}");
        }
        homes.attached(VOLUME, 2);
        homes.opened(DEVICE, 1);
        assert_eq!(route(&detach(), &homes), To::One(2));
        assert_eq!(route(&cas(), &homes), To::One(2));
        assert_eq!(route(&reclaim(), &homes), To::One(1));
        let device = LocalDevice { path: "/x".into(), power_loss_protected: false, atomic_writes: false };
        let open = ShardCommand::OpenDevice { device, shard: 2, done: oneshot::channel().0 };
        assert_eq!(route(&open, &homes), To::One(2));
        assert_eq!(route(&ShardCommand::Routes(vec![]), &homes), To::Every);
        assert_eq!(route(&ShardCommand::Maintain(vec![]), &homes), To::Every);
    }
}
