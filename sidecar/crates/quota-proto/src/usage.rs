//! Usage records and settlements as callers send them.

use prost_types::Timestamp;
use quota_core::Cost;

use crate::{
    check::{meter_units, metered},
    field::{
        Attributes, FieldError, FieldResult, LIST_MAX, attribute, attribute_count, attribute_value,
        attributes, optional_text, tenant, units,
    },
    quota::{self, Acknowledgement, ErrorReason},
    raw::{RecordUsageRequest, UsageRecord},
};

/// Prefixes of ids that only the system makes.
const RESERVED_PREFIXES: [&str; 3] = ["r/", "c/", "g/"];
/// Last second of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;
/// Most records of one call.
const RECORDS_MAX: usize = 1_000;

/// A usage record whose every field keeps its rule.
#[derive(Clone, Copy, Debug)]
pub struct ParsedRecord<'a> {
    /// Idempotency id; empty = the sidecar makes one.
    pub id: &'a str,
    /// Wire id of the tenant.
    pub tenant: &'a str,
    /// Event time in microseconds; `None` = now.
    pub event_time_us: Option<i64>,
    /// It is taken from limits as well.
    pub counts: bool,
    /// The record before it in its call was good as well and had the same tenant, meters and names of attributes.
    pub is_alike: bool,
    record: UsageRecord<'a>,
}

/// Parses a call's records, each with its own outcome, in the caller's order. Names that a good record had are not
/// checked again in one that is like it and follows it.
pub fn parsed_records(
    call: &RecordUsageRequest,
) -> impl Iterator<Item = FieldResult<ParsedRecord<'_>>> {
    let mut was_good = false;
    call.records().map(move |record| {
        let parsed = parsed(record, was_good && record.is_alike());
        was_good = parsed.is_ok();
        parsed
    })
}

impl<'a> ParsedRecord<'a> {
    /// Gives its quantities, each of another meter, in the caller's order; units are 0 to 2^53 − 1.
    #[must_use]
    pub fn quantities(self) -> impl ExactSizeIterator<Item = (&'a str, i64)> + Clone {
        self.record.quantities()
    }

    /// Gives its meters in the caller's order.
    #[must_use]
    pub fn meters(self) -> impl ExactSizeIterator<Item = &'a str> + Clone {
        self.record.quantities().map(|(meter, _)| meter)
    }

    /// Gives its attributes, sorted by name.
    #[must_use]
    pub fn attributes(self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> + Clone {
        self.record.attributes()
    }
}

/// Parses a record; `is_alike`: its names are those of a good one.
fn parsed(record: UsageRecord<'_>, is_alike: bool) -> FieldResult<ParsedRecord<'_>> {
    let (id, event_time) = (record.id(), record.event_time());
    if !is_alike {
        tenant("tenant", record.tenant())?;
    }
    record_id(id, event_time.is_some())?;
    let count = record.quantities().len();
    if count == 0 {
        return Err(FieldError::required(
            "quantities",
            "1 to 16 quantities",
            "name a meter with its units",
        ));
    }
    let event_time_us = event_time.map(event_time_us).transpose()?;
    quantity_count(count)?;
    for (index, (meter, amount)) in record.quantities().enumerate() {
        if is_alike {
            units(|| format!("quantities[{index}].units"), amount)?;
            continue;
        }
        let mut before = record.quantities().take(index);
        let is_repeated = before.any(|(other, _)| other == meter);
        metered("quantities", index, meter, amount, is_repeated)?;
    }
    attribute_count(record.attributes().len())?;
    for (name, value) in record.attributes() {
        if is_alike {
            attribute_value(name, value)?;
        } else {
            attribute(name, value)?;
        }
    }
    Ok(ParsedRecord {
        id,
        tenant: record.tenant(),
        event_time_us,
        counts: record.counts(),
        is_alike,
        record,
    })
}

/// Parses the id of a record; empty is none.
fn record_id(id: &str, has_event_time: bool) -> FieldResult<()> {
    if id.is_empty() {
        return Ok(());
    }
    optional_text("id", id)?;
    if let Some(prefix) = RESERVED_PREFIXES
        .iter()
        .find(|prefix| id.starts_with(**prefix))
    {
        return Err(FieldError::new(
            ErrorReason::FieldInvalid,
            "id",
            id,
            format!("free of the system's prefix {prefix}"),
            "choose another id",
        ));
    }
    if has_event_time {
        return Ok(());
    }
    Err(FieldError::required(
        "event_time",
        "set where id is set",
        "send the time of use with your id, so that a retry is the same record",
    ))
}

/// What a settlement says, with every field keeping its rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedSettle {
    /// The token as it came.
    pub token: String,
    /// What was used, each of another meter.
    pub quantities: Vec<Cost>,
    /// Attributes sorted by name.
    pub attributes: Attributes,
    /// Event time in microseconds; `None` = now.
    pub event_time_us: Option<i64>,
}

impl TryFrom<quota::SettleReservationRequest> for ParsedSettle {
    type Error = FieldError;

    fn try_from(request: quota::SettleReservationRequest) -> FieldResult<Self> {
        Ok(Self {
            token: token(request.token)?,
            quantities: quantities(request.quantities)?,
            attributes: attributes(request.attributes)?,
            event_time_us: request.event_time.map(event_time_us).transpose()?,
        })
    }
}

/// Parses a reservation's token as far as its form goes.
///
/// # Errors
/// Empty.
pub fn token(value: String) -> FieldResult<String> {
    if value.is_empty() {
        return Err(FieldError::required(
            "token",
            "the token of a reservation",
            "send what the reserving check answered",
        ));
    }
    Ok(value)
}

/// Parses a wish for acknowledgement; true = of the ledger.
///
/// # Errors
/// An unknown value.
pub fn wants_ledger(value: i32) -> FieldResult<bool> {
    match Acknowledgement::try_from(value) {
        Ok(Acknowledgement::Unspecified | Acknowledgement::Local) => Ok(false),
        Ok(Acknowledgement::Ledger) => Ok(true),
        Err(_) => Err(FieldError::unknown_enum("acknowledgement", value)),
    }
}

/// Checks how many records one call brings.
///
/// # Errors
/// None, or more than 1,000.
pub fn record_count(count: usize) -> FieldResult<()> {
    match count {
        0 => Err(FieldError::required(
            "records",
            "1 to 1000 records",
            "send at least one record",
        )),
        1..=RECORDS_MAX => Ok(()),
        _ => Err(FieldError::too_long(
            "records",
            count,
            "at most 1000 records",
        )),
    }
}

/// Whom `GetQuota` asks about, with every field keeping its rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedQuery {
    /// Wire id of the tenant.
    pub tenant: String,
    /// Attributes sorted by name.
    pub attributes: Attributes,
    /// Only limits of this meter; empty = all.
    pub meter: String,
}

impl TryFrom<quota::GetQuotaRequest> for ParsedQuery {
    type Error = FieldError;

    fn try_from(request: quota::GetQuotaRequest) -> FieldResult<Self> {
        tenant("tenant", &request.tenant)?;
        optional_text("meter", &request.meter)?;
        Ok(Self {
            tenant: request.tenant,
            attributes: attributes(request.attributes)?,
            meter: request.meter,
        })
    }
}

fn quantities(values: Vec<quota::Quantity>) -> FieldResult<Vec<Cost>> {
    quantity_count(values.len())?;
    let values = values.into_iter().map(|one| (one.meter, one.units));
    meter_units("quantities", values)
}

fn quantity_count(count: usize) -> FieldResult<()> {
    if count <= LIST_MAX {
        return Ok(());
    }
    let bound = "at most 16 quantities";
    Err(FieldError::too_long("quantities", count, bound))
}

fn event_time_us(time: Timestamp) -> FieldResult<i64> {
    let plain =
        (0..=SECONDS_MAX).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    let micros = time
        .seconds
        .checked_mul(1_000_000)
        .and_then(|us| us.checked_add(i64::from(time.nanos / 1_000)));
    match micros {
        Some(us) if plain => Ok(us),
        _ => Err(FieldError::out_of_range(
            "event_time",
            format!("{}s {}ns", time.seconds, time.nanos),
            "1970 to 9999, nanos 0 to 999999999",
            "send the time of use as a valid timestamp",
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::wire::FromWire as _;

    /// A record of few names, so that those of a call are often alike; some break a rule.
    fn record() -> impl Strategy<Value = quota::UsageRecord> {
        let units = prop_oneof![9 => 0..9_i64, 1 => Just(-1)];
        let quantities = prop::collection::vec(("a|b|c{127,129}", units), 0..3);
        let attributes = prop::collection::btree_map("a|b|", "x|y|\u{7f}|", 0..3);
        ("|i|r/", "t|u|u ", any::<bool>(), quantities, attributes).prop_map(
            |(id, tenant, has_time, quantities, attributes)| quota::UsageRecord {
                id,
                tenant,
                event_time: has_time.then(Timestamp::default),
                quantities: quantities
                    .into_iter()
                    .map(|(meter, units)| quota::Quantity { meter, units })
                    .collect(),
                attributes: attributes.into_iter().collect(),
                count_against_limits: false,
            },
        )
    }

    fn call(records: &[quota::UsageRecord]) -> RecordUsageRequest {
        let request = quota::RecordUsageRequest {
            records: records.to_vec(),
            acknowledgement: 0,
        };
        RecordUsageRequest::from_wire(request.encode_to_vec().into()).unwrap()
    }

    type Names<'a> = (&'a str, Vec<&'a str>, Vec<&'a str>);

    fn names<'a>(record: &ParsedRecord<'a>) -> Names<'a> {
        let attributes = record.attributes().map(|(name, _)| name);
        (
            record.tenant,
            record.meters().collect(),
            attributes.collect(),
        )
    }

    proptest! {
        /// A record of a call is parsed as if it were the only one, and is alike where it has the names of a good one
        /// right before it.
        #[test]
        fn records_are_parsed_as_if_alone(
            some in prop::collection::vec(record(), 1..4),
            order in prop::collection::vec(any::<prop::sample::Index>(), 1..9),
        ) {
            let records: Vec<_> = order.iter().map(|at| some[at.index(some.len())].clone()).collect();
            let together = call(&records);
            let mut before: Option<Names<'_>> = None;
            for (record, parsed) in records.iter().zip(parsed_records(&together)) {
                let alone = call(std::slice::from_ref(record));
                let expected = parsed_records(&alone).next().unwrap();
                let Ok(parsed) = parsed else {
                    prop_assert_eq!(expected.unwrap_err(), parsed.unwrap_err());
                    before = None;
                    continue;
                };
                let expected = expected.unwrap();
                prop_assert!(!expected.is_alike);
                prop_assert_eq!(before == Some(names(&parsed)), parsed.is_alike);
                before = Some(names(&parsed));
                prop_assert_eq!(names(&expected), names(&parsed));
                prop_assert_eq!((expected.id, expected.event_time_us), (parsed.id, parsed.event_time_us));
                prop_assert!(expected.quantities().eq(parsed.quantities()));
                prop_assert!(expected.attributes().eq(parsed.attributes()));
            }
        }
    }
}
