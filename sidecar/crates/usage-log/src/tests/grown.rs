//! Who waits for the log to grow hears of it, and is not called for less.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::Growth;

const NEVER: u64 = u64::MAX;

/// Waits for growth; the counter says how often it was called.
fn wait(log: &UsageLog, durable_seq: u64, written_bytes: u64) -> Arc<AtomicU32> {
    let calls = Arc::new(AtomicU32::new(0));
    let growth = Growth {
        durable_seq,
        written_bytes,
    };
    let told = Arc::clone(&calls);
    let tell = move || {
        told.fetch_add(1, Ordering::Relaxed);
    };
    log.on_grown(growth, Box::new(tell));
    calls
}

fn add(log: &UsageLog, count: usize) {
    for _ in 0..count {
        usage(log, b"record").unwrap();
    }
}

/// Who waits is called once, when the record is durable and not when it is appended; for what is there, at once.
#[test]
fn told_once_when_durable() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let calls = wait(&log, 3, NEVER);
    add(&log, 2);
    flush(&log);
    add(&log, 1);
    assert_eq!(0, calls.load(Ordering::Relaxed));
    flush(&log);
    assert_eq!(1, calls.load(Ordering::Relaxed));
    add(&log, 5);
    flush(&log);
    assert_eq!(1, calls.load(Ordering::Relaxed));
    assert_eq!(1, wait(&log, 8, NEVER).load(Ordering::Relaxed));
    let later = wait(&log, NEVER, log.stats().written_bytes + 1);
    assert_eq!(0, later.load(Ordering::Relaxed));
    add(&log, 1);
    flush(&log);
    assert_eq!(1, later.load(Ordering::Relaxed));
}

/// A later call takes the place of an earlier one.
#[test]
fn the_last_one_waits() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let (first, second) = (wait(&log, 1, NEVER), wait(&log, 2, NEVER));
    add(&log, 2);
    flush(&log);
    assert_eq!(0, first.load(Ordering::Relaxed));
    assert_eq!(1, second.load(Ordering::Relaxed));
}

/// Numbers of a producer that was left say nothing of the next one's.
#[test]
fn numbers_of_another_producer_tell_nothing() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    add(&log, 9);
    flush(&log);
    commit(&log, 8);
    let calls = wait(&log, 10, NEVER);
    log.renew(producer(2), 9).unwrap();
    add(&log, 20);
    flush(&log);
    assert_eq!(0, calls.load(Ordering::Relaxed));
    assert_eq!(21, log.stats().durable_seq);
}
