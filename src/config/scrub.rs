//! The background scrub's keys: how fast, and how often.
//!
//! It must never know what a scrub is.

use super::ConfigError;
use ashlar_model::units::{ByteSize, parse_duration};
use serde::Deserialize;
use std::time::Duration;

/// A pass over 4 TiB takes a day and a half.
const DEFAULT_BYTES_PER_S: u64 = 32 << 20;
const DEFAULT_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Longer would be the same as never.
const PAUSE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A size as text or as a number of bytes.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum RawSize {
    Bytes(u64),
    Text(String),
}

/// Bytes per second; 0: no scrub.
pub(super) fn rate(raw: Option<RawSize>) -> Result<u64, ConfigError> {
    match raw {
        None => Ok(DEFAULT_BYTES_PER_S),
        Some(RawSize::Bytes(bytes)) => Ok(bytes),
        Some(RawSize::Text(text)) => text.parse().map(|ByteSize(bytes)| bytes).map_err(|why| {
            let hint = "write it like \"32MiB\", or 0 for no scrub";
            ConfigError::new(format!("'scrub_bytes_per_s' is not a size: '{text}'"), why, hint)
        }),
    }
}

/// Rest between two passes.
pub(super) fn pause(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(DEFAULT_PAUSE) };
    let wrong = |why: String| {
        let what = format!("'scrub_pause' is not usable: '{text}'");
        ConfigError::new(what, why, "write it like \"24h\"; to have no scrub, set scrub_bytes_per_s = 0")
    };
    match parse_duration(text).map_err(wrong)? {
        pause if pause > PAUSE_MAX => Err(wrong("more than a year is the same as never".into())),
        pause => Ok(pause),
    }
}
