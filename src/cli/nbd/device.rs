//! A file or block device as an NBD export.

use crate::cli::client::CliError;
use ashlar_nbd::export::{BlockSizes, ExportInfo, Extent, Features};
use ashlar_nbd::server::Backend;
use ashlar_nbd::wire::ErrorNumber;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Zeroes written at a time where the file system has none of its own.
const ZERO_STEP_BYTES: u64 = 1 << 20;
/// Extents in one answer: about what a reply of 1 MiB holds.
const EXTENTS_MAX: usize = 1 << 16;

/// The file, and what clients are told of it.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    info: ExportInfo,
}

impl FileDevice {
    /// Opens and locks it: two servers of one file would not know of each other's writes in flight.
    ///
    /// # Errors
    /// It cannot be opened, is in use, or is empty.
    pub fn open(path: &Path, name: &str, read_only: bool) -> Result<Self, CliError> {
        let failed = |error: io::Error| {
            CliError::failed(
                format!("cannot serve {}", path.display()),
                error,
                "name a file or block device that you may open",
            )
        };
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CliError::conflict(
                    format!("cannot serve {}", path.display()),
                    "another process has locked it",
                    "end that one, or serve it read-only from both",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // The end of a block device is its size as well.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size_bytes == 0 {
            return Err(CliError::usage(
                format!("cannot serve {}", path.display()),
                "it is empty",
                "make it larger, as with: truncate -s 1G FILE",
            ));
        }
        // Several connections share one page cache, and a flush is of the file.
        let features = Features { read_only, ..Features::ALL };
        // Any byte will do, and what all clients assume is the most.
        let block_sizes = BlockSizes { min_bytes: 1, ..BlockSizes::default() };
        let info = ExportInfo { name: name.to_owned(), description: None, size_bytes, block_sizes, features };
        Ok(Self { file, info })
    }

    /// The file may have been made longer, or shorter: each connection is told the size at its beginning.
    fn size_bytes(&self) -> u64 {
        self.next(libc::SEEK_END, 0).ok().flatten().unwrap_or(self.info.size_bytes)
    }

    fn sync_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.file.sync_data() } else { Ok(()) }
    }

    /// `fallocate` of a range; false if the file system has nothing of the kind.
    fn allocate(&self, mode: libc::c_int, offset_bytes: u64, length_bytes: u64) -> io::Result<bool> {
        let (offset, length) = (offset_bytes as libc::off_t, length_bytes as libc::off_t); // inside the file
        // SAFETY: the descriptor is open as long as `self`, and the call touches no memory of this process.
        match unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) } {
            0 => Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
                error => Err(error),
            },
        }
    }

    fn write_zeroes(&self, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
        let zeroes = vec![0; length_bytes.min(ZERO_STEP_BYTES) as usize];
        let end = offset_bytes + length_bytes;
        let mut next = offset_bytes;
        while next < end {
            let step = zeroes.len().min((end - next) as usize);
            self.file.write_all_at(&zeroes[..step], next)?;
            next += step as u64;
        }
        Ok(())
    }

    /// Where the next data, or the next hole, begins at or after a place; `None`: there is no more.
    fn next(&self, whence: libc::c_int, place: u64) -> io::Result<Option<u64>> {
        // SAFETY: the descriptor is open as long as `self`; nothing here reads or writes at the position that this moves.
        match unsafe { libc::lseek(self.file.as_raw_fd(), place as libc::off_t, whence) } {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
            found => Ok(Some(found as u64)),
        }
    }
}

/// Where the extent that begins at `start` ends, and whether it is a hole. `next`: [`FileDevice::next`].
fn extent(start: u64, end: u64, next: impl Fn(libc::c_int, u64) -> io::Result<Option<u64>>) -> (u64, bool) {
    let look = || -> io::Result<(u64, bool)> {
        let data = next(libc::SEEK_DATA, start)?.unwrap_or(end).min(end);
        if data > start {
            return Ok((data, true));
        }
        Ok((next(libc::SEEK_HOLE, start)?.unwrap_or(end).min(end), false))
    };
    // A device that does not know its holes is data, and so is what became a hole between the two looks.
    look().ok().filter(|(to, _)| *to > start).unwrap_or((end, false))
}

fn number(error: &io::Error) -> ErrorNumber {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => ErrorNumber::NotPermitted,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorNumber::NoSpace,
        Some(libc::ENOMEM) => ErrorNumber::NoMemory,
        _ => ErrorNumber::Io,
    }
}

impl Backend for FileDevice {
    fn info(&self) -> ExportInfo {
        ExportInfo { size_bytes: self.size_bytes(), ..self.info.clone() }
    }

    fn read(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), ErrorNumber> {
        self.file.read_exact_at(buffer, offset_bytes).map_err(|error| number(&error))
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), ErrorNumber> {
        let written = self.file.write_all_at(data, offset_bytes).and_then(|()| self.sync_if(fua));
        written.map_err(|error| number(&error))
    }

    fn flush(&self) -> Result<(), ErrorNumber> {
        self.file.sync_data().map_err(|error| number(&error))
    }

    fn trim(&self, offset_bytes: u64, length_bytes: u64, fua: bool) -> Result<(), ErrorNumber> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let trimmed = self.allocate(mode, offset_bytes, length_bytes).and_then(|_| self.sync_if(fua));
        trimmed.map_err(|error| number(&error)) // it is advice: a file system that cannot is no error
    }

    fn zero(&self, offset_bytes: u64, length_bytes: u64, no_hole: bool, fua: bool) -> Result<(), ErrorNumber> {
        let way = if no_hole { libc::FALLOC_FL_ZERO_RANGE } else { libc::FALLOC_FL_PUNCH_HOLE };
        let zeroed =
            self.allocate(way | libc::FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes).and_then(|done| match done {
                true => Ok(()),
                false => self.write_zeroes(offset_bytes, length_bytes),
            });
        zeroed.and_then(|()| self.sync_if(fua)).map_err(|error| number(&error))
    }

    fn extents(&self, offset_bytes: u64, length_bytes: u64, out: &mut Vec<Extent>) -> Result<(), ErrorNumber> {
        let end = offset_bytes + length_bytes;
        let mut at = offset_bytes;
        while at < end && out.len() < EXTENTS_MAX {
            let (to, hole) = extent(at, end, |whence, place| self.next(whence, place));
            out.push(Extent { length_bytes: to - at, hole, zero: hole });
            at = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    fn device(bytes: u64) -> (tempfile::NamedTempFile, FileDevice) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(bytes).expect("its size");
        let device = FileDevice::open(file.path(), "x", false).expect("a device");
        (file, device)
    }

    fn extents(device: &FileDevice, offset: u64, length: u64) -> Vec<(u64, bool)> {
        let mut found = Vec::new();
        device.extents(offset, length, &mut found).expect("extents");
        found.iter().map(|extent| (extent.length_bytes, extent.hole)).collect()
    }

    #[test]
    fn what_is_written_is_there_and_what_is_zeroed_or_trimmed_is_not() {
        let (file, device) = device(1024 * KIB + 1);
        assert_eq!(device.info().size_bytes, 1024 * KIB + 1);
        device.write(1024 * KIB, &[9], false).expect("a write of the last byte");
        device.write(64 * KIB, &[7; 64 << 10], true).expect("a write");
        let mut buffer = vec![1; 128 << 10];
        device.read(64 * KIB, &mut buffer).expect("a read");
        assert!(buffer[..64 << 10].iter().all(|byte| *byte == 7) && buffer[64 << 10..].iter().all(|byte| *byte == 0));
        for (no_hole, fua) in [(true, false), (false, true)] {
            device.write(64 * KIB, &[7; 64 << 10], false).expect("a write");
            device.zero(72 * KIB, 8 * KIB, no_hole, fua).expect("zeroes");
            device.read(64 * KIB, &mut buffer).expect("a read");
            assert_eq!((buffer[8191], buffer[8192], buffer[16_383], buffer[16_384]), (7, 0, 0, 7));
        }
        device.trim(64 * KIB, 64 * KIB, true).expect("a trim");
        device.write_zeroes(0, 3 * ZERO_STEP_BYTES / 4).expect("zeroes by hand");
        device.flush().expect("a flush");
        file.as_file().set_len(2048 * KIB).expect("another size");
        assert_eq!(device.info().size_bytes, 2048 * KIB);
        device.read(64 * KIB, &mut buffer).expect("a read");
        assert!(buffer.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn extents_cover_the_range_and_tell_holes() {
        let (_file, device) = device(1024 * KIB);
        assert_eq!(extents(&device, 0, 1024 * KIB), [(1024 * KIB, true)]);
        device.write(64 * KIB, &[7; 64 << 10], false).expect("a write");
        assert_eq!(extents(&device, 0, 1024 * KIB), [(64 * KIB, true), (64 * KIB, false), (896 * KIB, true)]);
        assert_eq!(extents(&device, 96 * KIB, 64 * KIB), [(32 * KIB, false), (32 * KIB, true)]);
    }

    /// Another connection may zero, or write, between two looks at the file.
    #[test]
    fn an_extent_is_never_empty() {
        let raced = |data: Option<u64>, hole: Option<u64>| {
            extent(4096, 8192, |whence, _| Ok(if whence == libc::SEEK_DATA { data } else { hole }))
        };
        assert_eq!(raced(Some(4096), Some(4096)), (8192, false), "data became a hole");
        assert_eq!(raced(Some(4096), None), (8192, false));
        assert_eq!(raced(None, None), (8192, true), "the file ends before it");
        assert_eq!(raced(Some(6144), None), (6144, true));
        assert_eq!(raced(Some(4096), Some(1 << 20)), (8192, false));
        assert_eq!(extent(4096, 8192, |_, _| Err(io::ErrorKind::Unsupported.into())), (8192, false));
    }

    #[test]
    fn a_file_that_is_served_or_cannot_be_is_refused() {
        let (file, first) = device(1024 * KIB);
        let refused = FileDevice::open(file.path(), "x", false).expect_err("it is served");
        assert!(refused.why.contains("locked"), "{refused}");
        drop(first);
        let read_only = FileDevice::open(file.path(), "x", true).expect("read-only");
        assert!(FileDevice::open(file.path(), "x", true).is_ok(), "two that only read");
        assert!(read_only.info().features.read_only);
        file.as_file().set_len(0).expect("its size");
        drop(read_only);
        assert!(FileDevice::open(file.path(), "x", false).expect_err("empty").why.contains("empty"));
        assert!(FileDevice::open(Path::new("/nonexistent/x"), "x", false).is_err());
    }
}
