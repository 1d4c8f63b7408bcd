//! Writes one block every few milliseconds and measures how long each write takes: the stall that a guest feels.

use super::cluster;
use super::stamp::{BLOCK_BYTES, Content, Stamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(5);
const WRITER: u64 = 0xBEEF;

/// A prober at work.
pub struct Prober {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Result<Probes, String>>,
}

/// What it saw.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// Writes answered.
    pub writes: u64,
    /// Longest time that one write took.
    pub longest: Duration,
    /// When it was sent, from the start.
    pub longest_at: Duration,
    /// Median.
    pub median: Duration,
    /// 99th percentile.
    pub p99: Duration,
}

impl Prober {
    /// Probes with one block of the volume, which nobody else may write.
    #[track_caller]
    pub fn start(uri: &str, block: u64) -> Self {
        let mut client = cluster::open(uri);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            let (mut took, mut longest_at) = (Vec::new(), Duration::ZERO);
            let mut longest = Duration::ZERO;
            let offset = block * BLOCK_BYTES as u64;
            let mut stamp = Stamp { block, writer: WRITER, sequence: 0 };
            while !stopped.load(Ordering::Relaxed) {
                stamp.sequence += 1;
                let sent = Instant::now();
                client.write(offset, &stamp.bytes()).map_err(|error| format!("probe {}: {error}", stamp.sequence))?;
                let write_took = sent.elapsed();
                took.push(write_took);
                if write_took > longest {
                    (longest, longest_at) = (write_took, sent - started);
                }
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PERIOD.saturating_sub(write_took));
            }
            let data = client.read(offset, BLOCK_BYTES as u32).map_err(|error| format!("last read: {error}"))?;
            let found = Stamp::read(&data);
            if stamp.sequence > 0 && found != Content::Whole(stamp) {
                return Err(format!("wrote {stamp:?}, read {found:?}"));
            }
            drop(client.disconnect());
            took.sort();
            let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
            Ok(Probes { writes: took.len() as u64, longest, longest_at, median: at(50), p99: at(99) })
        });
        Self { stop, done, thread }
    }

    /// Writes answered so far.
    pub fn writes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until this many more writes are answered.
    #[track_caller]
    pub fn wait_writes(&self, more: u64, timeout: Duration) {
        let wanted = self.writes() + more;
        super::wait_until(&format!("{more} more probes"), timeout, || {
            assert!(!self.thread.is_finished(), "the prober ended after {} writes", self.writes());
            self.writes() >= wanted
        });
    }

    /// Stops it. Panics if any write failed.
    #[track_caller]
    pub fn finish(self) -> Probes {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join().expect("the prober's thread") {
            Ok(probes) => probes,
            Err(error) => panic!("the prober saw an error: {error}"),
        }
    }
}

impl std::fmt::Display for Probes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            formatter,
            "{} probes, median {:.2} ms, p99 {:.1} ms, longest stall {:.1} ms at {:.1} s",
            self.writes,
            ms(self.median),
            ms(self.p99),
            ms(self.longest),
            self.longest_at.as_secs_f64()
        )
    }
}
