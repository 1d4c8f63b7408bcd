//! The chunk store: what one device keeps, and how it survives crashes.
//!
//! The engine is pure: it takes requests and device completions, and returns device operations and replies.
//! Drivers (io_uring in the daemon, a simulated device in tests) carry them out. This room knows no Raft, no peers,
//! no volumes beyond their ids, and no async runtime.

pub mod alloc;
pub mod api;
pub mod device;
pub mod disk;
pub mod engine;
pub mod group;
pub mod layout;
pub mod map;
pub mod offline;
pub mod record;
pub mod table;
mod window;

pub use device::{BlockingDevice, BlockingDriver};
pub use engine::{Effect, FormatOptions, IoError, IoId, OpenError, OpenOptions, Stats, StoreEngine, format};

#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod tests;
