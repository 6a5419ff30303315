//! 128-bit fingerprints of what callers send, keyed with this process' own randomness.
//!
//! Two differently keyed `SipHash`es: a caller who doesn't know the keys can't make two requests collide.

use std::hash::{BuildHasher as _, Hash, RandomState};

/// Makes fingerprints; those of two makers never compare.
#[derive(Default)]
pub(crate) struct Fingerprints {
    first: RandomState,
    second: RandomState,
}

impl Fingerprints {
    /// Fingerprints a value.
    pub(crate) fn of(&self, value: &impl Hash) -> (u64, u64) {
        (self.first.hash_one(value), self.second.hash_one(value))
    }
}
