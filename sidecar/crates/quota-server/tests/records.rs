//! `RecordUsage`, and consumption with its record.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::time::Duration;

use prost_types::Timestamp;
use quota_proto::{
    ledger::{RecordVerdict, watch_limits_response::Message as Told},
    quota::{
        Acknowledgement, CheckQuotaRequest, Quantity, RecordOutcome, RecordResult,
        RecordUsageRequest, RecordUsageResponse, UsageRecord,
    },
};
use support::{
    Plane, Script,
    client::{consume, error_info},
    control::now_us,
};
use tempfile::tempdir;
use tonic::{Code, Request, Status};

fn record(id: &str, units: i64) -> UsageRecord {
    let event_time = Timestamp {
        seconds: now_us() / 1_000_000 / 60 * 60,
        nanos: 0,
    };
    UsageRecord {
        id: id.into(),
        tenant: "acme".into(),
        event_time: Some(event_time),
        quantities: vec![Quantity {
            meter: "tokens".into(),
            units,
        }],
        ..Default::default()
    }
}

async fn recorded(plane: &Plane, records: Vec<UsageRecord>) -> Vec<RecordResult> {
    let request = RecordUsageRequest {
        records,
        ..Default::default()
    };
    let answer: RecordUsageResponse = plane.client.call("RecordUsage", request).await.unwrap();
    answer.results
}

fn outcomes(results: &[RecordResult]) -> Vec<RecordOutcome> {
    results
        .iter()
        .map(|result| RecordOutcome::try_from(result.outcome).unwrap())
        .collect()
}

/// Each record gets its own result, in order: the same again is a duplicate, another of the same id a conflict, and a
/// bad one names its field without holding up its neighbours.
#[tokio::test]
async fn each_record_has_its_own_result() {
    use RecordOutcome::{Conflict, Duplicate, Invalid, Recorded};
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let unnamed = UsageRecord {
        id: String::new(),
        event_time: None,
        ..record("", 1)
    };
    let records = vec![
        record("a", 1),
        record("a", 1),
        record("a", 2),
        record("b", -1),
        unnamed,
    ];
    let results = recorded(&plane, records).await;
    assert_eq!(
        vec![Recorded, Duplicate, Conflict, Invalid, Recorded],
        outcomes(&results),
        "{results:?}"
    );
    assert_eq!(
        ("FIELD_OUT_OF_RANGE", "records[3].quantities[0].units"),
        (&*results[3].reason, &*results[3].field)
    );
    assert_eq!(36, results[4].id.len());
    assert_eq!(
        vec![Duplicate],
        outcomes(&recorded(&plane, vec![record("a", 1)]).await)
    );
}

/// Who waits for the ledger hears of each record that it refused, with reason and field, and so does who repeats it.
#[tokio::test]
async fn a_quarantined_record_is_no_success() {
    use RecordOutcome::{Duplicate, Invalid, Recorded};
    let folder = tempdir().unwrap();
    let refused = RecordVerdict {
        outcome: RecordOutcome::Invalid.into(),
        reason: "TOO_LATE".into(),
        field: "event_time_us".into(),
        ..Default::default()
    };
    let script = Script {
        verdicts: [("late".to_owned(), refused)].into(),
        ..Script::with_amount(10)
    };
    let plane = Plane::start(&folder, script).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let request = RecordUsageRequest {
            records: vec![record("fine", 1), record("late", 1)],
            acknowledgement: Acknowledgement::Ledger.into(),
        };
        let answer: RecordUsageResponse = plane.client.call("RecordUsage", request).await.unwrap();
        let late = answer.results[1].clone();
        assert_eq!(
            ("TOO_LATE", "records[1].event_time_us"),
            (&*late.reason, &*late.field),
            "{late:?}"
        );
        seen.push(outcomes(&answer.results));
    }
    assert_eq!(
        vec![vec![Recorded, Invalid], vec![Duplicate, Invalid]],
        seen
    );
    assert_eq!(
        vec![Invalid],
        outcomes(&recorded(&plane, vec![record("late", 1)]).await)
    );
}

/// Each meter says how late and how early its records may be; of several the strictest counts, and 0 is 0.
#[tokio::test]
async fn each_meter_has_its_own_lateness() {
    use RecordOutcome::{Invalid, Recorded};
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let mut meters = support::control::meters();
    (meters.meters[0].late_max_s, meters.meters[0].early_max_s) = (Some(60), Some(0));
    plane.control.tell(Told::Meters(meters));
    let seconds = now_us() / 1_000_000;
    let at = |name: &str, meters: &[&str], offset_s: i64| UsageRecord {
        event_time: Some(Timestamp {
            seconds: seconds + offset_s,
            nanos: 0,
        }),
        quantities: meters
            .iter()
            .map(|meter| Quantity {
                meter: (*meter).into(),
                units: 1,
            })
            .collect(),
        ..record(name, 1)
    };
    let late = at("late", &["tokens"], -600);
    // News are taken in by and by: what was fine before them is refused after.
    let mut refused = recorded(&plane, vec![late.clone()]).await;
    while outcomes(&refused) != [Invalid] {
        refused = recorded(&plane, vec![late.clone()]).await;
    }
    assert_eq!(
        ("FIELD_OUT_OF_RANGE", "records[0].event_time"),
        (&*refused[0].reason, &*refused[0].field)
    );
    assert!(
        refused[0].message.contains("60 s back to 0 s ahead"),
        "{refused:?}"
    );
    let records = vec![
        at("other", &["requests"], -600),
        at("both", &["requests", "tokens"], -600),
        at("early", &["tokens"], 120),
        at("ahead", &["requests"], 120),
        at("fine", &["tokens"], -5),
        at("long", &["requests"], -36 * 86_400),
    ];
    assert_eq!(
        vec![Recorded, Invalid, Invalid, Recorded, Recorded, Invalid],
        outcomes(&recorded(&plane, records).await)
    );
}

/// One case a line: what is done to a good record, the reason and the field that are answered.
macro_rules! cases {
    ($(|$r:ident| $change:expr => $reason:ident $field:literal;)*) => {
        vec![$({
            let mut $r = record("a", 1);
            $change;
            ($r, stringify!($reason), $field)
        }),*]
    };
}

/// Whatever breaks a rule of a record is named with its field, and nothing of it is stored.
#[tokio::test]
async fn bad_records_are_named_and_not_stored() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let cases: Vec<(UsageRecord, &str, &str)> = cases! {
        |r| r.tenant = "nobody".into() => TENANT_UNKNOWN "tenant";
        |r| r.tenant = "ac/me".into() => FIELD_INVALID "tenant";
        |r| r.quantities[0].meter = "nothing".into() => METER_UNKNOWN "quantities[0].meter";
        |r| r.quantities.clear() => FIELD_REQUIRED "quantities";
        |r| r.quantities.push(r.quantities[0].clone()) => FIELD_REPEATED "quantities[1].meter";
        |r| r.quantities[0].units = 1 << 53 => FIELD_OUT_OF_RANGE "quantities[0].units";
        |r| r.id = "r/1".into() => FIELD_INVALID "id";
        |r| r.id = "x".repeat(129) => FIELD_TOO_LONG "id";
        |r| r.id = "a\0b".into() => FIELD_INVALID "id";
        |r| r.event_time = None => FIELD_REQUIRED "event_time";
        |r| r.event_time = Some(Timestamp { seconds: 1, nanos: 0 }) => FIELD_OUT_OF_RANGE "event_time";
        |r| r.event_time = Some(Timestamp { seconds: i64::MAX, nanos: 0 }) => FIELD_OUT_OF_RANGE "event_time";
        |r| r.event_time = Some(Timestamp { seconds: 1, nanos: -1 }) => FIELD_OUT_OF_RANGE "event_time";
    };
    let (records, expected): (Vec<_>, Vec<_>) = cases
        .into_iter()
        .map(|(record, reason, field)| (record, (reason, field)))
        .unzip();
    let results = recorded(&plane, records).await;
    for (index, (result, (reason, field))) in results.iter().zip(expected).enumerate() {
        assert_eq!(
            (reason, format!("records[{index}].{field}")),
            (&*result.reason, result.field.clone()),
            "{result:?}"
        );
    }
    assert_eq!(0, plane.stats()["records"]);
}

/// A tenant of which the ledger could not be asked is no tenant that doesn't exist: the call is to be repeated.
#[tokio::test]
async fn unknown_is_not_said_without_the_ledger() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    plane
        .control
        .news(quota_proto::bridge::answer::Result::WatchUp(false));
    plane.until(|stats| stats["watch_up"] == false).await;
    let request = RecordUsageRequest {
        records: vec![record("a", 1)],
        ..Default::default()
    };
    let status = plane
        .client
        .call::<_, RecordUsageResponse>("RecordUsage", request)
        .await
        .unwrap_err();
    assert_eq!(
        (Code::Unavailable, "LEDGER_UNREACHABLE".into()),
        (status.code(), error_info(&status).reason)
    );
}

async fn to_ledger(
    plane: &Plane,
    id: &str,
    timeout: Duration,
) -> Result<RecordUsageResponse, Status> {
    let mut request = Request::new(RecordUsageRequest {
        records: vec![record(id, 1)],
        acknowledgement: Acknowledgement::Ledger.into(),
    });
    request.set_timeout(timeout);
    plane.client.request("RecordUsage", request).await
}

/// A LEDGER acknowledgement comes only once the ledger has the record; without it the deadline is told in time.
#[tokio::test]
async fn ledger_acknowledgement_waits_for_the_ledger() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    to_ledger(&plane, "a", Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(vec!["a"], plane.control.record_ids());
    plane.control.script.lock().no_append = true;
    let status = to_ledger(&plane, "b", Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()),
        (status.code(), error_info(&status).reason)
    );
}

/// A consumption with its record bills once however often it is repeated, and says nothing of a denial.
#[tokio::test]
async fn recorded_consumption_bills_once() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let check = |id: &str, units| CheckQuotaRequest {
        request_id: id.into(),
        record_usage: true,
        ..consume(units)
    };
    for _ in 0..3 {
        assert!(
            plane
                .client
                .check(check("q", 4))
                .await
                .unwrap()
                .decision
                .unwrap()
                .allowed
        );
    }
    assert!(
        !plane
            .client
            .check(check("p", 7))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    assert!(
        plane
            .client
            .check(check("p", 6))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    plane
        .until(|_| plane.control.record_ids() == ["c/q/0", "c/p/0"])
        .await;
}

/// Everything acknowledged before a kill is with the ledger after the restart, once.
#[tokio::test]
async fn acknowledged_records_survive_a_kill() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(
        &folder,
        Script {
            no_append: true,
            ..Script::with_amount(10)
        },
    )
    .await;
    let ids: Vec<String> = (0..500).map(|index| format!("id{index}")).collect();
    recorded(&plane, ids.iter().map(|id| record(id, 1)).collect()).await;
    let script = Script {
        no_append: false,
        ..plane.kill()
    };
    let plane = Plane::start(&folder, script).await;
    plane.until(|_| plane.control.record_ids() == ids).await;
}

/// Attributes that no meter declares never reach the log.
#[tokio::test]
async fn undeclared_attributes_are_dropped() {
    use RecordOutcome::{Duplicate, Recorded};
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let with = |pairs: &[(&str, &str)]| UsageRecord {
        attributes: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..record("a", 1)
    };
    let first = recorded(&plane, vec![with(&[("model", "m"), ("colour", "red")])]).await;
    let second = recorded(&plane, vec![with(&[("model", "m")])]).await;
    assert_eq!(
        (vec![Recorded], vec![Duplicate]),
        (outcomes(&first), outcomes(&second))
    );
}

/// A record is told of and stored in the same way whatever stands before it in its call: like it, and good, refused for
/// its names, or refused for something of its own.
#[tokio::test]
async fn neighbours_change_nothing() {
    let with = |id: &str, meter: &str, pairs: &[(&str, &str)]| UsageRecord {
        quantities: vec![Quantity {
            meter: meter.into(),
            units: 1,
        }],
        attributes: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..record(id, 1)
    };
    let late = |id: &str| UsageRecord {
        event_time: Some(Timestamp::default()),
        ..with(id, "tokens", &[])
    };
    let of = |tenant: &str, record: UsageRecord| UsageRecord {
        tenant: tenant.into(),
        ..record
    };
    let mut records = vec![
        with("a", "tokens", &[("model", "x")]),
        with("b", "tokens", &[("model", "y")]),
        with("c", "unheard-of", &[("model", "x")]),
        with("d", "unheard-of", &[("model", "x")]),
        with("e", "tokens", &[("model", "x"), ("colour", "red")]),
        with("f", "tokens", &[("model", "y"), ("colour", "blue")]),
        with("g", "tokens", &[("colour", "red"), ("secret", "ann")]),
        with("h", "tokens", &[("colour", "red"), ("secret", "bob")]),
        with("i", "tokens", &[("colour", "red"), ("secret", "\u{7f}")]),
        with("j", "tokens", &[("colour", "red"), ("secret", "ann")]),
        late("k"),
        with("l", "tokens", &[]),
        of("nobody", with("m", "tokens", &[])),
        of("nobody", with("n", "tokens", &[])),
        with("o", "requests", &[("secret", "ann")]),
        with("p", "requests", &[("model", "ann")]),
        record("q", -1),
        record("r", 1),
    ];
    let folder = tempdir().unwrap();
    let script = || Script {
        key_version: Some(1),
        ..Script::with_amount(10)
    };
    let together = Plane::start(&folder, script()).await;
    let results = recorded(&together, records.clone()).await;
    let folder = tempdir().unwrap();
    let alone = Plane::start(&folder, script()).await;
    for (record, result) in records.drain(..).zip(&results) {
        let single = recorded(&alone, vec![record]).await;
        let said =
            |result: &RecordResult| (result.outcome, result.id.clone(), result.reason.clone());
        assert_eq!(said(&single[0]), said(result));
    }
    let good = outcomes(&results)
        .into_iter()
        .filter(|outcome| *outcome == RecordOutcome::Recorded)
        .count();
    assert_eq!(11, good);
    for plane in [&together, &alone] {
        plane
            .until(|_| plane.control.record_ids().len() == good)
            .await;
    }
    let stored = |plane: &Plane| plane.control.script.lock().attributes.clone();
    assert_eq!(stored(&alone), stored(&together));
}

fn counting(id: &str, units: i64) -> UsageRecord {
    UsageRecord {
        count_against_limits: true,
        ..record(id, units)
    }
}

async fn is_allowed(plane: &Plane, units: i64) -> bool {
    let answer = plane.client.check(consume(units)).await.unwrap();
    answer.decision.unwrap().allowed
}

/// A record counts against limits where it says so, once however often it comes, and not at all where it doesn't.
#[tokio::test]
async fn records_count_against_limits_where_they_say_so() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    recorded(&plane, vec![record("plain", 9)]).await;
    let results = recorded(&plane, vec![counting("a", 3), counting("a", 3)]).await;
    assert_eq!(
        vec![RecordOutcome::Recorded, RecordOutcome::Duplicate],
        outcomes(&results)
    );
    recorded(&plane, vec![counting("a", 3), counting("b", 1)]).await;
    assert!(is_allowed(&plane, 6).await);
    assert!(!is_allowed(&plane, 1).await);
}

/// What was used beyond a limit is recorded all the same, and owed: nothing more is admitted, what was left included.
#[tokio::test]
async fn what_was_used_beyond_a_limit_is_owed() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    assert!(is_allowed(&plane, 4).await);
    let results = recorded(&plane, vec![counting("beyond", 15)]).await;
    assert_eq!(vec![RecordOutcome::Recorded], outcomes(&results));
    assert!(!is_allowed(&plane, 1).await);
    assert!(!is_allowed(&plane, 6).await);
}

/// So it is where the sidecar knew nothing of the window yet.
#[tokio::test]
async fn what_was_used_beyond_a_cold_limit_is_owed() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    recorded(&plane, vec![counting("beyond", 15)]).await;
    assert!(!is_allowed(&plane, 1).await);
    assert!(!is_allowed(&plane, 9).await);
}
