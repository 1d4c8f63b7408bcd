//! The data plane's language: messages as types, and their fixed layout as bytes. Pure.
//!
//! It knows no sockets and no engines. `docs/formats/wire.md` shows the layout.

mod body;
pub mod decode;
pub mod encode;
pub mod frame;
pub mod hello;
pub mod message;
#[cfg(test)]
mod tests;

pub use decode::{Frame, FrameDecoder, WireError};
pub use encode::{encode_to_replica, encode_to_writer};
pub use hello::{Hello, HelloReply};
