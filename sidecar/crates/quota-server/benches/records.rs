//! What records cost, in calls of 100 over a Unix socket, by a whole data plane whose ledger takes nothing: `cargo bench`.
//!
//! CPU time of each thread per record: the client shares the process, so only that of the others is ours. Figures for
//! comparing builds, not promises.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::arithmetic_side_effects
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Instant};

use quota_proto::quota::{
    Quantity, RecordOutcome, RecordUsageRequest, RecordUsageResponse, UsageRecord,
};
use quota_server::DataPlane;
use support::{Client, Control, Script};

const CALLS: usize = 2_000;
const AT_ONCE: usize = 32;
const RECORDS: usize = 100;
const REPEATS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let plane = start(folder.path());
        let script = Script {
            no_append: true,
            ..Script::with_amount(10)
        };
        let _control = Control::start(Arc::clone(&plane), script);
        let client = Client::unix(&folder.path().join("s.sock")).await;
        send(&client, AT_ONCE).await;
        for _ in 0..REPEATS {
            let (before, started) = (cpu_ns(), Instant::now());
            send(&client, CALLS).await;
            let records = u64::try_from(CALLS * RECORDS).unwrap();
            let per_s = u128::from(records) * 1_000_000 / started.elapsed().as_micros();
            let spent: Vec<String> = cpu_ns()
                .into_iter()
                .map(|(name, ns)| (ns - before.get(&name).copied().unwrap_or(0), name))
                .map(|(ns, name)| format!("{name} {} ns", ns / records))
                .collect();
            println!("{per_s} records/s; CPU a record: {}", spent.join(", "));
        }
    });
}

fn start(folder: &Path) -> Arc<DataPlane> {
    let config = serde_json::json!({
        "socket": folder.join("s.sock"),
        "usage_log_dir": folder.join("log"),
        "usage_log_bytes": 1 << 30,
        "embedded": true,
        "ledger_budget_us": 2_000_000,
        "redis_budget_us": 2_000_000,
        "proof_age_us": 1_000_000,
    });
    Arc::new(DataPlane::start(&config.to_string()).unwrap())
}

fn record() -> UsageRecord {
    let quantity = |meter: &str| Quantity {
        meter: meter.into(),
        units: 7,
    };
    UsageRecord {
        tenant: "acme".into(),
        quantities: vec![quantity("tokens"), quantity("requests")],
        attributes: [("model".to_owned(), "small".to_owned())].into(),
        ..UsageRecord::default()
    }
}

async fn send(client: &Client, calls: usize) {
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let client = client.clone();
        senders.spawn(async move {
            let request = RecordUsageRequest {
                records: vec![record(); RECORDS],
                ..RecordUsageRequest::default()
            };
            for _ in 0..calls / AT_ONCE {
                let answer: RecordUsageResponse =
                    client.call("RecordUsage", request.clone()).await.unwrap();
                assert_eq!(RECORDS, answer.results.len());
                let recorded = i32::from(RecordOutcome::Recorded);
                assert!(answer.results.iter().all(|one| one.outcome == recorded));
            }
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent.unwrap();
    }
}

/// CPU time of this process's threads by name.
fn cpu_ns() -> BTreeMap<String, u64> {
    let mut spent = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let said = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
        let ns: u64 = said("schedstat")
            .split(' ')
            .next()
            .and_then(|ns| ns.parse().ok())
            .unwrap_or(0);
        *spent.entry(said("comm").trim().to_owned()).or_insert(0) += ns;
    }
    spent
}
