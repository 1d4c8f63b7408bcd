//! A closed loop: so many operations in flight, each followed by the next.

use crate::driver::{self, Counters, Driver};
use crate::histogram::Histogram;
use crate::target::Target;
use crate::volume::{Contents, Random, Volume};
use anyhow::{Context, Result, bail, ensure};
use ashlar_model::BlockRange;
use ashlar_model::limits::WRITE_BLOCKS_MAX;
use ashlar_model::units::BLOCK_BYTES;
use ashlar_store::api::{BlockState, Reply, Request, Token};
use std::time::{Duration, Instant};

/// The token of requests that are no operation of the load.
const OTHER: Token = Token(u64::MAX);
/// An operation that takes longer has got lost.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Which blocks come next.
#[derive(Clone, Debug)]
pub enum Places {
    /// Any, again and again.
    Random(Random),
    /// One after the other, from the start again at the end.
    InOrder { next: u64 },
    /// Each once; the load ends with the last.
    Once(Vec<u64>),
}

impl Places {
    fn next(&mut self, blocks: u64, count: u64) -> Option<u64> {
        match self {
            Self::Random(random) => Some(random.below(blocks / count) * count),
            Self::InOrder { next } => {
                let at = if *next + count > blocks { 0 } else { *next };
                *next = at + count;
                Some(at)
            }
            Self::Once(left) => left.pop(),
        }
    }
}

/// What to do.
pub struct Work<'a> {
    /// Writes, or reads that must find data.
    pub writes: bool,
    /// Blocks of an operation.
    pub blocks: u32,
    /// Operations in flight.
    pub depth: usize,
    /// Where.
    pub places: &'a mut Places,
    /// When to stop.
    pub until: Until,
}

/// When a load stops.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After a while.
    Time(Duration),
    /// After so many operations.
    Operations(u64),
    /// When the log is fuller than this, which shrinks by a fiftieth with every second; and does not drain.
    LogUsed(u64),
}

/// What one slice came to.
#[derive(Clone, Debug)]
pub struct Slice {
    pub operations: u64,
    pub bytes: u64,
    /// From the first submission to the last answer.
    pub seconds: f64,
    pub latencies: Histogram,
    pub counters: Counters,
    pub thread_ns: u64,
    pub process_ns: u64,
    pub written_bytes: u64,
    pub accepted_bytes: u64,
    /// Counted by the kernel, for block devices.
    pub device_bytes: Option<u64>,
    pub checkpoints: u64,
    /// Until the engine was quiet after the last answer.
    pub drain_seconds: f64,
}

struct Operation {
    left: u32,
    started: Instant,
}

struct Loop<'a> {
    work: Work<'a>,
    volume: &'a mut Volume,
    contents: &'a Contents,
    operations: Vec<Operation>,
    free: Vec<usize>,
    new: Vec<usize>,
    requests: Vec<(Token, Request)>,
    latencies: Histogram,
    started: u64,
    done: u64,
    begin: Instant,
    last: Instant,
}

/// Runs a load on an idle engine until it stops, and the engine until it is idle again (but for a full log).
///
/// # Errors
/// The engine failed or answered wrongly.
pub fn run(
    driver: &mut Driver,
    target: &Target,
    volume: &mut Volume,
    contents: &Contents,
    work: Work,
) -> Result<Slice> {
    let (stats, device_bytes) = (driver.engine.stats(), target.written_bytes());
    let full_log = matches!(work.until, Until::LogUsed(_));
    driver.counters = Counters::default();
    let (thread, process) = (driver::thread_cpu_ns(), driver::process_cpu_ns());
    let now = Instant::now();
    let mut one = Loop {
        operations: (0..work.depth).map(|_| Operation { left: 0, started: now }).collect(),
        free: (0..work.depth).collect(),
        work,
        volume,
        contents,
        new: Vec::new(),
        requests: Vec::new(),
        latencies: Histogram::default(),
        started: 0,
        done: 0,
        begin: now,
        last: now,
    };
    one.run(driver)?;
    if !full_log {
        if one.work.writes {
            one.volume.check(&driver.engine)?;
        }
        driver.drain()?;
    }
    let after = driver.engine.stats();
    Ok(Slice {
        operations: one.done,
        bytes: one.done * u64::from(one.work.blocks) * BLOCK_BYTES as u64,
        seconds: (one.last - one.begin).as_secs_f64().max(1e-9),
        latencies: one.latencies,
        counters: driver.counters,
        thread_ns: driver::thread_cpu_ns() - thread,
        process_ns: driver::process_cpu_ns() - process,
        written_bytes: after.written_bytes - stats.written_bytes,
        accepted_bytes: after.accepted_bytes - stats.accepted_bytes,
        device_bytes: device_bytes.and_then(|before| Some(target.written_bytes()? - before)),
        checkpoints: after.checkpoints - stats.checkpoints,
        drain_seconds: one.last.elapsed().as_secs_f64(),
    })
}

impl Loop<'_> {
    fn run(&mut self, driver: &mut Driver) -> Result<()> {
        let mut replies = Vec::new();
        loop {
            let now = Instant::now();
            let mut acknowledged = 0;
            for (token, reply) in replies.drain(..) {
                acknowledged += self.answered(token, reply, now)?;
            }
            if self.work.writes && acknowledged > 0 {
                let settle = self.volume.acknowledged(acknowledged, &driver.engine);
                self.requests.extend(settle.map(|settle| (OTHER, settle)));
            }
            if let Until::LogUsed(_) = self.work.until
                && self.is_over(driver, now)
            {
                return Ok(()); // as a kill does, in the middle
            }
            if !self.is_over(driver, now) {
                self.refill();
            }
            if self.free.len() == self.operations.len() && self.requests.is_empty() {
                return Ok(());
            }
            if !self.requests.is_empty() {
                self.submitted();
                driver.submit(&mut self.requests, &mut replies)?;
            }
            if self.free.len() < self.operations.len() {
                driver.wait(&mut replies)?;
            }
            ensure!(self.last.elapsed() < ANSWER_MAX, "no answer for {ANSWER_MAX:?}: {:?}", driver.engine.stats());
        }
    }

    fn is_over(&self, driver: &Driver, now: Instant) -> bool {
        match self.work.until {
            Until::Time(time) => now - self.begin >= time,
            Until::Operations(count) => self.started >= count,
            Until::LogUsed(bytes) => {
                let patience = 1.0 - (now - self.begin).as_secs_f64() / 50.0;
                driver.log_used() as f64 >= bytes as f64 * patience
            }
        }
    }

    /// Prepares the next operations: payloads and checksums are the volume's work.
    fn refill(&mut self) {
        while let Some(slot) = self.free.pop() {
            let blocks = self.work.blocks;
            let Some(first) = self.work.places.next(self.volume.blocks, u64::from(blocks)) else {
                self.free.push(slot);
                return;
            };
            let before = self.requests.len();
            for range in BlockRange::new(first, blocks).pieces(WRITE_BLOCKS_MAX) {
                let request = match self.work.writes {
                    true => self.volume.write(self.contents, range),
                    false => Request::Read { volume: self.volume.key.volume, range },
                };
                self.requests.push((Token(slot as u64), request));
            }
            self.operations[slot].left = (self.requests.len() - before) as u32;
            self.new.push(slot);
            self.started += 1;
            if matches!(self.work.until, Until::Operations(count) if self.started >= count) {
                return;
            }
        }
    }

    fn submitted(&mut self) {
        let now = Instant::now();
        for slot in self.new.drain(..) {
            self.operations[slot].started = now;
        }
    }

    /// Takes one answer; one if it acknowledges a write.
    fn answered(&mut self, token: Token, reply: Reply, now: Instant) -> Result<u64> {
        let acknowledged = match reply {
            Reply::Done if self.work.writes => 1,
            Reply::Read(read) if !self.work.writes => {
                let whole = read.states.iter().all(|state| matches!(state, BlockState::Data(_)));
                let bytes = read.payload.as_ref().map_or(0, |payload| payload.len());
                ensure!(whole && bytes == read.range.bytes(), "{:?} reads as {:?}", read.range, read.states);
                0
            }
            other => bail!("an unexpected answer: {other:?}"),
        };
        let operation = self.operations.get_mut(token.0 as usize).context("an answer to nothing")?;
        operation.left = operation.left.checked_sub(1).context("one answer too many")?;
        if operation.left == 0 {
            self.latencies.add((now - operation.started).as_nanos() as u64);
            self.free.push(token.0 as usize);
            self.done += 1;
            self.last = now;
        }
        Ok(acknowledged)
    }
}

/// One request outside of a load, answered with `Done`.
///
/// # Errors
/// It was refused, or the engine failed.
pub fn ask(driver: &mut Driver, request: Request) -> Result<()> {
    let (mut requests, mut replies) = (vec![(OTHER, request)], Vec::new());
    driver.submit(&mut requests, &mut replies)?;
    let until = Instant::now() + ANSWER_MAX;
    while replies.is_empty() {
        driver.wait(&mut replies)?;
        ensure!(Instant::now() < until, "no answer for {ANSWER_MAX:?}");
    }
    ensure!(matches!(replies[..], [(OTHER, Reply::Done)]), "unexpected answers: {replies:?}");
    driver.drain()
}
