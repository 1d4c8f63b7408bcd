//! The data plane's language: messages as types, their fixed layout as bytes, and the credits that they hold. Pure.
//!
//! It knows no sockets and no engines. `docs/formats/wire.md` shows the layout.

mod body;
pub mod credit;
pub mod decode;
pub mod encode;
pub mod frame;
pub mod hello;
mod ledger;
pub mod message;
#[cfg(test)]
mod tests;

pub use credit::{Class, Credit, Window, Windows};
pub use decode::{Frame, FrameDecoder, WireError};
pub use encode::{encode_to_replica, encode_to_writer};
pub use hello::{Hello, HelloReply};
pub use ledger::{Ledger, Overdraft, Permit};
