//! Starts: what must be known to answer is read at once, the rest is checked before any of it ships.

use std::collections::BTreeMap;

use super::*;
use crate::{Kept, mutant, mutant::Mutant};

const SEGMENTS: u32 = 40;
const SEGMENT_BYTES: u32 = 8_192;

fn small() -> Config {
    Config {
        segments: SEGMENTS,
        segment_bytes: SEGMENT_BYTES,
        group_records: 8,
        group_bytes: 1_024,
        ..config()
    }
}

fn record(n: u64) -> Vec<u8> {
    format!("record {n} {}", "s".repeat(n as usize % 60)).into_bytes()
}

fn key(n: u64) -> Key {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&n.to_le_bytes());
    key
}

/// Appends so many records, from a number on, with what comes and goes: every fifth opens a reservation of which one in
/// nine stays; marks are written over and removed.
fn fill(log: &UsageLog, numbers: std::ops::Range<u64>) {
    for n in numbers {
        usage(log, &record(n)).unwrap();
        if n % 5 == 0 {
            reserve(log, key(n), format!("held {n}").as_bytes()).unwrap();
        }
        if n % 5 == 3 && n > 40 && n % 9 != 0 {
            log.append(Append::Expire { key: key(n - 38) }).unwrap();
        }
        if n % 7 == 0 {
            let payload = format!("mark {n}");
            let payload = if n % 2 == 0 { payload.as_bytes() } else { b"" };
            log.append(Append::Mark {
                key: key(n % 21),
                payload,
            })
            .unwrap();
        }
        if n % 6 == 5 {
            flush(log);
        }
    }
    flush(log);
}

/// A log of about 20 ended segments of which the ledger has nothing.
fn filled() -> (Memory, u64) {
    let memory = Memory::default();
    let (log, _) = open(&memory, small());
    fill(&log, 1..1_500);
    log.close().unwrap();
    (memory, 1_499)
}

fn sorted(kept: &[Kept]) -> BTreeMap<Key, Vec<u8>> {
    let pairs = kept.iter().map(|kept| (kept.key, kept.payload.clone()));
    pairs.collect()
}

/// What a start tells, without its incarnation.
fn told(recovered: &Recovered) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        recovered.next_seq,
        recovered.committed_seq,
        sorted(&recovered.open),
        sorted(&recovered.marks),
        recovered.torn_bytes,
    )
}

/// The same disk, without what makes a start short.
fn read_whole(memory: &Memory) -> Memory {
    let whole = memory.copy();
    whole.remove("live");
    whole
}

/// Appends what a test asks for, whatever the scrub does.
fn scrub(log: &UsageLog) {
    for _ in 0..=SEGMENTS {
        log.pump();
    }
    assert_eq!(0, log.stats().unchecked_bytes);
}

/// A start reads headers, the last snapshot, the segments since and what lives on, however long the log is; it tells
/// exactly what a whole scan tells.
#[test]
fn a_start_reads_the_last_segments_only() {
    let (memory, last) = filled();
    let (whole, expected) = open(&read_whole(&memory), small());
    let before = memory.read_bytes();
    let (log, recovered) = open(&memory, small());
    let read = memory.read_bytes() - before;
    let kept: u64 = recovered.open.len() as u64 + recovered.marks.len() as u64;
    // The newest segment, its successor's file, its own last group again; headers twice; records that live on.
    let bound = 3 * u64::from(SEGMENT_BYTES) + 3 * 128 * u64::from(SEGMENTS) + 200 * kept;
    assert!(read < bound, "{read} bytes read, {bound} expected at most");
    assert!(log.stats().unchecked_bytes > 15 * u64::from(SEGMENT_BYTES));
    assert_eq!(told(&expected), told(&recovered));
    assert!(recovered.open.len() > 15 && !recovered.marks.is_empty());
    assert_eq!(last + 1, recovered.next_seq);
    assert_eq!(payloads(&read_all(&whole, 1)), payloads(&read_all(&log, 1)));
    assert_eq!(whole.h_at(last), log.h_at(last));
    assert_eq!(Vec::<crate::Damage>::new(), log.damage());
}

/// Nothing of what a start has not read can be read before all of it is checked; what is appended meanwhile is durable
/// at once and follows in order.
#[test]
fn nothing_ships_before_all_is_checked() {
    let (memory, last) = filled();
    let (log, _) = open(&memory, small());
    while log.stats().unchecked_bytes > 0 {
        for seq in [1, last / 2] {
            let read = log.read_from(seq, 10, 10_000);
            assert_eq!(Err(LogError::Scanning { seq }), read);
        }
        let position = usage(&log, b"meanwhile").unwrap();
        log.pump();
        assert_eq!(Ok(()), log.wait_durable(position));
    }
    let found = payloads(&read_all(&log, 1));
    let expected: Vec<_> = (1..=last).map(|n| Some(record(n))).collect();
    assert_eq!(expected, found[..last as usize]);
    assert!(
        found[last as usize..]
            .iter()
            .all(|payload| payload.as_deref() == Some(b"meanwhile"))
    );
    assert!(found.len() as u64 > last + 10);
}

/// A segment with damage that a start has not read: the hit record alone is lost and named, before anything ships; h is
/// that of a whole scan, for what was appended before the damage was found as well, and at later starts.
#[test]
fn damage_is_found_before_it_ships() {
    let (memory, last) = filled();
    for hit in [1, 100, 350, 500] {
        let damaged = memory.copy();
        spoil(&damaged, hit);
        check_damaged(&damaged, hit, last);
    }
}

fn spoil(memory: &Memory, hit: u64) {
    let bytes = record(hit);
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|found| found == part);
    let mut files = memory.files().into_iter();
    let (name, at) = files
        .find_map(|(name, content)| Some((name, has(&content, &bytes)?)))
        .unwrap();
    memory.change(&name, |content| content[at] ^= 1);
}

fn check_damaged(memory: &Memory, hit: u64, last: u64) {
    let (whole, _) = open(&read_whole(memory), small());
    let (log, recovered) = open(memory, small());
    assert!(recovered.damage.is_empty(), "it was read at once");
    usage(&log, b"meanwhile").unwrap();
    log.pump();
    usage(&whole, b"meanwhile").unwrap();
    flush(&whole);
    scrub(&log);
    let found = payloads(&read_all(&log, 1));
    let missing: Vec<_> = (1..)
        .zip(&found)
        .filter(|(_, body)| body.is_none())
        .collect();
    assert_eq!(vec![(hit, &None)], missing);
    assert_eq!(1, log.holes().len());
    assert_eq!(
        (hit, hit),
        (log.holes()[0].first_seq, log.holes()[0].last_seq)
    );
    assert_eq!((1, 1), (log.damage().len() as u64, log.stats().damaged));
    assert_eq!(payloads(&read_all(&whole, 1)), found);
    fill(&log, last + 2..last + 40);
    fill(&whole, last + 2..last + 40);
    let h = log.h_at(last + 30).unwrap();
    assert_eq!(whole.h_at(last + 30), Ok(h));
    log.close().unwrap();
    for memory in [read_whole(memory), memory.copy()] {
        let (log, _) = open(&memory, small());
        assert_eq!(found, payloads(&read_all(&log, 1))[..found.len()]);
        assert_eq!(Ok(h), log.h_at(last + 30));
    }
}

/// Whatever happens to the snapshots, flipped bits and writes torn at any byte included, a start tells the same.
#[test]
fn a_bad_snapshot_costs_time_only() {
    let (memory, _) = filled();
    let expected = told(&open(&memory.copy(), small()).1);
    let file = |memory: &Memory| -> Vec<u8> {
        let files = memory.files().into_iter();
        files
            .filter(|(name, _)| name == "live")
            .map(|(_, bytes)| bytes)
            .next()
            .unwrap()
    };
    let used = file(&memory);
    let check = |change: &dyn Fn(&mut Vec<u8>), place: &str| {
        let changed = memory.copy();
        changed.change("live", |bytes| change(bytes));
        let (_, recovered) = open(&changed, small());
        assert_eq!(expected, told(&recovered), "{place}");
        assert!(
            recovered.damage.is_empty(),
            "{place}: {:?}",
            recovered.damage
        );
    };
    for bit in (0..used.len() * 8).step_by(149) {
        check(
            &|bytes| bytes[bit / 8] ^= 1 << (bit % 8),
            &format!("bit {bit}"),
        );
    }
    let (half, room) = (used.len() / 2, used.len());
    // A snapshot that was being written over an older one when the process died, or over zeros.
    for cut in (0..half).step_by(97) {
        for start in [0, half] {
            check(
                &|bytes| bytes[start + cut..start + half].fill(0),
                &format!("cut {start}+{cut}"),
            );
            check(
                &|bytes| {
                    let other: Vec<u8> = used[(half - start) + cut..room - start].to_vec();
                    bytes[start + cut..start + half].copy_from_slice(&other);
                },
                &format!("mixed {start}+{cut}"),
            );
        }
    }
}

/// A log of a version without snapshots is read whole, loses nothing, and has snapshots from then on.
#[test]
fn an_older_log_is_read_whole_and_then_no_more() {
    let (memory, last) = filled();
    let older = read_whole(&memory);
    let (log, recovered) = open(&older, small());
    assert_eq!(0, log.stats().unchecked_bytes);
    assert_eq!(told(&open(&memory, small()).1), told(&recovered));
    fill(&log, last + 1..last + 120);
    log.close().unwrap();
    let (log, recovered) = open(&older, small());
    assert!(log.stats().unchecked_bytes > 0, "it was read whole again");
    assert_eq!(
        told(&open(&read_whole(&older), small()).1),
        told(&recovered)
    );
}

/// Where no snapshot can be written, or what lives on doesn't fit in one, records come in as ever; a start reads more.
#[test]
fn a_log_without_snapshots_records_as_ever() {
    for many in [false, true] {
        let memory = Memory::default();
        let (log, _) = open(&memory, small());
        memory.faults(memory::Faults {
            live: !many,
            ..memory::Faults::default()
        });
        for n in 0..if many { 70 } else { 0 } {
            reserve(&log, key(100_000 + n), b"stays").unwrap();
        }
        fill(&log, 1..300);
        assert_eq!(many, log.stats().io_errors == 0);
        log.close().unwrap();
        memory.faults(memory::Faults::default());
        let (log, recovered) = open(&memory, small());
        assert_eq!(0, log.stats().unchecked_bytes);
        assert_eq!(
            told(&open(&read_whole(&memory), small()).1),
            told(&recovered)
        );
        assert!(!many || recovered.open.len() >= 70);
    }
}

/// The ledger may take, and the log write over, segments that the scrub has not reached: what is left is right, and no
/// damage is seen where there is none.
#[test]
fn segments_are_reused_while_the_scrub_runs() {
    let (memory, last) = filled();
    let h = chain_of(&[1; 16], &(1..=last).map(record).collect::<Vec<_>>());
    let (log, recovered) = open(&memory, small());
    log.pump();
    log.set_committed(Committed {
        seq: last,
        h,
        safe_seq: last,
        now_us: 0,
    });
    log.pump();
    for n in last + 1..last + 1_500 {
        usage(&log, &record(n)).unwrap();
        if n % 6 == 5 {
            flush(&log);
        }
        if n % 120 == 0 && log.stats().unchecked_bytes == 0 {
            flush(&log);
            commit(&log, n);
        }
    }
    flush(&log);
    assert_eq!(0, log.stats().unchecked_bytes);
    let from = log.stats().committed_seq + 1;
    let expected: Vec<_> = (from..last + 1_500).map(|n| Some(record(n))).collect();
    assert_eq!(expected, payloads(&read_all(&log, from)));
    assert_eq!((Vec::new(), 0), (log.damage(), log.stats().io_errors));
    let kept = sorted(&recovered.open);
    log.close().unwrap();
    assert_eq!(kept, sorted(&open(&memory, small()).1.open));
}

/// Ends a segment twice, as where the next one's header was lost in between: the first time while a reservation is
/// open, the second time after it has ended, without a snapshot. Tells what the next start says is open.
fn open_after_two_ends() -> usize {
    let memory = Memory::default();
    let (log, _) = open(&memory, small());
    reserve(&log, key(1), b"held").unwrap();
    for n in 1..60 {
        usage(&log, &record(n)).unwrap();
        flush(&log);
    }
    let before = log.stats().used_bytes / u64::from(SEGMENT_BYTES);
    let mut at_end = memory.kill();
    while log.stats().used_bytes / u64::from(SEGMENT_BYTES) == before {
        at_end = memory.kill();
        usage(&log, &[b'l'; 900]).unwrap();
        flush(&log);
    }
    drop(log);
    // The segment's last state, with the snapshot of its end but without the next one.
    let live = memory
        .files()
        .into_iter()
        .find(|(name, _)| name == "live")
        .unwrap()
        .1;
    at_end.change("live", |bytes| bytes.copy_from_slice(&live));
    let (log, recovered) = open(&at_end, small());
    assert_eq!(1, recovered.open.len());
    at_end.faults(memory::Faults {
        live: true,
        ..memory::Faults::default()
    });
    log.append(Append::Expire { key: key(1) }).unwrap();
    flush(&log);
    for n in 0..20 {
        usage(&log, &record(n)).unwrap();
        flush(&log);
    }
    assert!(log.stats().used_bytes / u64::from(SEGMENT_BYTES) > before);
    log.close().unwrap();
    open(&at_end, small()).1.open.len()
}

/// A snapshot of an end that a segment no longer has is not taken for one of it.
#[test]
fn an_end_that_was_moved_has_no_snapshot() {
    mutant::set(None);
    assert_eq!(0, open_after_two_ends());
    mutant::set(Some(Mutant::SnapshotOfAnotherEnd));
    let open = open_after_two_ends();
    mutant::set(None);
    assert_eq!(1, open, "the broken rule is not found");
}

/// Headers alone would ship h of before the damage: the first batch from behind it differs from a whole scan's.
#[test]
fn trusting_headers_is_found() {
    let (memory, _) = filled();
    spoil(&memory, 100);
    let (whole, _) = open(&read_whole(&memory), small());
    let expected = whole.read_from(400, 5, 1_000).unwrap().h_before;
    let first_h = || {
        let (log, _) = open(&memory.copy(), small());
        let read = log.read_from(400, 5, 1_000);
        read.map(|batch| batch.h_before)
    };
    mutant::set(None);
    assert_eq!(Err(LogError::Scanning { seq: 400 }), first_h());
    mutant::set(Some(Mutant::HeadersAreTrusted));
    let shipped = first_h();
    mutant::set(None);
    assert!(
        shipped.is_ok_and(|h| h != expected),
        "the broken rule is not found"
    );
}
