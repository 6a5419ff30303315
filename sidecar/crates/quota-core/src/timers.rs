//! When each bucket is looked after next.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{bucket::Bucket, slab::Key};

/// Times in order; a bucket's `due_us` says which of its entries counts.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Key)>>,
}

impl Timers {
    /// Looks after a bucket at this real time, or earlier where that was planned already.
    pub(crate) fn arm(&mut self, key: Key, bucket: &mut Bucket, due_us: u64) {
        if due_us < bucket.due_us {
            bucket.due_us = due_us;
            self.heap.push(Reverse((due_us, key)));
        }
    }

    /// The next entry that is due, right or outdated.
    pub(crate) fn pop_due(&mut self, real_us: u64) -> Option<(u64, Key)> {
        let Reverse((due_us, key)) = self.heap.peek().copied()?;
        if due_us > real_us {
            return None;
        }
        self.heap.pop();
        Some((due_us, key))
    }

    /// Real time of the next entry.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due_us, _))| *due_us)
    }
}
