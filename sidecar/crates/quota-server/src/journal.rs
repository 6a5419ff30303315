//! The usage log as handlers see it: append, then wait without blocking.

use tokio::sync::oneshot;
use usage_log::{Append, LogError, Position, Stats, UsageLog};

use crate::refusal::{Answer, Refusal};

/// Told once, with the outcome.
pub type Notify = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Durable storage of usage records and reservations.
pub trait Journal: Send + Sync {
    /// Appends; returns before the entry is durable.
    ///
    /// # Errors
    /// Nothing was appended.
    fn append(&self, entry: Append<'_>) -> Result<Position, LogError>;

    /// Appends all of these or none, one after the other, as `append` does.
    ///
    /// # Errors
    /// Nothing was appended.
    fn append_all(&self, entries: &[Append<'_>]) -> Result<Vec<Position>, LogError>;

    /// Calls back once the entry is durable or can no longer become so.
    fn on_durable(&self, position: Position, notify: Notify);

    /// Calls back once the ledger has committed the entry.
    fn on_committed(&self, position: Position, notify: Notify);

    /// Gives its figures.
    fn stats(&self) -> Stats;
}

impl Journal for UsageLog {
    fn append(&self, entry: Append<'_>) -> Result<Position, LogError> {
        Self::append(self, entry)
    }

    fn append_all(&self, entries: &[Append<'_>]) -> Result<Vec<Position>, LogError> {
        Self::append_all(self, entries)
    }

    fn on_durable(&self, position: Position, notify: Notify) {
        Self::on_durable(self, position, notify);
    }

    fn on_committed(&self, position: Position, notify: Notify) {
        Self::on_committed(self, position, notify);
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }
}

/// Waits until an entry and all before it are synced on this node.
pub(crate) async fn durable(journal: &dyn Journal, position: Position) -> Answer<()> {
    let (sender, receiver) = oneshot::channel();
    journal.on_durable(
        position,
        Box::new(move |outcome| drop(sender.send(outcome))),
    );
    heard(receiver).await
}

/// Waits until the ledger has committed an entry and all before it.
pub(crate) async fn committed(journal: &dyn Journal, position: Position) -> Answer<()> {
    let (sender, receiver) = oneshot::channel();
    journal.on_committed(
        position,
        Box::new(move |outcome| drop(sender.send(outcome))),
    );
    heard(receiver).await
}

async fn heard(receiver: oneshot::Receiver<Result<(), LogError>>) -> Answer<()> {
    receiver
        .await
        .unwrap_or(Err(LogError::Closed))
        .map_err(Refusal::from)
}

/// How full the log is, in percent.
pub(crate) fn fill_percent(stats: &Stats) -> u64 {
    stats
        .used_bytes
        .saturating_mul(100)
        .checked_div(stats.capacity_bytes)
        .unwrap_or(0)
}
