//! Asking a volume's holder to close it cleanly and let go, before another node takes it. Manners only: whatever the
//! holder does or does not answer, the next attach is safe by sealing.

use super::view::{ClusterView, VolumeRow};
use crate::client::{Call, HttpClient};
use ashlar_model::{Epoch, NodeId, VolumeId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a holder may take. Longer than a clean close of a healthy volume, shorter than guests like to wait.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Release {
    /// The volume.
    pub volume: VolumeId,
    /// Its epoch as the asking node knows it: a later writer is not meant.
    pub epoch: Epoch,
    /// Only if nobody uses it there: the asking node has no order to cut guests off.
    pub maintenance_only: bool,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Released {
    /// Every lane carries the clean mark.
    pub clean: bool,
}

/// Asks the holder of a volume, if that is another node that may answer. True if it closed cleanly.
pub async fn ask_holder(
    client: &HttpClient,
    view: &ClusterView,
    own: NodeId,
    row: &VolumeRow,
    maintenance_only: bool,
) -> bool {
    let holder = row.holder.filter(|holder| *holder != own).and_then(|holder| view.node(holder));
    let Some(holder) = holder.filter(|holder| !holder.liveness.is_silent()) else { return false };
    let question = Release { volume: row.spec.id, epoch: row.epoch, maintenance_only };
    let Ok(body) = serde_json::to_value(question) else { return false };
    let call = Call::post_json(&holder.api_address, "/internal/release", &body, RELEASE_TIMEOUT);
    match client.call(call).await {
        Ok(answer) if answer.status.is_success() => {
            serde_json::from_slice::<Released>(&answer.body).is_ok_and(|released| released.clean)
        }
        Ok(answer) => {
            tracing::info!(holder = holder.name, "the holder did not let go: it answered {}", answer.status);
            false
        }
        Err(error) => {
            tracing::info!(holder = holder.name, "the holder did not let go: {error}");
            false
        }
    }
}
