//! Token buckets judged exactly: what was admitted fits a bucket of this burst and these rates, whole, over every change.
//!
//! A bucket of the simulator's own is charged with what was asked for at once (the *need*) when the shard gives it, and
//! with what was lent beyond when it is admitted: units lent ahead lower the shard's cap, so they may come at any moment of
//! their slice, on top of a full bucket. Tokens that a reservation did not use were never taken: the past is charged less.
//! Whatever a holder admits beyond what it was given comes from the standing share, which is a bucket of its own.

use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

use quota_core::{Holder, ReservationId};

use crate::world::fact::Fact;

/// Slices are over this long after they were asked for, real µs.
const SLICE_US: u64 = 200_000;
/// A request that was sent before its sender heard of a change arrives within this, real µs.
const UNDER_WAY_US: u64 = 1_000_000;
/// A shard's clock gets no further ahead of its callers' ledger time than this, µs, where ledger time is real time.
const AHEAD_US: i128 = 2_000_000;
/// The standing share of all holders: one in so many tokens.
const SHARE: u64 = 50;

/// Something that moved the bucket: so much was charged, and this rate is in force from then on.
#[derive(Clone, Copy, Debug)]
struct Move {
    at_us: i64,
    charge: u64,
    rate: u64,
}

/// Units that a holder was given and has not admitted yet.
#[derive(Clone, Copy, Debug)]
struct Lot {
    units: u64,
    ends_us: u64,
    /// Where the bucket was charged with them; `None` = it is when they are admitted.
    charged: Option<usize>,
}

/// One token bucket, and what all holders did with it.
#[derive(Clone, Debug)]
pub struct Tokens {
    interval_us: i128,
    burst: u64,
    moves: Vec<Move>,
    /// Tokens × interval after the last move.
    level: i128,
    lots: BTreeMap<Holder, VecDeque<Lot>>,
    /// Reservation → where the bucket was charged with its units.
    reserved: BTreeMap<ReservationId, (Holder, Vec<(usize, u64)>)>,
    /// What each holder admitted: where the bucket was charged with it, newest last.
    used: BTreeMap<Holder, Vec<(usize, u64)>>,
    /// Units of reservations that each holder has on their way back.
    settled: BTreeMap<Holder, u64>,
    /// Rates that somebody may ask with: in force, known by a sidecar, brought by the last request, and a while longer.
    amount: u64,
    brought: u64,
    known: BTreeMap<usize, u64>,
    fading: VecDeque<(u64, u64)>,
    share_level: i128,
    share_us: i64,
    /// What clocks that jumped ahead may have brought at another time than its own, µs: a shard that begins anew may be
    /// ahead anew.
    ahead_us: i128,
    is_ahead: bool,
    /// What the shard's clock may be behind ledger time, µs: a jump ahead brings that as well.
    behind_us: i64,
    /// What broke.
    pub broken: Option<String>,
}

impl Tokens {
    /// A full one.
    #[must_use]
    pub fn full(burst: u64, rate: u64, interval_us: u64, at_us: i64) -> Self {
        let interval_us = i128::from(interval_us);
        let mut tokens = Self {
            interval_us,
            burst,
            moves: vec![Move {
                at_us,
                charge: 0,
                rate,
            }],
            level: i128::from(burst) * interval_us,
            lots: BTreeMap::new(),
            reserved: BTreeMap::new(),
            used: BTreeMap::new(),
            settled: BTreeMap::new(),
            amount: rate,
            brought: rate,
            known: BTreeMap::new(),
            fading: VecDeque::new(),
            share_level: 0,
            share_us: at_us,
            ahead_us: 0,
            is_ahead: false,
            behind_us: 0,
            broken: None,
        };
        tokens.share_level = tokens.share_most();
        tokens
    }

    /// Takes in that another amount is in force.
    pub fn change(&mut self, amount: u64, real_us: u64, at_us: i64) {
        self.fade(self.amount, real_us);
        self.amount = amount;
        self.charge(0, at_us, real_us);
    }

    /// Takes in that ledger time jumped: the shard's time did not.
    pub fn fall_behind(&mut self, span_us: i64) {
        self.behind_us += span_us;
    }

    /// Takes in that the shard's wall clock went back: what passed since it was asked last is not seen by it.
    pub fn clock_went_back(&mut self, at_us: i64) {
        let last_us = self.moves[self.moves.len() - 1].at_us;
        self.fall_behind((at_us - last_us).max(0));
    }

    /// Takes in that the shard's wall clock jumped ahead.
    pub fn clock_jumped_ahead(&mut self) {
        self.ahead_us += i128::from(std::mem::take(&mut self.behind_us));
        if !self.is_ahead {
            self.is_ahead = true;
            self.ahead_us += AHEAD_US;
        }
    }

    /// Takes in what a shard did, or a sidecar heard.
    pub fn learn(&mut self, fact: &Fact, at_us: i64) {
        match *fact {
            Fact::Took {
                holder,
                need,
                give,
                rate,
                real_us,
            } => {
                self.fade(self.brought, real_us);
                self.brought = rate;
                let charged = self.charge(need.min(give), at_us, real_us);
                self.meet(holder);
                let lots = self.lots.entry(holder).or_default();
                let ends_us = real_us + SLICE_US;
                for (units, charged) in [
                    (need.min(give), Some(charged)),
                    (give.saturating_sub(need), None),
                ] {
                    if units > 0 {
                        lots.push_back(Lot {
                            units,
                            ends_us,
                            charged,
                        });
                    }
                }
            }
            Fact::Gave {
                holder,
                units,
                rate,
                real_us,
            } => {
                self.fade(self.brought, real_us);
                self.brought = rate;
                self.take_back(holder, units);
                self.charge(0, at_us, real_us);
            }
            // What was lent by the shard before comes on top of what this one may give: it is on its way.
            Fact::Began { real_us } => {
                (self.is_ahead, self.behind_us) = (false, 0);
                let lots = self.lots.values().flatten();
                let lent = lots.filter(|lot| lot.charged.is_none() && lot.ends_us > real_us);
                let under_way: u64 = lent.map(|lot| lot.units).sum();
                // Lots of those that died count as well, though nobody spends them: never more than there is.
                self.charge(0, at_us, real_us);
                let last = self.moves[self.moves.len() - 1];
                let level = self.flow(self.level, last, at_us) / self.interval_us;
                let most = u64::try_from(level).unwrap_or(0);
                let charged = self.charge(under_way.min(most), at_us, real_us);
                for lot in self.lots.values_mut().flatten() {
                    if lot.charged.is_none() && lot.ends_us > real_us {
                        lot.charged = Some(charged);
                    }
                }
            }
            Fact::Heard {
                node,
                amount,
                real_us,
            } => {
                if let Some(before) = self.known.insert(node, amount) {
                    self.fade(before, real_us);
                }
                self.charge(0, at_us, real_us);
            }
            _ => {}
        }
    }

    /// Takes in that a holder admitted units, or holds them for a reservation.
    pub fn admit(
        &mut self,
        holder: Holder,
        units: u64,
        reservation: Option<ReservationId>,
        (real_us, at_us): (u64, i64),
    ) {
        self.meet(holder);
        let mut rest = units;
        let mut parts = Vec::new();
        let mut ahead = 0;
        let lots = self.lots.entry(holder).or_default();
        lots.retain(|lot| lot.ends_us >= real_us && lot.units > 0);
        // Units that end first are used first, as sidecars do.
        lots.make_contiguous()
            .sort_by_key(|lot| (lot.ends_us, lot.charged.is_none()));
        for lot in lots.iter_mut() {
            let part = rest.min(lot.units);
            lot.units -= part;
            rest -= part;
            match lot.charged {
                Some(place) if part > 0 => parts.push((place, part)),
                _ => ahead += part,
            }
        }
        let place = self.charge(ahead, at_us, real_us);
        if ahead > 0 {
            parts.push((place, ahead));
        }
        if let Some(id) = reservation {
            self.reserved.insert(id, (holder, parts));
        } else {
            self.used.entry(holder).or_default().extend(parts);
        }
        if rest > 0 {
            self.take_share(rest, at_us);
        }
    }

    /// Takes in that a reservation used so much less than it held.
    pub fn refund(&mut self, id: ReservationId, holder: Holder, mut units: u64) {
        *self.settled.entry(holder).or_default() += units;
        let (_, parts) = self.reserved.remove(&id).unwrap_or((holder, Vec::new()));
        for (place, part) in parts {
            let less = part.min(units);
            units -= less;
            self.uncharge(place, less);
            self.used
                .entry(holder)
                .or_default()
                .push((place, part - less));
        }
        self.level = self.replay();
    }

    /// Takes in that a reservation's time is up: what it held is used.
    pub fn spend(&mut self, id: ReservationId) {
        if let Some((holder, parts)) = self.reserved.remove(&id) {
            self.used.entry(holder).or_default().extend(parts);
        }
    }

    /// Takes in that a caller gave back what it had used at a holder, newest first: it was never taken.
    pub fn give_back(&mut self, holder: Holder, mut units: u64) {
        *self.settled.entry(holder).or_default() += units;
        let mut used = self.used.remove(&holder).unwrap_or_default();
        while let Some((place, part)) = used.pop() {
            let less = part.min(units);
            units -= less;
            self.uncharge(place, less);
            if less < part {
                used.push((place, part - less));
            }
            if units == 0 {
                break;
            }
        }
        self.used.insert(holder, used);
        self.level = self.replay();
    }

    /// The rate in force now as far as anybody knows who may ask.
    fn rate(&mut self, real_us: u64) -> u64 {
        while self
            .fading
            .front()
            .is_some_and(|(until_us, _)| *until_us < real_us)
        {
            self.fading.pop_front();
        }
        let fading = self.fading.iter().map(|(_, rate)| *rate);
        let known = self.known.values().copied();
        known
            .chain(fading)
            .chain([self.amount, self.brought])
            .max()
            .unwrap_or(0)
    }

    fn fade(&mut self, rate: u64, real_us: u64) {
        if self.fading.back().is_none_or(|(_, last)| *last != rate) {
            self.fading.push_back((real_us + UNDER_WAY_US, rate));
        } else if let Some((until_us, _)) = self.fading.back_mut() {
            *until_us = real_us + UNDER_WAY_US;
        }
    }

    fn flow(&self, level: i128, last: Move, at_us: i64) -> i128 {
        let flow = i128::from((at_us - last.at_us).max(0)) * i128::from(last.rate);
        (level + flow).min(i128::from(self.burst) * self.interval_us)
    }

    /// Charges the bucket; answers the place of the charge. It may never be overdrawn.
    fn charge(&mut self, units: u64, at_us: i64, real_us: u64) -> usize {
        let rate = self.rate(real_us);
        let last = self.moves[self.moves.len() - 1];
        let at_us = at_us.max(last.at_us);
        if units == 0 && rate == last.rate {
            return self.moves.len() - 1;
        }
        self.level = self.flow(self.level, last, at_us) - i128::from(units) * self.interval_us;
        self.moves.push(Move {
            at_us,
            charge: units,
            rate,
        });
        if self.level < 0 && self.level < -self.brought_ahead() && self.broken.is_none() {
            let beyond = -self.level / self.interval_us + 1;
            self.broken = Some(format!(
                "{units} tokens: {beyond} more than burst {} and rate {rate} allow",
                self.burst
            ));
        }
        self.moves.len() - 1
    }

    /// What came at another time than its own, at most, tokens × interval.
    fn brought_ahead(&self) -> i128 {
        self.ahead_us * i128::from(self.rate_most())
    }

    /// The highest rate that ever was in force.
    fn rate_most(&self) -> u64 {
        self.moves.iter().map(|one| one.rate).max().unwrap_or(0)
    }

    /// Takes a part of a charge back; a new level is to be reckoned.
    fn uncharge(&mut self, place: usize, units: u64) {
        let charge = &mut self.moves[place].charge;
        *charge = charge.saturating_sub(units);
    }

    /// The level from the whole past.
    fn replay(&self) -> i128 {
        let mut level = i128::from(self.burst) * self.interval_us;
        let mut last = self.moves[0];
        for one in &self.moves[1..] {
            level = self.flow(level, last, one.at_us) - i128::from(one.charge) * self.interval_us;
            last = *one;
        }
        level
    }

    /// Takes in that a holder gave units back. What no reservation explains comes from its slices. The shard may have all
    /// of it anew, so what was charged and not admitted is charged no more.
    fn take_back(&mut self, holder: Holder, units: u64) {
        let settled = self.settled.entry(holder).or_default();
        let explained = units.min(*settled);
        *settled -= explained;
        let (mut charged, mut spare) = (units, units - explained);
        let mut lots = self.lots.remove(&holder).unwrap_or_default();
        // Newest first: an older one may be of an answer that was lost, which nobody can give back.
        for lot in lots.iter().rev() {
            if let Some(place) = lot.charged {
                let part = charged.min(lot.units);
                charged -= part;
                self.uncharge(place, part);
            }
        }
        for lot in lots.iter_mut().filter(|lot| lot.charged.is_none()) {
            let part = spare.min(lot.units);
            (lot.units, spare) = (lot.units - part, spare - part);
        }
        self.lots.insert(holder, lots);
        self.level = self.replay();
    }

    /// Notes a holder: each may save up a token of the share.
    fn meet(&mut self, holder: Holder) {
        if let Entry::Vacant(unknown) = self.lots.entry(holder) {
            unknown.insert(VecDeque::new());
            self.share_level += self.interval_us * i128::from(SHARE);
        }
    }

    /// The share's burst, tokens × interval × [`SHARE`]: its part, a token, and a token of each holder.
    fn share_most(&self) -> i128 {
        let tokens = i128::from(self.burst) + i128::from(SHARE) * (1 + self.lots.len() as i128);
        tokens * self.interval_us
    }

    fn take_share(&mut self, units: u64, at_us: i64) {
        let rate = self.rate_most();
        let flow = i128::from((at_us - self.share_us).max(0)) * i128::from(rate);
        self.share_level = (self.share_level + flow).min(self.share_most());
        self.share_us = self.share_us.max(at_us);
        self.share_level -= i128::from(units) * self.interval_us * i128::from(SHARE);
        if self.share_level < 0 && self.broken.is_none() {
            self.broken = Some(format!(
                "{units} tokens that nobody gave: more than the standing share"
            ));
        }
    }
}
