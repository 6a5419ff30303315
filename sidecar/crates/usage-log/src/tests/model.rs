//! Random histories of appends, commits, crashes and restarts, against an obvious model in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Usage(u8),
    /// So many records of one size, together.
    Several(u8, u8),
    Open(u8, u8),
    Settle(u8),
    Expire(u8),
    Mark(u8, u8),
    Write,
    FailSync,
    /// No snapshot can be written from now on.
    FailSnapshots,
    Commit(u8, bool),
    Restart,
    /// Which unsynced pages survive.
    Crash(u64),
    Kill,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    records: Vec<Vec<u8>>,
    open: BTreeMap<Key, Vec<u8>>,
    marks: BTreeMap<Key, Vec<u8>>,
}

impl Model {
    fn apply(&mut self, step: &Step, id: usize) {
        match step {
            Step::Usage(size) => self.records.push(record(id, *size)),
            Step::Several(count, size) => {
                let several = (0..*count).map(|_| record(id, *size));
                self.records.extend(several);
            }
            Step::Open(key, size) => {
                self.open.insert(name(*key), record(id, *size));
            }
            Step::Settle(key) => {
                self.records.push(record(id, 3));
                self.open.remove(&name(*key));
            }
            Step::Expire(key) => {
                self.open.remove(&name(*key));
            }
            Step::Mark(key, size) if *size > 0 => {
                self.marks.insert(name(*key), record(id, *size));
            }
            Step::Mark(key, _) => {
                self.marks.remove(&name(*key));
            }
            _ => {}
        }
    }
}

fn name(key: u8) -> Key {
    [key % 5; 16]
}

fn record(id: usize, size: u8) -> Vec<u8> {
    format!("{id}:{}", "r".repeat(usize::from(size) * 3)).into_bytes()
}

struct World {
    memory: Memory,
    log: UsageLog,
    /// What is acknowledged.
    durable: Model,
    /// What was appended since, in order.
    pending: Vec<(Step, usize)>,
    committed: u64,
    failing: bool,
}

impl World {
    fn new() -> Self {
        let memory = Memory::default();
        let (log, _) = open(&memory, shape());
        Self {
            memory,
            log,
            durable: Model::default(),
            pending: Vec::new(),
            committed: 0,
            failing: false,
        }
    }

    fn step(&mut self, step: &Step, id: usize) {
        let hash = |payload: &[u8]| -> Hash { Sha256::digest(payload).into() };
        let payload = match step {
            Step::Usage(size)
            | Step::Several(_, size)
            | Step::Open(_, size)
            | Step::Mark(_, size) => record(id, *size),
            _ => record(id, 3),
        };
        let appended = match step {
            Step::Usage(_) => usage(&self.log, &payload),
            Step::Several(count, _) => {
                let entry = Append::Usage {
                    payload: &payload,
                    content_hash: hash(&payload),
                    ends: None,
                };
                let entries = vec![entry; usize::from(*count)];
                let appended = self.log.append_all(&entries);
                appended.map(|positions| positions[positions.len() - 1])
            }
            Step::Settle(key) => self.log.append(Append::Usage {
                payload: &payload,
                content_hash: hash(&payload),
                ends: Some(name(*key)),
            }),
            Step::Open(key, _) => reserve(&self.log, name(*key), &payload),
            Step::Expire(key) => self.log.append(Append::Expire { key: name(*key) }),
            Step::Mark(key, size) => {
                let payload = if *size > 0 { payload.as_slice() } else { b"" };
                self.log.append(Append::Mark {
                    key: name(*key),
                    payload,
                })
            }
            other => return self.act(other),
        };
        match appended {
            Ok(_) => self.pending.push((step.clone(), id)),
            Err(LogError::Full { .. }) => self.act(&Step::Commit(255, true)),
            Err(error) => panic!("{error}"),
        }
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Write => self.write(),
            Step::FailSync => {
                self.memory.faults(memory::Faults {
                    syncs: vec![true],
                    ..memory::Faults::default()
                });
                self.failing = true;
                self.write();
            }
            Step::FailSnapshots => self.memory.faults(memory::Faults {
                live: true,
                ..memory::Faults::default()
            }),
            Step::Commit(share, safe) => self.commit(*share, *safe),
            Step::Restart => {
                self.log.close().unwrap();
                self.memory.faults(memory::Faults::default());
                self.confirm();
                self.reopen(self.memory.clone());
            }
            Step::Crash(pages) => {
                let mut n = 0_u32;
                let crashed = self.memory.crash(|_, _| {
                    n = n.wrapping_add(7);
                    pages.rotate_left(n % 64) & 1 == 1
                });
                self.reopen(crashed);
            }
            Step::Kill => self.reopen(self.memory.kill()),
            _ => {}
        }
    }

    fn write(&mut self) {
        flush(&self.log);
        self.confirm();
    }

    fn confirm(&mut self) {
        for (step, id) in std::mem::take(&mut self.pending) {
            self.durable.apply(&step, id);
        }
    }

    fn commit(&mut self, share: u8, safe: bool) {
        self.write();
        let all = self.durable.records.len() as u64;
        let seq = self.committed + (all - self.committed) * u64::from(share) / 255;
        let h = self.log.h_at(seq).unwrap();
        assert_eq!(chain_of(&[1; 16], &self.durable.records[..seq as usize]), h);
        self.log.set_committed(Committed {
            seq,
            h,
            safe_seq: if safe { seq } else { 0 },
            now_us: 0,
        });
        self.log.pump();
        self.committed = seq;
    }

    /// Opens what a crash left: acknowledged entries are there; of the others a prefix.
    fn reopen(&mut self, memory: Memory) {
        let (log, recovered) = open(&memory, shape());
        // A committed number may be forgotten, if its slot wasn't written in time, but never run ahead.
        assert!(recovered.committed_seq <= self.committed);
        assert!(
            recovered
                .holes
                .iter()
                .all(|hole| hole.reason == "LAST_GROUP"),
            "{:?}",
            recovered.holes
        );
        let mut found = self.durable.clone();
        let mut pending = self.pending.iter();
        let holds = |model: &Model| {
            let open: BTreeMap<_, _> = recovered
                .open
                .iter()
                .map(|kept| (kept.key, kept.payload.clone()))
                .collect();
            let marks: BTreeMap<_, _> = recovered
                .marks
                .iter()
                .map(|kept| (kept.key, kept.payload.clone()))
                .collect();
            model.records.len() as u64 + 1 == recovered.next_seq
                && model.open == open
                && model.marks == marks
        };
        while !holds(&found) && recovered.holes.is_empty() {
            let (step, id) = pending
                .next()
                .unwrap_or_else(|| panic!("no prefix fits {recovered:?}"));
            found.apply(step, *id);
        }
        let from = self.committed + 1;
        let read = payloads(&read_all(&log, from));
        if recovered.holes.is_empty() {
            let expected: Vec<_> = found.records[from as usize - 1..]
                .iter()
                .cloned()
                .map(Some)
                .collect();
            assert_eq!(expected, read);
        } else {
            // Part of the group in flight is missing: it can't be told from damage. Start over from a clean world.
            let acknowledged = self.durable.records.len() - (from as usize - 1);
            let expected: Vec<_> = self.durable.records[from as usize - 1..]
                .iter()
                .cloned()
                .map(Some)
                .collect();
            assert_eq!(expected, read[..acknowledged]);
            *self = Self::new();
            return;
        }
        (self.memory, self.log, self.durable) = (memory, log, found);
        self.pending.clear();
    }
}

fn shape() -> Config {
    Config {
        segments: 5,
        segment_bytes: 8_192,
        group_records: 8,
        group_bytes: 1_024,
        ..config()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        9 => any::<u8>().prop_map(Step::Usage),
        3 => (1..9_u8, 0..30_u8).prop_map(|(count, size)| Step::Several(count, size)),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(key, size)| Step::Open(key, size)),
        3 => any::<u8>().prop_map(Step::Settle),
        1 => any::<u8>().prop_map(Step::Expire),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(key, size)| Step::Mark(key, size)),
        4 => Just(Step::Write),
        1 => Just(Step::FailSync),
        1 => Just(Step::FailSnapshots),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(share, safe)| Step::Commit(share, safe)),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Through any history the log holds exactly what was acknowledged, in order and unchanged, plus at most a
    /// prefix of what was on its way; h is the model's; what is open is open.
    #[test]
    fn log_equals_model(steps in steps()) {
        let mut world = World::new();
        for (id, step) in steps.iter().enumerate() {
            world.step(step, id);
        }
        world.act(&Step::Write);
        world.act(&Step::Kill);
    }
}
