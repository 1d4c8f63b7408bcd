//! The replica side of a lane: what a device promises, accepts and answers (section 5 of the replication protocol).
//!
//! Invariant: nothing here reads a clock, opens a socket or touches a device. Requests to the store and messages to
//! writers leave as [`Effect`]s. It does not know volumes' names, the metadata service or who serves guests.

mod apply;
mod confirm;
mod damage;
mod engine;
mod join;
mod lane;
mod release;
#[cfg(test)]
mod tests;
mod written;

pub use engine::{Effect, Event, LinkId, ReplicaEngine};
