//! The data plane of this node: a shard is one thread with one io_uring that owns devices, sequences volumes and serves
//! guests. Nothing is shared and nothing is locked: every event is handled to its end before the next.
//!
//! The control plane reaches a shard only through [`control`]; it never touches engines, sockets or devices itself.
//! The shard composes the engines and carries out their effects; it decides nothing that they decide.

mod attached;
mod clock;
mod connections;
pub mod control;
mod core;
mod devices;
mod guests;
mod peers;
pub mod scrub;
mod thread;
mod volumes;

pub use thread::{ShardBusy, ShardHandle, start};
