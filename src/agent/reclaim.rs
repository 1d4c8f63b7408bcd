//! Freeing what devices of this node hold of volumes that were deleted or have left them.
//!
//! Nothing is freed because this node does not know it: the metadata service gives leave each time.

use super::Node;
use super::view::{ClusterView, DeletedRow};
use crate::shard::control::ShardCommand;
use ashlar_model::Epoch;
use ashlar_raft::{Command, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

const RECLAIM_TIMEOUT: Duration = Duration::from_secs(60);
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);
/// Promises of volumes that have left are looked through this often, and so many of them are dropped each time.
const SWEEP_PERIOD: Duration = Duration::from_secs(600);
const SWEPT_MAX: usize = 64;

/// Frees what a device holds of a volume that was deleted or has left it, and records that it is free. Repeated for as
/// long as it is wanted.
pub async fn reclaim(node: Arc<Node>, row: DeletedRow, permits: Arc<Semaphore>) {
    let DeletedRow { device, volume } = row;
    while node.view().deleted.contains(&row) {
        if free(&node, row, &permits).await {
            break;
        }
        tokio::time::sleep(RECLAIM_PAUSE).await;
    }
    // Once it is free nothing is freed again: the volume may have come back to the device meanwhile.
    while node.view().deleted.contains(&row) {
        match node.metadata.propose(Command::Reclaimed { device, volumes: vec![volume] }).await {
            Ok(_) => return,
            Err(error) => tracing::debug!(%volume, %device, "reclaimed and not recorded yet: {error}"),
        }
        tokio::time::sleep(RECLAIM_PAUSE).await;
    }
}

/// True once the space is free. The metadata service is asked first: what this node knows may be old, and a volume that
/// lives elsewhere may want the device again. Its epoch comes from there as well: a promise of an older one would not keep
/// out the writer before the present one, which may still count the device.
async fn free(node: &Node, row: DeletedRow, permits: &Semaphore) -> bool {
    let DeletedRow { device, volume } = row;
    let Ok(_permit) = permits.acquire().await else { return false };
    let Some(promise) = check(node, row).await else { return false };
    node.ask_shard(RECLAIM_TIMEOUT, |done| ShardCommand::Reclaim { device, volume, promise, done }).await.is_ok()
}

/// Asks for leave to free; with it comes the promise that stays.
async fn check(node: &Node, row: DeletedRow) -> Option<Option<Epoch>> {
    let DeletedRow { device, volume } = row;
    match node.metadata.propose(Command::CheckReclaim { device, volume }).await {
        Ok(Response::Reclaim(promise)) => Some(promise),
        Ok(other) => {
            tracing::error!("unexpected answer to a check of what may be reclaimed: {other:?}");
            None
        }
        Err(error) => {
            tracing::debug!(%volume, %device, "not reclaimed yet: {error}");
            None
        }
    }
}

/// Drops the promises that devices have kept of volumes which had left them, once these are deleted: the metadata does not
/// remember that the devices ever had them.
pub async fn sweep(node: Arc<Node>) {
    loop {
        tokio::time::sleep(SWEEP_PERIOD).await;
        let Ok(left) = node.ask_shards(RECLAIM_TIMEOUT, ShardCommand::LeftVolumes).await else { continue };
        let rows = left.into_iter().flatten().map(|(device, volume)| DeletedRow { device, volume });
        for row in unknown(&node.view(), rows.collect()) {
            // A volume that this node does not know yet is not lost: only one that is gone has no epoch.
            if check(&node, row).await == Some(None) {
                let DeletedRow { device, volume } = row;
                let forget = |done| ShardCommand::Reclaim { device, volume, promise: None, done };
                drop(node.ask_shard(RECLAIM_TIMEOUT, forget).await);
            }
        }
    }
}

/// Pure: those of which this node knows nothing, a few at a time.
fn unknown(view: &ClusterView, left: Vec<DeletedRow>) -> Vec<DeletedRow> {
    let is_known = |row: &DeletedRow| {
        view.cluster.is_none()
            || view.volumes.iter().any(|volume| volume.spec.id == row.volume)
            || view.deleted.iter().any(|deleted| deleted.volume == row.volume)
    };
    left.into_iter().filter(|row| !is_known(row)).take(SWEPT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::{ClusterId, DeviceId, VolumeId};

    #[test]
    fn only_volumes_of_which_nothing_is_known_are_asked_about() {
        let row = |volume| DeletedRow { device: DeviceId::from_u128(9), volume: VolumeId::from_u128(volume) };
        let mut view = ClusterView { deleted: vec![row(2)], ..ClusterView::default() };
        let left = || vec![row(1), row(2), row(3)];
        assert_eq!(unknown(&view, left()), [], "nothing is concluded before the cluster is known");
        view.cluster = Some(ClusterId::from_u128(1));
        assert_eq!(unknown(&view, left()), [row(1), row(3)]);
        assert_eq!(unknown(&view, (10..1000).map(row).collect()).len(), SWEPT_MAX);
    }
}
