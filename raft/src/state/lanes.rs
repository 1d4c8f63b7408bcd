//! Lane records: Open, compare-and-set and detach. Rules M1 to M4 of the replication protocol; they are binding.
//!
//! M1. A new writer gets a new epoch, one for all lanes of the volume. What an open took from `clean` it returns, and
//!     the same attempt gets the same answer as often as it asks, however the lanes changed since: a lane keeps its
//!     grant once its record moves away from it. An attempt that is not the current one and not newer grants nothing.
//! M2. A compare-and-set applies in the current epoch and to the current version only; the answer is the record. It may
//!     name the members of the wanted copyset and the device that is leaving it, at most three.
//! M3. Who owns the epoch changes the set. Nothing else here does.
//! M4. A set never becomes empty.
//!
//! Rows (where epochs began) only convict bugs: every list entry of a correct in-sync member passes the check of every
//! later row, because a recovery's base covers whatever its sealed members hold, and a member that was not sealed left
//! the set and lost its list at its next join. So dropping old rows never changes what a correct recovery does, it only
//! shortens how far back a bug is noticed. Two bounds: a clean close with all members in sync keeps the current
//! epoch's row only (all members then hold the same prefix, above every older base), and never more than [`ROWS_MAX`].

use super::State;
use super::entities::{Admin, AttachMode, Attachment, Attempt, Lane, Node, Volume, full_mask};
use crate::command::{Attach, DetachBy, LANE_CAS_BATCH_MAX, Response};
use crate::refusal::Refusal;
use ashlar_model::cluster::{AttachGrant, EpochRow, LaneCas, LaneCasReply, LaneGrant};
use ashlar_model::limits::REPLICAS_MAX;
use ashlar_model::mutation::{Mutation, broken};
use ashlar_model::{Epoch, NodeId, SessionId, VolumeId};
use std::sync::Arc;

/// Rows of one lane.
pub const ROWS_MAX: usize = 32;

impl State {
    pub(super) fn attach(&mut self, attach: &Attach) -> Result<Response, Refusal> {
        let id = attach.volume;
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        let own = Attachment { node: attach.node, session: attach.session, attempt: attach.attempt, mode: attach.mode };
        if let Some(held) = volume.attachment
            && same_writer(&held, &own)
        {
            let response = Response::Attached(self.grant(volume));
            if held.mode == AttachMode::Maintenance && attach.mode == AttachMode::ReadWrite {
                self.attach_for_guests(id); // the same writer, for guests from now on
            }
            return Ok(response);
        }
        self.check_attach(attach, volume)?;

        let attempts = self.attempts_with(volume, own.node, own.session, own.attempt);
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else {
            return Err(Refusal::VolumeNotFound(id));
        };
        volume.epoch = Epoch(volume.epoch.0 + 1);
        volume.attachment = Some(own);
        volume.attempts = attempts;
        for lane in &mut volume.lanes {
            lane.open(volume.epoch);
        }
        for number in 0..volume.lanes.len() {
            self.free_parted(id, number);
        }
        let volume = Arc::clone(&self.volumes[&id]);
        Ok(Response::Attached(self.grant(&volume)))
    }

    fn attach_for_guests(&mut self, id: VolumeId) {
        if let Some(held) = self.volumes.get_mut(&id).map(Arc::make_mut).and_then(|volume| volume.attachment.as_mut()) {
            held.mode = AttachMode::ReadWrite;
        }
    }

    fn check_attach(&self, attach: &Attach, volume: &Volume) -> Result<(), Refusal> {
        let node = self.nodes.get(&attach.node).ok_or(Refusal::NodeNotFound(attach.node))?;
        let unfit = |why: &str| Refusal::NodeUnfit { node: node.id, why: why.to_owned() };
        if node.admin == Admin::Removed {
            return Err(Refusal::NodeRemoved(node.id));
        }
        if node.session != attach.session {
            return Err(Refusal::StaleSession(node.id));
        }
        if !node.roles.target {
            return Err(unfit("has no target role"));
        }
        let of_session = |seen: &&Attempt| seen.node == attach.node && seen.session == attach.session;
        if volume.attempts.iter().find(of_session).is_some_and(|seen| attach.attempt <= seen.attempt) {
            return Err(Refusal::Superseded(volume.id));
        }
        match volume.attachment {
            Some(held) if !self.gives_way(&held, attach) => Err(Refusal::AttachedElsewhere {
                volume: volume.id,
                holder: held.node,
                holder_name: self.node_name(held.node),
            }),
            _ => Ok(()),
        }
    }

    /// Whether the holder of a volume must let a new writer have it. Safe in any case, by sealing; this is about manners:
    /// guests are not cut off unasked, and maintenance is in nobody's way, least of all another's maintenance.
    fn gives_way(&self, held: &Attachment, attach: &Attach) -> bool {
        match (held.mode, attach.mode) {
            (AttachMode::Maintenance, AttachMode::ReadWrite) => true,
            (AttachMode::ReadWrite, AttachMode::ReadWrite) => held.node == attach.node || attach.takeover,
            (AttachMode::Maintenance, AttachMode::Maintenance) => {
                held.node == attach.node || !self.is_holder_alive(held)
            }
            // Its guests have gone with it. Those of a node that is down may be behind a partition: they are left alone.
            (AttachMode::ReadWrite, AttachMode::Maintenance) => self.has_holder_ended(held),
        }
    }

    /// The attempts to remember: of sessions that may still ask, with this one among those of its own.
    fn attempts_with(&self, volume: &Volume, node: NodeId, session: SessionId, attempt: u64) -> Vec<Attempt> {
        let current = |seen: &Attempt| self.nodes.get(&seen.node).is_some_and(|node| node.session == seen.session);
        let own = |seen: &&Attempt| (seen.node, seen.session) == (node, session);
        let earlier = volume.attempts.iter().find(own).map_or(0, |seen| seen.attempt);
        let newest = Attempt { node, session, attempt: attempt.max(earlier) };
        let others = volume.attempts.iter().filter(|seen| seen.node != node && current(seen)).copied();
        others.chain([newest]).collect()
    }

    /// The grant of the current epoch as it was given, with the size as it is.
    fn grant(&self, volume: &Volume) -> AttachGrant {
        let lanes = volume.lanes.iter().map(|lane| match &lane.granted {
            Some(granted) => granted.as_ref().clone(),
            None => self.lane_grant(volume, lane),
        });
        let size_bytes = volume.geometry.size_bytes;
        AttachGrant { volume: volume.id, epoch: volume.epoch, size_bytes, lanes: lanes.collect() }
    }

    /// The answer to the open of a lane that just happened.
    pub(super) fn lane_grant(&self, volume: &Volume, lane: &Lane) -> LaneGrant {
        let in_sync = self.in_sync(lane);
        let trusted = match (volume.restored, lane.unverified, lane.distrusted) {
            (false, ..) | (_, true, _) => Vec::new(),
            (_, _, true) => in_sync.clone(),
            _ => self.devices_of(lane),
        };
        let Lane { version, unverified, granted_clean: clean, .. } = *lane;
        LaneGrant { in_sync, version, clean, rows: lane.rows.clone(), trusted, unverified }
    }

    pub(super) fn detach(&mut self, id: VolumeId, by: &DetachBy) -> Result<Response, Refusal> {
        if let DetachBy::Holder { node, session, attempt } = *by {
            self.supersede(id, node, session, attempt);
        }
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        let Some(held) = volume.attachment else { return Ok(Response::Detached(false)) };
        match *by {
            DetachBy::Holder { node, session, attempt } => {
                if (node, session, attempt) != (held.node, held.session, held.attempt) {
                    return Ok(Response::Detached(false)); // somebody else's by now
                }
            }
            DetachBy::Operator { epoch, force } => {
                if epoch != volume.epoch {
                    return Err(Refusal::EpochChanged(id));
                }
                if !force && self.is_holder_alive(&held) {
                    return Err(Refusal::HolderAlive { volume: id, holder_name: self.node_name(held.node) });
                }
            }
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            Arc::make_mut(volume).attachment = None;
        }
        Ok(Response::Detached(true))
    }

    /// A writer that has ended gets no epoch any more: its attach may still be on its way, and nobody waits for it.
    fn supersede(&mut self, id: VolumeId, node: NodeId, session: SessionId, attempt: u64) {
        let Some(volume) = self.volumes.get(&id) else { return };
        let of_session = |seen: &Attempt| (seen.node, seen.session) == (node, session);
        let known = volume.attempts.iter().any(|seen| of_session(seen) && seen.attempt >= attempt);
        if known || self.nodes.get(&node).is_none_or(|node| node.session != session) {
            return;
        }
        let attempts = self.attempts_with(volume, node, session, attempt);
        if let Some(volume) = self.volumes.get_mut(&id) {
            Arc::make_mut(volume).attempts = attempts;
        }
    }

    /// A daemon that restarted is not the holder any more, nor is one that is down.
    pub fn is_holder_alive(&self, held: &Attachment) -> bool {
        let is_up = |node: &Node| !node.liveness.is_silent();
        !self.has_holder_ended(held) && self.nodes.get(&held.node).is_some_and(is_up)
    }

    /// The run of the daemon that attached the volume is over, for certain: the node has registered another one or is gone.
    pub fn has_holder_ended(&self, held: &Attachment) -> bool {
        let is_it = |node: &Node| node.session == held.session && node.admin != Admin::Removed;
        !self.nodes.get(&held.node).is_some_and(is_it)
    }

    pub(super) fn lane_cas_batch(&mut self, batch: &[LaneCas]) -> Result<Response, Refusal> {
        if batch.len() > LANE_CAS_BATCH_MAX {
            return Err(Refusal::Limit(format!("at most {LANE_CAS_BATCH_MAX} lane changes in one command")));
        }
        Ok(Response::LaneCas(batch.iter().map(|cas| self.lane_cas(cas)).collect()))
    }

    fn lane_cas(&mut self, cas: &LaneCas) -> Result<LaneCasReply, Refusal> {
        let (id, number) = (cas.volume, cas.lane);
        let volume = self.volumes.get(&id).ok_or(Refusal::VolumeNotFound(id))?;
        let lane = volume.lanes.get(usize::from(number)).ok_or(Refusal::LaneNotFound { volume: id, lane: number })?;
        let epoch = volume.epoch;
        if (cas.epoch != epoch && !broken(Mutation::CasIgnoresEpoch)) || cas.version != lane.version {
            return Ok(LaneCasReply { epoch, version: lane.version, in_sync: self.in_sync(lane) });
        }
        let mask = self.mask_of(cas, lane)?;
        lane.check_indexes(cas).then_some(()).ok_or(Refusal::BaseConflict { volume: id, lane: number })?;
        let members_count = self.members(lane.copyset).len();
        let grant = self.lane_grant(volume, lane);
        let Some(volume) = self.volumes.get_mut(&id).map(Arc::make_mut) else {
            return Err(Refusal::VolumeNotFound(id));
        };
        let lane = &mut volume.lanes[usize::from(number)];
        lane.keep_grant(grant);
        let full = full_mask(members_count);
        lane.change(cas, mask, mask & full == full);
        self.free_parted(id, usize::from(number));
        self.settle_replacement(id, usize::from(number));
        let lane = &self.volumes[&id].lanes[usize::from(number)];
        Ok(LaneCasReply { epoch, version: lane.version, in_sync: self.in_sync(lane) })
    }

    fn mask_of(&self, cas: &LaneCas, lane: &Lane) -> Result<u8, Refusal> {
        let (volume, number) = (cas.volume, cas.lane);
        let mut mask = 0;
        for device in &cas.in_sync {
            let found = self.bits_of(lane).find(|(holder, _)| holder == device);
            mask |= found.ok_or(Refusal::NotMember { volume, lane: number, device: *device })?.1;
        }
        if mask == 0 {
            return Err(Refusal::EmptySet { volume, lane: number });
        }
        if mask.count_ones() as usize > REPLICAS_MAX {
            return Err(Refusal::Invalid(format!("an in-sync set has at most {REPLICAS_MAX} devices")));
        }
        Ok(mask)
    }
}

fn same_writer(one: &Attachment, other: &Attachment) -> bool {
    (one.node, one.session, one.attempt) == (other.node, other.session, other.attempt)
}

impl Lane {
    /// M1 for one lane: a new epoch takes the clean mark and begins after it.
    fn open(&mut self, epoch: Epoch) {
        self.granted = None;
        self.granted_clean = if broken(Mutation::CleanMarkStays) { self.clean } else { self.clean.take() };
        if let Some(base) = self.granted_clean {
            self.push_row(EpochRow { epoch, base });
        }
        assert!(self.in_sync_mask != 0, "M4");
    }

    /// The answer to the open, kept before the record moves away from it.
    pub(super) fn keep_grant(&mut self, grant: LaneGrant) {
        if self.granted.is_none() {
            self.granted = Some(Box::new(grant));
        }
    }

    /// Indexes never go back over epochs (I5), and an epoch begins once.
    fn check_indexes(&self, cas: &LaneCas) -> bool {
        let Some(last) = self.rows.last() else { return true };
        let base_fits = cas.base.is_none_or(|base| match last.epoch == cas.epoch {
            true => base == last.base,
            false => base >= last.base,
        });
        base_fits && cas.clean.is_none_or(|clean| clean >= last.base)
    }

    /// M2, checked already.
    fn change(&mut self, cas: &LaneCas, mask: u8, is_full: bool) {
        assert!(mask != 0, "M4");
        assert_eq!(cas.version, self.version, "M2");
        self.in_sync_mask = mask;
        self.clean = cas.clean;
        self.unverified = false; // its writer has looked
        self.distrusted &= !is_full;
        self.version += 1;
        if let Some(base) = cas.base
            && self.rows.last().is_none_or(|row| row.epoch < cas.epoch)
        {
            self.push_row(EpochRow { epoch: cas.epoch, base });
        }
        if is_full && self.clean.is_some() {
            self.rows.retain(|row| row.epoch == cas.epoch);
        }
    }

    fn push_row(&mut self, row: EpochRow) {
        assert!(self.rows.last().is_none_or(|last| last.epoch < row.epoch), "epochs rise");
        if self.rows.len() >= ROWS_MAX {
            self.rows.remove(0);
        }
        self.rows.push(row);
    }
}
