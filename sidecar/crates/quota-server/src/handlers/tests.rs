//! Handlers over a log whose disk fails: what was taken is given back, what was not ended can be ended again.
#![allow(clippy::arithmetic_side_effects)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use quota_core::{EngineConfig, Holder};
use quota_proto::{
    bridge::{Answer, CommandBatch, answer::Result as Outcome, command::Action},
    content::payload_hash,
    ledger::{
        AllotAnswer, AllotRequest, AllotResponse, ClockState, LedgerLease, LimitRule, MeterInfo,
        MeterList, TenantSnapshot, TenantState, TokenKey, WatchLimitsResponse, WatchWelcome,
        WindowInfo, WindowUnit, allot_answer::Result as AllotResult,
        watch_limits_response::Message as Told,
    },
    quota::{
        CheckMode, CheckQuotaRequest, CheckQuotaResponse, Cost, Enforcement, ErrorReason,
        FailurePolicy, LimitKind, Quantity, SettleReservationRequest,
    },
};
use tokio::sync::mpsc;
use usage_log::{Append, LogError, NewProducer, Position, UsageLog};

use super::{check_quota, settle_reservation};
use crate::{
    clock::BootClock,
    hub::cold::Cold,
    hub::{Hub, HubParts},
    ids::SystemRandomness,
    journal::{Journal, Notify},
    outbox::Outbox,
    refusal::Answer as Answered,
    service::Service,
    snapshot::SnapshotError,
    stats::Stats,
};

const NOW_US: i64 = 1_700_000_000_000_000;

/// A log whose disk fails while the flag is set.
struct Failing {
    log: UsageLog,
    broken: AtomicBool,
}

impl Journal for Failing {
    fn append(&self, entry: Append<'_>) -> Result<Position, LogError> {
        self.log.append(entry)
    }

    fn append_all(&self, entries: &[Append<'_>]) -> Result<Vec<Position>, LogError> {
        self.log.append_all(entries)
    }

    fn on_durable(&self, position: Position, notify: Notify) {
        if self.broken.load(Ordering::SeqCst) {
            notify(Err(LogError::Io("no space left".into())));
        } else {
            self.log.on_durable(position, notify);
        }
    }

    fn on_committed(&self, position: Position, notify: Notify) {
        self.log.on_committed(position, notify);
    }

    fn stats(&self) -> usage_log::Stats {
        self.log.stats()
    }
}

struct Bench {
    service: Arc<Service>,
    outbox: Arc<Outbox>,
    journal: Arc<Failing>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (id, salt) = ([1; 16], [2; 16]);
        let mut config = usage_log::Config::new(folder.path(), NewProducer { id, salt });
        (config.segment_bytes, config.segments) = (256 << 10, 4);
        let (log, _) = UsageLog::open(config, Arc::new(payload_hash)).unwrap();
        let journal = Arc::new(Failing {
            log,
            broken: AtomicBool::new(false),
        });
        let outbox = Arc::new(Outbox::new().unwrap());
        let stats = Arc::new(Stats::default());
        let engine = EngineConfig {
            redis_budget_us: 2_000_000,
            ledger_budget_us: 2_000_000,
            ..EngineConfig::default()
        };
        let hub = Arc::new(Hub::new(HubParts {
            engine,
            scaled: false,
            monotonic: Arc::new(BootClock),
            outbox: Arc::clone(&outbox),
            stats: Arc::clone(&stats),
            holder: Holder([3; 16]),
            producer: [1; 16],
            expired: mpsc::unbounded_channel().0,
            settled: mpsc::unbounded_channel().0,
            marks: mpsc::unbounded_channel().0,
            cold: Cold::new(Err(SnapshotError::Missing)),
        }));
        let shared: Arc<dyn Journal> = Arc::<Failing>::clone(&journal);
        let service = Arc::new(Service::new(
            hub,
            shared,
            stats,
            Box::new(SystemRandomness),
            Duration::from_secs(2),
        ));
        let bench = Self {
            service,
            outbox,
            journal,
            _folder: folder,
        };
        bench.news(Outcome::WatchUp(true));
        bench.tell(Told::Welcome(WatchWelcome {
            clock: Some(ClockState {
                now_us: NOW_US,
                speed_milli: 1_000,
                version: 1,
            }),
            token_keys: vec![TokenKey {
                key_id: 1,
                secret: vec![5; 32],
            }],
            ..WatchWelcome::default()
        }));
        let tokens = MeterInfo {
            name: "tokens".into(),
            ..MeterInfo::default()
        };
        bench.tell(Told::Meters(MeterList {
            meters: vec![tokens],
        }));
        bench
    }

    fn broken(&self, broken: bool) {
        self.journal.broken.store(broken, Ordering::SeqCst);
    }

    fn news(&self, outcome: Outcome) {
        self.service.hub.hear(Answer {
            id: 0,
            result: Some(outcome),
            ..Answer::default()
        });
    }

    fn tell(&self, told: Told) {
        let message = WatchLimitsResponse {
            message: Some(told),
        };
        self.news(Outcome::Watch(message.encode_to_vec().into()));
    }

    /// Runs a call and answers what it asks of the ledger meanwhile.
    async fn run<T>(&self, call: impl Future<Output = T>) -> T {
        tokio::pin!(call);
        loop {
            tokio::select! {
                biased;
                done = &mut call => return done,
                () = tokio::time::sleep(Duration::from_millis(1)) => self.carry(),
            }
        }
    }

    fn carry(&self) {
        for command in CommandBatch::decode(self.outbox.take().as_slice())
            .unwrap()
            .commands
        {
            let result = match command.action.unwrap() {
                Action::Watch(_) => {
                    self.tell(Told::Tenant(tenant()));
                    Outcome::Done(true)
                }
                Action::Allot(bytes) => {
                    let asks = AllotRequest::decode(bytes).unwrap().entries.len();
                    let answers = AllotResponse {
                        answers: vec![lease(); asks],
                        witness: None,
                    };
                    Outcome::Ledger(answers.encode_to_vec().into())
                }
                _ => Outcome::Done(true),
            };
            self.service.hub.hear(Answer {
                id: command.id,
                result: Some(result),
                ..Answer::default()
            });
        }
    }

    async fn check(
        &self,
        change: impl FnOnce(&mut CheckQuotaRequest),
    ) -> Answered<CheckQuotaResponse> {
        let mut request = CheckQuotaRequest {
            tenant: "acme".into(),
            costs: vec![Cost {
                meter: "tokens".into(),
                units: 10,
            }],
            ..CheckQuotaRequest::default()
        };
        change(&mut request);
        self.run(check_quota(&self.service, request)).await
    }

    async fn admits_all(&self) -> bool {
        self.check(|_| ()).await.unwrap().decision.unwrap().allowed
    }
}

/// A tenant with a limit of 10 tokens an hour.
fn tenant() -> TenantSnapshot {
    TenantSnapshot {
        tenant: "acme".into(),
        tenant_id: vec![7; 16],
        state: TenantState::Active.into(),
        limits: vec![LimitRule {
            name: "hour".into(),
            meter: "tokens".into(),
            kind: LimitKind::Window.into(),
            amount: 10,
            enforcement: Enforcement::Hard.into(),
            failure_policy: FailurePolicy::Closed.into(),
            window_unit: WindowUnit::Hour.into(),
            window_count: 1,
            ..LimitRule::default()
        }],
        ..TenantSnapshot::default()
    }
}

/// All 10 tokens of the hour, however often it is asked.
fn lease() -> AllotAnswer {
    let window = WindowInfo {
        window_id: vec![9; 16],
        start_us: NOW_US - 1_000_000,
        end_us: NOW_US + 3_600_000_000,
        amount: 10,
        allotted: 10,
        timeline: 1,
        ..WindowInfo::default()
    };
    AllotAnswer {
        window: Some(window),
        result: Some(AllotResult::Lease(LedgerLease {
            give: 10,
            granted_cum: 10,
            lease_epoch: 0,
            valid_for_ms: 0,
        })),
    }
}

fn reserving(request: &mut CheckQuotaRequest) {
    request.mode = CheckMode::Reserve.into();
    request.request_id = "q".into();
}

/// A consumption whose record can't be written fails and takes nothing.
#[tokio::test]
async fn unrecorded_consumption_is_undone() {
    let bench = Bench::new();
    bench.broken(true);
    let refusal = bench
        .check(|request| request.record_usage = true)
        .await
        .unwrap_err();
    assert_eq!(ErrorReason::UsageLogIo, refusal.reason);
    assert!(bench.admits_all().await);
}

/// A reservation that can't be logged fails and holds nothing; its id is free for the retry.
#[tokio::test]
async fn unlogged_reservations_are_undone() {
    let bench = Bench::new();
    bench.broken(true);
    let refusal = bench.check(reserving).await.unwrap_err();
    assert_eq!(ErrorReason::UsageLogIo, refusal.reason);
    bench.broken(false);
    assert!(bench.check(reserving).await.unwrap().reservation.is_some());
}

/// A settlement whose record can't be written leaves the reservation open, and the next try ends it.
#[tokio::test]
async fn torn_settlements_can_be_repeated() {
    let bench = Bench::new();
    let token = bench
        .check(reserving)
        .await
        .unwrap()
        .reservation
        .unwrap()
        .token;
    let request = || SettleReservationRequest {
        token: token.clone(),
        quantities: vec![Quantity {
            meter: "tokens".into(),
            units: 0,
        }],
        ..SettleReservationRequest::default()
    };
    bench.broken(true);
    let refusal = bench
        .run(settle_reservation(&bench.service, request()))
        .await
        .unwrap_err();
    assert_eq!(
        (ErrorReason::UsageLogIo, 1),
        (refusal.reason, bench.service.reservations.lock().count())
    );
    bench.broken(false);
    let settled = bench
        .run(settle_reservation(&bench.service, request()))
        .await
        .unwrap();
    assert_eq!(
        (false, 10),
        (settled.repeated_call, settled.refunded[0].units)
    );
    assert!(bench.admits_all().await);
}

/// A caller that goes away while its check waits takes nothing.
#[tokio::test]
async fn abandoned_checks_take_nothing() {
    let bench = Bench::new();
    let request = CheckQuotaRequest {
        tenant: "acme".into(),
        costs: vec![Cost {
            meter: "tokens".into(),
            units: 4,
        }],
        ..CheckQuotaRequest::default()
    };
    let abandoned = tokio::time::timeout(
        Duration::from_millis(5),
        check_quota(&bench.service, request),
    )
    .await;
    assert!(abandoned.is_err());
    assert!(bench.admits_all().await);
}

/// A caller that goes away while it reserves leaves a reservation that a repeat of the call finds.
#[tokio::test]
async fn abandoned_reserves_are_found_again() {
    let bench = Bench::new();
    let mut request = CheckQuotaRequest {
        tenant: "acme".into(),
        costs: vec![Cost {
            meter: "tokens".into(),
            units: 10,
        }],
        ..CheckQuotaRequest::default()
    };
    reserving(&mut request);
    let abandoned = tokio::time::timeout(
        Duration::from_millis(5),
        check_quota(&bench.service, request),
    )
    .await;
    assert!(abandoned.is_err());
    assert!(bench.check(reserving).await.unwrap().reservation.is_some());
    assert_eq!(1, bench.service.reservations.lock().count());
}
