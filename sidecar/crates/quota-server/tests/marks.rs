//! What a sidecar kept for a restart: spent by the next process of the same volume, by no copy of it, and once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use support::{Plane, Script, client::consume, copy};
use tempfile::tempdir;

const LEASE: i64 = 10_000;

fn script() -> Script {
    Script {
        lease_min: LEASE,
        ..Script::with_amount(LEASE)
    }
}

/// Spends in calls of ten until one is denied; gives how much was admitted.
async fn spend(plane: &Plane, calls: i64) -> i64 {
    let mut admitted = 0;
    for _ in 0..calls {
        let answer = plane.client.check(consume(10)).await.unwrap();
        if !answer.decision.unwrap().allowed {
            return admitted;
        }
        admitted += 10;
    }
    admitted
}

/// Leases everything, spends some of it, and dies once the mark is durable: a reservation waits for the same log.
async fn killed(folder: &tempfile::TempDir) -> (Script, i64) {
    let plane = Plane::start(folder, script()).await;
    let spent = spend(&plane, 20).await;
    assert_eq!(200, spent);
    for id in ["a", "b"] {
        plane.client.reserve(id, 10).await.unwrap();
    }
    (plane.kill(), spent + 20)
}

/// With a ledger that gives nothing more, the restarted sidecar spends what was kept: at least half of what was there.
/// Killed again in the middle, it goes on, and never are more units spent than were leased.
#[tokio::test]
async fn a_restart_spends_what_was_kept() {
    let folder = tempdir().unwrap();
    let (mut script, mut spent) = killed(&folder).await;
    script.ledger_down = true;
    let mut after = Vec::new();
    for calls in [100, 100, 10_000] {
        let plane = Plane::start(&folder, script).await;
        let admitted = spend(&plane, calls).await;
        for id in ["c", "d"] {
            let _durable = plane.client.reserve(id, 10).await;
        }
        after.push(admitted);
        spent += admitted;
        script = plane.kill();
    }
    assert!(after[0] > 0 && after[1] > 0, "{after:?}");
    assert!(
        (LEASE / 2..=LEASE).contains(&spent),
        "{spent} of {LEASE}: {after:?}"
    );
}

/// What was used above a reservation and not paid is owed after a kill as well: the next process pays it first, out of what
/// the ledger gives then, and admits only the rest.
#[tokio::test]
async fn what_is_owed_is_paid_after_a_kill() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, script()).await;
    let mut tokens = Vec::new();
    for id in ["a", "b", "c"] {
        tokens.push(plane.client.reserve(id, 10).await.unwrap());
    }
    let token = |place: usize| &tokens[place].reservation.as_ref().unwrap().token;
    plane.client.settle(token(0), 15_000).await.unwrap();
    // These wait for the log to which the mark went before.
    for place in [1, 2] {
        plane.client.release(token(place)).await.unwrap();
    }
    let mut script = plane.kill();
    script.amount = 3 * LEASE;
    let plane = Plane::start(&folder, script).await;
    let admitted = spend(&plane, 10_000).await;
    // 5,000 are owed, less the units of the reservations that were released.
    assert!(
        (2 * LEASE - 5_000..=2 * LEASE - 4_900).contains(&admitted),
        "{admitted}"
    );
}

/// A copied volume takes nothing over: its directory is another one.
#[tokio::test]
async fn a_copied_volume_spends_nothing() {
    let (folder, other) = (tempdir().unwrap(), tempdir().unwrap());
    let (mut script, _) = killed(&folder).await;
    script.ledger_down = true;
    copy(&folder.path().join("log"), &other.path().join("log"));
    let plane = Plane::start(&other, script).await;
    assert_eq!(0, spend(&plane, 10).await);
}
