//! What limits decided, as the ledger hears of it.

use prost::{Message as _, bytes::Bytes};
use quota_core::{DecisionCount, DecisionEntry, Decisions};

use crate::{
    decision::{reason, signed},
    field::Attributes,
    ledger,
};

/// Encodes a batch; `declared` gives the attributes of an entry that may be told, in the form in which they may.
#[must_use]
pub fn report_decisions(
    holder: [u8; 16],
    batch_seq: u64,
    told: &Decisions,
    declared: impl Fn(&DecisionEntry, Attributes) -> Attributes,
) -> Bytes {
    let count = |from: &DecisionCount| ledger::DecisionCount {
        tenant: from.tenant.to_string(),
        limit: from.limit.to_string(),
        reason: reason(from.reason).into(),
        count: signed(from.count),
        left_out: signed(from.left_out),
    };
    let entries = told.entries().map(|(from, attributes)| {
        let attributes = attributes.map(|(name, value)| (name.into(), value.into()));
        let attributes = declared(from, attributes.collect());
        ledger::DecisionEntry {
            tenant: from.tenant.to_string(),
            limit: from.limit.to_string(),
            reason: reason(from.reason).into(),
            at_us: from.at_us,
            caller: from.caller.to_string(),
            units: signed(from.units),
            amount: from.amount.map_or(-1, signed),
            used: signed(from.used),
            attributes: attributes
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    });
    let request = ledger::ReportDecisionsRequest {
        holder: holder.to_vec(),
        batch_seq,
        entries: entries.collect(),
        counts: told.counts.iter().map(count).collect(),
    };
    request.encode_to_vec().into()
}
