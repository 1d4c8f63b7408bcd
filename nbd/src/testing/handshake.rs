//! Any bytes as a client's handshake.

use super::{Answers, Event, LIMITS, Story, drive, export, features, pieces};
use crate::export::{ListedExport, Refusal};
use crate::session::{Outcome, Session, Tls};
use crate::wire;

/// The first byte says what the server has of TLS, the second how the input is cut; the rest comes from the client. After
/// the option that starts TLS, what follows is taken as the inside of TLS.
pub fn check_handshake(input: &[u8]) {
    let &[setup, cut, ref bytes @ ..] = input else { return };
    let tls = match setup % 3 {
        0 => Tls::Unavailable,
        1 => Tls::Optional,
        _ => Tls::Required,
    };
    let tell = |cut: Option<u8>| {
        let mut session = Session::with_tls(LIMITS, tls);
        drive(&mut session, bytes, pieces(cut), &mut Server { tls, in_tls: false })
    };
    assert_eq!(tell(None), tell(Some(cut)), "cut differently, it comes to something else");
}

struct Server {
    tls: Tls,
    in_tls: bool,
}

impl Server {
    fn reply(&self, session: &mut Session, name: &str, story: &mut Story) {
        let refusal = match name {
            "none" => Some(Refusal::Unknown),
            "elsewhere" => Some(Refusal::Policy),
            "secret" if !self.in_tls => Some(Refusal::TlsRequired),
            "late" => Some(Refusal::ShuttingDown),
            _ => None,
        };
        match refusal {
            None => {
                let bytes = session.answer_export(&export("disk", features(true, false), 512));
                story.events.push(Event::Sent(bytes));
            }
            Some(refusal) => match session.refuse(refusal, "not for you") {
                Outcome::Send(bytes) => story.events.push(Event::Sent(bytes)),
                Outcome::Close { .. } => {} // an old client
                outcome => panic!("a refusal became {outcome:?}"),
            },
        }
    }

    /// The server's own rule: nothing is asked before TLS where that must be.
    fn asked(&self, what: String, story: &mut Story) {
        assert!(self.in_tls || self.tls != Tls::Required, "{what} before TLS");
        story.events.push(Event::Asked(what));
    }
}

impl Answers for Server {
    fn answer(&mut self, session: &mut Session, outcome: Outcome, story: &mut Story) {
        match outcome {
            Outcome::Send(bytes) => {
                if !session.is_transmitting() {
                    check_option_replies(&bytes);
                }
                story.events.push(Event::Sent(bytes));
            }
            Outcome::StartTls(bytes) => {
                assert!(self.tls != Tls::Unavailable && !self.in_tls, "TLS twice, or from nowhere");
                check_option_replies(&bytes);
                self.in_tls = true;
                story.events.push(Event::Sent(bytes));
            }
            Outcome::ListExports => {
                self.asked("list".into(), story);
                let exports = [ListedExport { name: "disk".into(), description: "a disk".into() }];
                let bytes = session.answer_exports(&exports);
                check_option_replies(&bytes);
                story.events.push(Event::Sent(bytes));
            }
            Outcome::FindExport { name } | Outcome::OpenExport { name } => {
                assert!(name.len() <= wire::STRING_BYTES_MAX && !name.contains('\0'));
                self.asked(name.clone(), story);
                self.reply(session, &name, story);
            }
            Outcome::Request(request) => {
                // Some headers of the next phase; its rules are the other target's, and it is answered at once.
                story.events.push(Event::Request(request));
                if session.payload_pending_bytes() > 0 {
                    return; // never answered: three of them, and the session is busy
                }
                story.events.push(Event::Sent(
                    session.reply_error(request.handle(), wire::ErrorNumber::Io, "no device").to_vec(),
                ));
            }
            Outcome::NeedMore | Outcome::Busy | Outcome::Close { .. } => unreachable!("not for the server"),
        }
    }

    fn busy(&mut self, session: &mut Session, story: &mut Story) {
        assert!(session.is_transmitting(), "every question was answered");
        // A write that is through: its name does not matter.
        let handle = crate::reply::Handle { cookie: wire::Cookie(0), offset_bytes: 0 };
        story.events.push(Event::Sent(session.reply_error(handle, wire::ErrorNumber::Io, "no device").to_vec()));
    }
}

/// Whole option replies and nothing else.
fn check_option_replies(mut bytes: &[u8]) {
    assert!(!bytes.is_empty());
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_first_chunk::<{ wire::OPTION_REPLY_HEADER_BYTES }>().expect("a header");
        assert_eq!(header[..8], wire::MAGIC_OPTION_REPLY.to_be_bytes());
        let length = u32::from_be_bytes([header[16], header[17], header[18], header[19]]) as usize;
        bytes = rest.get(length..).expect("its data");
    }
}
