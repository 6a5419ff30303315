//! Bad input, as a table: the documented code, reason, field, bound and remedy; nothing is taken or stored.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use prost_types::Duration;
use quota_proto::quota::{
    CheckMode, CheckQuotaRequest, CheckQuotaResponse, Cost, GetQuotaRequest, GetQuotaResponse,
    LeaseQuotaRequest, LeaseQuotaResponse, RecordUsageRequest, RecordUsageResponse,
    SettleReservationRequest, SettleReservationResponse, UsageRecord,
};
use support::{
    Plane, Script,
    client::{consume, error_info},
};
use tempfile::tempdir;
use tonic::{Code, Status};

type Case = (&'static str, CheckQuotaRequest, &'static str, &'static str);

fn with(change: impl FnOnce(&mut CheckQuotaRequest)) -> CheckQuotaRequest {
    let mut request = consume(1);
    change(&mut request);
    request
}

fn reserve(change: impl FnOnce(&mut CheckQuotaRequest)) -> CheckQuotaRequest {
    with(|request| {
        request.mode = CheckMode::Reserve.into();
        request.request_id = "q".into();
        change(request);
    })
}

fn attributes(count: usize, name: &str, value: &str) -> std::collections::HashMap<String, String> {
    (0..count)
        .map(|index| (format!("{name}{index}"), value.to_owned()))
        .collect()
}

fn cost(meter: &str, units: i64) -> Cost {
    Cost {
        meter: meter.into(),
        units,
    }
}

/// One case a line: what is wrong, how to make it, the reason and the field that are answered.
macro_rules! cases {
    ($($name:literal, $start:ident(|$r:ident| $change:expr) => $reason:ident $field:literal;)*) => {
        vec![$(($name, $start(|$r| { $change; }), stringify!($reason), $field)),*]
    };
}

fn names_and_costs() -> Vec<Case> {
    cases! {
        "no tenant", with(|r| r.tenant.clear()) => FIELD_REQUIRED "tenant";
        "tenant of 129", with(|r| r.tenant = "x".repeat(129)) => FIELD_TOO_LONG "tenant";
        "tenant with a slash", with(|r| r.tenant = "../etc".into()) => FIELD_INVALID "tenant";
        "tenant with NUL", with(|r| r.tenant = "a\0".into()) => FIELD_INVALID "tenant";
        "tenant not ASCII", with(|r| r.tenant = "ácme".into()) => FIELD_INVALID "tenant";
        "no costs", with(|r| r.costs.clear()) => FIELD_REQUIRED "costs";
        "17 costs", with(|r| r.costs = (0..17).map(|n| cost(&n.to_string(), 1)).collect()) => FIELD_TOO_LONG "costs";
        "negative", with(|r| r.costs[0].units = -1) => FIELD_OUT_OF_RANGE "costs[0].units";
        "2^53", with(|r| r.costs[0].units = 1 << 53) => FIELD_OUT_OF_RANGE "costs[0].units";
        "2^63 - 1", with(|r| r.costs[0].units = i64::MAX) => FIELD_OUT_OF_RANGE "costs[0].units";
        "-2^63", with(|r| r.costs[0].units = i64::MIN) => FIELD_OUT_OF_RANGE "costs[0].units";
        "meter twice", with(|r| r.costs.push(cost("tokens", 1))) => FIELD_REPEATED "costs[1].meter";
        "no meter", with(|r| r.costs[0].meter.clear()) => FIELD_REQUIRED "costs[0].meter";
        "meter of 129", with(|r| r.costs[0].meter = "m".repeat(129)) => FIELD_TOO_LONG "costs[0].meter";
        "meter with direction", with(|r| r.costs[0].meter = "a\u{202e}b".into()) => FIELD_INVALID "costs[0].meter";
        "17 features", with(|r| { r.features = vec!["f".into(); 17] }) => FIELD_TOO_LONG "features";
        "feature twice", with(|r| { r.features = vec!["f".into(); 2] }) => FIELD_REPEATED "features[1]";
        "empty feature", with(|r| r.features = vec![String::new()]) => FIELD_REQUIRED "features[0]";
        "17 attributes", with(|r| r.attributes = attributes(17, "a", "v")) => FIELD_TOO_LONG "attributes";
        "attribute name of 129", with(|r| r.attributes = attributes(1, &"a".repeat(128), "v")) => FIELD_TOO_LONG "attributes.key";
        "attribute value of 129", with(|r| r.attributes = attributes(1, "a", &"v".repeat(129))) => FIELD_TOO_LONG "attributes[a0]";
        "attribute with newline", with(|r| r.attributes = attributes(1, "a", "v\n")) => FIELD_INVALID "attributes[a0]";
    }
}

fn modes_and_ids() -> Vec<Case> {
    cases! {
        "request_id of 1 MiB less", with(|r| r.request_id = "x".repeat(1_000_000)) => FIELD_TOO_LONG "request_id";
        "request_id with control", with(|r| r.request_id = "a\u{7}".into()) => FIELD_INVALID "request_id";
        "reserve without id", reserve(|r| r.request_id.clear()) => FIELD_REQUIRED "request_id";
        "reserve without costs", reserve(|r| { r.costs.clear(); r.features = vec!["chat".into()] }) => FIELD_REQUIRED "costs";
        "unknown mode", with(|r| r.mode = 99) => ENUM_UNKNOWN "mode";
        "negative mode", with(|r| r.mode = -1) => ENUM_UNKNOWN "mode";
        "unknown detail", with(|r| r.detail = 99) => ENUM_UNKNOWN "detail";
        "record while peeking", with(|r| { r.mode = CheckMode::Peek.into(); r.record_usage = true }) => FIELD_INVALID "record_usage";
        "record while reserving", reserve(|r| r.record_usage = true) => FIELD_INVALID "record_usage";
        "ttl while consuming", with(|r| r.reservation_ttl = Some(Duration { seconds: 60, nanos: 0 })) => FIELD_INVALID "reservation_ttl";
        "ttl of 0", reserve(|r| r.reservation_ttl = Some(Duration { seconds: 0, nanos: 0 })) => FIELD_OUT_OF_RANGE "reservation_ttl";
        "ttl below 1 s", reserve(|r| r.reservation_ttl = Some(Duration { seconds: 0, nanos: 999_999_999 })) => FIELD_OUT_OF_RANGE "reservation_ttl";
        "ttl above 7 days", reserve(|r| r.reservation_ttl = Some(Duration { seconds: 604_800, nanos: 1_000 })) => FIELD_OUT_OF_RANGE "reservation_ttl";
        "ttl that overflows", reserve(|r| r.reservation_ttl = Some(Duration { seconds: i64::MAX, nanos: 0 })) => FIELD_OUT_OF_RANGE "reservation_ttl";
        "ttl with negative nanos", reserve(|r| r.reservation_ttl = Some(Duration { seconds: 5, nanos: -1 })) => FIELD_OUT_OF_RANGE "reservation_ttl";
    }
}

/// Checks that a status says what and where it is, with bound and remedy.
fn assert_refused(name: &str, status: &Status, code: Code, reason: &str, field: &str) {
    let info = error_info(status);
    assert_eq!(
        (code, reason, "tollkeeper"),
        (status.code(), &*info.reason, &*info.domain),
        "{name}: {status:?}"
    );
    assert_eq!(
        Some(field),
        info.metadata.get("field").map(String::as_str),
        "{name}"
    );
    for key in ["bound", "remedy", "value"] {
        assert!(
            info.metadata.get(key).is_some_and(|text| !text.is_empty()),
            "{name} has no {key}"
        );
    }
    assert!(status.message().len() < 1_024, "{name}");
}

/// Every malformed check is refused at its field, and the whole limit is still there afterwards.
#[tokio::test]
async fn malformed_checks_are_refused_at_their_field() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    for (name, request, reason, field) in names_and_costs().into_iter().chain(modes_and_ids()) {
        let status = plane.client.check(request).await.expect_err(name);
        assert_refused(name, &status, Code::InvalidArgument, reason, field);
    }
    assert!(
        plane
            .client
            .check(consume(10))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    assert_eq!(
        (1, 0),
        (
            plane.stats()["checks"].as_u64().unwrap(),
            plane.stats()["records"].as_u64().unwrap()
        )
    );
}

/// What a later version serves says so, and is never half done.
#[tokio::test]
async fn what_is_not_served_says_so() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let lease = plane
        .client
        .call::<_, LeaseQuotaResponse>("LeaseQuota", LeaseQuotaRequest::default())
        .await;
    let unknown = plane
        .client
        .call::<_, LeaseQuotaResponse>("NoSuchMethod", LeaseQuotaRequest::default())
        .await;
    for status in [lease.unwrap_err(), unknown.unwrap_err()] {
        assert_eq!(
            (Code::Unimplemented, "NOT_IMPLEMENTED".into()),
            (status.code(), error_info(&status).reason)
        );
    }
}

/// A message above 1 MiB, of any call, names the bound.
#[tokio::test]
async fn oversized_messages_are_refused_with_the_bound() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let large = with(|request| request.tenant = "x".repeat(1 << 20));
    let status = plane.client.check(large).await.unwrap_err();
    let info = error_info(&status);
    assert_eq!(
        (Code::InvalidArgument, "FIELD_TOO_LONG".into()),
        (status.code(), info.reason)
    );
    assert_eq!(
        ("message", "at most 1048576 bytes"),
        (&*info.metadata["field"], &*info.metadata["bound"])
    );
}

/// A `RecordUsageRequest` whose records' ids are any bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct BytesOfRecords {
    #[prost(message, repeated, tag = "1")]
    ids: Vec<quota_proto::bridge::LoggedExpiry>,
}

/// Bytes that are no message, or strings that are no UTF-8, are the caller's error.
#[tokio::test]
async fn undecodable_messages_are_refused() {
    use quota_proto::bridge::{Channels, LoggedExpiry};
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let not_utf8 = LoggedExpiry {
        reservation_id: vec![0xff, 0xfe].into(),
    };
    let status = plane
        .client
        .call::<_, CheckQuotaResponse>("CheckQuota", not_utf8.clone())
        .await
        .unwrap_err();
    assert_refused(
        "not UTF-8",
        &status,
        Code::InvalidArgument,
        "FIELD_INVALID",
        "message",
    );
    let records = BytesOfRecords {
        ids: vec![LoggedExpiry::default(), not_utf8],
    };
    let status = plane
        .client
        .call::<_, RecordUsageResponse>("RecordUsage", records)
        .await
        .unwrap_err();
    assert_refused(
        "not UTF-8 in a record",
        &status,
        Code::InvalidArgument,
        "FIELD_INVALID",
        "message",
    );
    assert_eq!(0, plane.stats()["records"]);
    let other_type = Channels {
        channels: vec!["\u{1}".into(); 3],
    };
    let status = plane
        .client
        .call::<_, SettleReservationResponse>("SettleReservation", other_type)
        .await
        .unwrap_err();
    assert_eq!("RESERVATION_INVALID", error_info(&status).reason);
}

/// Lists of records have bounds, and an unknown acknowledgement is refused before anything is stored.
#[tokio::test]
async fn record_calls_have_bounds() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let records = |count: usize, acknowledgement: i32| RecordUsageRequest {
        records: vec![UsageRecord::default(); count],
        acknowledgement,
    };
    for (request, reason, field) in [
        (records(0, 0), "FIELD_REQUIRED", "records"),
        (records(1_001, 0), "FIELD_TOO_LONG", "records"),
        (records(1, 9), "ENUM_UNKNOWN", "acknowledgement"),
    ] {
        let status = plane
            .client
            .call::<_, RecordUsageResponse>("RecordUsage", request)
            .await
            .unwrap_err();
        assert_refused(reason, &status, Code::InvalidArgument, reason, field);
    }
}

/// Questions about what does not exist are `NOT_FOUND`, with the name.
#[tokio::test]
async fn unknown_tenants_and_meters_are_not_found() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    for (tenant, meter, reason, field) in [
        ("nobody", "", "TENANT_UNKNOWN", "tenant"),
        ("acme", "nothing", "METER_UNKNOWN", "meter"),
    ] {
        let request = GetQuotaRequest {
            tenant: tenant.into(),
            meter: meter.into(),
            ..Default::default()
        };
        let status = plane
            .client
            .call::<_, GetQuotaResponse>("GetQuota", request)
            .await
            .unwrap_err();
        assert_refused(reason, &status, Code::NotFound, reason, field);
    }
}

/// A settlement with a bad quantity is refused and leaves the reservation open.
#[tokio::test]
async fn bad_settlements_leave_the_reservation_open() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let token = plane
        .client
        .reserve("q", 10)
        .await
        .unwrap()
        .reservation
        .unwrap()
        .token;
    let settle = |meter: &str, units| SettleReservationRequest {
        token: token.clone(),
        quantities: vec![quota_proto::quota::Quantity {
            meter: meter.into(),
            units,
        }],
        ..Default::default()
    };
    for (request, code, reason, field) in [
        (
            settle("tokens", -1),
            Code::InvalidArgument,
            "FIELD_OUT_OF_RANGE",
            "quantities[0].units",
        ),
        (
            settle("nothing", 1),
            Code::NotFound,
            "METER_UNKNOWN",
            "quantities[0].meter",
        ),
        (
            SettleReservationRequest::default(),
            Code::InvalidArgument,
            "FIELD_REQUIRED",
            "token",
        ),
    ] {
        let status = plane
            .client
            .call::<_, SettleReservationResponse>("SettleReservation", request)
            .await
            .unwrap_err();
        assert_refused(reason, &status, code, reason, field);
    }
    assert!(!plane.client.settle(&token, 10).await.unwrap().repeated_call);
}
