//! Dropping a volume that was deleted, or that has moved to other devices.
//!
//! A device that the volume has left keeps its promise, in the commit that drops the rest, so that a zombie of an older epoch
//! finds it fenced. A writer of this very epoch knows of the move before the device is told (C4). If it did not, it must
//! not take the empty device for a member that has followed it all along: its Start is refused, for as long as this engine
//! lives. As a joiner the device may come back, because then everything is copied.

use super::engine::{Effect, Pending, ReplicaEngine};
use crate::wire::message::Envelope;
use ashlar_model::{Epoch, VolumeId};
use ashlar_store::api::Request;

impl ReplicaEngine {
    pub(super) fn release(&mut self, volume: VolumeId, promise: Epoch, effects: &mut Vec<Effect>) {
        self.raise_promise(volume, promise);
        self.released.insert(volume, promise);
        self.drop_volume(volume);
        self.submit(Pending::Release { volume }, Request::Release { volume, epoch: promise }, effects);
    }

    pub(super) fn forget(&mut self, volume: VolumeId, effects: &mut Vec<Effect>) {
        self.drop_volume(volume);
        self.submit(Pending::Forget { volume }, Request::Forget { volume }, effects);
    }

    fn drop_volume(&mut self, volume: VolumeId) {
        self.damage.remove(&volume);
        self.lanes.retain(|key, _| key.volume != volume);
    }

    /// The device held this lane in this epoch, perhaps, and has dropped it since.
    pub(super) fn has_dropped(&self, envelope: Envelope) -> bool {
        let in_this_epoch = self.released.get(&envelope.volume).is_some_and(|promise| *promise >= envelope.epoch);
        in_this_epoch && !self.lanes.contains_key(&Self::key(envelope))
    }
}
