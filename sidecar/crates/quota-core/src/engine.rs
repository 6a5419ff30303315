//! The state machine.

use std::sync::Arc;

use crate::{
    decision::LimitState,
    effect::Effect,
    event::Event,
    id::{Holder, ReservationId},
    request::{Checked, CheckRequest, Cost},
    reservation::{Reservation, SettleRefusal, Settled},
    time::Now,
};

/// Names a waiting check for its owner.
pub type Ticket = u64;

/// Bounds and budgets. The zero-risk defaults are in `Default`.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Real µs to wait for Redis when short of units.
    pub redis_budget_us: u64,
    /// Real µs to wait for the ledger for something of which nothing is held yet.
    pub ledger_budget_us: u64,
    /// Checks that may wait at once.
    pub waiting_max: usize,
    /// Proof is current while its connection was heard of within so many real µs.
    pub proof_age_us: u64,
}

/// Every bucket, lease and reservation of one sidecar process.
pub struct Engine;

#[allow(clippy::unused_self, unused_variables, clippy::todo)]
impl Engine {
    /// Makes an engine that knows no tenant.
    #[must_use]
    pub fn new(config: EngineConfig, holder: Holder) -> Self { todo!() }

    /// Decides, or begins to fetch what is missing. All limits are charged or none.
    pub fn check(&mut self, now: Now, ticket: Ticket, request: &CheckRequest) -> Checked { todo!() }

    /// Forgets a waiting check whose caller went away; its units are not taken. No effect if it was decided.
    pub fn cancel(&mut self, ticket: Ticket) { todo!() }

    /// The open reservation made by a decided `Mode::Reserve` (to be logged before the caller hears of it).
    #[must_use]
    pub fn reservation(&self, id: ReservationId) -> Option<&Reservation> { todo!() }

    /// Undoes a charge whose log entry failed: consumed or held units go back to the balance.
    pub fn undo_reservation(&mut self, now: Now, id: ReservationId) { todo!() }

    /// Takes in a reservation found in the log at start; `holder` in it is the dead process', so nothing is held here.
    pub fn restore_reservation(&mut self, reservation: Reservation) { todo!() }

    /// Ends a reservation at `actual` (zero units of every meter = release). Call after its record is durable.
    ///
    /// # Errors
    /// `Unknown` where the engine has no such open reservation.
    pub fn settle(&mut self, now: Now, id: ReservationId, actual: &[Cost]) -> Result<Settled, SettleRefusal> { todo!() }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, event: Event) { todo!() }

    /// Does what is due by time: expiries of waits, early leases, idle returns, reports, reservation expiry.
    pub fn advance(&mut self, now: Now) { todo!() }

    /// Real µs until `advance` must be called next.
    #[must_use]
    pub fn next_due(&self, now: Now) -> u64 { todo!() }

    /// Moves what the engine wants done into `out`, in order.
    pub fn drain_effects(&mut self, out: &mut Vec<Effect>) { todo!() }

    /// Every limit of a tenant as known here; `None` where the tenant isn't known (yet).
    pub fn quota(&mut self, now: Now, tenant: &str, attributes: &[(Box<str>, Box<str>)]) -> Option<Vec<LimitState>> { todo!() }

    /// Whether a tenant is known, unknown for sure, or not known yet (then it is being fetched).
    pub fn tenant_known(&mut self, now: Now, tenant: &Arc<str>) -> Option<bool> { todo!() }

    /// Lowers every balance and returns everything, for a clean stop. Done when no command is outstanding.
    pub fn drain(&mut self, now: Now) { todo!() }

    /// Commands without an answer yet.
    #[must_use]
    pub fn outstanding(&self) -> usize { todo!() }
}
