//! Drives a session over bytes that come in pieces, answers everything at once, and writes down
//! what happened.

use crate::support;
use ashlar_nbd::export::{Extent, ListedExport, Refusal};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{CloseReason, Operation, Outcome, Request, Session, Tls};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes to the client, apart from the data of reads.
    Sent(Vec<u8>),
    Listed,
    /// What follows is taken as the inside of TLS.
    TlsStarted,
    Found(String),
    Opened(String),
    Request(Request),
    Payload(Vec<u8>),
    Closed(CloseReason),
}

pub struct Driver {
    pub session: Session,
    pub events: Vec<Event>,
    payload: Vec<u8>,
}

pub const SIZE_BYTES: u64 = 1 << 20;

impl Driver {
    pub fn new(limits: Limits) -> Self {
        Self::with_tls(limits, Tls::Unavailable)
    }

    pub fn with_tls(limits: Limits, tls: Tls) -> Self {
        Self { session: Session::with_tls(limits, tls), events: Vec::new(), payload: Vec::new() }
    }

    pub fn feed(&mut self, mut input: &[u8]) {
        loop {
            input = self.take_payload(input);
            if self.session.payload_pending_bytes() > 0 {
                return;
            }
            let (consumed, outcome) = self.session.receive(input);
            input = &input[consumed..];
            match outcome {
                Outcome::NeedMore => return,
                Outcome::Busy => panic!("everything is answered at once"),
                Outcome::Close { reason } => {
                    if !matches!(self.events.last(), Some(Event::Closed(_))) {
                        self.events.push(Event::Closed(reason));
                    }
                    return;
                }
                outcome => self.answer(outcome),
            }
        }
    }

    pub fn feed_in_pieces(&mut self, mut input: &[u8], pieces: &[usize]) {
        for piece in pieces.iter().cycle() {
            let (now, later) = input.split_at((*piece).min(input.len()));
            self.feed(now);
            input = later;
            assert!(self.session.buffered_bytes() <= Limits::PRODUCTION.option_data_bytes_max as usize);
            if input.is_empty() {
                return;
            }
        }
    }

    /// All bytes sent, in one piece.
    pub fn sent(&self) -> Vec<u8> {
        let sent = |event: &Event| if let Event::Sent(bytes) = event { bytes.clone() } else { Vec::new() };
        self.events.iter().flat_map(sent).collect()
    }

    fn take_payload<'a>(&mut self, input: &'a [u8]) -> &'a [u8] {
        let pending = self.session.payload_pending_bytes() as usize;
        let (taken, rest) = input.split_at(pending.min(input.len()));
        self.session_payload(taken, pending);
        rest
    }

    fn session_payload(&mut self, taken: &[u8], pending: usize) {
        if pending > 0 {
            self.payload.extend_from_slice(taken);
            self.session.payload_taken(taken.len() as u32);
        }
        if pending > 0 && taken.len() == pending {
            self.events.push(Event::Payload(std::mem::take(&mut self.payload)));
        }
    }

    fn answer(&mut self, outcome: Outcome) {
        let (event, bytes) = match outcome {
            Outcome::Send(bytes) => (None, bytes),
            Outcome::ListExports => {
                let exports = [ListedExport { name: "disk".into(), description: "a disk".into() }];
                (Some(Event::Listed), self.session.answer_exports(&exports))
            }
            Outcome::FindExport { name } => (Some(Event::Found(name.clone())), self.answer_export(&name)),
            Outcome::OpenExport { name } => (Some(Event::Opened(name.clone())), self.answer_export(&name)),
            Outcome::Request(request) => (Some(Event::Request(request)), self.reply(&request)),
            Outcome::StartTls(bytes) => (Some(Event::TlsStarted), bytes),
            Outcome::NeedMore | Outcome::Busy | Outcome::Close { .. } => unreachable!(),
        };
        self.events.extend(event);
        if !bytes.is_empty() {
            self.events.push(Event::Sent(bytes));
        }
    }

    fn answer_export(&mut self, name: &str) -> Vec<u8> {
        let refused = match name {
            "disk" => return self.session.answer_export(&support::export(name, SIZE_BYTES)),
            "elsewhere" => self.session.refuse(Refusal::Policy, "attached to node b"),
            "secret" => self.session.refuse(Refusal::TlsRequired, "start TLS first"),
            "late" => self.session.refuse(Refusal::ShuttingDown, "going down"),
            _ => self.session.refuse(Refusal::Unknown, "no such export"),
        };
        match refused {
            Outcome::Send(bytes) => bytes,
            Outcome::Close { .. } => Vec::new(),
            outcome => panic!("a refusal became {outcome:?}"),
        }
    }

    fn reply(&mut self, request: &Request) -> Vec<u8> {
        match request.operation {
            Operation::Read { .. } => self.session.reply_read(request).to_vec(),
            Operation::BlockStatus { .. } => {
                let mut bytes = Vec::new();
                let extent = Extent { length_bytes: request.length_bytes, hole: false, zero: false };
                self.session.reply_block_status(request.handle(), &[extent], &mut bytes);
                bytes
            }
            _ => self.session.reply_done(request.handle()).to_vec(),
        }
    }
}

/// Runs one session over the whole input.
pub fn run(input: &[&[u8]]) -> Driver {
    let mut driver = Driver::new(Limits::PRODUCTION);
    driver.feed(&input.concat());
    driver
}
