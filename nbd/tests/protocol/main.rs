//! The session and the client against the letter of the protocol.

#[path = "../support/mod.rs"]
mod support;

mod bytes;
mod client;
mod driver;
mod extended;
mod goodbye;
mod handshake;
mod properties;
mod refusals;
mod tls;
mod transmission;
