//! A link between two nodes' data planes: hello, then frames. Pure: bytes in, events and bytes out.
//!
//! It knows nothing of sockets, and nothing of what the frames mean.

use crate::reactor::Outbox;
use crate::wire::{Frame, FrameDecoder, Hello, HelloReply};
use ashlar_model::{ClusterId, NodeId};

/// What came over a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerEvent {
    /// Both sides agree on who they are.
    Ready {
        /// The other node.
        peer: NodeId,
    },
    /// A message.
    Frame(Frame),
}

/// How far a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// We called and wait for the answer.
    Calling {
        to: NodeId,
    },
    /// Somebody called and has not said who it is.
    Answering,
    Ready,
}

/// One link.
pub struct PeerLink {
    cluster: ClusterId,
    node: NodeId,
    state: State,
    decoder: FrameDecoder,
}

impl PeerLink {
    /// We call `to`: the hello goes out first.
    pub fn call(cluster: ClusterId, node: NodeId, to: NodeId, outbox: &mut Outbox) -> Self {
        outbox.append(|out| Hello { cluster, from: node, to }.encode(out));
        Self { cluster, node, state: State::Calling { to }, decoder: FrameDecoder::default() }
    }

    /// Somebody calls us.
    pub fn answer(cluster: ClusterId, node: NodeId) -> Self {
        Self { cluster, node, state: State::Answering, decoder: FrameDecoder::default() }
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
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, outbox: &mut Outbox, events: &mut Vec<PeerEvent>) -> Result<(), String> {
        match (self.state, frame) {
            (State::Ready, Frame::Hello(_) | Frame::HelloReply(_)) => Err("a second hello on one link".into()),
            (State::Ready, frame) => {
                events.push(PeerEvent::Frame(frame));
                Ok(())
            }
            (State::Answering, Frame::Hello(hello)) => match hello.check(self.cluster, self.node) {
                Ok(()) => {
                    outbox.append(|out| HelloReply::Welcome.encode(out));
                    self.state = State::Ready;
                    events.push(PeerEvent::Ready { peer: hello.from });
                    Ok(())
                }
                Err(reason) => {
                    outbox.append(|out| HelloReply::Refused(reason.clone()).encode(out));
                    Err(format!("refused node {}: {reason}", hello.from))
                }
            },
            (State::Calling { to }, Frame::HelloReply(HelloReply::Welcome)) => {
                self.state = State::Ready;
                events.push(PeerEvent::Ready { peer: to });
                Ok(())
            }
            (State::Calling { to }, Frame::HelloReply(HelloReply::Refused(reason))) => {
                Err(format!("node {to} refused the link: {reason}"))
            }
            (State::Calling { .. } | State::Answering, _) => Err("a message before the hello".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::encode_to_writer;
    use crate::wire::message::{Envelope, ToWriter};
    use ashlar_model::{DeviceId, Epoch, VolumeId};

    fn bytes(outbox: &mut Outbox) -> Vec<u8> {
        outbox.take(100).iter().flat_map(|segment| segment.to_vec()).collect()
    }

    fn cluster(id: u128) -> ClusterId {
        ClusterId::from_u128(id)
    }

    #[test]
    fn both_sides_become_ready_and_frames_pass() {
        let (mut a_out, mut b_out, mut events) = (Outbox::default(), Outbox::default(), Vec::new());
        let mut a = PeerLink::call(cluster(1), NodeId(1), NodeId(2), &mut a_out);
        let mut b = PeerLink::answer(cluster(1), NodeId(2));
        b.receive(&bytes(&mut a_out), &mut b_out, &mut events).unwrap();
        assert_eq!(std::mem::take(&mut events), [PeerEvent::Ready { peer: NodeId(1) }]);
        a.receive(&bytes(&mut b_out), &mut a_out, &mut events).unwrap();
        assert_eq!(std::mem::take(&mut events), [PeerEvent::Ready { peer: NodeId(2) }]);
        let device = DeviceId::from_u128(3);
        let envelope = Envelope { volume: VolumeId::from_u128(4), lane: 0, epoch: Epoch(1), device };
        let message = ToWriter::JoinLost { join: 5 };
        b_out.append(|out| encode_to_writer(envelope, &message, out));
        a.receive(&bytes(&mut b_out), &mut a_out, &mut events).unwrap();
        assert_eq!(events, [PeerEvent::Frame(Frame::ToWriter(envelope, message))]);
    }

    #[test]
    fn strangers_are_told_why() {
        for (to, of, word) in [(cluster(9), NodeId(2), "belongs to cluster"), (cluster(1), NodeId(3), "wants node 3")] {
            let (mut a_out, mut b_out, mut events) = (Outbox::default(), Outbox::default(), Vec::new());
            let mut a = PeerLink::call(to, NodeId(1), of, &mut a_out);
            let mut b = PeerLink::answer(cluster(1), NodeId(2));
            let error = b.receive(&bytes(&mut a_out), &mut b_out, &mut events).unwrap_err();
            assert!(error.contains(word), "{error}");
            let error = a.receive(&bytes(&mut b_out), &mut a_out, &mut events).unwrap_err();
            assert!(error.contains(word), "{error}");
            assert!(events.is_empty());
        }
    }

    #[test]
    fn a_message_before_the_hello_ends_the_link() {
        let (mut out, mut events) = (Vec::new(), Vec::new());
        let device = DeviceId::from_u128(3);
        let envelope = Envelope { volume: VolumeId::from_u128(4), lane: 0, epoch: Epoch(1), device };
        encode_to_writer(envelope, &ToWriter::JoinLost { join: 5 }, &mut out);
        let mut link = PeerLink::answer(cluster(1), NodeId(2));
        let error = link.receive(&out, &mut Outbox::default(), &mut events).unwrap_err();
        assert_eq!(error, "a message before the hello");
        assert!(link.receive(&[0x47; 500], &mut Outbox::default(), &mut events).is_err());
    }
}
