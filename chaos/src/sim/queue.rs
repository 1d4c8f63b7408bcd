//! What will happen, in order of virtual time and, at one instant, of scheduling.
//!
//! It must never know what the events mean.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A queue of events.
#[derive(Debug)]
pub struct Queue<E> {
    /// (virtual time in microseconds, sequence, slot)
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    next: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), next: 0 }
    }
}

impl<E> Queue<E> {
    /// Adds an event at `time_us`.
    pub fn push(&mut self, time_us: u64, event: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(event);
        self.next += 1;
        self.heap.push(Reverse((time_us, self.next, slot)));
    }

    /// When the next event happens.
    pub fn next_at_us(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((time_us, ..))| *time_us)
    }

    /// The next event.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse((_, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        self.slots[slot as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_then_of_scheduling() {
        let mut queue = Queue::default();
        for (time_us, name) in [(5, "c"), (1, "a"), (5, "d"), (1, "b")] {
            queue.push(time_us, name);
        }
        assert_eq!(queue.next_at_us(), Some(1));
        queue.push(3, "between");
        let order: Vec<&str> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ["a", "b", "between", "c", "d"]);
        assert_eq!(queue.next_at_us(), None);
    }
}
