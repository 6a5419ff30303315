//! The reader against whatever a disk can hold: bytes at random, and records whose checksum is right but whose numbers,
//! lengths and order are not.
//!
//! `make fuzz SECONDS=n` goes on with new inputs; one that fails is written to `finds/`, and every file there is played
//! again by `finds_stay_mended`.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    fold::{Live, LiveMap},
    format::{Identity, Kind, SegmentHeader, Watermark, push_commit, push_record, seal_record},
    snapshot::encode,
};

const IDENTITY: Identity = Identity {
    producer: [1; 16],
    salt: [1 ^ 0xa5; 16],
};
const SEGMENTS: u64 = 4;
const SEGMENT_BYTES: usize = 4_096;
/// Nobody can have appended so much; what the log does at the very end of its numbers is no concern.
const NUMBERS_END: u64 = u64::MAX / 2;
/// Inputs of the ordinary test.
const INPUTS: u64 = 400;

fn small() -> Config {
    Config {
        segments: SEGMENTS as u32,
        segment_bytes: SEGMENT_BYTES as u32,
        ..config()
    }
}

/// A log of three segments, some of it committed, with an open reservation and a hole's worth of history.
fn sample() -> Memory {
    let memory = Memory::default();
    let (log, _) = open(&memory, small());
    reserve(&log, [3; 16], b"reservation").unwrap();
    for n in 0..90 {
        usage(
            &log,
            format!("record {n} {}", "z".repeat(n % 41)).as_bytes(),
        )
        .unwrap();
        if n % 6 == 5 {
            flush(&log);
        }
    }
    commit(&log, 20);
    log.close().unwrap();
    memory
}

/// Gives an input's bytes one after the other, and zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number that is small, near a power of two, or anything.
    fn number(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => u64::from(self.byte()),
            1 => u64::from(u16::from_le_bytes([self.byte(), self.byte()])),
            2 => u64::MAX >> (self.byte() % 64),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.byte() % 64).map(|_| self.byte()).collect()
    }

    fn hash(&mut self) -> Hash {
        [self.byte(); 32]
    }
}

/// What a step puts on the disk.
fn forged(input: &mut Input<'_>, number: u64) -> Vec<u8> {
    let seed = IDENTITY.seed(number);
    let mut out = Vec::new();
    match input.byte() % 4 {
        0 => return input.bytes(),
        1 => push_commit(
            &mut out,
            seed,
            input.number(),
            u64::from(input.byte() % 4),
            input.number() as u32,
            &input.hash(),
        ),
        2 => {
            let header = SegmentHeader {
                identity: IDENTITY,
                number: input.number(),
                first_seq: input.number(),
                previous_h: input.hash(),
                previous_end: input.number(),
            };
            return header.encode().to_vec();
        }
        _ => {
            let kinds = [
                Kind::Usage,
                Kind::Open,
                Kind::Expire,
                Kind::Mark,
                Kind::Hole,
            ];
            let kind = kinds[usize::from(input.byte()) % kinds.len()];
            let key = [input.byte() % 4; 16];
            let is_keyed = matches!(kind, Kind::Open | Kind::Expire | Kind::Mark);
            let payload = match kind {
                Kind::Expire => Vec::new(),
                Kind::Hole => crate::format::hole_payload(input.number(), "CRC"),
                _ => input.bytes(),
            };
            push_record(&mut out, kind, is_keyed.then_some(&key), &payload);
            let (seq, incarnation) = (input.number(), u64::from(input.byte() % 4));
            seal_record(&mut out, seed, seq, incarnation);
        }
    }
    out
}

fn slot(input: &mut Input<'_>) -> Vec<u8> {
    let watermark = Watermark {
        producer: [1; 16],
        counter: input.number(),
        incarnation: input.number(),
        committed_seq: input.number(),
        committed_h: input.hash(),
        safe_seq: input.number(),
        scan_segment: input.number(),
        scan_first_seq: input.number(),
        scan_h: input.hash(),
        oldest_segment: input.number(),
    };
    watermark.encode().to_vec()
}

/// A snapshot whose checksums are right, for the end that some header tells, or that of a forged one.
fn snapshot(input: &mut Input<'_>, memory: &Memory, number: u64) -> Vec<u8> {
    let files = memory.files().into_iter();
    let name = format!("segment-{:04}", number % SEGMENTS);
    let mut written = files.filter(|(known, _)| *known == name);
    let header = written.find_map(|(_, bytes)| SegmentHeader::decode(&bytes));
    let header = header.unwrap_or_else(|| SegmentHeader {
        identity: IDENTITY,
        number: input.number(),
        first_seq: input.number(),
        previous_h: input.hash(),
        previous_end: input.number(),
    });
    let entry = |input: &mut Input<'_>| {
        let mark = input.byte() % 2 == 0;
        let live = Live {
            segment: input.number(),
            offset: u64::from(input.number() as u32),
            total: u64::from(input.number() as u32 >> 1),
            mark,
        };
        ((mark, [input.byte() % 4; 16]), live)
    };
    let live: LiveMap = (0..input.byte() % 4).map(|_| entry(input)).collect();
    encode(&live, &header, u64::MAX).unwrap_or_default()
}

/// Does to the disk what an input says; true where it forged a watermark, whose word the log takes for the ledger's.
fn spoil(memory: &Memory, input: &mut Input<'_>) -> bool {
    let mut cursor = 128;
    let mut forged_watermark = false;
    while !input.0.is_empty() {
        let number = 1 + u64::from(input.byte()) % SEGMENTS;
        let (name, bytes, at) = match input.byte() % 8 {
            0 => {
                forged_watermark = true;
                let at = usize::from(input.byte() % 2) * 4_096;
                ("watermark".into(), slot(input), at)
            }
            1 => ("watermark".into(), input.bytes(), usize::from(input.byte())),
            7 => {
                let at = usize::from(input.byte() % 2) * SEGMENT_BYTES / 4;
                ("live".into(), snapshot(input, memory, number), at)
            }
            kind => {
                let bytes = forged(input, number);
                let at = match kind {
                    2 => 0,
                    3 => usize::from(u16::from_le_bytes([input.byte(), input.byte()])) & !7,
                    _ => cursor,
                };
                cursor = at + bytes.len();
                (format!("segment-{:04}", number % SEGMENTS), bytes, at)
            }
        };
        if memory.files().iter().all(|(known, _)| *known != name) {
            continue;
        }
        memory.change(&name, |content| {
            for (to, from) in content.iter_mut().skip(at).zip(bytes) {
                *to = from;
            }
        });
    }
    forged_watermark
}

/// Reads what can be read, as a shipper would; bounded, each batch's chain checked.
fn drain(log: &UsageLog) {
    let stats = log.stats();
    let mut seq = stats.committed_seq.saturating_add(1);
    for _ in 0..400 {
        if seq > NUMBERS_END {
            return;
        }
        match log.read_from(seq, 16, 4_000) {
            Ok(batch) => {
                check_chain(&batch, &content());
                let Some(last) = batch.entries.last() else {
                    return;
                };
                assert!(batch.entries[0].seq == seq, "asked for {seq}");
                let next = match &last.body {
                    EntryBody::Usage(_) => last.seq,
                    EntryBody::Hole(hole) => hole.last_seq,
                };
                assert!(next >= seq, "goes back from {seq} to {next}");
                seq = next.saturating_add(1);
            }
            Err(LogError::Gone { oldest_seq, .. }) if oldest_seq > seq => seq = oldest_seq,
            Err(LogError::Scanning { .. }) => {
                log.pump();
            }
            Err(_) => return,
        }
    }
}

/// Opens, reads, appends, and opens again: nothing panics or hangs, and what is acknowledged then is there, unless the
/// watermark was forged with a valid checksum: numbers then mean what the forger says.
fn play(bytes: &[u8]) {
    let memory = sample();
    let forged_watermark = spoil(&memory, &mut Input(bytes));
    for round in 0..2 {
        let Ok((log, recovered)) = try_open(&memory, small()) else {
            return;
        };
        drain(&log);
        if recovered.next_seq > NUMBERS_END {
            return;
        }
        let payload = format!("after {round}");
        if let Ok(position) = usage(&log, payload.as_bytes()) {
            for _ in 0..10 {
                log.pump();
            }
            if log.wait_durable_now(position) && !forged_watermark {
                let seq = log.stats().appended_seq;
                let found = (0..4).find_map(|_| {
                    log.pump();
                    log.read_from(seq, 1, 100).ok()
                });
                let body =
                    found.and_then(|batch| batch.entries.first().map(|one| one.body.clone()));
                assert_eq!(Some(EntryBody::Usage(payload.into_bytes())), body);
            }
        }
        let _ = log.close();
    }
}

impl UsageLog {
    /// Tells, without waiting, whether an entry is durable.
    fn wait_durable_now(&self, position: Position) -> bool {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.on_durable(
            position,
            Box::new(move |outcome| drop(sender.send(outcome))),
        );
        receiver.try_recv() == Ok(Ok(()))
    }
}

/// The next of a fixed sequence of numbers that look random (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn made(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let length = next(&mut state) % 300;
    (0..length).map(|_| next(&mut state) as u8).collect()
}

fn finds() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/finds")
}

/// Whatever the disk holds, the log opens or says why not, reads in order with an unbroken chain, and keeps what it then
/// acknowledges.
#[test]
fn any_disk_is_survived() {
    let seconds = std::env::var("FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = until.map_or(0, |_| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64
    });
    for seed in first.. {
        if until.map_or(seed >= INPUTS, |until| Instant::now() > until) {
            println!("{} inputs", seed - first);
            return;
        }
        let input = made(seed);
        let path = finds().join(format!("{seed:016x}.bin"));
        // There before it is played, so that one that never ends is found as well.
        if until.is_some() {
            fs::write(&path, &input).unwrap();
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(&input))) {
            println!(
                "input {seed:#x}; with FUZZ_SECONDS it is kept as {}",
                path.display()
            );
            std::panic::resume_unwind(panic);
        }
        if until.is_some() {
            fs::remove_file(&path).unwrap();
        }
    }
}

/// Inputs that once failed don't fail again.
#[test]
fn finds_stay_mended() {
    for file in fs::read_dir(finds()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "bin") {
            println!("{}", path.display());
            play(&fs::read(path).unwrap());
        }
    }
}
