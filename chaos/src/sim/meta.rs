//! The metadata service as one linearizable register per lane: rules M1 and M2.

use ashlar::volume::VolumeEngine;
use ashlar_model::cluster::{AttachGrant, EpochRow, LaneCas, LaneCasReply, LaneGrant};
use ashlar_model::{DeviceId, Epoch, VolumeId};

#[derive(Clone, Debug)]
struct Record {
    in_sync: Vec<DeviceId>,
    version: u64,
    clean: Option<u64>,
    rows: Vec<EpochRow>,
}

/// Records of the one volume of a run.
#[derive(Debug)]
pub struct Meta {
    volume: VolumeId,
    epoch: Epoch,
    owner: u64,
    granted: Option<AttachGrant>,
    lanes: Vec<Record>,
    /// False during an outage: nothing is answered.
    pub up: bool,
}

impl Meta {
    /// A new volume: every lane clean at index zero.
    pub fn new(volume: VolumeId, lanes: u16, copyset: &[DeviceId]) -> Self {
        let record = Record { in_sync: copyset.to_vec(), version: 1, clean: Some(0), rows: Vec::new() };
        let lanes = vec![record; usize::from(lanes)];
        Self { volume, epoch: Epoch(0), owner: 0, granted: None, lanes, up: true }
    }

    /// M1. `attempt` grows over the writers of a run; a superseded one gets nothing.
    pub fn open(&mut self, attempt: u64) -> Option<AttachGrant> {
        if attempt < self.owner {
            return None;
        }
        if attempt == self.owner {
            return self.granted.clone();
        }
        self.owner = attempt;
        self.epoch = Epoch(self.epoch.0 + 1);
        let epoch = self.epoch;
        let grant = |record: &mut Record| {
            let clean = record.clean.take();
            record.rows.extend(clean.map(|base| EpochRow { epoch, base }));
            LaneGrant { in_sync: record.in_sync.clone(), version: record.version, clean, rows: record.rows.clone() }
        };
        let lanes = self.lanes.iter_mut().map(grant).collect();
        self.granted = Some(AttachGrant { volume: self.volume, epoch, lanes });
        self.granted.clone()
    }

    /// M2.
    pub fn cas(&mut self, cas: &LaneCas) -> LaneCasReply {
        let record = &mut self.lanes[usize::from(cas.lane)];
        if cas.epoch == self.epoch && cas.version == record.version && !cas.in_sync.is_empty() {
            record.in_sync.clone_from(&cas.in_sync);
            record.version += 1;
            record.clean = cas.clean;
            record.rows.extend(cas.base.map(|base| EpochRow { epoch: cas.epoch, base }));
        }
        LaneCasReply { epoch: self.epoch, version: record.version, in_sync: record.in_sync.clone() }
    }

    /// The current epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Members of a lane's in-sync set.
    pub fn in_sync(&self, lane: usize) -> &[DeviceId] {
        &self.lanes[lane].in_sync
    }

    /// True if this engine writes in the current epoch.
    pub fn is_current(&self, engine: &VolumeEngine) -> bool {
        engine.epoch() == self.epoch
    }
}
