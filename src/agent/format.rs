//! Prepares a device: checks that it is one, that nothing on it gets lost, and formats it.

use ashlar_model::limits::DEVICE_BYTES_MIN;
use ashlar_model::units::ByteSize;
use ashlar_model::{ClusterId, DeviceId};
use ashlar_store::device::BlockingDevice;
use ashlar_store::engine::FormatOptions;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Bytes at the start and the end of a device that must be zero before it is formatted.
const BLANK_BYTES: u64 = 1024 * 1024;

/// What shall be prepared.
#[derive(Clone, Debug)]
pub struct FormatRequest {
    /// File or block device.
    pub path: PathBuf,
    /// The cluster that will own it.
    pub cluster: ClusterId,
    /// Its write cache survives a power cut.
    pub power_loss_protected: bool,
    /// It never tears an aligned 4 KiB write.
    pub atomic_writes: bool,
    /// Destroy what is on it.
    pub force: bool,
}

/// Why a device was not prepared.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// It cannot be a device of the store.
    #[error("{0}")]
    Unfit(String),
    /// Something is on it.
    #[error("{0}")]
    NotBlank(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// Checks and formats. Blocking. A device that was formatted for this cluster before stays as it is.
///
/// # Errors
/// Why not; nothing was written then, except after `Failed`.
pub fn prepare(request: &FormatRequest) -> Result<(), FormatError> {
    let path = &request.path;
    let bytes = device_bytes(path)?;
    if bytes < DEVICE_BYTES_MIN {
        let (is, least) = (ByteSize(bytes), ByteSize(DEVICE_BYTES_MIN));
        return Err(FormatError::Unfit(format!("{} has {is}; a device has at least {least}", path.display())));
    }
    let device = BlockingDevice::open(path).map_err(|error| FormatError::Failed(error.to_string()))?;
    if !request.force {
        match device.superblock() {
            // Formatted for this cluster: it keeps its identity and its data.
            Ok(superblock) if superblock.cluster == request.cluster => return Ok(()),
            Ok(superblock) => {
                let (path, cluster) = (path.display(), superblock.cluster);
                return Err(FormatError::NotBlank(format!("{path} is a device of cluster {cluster}")));
            }
            Err(_) => check_blank(path, bytes)?,
        }
    }
    format_store(&device, request)
}

fn device_bytes(path: &Path) -> Result<u64, FormatError> {
    let unfit = |error: std::io::Error| FormatError::Unfit(format!("{}: {error}", path.display()));
    let kind = std::fs::metadata(path).map_err(unfit)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(FormatError::Unfit(format!("{} is neither a file nor a block device", path.display())));
    }
    let mut file = File::options().read(true).write(true).open(path).map_err(unfit)?;
    file.seek(SeekFrom::End(0)).map_err(unfit)
}

/// File systems, partition tables and our own superblocks leave traces at the start or the end.
fn check_blank(path: &Path, bytes: u64) -> Result<(), FormatError> {
    let failed = |error: std::io::Error| FormatError::Failed(format!("read {}: {error}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    for start in [0, bytes - BLANK_BYTES] {
        let mut content = vec![0; BLANK_BYTES as usize];
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        file.read_exact(&mut content).map_err(failed)?;
        if let Some(offset) = content.iter().position(|byte| *byte != 0) {
            let at = start + offset as u64;
            return Err(FormatError::NotBlank(format!("{} is not blank: there is data at byte {at}", path.display())));
        }
    }
    Ok(())
}

fn format_store(device: &BlockingDevice, request: &FormatRequest) -> Result<(), FormatError> {
    let options = FormatOptions {
        cluster: request.cluster,
        device: DeviceId(uuid::Uuid::new_v4()),
        size_bytes: device.size_bytes(),
        power_loss_protected: request.power_loss_protected,
        atomic_declared: request.atomic_writes,
        log_bytes: None,
        table_bytes: None,
    };
    device.format(&options).map_err(|error| FormatError::Failed(format!("format {}: {error}", request.path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &Path) -> FormatRequest {
        FormatRequest {
            path: path.into(),
            cluster: ClusterId::default(),
            power_loss_protected: false,
            atomic_writes: false,
            force: false,
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(prepare(&request(dir.path())), Err(FormatError::Unfit(_))));
        assert!(matches!(prepare(&request(&dir.path().join("none"))), Err(FormatError::Unfit(_))));
        let small = dir.path().join("small");
        File::create(&small).unwrap().set_len(1 << 20).unwrap();
        assert!(matches!(prepare(&request(&small)), Err(FormatError::Unfit(_))));
    }

    #[test]
    fn data_at_either_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for at in [0, DEVICE_BYTES_MIN - 1] {
            let path = dir.path().join(at.to_string());
            let mut file = File::create(&path).unwrap();
            file.set_len(DEVICE_BYTES_MIN).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            std::io::Write::write_all(&mut file, b"x").unwrap();
            assert!(matches!(prepare(&request(&path)), Err(FormatError::NotBlank(_))), "{at}");
        }
    }

    #[test]
    fn what_is_declared_stays_with_the_device() {
        let dir = tempfile::tempdir().unwrap();
        for (power_loss_protected, atomic_writes) in [(false, false), (true, false), (false, true)] {
            let path = dir.path().join(format!("{power_loss_protected}-{atomic_writes}"));
            File::create(&path).unwrap().set_len(DEVICE_BYTES_MIN).unwrap();
            prepare(&FormatRequest { power_loss_protected, atomic_writes, ..request(&path) }).unwrap();
            let superblock = BlockingDevice::open(&path).unwrap().superblock().unwrap();
            assert_eq!(superblock.power_loss_protected, power_loss_protected);
            assert_eq!(superblock.atomic_declared, atomic_writes);
        }
    }

    #[test]
    fn a_device_of_this_cluster_is_kept_and_of_another_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device");
        File::create(&path).unwrap().set_len(DEVICE_BYTES_MIN).unwrap();
        prepare(&request(&path)).unwrap();
        let identity = || BlockingDevice::open(&path).unwrap().superblock().unwrap().device;
        let first = identity();
        prepare(&request(&path)).unwrap();
        assert_eq!(identity(), first);
        let other = FormatRequest { cluster: ClusterId::from_u128(9), ..request(&path) };
        assert!(matches!(prepare(&other), Err(FormatError::NotBlank(_))));
        prepare(&FormatRequest { force: true, ..other }).unwrap();
        assert_ne!(identity(), first);
    }
}
