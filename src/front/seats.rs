//! How many guests a daemon has, over all its shards: each guest has a seat, which goes with its connection.
//!
//! Seats are taken and left when connections come and go, and when a handshake begins or ends; never for a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The guests of a daemon, on whichever shards they are: a bound is one of the whole daemon.
#[derive(Debug, Default)]
pub struct Seats {
    taken: AtomicUsize,
    handshakes: AtomicUsize,
}

/// A guest's place among them. It goes with its connection, to another shard and in the end.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    handshake: bool,
}

impl Seats {
    /// A seat for a guest that begins its handshake.
    pub fn take(seats: &Arc<Self>) -> Seat {
        seats.taken.fetch_add(1, Ordering::Relaxed);
        let mut seat = Seat { seats: seats.clone(), handshake: false };
        seat.set_handshake(true);
        seat
    }

    /// Connections of guests.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Those of them that have not yet said what they want.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }
}

impl Seat {
    /// Whether the guest is in its handshake, and nobody else is waited for.
    pub fn set_handshake(&mut self, handshake: bool) {
        match (self.handshake, handshake) {
            (false, true) => drop(self.seats.handshakes.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.seats.handshakes.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        self.handshake = handshake;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.set_handshake(false);
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_counted_from_its_taking_to_its_end() {
        let seats = Arc::new(Seats::default());
        let count = || (seats.taken(), seats.handshakes());
        let (mut first, second) = (Seats::take(&seats), Seats::take(&seats));
        assert_eq!(count(), (2, 2));
        first.set_handshake(false);
        first.set_handshake(false);
        assert_eq!(count(), (2, 1));
        std::thread::spawn(move || drop(second)).join().expect("no panic");
        assert_eq!(count(), (1, 0));
        first.set_handshake(true);
        assert_eq!(count(), (1, 1));
        drop(first);
        assert_eq!(count(), (0, 0));
    }
}
