//! What callers append, as the log has it, and the room that it needs.

use crate::{
    api::{Append, Hash, Key, LogError},
    format::{KEY, Kind, total_bytes, wide},
};

/// An entry as the log has it.
pub(crate) struct Parts<'a> {
    pub(crate) kind: Kind,
    pub(crate) key: Option<&'a Key>,
    pub(crate) payload: &'a [u8],
    pub(crate) hash: Option<Hash>,
}

impl<'a> Parts<'a> {
    pub(crate) fn of(entry: &'a Append<'a>) -> Self {
        let (kind, key, payload, hash) = match entry {
            Append::Usage {
                payload,
                content_hash,
                ends,
            } => (Kind::Usage, ends.as_ref(), *payload, Some(*content_hash)),
            Append::Open { key, payload } => (Kind::Open, Some(key), *payload, None),
            Append::Expire { key } => (Kind::Expire, Some(key), [].as_slice(), None),
            Append::Mark { key, payload } => (Kind::Mark, Some(key), *payload, None),
        };
        Self {
            kind,
            key,
            payload,
            hash,
        }
    }
}

/// The room that entries need together.
pub(crate) struct Need {
    pub(crate) bytes: u64,
    /// Groups that they may fill beside the one that gathers.
    pub(crate) groups: u64,
    /// All of them free more than they take.
    pub(crate) settles: bool,
    /// One of them lives on.
    pub(crate) lives: bool,
}

impl Default for Need {
    fn default() -> Self {
        Self {
            bytes: 0,
            groups: 0,
            settles: true,
            lives: false,
        }
    }
}

impl Need {
    pub(crate) fn add(&mut self, parts: &Parts<'_>, payload_max: usize) -> Result<(), LogError> {
        if parts.payload.len() > payload_max {
            return Err(LogError::TooLong {
                bytes: parts.payload.len(),
                bound: payload_max,
            });
        }
        let body = parts.payload.len().saturating_add(KEY);
        self.bytes = self.bytes.saturating_add(wide(total_bytes(body)));
        // What removes a mark frees units, so it may use the reserve like what ends a reservation.
        let removes = parts.kind == Kind::Mark && parts.payload.is_empty();
        let ends = parts.kind == Kind::Usage && parts.key.is_some();
        self.settles &= removes || ends || parts.kind == Kind::Expire;
        self.lives |= parts.kind == Kind::Open || (parts.kind == Kind::Mark && !removes);
        Ok(())
    }
}
