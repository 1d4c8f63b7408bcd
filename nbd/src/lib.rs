//! The NBD protocol (fixed newstyle, structured replies, block status), both sides.
//!
//! The heart is [`session::Session`]: the server side of one connection as a pure state machine.
//! Bytes go in, outcomes come out; it reaches no socket, clock, thread or random source, so the
//! reactor, a blocking test server and the simulator all drive the same code. Around it stand two
//! thin shells: [`client`], a blocking client for tests and checkers, and [`server`], a blocking
//! server that answers one request at a time.
//!
//! This room must never know volumes, replicas or the errors of the rest of the system: an export
//! is a name, a size and a set of promises ([`export::ExportInfo`]), and failures are the fixed
//! NBD error numbers ([`wire::ErrorNumber`]).
//!
//! Source of all numbers and rules: the public-domain text `doc/proto.md` of the
//! NetworkBlockDevice project.

pub mod client;
pub mod export;
pub mod hangup;
pub mod limits;
pub mod reply;
pub mod server;
pub mod session;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod uri;
pub mod wire;
