//! A blocking driver: carries the engine's operations out on a file or block device, one after the other.
//!
//! For formatting, inspection and tests; the daemon's reactor drives the same effects with io_uring. It must never know
//! what the bytes mean.

use super::sysfs::{BlockPromises, block_promises};
use super::{Device, DeviceOp, DeviceProperties, IoResult, SECTOR_BYTES};
use crate::engine::{Effect, FormatOptions, IoError, IoId, StoreEngine, format, layout_of, read_superblocks};
use crate::layout::{Area, PAGE_BYTES, SUPERBLOCK_A, SUPERBLOCK_B};
use crate::{OpenError, disk::Superblock};
use ashlar_model::{AlignedBuffer, Payload};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An open file or block device, locked against other processes.
#[derive(Debug)]
pub struct BlockingDevice {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    promises: BlockPromises,
    block_device: bool,
}

impl BlockingDevice {
    /// Opens a device or file with direct I/O (buffered where the file system refuses it) and locks it.
    ///
    /// # Errors
    /// The operating system's, with the path; or another process holds the device.
    pub fn open(path: &Path) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = match open(libc::O_DIRECT | libc::O_CLOEXEC) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(libc::O_CLOEXEC),
            other => other,
        };
        let file = file.map_err(named)?;
        lock(&file, path)?;
        let metadata = file.metadata().map_err(named)?;
        let block_device = metadata.file_type().is_block_device();
        let size_bytes = if block_device { block_device_bytes(&file).map_err(named)? } else { metadata.len() };
        let promises = if block_device {
            let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
            block_promises(Path::new(&format!("/sys/dev/block/{major}:{minor}")))
        } else {
            // Files have volatile pages of their file system below them, whatever the disk does.
            BlockPromises { volatile_cache: true, atomic_write_bytes: SECTOR_BYTES }
        };
        Ok(Self { file, path: path.to_path_buf(), size_bytes, promises, block_device })
    }

    /// Creates a file of `size_bytes` with its space allocated, and opens it.
    ///
    /// # Errors
    /// The operating system's, with the path; `AlreadyExists` if there is such a file.
    pub fn create(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(named)?;
        let length = libc::off_t::try_from(size_bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the descriptor is open for the duration of the call.
        let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) };
        if error != 0 {
            return Err(named(io::Error::from_raw_os_error(error)));
        }
        file.sync_all().map_err(named)?;
        drop(file);
        Self::open(path)
    }

    /// What it is and promises, as found when it was opened.
    pub fn properties(&self) -> DeviceProperties {
        let BlockPromises { volatile_cache, atomic_write_bytes } = self.promises;
        let size_bytes = self.size_bytes / PAGE_BYTES * PAGE_BYTES;
        DeviceProperties { size_bytes, volatile_cache, atomic_write_bytes, block_device: self.block_device }
    }

    /// Bytes of the device, whole pages or not.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Completed writes may be lost in a power cut unless flushed.
    pub fn volatile_cache(&self) -> bool {
        self.promises.volatile_cache
    }

    /// The open file, for a driver that takes over.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Formats the device: everything on it is gone.
    ///
    /// # Errors
    /// What does not fit, or the operating system's error.
    pub fn format(&self, options: &FormatOptions) -> io::Result<()> {
        let unfit = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
        let writes = format(options).map_err(unfit)?;
        if !self.block_device {
            self.write_through(layout_of(options).map_err(unfit)?.log)?;
        }
        for (offset, bytes) in writes {
            self.write(offset, &[bytes.freeze()])?;
        }
        self.flush()
    }

    /// Writes zeroes to an area of a file. Space that was only allocated becomes written space: a flush of the first
    /// write to it would have to commit the file system's journal, too, which costs more than the write.
    fn write_through(&self, area: Area) -> io::Result<()> {
        let zeroes = AlignedBuffer::zeroed(1 << 20).freeze();
        let mut at = area.offset;
        while at < area.end() {
            let bytes = (area.end() - at).min(zeroes.len() as u64);
            self.write(at, &[zeroes.slice(0, bytes as usize)])?;
            at += bytes;
        }
        Ok(())
    }

    /// Reads the superblock in force, without opening the store.
    ///
    /// # Errors
    /// Why there is none.
    pub fn superblock(&self) -> Result<Superblock, OpenError> {
        let a = self.read(SUPERBLOCK_A, PAGE_BYTES as usize).ok();
        let b = self.read(SUPERBLOCK_B, PAGE_BYTES as usize).ok();
        read_superblocks(a.as_deref(), b.as_deref())
    }

    /// Reads `bytes` from `offset`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read(&self, offset: u64, bytes: usize) -> io::Result<AlignedBuffer> {
        let mut buffer = AlignedBuffer::zeroed(bytes);
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Writes the parts one after the other from `offset`.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, offset: u64, parts: &[Payload]) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            self.file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The operating system's.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Tells the device that the bytes are of no use any more; until they are written again they read as anything.
    /// `false`: it cannot be told, nothing has happened.
    ///
    /// In a file the bytes become zeroes and their space stays the file's: a hole would give away space that was
    /// allocated beforehand, and a later write could find the file system full. The price is that the file system
    /// marks the space as unwritten again, so the next write there costs it a change of metadata.
    ///
    /// # Errors
    /// The operating system's.
    pub fn discard(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        let fd = self.file.as_raw_fd();
        let result = if self.block_device {
            let range = [offset, bytes];
            // SAFETY: the request reads two u64 from the pointer, which is valid for them.
            unsafe { libc::ioctl(fd, BLKDISCARD as _, range.as_ptr()) }
        } else {
            let length = |number| libc::off_t::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
            let (offset, bytes) = (length(offset)?, length(bytes)?);
            // SAFETY: the descriptor is open for the duration of the call.
            unsafe { libc::fallocate(fd, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, bytes) }
        };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(false) } else { Err(error) }
    }

    /// Carries one operation out.
    fn perform(&self, op: &DeviceOp) -> (IoId, IoResult) {
        let done = op.check(self.properties().size_bytes).and_then(|()| {
            let result = match op {
                DeviceOp::Read { offset, bytes, .. } => self.read(*offset, *bytes).map(Some),
                DeviceOp::Write { offset, parts, durable, .. } => {
                    let written = self.write(*offset, parts);
                    written.and_then(|()| if *durable { self.flush() } else { Ok(()) }).map(|()| None)
                }
                DeviceOp::Flush { .. } => self.flush().map(|()| None),
                DeviceOp::Discard { offset, bytes, .. } => self.discard(*offset, *bytes).map(|_| None),
            };
            result.map_err(|error| IoError(error.to_string()))
        });
        (op.io(), done.map_err(|IoError(text)| IoError(format!("{}: {text}", self.path.display()))))
    }
}

/// A [`Device`] that carries each operation out when it is submitted.
#[derive(Debug)]
pub struct BlockingQueue {
    device: BlockingDevice,
    done: Vec<(IoId, IoResult)>,
}

impl BlockingQueue {
    /// A queue on a device.
    pub fn new(device: BlockingDevice) -> Self {
        Self { device, done: Vec::new() }
    }

    /// The device.
    pub fn device(&self) -> &BlockingDevice {
        &self.device
    }
}

impl Device for BlockingQueue {
    fn properties(&self) -> DeviceProperties {
        self.device.properties()
    }

    fn submit(&mut self, op: DeviceOp) {
        self.done.push(self.device.perform(&op));
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn complete(&mut self, out: &mut Vec<(IoId, IoResult)>) {
        out.append(&mut self.done);
    }
}

/// Drives an engine until it is idle.
#[derive(Debug)]
pub struct BlockingDriver<'a> {
    device: &'a BlockingDevice,
}

impl<'a> BlockingDriver<'a> {
    /// A driver on a device.
    pub fn new(device: &'a BlockingDevice) -> Self {
        Self { device }
    }

    /// Carries out everything the engine wants, and gives what is for the caller: replies, `Opened`, `OpenFailed`.
    pub fn run_until_idle(&mut self, engine: &mut StoreEngine) -> Vec<Effect> {
        let (mut rest, mut effects) = (Vec::new(), Vec::new());
        loop {
            engine.effects(&mut effects);
            if effects.is_empty() {
                return rest;
            }
            for effect in effects.drain(..) {
                match DeviceOp::from_effect(effect) {
                    Ok(op) => {
                        let (io, result) = self.device.perform(&op);
                        engine.io_done(io, result);
                    }
                    Err(effect) => rest.push(effect),
                }
            }
        }
    }
}

fn lock(file: &File, path: &Path) -> io::Result<()> {
    // SAFETY: the descriptor is open for the duration of the call.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let text = match error.raw_os_error() {
        Some(libc::EWOULDBLOCK) => format!("{}: another process uses this device", path.display()),
        _ => format!("{}: lock: {error}", path.display()),
    };
    Err(io::Error::new(error.kind(), text))
}

/// `BLKGETSIZE64`: size of a block device in bytes (linux/fs.h: `_IOR(0x12, 114, size_t)`).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `BLKDISCARD`: discard offset and length in bytes (linux/fs.h: `_IO(0x12, 119)`).
const BLKDISCARD: libc::c_ulong = 0x1277;

fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the request writes one u64 to the pointer, which is valid for it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut bytes) };
    if result == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}
