//! Crashes: what was durable is there, what wasn't is cut, nothing is mistaken for something else.

use super::*;
use memory::PAGE;

fn payload(n: usize) -> Vec<u8> {
    format!("record {n} {}", "x".repeat(n % 90)).into_bytes()
}

fn small() -> Config {
    Config {
        segments: 4,
        segment_bytes: 16 << 10,
        ..config()
    }
}

/// A log with some durable records and one group that is written but not synced.
fn with_unsynced(durable: usize, unsynced: usize) -> (Memory, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let memory = Memory::default();
    let (log, _) = open(&memory, small());
    let kept: Vec<_> = (0..durable).map(payload).collect();
    for payload in &kept {
        usage(&log, payload).unwrap();
    }
    flush(&log);
    let lost: Vec<_> = (durable..durable + unsynced).map(payload).collect();
    for payload in &lost {
        usage(&log, payload).unwrap();
    }
    // Two refused syncs: the group stays written in two segments, durable in none.
    memory.faults(memory::Faults {
        syncs: vec![true, true],
        ..memory::Faults::default()
    });
    log.pump();
    std::mem::forget(log);
    (memory, kept, lost)
}

/// One element per sequence number; `None` inside holes.
fn by_number(entries: &[(u64, EntryBody)]) -> Vec<Option<Vec<u8>>> {
    let numbers = |body: &EntryBody| match body {
        EntryBody::Usage(payload) => vec![Some(payload.clone())],
        EntryBody::Hole(hole) => vec![None; (hole.last_seq - hole.first_seq + 1) as usize],
    };
    entries.iter().flat_map(|(_, body)| numbers(body)).collect()
}

/// Checks that what was durable is there, that of the rest nothing changed, and that the log goes on.
pub(super) fn check_prefix(
    memory: &Memory,
    config: Config,
    kept: &[Vec<u8>],
    lost: &[Vec<u8>],
) -> Recovered {
    let (log, recovered) = open(memory, config);
    let entries = read_all(&log, 1);
    let found = by_number(&entries);
    let all: Vec<_> = kept.iter().chain(lost).cloned().map(Some).collect();
    assert!(
        found.len() >= kept.len(),
        "acknowledged records are missing: {} of {}",
        found.len(),
        kept.len()
    );
    assert_eq!(all[..kept.len()], found[..kept.len()]);
    for (expected, actual) in all.iter().zip(&found) {
        assert!(actual.is_none() || expected == actual, "a record changed");
    }
    // And it goes on from there.
    usage(&log, b"after").unwrap();
    flush(&log);
    let again = by_number(&read_all(&log, 1));
    assert_eq!(Some(&Some(b"after".to_vec())), again.last());
    assert_eq!(found.len() + 1, again.len());
    recovered
}

/// A write torn at any byte of the last group costs nothing that was acknowledged, and is no damage.
#[test]
fn torn_at_every_byte() {
    let (memory, kept, lost) = with_unsynced(5, 6);
    let synced = memory.crash(|_, _| false).files();
    let written = memory.copy().files();
    let name = "segment-0001";
    let before = &synced.iter().find(|(file, _)| file == name).unwrap().1;
    let after = &written.iter().find(|(file, _)| file == name).unwrap().1;
    let first = before.iter().zip(after).position(|(a, b)| a != b).unwrap();
    let final_byte = before.iter().zip(after).rposition(|(a, b)| a != b).unwrap();
    for cut in first..=final_byte + 1 {
        let torn = memory.crash(|_, _| false);
        torn.change(name, |bytes| bytes[..cut].copy_from_slice(&after[..cut]));
        let recovered = check_prefix(&torn, small(), &kept, &lost);
        assert!(
            recovered.damage.is_empty(),
            "cut at {cut}: {:?}",
            recovered.damage
        );
        assert!(
            recovered.holes.is_empty(),
            "cut at {cut}: {:?}",
            recovered.holes
        );
    }
}

/// Whatever subset of unsynced pages a crash keeps, acknowledged records are there and none is invented.
#[test]
fn every_subset_of_unsynced_pages() {
    let (memory, kept, lost) = with_unsynced(6, 52);
    let pages: Vec<_> = memory
        .unsynced()
        .into_iter()
        .filter(|(name, _)| name == "segment-0001")
        .collect();
    assert!(
        (9..=12).contains(&pages.len()),
        "{} pages of {PAGE}",
        pages.len()
    );
    for subset in 0..1_u32 << pages.len() {
        let keeps = |name: &str, page: usize| {
            pages
                .iter()
                .position(|known| *known == (name.to_owned(), page))
                .is_some_and(|at| subset >> at & 1 == 1)
        };
        let recovered = check_prefix(&memory.crash(keeps), small(), &kept, &lost);
        assert!(
            recovered
                .holes
                .iter()
                .all(|hole| hole.first_seq > kept.len() as u64 && hole.reason == "LAST_GROUP")
        );
    }
}

/// A kill of the process alone loses nothing that was written, and what is served then is synced first.
#[test]
fn killed_process_keeps_written_groups() {
    let (memory, kept, lost) = with_unsynced(3, 4);
    let killed = memory.kill();
    assert_ne!(Vec::<(String, usize)>::new(), killed.unsynced());
    let (log, _) = open(&killed, small());
    let all: Vec<_> = kept.iter().chain(&lost).cloned().map(Some).collect();
    assert_eq!(all, payloads(&read_all(&log, 1)));
    let (log, _) = open(&killed.crash(|_, _| false), small());
    assert_eq!(
        all,
        payloads(&read_all(&log, 1)),
        "what was served was lost by a later crash"
    );
}

/// A record cut away at one start can't come back at a later one when new records end right before it.
#[test]
fn a_cut_record_never_comes_back() {
    let (memory, kept, _) = with_unsynced(2, 30);
    let pages: Vec<_> = memory
        .unsynced()
        .into_iter()
        .filter(|(name, _)| name == "segment-0001")
        .collect();
    // The first page of the group is lost, the others stand: stale records beyond the cut.
    let torn = memory.crash(|name, page| {
        name == "segment-0001" && page != pages[0].1 && page != pages.last().unwrap().1
    });
    for n in 0..40 {
        let (log, recovered) = open(&torn, small());
        assert_eq!((kept.len() + n + 1) as u64, recovered.next_seq);
        usage(&log, &payload(2)).unwrap();
        flush(&log);
    }
}

/// The same where a commit record, made for whole records before the tear, ends right before a stale record.
#[test]
fn a_cut_record_never_follows_a_commit() {
    let memory = Memory::default();
    let (log, _) = open(&memory, small());
    for payload in [[b'a'; 40], [b'b'; 40], [b'c'; 40]] {
        usage(&log, &payload).unwrap();
    }
    flush(&log);
    drop(log);
    memory.change("segment-0001", |bytes| {
        let record = crate::format::COMMIT_BYTES;
        assert_eq!(record, crate::format::total_bytes(40));
        let torn = 128 + record;
        bytes[torn..torn + record].fill(0);
        bytes[torn + 2 * record..].fill(0);
    });
    for _ in 0..3 {
        let (log, recovered) = open(&memory, small());
        assert_eq!((2, 0), (recovered.next_seq, recovered.holes.len()));
        assert_eq!(vec![Some(vec![b'a'; 40])], payloads(&read_all(&log, 1)));
    }
}

/// Opening again and again raises the incarnation by one, uses up no room and changes no number.
#[test]
fn reopened_many_times() {
    let memory = Memory::default();
    let mut expected = Vec::new();
    for start in 1..=60 {
        let (log, recovered) = open(&memory, config());
        assert_eq!(start, recovered.incarnation);
        assert_eq!(start, recovered.next_seq);
        assert_eq!(start == 1, recovered.created);
        assert!(recovered.damage.is_empty());
        let record = payload(start as usize);
        usage(&log, &record).unwrap();
        expected.push(Some(record));
        log.close().unwrap();
    }
    let (log, _) = open(&memory, config());
    assert_eq!(expected, payloads(&read_all(&log, 1)));
    assert!(log.stats().used_bytes < u64::from(config().segment_bytes));
}

/// A second opener of the same folder is refused while the first lives, and let in afterwards.
#[test]
fn one_process_at_a_time() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    assert_eq!(
        Some(LogError::Locked("/log".into())),
        try_open(&memory, config()).err()
    );
    drop(log);
    open(&memory, config());
}

/// A failed sync is not retried on that file: the group is acknowledged only from the next segment, and survives.
#[test]
fn failed_sync_moves_on() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    usage(&log, b"one").unwrap();
    flush(&log);
    memory.faults(memory::Faults {
        syncs: vec![true],
        ..memory::Faults::default()
    });
    let position = usage(&log, b"two").unwrap();
    flush(&log);
    assert_eq!(Ok(()), log.wait_durable(position));
    usage(&log, b"three").unwrap();
    flush(&log);
    assert_eq!(1, log.stats().io_errors);
    assert!(
        log.stats().used_bytes > u64::from(config().segment_bytes),
        "it stayed in the same segment"
    );
    let expected: Vec<_> = [b"one".as_slice(), b"two", b"three"]
        .iter()
        .map(|p| Some(p.to_vec()))
        .collect();
    assert_eq!(expected, payloads(&read_all(&log, 1)));
    for keep in [false, true] {
        let (log, recovered) = open(&memory.crash(|_, _| keep), config());
        assert_eq!(expected, payloads(&read_all(&log, 1)));
        assert!(recovered.damage.is_empty(), "{:?}", recovered.damage);
    }
}

/// After two failed syncs in a row nothing is acknowledged or taken any more, but what is durable still ships.
#[test]
fn second_failure_stops_recording_not_shipping() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    usage(&log, b"one").unwrap();
    flush(&log);
    memory.faults(memory::Faults {
        syncs: vec![true, true],
        ..memory::Faults::default()
    });
    let position = usage(&log, b"two").unwrap();
    log.pump();
    assert!(matches!(log.wait_durable(position), Err(LogError::Io(_))));
    assert!(matches!(usage(&log, b"three"), Err(LogError::Io(_))));
    let (sender, receiver) = std::sync::mpsc::channel();
    log.on_committed(
        position,
        Box::new(move |outcome| sender.send(outcome).unwrap()),
    );
    assert!(matches!(receiver.try_recv(), Ok(Err(LogError::Io(_)))));
    assert_eq!(vec![Some(b"one".to_vec())], payloads(&read_all(&log, 1)));
    commit(&log, 1);
    assert_eq!(1, log.stats().committed_seq);
}

/// A write that the file system refuses counts like a failed sync.
#[test]
fn refused_write_is_an_io_error() {
    for kind in [
        std::io::ErrorKind::StorageFull,
        std::io::ErrorKind::ReadOnlyFilesystem,
    ] {
        let memory = Memory::default();
        let (log, _) = open(&memory, config());
        memory.faults(memory::Faults {
            writes: Some(kind),
            ..memory::Faults::default()
        });
        let position = usage(&log, b"one").unwrap();
        log.pump();
        assert!(matches!(log.wait_durable(position), Err(LogError::Io(_))));
    }
}

/// A crash anywhere around a watermark write keeps everything above what was committed, and what is open.
#[test]
fn crash_around_the_watermark() {
    for failing in [false, true] {
        let memory = Memory::default();
        let (log, _) = open(&memory, config());
        reserve(&log, [9; 16], b"held").unwrap();
        let all: Vec<_> = (0..3_000).map(payload).collect();
        for (n, payload) in all.iter().enumerate() {
            usage(&log, payload).unwrap();
            flush(&log);
            memory.faults(memory::Faults {
                watermark: failing && n > 1_500,
                ..memory::Faults::default()
            });
            if n % 100 == 99 {
                commit(&log, n as u64 - 20);
            }
        }
        for keep in [false, true] {
            let (log, recovered) = open(&memory.crash(|_, _| keep), config());
            assert_eq!(
                vec![crate::Kept {
                    key: [9; 16],
                    payload: b"held".to_vec()
                }],
                recovered.open
            );
            assert_eq!(3_001, recovered.next_seq);
            let from = recovered.committed_seq + 1;
            let expected: Vec<_> = all[from as usize - 1..].iter().cloned().map(Some).collect();
            assert_eq!(expected, payloads(&read_all(&log, from)));
            assert_eq!(chain_of(&[1; 16], &all), log.h_at(3_000).unwrap());
        }
    }
}
