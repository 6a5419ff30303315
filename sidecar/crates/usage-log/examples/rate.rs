//! Measures the log on a real folder: `cargo run --release --example rate -- FOLDER`.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::float_arithmetic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use usage_log::{Append, Committed, Config, LogError, NewProducer, Position, UsageLog};

const PAYLOAD: usize = 150;

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "rate-log".into());
    let folder = Path::new(&folder);
    let started = Instant::now();
    let log = open(folder);
    println!("made in {:?}", started.elapsed());
    latency(&log);
    rate(&log, 2_000_000);
    let stats = log.stats();
    println!(
        "syncs: {} groups, mean {:?}, longest {:?}",
        stats.groups,
        stats.sync_total / stats.groups.max(1) as u32,
        stats.sync_max
    );
    log.close().unwrap();
    drop(log);
    let started = Instant::now();
    let log = open(folder);
    println!(
        "opened again in {:?} with {} bytes in use",
        started.elapsed(),
        log.stats().used_bytes
    );
}

fn open(folder: &Path) -> UsageLog {
    let new_producer = NewProducer {
        id: [1; 16],
        salt: [2; 16],
    };
    let hash = Arc::new(|payload: &[u8]| Some(Sha256::digest(payload).into()));
    UsageLog::open(Config::new(folder, new_producer), hash)
        .unwrap()
        .0
}

fn append(log: &UsageLog, payload: &[u8]) -> Result<Position, LogError> {
    log.append(Append::Usage {
        payload,
        content_hash: [7; 32],
        ends: None,
    })
}

/// One record at a time: what a caller waits for.
fn latency(log: &UsageLog) {
    let mut times: Vec<Duration> = (0..3_000)
        .map(|_| {
            let started = Instant::now();
            let position = append(log, &[1; PAYLOAD]).unwrap();
            log.wait_durable(position).unwrap();
            started.elapsed()
        })
        .collect();
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!(
        "append to durable: p50 {:?}, p90 {:?}, p99 {:?}",
        at(50),
        at(90),
        at(99)
    );
}

/// As fast as the log takes them, while a shipper takes them away.
fn rate(log: &UsageLog, total: u64) {
    let (stop, stopped) = mpsc::channel::<()>();
    let shipping = log.clone();
    let shipper = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            let seq = shipping.stats().durable_seq;
            // The chain is not what is measured here: content hashes are not those of the payloads.
            shipping.set_committed(Committed {
                seq,
                h: [0; 32],
                safe_seq: seq,
                now_us: 0,
            });
        }
    });
    let started = Instant::now();
    let mut last = None;
    let mut refused = 0_u64;
    let mut done = 0;
    while done < total {
        if let Ok(position) = append(log, &[1; PAYLOAD]) {
            last = Some(position);
            done += 1;
        } else {
            refused += 1;
            std::thread::yield_now();
        }
    }
    log.wait_durable(last.unwrap()).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    drop(stop);
    shipper.join().unwrap();
    println!(
        "{total} records of {PAYLOAD} bytes in {seconds:.2} s: {:.0} records/s, {refused} refusals",
        total as f64 / seconds
    );
}
