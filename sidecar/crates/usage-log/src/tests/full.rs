//! Room: refusals are typed, reservations can still end, everything resumes as the ledger takes records.

use super::*;

fn fill(log: &UsageLog) -> u64 {
    let mut count = 0;
    loop {
        match usage(log, &[b'z'; 200]) {
            Ok(_) => count += 1,
            Err(LogError::Full { .. }) => return count,
            Err(error) => panic!("{error}"),
        }
        flush(log);
    }
}

/// Full is a typed refusal with figures; from 95 % on only entries that end reservations are taken; after the ledger
/// took records appends work again, without a restart, many times over.
#[test]
fn full_then_drained() {
    let memory = Memory::default();
    let (log, recovered) = open(&memory, config());
    let mut seq = recovered.next_seq - 1;
    for round in 0..20_u8 {
        let keys: Vec<Key> = (0..50)
            .map(|n| [round, n, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
            .collect();
        for key in &keys {
            reserve(&log, *key, b"reservation").unwrap();
        }
        seq += fill(&log);
        let stats = log.stats();
        assert!(
            stats.used_bytes * 100 >= stats.capacity_bytes * 94,
            "{stats:?}"
        );
        assert!(matches!(
            reserve(&log, [255; 16], &[0; 200]),
            Err(LogError::Full { .. })
        ));
        for key in &keys {
            settle(&log, b"settled", *key).unwrap();
            seq += 1;
        }
        flush(&log);
        assert_eq!(seq, log.stats().durable_seq);
        commit(&log, seq);
        assert!(log.stats().used_bytes * 2 < stats.capacity_bytes);
    }
    let (_, recovered) = open(&memory.copy(), config());
    assert_eq!(Vec::<crate::Kept>::new(), recovered.open);
}

/// Entries that are appended together take positions one after the other and all become durable; where they don't all fit,
/// none is there.
#[test]
fn appended_together_all_or_none() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let payload = [b'a'; 200];
    let entry = Append::Usage {
        payload: &payload,
        content_hash: Sha256::digest(payload).into(),
        ends: None,
    };
    let mut numbers = 0_u64;
    // More than a group holds, and at last more than there is room for.
    let refusal = loop {
        match log.append_all(&[entry; 100]) {
            Ok(positions) => {
                let expected: Vec<u64> = (numbers + 1..=numbers + 100).collect();
                let given = positions.iter().map(|at| at.record_number());
                assert_eq!(expected, given.collect::<Vec<_>>());
                numbers += 100;
            }
            Err(error) => break error,
        }
        flush(&log);
        assert_eq!(numbers, log.stats().durable_seq);
    };
    assert!(matches!(refusal, LogError::Full { .. }), "{refusal:?}");
    assert_eq!(
        (numbers, 0),
        (log.stats().appended_seq, log.stats().pending_bytes)
    );
    let huge = vec![0; (64 << 10) + 1];
    let too_long = Append::Open {
        key: [1; 16],
        payload: &huge,
    };
    let refusal = log.append_all(&[entry, too_long]);
    assert!(
        matches!(refusal, Err(LogError::TooLong { .. })),
        "{refusal:?}"
    );
    assert_eq!(numbers, log.stats().appended_seq);
    assert_eq!(Ok(Vec::new()), log.append_all(&[]));
    assert!(log.append_all(&[entry]).is_ok());
}

/// Only what reservations end with gets the last 5 %, and even that ends in a typed refusal.
#[test]
fn the_last_part_is_for_settling() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    fill(&log);
    let mut settled = 0;
    let refusal = loop {
        match settle(&log, &[b's'; 200], [1; 16]) {
            Ok(_) => settled += 1,
            Err(error) => break error,
        }
        flush(&log);
    };
    assert!(settled > 50, "{settled}");
    assert!(matches!(refusal, LogError::Full { .. }));
}

/// Records that the ledger lacks are never dropped, however full it is; those it has are, oldest first.
#[test]
fn nothing_uncommitted_is_dropped() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let count = fill(&log);
    commit(&log, count / 2);
    assert_eq!(
        Err(LogError::Gone {
            seq: 1,
            oldest_seq: oldest(&log)
        }),
        log.read_from(1, 1, 1)
    );
    let expected = count - count / 2;
    assert_eq!(expected, read_all(&log, count / 2 + 1).len() as u64);
}

fn oldest(log: &UsageLog) -> u64 {
    match log.read_from(1, 1, 1) {
        Err(LogError::Gone { oldest_seq, .. }) => oldest_seq,
        other => panic!("{other:?}"),
    }
}

/// Records that are committed but not yet safe stay until the log is more than half full, and can be sent again,
/// also after a restart and below the place from where it scans.
#[test]
fn unsafe_records_stay_for_a_rewind() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let all: Vec<Vec<u8>> = (0..700)
        .map(|n| format!("{n} {}", "w".repeat(150)).into_bytes())
        .collect();
    for payload in &all {
        usage(&log, payload).unwrap();
        flush(&log);
    }
    let h = log.h_at(700).unwrap();
    log.set_committed(Committed {
        seq: 700,
        h,
        safe_seq: 0,
        now_us: 1,
    });
    log.pump();
    let expected: Vec<_> = all.iter().cloned().map(Some).collect();
    assert_eq!(expected, payloads(&read_all(&log, 1)));
    log.close().unwrap();
    let (log, recovered) = open(&memory, config());
    assert_eq!((701, 700), (recovered.next_seq, recovered.committed_seq));
    assert_eq!(expected[500..], payloads(&read_all(&log, 501)));
    assert_eq!(expected, payloads(&read_all(&log, 1)));
    assert_eq!(h, log.h_at(700).unwrap());
    usage(&log, b"after").unwrap();
    flush(&log);
    assert_eq!(
        chain_next(&h, &Sha256::digest(b"after").into()),
        log.h_at(701).unwrap()
    );
}

/// What the ledger lost again is not dropped, though the scan has passed it and the log is more than half full.
#[test]
fn a_rewind_keeps_what_it_needs() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let commit_unsafe = |seq: u64| {
        let h = log.h_at(seq).unwrap();
        log.set_committed(Committed {
            seq,
            h,
            safe_seq: 0,
            now_us: 1,
        });
        log.pump();
    };
    for round in 0..3 {
        for _ in 0..400 {
            usage(&log, &[b'r'; 150]).unwrap();
            flush(&log);
        }
        commit_unsafe(if round == 0 { 400 } else { 100 });
    }
    let stats = log.stats();
    assert!(stats.used_bytes * 2 > stats.capacity_bytes, "{stats:?}");
    assert_eq!(1_100, read_all(&log, 101).len());
}

/// A day later unsafe records give up their room though the log is nearly empty.
#[test]
fn old_segments_are_dropped_after_a_day() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    for now_us in [1, 2, 24 * 3_600 * 1_000_000 + 10] {
        for _ in 0..400 {
            usage(&log, &[b'w'; 150]).unwrap();
            flush(&log);
        }
        let seq = log.stats().durable_seq;
        let h = log.h_at(seq).unwrap();
        log.set_committed(Committed {
            seq,
            h,
            safe_seq: 0,
            now_us,
        });
        log.pump();
    }
    assert!(oldest(&log) > 1);
}

/// Reservations and marks survive their segments over many laps, with their latest content, and end when ended.
#[test]
fn what_is_open_outlives_its_segment() {
    let memory = Memory::default();
    let (mut log, _) = open(&memory, config());
    for n in 0..100_u8 {
        reserve(&log, [n; 16], &[n; 300]).unwrap();
        log.append(Append::Mark {
            key: [n; 16],
            payload: b"first",
        })
        .unwrap();
    }
    log.append(Append::Mark {
        key: [7; 16],
        payload: b"second",
    })
    .unwrap();
    log.append(Append::Mark {
        key: [8; 16],
        payload: b"",
    })
    .unwrap();
    for lap in 0..3 {
        let mut seq = log.stats().durable_seq;
        for _ in 0..4_000 {
            usage(&log, &[b'u'; 150]).unwrap();
            flush(&log);
            seq += 1;
            if seq.is_multiple_of(50) {
                commit(&log, seq);
            }
        }
        log.append(Append::Expire { key: [lap; 16] }).unwrap();
        settle(&log, b"end", [lap + 10; 16]).unwrap();
        flush(&log);
        drop(log);
        let recovered;
        (log, recovered) = open(&memory, config());
        assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
        let mut open: Vec<_> = recovered.open.iter().map(|kept| kept.key[0]).collect();
        open.sort_unstable();
        let expected: Vec<u8> = (0..100)
            .filter(|n| !(0..=lap).contains(n) && !(10..=lap + 10).contains(n))
            .collect();
        assert_eq!(expected, open);
        assert!(
            recovered
                .open
                .iter()
                .all(|kept| kept.payload == [kept.key[0]; 300])
        );
        let seven = recovered
            .marks
            .iter()
            .find(|kept| kept.key == [7; 16])
            .unwrap();
        assert_eq!(
            (b"second".to_vec(), 99),
            (seven.payload.clone(), recovered.marks.len())
        );
    }
}

/// Open reservations may fill half of the room, not more: the rest is needed to move them.
#[test]
fn reservations_take_at_most_half() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let mut opened = 0_u32;
    while reserve(
        &log,
        Sha256::digest(opened.to_le_bytes())[..16]
            .try_into()
            .unwrap(),
        &[1; 400],
    )
    .is_ok()
    {
        flush(&log);
        opened += 1;
    }
    let stats = log.stats();
    assert!(u64::from(opened) * 448 > stats.capacity_bytes / 3);
    for _ in 0..600 {
        usage(&log, &[b'u'; 900]).unwrap();
        flush(&log);
        commit(&log, log.stats().durable_seq);
    }
    let (_, recovered) = open(&memory.copy(), config());
    assert_eq!(opened as usize, recovered.open.len());
}

/// A writer that is behind refuses by bytes, and what it took before is not lost.
#[test]
fn busy_is_bounded() {
    let memory = Memory::default();
    let (log, _) = open(
        &memory,
        Config {
            pending_bytes: 10_000,
            ..config()
        },
    );
    let mut taken = 0;
    while usage(&log, &[1; 100]).is_ok() {
        taken += 1;
    }
    assert!(matches!(usage(&log, &[1; 100]), Err(LogError::Busy { .. })));
    assert!((50..80).contains(&taken), "{taken}");
    flush(&log);
    assert_eq!(taken, read_all(&log, 1).len());
}

/// Payloads above the bound are refused and nothing is stored.
#[test]
fn too_long() {
    let memory = Memory::default();
    let (log, _) = open(
        &memory,
        Config {
            segment_bytes: 256 << 10,
            ..config()
        },
    );
    let bound = 64 << 10;
    assert_eq!(
        Err(LogError::TooLong {
            bytes: bound + 1,
            bound
        }),
        usage(&log, &vec![1; bound + 1])
    );
    usage(&log, &vec![1; bound]).unwrap();
    flush(&log);
    assert_eq!(vec![Some(vec![1; bound])], payloads(&read_all(&log, 1)));
}

/// Who waits for the ledger is told exactly when it has the record.
#[test]
fn committed_waiters() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    usage(&log, b"before").unwrap();
    let position = usage(&log, b"mine").unwrap();
    usage(&log, b"after").unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    log.on_committed(
        position,
        Box::new(move |outcome| sender.send(outcome).unwrap()),
    );
    flush(&log);
    commit(&log, 1);
    assert!(receiver.try_recv().is_err());
    commit(&log, 2);
    assert_eq!(Ok(Ok(())), receiver.try_recv());
}

/// Few syncs of small groups are of blocks that were only reserved before: such a sync waits for the file system's journal,
/// and with it for what others write.
#[test]
fn few_syncs_write_where_nothing_was_written_before() {
    let memory = Memory::default();
    let config = Config {
        segment_bytes: 1 << 20,
        ..config()
    };
    let (log, _) = open(&memory, config);
    let before = memory.first_syncs();
    for _ in 0..600 {
        usage(&log, &[b'z'; 1_000]).unwrap();
        flush(&log);
    }
    assert!(log.stats().groups >= 600);
    assert_eq!(3, memory.first_syncs() - before);
}
