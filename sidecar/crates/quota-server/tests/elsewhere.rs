//! Reservations that end at another sidecar than their home: recorded once there, refunded once at home.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message as _;
use quota_proto::{
    ledger::{
        ClockState, RecordFlag, ReservationToken, Settlement, SettlementList,
        watch_limits_response::Message as Told,
    },
    quota::{CheckMode, CheckQuotaRequest, Quantity},
};
use support::{
    Plane, Script,
    client::{consume, error_info},
};
use tempfile::{TempDir, tempdir};
use tonic::Code;

fn tokens(units: i64) -> Vec<Quantity> {
    vec![Quantity {
        meter: "tokens".into(),
        units,
    }]
}

async fn reserved(plane: &Plane, units: i64) -> String {
    let answer = plane.client.reserve("q", units).await.unwrap();
    answer.reservation.unwrap().token
}

async fn admits(plane: &Plane, units: i64) -> bool {
    let answer = plane.client.check(consume(units)).await.unwrap();
    answer.decision.unwrap().allowed
}

/// What a token says, read as its maker would.
fn content(token: &str) -> ReservationToken {
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
    ReservationToken::decode(&bytes[5..bytes.len() - 32]).unwrap()
}

/// Tells a home how a reservation ended elsewhere.
fn tell(home: &Plane, token: &str, units: i64) {
    let settlement = Settlement {
        reservation_id: content(token).reservation_id,
        units: HashMap::from([("tokens".to_owned(), units)]),
    };
    home.control.tell(Told::Settlements(SettlementList {
        settlements: vec![settlement],
    }));
}

async fn acknowledged(home: &Plane, times: usize) {
    home.until(|_| home.control.script.lock().acknowledged.len() == times)
        .await;
}

/// A gateway that reserved, and a worker beside another sidecar that has the token.
async fn apart(folders: &[TempDir; 2], units: i64) -> (Plane, Plane, String) {
    let home = Plane::start(&folders[0], Script::with_amount(10)).await;
    let token = reserved(&home, units).await;
    let other = Plane::start(&folders[1], Script::with_amount(10)).await;
    (home, other, token)
}

fn folders() -> [TempDir; 2] {
    [tempdir().unwrap(), tempdir().unwrap()]
}

/// Settled elsewhere below, at, above the reserve and at zero: the record names the home, the answer says what goes back
/// and what is too much, and a repeat gets the first answer.
#[tokio::test]
async fn another_sidecar_settles_and_names_the_home() {
    for (used, refunded, excess) in [
        (4, tokens(3), Vec::new()),
        (7, Vec::new(), Vec::new()),
        (9, Vec::new(), tokens(2)),
        (0, tokens(7), Vec::new()),
    ] {
        let folders = folders();
        let (_home, other, token) = apart(&folders, 7).await;
        let first = other.client.settle(&token, used).await.unwrap();
        assert_eq!(
            (&refunded, &excess, false, false),
            (
                &first.refunded,
                &first.excess,
                first.expired,
                first.repeated_call
            )
        );
        let again = other.client.settle(&token, 1).await.unwrap();
        assert_eq!(
            (&refunded, &excess, true),
            (&again.refunded, &again.excess, again.repeated_call)
        );
        other
            .until(|_| !other.control.script.lock().records.is_empty())
            .await;
        let script = other.control.script.lock();
        let said = content(&token);
        assert_eq!(vec![said.home], script.homes);
        assert_eq!(1, script.records.len());
        let (tenant, id, flags, units) = &script.records[0];
        let mut expected = RecordFlag::SystemId as u32;
        if used > 7 {
            expected |= RecordFlag::Excess as u32;
        }
        assert_eq!(
            ("acme", &first.record_id, expected, Some(&used)),
            (tenant.as_str(), id, *flags, units.get("tokens"))
        );
    }
}

/// A release elsewhere is the same record at zero, and can't be settled there afterwards.
#[tokio::test]
async fn another_sidecar_releases() {
    let folders = folders();
    let (_home, other, token) = apart(&folders, 7).await;
    let released = other.client.release(&token).await.unwrap();
    assert_eq!(tokens(7), released.refunded);
    let status = other.client.settle(&token, 1).await.unwrap_err();
    assert_eq!(
        (Code::FailedPrecondition, "RESERVATION_RELEASED".into()),
        (status.code(), error_info(&status).reason)
    );
    other
        .until(|_| !other.control.script.lock().records.is_empty())
        .await;
    let script = other.control.script.lock();
    assert_eq!(Some(&0), script.records[0].3.get("tokens"));
}

/// Told of an outcome, home gives the rest back once, notes the end in its log and says that it has; told again, it says
/// so again and gives nothing. Nothing is recorded there.
#[tokio::test]
async fn home_refunds_once_however_often_it_is_told() {
    let folder = tempdir().unwrap();
    let home = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&home, 10).await;
    assert!(!admits(&home, 1).await);
    for times in 1..=3 {
        tell(&home, &token, 4);
        acknowledged(&home, times).await;
    }
    assert!(admits(&home, 6).await);
    assert!(!admits(&home, 1).await);
    assert_eq!(
        (0, 0),
        (
            home.stats()["reservations_open"].as_u64().unwrap(),
            home.stats()["records"].as_u64().unwrap()
        )
    );
    let again = home.client.settle(&token, 9).await.unwrap();
    assert_eq!((tokens(6), true), (again.refunded, again.repeated_call));
}

/// An outcome above the reserve is owed: nothing more is admitted before it is paid.
#[tokio::test]
async fn home_owes_what_was_used_elsewhere_above_the_reserve() {
    let folder = tempdir().unwrap();
    let home = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&home, 4).await;
    tell(&home, &token, 7);
    acknowledged(&home, 1).await;
    assert!(admits(&home, 3).await);
    assert!(!admits(&home, 1).await);
}

/// Home settled as well: its own end stands there, the outcome is acknowledged and changes nothing.
#[tokio::test]
async fn home_keeps_its_own_end() {
    let folder = tempdir().unwrap();
    let home = Plane::start(&folder, Script::with_amount(10)).await;
    let token = reserved(&home, 10).await;
    home.client.settle(&token, 4).await.unwrap();
    tell(&home, &token, 0);
    acknowledged(&home, 1).await;
    assert!(admits(&home, 6).await);
    assert!(!admits(&home, 1).await);
}

/// Home killed before it hears: after the restart it takes the outcome in, and another restart has nothing open.
#[tokio::test]
async fn a_killed_home_hears_of_the_end_after_its_restart() {
    let folder = tempdir().unwrap();
    let home = Plane::start(&folder, Script::with_amount(100)).await;
    let token = reserved(&home, 10).await;
    let home = Plane::start(&folder, home.kill()).await;
    assert_eq!(1, home.stats()["reservations_open"]);
    tell(&home, &token, 4);
    acknowledged(&home, 1).await;
    assert_eq!(0, home.stats()["reservations_open"]);
    let home = Plane::start(&folder, home.kill()).await;
    assert_eq!(0, home.stats()["reservations_open"]);
    tell(&home, &token, 4);
    acknowledged(&home, 2).await;
}

/// A settlement elsewhere after expiry is recorded and flagged, and promises no refund.
#[tokio::test]
async fn late_settlements_elsewhere_are_flagged() {
    let folders = folders();
    let home = Plane::start(&folders[0], Script::with_amount(10)).await;
    let request = CheckQuotaRequest {
        request_id: "q".into(),
        mode: CheckMode::Reserve.into(),
        reservation_ttl: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..consume(5)
    };
    let answer = home.client.check(request).await.unwrap();
    let token = answer.reservation.unwrap().token;
    let other = Plane::start(&folders[1], Script::with_amount(10)).await;
    other.control.tell(Told::Clock(ClockState {
        now_us: support::control::now_us() + 2_000_000,
        speed_milli: 1_000,
        version: 2,
    }));
    other
        .until(|_| other.control.script.lock().applied.contains(&2))
        .await;
    let settled = other.client.settle(&token, 3).await.unwrap();
    assert_eq!((Vec::new(), true), (settled.refunded, settled.expired));
    other
        .until(|_| !other.control.script.lock().records.is_empty())
        .await;
    let flags = other.control.script.lock().records[0].2;
    assert_eq!(
        RecordFlag::SystemId as u32 | RecordFlag::Expired as u32,
        flags
    );
}
