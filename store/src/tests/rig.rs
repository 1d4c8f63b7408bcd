//! One engine on one simulated device, one lane.

use crate::api::{Body, ReadResult, Reply, Request, Token, Write};
use crate::engine::{Effect, FormatOptions, OpenError, OpenOptions, StoreEngine};
use crate::testing::SimDevice;
use ashlar_model::checksum::block_checksums;
use ashlar_model::lane::{EntryOrigin, LaneState};
use ashlar_model::{BlockRange, ClusterId, DeviceId, Epoch, LaneKey, Payload, Stamp, VolumeId};

pub const SIZE: u64 = 8 << 20;

pub fn volume() -> VolumeId {
    VolumeId::from_u128(5)
}

pub fn key() -> LaneKey {
    LaneKey { volume: volume(), lane: 0 }
}

pub fn stamp(index: u64) -> Stamp {
    Stamp { epoch: Epoch(1), index }
}

pub fn range(start: u64, count: u32) -> BlockRange {
    BlockRange::new(start, count)
}

pub fn data(start: u64, blocks: u32, id: u64) -> Body {
    let bytes = id.to_le_bytes().repeat(blocks as usize * 512);
    let checksums: Vec<u32> = block_checksums(volume(), start, &bytes).collect();
    Body::Data { payload: Payload::copied_from(&bytes), checksums: checksums.into() }
}

pub fn options() -> FormatOptions {
    FormatOptions {
        cluster: ClusterId::from_u128(1),
        device: DeviceId::from_u128(2),
        size_bytes: SIZE,
        power_loss_protected: false,
        atomic_declared: false,
        log_bytes: Some(1 << 20),
        table_bytes: Some(64 << 10),
    }
}

/// Completes what is not stuck; gives what is not for the device.
pub fn run_loose(rig: &mut Rig) -> Vec<Effect> {
    let mut rest = rig.device.take(&mut rig.engine);
    while rig.device.pending() > rig.device.stuck() {
        rig.device.complete_one(&mut rig.engine);
        rest.extend(rig.device.take(&mut rig.engine));
    }
    rest
}

pub struct Rig {
    pub device: SimDevice,
    pub engine: StoreEngine,
    next: u64,
}

impl Rig {
    pub fn new() -> Self {
        let device = SimDevice::formatted(&options(), true, 4);
        let engine = StoreEngine::open(OpenOptions::new(SIZE, true));
        let mut rig = Self { device, engine, next: 1 };
        rig.run();
        assert_eq!(rig.ask(Request::Start { key: key(), epoch: Epoch(1), config: 1, base: 0 }), Reply::Done);
        rig
    }

    /// Runs until idle; gives what is not for the device.
    pub fn run(&mut self) -> Vec<Effect> {
        let mut rest = Vec::new();
        loop {
            rest.extend(self.device.take(&mut self.engine));
            if self.device.pending() == 0 {
                return rest;
            }
            self.device.complete_one(&mut self.engine);
        }
    }

    pub fn ask(&mut self, request: Request) -> Reply {
        let token = Token(self.next);
        self.next += 1;
        self.engine.submit(token, request);
        let replies = self.run().into_iter().filter_map(|effect| match effect {
            Effect::Reply { token: one, reply } if one == token => Some(reply),
            _ => None,
        });
        let mut replies: Vec<Reply> = replies.collect();
        assert_eq!(replies.len(), 1, "one answer");
        replies.remove(0)
    }

    pub fn request(&self, index: u64, range: BlockRange, body: Body, origin: EntryOrigin, listed: bool) -> Request {
        Request::Write(Write { key: key(), stamp: stamp(index), range, body, origin, listed, generation: 0 })
    }

    pub fn try_write(&mut self, index: u64, range: BlockRange, body: Body) -> Reply {
        let request = self.request(index, range, body, EntryOrigin::Live, true);
        self.ask(request)
    }

    pub fn write(&mut self, index: u64, range: BlockRange, body: Body) {
        assert_eq!(self.try_write(index, range, body), Reply::Done);
    }

    pub fn settle(&mut self, index: u64) {
        self.engine.submit(Token(0), Request::Settle { key: key(), index, config: 1, member: true });
        assert!(self.run().is_empty());
    }

    pub fn read(&mut self, range: BlockRange) -> ReadResult {
        match self.ask(Request::Read { volume: volume(), range }) {
            Reply::Read(result) => result,
            other => panic!("{other:?}"),
        }
    }

    pub fn lane(&self) -> LaneState {
        self.engine.lanes().next().expect("one lane").1.clone()
    }

    pub fn try_open(&mut self, options: OpenOptions) -> Result<(), OpenError> {
        self.engine = StoreEngine::open(options);
        let effects = self.run();
        match effects.into_iter().next() {
            Some(Effect::Opened) => Ok(()),
            Some(Effect::OpenFailed(error)) => Err(error),
            other => panic!("neither open nor failed: {other:?}"),
        }
    }

    pub fn reopen(&mut self) {
        self.device.crash();
        self.next += 1;
        let options = OpenOptions { nonce: self.next << 32 | self.next, ..OpenOptions::new(SIZE, true) };
        assert_eq!(self.try_open(options), Ok(()));
    }

    /// Device offset of the data with this id.
    pub fn find(&self, id: u64) -> u64 {
        let layout = self.engine.superblock().layout;
        let block = id.to_le_bytes().repeat(512);
        (layout.data.offset..layout.spares.end())
            .step_by(4096)
            .find(|at| self.device.bytes(*at, 4096) == block)
            .expect("it is there")
    }
}
