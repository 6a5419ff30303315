//! One running data plane: wires everything and owns its thread.

use std::{
    io,
    os::fd::RawFd,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use hashbrown::HashSet;
use parking_lot::Mutex;
use prost::Message as _;
use quota_core::{EngineConfig, Holder, ReservationId, UnitsAsked};
use quota_proto::{
    bridge::{Answer, AnswerBatch},
    content::payload_hash,
    ledger::Settlement,
};
use serde_json::{Value, json};
use tokio::{
    runtime::Builder,
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use usage_log::{LogError, NewProducer, Recovered, UsageLog};

use crate::{
    clock::BootClock,
    config::{Config, ConfigError},
    decisions, ended,
    handlers::settled_elsewhere,
    hub::{Hub, HubParts, cold::Cold},
    ids::{Ids, Randomness as _, SystemRandomness, hex},
    journal::fill_percent,
    marks::{self, BootId, Mark},
    outbox::Outbox,
    service::Service,
    shipper::{Shipper, drive},
    snapshot,
    stats::Stats,
    transport::{Listeners, Phase, Tonic, Transport},
};

/// Batches of answers that may wait for the data plane; whoever brings more waits.
const ANSWERS_WAITING: usize = 1_024;
/// How long running calls may take to end once listeners are closed.
const CALLS_END: Duration = Duration::from_millis(500);

/// Why a data plane can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A bad setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The usage log can't be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An address can't be bound, or the system has no resources left.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Answers that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("the bytes are no AnswerBatch: {0}")]
pub struct BadAnswers(#[from] prost::DecodeError);

/// One running data plane. Methods may be called from any thread; dropping it stops it.
pub struct DataPlane {
    outbox: Arc<Outbox>,
    service: Arc<Service>,
    log: UsageLog,
    shipping: Shipping,
    answers: mpsc::Sender<Vec<Answer>>,
    phase: watch::Sender<Phase>,
    addresses: Value,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The shipper, and what wakes it.
#[derive(Clone)]
struct Shipping {
    shipper: Arc<Mutex<Shipper>>,
    wake: Arc<Notify>,
}

impl Shipping {
    fn of(shipper: Shipper) -> Self {
        Self {
            shipper: Arc::new(Mutex::new(shipper)),
            wake: Arc::new(Notify::new()),
        }
    }
}

/// What the thread takes over.
struct Work {
    service: Arc<Service>,
    outbox: Arc<Outbox>,
    log: UsageLog,
    shipping: Shipping,
    listeners: Listeners,
    answers: mpsc::Receiver<Vec<Answer>>,
    expired: mpsc::UnboundedReceiver<ReservationId>,
    settled: mpsc::UnboundedReceiver<Vec<Settlement>>,
    marks: Option<(BootId, mpsc::UnboundedReceiver<Mark>)>,
    snapshot_path: PathBuf,
    welcome_wait: Duration,
    phase: watch::Receiver<Phase>,
}

impl DataPlane {
    /// Opens the usage log, binds the listeners, and starts the data plane's thread.
    ///
    /// # Errors
    /// Bad settings, an address that can't be bound, a log that can't be opened.
    pub fn start(config_json: &str) -> Result<Self, StartError> {
        Self::start_with(config_json, Tonic)
    }

    /// The same with another transport.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(config_json: &str, transport: impl Transport) -> Result<Self, StartError> {
        let config = Config::parse(config_json)?;
        let mut randomness = SystemRandomness;
        let (log, recovered) = open_log(&config, &mut randomness)?;
        let boot_id = marks::boot_id();
        // What can't be removed is not taken over: it stays counted as spent.
        let kept = marks::take_over(&log, &recovered, boot_id).unwrap_or_default();
        let holder = Holder(Ids::new(Box::new(randomness)).sixteen()?);
        let ended = ended::succeed(&log, &recovered, boot_id, holder);
        let snapshot_path = snapshot::path(&config.usage_log_dir);
        let listeners = Listeners::bind(config.listen, config.socket.as_deref())?;
        let addresses = addresses(&listeners, &config);
        let outbox = Arc::new(Outbox::new()?);
        let (expired_sender, expired) = mpsc::unbounded_channel();
        let (marks_sender, marks) = mpsc::unbounded_channel();
        let (settled_sender, settled) = mpsc::unbounded_channel();
        let stats = Arc::new(Stats::default());
        let hub = Arc::new(Hub::new(HubParts {
            engine: engine_config(&config, boot_id),
            scaled: config.embedded,
            monotonic: Arc::new(BootClock),
            outbox: Arc::clone(&outbox),
            stats: Arc::clone(&stats),
            holder,
            producer: recovered.producer_id,
            expired: expired_sender,
            settled: settled_sender,
            marks: marks_sender,
            cold: Cold::new(snapshot::read(&snapshot_path, boot_id)),
        }));
        for kept in kept {
            hub.adopt(kept);
        }
        let service = Arc::new(Service::new(
            hub,
            Arc::new(log.clone()),
            stats,
            Box::new(randomness),
            Duration::from_micros(config.ledger_budget_us),
        ));
        restore(&service, &recovered);
        let shipping = Shipping::of(shipper(&config, &log, &recovered, &service).telling(ended));
        let (answers_sender, answers) = mpsc::channel(ANSWERS_WAITING);
        let (phase_sender, phase) = watch::channel(Phase::Serving);
        let work = Work {
            service: Arc::clone(&service),
            outbox: Arc::clone(&outbox),
            log: log.clone(),
            shipping: shipping.clone(),
            listeners,
            answers,
            expired,
            settled,
            marks: boot_id.map(|boot_id| (boot_id, marks)),
            snapshot_path,
            welcome_wait: Duration::from_millis(config.welcome_wait_ms),
            phase,
        };
        let thread = spawn(work, transport)?;
        Ok(Self {
            outbox,
            service,
            log,
            shipping,
            answers: answers_sender,
            phase: phase_sender,
            addresses,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Gives the eventfd that is readable while commands wait.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.outbox.fd()
    }

    /// Takes every waiting command as an encoded `CommandBatch`.
    #[must_use]
    pub fn take_commands(&self) -> Vec<u8> {
        self.outbox.take()
    }

    /// Hands over an encoded `AnswerBatch`. Waits only while 1,024 earlier batches are unread; not for async threads.
    ///
    /// # Errors
    /// The bytes are no such message; nothing was taken.
    pub fn give_answers(&self, batch: &[u8]) -> Result<(), BadAnswers> {
        let batch = AnswerBatch::decode(batch)?;
        // After `stop` nobody listens, and nothing is waited for.
        let _ = self.answers.blocking_send(batch.answers);
        Ok(())
    }

    /// Tells where it listens, as JSON.
    #[must_use]
    pub fn addresses(&self) -> String {
        self.addresses.to_string()
    }

    /// Tells its counters, as JSON.
    #[must_use]
    pub fn stats(&self) -> String {
        let service = &self.service;
        let mut told = service.stats.json();
        let (waiting, redis_alive, ledger_us) = service.hub.figures();
        let log = self.log.stats();
        let shipped = self.shipping.shipper.lock().figures(service.hub.real_us());
        let watch_up = service.hub.directory.lock().watch_up;
        told.insert("ready".into(), service.ready().into());
        told.insert("draining".into(), service.is_draining().into());
        told.insert("watch_up".into(), watch_up.into());
        told.insert("redis_alive".into(), redis_alive.into());
        told.insert("waiting".into(), waiting.into());
        let kept = service.hub.engine_figures();
        told.insert("keys".into(), kept.keys.into());
        told.insert("keys_resting".into(), kept.keys_resting.into());
        told.insert("keys_refused".into(), kept.keys_refused.into());
        told.insert("uncovered_units".into(), kept.uncovered_units.into());
        told.insert("decisions".into(), service.telling.json());
        told.insert("limits".into(), limits(service.hub.units_by_limit()));
        told.insert(
            "reservations_open".into(),
            service.reservations.lock().count().into(),
        );
        told.insert("ledger_time_us".into(), ledger_us.into());
        told.insert("producer_id".into(), hex(&service.hub.producer()).into());
        told.insert("holder".into(), hex(&service.hub.holder().0).into());
        told.insert("snapshot".into(), service.hub.cold.json());
        told.insert(
            "commands".into(),
            json!({"outstanding": self.outbox.outstanding(), "late_answers": self.outbox.late_answers()}),
        );
        told.insert(
            "log".into(),
            json!({
                "fill_percent": fill_percent(&log),
                "unshipped_records": shipped.unshipped,
                "lag_ms": shipped.lag_us / 1_000,
                "full_in_ms": shipped.full_in_us.map(|full_in_us| full_in_us / 1_000),
                "used_bytes": log.used_bytes,
                "capacity_bytes": log.capacity_bytes,
                "io_errors": log.io_errors,
                "damaged": log.damaged,
                "unchecked_bytes": log.unchecked_bytes,
            }),
        );
        told.insert(
            "shipping".into(),
            json!({
                "batches": shipped.batches,
                "duplicates": shipped.duplicates,
                "conflicts": shipped.conflicts,
                "quarantined": shipped.quarantined,
                "fenced": shipped.fenced,
                "forked": shipped.forked,
                "rewinds": shipped.rewinds,
                "lost": shipped.lost,
                "answers_lost": shipped.answers_lost,
                "skipped": shipped.skipped,
                "refused_seq": shipped.refused_seq,
                "last_error": shipped.last_error,
            }),
        );
        Value::Object(told).to_string()
    }

    /// Begins a clean stop: leases go back and the log is shipped to its end, while calls are still answered.
    pub fn begin_drain(&self) {
        self.service.begin_drain();
        self.service.hub.drain();
        self.shipping.shipper.lock().drain();
        self.shipping.wake.notify_one();
        self.service.telling.flush();
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Draining;
            }
            serving
        });
    }

    /// Whether a drain has finished.
    #[must_use]
    pub fn drained(&self) -> bool {
        let shipped = self.shipping.shipper.lock().is_drained();
        self.service.is_draining()
            && shipped
            && self.service.telling.is_flushed()
            && self.service.hub.engine_outstanding() == 0
            && self.outbox.outstanding() == 0
    }

    /// Stops listeners and the thread at once. What was acknowledged is in the log.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopped);
        if let Some(thread) = self.thread.lock().take() {
            // A data plane that panicked has stopped too.
            let _ = thread.join();
            // What can't be written now was never acknowledged.
            let _ = self.log.close();
        }
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

fn addresses(listeners: &Listeners, config: &Config) -> Value {
    json!({
        "tcp": listeners.address().map(|address| address.to_string()),
        "socket": config.socket.as_ref().map(|path| path.display().to_string()),
    })
}

/// Takes in the reservations that the log says are open.
fn restore(service: &Service, recovered: &Recovered) {
    let unreadable = recovered
        .open
        .iter()
        .filter(|kept| !service.restore(&kept.payload))
        .count();
    if unreadable > 0 {
        service
            .stats
            .bad_message("reservations in the usage log that can't be read");
    }
}

fn open_log(
    config: &Config,
    randomness: &mut SystemRandomness,
) -> Result<(UsageLog, Recovered), StartError> {
    let new_producer = new_producer(randomness)?;
    let (segment_bytes, segments) = config.log_layout();
    let layout = usage_log::Config {
        segment_bytes,
        segments,
        ..usage_log::Config::new(&config.usage_log_dir, new_producer)
    };
    Ok(UsageLog::open(layout, Arc::new(payload_hash))?)
}

fn shipper(config: &Config, log: &UsageLog, recovered: &Recovered, service: &Service) -> Shipper {
    let interval_us = config.ship_interval_ms.saturating_mul(1_000);
    let holder = service.hub.holder().0;
    Shipper::new(log.clone(), recovered, holder, interval_us).hearing(service.verdicts.clone())
}

fn new_producer(randomness: &mut SystemRandomness) -> io::Result<NewProducer> {
    let mut producer = NewProducer {
        id: [0; 16],
        salt: [0; 16],
    };
    randomness.fill(&mut producer.id)?;
    randomness.fill(&mut producer.salt)?;
    Ok(producer)
}

fn engine_config(config: &Config, boot_id: Option<BootId>) -> EngineConfig {
    EngineConfig {
        redis_budget_us: config.redis_budget_us,
        ledger_budget_us: config.ledger_budget_us,
        waiting_max: config.waiting_max,
        proof_age_us: config.proof_age_us,
        keys_max: config.keys_max,
        keeps: boot_id.is_some(),
    }
}

fn spawn(work: Work, transport: impl Transport) -> io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new()
        .name("tollkeeper-data".into())
        .spawn(move || {
            runtime.block_on(run(work, transport));
            // Calls that have not ended by now are dropped with the runtime.
            runtime.shutdown_background();
        })
}

async fn run(work: Work, transport: impl Transport) {
    let Work {
        service,
        outbox,
        log,
        shipping,
        listeners,
        answers,
        expired,
        settled,
        marks,
        snapshot_path,
        welcome_wait,
        mut phase,
    } = work;
    tokio::spawn(hear(Arc::clone(&service), answers));
    tokio::spawn(tick(Arc::clone(&service)));
    tokio::spawn(give_up_on_ledger(Arc::clone(&service), welcome_wait));
    tokio::spawn(expire(Arc::clone(&service), expired));
    if let Some((boot_id, marks)) = marks {
        let hub = Arc::clone(&service.hub);
        tokio::spawn(marks::write(Arc::clone(&hub), log.clone(), boot_id, marks));
        tokio::spawn(snapshot::keep(hub, snapshot_path, boot_id));
    }
    tokio::spawn(take_outcomes(Arc::clone(&service), settled));
    tokio::spawn(name_tenants(
        Arc::clone(&service),
        Arc::clone(&shipping.shipper),
    ));
    tokio::spawn(decisions::tell(Arc::clone(&service), Arc::clone(&outbox)));
    tokio::spawn(ship(Arc::clone(&service), outbox, log, shipping));
    let serving = tokio::spawn(transport.serve(listeners, Arc::clone(&service), phase.clone()));
    // A sender that is gone means the same as a stop.
    let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
    let _ = timeout(CALLS_END, serving).await;
}

/// Goes on without a ledger that has not said anything in time.
async fn give_up_on_ledger(service: Arc<Service>, wait: Duration) {
    sleep(wait).await;
    service.hub.alone(true);
}

/// Takes in answers and news, in their order.
async fn hear(service: Arc<Service>, mut answers: mpsc::Receiver<Vec<Answer>>) {
    while let Some(batch) = answers.recv().await {
        for answer in batch {
            service.hub.hear(answer);
        }
    }
}

/// Does what is due by time.
async fn tick(service: Arc<Service>) {
    loop {
        let wait = Duration::from_micros(service.hub.advance());
        tokio::select! {
            () = sleep(wait) => {}
            () = service.hub.rearm.notified() => {}
        }
    }
}

/// Ships the usage log.
async fn ship(service: Arc<Service>, outbox: Arc<Outbox>, log: UsageLog, shipping: Shipping) {
    let now = || {
        (
            service.hub.real_us(),
            service.hub.now().ok().map(|now| now.ledger_us),
        )
    };
    let renewed = |producer| service.hub.set_producer(producer);
    let new_producer = || new_producer(&mut SystemRandomness).ok();
    drive(
        shipping.shipper,
        log,
        outbox,
        now,
        new_producer,
        renewed,
        shipping.wake,
    )
    .await;
}

/// Tells the shipper which tenants are served, as they become known.
async fn name_tenants(service: Arc<Service>, shipper: Arc<Mutex<Shipper>>) {
    let mut named = HashSet::new();
    loop {
        let heard = service.hub.news.notified();
        tokio::pin!(heard);
        heard.as_mut().enable();
        let served = service.hub.directory.lock().served();
        for tenant in served {
            if named.insert(Arc::clone(&tenant)) {
                shipper.lock().serves(&tenant);
            }
        }
        heard.await;
    }
}

/// Takes in how reservations of this home ended elsewhere, and tells the ledger what it may forget. What can't be taken
/// in now (the log is broken) the ledger tells again on the next stream.
async fn take_outcomes(
    service: Arc<Service>,
    mut settled: mpsc::UnboundedReceiver<Vec<Settlement>>,
) {
    while let Some(outcomes) = settled.recv().await {
        let mut taken = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            if settled_elsewhere(&service, &outcome).await {
                taken.push(outcome.reservation_id);
            }
        }
        service.hub.acknowledge(taken);
    }
}

/// Takes in expiries of reservations.
async fn expire(service: Arc<Service>, mut expired: mpsc::UnboundedReceiver<ReservationId>) {
    while let Some(id) = expired.recv().await {
        service.expired(id);
    }
}

/// Units asked of limits, by name.
fn limits(asked: Vec<(Arc<str>, UnitsAsked)>) -> Value {
    let told = asked.into_iter().map(|(name, units)| {
        let units = json!({"within": units.within, "near": units.near, "over": units.over});
        (String::from(&*name), units)
    });
    Value::Object(told.collect())
}
