//! Starting TLS, by exact replies. The driver takes what follows as the inside of TLS.

use crate::bytes::*;
use crate::driver::{Driver, Event};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{CloseReason, Outcome, Session, Tls};

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

fn after(tls: Tls, options: &[Vec<u8>]) -> Driver {
    let mut driver = Driver::with_tls(Limits::PRODUCTION, tls);
    driver.feed(&[client_flags(FIXED | NO_ZEROES), options.concat()].concat());
    driver
}

/// Option and type of every reply.
fn kinds(tls: Tls, options: &[Vec<u8>]) -> Vec<(u32, u32)> {
    let replies = split_option_replies(&after(tls, options).sent());
    replies.into_iter().map(|(option, kind, _)| (option, kind)).collect()
}

#[test]
fn a_server_without_tls_says_so() {
    assert_eq!(kinds(Tls::Unavailable, &[option(STARTTLS, b"")]), [(STARTTLS, ERR_UNSUP)]);
    assert_eq!(kinds(Tls::Unavailable, &[option(STARTTLS, b"x")]), [(STARTTLS, ERR_UNSUP)]);
}

#[test]
fn tls_is_started_once_and_takes_no_data() {
    for tls in [Tls::Optional, Tls::Required] {
        let options = [option(STARTTLS, b"x"), option(STARTTLS, b""), option(STARTTLS, b"")];
        assert_eq!(kinds(tls, &options), [(STARTTLS, ERR_INVALID), (STARTTLS, ACK), (STARTTLS, ERR_INVALID)]);
    }
}

/// What follows the option was not meant for the session: somebody on the way may have put it there.
#[test]
fn nothing_behind_the_option_is_consumed() {
    let mut session = Session::with_tls(Limits::PRODUCTION, Tls::Optional);
    let input = [client_flags(3), option(STARTTLS, b""), option(LIST, b"")].concat();
    let (consumed, outcome) = session.receive(&input);
    assert_eq!(consumed, 4 + 16);
    assert_eq!(outcome, Outcome::StartTls(option_reply(STARTTLS, ACK, b"")));
}

#[test]
fn what_was_agreed_before_is_forgotten() {
    let contexts = option(SET_META_CONTEXT, &contexts("disk", &["base:allocation"]));
    for agreed in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let before = [option(agreed, b""), contexts.clone(), option(STARTTLS, b"")];
        let refused = [&before[..], std::slice::from_ref(&contexts)].concat();
        assert_eq!(kinds(Tls::Optional, &refused).last(), Some(&(SET_META_CONTEXT, ERR_INVALID)));
        let opened = after(Tls::Optional, &[&before[..], &[option(GO, &query("disk", &[]))]].concat());
        assert!(opened.session.is_transmitting() && !opened.session.is_structured());
        // Agreed again, without the context: a block status finds none.
        let again = [&before[..], &[option(STRUCTURED_REPLY, b""), option(GO, &query("disk", &[]))]].concat();
        let mut opened = after(Tls::Optional, &again);
        assert!(opened.session.is_structured());
        let (_, outcome) = opened.session.receive(&request(0, 7, 1, 0, 512));
        assert!(matches!(outcome, Outcome::Send(_)), "not refused: {outcome:?}");
    }
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_before_it() {
    let mut options = vec![option(99, b"abc"), option(LIST, b""), option(LIST, b"x")];
    options.extend([STRUCTURED_REPLY, EXTENDED_HEADERS].map(|number| option(number, b"")));
    options.extend([INFO, GO].map(|number| option(number, &query("disk", &[]))));
    options.push(option(GO, &vec![0; 33 << 10]));
    let expected: Vec<(u32, u32)> = [99, LIST, LIST, STRUCTURED_REPLY, EXTENDED_HEADERS, INFO, GO, GO]
        .map(|number| (number, ERR_TLS_REQD))
        .to_vec();
    assert_eq!(kinds(Tls::Required, &options), expected);
    let driver = after(Tls::Required, &options);
    assert!(driver.events.iter().all(|event| matches!(event, Event::Sent(_))), "{:?}", driver.events);

    let opened = after(Tls::Required, &[option(STARTTLS, b""), option(GO, &query("disk", &[]))]);
    assert!(opened.session.is_transmitting());
    let old = after(Tls::Required, &[option(EXPORT_NAME, b"disk")]);
    assert_eq!(old.events, [Event::Closed(CloseReason::TlsRequired)]);
    let aborted = after(Tls::Required, &[option(ABORT, b"")]);
    let said = Event::Sent(option_reply(ABORT, ACK, b""));
    assert_eq!(aborted.events, [said, Event::Closed(CloseReason::Aborted)]);
}

#[test]
fn an_export_may_want_tls_for_itself() {
    let options = [option(INFO, &query("secret", &[])), option(GO, &query("secret", &[]))];
    assert_eq!(kinds(Tls::Optional, &options), [(INFO, ERR_TLS_REQD), (GO, ERR_TLS_REQD)]);
    let old = after(Tls::Optional, &[option(EXPORT_NAME, b"secret")]);
    assert_eq!(old.events.last(), Some(&Event::Closed(CloseReason::ExportRefused)));
}
