//! What the fuzz targets of `nbd/fuzz` do with an input, here so that ordinary tests replay the same inputs.
//!
//! Bytes of the other end are judged, never trusted: whatever they are, taking them ends in an outcome, within the limits,
//! and the same however they are cut. An input begins with two bytes: how the session is set up, and how its input is cut.
//! One that breaks a rule panics. It must never depend on anything but the input.

mod client;
mod handshake;
mod requests;

pub use client::check_client;
pub use handshake::check_handshake;
pub use requests::check_requests;

use crate::export::{BlockSizes, ExportInfo, Features};
use crate::limits::Limits;
use crate::session::{CloseReason, Operation, Outcome, Request, Session};

/// Name of a target in `nbd/fuzz`, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 3] =
    [("client", check_client), ("handshake", check_handshake), ("requests", check_requests)];

/// Hostile limits: all are met within inputs of a few kilobytes, as far as the protocol lets them be so low.
const LIMITS: Limits = Limits {
    options_max: 12,
    option_data_bytes_max: 4160,
    option_skip_bytes_max: 6000,
    requests_inflight_max: 3,
    payload_bytes_max: 1 << 20,
    payload_skip_bytes_max: (1 << 20) + 512,
};

const SIZE_BYTES: u64 = 3 << 20;

fn export(name: &str, features: Features, min_bytes: u32) -> ExportInfo {
    let block_sizes = BlockSizes { min_bytes, preferred_bytes: 4096, max_bytes: 1 << 20 };
    ExportInfo {
        name: name.to_owned(),
        description: Some("a disk".into()),
        size_bytes: SIZE_BYTES,
        block_sizes,
        features,
    }
}

/// Everything, or the least.
fn features(all: bool, read_only: bool) -> Features {
    Features {
        read_only,
        flush: all,
        fua: all,
        trim: all,
        write_zeroes: all,
        fast_zero: all,
        dont_fragment: all,
        multi_conn: all,
        cache: all,
        rotational: false,
    }
}

/// Lengths of the pieces that an input is cut into: from its second byte, or everything at once.
fn pieces(seed: Option<u8>) -> impl FnMut() -> usize {
    let mut state = u32::from(seed.unwrap_or(0)) | 1;
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.map_or(usize::MAX, |_| (state >> 24) as usize % 40 + 1)
    }
}

/// What one session made of an input.
#[derive(Debug, Default, PartialEq, Eq)]
struct Story {
    /// What it sent, and what it asked for.
    events: Vec<Event>,
    closed: Option<CloseReason>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Sent(Vec<u8>),
    Asked(String),
    Request(Request),
    Payload(Vec<u8>),
}

/// How a target answers a session.
trait Answers {
    /// An outcome that is to be answered, or acted on. May use the session to answer at once.
    fn answer(&mut self, session: &mut Session, outcome: Outcome, story: &mut Story);

    /// The session takes nothing before something is answered.
    fn busy(&mut self, session: &mut Session, story: &mut Story);
}

/// Gives a session its input in pieces, and holds it to the rules that are the same in every phase.
fn drive(session: &mut Session, input: &[u8], mut piece: impl FnMut() -> usize, answers: &mut impl Answers) -> Story {
    let mut story = Story::default();
    let (mut rest, mut outcomes) = (input, 0);
    let mut payload = Vec::new();
    loop {
        let (mut given, later) = rest.split_at(piece().min(rest.len()));
        rest = later;
        let last = given.is_empty();
        loop {
            let pending = session.payload_pending_bytes() as usize;
            if pending > 0 {
                let (taken, after) = given.split_at(pending.min(given.len()));
                payload.extend_from_slice(taken);
                session.payload_taken(taken.len() as u32);
                given = after;
                if taken.len() < pending {
                    break;
                }
                story.events.push(Event::Payload(std::mem::take(&mut payload)));
            }
            let (consumed, outcome) = session.receive(given);
            assert!(consumed <= given.len());
            given = &given[consumed..];
            assert!(session.buffered_bytes() <= LIMITS.option_data_bytes_max as usize);
            assert!(session.requests_inflight() <= LIMITS.requests_inflight_max);
            assert!(session.payload_pending_bytes() <= LIMITS.payload_bytes_max);
            // A header of at least 16 bytes gives at most two outcomes and is answered once.
            outcomes += 1;
            assert!(outcomes <= 2 * input.len() + 64, "outcomes without end");
            match outcome {
                Outcome::NeedMore => {
                    assert!(given.is_empty());
                    break;
                }
                Outcome::Busy => answers.busy(session, &mut story),
                Outcome::Close { reason } => {
                    assert_eq!(session.receive(given), (0, Outcome::Close { reason }), "a closed session stays closed");
                    story.closed = Some(reason);
                    return story;
                }
                outcome => answers.answer(session, outcome, &mut story),
            }
        }
        if last {
            return story;
        }
    }
}

/// The rules of a request that was accepted.
fn check_request(request: &Request, features: Features, min_bytes: u32) {
    let Request { operation, offset_bytes, length_bytes, fua, .. } = *request;
    let end = offset_bytes.checked_add(length_bytes).expect("a range ends");
    assert!(end <= SIZE_BYTES, "outside: {request:?}");
    assert!(offset_bytes.is_multiple_of(u64::from(min_bytes)) && length_bytes.is_multiple_of(u64::from(min_bytes)));
    assert_eq!(length_bytes == 0, operation == Operation::Flush);
    if matches!(operation, Operation::Read { .. } | Operation::Write) {
        assert!(length_bytes <= u64::from(LIMITS.payload_bytes_max), "too long: {request:?}");
    }
    if matches!(operation, Operation::Write | Operation::Trim | Operation::WriteZeroes { .. }) {
        assert!(!features.read_only, "on a read-only export: {request:?}");
    }
    let promised = match operation {
        Operation::Read { dont_fragment } => !dont_fragment || features.dont_fragment,
        Operation::Write | Operation::BlockStatus { .. } => true,
        Operation::Flush => features.flush,
        Operation::Trim => features.trim,
        Operation::Cache => features.cache,
        Operation::WriteZeroes { fast, .. } => features.write_zeroes && (!fast || features.fast_zero),
    };
    assert!(promised && (!fua || features.fua), "not promised: {request:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Seeds, finds of the past among them, keep every rule.
    #[test]
    fn fuzz_seeds() {
        for (name, check) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
            let mut count = 0;
            for entry in std::fs::read_dir(&folder).expect("the target's seeds") {
                let path = entry.expect("a seed").path();
                println!("{}", path.display());
                check(&std::fs::read(path).expect("a seed"));
                count += 1;
            }
            assert!(count > 0, "{name} has no seeds");
        }
    }

    #[test]
    fn a_request_outside_is_noticed() {
        let cookie = crate::wire::Cookie(1);
        let request =
            Request { cookie, operation: Operation::Write, offset_bytes: SIZE_BYTES, length_bytes: 512, fua: false };
        let check = |request: Request, read_only| {
            std::panic::catch_unwind(|| check_request(&request, features(true, read_only), 512)).is_ok()
        };
        assert!(!check(request, false));
        assert!(check(Request { offset_bytes: 0, ..request }, false));
        assert!(!check(Request { offset_bytes: 0, ..request }, true));
        assert!(!check(Request { offset_bytes: 1, ..request }, false));
    }
}
