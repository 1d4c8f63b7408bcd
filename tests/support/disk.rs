//! Watches the disk below a directory, so that a test which bounds a time can tell a slow disk from a slow daemon.
//!
//! A small file is extended and synced again and again: what this takes, no store and no metadata on the same file
//! system can do faster, whoever makes the disk slow.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(20);
/// A sync that takes longer is a stall, all of it.
const STALL: Duration = Duration::from_millis(100);
const FILE_BYTES_MAX: u64 = 1 << 20;
const BLOCK: [u8; 4096] = [0; 4096];

/// Begin and end of each stall, and of the sync under way, which has no end.
type Stalls = Arc<Mutex<Vec<(Instant, Option<Instant>)>>>;

/// A watch at work; it ends when it is dropped.
pub struct DiskWatch {
    stop: Arc<AtomicBool>,
    syncs: Stalls,
    thread: Option<JoinHandle<()>>,
}

impl DiskWatch {
    /// Watches with a file in this directory.
    pub fn start(dir: &Path) -> Self {
        let file = File::create(dir.join("disk-watch")).expect("a file to watch with");
        let (stop, syncs) = (Arc::new(AtomicBool::new(false)), Stalls::default());
        let (stopped, noted) = (stop.clone(), syncs.clone());
        let thread = std::thread::spawn(move || {
            let mut length = 0;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                noted.lock().expect("the list").push((began, None));
                file.write_all_at(&BLOCK, length).expect("a block of the watched file");
                file.sync_all().expect("a sync of the watched file");
                let mut syncs = noted.lock().expect("the list");
                let last = syncs.last_mut().expect("just pushed");
                last.1 = Some(Instant::now());
                if began.elapsed() < STALL {
                    syncs.pop();
                }
                drop(syncs);
                length += BLOCK.len() as u64;
                if length >= FILE_BYTES_MAX {
                    file.set_len(0).expect("a shorter file");
                    length = 0;
                }
                std::thread::sleep(PERIOD);
            }
        });
        Self { stop, syncs, thread: Some(thread) }
    }

    /// For how long of the time from `from` until now the disk was stalled.
    pub fn stalled_since(&self, from: Instant) -> Duration {
        let now = Instant::now();
        let syncs = self.syncs.lock().expect("the list");
        let spans = syncs.iter().map(|(begin, end)| (*begin, end.unwrap_or(now)));
        let stalls = spans.filter(|(begin, end)| *end - *begin >= STALL);
        stalls.map(|(begin, end)| end.saturating_duration_since(begin.max(from))).sum()
    }
}

impl Drop for DiskWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
