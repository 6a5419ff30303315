//! What the ledger's answers say: where it stands, what it counted, what became of single records.

use prost::Message as _;
use quota_proto::{
    ledger::{AppendUsageResponse, OpenProducerResponse, RecordVerdict},
    quota::RecordOutcome,
};
use usage_log::Hash;

use super::{Position, RECORDS_MAX, Sent, Shipper};
use crate::verdicts::Verdict;

impl Shipper {
    /// Reads where the ledger stands from its answer, and counts what it says.
    pub(super) fn position(&mut self, sent: &Sent, bytes: &[u8]) -> Result<Position, String> {
        let (seq, h, safe_seq) = if *sent == Sent::Open {
            let answer = OpenProducerResponse::decode(bytes).map_err(|error| error.to_string())?;
            self.ended.told(&self.log);
            (answer.committed_seq, answer.h, answer.safe_seq)
        } else {
            let answer = AppendUsageResponse::decode(bytes).map_err(|error| error.to_string())?;
            self.count(&answer);
            self.verdicts_heard = answer.verdicts;
            (answer.committed_seq, answer.h, answer.safe_seq)
        };
        let h = Hash::try_from(h.as_ref()).map_err(|_| format!("h has {} bytes", h.len()))?;
        let Sent::Append {
            last_seq,
            told,
            closing,
            watermark_us,
            ..
        } = sent
        else {
            return Ok(Position {
                seq,
                h,
                safe_seq,
                told_seq: self.told_seq(seq),
            });
        };
        if seq >= *last_seq {
            self.tenants_told.extend(self.tenants_new.drain(..*told));
            self.watermark_us = *watermark_us;
            self.closed_at = closing.then_some(*last_seq);
            self.records_max = RECORDS_MAX;
            self.figures.refused_seq = 0;
        }
        Ok(Position {
            seq,
            h,
            safe_seq,
            told_seq: seq.min(*last_seq),
        })
    }

    /// Gives the last number up to `seq` of which no verdict is missing: records of this process beyond what was agreed
    /// may have been committed by a batch whose answer was lost, so they are sent again to hear what became of them.
    fn told_seq(&self, seq: u64) -> u64 {
        let here = self.log.record_number(seq);
        here.map_or(seq, |count| {
            self.agreed.max(seq.saturating_sub(count)).min(seq)
        })
    }

    fn count(&mut self, answer: &AppendUsageResponse) {
        let figures = &mut self.figures;
        figures.batches = figures.batches.saturating_add(1);
        figures.duplicates = figures.duplicates.saturating_add(answer.duplicates.into());
        figures.conflicts = figures.conflicts.saturating_add(answer.conflicts.into());
        figures.quarantined = figures
            .quarantined
            .saturating_add(answer.quarantined.into());
        figures.answers_lost = figures
            .answers_lost
            .saturating_add(u64::from(answer.trimmed > 0));
    }

    /// Hands over the verdicts of an answer whose history is this log's.
    pub(super) fn note_verdicts(&mut self) {
        let heard = std::mem::take(&mut self.verdicts_heard);
        let log = &self.log;
        self.verdicts.note(heard.into_iter().filter_map(|verdict| {
            let number = log.record_number(verdict.seq)?;
            read(verdict).map(|verdict| (number, verdict))
        }));
    }
}

fn read(verdict: RecordVerdict) -> Option<Verdict> {
    let outcome = RecordOutcome::try_from(verdict.outcome).ok()?;
    let is_stored = matches!(
        outcome,
        RecordOutcome::Unspecified | RecordOutcome::Recorded
    );
    (!is_stored).then(|| Verdict {
        outcome,
        reason: verdict.reason.into(),
        field: verdict.field.into(),
    })
}
