//! Usage records and settlements as callers send them.

use prost::bytes::Bytes;
use prost_types::Timestamp;
use quota_core::{Cost, Units};

use crate::{
    check::{Metered, cost, meter_units},
    decision::signed,
    field::{
        Attributes, FieldError, FieldResult, LIST_MAX, attributes, optional_text, raw_attributes,
        tenant,
    },
    quota::{self, Acknowledgement, ErrorReason},
    raw::{self, Text},
};

/// Prefixes of ids that only the system makes.
const RESERVED_PREFIXES: [&str; 3] = ["r/", "c/", "g/"];
/// Last second of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;
/// Most records of one call.
const RECORDS_MAX: usize = 1_000;

/// A usage record whose every field keeps its rule; its text is what was received.
#[derive(Clone, PartialEq, Debug)]
pub struct ParsedRecord {
    /// Idempotency id; empty = the sidecar makes one.
    pub id: Bytes,
    /// Wire id of the tenant.
    pub tenant: Bytes,
    /// Event time in microseconds; `None` = now.
    pub event_time_us: Option<i64>,
    /// Quantities, each of another meter, in the caller's order.
    pub quantities: Vec<raw::Quantity>,
    /// Attributes sorted by name.
    pub attributes: Vec<raw::Attribute>,
    /// It is taken from limits as well.
    pub counts: bool,
}

impl ParsedRecord {
    /// Gives what is logged of it, in the order in which it is hashed, under an id.
    #[must_use]
    pub fn logged(mut self, id: String, received_us: i64) -> raw::LoggedUsage {
        self.quantities
            .sort_unstable_by(|left, right| left.meter.cmp(&right.meter));
        raw::LoggedUsage {
            tenant: self.tenant,
            id,
            event_time_us: self.event_time_us.unwrap_or(received_us),
            received_us,
            quantities: self.quantities,
            attributes: self.attributes,
        }
    }
}

impl TryFrom<raw::UsageRecord> for ParsedRecord {
    type Error = FieldError;

    fn try_from(record: raw::UsageRecord) -> FieldResult<Self> {
        let id = record.id.text();
        tenant("tenant", record.tenant.text())?;
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
        if !id.is_empty() && record.event_time.is_none() {
            return Err(FieldError::required(
                "event_time",
                "set where id is set",
                "send the time of use with your id, so that a retry is the same record",
            ));
        }
        if record.quantities.is_empty() {
            return Err(FieldError::required(
                "quantities",
                "1 to 16 quantities",
                "name a meter with its units",
            ));
        }
        let event_time_us = record.event_time.map(event_time_us).transpose()?;
        let came = record.quantities.into_iter();
        let made = |meter, units| raw::Quantity {
            meter,
            units: signed(units),
        };
        Ok(Self {
            id: record.id,
            tenant: record.tenant,
            event_time_us,
            quantities: quantities(came.map(|one| (one.meter, one.units)), made)?,
            attributes: raw_attributes(record.attributes)?,
            counts: record.count_against_limits,
        })
    }
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
            quantities: quantities(
                request
                    .quantities
                    .into_iter()
                    .map(|one| (one.meter, one.units)),
                cost,
            )?,
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

fn quantities<M: Text, T: Metered>(
    values: impl ExactSizeIterator<Item = (M, i64)>,
    made: impl Fn(M, Units) -> T,
) -> FieldResult<Vec<T>> {
    if values.len() > LIST_MAX {
        return Err(FieldError::too_long(
            "quantities",
            values.len(),
            "at most 16 quantities",
        ));
    }
    meter_units("quantities", values, made)
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
