//! What limits decided reaches the ledger once, with declared attributes only, whatever is lost on the way.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::collections::HashMap;

use quota_proto::{
    ledger::{DecisionLog, ReportDecisionsRequest},
    quota::{CheckQuotaRequest, DecisionReason},
};
use support::{Plane, Script, client::consume};
use tempfile::tempdir;

/// Made by Python's `hmac` under the scripted key of version 1, of the attribute `secret`.
const HIDDEN: &str = "p1.rdhlafKyJTLfSwSuOyA21w";

fn call(units: i64) -> CheckQuotaRequest {
    let pairs = [
        ("model", "large"),
        ("secret", "ann@example.com"),
        ("undeclared", "x"),
    ];
    CheckQuotaRequest {
        attributes: pairs
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        ..consume(units)
    }
}

async fn deny(plane: &Plane, calls: u64) {
    for _ in 0..calls {
        let decision = plane
            .client
            .check(call(200))
            .await
            .unwrap()
            .decision
            .unwrap();
        assert!(!decision.allowed);
    }
}

fn counted(batches: &[ReportDecisionsRequest]) -> i64 {
    batches
        .iter()
        .flat_map(|batch| &batch.counts)
        .map(|one| one.count)
        .sum()
}

fn entries(batches: &[ReportDecisionsRequest]) -> usize {
    batches.iter().map(|batch| batch.entries.len()).sum()
}

/// A denied call is told with what it met; hidden attributes as pseudonyms, undeclared ones not at all.
#[tokio::test]
async fn a_denial_is_told_with_declared_attributes() {
    for key_version in [Some(1), None] {
        let folder = tempdir().unwrap();
        let script = Script {
            key_version,
            ..Script::with_amount(100)
        };
        let plane = Plane::start(&folder, script).await;
        assert!(
            plane
                .client
                .check(call(7))
                .await
                .unwrap()
                .decision
                .unwrap()
                .allowed
        );
        deny(&plane, 1).await;
        plane.until(|stats| stats["decisions"]["told"] == 1).await;
        let script = plane.kill();
        let [batch] = script.decisions.as_slice() else {
            panic!("{:?}", script.decisions)
        };
        let (count, entry) = (&batch.counts[0], &batch.entries[0]);
        assert_eq!(
            (16, 1, 1, 1),
            (
                batch.holder.len(),
                batch.batch_seq,
                batch.counts.len(),
                batch.entries.len()
            )
        );
        let reason = i32::from(DecisionReason::CostExceedsLimit);
        assert_eq!(
            ("acme", "tokens-hour", reason),
            (&*count.tenant, &*count.limit, count.reason)
        );
        assert_eq!((1, 0), (count.count, count.left_out));
        assert_eq!(
            ("acme", "acme", "tokens-hour"),
            (&*entry.tenant, &*entry.caller, &*entry.limit)
        );
        assert_eq!(
            (reason, 200, 100, 7),
            (entry.reason, entry.units, entry.amount, entry.used)
        );
        let mut expected: HashMap<String, String> = [("model".into(), "large".into())].into();
        expected.extend(key_version.map(|_| ("secret".into(), HIDDEN.into())));
        assert_eq!(expected, entry.attributes);
    }
}

/// A batch whose answer is lost is told again under its number, and the next one only after it: each call counts once.
#[tokio::test]
async fn a_lost_answer_counts_nothing_twice() {
    let folder = tempdir().unwrap();
    let script = Script {
        decisions_lost: 2,
        ..Script::with_amount(100)
    };
    let plane = Plane::start(&folder, script).await;
    deny(&plane, 3).await;
    plane
        .until(|_| plane.control.script.lock().decisions_lost == 0)
        .await;
    deny(&plane, 4).await;
    plane.until(|stats| stats["decisions"]["told"] == 7).await;
    let script = plane.kill();
    assert_eq!(
        (7, 7),
        (counted(&script.decisions), entries(&script.decisions))
    );
    let numbers: Vec<_> = script
        .decisions
        .iter()
        .map(|batch| batch.batch_seq)
        .collect();
    assert_eq!((1..=script.decisions_seq).collect::<Vec<_>>(), numbers);
}

/// While the ledger is away calls are counted and kept as far as there is room; when it is back it hears of all of them.
#[tokio::test]
async fn what_finds_no_room_is_told_as_left_out() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(100)).await;
    deny(&plane, 1).await;
    plane.control.script.lock().ledger_down = true;
    let mut large = call(200);
    let long = |at: usize| (format!("{at:0>128}"), "x".repeat(128));
    large.attributes.extend((0..13).map(long));
    for _ in 0..250 {
        let decision = plane.client.check(large.clone()).await.unwrap().decision;
        assert!(!decision.unwrap().allowed);
    }
    plane.control.script.lock().ledger_down = false;
    plane.until(|stats| stats["decisions"]["told"] == 251).await;
    let left_out = plane.stats()["decisions"]["left_out"].as_i64().unwrap();
    let script = plane.kill();
    assert_eq!(251, counted(&script.decisions));
    assert!(left_out > 0, "{left_out}");
    let kept = i64::try_from(entries(&script.decisions)).unwrap();
    assert_eq!(251 - left_out, kept);
}

/// What the ledger can't read, or one of before, refuses for good is counted as lost, and what comes later is told.
#[tokio::test]
async fn what_is_refused_for_good_is_counted_as_lost() {
    let folder = tempdir().unwrap();
    let script = Script {
        decisions_refused: Some("UNIMPLEMENTED"),
        ..Script::with_amount(100)
    };
    let plane = Plane::start(&folder, script).await;
    deny(&plane, 3).await;
    plane.until(|stats| stats["decisions"]["lost"] == 3).await;
    plane.control.script.lock().decisions_refused = None;
    deny(&plane, 2).await;
    plane.until(|stats| stats["decisions"]["told"] == 2).await;
    assert_eq!(2, counted(&plane.kill().decisions));
}

/// A clean stop tells what is left at once, and waits for nobody who can't hear it.
#[tokio::test]
async fn a_drain_tells_what_is_left() {
    for is_down in [false, true] {
        let folder = tempdir().unwrap();
        let plane = Plane::start(&folder, Script::with_amount(100)).await;
        deny(&plane, 5).await;
        plane.control.script.lock().ledger_down = is_down;
        plane.plane.begin_drain();
        plane
            .until(|stats| {
                let decisions = &stats["decisions"];
                decisions["told"].as_u64().unwrap() + decisions["lost"].as_u64().unwrap() == 5
            })
            .await;
        plane.until(|_| is_down || plane.plane.drained()).await;
        assert_eq!(
            if is_down { 0 } else { 5 },
            counted(&plane.kill().decisions)
        );
    }
}

/// A limit that says `off` is counted and nothing of its calls is kept; one that says `all` has those it admitted, too.
#[tokio::test]
async fn a_limit_says_what_is_kept() {
    for (decision_log, kept, told) in [(DecisionLog::Off, 0, 3), (DecisionLog::All, 5, 5)] {
        let folder = tempdir().unwrap();
        let plane = Plane::start(
            &folder,
            Script {
                decision_log,
                ..Script::with_amount(100)
            },
        )
        .await;
        for _ in 0..2 {
            assert!(
                plane
                    .client
                    .check(call(1))
                    .await
                    .unwrap()
                    .decision
                    .unwrap()
                    .allowed
            );
        }
        deny(&plane, 3).await;
        plane
            .until(|stats| stats["decisions"]["told"] == told)
            .await;
        let script = plane.kill();
        assert_eq!(
            (told, kept),
            (counted(&script.decisions), entries(&script.decisions))
        );
    }
}
