//! Devices of this node: each a store engine, a replica engine, and the file that the reactor reads and writes.

use super::control::{DeviceStatus, LocalDevice, ShardRequest};
use super::core::{Shard, Work};
use crate::replica::{self, Effect, ReplicaEngine};
use ashlar_model::{AlignedBuffer, DeviceId, VolumeId};
use ashlar_store::device::BlockingDevice;
use ashlar_store::engine::{self, IoError, IoId, OpenOptions, StoreEngine};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use tokio::sync::oneshot;

/// Requests in the stores above which peers are not read: they wait in their sockets.
const STORE_REQUESTS_MAX: usize = 8192;
/// Where a device's number is in an operation's key.
const DEVICE_SHIFT: u32 = 48;

/// One device.
pub(super) struct LocalStore {
    pub device: LocalDevice,
    /// None once a device that could not be opened has been let go.
    file: Option<BlockingDevice>,
    fd: RawFd,
    pub engine: StoreEngine,
    /// There once the store is open.
    pub replica: Option<ReplicaEngine>,
    opened: Option<oneshot::Sender<Result<DeviceId, String>>>,
    pub id: DeviceId,
    /// Deletions under way.
    reclaims: BTreeMap<VolumeId, Vec<oneshot::Sender<()>>>,
    flushes: bool,
    in_flight: usize,
    reported_failed: bool,
    /// It could not be opened.
    dead: bool,
}

impl LocalStore {
    /// Nothing is on its way to the medium.
    pub fn is_quiet(&self) -> bool {
        self.in_flight == 0 && (self.dead || self.engine.failed().is_some() || self.engine.is_idle())
    }

    pub fn status(&self) -> Option<DeviceStatus> {
        let stats = self.engine.stats();
        (!self.dead && self.replica.is_some()).then(|| DeviceStatus {
            id: self.id,
            path: self.device.path.clone(),
            used_bytes: stats.used_bytes,
            total_bytes: stats.total_bytes,
            written_bytes: stats.written_bytes,
            bad_blocks: stats.bad_blocks,
            repaired_blocks: stats.repaired_blocks,
            flushes: self.flushes && !self.engine.superblock().power_loss_protected,
            failed: self.engine.failed().map(str::to_owned),
        })
    }
}

impl Shard {
    pub fn open_device(&mut self, device: LocalDevice, done: oneshot::Sender<Result<DeviceId, String>>) {
        if let Some(store) = self.stores.iter().find(|store| store.device.path == device.path && !store.dead) {
            let _ = done.send(Ok(store.id));
            return;
        }
        let file = match BlockingDevice::open(&device.path) {
            Ok(file) => file,
            Err(error) => {
                let _ = done.send(Err(format!("cannot open {}: {error}", device.path.display())));
                return;
            }
        };
        let cluster = Some(self.options.cluster);
        let flush_needed = file.volatile_cache() && !device.power_loss_protected;
        let options = OpenOptions { cluster, ..OpenOptions::new(file.size_bytes(), flush_needed) };
        self.stores.push(LocalStore {
            device,
            fd: file.file().as_raw_fd(),
            file: Some(file),
            engine: StoreEngine::open(options),
            replica: None,
            opened: Some(done),
            id: DeviceId::default(),
            reclaims: BTreeMap::new(),
            flushes: flush_needed,
            in_flight: 0,
            reported_failed: false,
            dead: false,
        });
    }

    /// True while peers must wait: the devices have enough to do.
    pub fn replicas_are_full(&self) -> bool {
        let full = |store: &LocalStore| store.replica.as_ref().is_some_and(|r| r.in_flight() > STORE_REQUESTS_MAX);
        self.stores.iter().any(full)
    }

    pub fn store_of(&self, device: DeviceId) -> Option<usize> {
        self.stores.iter().position(|store| store.id == device && store.replica.is_some())
    }

    /// Deletes what a device holds of a volume. Without an answer the caller asks again.
    pub fn reclaim(&mut self, device: DeviceId, volume: VolumeId, done: oneshot::Sender<()>) {
        if let Some(at) = self.store_of(device) {
            self.stores[at].reclaims.entry(volume).or_default().push(done);
            self.work.push_back(Work::Replica(at, replica::Event::Forget { volume }));
        }
    }

    pub fn replica_event(&mut self, at: usize, event: replica::Event) {
        let mut effects = Vec::new();
        if let Some(replica) = &mut self.stores[at].replica {
            replica.apply(event, &mut effects);
        }
        self.replica_effects(at, effects);
    }

    fn replica_effects(&mut self, at: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Store { token, request } => self.stores[at].engine.submit(token, request),
                Effect::Send { link, envelope, message } => self.answer_writer(link, envelope, message),
                Effect::Forgotten { volume } => {
                    for done in self.stores[at].reclaims.remove(&volume).unwrap_or_default() {
                        let _ = done.send(());
                    }
                }
                Effect::Alarm(alarm) => tracing::error!(device = %self.stores[at].id, "{alarm}"),
            }
        }
    }

    /// Lets the replica acknowledge and the store submit what this round brought.
    pub fn settle_store(&mut self, at: usize) {
        let mut replies = Vec::new();
        if let Some(replica) = &mut self.stores[at].replica {
            replica.settle(&mut replies);
        }
        self.replica_effects(at, replies);
        let mut effects = Vec::new();
        self.stores[at].engine.effects(&mut effects);
        for effect in effects {
            self.store_effect(at, effect);
        }
        self.report_failure(at);
    }

    fn store_effect(&mut self, at: usize, effect: engine::Effect) {
        let fd = self.stores[at].fd;
        let key = |io: IoId| (at as u64) << DEVICE_SHIFT | io.0;
        match effect {
            engine::Effect::Read { io, offset, bytes } => {
                self.stores[at].in_flight += 1;
                self.reactor.read(key(io), fd, offset, AlignedBuffer::zeroed(bytes));
            }
            engine::Effect::Write { io, offset, parts } => {
                self.stores[at].in_flight += 1;
                self.reactor.write(key(io), fd, offset, parts);
            }
            engine::Effect::Flush { io } => {
                self.stores[at].in_flight += 1;
                self.reactor.flush(key(io), fd);
            }
            engine::Effect::Reply { token, reply } => {
                self.work.push_back(Work::Replica(at, replica::Event::Stored { token, reply }));
            }
            engine::Effect::Opened => self.on_device_open(at),
            engine::Effect::OpenFailed(error) => {
                let store = &mut self.stores[at];
                store.dead = true;
                if store.in_flight == 0 {
                    store.file = None;
                }
                if let Some(done) = store.opened.take() {
                    let path = store.device.path.display();
                    let _ = done.send(Err(format!("{path}: {error}")));
                }
            }
        }
    }

    fn on_device_open(&mut self, at: usize) {
        let store = &mut self.stores[at];
        let id = store.engine.superblock().device;
        let lanes: Vec<_> = store.engine.lanes().map(|(key, state)| (key, state.clone())).collect();
        let stats = store.engine.stats();
        tracing::info!(
            device = %id,
            path = %store.device.path.display(),
            lanes = lanes.len(),
            used_bytes = stats.used_bytes,
            dropped_writes = stats.dropped_writes,
            "device is open"
        );
        if stats.damaged_chunks > 0 {
            tracing::error!(device = %id, "{} chunks have damaged metadata; their content is unknown here", stats.damaged_chunks);
        }
        store.replica = Some(ReplicaEngine::new(id, store.engine.promises(), lanes));
        store.id = id;
        if let Some(done) = store.opened.take() {
            let _ = done.send(Ok(id));
        }
        let local: Vec<DeviceId> = self.stores.iter().map(|store| store.id).collect();
        for attached in self.attached.values_mut() {
            attached.engine.prefer(local.iter().copied());
        }
        self.announce_links();
    }

    fn report_failure(&mut self, at: usize) {
        let store = &mut self.stores[at];
        if store.reported_failed || store.dead {
            return;
        }
        let Some(reason) = store.engine.failed().map(str::to_owned) else { return };
        store.reported_failed = true;
        let device = store.id;
        tracing::error!(device = %device, "the device has failed and no longer serves: {reason}; replace it");
        self.ask_control(ShardRequest::DeviceFailed { device, reason });
    }

    fn device_done(&mut self, key: u64, result: Result<Option<AlignedBuffer>, IoError>) {
        let at = (key >> DEVICE_SHIFT) as usize;
        let io = IoId(key & ((1 << DEVICE_SHIFT) - 1));
        self.stores[at].in_flight -= 1;
        self.stores[at].engine.io_done(io, result);
        self.let_go_of_dead(at);
    }

    /// A device that could not be opened may be added again: its lock goes with its file.
    fn let_go_of_dead(&mut self, at: usize) {
        let store = &mut self.stores[at];
        if store.dead && store.in_flight == 0 {
            store.file = None;
        }
    }

    pub fn on_device_read(&mut self, key: u64, buffer: AlignedBuffer, result: io::Result<usize>) {
        let result = match result {
            Ok(bytes) if bytes == buffer.len() => Ok(Some(buffer)),
            Ok(bytes) => Err(IoError(format!("read {bytes} of {} bytes", buffer.len()))),
            Err(error) => Err(IoError(error.to_string())),
        };
        self.device_done(key, result);
    }

    pub fn on_device_written(&mut self, key: u64, result: io::Result<bool>) {
        let result = match result {
            Ok(true) => Ok(None),
            Ok(false) => Err(IoError("short write".into())),
            Err(error) => Err(IoError(error.to_string())),
        };
        self.device_done(key, result);
    }

    pub fn on_device_flushed(&mut self, key: u64, result: io::Result<()>) {
        self.device_done(key, result.map(|()| None).map_err(|error| IoError(error.to_string())));
    }
}
