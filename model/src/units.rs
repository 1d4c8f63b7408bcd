//! Sizes of the layout, and sizes and times as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bytes of a block: the unit of checksum, versioning and atomicity.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a granule: the unit of allocation on a device.
pub const GRANULE_BYTES: usize = 64 * 1024;
/// Bytes of a chunk: the unit of striping over lanes and of the on-device map.
pub const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Blocks in a granule.
pub const GRANULE_BLOCKS: usize = GRANULE_BYTES / BLOCK_BYTES;
/// Granules in a chunk.
pub const CHUNK_GRANULES: usize = CHUNK_BYTES / GRANULE_BYTES;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;

const _: () = {
    assert!(GRANULE_BLOCKS == 16 && CHUNK_GRANULES == 64 && CHUNK_BLOCKS == 1024);
};

/// One KiB, MiB, GiB, TiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;
/// 2^40 bytes.
pub const TIB: u64 = 1 << 40;

const BINARY: [(&str, u64); 5] = [("PiB", 1 << 50), ("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)];
const DECIMAL: [(&str, u64); 5] =
    [("P", 1_000_000_000_000_000), ("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("K", 1_000)];

/// A number of bytes as people write it: `10GiB`, `1TiB` (powers of two), `500M`, `500MB` (powers of ten), `4096`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size: write it like 10GiB, 512MiB, 500M or 4096");
        let text_trimmed = text.trim();
        let digits_end = text_trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(text_trimmed.len());
        let (digits, unit) = text_trimmed.split_at(digits_end);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let factor = match unit {
            "" | "B" => 1,
            _ => BINARY
                .iter()
                .find(|(name, _)| *name == unit)
                .or_else(|| DECIMAL.iter().find(|(name, _)| *name == unit.trim_end_matches('B')))
                .map(|(_, factor)| *factor)
                .ok_or_else(wrong)?,
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(|| format!("'{text}' is more than 2^64 bytes"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in BINARY {
            if self.0 >= factor {
                let tenths = (u128::from(self.0) * 10 / u128::from(factor)) as u64;
                return if tenths.is_multiple_of(10) {
                    write!(f, "{} {name}", tenths / 10)
                } else {
                    write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Parses a time as people write it: `10s`, `5m`, `200ms`, `2h`.
///
/// # Errors
/// A sentence that names the text and shows the right form.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time: write it like 200ms, 10s, 5m or 2h");
    let text_trimmed = text.trim();
    let digits_end = text_trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (digits, unit) = text_trimmed.split_at(digits_end);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor_ms).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [
            ("4096", 4096),
            ("10GiB", 10 * GIB),
            ("1TiB", TIB),
            ("500M", 500_000_000),
            ("500MB", 500_000_000),
            (" 3 KiB ", 3 * KIB),
            ("7B", 7),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "10gib", "-1", "1XiB", "99999999999999999999", "20000000PiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_for_people() {
        assert_eq!(ByteSize(0).to_string(), "0 B");
        assert_eq!(ByteSize(4 * GIB).to_string(), "4 GiB");
        assert_eq!(ByteSize(1536 * MIB).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(u64::MAX).to_string(), "16383.9 PiB");
    }

    #[test]
    fn times_read_as_written() {
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "10", "s", "10 parsecs", "1.5s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
