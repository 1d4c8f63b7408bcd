//! What the kernel says in sysfs about a block device.
//!
//! It must never know which device that is: it reads files below a folder.

use super::{ATOMIC_WRITE_BYTES_MAX, SECTOR_BYTES};
use std::path::Path;

/// The unit of `start` in sysfs, whatever the device's own sectors are.
const SYSFS_SECTOR_BYTES: u64 = 512;

/// What a block device promises about writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockPromises {
    /// It has a volatile write cache, or nobody knows.
    pub volatile_cache: bool,
    /// See [`super::DeviceProperties::atomic_write_bytes`].
    pub atomic_write_bytes: u32,
}

/// Reads `/sys/dev/block/MAJOR:MINOR`, or a folder that looks like it. What is missing or makes no sense is no promise.
pub fn block_promises(base: &Path) -> BlockPromises {
    // Only these words mean that there is no volatile cache.
    let volatile_cache = queue(base, "write_cache").is_none_or(|text| text != "write through");
    let number = |name| queue(base, name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // The kernel keeps the physical block below what the device calls atomic in a power failure.
    let names = ["logical_block_size", "physical_block_size", "atomic_write_unit_max_bytes"];
    let claimed = names.map(number).into_iter().max().unwrap_or(0);
    let unit = claimed.clamp(u64::from(SECTOR_BYTES), u64::from(ATOMIC_WRITE_BYTES_MAX));
    let unit = 1 << unit.ilog2();
    // A partition that begins in the middle of a unit has every unit cut in two.
    let start = read(&base.join("start")).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let aligned = 1 << start.saturating_mul(SYSFS_SECTOR_BYTES).trailing_zeros().min(ATOMIC_WRITE_BYTES_MAX.ilog2());
    BlockPromises { volatile_cache, atomic_write_bytes: std::cmp::min::<u64>(unit, aligned) as u32 }
}

/// A file of the device's queue; a partition has its queue one level up.
fn queue(base: &Path, name: &str) -> Option<String> {
    [base.join("queue"), base.join("../queue")].iter().find_map(|folder| read(&folder.join(name)))
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A folder like sysfs with one disk, `8:0`, and these files in its queue.
    fn disk(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("devices/sda/queue");
        fs::create_dir_all(&queue).unwrap();
        for (name, text) in files {
            fs::write(queue.join(name), text).unwrap();
        }
        let base = folder.path().join("8:0");
        std::os::unix::fs::symlink("devices/sda", &base).unwrap();
        (folder, base)
    }

    fn promises(files: &[(&str, &str)]) -> (bool, u32) {
        let (_folder, base) = disk(files);
        let BlockPromises { volatile_cache, atomic_write_bytes } = block_promises(&base);
        (volatile_cache, atomic_write_bytes)
    }

    #[test]
    fn only_write_through_is_no_volatile_cache() {
        assert!(!promises(&[("write_cache", "write through\n")]).0);
        for text in ["write back\n", "", "write throughout", "\u{0}garbage"] {
            assert!(promises(&[("write_cache", text)]).0, "{text:?}");
        }
        assert!(promises(&[]).0, "nobody knows");
        assert!(block_promises(Path::new("/nonexistent")).volatile_cache);
    }

    #[test]
    fn the_largest_unit_that_makes_sense_counts() {
        let (logical, physical, atomic) = ("logical_block_size", "physical_block_size", "atomic_write_unit_max_bytes");
        for (files, expected) in [
            (&[][..], 512),
            (&[(logical, "512\n"), (physical, "512\n")], 512),
            (&[(logical, "512\n"), (physical, "4096\n"), (atomic, "0\n")], 4096),
            (&[(logical, "4096\n"), (physical, "garbage\n")], 4096),
            (&[(physical, "4096\n"), (atomic, "16384\n")], 16384),
            (&[(physical, "5000\n")], 4096),
            (&[(physical, "1\n")], 512),
            (&[(physical, "-4096\n")], 512),
            (&[(atomic, "1048576\n")], 65536),
            (&[(atomic, "18446744073709551615\n")], 65536),
        ] {
            assert_eq!(promises(files).1, expected, "{files:?}");
        }
    }

    #[test]
    fn a_partition_has_its_disks_queue_and_its_own_alignment() {
        let (folder, _) = disk(&[("write_cache", "write through\n"), ("physical_block_size", "4096\n")]);
        let partition = folder.path().join("devices/sda/sda1");
        fs::create_dir(&partition).unwrap();
        let base = folder.path().join("8:1");
        std::os::unix::fs::symlink("devices/sda/sda1", &base).unwrap();
        for (start, expected) in [("2048\n", 4096), ("63\n", 512), ("34\n", 1024), ("8\n", 4096), ("?\n", 4096)] {
            fs::write(partition.join("start"), start).unwrap();
            let promises = block_promises(&base);
            assert_eq!(promises, BlockPromises { volatile_cache: false, atomic_write_bytes: expected }, "{start:?}");
        }
    }
}
