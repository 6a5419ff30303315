//! Starts while neither ledger nor Redis can be reached: from the last snapshot, or with the failure policy alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use quota_proto::quota::{Decision, DecisionReason};
use support::{
    Plane, Script,
    client::{consume, error_info},
    copy,
};
use tempfile::{TempDir, tempdir};

const LEASE: i64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Spends in calls of ten until one is denied; gives how much was admitted, and the denial.
async fn spend(plane: &Plane) -> (i64, Decision) {
    let mut admitted = 0;
    loop {
        let decision = decided(plane).await;
        if !decision.allowed {
            return (admitted, decision);
        }
        admitted += 10;
    }
}

/// Checks until the answer is no "starting" any more.
async fn decided(plane: &Plane) -> Decision {
    let began = Instant::now();
    loop {
        match plane.client.check(consume(10)).await {
            Ok(answer) => return answer.decision.unwrap(),
            Err(status) => {
                assert_eq!("SIDECAR_STARTING", error_info(&status).reason);
                assert!(began.elapsed() < PATIENCE, "starts for ever");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

/// Leases everything, spends 210, holds 10, and dies once mark and snapshot are durable. Gives the script, what was
/// spent, and the token of what is held.
async fn killed(folder: &TempDir) -> (Script, i64, String) {
    let script = Script {
        lease_min: LEASE,
        ..Script::with_amount(LEASE)
    };
    let plane = Plane::start(folder, script).await;
    for _ in 0..20 {
        assert!(decided(&plane).await.allowed);
    }
    let held = plane.client.reserve("a", 10).await.unwrap();
    let token = held.reservation.unwrap().token;
    plane.client.reserve("b", 10).await.unwrap();
    plane.until(|stats| stats["snapshot"]["written"] != 0).await;
    let script = Script {
        away: true,
        ..plane.kill()
    };
    (script, 200 + 20, token)
}

fn start_of(plane: &Plane) -> String {
    let stats = plane.stats();
    stats["snapshot"]["start"].as_str().unwrap().to_owned()
}

/// With nobody there a restart admits what was kept and not one unit more, ends what was reserved, and records it; when
/// the ledger is back everything adds up.
#[tokio::test]
async fn a_start_with_nobody_there_admits_what_was_kept_and_not_one_more() {
    let folder = tempdir().unwrap();
    let (script, mut spent, token) = killed(&folder).await;
    let plane = Plane::start(&folder, script).await;
    assert_eq!("USED", start_of(&plane));
    let (admitted, denial) = spend(&plane).await;
    spent += admitted;
    assert!(admitted >= LEASE / 2, "{admitted}");
    assert_eq!(DecisionReason::AuthorityUnreachable as i32, denial.reason);
    plane.client.settle(&token, 7).await.unwrap();
    plane.control.script.lock().away = false;
    plane.until(|stats| stats["watch_up"] == true).await;
    plane
        .until(|stats| stats["log"]["unshipped_records"] == 0)
        .await;
    spent += spend(&plane).await.0;
    assert!(spent <= LEASE, "{spent} of {LEASE}");
    let script = plane.control.script.lock().clone();
    assert_eq!(
        (LEASE, 1),
        (script.allotted.values().sum::<i64>(), script.records.len())
    );
}

/// A copied volume knows the limits and has no unit: its directory is another one.
#[tokio::test]
async fn a_copied_volume_starts_without_a_unit() {
    let (folder, other) = (tempdir().unwrap(), tempdir().unwrap());
    let (script, _, _) = killed(&folder).await;
    copy(&folder.path().join("log"), &other.path().join("log"));
    let plane = Plane::start(&other, script).await;
    let (admitted, denial) = spend(&plane).await;
    assert_eq!(
        (
            "USED".into(),
            0,
            DecisionReason::AuthorityUnreachable as i32
        ),
        (start_of(&plane), admitted, denial.reason)
    );
}

async fn lost(folder: &Path, reason: &str) {
    let script = Script {
        away: true,
        ..Script::default()
    };
    let plane = Plane::start_cold(folder, script).await;
    let decision = decided(&plane).await;
    assert_eq!(
        (
            reason.into(),
            false,
            DecisionReason::AuthorityUnreachable as i32
        ),
        (start_of(&plane), decision.allowed, decision.reason)
    );
    assert_eq!(false, plane.stats()["ready"]);
}

/// Without a snapshot, or with one that is damaged, every call is denied for want of an authority: nobody knows limits.
#[tokio::test]
async fn without_a_snapshot_the_failure_policy_answers() {
    let folder = tempdir().unwrap();
    lost(folder.path(), "NONE").await;
    let folder = tempdir().unwrap();
    let _ = killed(&folder).await;
    let path = folder.path().join("log/snapshot");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    lost(folder.path(), "DAMAGED").await;
}

/// A ledger of another installation gets nothing of the one before: what was kept is not spent against its limits.
#[tokio::test]
async fn another_installations_units_are_not_spent() {
    for is_away_first in [true, false] {
        let folder = tempdir().unwrap();
        let (script, _, _) = killed(&folder).await;
        let other = Script {
            away: is_away_first,
            installation: 2,
            ..Script::with_amount(100)
        };
        let plane = Plane::start(&folder, other).await;
        if is_away_first {
            assert!(decided(&plane).await.allowed);
            plane.control.script.lock().away = false;
        }
        assert_ne!(2, script.installation);
        plane
            .until(|stats| stats["watch_up"] == true && stats["bad_messages"] != 0)
            .await;
        let began = Instant::now();
        let mut admitted = 0;
        while admitted < 100 {
            admitted += spend(&plane).await.0;
            assert!(began.elapsed() < PATIENCE, "{admitted}");
        }
        assert_eq!((100, 0), (admitted, spend(&plane).await.0));
    }
}
