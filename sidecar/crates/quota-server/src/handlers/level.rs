//! Levels: falls, and what calls are told that met a level or a limit of units in flight in the wrong mode.

use std::{sync::Arc, time::Instant};

use prost::Message as _;
use quota_core::{Cost, Decision, LevelChange, Reason};
use quota_proto::{
    check::ParsedCheck,
    content::content_hash,
    ledger::RecordFlag,
    quota::{CheckQuotaResponse, ErrorReason},
};
use usage_log::Append;

use crate::{
    handlers::{
        check::told,
        reserve::{can_hide, stored},
    },
    journal::durable,
    levels::{counted, falls},
    records::{self, Draft, fall_record_id},
    refusal::{Answer, Refusal},
    service::Service,
};

/// What to say of a call that has to be made otherwise, where the caller has to do that.
pub(crate) fn needs_other_call(decision: &Decision, costs: &[Cost]) -> Option<Refusal> {
    let subject = decision.subject.as_deref().unwrap_or_default();
    match decision.reason {
        Reason::NeedsReservation => Some(needs_reservation(decision)),
        Reason::NeedsValue => Some(
            Refusal::new(
                ErrorReason::FieldRequired,
                format!("attributes.{subject} is missing: its distinct values are counted"),
            )
            .with("field", format_args!("attributes.{subject}"))
            .with("bound", "a value that is not empty")
            .with("remedy", "send the attribute with each check of this meter"),
        ),
        Reason::NeedsOneUnit => Some(
            Refusal::new(
                ErrorReason::FieldOutOfRange,
                format!("meter {subject:?} counts distinct values: a call brings one"),
            )
            .with(
                "field",
                format_args!("costs[{}].units", place_of(costs, subject)),
            )
            .with("meter", subject)
            .with("bound", "1, or 0 to look")
            .with("remedy", "send cost 1"),
        ),
        _ => None,
    }
}

/// Gives the place of a meter among costs; 0 where it is not there.
pub(crate) fn place_of(costs: &[Cost], meter: &str) -> usize {
    let place = costs.iter().position(|cost| *cost.meter == *meter);
    place.unwrap_or_default()
}

/// Says that only reservations take units in flight.
fn needs_reservation(decision: &Decision) -> Refusal {
    let limit = decision.subject.as_deref().unwrap_or_default();
    Refusal::new(
        ErrorReason::FieldInvalid,
        format!(
            "limit {limit:?} counts what is in flight, which only a reservation says the end of"
        ),
    )
    .with("field", "mode")
    .with("value", "CONSUME")
    .with("bound", "RESERVE or PEEK")
    .with("limit", limit)
    .with(
        "remedy",
        "use mode RESERVE, and settle or release when the work is done",
    )
}

/// Finds the levels that a call meets; waits until its tenant is known.
pub(crate) async fn levels_met(service: &Service, check: &ParsedCheck) -> Answer<Vec<LevelChange>> {
    let known = service
        .tenants_known(std::slice::from_ref(&check.tenant))
        .await?;
    if known != [true] {
        return Err(Refusal::unknown(
            ErrorReason::TenantUnknown,
            "tenant",
            "tenant",
            &check.tenant,
        ));
    }
    service
        .hub
        .levels(&check.tenant, &check.costs, &check.attributes)
        .ok_or_else(|| Refusal::ledger_unreachable(&check.tenant))
}

/// Records that levels fell, durable before the answer. The ledger credits them once, when the record is committed.
pub(crate) async fn lower(
    service: &Arc<Service>,
    check: &ParsedCheck,
    changes: &[LevelChange],
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    service.room()?;
    can_hide(service, check).await?;
    let now = service.hub.now()?;
    let quantities = counted(&check.costs, |meter| {
        changes.iter().any(|change| *change.meter == *meter)
    });
    let attributes = stored(service, check, &quantities)?;
    let mut flags = RecordFlag::Decrease as u32;
    let id = if check.request_id.is_empty() {
        service.record_id(now)?
    } else {
        flags |= RecordFlag::SystemId as u32;
        fall_record_id(&check.request_id)
    };
    let record = records::usage(Draft {
        tenant: &check.tenant,
        id,
        event_time_us: now.ledger_us,
        received_us: now.ledger_us,
        quantities: &quantities,
        attributes: &attributes,
        flags,
        ends: None,
        home: None,
        levels: falls(changes),
    });
    let position = service.journal.append(Append::Usage {
        payload: &record.encode_to_vec(),
        content_hash: content_hash(&record),
        ends: None,
    })?;
    durable(&*service.journal, position).await?;
    service.stats.recorded(1);
    for change in changes {
        service.hub.fell(change);
    }
    let decision = Decision {
        reason: Reason::Allowed,
        binding: None,
        retry_after_us: None,
        limits: Vec::new(),
        subject: None,
    };
    Ok(told(service, check, &check.tenant, &decision, started))
}
