//! A usage log that is full or broken: the documented error, and no unit or record is half kept.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use prost_types::Timestamp;
use quota_proto::quota::{
    CheckQuotaRequest, Quantity, RecordUsageRequest, RecordUsageResponse, UsageRecord,
};
use support::{
    Plane, Script,
    client::{consume, error_info},
    control::now_us,
};
use tempfile::tempdir;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

fn record(id: String, attributes: &[(&str, &str)]) -> UsageRecord {
    UsageRecord {
        id,
        tenant: "acme".into(),
        event_time: Some(Timestamp {
            seconds: now_us() / 1_000_000,
            nanos: 0,
        }),
        quantities: vec![Quantity {
            meter: "tokens".into(),
            units: 1,
        }],
        attributes: attributes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Default::default()
    }
}

/// Fills the log until it refuses even the smallest record; gives that refusal and the ids that were acknowledged.
async fn filled(plane: &Plane) -> (Status, Vec<String>) {
    let (wide, long) = ("m".repeat(128), "x".repeat(100));
    let mut acknowledged = Vec::new();
    let mut is_small = false;
    for call in 0..10_000 {
        let records: Vec<_> = if is_small {
            vec![record(format!("s{call}"), &[])]
        } else {
            (0..100)
                .map(|index| record(format!("{call}-{index}-{long}"), &[("model", &wide)]))
                .collect()
        };
        let request = RecordUsageRequest {
            records,
            ..Default::default()
        };
        match plane
            .client
            .call::<_, RecordUsageResponse>("RecordUsage", request)
            .await
        {
            Ok(answer) => acknowledged.extend(answer.results.into_iter().map(|result| result.id)),
            Err(status) if is_small => return (status, acknowledged),
            Err(_) => is_small = true,
        }
    }
    panic!("the log never was full");
}

/// A full log refuses records, recorded checks and reservations with a retry hint, takes none of their units, and still
/// settles what was reserved; when the ledger comes back everything acknowledged is there.
#[tokio::test]
async fn a_full_log_still_settles() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(
        &folder,
        Script {
            no_append: true,
            ..Script::with_amount(10)
        },
    )
    .await;
    let token = plane
        .client
        .reserve("q", 4)
        .await
        .unwrap()
        .reservation
        .unwrap()
        .token;
    let (status, acknowledged) = filled(&plane).await;
    assert!(!acknowledged.is_empty());
    let recorded = plane
        .client
        .check(CheckQuotaRequest {
            record_usage: true,
            ..consume(1)
        })
        .await;
    let reserved = plane.client.reserve("p", 1).await;
    for status in [status, recorded.unwrap_err(), reserved.unwrap_err()] {
        assert_eq!(
            (Code::ResourceExhausted, "USAGE_LOG_FULL".into()),
            (status.code(), error_info(&status).reason)
        );
        assert!(status.get_error_details().retry_info().is_some());
    }
    plane.client.settle(&token, 4).await.unwrap();
    assert!(
        plane
            .client
            .check(consume(6))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    plane.control.script.lock().no_append = false;
    plane
        .until(|_| plane.control.script.lock().records.len() > acknowledged.len())
        .await;
    let shipped: std::collections::HashSet<_> = plane.control.record_ids().into_iter().collect();
    assert!(acknowledged.iter().all(|id| shipped.contains(id)));
}
