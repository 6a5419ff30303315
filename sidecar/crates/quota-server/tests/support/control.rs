//! A control plane and a ledger as a script: answers every command at once.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use prost::Message;
use quota_proto::{
    bridge::{
        Answer, AnswerBatch, Command, CommandBatch, Failure, FailureKind, LoggedAttribute,
        LoggedQuantity, LoggedUsage, RedisReplies, RedisReply, answer::Result as Outcome,
        command::Action,
    },
    content::content_hash,
    ledger::{
        self, AllotAnswer, AllotDenied, AllotEntry, AllotRequest, AllotResponse,
        AppendUsageRequest, AppendUsageResponse, ClockState, Heartbeat, LedgerLease, LimitRule,
        MeterInfo, MeterList, OpenProducerRequest, OpenProducerResponse, PseudonymKey,
        PseudonymKeyList, ReportConsumptionRequest, ReportConsumptionResponse,
        ReportDecisionsRequest, ReturnUnitsRequest, ReturnUnitsResponse, TenantSnapshot,
        TenantUnknown, TokenKey, WatchLimitsRequest, WatchLimitsResponse, WatchWelcome, WindowInfo,
        WindowUnit, WindowUse, allot_answer::Result as AllotResult,
        watch_limits_request::Message as Sent, watch_limits_response::Message as Told,
    },
    quota::{Enforcement, FailurePolicy, LimitKind},
};
use quota_server::DataPlane;

pub const HOUR_US: i64 = 3_600_000_000;

/// What the scripted ledger knows and does. Survives a restart of the data plane, as the real one does.
#[allow(clippy::struct_excessive_bools)] // independent facts, not one state
#[derive(Clone, Default)]
pub struct Script {
    /// Amount of the window limit of tenant `acme` on meter `tokens`.
    pub amount: i64,
    /// Units that a lease has at least, so that a bench measures checks and not leases.
    pub lease_min: i64,
    /// The ledger gives and proves nothing.
    pub ledger_down: bool,
    /// No welcome is sent.
    pub silent: bool,
    /// Neither ledger nor Redis can be reached.
    pub away: bool,
    /// Names the ledger's installation.
    pub installation: u8,
    /// Usage is not committed.
    pub no_append: bool,
    /// Units given so far, by window start.
    pub allotted: HashMap<i64, i64>,
    /// Records committed: (tenant, id, flags, units by meter).
    pub records: Vec<(String, String, u32, HashMap<String, i64>)>,
    /// Last sequence number and h of the producer.
    pub committed: (u64, Vec<u8>),
    /// Attributes of the records committed, by id.
    pub attributes: HashMap<String, Vec<(String, String)>>,
    /// Version of the key of pseudonyms that is sent before the tenant.
    pub key_version: Option<u32>,
    /// Homes named with records, in order.
    pub homes: Vec<Vec<u8>>,
    /// What the ledger says of these ids, which it does not store.
    pub verdicts: HashMap<String, ledger::RecordVerdict>,
    /// Outcomes that the sidecar says it has taken in.
    pub acknowledged: Vec<Vec<u8>>,
    /// Batches of decisions that were stored, and the number of the last one.
    pub decisions: Vec<ReportDecisionsRequest>,
    pub decisions_seq: u64,
    /// So many answers to them are lost on their way back.
    pub decisions_lost: u32,
    /// They are refused for this reason.
    pub decisions_refused: Option<&'static str>,
    /// Which decisions of the limit are kept.
    pub decision_log: ledger::DecisionLog,
    /// Clock versions that the sidecar says are in force.
    pub applied: Vec<u64>,
}

impl Script {
    pub fn with_amount(amount: i64) -> Self {
        Self {
            amount,
            ..Self::default()
        }
    }
}

/// The thread that carries messages.
pub struct Control {
    pub script: Arc<Mutex<Script>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    plane: Arc<DataPlane>,
}

impl Control {
    pub fn start(plane: Arc<DataPlane>, script: Script) -> Self {
        let script = Arc::new(Mutex::new(script));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (plane, script, stop) =
                (Arc::clone(&plane), Arc::clone(&script), Arc::clone(&stop));
            thread::spawn(move || carry(&plane, &script, &stop))
        };
        Self {
            script,
            stop,
            thread,
            plane,
        }
    }

    /// Stops carrying and gives the script back.
    pub fn stop(self) -> Script {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.script.lock().clone()
    }

    /// Tells the data plane something on the watch stream.
    pub fn tell(&self, told: Told) {
        give(&self.plane, vec![watch(told)]);
    }

    /// Tells the data plane news.
    pub fn news(&self, outcome: Outcome) {
        give(
            &self.plane,
            vec![Answer {
                id: 0,
                result: Some(outcome),
                ..Answer::default()
            }],
        );
    }

    /// Ids of the records that the ledger committed.
    pub fn record_ids(&self) -> Vec<String> {
        self.script
            .lock()
            .records
            .iter()
            .map(|record| record.1.clone())
            .collect()
    }
}

pub fn now_us() -> i64 {
    i64::try_from(
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_micros(),
    )
    .unwrap()
}

/// The data plane takes answers from a thread that may wait, which a test's runtime may not.
fn give(plane: &DataPlane, answers: Vec<Answer>) {
    let batch = AnswerBatch { answers }.encode_to_vec();
    thread::scope(|scope| scope.spawn(|| plane.give_answers(&batch)).join().unwrap()).unwrap();
}

fn watch(told: Told) -> Answer {
    let message = WatchLimitsResponse {
        message: Some(told),
    }
    .encode_to_vec();
    Answer {
        id: 0,
        result: Some(Outcome::Watch(message.into())),
        ..Answer::default()
    }
}

fn carry(plane: &DataPlane, script: &Mutex<Script>, stop: &AtomicBool) {
    let news = |outcome| Answer {
        id: 0,
        result: Some(outcome),
        ..Answer::default()
    };
    let mut heartbeat = Instant::now();
    let mut is_up = None;
    while !stop.load(Ordering::SeqCst) {
        let up = !script.lock().away;
        if is_up.replace(up) != Some(up) {
            let redis = if up {
                Outcome::RedisAlive(true)
            } else {
                Outcome::RedisLost(true)
            };
            give(plane, vec![news(Outcome::WatchUp(up)), news(redis)]);
        }
        let batch = CommandBatch::decode(plane.take_commands().as_slice()).unwrap();
        let mut answers = Vec::new();
        for command in batch.commands {
            answer(&mut script.lock(), command, &mut answers);
        }
        if up && heartbeat.elapsed() > Duration::from_millis(20) && !script.lock().silent {
            heartbeat = Instant::now();
            answers.push(watch(Told::Heartbeat(Heartbeat {
                now_us: now_us(),
                change: 1,
            })));
            answers.push(news(Outcome::RedisAlive(true)));
        }
        if answers.is_empty() {
            thread::sleep(Duration::from_micros(200));
        } else {
            give(plane, answers);
        }
    }
}

fn answer(script: &mut Script, command: Command, answers: &mut Vec<Answer>) {
    let down = script.ledger_down;
    let result = match command.action.unwrap() {
        _ if script.away => unreachable(),
        Action::Watch(bytes) => {
            watched(
                script,
                WatchLimitsRequest::decode(bytes).unwrap().message.unwrap(),
                answers,
            );
            Outcome::Done(true)
        }
        Action::Redis(calls) => Outcome::Redis(RedisReplies {
            replies: vec![RedisReply::default(); calls.calls.len()],
        }),
        Action::Subscribe(_) | Action::Unsubscribe(_) => Outcome::Done(true),
        _ if down => unreachable(),
        asked => ledger_answer(script, asked),
    };
    answers.push(Answer {
        id: command.id,
        result: Some(result),
        ..Answer::default()
    });
}

fn unreachable() -> Outcome {
    Outcome::Failure(Failure {
        kind: FailureKind::Unreachable.into(),
        ..Default::default()
    })
}

/// Answers what the ledger was asked.
fn ledger_answer(script: &mut Script, asked: Action) -> Outcome {
    let reply = |message: Vec<u8>| Outcome::Ledger(message.into());
    match asked {
        Action::Allot(bytes) => {
            let request = AllotRequest::decode(bytes).unwrap();
            let answers = request
                .entries
                .iter()
                .map(|entry| allot(script, entry))
                .collect();
            let witness = None;
            reply(AllotResponse { answers, witness }.encode_to_vec())
        }
        Action::ReturnUnits(bytes) => {
            let request = ReturnUnitsRequest::decode(bytes).unwrap();
            let returned_cum = request
                .entries
                .iter()
                .map(|entry| entry.returned_cum)
                .collect();
            reply(ReturnUnitsResponse { returned_cum }.encode_to_vec())
        }
        Action::ReportConsumption(bytes) => {
            let request = ReportConsumptionRequest::decode(bytes).unwrap();
            let used = |entry: &ledger::ConsumptionEntry| WindowUse {
                consumed: entry.consumed_cum,
                over: entry.over_cum,
                allotted: script.allotted.values().sum(),
                amount: script.amount,
                as_of_us: now_us(),
                lease_epoch: 0,
            };
            reply(
                ReportConsumptionResponse {
                    uses: request.entries.iter().map(used).collect(),
                }
                .encode_to_vec(),
            )
        }
        Action::OpenProducer(bytes) => {
            let request = OpenProducerRequest::decode(bytes).unwrap();
            reply(opened(script, &request).encode_to_vec())
        }
        Action::AppendUsage(bytes) => {
            let request = AppendUsageRequest::decode(bytes).unwrap();
            if script.no_append {
                unreachable()
            } else {
                reply(appended(script, &request).encode_to_vec())
            }
        }
        Action::ReportDecisions(bytes) => {
            let request = ReportDecisionsRequest::decode(bytes).unwrap();
            decided(script, request)
        }
        _ => unreachable!("no question for the ledger"),
    }
}

/// Stores each batch once.
fn decided(script: &mut Script, request: ReportDecisionsRequest) -> Outcome {
    if let Some(reason) = script.decisions_refused {
        return Outcome::Failure(Failure {
            kind: FailureKind::Refused.into(),
            reason: reason.into(),
            ..Default::default()
        });
    }
    let repeated = script.decisions_seq >= request.batch_seq;
    script.decisions_seq = script.decisions_seq.max(request.batch_seq);
    if !repeated {
        script.decisions.push(request);
    }
    if script.decisions_lost > 0 {
        script.decisions_lost -= 1;
        return Outcome::Failure(Failure {
            kind: FailureKind::Deadline.into(),
            ..Default::default()
        });
    }
    let answer = ledger::ReportDecisionsResponse {
        repeated,
        unknown: 0,
    };
    Outcome::Ledger(answer.encode_to_vec().into())
}

fn watched(script: &mut Script, message: Sent, answers: &mut Vec<Answer>) {
    match message {
        Sent::Hello(hello) => {
            if script.silent {
                return;
            }
            answers.push(watch(Told::Welcome(WatchWelcome {
                protocol_version: 1,
                installation_id: vec![script.installation; 16],
                timeline: 1,
                witness: vec![1],
                clock: Some(ClockState {
                    now_us: now_us(),
                    speed_milli: 1_000,
                    version: 1,
                }),
                heartbeat_interval_ms: 20,
                token_keys: vec![TokenKey {
                    key_id: 1,
                    secret: vec![5; 32],
                }],
            })));
            answers.push(watch(Told::Meters(meters())));
            told_keys(script, answers);
            answers.extend(
                hello
                    .tenants
                    .iter()
                    .map(|tenant| told_tenant(script, tenant)),
            );
        }
        Sent::Add(added) => answers.extend(
            added
                .tenants
                .iter()
                .map(|tenant| told_tenant(script, tenant)),
        ),
        Sent::ClockApplied(version) => script.applied.push(version),
        Sent::Acknowledge(taken) => script.acknowledged.extend(taken.reservation_ids),
        Sent::Remove(_) | Sent::CacheDone(_) => {}
    }
}

fn kept(mut tenant: TenantSnapshot, log: ledger::DecisionLog) -> TenantSnapshot {
    for limit in &mut tenant.limits {
        limit.decision_log = log.into();
    }
    tenant
}

fn told_keys(script: &Script, answers: &mut Vec<Answer>) {
    let keys = script.key_version.map(pseudonym_key);
    answers.extend(keys.map(Told::PseudonymKeys).map(watch));
}

/// The key of `acme`'s pseudonyms of a version: 32 bytes of that number and `k`.
pub fn pseudonym_key(version: u32) -> PseudonymKeyList {
    let number = u8::try_from(version).unwrap();
    PseudonymKeyList {
        keys: vec![PseudonymKey {
            tenant: "acme".into(),
            version,
            secret: [number, b'k'].repeat(16),
        }],
    }
}

fn told_tenant(script: &Script, tenant: &str) -> Answer {
    let told = if tenant == "acme" {
        Told::Tenant(kept(acme(script.amount), script.decision_log))
    } else {
        Told::Unknown(TenantUnknown {
            tenant: tenant.into(),
        })
    };
    watch(told)
}

pub fn meters() -> MeterList {
    let meter = |name: &str| MeterInfo {
        name: name.into(),
        unit: "tokens".into(),
        scale: 0,
        attributes: vec!["model".into(), "secret".into()],
        pseudonymised: vec!["secret".into()],
        value_attribute: String::new(),
        late_max_s: None,
        early_max_s: None,
    };
    MeterList {
        meters: vec![meter("tokens"), meter("requests")],
    }
}

pub fn acme(amount: i64) -> TenantSnapshot {
    TenantSnapshot {
        tenant: "acme".into(),
        tenant_id: vec![7; 16],
        state: ledger::TenantState::Active.into(),
        parent: String::new(),
        plan: "scale".into(),
        features: vec!["chat".into()],
        limits: vec![LimitRule {
            name: "tokens-hour".into(),
            meter: "tokens".into(),
            kind: LimitKind::Window.into(),
            amount,
            amount_version: 1,
            enforcement: Enforcement::Hard.into(),
            failure_policy: FailurePolicy::Closed.into(),
            window_unit: WindowUnit::Hour.into(),
            window_count: 1,
            time_zone: "UTC".into(),
            source: "plan".into(),
            ..Default::default()
        }],
        change: 1,
    }
}

fn allot(script: &mut Script, entry: &AllotEntry) -> AllotAnswer {
    let start_us = entry.at_us.div_euclid(HOUR_US) * HOUR_US;
    let allotted = script.allotted.entry(start_us).or_default();
    let left = script.amount - *allotted;
    let give = if left >= entry.need {
        entry.want.max(entry.need).max(script.lease_min).min(left)
    } else {
        0
    };
    let result = if entry.need > left {
        AllotResult::Denied(AllotDenied { left })
    } else {
        *allotted += give;
        AllotResult::Lease(LedgerLease {
            give,
            granted_cum: *allotted,
            lease_epoch: 0,
            valid_for_ms: 0,
        })
    };
    let mut window_id = vec![0; 8];
    window_id.extend(start_us.to_be_bytes());
    let window = WindowInfo {
        window_id,
        start_us,
        end_us: start_us + HOUR_US,
        round: 0,
        amount: script.amount,
        amount_version: 1,
        allotted: *allotted,
        timeline: 1,
    };
    AllotAnswer {
        window: Some(window),
        result: Some(result),
    }
}

fn opened(script: &mut Script, request: &OpenProducerRequest) -> OpenProducerResponse {
    if script.committed.1.is_empty() {
        use sha2::Digest as _;
        script.committed.1 = sha2::Sha256::digest(&request.producer_id).to_vec();
    }
    OpenProducerResponse {
        committed_seq: script.committed.0,
        h: script.committed.1.clone(),
        safe_seq: script.committed.0,
    }
}

/// Commits a batch as the ledger does, trusting the sidecar's h: the chain has its own tests.
fn appended(script: &mut Script, request: &AppendUsageRequest) -> AppendUsageResponse {
    use sha2::Digest as _;
    let columns = request.records.clone().unwrap_or_default();
    let (mut quantity, mut attribute, mut event_time_us, mut stored) = (0, 0, 0_i64, 0);
    let mut verdicts = Vec::new();
    for (index, id) in columns.ids.iter().enumerate() {
        let seq = request.first_seq + index as u64;
        event_time_us += columns.event_time_us[index];
        let quantities: Vec<LoggedQuantity> = (quantity..)
            .take(columns.quantity_count[index] as usize)
            .map(|at| logged_quantity(&columns, at))
            .collect();
        quantity += quantities.len();
        let attributes: Vec<LoggedAttribute> = (attribute..)
            .take(columns.attribute_count[index] as usize)
            .map(|at| logged_attribute(&columns, at))
            .collect();
        attribute += attributes.len();
        if seq <= script.committed.0 {
            continue;
        }
        let verdict = script.verdicts.get(id).cloned();
        verdicts.extend(verdict.map(|known| ledger::RecordVerdict { seq, ..known }));
        let tenant = columns.tenants[columns.tenant[index] as usize].clone();
        let flags = columns.flags[index];
        let record = LoggedUsage {
            tenant: tenant.clone(),
            id: id.clone(),
            event_time_us,
            quantities,
            attributes,
            flags,
            ..Default::default()
        };
        let mut hash = sha2::Sha256::new();
        hash.update(&script.committed.1);
        hash.update(content_hash(&record));
        script.committed = (seq, hash.finalize().to_vec());
        if !script
            .records
            .iter()
            .any(|known| known.0 == tenant && known.1 == *id)
        {
            let units = record
                .quantities
                .iter()
                .map(|quantity| (quantity.meter.clone(), quantity.units))
                .collect();
            script.records.push((tenant, id.clone(), flags, units));
            let pairs = record.attributes.iter();
            let pairs = pairs.map(|pair| (pair.name.clone(), pair.value.clone()));
            script.attributes.insert(id.clone(), pairs.collect());
            if let Some(place @ 1..) = columns.home.get(index).copied() {
                script.homes.push(columns.homes[place as usize - 1].clone());
            }
            stored += 1;
        }
    }
    AppendUsageResponse {
        committed_seq: script.committed.0,
        h: script.committed.1.clone(),
        safe_seq: script.committed.0,
        stored,
        verdicts,
        ..Default::default()
    }
}

fn logged_quantity(columns: &ledger::UsageColumns, at: usize) -> LoggedQuantity {
    LoggedQuantity {
        meter: columns.meters[columns.meter[at] as usize].clone(),
        units: columns.units[at],
    }
}

fn logged_attribute(columns: &ledger::UsageColumns, at: usize) -> LoggedAttribute {
    LoggedAttribute {
        name: columns.attribute_names[columns.attribute_name[at] as usize].clone(),
        value: columns.attribute_values[columns.attribute_value[at] as usize].clone(),
    }
}
