//! Units asked of limits, by name of the limit: how many stayed within it, how many of those were near it, how many went
//! beyond. So an operator sees which limits are about to bite, over all tenants that have one of this name.

use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::{hash::Map, request::Units};

/// More names than this are counted together, under an empty one.
const NAMES_MAX: usize = 1_000;

/// Units that calls asked of limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UnitsAsked {
    /// Of calls that the limit had room for.
    pub within: Units,
    /// Above four fifths of the limit and within it.
    pub near: Units,
    /// Above the limit: denied, or admitted by a soft or shadow limit.
    pub over: Units,
}

impl UnitsAsked {
    /// Tells the units of one call apart: `cost` of them, with which `used_after` would be used of `amount`. A call that goes
    /// beyond has none within; its part up to the limit is near.
    #[must_use]
    pub fn of(amount: Units, cost: Units, used_after: Units) -> Self {
        let used_before = used_after.saturating_sub(cost);
        // Wide: amount × 4 may leave 64 bits.
        let fifths = u128::from(amount).saturating_mul(4).checked_div(5);
        let near_from = Units::try_from(fifths.unwrap_or(0)).unwrap_or(amount);
        let near = used_after
            .min(amount)
            .saturating_sub(near_from.max(used_before));
        let over = used_after.saturating_sub(amount.max(used_before));
        let within = if over == 0 { cost } else { 0 };
        Self { within, near, over }
    }

    /// All of one call's units beyond the limit.
    #[must_use]
    pub const fn all_over(cost: Units) -> Self {
        Self {
            within: 0,
            near: 0,
            over: cost,
        }
    }
}

/// Sums by name, which only grow.
#[derive(Debug)]
pub(crate) struct Tallies {
    places: Map<Arc<str>, u32>,
    sums: Vec<(Arc<str>, UnitsAsked)>,
}

impl Tallies {
    /// Nothing was asked yet.
    pub(crate) fn new(state: FixedState) -> Self {
        Self {
            places: Map::with_hasher(state),
            sums: Vec::new(),
        }
    }

    /// The place of a name, made where it is new.
    pub(crate) fn place_of(&mut self, name: &Arc<str>) -> u32 {
        let name = if self.sums.len() < NAMES_MAX || self.places.contains_key(name) {
            Arc::clone(name)
        } else {
            Arc::from("")
        };
        let next = u32::try_from(self.sums.len()).unwrap_or(u32::MAX);
        let place = *self.places.entry(Arc::clone(&name)).or_insert(next);
        if place == next {
            self.sums.push((name, UnitsAsked::default()));
        }
        place
    }

    /// Counts what a call asked.
    pub(crate) fn add(&mut self, place: u32, asked: UnitsAsked) {
        if let Some((_, sum)) = self.sums.get_mut(place as usize) {
            sum.within = sum.within.saturating_add(asked.within);
            sum.near = sum.near.saturating_add(asked.near);
            sum.over = sum.over.saturating_add(asked.over);
        }
    }

    /// What was asked so far, by name.
    pub(crate) fn sums(&self) -> Vec<(Arc<str>, UnitsAsked)> {
        self.sums.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many names there are, a bounded number of sums is kept, and no unit is left out.
    #[test]
    fn names_beyond_the_bound_are_counted_together() {
        let mut tallies = Tallies::new(FixedState::with_seed(1));
        for name in 0..3_000 {
            let place = tallies.place_of(&Arc::from(format!("limit-{name}")));
            tallies.add(place, UnitsAsked::all_over(1));
        }
        let sums = tallies.sums();
        let (last, rest) = &sums[NAMES_MAX];
        assert_eq!((NAMES_MAX + 1, "", 2_000), (sums.len(), &**last, rest.over));
        assert_eq!(3_000, sums.iter().map(|(_, sum)| sum.over).sum::<Units>());
    }
}
