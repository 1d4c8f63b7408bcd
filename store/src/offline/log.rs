//! The log as it lies on a device: the groups that chain from the head, and how the chain ends.
//!
//! The same rules as the recovery's scan: a group follows by number and by the checksum of the one before, and never wraps:
//! one that does not fit before the end of the ring lies at its start. It must never apply anything.

use super::map::MetadataMap;
use super::{Finding, Part};
use crate::disk::{GroupHeaderDisk, Superblock};
use crate::engine::IoError;
use crate::group;
use crate::layout::PAGE_BYTES;
use crate::record::{Content, Record};
use std::collections::BTreeMap;

/// How the chain ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tail {
    /// Nothing follows.
    Whole,
    /// A group follows whose write was cut off: usual after a crash, it was not acknowledged.
    Torn,
    /// The next group is not what was written, though it had completed: up to this one they had.
    Lost {
        /// Groups known to have completed.
        completed: u64,
    },
    /// The medium fails.
    Unreadable(String),
}

/// The log in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSurvey {
    /// Device offset of the first group.
    pub head: u64,
    /// Its number.
    pub head_lsn: u64,
    /// Groups found.
    pub groups: u64,
    /// Number of the last one; `head_lsn - 1` if there is none.
    pub last_lsn: u64,
    /// Bytes from the head to the end of the last group.
    pub used_bytes: u64,
    /// Device offset where the next group would be.
    pub end: u64,
    /// Groups up to this one are known to have completed.
    pub completed: u64,
    /// Records by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Blocks of data in the groups.
    pub payload_blocks: u64,
    /// How it ends.
    pub tail: Tail,
}

/// A walk along the ring.
struct Walk<'a> {
    map: &'a MetadataMap<'a>,
    sb: &'a Superblock,
    position: u64,
    lsn: u64,
    previous: u64,
    generation: u64,
    found: LogSurvey,
}

/// What is at a place.
enum At {
    /// The next group, and its end.
    Next(GroupHeaderDisk, Vec<(Record, usize)>, u64),
    /// Its header, but not its content.
    Torn,
    Nothing,
}

/// Walks along the log of the superblock in force.
pub(super) fn survey(map: &MetadataMap<'_>, sb: &Superblock, findings: &mut Vec<Finding>) -> LogSurvey {
    let found = LogSurvey {
        head: sb.layout.log.offset + sb.head_offset,
        head_lsn: sb.head_lsn,
        groups: 0,
        last_lsn: sb.head_lsn.saturating_sub(1),
        used_bytes: 0,
        end: 0,
        completed: sb.completed_lsn,
        records: BTreeMap::new(),
        payload_blocks: 0,
        tail: Tail::Whole,
    };
    let (position, lsn, previous) = (sb.head_offset, sb.head_lsn, sb.head_previous);
    let mut walk = Walk { map, sb, position, lsn, previous, generation: 0, found };
    let tail = walk.run().unwrap_or_else(|IoError(text)| Tail::Unreadable(text));
    let end = sb.layout.log.offset + walk.position % sb.layout.log.bytes;
    let survey = LogSurvey { end, used_bytes: walk.position - sb.head_offset, tail, ..walk.found };
    findings.extend(finding(&survey));
    survey
}

fn finding(log: &LogSurvey) -> Option<Finding> {
    let next = log.last_lsn + 1;
    match &log.tail {
        Tail::Whole => None,
        Tail::Torn => {
            let text = format!("group {next} was cut off by a crash before it was acknowledged: nothing is lost");
            Some(Finding::note(Part::Log, log.end, text))
        }
        Tail::Lost { completed } => {
            let text = format!("group {next} does not verify, though groups up to {completed} had completed");
            Some(Finding::damage(Part::Log, log.end, text))
        }
        Tail::Unreadable(text) => Some(Finding::damage(Part::Log, log.end, format!("group {next}: {text}"))),
    }
}

impl Walk<'_> {
    fn run(&mut self) -> Result<Tail, IoError> {
        let ring = self.sb.layout.log.bytes;
        loop {
            let place = self.position % ring;
            let here = self.at(place)?;
            let fits = place + self.sb.layout.group_bytes_max() <= ring;
            let at = if place == 0 || fits { here } else { newer(here, self.at(0)?) };
            let At::Next(header, records, end) = at else { return self.tail(matches!(at, At::Torn)) };
            self.take(&header, &records);
            self.position += if end > place { end - place } else { ring - place + end };
        }
    }

    fn take(&mut self, header: &GroupHeaderDisk, records: &[(Record, usize)]) {
        for (record, _) in records {
            *self.found.records.entry(kind(record)).or_default() += 1;
        }
        self.found.groups += 1;
        self.found.last_lsn = self.lsn;
        self.found.payload_blocks += u64::from(header.payload_blocks.get());
        self.found.completed = self.found.completed.max(header.completed.get());
        self.lsn += 1;
        (self.previous, self.generation) = (header.checksum.get(), header.generation.get());
    }

    /// The group at a place of the ring if it is the next one.
    fn at(&self, place: u64) -> Result<At, IoError> {
        let log = self.sb.layout.log;
        let page = self.map.page(log.offset + place)?;
        let Some((header, area)) = group::header_at(&self.sb.layout, place, page) else { return Ok(At::Nothing) };
        if !group::is_next(&header, self.lsn, self.previous, self.generation) {
            return Ok(At::Nothing);
        }
        let bytes = self.map.bytes(log.offset + place, area as usize)?;
        let read = group::records(self.sb.device, &self.sb.layout, &header, bytes);
        let Some(records) = read else { return Ok(At::Torn) };
        let payload = u64::from(header.payload_blocks.get()) * PAGE_BYTES;
        Ok(At::Next(header, records, place + area + payload))
    }

    /// The chain has ended: was the next group lost, or never complete? A later one may say that it had completed.
    fn tail(&self, torn: bool) -> Result<Tail, IoError> {
        let log = self.sb.layout.log;
        if self.lsn <= self.found.completed {
            return Ok(Tail::Lost { completed: self.found.completed });
        }
        let limit = log.bytes.min(4 * self.sb.layout.group_bytes_max());
        for done in (0..limit).step_by(PAGE_BYTES as usize) {
            let place = (self.position + done) % log.bytes;
            let page = self.map.page(log.offset + place)?;
            let Some((header, area)) = group::header_at(&self.sb.layout, place, page) else { continue };
            if header.lsn.get() > self.lsn && header.completed.get() >= self.lsn {
                let bytes = self.map.bytes(log.offset + place, area as usize)?;
                if group::verifies(self.sb.device, &header, bytes) {
                    return Ok(Tail::Lost { completed: header.completed.get() });
                }
            }
        }
        Ok(if torn { Tail::Torn } else { Tail::Whole })
    }
}

/// What counts, of where the last group ended and the start of the ring: of two groups that of the later open.
fn newer(here: At, at_start: At) -> At {
    match (&here, &at_start) {
        (At::Next(header, ..), At::Next(other, ..)) if header.generation.get() < other.generation.get() => at_start,
        (At::Next(..), _) | (_, At::Nothing) => here,
        (_, At::Next(..)) | (At::Nothing, At::Torn) => at_start,
        (At::Torn, At::Torn) => here,
    }
}

/// The name of a record's kind.
fn kind(record: &Record) -> &'static str {
    match record {
        Record::Write(write) => match write.content {
            Content::Data { .. } => "write",
            Content::Tombstone => "tombstone",
            Content::Lost => "lost",
            Content::Held => "held",
        },
        Record::Promise(..) => "promise",
        Record::Start(..) => "start",
        Record::Settle(..) => "settle",
        Record::JoinStart(..) => "join_start",
        Record::Forget(..) => "forget",
        Record::Release(..) => "release",
        Record::Absorb { .. } => "absorb",
        Record::Relabel { .. } => "relabel",
        Record::DropLayer { .. } => "drop_layer",
        Record::Dropped { .. } => "dropped",
    }
}
