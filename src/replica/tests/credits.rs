//! Whatever becomes of a request, the credits of its link that it holds go back: once, and not before it is done.

use super::*;
use crate::wire::{Class, Ledger, Window, Windows};
use std::rc::Rc;

/// A rig whose messages come over a link with credits.
struct Link {
    rig: Rig,
    ledger: Rc<Ledger>,
}

const WINDOW: Window = Window { operations: 100, bytes: 1 << 30 };

impl Link {
    fn to(rig: Rig) -> Self {
        Self { rig, ledger: Ledger::of_link(Windows { foreground: WINDOW, background: WINDOW }) }
    }

    fn hear(&mut self, message: ToReplica) -> Vec<String> {
        self.hear_in(5, message)
    }

    fn hear_in(&mut self, epoch: u64, message: ToReplica) -> Vec<String> {
        let permit = message.cost().map_or(Permit::none(), |cost| self.ledger.admit(cost).unwrap());
        self.rig.batch(vec![Event::Message { link: LinkId(1), envelope: envelope(epoch), message, permit }])
    }

    /// Operations and blocks of a class that are not done.
    fn held(&self, class: Class) -> (u64, u64) {
        let (operations, bytes) = self.ledger.held(class);
        assert!(bytes.is_multiple_of(4096));
        (operations, bytes / 4096)
    }

    fn front(&self) -> (u64, u64) {
        self.held(Class::Foreground)
    }

    fn back(&self) -> (u64, u64) {
        self.held(Class::Background)
    }
}

fn background_read(request: u64, range: BlockRange) -> ToReplica {
    ToReplica::Read { request, range, map_only: false, prefix_min: 0, background: true }
}

#[test]
fn a_write_holds_them_until_it_is_durable_and_a_duplicate_not_at_all() {
    let mut link = Link::to(Rig::member());
    link.hear(write(1, run(0, 4)));
    assert_eq!(link.front(), (1, 4));
    link.hear(write(1, run(0, 4))); // accepted already
    assert_eq!(link.front(), (1, 4));
    link.hear(trim(2, run(0, 900)));
    assert_eq!(link.front(), (2, 4));
    link.rig.done();
    assert_eq!(link.front(), (1, 0));
    link.rig.done();
    link.hear(write(1, run(0, 4))); // durable already
    assert_eq!((link.front(), link.back()), ((0, 0), (0, 0)));
}

#[test]
fn a_write_that_is_refused_holds_none() {
    let mut link = Link::to(Rig::member());
    assert_eq!(link.hear_in(4, write(1, run(0, 1))), ["tell e4: fenced by 5"]);
    assert_eq!(link.hear_in(6, write(1, run(0, 1))), NOTHING); // an epoch that has not begun here
    let older = Progress { config: 0, ..progress() };
    assert_eq!(link.hear(write_under(older, 1, run(0, 1))), NOTHING);
    let envelope = Envelope { device: DeviceId::from_u128(9), ..envelope(5) };
    let (message, link_id) = (write(1, run(0, 1)), LinkId(1));
    let permit = link.ledger.admit(message.cost().unwrap()).unwrap();
    assert_eq!(link.rig.batch(vec![Event::Message { link: link_id, envelope, message, permit }]), ["alarm"]);
    assert_eq!(link.front(), (0, 0));
}

/// Symptom: a link stands still for ever. Cause: a write was lost, those behind it waited for it with all the credits that
/// sending it again needs.
#[test]
fn a_write_that_waits_for_an_earlier_one_gives_them_back() {
    let mut link = Link::to(Rig::member());
    assert_eq!(link.hear(write(2, run(4, 2))), NOTHING);
    assert_eq!(link.front(), (0, 0));
    assert_eq!(link.hear(write(1, run(0, 1))), ["store: write 5.1 [0+1]=1", "store: write 5.2 [4+2]=2"]);
    assert_eq!(link.front(), (1, 1));
}

/// Without room on the device it is dropped and comes again.
#[test]
fn a_write_that_waits_for_an_earlier_one_needs_room() {
    let mut link = Link::to(Rig::member());
    let window = Window { operations: 2, bytes: 1 << 20 };
    link.rig.engine.parking = Ledger::of_pool(Windows { foreground: window, background: window });
    (2..=4).for_each(|index| drop(link.hear(write(index, run(index, 1)))));
    assert_eq!(link.front(), (0, 0));
    let expected = ["store: write 5.1 [1+1]=1", "store: write 5.2 [2+1]=2", "store: write 5.3 [3+1]=3"];
    assert_eq!(link.hear(write(1, run(1, 1))), expected);
    assert_eq!(link.hear(write(4, run(4, 1))), ["store: write 5.4 [4+1]=4"]);
}

#[test]
fn what_waits_for_space_gives_them_back_while_the_device_has_room() {
    let mut link = Link::to(Rig::member());
    let window = Window { operations: 1, bytes: 1 << 20 };
    link.rig.engine.parking = Ledger::of_pool(Windows { foreground: window, background: window });
    link.hear(write(1, run(0, 2)));
    link.rig.answer(FULL);
    assert_eq!(link.front(), (0, 0));
    link.hear(write(2, run(1, 4))); // behind the first; no room is left
    assert_eq!(link.front(), (1, 4));
    assert_eq!(link.rig.tick(), ["store: write 5.1 [0+2]=1"]);
    link.rig.answer(FULL);
    assert_eq!(link.front(), (1, 4));
    link.rig.tick();
    link.rig.done();
    assert_eq!(link.rig.tick(), ["store: write 5.2 [1+4]=2"]);
    link.rig.done();
    assert_eq!(link.front(), (0, 0));
}

#[test]
fn a_promise_gives_back_what_it_drops_and_the_store_the_rest() {
    let mut link = Link::to(Rig::member());
    let window = Window { operations: 1, bytes: 0 };
    link.rig.engine.parking = Ledger::of_pool(Windows { foreground: window, background: window });
    link.hear(write(1, run(0, 2)));
    link.rig.answer(FULL);
    link.hear(write(2, run(0, 1))); // waits behind it
    link.hear(write(3, run(8, 4)));
    assert_eq!(link.front(), (3, 7));
    link.hear_in(6, ToReplica::Seal);
    assert_eq!(link.front(), (1, 4));
    link.rig.answer(FULL);
    assert_eq!(link.front(), (0, 0));
}

/// A write that a crash lost, partly under a later one: the whole holds its credits until it is listed.
#[test]
fn a_patched_write_holds_them_to_its_end_or_to_a_promise() {
    for promise in [false, true] {
        let later = ListEntry { range: run(1, 1), ..entry(5, 2, EntryOrigin::Live) };
        let state = LaneState { current: Epoch(5), config: 1, list: vec![later], ..LaneState::default() };
        let mut link = Link::to(Rig::restarted(5, state));
        link.hear(write(1, run(0, 3)));
        assert_eq!((link.rig.unanswered.len(), link.front()), (2, (1, 3)));
        if promise {
            link.hear_in(6, ToReplica::Seal);
        } else {
            link.rig.done();
            assert_eq!(link.rig.done(), ["store: write 5.1 [0+3]=held"]);
            assert_eq!(link.front(), (1, 3));
            link.rig.done();
        }
        assert_eq!(link.front(), (0, 0));
    }
}

#[test]
fn a_copy_gives_them_back_part_by_part() {
    let mut link = Link::to(Rig::joiner());
    link.hear(write_under(Progress { config: 2, member: false, ..progress() }, 11, run(2, 1)));
    assert_eq!(link.front(), (1, 1));
    let parts = ["store: write 4.6 [0+2]=6 copy", "store: write 4.6 [3+1]=6 copy"];
    assert_eq!(link.hear(copy(7, 1, run(0, 4), 6)), parts);
    assert_eq!(link.hear(copy(7, 1, run(0, 4), 6)), NOTHING); // on its way
    assert_eq!(link.back(), (1, 4));
    link.rig.done(); // the live write
    assert_eq!((link.front(), link.back()), ((0, 0), (1, 4)));
    link.rig.done();
    assert_eq!(link.back(), (1, 2));
    assert_eq!(link.rig.done(), ["tell: copy 1 of 7 done"]);
    assert_eq!(link.back(), (0, 0));
}

#[test]
fn a_copy_that_is_superseded_or_of_another_join_holds_none() {
    let mut link = Link::to(Rig::joiner());
    link.hear(write_under(Progress { config: 2, member: false, ..progress() }, 11, run(2, 1)));
    assert_eq!(link.hear(copy(7, 1, run(2, 1), 6)), NOTHING); // answered with the write; its content is gone
    assert_eq!(link.hear(copy(6, 2, run(0, 1), 6)), ["tell: join 6 lost"]);
    assert_eq!(link.back(), (0, 0));
}

/// It finds no room, and before there is some a live write takes its place.
#[test]
fn a_copy_that_waited_for_space_in_vain_holds_none() {
    let mut link = Link::to(Rig::joiner());
    let window = Window { operations: 1, bytes: 0 };
    link.rig.engine.parking = Ledger::of_pool(Windows { foreground: window, background: window });
    link.hear(copy(7, 1, run(0, 4), 6));
    link.rig.answer(FULL);
    assert_eq!(link.back(), (1, 4));
    link.rig.engine.lanes.values_mut().for_each(|lane| lane.written.insert(run(0, 4)));
    assert_eq!(link.rig.tick(), ["tell: copy 1 of 7 done"]);
    assert_eq!(link.back(), (0, 0));
}

#[test]
fn a_read_holds_what_its_answer_may_carry_until_it_is_answered() {
    let mut link = Link::to(Rig::member());
    link.hear(read(1, run(0, 4)));
    link.hear(background_read(2, run(8, 2)));
    assert_eq!((link.front(), link.back()), ((1, 4), (1, 2)));
    let refused = || Reply::Error(StoreError::Refused("range".into()));
    link.rig.answer(refused());
    assert_eq!((link.front(), link.back()), ((0, 0), (1, 2)));
    link.rig.answer(refused());
    let unready = ToReplica::Read { request: 3, range: run(0, 1), map_only: false, prefix_min: 9, background: true };
    assert_eq!(link.hear(unready), ["tell: read 3 refused"]);
    assert_eq!(link.back(), (0, 0));
}

#[test]
fn a_repair_holds_them_until_the_store_has_answered() {
    let mut link = Link::to(Rig::member());
    for answer in [Reply::Done, Reply::Error(StoreError::Refused("another version".into()))] {
        link.hear(ToReplica::Repair { block: 4, checksum: 9, payload: Payload::copied_from(&[1; 4096]) });
        assert_eq!(link.back(), (1, 1));
        link.rig.answer(answer);
        assert_eq!(link.back(), (0, 0));
    }
}

#[test]
fn a_device_that_fails_gives_back_everything() {
    let mut link = Link::to(Rig::member());
    let window = Window { operations: 1, bytes: 0 };
    link.rig.engine.parking = Ledger::of_pool(Windows { foreground: window, background: window });
    link.hear(write(1, run(0, 1)));
    link.rig.answer(FULL); // waits
    link.hear(write(2, run(8, 1)));
    link.hear(read(1, run(0, 4)));
    assert_eq!(link.front(), (3, 6));
    let failure = || Reply::Error(StoreError::Failed("gone".into()));
    link.rig.answer(failure());
    assert_eq!(link.front(), (1, 4)); // the read, which the store has not answered
    link.rig.answer(failure());
    link.hear(write(3, run(0, 1)));
    assert_eq!(link.front(), (0, 0));
}

#[test]
fn a_forgotten_volume_gives_back_everything() {
    let mut link = Link::to(Rig::member());
    let window = Window { operations: 1, bytes: 0 };
    link.rig.engine.parking = Ledger::of_pool(Windows { foreground: window, background: window });
    link.hear(write(1, run(0, 1)));
    link.rig.answer(FULL); // waits
    link.hear(write(2, run(8, 1)));
    link.rig.batch(vec![Event::Forget { volume: VOLUME }]);
    assert_eq!(link.front(), (1, 1)); // what the store still has
    link.rig.done();
    assert_eq!(link.front(), (0, 0));
}

/// A new link begins with a new grant; the old one's requests give back to nobody.
#[test]
fn the_end_of_a_link_leaves_its_requests_alone() {
    let mut link = Link::to(Rig::member());
    link.hear(write(1, run(0, 1)));
    link.rig.batch(vec![Event::LinkClosed { link: LinkId(1) }]);
    assert_eq!(link.front(), (1, 1));
    link.rig.done();
    assert_eq!(link.front(), (0, 0));
}
