//! Damage: every flipped bit is noticed, at most the hit record is lost, and it is named.

use super::*;

fn records(n: usize) -> Vec<Vec<u8>> {
    (0..n)
        .map(|n| format!("record {n} {}", "y".repeat(n % 23)).into_bytes())
        .collect()
}

fn sample() -> (Memory, Vec<Vec<u8>>) {
    let memory = Memory::default();
    let (log, _) = open(&memory, small());
    let records = records(9);
    reserve(&log, [3; 16], b"reservation").unwrap();
    for group in records.chunks(4) {
        for payload in group {
            usage(&log, payload).unwrap();
        }
        flush(&log);
    }
    log.close().unwrap();
    (memory, records)
}

fn small() -> Config {
    Config {
        segments: 4,
        segment_bytes: 4_096,
        ..config()
    }
}

/// Flips of every bit of the used segment, the header, both slots and the description: all detected, at most one
/// record lost, exactly that one named, everything else readable, and the log goes on.
#[test]
fn every_bit_flip() {
    let (memory, records) = sample();
    for (name, bytes) in memory.files() {
        if name == "lock" || (name.starts_with("segment") && name != "segment-0001") {
            continue;
        }
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 8;
        for bit in 0..used.min(bytes.len()) * 8 {
            // Where nothing is stored, or one checksum covers everything, a sample is enough.
            let checked_as_a_whole = name == "watermark" && bit % 5 != 0;
            if checked_as_a_whole || (!is_stored(&name, bit / 8) && bit % 509 != 0) {
                continue;
            }
            let flipped = memory.copy();
            flipped.change(&name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let (log, recovered) = open(&flipped, small());
            let place = format!("{name} bit {bit}");
            let found = read_all(&log, 1);
            check_loss(&records, &found, &log.holes(), &place);
            let stored =
                bytes[bit / 8..].iter().any(|byte| *byte != 0) && is_stored(&name, bit / 8);
            let noticed = !recovered.damage.is_empty() || recovered.torn_bytes > 0;
            assert!(noticed || !stored, "{place} was not noticed");
            if bit % 13 == 0 {
                usage(&log, b"after").unwrap();
                flush(&log);
                assert_eq!(found.len() + 1, read_all(&log, 1).len(), "{place}");
            }
        }
    }
}

fn is_stored(name: &str, at: usize) -> bool {
    match name {
        "watermark" => at % 4_096 < 256,
        _ => true,
    }
}

pub(super) fn check_loss(
    records: &[Vec<u8>],
    found: &[(u64, EntryBody)],
    holes: &[crate::Hole],
    place: &str,
) {
    assert_eq!(records.len(), found.len(), "{place}: {holes:?}");
    let lost: Vec<u64> = (1..)
        .zip(records.iter().zip(found))
        .filter(|(_, (expected, (_, body)))| Some(*expected) != payload(body))
        .map(|(n, _)| n)
        .collect();
    assert!(lost.len() <= 1, "{place} lost {lost:?}");
    let named: Vec<u64> = holes
        .iter()
        .flat_map(|hole| hole.first_seq..=hole.last_seq)
        .collect();
    assert_eq!(lost, named, "{place}");
}

/// The same damage gives the same holes and the same h at every start, also after more was appended.
#[test]
fn damage_is_told_the_same_way_again() {
    let (memory, _) = sample();
    memory.change("segment-0001", |bytes| {
        let at = bytes
            .windows(9)
            .position(|window| window == b"record 6 ")
            .unwrap();
        bytes[at] ^= 4;
    });
    let mut expected = None;
    for n in 0..5 {
        let (log, recovered) = open(&memory, small());
        let h = log.h_at(9).unwrap();
        let hole = recovered
            .holes
            .first()
            .map(|hole| (hole.first_seq, hole.last_seq));
        assert!(hole.is_some());
        assert_eq!((hole, h), *expected.get_or_insert((hole, h)));
        usage(&log, format!("more {n}").as_bytes()).unwrap();
        log.close().unwrap();
    }
}

/// A payload that can't be decoded becomes a hole of its own number, and says so.
#[test]
fn undecodable_payload_is_a_hole() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    for payload in [b"a".as_slice(), b"?b", b"c"] {
        usage(&log, payload).unwrap();
    }
    flush(&log);
    log.close().unwrap();
    let (log, recovered) = open(&memory, config());
    let hole = crate::Hole {
        first_seq: 2,
        last_seq: 2,
        reason: "CONTENT".into(),
    };
    assert_eq!(vec![hole], recovered.holes);
    assert_eq!(
        vec![Some(b"a".to_vec()), None, Some(b"c".to_vec())],
        payloads(&read_all(&log, 1))
    );
}

/// Bytes that go bad while the log is open are noticed by the reader; the next read has a hole, then the rest.
#[test]
fn rot_while_open() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let all = records(40);
    for payload in &all {
        usage(&log, payload).unwrap();
    }
    flush(&log);
    memory.change("segment-0001", |bytes| {
        let at = bytes
            .windows(9)
            .position(|window| window == b"record 7 ")
            .unwrap();
        bytes[at] = b'R';
    });
    assert_eq!(
        Err(LogError::Scanning { seq: 8 }),
        log.read_from(8, 10, 10_000)
    );
    log.pump();
    let found = payloads(&read_all(&log, 1));
    assert_eq!(40, found.len());
    assert_eq!(
        vec![7],
        (0..40).filter(|n| found[*n].is_none()).collect::<Vec<_>>()
    );
    usage(&log, b"after").unwrap();
    flush(&log);
    let h = log.h_at(41).unwrap();
    log.close().unwrap();
    let (log, recovered) = open(&memory, config());
    assert_eq!(h, log.h_at(41).unwrap());
    assert_eq!(1, recovered.holes.len());
}

/// A whole segment overwritten with garbage loses its own records and no others.
#[test]
fn a_lost_segment() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let all = records(3_000);
    for payload in &all {
        usage(&log, payload).unwrap();
        if log.stats().pending_bytes > 4_000 {
            flush(&log);
        }
    }
    flush(&log);
    log.close().unwrap();
    memory.change("segment-0002", |bytes| bytes.fill(0x5a));
    let (log, recovered) = open(&memory, config());
    let found = read_all(&log, 1);
    assert_eq!(1, recovered.holes.len());
    let hole = &recovered.holes[0];
    for (seq, body) in &found {
        match body {
            EntryBody::Usage(payload) => assert_eq!(&all[*seq as usize - 1], payload),
            EntryBody::Hole(_) => assert_eq!(hole.first_seq, *seq),
        }
    }
    let kept = found.len() as u64 - 1 + hole.last_seq - hole.first_seq + 1;
    assert_eq!(3_000, kept);
}

/// Bytes of an earlier lap of the ring never validate under another segment number, whatever was in them.
#[test]
fn recycled_bytes_never_validate() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    for n in 0..1_600_u64 {
        usage(&log, &[b'z'; 600]).unwrap();
        if n % 20 == 0 {
            flush(&log);
            commit(&log, n + 1);
        }
    }
    log.close().unwrap();
    let identity = crate::format::Identity {
        producer: [1; 16],
        salt: [1 ^ 0xa5; 16],
    };
    let mut valid = 0;
    for (slot, (_, image)) in memory
        .files()
        .iter()
        .filter(|(name, _)| name.starts_with("segment"))
        .enumerate()
    {
        let own = crate::format::SegmentHeader::decode(image).unwrap().number;
        assert_eq!(slot as u64, own % 8);
        assert!(own > 8, "the ring went round");
        for number in 1..40 {
            let seed = identity.seed(number);
            let count = (128..image.len() - 32)
                .step_by(8)
                .filter(|at| crate::format::parse(&image[*at..], seed).is_some())
                .count();
            if number == own {
                valid += count;
            } else if number + 8 != own {
                assert_eq!(0, count, "segment {own} read as {number}");
            }
        }
    }
    assert!(valid > 500, "{valid}");
}

/// A payload that holds a whole valid-looking record of the log is not mistaken for one, even when its own record is
/// damaged: its author doesn't know the salt.
#[test]
fn forged_record_in_a_payload() {
    let memory = Memory::default();
    let (log, _) = open(&memory, config());
    let guess = crate::format::Identity {
        producer: [1; 16],
        salt: [0; 16],
    };
    let mut forged = vec![b'x'; 0];
    crate::format::push_record(&mut forged, crate::format::Kind::Usage, None, b"forged");
    crate::format::seal_record(&mut forged, guess.seed(1), 2, 1);
    usage(&log, b"first").unwrap();
    usage(&log, &forged).unwrap();
    usage(&log, b"third").unwrap();
    flush(&log);
    log.close().unwrap();
    memory.change("segment-0001", |bytes| {
        let at = bytes
            .windows(forged.len())
            .position(|window| window == forged)
            .unwrap();
        bytes[at - 32] ^= 1;
    });
    let (log, _) = open(&memory, config());
    assert_eq!(
        vec![Some(b"first".to_vec()), None, Some(b"third".to_vec())],
        payloads(&read_all(&log, 1))
    );
}
