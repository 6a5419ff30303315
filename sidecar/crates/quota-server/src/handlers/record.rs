//! `RecordUsage`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use quota_core::Now;
use quota_proto::{
    FieldError, FieldResult,
    quota::{ErrorReason, RecordOutcome, RecordResult, RecordUsageResponse},
    raw::{RecordUsageRequest, Text as _},
    reason_name,
    usage::{ParsedRecord, record_count, wants_ledger},
};
use tokio::time::timeout;
use usage_log::Position;

use crate::{
    directory::Directory,
    fresh::{Appended, Draft, Fresh, Place},
    handlers::counted::{Use, count},
    journal::{committed, durable},
    refusal::{Answer, Refusal},
    service::Service,
};

/// How long a call without a deadline waits for the ledger.
const LEDGER_WAIT: Duration = Duration::from_secs(30);

/// Makes records durable; each gets its own result, and the bad ones don't hold up the good ones.
///
/// After an error nothing is known of the call's records: repeat it with the same ids. `deadline` is how long the
/// caller still waits.
///
/// # Errors
/// Too many records or none, an unknown acknowledgement, a tenant of which the ledger could not be asked or whose key of
/// pseudonyms it did not send, a log that is full or can't be written, the deadline.
pub async fn record_usage(
    service: &Arc<Service>,
    request: RecordUsageRequest,
    deadline: Option<Duration>,
) -> Answer<RecordUsageResponse> {
    let answer = record_all(service, request, deadline).await;
    service.counted(answer)
}

async fn record_all(
    service: &Arc<Service>,
    request: RecordUsageRequest,
    deadline: Option<Duration>,
) -> Answer<RecordUsageResponse> {
    let to_ledger = wants_ledger(request.acknowledgement)?;
    record_count(request.records.len())?;
    if !request.is_text() {
        return Err(Refusal::undecodable("a string is not UTF-8"));
    }
    let parsed: Vec<FieldResult<ParsedRecord>> = request
        .records
        .into_iter()
        .map(ParsedRecord::try_from)
        .collect();
    let known = Known::of(service, &parsed).await?;
    can_hide(service, &parsed).await?;
    service.room()?;
    // Read only now: between the receive time and the append nothing may be waited for, or a watermark could overtake.
    let now = service.hub.now()?;
    let appended = append_all(service, parsed, &known, now, to_ledger)?;
    if let Some(last) = appended.last {
        if let Err(refusal) = acknowledged(service, last, appended.uses, to_ledger, deadline).await
        {
            if refusal.reason == ErrorReason::UsageLogIo {
                let mut recent = service.recent.lock();
                let fresh = appended.fresh.into_iter();
                fresh.for_each(|key| recent.forget(key));
            }
            return Err(refusal);
        }
    }
    service.stats.recorded(appended.count);
    let told = service.verdicts.any();
    let results = appended.results.into_iter().enumerate();
    let judged = results.map(|(index, (result, position))| match position {
        Some(position) if told => judged(service, index, result, position),
        _ => result,
    });
    Ok(RecordUsageResponse {
        results: judged.collect(),
    })
}

/// Tells what the ledger said of a record where it was not stored; what was only meant to be is no result.
fn judged(
    service: &Service,
    index: usize,
    result: RecordResult,
    position: Position,
) -> RecordResult {
    let Some(verdict) = service.verdicts.on(position.record_number()) else {
        return result;
    };
    let mut told = RecordResult {
        outcome: verdict.outcome.into(),
        id: result.id,
        ..RecordResult::default()
    };
    if verdict.outcome == RecordOutcome::Invalid {
        let path = format!("records[{index}]");
        told.field = match &*verdict.field {
            "" => path,
            field => format!("{path}.{field}"),
        };
        told.message = format!(
            "{} was refused by the ledger as {}; it is kept in quarantine",
            told.field, verdict.reason
        );
        told.reason = verdict.reason.into();
    }
    told
}

async fn acknowledged(
    service: &Arc<Service>,
    last: Position,
    uses: Vec<Use>,
    to_ledger: bool,
    deadline: Option<Duration>,
) -> Answer<()> {
    durable(&*service.journal, last).await?;
    // Whatever the ledger says, or the caller waits for: a repeat would be a duplicate, which counts nothing.
    count(service, uses).await;
    if !to_ledger {
        return Ok(());
    }
    // A margin is kept of the caller's deadline, so that it hears why.
    let patience = deadline.map_or(LEDGER_WAIT, |deadline| {
        deadline.saturating_sub(
            deadline
                .checked_div(10)
                .unwrap_or_default()
                .min(Duration::from_millis(50)),
        )
    });
    timeout(patience, committed(&*service.journal, last)).await.unwrap_or_else(|_| {
        Err(Refusal::deadline("the records are durable on this node but the ledger has not committed them in time"))
    })
}

/// Tenants of one call, and whether they exist.
struct Known(HashMap<Bytes, bool>);

impl Known {
    async fn of(service: &Service, parsed: &[FieldResult<ParsedRecord>]) -> Answer<Self> {
        let mut names: Vec<Bytes> = Vec::new();
        let mut seen: HashSet<&Bytes> = HashSet::new();
        for record in parsed.iter().flatten() {
            // Most calls are of one tenant.
            if names.last() != Some(&record.tenant) && seen.insert(&record.tenant) {
                names.push(record.tenant.clone());
            }
        }
        let tenants: Vec<Arc<str>> = names.iter().map(|name| name.text().into()).collect();
        let known = service.tenants_known(&tenants).await?;
        Ok(Self(names.into_iter().zip(known).collect()))
    }

    fn exists(&self, tenant: &Bytes) -> bool {
        self.0.get(tenant).is_some_and(|exists| *exists)
    }
}

/// Judges a call's records and appends the good ones, all of them or none.
fn append_all(
    service: &Service,
    parsed: Vec<FieldResult<ParsedRecord>>,
    known: &Known,
    now: Now,
    to_ledger: bool,
) -> Answer<Appended> {
    let mut fresh = Fresh::default();
    let mut results = Vec::with_capacity(parsed.len());
    let directory = service.hub.directory.lock();
    let mut recent = service.recent.lock();
    for (index, record) in parsed.into_iter().enumerate() {
        let mut id = String::new();
        let draft = record.map_err(Refusal::from).and_then(|record| {
            if let Err(refusal) = checked(&directory, &record, known, now.ledger_us) {
                record.id.text().clone_into(&mut id);
                return Err(refusal);
            }
            Draft::of(service, &directory, record, now)
        });
        results.push(match draft {
            Ok(draft) => fresh.take(draft, &recent, to_ledger)?,
            Err(refusal) if is_of_the_call(refusal.reason) => return Err(refusal),
            Err(refusal) => (invalid(id, index, &refusal), Place::Nowhere),
        });
    }
    drop(directory);
    let positions = service.journal.append_all(&fresh.entries())?;
    fresh.remember(&mut recent, &positions);
    Ok(Appended::of(results, &positions, fresh))
}

/// Whether a reason says nothing of the record, which is as good when it is sent again.
fn is_of_the_call(reason: ErrorReason) -> bool {
    matches!(
        reason,
        ErrorReason::SidecarStarting | ErrorReason::LedgerUnreachable
    )
}

/// Waits for the keys that records need which hide something.
async fn can_hide(service: &Service, parsed: &[FieldResult<ParsedRecord>]) -> Answer<()> {
    let lacks = |directory: &Directory, record: &ParsedRecord| {
        let meters = record
            .quantities
            .iter()
            .map(|quantity| quantity.meter.text());
        let names = record.attributes.iter().map(|pair| pair.name.text());
        directory.lacks_key(record.tenant.text(), &meters, names)
    };
    let lacking: HashSet<Arc<str>> = {
        let directory = service.hub.directory.lock();
        let records = parsed.iter().flatten();
        records
            .filter(|record| lacks(&directory, record))
            .map(|record| record.tenant.text().into())
            .collect()
    };
    for tenant in &lacking {
        let of_it = |record: &&ParsedRecord| record.tenant.text() == &**tenant;
        let waits = |directory: &Directory| {
            let mut records = parsed.iter().flatten().filter(of_it);
            records.any(|record| lacks(directory, record))
        };
        service.can_hide(tenant, waits).await?;
    }
    Ok(())
}

/// Checks what only the catalogue and the clock can tell.
fn checked(directory: &Directory, record: &ParsedRecord, known: &Known, now_us: i64) -> Answer<()> {
    if !known.exists(&record.tenant) {
        let (reason, tenant) = (ErrorReason::TenantUnknown, record.tenant.text());
        return Err(Refusal::unknown(reason, "tenant", "tenant", tenant));
    }
    let meters = record
        .quantities
        .iter()
        .map(|quantity| quantity.meter.text());
    for (index, meter) in meters.clone().enumerate() {
        directory.require_meter(|| format!("quantities[{index}].meter"), meter)?;
    }
    if let Some(at_us) = record.event_time_us {
        event_time(directory, meters, at_us, now_us)?;
    }
    Ok(())
}

/// Checks that an event time is neither too late nor too far ahead for any of these meters.
pub(crate) fn event_time<'m>(
    directory: &Directory,
    meters: impl Iterator<Item = &'m str>,
    at_us: i64,
    now_us: i64,
) -> Answer<i64> {
    let (late_us, early_us) = directory.span(meters);
    let least = now_us.saturating_sub(late_us);
    let most = now_us.saturating_add(early_us);
    if (least..=most).contains(&at_us) {
        return Ok(at_us);
    }
    Err(FieldError::new(
        ErrorReason::FieldOutOfRange,
        "event_time",
        format!("{at_us} us"),
        format!(
            "{least} to {most} us ({} s back to {} s ahead)",
            late_us / 1_000_000,
            early_us / 1_000_000
        ),
        "send it in time, and set the caller's clock",
    )
    .into())
}

fn invalid(id: String, index: usize, refusal: &Refusal) -> RecordResult {
    let path = format!("records[{index}]");
    RecordResult {
        outcome: RecordOutcome::Invalid.into(),
        id,
        reason: reason_name(refusal.reason).to_owned(),
        field: refusal
            .get("field")
            .map_or_else(|| path.clone(), |field| format!("{path}.{field}")),
        message: format!("{path}.{}", refusal.message),
    }
}
