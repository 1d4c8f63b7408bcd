//! Directories, configuration files and preallocated device files of a development cluster.

use super::super::client::CliError;
use super::plan::DevPlan;
use super::say;
use ashlar_model::units::{ByteSize, MIB};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Kept free beside the device files: logs and metadata.
const SPARE_BYTES: u64 = 256 * MIB;

/// Creates what is missing. What is there stays as it is.
///
/// # Errors
/// The directory cannot be written.
pub fn prepare(plan: &DevPlan) -> Result<(), CliError> {
    for node in &plan.nodes {
        let failed = |what: &str, error: std::io::Error| {
            CliError::failed(
                format!("cannot create {what} of {}", node.name),
                error,
                "check the directory and its free space",
            )
        };
        std::fs::create_dir_all(&node.dir).map_err(|error| failed("the directory", error))?;
        std::fs::write(node.config_path(), node.config_text()).map_err(|error| failed("the configuration", error))?;
        for device in node.devices.iter().filter(|device| !device.exists()) {
            say(&format!("{} gets a device of {}", node.name, ByteSize(plan.device_bytes)));
            preallocate(device, plan.device_bytes).map_err(|error| failed("the device file", error))?;
        }
    }
    Ok(())
}

/// A file whose space is its own: writes to it never find the disk full. It appears under its name when it is whole.
fn preallocate(path: &Path, bytes: u64) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = File::create(&temporary)?;
    let length = libc::off_t::try_from(bytes).map_err(|_| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
    // SAFETY: the descriptor is open for writing, and fallocate touches no memory of ours.
    let failed = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0;
    if failed {
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            drop(std::fs::remove_file(&temporary));
            return Err(error);
        }
        file.set_len(bytes)?;
    }
    file.sync_all()?;
    std::fs::rename(temporary, path)
}

/// Refuses early what would run out of space later.
///
/// # Errors
/// Not enough space, or the directory cannot be created.
pub fn check_space(dir: &Path, plan: &DevPlan) -> Result<(), CliError> {
    let unusable = |error: std::io::Error| {
        CliError::failed(format!("cannot use {}", dir.display()), error, "name another directory with --dir")
    };
    std::fs::create_dir_all(dir).map_err(unusable)?;
    let free = free_bytes(dir).map_err(unusable)?;
    let needed = plan.disk_bytes().saturating_add(SPARE_BYTES);
    if free < needed {
        return Err(CliError::conflict(
            format!("not enough space in {}", dir.display()),
            format!("the device files need {}, {} are free", ByteSize(needed), ByteSize(free)),
            "use --device-size with less, --dir on a larger disk, or fewer --nodes",
        ));
    }
    Ok(())
}

fn free_bytes(dir: &Path) -> std::io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain numbers, for which zero is a value.
    let mut status: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero byte and `status` is a whole statvfs that the call may fill.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut status) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(status.f_bavail * status.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::super::plan::{DevPlan, DevRequest, tests::request};
    use super::*;
    use ashlar_model::units::TIB;

    #[test]
    fn too_little_space_is_said_with_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let plan = DevPlan::new(&DevRequest { device_bytes: 1 << 20 << 40, ..request() }).unwrap();
        let error = check_space(dir.path(), &plan).unwrap_err();
        assert_eq!(error.exit, 4);
        assert!(
            error.why.contains(&ByteSize(TIB << 10).to_string()[1..4]) || error.why.contains("PiB"),
            "{}",
            error.why
        );
    }

    #[test]
    fn a_device_file_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device0.img");
        preallocate(&path, 1 << 20).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        assert!(!path.with_extension("tmp").exists());
    }
}
