//! Units of one window in this process: where they came from, where they went.
//!
//! I3: the sum over sources of granted − returned = consumed − given back + held + kept + free + standby, at every moment.

use crate::{
    bucket::source::Source,
    effect::{KeptPart, UseCum},
    id::Holder,
    mutant::{self, Mutant},
    request::Units,
};

/// Units of one window in this process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Balance {
    /// Units that may be spent.
    pub(crate) free: Units,
    /// Units kept apart for when nobody can give any: see [`Balance::call_up`].
    pub(crate) standby: Units,
    /// Units that a restart may take over: not spent before the log says less.
    pub(crate) kept: Units,
    /// Units that reservations hold.
    pub(crate) held: Units,
    /// All units spent so far; grows, never shrinks.
    pub(crate) consumed: Units,
    /// Of these, units that their callers gave back; grows, never shrinks.
    pub(crate) given_back: Units,
    /// All units admitted beyond the limit so far.
    pub(crate) over: Units,
    /// Of these, units that their callers gave back.
    pub(crate) over_back: Units,
    /// Units used above what was reserved and not paid yet. While there are any, `free` is 0.
    pub(crate) debt: Units,
    /// Oldest first.
    pub(crate) sources: Vec<Source>,
}

impl Balance {
    /// Units that a call of this cost lacks.
    pub(crate) const fn missing(&self, cost: Units) -> Units {
        cost.saturating_add(self.debt).saturating_sub(self.free)
    }

    /// Spends units; refuses, and changes nothing, where they are not there.
    pub(crate) const fn take(&mut self, units: Units) -> bool {
        if self.free < units {
            return false;
        }
        self.free = self.free.saturating_sub(units);
        self.consumed = self.consumed.saturating_add(units);
        true
    }

    /// Holds units for a reservation; refuses, and changes nothing, where they are not there.
    pub(crate) const fn hold(&mut self, units: Units) -> bool {
        if self.free < units {
            return false;
        }
        self.free = self.free.saturating_sub(units);
        self.held = self.held.saturating_add(units);
        true
    }

    /// Puts held units back. Never more than are held.
    pub(crate) fn refund(&mut self, units: Units) -> Units {
        let units = units.min(self.held);
        self.held = self.held.saturating_sub(units);
        self.free = self.free.saturating_add(units);
        self.pay();
        units
    }

    /// Spends held units.
    pub(crate) fn spend_held(&mut self, units: Units) {
        let units = units.min(self.held);
        self.held = self.held.saturating_sub(units);
        self.consumed = self.consumed.saturating_add(units);
    }

    /// Sets free units aside, those of the newest sources first. What is kept of any source only grows by this.
    pub(crate) fn keep(&mut self, units: Units) {
        self.attribute();
        let mut rest = units.min(self.free);
        for source in self.sources.iter_mut().rev() {
            let part = rest.min(source.spare());
            rest = rest.saturating_sub(part);
            source.kept = source.kept.saturating_add(part);
            self.free = self.free.saturating_sub(part);
            self.kept = self.kept.saturating_add(part);
        }
    }

    /// What is kept of each source.
    pub(crate) fn kept_parts(&self) -> Box<[Units]> {
        self.sources.iter().map(|source| source.kept).collect()
    }

    /// What is left kept of each source when only so many units are, oldest sources freed first.
    pub(crate) fn lower_parts(&self, units: Units) -> Box<[Units]> {
        let mut freed = self.kept.saturating_sub(units);
        let lower = |source: &Source| {
            let part = freed.min(source.kept);
            freed = freed.saturating_sub(part);
            source.kept.saturating_sub(part)
        };
        self.sources.iter().map(lower).collect()
    }

    /// Frees what is kept of each source above its part in `left`.
    pub(crate) fn release(&mut self, left: &[Units]) {
        for (place, source) in self.sources.iter_mut().enumerate() {
            let part = left.get(place).copied().unwrap_or(0);
            let units = source.kept.saturating_sub(part);
            source.kept = source.kept.saturating_sub(units);
            self.kept = self.kept.saturating_sub(units);
            self.free = self.free.saturating_add(units);
        }
        self.pay();
    }

    /// Of which sources so many units of each are, for a mark; `own` = this process.
    pub(crate) fn parts_kept(&self, parts: &[Units], own: Holder) -> Box<[KeptPart]> {
        let parts = self
            .sources
            .iter()
            .zip(parts)
            .filter(|(_, units)| **units > 0);
        parts
            .filter(|(source, _)| source.is_returnable())
            .map(|(source, units)| KeptPart {
                holder: source.from.unwrap_or(own),
                generation: source.generation,
                units: *units,
                returned_cum: source.returned_ledger,
            })
            .collect()
    }

    /// Takes in units that a dead process kept: they are spent here, and go back to the ledger in its name.
    pub(crate) fn inherit(&mut self, part: &KeptPart) {
        self.sources.push(Source::inherited(part));
        self.free = self.free.saturating_add(part.units);
        self.pay();
    }

    /// Takes in units that were used without having been reserved.
    pub(crate) fn owe(&mut self, units: Units) {
        if mutant::is(Mutant::DebtForgotten) {
            return;
        }
        self.debt = self.debt.saturating_add(units);
        self.pay();
    }

    /// Counts units admitted without having them.
    pub(crate) const fn exceed(&mut self, units: Units) {
        self.over = self.over.saturating_add(units);
    }

    /// Units spent that were not given back.
    pub(crate) const fn spent(&self) -> Units {
        self.consumed.saturating_sub(self.given_back)
    }

    /// Units that calls used here and did not give back, beyond the limit or within: so many may be given back.
    pub(crate) const fn used(&self) -> Units {
        self.spent()
            .saturating_add(self.over.saturating_sub(self.over_back))
            .saturating_add(self.debt)
    }

    /// What was used so far, as it is reported.
    pub(crate) const fn use_cum(&self) -> UseCum {
        UseCum {
            consumed: self.consumed,
            over: self.over,
            given_back: self.given_back.saturating_add(self.over_back),
        }
    }

    /// Takes back units that a caller used here and does not need after all: first what nothing stood for, then spent
    /// ones, newest source first, which are free again. Refuses, and changes nothing, where fewer were used here.
    pub(crate) fn unspend(&mut self, units: Units) -> bool {
        if units > self.used() && !mutant::is(Mutant::GivesBackUnused) {
            return false;
        }
        let unpaid = units.min(self.debt);
        self.debt = self.debt.saturating_sub(unpaid);
        let mut rest = units.saturating_sub(unpaid);
        let beyond = rest.min(self.over.saturating_sub(self.over_back));
        self.over_back = self.over_back.saturating_add(beyond);
        rest = rest.saturating_sub(beyond);
        if mutant::is(Mutant::GivesBackUnused) && rest > self.spent() {
            self.mint(rest);
            return true;
        }
        self.attribute();
        for source in self.sources.iter_mut().rev() {
            let part = rest.min(source.spent());
            rest = rest.saturating_sub(part);
            source.given_back = source.given_back.saturating_add(part);
            self.given_back = self.given_back.saturating_add(part);
            self.free = self.free.saturating_add(part);
        }
        self.pay();
        true
    }

    fn pay(&mut self) {
        let paid = self.debt.min(self.free);
        self.debt = self.debt.saturating_sub(paid);
        self.free = self.free.saturating_sub(paid);
        self.consumed = self.consumed.saturating_add(paid);
    }

    /// The source of a generation that this process leased from, made where it is new.
    pub(crate) fn source(&mut self, generation: u64) -> &mut Source {
        self.source_of(None, generation)
    }

    /// The source of a generation that this process, or a dead one, leased from; made where it is new.
    pub(crate) fn source_of(&mut self, from: Option<Holder>, generation: u64) -> &mut Source {
        let found = self
            .sources
            .iter()
            .position(|source| source.from == from && source.generation == generation);
        let index = found.unwrap_or_else(|| {
            self.sources.push(Source::new(from, generation));
            self.sources.len().saturating_sub(1)
        });
        &mut self.sources[index]
    }

    /// Begins to count the ledger's grants and returns at `granted_cum`: what was before is nobody's any more.
    pub(crate) fn begin_at(&mut self, granted_cum: Units) {
        let source = self.source(0);
        source.seen = granted_cum;
        source.granted = granted_cum;
        source.returned_ledger = granted_cum;
        source.told_ledger = granted_cum;
    }

    /// Takes in what a source says it gave: `give` by this answer, `granted_cum` in all. Repeats credit nothing.
    /// Grants of which only the cumulative counter tells are given up: nobody knows who spends them.
    pub(crate) fn credit(&mut self, generation: u64, granted_cum: Units, give: Units) -> Units {
        let source = self.source(generation);
        let credited = granted_cum.saturating_sub(source.seen).min(give);
        source.seen = source.seen.max(granted_cum);
        source.granted = source.granted.saturating_add(credited);
        self.free = self.free.saturating_add(credited);
        self.pay();
        credited
    }

    /// Keeps so many units apart, out of `spare` free ones at most; what is apart beyond that is free again.
    pub(crate) fn keep_apart(&mut self, units: Units, spare: Units) {
        let freed = self.standby.saturating_sub(units);
        self.standby = self.standby.saturating_sub(freed);
        self.free = self.free.saturating_add(freed);
        self.pay();
        let more = units.saturating_sub(self.standby).min(spare).min(self.free);
        self.free = self.free.saturating_sub(more);
        self.standby = self.standby.saturating_add(more);
    }

    /// Frees so many of the units kept apart; refuses, and changes nothing, where they would not do.
    pub(crate) fn call_up(&mut self, lacking: Units) -> bool {
        if self.standby < lacking {
            return false;
        }
        if !mutant::is(Mutant::StandbySpentTwice) {
            self.standby = self.standby.saturating_sub(lacking);
        }
        self.free = self.free.saturating_add(lacking);
        self.pay();
        true
    }

    /// Settles which source's units were consumed, oldest source first. Figures per source only grow.
    pub(crate) fn attribute(&mut self) {
        let known = self
            .sources
            .iter()
            .fold(0, |sum: Units, source| sum.saturating_add(source.consumed));
        let mut rest = self.consumed.saturating_sub(known);
        for source in &mut self.sources {
            let part = rest.min(source.spare());
            source.consumed = source.consumed.saturating_add(part);
            rest = rest.saturating_sub(part);
        }
    }

    /// Books units of a pool's generation that were spent here as returned to it, because it took them back. Answers how
    /// many: never more than are spent.
    pub(crate) fn take_back(&mut self, generation: u64, units: Units) -> Units {
        self.attribute();
        let source = self.source(generation);
        let units = units.min(source.spent());
        source.given_back = source.given_back.saturating_add(units);
        source.returned_pool = source.returned_pool.saturating_add(units);
        source.told_pool = source.told_pool.saturating_add(units);
        self.given_back = self.given_back.saturating_add(units);
        units
    }

    /// Lowers the balance to `keep` and books the difference as returned, newest source first. Units of `pool` (the
    /// generation that serves now) go back to it, all others to the ledger. Answers what left for the pool.
    pub(crate) fn give_back(&mut self, keep: Units, pool: Option<u64>) -> Units {
        self.attribute();
        self.keep_apart(0, 0);
        let mut rest = self.free.saturating_sub(keep);
        let mut to_pool: Units = 0;
        for source in self.sources.iter_mut().rev() {
            let part = rest.min(source.spare());
            if part == 0 || !source.is_returnable() {
                continue;
            }
            rest = rest.saturating_sub(part);
            if !mutant::is(Mutant::ReturnNotLowered) {
                self.free = self.free.saturating_sub(part);
            }
            if source.is_pools(pool) {
                source.returned_pool = source.returned_pool.saturating_add(part);
                to_pool = to_pool.saturating_add(part);
            } else {
                source.returned_ledger = source.returned_ledger.saturating_add(part);
            }
        }
        to_pool
    }

    /// Sends what a pool has definitely refused to take back to the ledger instead. Only where every request that
    /// carried it was answered: what a pool may have taken is never settled elsewhere.
    pub(crate) fn return_elsewhere(&mut self, generation: u64) {
        let source = self.source(generation);
        let refused = source.returned_pool.saturating_sub(source.told_pool);
        source.returned_pool = source.told_pool;
        source.returned_ledger = source.returned_ledger.saturating_add(refused);
    }

    /// Makes units out of nothing, for mutants: as if some source had given them.
    pub(crate) fn mint(&mut self, units: Units) {
        if let Some(source) = self.sources.first_mut() {
            source.granted = source.granted.saturating_add(units);
            self.free = self.free.saturating_add(units);
        }
    }

    /// Units on their way back to the ledger.
    pub(crate) fn returning(&self) -> Units {
        let unconfirmed =
            |source: &Source| source.returned_ledger.saturating_sub(source.told_ledger);
        self.sources
            .iter()
            .map(unconfirmed)
            .fold(0, Units::saturating_add)
    }

    /// Whether I3 holds.
    pub(crate) fn is_sound(&self) -> bool {
        let lent = self.sources.iter().fold(0_u64, |sum, source| {
            let here = source
                .granted
                .saturating_sub(source.returned_pool)
                .saturating_sub(source.returned_ledger);
            sum.saturating_add(here)
        });
        let here = self
            .spent()
            .saturating_add(self.held)
            .saturating_add(self.kept)
            .saturating_add(self.free)
            .saturating_add(self.standby);
        let kept = self.sources.iter().map(|source| source.kept);
        lent == here
            && kept.fold(0, Units::saturating_add) == self.kept
            && (self.debt == 0 || self.free == 0)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Move {
        Credit(u64, Units),
        Take(Units),
        Hold(Units),
        Refund(Units),
        SpendHeld(Units),
        Owe(Units),
        GiveBack(Units, Option<u64>),
        KeepApart(Units, Units),
        CallUp(Units),
        Unspend(Units),
        TakeBack(u64, Units),
        Exceed(Units),
        Keep(Units),
        Release(Units),
        Inherit(u8, u64, Units),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            (0_u64..4, 0_u64..50).prop_map(|(source, units)| Move::Credit(source, units)),
            (0_u64..30).prop_map(Move::Take),
            (0_u64..30).prop_map(Move::Hold),
            (0_u64..30).prop_map(Move::Refund),
            (0_u64..30).prop_map(Move::SpendHeld),
            (0_u64..10).prop_map(Move::Owe),
            (0_u64..20, proptest::option::of(0_u64..4))
                .prop_map(|(keep, pool)| Move::GiveBack(keep, pool)),
            (0_u64..20, 0_u64..20).prop_map(|(units, spare)| Move::KeepApart(units, spare)),
            (0_u64..20).prop_map(Move::CallUp),
            (0_u64..30).prop_map(Move::Unspend),
            (0_u64..4, 0_u64..9).prop_map(|(source, units)| Move::TakeBack(source, units)),
            (0_u64..10).prop_map(Move::Exceed),
            (0_u64..30).prop_map(Move::Keep),
            (0_u64..30).prop_map(Move::Release),
            (1_u8..3, 0_u64..4, 0_u64..30)
                .prop_map(|(from, source, units)| Move::Inherit(from, source, units)),
        ];
        proptest::collection::vec(one, 0..60)
    }

    fn apply(balance: &mut Balance, step: &Move) {
        match *step {
            Move::Credit(source, units) => {
                let seen = balance.source(source).seen;
                balance.credit(source, seen + units, units);
            }
            Move::Take(units) => drop(balance.take(units)),
            Move::Hold(units) => drop(balance.hold(units)),
            Move::Refund(units) => drop(balance.refund(units)),
            Move::SpendHeld(units) => balance.spend_held(units),
            Move::Owe(units) => balance.owe(units),
            Move::GiveBack(keep, pool) => drop(balance.give_back(keep, pool)),
            Move::KeepApart(units, spare) => balance.keep_apart(units, spare),
            Move::CallUp(units) => drop(balance.call_up(units)),
            Move::Unspend(units) => drop(balance.unspend(units)),
            Move::TakeBack(source, units) => drop(balance.take_back(source, units)),
            Move::Exceed(units) => balance.exceed(units),
            Move::Keep(units) => balance.keep(units),
            Move::Release(left) => balance.release(&balance.lower_parts(left)),
            Move::Inherit(from, generation, units) => balance.inherit(&KeptPart {
                holder: Holder([from; 16]),
                generation,
                units,
                returned_cum: 7,
            }),
        }
    }

    proptest! {
        /// Whatever happens, I3 holds and no cumulative counter of a source ever falls, nor passes what it granted.
        #[test]
        fn counters_are_monotone_and_add_up(steps in moves()) {
            let mut balance = Balance::default();
            for step in &steps {
                let before = balance.clone();
                apply(&mut balance, step);
                prop_assert!(balance.is_sound(), "{balance:?} after {step:?}");
                prop_assert!(balance.consumed >= before.consumed && balance.given_back >= before.given_back);
                if let Move::Unspend(units) = step {
                    let is_there = before.used() >= *units;
                    let expected = before.used() - if is_there { *units } else { 0 };
                    prop_assert_eq!(expected, balance.used());
                }
                balance.attribute();
                for (old, new) in before.sources.iter().zip(&balance.sources) {
                    prop_assert!(new.consumed >= old.consumed && new.granted >= old.granted);
                    prop_assert!(new.returned_pool >= old.returned_pool);
                    prop_assert!(new.returned_ledger >= old.returned_ledger);
                    prop_assert!(new.given_back >= old.given_back && new.given_back <= new.consumed);
                    let gone = new.spent() + new.returned_pool + new.returned_ledger;
                    prop_assert!(gone + new.kept <= new.granted);
                }
            }
        }
    }

    /// A repeated answer credits nothing, and grants of unknown fate are given up.
    #[test]
    fn repeats_credit_nothing() {
        let mut balance = Balance::default();
        assert_eq!(10, balance.credit(1, 10, 10));
        assert_eq!(0, balance.credit(1, 10, 10));
        assert_eq!(5, balance.credit(1, 20, 5));
        assert_eq!(15, balance.free);
    }
}
