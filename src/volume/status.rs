//! What an operator wants to know of an attached volume, in words and numbers.

use super::engine::{Counters, VolumeEngine, VolumePhase};
use super::lane::{Join, Lane, LanePhase, Recovery, bit, quorum, seals_needed, slots_of};
use super::lost::Way;
use super::slow::seconds;
use ashlar_model::DeviceId;
use serde::Serialize;

/// Health of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Every copy is there.
    Healthy,
    /// Readable and writable; a copy is missing.
    Degraded,
    /// It waits; nothing is lost.
    Suspended,
}

/// State of one member of a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Counts, and follows.
    InSync,
    /// Counts, and lacks writes or cannot be reached.
    Behind,
    /// Comes back in.
    Joining,
    /// Does not count: it must be taken back in first.
    Stale,
    /// Its device failed or lost data.
    Failed,
}

/// One member of a lane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MemberStatus {
    /// The device.
    pub device: DeviceId,
    /// Its state.
    pub state: MemberState,
    /// The link to it is up.
    pub reachable: bool,
    /// Writes of this epoch up to this index are durable on it.
    pub prefix: u64,
}

/// A join under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct JoinStatus {
    /// The joiner.
    pub device: DeviceId,
    /// Chunks of the lane that are dealt with.
    pub chunks_done: u64,
    /// Chunks of the lane.
    pub chunks_total: u64,
    /// Bytes sent to the joiner.
    pub copied_bytes: u64,
    /// Bytes that it had missed and held already.
    pub compared_bytes: u64,
}

/// One lane.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LaneStatus {
    /// Number.
    pub lane: u16,
    /// `sealing`, `copying`, `committing`, `serving`, `closing` or `closed`.
    pub phase: String,
    /// Last index given.
    pub last: u64,
    /// Index up to which every member has everything.
    pub settled: u64,
    /// Bytes kept for members that lack them.
    pub retained_bytes: u64,
    /// The running join, if one runs.
    pub join: Option<JoinStatus>,
    /// Members and other devices of the copyset.
    pub members: Vec<MemberStatus>,
}

/// An attached volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VolumeStatus {
    /// Epoch of the writer.
    pub epoch: u64,
    /// Health.
    pub health: Health,
    /// Why it is not healthy.
    pub reason: Option<String>,
    /// Lanes.
    pub lanes: Vec<LaneStatus>,
    /// Counts.
    pub counters: Counters,
}

impl VolumeEngine {
    /// A report of the present state.
    pub fn status(&self) -> VolumeStatus {
        let suspended = self.suspended_reason();
        let degraded = self.lanes.iter().find_map(|lane| self.degraded_reason(lane));
        let (health, reason) = match (suspended, degraded) {
            (Some(reason), _) => (Health::Suspended, Some(reason)),
            (None, Some(reason)) => (Health::Degraded, Some(reason)),
            (None, None) => (Health::Healthy, None),
        };
        let lanes = self.lanes.iter().map(|lane| self.lane_status(lane)).collect();
        VolumeStatus { epoch: self.epoch.0, health, reason, lanes, counters: self.counters }
    }

    fn suspended_reason(&self) -> Option<String> {
        match self.phase {
            VolumePhase::Serving if let Way::Giving { device, .. } = self.way => Some(format!(
                "opens again with device {device}, which may have what is damaged on the others, as soon as {} requests \
                 under way are done",
                self.guests_active()
            )),
            VolumePhase::Idle => Some("waits for the metadata service to grant the volume".into()),
            VolumePhase::Fenced => Some("another node has taken the volume over".into()),
            VolumePhase::Closing | VolumePhase::Closed => Some("is being detached".into()),
            VolumePhase::Opening => Some(self.opening_reason()),
            VolumePhase::Serving if self.lanes.iter().any(|lane| !self.lane_serves(lane)) => {
                Some(self.opening_reason())
            }
            VolumePhase::Serving => self.lanes.iter().find_map(|lane| self.stalled_reason(lane)),
        }
    }

    fn opening_reason(&self) -> String {
        for lane in &self.lanes {
            let number = lane.number;
            match (lane.phase, &lane.recovery) {
                (LanePhase::Sealing, Some(Recovery { undecided: Some(why), .. })) => {
                    return format!("opening: lane {number} after the restore of the metadata: {why}");
                }
                (LanePhase::Sealing, Some(recovery)) => {
                    let answered = recovery.seals.iter().flatten().count();
                    let missing: Vec<String> = slots_of(lane.in_sync)
                        .filter(|slot| recovery.seals[*slot].is_none())
                        .map(|slot| lane.slots[slot].device.to_string())
                        .collect();
                    if lane.unverified {
                        return format!(
                            "opening: lane {number} needs all of its devices once after the restore of the metadata, \
                             {answered} answered; waits for {0}; if one is lost: `ashlar device disregard {1} --volume \
                             {2} --lane {number}`",
                            missing.join(", "),
                            missing.first().map_or("", String::as_str),
                            self.spec.name
                        );
                    }
                    return format!(
                        "opening: lane {number} needs {} of its {} in-sync devices, {answered} answered; waits for {}",
                        seals_needed(lane.in_sync, self.spec.quorum),
                        lane.in_sync.count_ones(),
                        missing.join(", ")
                    );
                }
                (LanePhase::Copying, Some(recovery)) => {
                    return match recovery.damaged {
                        Some((block, _)) => {
                            let absent = lane.devices_of(lane.may_hold_lost());
                            let absent: Vec<String> = absent.iter().map(DeviceId::to_string).collect();
                            format!(
                                "opening: block {block} is damaged on every device that answered; waits {} s for {}, which may have it",
                                self.settings.lost_patience_us / 1_000_000,
                                absent.join(", ")
                            )
                        }
                        None => format!("opening: lane {number} copies {} unsettled writes", lane.retained.len()),
                    };
                }
                (LanePhase::Committing, _) => return "opening: waits for the metadata service".into(),
                _ => {}
            }
        }
        "opening: waits for the read grants of an earlier writer to run out".into()
    }

    fn stalled_reason(&self, lane: &Lane) -> Option<String> {
        let following = slots_of(lane.in_sync)
            .filter(|s| lane.slots[*s].up && lane.slots[*s].started && !lane.slots[*s].failed && !lane.slots[*s].full)
            .count() as u32;
        let needed = quorum(lane.in_sync, self.spec.quorum);
        let name = |slot: usize| lane.slots[slot].device.to_string();
        if following < needed {
            let full: Vec<String> = slots_of(lane.in_sync).filter(|s| lane.slots[*s].full).map(name).collect();
            let away: Vec<String> = slots_of(lane.in_sync).filter(|s| !lane.slots[*s].up).map(name).collect();
            return Some(if full.is_empty() {
                format!(
                    "lane {} needs {needed} of its {} in-sync devices, {following} can be reached; missing: {}. Start \
                     their nodes",
                    lane.number,
                    lane.in_sync.count_ones(),
                    away.join(", ")
                )
            } else {
                format!(
                    "full: {}. Writes to new blocks wait; trim or delete something, or add devices",
                    full.join(", ")
                )
            });
        }
        let in_sync = lane.in_sync.count_ones();
        if in_sync < u32::from(self.spec.in_sync_min) {
            let out = slots_of(lane.copyset & !lane.in_sync).map(name).collect::<Vec<_>>().join(", ");
            return Some(format!(
                "lane {} has {in_sync} in-sync devices, the volume's minimum is {}; writes wait until one of these is \
                 back in sync: {out}",
                lane.number, self.spec.in_sync_min
            ));
        }
        (lane.retained_bytes >= self.settings.retained_bytes_max()).then(|| {
            let lagging: Vec<String> =
                slots_of(lane.in_sync).filter(|s| lane.slots[*s].prefix < lane.last).map(name).collect();
            format!("writes wait for {}, which lags and may not be ejected now", lagging.join(", "))
        })
    }

    fn degraded_reason(&self, lane: &Lane) -> Option<String> {
        let missing: Vec<String> = self
            .member_states(lane)
            .into_iter()
            .filter(|member| member.state != MemberState::InSync)
            .map(|member| match member.state {
                MemberState::Behind if member.reachable => format!("{} is catching up", member.device),
                MemberState::Behind => format!("{} cannot be reached", member.device),
                MemberState::Joining => format!("{} is being resynchronised", member.device),
                MemberState::Failed => format!("{} has failed; replace it", member.device),
                MemberState::Stale | MemberState::InSync => self.out_of_sync_reason(lane, member.device),
            })
            .collect();
        (!missing.is_empty()).then(|| format!("lane {}: {}", lane.number, missing.join("; ")))
    }

    fn out_of_sync_reason(&self, lane: &Lane, device: DeviceId) -> String {
        let slot = lane.slot_of(device).filter(|slot| self.is_left_alone(lane, *slot));
        match slot.and_then(|slot| lane.slots[slot].left_alone) {
            Some(left_alone) => format!(
                "{device} was put out because it was {} behind; it is tried again in {}",
                seconds(left_alone.behind_us),
                seconds(left_alone.until_us - self.now_us)
            ),
            None => format!("{device} is out of sync"),
        }
    }

    fn lane_status(&self, lane: &Lane) -> LaneStatus {
        LaneStatus {
            lane: lane.number,
            phase: format!("{:?}", lane.phase).to_lowercase(),
            last: lane.last,
            settled: lane.settled,
            retained_bytes: lane.retained_bytes as u64,
            join: lane.join.as_ref().map(|join| self.join_status(lane, join)),
            members: self.member_states(lane),
        }
    }

    fn join_status(&self, lane: &Lane, join: &Join) -> JoinStatus {
        let (lanes, number) = (u64::from(self.spec.geometry.lane_count), u64::from(lane.number));
        JoinStatus {
            device: lane.slots[join.slot].device,
            chunks_done: join.next_chunk,
            chunks_total: self.spec.geometry.chunk_count().saturating_sub(number).div_ceil(lanes),
            copied_bytes: join.copied_bytes,
            compared_bytes: join.compared_bytes,
        }
    }

    fn member_states(&self, lane: &Lane) -> Vec<MemberStatus> {
        /// A member may lack writes that are on their way; longer than this it is behind.
        const BEHIND_AFTER_US: u64 = 1_000_000;
        let state = |slot: usize| {
            let state = &lane.slots[slot];
            let long = state.behind_since_us.is_some_and(|since| self.now_us > since + BEHIND_AFTER_US);
            if state.failed {
                MemberState::Failed
            } else if lane.join.as_ref().is_some_and(|join| join.slot == slot) {
                MemberState::Joining
            } else if lane.members() & bit(slot) == 0 {
                MemberState::Stale
            } else if !state.up || long {
                MemberState::Behind
            } else {
                MemberState::InSync
            }
        };
        slots_of(lane.copyset | lane.in_sync)
            .map(|slot| MemberStatus {
                device: lane.slots[slot].device,
                state: state(slot),
                reachable: lane.slots[slot].up,
                prefix: lane.slots[slot].prefix,
            })
            .collect()
    }
}
