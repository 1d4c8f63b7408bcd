//! What people and programs see of a running daemon: log lines and metrics.
//!
//! Invariant: nothing here decides anything, and nothing here knows where the numbers come from.

pub mod logs;
pub mod process;
pub mod prometheus;
