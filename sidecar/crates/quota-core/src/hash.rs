//! Hashing: keyed by the holder, so that nobody outside can choose colliding keys and yet one run repeats another.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;
use sha2::{Digest, Sha256};

use crate::id::{Holder, KeyHash, ValueHash, WindowId};

/// Map whose order of keys decides nothing.
pub(crate) type Map<K, V> = hashbrown::HashMap<K, V, FixedState>;

/// Makes the hasher of one holder.
pub(crate) fn keyed(holder: Holder) -> FixedState {
    let mut seed = [0_u8; 8];
    for (to, from) in seed.iter_mut().zip(holder.0) {
        *to = from;
    }
    FixedState::with_seed(u64::from_le_bytes(seed))
}

/// Names a key as ledger and Redis know it: zeros where nothing splits the limit.
pub(crate) fn key_hash(values: &[Box<str>]) -> KeyHash {
    let mut name = [0_u8; 16];
    if !values.is_empty() {
        let mut digest = Sha256::new();
        for value in values {
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            digest.update(length.to_be_bytes());
            digest.update(value.as_bytes());
        }
        for (to, from) in name.iter_mut().zip(digest.finalize()) {
            *to = from;
        }
    }
    KeyHash(name)
}

/// Names a value of a unique meter as Redis knows it in one window: nothing personal, and another in each window.
pub(crate) fn value_hash(window: WindowId, value: &str) -> ValueHash {
    let mut digest = Sha256::new();
    digest.update(window.0);
    digest.update(value.as_bytes());
    let mut name = [0_u8; 16];
    for (to, from) in name.iter_mut().zip(digest.finalize()) {
        *to = from;
    }
    ValueHash(name)
}

/// Spells bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Spreads (holder, key) evenly over `0..span`.
pub(crate) fn jitter(state: &FixedState, key: KeyHash, salt: u32, span: u64) -> u64 {
    let mut hasher = state.build_hasher();
    key.hash(&mut hasher);
    hasher.write_u32(salt);
    hasher.finish().checked_rem(span).unwrap_or(0)
}
