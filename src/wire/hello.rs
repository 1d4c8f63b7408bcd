//! The first frames of a link: who calls whom, and why not.

use super::body::{Reader, Writer};
use super::credit::Windows;
use super::frame::{Header, kind};
use ashlar_model::{ClusterId, NodeId};
use zerocopy::IntoBytes;

/// What a caller says first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The caller's cluster.
    pub cluster: ClusterId,
    /// The caller.
    pub from: NodeId,
    /// Whom it means to reach.
    pub to: NodeId,
    /// Which of its shards.
    pub shard: u16,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HelloReply {
    /// Go on, with these credits.
    Welcome(Windows),
    /// Not us, with the reason in words.
    Refused(String),
}

impl Hello {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Hello { cluster, from, to, shard } = *self;
        let mut body = Writer::default();
        body.u128(cluster.as_u128());
        body.u64(from.0);
        body.u64(to.0);
        body.u16(shard);
        let header = Header { kind: kind::HELLO, ..Header::default() }.seal(&body.0, 0);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&body.0);
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let hello = Hello {
            cluster: ClusterId::from_u128(reader.u128()?),
            from: NodeId(reader.u64()?),
            to: NodeId(reader.u64()?),
            shard: reader.u16()?,
        };
        reader.is_empty().then_some(hello)
    }

    /// Why a caller is refused by node `node` of `cluster`, which has this many shards.
    ///
    /// # Errors
    /// The reason, for the caller and for the log.
    pub fn check(&self, cluster: ClusterId, node: NodeId, shards: u16) -> Result<(), String> {
        if self.cluster != cluster {
            return Err(format!("this node belongs to cluster {cluster}, the caller to {}", self.cluster));
        }
        if self.to != node {
            return Err(format!("this is node {node}, the caller wants node {}: its address list is old", self.to));
        }
        if self.shard >= shards {
            let wanted = self.shard;
            return Err(format!(
                "this node has {shards} shards, the caller wants number {wanted}: its device list is old"
            ));
        }
        Ok(())
    }
}

impl HelloReply {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Writer::default();
        let kind = match self {
            HelloReply::Welcome(windows) => {
                windows.encode(&mut body);
                kind::WELCOME
            }
            HelloReply::Refused(reason) => {
                body.text(reason);
                kind::REFUSED
            }
        };
        let header = Header { kind, ..Header::default() }.seal(&body.0, 0);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&body.0);
    }

    pub(super) fn decode(frame_kind: u8, body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let reply = match frame_kind {
            kind::WELCOME => HelloReply::Welcome(Windows::decode(&mut reader)?),
            _ => HelloReply::Refused(reader.text()?),
        };
        reader.is_empty().then_some(reply)
    }
}
