//! Starting while the ledger is away: from the last snapshot, or with nothing but the failure policy.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use quota_core::{Decision, Event, Reason};
use quota_proto::{
    bridge::Snapshot,
    command::watch_add,
    ledger::{ClockState, WatchWelcome},
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::Hub;
use crate::{
    marks::BootId,
    outbox::WATCH_TIMEOUT_MS,
    snapshot::{Memory, SnapshotError},
};

/// What a start needs of the one before, and leaves for the next.
#[derive(Debug)]
pub(crate) struct Cold {
    /// What was found at the start and is not used (yet).
    found: Mutex<Result<Box<Snapshot>, SnapshotError>>,
    /// The ledger is away since before it ever spoke, and there is nothing to start from.
    is_lost: AtomicBool,
    is_used: AtomicBool,
    memory: Mutex<Memory>,
    written: AtomicU64,
    failures: AtomicU64,
    /// The next snapshot has to say something else than the last.
    pub(crate) moved: Notify,
}

impl Cold {
    pub(crate) fn new(found: Result<Snapshot, SnapshotError>) -> Self {
        let mut memory = Memory::default();
        if let Ok(found) = &found {
            memory.installation_id = found.installation_id.to_vec();
        }
        Self {
            found: Mutex::new(found.map(Box::new)),
            is_lost: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            memory: Mutex::new(memory),
            written: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            moved: Notify::new(),
        }
    }

    /// Whether calls are answered by the failure policy alone: no ledger, no snapshot.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Whether this process started from a snapshot.
    pub(crate) fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// Counts a snapshot that was written, or could not be.
    pub(crate) fn written(&self, is_written: bool) {
        let count = if is_written {
            &self.written
        } else {
            &self.failures
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells how it stands, as JSON.
    pub(crate) fn json(&self) -> Value {
        let start = match &*self.found.lock() {
            _ if self.is_used() => "USED",
            Ok(_) => "NOT_NEEDED",
            Err(error) => error.reason(),
        };
        json!({
            "start": start,
            "written": self.written.load(Ordering::Relaxed),
            "failures": self.failures.load(Ordering::Relaxed),
        })
    }
}

/// What is answered where neither limits nor time are known: as policy `standby` does with nothing leased.
pub(crate) const fn unreachable() -> Decision {
    Decision {
        reason: Reason::AuthorityUnreachable,
        binding: None,
        retry_after_us: None,
        limits: Vec::new(),
        subject: None,
    }
}

impl Hub {
    /// Takes note that the ledger can't be had. Before it ever spoke this starts from the snapshot; without one, and once
    /// it was waited for long enough (`is_final`), calls are answered all the same. Later it is no news.
    pub(crate) fn alone(&self, is_final: bool) {
        if self.directory.lock().welcomed || self.cold.is_used() {
            return;
        }
        if !self.start_from_snapshot() {
            self.cold.is_lost.store(is_final, Ordering::Relaxed);
            return;
        }
        self.news.notify_waiters();
        self.rearm.notify_one();
    }

    fn start_from_snapshot(&self) -> bool {
        let mut found = self.cold.found.lock();
        let Ok(snapshot) = found.as_deref() else {
            return false;
        };
        let clock = ClockState {
            now_us: snapshot.clock_us,
            speed_milli: snapshot.speed_milli,
            version: snapshot.clock_version,
        };
        if !self.state.lock().clock.set(snapshot.real_us, &clock) {
            *found = Err(SnapshotError::Scaled);
            return false;
        }
        self.cold.is_used.store(true, Ordering::Relaxed);
        self.directory.lock().remember(snapshot);
        let keys = WatchWelcome {
            installation_id: snapshot.installation_id.to_vec(),
            token_keys: snapshot.token_keys.clone(),
            ..WatchWelcome::default()
        };
        self.cold.memory.lock().welcome(&keys);
        self.hear_watch(&snapshot.meters);
        for tenant in &snapshot.tenants {
            self.hear_watch(tenant);
        }
        let sent_us = self.state.lock().redis_sent_us;
        if sent_us > 0 {
            self.tell_engine(Event::RedisAlive { sent_us });
        }
        true
    }

    /// Takes in which ledger this is. One of another installation than before knows nothing of any unit, limit or tenant
    /// that is here: all of them are forgotten, and the tenants are fetched anew.
    pub(super) fn installed(&self, welcome: &WatchWelcome) {
        self.cold.is_lost.store(false, Ordering::Relaxed);
        let mut memory = self.cold.memory.lock();
        let before = std::mem::take(&mut memory.installation_id);
        let is_other = !before.is_empty() && before != welcome.installation_id;
        if is_other {
            memory.forget();
        }
        memory.welcome(welcome);
        drop(memory);
        self.cold.moved.notify_one();
        if is_other {
            self.stats
                .bad_message("the ledger is of another installation than before");
            let tenants = self.directory.lock().begin_anew();
            self.with_engine(quota_core::Engine::begin_anew);
            if !tenants.is_empty() {
                self.outbox.tell(WATCH_TIMEOUT_MS, watch_add(&tenants));
            }
        }
    }

    /// Takes in what the next snapshot has to say.
    pub(super) fn remember(&self, news: &quota_proto::watch::WatchNews, bytes: &[u8]) {
        if self.cold.memory.lock().hear(news, bytes) {
            self.cold.moved.notify_one();
        }
    }

    /// Says what a start without a ledger would need; `None` while the ledger has not said it all.
    pub(crate) fn snapshot(&self, boot_id: BootId) -> Option<Snapshot> {
        let now = self.now().ok()?;
        let clock_version = self.state.lock().clock.version();
        let (timeline, witness) = self.directory.lock().seen();
        let snapshot = Snapshot {
            boot_id: boot_id.to_vec().into(),
            real_us: now.real_us,
            clock_us: now.ledger_us,
            speed_milli: now.speed_milli,
            clock_version,
            timeline,
            witness: witness.into(),
            ..Snapshot::default()
        };
        self.cold.memory.lock().fill(snapshot)
    }
}
