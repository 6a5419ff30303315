//! A sidecar's volume: the marks of what a restart may take over.

use std::collections::{BTreeMap, VecDeque};

use quota_core::{Kept, WindowId};

use crate::rng::Rng;

/// Marks as the log keeps them: durable in order, the last of a window counts.
#[derive(Clone, Default)]
pub struct Disk {
    durable: BTreeMap<WindowId, Kept>,
    written: VecDeque<(u64, WindowId, Option<Box<Kept>>)>,
}

impl Disk {
    /// Writes a mark; not durable yet.
    pub fn write(&mut self, id: u64, window: WindowId, kept: Option<Box<Kept>>) {
        self.written.push_back((id, window, kept));
    }

    /// Makes a mark durable, and all before it.
    pub fn sync(&mut self, id: u64) {
        while let Some((first, window, kept)) = self.written.pop_front() {
            match kept {
                Some(kept) => drop(self.durable.insert(window, *kept)),
                None => drop(self.durable.remove(&window)),
            }
            if first == id {
                return;
            }
        }
    }

    /// The process dies: of what was written any beginning is durable. Gives what the next one may take over, whose
    /// marks are gone.
    pub fn restart(&mut self, rng: &mut Rng) -> Vec<Kept> {
        let count = u64::try_from(self.written.len()).expect("in range");
        for _ in 0..rng.between(0, count) {
            if let Some(id) = self.written.front().map(|(id, ..)| *id) {
                self.sync(id);
            }
        }
        self.written.clear();
        std::mem::take(&mut self.durable).into_values().collect()
    }
}
