//! `RecordUsage`.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use quota_core::{Cost, Now};
use quota_proto::{
    FieldError, FieldResult,
    content::content_hash,
    quota::{ErrorReason, RecordOutcome, RecordResult, RecordUsageRequest, RecordUsageResponse},
    reason_name,
    usage::{ParsedRecord, record_count, wants_ledger},
};
use tokio::time::timeout;
use usage_log::{Append, Position};

use crate::{
    handlers::counted::{Use, count},
    journal::{committed, durable},
    recent::{Key, Seen},
    records::{self, Draft, Levels},
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
/// Too many records or none, an unknown acknowledgement, a tenant of which the ledger could not be asked, a log that is
/// full or can't be written, the deadline.
pub async fn record_usage(
    service: &Arc<Service>,
    request: RecordUsageRequest,
    deadline: Option<Duration>,
) -> Answer<RecordUsageResponse> {
    let answer = record_all(service, request, deadline).await;
    service.counted(answer)
}

/// What was appended for one call.
#[derive(Default)]
struct Appended {
    last: Option<Position>,
    fresh: Vec<Key>,
    count: u64,
    uses: Vec<Use>,
}

impl Appended {
    fn reach(&mut self, position: Position) {
        self.last = self.last.max(Some(position));
    }
}

async fn record_all(
    service: &Arc<Service>,
    request: RecordUsageRequest,
    deadline: Option<Duration>,
) -> Answer<RecordUsageResponse> {
    let to_ledger = wants_ledger(request.acknowledgement)?;
    record_count(request.records.len())?;
    let parsed: Vec<FieldResult<ParsedRecord>> = request
        .records
        .into_iter()
        .map(ParsedRecord::try_from)
        .collect();
    let known = Known::of(service, &parsed).await?;
    service.room()?;
    // Read only now: between the receive time and the append nothing may be waited for, or a watermark could overtake.
    let now = service.hub.now()?;
    let mut appended = Appended::default();
    let results = append_all(service, parsed, &known, now, to_ledger, &mut appended);
    let outcome = match (&results, appended.last) {
        (Ok(_), Some(last)) => {
            let uses = std::mem::take(&mut appended.uses);
            acknowledged(service, last, uses, to_ledger, deadline).await
        }
        _ => Ok(()),
    };
    let results = match (results, outcome) {
        (Ok(results), Ok(())) => results,
        (Err(refusal), _) | (_, Err(refusal)) => {
            if refusal.reason == ErrorReason::UsageLogIo {
                let mut recent = service.recent.lock();
                appended
                    .fresh
                    .into_iter()
                    .for_each(|key| recent.forget(key));
            }
            return Err(refusal);
        }
    };
    service.stats.recorded(appended.count);
    let judged = results
        .into_iter()
        .enumerate()
        .map(|(index, (result, position))| judged(service, index, result, position));
    Ok(RecordUsageResponse {
        results: judged.collect(),
    })
}

/// Tells what the ledger said of a record where it was not stored; what was only meant to be is no result.
fn judged(
    service: &Service,
    index: usize,
    result: RecordResult,
    position: Option<Position>,
) -> RecordResult {
    let verdict = position.and_then(|position| service.verdicts.on(position.record_number()));
    let Some(verdict) = verdict else {
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

/// The result of a record, and where in the log the record stands that it is about.
type Placed = (RecordResult, Option<Position>);

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
struct Known(Vec<(Arc<str>, bool)>);

impl Known {
    async fn of(service: &Service, parsed: &[FieldResult<ParsedRecord>]) -> Answer<Self> {
        let mut tenants: Vec<Arc<str>> = Vec::new();
        for record in parsed.iter().flatten() {
            if !tenants.iter().any(|tenant| **tenant == *record.tenant) {
                tenants.push(record.tenant.as_str().into());
            }
        }
        let known = service.tenants_known(&tenants).await?;
        Ok(Self(tenants.into_iter().zip(known).collect()))
    }

    fn exists(&self, tenant: &str) -> bool {
        self.0
            .iter()
            .any(|(name, exists)| **name == *tenant && *exists)
    }
}

fn append_all(
    service: &Service,
    parsed: Vec<FieldResult<ParsedRecord>>,
    known: &Known,
    now: Now,
    to_ledger: bool,
    appended: &mut Appended,
) -> Answer<Vec<Placed>> {
    let mut results = Vec::with_capacity(parsed.len());
    for (index, record) in parsed.into_iter().enumerate() {
        let path = format!("records[{index}]");
        let id = record
            .as_ref()
            .map(|record| record.id.clone())
            .unwrap_or_default();
        results.push(
            match record
                .map_err(Refusal::from)
                .and_then(|record| checked(service, record, known, now.ledger_us))
            {
                Ok(record) => append(service, record, now, to_ledger, appended)?,
                Err(refusal) if refusal.reason == ErrorReason::SidecarStarting => {
                    return Err(refusal);
                }
                Err(refusal) => (invalid(id, &path, &refusal), None),
            },
        );
    }
    Ok(results)
}

/// Checks what only the catalogue and the clock can tell.
fn checked(
    service: &Service,
    record: ParsedRecord,
    known: &Known,
    now_us: i64,
) -> Answer<ParsedRecord> {
    if !known.exists(&record.tenant) {
        return Err(Refusal::unknown(
            ErrorReason::TenantUnknown,
            "tenant",
            "tenant",
            &record.tenant,
        ));
    }
    for (index, quantity) in record.quantities.iter().enumerate() {
        service.require_meter(format!("quantities[{index}].meter"), &quantity.meter)?;
    }
    record
        .event_time_us
        .map(|at| event_time(service, &record.quantities, at, now_us))
        .transpose()?;
    Ok(record)
}

/// Checks that an event time is neither too late nor too far ahead for any of these meters.
pub(crate) fn event_time(
    service: &Service,
    quantities: &[Cost],
    at_us: i64,
    now_us: i64,
) -> Answer<i64> {
    let meters = quantities.iter().map(|quantity| &*quantity.meter);
    let (late_us, early_us) = service.hub.directory.lock().span(meters);
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

fn append(
    service: &Service,
    mut record: ParsedRecord,
    now: Now,
    to_ledger: bool,
    appended: &mut Appended,
) -> Answer<Placed> {
    let used = record.counts.then(|| Use::of(&record));
    let named = !record.id.is_empty();
    if !named {
        record.id = service.record_id(now)?;
    }
    service.hub.directory.lock().declared(
        &record.quantities.iter().map(|quantity| &*quantity.meter),
        &mut record.attributes,
    );
    let logged = records::usage(Draft {
        tenant: &record.tenant,
        id: record.id,
        event_time_us: record.event_time_us.unwrap_or(now.ledger_us),
        received_us: now.ledger_us,
        quantities: &record.quantities,
        attributes: &record.attributes,
        flags: 0,
        ends: None,
        home: None,
        levels: Levels::default(),
    });
    let content_hash = content_hash(&logged);
    let result = |outcome: RecordOutcome, id: String| RecordResult {
        outcome: outcome.into(),
        id,
        ..RecordResult::default()
    };
    let mut recent = service.recent.lock();
    let seen = if named {
        Some(recent.look(&logged.tenant, &logged.id, &content_hash))
    } else {
        None
    };
    match seen {
        Some(Seen::Same(position)) => {
            appended.reach(position);
            return Ok((result(RecordOutcome::Duplicate, logged.id), Some(position)));
        }
        Some(Seen::Other) if !to_ledger => {
            return Ok((result(RecordOutcome::Conflict, logged.id), None));
        }
        // The ledger may have refused what was seen here first: who waits for it hears its word.
        Some(Seen::Other | Seen::New(_)) | None => {}
    }
    let position = service.journal.append(Append::Usage {
        payload: &logged.encode_to_vec(),
        content_hash,
        ends: None,
    })?;
    appended.reach(position);
    appended.count = appended.count.saturating_add(1);
    if !matches!(seen, Some(Seen::Other)) {
        appended.uses.extend(used);
    }
    if let Some(Seen::New(key)) = seen {
        recent.remember(key, content_hash, position);
        appended.fresh.push(key);
    }
    Ok((result(RecordOutcome::Recorded, logged.id), Some(position)))
}

fn invalid(id: String, path: &str, refusal: &Refusal) -> RecordResult {
    RecordResult {
        outcome: RecordOutcome::Invalid.into(),
        id,
        reason: reason_name(refusal.reason).to_owned(),
        field: refusal
            .get("field")
            .map_or_else(|| path.to_owned(), |field| format!("{path}.{field}")),
        message: format!("{path}.{}", refusal.message),
    }
}
