//! The handshake by exact bytes.

use crate::bytes::*;
use crate::driver::{Driver, Event, run};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{CloseReason, Outcome, Session};

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_SHUTDOWN: u32 = 0x8000_0007;
const ERR_TOO_BIG: u32 = 0x8000_0009;

fn closed(driver: &Driver) -> Option<CloseReason> {
    match driver.events.last() {
        Some(Event::Closed(reason)) => Some(*reason),
        _ => None,
    }
}

/// Type and data of every option reply after these options.
fn replies(options: &[Vec<u8>]) -> Vec<(u32, Vec<u8>)> {
    let driver = run(&[&client_flags(FIXED | NO_ZEROES), &options.concat()]);
    split_option_replies(&driver.sent()).into_iter().map(|(_, kind, data)| (kind, data)).collect()
}

fn kinds(options: &[Vec<u8>]) -> Vec<u32> {
    replies(options).into_iter().map(|(kind, _)| kind).collect()
}

#[test]
fn greeting() {
    assert_eq!(&Session::greeting(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_close() {
    let driver = run(&[&client_flags(FIXED | 4)]);
    assert_eq!(closed(&driver), Some(CloseReason::ClientFlagsUnknown(4)));
}

#[test]
fn go_with_every_information() {
    let driver = run(&[&client_flags(3), &option(7, &query("disk", &[3, 1, 2, 99]))]);
    assert_eq!(driver.events[0], Event::Opened("disk".into()));
    let expected = [
        option_reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\x0d\x6d"),
        option_reply(7, 3, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0"),
        option_reply(7, 3, b"\0\x01disk"),
        option_reply(7, 3, b"\0\x02disk in memory"),
        option_reply(7, 1, b""),
    ];
    assert_eq!(driver.sent(), expected.concat());
    assert!(driver.session.is_transmitting());
    assert!(!driver.session.is_structured());
}

#[test]
fn info_answers_and_stays_in_the_handshake() {
    let driver = run(&[&client_flags(3), &option(8, b""), &option(6, &query("disk", &[]))]);
    // Size and flags only, now with DF because replies are structured.
    let expected =
        [option_reply(8, 1, b""), option_reply(6, 3, b"\0\0\0\0\0\0\0\x10\0\0\x0d\xed"), option_reply(6, 1, b"")];
    assert_eq!(driver.sent(), expected.concat());
    assert!(!driver.session.is_transmitting());
}

#[test]
fn export_name_with_and_without_padding() {
    let answer = b"\0\0\0\0\0\x10\0\0\x0d\x6d";
    let driver = run(&[&client_flags(3), &option(1, b"disk")]);
    assert_eq!(driver.sent(), answer);
    let driver = run(&[&client_flags(0), &option(1, b"disk")]);
    assert_eq!(driver.sent(), [&answer[..], &[0; 124]].concat());
    assert!(driver.session.is_transmitting());
}

#[test]
fn export_name_cannot_be_refused_but_by_closing() {
    let driver = run(&[&client_flags(3), &option(1, b"none")]);
    assert_eq!(closed(&driver), Some(CloseReason::ExportRefused));
    assert_eq!(driver.sent(), b"");
    let driver = run(&[&client_flags(3), &option(1, &[b'x'; 4097])]);
    assert_eq!(closed(&driver), Some(CloseReason::ExportNameInvalid));
    let driver = run(&[&client_flags(3), &option(1, b"\xff")]);
    assert_eq!(closed(&driver), Some(CloseReason::ExportNameInvalid));
}

#[test]
fn exports_are_refused_with_a_message_and_the_client_may_go_on() {
    let go = |name| option(7, &query(name, &[]));
    let found = replies(&[go("none"), go("elsewhere"), go("late"), go("disk")]);
    assert_eq!(found[0], (ERR_UNKNOWN, b"no such export".to_vec()));
    assert_eq!(found[1], (ERR_POLICY, b"attached to node b".to_vec()));
    assert_eq!(found[2], (ERR_SHUTDOWN, b"going down".to_vec()));
    assert_eq!(found.last(), Some(&(ACK, Vec::new())));
}

#[test]
fn list() {
    let found = replies(&[option(3, b""), option(3, b"x")]);
    assert_eq!(found[0], (2, b"\0\0\0\x04diska disk".to_vec()));
    assert_eq!(found[1], (ACK, Vec::new()));
    assert_eq!(found[2].0, ERR_INVALID);
}

#[test]
fn abort_is_acknowledged_then_closed() {
    let driver = run(&[&client_flags(3), &option(2, b""), &option(3, b"")]);
    assert_eq!(driver.sent(), option_reply(2, 1, b""));
    assert_eq!(closed(&driver), Some(CloseReason::Aborted));
}

#[test]
fn unknown_options_are_refused_and_their_data_consumed() {
    let starttls = option(5, b"");
    let unknown = option(77, &[b'I'; 70_000]);
    assert_eq!(kinds(&[starttls, unknown, option(8, b"")]), [ERR_UNSUP, ERR_UNSUP, ACK]);
}

#[test]
fn long_data_is_refused_without_being_held() {
    let mut driver = Driver::new(Limits::PRODUCTION);
    driver.feed(&client_flags(3));
    for piece in option(7, &vec![0; 40 << 10]).chunks(1000) {
        driver.feed(piece);
        assert!(driver.session.buffered_bytes() < 16);
    }
    driver.feed(&option(8, b""));
    let kinds: Vec<u32> = split_option_replies(&driver.sent()).iter().map(|reply| reply.1).collect();
    assert_eq!(kinds, [ERR_TOO_BIG, ACK]);

    let header = [b"IHAVEOPT", &7u32.to_be_bytes()[..], &(2u32 << 20).to_be_bytes()].concat();
    let driver = run(&[&client_flags(3), &header]);
    assert_eq!(closed(&driver), Some(CloseReason::OptionTooLong { option: 7, length_bytes: 2 << 20 }));
}

#[test]
fn malformed_queries() {
    let go = |data: &[u8]| option(7, data);
    let name_too_long = query(&"x".repeat(4097), &[]);
    let mut info_missing = query("disk", &[3]);
    info_missing.pop();
    let mut trailing = query("disk", &[]);
    trailing.push(0);
    let options = [
        go(b""),
        go(b"\0\0\0\x05disk\0\0"),
        go(b"\xff\xff\xff\xffdisk\0\0"),
        go(&info_missing),
        go(&trailing),
        go(&[&string(b"\xff\xfe")[..], &[0, 0]].concat()),
        go(&[&string(b"a\0b")[..], &[0, 0]].concat()),
        go(&name_too_long),
        go(&query(&"x".repeat(4096), &[])),
    ];
    let mut expected = [ERR_INVALID; 9];
    expected[7] = ERR_TOO_BIG;
    expected[8] = ERR_UNKNOWN;
    assert_eq!(kinds(&options), expected);
}

#[test]
fn contexts_need_structured_replies() {
    assert_eq!(kinds(&[option(10, &contexts("disk", &["base:allocation"]))]), [ERR_INVALID]);
    assert_eq!(kinds(&[option(9, &contexts("disk", &[]))]), [ERR_INVALID]);
}

#[test]
fn contexts_are_listed_and_chosen() {
    const CONTEXT: u32 = 4;
    let list = |queries: &[&str]| kinds(&[option(8, b""), option(9, &contexts("disk", queries))])[1..].to_vec();
    assert_eq!(list(&[]), [CONTEXT, ACK]);
    assert_eq!(list(&["base:"]), [CONTEXT, ACK]);
    assert_eq!(list(&["other:x", "base:allocation"]), [CONTEXT, ACK]);
    assert_eq!(list(&["base:other", "qemu:"]), [ACK]);

    let set = |queries: &[&str]| kinds(&[option(8, b""), option(10, &contexts("disk", queries))])[1..].to_vec();
    assert_eq!(set(&[]), [ACK]);
    assert_eq!(set(&["base:"]), [ACK]);
    assert_eq!(set(&["base:allocation", "base:allocation"]), [CONTEXT, ACK]);
    let found = replies(&[option(8, b""), option(10, &contexts("disk", &["base:allocation"]))]);
    assert_eq!(found[1], (CONTEXT, b"\0\0\0\x01base:allocation".to_vec()));
}

#[test]
fn malformed_context_queries() {
    let mut too_few = contexts("disk", &["base:allocation"]);
    too_few[11] = 2;
    let mut too_many = contexts("disk", &["base:allocation"]);
    too_many[11] = 0;
    let mut absurd = contexts("disk", &[]);
    absurd[8..12].fill(0xff);
    for data in [b"".to_vec(), too_few, too_many, absurd] {
        assert_eq!(kinds(&[option(8, b""), option(10, &data)]), [ACK, ERR_INVALID]);
    }
}

/// Whether block status is served after these options.
fn block_status_after(options: &[Vec<u8>]) -> bool {
    let driver = run(&[&client_flags(3), &option(8, b""), &options.concat(), &request(0, 7, 1, 0, 512)]);
    matches!(driver.events.iter().rev().nth(1), Some(Event::Request(_)))
}

#[test]
fn contexts_hold_for_the_export_they_were_chosen_for() {
    let set = |name, queries: &[&str]| option(10, &contexts(name, queries));
    let go = || option(7, &query("disk", &[]));
    assert!(block_status_after(&[set("disk", &["base:allocation"]), go()]));
    assert!(block_status_after(&[set("disk", &["base:allocation"]), option(1, b"disk")]));
    assert!(!block_status_after(&[go()]));
    assert!(!block_status_after(&[set("other", &["base:allocation"]), go()]));
    // A later choice replaces the earlier one, even if it is empty or malformed.
    assert!(!block_status_after(&[set("disk", &["base:allocation"]), set("disk", &[]), go()]));
    assert!(!block_status_after(&[set("disk", &["base:allocation"]), option(10, b"bad"), go()]));
    // A GO that was refused keeps it.
    let refused = option(7, &query("none", &[]));
    assert!(block_status_after(&[set("disk", &["base:allocation"]), refused, go()]));
}

#[test]
fn a_handshake_out_of_step_closes() {
    let driver = run(&[&client_flags(3), b"IHAVEOPX\0\0\0\x03\0\0\0\0"]);
    assert_eq!(closed(&driver), Some(CloseReason::OptionMagic(u64::from_be_bytes(*b"IHAVEOPX"))));
}

#[test]
fn an_old_client_may_only_name_an_export() {
    let driver = run(&[&client_flags(0), &option(3, b"")]);
    assert_eq!(closed(&driver), Some(CloseReason::NotFixedNewstyle(3)));
}

#[test]
fn haggling_without_end_closes() {
    let options = option(99, b"").repeat(257);
    let driver = run(&[&client_flags(3), &options]);
    assert_eq!(closed(&driver), Some(CloseReason::TooManyOptions(256)));
    assert_eq!(split_option_replies(&driver.sent()).len(), 256);
}

#[test]
fn nothing_is_taken_while_an_answer_is_owed() {
    let mut session = Session::new(Limits::PRODUCTION);
    let input = [client_flags(3), option(3, b""), option(2, b"")].concat();
    let (consumed, outcome) = session.receive(&input);
    assert_eq!((consumed, outcome), (20, Outcome::ListExports));
    assert_eq!(session.receive(&input[20..]), (0, Outcome::Busy));
    assert_eq!(session.answer_exports(&[]), option_reply(3, 1, b""));
    assert!(matches!(session.receive(&input[20..]), (16, Outcome::Send(_))));
    assert_eq!(session.receive(&[]), (0, Outcome::Close { reason: CloseReason::Aborted }));
    assert_eq!(session.receive(&[1]), (0, Outcome::Close { reason: CloseReason::Aborted }));
}
