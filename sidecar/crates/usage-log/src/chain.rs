//! The hash chain over a producer's entries. Its rules are those of `tollkeeper/ledger/v1/usage.proto`.

use sha2::{Digest, Sha256};

use crate::api::Hash;

const HOLE: &[u8] = b"tollkeeper.hole.v1";

/// Computes h(0) = SHA-256(producer id).
#[must_use]
pub fn chain_start(producer_id: &[u8; 16]) -> Hash {
    Sha256::digest(producer_id).into()
}

/// Computes h(n) = SHA-256(h(n-1), content hash of entry n).
#[must_use]
pub fn chain_next(h: &Hash, content_hash: &Hash) -> Hash {
    let mut both = [0; 64];
    let (left, right) = both.split_at_mut(32);
    left.copy_from_slice(h);
    right.copy_from_slice(content_hash);
    Sha256::digest(both).into()
}

/// Computes the content hash of a hole.
#[must_use]
pub fn hole_hash(first_seq: u64, last_seq: u64) -> Hash {
    let mut sha = Sha256::new();
    sha.update(u32::try_from(HOLE.len()).unwrap_or(u32::MAX).to_le_bytes());
    sha.update(HOLE);
    sha.update(first_seq.to_le_bytes());
    sha.update(last_seq.to_le_bytes());
    sha.finalize().into()
}
