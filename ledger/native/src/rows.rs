//! Hashes over everything that is stored of records.

use sha2::{Digest as _, Sha256};

use crate::{
    Misfit,
    content::{at, nth, text},
};

const TAG: &[u8] = b"tollkeeper.row.v1";

/// Rows of one batch as columns; `segment` points into `segments`.
pub(crate) struct Rows<'a> {
    pub(crate) content_hashes: &'a [&'a [u8]],
    pub(crate) record_ids: &'a [&'a str],
    pub(crate) batch_id: i64,
    pub(crate) seqs: &'a [i64],
    pub(crate) events_us: &'a [i64],
    pub(crate) received_us: &'a [i64],
    pub(crate) flags: &'a [i64],
    pub(crate) segments: &'a [&'a [u8]],
    pub(crate) segment: &'a [u32],
}

impl Rows<'_> {
    /// Gives the rows' hashes, one behind the other.
    pub(crate) fn hash(&self) -> Result<Vec<u8>, Misfit> {
        let mut hashed = Vec::with_capacity(self.content_hashes.len().saturating_mul(32));
        let mut head = Vec::new();
        text(&mut head, TAG)?;
        let mut bytes = Vec::with_capacity(256);
        for (place, content) in self.content_hashes.iter().enumerate() {
            bytes.clear();
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(content);
            text(&mut bytes, nth(self.record_ids, place)?.as_bytes())?;
            for number in [
                self.batch_id,
                nth(self.seqs, place)?,
                nth(self.events_us, place)?,
                nth(self.received_us, place)?,
                nth(self.flags, place)?,
            ] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(at(self.segments, nth(self.segment, place)?)?);
            hashed.extend_from_slice(&Sha256::digest(&bytes));
        }
        Ok(hashed)
    }
}
