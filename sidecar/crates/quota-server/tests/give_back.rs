//! Giving back what a call took, from a client's call to the engine and back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use quota_proto::quota::{CheckMode, CheckQuotaRequest, DecisionReason};
use support::{
    Plane, Script,
    client::{consume, error_info},
};
use tempfile::tempdir;
use tonic::Code;

fn give_back(units: i64, id: &str) -> CheckQuotaRequest {
    CheckQuotaRequest {
        mode: CheckMode::GiveBack.into(),
        request_id: id.into(),
        ..consume(units)
    }
}

async fn reason(plane: &Plane, request: CheckQuotaRequest) -> DecisionReason {
    let answer = plane.client.check(request).await.unwrap();
    DecisionReason::try_from(answer.decision.unwrap().reason).unwrap()
}

/// What was taken here is free again to the unit, once for one request id; more than was taken is refused by name.
#[tokio::test]
async fn units_given_back_are_free_again_once() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    assert_eq!(DecisionReason::Allowed, reason(&plane, consume(10)).await);
    for _ in 0..3 {
        assert_eq!(
            DecisionReason::Allowed,
            reason(&plane, give_back(4, "once")).await
        );
    }
    let status = plane.client.check(give_back(7, "")).await.unwrap_err();
    let info = error_info(&status);
    assert_eq!(
        (
            Code::FailedPrecondition,
            "NOT_CONSUMED_HERE",
            "costs",
            "tokens-hour"
        ),
        (
            status.code(),
            &*info.reason,
            &*info.metadata["field"],
            &*info.metadata["limit"]
        )
    );
    assert_eq!(DecisionReason::Allowed, reason(&plane, consume(4)).await);
    assert_eq!(
        DecisionReason::QuotaExhausted,
        reason(&plane, consume(1)).await
    );
    assert_eq!(
        DecisionReason::Allowed,
        reason(&plane, give_back(10, "all")).await
    );
    assert_eq!(DecisionReason::Allowed, reason(&plane, consume(10)).await);
}

/// Nothing comes back of a tenant that does not exist, nor where nothing was taken yet.
#[tokio::test]
async fn nothing_comes_of_nothing() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let status = plane.client.check(give_back(1, "")).await.unwrap_err();
    assert_eq!("NOT_CONSUMED_HERE", error_info(&status).reason);
    assert_eq!(
        DecisionReason::Allowed,
        reason(&plane, give_back(0, "")).await
    );
    let nobody = CheckQuotaRequest {
        tenant: "nobody".into(),
        ..give_back(1, "")
    };
    let status = plane.client.check(nobody).await.unwrap_err();
    assert_eq!("TENANT_UNKNOWN", error_info(&status).reason);
}
