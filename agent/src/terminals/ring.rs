//! The last of what a terminal has shown, by its place in all that it has shown.

use std::collections::VecDeque;

use bytes::Bytes;

/// How much of a terminal's output is kept, in bytes: some thousand lines, and four times what may be under
/// way to a client that is lost.
pub(super) const KEPT: usize = 1 << 20;

/// A bounded memory of output.
#[derive(Debug)]
pub(super) struct Ring {
    data: VecDeque<u8>,
    end: u64,
    size: usize,
}

impl Ring {
    /// One that keeps the last `size` bytes. It takes the memory that it needs, not more.
    pub(super) const fn new(size: usize) -> Self {
        Self { data: VecDeque::new(), end: 0, size }
    }

    /// Adds output.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let data = &data[data.len().saturating_sub(self.size)..];
        let surplus = (self.data.len() + data.len()).saturating_sub(self.size);
        self.data.drain(..surplus);
        self.data.extend(data);
    }

    /// How much output there was.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// The place nearest to `offset` from which on all output is kept.
    pub(super) fn nearest(&self, offset: u64) -> u64 {
        offset.clamp(self.end - self.data.len() as u64, self.end)
    }

    /// At most `max` bytes of output from `offset` on.
    pub(super) fn read(&self, offset: u64, max: usize) -> Bytes {
        let behind = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let from = self.data.len().saturating_sub(behind);
        let to = self.data.len().min(from.saturating_add(max));
        let (first, second) = self.data.as_slices();
        let middle = first.len();
        let first = &first[from.min(middle)..to.min(middle)];
        let second = &second[from.max(middle) - middle..to.max(middle) - middle];
        if second.is_empty() { Bytes::copy_from_slice(first) } else { [first, second].concat().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_kept_is_the_end_of_all_output(pieces: Vec<Vec<u8>>, size in 1usize..64, offset in 0u64..512, max in 0usize..64) {
            let mut ring = Ring::new(size);
            for piece in &pieces {
                ring.push(piece);
            }
            let all = pieces.concat();
            prop_assert_eq!(ring.end(), all.len() as u64);
            let from = ring.nearest(offset);
            let start = all.len().saturating_sub(size) as u64;
            prop_assert_eq!(from, offset.clamp(start, ring.end()));
            let from = usize::try_from(from).unwrap();
            let to = all.len().min(from + max);
            prop_assert_eq!(ring.read(from as u64, max), &all[from..to]);
        }
    }
}
