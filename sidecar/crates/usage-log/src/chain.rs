//! The hash chain over a producer's entries. Its rules are those of `tollkeeper/ledger/v1/usage.proto`.

use sha2::{Digest, Sha256, block_api::compress256};

use crate::api::Hash;

/// Where SHA-256 begins. Source: FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
/// The block that ends a message of 64 bytes: a one, zeros, the length of 512 bits. Source: FIPS 180-4, 5.1.1.
const PADDING: [u8; 64] = {
    let mut block = [0; 64];
    block[0] = 0x80;
    block[62] = 2;
    block
};
const HOLE: &[u8] = b"tollkeeper.hole.v1";

/// Computes h(0) = SHA-256(producer id).
#[must_use]
pub fn chain_start(producer_id: &[u8; 16]) -> Hash {
    Sha256::digest(producer_id).into()
}

/// Computes h(n) = SHA-256(h(n-1), content hash of entry n).
#[must_use]
pub fn chain_next(h: &Hash, content_hash: &Hash) -> Hash {
    let mut blocks = [[0; 64], PADDING];
    if let Some((left, right)) = blocks.first_mut().map(|both| both.split_at_mut(32)) {
        left.copy_from_slice(h);
        right.copy_from_slice(content_hash);
    }
    let mut state = INITIAL;
    compress256(&mut state, &blocks);
    let mut next = [0; 32];
    for (to, word) in next.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    next
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The chain's step, which is written for its one length, gives what SHA-256 of both hashes is.
    #[test]
    fn a_step_is_the_hash_of_both() {
        let (mut h, mut content) = (chain_start(&[7; 16]), hole_hash(1, 2));
        for _ in 0..1_000 {
            let expected: Hash = Sha256::digest([h, content].concat()).into();
            assert_eq!(expected, chain_next(&h, &content));
            (h, content) = (expected, h);
        }
    }
}
