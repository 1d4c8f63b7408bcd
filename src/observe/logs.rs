//! Log lines to stderr, for people or as JSON.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Form of the log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `filter` is a level (`info`) or directives (`info,ashlar=debug`).
///
/// # Errors
/// The filter does not parse, or logging was started before.
pub fn start(format: LogFormat, filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(directives(filter)).with_context(|| format!("read the log filter '{filter}'"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Human => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}

/// Raft's library tells every step at `info`: with a plain level only its errors are told, and
/// not that a node cannot be reached, which it says five times a second.
fn directives(filter: &str) -> String {
    match filter.trim().to_ascii_lowercase().as_str() {
        "info" | "debug" => format!("{filter},openraft=error,openraft::replication=off"),
        _ => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_level_quiets_the_raft_library() {
        assert_eq!(directives("info"), "info,openraft=error,openraft::replication=off");
        assert_eq!(directives("info,openraft=debug"), "info,openraft=debug");
        assert_eq!(directives("trace"), "trace");
        assert!(EnvFilter::try_new(directives("debug")).is_ok());
    }
}
