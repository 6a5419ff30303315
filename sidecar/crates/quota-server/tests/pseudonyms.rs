//! What the catalogue hides: pseudonyms before the log, the same for the same key, and nothing without one.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::{fs, path::Path};

use prost_types::Timestamp;
use quota_proto::{
    ledger::watch_limits_response::Message as Told,
    quota::{
        Acknowledgement, CheckMode, CheckQuotaRequest, Cost, Quantity, RecordOutcome,
        RecordUsageRequest, RecordUsageResponse, SettleReservationRequest,
        SettleReservationResponse, UsageRecord,
    },
};
use support::{
    Plane, Script,
    client::{consume, error_info},
    control::{meters, now_us, pseudonym_key},
};
use tempfile::tempdir;
use tonic::Status;

const PLAIN: &str = "ann@example.com";
/// Made by Python's `hmac` under the scripted keys of versions 1 and 2, of the attribute `secret`.
const FIRST: &str = "p1.rdhlafKyJTLfSwSuOyA21w";
const SECOND: &str = "p2.WhK-VodBISlUYAQFOe4Qtw";

fn keyed() -> Script {
    Script {
        key_version: Some(1),
        ..Script::with_amount(100)
    }
}

fn hiding(value: &str) -> std::collections::HashMap<String, String> {
    [("secret".to_owned(), value.to_owned())].into()
}

fn record(id: &str, meters: &[&str], value: &str) -> UsageRecord {
    let quantity = |meter: &&str| Quantity {
        meter: (*meter).into(),
        units: 1,
    };
    UsageRecord {
        id: id.into(),
        tenant: "acme".into(),
        event_time: Some(Timestamp {
            seconds: now_us() / 1_000_000 / 600 * 600,
            nanos: 0,
        }),
        quantities: meters.iter().map(quantity).collect(),
        attributes: hiding(value),
        ..Default::default()
    }
}

async fn sent(plane: &Plane, record: UsageRecord) -> Result<RecordOutcome, Status> {
    let request = RecordUsageRequest {
        records: vec![record],
        acknowledgement: Acknowledgement::Ledger.into(),
    };
    let answer: RecordUsageResponse = plane.client.call("RecordUsage", request).await?;
    Ok(RecordOutcome::try_from(answer.results[0].outcome).unwrap())
}

fn checked(request_id: &str, mode: CheckMode) -> CheckQuotaRequest {
    CheckQuotaRequest {
        request_id: request_id.into(),
        mode: mode.into(),
        record_usage: mode == CheckMode::Consume,
        attributes: hiding(PLAIN),
        ..consume(5)
    }
}

async fn settled(plane: &Plane, token: &str, value: Option<&str>) {
    let request = SettleReservationRequest {
        token: token.into(),
        quantities: vec![Quantity {
            meter: "tokens".into(),
            units: 2,
        }],
        attributes: value.map(hiding).unwrap_or_default(),
        ..Default::default()
    };
    let _: SettleReservationResponse = plane
        .client
        .call("SettleReservation", request)
        .await
        .unwrap();
}

async fn reserved(plane: &Plane, request: CheckQuotaRequest) -> String {
    let answer = plane.client.check(request).await.unwrap();
    answer.reservation.unwrap().token
}

/// Waits until the ledger has that many records; gives the attribute's value of each, by id.
async fn stored(plane: &Plane, count: usize) -> Vec<(String, String)> {
    plane
        .until(|_| plane.control.script.lock().records.len() == count)
        .await;
    let script = plane.control.script.lock();
    let value = |id: &String| {
        let pairs = &script.attributes[id];
        let found = pairs.iter().find(|(name, _)| name == "secret");
        found.map_or(String::new(), |(_, value)| value.clone())
    };
    script
        .records
        .iter()
        .map(|record| (record.1.clone(), value(&record.1)))
        .collect()
}

/// Names the files below a directory that hold these bytes.
fn holding(folder: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, needle));
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            let is_there = bytes.windows(needle.len()).any(|window| window == needle);
            found.extend(is_there.then(|| path.display().to_string()));
        }
    }
    found
}

/// Whichever call brings it, the ledger gets the pseudonym that Python makes, and no file of log or snapshot ever holds
/// the plain value or the key.
#[tokio::test]
async fn log_and_ledger_see_pseudonyms_only() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, keyed()).await;
    sent(&plane, record("a", &["tokens"], PLAIN)).await.unwrap();
    let answer = plane.client.check(checked("b", CheckMode::Consume)).await;
    assert!(answer.unwrap().decision.unwrap().allowed);
    let open = reserved(&plane, checked("open", CheckMode::Reserve)).await;
    let token = reserved(&plane, checked("c", CheckMode::Reserve)).await;
    settled(&plane, &token, None).await;
    let bare = CheckQuotaRequest {
        attributes: hiding("another"),
        ..checked("d", CheckMode::Reserve)
    };
    let token = reserved(&plane, bare).await;
    settled(&plane, &token, Some(PLAIN)).await;
    let values = stored(&plane, 4).await;
    assert_eq!(
        vec![FIRST; 4],
        values.iter().map(|(_, value)| &**value).collect::<Vec<_>>()
    );
    plane.until(|stats| stats["snapshot"]["written"] != 0).await;
    plane.kill();
    assert!(!open.is_empty());
    let seen = |needle: &[u8]| !holding(folder.path(), needle).is_empty();
    assert!(seen(FIRST.as_bytes()), "the files are not those of the log");
    assert!(!seen(PLAIN.as_bytes()) && !seen(b"another"));
    assert!(!seen(&pseudonym_key(1).keys[0].secret));
}

/// Without the key nothing that hides something is recorded, taken or lost: the caller is told to come again, what hides
/// nothing passes, and the same call passes once the key is there.
#[tokio::test]
async fn without_the_key_nothing_is_recorded_or_taken() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(5)).await;
    let reason = |answer: &Status| error_info(answer).reason;
    let refused = sent(&plane, record("a", &["tokens"], PLAIN)).await;
    assert_eq!("LEDGER_UNREACHABLE", reason(&refused.unwrap_err()));
    for mode in [CheckMode::Consume, CheckMode::Reserve] {
        let refused = plane.client.check(checked("b", mode)).await.unwrap_err();
        assert_eq!("LEDGER_UNREACHABLE", reason(&refused));
    }
    let token = reserved(
        &plane,
        CheckQuotaRequest {
            attributes: [].into(),
            ..checked("c", CheckMode::Reserve)
        },
    )
    .await;
    settled(&plane, &token, None).await;
    let plain = UsageRecord {
        attributes: [].into(),
        ..record("d", &["tokens"], "")
    };
    assert_eq!(RecordOutcome::Recorded, sent(&plane, plain).await.unwrap());
    assert_eq!(2, stored(&plane, 2).await.len());
    plane.control.tell(Told::PseudonymKeys(pseudonym_key(1)));
    let again = sent(&plane, record("a", &["tokens"], PLAIN)).await;
    assert_eq!(RecordOutcome::Recorded, again.unwrap());
    // Of 5 units 2 are settled; had a refused call taken any, these 3 would not be there.
    let last = CheckQuotaRequest {
        costs: vec![Cost {
            meter: "tokens".into(),
            units: 3,
        }],
        ..checked("b", CheckMode::Consume)
    };
    let answer = plane.client.check(last).await.unwrap();
    assert!(answer.decision.unwrap().allowed);
    let values = stored(&plane, 4).await;
    assert_eq!(2, values.iter().filter(|(_, value)| value == FIRST).count());
}

/// A start from the snapshot, which holds no key, stores no plain value either: the call waits for the ledger.
#[tokio::test]
async fn a_start_from_the_snapshot_has_no_key() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, keyed()).await;
    sent(&plane, record("a", &["tokens"], PLAIN)).await.unwrap();
    plane.until(|stats| stats["snapshot"]["written"] != 0).await;
    let script = Script {
        away: true,
        ..plane.kill()
    };
    let plane = Plane::start(&folder, script).await;
    assert_eq!("USED", plane.stats()["snapshot"]["start"]);
    let refused = sent(&plane, record("b", &["tokens"], PLAIN)).await;
    assert_eq!(
        "LEDGER_UNREACHABLE",
        error_info(&refused.unwrap_err()).reason
    );
    plane.control.script.lock().away = false;
    plane.until(|stats| stats["watch_up"] == true).await;
    let again = sent(&plane, record("b", &["tokens"], PLAIN)).await;
    assert_eq!(RecordOutcome::Recorded, again.unwrap());
    let values = stored(&plane, 2).await;
    assert!(values.iter().all(|(_, value)| value == FIRST));
}

/// After the key has turned a repeat is a duplicate still, another value under the same id a conflict, and new records
/// have new pseudonyms.
#[tokio::test]
async fn a_repeat_after_the_key_turned_is_a_duplicate() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, keyed()).await;
    let first = record("a", &["tokens"], PLAIN);
    sent(&plane, first.clone()).await.unwrap();
    plane.control.tell(Told::PseudonymKeys(pseudonym_key(2)));
    for attempt in 0.. {
        let id = format!("new-{attempt}");
        sent(&plane, record(&id, &["tokens"], PLAIN)).await.unwrap();
        if plane.control.script.lock().attributes[&id][0].1 == SECOND {
            break;
        }
    }
    assert_eq!(RecordOutcome::Duplicate, sent(&plane, first).await.unwrap());
    let request = RecordUsageRequest {
        records: vec![record("a", &["tokens"], "bob")],
        ..Default::default()
    };
    let answer: RecordUsageResponse = plane.client.call("RecordUsage", request).await.unwrap();
    assert_eq!(RecordOutcome::Conflict as i32, answer.results[0].outcome);
}

/// What one meter of a record hides is hidden, whatever its other meters declare; in either order of the meters.
#[tokio::test]
async fn hidden_by_one_meter_is_hidden() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, keyed()).await;
    let mut meters = meters();
    meters.meters[1].pseudonymised.clear();
    plane.control.tell(Told::Meters(meters));
    // News are taken in by and by: that `requests` has it in the clear is seen by records of that meter alone.
    for attempt in 0.. {
        let id = format!("alone-{attempt}");
        let alone = record(&id, &["requests"], PLAIN);
        sent(&plane, alone).await.unwrap();
        if plane.control.script.lock().attributes[&id][0].1 == PLAIN {
            break;
        }
    }
    for (id, meters) in [("a", ["tokens", "requests"]), ("b", ["requests", "tokens"])] {
        sent(&plane, record(id, &meters, PLAIN)).await.unwrap();
        let script = plane.control.script.lock();
        assert_eq!(FIRST, script.attributes[id][0].1);
    }
}
