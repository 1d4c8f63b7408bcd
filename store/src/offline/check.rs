//! Whether a device is intact: the shipping recovery, then a scrub of everything, both over a device that is only read.
//!
//! What the recovery would write (a checkpoint, records of torn writes) stays in memory, so the daemon finds the device as
//! it was. It must never judge a byte by rules of its own: the engine judges.

use super::driver::Driver;
use super::inspect::{Survey, survey};
use super::map::OfflineDevice;
use super::ranges::Ranges;
use super::{Finding, OfflineError, Part};
use crate::disk::Superblock;
use crate::engine::{OpenError, OpenOptions, Stats, StoreEngine};
use crate::layout::PAGE_BYTES;
use ashlar_model::units::GRANULE_BYTES;
use std::path::Path;

/// Bytes that the scrub is granted at a time: as it goes on after the last slot, no more than it needs.
const GRANT_BYTES: u64 = GRANULE_BYTES as u64;

/// What a check comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Everything verifies.
    Clean,
    /// Something does not; the daemon can open the device and have it repaired.
    Damaged,
    /// The daemon cannot use the device.
    Unusable,
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes of data that were verified.
    pub verified_bytes: u64,
    /// Bytes of granules in use: at least as many.
    pub used_bytes: u64,
}

/// What a check found.
#[derive(Debug)]
pub struct CheckReport {
    /// The metadata as it lies on the device.
    pub survey: Survey,
    /// What is not as it should be: that of the survey, and what recovery and scrub found.
    pub findings: Vec<Finding>,
    /// Blocks that cannot be read as they were written.
    pub damaged: Ranges,
    /// Why the daemon cannot use the device, if it cannot.
    pub unusable: Option<String>,
    /// Bytes of data that verified.
    pub verified_bytes: u64,
    /// Figures of the engine at the end.
    pub stats: Stats,
    /// Bytes that the engine would have written.
    pub overlay_bytes: u64,
}

impl CheckReport {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        if self.unusable.is_some() {
            Verdict::Unusable
        } else if self.damaged.blocks() > 0 || self.findings.iter().any(|finding| finding.damage) {
            Verdict::Damaged
        } else {
            Verdict::Clean
        }
    }
}

/// Checks all of a device.
///
/// # Errors
/// It cannot be opened, a daemon uses it, it is not one of ours, or it has shrunk.
pub fn check(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport, OfflineError> {
    check_device(&OfflineDevice::open(path)?, progress)
}

pub(super) fn check_device(
    device: &OfflineDevice,
    progress: &mut dyn FnMut(Progress),
) -> Result<CheckReport, OfflineError> {
    let survey = survey(device)?;
    let mut driver = Driver::new(device);
    let Some((in_force, sb)) = survey.in_force.zip(survey.superblock().cloned()) else {
        let reason = OpenError::DamagedSuperblocks.to_string();
        return Ok(report(survey, driver, Stats::default(), Some(reason)));
    };
    let (formatted, found) = (sb.layout.size_bytes, device.size_bytes());
    if found < formatted {
        let reason = OpenError::SizeMismatch { formatted, found };
        return Err(OfflineError::Foreign { path: device.path().to_path_buf(), reason });
    }
    // With the scrub's cursor at the first slot, one pass covers everything.
    let at = survey.superblocks[in_force].offset;
    driver.write(at, &Superblock { scrub_slot: 0, ..sb.clone() }.encode(at));
    let mut engine = StoreEngine::open(options(&sb, found));
    driver.run_until_idle(&mut engine);
    let unusable = match &driver.opened {
        Some(Ok(())) => scrub(&mut engine, &mut driver, progress),
        Some(Err(error)) => Some(error.to_string()),
        None => Some("the recovery came to no end".into()),
    };
    let stats = engine.stats();
    Ok(report(survey, driver, stats, unusable))
}

/// As the daemon opened it last, and without a checkpoint where none is needed.
fn options(sb: &Superblock, size_bytes: u64) -> OpenOptions {
    OpenOptions {
        atomic: sb.atomic,
        pinned_bytes_max: u64::MAX,
        restart_log_bytes: u64::MAX,
        ..OpenOptions::new(size_bytes, sb.flushes)
    }
}

/// Reads everything; gives the reason if the engine gives up on the way.
fn scrub(engine: &mut StoreEngine, driver: &mut Driver<'_>, progress: &mut dyn FnMut(Progress)) -> Option<String> {
    loop {
        engine.scrub(GRANT_BYTES);
        driver.run_until_idle(engine);
        let Stats { scrub_passes, scrubbed_bytes, used_bytes, .. } = engine.stats();
        if scrub_passes > 0 || engine.failed().is_some() {
            return engine.failed().map(str::to_owned);
        }
        // What the last step reads is mostly the first granule once more.
        driver.verified_bytes = scrubbed_bytes;
        progress(Progress { verified_bytes: scrubbed_bytes, used_bytes });
    }
}

fn report(survey: Survey, driver: Driver<'_>, stats: Stats, unusable: Option<String>) -> CheckReport {
    let mut findings = survey.findings.clone();
    if stats.leaked_granules > 0 {
        let count = stats.leaked_granules;
        findings.push(if stats.damaged_chunks > 0 {
            let text = format!("{count} granules have no owner any more: damaged pages had them, an open frees them");
            Finding::note(Part::Granules, None, text)
        } else {
            let text = format!("{count} granules are marked as in use, and nobody owns them: their space is lost");
            Finding::damage(Part::Granules, None, text)
        });
    }
    if stats.dropped_writes > 0 {
        let count = stats.dropped_writes;
        let text = format!("{count} writes were cut off by a crash before they were acknowledged: nothing is lost");
        findings.push(Finding::note(Part::Log, None, text));
    }
    if stats.snapshot_bad_blocks > 0 {
        let text = format!("{} blocks that only snapshots see are damaged", stats.snapshot_bad_blocks);
        findings.push(Finding::damage(Part::Data, None, text));
    }
    let data = survey.superblock().map_or(0, |sb| sb.layout.data.offset);
    let mut pages = driver.unreadable.range(data..).peekable();
    while let Some((start, error)) = pages.next() {
        let mut end = start + PAGE_BYTES;
        while pages.next_if(|(at, _)| **at == end).is_some() {
            end += PAGE_BYTES;
        }
        let text = format!("{} bytes cannot be read: {error}", end - start);
        findings.push(Finding::damage(Part::Data, *start, text));
    }
    let overlay_bytes = driver.overlay_bytes();
    let (damaged, verified_bytes) = (driver.damaged, driver.verified_bytes);
    CheckReport { survey, findings, damaged, unusable, verified_bytes, stats, overlay_bytes }
}
