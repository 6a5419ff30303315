//! The same damage on larger logs, at random in an ordinary run and without gaps under `LONG=1`.

use super::*;
use memory::PAGE;

fn is_long() -> bool {
    std::env::var("LONG").is_ok_and(|text| text == "1")
}

fn shape(segment_bytes: u32) -> Config {
    Config {
        segments: 4,
        segment_bytes,
        ..config()
    }
}

/// A log whose four segments are nearly full of acknowledged records.
fn filled(segment_bytes: u32) -> (Memory, Vec<Vec<u8>>) {
    let memory = Memory::default();
    let (log, _) = open(&memory, shape(segment_bytes));
    let mut records = Vec::new();
    while log.stats().used_bytes < u64::from(segment_bytes) * 2 {
        let payload = format!(
            "record {} {}",
            records.len(),
            "w".repeat(records.len() % 600)
        );
        usage(&log, payload.as_bytes()).unwrap();
        records.push(payload.into_bytes());
        if records.len() % 24 == 0 {
            flush(&log);
        }
    }
    flush(&log);
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

/// Flips one bit of one file and checks that at most one record is lost, and named, and that nothing else changed.
fn flip(memory: &Memory, segment_bytes: u32, records: &[Vec<u8>], name: &str, bit: usize) {
    let flipped = memory.copy();
    flipped.change(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
    let (log, _) = open(&flipped, shape(segment_bytes));
    let place = format!("{name} bit {bit}");
    damage::check_loss(records, &read_all(&log, 1), &log.holes(), &place);
}

fn segments(memory: &Memory) -> Vec<(String, usize)> {
    let files = memory.files().into_iter();
    files
        .filter(|(name, _)| name.starts_with("segment"))
        .map(|(name, bytes)| (name, bytes.len() * 8))
        .collect()
}

/// Every bit of 64 KiB of log (each 4,999th without `LONG=1`): at most the hit record is lost, and named.
#[test]
fn flips_in_64_kib() {
    let (memory, records) = filled(16 << 10);
    let stride = if is_long() { 1 } else { 4_999 };
    for (name, bits) in segments(&memory) {
        for bit in (0..bits).step_by(stride) {
            flip(&memory, 16 << 10, &records, &name, bit);
        }
    }
}

/// 100,000 random bits of 1 MiB of log (12 without `LONG=1`), likewise.
#[test]
fn flips_in_a_mebibyte() {
    let (memory, records) = filled(256 << 10);
    let files = segments(&memory);
    let mut state = 7;
    for _ in 0..if is_long() { 100_000 } else { 12 } {
        let (name, bits) = &files[next(&mut state) % files.len()];
        flip(&memory, 256 << 10, &records, name, next(&mut state) % bits);
    }
}

/// 10,000 random subsets of more than 12 unsynced pages (60 without `LONG=1`): acknowledged records are all there.
#[test]
fn random_subsets_of_many_pages() {
    let memory = Memory::default();
    let (log, _) = open(&memory, shape(64 << 10));
    let kept: Vec<_> = (0..40).map(|n| format!("kept {n}").into_bytes()).collect();
    for payload in &kept {
        usage(&log, payload).unwrap();
    }
    flush(&log);
    for n in 0..60 {
        usage(&log, format!("lost {n} {}", "v".repeat(400)).as_bytes()).unwrap();
    }
    memory.faults(memory::Faults {
        syncs: vec![true, true],
        ..memory::Faults::default()
    });
    log.pump();
    std::mem::forget(log);
    let pages = memory.unsynced().len();
    assert!(pages > 12, "{pages} pages of {PAGE}");
    let mut state = 11;
    for _ in 0..if is_long() { 10_000 } else { 60 } {
        let crashed = memory.crash(|_, _| next(&mut state) % 2 == 0);
        let (log, _) = open(&crashed, shape(64 << 10));
        let found = payloads(&read_all(&log, 1));
        let expected: Vec<_> = kept.iter().cloned().map(Some).collect();
        assert_eq!(expected, found[..kept.len()]);
    }
}
