//! The callee's side of flow control: what requests hold of what was granted, and what is free to be returned. Pure.
//!
//! A request's [`Permit`] goes with the request whatever becomes of it; dropping it is what releases the credits.

use super::credit::{Class, Credit, Window, Windows};
use std::cell::Cell;
use std::rc::Rc;

/// Operations and bytes of one class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Amount {
    operations: u64,
    bytes: u64,
}

impl Amount {
    fn of(credit: Credit) -> Self {
        Self { operations: u64::from(credit.operations), bytes: credit.bytes }
    }

    fn plus(self, more: Self) -> Self {
        Self { operations: self.operations + more.operations, bytes: self.bytes + more.bytes }
    }

    /// Nobody gives back what was not taken: a permit is the only way to hold something.
    fn minus(self, less: Self) -> Self {
        let operations = self.operations.checked_sub(less.operations).expect("held by a permit");
        Self { operations, bytes: self.bytes.checked_sub(less.bytes).expect("held by a permit") }
    }

    /// True if either number has reached this part of the window.
    fn reaches(self, window: Window, divisor: u64) -> bool {
        self.operations >= (u64::from(window.operations) / divisor).max(1)
            || self.bytes >= (window.bytes / divisor).max(1)
    }
}

/// One class of a ledger.
#[derive(Debug, Default)]
struct Book {
    /// With requests that are not done.
    held: Cell<Amount>,
    /// Done, and not returned to the caller yet.
    released: Cell<Amount>,
}

/// Credits of one link, as its callee counts them.
#[derive(Debug)]
pub struct Ledger {
    windows: Windows,
    books: [Book; 2],
    /// Released credits wait to be returned over a link; else they are free at once.
    returns: bool,
}

impl Ledger {
    /// For a link: what is released waits for [`Self::take_due`].
    pub fn of_link(windows: Windows) -> Rc<Self> {
        Rc::new(Self { windows, books: Default::default(), returns: true })
    }

    /// For a pool with one owner: what is released can be taken again.
    pub fn of_pool(windows: Windows) -> Rc<Self> {
        Rc::new(Self { windows, books: Default::default(), returns: false })
    }

    /// Takes the cost of a request.
    ///
    /// # Errors
    /// The caller takes more than was granted to it.
    pub fn admit(self: &Rc<Self>, cost: Credit) -> Result<Permit, Overdraft> {
        let (book, window) = (&self.books[cost.class as usize], self.windows.of(cost.class));
        let held = book.held.get().plus(Amount::of(cost));
        let used = held.plus(book.released.get());
        if used.operations > u64::from(window.operations) || used.bytes > window.bytes {
            return Err(Overdraft { cost, window });
        }
        book.held.set(held);
        Ok(Permit(Some((self.clone(), cost))))
    }

    fn release(&self, credit: Credit) {
        let book = &self.books[credit.class as usize];
        book.held.set(book.held.get().minus(Amount::of(credit)));
        if self.returns {
            book.released.set(book.released.get().plus(Amount::of(credit)));
        }
    }

    /// What should be returned now: everything released of a class in which that is half of the window, or of each class
    /// if `all`. A caller without credits has left at least half of them with requests that are not done, so waiting for
    /// more keeps no device idle; `all`, now and then, is for requests that take long.
    pub fn take_due(&self, all: bool) -> impl Iterator<Item = Credit> {
        Class::ALL.into_iter().filter_map(move |class| {
            let released = &self.books[class as usize].released;
            let due = released.get().reaches(self.windows.of(class), if all { u64::MAX } else { 2 });
            let Amount { operations, bytes } = if due { released.take() } else { Amount::default() };
            let operations = u32::try_from(operations).expect("within the window");
            (operations > 0 || bytes > 0).then_some(Credit { class, operations, bytes })
        })
    }

    /// Operations and bytes of a class that requests hold: for tests.
    #[cfg(test)]
    pub(crate) fn held(&self, class: Class) -> (u64, u64) {
        let Amount { operations, bytes } = self.books[class as usize].held.get();
        (operations, bytes)
    }
}

/// A request that exceeds what its caller was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a request of {} bytes overdraws the {} credits of this link, {} operations and {} bytes",
    cost.bytes, cost.class.name(), window.operations, window.bytes
)]
pub struct Overdraft {
    cost: Credit,
    window: Window,
}

/// Credits held by a request, released when it is dropped. It cannot be copied, but shared out.
#[derive(Debug, Default)]
pub struct Permit(Option<(Rc<Ledger>, Credit)>);

impl Permit {
    /// Of a request that needs no credits: a control message, or one that came over no link.
    pub fn none() -> Self {
        Self(None)
    }

    /// Gives some of the bytes, at most all, and no operation to a part of the request.
    pub fn share(&mut self, bytes: u64) -> Self {
        let Some((ledger, credit)) = &mut self.0 else { return Self(None) };
        let shared = Credit { operations: 0, bytes: bytes.min(credit.bytes), ..*credit };
        credit.bytes -= shared.bytes;
        Self(Some((ledger.clone(), shared)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((ledger, credit)) = self.0.take() {
            ledger.release(credit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows =
        Windows { foreground: Window { operations: 8, bytes: 1000 }, background: Window { operations: 4, bytes: 400 } };

    fn cost(class: Class, bytes: u64) -> Credit {
        Credit { class, operations: 1, bytes }
    }

    fn due(ledger: &Ledger, all: bool) -> Vec<(Class, u32, u64)> {
        ledger.take_due(all).map(|credit| (credit.class, credit.operations, credit.bytes)).collect()
    }

    #[test]
    fn half_a_window_is_returned_at_once_and_less_when_all_is_asked_for() {
        let ledger = Ledger::of_link(WINDOWS);
        let mut permits: Vec<Permit> = (0..8).map(|_| ledger.admit(cost(Class::Foreground, 10)).unwrap()).collect();
        permits.truncate(5);
        assert_eq!((ledger.held(Class::Foreground), due(&ledger, false)), ((5, 50), vec![]));
        permits.truncate(4);
        assert_eq!(due(&ledger, false), [(Class::Foreground, 4, 40)]);
        assert_eq!(due(&ledger, true), []);
        permits.truncate(3);
        assert_eq!(due(&ledger, true), [(Class::Foreground, 1, 10)]);
    }

    #[test]
    fn half_of_the_bytes_is_enough_too() {
        let ledger = Ledger::of_link(WINDOWS);
        drop(ledger.admit(cost(Class::Background, 199)).unwrap());
        assert_eq!(due(&ledger, false), []);
        drop(ledger.admit(cost(Class::Background, 1)).unwrap());
        assert_eq!(due(&ledger, false), [(Class::Background, 2, 200)]);
    }

    #[test]
    fn more_than_was_granted_is_an_overdraft() {
        let ledger = Ledger::of_link(WINDOWS);
        let whole = ledger.admit(cost(Class::Background, 400)).unwrap();
        let error = ledger.admit(cost(Class::Background, 1)).unwrap_err().to_string();
        assert_eq!(
            error,
            "a request of 1 bytes overdraws the background credits of this link, 4 operations and 400 bytes"
        );
        // Released is not returned: the caller cannot know yet.
        drop(whole);
        assert!(ledger.admit(cost(Class::Background, 1)).is_err());
        assert_eq!(due(&ledger, false), [(Class::Background, 1, 400)]);
        let _permits: Vec<_> = (0..4).map(|_| ledger.admit(cost(Class::Background, 0)).unwrap()).collect();
        assert!(ledger.admit(cost(Class::Background, 0)).is_err());
        assert!(ledger.admit(cost(Class::Foreground, 1000)).is_ok());
    }

    #[test]
    fn the_parts_of_a_request_release_what_they_hold() {
        let ledger = Ledger::of_link(WINDOWS);
        let mut whole = ledger.admit(cost(Class::Foreground, 100)).unwrap();
        let part = whole.share(30);
        let rest = whole.share(1 << 40);
        assert_eq!(ledger.held(Class::Foreground), (1, 100));
        drop(part);
        assert_eq!(ledger.held(Class::Foreground), (1, 70));
        drop(whole);
        assert_eq!(ledger.held(Class::Foreground), (0, 70));
        drop(rest);
        assert_eq!(ledger.held(Class::Foreground), (0, 0));
        assert_eq!(due(&ledger, true), [(Class::Foreground, 1, 100)]);
        assert!(Permit::none().share(5).0.is_none());
    }

    #[test]
    fn a_pool_can_be_used_again_at_once() {
        let pool = Ledger::of_pool(WINDOWS);
        for _ in 0..3 {
            let whole = pool.admit(cost(Class::Foreground, 1000)).unwrap();
            assert!(pool.admit(cost(Class::Foreground, 1)).is_err());
            drop(whole);
        }
        assert_eq!(due(&pool, true), []);
    }
}
