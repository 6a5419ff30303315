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
    usage::{ParsedRecord, parsed_records, record_count, wants_ledger},
};
use tokio::time::timeout;
use usage_log::Position;

use crate::{
    directory::{Directory, Standing},
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
    let parsed: Vec<Parsed<'_>> = parsed_records(&request).collect();
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

/// The good records of a call that are not like the one before them: whose names say something new.
fn leaders<'p, 'a>(parsed: &'p [Parsed<'a>]) -> impl Iterator<Item = &'p ParsedRecord<'a>> + Clone {
    parsed.iter().flatten().filter(|record| !record.is_alike)
}

/// Tenants of one call, and whether they exist.
struct Tenants<'a>(HashMap<&'a str, bool>);

impl<'a> Tenants<'a> {
    async fn of(service: &Service, parsed: &[Parsed<'a>]) -> Answer<Self> {
        let mut names: Vec<&str> = Vec::new();
        let mut seen: HashSet<&str> = HashSet::new();
        for record in leaders(parsed) {
            if seen.insert(record.tenant) {
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
    let mut catalogue = Catalogue::of(&directory, tenants, now.ledger_us);
    for (index, record) in parsed.into_iter().enumerate() {
        let (id, outcome) = match record {
            Err(error) => ("", Err(error.into())),
            Ok(record) => match catalogue.check(&record) {
                Err(refusal) => (record.id, Err(refusal)),
                Ok(standings) => ("", fresh.take(&record, standings, &known)),
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
        leaders(parsed)
            .filter(|record| lacks(&directory, record))
            .map(|record| record.tenant.into())
            .collect()
    };
    for tenant in &lacking {
        let of_it = |record: &&ParsedRecord<'_>| record.tenant == &**tenant;
        let waits = |directory: &Directory| {
            let mut records = leaders(parsed).filter(of_it);
            records.any(|record| lacks(directory, record))
        };
        service.can_hide(tenant, waits).await?;
    }
    Ok(())
}

/// What only the catalogue and the clock can tell of a call's records, each name looked up once for all records alike.
struct Catalogue<'a> {
    directory: &'a Directory,
    tenants: &'a Tenants<'a>,
    now_us: i64,
    /// The names of the record before are good: what follows is of them.
    is_known: bool,
    span_us: (i64, i64),
    standings: Vec<Standing>,
}

impl<'a> Catalogue<'a> {
    fn of(directory: &'a Directory, tenants: &'a Tenants<'a>, now_us: i64) -> Self {
        Self {
            directory,
            tenants,
            now_us,
            is_known: false,
            span_us: (0, 0),
            standings: Vec::new(),
        }
    }

    /// Checks a record; says what becomes of each of its attributes.
    fn check(&mut self, record: &ParsedRecord<'_>) -> Answer<&[Standing]> {
        if !(self.is_known && record.is_alike) {
            self.is_known = false;
            self.look_up(record)?;
            self.is_known = true;
        }
        if let Some(at_us) = record.event_time_us {
            in_span(self.span_us, at_us, self.now_us)?;
        }
        Ok(&self.standings)
    }

    fn look_up(&mut self, record: &ParsedRecord<'_>) -> Answer<()> {
        if !self.tenants.exists(record.tenant) {
            let reason = ErrorReason::TenantUnknown;
            return Err(Refusal::unknown(reason, "tenant", "tenant", record.tenant));
        }
        let (directory, meters) = (self.directory, record.meters());
        for (index, meter) in meters.clone().enumerate() {
            directory.require_meter(|| format!("quantities[{index}].meter"), meter)?;
        }
        self.span_us = directory.span(meters.clone());
        let names = record.attributes().map(|(name, _)| name);
        self.standings.clear();
        self.standings
            .extend(names.map(|name| directory.standing(&meters, name)));
        Ok(())
    }
}

/// Checks that an event time is neither too late nor too far ahead for any of these meters.
pub(crate) fn event_time<'m>(
    directory: &Directory,
    meters: impl Iterator<Item = &'m str>,
    at_us: i64,
    now_us: i64,
) -> Answer<i64> {
    in_span(directory.span(meters), at_us, now_us)
}

fn in_span((late_us, early_us): (i64, i64), at_us: i64, now_us: i64) -> Answer<i64> {
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
