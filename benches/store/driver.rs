//! Drives one engine with the daemon's reactor, as `src/shard/devices.rs` does, and measures what that takes.
//!
//! The engine's processor time is taken around whole batches of calls: all completions of one wait, then all requests
//! that came of them. What reading the clock takes is measured once and subtracted.

use anyhow::{Result, bail, ensure};
use ashlar::reactor::{Completion, Reactor};
use ashlar_model::{AlignedBuffer, ClusterId, DeviceId};
use ashlar_store::api::{Reply, Request, Token};
use ashlar_store::{BlockingDevice, Effect, FormatOptions, IoError, IoId, OpenOptions, StoreEngine};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Without any completion for so long, something hangs.
const STALL: Duration = Duration::from_secs(30);
/// How often to look for it.
const TICK_US: u64 = 500_000;
/// Completions that are looked at before what they lead to is carried out. The daemon's loop takes more of them at a
/// time, because it also gathers what goes to sockets.
const COMPLETIONS_MAX: usize = 4;
/// Rounds of requests that were answered at once before the device is looked at again.
const IMMEDIATE_MAX: u32 = 16;

/// What the engine asked of the device, and what it took.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    /// Device reads.
    pub reads: u64,
    /// Device writes.
    pub writes: u64,
    /// Device flushes.
    pub flushes: u64,
    /// Bytes read from the device.
    pub read_bytes: u64,
    /// Processor time inside engine calls.
    pub engine_ns: u64,
    /// Batches of engine calls.
    pub batches: u64,
    /// Largest use of the log seen.
    pub log_used_max: u64,
}

/// One engine on one target.
pub struct Driver {
    /// The engine. Calls from outside are not measured.
    pub engine: StoreEngine,
    /// Since the last time somebody took them.
    pub counters: Counters,
    reactor: Reactor,
    device: BlockingDevice,
    completions: Vec<Completion>,
    effects: Vec<Effect>,
    in_flight: usize,
    immediate: u32,
    opened: bool,
    /// What reading the clock takes.
    pub clock_cost_ns: u64,
    last_progress: Instant,
    seen_log_used: u64,
}

/// The one place that knows how a device is formatted.
pub fn format(device: &BlockingDevice, size_bytes: u64, power_loss_protected: bool, atomic: bool) -> Result<()> {
    let options = FormatOptions {
        cluster: ClusterId::from_u128(1),
        device: DeviceId::from_u128(1),
        size_bytes,
        power_loss_protected,
        atomic_declared: atomic,
        log_bytes: None,
        table_bytes: None,
    };
    Ok(device.format(&options)?)
}

/// The one place that knows how a device is opened.
fn open_options(device: &BlockingDevice, size_bytes: u64, power_loss_protected: bool) -> OpenOptions {
    // Unique among the opens of a run, as the store asks for.
    let nonce = process_cpu_ns();
    OpenOptions { nonce, ..OpenOptions::new(size_bytes, device.volatile_cache() && !power_loss_protected) }
}

/// Processor time of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Processor time of this process: with the kernel's workers for its io_uring.
pub fn process_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec to the pointer, which is valid for it.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What two readings of the clock, one after the other, differ by.
fn clock_cost_ns() -> u64 {
    let mut costs: Vec<u64> = (0..1001).map(|_| thread_cpu_ns().abs_diff(thread_cpu_ns())).collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

impl Driver {
    /// Opens the engine of a formatted device and tells how long that took.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, size_bytes: u64, power_loss_protected: bool) -> Result<(Self, Duration)> {
        let device = BlockingDevice::open(path)?;
        let mut reactor = Reactor::new(std::time::Duration::ZERO)?;
        reactor.timer(TICK_US);
        let clock_cost_ns = clock_cost_ns();
        let started = Instant::now();
        let mut driver = Self {
            engine: StoreEngine::open(open_options(&device, size_bytes, power_loss_protected)),
            counters: Counters::default(),
            reactor,
            device,
            completions: Vec::new(),
            effects: Vec::new(),
            in_flight: 0,
            immediate: 0,
            opened: false,
            clock_cost_ns,
            last_progress: Instant::now(),
            seen_log_used: 0,
        };
        let mut replies = Vec::new();
        driver.engine.effects(&mut driver.effects);
        driver.carry_out(&mut replies)?;
        while !driver.opened {
            driver.wait(&mut replies)?;
        }
        let took = started.elapsed();
        ensure!(replies.is_empty(), "nothing was asked yet: {replies:?}");
        Ok((driver, took))
    }

    /// Commits are followed by a flush.
    pub fn flushes(&self) -> bool {
        self.device.volatile_cache() && !self.engine.superblock().power_loss_protected
    }

    /// Gives requests to the engine. Answers may come at once.
    ///
    /// # Errors
    /// The engine failed.
    pub fn submit(&mut self, requests: &mut Vec<(Token, Request)>, replies: &mut Vec<(Token, Reply)>) -> Result<()> {
        let before = thread_cpu_ns();
        for (token, request) in requests.drain(..) {
            self.engine.submit(token, request);
        }
        self.engine.effects(&mut self.effects);
        self.took(before);
        self.carry_out(replies)
    }

    /// Waits for the device and gives what it did to the engine. Returns at once if answers are there already, unless
    /// that was so many times.
    ///
    /// # Errors
    /// The engine or the reactor failed, or nothing has happened for a long time.
    pub fn wait(&mut self, replies: &mut Vec<(Token, Reply)>) -> Result<()> {
        self.immediate = if replies.is_empty() { 0 } else { self.immediate + 1 };
        let answered_at_once = !replies.is_empty() && (self.immediate < IMMEDIATE_MAX || self.in_flight == 0);
        if answered_at_once {
            return Ok(());
        }
        self.immediate = 0;
        if self.completions.is_empty() {
            self.reactor.wait(&mut self.completions)?;
        }
        let count = self.completions.len().min(COMPLETIONS_MAX);
        let mut done = Vec::with_capacity(count);
        for completion in self.completions.drain(..count) {
            match completion {
                Completion::Expired => self.reactor.timer(TICK_US),
                other => done.push(device_result(other)),
            }
        }
        if done.is_empty() {
            ensure!(self.last_progress.elapsed() < STALL, "nothing happens for {STALL:?}: {}", self.describe());
            return Ok(());
        }
        self.last_progress = Instant::now();
        self.in_flight -= done.len();
        let before = thread_cpu_ns();
        for (io, result) in done {
            self.engine.io_done(io, result);
        }
        self.engine.effects(&mut self.effects);
        self.took(before);
        self.carry_out(replies)
    }

    fn took(&mut self, before: u64) {
        self.counters.engine_ns += (thread_cpu_ns() - before).saturating_sub(self.clock_cost_ns);
        self.counters.batches += 1;
        self.seen_log_used = self.engine.stats().log_used_bytes;
        self.counters.log_used_max = self.counters.log_used_max.max(self.seen_log_used);
    }

    /// Bytes of the log in use after the last call.
    pub fn log_used(&self) -> u64 {
        self.seen_log_used
    }

    fn carry_out(&mut self, replies: &mut Vec<(Token, Reply)>) -> Result<()> {
        let fd = self.device.file().as_raw_fd();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Read { io, offset, bytes } => {
                    self.counters.reads += 1;
                    self.counters.read_bytes += bytes as u64;
                    self.in_flight += 1;
                    self.reactor.read(io.0, fd, offset, AlignedBuffer::zeroed(bytes));
                }
                Effect::Write { io, offset, parts, durable } => {
                    self.counters.writes += 1;
                    self.in_flight += 1;
                    self.reactor.write(io.0, fd, offset, parts, durable);
                }
                Effect::Flush { io } => {
                    self.counters.flushes += 1;
                    self.in_flight += 1;
                    self.reactor.flush(io.0, fd);
                }
                Effect::Reply { token, reply } => replies.push((token, reply)),
                Effect::Damaged { volume, block, .. } => bail!("block {block} of volume {volume} is damaged"),
                Effect::Opened => self.opened = true,
                Effect::OpenFailed(error) => bail!("the store does not open: {error}"),
            }
        }
        match self.engine.failed() {
            Some(reason) => bail!("the store has failed: {reason}"),
            None => Ok(()),
        }
    }

    /// Goes on until the engine has nothing more to do, a running checkpoint included.
    ///
    /// # Errors
    /// As [`Driver::wait`], or it never ends.
    pub fn drain(&mut self) -> Result<()> {
        let until = Instant::now() + STALL;
        let mut replies = Vec::new();
        while !self.engine.is_idle() {
            self.wait(&mut replies)?;
            ensure!(replies.is_empty(), "nothing is unanswered: {replies:?}");
            ensure!(Instant::now() < until, "the engine is not idle after {STALL:?}: {}", self.describe());
        }
        Ok(())
    }

    /// Writes everything back, so that reads come from the device.
    ///
    /// # Errors
    /// As [`Driver::drain`].
    pub fn checkpoint(&mut self) -> Result<()> {
        // What is overwritten while one runs waits for the next.
        for _ in 0..2 {
            self.engine.checkpoint();
            self.engine.effects(&mut self.effects);
            let mut replies = Vec::new();
            self.carry_out(&mut replies)?;
            ensure!(replies.is_empty(), "nothing is unanswered: {replies:?}");
            self.drain()?;
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let engine = &self.engine;
        let (in_flight, waiting) = (engine.in_flight(), engine.waiting());
        format!("{in_flight} operations in flight, {waiting} requests waiting, {:?}", engine.stats())
    }
}

fn device_result(completion: Completion) -> (IoId, Result<Option<AlignedBuffer>, IoError>) {
    let failed = |error: io::Error| IoError(error.to_string());
    match completion {
        Completion::Read { key, buffer, result } => match result {
            Ok(bytes) if bytes == buffer.len() => (IoId(key), Ok(Some(buffer))),
            Ok(bytes) => (IoId(key), Err(IoError(format!("read {bytes} of {} bytes", buffer.len())))),
            Err(error) => (IoId(key), Err(failed(error))),
        },
        Completion::Written { key, result: Ok(true) } => (IoId(key), Ok(None)),
        Completion::Written { key, result: Ok(false) } => (IoId(key), Err(IoError("short write".into()))),
        Completion::Written { key, result: Err(error) } => (IoId(key), Err(failed(error))),
        Completion::Flushed { key, result } => (IoId(key), result.map(|()| None).map_err(failed)),
        other => unreachable!("the bench has only a device: {other:?}"),
    }
}
