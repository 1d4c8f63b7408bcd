//! Writes or reads one block every few milliseconds and measures how long each takes: the stall that a guest feels.

use super::cluster;
use super::stamp::{BLOCK_BYTES, Content, Stamp, next};
use ashlar_nbd::client::{Client, Socket};
use std::ops::Range;
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
#[derive(Clone, Debug)]
pub struct Probes {
    /// Probes answered.
    pub probes: u64,
    /// Longest time that one took.
    pub longest: Duration,
    /// When it was sent, from the start.
    pub longest_at: Duration,
    /// Median.
    pub median: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// When each was sent, and how long it took.
    samples: Vec<(Instant, Duration)>,
}

impl Probes {
    fn of(started: Instant, samples: Vec<(Instant, Duration)>) -> Self {
        let longest = samples.iter().max_by_key(|(_, took)| *took);
        let (longest_at, longest) = longest.map_or_else(Default::default, |(sent, took)| (*sent - started, *took));
        let mut took: Vec<Duration> = samples.iter().map(|(_, took)| *took).collect();
        took.sort();
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
        Self { probes: took.len() as u64, longest, longest_at, median: at(50), p99: at(99), samples }
    }

    /// Longest time of those that were on their way at some moment of a span.
    pub fn longest_within(&self, span: Range<Instant>) -> Duration {
        let within = self.samples.iter().filter(|(sent, took)| *sent < span.end && *sent + *took >= span.start);
        within.map(|(_, took)| *took).max().unwrap_or_default()
    }
}

impl Prober {
    /// Probes by writing one block of the volume, which nobody else may write.
    #[track_caller]
    pub fn start(uri: &str, block: u64) -> Self {
        let offset = block * BLOCK_BYTES as u64;
        let stamp = move |sequence| Stamp { block, writer: WRITER, sequence };
        let probe = move |client: &mut Client<Socket>, sequence| {
            client.write(offset, &stamp(sequence).bytes()).map_err(|error| format!("probe {sequence}: {error}"))
        };
        Self::run(uri, probe, move |client, sequence| match sequence {
            0 => Ok(()),
            last => expect(client, stamp(last)),
        })
    }

    /// Probes by reading one block after the other, at random, of those that a writer wrote once and nobody writes now.
    #[track_caller]
    pub fn start_reading(uri: &str, blocks: Range<u64>, writer: u64) -> Self {
        let mut random = blocks.start;
        let probe = move |client: &mut Client<Socket>, _| {
            let block = blocks.start + next(&mut random) % (blocks.end - blocks.start);
            expect(client, Stamp { block, writer, sequence: 1 })
        };
        Self::run(uri, probe, |_, _| Ok(()))
    }

    /// `probe` is given the number of each probe, from 1; `last` the number of the last one.
    #[track_caller]
    fn run(
        uri: &str,
        mut probe: impl FnMut(&mut Client<Socket>, u64) -> Result<(), String> + Send + 'static,
        last: impl FnOnce(&mut Client<Socket>, u64) -> Result<(), String> + Send + 'static,
    ) -> Self {
        let mut client = cluster::open(uri);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let started = Instant::now();
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let sent = Instant::now();
                probe(&mut client, samples.len() as u64 + 1)?;
                let probe_took = sent.elapsed();
                samples.push((sent, probe_took));
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PERIOD.saturating_sub(probe_took));
            }
            last(&mut client, samples.len() as u64)?;
            drop(client.disconnect());
            Ok(Probes::of(started, samples))
        });
        Self { stop, done, thread }
    }

    /// Probes answered so far.
    pub fn writes(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until this many more are answered.
    #[track_caller]
    pub fn wait_writes(&self, more: u64, timeout: Duration) {
        let wanted = self.writes() + more;
        super::wait_until(&format!("{more} more probes"), timeout, || {
            assert!(!self.thread.is_finished(), "the prober ended after {} probes", self.writes());
            self.writes() >= wanted
        });
    }

    /// Stops it. Panics if any probe failed.
    #[track_caller]
    pub fn finish(self) -> Probes {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join().expect("the prober's thread") {
            Ok(probes) => probes,
            Err(error) => panic!("the prober saw an error: {error}"),
        }
    }
}

/// Demands that a block is as a write left it.
fn expect(client: &mut Client<Socket>, stamp: Stamp) -> Result<(), String> {
    let data = client.read(stamp.block * BLOCK_BYTES as u64, BLOCK_BYTES as u32);
    let found = Stamp::read(&data.map_err(|error| format!("read of block {}: {error}", stamp.block))?);
    if found == Content::Whole(stamp) { Ok(()) } else { Err(format!("wrote {stamp:?}, read {found:?}")) }
}

impl std::fmt::Display for Probes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            formatter,
            "{} probes, median {:.2} ms, p99 {:.1} ms, longest stall {:.1} ms at {:.1} s",
            self.probes,
            ms(self.median),
            ms(self.p99),
            ms(self.longest),
            self.longest_at.as_secs_f64()
        )
    }
}
