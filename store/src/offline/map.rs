//! A device opened for reading, and its metadata as mapped memory.
//!
//! Data is read with direct I/O: an unreadable sector is an error there, and what comes is what the medium holds, not what
//! the page cache remembers. Metadata is mapped. A page of a mapping that cannot be read kills the process (SIGBUS), so
//! [`MetadataMap::bytes`] makes the kernel read the pages first, which fails with an error instead. What stays: a device
//! that shrinks or breaks between that and the look at the bytes. It must never open anything for writing.

use super::OfflineError;
use crate::engine::IoError;
use crate::layout::PAGE_BYTES;
use ashlar_model::AlignedBuffer;
use memmap2::{Advice, Mmap, MmapOptions};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file or block device, open for reading, with a shared lock: a daemon cannot take it meanwhile.
#[derive(Debug)]
pub struct OfflineDevice {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    block_device: bool,
}

impl OfflineDevice {
    /// Opens and locks it.
    ///
    /// # Errors
    /// It is no device, cannot be opened, or somebody uses it.
    pub fn open(path: &Path) -> Result<Self, OfflineError> {
        let failed = |error| OfflineError::Io { path: path.to_path_buf(), error };
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            return Err(OfflineError::NoDevice(path.to_path_buf()));
        }
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = match open(libc::O_DIRECT | libc::O_CLOEXEC) {
            // This file system has no direct I/O.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(libc::O_CLOEXEC),
            other => other,
        };
        let mut file = file.map_err(failed)?;
        // SAFETY: the descriptor is open for the duration of the call.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EWOULDBLOCK) => OfflineError::InUse(path.to_path_buf()),
                _ => failed(error),
            });
        }
        // The end is the length of a file and of a block device alike.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, path: path.to_path_buf(), size_bytes, block_device })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length now.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// A block device; otherwise a file.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Reads whole pages.
    ///
    /// # Errors
    /// They are beyond the end, or the medium fails.
    pub fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBuffer, IoError> {
        self.check(offset, bytes)?;
        let mut buffer = AlignedBuffer::zeroed(bytes);
        match self.file.read_exact_at(&mut buffer, offset) {
            Ok(()) => Ok(buffer),
            Err(error) => Err(self.failed(offset, bytes, error)),
        }
    }

    /// Maps the first `bytes` of the device, or all of it if it is shorter.
    ///
    /// # Errors
    /// The operating system's.
    pub fn map(&self, bytes: u64) -> Result<MetadataMap<'_>, OfflineError> {
        let failed = |error| OfflineError::Io { path: self.path.clone(), error };
        let bytes = bytes.min(self.size_bytes);
        let bytes = usize::try_from(bytes).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: nothing here writes to the mapping, and the lock keeps daemons from changing what is below it. Should
        // another program do so nevertheless, the bytes are only ever decoded, which any bytes may be.
        let map = unsafe { MmapOptions::new().len(bytes).map(&self.file) }.map_err(failed)?;
        Ok(MetadataMap { device: self, map })
    }

    fn check(&self, offset: u64, bytes: usize) -> Result<(), IoError> {
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(self.failed(offset, bytes, format!("beyond the end ({} bytes)", self.size_bytes))),
        }
    }

    fn failed(&self, offset: u64, bytes: usize, why: impl std::fmt::Display) -> IoError {
        IoError(format!("{}: read of {bytes} bytes at {offset}: {why}", self.path.display()))
    }
}

/// The first part of a device, with all its metadata, as memory.
#[derive(Debug)]
pub struct MetadataMap<'a> {
    device: &'a OfflineDevice,
    map: Mmap,
}

impl MetadataMap<'_> {
    /// Bytes of whole pages.
    ///
    /// # Errors
    /// They are beyond the end of the mapping, or the medium fails.
    pub fn bytes(&self, offset: u64, bytes: usize) -> Result<&[u8], IoError> {
        self.device.check(offset, bytes)?;
        let start =
            usize::try_from(offset).map_err(|_| self.device.failed(offset, bytes, "beyond the address space"))?;
        let Some(slice) = self.map.get(start..start + bytes) else {
            return Err(self.device.failed(offset, bytes, "beyond the metadata"));
        };
        match self.map.advise_range(Advice::PopulateRead, start, bytes) {
            Ok(()) => Ok(slice),
            // A kernel before 5.14 does not know how: a plain read finds what cannot be read.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.device.read(offset, bytes).map(|_| slice),
            // What would have been the signal.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Err(self.device.failed(offset, bytes, io::Error::from_raw_os_error(libc::EIO)))
            }
            Err(error) => Err(self.device.failed(offset, bytes, error)),
        }
    }

    /// One page.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub fn page(&self, offset: u64) -> Result<&[u8], IoError> {
        self.bytes(offset, PAGE_BYTES as usize)
    }
}
