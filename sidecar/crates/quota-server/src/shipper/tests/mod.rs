//! The shipper against a model ledger and a real log.

mod faults;
mod pace;
mod verdicts;

use std::{path::Path, sync::Arc};

use prost::Message as _;
use quota_proto::{
    bridge::{LoggedAttribute, LoggedLevel, LoggedQuantity, LoggedUsage},
    content::{content_hash, payload_hash},
};
use tempfile::TempDir;
use usage_log::{Append, Config, NewProducer};

use super::{ledger_model::Ledger, *};

const INTERVAL_US: u64 = 200_000;
const LEDGER_US: i64 = 1_700_000_000_000_000;

struct World {
    folder: TempDir,
    log: UsageLog,
    shipper: Shipper,
    ledger: Ledger,
    now_us: u64,
    written: Vec<LoggedUsage>,
    producers: u8,
    holders: u8,
}

/// What becomes of one command on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Works,
    NeverSent,
    AnswerLost,
    Garbled,
}

/// Large enough for three full batches.
const SEGMENT_BYTES: u32 = 1 << 20;

fn start(folder: &Path, producer: u8, holder: u8) -> (UsageLog, Shipper) {
    start_with(folder, producer, holder, SEGMENT_BYTES)
}

fn start_with(folder: &Path, producer: u8, holder: u8, segment_bytes: u32) -> (UsageLog, Shipper) {
    let new_producer = NewProducer {
        id: [producer; 16],
        salt: [producer; 16],
    };
    let config = Config {
        segments: 6,
        segment_bytes,
        ..Config::new(folder, new_producer)
    };
    let (log, recovered) = UsageLog::open(config, Arc::new(payload_hash)).unwrap();
    let shipper = Shipper::new(log.clone(), &recovered, [holder; 16], INTERVAL_US);
    (log, shipper)
}

/// In memory where the system has such a file system: syncs are tested elsewhere and take most of the time.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

impl World {
    fn new() -> Self {
        Self::with(SEGMENT_BYTES)
    }

    fn with(segment_bytes: u32) -> Self {
        let folder = folder();
        let (log, shipper) = start_with(&folder.path().join("log"), 1, 1, segment_bytes);
        let ledger = Ledger {
            safe_seq: u64::MAX,
            ..Ledger::default()
        };
        Self {
            folder,
            log,
            shipper,
            ledger,
            now_us: 1,
            written: Vec::new(),
            producers: 1,
            holders: 1,
        }
    }

    fn ledger_us(&self) -> i64 {
        LEDGER_US + self.now_us as i64
    }

    fn write(&mut self, count: usize) {
        let mut last = None;
        for _ in 0..count {
            let n = self.written.len();
            let record = record(n, self.ledger_us());
            last = Some(self.append(&record));
            self.written.push(record);
        }
        if let Some(last) = last {
            self.log.wait_durable(last).unwrap();
        }
    }

    fn append(&self, record: &LoggedUsage) -> usage_log::Position {
        let entry = Append::Usage {
            payload: &record.encode_to_vec(),
            content_hash: content_hash(record),
            ends: None,
        };
        self.log.append(entry).unwrap()
    }

    /// Polls once and carries out what comes; false when nothing was due.
    fn turn(&mut self, fate: Fate) -> bool {
        let ledger_us = self.ledger_us();
        let Some(command) = self.shipper.poll(self.now_us, Some(ledger_us)) else {
            return false;
        };
        let answer = match &command {
            ShipCommand::Renew(from_seq) => {
                self.producers += 1;
                let new_producer = NewProducer {
                    id: [self.producers; 16],
                    salt: [9; 16],
                };
                let outcome = self.log.renew(new_producer, *from_seq);
                self.shipper.on_renewed(outcome, *from_seq, self.now_us);
                return true;
            }
            _ if fate == Fate::NeverSent => Err(lost(FailureKind::Unreachable)),
            ShipCommand::Open(bytes) => self.ledger.open(bytes),
            ShipCommand::Append(bytes) => self.ledger.append(bytes),
        };
        let answer = if fate == Fate::AnswerLost {
            Err(lost(FailureKind::Deadline))
        } else {
            answer
        };
        match &answer {
            Ok(_) if fate == Fate::Garbled => self
                .shipper
                .on_reply(ShipReply::Ledger(&[0xff, 1, 2]), self.now_us),
            Ok(bytes) => self.shipper.on_reply(ShipReply::Ledger(bytes), self.now_us),
            Err(failure) => self
                .shipper
                .on_reply(ShipReply::Failed(failure), self.now_us),
        }
        true
    }

    /// Whether the log has grown so far that the driver looks at once.
    fn has_grown(&self) -> bool {
        let Some(growth) = self.shipper.growth(self.now_us) else {
            return false;
        };
        let (sender, told) = std::sync::mpsc::channel();
        self.log.on_grown(
            growth,
            Box::new(move || sender.send(()).unwrap_or_default()),
        );
        told.try_recv().is_ok()
    }

    fn pass(&mut self, real_us: u64) {
        self.now_us += real_us;
    }

    /// Lets time pass in small steps until everything is committed.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            self.turn(Fate::Works);
            self.pass(20_000);
            let stats = self.log.stats();
            if self.shipper.state == State::Ready && self.shipper.agreed == stats.appended_seq {
                return;
            }
        }
        let (figures, stats) = (self.shipper.figures(self.now_us), self.log.stats());
        panic!(
            "not settled: {:?} {figures:?} {stats:?}",
            self.shipper.state
        );
    }

    fn restart(&mut self) {
        self.log.close().unwrap();
        self.holders += 1;
        let path = self.folder.path().join("log");
        (self.log, self.shipper) = start(&path, 99, self.holders);
    }

    fn check(&self) {
        assert_eq!(self.written.len(), self.ledger.records.len());
        for record in &self.written {
            let stored = LoggedUsage {
                reservation_id: record.reservation_id.clone(),
                ..self.ledger.records[&record.id].clone()
            };
            assert_eq!(record, &stored);
        }
        assert_eq!(Vec::<String>::new(), self.ledger.conflicts);
    }
}

fn lost(kind: FailureKind) -> Failure {
    Failure {
        kind: kind as i32,
        message: "lost".into(),
        ..Failure::default()
    }
}

fn record(n: usize, now_us: i64) -> LoggedUsage {
    let attribute = |name: &str, value: String| LoggedAttribute {
        name: name.into(),
        value,
    };
    let has_level = n % 5 == 0;
    let level = has_level.then(|| LoggedLevel {
        tenant: "owner".into(),
        limit: format!("seats-{}", n % 2),
        key_hash: bytes::Bytes::new(),
        units: n as i64,
        over: 0,
    });
    LoggedUsage {
        tenant: format!("tenant-{}", n % 3),
        id: format!("id-{n}"),
        event_time_us: now_us - (n as i64 % 7) * 1_000_000,
        received_us: now_us,
        quantities: (0..=n % 2)
            .map(|m| LoggedQuantity {
                meter: format!("meter-{m}"),
                units: (n * 10 + m) as i64,
            })
            .collect(),
        attributes: (0..n % 3)
            .map(|a| attribute(&format!("a{a}"), format!("v{}", n % 5)))
            .collect(),
        flags: (n % 2) as u32,
        reservation_id: bytes::Bytes::new(),
        home: if n % 5 == 4 {
            vec![(n % 2) as u8; 16].into()
        } else {
            bytes::Bytes::new()
        },
        holder: vec![9; if has_level { 16 } else { 0 }].into(),
        levels: level.into_iter().collect(),
    }
}
