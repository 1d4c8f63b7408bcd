//! Doors for guests. Protocol names stop here: inside there are only block ranges and buffers.

pub mod doors;
pub mod nbd;
pub mod policy;
pub mod seats;
pub mod tls;
