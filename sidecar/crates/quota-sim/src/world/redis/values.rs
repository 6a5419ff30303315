//! `values_grant`: marks values and grants their units in one step.

use std::{collections::BTreeMap, sync::Arc};

use quota_core::{FunctionCall, FunctionReply};

use super::{
    Redis, err, err_with, number,
    pool::{Pool, Seat, holder_of, window_of},
};
use crate::world::fact::Fact;

impl Redis {
    pub(super) fn values_grant(&mut self, server: usize, call: &FunctionCall) -> FunctionReply {
        let (generation, holder) = (number(call, 0), holder_of(&call.arguments[1]));
        let channel: Arc<str> = call.arguments[8].as_str().into();
        let notes_beyond = number(call, 9) == 1;
        let fence = self.servers[server].fence();
        let data = &mut self.servers[server].data;
        let Some(pool) = data.pools.get_mut(&call.keys[0]) else {
            return err("NO_POOL");
        };
        if let Some(refusal) = pool.refusal(generation, fence) {
            return refusal;
        }
        if pool.seq < number(call, 6) {
            return err_with("ROLLBACK", pool.seq);
        }
        let seat = pool.seats.get(&holder).copied();
        let known = data.values.entry(call.keys[2].clone()).or_default();
        let asked = &call.arguments[10..];
        if let Some(seat) = seat.filter(|seat| seat.seq == number(call, 2)) {
            let is_counted = |value: &String| known.get(value) == Some(&true);
            let letters = asked
                .iter()
                .map(|value| if is_counted(value) { 'K' } else { '?' });
            let letters = letters.collect();
            let is_due = !pool.is_closed && pool.next_wanted(0, seat.give);
            let reply = answer(pool, &seat, letters);
            if is_due {
                self.publish(server, &channel);
            }
            return reply;
        }
        let mut seat = seat.unwrap_or_default();
        if let Some(refusal) = wrong(pool, &seat, call) {
            return refusal;
        }
        let returned = number(call, 3) - seat.returned;
        pool.returned += returned;
        let (was_short, free) = (pool.is_short(), pool.free());
        let (letters, give) = mark(known, asked, free, notes_beyond && pool.is_final);
        let is_refused = letters.chars().any(|letter| letter != 'K');
        seat.give = give;
        seat.seq = number(call, 2);
        seat.returned = number(call, 3);
        (seat.consumed, seat.over) = (number(call, 4), number(call, 5));
        seat.granted += seat.give;
        pool.granted += seat.give;
        pool.seq += 1;
        pool.seats.insert(holder, seat);
        let is_due = pool.next_wanted(1, if is_refused { 0 } else { seat.give });
        let (reply, is_short) = (answer(pool, &seat, letters), pool.is_short());
        if is_short && !was_short {
            self.shorts.push((server, channel.clone()));
        }
        self.note(Fact::Granted {
            window: window_of(&call.keys[0]),
            generation,
            holder,
            give: seat.give,
            returned,
        });
        if is_due {
            self.publish(server, &channel);
        }
        reply
    }
}

/// Marks values as long as units are free: what each is told, and the units that they take.
fn mark(
    known: &mut BTreeMap<String, bool>,
    asked: &[String],
    free: u64,
    notes_beyond: bool,
) -> (String, u64) {
    let (mut letters, mut give) = (String::new(), 0);
    for value in asked {
        let before = known.get(value).copied();
        if before != Some(true) && give < free {
            give += 1;
            known.insert(value.clone(), true);
        }
        let letter = match before {
            _ if known.get(value) == Some(&true) => 'K',
            Some(_) if notes_beyond => 'o',
            None if notes_beyond => 'O',
            _ => 'D',
        };
        if letter == 'O' {
            known.insert(value.clone(), false);
        }
        letters.push(letter);
    }
    (letters, give)
}

/// Why a new request is refused.
fn wrong(pool: &Pool, seat: &Seat, call: &FunctionCall) -> Option<FunctionReply> {
    if pool.is_closed {
        return Some(err("CLOSED"));
    }
    if number(call, 2) != seat.seq + 1 {
        return Some(err_with("SEQ", seat.seq));
    }
    let (returned_cum, consumed_cum) = (number(call, 3), number(call, 4));
    let is_in_range = returned_cum >= seat.returned && consumed_cum + returned_cum <= seat.granted;
    (!is_in_range).then(|| err("RETURN_RANGE"))
}

fn answer(pool: &Pool, seat: &Seat, letters: String) -> FunctionReply {
    let reply = pool.answer(seat, pool.seats.len() as u64);
    match reply {
        FunctionReply::Elements(mut elements) => {
            elements.push(letters.into());
            FunctionReply::Elements(elements)
        }
        error @ FunctionReply::Error(_) => error,
    }
}
