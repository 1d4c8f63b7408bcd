//! The chunk store: what one device keeps, and how it survives crashes.
//!
//! The engine is pure: it takes requests and device completions, and returns device operations and replies.
//! Drivers (io_uring in the daemon, a simulated device in tests) carry them out. This room knows no Raft, no peers,
//! no volumes beyond their ids, and no async runtime.

pub mod api;
