//! One window's rows and who gets which units of it: the rules of the ledger's `domain/allotment.py`, line by line.

use std::{collections::BTreeMap, sync::Arc};

use quota_core::{
    AllotAsk, Holder, PoolFault, WindowId, WindowInfo,
    mutant::{self, Mutant},
};

use super::{Identity, standing::Standing};

const LEASE_SHARE: u64 = 16;
const POOL_GROWTH: u64 = 4;
const POOL_UNITS_MIN: u64 = 16;

/// What the ledger leased to one holder.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    /// Last ask.
    pub request_seq: u64,
    /// Cumulative.
    pub granted_cum: u64,
    /// Cumulative.
    pub returned_cum: u64,
    /// What the last answer gave, where it was a lease.
    pub last_give: Option<u64>,
    /// Levels: rises committed that name this holder.
    pub recorded: u64,
    /// Levels: its process has ended, and what it held came back.
    pub is_ended: bool,
    /// In flight: raised when the lease is reclaimed; 0 = none was ever given.
    pub epoch: u64,
    /// In flight: whatever is written counts as a renewal.
    pub renewals: u64,
    /// In flight, as last reported.
    pub in_flight: u64,
}

impl Lease {
    /// Units that its holder keeps out of the limit: leased and not returned, or recorded, whichever is more.
    #[must_use]
    pub fn held(&self) -> u64 {
        let leased = self.granted_cum.saturating_sub(self.returned_cum);
        leased.max(self.recorded)
    }
}

/// A pool's life.
#[allow(clippy::struct_excessive_bools)] // columns of a row
#[derive(Clone, Copy, Debug, Default)]
pub struct Generation {
    /// timeline × 2^32 + n.
    pub number: u64,
    /// Units that went into it.
    pub allotted_cum: u64,
    /// Units of it that came back here.
    pub credited: u64,
    /// A holder reported it as lost.
    pub is_lost: bool,
    /// The amount went below what is out.
    pub is_closing: bool,
    /// Redis has closed it.
    pub is_closed: bool,
    /// Redis has to be told where it stands.
    pub is_publishing: bool,
    /// It was opened by this transaction.
    pub is_opened_now: bool,
}

impl Generation {
    /// Whether units may go into it.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        !(self.is_lost || self.is_closing)
    }
}

/// What an ask is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Leased { give: u64, granted_cum: u64 },
    Pooled,
    Denied,
    Refused { reason: &'static str, last_seq: u64 },
}

/// One window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Whose.
    pub identity: Identity,
    /// First instant, ledger µs.
    pub start_us: i64,
    /// End, exclusive.
    pub end_us: i64,
    /// Its name.
    pub id: WindowId,
    /// What it counts, where it has no end.
    pub standing: Option<Standing>,
    /// Levels: what is stored according to the records so far.
    pub stored: i64,
    /// Levels: of these, without a lease.
    pub stored_over: u64,
    /// Levels: units that came back before the rises that stand for them were committed.
    pub owed: u64,
    /// Restores before it was opened, and 1.
    pub timeline: u64,
    /// Amount in force.
    pub amount: u64,
    /// Its version.
    pub amount_version: u64,
    /// The most that may be out.
    pub ceiling: u64,
    /// Units out.
    pub allotted: u64,
    /// The smallest need denied since the last notice; 0 = none.
    pub wanted: u64,
    /// A pool was lost just now: whoever it had refused is to ask again.
    pub is_pool_lost: bool,
    /// Oldest first.
    pub generations: Vec<Generation>,
    /// What holders got from the ledger.
    pub leases: BTreeMap<Holder, Lease>,
    /// (holder, generation) → what was given back of it here in its name.
    pub lost_returns: BTreeMap<(Holder, u64), u64>,
    /// Cumulative use (within, beyond the limit) by holder.
    pub consumed: BTreeMap<Holder, (u64, u64)>,
    /// Of both, units that callers gave back.
    pub given_back: BTreeMap<Holder, u64>,
    pub(super) pool_key: Arc<str>,
    pub(super) holders_key: Arc<str>,
    pub(super) values_key: Arc<str>,
    /// Distinct values are counted: every unit goes through a pool.
    pub(super) counts_values: bool,
    pub(super) channel: Arc<str>,
}

impl Window {
    /// Units that may still leave the limit.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.amount.saturating_sub(self.allotted)
    }

    /// Whether the limit has no more to give at this amount.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.allotted >= self.amount || mutant::is(Mutant::FinalTooSoon)
    }

    /// Name of its pool in Redis.
    #[must_use]
    pub const fn pool_key(&self) -> &Arc<str> {
        &self.pool_key
    }

    /// What holders are told of it.
    #[must_use]
    pub fn info(&self) -> WindowInfo {
        WindowInfo {
            id: self.id,
            start_us: self.start_us,
            end_us: self.end_us,
            round: 0,
            amount: Some(self.amount),
            amount_version: self.amount_version,
            allotted: self.allotted,
            timeline: self.timeline,
        }
    }

    /// The newest generation.
    #[must_use]
    pub fn generation(&self) -> Option<&Generation> {
        self.generations.last()
    }

    /// Puts a newer amount in force; answers whether anything changed.
    pub(super) fn follow_amount(&mut self, amount: u64, version: u64) -> bool {
        let is_ignored = mutant::is(Mutant::AmountNotFollowed) && amount < self.amount;
        if version <= self.amount_version || is_ignored {
            return false;
        }
        self.amount = amount;
        self.amount_version = version;
        self.ceiling = amount.max(self.allotted);
        let is_closing = self.allotted > amount && !mutant::is(Mutant::LoweredPoolStaysOpen);
        if let Some(live) = self.generations.last_mut().filter(|last| last.is_live()) {
            live.is_publishing = true;
            live.is_closing = is_closing;
        }
        true
    }

    /// Whether what was denied is there now; forgets that it was denied.
    pub(super) fn is_notice_due(&mut self) -> bool {
        let is_pool_lost = std::mem::take(&mut self.is_pool_lost);
        if mutant::is(Mutant::LedgerNoticeForgotten) {
            return false;
        }
        let is_there = self.wanted > 0 && self.wanted <= self.left();
        if is_there {
            self.wanted = 0;
        }
        is_there || is_pool_lost
    }

    /// Answers one ask, idempotent by (holder, `request_seq`) where units were given.
    pub(super) fn decide(&mut self, holder: Holder, ask: &AllotAsk, next: u64) -> Answer {
        let lease = self.leases.entry(holder).or_default();
        let is_repeat = ask.request_seq == lease.request_seq;
        if let Some(give) = lease.last_give.filter(|_| is_repeat) {
            lease.renewals += 1;
            return Answer::Leased {
                give,
                granted_cum: lease.granted_cum,
            };
        }
        if !(is_repeat || ask.request_seq == lease.request_seq + 1) || ask.request_seq == 0 {
            return Answer::Refused {
                reason: "REQUEST_SEQ",
                last_seq: lease.request_seq,
            };
        }
        let is_standing = self.standing.is_some();
        let answer = match self.standing {
            Some(kind) => self.decide_standing(kind, holder, ask),
            None => self.decide_new(holder, ask, next),
        };
        if answer == Answer::Denied {
            let need = ask.need.max(1);
            self.wanted = if self.wanted == 0 {
                need
            } else {
                self.wanted.min(need)
            };
        }
        let lease = self.leases.entry(holder).or_default();
        lease.request_seq = ask.request_seq;
        lease.renewals += 1;
        lease.last_give = match answer {
            Answer::Leased { give, .. } => Some(give),
            // A repeat that comes late leases no units for good of which nobody knows.
            Answer::Denied if is_standing => Some(0),
            _ => None,
        };
        answer
    }

    fn decide_new(&mut self, holder: Holder, ask: &AllotAsk, next: u64) -> Answer {
        let is_lost = ask
            .fault
            .is_some_and(|fault| fault != PoolFault::Unreachable);
        if let Some(generation) = self.generations.last_mut()
            && is_lost
            && ask.generation_seen == generation.number
            && generation.is_live()
        {
            generation.is_lost = true;
            // What it had wanted is lost with it.
            self.wanted = 1;
            self.is_pool_lost = true;
        }
        if ask.ledger_only || ask.fault == Some(PoolFault::Unreachable) {
            if self.counts_values {
                return Answer::Refused {
                    reason: "AUTHORITY_UNREACHABLE",
                    last_seq: 0,
                };
            }
            return self.lease_or_prove(holder, ask);
        }
        let is_first =
            self.generations.is_empty() && self.allotted == 0 && ask.need.max(ask.want) > 0;
        if is_first && !self.counts_values {
            return self.lease(holder, ask).unwrap_or(Answer::Denied);
        }
        if let Some(generation) = self.generations.last_mut().filter(|last| last.is_live()) {
            if ask.generation_seen == generation.number {
                generation.is_publishing = true;
                if ask.allotted_cum_seen >= generation.allotted_cum {
                    self.extend(ask);
                }
            }
            return Answer::Pooled;
        }
        let is_asked = ask.need.max(ask.want) > 0;
        if !is_asked || self.left() < ask.need.max(1) && !self.counts_values {
            return Answer::Denied;
        }
        let number = match self.generations.last() {
            Some(last) if mutant::is(Mutant::GenerationReused) => last.number,
            _ => next,
        };
        self.generations.push(Generation {
            number,
            is_opened_now: true,
            ..Generation::default()
        });
        self.extend(ask);
        Answer::Pooled
    }

    fn lease(&mut self, holder: Holder, ask: &AllotAsk) -> Option<Answer> {
        let left = self.left();
        if left < ask.need.max(1) {
            return None;
        }
        let share = (self.amount / LEASE_SHARE).max(1);
        let give = left.min(ask.need.max(ask.want.min(share)));
        if !mutant::is(Mutant::LeaseUncounted) {
            self.allotted += give;
        }
        let lease = self.leases.entry(holder).or_default();
        lease.granted_cum += give;
        Some(Answer::Leased {
            give,
            granted_cum: lease.granted_cum,
        })
    }

    fn lease_or_prove(&mut self, holder: Holder, ask: &AllotAsk) -> Answer {
        if let Some(leased) = self.lease(holder, ask) {
            return leased;
        }
        let has_pool = self
            .generations
            .last()
            .is_some_and(|last| last.is_live() && last.allotted_cum > last.credited);
        if has_pool {
            return Answer::Refused {
                reason: "AUTHORITY_UNREACHABLE",
                last_seq: 0,
            };
        }
        Answer::Denied
    }

    fn extend(&mut self, ask: &AllotAsk) {
        let left = self.left();
        let share = self.amount / LEASE_SHARE;
        let Some(generation) = self.generations.last_mut() else {
            return;
        };
        let grown = (generation.allotted_cum / POOL_GROWTH)
            .max(share)
            .max(POOL_UNITS_MIN);
        let units = left.min(grown.max(ask.need));
        self.allotted += units;
        generation.allotted_cum += units;
        generation.is_publishing = true;
    }

    /// Puts units back; answers how many came back now, the others are owed by rises to come.
    pub(super) fn put_back(&mut self, units: u64) -> u64 {
        let was_final = self.is_final();
        let back = units.min(self.allotted);
        self.allotted -= back;
        if self.standing == Some(Standing::Level) {
            self.owed += units - back;
        }
        let is_final = self.is_final();
        if let Some(live) = self.generations.last_mut().filter(|last| last.is_live())
            && was_final
            && !is_final
        {
            live.is_publishing = true;
        }
        if self.standing == Some(Standing::Level) {
            back
        } else {
            units
        }
    }

    /// Takes back units that the ledger leased; answers how many came back by this report.
    pub(super) fn return_lease(&mut self, holder: Holder, returned_cum: u64) -> u64 {
        let is_level = self.standing == Some(Standing::Level);
        let lease = self.leases.entry(holder).or_default();
        let held = lease.held();
        let capped = if mutant::is(Mutant::ReturnAboveGranted) {
            returned_cum.saturating_add(1)
        } else {
            returned_cum.min(lease.granted_cum)
        };
        let before = if mutant::is(Mutant::LedgerReturnRepeats) {
            0
        } else {
            lease.returned_cum
        };
        let units = capped.saturating_sub(before);
        lease.renewals += u64::from(units > 0);
        lease.returned_cum = lease.returned_cum.max(capped);
        let units = if is_level { held - lease.held() } else { units };
        self.put_back(units)
    }

    /// Takes back whatever a holder has not returned; for the mutant that does.
    pub(super) fn reclaim(&mut self, holder: Holder) -> u64 {
        let lease = self.leases.entry(holder).or_default();
        let units = lease.granted_cum - lease.returned_cum;
        lease.returned_cum = lease.granted_cum;
        self.put_back(units);
        units
    }

    /// Takes back units of a generation; answers how many came back, or `None` where it knows none of that number.
    pub(super) fn return_pooled(
        &mut self,
        holder: Holder,
        number: u64,
        returned_cum: u64,
    ) -> Option<u64> {
        let mut generations = self.generations.iter_mut();
        let generation = generations.find(|generation| generation.number == number)?;
        let before = self.lost_returns.entry((holder, number)).or_default();
        let units = returned_cum
            .saturating_sub(*before)
            .min(generation.allotted_cum - generation.credited);
        *before = returned_cum.max(*before);
        generation.credited += units;
        self.put_back(units);
        Some(units)
    }

    /// Marks a generation as closed and credits what was never granted, once; answers how much.
    pub(super) fn credit_closed(&mut self, number: u64, unspent: u64, is_forgotten: bool) -> u64 {
        let Some(generation) = self.generations.iter_mut().find(|one| one.number == number) else {
            return 0;
        };
        if generation.is_closed && !mutant::is(Mutant::CloseCreditsAgain) {
            return 0;
        }
        let mut units = unspent.min(generation.allotted_cum - generation.credited);
        if mutant::is(Mutant::CloseCreditsAll) {
            units = generation.allotted_cum - generation.credited;
        }
        generation.is_closed = true;
        generation.credited += units;
        if is_forgotten {
            // Postgres may not know all that left a window of an earlier timeline.
            return 0;
        }
        self.put_back(units);
        units
    }
}
