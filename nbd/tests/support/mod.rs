//! A memory device and a threaded Unix socket server for the tests.
#![allow(dead_code, reason = "each test binary uses its own part")]

use ashlar_nbd::export::{BlockSizes, ExportInfo, Extent, Features, ListedExport, Refusal};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::server::{self, Backend, Exports};
use ashlar_nbd::session::CloseReason;
use ashlar_nbd::wire::ErrorNumber;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

const BLOCK_BYTES: usize = 4096;

pub fn export(name: &str, size_bytes: u64) -> ExportInfo {
    ExportInfo {
        name: name.to_owned(),
        description: Some(format!("{name} in memory")),
        size_bytes,
        block_sizes: BlockSizes::default(),
        features: Features::ALL,
    }
}

/// A sparse device in memory; holes read as zeroes.
pub struct Memory {
    info: ExportInfo,
    state: RwLock<State>,
    pub flushes: AtomicU64,
}

struct State {
    data: Vec<u8>,
    allocated: Vec<bool>,
}

impl Memory {
    pub fn new(info: ExportInfo) -> Self {
        let data = vec![0; info.size_bytes as usize];
        let allocated = vec![false; data.len().div_ceil(BLOCK_BYTES)];
        Self { info, state: RwLock::new(State { data, allocated }), flushes: AtomicU64::new(0) }
    }

    pub fn contents(&self) -> Vec<u8> {
        self.state.read().unwrap().data.clone()
    }

    /// Zeroes a range and frees the blocks wholly inside it.
    fn clear(&self, offset_bytes: u64, length_bytes: u64, free: bool) {
        let (start, end) = bounds(offset_bytes, length_bytes as usize);
        let state = &mut *self.state.write().unwrap();
        state.data[start..end].fill(0);
        for block in start.div_ceil(BLOCK_BYTES)..end / BLOCK_BYTES {
            state.allocated[block] = !free;
        }
    }
}

fn bounds(offset_bytes: u64, length: usize) -> (usize, usize) {
    (offset_bytes as usize, offset_bytes as usize + length)
}

impl Backend for Memory {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), ErrorNumber> {
        let (start, end) = bounds(offset_bytes, buffer.len());
        buffer.copy_from_slice(&self.state.read().unwrap().data[start..end]);
        Ok(())
    }

    fn write(&self, offset_bytes: u64, data: &[u8], _fua: bool) -> Result<(), ErrorNumber> {
        let (start, end) = bounds(offset_bytes, data.len());
        let state = &mut *self.state.write().unwrap();
        state.data[start..end].copy_from_slice(data);
        state.allocated[start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)].fill(true);
        Ok(())
    }

    fn flush(&self) -> Result<(), ErrorNumber> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn trim(&self, offset_bytes: u64, length_bytes: u64, _fua: bool) -> Result<(), ErrorNumber> {
        self.clear(offset_bytes, length_bytes, true);
        Ok(())
    }

    fn zero(&self, offset_bytes: u64, length_bytes: u64, no_hole: bool, _fua: bool) -> Result<(), ErrorNumber> {
        self.clear(offset_bytes, length_bytes, !no_hole);
        Ok(())
    }

    fn extents(&self, offset_bytes: u64, length_bytes: u64, out: &mut Vec<Extent>) -> Result<(), ErrorNumber> {
        let (mut start, end) = bounds(offset_bytes, length_bytes as usize);
        let state = self.state.read().unwrap();
        while start < end {
            let block = start / BLOCK_BYTES;
            let length = ((block + 1) * BLOCK_BYTES).min(end) - start;
            let hole = !state.allocated[block];
            match out.last_mut() {
                Some(last) if last.hole == hole => last.length_bytes += length as u64,
                _ => out.push(Extent { length_bytes: length as u64, hole, zero: hole }),
            }
            start += length;
        }
        Ok(())
    }
}

/// Memory devices by name, and one that is always attached elsewhere.
pub struct Devices(pub Vec<Arc<Memory>>);

pub const ELSEWHERE: &str = "elsewhere";
pub const ELSEWHERE_MESSAGE: &str = "the volume is attached to node b";

impl Exports for Devices {
    fn list(&self) -> Vec<ListedExport> {
        let listed = |device: &Arc<Memory>| ListedExport {
            name: device.info.name.clone(),
            description: device.info.description.clone().unwrap_or_default(),
        };
        self.0.iter().map(listed).collect()
    }

    fn find(&self, name: &str) -> Result<Arc<dyn Backend>, (Refusal, String)> {
        match self.0.iter().find(|device| device.info.name == name) {
            Some(device) => Ok(device.clone()),
            None if name == ELSEWHERE => Err((Refusal::Policy, ELSEWHERE_MESSAGE.to_owned())),
            None => Err((Refusal::Unknown, format!("there is no volume {name:?}"))),
        }
    }
}

/// A server on a Unix socket in a fresh directory. Its threads end with the test process.
pub struct Server {
    pub directory: tempfile::TempDir,
    pub devices: Arc<Devices>,
    /// Sessions that ended in any way but the orderly one.
    pub faults: Arc<Mutex<Vec<CloseReason>>>,
}

impl Server {
    pub fn start(exports: Vec<ExportInfo>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let devices = exports.into_iter().map(|info| Arc::new(Memory::new(info))).collect();
        let server = Self { directory, devices: Arc::new(Devices(devices)), faults: Arc::default() };
        let listener = UnixListener::bind(server.socket()).expect("a listening socket");
        let (devices, faults) = (server.devices.clone(), server.faults.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("an accepted connection");
                let (devices, faults) = (devices.clone(), faults.clone());
                std::thread::spawn(move || {
                    // A client that vanishes is no fault of the session.
                    if let Ok(Some(reason)) = server::serve(stream, &*devices, Limits::PRODUCTION)
                        && !reason.is_orderly()
                    {
                        faults.lock().unwrap().push(reason);
                    }
                });
            }
        });
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    pub fn assert_no_faults(&self) {
        assert_eq!(*self.faults.lock().unwrap(), []);
    }
}
