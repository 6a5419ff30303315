//! Zeros ahead of what is written, where the disk was only reserved.
//!
//! The first write to a reserved block changes what the file system knows of the file. A sync then waits for its journal,
//! and so for whatever others wrote just then. With zeros ahead of small groups few syncs wait for that.

use std::io;

use crate::{
    format::{narrow, wide},
    writer::Writer,
};

/// A small group is followed by zeros up to a multiple of this.
const FILL_BYTES: u64 = 256 << 10;
/// Groups from this size on are few for their bytes: they write their blocks first themselves.
const SMALL_BYTES: usize = 64 << 10;

impl Writer {
    /// Writes zeros behind the group that is about to be written, where nothing was written since the segment was reserved.
    pub(crate) fn fill_ahead(&mut self) -> io::Result<()> {
        let end = self.offset.saturating_add(wide(self.scratch.len()));
        let is_reused = self.segment > self.directory.count();
        if is_reused || self.scratch.len() >= SMALL_BYTES || end <= self.filled {
            return Ok(());
        }
        let until = end.checked_next_multiple_of(FILL_BYTES).unwrap_or(end);
        let until = until.min(self.directory.segment_bytes());
        let zeros = vec![0; narrow(until.saturating_sub(end))];
        self.directory.file(self.segment).write_at(&zeros, end)?;
        self.filled = until;
        Ok(())
    }
}
