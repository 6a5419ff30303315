//! How fast checks are answered, over a Unix socket, by a whole data plane with a scripted ledger: `cargo bench`.
//!
//! A paced phase (1,000 checks a second) gives latencies, a stream gives checks a second. Client and control plane share
//! the machine with the data plane, so these are figures for comparing builds, not promises.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use quota_proto::quota::{CheckQuotaRequest, Detail, StreamQuotaRequest, StreamQuotaResponse};
use support::{Client, Plane, Script, client::consume};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Request;
use tonic_prost::ProstCodec;

const PACED: u32 = 5_000;
const STREAMED: u64 = 300_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let plane = Plane::start(&folder, script()).await;
        let client = Client::unix(&folder.path().join("s.sock")).await;
        let warm = client.check(request()).await.unwrap();
        assert!(warm.decision.unwrap().allowed);
        paced(&client).await;
        streamed(&client).await;
        println!(
            "latency inside, log2 buckets: {}",
            plane.stats()["latency_us"]
        );
    });
}

fn script() -> Script {
    Script {
        lease_min: 1_000_000,
        ..Script::with_amount(1_000_000_000_000)
    }
}

fn request() -> CheckQuotaRequest {
    CheckQuotaRequest {
        detail: Detail::None.into(),
        ..consume(1)
    }
}

async fn paced(client: &Client) {
    let mut took = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..PACED {
        ticks.tick().await;
        let started = Instant::now();
        client.check(request()).await.unwrap();
        took.push(started.elapsed());
    }
    took.sort_unstable();
    let at = |permille: usize| took[(took.len() * permille / 1_000).min(took.len() - 1)];
    println!(
        "unary at 1,000/s: p50 {:?} p99 {:?} p99.9 {:?}",
        at(500),
        at(990),
        at(999)
    );
}

async fn streamed(client: &Client) {
    let (sender, receiver) = mpsc::channel(1_024);
    let mut grpc = client.0.clone();
    grpc.ready().await.unwrap();
    let path = "/tollkeeper.quota.v1.QuotaService/StreamQuota"
        .parse()
        .unwrap();
    let codec = ProstCodec::<StreamQuotaRequest, StreamQuotaResponse>::default();
    let requests = Request::new(ReceiverStream::new(receiver));
    let mut answers = grpc
        .streaming(requests, path, codec)
        .await
        .unwrap()
        .into_inner();
    let started = Instant::now();
    tokio::spawn(async move {
        for tag in 0..STREAMED {
            let check = Some(request());
            if sender
                .send(StreamQuotaRequest { tag, check })
                .await
                .is_err()
            {
                return;
            }
        }
    });
    let mut answered = 0_u64;
    while let Some(answer) = answers.next().await {
        answer.unwrap();
        answered += 1;
    }
    assert_eq!(STREAMED, answered);
    let millis = u64::try_from(started.elapsed().as_millis().max(1)).unwrap();
    println!("stream: {} checks/s", answered * 1_000 / millis);
}
