//! `RecordUsage`.

use std::{sync::Arc, time::Duration};

use hashbrown::{HashMap, HashSet};
use quota_core::Now;
use quota_proto::{
    FieldError, FieldResult,
    quota::{ErrorReason, RecordOutcome, RecordResult},
    raw::RecordUsageRequest,
    reason_name,
    results::RecordUsageResults,
    usage::{ParsedRecord, record_count, wants_ledger},
};
use tokio::time::timeout;
use usage_log::Position;

use crate::{
    directory::Directory,
    fresh::{Appended, Fresh, Known, Told},
    handlers::counted::{Use, count},
    journal::{committed, durable},
    refusal::{Answer, Refusal},
    service::Service,
    verdicts::Verdict,
};

/// A record, or the field that broke its rule.
type Parsed<'a> = FieldResult<ParsedRecord<'a>>;

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
) -> Answer<RecordUsageResults> {
    let answer = record_all(service, request, deadline).await;
    service.counted(answer)
}

async fn record_all(
    service: &Arc<Service>,
    request: RecordUsageRequest,
    deadline: Option<Duration>,
) -> Answer<RecordUsageResults> {
    let to_ledger = wants_ledger(request.acknowledgement)?;
    record_count(request.len())?;
    let parsed: Vec<Parsed<'_>> = request.records().map(ParsedRecord::try_from).collect();
    let tenants = Tenants::of(service, &parsed).await?;
    can_hide(service, &parsed).await?;
    service.room()?;
    // Read only now: between the receive time and the append nothing may be waited for, or a watermark could overtake.
    let now = service.hub.now()?;
    let mut appended = append_all(service, parsed, &tenants, now, to_ledger)?;
    if let Some(last) = appended.last {
        let uses = std::mem::take(&mut appended.uses);
        if let Err(refusal) = acknowledged(service, last, uses, to_ledger, deadline).await {
            if refusal.reason == ErrorReason::UsageLogIo {
                let mut recent = service.recent.lock();
                let fresh = appended.fresh.into_iter();
                fresh.for_each(|key| recent.forget(key));
            }
            return Err(refusal);
        }
    }
    service.stats.recorded(appended.count);
    Ok(results(service, &appended))
}

/// Says what became of records that are as durable as their caller wants.
fn results(service: &Service, appended: &Appended) -> RecordUsageResults {
    let has_verdicts = service.verdicts.any();
    let mut results = RecordUsageResults::with_room(appended.told.len());
    for (index, told) in appended.told.iter().enumerate() {
        match told {
            Told::Refused(result) => results.push_result(result),
            Told::Of { outcome, id, place } => {
                let id = appended.id(id);
                let position = appended.position(*place).filter(|_| has_verdicts);
                let number = position.map(Position::record_number);
                match number.and_then(|number| service.verdicts.on(number)) {
                    Some(verdict) => results.push_result(&judged(verdict, index, id)),
                    None => results.push(*outcome, id),
                }
            }
        }
    }
    results
}

/// Tells what the ledger said of a record that was not stored; what was only meant to be is no result.
fn judged(verdict: Verdict, index: usize, id: &str) -> RecordResult {
    let mut told = RecordResult {
        outcome: verdict.outcome.into(),
        id: id.to_owned(),
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
struct Tenants<'a>(HashMap<&'a str, bool>);

impl<'a> Tenants<'a> {
    async fn of(service: &Service, parsed: &[Parsed<'a>]) -> Answer<Self> {
        let mut names: Vec<&str> = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for record in parsed.iter().flatten() {
            // Most calls are of one tenant.
            if names.last() != Some(&record.tenant) && seen.insert(record.tenant) {
                names.push(record.tenant);
            }
        }
        let tenants: Vec<Arc<str>> = names.iter().map(|name| Arc::from(*name)).collect();
        let known = service.tenants_known(&tenants).await?;
        Ok(Self(names.into_iter().zip(known).collect()))
    }

    fn exists(&self, tenant: &str) -> bool {
        self.0.get(tenant).is_some_and(|exists| *exists)
    }
}

/// Judges a call's records and appends the good ones, all of them or none.
fn append_all(
    service: &Service,
    parsed: Vec<Parsed<'_>>,
    tenants: &Tenants<'_>,
    now: Now,
    to_ledger: bool,
) -> Answer<Appended> {
    let mut fresh = Fresh::of(parsed.len());
    let mut told = Vec::with_capacity(parsed.len());
    let directory = service.hub.directory.lock();
    let mut recent = service.recent.lock();
    let known = Known {
        service,
        directory: &directory,
        recent: &recent,
        now,
        to_ledger,
    };
    for (index, record) in parsed.into_iter().enumerate() {
        let (id, outcome) = match record {
            Err(error) => ("", Err(error.into())),
            Ok(record) => match checked(&directory, &record, tenants, now.ledger_us) {
                Err(refusal) => (record.id, Err(refusal)),
                Ok(()) => ("", fresh.take(&record, &known)),
            },
        };
        told.push(match outcome {
            Ok(told) => told,
            Err(refusal) if is_of_the_call(refusal.reason) => return Err(refusal),
            Err(refusal) => Told::Refused(invalid(id, index, &refusal).into()),
        });
    }
    drop(directory);
    let positions = service.journal.append_all(&fresh.entries())?;
    fresh.remember(&mut recent, &positions);
    Ok(Appended::of(told, positions, fresh))
}

/// Whether a reason says nothing of the record, which is as good when it is sent again.
fn is_of_the_call(reason: ErrorReason) -> bool {
    matches!(
        reason,
        ErrorReason::SidecarStarting | ErrorReason::LedgerUnreachable
    )
}

/// Waits for the keys that records need which hide something.
async fn can_hide(service: &Service, parsed: &[Parsed<'_>]) -> Answer<()> {
    let lacks = |directory: &Directory, record: &ParsedRecord<'_>| {
        let names = record.attributes().map(|(name, _)| name);
        directory.lacks_key(record.tenant, &record.meters(), names)
    };
    let lacking: HashSet<Arc<str>> = {
        let directory = service.hub.directory.lock();
        let records = parsed.iter().flatten();
        records
            .filter(|record| lacks(&directory, record))
            .map(|record| record.tenant.into())
            .collect()
    };
    for tenant in &lacking {
        let of_it = |record: &&ParsedRecord<'_>| record.tenant == &**tenant;
        let waits = |directory: &Directory| {
            let mut records = parsed.iter().flatten().filter(of_it);
            records.any(|record| lacks(directory, record))
        };
        service.can_hide(tenant, waits).await?;
    }
    Ok(())
}

/// Checks what only the catalogue and the clock can tell.
fn checked(
    directory: &Directory,
    record: &ParsedRecord<'_>,
    tenants: &Tenants<'_>,
    now_us: i64,
) -> Answer<()> {
    if !tenants.exists(record.tenant) {
        let reason = ErrorReason::TenantUnknown;
        return Err(Refusal::unknown(reason, "tenant", "tenant", record.tenant));
    }
    for (index, meter) in record.meters().enumerate() {
        directory.require_meter(|| format!("quantities[{index}].meter"), meter)?;
    }
    if let Some(at_us) = record.event_time_us {
        event_time(directory, record.meters(), at_us, now_us)?;
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

fn invalid(id: &str, index: usize, refusal: &Refusal) -> RecordResult {
    let path = format!("records[{index}]");
    RecordResult {
        outcome: RecordOutcome::Invalid.into(),
        id: id.to_owned(),
        reason: reason_name(refusal.reason).to_owned(),
        field: refusal
            .get("field")
            .map_or_else(|| path.clone(), |field| format!("{path}.{field}")),
        message: format!("{path}.{}", refusal.message),
    }
}
