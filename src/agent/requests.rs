//! One question of the shard, from question to answer. Each runs as its own task; a slow one delays no other.

use super::Node;
use super::handover;
use super::view::ClusterView;
use crate::client::HttpClient;
use crate::shard::control::{AttachFor, AttachRefusal, ShardCommand, ShardRequest};
use ashlar_model::cluster::LaneCas;
use ashlar_model::{DeviceId, NodeId, SessionId, VolumeId};
use ashlar_raft::command::{Attach, DetachBy};
use ashlar_raft::state::entities::{AttachMode, DeviceState};
use ashlar_raft::{Command, MetaError, Refusal, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A question unanswered for this long is answered with "unknown"; the shard asks again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const REPEAT_PAUSE: Duration = Duration::from_millis(500);
const REPEATS_MAX: u32 = 240;

/// What a question is about: a repeated question waits for the answer that is under way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RequestKey {
    /// An attach.
    Attach(VolumeId, u64, AttachFor),
    /// A change of a lane.
    Lane(VolumeId, u16),
    /// The end of a writer.
    Detached(VolumeId, u64),
    /// A failed device.
    Device(DeviceId),
}

impl RequestKey {
    /// The key of a question.
    pub fn of(request: &ShardRequest) -> Self {
        match request {
            ShardRequest::Attach { volume, attempt, purpose } => Self::Attach(*volume, *attempt, *purpose),
            ShardRequest::Cas(cas) => Self::Lane(cas.volume, cas.lane),
            ShardRequest::Detached { volume, attempt, .. } => Self::Detached(*volume, *attempt),
            ShardRequest::DeviceFailed { device, .. } => Self::Device(*device),
        }
    }
}

/// An answer: makes the command that carries it, as often as it takes to hand it over.
pub type Answer = Box<dyn Fn() -> ShardCommand + Send + Sync>;

/// Answers questions.
pub struct Answers {
    node: Arc<Node>,
    client: HttpClient,
    views: watch::Receiver<Arc<ClusterView>>,
}

impl Answers {
    /// Answers for this node.
    pub fn new(node: Arc<Node>, client: HttpClient, views: watch::Receiver<Arc<ClusterView>>) -> Self {
        Self { node, client, views }
    }

    /// The answer to one question, if somebody waits for it and it is known.
    pub async fn answer(&self, request: ShardRequest) -> Option<Answer> {
        match request {
            ShardRequest::Attach { volume, attempt, purpose } => self.attach(volume, attempt, purpose).await,
            ShardRequest::Cas(cas) => Some(self.lane_cas(cas).await),
            ShardRequest::Detached { volume, attempt, clean } => {
                self.detached(volume, attempt, clean).await;
                None
            }
            ShardRequest::DeviceFailed { device, reason } => {
                self.device_failed(device, &reason).await;
                None
            }
        }
    }

    async fn propose(&self, command: Command) -> Result<Response, MetaError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.node.metadata.propose(command)).await {
            Ok(result) => result,
            Err(_) => Err(MetaError::Unavailable("no leader answered in time".into())),
        }
    }

    /// Hands an answer over.
    pub async fn tell(&self, answer: Answer) {
        if let Err(error) = self.node.tell_shard(&answer).await {
            tracing::warn!("an answer did not reach the data plane: {error}");
        }
    }

    async fn attach(&self, volume: VolumeId, attempt: u64, purpose: AttachFor) -> Option<Answer> {
        if purpose != AttachFor::Maintenance {
            self.end_maintenance(volume).await;
        }
        let command = attach_command(volume, self.node.id, self.node.session, attempt, purpose);
        let mut result = self.propose(command.clone()).await;
        if let Err(MetaError::Refused(Refusal::AttachedElsewhere { holder, .. })) = &result
            && purpose == AttachFor::Guests
            && self.release_dead_holder(volume, *holder).await
        {
            result = self.propose(command).await;
        }
        match result {
            Ok(Response::Attached(grant)) => {
                Some(Box::new(move || ShardCommand::Granted { attempt, purpose, grant: grant.clone() }))
            }
            Ok(other) => {
                tracing::error!("unexpected answer to an attach: {other:?}");
                None
            }
            Err(MetaError::Refused(refusal)) => {
                let retry = matches!(refusal, Refusal::StaleSession(_));
                let message = self.name_volume(volume, refusal.to_string());
                tracing::info!(%volume, "attach refused: {message}");
                let refusal = AttachRefusal { message, retry };
                Some(Box::new(move || {
                    let refusal = refusal.clone();
                    ShardCommand::AttachRefused { volume, attempt, purpose, refusal }
                }))
            }
            // It may have happened: the shard asks again with the same attempt and gets the same grant.
            Err(error) => {
                tracing::info!(%volume, "the outcome of an attach is unknown: {error}");
                None
            }
        }
    }

    /// A node that only brings the members in sync closes the volume cleanly when it is asked, so that guests need not
    /// wait for a recovery. The attach does not depend on it.
    async fn end_maintenance(&self, volume: VolumeId) {
        let view = self.views.borrow().clone();
        if let Some(row) = view.volumes.iter().find(|row| row.spec.id == volume && row.maintenance) {
            handover::ask_holder(&self.client, &view, self.node.id, row, true).await;
        }
    }

    /// The metadata service speaks of identities; guests know names.
    fn name_volume(&self, volume: VolumeId, message: String) -> String {
        let view = self.views.borrow();
        match view.volumes.iter().find(|row| row.spec.id == volume) {
            Some(row) => message.replace(&volume.to_string(), &format!("'{}'", row.spec.name)),
            None => message,
        }
    }

    /// A node that is down or restarted holds nothing any more. The service checks that again; sealing keeps it safe.
    async fn release_dead_holder(&self, volume: VolumeId, holder: NodeId) -> bool {
        let found = {
            let view = self.views.borrow();
            let epoch = view.volumes.iter().find(|row| row.spec.id == volume).map(|row| row.epoch);
            epoch.map(|epoch| (epoch, view.node(holder).is_none_or(|node| node.liveness.is_silent())))
        };
        let Some((epoch, true)) = found else { return false };
        let by = DetachBy::Operator { epoch, force: false };
        let released = self.propose(Command::Detach { volume, by }).await;
        if released.is_ok() {
            tracing::info!(%volume, holder = holder.0, "released the volume from a node that is down");
        }
        released.is_ok()
    }

    async fn lane_cas(&self, cas: LaneCas) -> Answer {
        let (volume, lane) = (cas.volume, cas.lane);
        let unknown: Answer = Box::new(move || ShardCommand::CasUnknown { volume, lane });
        let result = self.propose(Command::LaneCas(vec![cas])).await;
        let reply = match result {
            Ok(Response::LaneCas(mut replies)) if replies.len() == 1 => replies.remove(0),
            Ok(other) => {
                tracing::error!("unexpected answer to a lane change: {other:?}");
                return unknown;
            }
            Err(error) => {
                tracing::debug!(%volume, lane, "the outcome of a lane change is unknown: {error}");
                return unknown;
            }
        };
        match reply {
            Ok(reply) => Box::new(move || ShardCommand::CasDone { volume, lane, reply: reply.clone() }),
            Err(refusal) if refuses_set(&refusal) => {
                tracing::info!(%volume, lane, "a lane change was refused: {refusal}");
                Box::new(move || ShardCommand::CasRefused { volume, lane })
            }
            Err(refusal) => {
                tracing::warn!(%volume, lane, "a lane change was refused: {refusal}");
                unknown
            }
        }
    }

    /// The shard does not wait for this, so it is repeated here until it is recorded.
    async fn detached(&self, volume: VolumeId, attempt: u64, clean: bool) {
        let by = DetachBy::Holder { node: self.node.id, session: self.node.session, attempt };
        if self.repeat(Command::Detach { volume, by }).await {
            tracing::info!(%volume, clean, "volume detached");
        }
    }

    async fn device_failed(&self, device: DeviceId, reason: &str) {
        tracing::error!(%device, "device failed: {reason}");
        self.repeat(Command::SetDeviceState { id: device, state: DeviceState::Failed }).await;
    }

    async fn repeat(&self, command: Command) -> bool {
        for _ in 0..REPEATS_MAX {
            match self.propose(command.clone()).await {
                Ok(_) => return true,
                Err(MetaError::Refused(refusal)) => {
                    tracing::warn!("refused: {refusal}");
                    return false;
                }
                Err(_) => tokio::time::sleep(REPEAT_PAUSE).await,
            }
        }
        false
    }
}

/// The current record does not take what was proposed: asking the same again would go on for ever.
fn refuses_set(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::NotMember { .. } | Refusal::EmptySet { .. } | Refusal::BaseConflict { .. } | Refusal::Invalid(_)
    )
}

fn attach_command(volume: VolumeId, node: NodeId, session: SessionId, attempt: u64, purpose: AttachFor) -> Command {
    let mode = match purpose {
        AttachFor::Guests | AttachFor::Takeover => AttachMode::ReadWrite,
        AttachFor::Maintenance => AttachMode::Maintenance,
    };
    Command::Attach(Attach { volume, node, session, attempt, mode, takeover: purpose == AttachFor::Takeover })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::Epoch;

    #[test]
    fn questions_about_the_same_thing_share_a_key() {
        let volume = VolumeId::from_u128(1);
        let cas = |lane, version| {
            ShardRequest::Cas(LaneCas {
                volume,
                lane,
                epoch: Epoch(1),
                version,
                in_sync: vec![],
                clean: None,
                base: None,
            })
        };
        assert_eq!(RequestKey::of(&cas(1, 1)), RequestKey::of(&cas(1, 2)));
        assert_ne!(RequestKey::of(&cas(1, 1)), RequestKey::of(&cas(2, 1)));
        let attach = |purpose| RequestKey::of(&ShardRequest::Attach { volume, attempt: 3, purpose });
        assert_eq!(attach(AttachFor::Guests), attach(AttachFor::Guests));
        assert_ne!(attach(AttachFor::Guests), attach(AttachFor::Maintenance), "the second must not wait for the first");
    }

    #[test]
    fn a_refused_set_is_told_apart_from_an_unknown_outcome() {
        let volume = VolumeId::from_u128(1);
        assert!(refuses_set(&Refusal::NotMember { volume, lane: 0, device: DeviceId::from_u128(2) }));
        assert!(!refuses_set(&Refusal::VolumeNotFound(volume)));
    }

    #[test]
    fn an_attach_takes_over_only_if_somebody_said_so() {
        let command =
            |purpose| match attach_command(VolumeId::from_u128(1), NodeId(2), SessionId::from_u128(3), 4, purpose) {
                Command::Attach(attach) => (attach.mode, attach.takeover),
                other => panic!("not an attach: {other:?}"),
            };
        assert_eq!(command(AttachFor::Guests), (AttachMode::ReadWrite, false));
        assert_eq!(command(AttachFor::Takeover), (AttachMode::ReadWrite, true));
        assert_eq!(command(AttachFor::Maintenance), (AttachMode::Maintenance, false));
    }
}
