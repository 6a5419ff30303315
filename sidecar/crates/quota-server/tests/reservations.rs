//! Reservations: durable before they are answered, ended exactly once, whatever is killed or repeated.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use quota_proto::{
    ledger::RecordFlag,
    quota::{CheckQuotaRequest, Quantity, Reservation},
};
use support::{
    Plane, Script,
    client::{consume, error_info},
};
use tempfile::{TempDir, tempdir};
use tonic::Code;

async fn reserved(plane: &Plane, id: &str, units: i64) -> Reservation {
    let answer = plane.client.reserve(id, units).await.unwrap();
    assert!(answer.decision.as_ref().unwrap().allowed, "{answer:?}");
    answer.reservation.unwrap()
}

async fn admits(plane: &Plane, units: i64) -> bool {
    plane
        .client
        .check(consume(units))
        .await
        .unwrap()
        .decision
        .unwrap()
        .allowed
}

fn tokens(units: i64) -> Vec<Quantity> {
    vec![Quantity {
        meter: "tokens".into(),
        units,
    }]
}

/// Settling below the reserve gives the rest back, and the next caller can have it.
#[tokio::test]
async fn settling_refunds_the_rest() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let reservation = reserved(&plane, "q", 10).await;
    assert!(!admits(&plane, 1).await);
    let settled = plane.client.settle(&reservation.token, 4).await.unwrap();
    assert_eq!(
        (tokens(6), false),
        (settled.refunded, settled.repeated_call)
    );
    assert!(admits(&plane, 6).await);
    assert!(!admits(&plane, 1).await);
}

/// A repeated settlement gets the first answer, whatever it says now; nothing is refunded or recorded again.
#[tokio::test]
async fn repeated_settlements_get_the_first_answer() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&plane, "q", 10).await.token;
    let first = plane.client.settle(&token, 4).await.unwrap();
    let again = plane.client.settle(&token, 0).await.unwrap();
    assert_eq!(
        (&first.refunded, &first.record_id, true),
        (&again.refunded, &again.record_id, again.repeated_call)
    );
    assert_eq!(1, plane.stats()["records"]);
    assert!(admits(&plane, 6).await);
    assert!(!admits(&plane, 1).await);
}

/// Settlements at the same moment have one outcome between them.
#[tokio::test]
async fn concurrent_settlements_have_one_outcome() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&plane, "q", 10).await.token;
    let calls: Vec<_> = (0..20)
        .map(|units| {
            let (client, token) = (plane.client.clone(), token.clone());
            tokio::spawn(async move { client.settle(&token, units % 10).await.unwrap() })
        })
        .collect();
    let mut refunds = Vec::new();
    let mut firsts = 0;
    for call in calls {
        let settled = call.await.unwrap();
        firsts += i32::from(!settled.repeated_call);
        refunds.push(settled.refunded);
    }
    refunds.dedup();
    assert_eq!((1, 1), (firsts, refunds.len()));
    assert_eq!(1, plane.stats()["records"]);
}

/// A released reservation holds nothing, can be released again, and can't be settled.
#[tokio::test]
async fn released_is_not_settled() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&plane, "q", 10).await.token;
    let first = plane.client.release(&token).await.unwrap();
    let again = plane.client.release(&token).await.unwrap();
    assert_eq!(
        (tokens(10), false, tokens(10), true),
        (
            first.refunded,
            first.repeated_call,
            again.refunded,
            again.repeated_call
        )
    );
    let status = plane.client.settle(&token, 1).await.unwrap_err();
    assert_eq!(
        (Code::FailedPrecondition, "RESERVATION_RELEASED".into()),
        (status.code(), error_info(&status).reason)
    );
    assert!(admits(&plane, 10).await);
}

/// Units above the reserve are reported as excess.
#[tokio::test]
async fn excess_is_reported() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&plane, "q", 4).await.token;
    let settled = plane.client.settle(&token, 7).await.unwrap();
    assert_eq!((Vec::new(), tokens(3)), (settled.refunded, settled.excess));
}

/// A reserving call repeated with its id gets the same token and holds nothing more.
#[tokio::test]
async fn repeated_reserves_hold_once() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let first = reserved(&plane, "q", 6).await;
    assert_eq!(first, reserved(&plane, "q", 6).await);
    assert!(admits(&plane, 4).await);
}

async fn killed_with(folder: &TempDir, id: &str, units: i64) -> (Script, String) {
    let plane = Plane::start(folder, Script::with_amount(100)).await;
    let token = reserved(&plane, id, units).await.token;
    (plane.kill(), token)
}

/// A reservation that was open at the kill settles after the restart, once; its units stay spent.
#[tokio::test]
async fn open_reservations_survive_a_kill() {
    let folder = tempdir().unwrap();
    let (script, token) = killed_with(&folder, "q", 10).await;
    let plane = Plane::start(&folder, script).await;
    assert_eq!(1, plane.stats()["reservations_open"]);
    let settled = plane.client.settle(&token, 4).await.unwrap();
    assert_eq!((false, false), (settled.repeated_call, settled.expired));
    assert!(plane.client.settle(&token, 4).await.unwrap().repeated_call);
    assert_eq!(0, plane.stats()["reservations_open"]);
}

/// A settlement whose answer was lost in a kill is not done again: the repeat says so and names the record.
#[tokio::test]
async fn settlements_survive_a_kill() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(100)).await;
    let token = reserved(&plane, "q", 10).await.token;
    let first = plane.client.settle(&token, 4).await.unwrap();
    let plane = Plane::start(&folder, plane.kill()).await;
    let again = plane.client.settle(&token, 9).await.unwrap();
    assert_eq!(
        (true, first.record_id),
        (again.repeated_call, again.record_id)
    );
    assert_eq!(0, plane.stats()["records"]);
}

/// What is no token of ours is refused without repeating it.
#[tokio::test]
async fn forged_tokens_are_refused() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&plane, "q", 1).await.token;
    for forged in [
        token.replace('A', "B"),
        token[1..].to_owned(),
        "x".repeat(100_000),
        "é\u{202e}".into(),
    ] {
        let status = plane.client.settle(&forged, 1).await.unwrap_err();
        assert_eq!(
            (Code::InvalidArgument, "RESERVATION_INVALID".into()),
            (status.code(), error_info(&status).reason)
        );
        assert!(!status.message().contains(&forged));
    }
}

/// A settlement after expiry is recorded, flagged, and refunds nothing.
#[tokio::test]
async fn late_settlements_are_recorded() {
    use quota_proto::{ledger::ClockState, quota::CheckMode};
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let request = CheckQuotaRequest {
        request_id: "q".into(),
        mode: CheckMode::Reserve.into(),
        reservation_ttl: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..consume(5)
    };
    let token = plane
        .client
        .check(request)
        .await
        .unwrap()
        .reservation
        .unwrap()
        .token;
    let clock = ClockState {
        now_us: support::control::now_us() + 2_000_000,
        speed_milli: 1_000,
        version: 2,
    };
    plane
        .control
        .tell(quota_proto::ledger::watch_limits_response::Message::Clock(
            clock,
        ));
    plane.until(|stats| stats["reservations_open"] == 0).await;
    let settled = plane.client.settle(&token, 3).await.unwrap();
    assert_eq!(
        (Vec::new(), true, false),
        (settled.refunded, settled.expired, settled.repeated_call)
    );
    plane
        .until(|_| !plane.control.script.lock().records.is_empty())
        .await;
    let flags = plane.control.script.lock().records[0].2;
    assert_eq!(
        RecordFlag::SystemId as u32 | RecordFlag::Expired as u32,
        flags
    );
}
