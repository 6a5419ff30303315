//! The rules, recomputed after each step from what was done and what was answered, never from anybody's own counters.

mod callers;

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry};

use quota_core::{Holder, KeyHash, Now, ReservationId, WindowId};

use super::{standing::Stock, tokens::Tokens};
use crate::world::{World, fact::Fact};

/// (limit, key, start of the window): what a caller's units count in.
pub type Span = (std::sync::Arc<str>, KeyHash, i64);

/// A rule that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its short name.
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
}

/// What a holder got of one window, and what it did with it.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    granted: u64,
    returning: u64,
    used: u64,
    owed: u64,
    /// Units that callers gave back.
    back: u64,
}

/// One window's units.
#[derive(Clone, Debug, Default)]
struct Tally {
    amount: u64,
    bound: u64,
    out: u64,
    used: u64,
    /// It has no end: once more than the amount is out, every unit that comes back lowers the bound.
    is_standing: bool,
    shares: BTreeMap<Holder, Share>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PoolTally {
    allotted: u64,
    out: u64,
    /// The replication history in which it granted first.
    history: Option<u64>,
}

impl Tally {
    /// What came back goes out again only within the amount.
    fn settle_down(&mut self) {
        if self.is_standing {
            self.bound = self.amount.max(self.bound.min(self.out));
        }
    }
}

/// An open reservation's units in one window.
#[derive(Clone, Debug)]
pub struct Held {
    /// Where.
    pub span: Span,
    /// When that window ends, ledger µs: what comes back later vanishes.
    pub end_us: i64,
    /// By whom.
    pub holder: Holder,
    /// How many.
    pub units: u64,
    /// Its time is up.
    pub has_expired: bool,
}

/// Everything that was done so far.
#[derive(Debug, Default)]
pub struct Audit {
    tallies: BTreeMap<Span, Tally>,
    spans: BTreeMap<WindowId, Span>,
    pools: BTreeMap<(WindowId, u64), PoolTally>,
    /// (who, in whose name, window, generation, to the pool) → what was said to be back.
    returning: BTreeMap<(Holder, Holder, WindowId, u64, bool), u64>,
    /// What a generation took back of a holder.
    taken_back: BTreeMap<(Holder, WindowId, u64), u64>,
    /// What holders reported as used, not compared yet.
    reported: Vec<(Holder, WindowId, u64)>,
    /// Values that were admitted.
    values: BTreeMap<Span, BTreeSet<Box<str>>>,
    /// Open reservations.
    pub held: BTreeMap<ReservationId, Vec<Held>>,
    /// Processes that ended a reservation of their own.
    pub ended: BTreeMap<ReservationId, Holder>,
    /// The token bucket, where the limit is one and nothing splits it.
    pub tokens: Option<Tokens>,
    /// What its shard did since the last admission that was judged.
    token_facts: VecDeque<Fact>,
    /// What is stored or in flight, where the limit has no windows.
    pub stock: Stock,
    /// (real time, units that somebody could have got) of the first limit, newest last.
    plenty: VecDeque<(u64, u64)>,
    /// The limit counts distinct values: nobody knows whose unit stands for which.
    pub counts_values: bool,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
    /// Units admitted in all.
    pub admitted: u64,
    /// Units that restarts took over.
    pub adopted: u64,
}

/// A denial is false when for so long before it the units were there, real µs.
const PLENTY_US: u64 = 3_000_000;

impl Audit {
    /// Notes the first rule that was broken.
    pub fn break_rule(&mut self, rule: &'static str, detail: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, detail });
        }
    }

    /// Takes in what the ledger and the pools did, from one place of the log to another; answers the latter.
    pub fn learn(&mut self, world: &World, from: usize, to: usize) -> usize {
        let Some(log) = &world.ledger.facts else {
            return 0;
        };
        let facts = log.borrow();
        let to = to.min(facts.len());
        for fact in &facts[from..to] {
            self.take_in(fact, world);
        }
        to
    }

    fn tally(&mut self, window: WindowId, world: &World) -> Option<&mut Tally> {
        let span = match self.spans.entry(window) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let row = world.ledger.window(window)?;
                unknown.insert((row.identity.1.clone(), row.identity.2, row.start_us))
            }
        };
        Some(self.tallies.entry(span.clone()).or_default())
    }

    fn take_in(&mut self, fact: &Fact, world: &World) {
        match *fact {
            Fact::Amount { window, amount, .. } => {
                let is_standing = world.ledger.is_standing(window);
                if let Some(tally) = self.tally(window, world) {
                    (tally.amount, tally.is_standing) = (amount, is_standing);
                    tally.bound = amount.max(tally.out);
                }
            }
            Fact::Opened { window, generation } => {
                if self.pools.contains_key(&(window, generation)) {
                    self.break_rule("open", format!("generation {generation} was opened twice"));
                }
                self.pools
                    .insert((window, generation), PoolTally::default());
            }
            Fact::Allotted {
                window,
                generation,
                units,
            } => {
                if let Some(pool) = self.pools.get_mut(&(window, generation)) {
                    pool.allotted += units;
                }
                self.let_out(window, units, world);
            }
            Fact::Leased {
                window,
                holder,
                units,
                paid,
            } => {
                self.let_out(window, units - paid, world);
                if let Some(tally) = self.tally(window, world) {
                    tally.shares.entry(holder).or_default().granted += units;
                }
            }
            Fact::Credited { .. } => self.credit(fact, world),
            Fact::Granted { .. } => self.grant(fact, world),
            Fact::Returning { .. } => self.give_back(fact, world),
            Fact::Adopted { .. } => self.adopt(fact, world),
            Fact::Owed { .. } => self.inherit_debt(fact, world),
            Fact::Used {
                window,
                holder,
                consumed_cum,
            } => self.reported.push((holder, window, consumed_cum)),
            Fact::Took { .. } | Fact::Gave { .. } | Fact::Began { .. } | Fact::Heard { .. } => {
                self.token_facts.push_back(*fact);
            }
            _ => self.take_in_standing(fact, world),
        }
    }

    /// I1: no more comes back than was out.
    fn credit(&mut self, fact: &Fact, world: &World) {
        let Fact::Credited {
            window,
            generation,
            is_unspent,
            units,
        } = *fact
        else {
            return;
        };
        if world.ledger.rows.timeline > 1 && world.ledger.is_stopped(window) {
            // It forgot what it had credited, and may credit it again: nothing of it is given out any more.
            return;
        }
        if is_unspent {
            self.take_from_pool(window, generation, units);
        }
        let Some(tally) = self.tally(window, world) else {
            return;
        };
        let out = tally.out;
        tally.out = out.saturating_sub(units);
        tally.settle_down();
        if out < units {
            self.break_rule("I1", format!("{units} units came back of {out}"));
        }
    }

    /// Takes in what became of a level, of units in flight, or of a reservation whose time is up.
    fn take_in_standing(&mut self, fact: &Fact, world: &World) {
        match *fact {
            Fact::Recorded {
                window,
                units,
                is_owed,
            } => {
                if world.ledger.rows.timeline > 1 && world.ledger.is_stopped(window) {
                    // It forgot the leases that these stood for: nothing of it is given out any more.
                    return;
                }
                if let Some(tally) = self.tally(window, world).filter(|_| is_owed) {
                    tally.bound = tally.bound.max(tally.out + units);
                }
                self.let_out(window, units, world);
            }
            Fact::LevelSet { window, allotted } => {
                if let Some(tally) = self.tally(window, world) {
                    tally.out = allotted;
                    tally.bound = tally.amount.max(allotted);
                }
            }
            Fact::Expired(id) => self.expire(id),
            _ => {
                if let Err(detail) = self.stock.learn(fact) {
                    self.break_rule("level", detail);
                }
            }
        }
    }

    /// I1: what is out of a window is at most what its amounts allow.
    fn let_out(&mut self, window: WindowId, units: u64, world: &World) {
        let Some(tally) = self.tally(window, world) else {
            return;
        };
        tally.out += units;
        if tally.out > tally.bound {
            let detail = format!("{} units are out of {}", tally.out, tally.bound);
            self.break_rule("I1", detail);
        }
    }

    /// I2: what goes back from a closed generation was never granted, and never will be.
    fn take_from_pool(&mut self, window: WindowId, generation: u64, units: u64) {
        let Some(pool) = self.pools.get_mut(&(window, generation)) else {
            return;
        };
        let (out, allotted) = (pool.out, pool.allotted);
        pool.allotted = allotted.saturating_sub(units);
        if out + units > allotted {
            let detail = format!(
                "generation {generation}: {out} of {allotted} granted, {units} credited as unspent"
            );
            self.break_rule("I2", detail);
        }
    }

    /// I2: over all servers a generation gave no more than went into it. I4: it did so in one replication history.
    fn grant(&mut self, fact: &Fact, world: &World) {
        let Fact::Granted {
            window,
            generation,
            history,
            holder,
            give,
            returned,
        } = *fact
        else {
            return;
        };
        let Some(pool) = self.pools.get_mut(&(window, generation)) else {
            return self.break_rule("I2", format!("generation {generation} was never opened"));
        };
        let first = *pool.history.get_or_insert(history);
        if first != history {
            let detail = format!(
                "generation {generation} granted in history {history}, and before in {first}"
            );
            return self.break_rule("I4", detail);
        }
        *(self.taken_back.entry((holder, window, generation))).or_default() += returned;
        pool.out += give;
        let sane = pool.out.checked_sub(returned);
        pool.out = sane.unwrap_or(0);
        let (out, allotted) = (pool.out, pool.allotted);
        if out > allotted || sane.is_none() {
            let detail = format!(
                "generation {generation}: {out} of {allotted} granted, {returned} came back"
            );
            self.break_rule("I2", detail);
        }
        if let Some(tally) = self.tally(window, world) {
            let share = tally.shares.entry(holder).or_default();
            share.granted += give;
            share.returning += returned;
            self.own_only(window, holder, world);
        }
    }

    /// I5: what a holder says it gave back only grows. What it tells the ledger counts as gone from then on; what it
    /// tells a pool, when that takes it: a pool may refuse, and then the ledger is told.
    fn give_back(&mut self, fact: &Fact, world: &World) {
        let Fact::Returning {
            holder,
            from,
            window,
            generation,
            is_to_pool,
            returned_cum,
        } = *fact
        else {
            return;
        };
        let before = self
            .returning
            .insert((holder, from, window, generation, is_to_pool), returned_cum)
            .unwrap_or(0);
        // What a pool definitely refused goes to the ledger instead: its figure falls, but not below what it took.
        let taken = self.taken_back.get(&(holder, window, generation));
        if is_to_pool && returned_cum >= taken.copied().unwrap_or(0) {
            return;
        }
        let Some(more) = returned_cum.checked_sub(before) else {
            return self.break_rule(
                "I5",
                format!("a return fell from {before} to {returned_cum}"),
            );
        };
        if let Some(tally) = self
            .tally(window, world)
            .filter(|_| more > 0 && !is_to_pool)
        {
            tally.shares.entry(holder).or_default().returning += more;
            self.own_only(window, holder, world);
        }
    }

    /// I3: what a process keeps for the next one it neither used nor gave back, and it does neither from then on. What
    /// the next one returns in its name it counts from what went back before.
    fn adopt(&mut self, fact: &Fact, world: &World) {
        let Fact::Adopted {
            window,
            from,
            holder,
            part,
        } = *fact
        else {
            return;
        };
        let units = part.units;
        self.adopted += units;
        self.returning.insert(
            (holder, part.holder, window, part.generation, false),
            part.returned_cum,
        );
        let Some(tally) = self.tally(window, world) else {
            return;
        };
        let share = tally.shares.entry(from).or_default();
        let is_there = share.used + share.returning + units <= share.granted;
        share.granted = share.granted.saturating_sub(units);
        let share = *share;
        tally.shares.entry(holder).or_default().granted += units;
        if !is_there {
            let detail = format!(
                "{units} units taken over from {:?}: {share:?}",
                &from.0[..8]
            );
            self.break_rule("I3", detail);
        }
    }

    /// What a dead process owed the next one pays before anything else.
    fn inherit_debt(&mut self, fact: &Fact, world: &World) {
        if let Fact::Owed {
            window,
            holder,
            units,
        } = *fact
            && let Some(tally) = self.tally(window, world)
        {
            tally.shares.entry(holder).or_default().owed += units;
        }
    }

    /// I3: what a holder admitted, holds and gave back is at most what it got.
    fn own_only(&mut self, window: WindowId, holder: Holder, world: &World) {
        let Some(tally) = self.tally(window, world) else {
            return;
        };
        let share = tally.shares.get(&holder).copied().unwrap_or_default();
        if share.used + share.returning > share.granted {
            self.break_rule("I3", format!("holder {:?}: {share:?}", &holder.0[..8]));
        }
    }

    /// Takes in what shards did until a moment, in order, between what was admitted.
    pub fn move_tokens(&mut self, until_us: u64, ledger_us: impl Fn(u64) -> i64) {
        let Some(tokens) = &mut self.tokens else {
            return self.token_facts.clear();
        };
        while let Some(fact) = self.token_facts.front() {
            let real_us = match *fact {
                Fact::Took { real_us, .. }
                | Fact::Gave { real_us, .. }
                | Fact::Began { real_us }
                | Fact::Heard { real_us, .. } => real_us,
                _ => 0,
            };
            if real_us > until_us {
                break;
            }
            tokens.learn(fact, ledger_us(real_us));
            self.token_facts.pop_front();
        }
        if let Some(detail) = tokens.broken.take() {
            self.break_rule("burst", detail);
        }
    }

    /// Takes in that tokens were admitted.
    pub fn admit_tokens(
        &mut self,
        holder: Holder,
        units: u64,
        reservation: Option<ReservationId>,
        at: Now,
    ) {
        self.admitted += units;
        let Some(tokens) = &mut self.tokens else {
            return;
        };
        tokens.admit(holder, units, reservation, (at.real_us, at.ledger_us));
        if let Some(detail) = tokens.broken.take() {
            self.break_rule("burst", detail);
        }
    }

    /// Notes what somebody could have got now.
    pub fn note_plenty(&mut self, real_us: u64, units: u64) {
        while self
            .plenty
            .back()
            .is_some_and(|(_, before)| *before > units)
        {
            self.plenty.pop_back();
        }
        if self
            .plenty
            .back()
            .is_some_and(|(_, before)| *before == units)
        {
            return;
        }
        self.plenty.push_back((real_us, units));
    }

    /// Forgets what could be had: the window is another one.
    pub fn forget_plenty(&mut self, real_us: u64) {
        self.plenty.clear();
        self.plenty.push_back((real_us, 0));
    }

    /// Takes in a denial by proof: false where the units were there all the time.
    pub fn deny(&mut self, real_us: u64, units: u64) {
        let from_us = real_us.saturating_sub(PLENTY_US);
        while self.plenty.len() > 1 && self.plenty[1].0 <= from_us {
            self.plenty.pop_front();
        }
        let least = self.plenty.front().map_or(0, |(_, least)| *least);
        if least >= units {
            let detail = format!("{units} units denied, {least} were there for {PLENTY_US} us");
            self.break_rule("false denial", detail);
        }
    }
}
