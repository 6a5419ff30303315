//! What a transport must keep: pipelining, health, reflection, limits, and a clean stop.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

mod support;

use std::{collections::HashMap, time::Duration};

use prost::Message;
use quota_proto::quota::{
    CheckQuotaRequest, GetQuotaRequest, GetQuotaResponse, StreamQuotaRequest,
    stream_quota_response::Result as Told,
};
use support::{Plane, Script, client::consume};
use tempfile::tempdir;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// Every tag is answered exactly once, errors stay with their item, and the limit is never exceeded.
#[tokio::test]
async fn streams_answer_every_tag_once() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(300)).await;
    let (sender, mut answers) = plane.client.stream().await;
    for tag in 0..1_000 {
        let check = match tag % 10 {
            0 => None,
            1 => Some(CheckQuotaRequest {
                tenant: String::new(),
                ..consume(1)
            }),
            _ => Some(consume(1)),
        };
        sender
            .send(StreamQuotaRequest { tag, check })
            .await
            .unwrap();
    }
    drop(sender);
    let (mut tags, mut reasons, mut admitted) = (Vec::new(), HashMap::<String, usize>::new(), 0);
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        tags.push(answer.tag);
        match answer.result.unwrap() {
            Told::Answer(answer) => admitted += usize::from(answer.decision.unwrap().allowed),
            Told::Error(error) => {
                *reasons
                    .entry(format!("{}:{}", error.reason, error.field))
                    .or_default() += 1;
            }
        }
    }
    tags.sort_unstable();
    assert_eq!((0..1_000).collect::<Vec<u64>>(), tags);
    assert_eq!(300, admitted);
    assert_eq!(
        HashMap::from([
            ("FIELD_REQUIRED:check".into(), 100),
            ("FIELD_REQUIRED:tenant".into(), 100)
        ]),
        reasons
    );
}

/// A stream whose caller goes away ends, and the sidecar goes on.
#[tokio::test]
async fn abandoned_streams_end() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(300)).await;
    for _ in 0..50 {
        let (sender, answers) = plane.client.stream().await;
        sender
            .send(StreamQuotaRequest {
                tag: 1,
                check: Some(consume(1)),
            })
            .await
            .unwrap();
        drop((sender, answers));
    }
    assert!(
        plane
            .client
            .check(consume(1))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
}

#[derive(Clone, PartialEq, Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn health(plane: &Plane) -> i32 {
    let request = HealthRequest {
        service: "tollkeeper.quota.v1.QuotaService".into(),
    };
    plane
        .client
        .call::<_, HealthResponse>("/grpc.health.v1.Health/Check", request)
        .await
        .map_or(-1, |answer| answer.status)
}

async fn until_health(plane: &Plane, wanted: i32) {
    let outcome = tokio::time::timeout(Duration::from_secs(60), async {
        while health(plane).await != wanted {
            tokio::task::yield_now().await;
        }
    });
    assert!(outcome.await.is_ok(), "health never was {wanted}");
}

/// Health is `NOT_SERVING` before the ledger's welcome, `SERVING` afterwards, and `NOT_SERVING` again while draining, when
/// calls are still answered.
#[tokio::test]
async fn health_follows_readiness() {
    let folder = tempdir().unwrap();
    let plane = Plane::start_cold(
        folder.path(),
        Script {
            silent: true,
            ..Script::with_amount(10)
        },
    )
    .await;
    until_health(&plane, 2).await;
    let script = Script {
        silent: false,
        ..plane.kill()
    };
    let plane = Plane::start(&folder, script).await;
    until_health(&plane, 1).await;
    plane.plane.begin_drain();
    until_health(&plane, 2).await;
    let request = GetQuotaRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    plane
        .client
        .call::<_, GetQuotaResponse>("GetQuota", request)
        .await
        .unwrap();
}

/// A drain ends when every unit is back and every record shipped.
#[tokio::test]
async fn drains_end() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    plane
        .client
        .check(CheckQuotaRequest {
            record_usage: true,
            ..consume(1)
        })
        .await
        .unwrap();
    assert!(!plane.plane.drained());
    plane.plane.begin_drain();
    plane.until(|_| plane.plane.drained()).await;
    assert_eq!(1, plane.control.record_ids().len());
}

/// Reflection names the service, in both versions that clients speak.
#[tokio::test]
async fn reflection_names_the_service() {
    #[derive(Clone, PartialEq, Message)]
    struct List {
        #[prost(string, tag = "7")]
        list_services: String,
    }
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
            .parse()
            .unwrap();
        let mut grpc = plane.client.0.clone();
        grpc.ready().await.unwrap();
        let request = Request::new(tokio_stream::once(List {
            list_services: "*".into(),
        }));
        // The answer is read as unparsed bytes: what counts is the name inside.
        let answers = grpc
            .streaming(
                request,
                path,
                ProstCodec::<List, support::client::Raw>::default(),
            )
            .await
            .unwrap();
        let answer = answers.into_inner().next().await.unwrap().unwrap();
        assert!(
            answer.contains("tollkeeper.quota.v1.QuotaService"),
            "{version}"
        );
    }
}

/// More headers than 16 KiB are refused and the connection's other calls don't suffer.
#[tokio::test]
async fn header_lists_are_bounded() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    let mut request = Request::new(consume(1));
    request
        .metadata_mut()
        .insert("x-large", "v".repeat(64 << 10).parse().unwrap());
    let answer: Result<quota_proto::quota::CheckQuotaResponse, _> =
        plane.client.request("CheckQuota", request).await;
    assert_ne!(Code::Ok, answer.unwrap_err().code());
    assert!(
        plane
            .client
            .check(consume(1))
            .await
            .unwrap()
            .decision
            .unwrap()
            .allowed
    );
    assert_eq!(1, plane.stats()["checks"]);
}

/// Stopping takes the listeners and the socket away, and may be repeated.
#[tokio::test]
async fn stopping_is_final() {
    let folder = tempdir().unwrap();
    let plane = Plane::start(&folder, Script::with_amount(10)).await;
    plane.plane.stop();
    plane.plane.stop();
    assert!(plane.client.check(consume(1)).await.is_err());
    assert!(!folder.path().join("s.sock").exists());
}
