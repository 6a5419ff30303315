//! What is to be done: collected while events are handled, and sent in few large commands.

use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::{
    effect::{AllotAsk, Command, CommandId, Effect, FunctionCall, UseCum, UseReport, WindowLeases},
    hash::Map,
    id::{Holder, WindowId},
    request::Units,
    slab::Key,
};

/// Entries of one command at most.
const ENTRIES_MAX: usize = 10_000;
/// Windows of which is told at once what is had of them, at most: each has its sources.
const LEASES_MAX: usize = 2_000;
/// Calls of one pipeline at most.
const CALLS_MAX: usize = 1_000;

const ALLOT_TIMEOUT_MS: u32 = 500;
/// So many commands ask the ledger for units at a time; what is asked for meanwhile goes together with the next one: an ask
/// by itself costs the ledger several times what it costs among others.
const ALLOTS_MAX: usize = 8;
const REDIS_TIMEOUT_MS: u32 = 100;
const SLOW_TIMEOUT_MS: u32 = 2_000;

/// Who asked the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AskOrigin {
    /// A bucket, for a window that it does not know yet.
    Opening(Key),
    /// A bucket, for this window.
    Window(Key, WindowId),
    /// A token bucket limit, for the shard of this place.
    Shard(u32, u8),
}

/// Who called Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CallOrigin {
    /// A window, at the pool of this generation.
    Grant(Key, WindowId, u64),
    /// A token bucket, at the shard of this generation.
    Take(Key, u64),
    /// A token bucket, that gets units back, at the shard of this generation.
    Give(Key, u64),
    /// A limit's shard of this place and generation, for a standing share.
    Share(u32, u8, u64),
}

/// What is returned to the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Return {
    /// Bucket; `None` = nobody has asked for the key since a restart.
    pub(crate) bucket: Option<Key>,
    /// Window.
    pub(crate) window: WindowId,
    /// In whose name; `None` = this process.
    pub(crate) from: Option<Holder>,
    /// Source.
    pub(crate) generation: u64,
    /// All that was returned of it.
    pub(crate) returned_cum: Units,
}

/// What is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    /// Bucket; `None` where the window is over.
    pub(crate) bucket: Option<Key>,
    /// Window.
    pub(crate) window: WindowId,
    /// What was used so far.
    pub(crate) used: UseCum,
    /// Own use at this moment, as the window counts it.
    pub(crate) own_use: Units,
    /// Concurrency: the lease to renew.
    pub(crate) lease_epoch: u64,
    /// Concurrency: units in flight.
    pub(crate) in_flight: Units,
    /// Real time of the report.
    pub(crate) sent_us: u64,
}

impl Report {
    const fn entry(&self) -> UseReport {
        UseReport {
            window: self.window,
            used: self.used,
            lease_epoch: self.lease_epoch,
            in_flight: self.in_flight,
        }
    }
}

/// A command without an answer.
#[derive(Debug)]
pub(crate) enum Outstanding {
    /// `Allot`.
    Allot(Vec<AskOrigin>),
    /// `ReturnUnits`.
    Return(Vec<Return>),
    /// `ReportConsumption`.
    Report(Vec<Report>),
    /// `ReportLeases`.
    Leases(Vec<WindowLeases>),
    /// Functions.
    Functions(Vec<CallOrigin>),
    /// Channels, asked for in this life of the subscriber connection.
    Subscribe(Vec<Arc<str>>, u64),
    /// Channels.
    Unsubscribe,
    /// Tenants.
    Watch(Vec<Arc<str>>),
}

/// What is to be done and what is under way.
#[derive(Debug)]
pub(crate) struct Outbox {
    holder: Holder,
    effects: Vec<Effect>,
    asks: Vec<(AllotAsk, AskOrigin)>,
    /// `Allot` commands without an answer.
    allots: usize,
    calls: Vec<(FunctionCall, CallOrigin)>,
    returns: Vec<Return>,
    reports: Vec<Report>,
    leases: Vec<WindowLeases>,
    subscribe: Vec<Arc<str>>,
    subscribe_epoch: u64,
    unsubscribe: Vec<Arc<str>>,
    watch: Vec<Arc<str>>,
    next_id: CommandId,
    outstanding: Map<CommandId, (u64, Outstanding)>,
    real_us: u64,
}

impl Outbox {
    /// Nothing to do.
    pub(crate) const fn new(holder: Holder, state: FixedState) -> Self {
        Self {
            holder,
            effects: Vec::new(),
            asks: Vec::new(),
            allots: 0,
            calls: Vec::new(),
            returns: Vec::new(),
            reports: Vec::new(),
            leases: Vec::new(),
            subscribe: Vec::new(),
            subscribe_epoch: 0,
            unsubscribe: Vec::new(),
            watch: Vec::new(),
            next_id: 1,
            outstanding: Map::with_hasher(state),
            real_us: 0,
        }
    }

    /// Tells the owner something that needs no answer.
    pub(crate) fn tell(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Asks the ledger for units.
    pub(crate) fn ask(&mut self, ask: AllotAsk, origin: AskOrigin) {
        self.asks.push((ask, origin));
    }

    /// Calls a function.
    pub(crate) fn call(&mut self, call: FunctionCall, origin: CallOrigin) {
        self.calls.push((call, origin));
    }

    /// Returns units to the ledger.
    pub(crate) fn give_back(&mut self, entry: Return) {
        self.returns.push(entry);
    }

    /// Reports use.
    pub(crate) fn report(&mut self, entry: Report) {
        self.reports.push(entry);
    }

    /// Tells what is had of a window.
    pub(crate) fn tell_leases(&mut self, leases: WindowLeases) {
        self.leases.push(leases);
    }

    /// Subscribes to a channel, in this life of the connection. Subscriptions leave before function calls.
    pub(crate) fn subscribe(&mut self, channel: Arc<str>, epoch: u64) {
        if epoch != self.subscribe_epoch {
            self.flush_subscriptions();
            self.subscribe_epoch = epoch;
        }
        self.subscribe.push(channel);
    }

    /// Leaves a channel.
    pub(crate) fn unsubscribe(&mut self, channel: Arc<str>) {
        self.unsubscribe.push(channel);
    }

    /// Where to name tenants to be fetched.
    pub(crate) fn watch_list(&mut self) -> &mut Vec<Arc<str>> {
        &mut self.watch
    }

    /// Notes the real time at which whatever follows is sent.
    pub(crate) const fn set_time(&mut self, real_us: u64) {
        self.real_us = real_us;
    }

    /// Real time at which whatever follows is sent.
    pub(crate) const fn real_us(&self) -> u64 {
        self.real_us
    }

    /// Takes the command of this name off the list; answers when it was sent as well.
    pub(crate) fn answered(&mut self, id: CommandId) -> Option<(u64, Outstanding)> {
        let answered = self.outstanding.remove(&id);
        if let Some((_, Outstanding::Allot(_))) = answered {
            self.allots = self.allots.saturating_sub(1);
        }
        answered
    }

    /// Names a mark.
    pub(crate) const fn mark(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        id
    }

    /// Commands without an answer, sent or not.
    pub(crate) fn outstanding(&self) -> usize {
        let waiting = self
            .asks
            .len()
            .saturating_add(self.calls.len())
            .saturating_add(self.returns.len());
        let others = self
            .reports
            .len()
            .saturating_add(self.leases.len())
            .saturating_add(self.subscribe.len())
            .saturating_add(self.unsubscribe.len());
        let unsent = waiting
            .saturating_add(others)
            .saturating_add(self.watch.len());
        self.outstanding.len().saturating_add(unsent)
    }

    /// Whether `flush` would bring anything.
    pub(crate) fn has_news(&self) -> bool {
        !self.effects.is_empty()
            || self.may_ask()
            || !self.calls.is_empty()
            || !self.returns.is_empty()
            || !self.reports.is_empty()
            || !self.leases.is_empty()
            || !self.subscribe.is_empty()
            || !self.unsubscribe.is_empty()
            || !self.watch.is_empty()
    }

    /// Whether there is something to ask the ledger for, and a command may do so now.
    fn may_ask(&self) -> bool {
        !self.asks.is_empty() && self.allots < ALLOTS_MAX
    }

    fn command(&mut self, timeout_ms: u32, command: Command, outstanding: Outstanding) {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        self.outstanding.insert(id, (self.real_us, outstanding));
        self.effects.push(Effect::Command {
            id,
            timeout_ms,
            command,
        });
    }

    fn flush_subscriptions(&mut self) {
        if !self.unsubscribe.is_empty() {
            let channels = std::mem::take(&mut self.unsubscribe);
            self.command(
                SLOW_TIMEOUT_MS,
                Command::Unsubscribe(channels),
                Outstanding::Unsubscribe,
            );
        }
        if !self.subscribe.is_empty() {
            let channels = std::mem::take(&mut self.subscribe);
            let outstanding = Outstanding::Subscribe(channels.clone(), self.subscribe_epoch);
            self.command(SLOW_TIMEOUT_MS, Command::Subscribe(channels), outstanding);
        }
    }

    fn flush_ledger(&mut self) {
        let holder = self.holder;
        while self.may_ask() {
            self.allots = self.allots.saturating_add(1);
            let count = self.asks.len().min(ENTRIES_MAX);
            let (asks, origins) = self.asks.drain(..count).unzip();
            self.command(
                ALLOT_TIMEOUT_MS,
                Command::Allot { holder, asks },
                Outstanding::Allot(origins),
            );
        }
        while let Some(from) = self.returns.first().map(|entry| entry.from) {
            let returns = std::mem::take(&mut self.returns);
            let is_first = |entry: &Return| entry.from == from;
            let (mut sent, mut later): (Vec<Return>, _) = returns.into_iter().partition(is_first);
            later.extend(sent.split_off(sent.len().min(ENTRIES_MAX)));
            self.returns = later;
            let entries = sent
                .iter()
                .map(|entry| (entry.window, entry.generation, entry.returned_cum))
                .collect();
            let holder = from.unwrap_or(holder);
            self.command(
                SLOW_TIMEOUT_MS,
                Command::ReturnUnits { holder, entries },
                Outstanding::Return(sent),
            );
        }
        while !self.reports.is_empty() {
            let count = self.reports.len().min(ENTRIES_MAX);
            let sent: Vec<Report> = self.reports.drain(..count).collect();
            let entries = sent.iter().map(Report::entry).collect();
            self.command(
                SLOW_TIMEOUT_MS,
                Command::ReportConsumption { holder, entries },
                Outstanding::Report(sent),
            );
        }
        while !self.leases.is_empty() {
            let count = self.leases.len().min(LEASES_MAX);
            let entries: Vec<WindowLeases> = self.leases.drain(..count).collect();
            let outstanding = Outstanding::Leases(entries.clone());
            self.command(
                SLOW_TIMEOUT_MS,
                Command::ReportLeases { holder, entries },
                outstanding,
            );
        }
    }

    /// Moves everything into `out`: answers first, then questions, subscriptions before functions.
    pub(crate) fn flush(&mut self, out: &mut Vec<Effect>) {
        self.flush_subscriptions();
        while !self.calls.is_empty() {
            let count = self.calls.len().min(CALLS_MAX);
            let (calls, origins) = self.calls.drain(..count).unzip();
            self.command(
                REDIS_TIMEOUT_MS,
                Command::Redis(calls),
                Outstanding::Functions(origins),
            );
        }
        self.flush_ledger();
        if !self.watch.is_empty() {
            let names = std::mem::take(&mut self.watch);
            let outstanding = Outstanding::Watch(names.clone());
            self.command(SLOW_TIMEOUT_MS, Command::WatchTenants(names), outstanding);
        }
        out.append(&mut self.effects);
    }
}
