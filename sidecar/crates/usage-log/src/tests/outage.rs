//! A disk that takes no writes for a while.

use std::time::Duration;

use super::{
    chain_of, commit, config, flush, memory, memory::Memory, payloads, read_all, reserve, usage,
};
use crate::{Config, LogError, Position, UsageLog};

/// Tries again at once.
fn eager() -> Config {
    Config {
        retry: Duration::ZERO,
        ..config()
    }
}

fn faults(syncs: usize) -> memory::Faults {
    memory::Faults {
        syncs: vec![true; syncs],
        ..memory::Faults::default()
    }
}

fn lost(log: &UsageLog, position: Position) {
    assert!(matches!(log.wait_durable(position), Err(LogError::Io(_))));
    let (sender, receiver) = std::sync::mpsc::channel();
    let told = sender.clone();
    log.on_durable(
        position,
        Box::new(move |outcome| told.send(outcome).unwrap()),
    );
    log.on_committed(
        position,
        Box::new(move |outcome| sender.send(outcome).unwrap()),
    );
    for _ in 0..2 {
        assert!(matches!(receiver.try_recv(), Ok(Err(LogError::Io(_)))));
    }
}

/// However many writes in a row fail, recording goes on when the disk takes them again. Who was told of a failure hears of
/// it again whenever it asks, nothing acknowledged is missing or there twice, numbers have no gap, and a crash or kill at
/// any moment after it finds exactly what was acknowledged.
#[test]
fn a_disk_that_recovers_is_written_again() {
    for refused in 2..12 {
        let mut random = refused as u64;
        let mut chance = move |_: &str, _: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            random >> 63 == 1
        };
        let memory = Memory::default();
        let (log, _) = super::open(&memory, eager());
        reserve(&log, [9; 16], b"held").unwrap();
        usage(&log, b"one").unwrap();
        flush(&log);
        let mut kept = vec![b"one".to_vec()];
        for outage in 0..3 {
            memory.faults(faults(refused));
            let gone: Vec<_> = [b"two", b"three".as_slice()]
                .map(|payload| usage(&log, payload).unwrap())
                .to_vec();
            log.pump();
            for position in &gone {
                lost(&log, *position);
            }
            // Each of these takes some of the refusals.
            for turn in 0..refused {
                let payload = format!("after {outage} {turn}").into_bytes();
                log.pump();
                let (other, _) = super::open(&memory.crash(&mut chance), config());
                let found = payloads(&read_all(&other, 1));
                let acknowledged: Vec<_> = kept.iter().cloned().map(Some).collect();
                assert_eq!(acknowledged, found[..kept.len()], "{refused}");
                if let Ok(position) = usage(&log, &payload) {
                    log.pump();
                    match log.wait_durable(position) {
                        Ok(()) => kept.push(payload),
                        Err(_) => lost(&log, position),
                    }
                }
            }
            assert!(kept.len() > outage + 1, "it never recovered: {refused}");
            for position in gone {
                lost(&log, position);
            }
            assert_eq!(kept.len() as u64, log.stats().durable_seq);
            assert_eq!(kept.len() as u64, log.stats().appended_seq);
        }
        let expected: Vec<_> = kept.iter().cloned().map(Some).collect();
        assert_eq!(expected, payloads(&read_all(&log, 1)));
        for _ in 0..50 {
            let (log, _) = super::open(&memory.crash(&mut chance), config());
            assert_eq!(expected, payloads(&read_all(&log, 1)), "{refused}");
        }
        for after in [
            memory.crash(|_, _| false),
            memory.crash(|_, _| true),
            memory.kill(),
        ] {
            let (log, recovered) = super::open(&after, config());
            assert_eq!(expected, payloads(&read_all(&log, 1)), "{refused}");
            assert_eq!(
                chain_of(&[1; 16], &kept),
                log.h_at(kept.len() as u64).unwrap()
            );
            assert_eq!(1, recovered.open.len());
            assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
        }
    }
}

/// What the ledger commits after an outage is told to those whose records it has, and to nobody whose record was lost.
#[test]
fn commits_after_an_outage_are_told_to_the_right_ones() {
    let memory = Memory::default();
    let (log, _) = super::open(&memory, eager());
    let before = usage(&log, b"before").unwrap();
    flush(&log);
    memory.faults(faults(2));
    let gone = usage(&log, b"gone").unwrap();
    log.pump();
    log.pump();
    let after = usage(&log, b"after").unwrap();
    flush(&log);
    let (sender, receiver) = std::sync::mpsc::channel();
    for (name, position) in [("before", before), ("gone", gone), ("after", after)] {
        let sender = sender.clone();
        let told =
            move |outcome: Result<(), LogError>| sender.send((name, outcome.is_ok())).unwrap();
        log.on_committed(position, Box::new(told));
    }
    assert_eq!(
        vec![("gone", false)],
        receiver.try_iter().collect::<Vec<_>>()
    );
    commit(&log, 1);
    assert_eq!(
        vec![("before", true)],
        receiver.try_iter().collect::<Vec<_>>()
    );
    commit(&log, 2);
    assert_eq!(
        vec![("after", true)],
        receiver.try_iter().collect::<Vec<_>>()
    );
    assert_eq!(Some(2), log.record_number(2));
}

/// While the disk refuses, it is probed in one and the same segment: an outage of any length uses no room up.
#[test]
fn an_outage_uses_no_room() {
    let memory = Memory::default();
    let (log, _) = super::open(&memory, eager());
    usage(&log, b"one").unwrap();
    flush(&log);
    memory.faults(faults(2_000));
    usage(&log, b"two").unwrap();
    for _ in 0..1_000 {
        log.pump();
    }
    assert!(matches!(usage(&log, b"three"), Err(LogError::Io(_))));
    // The segment in use, the one that failed next, and the probed one.
    assert!(log.stats().used_bytes < 3 * u64::from(config().segment_bytes));
    memory.faults(memory::Faults::default());
    log.pump();
    usage(&log, b"three").unwrap();
    flush(&log);
    let expected = [b"one".as_slice(), b"three"].map(|payload| Some(payload.to_vec()));
    assert_eq!(expected.to_vec(), payloads(&read_all(&log, 1)));
}

/// A log with a thread of its own recovers by itself.
#[test]
fn the_writers_thread_recovers_by_itself() {
    let memory = Memory::default();
    let layout = Config {
        retry: Duration::from_millis(1),
        ..config()
    };
    let (log, _) = super::open(&memory, layout);
    log.start().unwrap();
    memory.faults(faults(4));
    let failed = usage(&log, b"one").unwrap();
    assert!(matches!(log.wait_durable(failed), Err(LogError::Io(_))));
    let position = loop {
        match usage(&log, b"two") {
            Ok(position) => break position,
            Err(LogError::Io(_)) => std::thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    };
    log.wait_durable(position).unwrap();
    log.close().unwrap();
    let (log, _) = super::open(&memory.copy(), config());
    assert_eq!(vec![Some(b"two".to_vec())], payloads(&read_all(&log, 1)));
}
