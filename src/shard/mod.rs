//! The data plane of this node: shard threads that own devices, sequence volumes and serve guests.
//!
//! The control plane reaches a shard only through [`control`]; it never touches engines, sockets or devices itself.

pub mod control;
