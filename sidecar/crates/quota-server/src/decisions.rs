//! Tells the ledger what limits decided, in numbered batches, each kept until it is stored.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quota_core::Decisions;
use quota_proto::{
    bridge::{Failure, FailureKind, answer::Result as Outcome, command::Action},
    decisions::report_decisions,
};
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{outbox::Outbox, service::Service};

/// Batches are told this often, and one that was not stored again after as long.
const EVERY: Duration = Duration::from_secs(1);
/// Real milliseconds that the ledger has for one.
const TIMEOUT_MS: u32 = 5_000;
/// Counts of one batch.
const COUNTS_MAX: usize = 10_000;

/// How telling goes. Decisions are counted once for each limit that decided.
#[derive(Default)]
pub(crate) struct Telling {
    told: AtomicU64,
    left_out: AtomicU64,
    lost: AtomicU64,
    /// What was there when the drain began is told, or can't be.
    is_flushed: AtomicBool,
    wake: Notify,
}

impl Telling {
    /// Tells at once what is there, for a clean stop.
    pub(crate) fn flush(&self) {
        self.wake.notify_one();
    }

    /// Whether a drain need not wait any longer.
    pub(crate) fn is_flushed(&self) -> bool {
        self.is_flushed.load(Ordering::Relaxed)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "told": self.told.load(Ordering::Relaxed),
            "left_out": self.left_out.load(Ordering::Relaxed),
            "lost": self.lost.load(Ordering::Relaxed),
        })
    }
}

/// What came of one attempt.
enum Came {
    Stored,
    /// Never will be.
    Refused,
    /// Nobody knows: it is told again under its number.
    Unknown,
}

/// Tells until the task is dropped.
pub(crate) async fn tell(service: Arc<Service>, outbox: Arc<Outbox>) {
    let (mut told, mut batch_seq) = (Decisions::default(), 0_u64);
    loop {
        // Whichever comes first; a flush that came while nobody waited is not lost.
        let _ = timeout(EVERY, service.telling.wake.notified()).await;
        let is_last = service.is_draining();
        let mut is_full = true;
        while is_full && service.hub.take_decisions(COUNTS_MAX, &mut told) {
            is_full = told.counts.len() >= COUNTS_MAX;
            batch_seq = batch_seq.saturating_add(1);
            told = tell_batch(&service, &outbox, batch_seq, told).await;
        }
        if is_last {
            service.telling.is_flushed.store(true, Ordering::Relaxed);
        }
    }
}

/// Tells one batch until it is stored; gives back the memory that it lay in.
async fn tell_batch(
    service: &Arc<Service>,
    outbox: &Outbox,
    batch_seq: u64,
    told: Decisions,
) -> Decisions {
    let sum = |figures: &mut dyn Iterator<Item = u64>| figures.fold(0, u64::saturating_add);
    let count = sum(&mut told.counts.iter().map(|one| one.count));
    let left_out = sum(&mut told.counts.iter().map(|one| one.left_out));
    let telling = &service.telling;
    telling.left_out.fetch_add(left_out, Ordering::Relaxed);
    let hub = Arc::clone(&service.hub);
    // Pseudonyms cost a hash each: off the thread that answers checks.
    let encoding = spawn_blocking(move || {
        let bytes = report_decisions(hub.holder().0, batch_seq, &told, |entry, attributes| {
            if attributes.is_empty() {
                return attributes;
            }
            let directory = hub.directory.lock();
            directory.told(&entry.caller, &entry.meter, attributes)
        });
        (bytes, told)
    });
    let Ok((bytes, told)) = encoding.await else {
        telling.lost.fetch_add(count, Ordering::Relaxed);
        return Decisions::default();
    };
    loop {
        let answer = outbox.ask(TIMEOUT_MS, Action::ReportDecisions(bytes.clone()));
        match came(answer.await.ok()) {
            Came::Stored => {
                telling.told.fetch_add(count, Ordering::Relaxed);
                return told;
            }
            Came::Unknown if !service.is_draining() => sleep(EVERY).await,
            Came::Unknown | Came::Refused => {
                telling.lost.fetch_add(count, Ordering::Relaxed);
                return told;
            }
        }
    }
}

fn came(outcome: Option<Outcome>) -> Came {
    match outcome {
        Some(Outcome::Ledger(_)) => Came::Stored,
        Some(Outcome::Failure(failure)) if is_hopeless(&failure) => Came::Refused,
        _ => Came::Unknown,
    }
}

/// Whether the same bytes will be refused whenever they come: they can't be read, or by a ledger of before.
fn is_hopeless(failure: &Failure) -> bool {
    let reason = failure.reason.as_str();
    failure.kind == i32::from(FailureKind::Refused)
        && (reason.starts_with("FIELD_")
            || matches!(
                reason,
                "ENUM_UNKNOWN" | "INVALID_ARGUMENT" | "UNIMPLEMENTED"
            ))
}
