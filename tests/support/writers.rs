//! Writers that know what each block must hold, and check it.
//!
//! A block is a register with one writer and at most one write in flight. So after a crash it holds the last
//! acknowledged write or the one that was in flight; whichever a read shows first is then the only possibility: a write
//! that comes back later, or goes away, is a violation.

use super::cluster;
use super::stamp::{BLOCK_BYTES, Content, Stamp, next, run_of};
use ashlar_nbd::client::{Answer, Client, ClientError, Socket};
use ashlar_nbd::wire::Cookie;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of the longest request, unless a test says otherwise.
const RUN_BLOCKS_MAX: u64 = 8;
const READ_BYTES: usize = 1 << 20;

/// What one block may hold. Zero stands for "never written".
#[derive(Clone, Copy, Debug, Default)]
struct Register {
    acknowledged: u64,
    in_flight: Option<u64>,
}

/// A writer of its own range of blocks.
#[derive(Debug)]
pub struct Writer {
    id: u64,
    first_block: u64,
    registers: Vec<Register>,
    sequence: u64,
    random: u64,
    /// Blocks of the longest request.
    run_blocks_max: u64,
    /// Pause after each reply: bounds the load.
    pace: Duration,
}

/// A request on its way.
struct Flight {
    first: usize,
    count: usize,
    is_write: bool,
    sent: Instant,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Run {
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Of all requests that were answered with success, when the last one was sent, and when one was answered last.
    pub last_success: Option<(Instant, Instant)>,
    /// Why the connection ended, unless the run was stopped.
    pub cut: Option<String>,
    /// What must never happen: an error from the server, or wrong data.
    pub violation: Option<String>,
}

impl Run {
    fn note_success(&mut self, flight: &Flight) {
        let sent = self.last_success.map_or(flight.sent, |(sent, _)| sent.max(flight.sent));
        self.last_success = Some((sent, Instant::now()));
    }
}

impl Writer {
    /// A writer of `count` blocks from `first_block`, which nobody has written.
    pub fn new(id: u64, first_block: u64, count: u64) -> Self {
        let registers = vec![Register::default(); count as usize];
        let (run_blocks_max, pace) = (RUN_BLOCKS_MAX, Duration::ZERO);
        Self { id, first_block, registers, sequence: 0, random: id + 1, run_blocks_max, pace }
    }

    /// Requests of up to this many blocks.
    pub fn long_runs(self, run_blocks_max: u64) -> Self {
        assert!(run_blocks_max < self.registers.len() as u64, "a request fits the range");
        Self { run_blocks_max, ..self }
    }

    /// Pauses after each reply.
    pub fn paced(self, pace: Duration) -> Self {
        Self { pace, ..self }
    }

    /// Writes and reads at random, `depth` requests at a time, until it is stopped or cut off.
    pub fn run(&mut self, mut client: Client<Socket>, depth: usize, stop: &AtomicBool, progress: &AtomicU64) -> Run {
        let mut run = Run::default();
        let mut flights: HashMap<Cookie, Flight> = HashMap::new();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if stopping && flights.is_empty() {
                drop(client.disconnect());
                return run;
            }
            let result = if !stopping && flights.len() < depth {
                self.send(&mut client, &mut flights)
            } else {
                self.receive(&mut client, &mut flights, &mut run, progress)
            };
            if let Err(error) = result {
                run.cut = Some(error.to_string());
            }
            if run.cut.is_some() || run.violation.is_some() {
                return run;
            }
        }
    }

    fn send(&mut self, client: &mut Client<Socket>, flights: &mut HashMap<Cookie, Flight>) -> Result<(), ClientError> {
        let count = 1 + next(&mut self.random) % self.run_blocks_max;
        let first = (next(&mut self.random) % (self.registers.len() as u64 - count)) as usize;
        let count = count as usize;
        let taken = |flight: &Flight| flight.first < first + count && first < flight.first + flight.count;
        if flights.values().any(taken) {
            return Ok(()); // another draw
        }
        let is_write = !next(&mut self.random).is_multiple_of(8);
        let block = self.first_block + first as u64;
        let offset = block * BLOCK_BYTES as u64;
        let cookie = if is_write {
            self.sequence += 1;
            for register in &mut self.registers[first..first + count] {
                register.in_flight = Some(self.sequence);
            }
            client.send_write(offset, &run_of(block, count as u64, self.id, self.sequence), false)?
        } else {
            client.send_read(offset, (count * BLOCK_BYTES) as u32)?
        };
        flights.insert(cookie, Flight { first, count, is_write, sent: Instant::now() });
        Ok(())
    }

    fn receive(
        &mut self,
        client: &mut Client<Socket>,
        flights: &mut HashMap<Cookie, Flight>,
        run: &mut Run,
        progress: &AtomicU64,
    ) -> Result<(), ClientError> {
        let reply = client.receive()?;
        let flight = flights.remove(&reply.cookie).expect("replies are to what was asked");
        match reply.result {
            Ok(Answer::Data(data)) => {
                run.violation = self.judge(flight.first, &data).err();
                run.note_success(&flight);
            }
            Ok(_) => {
                assert!(flight.is_write, "a read is answered with data");
                for register in &mut self.registers[flight.first..flight.first + flight.count] {
                    register.acknowledged = register.in_flight.take().expect("it was in flight");
                }
                run.acknowledged += 1;
                run.note_success(&flight);
                progress.fetch_add(1, Ordering::Relaxed);
            }
            // The volume goes to another node: the request may have been done or not, as after any cut.
            Err(error) if error.to_string().contains("ESHUTDOWN") => run.cut = Some(error.to_string()),
            Err(error) => run.violation = Some(format!("a request failed: {error}")),
        }
        if !self.pace.is_zero() {
            std::thread::sleep(self.pace);
        }
        Ok(())
    }

    /// Reads everything and judges it.
    ///
    /// # Errors
    /// The first block that holds what it must not.
    pub fn check(&mut self, client: &mut Client<Socket>) -> Result<(), String> {
        let step = READ_BYTES / BLOCK_BYTES;
        for first in (0..self.registers.len()).step_by(step) {
            let count = step.min(self.registers.len() - first);
            let offset = (self.first_block + first as u64) * BLOCK_BYTES as u64;
            let data = client.read(offset, (count * BLOCK_BYTES) as u32);
            let data = data.map_err(|error| format!("read {count} blocks at byte {offset}: {error}"))?;
            self.judge(first, &data)?;
        }
        Ok(())
    }

    fn judge(&mut self, first: usize, data: &[u8]) -> Result<(), String> {
        for (i, bytes) in data.chunks_exact(BLOCK_BYTES).enumerate() {
            let block = self.first_block + (first + i) as u64;
            let register = &mut self.registers[first + i];
            let content = Stamp::read(bytes);
            let sequence = match content {
                Content::Zero => Some(0),
                Content::Whole(stamp) if stamp.block == block && stamp.writer == self.id => Some(stamp.sequence),
                _ => None,
            };
            match sequence {
                Some(found) if found == register.acknowledged || Some(found) == register.in_flight => {
                    *register = Register { acknowledged: found, in_flight: None };
                }
                _ => {
                    return Err(format!("block {block} of writer {}: {register:?}, and it holds {content:?}", self.id));
                }
            }
        }
        Ok(())
    }
}

/// Writers at work, each with a thread and a connection of its own.
pub struct Crew {
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    threads: Vec<JoinHandle<(Writer, Run)>>,
}

impl Crew {
    /// Sets writers to work on the volume of a URI.
    pub fn start(uri: &str, writers: Vec<Writer>, depth: usize) -> Self {
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = |mut writer: Writer| {
            let client = cluster::open(uri);
            let (stop, progress) = (stop.clone(), progress.clone());
            std::thread::spawn(move || {
                let run = writer.run(client, depth, &stop, &progress);
                (writer, run)
            })
        };
        let threads = writers.into_iter().map(start).collect();
        Self { stop, progress, threads }
    }

    /// Writes acknowledged so far.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Waits until this many more writes are acknowledged.
    #[track_caller]
    pub fn wait_progress(&self, more: u64, timeout: Duration) {
        let wanted = self.progress() + more;
        super::wait_until(&format!("{more} more writes"), timeout, || self.progress() >= wanted);
    }

    /// Stops them. Panics on a violation.
    #[track_caller]
    pub fn finish(self) -> (Vec<Writer>, Vec<Run>) {
        self.stop.store(true, Ordering::Relaxed);
        self.wait_cut()
    }

    /// Waits until their connections are cut: their target has been killed. Panics on a violation.
    #[track_caller]
    pub fn wait_cut(self) -> (Vec<Writer>, Vec<Run>) {
        let joined = self.threads.into_iter().map(|thread| thread.join().expect("a writer's thread"));
        let (writers, runs): (Vec<Writer>, Vec<Run>) = joined.unzip();
        for run in &runs {
            assert_eq!(run.violation, None, "after {} acknowledged writes", run.acknowledged);
        }
        (writers, runs)
    }
}

/// Checks every writer's blocks over one connection.
#[track_caller]
pub fn check_all(writers: &mut [Writer], uri: &str) {
    let mut client = cluster::open(uri);
    for writer in writers {
        if let Err(violation) = writer.check(&mut client) {
            panic!("{violation}");
        }
    }
    client.disconnect().expect("an orderly goodbye");
}
