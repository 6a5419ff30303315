//! The same damage on larger logs, at random in an ordinary run and without gaps under `LONG=1`.

use std::time::{Duration, Instant};

use super::*;
use memory::PAGE;

/// A whole number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Tries cases: `few` of them, evenly spread, in an ordinary run; under `LONG=1` every one, from `FLIPS_FROM` on and for
/// `FLIPS_SECONDS` at most, and says which they were.
fn each(name: &str, cases: usize, few: usize, mut one: impl FnMut(usize)) {
    if setting("LONG") != Some(1) {
        return (0..cases).step_by(cases.div_ceil(few)).for_each(one);
    }
    let from = setting("FLIPS_FROM").map_or(0, |case| usize::try_from(case).unwrap());
    let longest = setting("FLIPS_SECONDS").map_or(Duration::MAX, Duration::from_secs);
    let began = Instant::now();
    let mut case = from;
    while case < cases && began.elapsed() < longest {
        one(case);
        case += 1;
    }
    let took = began.elapsed().as_secs();
    println!("{name}: cases {from} to {case} of {cases} in {took} s, all as they must be");
    if case < cases {
        println!("{name}: NOT COVERED: {case} to {cases}; FLIPS_FROM={case} goes on");
    }
}

fn shape(segment_bytes: u32) -> Config {
    Config {
        segments: 4,
        segment_bytes,
        ..config()
    }
}

/// A log that is full of acknowledged records: three segments of four, the last one is for ends of reservations.
fn filled(segment_bytes: u32) -> (Memory, Vec<Vec<u8>>) {
    let memory = Memory::default();
    let (log, _) = open(&memory, shape(segment_bytes));
    let mut records = Vec::new();
    loop {
        let payload = format!(
            "record {} {}",
            records.len(),
            "w".repeat(records.len() % 600)
        );
        match usage(&log, payload.as_bytes()) {
            Ok(_) => records.push(payload.into_bytes()),
            Err(LogError::Full { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        if records.len() % 24 == 0 {
            flush(&log);
        }
    }
    flush(&log);
    let stats = log.stats();
    assert!(
        stats.used_bytes * 100 >= stats.capacity_bytes * 94,
        "{stats:?}"
    );
    assert!(
        stats.used_bytes > u64::from(segment_bytes) * 2,
        "the third segment holds something: {stats:?}"
    );
    log.close().unwrap();
    (memory, records)
}

/// The next of a fixed sequence of numbers that look random.
fn next(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 20) as usize
}

/// Where the sequence begins for a case: the same whatever was tried before it.
fn seed(case: usize) -> u64 {
    let mut state = case as u64;
    next(&mut state);
    state ^ 0x9e37_79b9_7f4a_7c15
}

/// Flips one bit of one file and checks that it is noticed, that at most one record is lost, and named, and that nothing
/// else changed.
fn flip(memory: &Memory, segment_bytes: u32, records: &[Vec<u8>], name: &str, bit: usize) {
    let flipped = memory.copy();
    flipped.change(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
    let (log, recovered) = open(&flipped, shape(segment_bytes));
    let place = format!("{name} bit {bit}");
    damage::check_loss(records, &read_all(&log, 1), &log.holes(), &place);
    // Behind the last byte that was written there is nothing to notice.
    let files = memory.files();
    let bytes = &files.iter().find(|(file, _)| file == name).unwrap().1;
    let is_stored = bytes[bit / 8..].iter().any(|byte| *byte != 0);
    let noticed = !log.damage().is_empty() || recovered.torn_bytes > 0;
    assert!(noticed || !is_stored, "{place} was not noticed");
}

fn segments(memory: &Memory) -> Vec<(String, usize)> {
    let files = memory.files().into_iter();
    files
        .filter(|(name, _)| name.starts_with("segment"))
        .map(|(name, bytes)| (name, bytes.len() * 8))
        .collect()
}

/// Every bit of 64 KiB of log (112 of them without `LONG=1`): noticed, at most the hit record is lost, and named.
#[test]
fn flips_in_64_kib() {
    let (memory, records) = filled(16 << 10);
    let files = segments(&memory);
    let bits = files.iter().map(|(_, bits)| bits).sum();
    each("flips_in_64_kib", bits, 112, |case| {
        let mut bit = case;
        for (name, bits) in &files {
            if bit < *bits {
                return flip(&memory, 16 << 10, &records, name, bit);
            }
            bit -= bits;
        }
    });
}

/// 100,000 random bits of 1 MiB of log (12 without `LONG=1`), likewise.
#[test]
fn flips_in_a_mebibyte() {
    let (memory, records) = filled(256 << 10);
    let files = segments(&memory);
    each("flips_in_a_mebibyte", 100_000, 12, |case| {
        let mut state = seed(case);
        let (name, bits) = &files[next(&mut state) % files.len()];
        flip(&memory, 256 << 10, &records, name, next(&mut state) % bits);
    });
}

/// 10,000 random subsets of more than 12 unsynced pages (60 without `LONG=1`): acknowledged records are all there, and
/// of the others each is as it was written or is named as lost.
#[test]
fn random_subsets_of_many_pages() {
    let memory = Memory::default();
    let (log, _) = open(&memory, shape(64 << 10));
    let kept: Vec<_> = (0..40).map(|n| format!("kept {n}").into_bytes()).collect();
    for payload in &kept {
        usage(&log, payload).unwrap();
    }
    flush(&log);
    let lost: Vec<_> = (0..60)
        .map(|n| format!("lost {n} {}", "v".repeat(400)).into_bytes())
        .collect();
    for payload in &lost {
        usage(&log, payload).unwrap();
    }
    memory.faults(memory::Faults {
        syncs: vec![true, true],
        ..memory::Faults::default()
    });
    log.pump();
    std::mem::forget(log);
    let pages = memory.unsynced().len();
    assert!(pages > 12, "{pages} pages of {PAGE}");
    each("random_subsets_of_many_pages", 10_000, 60, |case| {
        let mut state = seed(case);
        let crashed = memory.crash(|_, _| next(&mut state) % 2 == 0);
        crash::check_prefix(&crashed, shape(64 << 10), &kept, &lost);
    });
}
