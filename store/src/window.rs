//! A map from numbers that are given out in ascending order, and mostly given back in that order too.
//!
//! It must never hold more places than lie between the oldest number and the newest.

use std::collections::VecDeque;

/// Values by number. A place is found by counting from the oldest: no hash, and neighbours lie side by side.
#[derive(Debug)]
pub struct Window<T> {
    /// Number of the first place; it is taken, unless the window is empty.
    first: u64,
    places: VecDeque<Option<T>>,
    taken: usize,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { first: 0, places: VecDeque::new(), taken: 0 }
    }
}

impl<T> Window<T> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.taken
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Adds a value. Its number must be above all that are in the window.
    pub fn insert(&mut self, number: u64, value: T) {
        if self.places.is_empty() {
            self.first = number;
        }
        let at = (number - self.first) as usize;
        assert!(at >= self.places.len(), "number {number} is not above those before it");
        self.places.resize_with(at, || None);
        self.places.push_back(Some(value));
        self.taken += 1;
    }

    fn place(&self, number: u64) -> Option<usize> {
        number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok())
    }

    /// The value of a number.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.places.get(self.place(number)?)?.as_ref()
    }

    /// The value of a number.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let at = self.place(number)?;
        self.places.get_mut(at)?.as_mut()
    }

    /// Takes a value out.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let at = self.place(number)?;
        let value = self.places.get_mut(at)?.take()?;
        self.taken -= 1;
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.first += 1;
        }
        Some(value)
    }

    /// All values, by number.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.places.clear();
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Numbers with gaps, given back in any order: as an ordinary map does it, and never a place too many.
        #[test]
        fn is_a_map(steps in proptest::collection::vec((0u8..4, 1u64..5, any::<prop::sample::Index>()), 1..200)) {
            let (mut window, mut naive, mut next) = (Window::default(), BTreeMap::new(), 1);
            for (what, gap, which) in steps {
                if what < 2 || naive.is_empty() {
                    next += gap;
                    window.insert(next, next * 10);
                    naive.insert(next, next * 10);
                } else {
                    let number = *naive.keys().nth(which.index(naive.len())).unwrap();
                    if what == 2 {
                        *window.get_mut(number).unwrap() += 1;
                        *naive.get_mut(&number).unwrap() += 1;
                    } else {
                        prop_assert_eq!(window.remove(number), naive.remove(&number));
                    }
                }
                prop_assert!(window.values().eq(naive.values()));
                prop_assert_eq!((window.len(), window.is_empty()), (naive.len(), naive.is_empty()));
                for number in 0..next + 3 {
                    prop_assert_eq!(window.get(number), naive.get(&number));
                }
                let span = naive.keys().next().map_or(0, |oldest| next - oldest + 1);
                prop_assert!(window.places.len() as u64 <= span);
            }
        }
    }

    #[test]
    fn a_number_from_before_is_not_there() {
        let mut window = Window::default();
        window.insert(7, 'a');
        window.insert(8, 'b');
        assert_eq!(
            (window.remove(7), window.remove(7), window.get(6), window.get(u64::MAX)),
            (Some('a'), None, None, None)
        );
        window.clear();
        window.insert(3, 'c');
        assert_eq!((window.get(3), window.get(8), window.len()), (Some(&'c'), None, 1));
    }
}
