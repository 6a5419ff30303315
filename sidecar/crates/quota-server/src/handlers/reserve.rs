//! Checks that are durable before they are answered: reservations, and consumption with its usage record.

use std::{sync::Arc, time::Instant};

use prost::Message as _;
use quota_core::{Cost, HoldKind, Mode, Now, Reason, Reservation, ReservationId};
use quota_proto::{
    Attributes,
    check::ParsedCheck,
    content::content_hash,
    decision::timestamp,
    ledger::RecordFlag,
    quota::{self, CheckQuotaResponse},
};
use usage_log::Append;

use crate::{
    directory::Directory,
    handlers::check::{core_request, decide, told},
    handlers::level::needs_other_call,
    journal::durable,
    levels::{counted, rises},
    records::{self, Draft, Levels, check_record_id, logged_reservation},
    refusal::{Answer, Refusal},
    reservations::Opened,
    service::Service,
};

/// How long the units of a recorded consumption may stay held while its record becomes durable, ledger µs.
const RECORDING_US: i64 = 7 * 86_400_000_000;

/// Holds units until they are settled, released or expire.
pub(crate) async fn reserve(
    service: &Arc<Service>,
    mut check: ParsedCheck,
    ttl_us: i64,
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    service.room()?;
    if service.hub.directory.lock().keys.is_empty() {
        return Err(Refusal::starting());
    }
    can_hide(service, &check).await?;
    let now = service.hub.now()?;
    let id = service.reservation_id()?;
    let expires_us = now.ledger_us.saturating_add(ttl_us);
    let request = core_request(&mut check, Mode::Reserve { id, expires_us });
    let decision = decide(service, &request).await?;
    if let Some(refusal) = needs_other_call(&decision, &request.costs) {
        return Err(refusal);
    }
    let mut answer = told(service, &check, &request.tenant, &decision, started);
    if decision.reason.allowed() {
        let reservation = service
            .hub
            .reservation(id)
            .unwrap_or_else(|| unheld(service, &check, id, expires_us));
        let token = made_durable(service, &check, reservation, now).await;
        if token.is_err() {
            service.hub.undo(id);
        }
        answer.reservation = Some(quota::Reservation {
            token: token?,
            expires_at: Some(timestamp(expires_us)),
        });
    }
    Ok(answer)
}

/// Waits until the key is there that the record of a call needs, before anything is taken.
pub(crate) async fn can_hide(service: &Service, check: &ParsedCheck) -> Answer<()> {
    let lacks = |directory: &Directory| {
        let meters = check.costs.iter().map(|cost| &*cost.meter);
        let names = check.attributes.iter().map(|(name, _)| &**name);
        directory.lacks_key(&check.tenant, &meters, names)
    };
    service.can_hide(&check.tenant, lacks).await
}

/// Gives what a record of these costs stores of a call's attributes.
pub(crate) fn stored(service: &Service, check: &ParsedCheck, costs: &[Cost]) -> Answer<Attributes> {
    let mut attributes = check.attributes.clone();
    let meters = costs.iter().map(|cost| &*cost.meter);
    let directory = service.hub.directory.lock();
    directory.stored(&check.tenant, &meters, &mut attributes)?;
    Ok(attributes)
}

/// A reservation that no limit holds units for still ends exactly once.
fn unheld(
    service: &Service,
    check: &ParsedCheck,
    id: ReservationId,
    expires_us: i64,
) -> Reservation {
    Reservation {
        id,
        tenant: Arc::clone(&check.tenant),
        costs: check.costs.clone(),
        holds: Vec::new(),
        expires_us,
        holder: service.hub.holder(),
    }
}

/// Logs a reservation, then signs its token.
async fn made_durable(
    service: &Service,
    check: &ParsedCheck,
    reservation: Reservation,
    now: Now,
) -> Answer<String> {
    let attributes = stored(service, check, &check.costs)?;
    let payload = logged_reservation(&reservation, &attributes, &check.request_id, now.ledger_us);
    let sequence = service.journal.stats().durable_seq;
    let content = records::token(&reservation, &attributes, service.hub.producer(), sequence);
    let token = service.hub.directory.lock().keys.sign(&content)?;
    let position = service.journal.append(Append::Open {
        key: reservation.id.0,
        payload: &payload,
    })?;
    durable(&*service.journal, position).await?;
    let opened = Opened {
        costs: reservation.costs,
        attributes,
        expires_us: reservation.expires_us,
    };
    service.reservations.lock().open(reservation.id, opened);
    Ok(token)
}

/// What a consumption records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// Every cost, as the caller asked.
    Everything,
    /// Costs of levels only: their rises are always on record.
    Levels,
}

/// Consumes and records in one: the units are held while the record becomes durable, so that a failure undoes them.
pub(crate) async fn consume_recorded(
    service: &Arc<Service>,
    mut check: ParsedCheck,
    scope: Scope,
    started: Instant,
) -> Answer<CheckQuotaResponse> {
    service.room()?;
    can_hide(service, &check).await?;
    let now = service.hub.now()?;
    let id = service.reservation_id()?;
    let expires_us = now.ledger_us.saturating_add(RECORDING_US);
    let request = core_request(&mut check, Mode::Record { id, expires_us });
    let decision = decide(service, &request).await?;
    if let Some(refusal) = needs_other_call(&decision, &request.costs) {
        return Err(refusal);
    }
    if decision.reason.allowed() {
        let reservation = service.hub.reservation(id);
        let levels = reservation
            .as_ref()
            .map(|reservation| rises(reservation, &check.costs))
            .unwrap_or_default();
        let is_level = |meter: &str| {
            let holds = reservation
                .iter()
                .flat_map(|reservation| &reservation.holds);
            holds
                .filter(|hold| hold.kind == HoldKind::Level)
                .any(|hold| *hold.meter == *meter)
        };
        let costs = match scope {
            Scope::Everything => check.costs.clone(),
            Scope::Levels => counted(&check.costs, is_level),
        };
        match recorded(service, &check, &costs, levels, decision.reason).await {
            Ok(()) => drop(service.hub.settle(id, &check.costs)),
            Err(refusal) => {
                service.hub.undo(id);
                return Err(refusal);
            }
        }
    }
    Ok(told(service, &check, &request.tenant, &decision, started))
}

/// Makes the usage record of an admitted check durable.
async fn recorded(
    service: &Service,
    check: &ParsedCheck,
    costs: &[Cost],
    levels: Levels,
    reason: Reason,
) -> Answer<()> {
    if costs.is_empty() {
        return Ok(());
    }
    for (index, cost) in check.costs.iter().enumerate() {
        service.require_meter(format!("costs[{index}].meter"), &cost.meter)?;
    }
    let now = service.hub.now()?;
    let attributes = stored(service, check, &check.costs)?;
    let system = !check.request_id.is_empty();
    let id = if system {
        check_record_id(&check.request_id)
    } else {
        service.record_id(now)?
    };
    let mut flags = 0;
    if system {
        flags |= RecordFlag::SystemId as u32;
    }
    if reason == Reason::Uncovered {
        flags |= RecordFlag::Uncovered as u32;
    }
    let record = records::usage(Draft {
        tenant: &check.tenant,
        id,
        event_time_us: now.ledger_us,
        received_us: now.ledger_us,
        quantities: costs,
        attributes: &attributes,
        flags,
        ends: None,
        home: None,
        levels,
    });
    let entry = Append::Usage {
        payload: &record.encode_to_vec(),
        content_hash: content_hash(&record),
        ends: None,
    };
    let position = service.journal.append(entry)?;
    durable(&*service.journal, position).await?;
    service.stats.recorded(1);
    Ok(())
}
