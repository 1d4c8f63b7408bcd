//! The limits that rooms share, and what holds between them, proved when the program is built.

use crate::units::{BLOCK_BYTES, CHUNK_BYTES, GIB, KIB, MIB, TIB};

/// Lanes of one volume.
pub const LANES_MAX: u16 = 64;
/// Members of a copyset.
pub const REPLICAS_MAX: usize = 3;
/// Bytes of one write to a replica; client requests are split at this and at chunk borders.
pub const WRITE_BYTES_MAX: usize = 128 * KIB as usize;
/// Blocks of one write to a replica.
pub const WRITE_BLOCKS_MAX: u32 = (WRITE_BYTES_MAX / BLOCK_BYTES) as u32;
/// Bytes of one client request; longer ones are refused at the door. Clients are told of half of it, and some send more.
pub const REQUEST_BYTES_MAX: usize = 64 * MIB as usize;
/// Smallest volume.
pub const VOLUME_BYTES_MIN: u64 = MIB;
/// Largest volume: chunk numbers and map sizes stay small.
pub const VOLUME_BYTES_MAX: u64 = 256 * TIB;
/// Smallest device: log, map and some data fit.
pub const DEVICE_BYTES_MIN: u64 = 256 * MIB;
/// Log ring bounds per device; the default is one percent of the device between them.
pub const LOG_BYTES_MIN: u64 = 64 * MIB;
/// Largest log ring.
pub const LOG_BYTES_MAX: u64 = 4 * GIB;
/// Client writes in flight per volume before the front stops reading its sockets.
pub const INFLIGHT_WRITES_MAX: usize = 1024;
/// Bytes of client requests in flight per volume, beyond one request of each connection, which is always taken.
pub const INFLIGHT_BYTES_MAX: usize = 64 * MIB as usize;
/// Shards of one daemon: data-plane threads, each with its devices and volumes.
pub const SHARDS_MAX: u16 = 64;
/// Length of names (volumes, nodes) in bytes.
pub const NAME_BYTES_MAX: usize = 128;

const _: () = {
    assert!(WRITE_BYTES_MAX.is_multiple_of(BLOCK_BYTES) && WRITE_BYTES_MAX <= CHUNK_BYTES);
    // What is in flight may be several requests, or the budget would be none.
    assert!(REQUEST_BYTES_MAX <= INFLIGHT_BYTES_MAX);
    assert!(REQUEST_BYTES_MAX / WRITE_BYTES_MAX + 2 <= INFLIGHT_WRITES_MAX);
    assert!(LOG_BYTES_MIN < DEVICE_BYTES_MIN);
};

/// Checks a name that people choose: 1 to 128 of letters, digits, `.`, `_`, `-`, starting with a letter or digit.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(format!("a {what} name has 1 to {NAME_BYTES_MAX} characters, this one has {}", name.len()));
    }
    if !name.chars().all(fine) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!(
            "'{name}' is not a {what} name: use letters, digits, '.', '_' and '-', and start with a letter or digit"
        ));
    }
    Ok(())
}
