//! Loads sidecars with checks as native callers would, and counts what the callers were told.
//!
//! What an auditor may trust: every figure is counted from the answers that arrived here, none by a sidecar.
#![allow(clippy::arithmetic_side_effects, clippy::float_arithmetic)] // a measuring client, not the request path

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quota_proto::quota::{
    CheckMode, CheckQuotaRequest, Cost, Decision, DecisionReason, Detail, StreamQuotaRequest,
    StreamQuotaResponse, stream_quota_response::Result as Told,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    calls::{Called, Calls, micros},
    probe::{ProbeError, endpoint, percentile, to_json},
};

const STREAM: PathAndQuery =
    PathAndQuery::from_static("/tollkeeper.quota.v1.QuotaService/StreamQuota");
const IN_FLIGHT_DEFAULT: usize = 256;
/// Pause before a broken stream is opened again.
const REOPEN: Duration = Duration::from_millis(20);
/// Pause before a check is sent again.
const AGAIN: Duration = Duration::from_millis(100);
const QUEUE: usize = 64;

/// What to load sidecars with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPlan {
    /// Flows that run at the same time.
    #[serde(default)]
    pub flows: Vec<Flow>,
    /// Unary calls that are made at the same time.
    #[serde(default)]
    pub calls: Vec<Calls>,
    /// The flows end after so long, done or not.
    pub seconds: f64,
}

/// Checks that one caller sends to one sidecar on one pipelined stream, opened again whenever it breaks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// `unix:PATH` or `host:port`.
    pub target: String,
    /// Tenant to check; its usage is not recorded.
    pub tenant: String,
    /// Meter to check.
    pub meter: String,
    /// Attributes of every check.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Units of the checks, used in turn; empty = one unit each.
    #[serde(default)]
    pub units: Vec<i64>,
    /// Checks in all; 0 = as many as there is time for.
    #[serde(default)]
    pub checks: u64,
    /// Checks a second; 0 = as fast as answers come.
    #[serde(default)]
    pub rate: f64,
    /// Checks without an answer at once; 0 = 256.
    #[serde(default)]
    pub in_flight: usize,
    /// A check that was denied without an authority is sent again, as a patient caller would, until the time is over.
    #[serde(default)]
    pub insists: bool,
}

/// What one flow's caller was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// Checks sent, repeats not counted.
    pub sent: u64,
    /// Checks sent again.
    pub repeated: u64,
    /// Checks whose stream broke before their answer came: nobody was told that they may go on.
    pub unanswered: u64,
    /// Checks that failed, by reason.
    pub errors: BTreeMap<String, u64>,
    /// Decisions, by reason.
    pub decisions: BTreeMap<String, u64>,
    /// Units of admitted checks.
    pub admitted_units: u64,
    /// Units of admitted checks by the start of the binding limit's window, Unix microseconds; 0 = none was told.
    pub admitted_by_window: BTreeMap<i64, u64>,
    /// Times that the stream was opened again.
    pub reopened: u64,
    /// When the first check without an authority was answered, milliseconds from the start.
    pub unreachable_first_ms: Option<u64>,
    /// When the last one was.
    pub unreachable_last_ms: Option<u64>,
    /// When the last admitted check was answered.
    pub admitted_last_ms: Option<u64>,
    /// Half of the answers took at most this.
    pub p50_us: u64,
    /// 99 % of the answers took at most this.
    pub p99_us: u64,
    /// All took at most this.
    pub max_us: u64,
}

/// What one part of a plan came to.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of a flow.
    Loaded(Loaded),
    /// Of calls.
    Called(Called),
}

/// Runs a plan that is given as JSON, and gives what each of its flows, then of its calls, came to as a JSON array.
///
/// # Errors
/// Where the plan can't be read, a target is no address, or nobody answers calls there.
pub fn load_json(plan_json: &str) -> Result<String, ProbeError> {
    let plan: LoadPlan = serde_json::from_str(plan_json).map_err(ProbeError::Plan)?;
    to_json(&load(&plan)?)
}

/// Runs every part of a plan at the same time, from this thread; returns what each was told, in the plan's order.
///
/// A check whose stream breaks is not repeated. Checks that come due while a sidecar is away are sent when it is back.
///
/// # Errors
/// Where a target is no address. A sidecar that is away is waited for by flows, and an error for calls.
pub fn load(plan: &LoadPlan) -> Result<Vec<Outcome>, ProbeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let span = Duration::try_from_secs_f64(plan.seconds).unwrap_or_default();
        let mut channels: BTreeMap<&str, Channel> = BTreeMap::new();
        let mut running = Vec::with_capacity(plan.flows.len());
        let started = Instant::now();
        for flow in &plan.flows {
            let channel = match channels.get(flow.target.as_str()) {
                Some(channel) => channel.clone(),
                None => endpoint(&flow.target)?.connect_lazy(),
            };
            channels.insert(&flow.target, channel.clone());
            let caller = Caller {
                flow: flow.clone(),
                channel,
                started,
                span,
                book: Mutex::default(),
            };
            running.push(tokio::spawn(caller.run()));
        }
        let calling: Vec<_> = plan
            .calls
            .iter()
            .cloned()
            .map(|calls| tokio::spawn(async move { calls.run(span).await }))
            .collect();
        let mut outcomes = Vec::with_capacity(running.len() + calling.len());
        for flow in running {
            outcomes.push(Outcome::Loaded(flow.await.unwrap_or_default()));
        }
        for calls in calling {
            let called = calls.await.map_err(std::io::Error::other)??;
            outcomes.push(Outcome::Called(called));
        }
        Ok(outcomes)
    })
}

/// Checks of one flow that wait for their answers, and what was told so far.
#[derive(Default)]
struct Book {
    loaded: Loaded,
    waiting: BTreeMap<u64, (Instant, i64, OwnedSemaphorePermit)>,
    /// Units of checks to send again, and from when on.
    again: VecDeque<(Instant, i64)>,
    taken_us: Vec<u64>,
}

/// What a caller does next.
enum Next {
    /// Sends a check of so many units.
    Check(i64),
    /// Waits until then.
    Wait(Instant),
    /// Nothing: everything is sent, or the time is over.
    End,
}

impl Book {
    /// Gives up on answers that can't come any more.
    fn give_up(&mut self) {
        self.loaded.unanswered += u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.waiting.clear();
    }
}

struct Caller {
    flow: Flow,
    channel: Channel,
    started: Instant,
    span: Duration,
    book: Mutex<Book>,
}

impl Caller {
    async fn run(self) -> Loaded {
        let left = self.span.saturating_sub(self.started.elapsed());
        // A sidecar that stays paused doesn't end its stream: the time does.
        let _late = tokio::time::timeout(left, async {
            loop {
                // Why it broke is not asked: a killed sidecar and a cut connection look alike to a caller.
                let _broken = self.one_stream().await;
                self.book.lock().give_up();
                if self.is_done() {
                    return;
                }
                tokio::time::sleep(REOPEN).await;
                self.book.lock().loaded.reopened += 1;
            }
        })
        .await;
        let mut book = self.book.into_inner();
        book.give_up();
        book.taken_us.sort_unstable();
        Loaded {
            p50_us: percentile(&book.taken_us, 50),
            p99_us: percentile(&book.taken_us, 99),
            max_us: percentile(&book.taken_us, 100),
            ..book.loaded
        }
    }

    fn is_done(&self) -> bool {
        let book = self.book.lock();
        let all_sent = self.flow.checks > 0 && book.loaded.sent >= self.flow.checks;
        (all_sent && book.again.is_empty()) || self.started.elapsed() >= self.span
    }

    /// Takes what is to be sent now, repeats first.
    fn next(&self) -> Next {
        let now = Instant::now();
        if now.duration_since(self.started) >= self.span {
            return Next::End;
        }
        let mut book = self.book.lock();
        let again_at = book.again.front().map(|(at, _)| *at);
        if again_at.is_some_and(|at| at <= now) {
            book.loaded.repeated += 1;
            return book
                .again
                .pop_front()
                .map_or(Next::Wait(now), |(_, units)| Next::Check(units));
        }
        let number = book.loaded.sent;
        if self.flow.checks == 0 || number < self.flow.checks {
            let due_at = self.started + self.flow.due(number);
            if due_at <= now {
                book.loaded.sent += 1;
                return Next::Check(self.flow.units(number));
            }
            return Next::Wait(again_at.map_or(due_at, |at| at.min(due_at)));
        }
        match again_at {
            Some(at) => Next::Wait(at),
            None if self.flow.insists && !book.waiting.is_empty() => Next::Wait(now + AGAIN),
            None => Next::End,
        }
    }

    /// Sends and hears on one stream until all checks are answered, the time is over, or the stream breaks.
    async fn one_stream(&self) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let codec = ProstCodec::<StreamQuotaRequest, StreamQuotaResponse>::default();
        let requests = Request::new(ReceiverStream::new(receiver));
        // The server answers the call itself with its first message: sending begins before.
        let hearing = async {
            let mut answers = grpc.streaming(requests, STREAM, codec).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                self.hear(answer);
            }
            Ok::<(), Status>(())
        };
        let sending = self.send(sender);
        tokio::pin!(hearing, sending);
        tokio::select! {
            heard = &mut hearing => heard,
            () = &mut sending => hearing.await,
        }
    }

    async fn send(&self, sender: mpsc::Sender<StreamQuotaRequest>) {
        let places = Arc::new(Semaphore::new(match self.flow.in_flight {
            0 => IN_FLIGHT_DEFAULT,
            count => count,
        }));
        for tag in 0.. {
            let units = loop {
                match self.next() {
                    Next::Check(units) => break units,
                    Next::Wait(until) => tokio::time::sleep_until(until.into()).await,
                    Next::End => return,
                }
            };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let waits = (Instant::now(), units, place);
            self.book.lock().waiting.insert(tag, waits);
            let check = Some(self.flow.check(units));
            if sender
                .send(StreamQuotaRequest { tag, check })
                .await
                .is_err()
            {
                return;
            }
        }
    }

    fn hear(&self, answer: StreamQuotaResponse) {
        let mut book = self.book.lock();
        let Some((sent, units, _place)) = book.waiting.remove(&answer.tag) else {
            return;
        };
        book.taken_us.push(micros(sent.elapsed()));
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match answer.result {
            Some(Told::Answer(answer)) => {
                let decision = answer.decision.unwrap_or_default();
                if self.flow.insists && decision.reason() == DecisionReason::AuthorityUnreachable {
                    book.again.push_back((Instant::now() + AGAIN, units));
                }
                let units = u64::try_from(units).unwrap_or(0);
                book.loaded.decided(decision, units, now_ms);
            }
            Some(Told::Error(error)) => {
                *book.loaded.errors.entry(error.reason).or_default() += 1;
            }
            None => {
                *book.loaded.errors.entry(String::from("EMPTY")).or_default() += 1;
            }
        }
    }
}

impl Loaded {
    fn decided(&mut self, decision: Decision, units: u64, now_ms: u64) {
        let reason = decision.reason();
        let name = reason.as_str_name();
        let short = name.strip_prefix("DECISION_REASON_").unwrap_or(name);
        *self.decisions.entry(short.to_owned()).or_default() += 1;
        if decision.allowed {
            let window = decision
                .binding
                .and_then(|limit| limit.window_start)
                .map_or(0, |at| at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000);
            self.admitted_units += units;
            *self.admitted_by_window.entry(window).or_default() += units;
            self.admitted_last_ms = Some(now_ms);
        } else if reason == DecisionReason::AuthorityUnreachable {
            self.unreachable_first_ms.get_or_insert(now_ms);
            self.unreachable_last_ms = Some(now_ms);
        }
    }
}

impl Flow {
    /// Tells how long after the start a check is due.
    fn due(&self, number: u64) -> Duration {
        if self.rate <= 0.0 {
            return Duration::ZERO;
        }
        #[allow(clippy::cast_precision_loss)] // a load of more than 2^53 checks is none
        Duration::try_from_secs_f64(number as f64 / self.rate).unwrap_or(Duration::MAX)
    }

    fn units(&self, number: u64) -> i64 {
        let turns = u64::try_from(self.units.len()).unwrap_or(0).max(1);
        let turn = usize::try_from(number % turns).unwrap_or(0);
        self.units.get(turn).copied().unwrap_or(1)
    }

    fn check(&self, units: i64) -> CheckQuotaRequest {
        CheckQuotaRequest {
            tenant: self.tenant.clone(),
            costs: vec![Cost {
                meter: self.meter.clone(),
                units,
            }],
            attributes: self.attributes.clone().into_iter().collect(),
            mode: CheckMode::Consume.into(),
            detail: Detail::Binding.into(),
            ..CheckQuotaRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LoadPlan;

    /// A plan says what it doesn't know, so that a misspelt bound never loads without one.
    #[test]
    fn a_misspelt_plan_is_refused() {
        let flow = r#"{"target": "unix:/s", "tenant": "t", "meter": "m", "check": 5}"#;
        let read =
            serde_json::from_str::<LoadPlan>(&format!(r#"{{"flows": [{flow}], "seconds": 1}}"#));
        assert!(read.is_err_and(|error| error.to_string().contains("check")));
    }

    /// Checks cost what the plan says, in turn, at an even pace.
    #[test]
    fn checks_follow_the_plan() {
        let flow =
            r#"{"target": "unix:/s", "tenant": "t", "meter": "m", "units": [3, 5], "rate": 4}"#;
        let plan: LoadPlan =
            serde_json::from_str(&format!(r#"{{"flows": [{flow}], "seconds": 1}}"#)).unwrap();
        let flow = &plan.flows[0];
        assert_eq!([3, 5, 3], [flow.units(0), flow.units(1), flow.units(2)]);
        assert_eq!(500, flow.due(2).as_millis());
    }
}
