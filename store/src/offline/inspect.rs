//! What is on a device, as far as it can be read: each part says what is wrong with it, and the rest goes on.
//!
//! Superblocks are read, all other metadata is looked at through a mapping; data is not touched. It must never stop at
//! the first fault.

use super::log::{self, LogSurvey};
use super::map::{MetadataMap, OfflineDevice};
use super::pages::{self, Usage};
use super::{Finding, OfflineError, Part};
use crate::alloc::Allocator;
use crate::disk::{FORMAT_VERSION, Superblock, SuperblockFault};
use crate::engine::{IoError, OpenError, read_superblocks};
use crate::layout::{PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B, TABLE_COPIES};
use crate::table::{TableContent, VolumeTable};
use ashlar_model::AlignedBuffer;
use ashlar_model::checksum::metadata_checksum;
use std::path::{Path, PathBuf};

/// What a superblock's place holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SuperblockState {
    /// A superblock.
    Valid(Box<Superblock>),
    /// Something else.
    Fault(SuperblockFault),
    /// The medium fails.
    Unreadable(String),
}

/// One of the two superblocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SuperblockCopy {
    /// `A` or `B`.
    pub name: char,
    /// Where it is.
    pub offset: u64,
    /// What it is.
    pub state: SuperblockState,
}

impl SuperblockCopy {
    /// Why it is of no use, if it is not.
    pub fn fault(&self) -> Option<String> {
        match &self.state {
            SuperblockState::Valid(_) => None,
            SuperblockState::Fault(SuperblockFault::Foreign) => Some("there is no superblock".into()),
            SuperblockState::Fault(SuperblockFault::Version(found)) => {
                Some(format!("has format version {found}; this program knows version {FORMAT_VERSION}"))
            }
            SuperblockState::Fault(SuperblockFault::Damaged) => Some("does not verify".into()),
            SuperblockState::Unreadable(text) => Some(text.clone()),
        }
    }
}

/// One copy of the volume table in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableCopy {
    /// Where it is.
    pub offset: u64,
    /// Why it is of no use, if it is not.
    pub fault: Option<String>,
}

/// What is on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survey {
    /// Where the device is.
    pub path: PathBuf,
    /// Its length now.
    pub size_bytes: u64,
    /// A block device; otherwise a file.
    pub block_device: bool,
    /// Both superblocks.
    pub superblocks: [SuperblockCopy; 2],
    /// The one that counts.
    pub in_force: Option<usize>,
    /// Copies of the volume table that counts.
    pub tables: Vec<TableCopy>,
    /// What the table and its pages say.
    pub usage: Option<Usage>,
    /// The log.
    pub log: Option<LogSurvey>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// The superblock that counts.
    pub fn superblock(&self) -> Option<&Superblock> {
        match &self.superblocks[self.in_force?].state {
            SuperblockState::Valid(sb) => Some(sb),
            _ => None,
        }
    }

    /// True if nothing that was looked at is damaged.
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| !finding.damage)
    }
}

/// Looks at a device without touching its data.
///
/// # Errors
/// It cannot be opened, a daemon uses it, or it is not one of ours.
pub fn inspect(path: &Path) -> Result<Survey, OfflineError> {
    survey(&OfflineDevice::open(path)?)
}

pub(super) fn survey(device: &OfflineDevice) -> Result<Survey, OfflineError> {
    let pages = [SUPERBLOCK_A, SUPERBLOCK_B].map(|offset| device.read(offset, PAGE_BYTES as usize));
    let foreign = |reason| OfflineError::Foreign { path: device.path().to_path_buf(), reason };
    if device.size_bytes() < SUPERBLOCK_B + PAGE_BYTES {
        return Err(foreign(OpenError::NotAshlar));
    }
    let chosen = match read_superblocks(pages[0].as_deref().ok(), pages[1].as_deref().ok()) {
        Ok(sb) => Some(sb),
        Err(reason @ (OpenError::NotAshlar | OpenError::Version { .. })) => return Err(foreign(reason)),
        Err(_) => None,
    };
    let [a, b] = pages;
    let superblocks = [superblock('A', SUPERBLOCK_A, a), superblock('B', SUPERBLOCK_B, b)];
    let is_chosen = |copy: &SuperblockCopy| match (&copy.state, &chosen) {
        (SuperblockState::Valid(sb), Some(chosen)) => **sb == *chosen,
        _ => false,
    };
    let in_force = superblocks.iter().position(is_chosen);
    let mut survey = Survey {
        path: device.path().to_path_buf(),
        size_bytes: device.size_bytes(),
        block_device: device.is_block_device(),
        findings: superblocks.iter().filter_map(superblock_finding).collect(),
        superblocks,
        in_force,
        tables: vec![],
        usage: None,
        log: None,
    };
    if let Some(sb) = chosen {
        look(device, &sb, &mut survey)?;
    }
    Ok(survey)
}

fn superblock(name: char, offset: u64, page: Result<AlignedBuffer, IoError>) -> SuperblockCopy {
    let state = match page.map(|page| Superblock::decode(offset, &page)) {
        Ok(Ok(sb)) => SuperblockState::Valid(Box::new(sb)),
        Ok(Err(fault)) => SuperblockState::Fault(fault),
        Err(IoError(text)) => SuperblockState::Unreadable(text),
    };
    SuperblockCopy { name, offset, state }
}

fn superblock_finding(copy: &SuperblockCopy) -> Option<Finding> {
    let text = format!("superblock {}: {}", copy.name, copy.fault()?);
    Some(Finding::damage(Part::Superblock, copy.offset, text))
}

/// Everything that the superblock leads to.
fn look(device: &OfflineDevice, sb: &Superblock, survey: &mut Survey) -> Result<(), OfflineError> {
    let (formatted, found) = (sb.layout.size_bytes, device.size_bytes());
    if found < formatted {
        let text = format!("{} bytes are missing: {}", formatted - found, OpenError::SizeMismatch { formatted, found });
        survey.findings.push(Finding::damage(Part::Device, found, text));
    }
    let map = device.map(sb.layout.slots.end())?;
    survey.log = Some(log::survey(&map, sb, &mut survey.findings));
    let mut content = None;
    for copy in 0..TABLE_COPIES {
        let offset = sb.layout.table_offset(sb.table_half, copy);
        let fault = match table(&map, sb, offset) {
            Ok(one) => {
                content.get_or_insert(one);
                None
            }
            Err(text) => Some(text),
        };
        if let Some(text) = &fault {
            let text = format!("copy {} of the volume table: {text}", copy + 1);
            survey.findings.push(Finding::damage(Part::Table, offset, text));
        }
        survey.tables.push(TableCopy { offset, fault });
    }
    survey.usage = content.map(|content| pages::survey(&map, sb, &content, &mut survey.findings));
    Ok(())
}

/// Reads a copy of the table. Its checksum is that of the first copy's place, whichever copy it is.
fn table(map: &MetadataMap<'_>, sb: &Superblock, offset: u64) -> Result<TableContent, String> {
    let bytes = sb.table_bytes.max(1).next_multiple_of(PAGE_BYTES) as usize;
    let bytes = &map.bytes(offset, bytes).map_err(|error| error.to_string())?[..sb.table_bytes as usize];
    let first = sb.layout.table_offset(sb.table_half, 0);
    if metadata_checksum(sb.device.as_u128(), first, bytes) != sb.table_checksum {
        return Err("does not verify".into());
    }
    let content = VolumeTable::decode(bytes).ok_or("does not decode")?;
    if content.directory.iter().any(|entry| entry.slot >= sb.layout.slot_count) {
        return Err("names a slot that does not exist".into());
    }
    if Allocator::from_words(sb.layout.granule_count, content.granules.clone()).is_none() {
        return Err("its granules are not this device's".into());
    }
    Ok(content)
}
