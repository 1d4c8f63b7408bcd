//! The cells: raw and store slices in turn, so that noise of the machine hits both.

use crate::driver::{self, Driver};
use crate::histogram::Histogram;
use crate::load::{self, Places, Slice, Until, Work};
use crate::options::Options;
use crate::raw::{self, Job, RawSlice, Region};
use crate::target::Target;
use crate::volume::{Contents, Random, Volume};
use anyhow::Result;
use ashlar_model::units::{BLOCK_BYTES, MIB};
use ashlar_store::BlockingDevice;
use ashlar_store::api::Request;
use std::time::{Duration, Instant};

/// Names of all cells, in the order of measuring: what reads comes first, while nothing waits for write-back.
pub const NAMES: [&str; 7] = ["sw", "sr", "rr32", "rw1", "rw32", "fresh", "open"];

const MIB_BLOCKS: u32 = (MIB / BLOCK_BYTES as u64) as u32;
/// Pause between slices.
const PAUSE: Duration = Duration::from_millis(200);

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    pub title: &'static str,
    pub writes: bool,
    pub blocks: u32,
    pub depth: usize,
    fio: &'static str,
}

const KINDS: [Kind; 6] = [
    Kind { name: "sw", title: "sequential write 1 MiB QD4", writes: true, blocks: MIB_BLOCKS, depth: 4, fio: "write" },
    Kind { name: "sr", title: "sequential read 1 MiB QD4", writes: false, blocks: MIB_BLOCKS, depth: 4, fio: "read" },
    Kind { name: "rr32", title: "random read 4 KiB QD32", writes: false, blocks: 1, depth: 32, fio: "randread" },
    Kind { name: "rw1", title: "random overwrite 4 KiB QD1", writes: true, blocks: 1, depth: 1, fio: "randwrite" },
    Kind { name: "rw32", title: "random overwrite 4 KiB QD32", writes: true, blocks: 1, depth: 32, fio: "randwrite" },
    Kind {
        name: "fresh",
        title: "random first write 4 KiB QD32",
        writes: true,
        blocks: 1,
        depth: 32,
        fio: "randwrite",
    },
];

/// What a cell came to.
#[derive(Clone, Debug)]
pub struct Cell {
    pub kind: Kind,
    pub raw: Vec<RawSlice>,
    pub store: Vec<Slice>,
}

/// One open after a kill.
#[derive(Clone, Copy, Debug)]
pub struct Reopen {
    pub seconds: f64,
    pub log_used_bytes: u64,
    pub log_bytes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub engine_ns: u64,
    pub dropped_writes: u64,
}

/// Everything about one target.
pub struct Measured {
    pub kind: &'static str,
    pub path: String,
    pub flushes: bool,
    pub log_bytes: u64,
    /// What was subtracted for reading the clock, per batch of engine calls.
    pub clock_cost_ns: u64,
    pub fill: Slice,
    pub cells: Vec<Cell>,
    pub reopens: Vec<Reopen>,
}

struct Bench<'a> {
    options: &'a Options,
    target: &'a Target,
    driver: Driver,
    region: Region,
    volume: Volume,
    contents: Contents,
    random: Random,
    log_used_max: u64,
}

/// Measures all cells on one target.
///
/// # Errors
/// Something failed or took far too long.
pub fn measure(options: &Options, target: &Target) -> Result<Measured> {
    let size = options.size_bytes();
    println!("  writing all of {} once", target.path.display());
    raw::prewrite(&target.path, options.target_bytes())?;
    driver::format(&BlockingDevice::open(&target.path)?, size, options.power_loss_protected, options.atomic)?;
    let (driver, _) = Driver::open(&target.path, size, options.power_loss_protected)?;
    let region =
        Region { path: target.path.clone(), offset: size, bytes: options.volume_bytes(), dsync: driver.flushes() };
    let mut random = Random(0xA5A5);
    let contents = Contents::new(&mut random);
    let volume = Volume::new(0xA5, options.volume_bytes(), options.settle_every);
    let mut bench = Bench { options, target, driver, region, volume, contents, random, log_used_max: 0 };
    let fill = bench.fill()?;
    let mut measured = Measured {
        kind: target.kind,
        path: target.path.display().to_string(),
        flushes: bench.driver.flushes(),
        log_bytes: bench.driver.engine.stats().log_bytes,
        clock_cost_ns: bench.driver.clock_cost_ns,
        fill,
        cells: Vec::new(),
        reopens: Vec::new(),
    };
    for kind in KINDS.iter().filter(|kind| options.wants(kind.name)) {
        println!("  {}", kind.title);
        measured.cells.push(bench.cell(*kind)?);
    }
    if options.wants("open") {
        println!("  open after a kill with a full log");
        measured.reopens = bench.reopens()?;
    }
    Ok(measured)
}

impl<'a> Bench<'a> {
    /// Writes the volume once from its start to its end.
    fn fill(&mut self) -> Result<Slice> {
        println!("  filling the volume");
        let start = self.volume.start();
        load::ask(&mut self.driver, start)?;
        let operations = self.volume.blocks / u64::from(MIB_BLOCKS);
        let mut places = Places::InOrder { next: 0 };
        let work = Work {
            writes: true,
            blocks: MIB_BLOCKS,
            depth: 4,
            places: &mut places,
            until: Until::Operations(operations),
        };
        load::run(&mut self.driver, self.target, &mut self.volume, &self.contents, work)
    }

    fn cell(&mut self, kind: Kind) -> Result<Cell> {
        let job = Job { rw: kind.fio, block_bytes: u64::from(kind.blocks) * BLOCK_BYTES as u64, depth: kind.depth };
        let mut places = match kind.blocks {
            1 => Places::Random(self.random.clone()),
            _ => Places::InOrder { next: 0 },
        };
        self.random.next();
        if !kind.writes {
            self.driver.checkpoint()?;
        }
        let mut cell = Cell { kind, raw: Vec::new(), store: Vec::new() };
        let warm_up = self.warm_up();
        if kind.name != "fresh" {
            self.slice(kind, &mut places, warm_up)?;
        }
        for round in 0..self.options.rounds() {
            std::thread::sleep(PAUSE);
            cell.raw.push(raw::measure(&self.region, job, self.options.slice(), warm_up)?);
            std::thread::sleep(PAUSE);
            let slice = match kind.name {
                "fresh" => self.fresh_slice(kind, u128::from(round))?,
                _ => self.slice(kind, &mut places, self.options.slice())?,
            };
            self.log_used_max = self.log_used_max.max(slice.counters.log_used_max);
            cell.store.push(slice);
        }
        Ok(cell)
    }

    fn warm_up(&self) -> Duration {
        (self.options.slice() / 4).min(Duration::from_secs(1))
    }

    fn slice(&mut self, kind: Kind, places: &mut Places, time: Duration) -> Result<Slice> {
        let Kind { writes, blocks, depth, .. } = kind;
        let work = Work { writes, blocks, depth, places, until: Until::Time(time) };
        load::run(&mut self.driver, self.target, &mut self.volume, &self.contents, work)
    }

    /// First writes to a volume of their own, which is deleted afterwards.
    fn fresh_slice(&mut self, kind: Kind, round: u128) -> Result<Slice> {
        let mut volume = Volume::new(0xF000 + round, self.options.fresh_bytes(), self.options.settle_every);
        let start = volume.start();
        load::ask(&mut self.driver, start)?;
        let mut left: Vec<u64> = (0..volume.blocks).collect();
        for at in (1..left.len()).rev() {
            left.swap(at, self.random.below(at as u64 + 1) as usize);
        }
        let mut places = Places::Once(left);
        let Kind { writes, blocks, depth, .. } = kind;
        let work = Work { writes, blocks, depth, places: &mut places, until: Until::Time(self.options.slice()) };
        let slice = load::run(&mut self.driver, self.target, &mut volume, &self.contents, work)?;
        load::ask(&mut self.driver, Request::Forget { volume: volume.key.volume })?;
        self.driver.checkpoint()?;
        Ok(slice)
    }

    /// Fills the log, drops the engine in the middle of everything, and opens the device again.
    fn reopens(mut self) -> Result<Vec<Reopen>> {
        let mut places = Places::Random(self.random.clone());
        let kind = KINDS[4];
        if self.log_used_max == 0 {
            let slice = self.slice(kind, &mut places, self.options.slice())?;
            self.log_used_max = slice.counters.log_used_max;
        }
        let mut reopens = Vec::new();
        for _ in 0..self.options.rounds() {
            let until = Until::LogUsed(self.log_used_max * 97 / 100);
            let work = Work { writes: true, blocks: 1, depth: kind.depth, places: &mut places, until };
            load::run(&mut self.driver, self.target, &mut self.volume, &self.contents, work)?;
            let before = self.driver.engine.stats();
            let Self { options, target, driver, region, mut volume, contents, random, log_used_max } = self;
            drop(driver); // waits for the kernel to let go of the buffers, not for the engine
            let (mut driver, took) = Driver::open(&target.path, options.size_bytes(), options.power_loss_protected)?;
            let stats = driver.engine.stats();
            reopens.push(Reopen {
                seconds: took.as_secs_f64(),
                log_used_bytes: before.log_used_bytes,
                log_bytes: before.log_bytes,
                read_bytes: driver.counters.read_bytes,
                written_bytes: stats.written_bytes,
                engine_ns: driver.counters.engine_ns,
                dropped_writes: stats.dropped_writes,
            });
            driver.drain()?;
            let start = volume.start();
            load::ask(&mut driver, start)?;
            self = Self { options, target, driver, region, volume, contents, random, log_used_max };
            self.verify()?;
        }
        Ok(reopens)
    }

    /// Reads here and there: all of it is still data.
    fn verify(&mut self) -> Result<()> {
        let begin = Instant::now();
        let mut places = Places::Random(self.random.clone());
        let until = Until::Operations(4096);
        let work = Work { writes: false, blocks: 1, depth: 32, places: &mut places, until };
        load::run(&mut self.driver, self.target, &mut self.volume, &self.contents, work)?;
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(120), "reading back took {:?}", begin.elapsed());
        Ok(())
    }
}

impl Cell {
    /// Operations per second: store and raw, over all rounds.
    pub fn rates(&self) -> (f64, f64) {
        let seconds: f64 = self.store.iter().map(|slice| slice.seconds).sum();
        (self.sum(|slice| slice.operations) / seconds, mean(self.raw.iter().map(|slice| slice.iops)))
    }

    /// Store against raw, per pair of slices, in order: median, least and greatest.
    pub fn ratios(&self, of: impl Fn(&Slice, &RawSlice) -> f64) -> (f64, f64, f64) {
        let mut all: Vec<f64> = self.store.iter().zip(&self.raw).map(|(store, raw)| of(store, raw)).collect();
        all.sort_by(f64::total_cmp);
        (median(&all), all[0], all[all.len() - 1])
    }

    /// A figure over all store slices.
    pub fn sum(&self, of: impl Fn(&Slice) -> u64) -> f64 {
        self.store.iter().map(of).sum::<u64>() as f64
    }

    /// A figure over all store slices, per operation.
    pub fn per_operation(&self, of: impl Fn(&Slice) -> u64) -> f64 {
        self.sum(of) / self.sum(|slice| slice.operations).max(1.0)
    }

    /// Latencies of all store slices.
    pub fn latencies(&self) -> Histogram {
        let mut all = Histogram::default();
        self.store.iter().for_each(|slice| all.merge(&slice.latencies));
        all
    }

    /// Bytes to the device per byte accepted: as the engine counts, and as the kernel does.
    pub fn amplification(&self) -> Option<(f64, Option<f64>)> {
        let accepted = self.sum(|slice| slice.accepted_bytes);
        let device: Option<u64> = self.store.iter().map(|slice| slice.device_bytes).sum();
        let per_byte = |bytes: f64| bytes / accepted;
        (accepted > 0.0).then(|| (per_byte(self.sum(|s| s.written_bytes)), device.map(|bytes| per_byte(bytes as f64))))
    }
}

/// The mean, zero of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let all: Vec<f64> = values.collect();
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

/// The median of sorted values, at least one.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[half - 1] + sorted[half]) / 2.0 } else { sorted[half] }
}
