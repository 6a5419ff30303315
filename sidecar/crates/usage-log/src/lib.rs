//! The durable usage log of the sidecar: what was acknowledged is here until the ledger has it.
//!
//! One directory per producer. Entries are opaque bytes; the log knows only whether an entry takes a sequence number
//! and which reservation it opens or ends. It owns sequence numbers, the hash chain, durability and recovery; it does
//! not know protobuf, tokio, wall clocks or randomness.
//!
//! ```text
//! append ──▶ pending group ──▶ writer thread: segment, commit record, fdatasync ──▶ on_durable
//!                                                     │
//!                              read_from ◀── durable entries ──▶ set_committed ──▶ segments recycled
//! ```
//!
//! Invariants: nothing is reported durable before a commit record and a successful `fdatasync`; sequence numbers are
//! contiguous per producer, over restarts too; a segment is reused only after the watermark that allows it is synced.

mod again;
mod ahead;
mod api;
mod chain;
mod directory;
mod entry;
mod fold;
mod format;
mod front;
mod index;
mod log;
mod mutant;
mod reader;
mod recover;
mod renew;
mod scan;
mod scrub;
mod snapshot;
mod storage;
mod writer;

pub use api::{
    Append, Batch, Committed, Config, ContentHash, Damage, Entry, EntryBody, Growth, Hash, Hole,
    Kept, Key, LogError, NewProducer, Position, Recovered, Stats,
};
pub use chain::{chain_next, chain_start, hole_hash};
pub use front::{Grown, Notify};
pub use log::UsageLog;

#[cfg(test)]
mod tests;
