//! What one device holds of one block, as a checker sees it.

use ashlar_model::Stamp;
use std::collections::BTreeMap;

/// Content of a block: each of its two registers (first sector, rest) holds a value, zero for zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Version.
    pub stamp: Stamp,
    /// Values of the first sector and of the rest.
    pub values: [u64; 2],
}

/// Of a block that was written off: no guest writes these.
pub const LOST: [u64; 2] = [u64::MAX; 2];

/// What a device holds, by block; absent: never written.
pub type Content = BTreeMap<u64, Held>;
