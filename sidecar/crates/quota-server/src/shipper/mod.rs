//! Ships the usage log to the ledger: what to send when, and what an answer means. No I/O of its own but the log's.
//!
//! One command is outstanding at a time. Whatever gets lost, repeated or answered late, the next batch begins right
//! after what the ledger said it has, with h before it; the ledger takes nothing twice and nothing out of order.
//!
//! ```text
//! Opening ──▶ Ready ──▶ batch ──▶ Ready …        answer lost: wait, send again from the same number
//!    ▲          │                                committed_seq went back, GAP: rewind
//!    └─ Renew ◀─┴─ FENCED, FORKED                new producer, everything not safe is appended to it again
//! ```

mod answer;
mod columns;
mod drive;
mod filling;
#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::unwrap_used,
    clippy::panic
)]
mod ledger_model;
mod looks;
mod samples;
#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::unwrap_used,
    clippy::panic
)]
mod tests;
mod types;
#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::unwrap_used,
    clippy::panic
)]
mod vectors;

use std::collections::BTreeSet;

use prost::Message as _;
use quota_proto::{
    bridge::{Failure, FailureKind},
    ledger::{AppendUsageRequest, OpenProducerRequest, RecordVerdict},
};
use usage_log::{Batch, Committed, EntryBody, Hash, LogError, Recovered, Stats, UsageLog};

use crate::{ended::Ended, verdicts::Verdicts};
pub use drive::drive;
use filling::Filling;
use samples::Samples;

pub use types::{ShipCommand, ShipFigures, ShipReply};

/// Version of log and batch formats.
const FORMAT: u32 = 1;
/// Largest number of records in a batch.
const RECORDS_MAX: usize = 5_000;
/// Payload bytes after which a batch ends. One more record may follow: 512 KiB in all.
const PAYLOAD_BYTES: usize = 448 << 10;
/// Bytes written to the log since the last batch that make the next one due.
const BYTES_DUE: u64 = 512 << 10;
/// Real time between watermarks when idle.
const IDLE_US: u64 = 10_000_000;
/// First and longest wait after a failure. Usage is in the ledger again within 2 s of its coming back.
const RETRY_US: (u64, u64) = (100_000, 1_000_000);
/// Wait when the log is looking for entries.
const SCAN_US: u64 = 5_000;
/// How long an open or a batch may take.
const TIMEOUT_MS: u32 = 10_000;

#[derive(Clone, PartialEq, Debug)]
enum State {
    /// The producer must be opened.
    Opening,
    /// The ledger's position is compared with the log before anything else.
    Comparing(Position),
    /// Batches may go.
    Ready,
    /// A command is outstanding.
    Waiting(Sent),
    /// A new producer must be made, from this number on.
    Renewing(u64),
}

/// What is outstanding.
#[derive(Clone, PartialEq, Debug)]
enum Sent {
    Open,
    Append {
        last_seq: u64,
        h: Hash,
        records: usize,
        told: usize,
        closing: bool,
        watermark_us: i64,
    },
    Renew,
}

/// Where the ledger says it stands.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Position {
    seq: u64,
    h: Hash,
    safe_seq: u64,
    /// What became of every record up to here is known; at most `seq`.
    told_seq: u64,
}

/// Decides what goes to the ledger. Not thread-safe; one owner drives it.
pub struct Shipper {
    log: UsageLog,
    holder: [u8; 16],
    interval_us: u64,
    state: State,
    /// The ledger has everything up to here, compared.
    agreed: u64,
    safe_seq: u64,
    /// Next number to send.
    next_seq: u64,
    /// No command before this moment.
    not_before_us: u64,
    failures: u32,
    shipped_bytes: u64,
    last_sent_us: Option<u64>,
    records_max: usize,
    samples: Samples,
    filling: Filling,
    watermark_us: i64,
    tenants_told: BTreeSet<String>,
    tenants_new: Vec<String>,
    draining: bool,
    closed_at: Option<u64>,
    ended: Ended,
    /// An entry that the ledger refuses even alone: it goes as its digest.
    skip: Option<Refused>,
    verdicts: Verdicts,
    /// Of the answer that is being compared.
    verdicts_heard: Vec<RecordVerdict>,
    figures: ShipFigures,
}

/// An entry that the ledger can't take as a record, and why.
struct Refused {
    seq: u64,
    reason: String,
}

impl Shipper {
    /// Begins where the log was left. `interval_us`: longest real time that a durable record waits for its batch.
    #[must_use]
    pub fn new(log: UsageLog, recovered: &Recovered, holder: [u8; 16], interval_us: u64) -> Self {
        Self {
            log,
            holder,
            interval_us,
            state: State::Opening,
            agreed: recovered.committed_seq,
            safe_seq: recovered.safe_seq,
            next_seq: recovered.committed_seq.saturating_add(1),
            not_before_us: 0,
            failures: 0,
            shipped_bytes: 0,
            last_sent_us: None,
            records_max: RECORDS_MAX,
            samples: Samples::default(),
            filling: Filling::default(),
            watermark_us: 0,
            tenants_told: BTreeSet::new(),
            tenants_new: Vec::new(),
            draining: false,
            closed_at: None,
            ended: Ended::default(),
            skip: None,
            verdicts: Verdicts::default(),
            verdicts_heard: Vec::new(),
            figures: ShipFigures::default(),
        }
    }

    /// Has the ledger told which processes have ended, when the producer is opened.
    #[must_use]
    pub fn telling(self, ended: Ended) -> Self {
        Self { ended, ..self }
    }

    /// Hands the ledger's verdicts on single records to whoever waits for them.
    #[must_use]
    pub(crate) fn hearing(self, verdicts: Verdicts) -> Self {
        Self { verdicts, ..self }
    }

    /// Gives the next command, if one is due; no further one before its reply.
    ///
    /// `now_ledger_us`: ledger time, once it is known. Must be read on the thread that appends, so that everything
    /// received before it is in the log.
    pub fn poll(&mut self, now_us: u64, now_ledger_us: Option<i64>) -> Option<ShipCommand> {
        let stats = self.log.stats();
        self.samples
            .note(now_us, now_ledger_us, stats.appended_seq, self.next_seq);
        self.filling.note(now_us, stats.used_bytes);
        if now_us < self.not_before_us {
            return None;
        }
        if let State::Comparing(position) = self.state {
            self.compare(position, now_us);
        }
        match self.state {
            State::Opening => Some(self.open()),
            State::Renewing(from_seq) => {
                self.state = State::Waiting(Sent::Renew);
                Some(ShipCommand::Renew(from_seq))
            }
            State::Ready if self.is_due(now_us, &stats) => self.append(now_us, &stats),
            _ => None,
        }
    }

    /// Takes the reply to the outstanding command.
    pub fn on_reply(&mut self, reply: ShipReply<'_>, now_us: u64) {
        let State::Waiting(sent) = std::mem::replace(&mut self.state, State::Ready) else {
            return;
        };
        let undone = if sent == Sent::Open {
            State::Opening
        } else {
            State::Ready
        };
        match reply {
            ShipReply::Ledger(bytes) => match self.position(&sent, bytes) {
                Ok(position) => {
                    self.state = State::Comparing(position);
                    self.compare(position, now_us);
                }
                Err(error) => {
                    self.state = undone;
                    self.back_off(
                        now_us,
                        format!("the ledger's answer can't be read: {error}"),
                    );
                }
            },
            ShipReply::Failed(failure) => {
                self.state = undone;
                self.on_failure(&sent, failure, now_us);
            }
            ShipReply::Lost => {
                self.state = undone;
                self.back_off(now_us, "no answer".into());
            }
        }
    }

    /// Takes the outcome of a renewal.
    pub fn on_renewed(&mut self, outcome: Result<Recovered, LogError>, from_seq: u64, now_us: u64) {
        match outcome {
            Ok(recovered) => {
                self.state = State::Opening;
                (self.agreed, self.safe_seq) = (recovered.committed_seq, recovered.safe_seq);
                self.next_seq = recovered.committed_seq.saturating_add(1);
                self.samples.clear();
                self.tenants_new
                    .extend(std::mem::take(&mut self.tenants_told));
                self.closed_at = None;
                self.skip = None;
                self.ended.forget();
                self.not_before_us = now_us;
            }
            Err(error) => {
                self.state = State::Renewing(from_seq);
                self.back_off(now_us, error.to_string());
            }
        }
    }

    /// Names a tenant that this sidecar serves; the next batch tells the ledger.
    pub fn serves(&mut self, tenant: &str) {
        if !self.tenants_told.contains(tenant) && !self.tenants_new.iter().any(|new| new == tenant)
        {
            self.tenants_new.push(tenant.to_owned());
        }
    }

    /// Ships at once from now on and, when nothing is left, tells the ledger that the producer is closed.
    pub fn drain(&mut self) {
        self.draining = true;
        self.not_before_us = 0;
    }

    /// Whether everything appended is committed and the ledger knows that the producer is closed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.closed_at
            .is_some_and(|seq| seq >= self.log.stats().appended_seq)
    }

    /// Gives the figures.
    #[must_use]
    pub fn figures(&self, now_us: u64) -> ShipFigures {
        let stats = self.log.stats();
        ShipFigures {
            unshipped: stats.appended_seq.saturating_sub(self.agreed),
            lag_us: self.samples.age_us(self.agreed.saturating_add(1), now_us),
            full_in_us: self
                .filling
                .full_in_us(now_us, stats.used_bytes, stats.capacity_bytes),
            ..self.figures.clone()
        }
    }

    fn is_due(&self, now_us: u64, stats: &Stats) -> bool {
        let unshipped = stats
            .durable_seq
            .saturating_add(1)
            .saturating_sub(self.next_seq);
        if unshipped > 0 {
            let records = u64::try_from(self.records_max).unwrap_or(u64::MAX);
            let waited = self.samples.age_us(self.next_seq, now_us);
            let bytes = stats.written_bytes.saturating_sub(self.shipped_bytes);
            return self.draining
                || unshipped >= records
                || bytes >= BYTES_DUE
                || waited >= self.interval_us;
        }
        if self.draining && stats.appended_seq < self.next_seq {
            return self.closed_at.is_none_or(|seq| seq < stats.appended_seq);
        }
        self.last_sent_us
            .is_none_or(|last| now_us.saturating_sub(last) >= IDLE_US)
            && !self.draining
    }

    fn open(&mut self) -> ShipCommand {
        let (producer_id, incarnation) = self.log.producer();
        let request = OpenProducerRequest {
            producer_id: producer_id.to_vec(),
            incarnation,
            holder: self.holder.to_vec(),
            format: FORMAT,
            ended_holders: self.ended.holders.iter().map(|one| one.to_vec()).collect(),
            ended_seq: self.ended.seq,
        };
        self.state = State::Waiting(Sent::Open);
        ShipCommand::Open(request.encode_to_vec())
    }

    fn append(&mut self, now_us: u64, stats: &Stats) -> Option<ShipCommand> {
        let batch = match self
            .log
            .read_from(self.next_seq, self.records_max, PAYLOAD_BYTES)
        {
            Ok(batch) => batch,
            Err(error) => {
                self.on_log_error(error, self.next_seq, now_us);
                return None;
            }
        };
        let last_seq = batch
            .entries
            .last()
            .map_or(self.next_seq.saturating_sub(1), |entry| match &entry.body {
                EntryBody::Usage(_) => entry.seq,
                EntryBody::Hole(hole) => hole.last_seq,
            });
        let skip = self.skip.as_ref().filter(|skip| skip.seq == self.next_seq);
        let encoded = match skip {
            Some(skip) => columns::skip(&batch, &skip.reason),
            None => columns::encode(&batch),
        };
        let (records, holes) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => {
                // The log hashed every one of these payloads by decoding it: only a broken build gets here.
                self.back_off(
                    now_us,
                    format!("entry {} can't be decoded: {}", error.seq, error.cause),
                );
                return None;
            }
        };
        records
            .tenants
            .iter()
            .for_each(|tenant| self.serves(tenant));
        let closing = self.draining && last_seq >= stats.appended_seq;
        let watermark_us = self.watermark_us.max(self.samples.watermark_us(last_seq));
        let sent = Sent::Append {
            last_seq,
            h: batch.h_after,
            records: batch.entries.len(),
            told: self.tenants_new.len(),
            closing,
            watermark_us,
        };
        let request = AppendUsageRequest {
            records: Some(records),
            holes,
            watermark_us,
            tenants_served: self.tenants_new.clone(),
            closing,
            ..Self::head(&batch, self.next_seq)
        };
        self.shipped_bytes = if last_seq >= stats.durable_seq {
            stats.written_bytes
        } else {
            self.shipped_bytes
        };
        self.last_sent_us = Some(now_us);
        self.state = State::Waiting(sent);
        Some(ShipCommand::Append(request.encode_to_vec()))
    }

    fn head(batch: &Batch, first_seq: u64) -> AppendUsageRequest {
        AppendUsageRequest {
            producer_id: batch.producer_id.to_vec(),
            incarnation: batch.incarnation,
            format: FORMAT,
            first_seq,
            h_before: batch.h_before.to_vec(),
            ..AppendUsageRequest::default()
        }
    }

    /// Compares the ledger's position with the log, and goes on from it.
    fn compare(&mut self, position: Position, now_us: u64) {
        match self.log.h_at(position.seq) {
            Ok(h) if h == position.h => {
                if position.seq < self.agreed {
                    self.figures.rewinds = self.figures.rewinds.saturating_add(1);
                }
                let told = match self.log.h_at(position.told_seq) {
                    Ok(h) => Position {
                        seq: position.told_seq,
                        h,
                        ..position
                    },
                    Err(error @ LogError::Scanning { .. }) => {
                        return self.on_log_error(error, position.told_seq, now_us);
                    }
                    // Gone from this log: nobody waits for it.
                    Err(_) => position,
                };
                self.note_verdicts();
                self.agree(told, now_us);
                (self.state, self.failures, self.not_before_us) = (State::Ready, 0, now_us);
                self.figures.last_error.clear();
            }
            Ok(_) => self.forked(now_us),
            Err(error) => self.on_log_error(error, position.seq.saturating_add(1), now_us),
        }
    }

    /// Handles that the log can't give entries from a number on.
    fn on_log_error(&mut self, error: LogError, from_seq: u64, now_us: u64) {
        match error {
            LogError::Gone { oldest_seq, .. } if from_seq < oldest_seq => {
                self.lose(from_seq, oldest_seq, now_us);
            }
            // The ledger is ahead of the log, or stands inside what is a hole here: it heard another history.
            LogError::Gone { .. } => self.forked(now_us),
            LogError::Scanning { .. } => self.not_before_us = now_us.saturating_add(SCAN_US),
            error => self.back_off(now_us, error.to_string()),
        }
    }

    fn agree(&mut self, position: Position, now_us: u64) {
        self.agreed = position.seq;
        self.samples.forget(position.seq);
        self.safe_seq = position.safe_seq.min(position.seq);
        self.next_seq = position.seq.saturating_add(1);
        let (seq, h, safe_seq) = (position.seq, position.h, self.safe_seq);
        self.log.set_committed(Committed {
            seq,
            h,
            safe_seq,
            now_us,
        });
    }

    fn forked(&mut self, now_us: u64) {
        self.figures.forked = self.figures.forked.saturating_add(1);
        self.renew(now_us, "the ledger has another history of this producer");
    }

    /// The ledger went back beyond what the log has: what is gone is counted, what is here goes to a new producer.
    fn lose(&mut self, first_seq: u64, oldest_seq: u64, now_us: u64) {
        self.figures.lost = self
            .figures
            .lost
            .saturating_add(oldest_seq.saturating_sub(first_seq));
        self.renew(
            now_us,
            "the ledger went back beyond what this log still has",
        );
        self.state = State::Renewing(oldest_seq);
    }

    /// Everything that a restored ledger might lack is appended again; ids tell what it has.
    fn renew(&mut self, now_us: u64, why: &str) {
        self.verdicts_heard.clear();
        self.state = State::Renewing(self.safe_seq.min(self.agreed).saturating_add(1));
        self.not_before_us = now_us;
        why.clone_into(&mut self.figures.last_error);
    }

    fn on_failure(&mut self, sent: &Sent, failure: &Failure, now_us: u64) {
        let refused = failure.kind == FailureKind::Refused as i32;
        match failure.reason.as_str() {
            "PRODUCER_FENCED" if refused => {
                self.figures.fenced = self.figures.fenced.saturating_add(1);
                self.renew(now_us, "another process has this producer");
            }
            "PRODUCER_FORKED" if refused => self.forked(now_us),
            "PRODUCER_UNKNOWN" if refused => {
                self.state = State::Opening;
                self.back_off(now_us, failure.message.clone());
            }
            "PRODUCER_GAP" if refused => match failure
                .metadata
                .get("expected")
                .and_then(|text| text.parse().ok())
            {
                Some(expected) if expected < self.next_seq => self.rewind(expected, now_us),
                _ => self.back_off(now_us, failure.message.clone()),
            },
            _ => {
                if let (true, Sent::Append { records, .. }) = (refused, sent) {
                    self.halve(*records, &failure.reason);
                }
                self.back_off(now_us, failure.message.clone());
            }
        }
    }

    /// Sends from an earlier number on. The ledger compares h then.
    fn rewind(&mut self, expected: u64, now_us: u64) {
        self.figures.rewinds = self.figures.rewinds.saturating_add(1);
        self.next_seq = expected.max(1);
        self.agreed = self.agreed.min(expected.saturating_sub(1));
        self.not_before_us = now_us;
    }

    /// A batch that is refused as a whole is cut in half, down to the entry that the ledger can't take: that one goes as
    /// its digest, so that no later one is held up.
    fn halve(&mut self, records: usize, reason: &str) {
        if records <= 1 {
            self.figures.refused_seq = self.next_seq;
            // Any other refusal is not about this entry and says nothing of the next one.
            if reason == "BATCH_MALFORMED"
                && self
                    .skip
                    .as_ref()
                    .is_none_or(|skip| skip.seq != self.next_seq)
            {
                self.figures.skipped = self.figures.skipped.saturating_add(1);
                self.skip = Some(Refused {
                    seq: self.next_seq,
                    reason: format!("REFUSED {reason}"),
                });
            }
        }
        self.records_max = (records / 2).max(1);
    }

    fn back_off(&mut self, now_us: u64, why: String) {
        let (first, longest) = RETRY_US;
        let wait = first
            .saturating_mul(1_u64.checked_shl(self.failures).unwrap_or(u64::MAX))
            .min(longest);
        self.failures = self.failures.saturating_add(1).min(16);
        self.not_before_us = now_us.saturating_add(wait);
        self.figures.last_error = why;
    }
}
