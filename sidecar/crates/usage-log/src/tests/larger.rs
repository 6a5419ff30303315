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

/// The content hash of the tests, computed once for each of these records: any other payload, and each of these with a
/// bit flipped, is hashed.
fn content_of(records: &[Vec<u8>]) -> ContentHash {
    let known: Vec<(Vec<u8>, Hash)> = records
        .iter()
        .map(|payload| (payload.clone(), Sha256::digest(payload).into()))
        .collect();
    let other = content();
    Arc::new(move |payload| {
        let digits = payload.strip_prefix(b"record ").unwrap_or_default();
        let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
        let number = digits.fold(0_usize, |number, digit| {
            number
                .saturating_mul(10)
                .saturating_add(usize::from(digit - b'0'))
        });
        match known.get(number) {
            Some((same, hash)) if same == payload => Some(*hash),
            _ => other(payload),
        }
    })
}

/// A log as it was filled, to flip its bits.
struct Filled {
    memory: Memory,
    records: Vec<Vec<u8>>,
    content: ContentHash,
    shape: Config,
    segments: Vec<Stored>,
}

/// One segment's file.
struct Stored {
    name: String,
    bits: usize,
    /// Where the last byte that was written ends: behind it there is nothing to notice.
    end: usize,
}

impl Filled {
    fn new(segment_bytes: u32) -> Self {
        let (memory, records) = filled(segment_bytes);
        Self {
            content: content_of(&records),
            segments: stored(&memory),
            shape: shape(segment_bytes),
            memory,
            records,
        }
    }

    /// Flips one bit of one file and checks that it is noticed, that at most one record is lost, and named, and that
    /// nothing else changed.
    fn flip(&self, Stored { name, end, .. }: &Stored, bit: usize) {
        let flipped = self.memory.copy();
        flipped.change(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        let storage: Arc<dyn Storage> = Arc::new(flipped);
        let opened = UsageLog::open_on(&storage, self.shape.clone(), Arc::clone(&self.content));
        let (log, recovered) = opened.unwrap();
        let place = format!("{name} bit {bit}");
        let found = read_hashed(&log, 1, &self.content);
        damage::check_loss(&self.records, &found, &log.holes(), &place);
        let noticed = !log.damage().is_empty() || recovered.torn_bytes > 0;
        assert!(noticed || bit / 8 >= *end, "{place} was not noticed");
    }
}

fn stored(memory: &Memory) -> Vec<Stored> {
    let files = memory.files().into_iter();
    files
        .filter(|(name, _)| name.starts_with("segment"))
        .map(|(name, bytes)| Stored {
            name,
            bits: bytes.len() * 8,
            end: bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1),
        })
        .collect()
}

/// Every bit of 64 KiB of log (112 of them without `LONG=1`): noticed, at most the hit record is lost, and named.
#[test]
fn flips_in_64_kib() {
    let log = Filled::new(16 << 10);
    let bits = log.segments.iter().map(|file| file.bits).sum();
    each("flips_in_64_kib", bits, 112, |case| {
        let mut bit = case;
        for file in &log.segments {
            if bit < file.bits {
                return log.flip(file, bit);
            }
            bit -= file.bits;
        }
    });
}

/// 100,000 random bits of 1 MiB of log (12 without `LONG=1`), likewise.
#[test]
fn flips_in_a_mebibyte() {
    let log = Filled::new(256 << 10);
    each("flips_in_a_mebibyte", 100_000, 12, |case| {
        let mut state = seed(case);
        let file = &log.segments[next(&mut state) % log.segments.len()];
        log.flip(file, next(&mut state) % file.bits);
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
