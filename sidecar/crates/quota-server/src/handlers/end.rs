//! `SettleReservation` and `ReleaseReservation`: one end each, whatever is repeated, lost or torn.
//!
//! Order: the record that ends it is durable, then the engine gives back the rest, then the caller hears of it. A crash
//! in between leaves the durable end, and a repeat is told that it happened before.
//!
//! A reservation of another home is recorded here as well: what went back or is owed its home hears from the ledger,
//! which keeps the first outcome that was committed ([`settled_elsewhere`] is the home's part).

use std::sync::Arc;

use prost::Message as _;
use quota_core::{Cost, ReservationId, Settled};
use quota_proto::{
    Attributes, FieldError,
    content::content_hash,
    decision::quantities,
    ledger::{RecordFlag, ReservationToken, Settlement},
    quota::{
        ErrorReason, ReleaseReservationRequest, ReleaseReservationResponse,
        SettleReservationRequest, SettleReservationResponse,
    },
    usage::{ParsedSettle, token},
};
use usage_log::Append;

use crate::{
    directory::Directory,
    handlers::record::event_time,
    journal::durable,
    levels::rises_of_token,
    pseudonym::is_pseudonym,
    records::{self, Draft, reservation_record_id, token_attributes, token_costs},
    refusal::{Answer, Refusal},
    reservations::{Ended, Found, Opened},
    service::{Service, shielded},
};

/// What a caller says about the end.
enum Actual {
    /// These quantities were used.
    Used {
        quantities: Vec<Cost>,
        attributes: Attributes,
        event_time_us: Option<i64>,
    },
    /// Nothing was used.
    Nothing,
}

/// Ends a reservation at what was used: refunds the rest, records usage. A repeat gets the first answer.
///
/// # Errors
/// Bad input, a token of another installation, a released reservation, a log that can't be written.
pub async fn settle_reservation(
    service: &Arc<Service>,
    request: SettleReservationRequest,
) -> Answer<SettleReservationResponse> {
    let answer = settle(service, request).await;
    service.counted(answer)
}

async fn settle(
    service: &Arc<Service>,
    request: SettleReservationRequest,
) -> Answer<SettleReservationResponse> {
    let ParsedSettle {
        token,
        quantities: used,
        attributes,
        event_time_us,
    } = request.try_into()?;
    let actual = Actual::Used {
        quantities: used,
        attributes,
        event_time_us,
    };
    let (ended, repeated) = shielded(end(Arc::clone(service), token, actual)).await?;
    if ended.released {
        return Err(Refusal::new(
            ErrorReason::ReservationReleased,
            "the reservation was released, so nothing can be settled; record the usage on its own",
        )
        .with("field", "token")
        .with("remedy", "record the usage with RecordUsage"));
    }
    Ok(SettleReservationResponse {
        refunded: quantities(&ended.refunded),
        excess: quantities(&ended.excess),
        record_id: ended.record_id,
        expired: ended.expired,
        repeated_call: repeated,
    })
}

/// Ends a reservation at zero. A repeat gets the first answer.
///
/// # Errors
/// Bad input, a token of another installation, a log that can't be written.
pub async fn release_reservation(
    service: &Arc<Service>,
    request: ReleaseReservationRequest,
) -> Answer<ReleaseReservationResponse> {
    let answer = release(service, request).await;
    service.counted(answer)
}

async fn release(
    service: &Arc<Service>,
    request: ReleaseReservationRequest,
) -> Answer<ReleaseReservationResponse> {
    let token = token(request.token)?;
    let (ended, repeated) = shielded(end(Arc::clone(service), token, Actual::Nothing)).await?;
    Ok(ReleaseReservationResponse {
        refunded: quantities(&ended.refunded),
        repeated_call: repeated,
    })
}

/// Puts a reservation back when its end fails, for whatever reason, a panic included.
struct Attempt<'a> {
    service: &'a Service,
    id: ReservationId,
    outcome: Option<Answer<Ended>>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut reservations = self.service.reservations.lock();
        match self.outcome.take() {
            Some(Ok(ended)) => reservations.finish(self.id, &ended, self.service.hub.real_us()),
            Some(Err(refusal)) => reservations.abandon(self.id, &refusal),
            None => reservations.abandon(self.id, &Refusal::internal()),
        }
    }
}

/// Ends a reservation once; the flag says that it had been ended before.
async fn end(service: Arc<Service>, text: String, actual: Actual) -> Answer<(Ended, bool)> {
    let token = service.hub.directory.lock().keys.verify(&text)?;
    let Ok(id) = <[u8; 16]>::try_from(token.reservation_id.as_slice()).map(ReservationId) else {
        return Err(Refusal::internal());
    };
    let found = service.reservations.lock().begin(id);
    let opened = match found {
        Found::Before(ended) => return Ok((ended, true)),
        Found::Joined(receiver) => {
            return receiver
                .await
                .unwrap_or_else(|_| Err(Refusal::internal()))
                .map(|ended| (ended, true));
        }
        Found::Ready(opened) => opened,
    };
    let mut attempt = Attempt {
        service: &service,
        id,
        outcome: None,
    };
    let outcome = end_now(&service, id, &token, opened, actual).await;
    attempt.outcome = Some(outcome.clone().map(|(ended, _)| ended));
    outcome
}

async fn end_now(
    service: &Service,
    id: ReservationId,
    token: &ReservationToken,
    opened: Option<Opened>,
    actual: Actual,
) -> Answer<(Ended, bool)> {
    can_hide(service, token, opened.as_ref(), &actual).await?;
    let now_us = service.hub.now()?.ledger_us;
    let expired = token.expires_us <= now_us;
    let home = foreign_home(token, opened.as_ref(), service.hub.producer());
    if opened.is_none() && home.is_none() && !expired {
        // Ours, not open, not expired: it ended before, too long ago to know how.
        return Ok((
            Ended {
                record_id: reservation_record_id(id),
                ..Ended::default()
            },
            true,
        ));
    }
    let opened = opened.unwrap_or_else(|| Opened {
        costs: token_costs(token),
        attributes: token_attributes(token),
        expires_us: token.expires_us,
    });
    let plan = Plan::new(service, &token.tenant, &opened, actual, now_us)?;
    let excess = excess(&opened.costs, &plan.actual);
    let flags = flags(&excess, expired);
    let draft = Draft {
        tenant: &token.tenant,
        id: reservation_record_id(id),
        event_time_us: plan.event_time_us,
        received_us: now_us,
        quantities: &plan.recorded,
        attributes: &plan.attributes,
        flags,
        ends: Some(id),
        home,
        levels: rises_of_token(token, &plan.actual),
    };
    record(service, id, draft).await?;
    let settled = if home.is_some() {
        Settled {
            refunded: if expired {
                Vec::new()
            } else {
                unused(&opened.costs, &plan.actual)
            },
            excess,
            expired,
        }
    } else {
        service.hub.settle(id, &plan.actual).unwrap_or(Settled {
            refunded: Vec::new(),
            excess,
            expired: true,
        })
    };
    let ended = Ended {
        released: plan.released,
        refunded: settled.refunded,
        excess: settled.excess,
        expired: settled.expired || expired,
        record_id: reservation_record_id(id),
    };
    Ok((ended, false))
}

/// The home of a reservation that is not this sidecar's: neither open here nor made under its producer.
fn foreign_home(
    token: &ReservationToken,
    opened: Option<&Opened>,
    producer: [u8; 16],
) -> Option<[u8; 16]> {
    let home = <[u8; 16]>::try_from(token.home.as_slice()).ok()?;
    (opened.is_none() && home != producer).then_some(home)
}

/// Takes in how a reservation of this home ended elsewhere; true = the ledger may forget it.
///
/// The end is durable before the engine gives back the rest or takes in the excess, so neither happens twice; a crash in
/// between leaves the units spent.
pub(crate) async fn settled_elsewhere(service: &Service, outcome: &Settlement) -> bool {
    let Ok(id) = <[u8; 16]>::try_from(outcome.reservation_id.as_slice()).map(ReservationId) else {
        return true;
    };
    let found = service.reservations.lock().begin(id);
    let opened = match found {
        Found::Before(_) => return true,
        Found::Joined(receiver) => return matches!(receiver.await, Ok(Ok(_))),
        Found::Ready(opened) => opened,
    };
    let mut attempt = Attempt {
        service,
        id,
        outcome: None,
    };
    let ended = Ended {
        record_id: reservation_record_id(id),
        ..Ended::default()
    };
    let taken = match opened {
        None => Ok(ended),
        Some(opened) => take_in(service, id, &opened, outcome, ended).await,
    };
    let done = taken.is_ok();
    attempt.outcome = Some(taken);
    done
}

async fn take_in(
    service: &Service,
    id: ReservationId,
    opened: &Opened,
    outcome: &Settlement,
    mut ended: Ended,
) -> Answer<Ended> {
    let used = |cost: &Cost| Cost {
        meter: Arc::clone(&cost.meter),
        units: outcome
            .units
            .get(&*cost.meter)
            .and_then(|units| u64::try_from(*units).ok())
            .unwrap_or(0),
    };
    let actual: Vec<Cost> = opened.costs.iter().map(used).collect();
    let position = service.journal.append(Append::Expire { key: id.0 })?;
    durable(&*service.journal, position).await?;
    if let Ok(settled) = service.hub.settle(id, &actual) {
        ended.refunded = settled.refunded;
        ended.excess = settled.excess;
        ended.expired = settled.expired;
    }
    ended.released = outcome.units.values().all(|units| *units == 0);
    Ok(ended)
}

/// What an end writes and what it tells the engine.
struct Plan {
    released: bool,
    /// Of every reserved meter, what was used.
    actual: Vec<Cost>,
    /// Of every meter of the record.
    recorded: Vec<Cost>,
    attributes: Attributes,
    event_time_us: i64,
}

impl Plan {
    fn new(
        service: &Service,
        tenant: &str,
        opened: &Opened,
        actual: Actual,
        now_us: i64,
    ) -> Answer<Self> {
        let nothing = || {
            opened
                .costs
                .iter()
                .map(|cost| Cost {
                    meter: Arc::clone(&cost.meter),
                    units: 0,
                })
                .collect::<Vec<_>>()
        };
        let Actual::Used {
            quantities,
            attributes: added,
            event_time_us,
        } = actual
        else {
            return Ok(Self {
                released: true,
                actual: nothing(),
                recorded: nothing(),
                attributes: opened.attributes.clone(),
                event_time_us: now_us,
            });
        };
        for (index, quantity) in quantities.iter().enumerate() {
            service.require_meter(format!("quantities[{index}].meter"), &quantity.meter)?;
        }
        let used = |cost: &Cost| {
            quantities
                .iter()
                .find(|quantity| quantity.meter == cost.meter)
                .map_or(0, |used| used.units)
        };
        let actual = opened
            .costs
            .iter()
            .map(|cost| Cost {
                meter: Arc::clone(&cost.meter),
                units: used(cost),
            })
            .collect();
        let attributes = merged(service, tenant, &quantities, added, &opened.attributes)?;
        let event_time_us = event_time_us
            .map(|at| {
                let meters = quantities.iter().map(|quantity| &*quantity.meter);
                event_time(&service.hub.directory.lock(), meters, at, now_us)
            })
            .transpose()?
            .unwrap_or(now_us);
        let recorded = if quantities.is_empty() {
            nothing()
        } else {
            quantities
        };
        Ok(Self {
            released: false,
            actual,
            recorded,
            attributes,
            event_time_us,
        })
    }
}

/// Waits until the key is there that the record of an end needs.
async fn can_hide(
    service: &Service,
    token: &ReservationToken,
    opened: Option<&Opened>,
    actual: &Actual,
) -> Answer<()> {
    let Actual::Used {
        quantities,
        attributes,
        ..
    } = actual
    else {
        return Ok(());
    };
    let reserved = opened.map_or_else(
        || token_attributes(token),
        |opened| opened.attributes.clone(),
    );
    let lacks = |directory: &Directory| {
        let meters = quantities.iter().map(|quantity| &*quantity.meter);
        let plain = reserved.iter().filter(|(_, value)| !is_pseudonym(value));
        let names = attributes.iter().chain(plain).map(|(name, _)| &**name);
        directory.lacks_key(&token.tenant, &meters, names)
    };
    service.can_hide(&token.tenant.as_str().into(), lacks).await
}

/// Leaves the declared ones of the attributes that came with the settlement, and adds those of the reservation; what one
/// of the meters hides stands there as its pseudonym.
fn merged(
    service: &Service,
    tenant: &str,
    quantities: &[Cost],
    mut attributes: Attributes,
    reserved: &Attributes,
) -> Answer<Attributes> {
    let meters = quantities.iter().map(|quantity| &*quantity.meter);
    let mut reserved = reserved.clone();
    {
        let directory = service.hub.directory.lock();
        directory.stored(tenant, &meters, &mut attributes)?;
        directory.stored_reserved(tenant, &meters, &mut reserved)?;
    }
    for pair in reserved {
        if !attributes.iter().any(|(name, _)| *name == pair.0) {
            attributes.push(pair);
        }
    }
    attributes.sort_unstable();
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(too_many_attributes(attributes.len()));
    }
    Ok(attributes)
}

/// Most attributes of a record.
const ATTRIBUTES_MAX: usize = 16;

fn too_many_attributes(count: usize) -> Refusal {
    FieldError::new(
        ErrorReason::FieldTooLong,
        "attributes",
        count,
        "at most 16 together with those given when it was reserved",
        "send fewer",
    )
    .into()
}

/// Units of every reserved meter above its reserve.
fn excess(reserved: &[Cost], actual: &[Cost]) -> Vec<Cost> {
    let above = |(reserve, used): (&Cost, &Cost)| {
        let units = used.units.saturating_sub(reserve.units);
        (units > 0).then(|| Cost {
            meter: Arc::clone(&reserve.meter),
            units,
        })
    };
    reserved.iter().zip(actual).filter_map(above).collect()
}

/// Flags of the record that ends a reservation.
fn flags(excess: &[Cost], expired: bool) -> u32 {
    let mut flags = RecordFlag::SystemId as u32;
    if !excess.is_empty() {
        flags |= RecordFlag::Excess as u32;
    }
    if expired {
        flags |= RecordFlag::Expired as u32;
    }
    flags
}

/// Units of every reserved meter that were not used.
fn unused(reserved: &[Cost], actual: &[Cost]) -> Vec<Cost> {
    // The same subtraction the other way round.
    excess(actual, reserved)
}

/// Makes the record that ends a reservation durable, together with the end.
async fn record(service: &Service, id: ReservationId, draft: Draft<'_>) -> Answer<()> {
    let record = records::usage(draft);
    let payload = record.encode_to_vec();
    let entry = Append::Usage {
        payload: &payload,
        content_hash: content_hash(&record),
        ends: Some(id.0),
    };
    let position = service.journal.append(entry)?;
    durable(&*service.journal, position).await?;
    service.stats.recorded(1);
    Ok(())
}
