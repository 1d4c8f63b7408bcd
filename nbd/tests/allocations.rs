//! Accepting a request and answering it allocates nothing.

use ashlar_nbd::export::{BlockSizes, ExportInfo, Features};
use ashlar_nbd::limits::Limits;
use ashlar_nbd::session::{Operation, Outcome, Session};
use ashlar_nbd::wire::ErrorNumber;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` was the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

fn transmitting() -> Session {
    let mut session = Session::new(Limits::PRODUCTION);
    let input = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x01\0\0\0\x04disk";
    let (first, outcome) = session.receive(input);
    assert!(matches!(outcome, Outcome::Send(_)));
    let (rest, outcome) = session.receive(&input[first..]);
    assert!(matches!(outcome, Outcome::OpenExport { .. }));
    assert_eq!(first + rest, input.len());
    session.answer_export(&ExportInfo {
        name: "disk".into(),
        description: None,
        size_bytes: 1 << 20,
        block_sizes: BlockSizes::default(),
        features: Features { flush: true, ..Features::default() },
    });
    session
}

fn header(command: u8) -> [u8; 28] {
    let mut header = *b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\x10\0";
    header[7] = command;
    if command == 3 {
        header[26] = 0;
    }
    header
}

#[test]
fn requests_and_replies_do_not_allocate() {
    let mut session = transmitting();
    let before = ALLOCATIONS.get();
    let mut bytes_out = 0;
    for round in 0..1000 {
        let input = header([0, 1, 3][round % 3]);
        // Whole and in two pieces.
        let cut = round % 28;
        let (first, second) = input.split_at(cut);
        let (_, outcome) = session.receive(first);
        assert_eq!(outcome, Outcome::NeedMore);
        let (_, Outcome::Request(request)) = session.receive(second) else { panic!("a request was not accepted") };
        bytes_out += match request.operation {
            Operation::Read { .. } => session.reply_read(&request).len(),
            Operation::Write => {
                session.payload_taken(4096);
                session.reply_error(request.handle(), ErrorNumber::Io, "the device failed").len()
            }
            _ => session.reply_done(request.handle()).len(),
        };
    }
    assert_eq!(ALLOCATIONS.get(), before);
    assert!(bytes_out > 0);
}
