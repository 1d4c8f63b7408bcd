//! The data plane of this node: a shard is one thread with one io_uring that owns devices, sequences volumes and serves
//! guests. A daemon has one or several. On the way of a request nothing is shared and nothing is locked: every event is
//! handled to its end before the next.
//!
//! A device belongs to one shard and a volume is sequenced by one shard ([`homes`] says which). Links go from shard to
//! shard, within a node as between nodes. Everybody comes in at shard 0; a connection that is meant for another shard
//! moves there, with what was received on it and what is to be sent ([`parcel`]).
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
pub mod homes;
pub mod parcel;
mod peers;
pub mod scrub;
pub mod set;
mod siblings;
#[cfg(test)]
mod tests;
mod thread;
mod volumes;

pub use devices::identify;
pub use set::ShardSet;
pub use thread::{ShardBusy, ShardHandle, start};
