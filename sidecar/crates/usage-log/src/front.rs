//! Where callers and the writer thread meet: groups that gather, waiters, requests to the writer.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    api::{
        Append, Committed, Config, Damage, Growth, Hash, Key, LogError, NewProducer, Position,
        Recovered, Stats,
    },
    entry::{Need, Parts},
    format::{COMMIT_BYTES, Kind, PAYLOAD_MAX, push_record, wide},
    scrub::Scrubbed,
};

/// Called once with how it ended.
pub type Notify = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Called once when the log has grown.
pub type Grown = Box<dyn FnOnce() + Send>;

/// Spans of lost entries that are kept; beyond that writing is not tried again.
const LOST_SPANS: usize = 1_024;

/// Share of the capacity, in percent, from which on only entries that end a reservation are taken.
const SETTLING_PERCENT: u64 = 95;

/// Records that become durable together.
#[derive(Default)]
pub(crate) struct Group {
    /// Records without number and checksum.
    pub(crate) bytes: Vec<u8>,
    /// Content hash of each usage record, in order.
    pub(crate) hashes: Vec<Hash>,
    /// Number of records.
    pub(crate) records: u32,
    /// The last entry's position.
    pub(crate) last: Position,
    /// Bytes and hashes that are written already.
    pub(crate) done: (usize, usize),
}

impl Group {
    /// Adds a record.
    pub(crate) fn push(
        &mut self,
        kind: Kind,
        key: Option<&Key>,
        payload: &[u8],
        hash: Option<Hash>,
    ) {
        push_record(&mut self.bytes, kind, key, payload);
        self.hashes.extend(hash);
        self.records = self.records.saturating_add(1);
    }

    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.hashes.clear();
        self.records = 0;
        self.done = (0, 0);
    }
}

/// A request for a new producer, and where its outcome goes.
pub(crate) struct Renewal {
    pub(crate) new_producer: NewProducer,
    pub(crate) from_seq: u64,
    pub(crate) reply: Box<dyn FnOnce(Result<Recovered, LogError>) + Send>,
}

/// What the writer should do next.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) group: Option<Group>,
    pub(crate) committed: Option<Committed>,
    pub(crate) scrubbed: Option<Scrubbed>,
    pub(crate) rescan: Option<u64>,
    pub(crate) renewal: Option<Renewal>,
    pub(crate) closing: bool,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.group.is_none()
            && self.committed.is_none()
            && self.scrubbed.is_none()
            && self.rescan.is_none()
            && self.renewal.is_none()
            && !self.closing
    }
}

/// State behind the lock.
#[derive(Default)]
pub(crate) struct State {
    groups: VecDeque<Group>,
    spare: Vec<Group>,
    next: Position,
    durable: Position,
    committed: Option<Committed>,
    scrubbed: Option<Scrubbed>,
    rescan: Option<u64>,
    renewal: Option<Renewal>,
    closing: bool,
    /// What didn't validate, of this start and of the scrub after it.
    damage: Vec<Damage>,
    failure: Option<LogError>,
    /// First and last entries that writing failed for, in order: they are durable nowhere, whatever became durable later.
    lost: Vec<(u64, u64)>,
    durable_waiters: BTreeMap<(u64, u64), Notify>,
    committed_waiters: BTreeMap<(u64, u64), Notify>,
    waiters_made: u64,
    grown: Option<(Growth, Grown)>,
    /// Sequence number minus usage count of this process: constant until the producer changes.
    base: i64,
    /// Usage records of this process that the ledger has.
    committed_usage: u64,
    /// Bytes of open reservations and marks.
    live_bytes: u64,
    pub(crate) stats: Stats,
}

/// Shared by callers and writer.
pub(crate) struct Front {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
    group_records: u32,
    group_bytes: usize,
    pending_bytes: u64,
    payload_max: usize,
}

impl Front {
    pub(crate) fn new(config: &Config, segment_bytes: u64) -> Self {
        let fits = crate::format::narrow(segment_bytes).saturating_sub(1_024);
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            group_records: config.group_records.max(1),
            group_bytes: usize::try_from(config.group_bytes).unwrap_or(usize::MAX),
            pending_bytes: u64::from(config.pending_bytes),
            payload_max: PAYLOAD_MAX.min(fits),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Appends to the group that gathers, all or none; see [`crate::UsageLog::append_all`].
    pub(crate) fn append_all(&self, entries: &[Append<'_>]) -> Result<Vec<Position>, LogError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut need = Need::default();
        for entry in entries {
            need.add(&Parts::of(entry), self.payload_max)?;
        }
        need.groups = wide(entries.len())
            .checked_div(u64::from(self.group_records))
            .unwrap_or(0)
            .saturating_add(need.bytes.checked_div(wide(self.group_bytes)).unwrap_or(0));
        let mut positions = Vec::with_capacity(entries.len());
        let mut state = self.state.lock();
        state.admit(&need, self.pending_bytes)?;
        for entry in entries {
            let parts = Parts::of(entry);
            positions.push(state.push(&parts, self.group_records, self.group_bytes));
        }
        drop(state);
        self.work.notify_one();
        Ok(positions)
    }

    /// Calls back when durable; see [`crate::UsageLog::on_durable`].
    pub(crate) fn on_durable(&self, position: Position, notify: Notify) {
        let mut state = self.state.lock();
        if let Some(outcome) = state.outcome_of(position) {
            drop(state);
            return notify(outcome);
        }
        let id = state.waiter_id();
        state.durable_waiters.insert((position.entry, id), notify);
    }

    /// Blocks until durable.
    pub(crate) fn wait_durable(&self, position: Position) -> Result<(), LogError> {
        let mut state = self.state.lock();
        loop {
            if let Some(outcome) = state.outcome_of(position) {
                return outcome;
            }
            self.done.wait(&mut state);
        }
    }

    /// Calls back when the ledger has it; see [`crate::UsageLog::on_committed`].
    pub(crate) fn on_committed(&self, position: Position, notify: Notify) {
        let mut state = self.state.lock();
        let failed = state.outcome_of(position).filter(Result::is_err);
        let is_committed = position.usage <= state.committed_usage;
        if let Some(outcome) = failed.or_else(|| is_committed.then_some(Ok(()))) {
            drop(state);
            return notify(outcome);
        }
        let id = state.waiter_id();
        state.committed_waiters.insert((position.usage, id), notify);
    }

    /// Calls back when it has grown so far; see [`crate::UsageLog::on_grown`].
    pub(crate) fn on_grown(&self, growth: Growth, notify: Grown) {
        let mut state = self.state.lock();
        state.grown = Some((growth, notify));
        let ready = state.take_grown();
        drop(state);
        if let Some(notify) = ready {
            notify();
        }
    }

    /// Tells the number in this process of the record that has a sequence number.
    pub(crate) fn record_number(&self, seq: u64) -> Option<u64> {
        let number = i64::try_from(seq)
            .ok()?
            .checked_sub(self.state.lock().base)?;
        u64::try_from(number).ok().filter(|number| *number > 0)
    }

    /// Notes what the ledger has and calls back who waits for it.
    pub(crate) fn set_committed(&self, committed: Committed) {
        let mut state = self.state.lock();
        state.committed = Some(committed);
        state.stats.committed_seq = committed.seq;
        let usage = i64::try_from(committed.seq)
            .unwrap_or(i64::MAX)
            .saturating_sub(state.base);
        let usage = u64::try_from(usage).unwrap_or(0);
        state.committed_usage = state.committed_usage.max(usage);
        let rest = state
            .committed_waiters
            .split_off(&(usage.saturating_add(1), 0));
        let ready = std::mem::replace(&mut state.committed_waiters, rest);
        drop(state);
        self.work.notify_one();
        for notify in ready.into_values() {
            notify(Ok(()));
        }
    }

    /// Asks the writer to scan again from a number on.
    pub(crate) fn request_rescan(&self, seq: u64) {
        let mut state = self.state.lock();
        state.rescan = Some(state.rescan.map_or(seq, |other| other.min(seq)));
        drop(state);
        self.work.notify_one();
    }

    /// Hands the writer what a scrub found.
    pub(crate) fn finish_scrub(&self, found: Scrubbed) {
        self.state.lock().scrubbed = Some(found);
        self.work.notify_one();
    }

    /// Tells how much a scrub has still to read.
    pub(crate) fn set_unchecked(&self, bytes: u64) {
        self.state.lock().stats.unchecked_bytes = bytes;
    }

    /// Notes what didn't validate.
    pub(crate) fn add_damage(&self, damage: Vec<Damage>) {
        let mut state = self.state.lock();
        state.damage.extend(damage);
        state.stats.damaged = wide(state.damage.len());
    }

    /// Asks the writer for a new producer.
    pub(crate) fn request_renewal(&self, renewal: Renewal) -> Result<(), LogError> {
        let mut state = self.state.lock();
        if state.closing || state.renewal.is_some() {
            return Err(LogError::Closed);
        }
        state.renewal = Some(renewal);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Refuses further appends and lets the writer end after what is pending.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
    }

    /// Takes the next work; waits for some when told to, until a moment at most. Groups stay when one is being retried.
    pub(crate) fn take_work(&self, wait: bool, with_group: bool, until: Option<Instant>) -> Work {
        let mut state = self.state.lock();
        loop {
            let work = Work {
                group: if with_group {
                    state.groups.pop_front()
                } else {
                    None
                },
                committed: state.committed.take(),
                scrubbed: state.scrubbed.take(),
                rescan: state.rescan.take(),
                renewal: state.renewal.take(),
                closing: state.closing,
            };
            if !wait || !work.is_empty() {
                return work;
            }
            let Some(until) = until else {
                self.work.wait(&mut state);
                continue;
            };
            if self.work.wait_until(&mut state, until).timed_out() {
                return Work::default();
            }
        }
    }

    /// Tells everyone that a group is durable, and takes it back for reuse.
    pub(crate) fn finish_group(&self, mut group: Group, update: &Update) {
        let mut state = self.state.lock();
        state.durable = group.last;
        let bytes = wide(group.bytes.len());
        state.stats.pending_bytes = state.stats.pending_bytes.saturating_sub(bytes);
        state.stats.durable = group.last.entry;
        state.update(update);
        let rest = state
            .durable_waiters
            .split_off(&(group.last.entry.saturating_add(1), 0));
        let ready = std::mem::replace(&mut state.durable_waiters, rest);
        group.clear();
        if state.spare.len() < 4 {
            state.spare.push(group);
        }
        let grown = state.take_grown();
        drop(state);
        self.done.notify_all();
        if let Some(notify) = grown {
            notify();
        }
        for notify in ready.into_values() {
            notify(Ok(()));
        }
    }

    /// Tells the figures after anything else that the writer did.
    pub(crate) fn update(&self, update: &Update) {
        self.state.lock().update(update);
    }

    /// Stops recording: everyone who waits gets the error, and so does every later append until `resume`.
    pub(crate) fn fail(&self, failure: &LogError) {
        let mut state = self.state.lock();
        state.failure.get_or_insert_with(|| failure.clone());
        state.groups.clear();
        state.stats.pending_bytes = 0;
        let ready = std::mem::take(&mut state.durable_waiters);
        // What is durable can still be committed, until the log closes.
        let kept = if matches!(failure, LogError::Closed) {
            0
        } else {
            state.durable.usage.saturating_add(1)
        };
        let committed = state.committed_waiters.split_off(&(kept, 0));
        drop(state);
        self.done.notify_all();
        for notify in ready.into_values().chain(committed.into_values()) {
            notify(Err(failure.clone()));
        }
    }

    /// Records again after a failure. What was appended and isn't durable is lost for good; numbers go on after the last
    /// that the log has. False where that can't be.
    pub(crate) fn resume(&self, last_seq: u64) -> bool {
        let mut state = self.state.lock();
        let is_closed = matches!(state.failure, Some(LogError::Closed));
        if is_closed || state.lost.len() >= LOST_SPANS {
            return false;
        }
        let (first, last) = (state.durable.entry.saturating_add(1), state.next.entry);
        match state.lost.last_mut() {
            Some(before) if before.0 == first => before.1 = last,
            _ if first <= last => state.lost.push((first, last)),
            _ => {}
        }
        // Numbers of usage are those of the log less a constant, so those of lost records are given away again.
        let usage = i64::try_from(last_seq).unwrap_or(i64::MAX);
        let usage = u64::try_from(usage.saturating_sub(state.base)).unwrap_or(0);
        (state.durable.usage, state.next.usage) = (usage, usage);
        state.stats.appended_seq = state.seq_of(usage);
        state.failure = None;
        true
    }

    /// Sets where numbers start, at open and after a change of producer.
    pub(crate) fn rebase(&self, last_seq: u64, committed_seq: u64) {
        let mut state = self.state.lock();
        let usage = i64::try_from(state.durable.usage).unwrap_or(i64::MAX);
        state.base = i64::try_from(last_seq)
            .unwrap_or(i64::MAX)
            .saturating_sub(usage);
        state.stats.appended_seq = state.seq_of(state.next.usage);
        state.stats.committed_seq = committed_seq;
        state.grown = None;
    }
}

/// Figures that the writer knows.
#[derive(Clone, Copy, Default)]
pub(crate) struct Update {
    pub(crate) durable_seq: u64,
    pub(crate) used_bytes: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) open: u64,
    pub(crate) groups: u64,
    pub(crate) io_errors: u64,
    pub(crate) written_bytes: u64,
    pub(crate) sync_max: Duration,
    pub(crate) sync_total: Duration,
}

impl State {
    /// Returns why recording stopped.
    pub(crate) fn failure(&self) -> Option<&LogError> {
        self.failure.as_ref()
    }

    /// Returns what didn't validate.
    pub(crate) fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Tells whether the log is closing or closed.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// What became of an entry; `None` while it waits.
    fn outcome_of(&self, position: Position) -> Option<Result<(), LogError>> {
        let later = self
            .lost
            .partition_point(|(first, _)| *first <= position.entry);
        let before = later.checked_sub(1).and_then(|place| self.lost.get(place));
        if before.is_some_and(|(_, last)| position.entry <= *last) {
            return Some(Err(LogError::Io("writing it failed".into())));
        }
        if position.entry <= self.durable.entry {
            return Some(Ok(()));
        }
        self.failure.clone().map(Err)
    }

    /// Takes who waits for the log to grow, where it has.
    fn take_grown(&mut self) -> Option<Grown> {
        let (durable_seq, written_bytes) = (self.stats.durable_seq, self.stats.written_bytes);
        let has_grown = |growth: &Growth| {
            growth.durable_seq <= durable_seq || growth.written_bytes <= written_bytes
        };
        let waiting = self.grown.take_if(|(growth, _)| has_grown(growth));
        waiting.map(|(_, notify)| notify)
    }

    fn update(&mut self, update: &Update) {
        self.stats.durable_seq = update.durable_seq;
        self.stats.used_bytes = update.used_bytes;
        self.stats.capacity_bytes = update.capacity_bytes;
        self.stats.open = update.open;
        self.stats.groups = update.groups;
        self.stats.io_errors = update.io_errors;
        self.stats.written_bytes = update.written_bytes;
        self.stats.sync_max = update.sync_max;
        self.stats.sync_total = update.sync_total;
        self.live_bytes = update.live_bytes;
    }

    fn seq_of(&self, usage: u64) -> u64 {
        u64::try_from(
            self.base
                .saturating_add(i64::try_from(usage).unwrap_or(i64::MAX)),
        )
        .unwrap_or(0)
    }

    fn waiter_id(&mut self) -> u64 {
        self.waiters_made = self.waiters_made.saturating_add(1);
        self.waiters_made
    }

    fn admit(&self, need: &Need, pending_max: u64) -> Result<(), LogError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        if self.closing {
            return Err(LogError::Closed);
        }
        let pending = self.stats.pending_bytes;
        let capacity = self.stats.capacity_bytes;
        // Every group adds a commit record; one more group than gather then may be needed at a segment's end.
        let commits = wide(self.groups.len())
            .saturating_add(need.groups)
            .saturating_add(2)
            .saturating_mul(wide(COMMIT_BYTES));
        let used = self
            .stats
            .used_bytes
            .saturating_add(pending)
            .saturating_add(commits)
            .saturating_add(need.bytes);
        let bound = if need.settles {
            capacity
        } else {
            capacity
                .saturating_mul(SETTLING_PERCENT)
                .checked_div(100)
                .unwrap_or(0)
        };
        // What lives on is rewritten before its segment is reused; more than half of the room would leave none.
        let too_much_alive = need.lives
            && self
                .live_bytes
                .saturating_add(pending)
                .saturating_add(need.bytes)
                > capacity.checked_div(2).unwrap_or(0);
        if used > bound || too_much_alive {
            return Err(LogError::Full {
                used_bytes: self.stats.used_bytes,
                capacity_bytes: capacity,
            });
        }
        if pending.saturating_add(need.bytes) > pending_max {
            return Err(LogError::Busy {
                pending_bytes: pending,
            });
        }
        Ok(())
    }

    /// Adds an admitted entry to the group that gathers.
    fn push(&mut self, parts: &Parts<'_>, records: u32, bytes: usize) -> Position {
        let is_usage = parts.kind == Kind::Usage;
        let position = Position {
            entry: self.next.entry.saturating_add(1),
            usage: self.next.usage.saturating_add(u64::from(is_usage)),
        };
        let group = self.gathering(records, bytes);
        let before = group.bytes.len();
        group.push(parts.kind, parts.key, parts.payload, parts.hash);
        group.last = position;
        let added = wide(group.bytes.len().saturating_sub(before));
        self.next = position;
        self.stats.pending_bytes = self.stats.pending_bytes.saturating_add(added);
        self.stats.appended = self.stats.appended.saturating_add(1);
        self.stats.appended_seq = self.seq_of(position.usage);
        position
    }

    fn gathering(&mut self, records: u32, bytes: usize) -> &mut Group {
        let full = self
            .groups
            .back()
            .is_none_or(|group| group.records >= records || group.bytes.len() >= bytes);
        if full {
            let group = self.spare.pop().unwrap_or_default();
            self.groups.push_back(group);
        }
        let last = self.groups.len().saturating_sub(1);
        &mut self.groups[last]
    }
}
