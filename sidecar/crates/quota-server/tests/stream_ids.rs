//! `request_id` over `StreamQuota`: what a unary call promises holds for every item of a stream.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::time::Duration;

use quota_proto::{
    ledger::watch_limits_response::Message as News,
    quota::{
        CheckMode, CheckQuotaRequest, StreamQuotaRequest, StreamQuotaResponse,
        stream_quota_response::Result as Told,
    },
};
use support::{Plane, Script, client::consume, control::acme};
use tempfile::tempdir;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

const INVALID_ARGUMENT: i32 = 3;

struct Stream {
    sender: mpsc::Sender<StreamQuotaRequest>,
    answers: tonic::Streaming<StreamQuotaResponse>,
    tag: u64,
}

impl Stream {
    async fn open(plane: &Plane) -> Self {
        let (sender, answers) = plane.client.stream().await;
        Self {
            sender,
            answers,
            tag: 0,
        }
    }

    /// Sends a check without waiting for its answer.
    async fn send(&mut self, check: CheckQuotaRequest) {
        self.tag += 1;
        let (tag, check) = (self.tag, Some(check));
        let request = StreamQuotaRequest { tag, check };
        self.sender.send(request).await.unwrap();
    }

    /// The next answer: whether it admits, or the refusal's code, reason and field.
    async fn next(&mut self) -> Result<bool, (i32, String, String)> {
        match self.answers.next().await.unwrap().unwrap().result.unwrap() {
            Told::Answer(answer) => Ok(answer.decision.unwrap().allowed),
            Told::Error(error) => Err((error.code, error.reason, error.field)),
        }
    }

    async fn ask(&mut self, check: CheckQuotaRequest) -> Result<bool, (i32, String, String)> {
        self.send(check).await;
        self.next().await
    }
}

fn named(id: &str, units: i64) -> CheckQuotaRequest {
    CheckQuotaRequest {
        request_id: id.into(),
        ..consume(units)
    }
}

/// An admitted answer is replayed, on the stream, on another one and to a unary call, and takes nothing again; other
/// content under the same id is refused for that item only.
#[tokio::test]
async fn admitted_answers_replay_on_streams() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let (mut one, mut other) = (Stream::open(&plane).await, Stream::open(&plane).await);
    for _ in 0..3 {
        assert_eq!(Ok(true), one.ask(named("q", 6)).await);
        assert_eq!(Ok(true), other.ask(named("q", 6)).await);
    }
    let unary = plane.client.check(named("q", 6)).await.unwrap();
    assert!(unary.decision.unwrap().allowed);
    let reused = (
        INVALID_ARGUMENT,
        "REQUEST_ID_REUSED".to_owned(),
        "request_id".to_owned(),
    );
    let reserve = CheckQuotaRequest {
        mode: CheckMode::Reserve.into(),
        ..named("q", 6)
    };
    for changed in [named("q", 5), reserve] {
        assert_eq!(Err(reused.clone()), one.ask(changed).await);
    }
    assert_eq!(Ok(true), one.ask(named("q", 6)).await);
    // 6 of 10 were taken, once.
    assert_eq!(Ok(true), one.ask(consume(4)).await);
    assert_eq!(Ok(false), one.ask(consume(1)).await);
}

/// A denial is decided anew: the same id passes once the limit has units.
#[tokio::test]
async fn denials_on_streams_are_decided_anew() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let mut stream = Stream::open(&plane).await;
    assert_eq!(Ok(true), stream.ask(consume(10)).await);
    assert_eq!(Ok(false), stream.ask(named("d", 1)).await);
    assert_eq!(Ok(false), stream.ask(named("d", 1)).await);
    plane.control.script.lock().amount = 20;
    plane.control.tell(News::Tenant(acme(20)));
    // The news is heard in a moment; every denial until then is decided anew as well.
    let heard = async {
        while stream.ask(named("d", 1)).await != Ok(true) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), heard)
        .await
        .unwrap();
}

/// Repeats that arrive while the first is being decided get its answer, and it takes its units once.
#[tokio::test]
async fn repeats_in_flight_join_on_streams() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(7)).await;
    let mut stream = Stream::open(&plane).await;
    for _ in 0..20 {
        // Nothing is known of the tenant yet, so the first waits for the ledger.
        stream.send(named("j", 7)).await;
    }
    for _ in 0..20 {
        assert_eq!(Ok(true), stream.next().await);
    }
    assert_eq!(Ok(false), stream.ask(consume(1)).await);
}
