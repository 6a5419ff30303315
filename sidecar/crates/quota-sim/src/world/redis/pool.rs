//! The functions of pools: `pool_open`, `pool_extend`, `pool_close`, `lease_grant`.

use std::{collections::BTreeMap, sync::Arc};

use quota_core::{
    FunctionCall, FunctionReply, Holder, UNITS_MAX, WindowId,
    mutant::{self, Mutant},
};

use super::{Redis, err, err_with, number, ok};
use crate::world::fact::Fact;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seat {
    pub(super) seq: u64,
    pub(super) granted: u64,
    pub(super) returned: u64,
    pub(super) give: u64,
    pub(super) consumed: u64,
    pub(super) over: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) generation: u64,
    pub(super) fence: u64,
    pub(super) total: u64,
    pub(super) granted: u64,
    pub(super) returned: u64,
    pub(super) seq: u64,
    pub(super) is_final: bool,
    pub(super) is_closed: bool,
    pub(super) wanted: u64,
    pub(super) version: u64,
    pub(super) seats: BTreeMap<Holder, Seat>,
}

/// What `pool_extend` says.
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    /// Of the pool.
    pub generation: u64,
    /// Units that went into it so far.
    pub allotted_cum: u64,
    /// Version of the amount.
    pub amount_version: u64,
    /// The limit has no more to give.
    pub is_final: bool,
}

impl Pool {
    pub(super) const fn new(generation: u64, fence: u64) -> Self {
        Self {
            generation,
            fence,
            total: 0,
            granted: 0,
            returned: 0,
            seq: 0,
            is_final: false,
            is_closed: false,
            wanted: 0,
            version: 0,
            seats: BTreeMap::new(),
        }
    }

    pub(super) fn free(&self) -> u64 {
        (self.total + self.returned).saturating_sub(self.granted)
    }

    /// Whether it gets no more and has less than a tenth left.
    pub(super) fn is_short(&self) -> bool {
        self.is_final && self.free() <= self.total.saturating_sub(1) / 10 && self.total > 0
    }

    pub(super) fn serves(&self, fence: u64) -> bool {
        self.fence == fence && !self.is_closed
    }

    /// Why it would not serve this generation in this history.
    pub(super) fn refusal(&self, generation: u64, fence: u64) -> Option<FunctionReply> {
        if self.generation != generation && !mutant::is(Mutant::GenerationUnchecked) {
            return Some(err_with("GENERATION", self.generation));
        }
        (self.fence != fence && !mutant::is(Mutant::FenceUnchecked)).then(|| err("FENCE"))
    }

    /// Notes a refusal, and answers whether what was refused before is now there.
    pub(super) fn next_wanted(&mut self, need: u64, given: u64) -> bool {
        let free = self.free();
        let is_due = self.wanted > 0 && free >= self.wanted;
        if is_due {
            self.wanted = 0;
        }
        if given == 0 && free < need && (self.wanted == 0 || need < self.wanted) {
            self.wanted = need;
        }
        is_due && !mutant::is(Mutant::PoolNoticeForgotten)
    }

    pub(super) fn answer(&self, seat: &Seat, holders: u64) -> FunctionReply {
        ok(&[
            seat.give,
            seat.granted,
            self.seq,
            self.free(),
            u64::from(self.is_final),
            self.total,
            holders,
        ])
    }
}

/// How much to give of `free`.
fn share_of(free: u64, total: u64, need: u64, want: u64, holders: u64) -> u64 {
    if free < need {
        return if mutant::is(Mutant::GivesBeyondFree) {
            need
        } else {
            0
        };
    }
    if free <= total.saturating_sub(1) / 10 {
        return need;
    }
    need.max(want.min(free / (2 * holders)))
}

/// The holder that an argument names in hex.
pub(super) fn holder_of(text: &str) -> Holder {
    Holder(u128::from_str_radix(text, 16).expect("hex").to_be_bytes())
}

/// The window that a pool's key names.
pub(in crate::world) fn window_of(key: &str) -> WindowId {
    let (_, name) = key.rsplit_once(':').expect("a pool's key");
    WindowId(u128::from_str_radix(name, 16).expect("hex").to_be_bytes())
}

/// What `lease_grant` is asked.
struct Ask {
    holder: Holder,
    seq: u64,
    need: u64,
    want: u64,
    returned_cum: u64,
    consumed_cum: u64,
    over_cum: u64,
    holder_count: u64,
}

impl Redis {
    pub(super) fn pool_open(&mut self, server: usize, call: &FunctionCall) -> FunctionReply {
        let generation = number(call, 0);
        let fence = self.servers[server].fence();
        let pools = &mut self.servers[server].data.pools;
        if let Some(pool) = pools.get(&call.keys[0])
            && (pool.generation > generation
                || (pool.generation == generation && !mutant::is(Mutant::OpenRepeated)))
        {
            return err_with("OLD_GENERATION", pool.generation);
        }
        pools.insert(call.keys[0].clone(), Pool::new(generation, fence));
        ok(&[])
    }

    pub(super) fn pool_extend(&mut self, server: usize, call: &FunctionCall) -> FunctionReply {
        let extension = Extension {
            generation: number(call, 0),
            allotted_cum: number(call, 1),
            amount_version: number(call, 2),
            is_final: number(call, 3) == 1,
        };
        let fence = self.servers[server].fence();
        let pools = &mut self.servers[server].data.pools;
        if mutant::is(Mutant::ExtendCreates) && !pools.contains_key(&call.keys[0]) {
            pools.insert(call.keys[0].clone(), Pool::new(extension.generation, fence));
        }
        let Some(pool) = pools.get_mut(&call.keys[0]) else {
            return err("NO_POOL");
        };
        if let Some(refusal) = pool.refusal(extension.generation, fence) {
            return refusal;
        }
        if pool.is_closed {
            return err("CLOSED");
        }
        let was_short = pool.is_short();
        let is_due = extend(pool, extension);
        if pool.is_short() && !was_short {
            self.shorts
                .push((server, call.arguments[4].as_str().into()));
        }
        if is_due {
            self.publish(server, &call.arguments[4]);
        }
        ok(&[])
    }

    pub(super) fn pool_close(&mut self, server: usize, call: &FunctionCall) -> FunctionReply {
        let generation = number(call, 0);
        let fence = self.servers[server].fence();
        let Some(pool) = self.servers[server].data.pools.get_mut(&call.keys[0]) else {
            return err("NO_POOL");
        };
        if let Some(refusal) = pool.refusal(generation, fence) {
            return refusal;
        }
        let (was_closed, free) = (pool.is_closed, pool.free());
        pool.is_closed = !mutant::is(Mutant::CloseStillServes);
        pool.wanted = 0;
        if !was_closed {
            self.publish(server, &call.arguments[1]);
        }
        ok(&[free])
    }

    pub(super) fn lease_grant(&mut self, server: usize, call: &FunctionCall) -> FunctionReply {
        let (generation, witness) = (number(call, 0), number(call, 8));
        let ask = Ask {
            holder: holder_of(&call.arguments[1]),
            seq: number(call, 2),
            need: number(call, 3),
            want: number(call, 4),
            returned_cum: number(call, 5),
            consumed_cum: number(call, 6),
            over_cum: number(call, 7),
            holder_count: number(call, 9),
        };
        let channel: &Arc<str> = &call.arguments[10].as_str().into();
        let fence = self.servers[server].fence();
        let Some(pool) = self.servers[server].data.pools.get_mut(&call.keys[0]) else {
            return err("NO_POOL");
        };
        if let Some(refusal) = pool.refusal(generation, fence) {
            return refusal;
        }
        if pool.seq < witness {
            return err_with("ROLLBACK", pool.seq);
        }
        let known = pool.seats.get(&ask.holder).copied();
        let mut seat = known.unwrap_or_default();
        let is_repeat = known.is_some() && ask.seq == seat.seq;
        if is_repeat {
            let (was_closed, holders) = (pool.is_closed, pool.seats.len() as u64);
            let is_due = !was_closed && pool.next_wanted(ask.need, seat.give);
            let answer = pool.answer(&seat, holders);
            if is_due {
                self.publish(server, channel);
            }
            return answer;
        }
        if pool.is_closed {
            return err("CLOSED");
        }
        if ask.seq != seat.seq + 1 {
            return err_with("SEQ", seat.seq);
        }
        let is_in_range = ask.returned_cum >= seat.returned
            && ask.consumed_cum + ask.returned_cum <= seat.granted;
        if !is_in_range {
            return err("RETURN_RANGE");
        }
        let was_short = pool.is_short();
        let (answer, is_due, returned) = grant(pool, &mut seat, &ask, known.is_none());
        if pool.is_short() && !was_short {
            self.shorts.push((server, channel.clone()));
        }
        let moved = (seat.give, returned);
        self.note_grant((server, &call.keys[0]), generation, ask.holder, moved);
        if is_due {
            self.publish(server, channel);
        }
        answer
    }

    /// Notes what a server's pool gave to a holder, and what it took back.
    pub(super) fn note_grant(
        &mut self,
        (server, pool): (usize, &str),
        generation: u64,
        holder: Holder,
        (give, returned): (u64, u64),
    ) {
        self.note(Fact::Granted {
            window: window_of(pool),
            generation,
            history: self.servers[server].history,
            holder,
            give,
            returned,
        });
    }
}

/// Takes in what went into a pool; answers whether the channel is to be told.
fn extend(pool: &mut Pool, extension: Extension) -> bool {
    let is_newest = extension.amount_version > pool.version
        || (extension.amount_version == pool.version && extension.allotted_cum >= pool.total);
    let was_final = pool.is_final;
    if is_newest {
        pool.is_final = extension.is_final;
    }
    if mutant::is(Mutant::ExtendAdds) && extension.allotted_cum <= pool.total {
        pool.total += extension.allotted_cum;
    }
    pool.total = pool.total.max(extension.allotted_cum);
    pool.version = pool.version.max(extension.amount_version);
    let is_due = (was_final && !pool.is_final) || (pool.wanted > 0 && pool.free() >= pool.wanted);
    if is_due {
        pool.wanted = 0;
    }
    is_due
}

/// Grants anew: the answer, whether the channel is to be told, and the units that came back.
fn grant(pool: &mut Pool, seat: &mut Seat, ask: &Ask, is_new: bool) -> (FunctionReply, bool, u64) {
    let before = if mutant::is(Mutant::ReturnAddedWhole) {
        0
    } else {
        seat.returned
    };
    let returned = ask.returned_cum.saturating_sub(before);
    pool.returned += returned;
    let holders = pool.seats.len() as u64 + u64::from(is_new);
    let at_most = ask.holder_count.max(holders);
    seat.give = share_of(pool.free(), pool.total, ask.need, ask.want, at_most);
    if pool.granted + seat.give > UNITS_MAX {
        pool.is_closed = true;
        return (err("CLOSED"), false, returned);
    }
    seat.seq = ask.seq;
    seat.granted += seat.give;
    seat.returned = ask.returned_cum;
    seat.consumed = ask.consumed_cum;
    seat.over = ask.over_cum;
    pool.granted += seat.give;
    pool.seq += 1;
    let is_due = pool.next_wanted(ask.need, seat.give);
    pool.seats.insert(ask.holder, *seat);
    (pool.answer(seat, holders), is_due, returned)
}
