//! However the client's bytes are cut, the same happens; and no bytes make the session panic or
//! hold more than its limits.

use crate::bytes::*;
use crate::driver::{Driver, Event};
use ashlar_nbd::limits::Limits;
use proptest::prelude::*;

fn names() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["disk", "disk", "disk", "elsewhere", "none", ""])
}

/// An option, mostly well formed.
fn an_option() -> impl Strategy<Value = Vec<u8>> {
    let infos = prop::collection::vec(0u16..6, 0..4);
    let queries = prop::sample::subsequence(vec!["base:allocation", "base:", "x:y"], 0..3);
    let number = prop_oneof![0u32..12, any::<u32>()];
    prop_oneof![
        2 => (Just(6u32), names(), infos.clone()).prop_map(|(number, name, infos)| option(number, &query(name, &infos))),
        1 => (Just(7u32), prop::sample::select(vec!["elsewhere", "none"]), infos).prop_map(|(number, name, infos)| option(number, &query(name, &infos))),
        3 => (9u32..11, names(), queries).prop_map(|(number, name, queries)| option(number, &contexts(name, &queries))),
        3 => prop::sample::select(vec![3u32, 8, 8, 5]).prop_map(|number| option(number, b"")),
        1 => (number, prop::collection::vec(any::<u8>(), 0..64)).prop_map(|(number, data)| option(number, &data)),
        1 => Just(option(7, &vec![0; 33 << 10])),
    ]
}

/// A request, mostly well formed, with its payload.
fn a_request() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![8 => Just(0u16), 2 => 0u16..64, 1 => any::<u16>()];
    let command =
        prop_oneof![16 => prop::sample::select(vec![0u16, 1, 1, 3, 4, 5, 6, 7]), 1 => any::<u16>(), 1 => Just(2)];
    let offset = prop_oneof![8 => (0u64..2050).prop_map(|block| block * 512), 1 => any::<u64>()];
    let length = prop_oneof![16 => (0u32..20).prop_map(|blocks| blocks * 512), 1 => any::<u32>()];
    (flags, command, any::<u64>(), offset, length).prop_map(|(flags, command, cookie, offset, length)| {
        let mut bytes = request(flags, command, cookie, offset, length);
        if command == 1 {
            bytes.resize(bytes.len() + (length as usize).min(1 << 16), 0xda);
        }
        bytes
    })
}

prop_compose! {
    /// What a client might send: a handshake, requests, and sometimes a byte gone wrong.
    fn a_stream()(
        flags in prop_oneof![8 => Just(3u32), 1 => 0u32..8],
        options in prop::collection::vec(an_option(), 0..6),
        go in prop::bool::weighted(0.8),
        requests in prop::collection::vec(a_request(), 0..12),
        damage in prop::option::weighted(0.25, (any::<prop::sample::Index>(), any::<u8>())),
    ) -> Vec<u8> {
        let mut stream = client_flags(flags);
        stream.extend(options.concat());
        if go {
            stream.extend(option(7, &query("disk", &[3])));
        }
        stream.extend(requests.concat());
        if let Some((at, byte)) = damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream
    }
}

fn events(stream: &[u8], pieces: &[usize]) -> Vec<Event> {
    let mut driver = Driver::new(Limits::PRODUCTION);
    driver.feed_in_pieces(stream, pieces);
    driver.events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splitting_changes_nothing(stream in a_stream(), pieces in prop::collection::vec(1usize..3000, 1..8)) {
        let whole = events(&stream, &[usize::MAX]);
        prop_assert_eq!(&events(&stream, &pieces), &whole);
        let small: Vec<usize> = pieces.iter().map(|piece| piece % 7 + 1).collect();
        prop_assert_eq!(&events(&stream, &small), &whole);
    }

    #[test]
    fn garbage_does_not_panic(garbage in prop::collection::vec(any::<u8>(), 0..4096), cut in 1usize..64) {
        events(&garbage, &[cut]);
        let polite = [client_flags(3), garbage.clone()].concat();
        events(&polite, &[cut]);
        let transmitting = [client_flags(3), option(7, &query("disk", &[])), garbage].concat();
        events(&transmitting, &[cut]);
    }
}

#[test]
fn the_generator_reaches_both_phases() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut accepted = 0;
    let mut payloads = 0;
    for _ in 0..200 {
        let stream = a_stream().new_tree(&mut runner).expect("a stream").current();
        for event in events(&stream, &[usize::MAX]) {
            accepted += u32::from(matches!(event, Event::Request(_)));
            payloads += u32::from(matches!(event, Event::Payload(_)));
        }
    }
    assert!(accepted > 200, "{accepted}");
    assert!(payloads > 20, "{payloads}");
}
