//! Input that arrives in pieces, gathered into items of known length.
//!
//! It knows no protocol: the caller says how long the next item is. Input is a cursor, a
//! `&mut &[u8]` that moves forward over what was taken.

/// Holds the start of at most one item.
#[derive(Debug, Default)]
pub(super) struct Gather {
    held: Vec<u8>,
}

impl Gather {
    /// A gather that never allocates for items of up to `bytes`.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { held: Vec::with_capacity(bytes) }
    }

    /// Bytes held.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// The next `N` bytes, or `None` after taking all input. An item that arrives whole is not
    /// copied into the gather first.
    pub(super) fn fixed<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        if self.held.is_empty()
            && let Some((item, rest)) = input.split_first_chunk::<N>()
        {
            *input = rest;
            return Some(*item);
        }
        self.fill(input, N).then(|| {
            let item = self.held.as_slice().try_into().expect("a gathered item of the wrong length");
            self.held.clear();
            item
        })
    }

    /// The next `length` bytes, or `None` after taking all input. The caller bounds `length`.
    pub(super) fn variable(&mut self, input: &mut &[u8], length: usize) -> Option<Vec<u8>> {
        self.fill(input, length).then(|| std::mem::take(&mut self.held))
    }

    fn fill(&mut self, input: &mut &[u8], length: usize) -> bool {
        assert!(self.held.len() <= length);
        let missing = length - self.held.len();
        let (taken, rest) = input.split_at(missing.min(input.len()));
        if !taken.is_empty() {
            self.held.reserve_exact(missing);
            self.held.extend_from_slice(taken);
            *input = rest;
        }
        self.held.len() == length
    }
}

/// Drops up to `remaining` bytes of input; `remaining` says how many are still to come.
pub(super) fn skip(input: &mut &[u8], remaining: &mut u64) {
    let skipped = input.len().min(usize::try_from(*remaining).unwrap_or(usize::MAX));
    *input = &input[skipped..];
    *remaining -= skipped as u64;
}
