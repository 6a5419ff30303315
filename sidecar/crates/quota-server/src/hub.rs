//! The engine's owner: feeds it calls, events and time, and carries out what it decides.
//!
//! The engine sits behind one mutex that is never held across an await or a system call other than the eventfd's.
//! Every caller but `stats` runs on the data plane's one thread, so the lock is practically never contended: an
//! uncontended lock and unlock cost about 15 ns of a check's microseconds, while handing every check to an owning task
//! through a channel would cost two wake-ups.

pub(crate) mod cold;

use std::{collections::VecDeque, sync::Arc};

use hashbrown::HashMap;
use parking_lot::Mutex;
use quota_core::{
    CheckRequest, Checked, Command, CommandFailure, Cost, Decision, Decisions, Effect, Engine,
    EngineConfig, EngineFigures, Event, Explanation, FailureKind, Holder, Kept, LevelChange,
    LimitState, Marked, Now, Reservation, ReservationId, SettleRefusal, Settled, Ticket,
    UnitsAsked,
};
use quota_proto::{
    answer::{event, witness},
    bridge::{self, answer::Result as Outcome},
    command::{action, watch_acknowledge, watch_cache_done, watch_clock_applied},
    ledger::{CacheAction, CacheOrder, Settlement},
    watch::{WatchNews, news},
};
use tokio::sync::{Notify, mpsc, oneshot};

use self::cold::Cold;
use crate::{
    clock::{LedgerClock, Monotonic},
    directory::Directory,
    marks::Mark,
    outbox::{Outbox, WATCH_TIMEOUT_MS},
    refusal::{Answer, Refusal},
    stats::Stats,
};

/// Longest real time between two calls of `Engine::advance`.
const TICK_US: u64 = 100_000;
/// Rounds of answering the engine's own commands at once before the rest waits for the next call.
const ROUNDS_MAX: usize = 8;

struct State {
    engine: Engine,
    clock: LedgerClock,
    tickets: HashMap<Ticket, oneshot::Sender<Decision>>,
    next_ticket: Ticket,
    effects: Vec<Effect>,
    /// Real time at which the ticker wakes by itself.
    armed_us: u64,
    /// When the last ping that Redis answered was sent; 0 while notices of pools are not heard.
    redis_sent_us: u64,
}

/// The engine with its clock, its waiting callers and its line to the control plane.
pub(crate) struct Hub {
    state: Mutex<State>,
    pub(crate) directory: Mutex<Directory>,
    monotonic: Arc<dyn Monotonic>,
    outbox: Arc<Outbox>,
    stats: Arc<Stats>,
    holder: Holder,
    /// Usage producer of this volume; changes when the ledger fences it.
    producer: Mutex<[u8; 16]>,
    expired: mpsc::UnboundedSender<ReservationId>,
    settled: mpsc::UnboundedSender<Vec<Settlement>>,
    marks: mpsc::UnboundedSender<Mark>,
    /// Starting without the ledger.
    pub(crate) cold: Cold,
    /// Wakes the ticker when something became due earlier.
    pub(crate) rearm: Notify,
    /// Wakes who waits for a tenant to be known.
    pub(crate) news: Notify,
}

/// What a check came to at once.
#[allow(clippy::large_enum_variant)] // the large one is the common one: boxing it would cost every check an allocation
pub(crate) enum Begun {
    Decided(Decision),
    Waiting(Wait),
}

/// A check that waits for units; dropping it withdraws it.
pub(crate) struct Wait {
    hub: Arc<Hub>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Decision>,
}

impl Wait {
    /// Waits for the decision, at most as long as the engine's budgets.
    pub(crate) async fn decision(mut self) -> Answer<Decision> {
        (&mut self.receiver).await.map_err(|_| Refusal::starting())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        if state.tickets.remove(&self.ticket).is_some() {
            state.engine.cancel(self.ticket);
            // Others may have waited for what was set aside for it.
            self.hub.rearm.notify_one();
        }
    }
}

/// What a hub is made of.
pub(crate) struct HubParts {
    pub(crate) engine: EngineConfig,
    pub(crate) scaled: bool,
    pub(crate) monotonic: Arc<dyn Monotonic>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) holder: Holder,
    pub(crate) producer: [u8; 16],
    pub(crate) expired: mpsc::UnboundedSender<ReservationId>,
    /// Takes outcomes of this home's reservations that ended elsewhere.
    pub(crate) settled: mpsc::UnboundedSender<Vec<Settlement>>,
    /// Takes what is to be kept for a restart.
    pub(crate) marks: mpsc::UnboundedSender<Mark>,
    pub(crate) cold: Cold,
}

impl Hub {
    pub(crate) fn new(parts: HubParts) -> Self {
        Self {
            state: Mutex::new(State {
                engine: Engine::new(parts.engine, parts.holder),
                clock: LedgerClock::new(parts.scaled),
                tickets: HashMap::new(),
                next_ticket: 0,
                effects: Vec::new(),
                armed_us: 0,
                redis_sent_us: 0,
            }),
            directory: Mutex::new(Directory::default()),
            monotonic: parts.monotonic,
            outbox: parts.outbox,
            stats: parts.stats,
            holder: parts.holder,
            producer: Mutex::new(parts.producer),
            expired: parts.expired,
            settled: parts.settled,
            marks: parts.marks,
            cold: parts.cold,
            rearm: Notify::new(),
            news: Notify::new(),
        }
    }

    /// Tells the time on both clocks.
    pub(crate) fn now(&self) -> Answer<Now> {
        self.present(&mut self.state.lock())
    }

    /// Tells real time.
    pub(crate) fn real_us(&self) -> u64 {
        self.monotonic.now_us()
    }

    pub(crate) const fn holder(&self) -> Holder {
        self.holder
    }

    pub(crate) fn producer(&self) -> [u8; 16] {
        *self.producer.lock()
    }

    /// Notes that the volume's producer was replaced.
    pub(crate) fn set_producer(&self, producer: [u8; 16]) {
        *self.producer.lock() = producer;
    }

    /// Decides, or begins to wait.
    pub(crate) fn begin(self: &Arc<Self>, request: &CheckRequest) -> Answer<Begun> {
        let mut state = self.state.lock();
        let now = self.present(&mut state)?;
        let ticket = state.next_ticket;
        state.next_ticket = state.next_ticket.wrapping_add(1);
        match state.engine.check(now, ticket, request) {
            Checked::Decided(decision) => {
                self.flush(&mut state, now);
                Ok(Begun::Decided(decision))
            }
            Checked::Full => {
                self.flush(&mut state, now);
                Err(Refusal::full())
            }
            Checked::Waiting => {
                let (sender, receiver) = oneshot::channel();
                state.tickets.insert(ticket, sender);
                self.flush(&mut state, now);
                self.rearm_if_earlier(&mut state, now);
                drop(state);
                Ok(Begun::Waiting(Wait {
                    hub: Arc::clone(self),
                    ticket,
                    receiver,
                }))
            }
        }
    }

    /// Gives an open reservation.
    pub(crate) fn reservation(&self, id: ReservationId) -> Option<Reservation> {
        self.state.lock().engine.reservation(id).cloned()
    }

    /// Gives a reservation's units back as if it had never been.
    pub(crate) fn undo(&self, id: ReservationId) {
        self.with_engine(|engine, now| engine.undo_reservation(now, id));
    }

    /// Takes in a reservation from the log.
    pub(crate) fn restore(&self, reservation: Reservation) {
        self.state.lock().engine.restore_reservation(reservation);
    }

    /// Takes over what a dead process kept; its mark is gone for good.
    pub(crate) fn adopt(&self, kept: Kept) {
        self.state.lock().engine.adopt(kept);
    }

    /// Takes in what became of a mark.
    pub(crate) fn marked(&self, id: u64, outcome: Marked) {
        self.tell_engine(Event::Marked(id, outcome));
    }

    /// Ends a reservation whose record is durable.
    pub(crate) fn settle(
        &self,
        id: ReservationId,
        actual: &[Cost],
    ) -> Result<Settled, SettleRefusal> {
        self.with_engine(|engine, now| engine.settle(now, id, actual))
            .unwrap_or(Err(SettleRefusal::Unknown))
    }

    /// Gives every limit of a tenant.
    pub(crate) fn quota(
        &self,
        tenant: &str,
        attributes: &[(Box<str>, Box<str>)],
    ) -> Option<Vec<LimitState>> {
        self.with_engine(|engine, now| engine.quota(now, tenant, attributes))
            .flatten()
    }

    /// Explains every limit for a call, with the ages of the ways to ledger and Redis in real µs.
    #[allow(clippy::type_complexity)] // read in one place
    pub(crate) fn explain(
        &self,
        tenant: &str,
        costs: &[Cost],
        attributes: &[(Box<str>, Box<str>)],
    ) -> Option<(Vec<Explanation>, (Option<u64>, Option<u64>))> {
        self.with_engine(|engine, now| {
            let limits = engine.explain(now, tenant, costs, attributes)?;
            Some((limits, engine.link_ages_us(now)))
        })
        .flatten()
    }

    /// Gives what a record of these costs would change of levels; `None` while the tenant isn't known.
    pub(crate) fn levels(
        &self,
        tenant: &Arc<str>,
        costs: &[Cost],
        attributes: &[(Box<str>, Box<str>)],
    ) -> Option<Vec<LevelChange>> {
        self.with_engine(|engine, now| engine.levels(now, tenant, costs, attributes))
            .flatten()
    }

    /// Notes that a level's fall was recorded here.
    pub(crate) fn fell(&self, change: &LevelChange) {
        self.with_engine(|engine, _| engine.fell(change));
    }

    /// Says whether a tenant exists; `None` while it is being fetched.
    pub(crate) fn tenant_known(&self, tenant: &Arc<str>) -> Option<bool> {
        self.with_engine(|engine, now| engine.tenant_known(now, tenant))
            .flatten()
    }

    /// Does what is due and says after how many real µs to come again.
    pub(crate) fn advance(&self) -> u64 {
        let mut state = self.state.lock();
        let Ok(now) = self.present(&mut state) else {
            return TICK_US;
        };
        state.engine.advance(now);
        self.flush(&mut state, now);
        let wait_us = state.engine.next_due(now).min(TICK_US);
        state.armed_us = now.real_us.saturating_add(wait_us);
        wait_us
    }

    /// Begins to give every unit back.
    pub(crate) fn drain(&self) {
        self.with_engine(Engine::drain);
    }

    /// Commands of the engine without an answer.
    pub(crate) fn engine_outstanding(&self) -> usize {
        self.state.lock().engine.outstanding()
    }

    /// Tells how much the engine keeps, and what should alarm somebody.
    pub(crate) fn engine_figures(&self) -> EngineFigures {
        self.state.lock().engine.figures()
    }

    /// Takes what limits decided since the last take, as [`Engine::take_decisions`] says.
    pub(crate) fn take_decisions(&self, counts_max: usize, into: &mut Decisions) -> bool {
        let mut state = self.state.lock();
        state.engine.take_decisions(counts_max, into)
    }

    /// Tells the units asked of limits so far, by name.
    pub(crate) fn units_by_limit(&self) -> Vec<(Arc<str>, UnitsAsked)> {
        self.state.lock().engine.units_by_limit()
    }

    /// (waiting checks, whether Redis' subscriber is alive, ledger time if known).
    pub(crate) fn figures(&self) -> (usize, bool, Option<i64>) {
        let mut state = self.state.lock();
        let ledger_us = self.present(&mut state).ok().map(|now| now.ledger_us);
        (state.tickets.len(), state.redis_sent_us > 0, ledger_us)
    }

    /// Takes in an answer or news from the control plane.
    pub(crate) fn hear(&self, answer: bridge::Answer) {
        if answer.id != 0 {
            if let Some(reply) = self.outbox.settle(answer) {
                // Before the engine spends what came with it: Postgres had committed both.
                if let Some(seen) = witness(reply.kind, reply.outcome.as_ref()) {
                    self.witnessed(seen.timeline, &seen.value);
                }
                self.tell_engine(event(reply.id, reply.kind, reply.outcome));
            }
            return;
        }
        match answer.result {
            Some(Outcome::Watch(bytes)) => self.hear_watch(&bytes),
            Some(Outcome::WatchUp(up)) => self.watch_changed(up),
            Some(Outcome::Notice(notice)) => {
                let channel = notice.channel.into();
                self.tell_engine(if notice.message == "SHORT" {
                    Event::Short(channel)
                } else {
                    Event::Notice(channel)
                });
            }
            Some(Outcome::RedisAlive(_)) => self.redis_alive(answer.sent_us),
            Some(Outcome::RedisLost(_)) => self.redis_lost(),
            _ => self.stats.bad_message("news of an unknown kind"),
        }
    }

    fn hear_watch(&self, bytes: &[u8]) {
        let parsed = match news(bytes) {
            Ok(parsed) => parsed,
            Err(error) => return self.stats.bad_message(&error.to_string()),
        };
        self.remember(&parsed, bytes);
        if let WatchNews::Welcome(welcome) = &parsed {
            return self.welcomed(welcome);
        }
        match parsed {
            WatchNews::Meters(meters, rules) => {
                self.directory.lock().learn_meters(&meters, &rules);
                self.tell_engine(Event::Meters(meters));
                self.news.notify_waiters();
            }
            WatchNews::Tenant(snapshot) => {
                self.directory.lock().learn(&snapshot);
                self.tell_engine(Event::Tenant(snapshot));
                self.news.notify_waiters();
            }
            WatchNews::Unknown(tenant) => {
                self.directory.lock().forget(&tenant);
                self.tell_engine(Event::TenantUnknown(tenant));
                self.news.notify_waiters();
            }
            WatchNews::Engine(event) => self.tell_engine(event),
            WatchNews::Witness(witness) => self.witnessed(witness.timeline, &witness.value),
            WatchNews::Clock(clock) => self.set_clock(&clock),
            WatchNews::Settlements(outcomes) => drop(self.settled.send(outcomes)),
            WatchNews::Heartbeat(heartbeat) => {
                self.directory.lock().changed(heartbeat.change);
                let real_us = self.real_us();
                let sent_us = self.state.lock().clock.heartbeat(real_us, heartbeat.now_us);
                self.tell_engine(Event::LedgerAlive { sent_us });
            }
            WatchNews::CacheOrder(order) => self.obey(order),
            WatchNews::PseudonymKeys(keys) => {
                self.directory.lock().learn_keys(&keys);
                self.news.notify_waiters();
            }
            WatchNews::Welcome(_) | WatchNews::Nothing => {}
        }
    }

    /// Remembers what Postgres had committed; the engine hears of a timeline that rises.
    fn witnessed(&self, timeline: u64, value: &[u8]) {
        let before = {
            let mut directory = self.directory.lock();
            let (before, _) = directory.seen();
            directory.witnessed(timeline, value);
            before
        };
        if timeline > before {
            self.tell_engine(Event::Timeline(timeline));
        }
    }

    /// Carries out an operator's order and says so. Before ledger time is known nothing is leased: nothing is touched.
    fn obey(&self, order: CacheOrder) {
        let tenant: Option<Arc<str>> = (!order.tenant.is_empty()).then(|| order.tenant.into());
        let keys = self.with_engine(|engine, now| match CacheAction::try_from(order.action) {
            Ok(CacheAction::Warm) => engine.warm(now, tenant.as_ref()),
            Ok(CacheAction::Invalidate) => engine.invalidate(now, tenant.as_ref()),
            Ok(CacheAction::Unspecified) | Err(_) => 0,
        });
        let done = watch_cache_done(order.order_id, keys.unwrap_or(0));
        self.outbox.tell(WATCH_TIMEOUT_MS, done);
    }

    /// The ledger introduced itself: from the first time on there is ledger time, so the engine can be told things.
    fn welcomed(&self, welcome: &quota_proto::ledger::WatchWelcome) {
        let Some(clock) = &welcome.clock else {
            return self.stats.bad_message("welcome without a clock");
        };
        self.set_clock(clock);
        let first = {
            let mut directory = self.directory.lock();
            let first = !directory.welcomed;
            directory.welcome(welcome);
            first
        };
        self.installed(welcome);
        self.tell_engine(Event::Timeline(welcome.timeline));
        if first {
            self.tell_engine(Event::WatchUp);
            let sent_us = self.state.lock().redis_sent_us;
            if sent_us > 0 {
                self.tell_engine(Event::RedisAlive { sent_us });
            }
        }
    }

    fn set_clock(&self, clock: &quota_proto::ledger::ClockState) {
        let (taken, version) = {
            let mut state = self.state.lock();
            (
                state.clock.set(self.real_us(), clock),
                state.clock.version(),
            )
        };
        if !taken {
            self.stats
                .bad_message("a scaled clock is believed in the embedded setup only");
        }
        self.outbox
            .tell(WATCH_TIMEOUT_MS, watch_clock_applied(version));
        // What is due by ledger time may be due now.
        self.rearm.notify_one();
    }

    /// Tells the ledger which outcomes it may forget. Lost with the stream, which tells them again.
    pub(crate) fn acknowledge(&self, reservations: Vec<Vec<u8>>) {
        self.outbox
            .tell(WATCH_TIMEOUT_MS, watch_acknowledge(reservations));
    }

    fn watch_changed(&self, up: bool) {
        let introduction = {
            let mut directory = self.directory.lock();
            directory.watch_changed(up);
            up.then(|| directory.introduction(self.holder.0, self.producer()))
        };
        if let Some(hello) = introduction {
            self.outbox.tell(WATCH_TIMEOUT_MS, hello);
        }
        self.tell_engine(if up { Event::WatchUp } else { Event::WatchDown });
        if !up {
            self.alone(false);
        }
    }

    fn redis_alive(&self, sent_us: u64) {
        let sent_us = if sent_us == 0 {
            self.real_us()
        } else {
            sent_us
        };
        self.state.lock().redis_sent_us = sent_us;
        self.tell_engine(Event::RedisAlive { sent_us });
    }

    fn redis_lost(&self) {
        self.state.lock().redis_sent_us = 0;
        self.tell_engine(Event::RedisLost);
    }

    /// Tells the engine what happened; before the first welcome there is no time at which it could have.
    fn tell_engine(&self, event: Event) {
        self.with_engine(|engine, now| engine.handle(now, event));
    }

    fn with_engine<T>(&self, work: impl FnOnce(&mut Engine, Now) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let now = self.present(&mut state).ok()?;
        let result = work(&mut state.engine, now);
        self.flush(&mut state, now);
        self.rearm_if_earlier(&mut state, now);
        Some(result)
    }

    fn present(&self, state: &mut State) -> Answer<Now> {
        state
            .clock
            .now(self.monotonic.now_us())
            .ok_or_else(Refusal::starting)
    }

    fn rearm_if_earlier(&self, state: &mut State, now: Now) {
        let due_us = now.real_us.saturating_add(state.engine.next_due(now));
        if due_us < state.armed_us {
            state.armed_us = due_us;
            self.rearm.notify_one();
        }
    }

    /// Carries out what the engine wants done, in order.
    fn flush(&self, state: &mut State, now: Now) {
        for _ in 0..ROUNDS_MAX {
            let mut effects = std::mem::take(&mut state.effects);
            state.engine.drain_effects(&mut effects);
            if effects.is_empty() {
                state.effects = effects;
                return;
            }
            let mut unsent = VecDeque::new();
            for effect in effects.drain(..) {
                match effect {
                    Effect::Decide { ticket, decision } => {
                        if let Some(waiting) = state.tickets.remove(&ticket) {
                            // A caller that went away at this very moment has its units spent, as if it had crashed.
                            let _ = waiting.send(decision);
                        }
                    }
                    Effect::Command {
                        id,
                        timeout_ms,
                        command,
                    } => {
                        if let Some(failed) = self.send(id, timeout_ms, command) {
                            unsent.push_back(failed);
                        }
                    }
                    Effect::Keep { id, window, kept } => {
                        let _ = self.marks.send((id, window, kept));
                    }
                    Effect::Expired(id) => {
                        let _ = self.expired.send(id);
                    }
                }
            }
            state.effects = effects;
            for event in unsent {
                state.engine.handle(now, event);
            }
        }
    }

    /// Sends a command; one for a watch stream that is down is answered here, so that none precedes a hello.
    fn send(&self, id: u64, timeout_ms: u32, command: Command) -> Option<Event> {
        if let Command::WatchTenants(tenants) = &command {
            let is_followed = self.directory.lock().follow(tenants);
            if !is_followed {
                let failure = CommandFailure {
                    kind: FailureKind::Unreachable,
                    reason: Box::default(),
                };
                return Some(Event::Done(id, Err(failure)));
            }
        }
        let (action, kind) = action(command);
        self.outbox.ask_for_engine(id, timeout_ms, action, kind);
        None
    }
}
