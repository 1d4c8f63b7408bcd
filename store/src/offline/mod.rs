//! Looking at a device that no daemon holds: what is on it ([`inspect()`]), and whether all of it is intact
//! ([`check()`]).
//!
//! Works with a shared lock on a device that is opened for reading, so nothing here can change it. It must never
//! repair, nor trust a byte that does not verify.

mod check;
mod driver;
mod inspect;
mod log;
mod map;
mod pages;
mod ranges;
#[cfg(test)]
mod tests;

pub use check::{CheckReport, Progress, Verdict, check};
pub use inspect::{SuperblockCopy, SuperblockState, Survey, TableCopy, inspect};
pub use log::{LogSurvey, Tail};
pub use map::{MetadataMap, OfflineDevice};
pub use pages::{LaneSurvey, Usage, VolumeSurvey};
pub use ranges::{DamagedRange, Ranges};

use crate::engine::OpenError;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a device was not looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The operating system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The device.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// A daemon, or somebody else, holds the device's lock.
    #[error("{}: a daemon uses this device", .0.display())]
    InUse(PathBuf),
    /// A folder, a character device, and so on.
    #[error("{}: neither a block device nor a file", .0.display())]
    NoDevice(PathBuf),
    /// It is not a device of this program, or not as long as it was.
    #[error("{}: {reason}", path.display())]
    Foreign {
        /// The device.
        path: PathBuf,
        /// What it is.
        reason: OpenError,
    },
}

impl OfflineError {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => "name a block device or a file",
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root, or as the user of the daemon"
            }
            Self::Io { .. } => "look at the kernel's messages (dmesg); a device that cannot be read is to be replaced",
            Self::InUse(_) => "stop it, or use `ashlar device show`",
            Self::NoDevice(_) => "name a block device or a file",
            Self::Foreign { reason, .. } => match reason {
                OpenError::Version { .. } => "use the release of Ashlar that formatted it, or a newer one",
                OpenError::SizeMismatch { .. } => {
                    "give the partition or file its length back; what was behind its end is lost otherwise"
                }
                _ => "name the device that was given to `ashlar device add`",
            },
        }
    }
}

/// What a finding is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The device as a whole.
    Device,
    /// A superblock.
    Superblock,
    /// A copy of the volume table.
    Table,
    /// The log.
    Log,
    /// A map page.
    MapPage,
    /// A checksum page.
    ChecksumPage,
    /// Granules, as they are marked.
    Granules,
    /// Blocks of volumes.
    Data,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Superblock => "superblock",
            Self::Table => "table",
            Self::Log => "log",
            Self::MapPage => "map page",
            Self::ChecksumPage => "checksum page",
            Self::Granules => "granules",
            Self::Data => "data",
        })
    }
}

/// Something that is not as on a device that was stopped in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// True: bytes are not what was written. False: usual after a crash, nothing is lost.
    pub damage: bool,
    /// What it is about.
    pub part: Part,
    /// Where on the device, if it is one place.
    pub offset: Option<u64>,
    /// A sentence.
    pub text: String,
}

impl Finding {
    fn damage(part: Part, offset: impl Into<Option<u64>>, text: impl Into<String>) -> Self {
        Self { damage: true, part, offset: offset.into(), text: text.into() }
    }

    fn note(part: Part, offset: impl Into<Option<u64>>, text: impl Into<String>) -> Self {
        Self { damage: false, part, offset: offset.into(), text: text.into() }
    }
}
