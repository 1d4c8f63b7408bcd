//! A link between two shards' data planes: hello, then frames, under flow control by credits. Pure: bytes in, events and
//! bytes out.
//!
//! The caller's writers send requests, the callee's replicas answer. A request takes credits that the callee granted in
//! its answer to the hello, and without them it waits here, in order within its class; the callee returns them when the
//! request is done. Nothing outlives a link: the next one begins with a new grant, and engines send again what is not
//! done. This room knows nothing of sockets, and of what the frames mean only what they cost.

mod allowance;
#[cfg(test)]
mod tests;

pub use allowance::WAITING_MAX;

use crate::reactor::Outbox;
use crate::wire::message::{Envelope, ToReplica, ToWriter};
use crate::wire::{Frame, FrameDecoder, Hello, HelloReply, Ledger, Permit, Windows, encode_to_replica};
use allowance::Allowance;
use ashlar_model::{ClusterId, NodeId, ShardId};
use std::rc::Rc;

/// What came over a link.
#[derive(Debug)]
pub enum PeerEvent {
    /// Both sides agree on who they are.
    Ready {
        /// The other node.
        peer: NodeId,
    },
    /// The caller wants another shard of this node, which is to be given these bytes: the hello and what came behind it.
    /// This link has ended.
    Elsewhere {
        /// The shard; there is one of this number.
        shard: u16,
        /// What it is to take.
        bytes: Vec<u8>,
    },
    /// To a replica of this node.
    Request {
        /// Its address.
        envelope: Envelope,
        /// What is asked.
        message: ToReplica,
        /// Dropped when the request is done.
        permit: Permit,
    },
    /// To a writer of this node.
    Answer {
        /// Its address.
        envelope: Envelope,
        /// What is answered.
        message: ToWriter,
    },
}

/// How far a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// We called and wait for the answer.
    Calling {
        to: ShardId,
    },
    /// Somebody called and has not said who it is.
    Answering,
    Ready,
    /// Another shard has it.
    Left,
}

/// Who counts which credits.
enum Side {
    /// We called: what is left to us.
    Caller(Allowance),
    /// They called: what we granted, and what of it they have.
    Callee(Windows, Rc<Ledger>),
}

/// One link.
pub struct PeerLink {
    cluster: ClusterId,
    us: ShardId,
    /// Shards of this node.
    shards: u16,
    state: State,
    side: Side,
    decoder: FrameDecoder,
}

impl PeerLink {
    /// We call `to`: the hello goes out first.
    pub fn call(cluster: ClusterId, us: ShardId, to: ShardId, outbox: &mut Outbox) -> Self {
        outbox.append(|out| Hello { cluster, from: us.node, to: to.node, shard: to.shard }.encode(out));
        let (side, shards) = (Side::Caller(Allowance::default()), 0);
        Self { cluster, us, shards, state: State::Calling { to }, side, decoder: FrameDecoder::default() }
    }

    /// Somebody calls us, one of so many shards of this node; if it is welcome it is granted these credits.
    pub fn answer(cluster: ClusterId, us: ShardId, shards: u16, windows: Windows) -> Self {
        assert!(us.shard < shards, "a shard is one of its node's");
        let side = Side::Callee(windows, Ledger::of_link(windows));
        Self { cluster, us, shards, state: State::Answering, side, decoder: FrameDecoder::default() }
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// Why the link must be closed; what the outbox holds (a refusal, say) should still be sent.
    pub fn receive(
        &mut self,
        mut input: &[u8],
        outbox: &mut Outbox,
        events: &mut Vec<PeerEvent>,
    ) -> Result<(), String> {
        while !input.is_empty() {
            let (taken, frame) = self.decoder.feed(input).map_err(|error| error.to_string())?;
            input = &input[taken..];
            if let Some(frame) = frame {
                self.frame(frame, outbox, events)?;
            }
            if self.state == State::Left {
                if let Some(PeerEvent::Elsewhere { bytes, .. }) = events.last_mut() {
                    bytes.extend_from_slice(input);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, outbox: &mut Outbox, events: &mut Vec<PeerEvent>) -> Result<(), String> {
        match (self.state, frame) {
            (State::Ready, frame) => self.ready_frame(frame, outbox, events),
            (State::Answering, Frame::Hello(hello)) => match hello.check(self.cluster, self.us.node, self.shards) {
                Ok(()) if hello.shard != self.us.shard => {
                    let mut bytes = Vec::new();
                    hello.encode(&mut bytes);
                    self.state = State::Left;
                    events.push(PeerEvent::Elsewhere { shard: hello.shard, bytes });
                    Ok(())
                }
                Ok(()) => {
                    let Side::Callee(windows, _) = self.side else { unreachable!("callees answer") };
                    outbox.append(|out| HelloReply::Welcome(windows).encode(out));
                    self.state = State::Ready;
                    events.push(PeerEvent::Ready { peer: hello.from });
                    Ok(())
                }
                Err(reason) => {
                    outbox.append(|out| HelloReply::Refused(reason.clone()).encode(out));
                    Err(format!("refused node {}: {reason}", hello.from))
                }
            },
            (State::Calling { to }, Frame::HelloReply(HelloReply::Welcome(windows))) => {
                let Side::Caller(allowance) = &mut self.side else { unreachable!("callers call") };
                allowance.grant(windows);
                self.state = State::Ready;
                events.push(PeerEvent::Ready { peer: to.node });
                Ok(())
            }
            (State::Calling { to }, Frame::HelloReply(HelloReply::Refused(reason))) => {
                Err(format!("node {} refused the link to its shard {}: {reason}", to.node, to.shard))
            }
            (State::Calling { .. } | State::Answering, _) => Err("a message before the hello".into()),
            (State::Left, _) => unreachable!("another shard has the connection"),
        }
    }

    /// Requests go one way over a link, answers and credits the other.
    fn ready_frame(&mut self, frame: Frame, outbox: &mut Outbox, events: &mut Vec<PeerEvent>) -> Result<(), String> {
        match (&mut self.side, frame) {
            (_, Frame::Hello(_) | Frame::HelloReply(_)) => Err("a second hello on one link".into()),
            (Side::Callee(_, ledger), Frame::ToReplica(envelope, message)) => {
                let permit = match message.cost() {
                    Some(cost) => ledger.admit(cost).map_err(|overdraft| overdraft.to_string())?,
                    None => Permit::none(),
                };
                events.push(PeerEvent::Request { envelope, message, permit });
                Ok(())
            }
            (Side::Caller(_), Frame::ToWriter(envelope, message)) => {
                events.push(PeerEvent::Answer { envelope, message });
                Ok(())
            }
            (Side::Caller(allowance), Frame::Credit(credit)) => {
                allowance.credit(credit)?;
                while let Some((envelope, message)) = allowance.next(credit.class) {
                    put(envelope, &message, outbox);
                }
                Ok(())
            }
            (Side::Caller(_), Frame::ToReplica(..)) => Err("a request from the node that was called".into()),
            (Side::Callee(..), Frame::ToWriter(..) | Frame::Credit(_)) => {
                Err("an answer from the node that called".into())
            }
        }
    }

    /// Sends a writer's message to a replica, or lets it wait for credits.
    ///
    /// # Errors
    /// Why the link must be closed.
    pub fn send(&mut self, envelope: Envelope, message: ToReplica, outbox: &mut Outbox) -> Result<(), String> {
        let Side::Caller(allowance) = &mut self.side else { panic!("requests go over links that we made") };
        assert_eq!(self.state, State::Ready, "requests follow the hello");
        if let Some(message) = allowance.admit(envelope, message)? {
            put(envelope, &message, outbox);
        }
        Ok(())
    }

    /// Returns to the caller the credits that are due, behind the answers of this round; or all that are free.
    pub fn return_credits(&mut self, all: bool, outbox: &mut Outbox) {
        let Side::Callee(_, ledger) = &self.side else { panic!("credits come back over links that others made") };
        for credit in ledger.take_due(all) {
            outbox.append(|out| credit.encode(out));
        }
    }

    /// How many requests have had to wait for credits since the last time: foreground, background.
    pub fn take_waits(&mut self) -> [u64; 2] {
        match &mut self.side {
            Side::Caller(allowance) => allowance.take_waits(),
            Side::Callee(..) => [0, 0],
        }
    }
}

fn put(envelope: Envelope, message: &ToReplica, outbox: &mut Outbox) {
    if let Some(payload) = outbox.append(|out| encode_to_replica(envelope, message, out)) {
        outbox.shared(&payload, 0, payload.len());
    }
}
