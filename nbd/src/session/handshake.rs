//! The handshake: fixed newstyle negotiation, option by option.
//!
//! It must never know what exports exist: it asks, waits, and turns the answer into bytes. While
//! an answer is owed it takes no input. Option data is held only up to the limit; what is longer,
//! or belongs to an option this server does not know, is skipped and then answered.

use super::gather::{self, Gather};
use super::options::{self, ContextQuery, ExportQuery, OptionRefused};
use super::transmission::Transmission;
use super::{CloseReason, Outcome, Tls};
use crate::export::{ExportInfo, ListedExport, Refusal};
use crate::limits::Limits;
use crate::wire::{self, Headers};

const SERVER_FLAGS: u16 = wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES;

/// State of one handshake.
#[derive(Debug)]
pub(super) struct Handshake {
    limits: Limits,
    state: State,
    gather: Gather,
    options_seen: u32,
    fixed_newstyle: bool,
    no_zeroes: bool,
    headers: Headers,
    /// The export for which `base:allocation` was chosen.
    allocation_for: Option<String>,
    tls: Tls,
    /// The bytes that come in are inside TLS.
    tls_started: bool,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData {
        option: u32,
        length_bytes: u32,
    },
    /// Data is dropped; the reply is sent when it has passed.
    Skip {
        remaining_bytes: u64,
        reply: Vec<u8>,
    },
    Asked(Question),
    Closing(CloseReason),
}

/// What the caller owes an answer to.
#[derive(Debug)]
enum Question {
    List,
    Info(ExportQuery),
    Go(ExportQuery),
    ExportName(String),
}

/// The server's first bytes.
pub(super) fn greeting() -> [u8; wire::GREETING_BYTES] {
    let mut bytes = [0; wire::GREETING_BYTES];
    bytes[..8].copy_from_slice(&wire::MAGIC_GREETING.to_be_bytes());
    bytes[8..16].copy_from_slice(&wire::MAGIC_OPTION.to_be_bytes());
    bytes[16..].copy_from_slice(&SERVER_FLAGS.to_be_bytes());
    bytes
}

impl Handshake {
    pub(super) fn new(limits: Limits, tls: Tls) -> Self {
        Self {
            limits,
            state: State::ClientFlags,
            gather: Gather::default(),
            options_seen: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            headers: Headers::Simple,
            allocation_for: None,
            tls,
            tls_started: false,
        }
    }

    pub(super) fn buffered_bytes(&self) -> usize {
        self.gather.held_bytes()
    }

    /// Takes input up to the next outcome.
    pub(super) fn receive(&mut self, input: &mut &[u8]) -> Outcome {
        loop {
            let step = match &mut self.state {
                State::ClientFlags => match self.gather.fixed(input) {
                    Some(bytes) => self.client_flags(u32::from_be_bytes(bytes)),
                    None => return Outcome::NeedMore,
                },
                State::OptionHeader => match self.gather.fixed(input) {
                    Some(bytes) => self.option_header(OptionHeader::from_wire(bytes)),
                    None => return Outcome::NeedMore,
                },
                State::OptionData { option, length_bytes } => {
                    let option = *option;
                    match self.gather.variable(input, *length_bytes as usize) {
                        Some(data) => Some(self.option_data(option, &data)),
                        None => return Outcome::NeedMore,
                    }
                }
                State::Skip { remaining_bytes, reply } => {
                    gather::skip(input, remaining_bytes);
                    if *remaining_bytes > 0 {
                        return Outcome::NeedMore;
                    }
                    let reply = std::mem::take(reply);
                    self.state = State::OptionHeader;
                    Some(Outcome::Send(reply))
                }
                State::Asked(_) => return Outcome::Busy,
                State::Closing(reason) => return Outcome::Close { reason: *reason },
            };
            // No outcome: the state moved on, and the rest of the input belongs to the new one.
            if let Some(outcome) = step {
                return outcome;
            }
        }
    }

    pub(super) fn answer_exports(&mut self, exports: &[ListedExport]) -> Vec<u8> {
        let Question::List = self.take_question() else { panic!("the exports were not asked for") };
        options::listing(exports)
    }

    /// The bytes to send, and the transmission phase if it begins.
    pub(super) fn answer_export(&mut self, export: &ExportInfo) -> (Vec<u8>, Option<Transmission>) {
        export.check();
        match self.take_question() {
            Question::Info(query) => (query.answer(wire::OPTION_INFO, export, self.headers), None),
            Question::Go(query) => {
                let bytes = query.answer(wire::OPTION_GO, export, self.headers);
                (bytes, Some(self.transmission(&query.name, export)))
            }
            Question::ExportName(name) => {
                let mut bytes = export.size_bytes.to_be_bytes().to_vec();
                bytes.extend_from_slice(&export.features.to_wire(self.headers.is_structured()).to_be_bytes());
                if !self.no_zeroes {
                    bytes.resize(bytes.len() + wire::EXPORT_NAME_PADDING_BYTES, 0);
                }
                (bytes, Some(self.transmission(&name, export)))
            }
            Question::List => panic!("an export was not asked for"),
        }
    }

    pub(super) fn refuse(&mut self, refusal: Refusal, message: &str) -> Outcome {
        let option = match self.take_question() {
            Question::List => wire::OPTION_LIST,
            Question::Info(_) => wire::OPTION_INFO,
            Question::Go(_) => wire::OPTION_GO,
            Question::ExportName(_) => return Outcome::Close { reason: CloseReason::ExportRefused },
        };
        Outcome::Send(options::refusal(option, refusal.to_wire(), message))
    }

    fn take_question(&mut self) -> Question {
        match std::mem::replace(&mut self.state, State::OptionHeader) {
            State::Asked(question) => question,
            _ => panic!("an answer to no question"),
        }
    }

    fn transmission(&self, name: &str, export: &ExportInfo) -> Transmission {
        // Contexts hold for the export they were chosen for, by the name the client used.
        let allocation = self.allocation_for.as_deref() == Some(name);
        Transmission::new(self.limits, export, self.headers, allocation)
    }

    fn client_flags(&mut self, flags: u32) -> Option<Outcome> {
        let unknown = flags & !u32::from(SERVER_FLAGS);
        if unknown != 0 {
            return Some(Outcome::Close { reason: CloseReason::ClientFlagsUnknown(unknown) });
        }
        self.fixed_newstyle = flags & u32::from(wire::HANDSHAKE_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(wire::HANDSHAKE_NO_ZEROES) != 0;
        self.state = State::OptionHeader;
        None
    }

    /// Decides by number and length alone whether the data is wanted.
    fn option_header(&mut self, header: OptionHeader) -> Option<Outcome> {
        let OptionHeader { option, length_bytes, .. } = header;
        self.options_seen += 1;
        if let Some(reason) = self.reason_to_close(header) {
            return Some(Outcome::Close { reason });
        }
        if self.tls == Tls::Required
            && !self.tls_started
            && !matches!(option, wire::OPTION_STARTTLS | wire::OPTION_ABORT)
        {
            self.skip(header, wire::REPLY_ERR_TLS_REQD, "start TLS first");
            return None;
        }
        match option {
            wire::OPTION_EXPORT_NAME
            | wire::OPTION_INFO
            | wire::OPTION_GO
            | wire::OPTION_LIST_META_CONTEXT
            | wire::OPTION_SET_META_CONTEXT => {
                if length_bytes > self.limits.option_data_bytes_max {
                    self.skip(header, wire::REPLY_ERR_TOO_BIG, "the option's data is too long");
                } else {
                    self.state = State::OptionData { option, length_bytes };
                }
                None
            }
            wire::OPTION_ABORT => {
                self.state = State::Closing(CloseReason::Aborted);
                Some(Outcome::Send(options::acknowledgement(option)))
            }
            wire::OPTION_STARTTLS if self.tls == Tls::Unavailable => {
                self.skip(header, wire::REPLY_ERR_UNSUP, "this server has no TLS");
                None
            }
            wire::OPTION_LIST
            | wire::OPTION_STRUCTURED_REPLY
            | wire::OPTION_EXTENDED_HEADERS
            | wire::OPTION_STARTTLS
                if length_bytes > 0 =>
            {
                self.skip(header, wire::REPLY_ERR_INVALID, "this option takes no data");
                None
            }
            wire::OPTION_STARTTLS if self.tls_started => {
                self.skip(header, wire::REPLY_ERR_INVALID, "TLS was started already");
                None
            }
            wire::OPTION_STARTTLS => Some(self.start_tls()),
            wire::OPTION_LIST => {
                self.state = State::Asked(Question::List);
                Some(Outcome::ListExports)
            }
            wire::OPTION_STRUCTURED_REPLY if self.headers == Headers::Extended => {
                self.skip(header, wire::REPLY_ERR_EXT_HEADER_REQD, "extended headers were agreed already");
                None
            }
            wire::OPTION_STRUCTURED_REPLY => Some(self.agree(option, Headers::Structured)),
            wire::OPTION_EXTENDED_HEADERS if self.headers == Headers::Extended => {
                self.skip(header, wire::REPLY_ERR_INVALID, "extended headers were agreed already");
                None
            }
            wire::OPTION_EXTENDED_HEADERS => Some(self.agree(option, Headers::Extended)),
            _ => {
                self.skip(header, wire::REPLY_ERR_UNSUP, "this server does not know the option");
                None
            }
        }
    }

    fn agree(&mut self, option: u32, headers: Headers) -> Outcome {
        self.headers = headers;
        self.state = State::OptionHeader;
        Outcome::Send(options::acknowledgement(option))
    }

    /// What was said so far, anybody between the client and this server may have said.
    fn start_tls(&mut self) -> Outcome {
        self.tls_started = true;
        self.headers = Headers::Simple;
        self.allocation_for = None;
        self.state = State::OptionHeader;
        Outcome::StartTls(options::acknowledgement(wire::OPTION_STARTTLS))
    }

    fn reason_to_close(&self, header: OptionHeader) -> Option<CloseReason> {
        let OptionHeader { magic, option, length_bytes } = header;
        if magic != wire::MAGIC_OPTION {
            Some(CloseReason::OptionMagic(magic))
        } else if self.options_seen > self.limits.options_max {
            Some(CloseReason::TooManyOptions(self.limits.options_max))
        } else if !self.fixed_newstyle && option != wire::OPTION_EXPORT_NAME {
            Some(CloseReason::NotFixedNewstyle(option))
        } else if length_bytes > self.limits.option_skip_bytes_max {
            Some(CloseReason::OptionTooLong { option, length_bytes })
        } else if option == wire::OPTION_EXPORT_NAME && self.tls == Tls::Required && !self.tls_started {
            Some(CloseReason::TlsRequired)
        } else if option == wire::OPTION_EXPORT_NAME && self.headers == Headers::Extended {
            Some(CloseReason::ExportNameWithExtendedHeaders)
        } else if option == wire::OPTION_EXPORT_NAME && length_bytes as usize > wire::STRING_BYTES_MAX {
            Some(CloseReason::ExportNameInvalid)
        } else {
            None
        }
    }

    fn skip(&mut self, header: OptionHeader, reply_type: u32, message: &str) {
        let OptionHeader { option, length_bytes, .. } = header;
        self.state = State::Skip {
            remaining_bytes: u64::from(length_bytes),
            reply: options::refusal(option, reply_type, message),
        };
    }

    fn option_data(&mut self, option: u32, data: &[u8]) -> Outcome {
        self.state = State::OptionHeader;
        let outcome = match option {
            wire::OPTION_EXPORT_NAME => return self.export_name(data),
            wire::OPTION_INFO => ExportQuery::parse(data).map(|query| {
                let name = query.name.clone();
                self.state = State::Asked(Question::Info(query));
                Outcome::FindExport { name }
            }),
            wire::OPTION_GO => ExportQuery::parse(data).map(|query| {
                let name = query.name.clone();
                self.state = State::Asked(Question::Go(query));
                Outcome::OpenExport { name }
            }),
            wire::OPTION_LIST_META_CONTEXT | wire::OPTION_SET_META_CONTEXT => self.contexts(option, data),
            _ => unreachable!("data of option {option} was gathered"),
        };
        outcome.unwrap_or_else(|refused: OptionRefused| {
            Outcome::Send(options::refusal(option, refused.reply_type, refused.message))
        })
    }

    fn export_name(&mut self, data: &[u8]) -> Outcome {
        match options::export_name(data) {
            Ok(name) => {
                self.state = State::Asked(Question::ExportName(name.clone()));
                Outcome::OpenExport { name }
            }
            Err(_) => Outcome::Close { reason: CloseReason::ExportNameInvalid },
        }
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> Result<Outcome, OptionRefused> {
        let choosing = option == wire::OPTION_SET_META_CONTEXT;
        if choosing {
            // Whatever comes of this choice, it replaces the one before.
            self.allocation_for = None;
        }
        if !self.headers.is_structured() {
            return Err(OptionRefused::invalid("structured replies must be agreed first"));
        }
        let query = ContextQuery::parse(data)?;
        let allocation = if choosing {
            query.names_allocation
        } else {
            query.names_allocation || query.names_namespace || query.is_empty
        };
        if choosing && allocation {
            self.allocation_for = Some(query.name);
        }
        Ok(Outcome::Send(options::contexts(option, allocation)))
    }
}

#[derive(Clone, Copy)]
struct OptionHeader {
    magic: u64,
    option: u32,
    length_bytes: u32,
}

impl OptionHeader {
    fn from_wire(bytes: [u8; wire::OPTION_HEADER_BYTES]) -> Self {
        let value = u128::from_be_bytes(bytes);
        Self { magic: (value >> 64) as u64, option: (value >> 32) as u32, length_bytes: value as u32 }
    }
}
