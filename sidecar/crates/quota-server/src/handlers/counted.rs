//! Usage that counts against limits although it was recorded and not asked for.

use std::sync::Arc;

use quota_core::{CheckRequest, Cost, HoldKind, Mode, Reason};
use quota_proto::{Attributes, usage::ParsedRecord};
use tokio::task::JoinSet;

use crate::{handlers::check::decide, refusal::Answer, service::Service};

/// How long the reservation of nothing stands that is settled at once, ledger µs.
const OPEN_US: i64 = 60_000_000;

/// What one record used.
pub(crate) struct Use {
    pub(crate) tenant: Arc<str>,
    pub(crate) quantities: Vec<Cost>,
    pub(crate) attributes: Attributes,
}

impl Use {
    /// Reads it from a record, whose undeclared attributes a limit may match all the same.
    pub(crate) fn of(record: &ParsedRecord<'_>) -> Self {
        let cost = |(meter, units): (&str, i64)| Cost {
            meter: meter.into(),
            units: u64::try_from(units).unwrap_or(0),
        };
        let pair = |(name, value): (&str, &str)| (name.into(), value.into());
        Self {
            tenant: record.tenant.into(),
            quantities: record.quantities().map(cost).collect(),
            attributes: record.attributes().map(pair).collect(),
        }
    }
}

/// Takes what records say was used from every limit that matches, all at once; waits as long as a check would.
///
/// What a limit has no room for is owed by its window, as after a settlement above its reserve: nothing else is admitted
/// before that is paid. Where nobody can be asked, and for limits that count what is stored or in flight, nothing is
/// taken. Never fails: the records stand.
pub(crate) async fn count(service: &Arc<Service>, uses: Vec<Use>) {
    let mut counting = JoinSet::new();
    for one in uses {
        let service = Arc::clone(service);
        counting.spawn(async move {
            let _ = count_one(&service, one).await;
        });
    }
    while counting.join_next().await.is_some() {}
}

async fn count_one(service: &Arc<Service>, used: Use) -> Answer<()> {
    let consume = CheckRequest {
        tenant: used.tenant,
        costs: used.quantities,
        features: Vec::new(),
        attributes: used.attributes,
        mode: Mode::Consume,
        all_limits: false,
    };
    let reason = decide(service, &consume).await?.reason;
    let is_denied = matches!(
        reason,
        Reason::QuotaExhausted
            | Reason::RateLimited
            | Reason::CostExceedsLimit
            | Reason::AuthorityUnreachable
    );
    if !is_denied {
        return Ok(());
    }
    // One unit first: that opens a window of which nothing is known here yet, so that it can owe the rest.
    for most in [1, 0] {
        if settle_beyond(service, &consume, most).await? {
            break;
        }
    }
    Ok(())
}

/// Reserves at most so many units of each meter and settles at what was used. Answers whether that could be reserved.
async fn settle_beyond(service: &Service, used: &CheckRequest, most: u64) -> Answer<bool> {
    let id = service.reservation_id()?;
    let expires_us = service.hub.now()?.ledger_us.saturating_add(OPEN_US);
    let mut part = CheckRequest {
        mode: Mode::Reserve { id, expires_us },
        ..used.clone()
    };
    for cost in &mut part.costs {
        cost.units = cost.units.min(most);
    }
    if !decide(service, &part).await?.reason.allowed() {
        return Ok(false);
    }
    let Some(reservation) = service.hub.reservation(id) else {
        return Ok(true);
    };
    let counts = |kind: HoldKind| matches!(kind, HoldKind::Window | HoldKind::Tokens);
    if reservation.holds.iter().all(|hold| counts(hold.kind)) {
        let _ = service.hub.settle(id, &used.costs);
    } else {
        service.hub.undo(id);
    }
    Ok(true)
}
