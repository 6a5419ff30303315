//! Giving back what a caller took and does not need after all.

use std::{sync::Arc, time::Instant};

use quota_core::{Cost, Decision, Mode, Reason};
use quota_proto::{
    check::ParsedCheck,
    quota::{CheckQuotaResponse, ErrorReason},
};

use crate::{
    handlers::{
        check::{core_request, decide, told},
        level::{levels_met, lower, place_of},
    },
    refusal::{Answer, Refusal},
    service::Service,
};

/// Gives units back: of windows and token buckets at once, of every limit that matches or of none; of levels by a record
/// that is durable before the answer.
///
/// # Errors
/// More than was used here; meters of which nothing is given back this way; levels and others in one call.
pub(crate) async fn give_back(
    service: &Arc<Service>,
    mut check: ParsedCheck,
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    let changes = levels_met(service, &check).await?;
    let is_level = |cost: &Cost| changes.iter().any(|change| change.meter == cost.meter);
    if !changes.is_empty() {
        return match check.costs.iter().position(|cost| !is_level(cost)) {
            None => lower(service, &check, &changes, started).await,
            Some(place) => Err(mixed(&check.costs, place)),
        };
    }
    let request = core_request(&mut check, Mode::GiveBack);
    let decision = decide(service, &request).await?;
    match refused(&decision, &request.costs) {
        Some(refusal) => Err(refusal),
        None => Ok(told(service, &check, &request.tenant, &decision, started)),
    }
}

/// Why nothing was given back.
fn refused(decision: &Decision, costs: &[Cost]) -> Option<Refusal> {
    let subject = decision.subject.as_deref().unwrap_or_default();
    match decision.reason {
        Reason::NotConsumedHere => Some(not_consumed_here(decision)),
        Reason::ValuesStay => Some(
            Refusal::new(
                ErrorReason::FieldInvalid,
                format!(
                    "meter {subject:?} counts distinct values: one that was seen stays counted"
                ),
            )
            .with(
                "field",
                format_args!("costs[{}].meter", place_of(costs, subject)),
            )
            .with("meter", subject)
            .with("bound", "a meter that sums units")
            .with("remedy", "leave the meter out"),
        ),
        Reason::NeedsReservation => Some(
            Refusal::new(
                ErrorReason::FieldInvalid,
                format!(
                    "limit {subject:?} counts what is in flight: that ends with its reservation"
                ),
            )
            .with("field", "mode")
            .with("value", "GIVE_BACK")
            .with("limit", subject)
            .with("bound", "RESERVE or PEEK")
            .with("remedy", "settle or release the reservation"),
        ),
        _ => None,
    }
}

fn not_consumed_here(decision: &Decision) -> Refusal {
    let limit = decision.binding.as_ref();
    let name = limit.map_or("", |limit| &*limit.name);
    Refusal::new(
        ErrorReason::NotConsumedHere,
        format!("limit {name:?}: more is given back than this sidecar took of it and still could"),
    )
    .with("field", "costs")
    .with("limit", name)
    .with("meter", limit.map_or("", |limit| &*limit.meter))
    .with(
        "bound",
        "what calls took at this sidecar, of the window that is open",
    )
    .with(
        "remedy",
        "give back at the sidecar that took it, once, with the call's own attributes",
    )
}

/// Says that a fall of a level is a call of its own.
fn mixed(costs: &[Cost], place: usize) -> Refusal {
    let meter = costs.get(place).map_or("", |cost| &*cost.meter);
    Refusal::new(
        ErrorReason::FieldInvalid,
        format!("meter {meter:?} has no level, others of this call have: a fall of levels is a call of its own"),
    )
    .with("field", format_args!("costs[{place}].meter"))
    .with("meter", meter)
    .with("bound", "meters of levels only, or none of them")
    .with("remedy", "give back in two calls")
}
