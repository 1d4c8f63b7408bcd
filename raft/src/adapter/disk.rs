//! The disk under the log, for tests: it can be full, and it can be slow.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What a disk does wrong at the moment. Shared with whoever decides that.
#[derive(Debug, Default)]
pub struct DiskFaults {
    /// Nothing more can be written.
    pub full: AtomicBool,
    /// Each sync takes this much longer, in milliseconds.
    pub sync_delay_ms: AtomicU64,
}

/// A file on such a disk.
#[derive(Debug)]
pub struct FaultyFile {
    file: File,
    faults: Arc<DiskFaults>,
}

impl FaultyFile {
    /// Opens or creates it.
    pub fn open(path: &Path, faults: Arc<DiskFaults>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, faults })
    }

    fn check_space(&self) -> io::Result<()> {
        match self.faults.full.load(Ordering::Acquire) {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => Ok(()),
        }
    }
}

impl redb::StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_space()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let delay_ms = self.faults.sync_delay_ms.load(Ordering::Acquire);
        if delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(delay_ms));
        }
        self.check_space()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_space()?;
        self.file.write_all_at(data, offset)
    }
}
