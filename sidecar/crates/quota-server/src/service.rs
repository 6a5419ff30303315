//! What handlers share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quota_core::{Now, ReservationId};
use tokio::time::{Instant, timeout_at};
use usage_log::Append;

use crate::{
    decisions::Telling,
    directory::Directory,
    hub::Hub,
    ids::{Ids, Randomness},
    journal::{Journal, fill_percent},
    recent::Recent,
    records::read_reservation,
    refusal::{Answer, Refusal},
    replay::Replay,
    reservations::Reservations,
    stats::Stats,
    verdicts::Verdicts,
};

/// From this fill on only what ends reservations is written.
const LOG_FULL_PERCENT: u64 = 95;

/// Everything that a call can reach. One per process, shared by all transports.
pub struct Service {
    pub(crate) hub: Arc<Hub>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) replay: Mutex<Replay>,
    pub(crate) recent: Mutex<Recent>,
    pub(crate) verdicts: Verdicts,
    pub(crate) telling: Telling,
    pub(crate) reservations: Mutex<Reservations>,
    ids: Mutex<Ids>,
    ledger_budget: Duration,
    draining: AtomicBool,
}

impl Service {
    pub(crate) fn new(
        hub: Arc<Hub>,
        journal: Arc<dyn Journal>,
        stats: Arc<Stats>,
        randomness: Box<dyn Randomness>,
        ledger_budget: Duration,
    ) -> Self {
        Self {
            hub,
            journal,
            stats,
            replay: Mutex::default(),
            recent: Mutex::default(),
            verdicts: Verdicts::default(),
            telling: Telling::default(),
            reservations: Mutex::default(),
            ids: Mutex::new(Ids::new(randomness)),
            ledger_budget,
            draining: AtomicBool::new(false),
        }
    }

    /// Takes in a reservation that the log says is open; false where the payload is none.
    pub(crate) fn restore(&self, payload: &[u8]) -> bool {
        let Some((reservation, opened)) = read_reservation(payload) else {
            return false;
        };
        self.reservations.lock().open(reservation.id, opened);
        self.hub.restore(reservation);
        true
    }

    /// Notes that a reservation expired: late settlements are still recorded, the log forgets it.
    pub(crate) fn expired(&self, id: ReservationId) {
        if self.reservations.lock().expire(id, self.hub.real_us()) {
            // Not written (the log is broken): it is open again after a restart, and expires again.
            let _ = self.journal.append(Append::Expire { key: id.0 });
        }
    }

    /// Makes a reservation's id.
    pub(crate) fn reservation_id(&self) -> Answer<ReservationId> {
        self.ids
            .lock()
            .reservation()
            .map_err(|_| Refusal::internal())
    }

    /// Makes a record's id.
    pub(crate) fn record_id(&self, now: Now) -> Answer<String> {
        let mut id = String::new();
        self.add_record_id(now, &mut id).map(|()| id)
    }

    /// Makes a record's id and adds it to a text.
    pub(crate) fn add_record_id(&self, now: Now, text: &mut String) -> Answer<()> {
        self.ids
            .lock()
            .add_uuid_v7(now.ledger_us, text)
            .map_err(|_| Refusal::internal())
    }

    /// Refuses what would leave too little room for settlements.
    pub(crate) fn room(&self) -> Answer<()> {
        let fill = fill_percent(&self.journal.stats());
        if fill < LOG_FULL_PERCENT {
            Ok(())
        } else {
            Err(Refusal::log_full(fill))
        }
    }

    /// Says whether tenants exist, fetching those of which nothing is known yet, within the ledger's budget in all.
    ///
    /// # Errors
    /// The ledger did not say in time.
    pub(crate) async fn tenants_known(&self, tenants: &[Arc<str>]) -> Answer<Vec<bool>> {
        let deadline = Instant::now().checked_add(self.ledger_budget);
        loop {
            let heard = self.hub.news.notified();
            tokio::pin!(heard);
            heard.as_mut().enable();
            self.hub.now()?;
            let known: Vec<Option<bool>> = tenants
                .iter()
                .map(|tenant| self.hub.tenant_known(tenant))
                .collect();
            let Some(missing) = known.iter().position(Option::is_none) else {
                return Ok(known.into_iter().flatten().collect());
            };
            let missing = tenants.get(missing).map_or("", |tenant| tenant);
            let Some(deadline) = deadline else {
                return Err(Refusal::internal());
            };
            if timeout_at(deadline, heard).await.is_err() {
                return Err(Refusal::ledger_unreachable(missing));
            }
        }
    }

    /// Waits until what is hidden of a tenant's record can be, within the ledger's budget; at once where nothing is, or
    /// where there is no such tenant. `lacks` says whether the tenant's key is missing.
    ///
    /// Keys come before their tenants: one is missing where this process started from a snapshot, which holds none, or
    /// for a moment after a catalogue began to hide something.
    ///
    /// # Errors
    /// The ledger did not send it in time.
    pub(crate) async fn can_hide(
        &self,
        tenant: &Arc<str>,
        lacks: impl Fn(&Directory) -> bool,
    ) -> Answer<()> {
        if !lacks(&self.hub.directory.lock()) {
            return Ok(());
        }
        if self.tenants_known(std::slice::from_ref(tenant)).await? != [true] {
            return Ok(());
        }
        let deadline = Instant::now()
            .checked_add(self.ledger_budget)
            .ok_or_else(Refusal::internal)?;
        loop {
            let heard = self.hub.news.notified();
            tokio::pin!(heard);
            heard.as_mut().enable();
            if !lacks(&self.hub.directory.lock()) {
                return Ok(());
            }
            if timeout_at(deadline, heard).await.is_err() {
                return Err(Refusal::no_pseudonyms(tenant));
            }
        }
    }

    /// Refuses a meter that does not exist.
    ///
    /// # Errors
    /// Also where the ledger has not said yet which there are.
    pub(crate) fn require_meter(&self, field: impl Into<String>, meter: &str) -> Answer<()> {
        let directory = self.hub.directory.lock();
        directory.require_meter(|| field.into(), meter)
    }

    /// Whether calls can be answered.
    pub(crate) fn ready(&self) -> bool {
        let has_begun = self.hub.cold.is_used() || self.hub.directory.lock().welcomed;
        has_begun && !self.is_draining()
    }

    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Counts a call's failure and gives it back.
    pub(crate) fn counted<T>(&self, answer: Answer<T>) -> Answer<T> {
        if let Err(refusal) = &answer {
            self.stats.refused(refusal.reason);
        }
        answer
    }
}

/// Runs a call to its end although its caller may go away: what it began must not stay half done.
pub(crate) async fn shielded<T: Send + 'static>(
    work: impl Future<Output = Answer<T>> + Send + 'static,
) -> Answer<T> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(Refusal::internal()))
}
