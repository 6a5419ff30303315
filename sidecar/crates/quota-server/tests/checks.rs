//! Checks from a client's call to the engine and back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use quota_proto::quota::{CheckMode, CheckQuotaRequest, DecisionReason, Detail};
use support::{
    Plane, Script,
    client::{consume, error_info},
};
use tempfile::tempdir;
use tonic::Code;

/// Admitted units never exceed the limit, and the denial names the limit.
#[tokio::test]
async fn admits_up_to_the_limit_and_denies_with_proof() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let mut admitted = 0;
    let mut last = None;
    for _ in 0..12 {
        let decision = plane
            .client
            .check(consume(1))
            .await
            .unwrap()
            .decision
            .unwrap();
        admitted += i32::from(decision.allowed);
        last = Some(decision);
    }
    let last = last.unwrap();
    assert_eq!(
        (10, DecisionReason::QuotaExhausted as i32),
        (admitted, last.reason),
        "{last:?}"
    );
    assert_eq!("tokens-hour", last.binding.unwrap().name);
    assert!(last.retry_after.unwrap().seconds <= 3_600);
}

/// Looking takes nothing: after any number of peeks the whole limit is still there.
#[tokio::test]
async fn peek_takes_nothing() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    for _ in 0..3 {
        let request = CheckQuotaRequest {
            mode: CheckMode::Peek.into(),
            ..consume(10)
        };
        assert!(
            plane
                .client
                .check(request)
                .await
                .unwrap()
                .decision
                .unwrap()
                .allowed
        );
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
}

/// Before the ledger has said what time it is every call says that the sidecar is starting, and when to come again.
#[tokio::test]
async fn says_that_it_is_starting() {
    let folder = tempdir().unwrap();
    let plane = Plane::start_cold(
        folder.path(),
        Script {
            silent: true,
            ..Script::default()
        },
    )
    .await;
    let status = plane.client.check(consume(1)).await.unwrap_err();
    assert_eq!(
        (Code::Unavailable, "SIDECAR_STARTING".into()),
        (status.code(), error_info(&status).reason)
    );
}

/// A tenant that does not exist is a denial, not an error.
#[tokio::test]
async fn unknown_tenants_are_denied() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let request = CheckQuotaRequest {
        tenant: "nobody".into(),
        ..consume(1)
    };
    let decision = plane.client.check(request).await.unwrap().decision.unwrap();
    assert_eq!(DecisionReason::TenantUnknown as i32, decision.reason);
}

/// With detail NONE an admitted check answers in a few bytes; with BINDING it names limit and plan.
#[tokio::test]
async fn detail_is_what_was_asked_for() {
    use prost::Message as _;
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let none = plane
        .client
        .check(CheckQuotaRequest {
            detail: Detail::None.into(),
            ..consume(1)
        })
        .await
        .unwrap();
    assert!(none.encoded_len() <= 20, "{none:?}");
    let binding = plane
        .client
        .check(CheckQuotaRequest {
            want_headers: true,
            ..consume(1)
        })
        .await
        .unwrap()
        .decision
        .unwrap();
    assert_eq!("scale", binding.binding.unwrap().plan);
    assert!(
        binding
            .headers
            .iter()
            .any(|header| header.name == "RateLimit"
                && header.value.starts_with("\"tokens-hour\";r=8")),
        "{:?}",
        binding.headers
    );
}

/// A repeat of an admitted request takes nothing more; the same id with another cost is refused.
#[tokio::test]
async fn request_ids_make_checks_idempotent() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let request = CheckQuotaRequest {
        request_id: "q".into(),
        ..consume(6)
    };
    for _ in 0..3 {
        assert!(
            plane
                .client
                .check(request.clone())
                .await
                .unwrap()
                .decision
                .unwrap()
                .allowed
        );
    }
    assert!(
        plane
            .client
            .check(consume(4))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    let reused = CheckQuotaRequest {
        request_id: "q".into(),
        ..consume(1)
    };
    let status = plane.client.check(reused).await.unwrap_err();
    assert_eq!("REQUEST_ID_REUSED", error_info(&status).reason);
}

/// The Unix socket serves what the TCP listener serves.
#[tokio::test]
async fn the_unix_socket_serves_the_same() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let client = support::Client::unix(&folder.path().join("s.sock")).await;
    assert!(
        client
            .check(consume(1))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    assert_eq!(1, plane.stats()["checks"]);
}

/// The ledger hears which clock setting is in force.
#[tokio::test]
async fn clock_settings_are_confirmed() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let clock = quota_proto::ledger::ClockState {
        now_us: support::control::now_us(),
        speed_milli: 120_000,
        version: 2,
    };
    plane
        .control
        .tell(quota_proto::ledger::watch_limits_response::Message::Clock(
            clock,
        ));
    plane
        .until(|_| plane.control.script.lock().applied == [1, 2])
        .await;
}
