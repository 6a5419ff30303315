//! Checks as callers send them.

use std::sync::Arc;

use prost_types::Duration;
use quota_core::{Cost, Units};

use crate::{
    field::{
        Attributes, FieldError, FieldResult, LIST_MAX, attributes, optional_text, tenant, text,
        units,
    },
    quota::{self, CheckMode, Detail, ErrorReason},
};

const TTL_DEFAULT_US: i64 = 600_000_000;
const TTL_MIN_US: i64 = 1_000_000;
const TTL_MAX_US: i64 = 7 * 86_400_000_000;

/// What a check is to do with the units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Take them; `record_usage` also records them.
    Consume {
        /// Also write a usage record.
        record_usage: bool,
    },
    /// Take nothing.
    Peek,
    /// Hold them for so many microseconds of ledger time.
    Reserve {
        /// 1 s to 7 days.
        ttl_us: i64,
    },
    /// Give back what was consumed: not served yet.
    GiveBack,
}

/// A check whose every field keeps its rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedCheck {
    /// Wire id of the tenant.
    pub tenant: Arc<str>,
    /// Costs, each of another meter.
    pub costs: Vec<Cost>,
    /// Features that the plan must have.
    pub features: Vec<Box<str>>,
    /// Attributes sorted by name.
    pub attributes: Attributes,
    /// Idempotency id; empty = none.
    pub request_id: Box<str>,
    /// How much the answer tells; never unspecified.
    pub detail: Detail,
    /// What to do with the units.
    pub purpose: Purpose,
    /// Also answer with headers.
    pub want_headers: bool,
}

impl TryFrom<quota::CheckQuotaRequest> for ParsedCheck {
    type Error = FieldError;

    fn try_from(request: quota::CheckQuotaRequest) -> FieldResult<Self> {
        tenant("tenant", &request.tenant)?;
        optional_text("request_id", &request.request_id)?;
        let purpose = purpose(&request)?;
        let detail = match Detail::try_from(request.detail) {
            Ok(Detail::Unspecified) => Detail::Binding,
            Ok(detail) => detail,
            Err(_) => return Err(FieldError::unknown_enum("detail", request.detail)),
        };
        let features = features(request.features)?;
        let costs = costs(request.costs)?;
        let writes = matches!(
            purpose,
            Purpose::Reserve { .. } | Purpose::Consume { record_usage: true }
        );
        if costs.is_empty() && (features.is_empty() || writes) {
            return Err(FieldError::required(
                "costs",
                "1 to 16 costs",
                "name a meter with its units, or only features to look at",
            ));
        }
        Ok(Self {
            tenant: request.tenant.into(),
            costs,
            features,
            attributes: attributes(request.attributes)?,
            request_id: request.request_id.into_boxed_str(),
            detail,
            purpose,
            want_headers: request.want_headers,
        })
    }
}

fn purpose(request: &quota::CheckQuotaRequest) -> FieldResult<Purpose> {
    let mode = CheckMode::try_from(request.mode)
        .map_err(|_| FieldError::unknown_enum("mode", request.mode))?;
    let reserves = mode == CheckMode::Reserve;
    let consumes = matches!(mode, CheckMode::Unspecified | CheckMode::Consume);
    if request.record_usage && !consumes {
        return Err(misplaced(
            "record_usage",
            "true",
            "set in mode CONSUME only",
            "leave it out, or consume",
        ));
    }
    if request.reservation_ttl.is_some() && !reserves {
        return Err(misplaced(
            "reservation_ttl",
            "a duration",
            "set in mode RESERVE only",
            "leave it out, or reserve",
        ));
    }
    if reserves && request.request_id.is_empty() {
        return Err(FieldError::required(
            "request_id",
            "1 to 128 bytes in mode RESERVE",
            "send an id of your own, the same for every retry",
        ));
    }
    Ok(match mode {
        CheckMode::Unspecified | CheckMode::Consume => Purpose::Consume {
            record_usage: request.record_usage,
        },
        CheckMode::GiveBack => Purpose::GiveBack,
        CheckMode::Peek => Purpose::Peek,
        CheckMode::Reserve => Purpose::Reserve {
            ttl_us: ttl_us(request.reservation_ttl)?,
        },
    })
}

fn misplaced(field: &str, value: &str, bound: &'static str, remedy: &'static str) -> FieldError {
    FieldError::new(ErrorReason::FieldInvalid, field, value, bound, remedy)
}

fn ttl_us(ttl: Option<Duration>) -> FieldResult<i64> {
    let Some(ttl) = ttl else {
        return Ok(TTL_DEFAULT_US);
    };
    let nanos_plain = (0..1_000_000_000).contains(&ttl.nanos);
    let micros = ttl
        .seconds
        .checked_mul(1_000_000)
        .and_then(|us| us.checked_add(i64::from(ttl.nanos / 1_000)));
    match micros {
        Some(us) if nanos_plain && (TTL_MIN_US..=TTL_MAX_US).contains(&us) => Ok(us),
        _ => Err(FieldError::out_of_range(
            "reservation_ttl",
            format!("{}s {}ns", ttl.seconds, ttl.nanos),
            "1 s to 7 days",
            "choose how long the work can take at most",
        )),
    }
}

fn features(values: Vec<String>) -> FieldResult<Vec<Box<str>>> {
    if values.len() > LIST_MAX {
        return Err(FieldError::too_long(
            "features",
            values.len(),
            "at most 16 features",
        ));
    }
    let mut parsed: Vec<Box<str>> = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        text("features", &value).map_err(|error| at(error, "features", index, ""))?;
        if parsed.iter().any(|known| **known == *value) {
            return Err(FieldError::repeated(format!("features[{index}]"), &value));
        }
        parsed.push(value.into_boxed_str());
    }
    Ok(parsed)
}

fn costs(values: Vec<quota::Cost>) -> FieldResult<Vec<Cost>> {
    if values.len() > LIST_MAX {
        return Err(FieldError::too_long(
            "costs",
            values.len(),
            "at most 16 costs",
        ));
    }
    let values = values.into_iter().map(|cost| (cost.meter, cost.units));
    meter_units("costs", values)
}

/// Parses (meter, units) pairs, each of another meter, under the path `list[i]`.
pub(crate) fn meter_units(
    list: &str,
    values: impl ExactSizeIterator<Item = (String, i64)>,
) -> FieldResult<Vec<Cost>> {
    let mut parsed: Vec<Cost> = Vec::with_capacity(values.len());
    for (index, (meter, amount)) in values.enumerate() {
        let is_repeated = parsed.iter().any(|known| *known.meter == *meter);
        let units = metered(list, index, &meter, amount, is_repeated)?;
        let meter = meter.into();
        parsed.push(Cost { meter, units });
    }
    Ok(parsed)
}

/// Parses one of such pairs.
pub(crate) fn metered(
    list: &str,
    index: usize,
    meter: &str,
    amount: i64,
    is_repeated: bool,
) -> FieldResult<Units> {
    text("meter", meter).map_err(|error| at(error, list, index, ".meter"))?;
    if is_repeated {
        return Err(FieldError::repeated(
            format!("{list}[{index}].meter"),
            meter,
        ));
    }
    units(|| format!("{list}[{index}].units"), amount)
}

fn at(mut error: FieldError, list: &str, index: usize, rest: &str) -> FieldError {
    error.field = format!("{list}[{index}]{rest}");
    error
}
