//! The metadata service: what the cluster must agree on, replicated by Raft.
//!
//! ```text
//! command, refusal, settings   what may be asked, and what may be answered
//! state                        the deterministic state machine: command in, response out
//! placement                    pure: state + request -> decision + explanation
//! members                      who should vote in the Raft group (pure)
//! sessions, outs               the leader's bookkeeping of which node is alive, and which is given up (pure)
//! codec                        bytes <-> records: header, checksum, size limit
//! adapter                      the only place with openraft and redb names; offline: its files without a service
//! service                      the public face: start, propose, read, watch, change members
//! ```
//!
//! Invariant: this room knows no data path, no chunk store, no NBD and no HTTP. Bytes to other nodes leave through
//! [`transport::Transport`]; identities and times arrive in commands.

mod adapter;
pub mod codec;
pub mod command;
pub mod members;
pub mod outs;
pub mod placement;
pub mod refusal;
pub mod service;
pub mod sessions;
pub mod settings;
pub mod state;
pub mod transport;

pub use adapter::offline;
pub use command::{Command, Response};
pub use refusal::{Refusal, RefusalKind};
pub use service::{MetaError, MetaHandle, MetaOptions, MetaService, StartError};
pub use state::State;
pub use transport::{BoxFuture, RpcKind, Transport, TransportError};
