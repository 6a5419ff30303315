//! `values_grant`: marks values and grants their units in one step; `values_return`: takes marks and units back.

use std::{collections::BTreeMap, sync::Arc};

use quota_core::{
    FunctionCall, FunctionReply, Holder,
    mutant::{self, Mutant},
};

use super::{
    Redis, err, err_with, number,
    pool::{Pool, Seat, holder_of},
};

/// What stands at a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// It was seen beyond the limit.
    Beyond,
    /// It has a unit.
    Counted,
    /// It has the unit that this request of this holder got in this generation, and nobody else was told so.
    Own(u64, u64, Holder),
}

/// Values of a window.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    marks: BTreeMap<String, Mark>,
    /// The history in which marks were written last, and its first generation.
    history: Option<(u64, u64)>,
}

impl Values {
    /// What stands at a value and counts.
    fn get(&self, value: &str, (fence, generation): (u64, u64)) -> Option<Mark> {
        let since = (self.history.filter(|(history, _)| *history == fence))
            .map_or(generation, |(_, since)| since);
        let mark = self.marks.get(value).copied();
        mark.filter(|mark| match mark {
            Mark::Own(_, made, _) => *made >= since || mutant::is(Mutant::LostMarksBelieved),
            _ => true,
        })
    }

    /// What a repeat may say of values.
    fn told(&self, asked: &[String], own: Mark, place: (u64, u64)) -> String {
        let letters = asked.iter().map(|value| match self.get(value, place) {
            Some(mark) if mark == own => 'N',
            Some(Mark::Counted) => 'K',
            _ => '?',
        });
        letters.collect()
    }

    fn write(&mut self, marks: BTreeMap<String, Mark>, (fence, generation): (u64, u64)) {
        if !marks.is_empty() && self.history.is_none_or(|(history, _)| history != fence) {
            self.history = Some((fence, generation));
        }
        self.marks.extend(marks);
    }

    /// Marks that are their holder's own no more, because calls were admitted on them.
    fn settle(&self, told: &[String], generation: u64, holder: Holder) -> BTreeMap<String, Mark> {
        let is_own = |value: &&str| matches!(self.marks.get(*value), Some(Mark::Own(_, made, owner)) if (*made, *owner) == (generation, holder));
        let values = told.iter().filter_map(|value| value.strip_prefix('='));
        values
            .filter(is_own)
            .map(|value| (value.to_owned(), Mark::Counted))
            .collect()
    }
}

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
        let place = (fence, generation);
        let all = &call.arguments[10..];
        let (asked, told) = all.split_at(all.partition_point(|value| !value.starts_with('=')));
        let settled = known.settle(told, generation, holder);
        if let Some(seat) = seat.filter(|seat| seat.seq == number(call, 2)) {
            let letters = known.told(asked, Mark::Own(seat.seq, generation, holder), place);
            known.write(settled, place);
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
        let own = Mark::Own(number(call, 2), generation, holder);
        let notes = notes_beyond && pool.is_final;
        let (letters, give, mut marks) = mark(known, asked, own, free, notes, place);
        marks.extend(settled);
        known.write(marks, place);
        let is_refused = letters.chars().any(|letter| !matches!(letter, 'K' | 'N'));
        (seat.seq, seat.returned, seat.give) = (number(call, 2), number(call, 3), give);
        (seat.consumed, seat.over) = (number(call, 4), number(call, 5));
        seat.granted += seat.give;
        pool.granted += seat.give;
        pool.seq += 1;
        pool.seats.insert(holder, seat);
        let is_due = pool.next_wanted(
            u64::from(is_refused),
            if is_refused { 0 } else { seat.give },
        );
        let (reply, is_short) = (answer(pool, &seat, letters), pool.is_short());
        if is_short && !was_short {
            self.shorts.push((server, channel.clone()));
        }
        self.note_grant(
            (server, &call.keys[0]),
            generation,
            holder,
            (seat.give, returned),
        );
        if is_due {
            self.publish(server, &channel);
        }
        reply
    }

    pub(super) fn values_return(&mut self, server: usize, call: &FunctionCall) -> FunctionReply {
        let (generation, holder) = (number(call, 0), holder_of(&call.arguments[1]));
        let channel: Arc<str> = call.arguments[8].as_str().into();
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
        if let Some(seat) = seat.filter(|seat| seat.seq == number(call, 2)) {
            let is_due = !pool.is_closed && pool.next_wanted(0, seat.give);
            let reply = answer(pool, &seat, seat.returned.to_string());
            if is_due {
                self.publish(server, &channel);
            }
            return reply;
        }
        let mut seat = seat.unwrap_or_default();
        if let Some(refusal) = wrong(pool, &seat, call) {
            return refusal;
        }
        let known = data.values.entry(call.keys[2].clone()).or_default();
        let mut gone = 0;
        for pair in call.arguments[9..].chunks_exact(2) {
            let seq = pair[0].parse().expect("a number");
            let own = Mark::Own(seq, generation, holder);
            if known.get(&pair[1], (fence, generation)) == Some(own) {
                known.marks.remove(&pair[1]);
                gone += 1;
            }
        }
        let returned = number(call, 3) + gone - seat.returned;
        pool.returned += returned;
        seat = Seat {
            seq: number(call, 2),
            returned: seat.returned + returned,
            give: 0,
            consumed: number(call, 4) - gone,
            over: number(call, 5),
            ..seat
        };
        pool.seq += 1;
        pool.seats.insert(holder, seat);
        let is_due = pool.next_wanted(0, 0);
        let reply = answer(pool, &seat, seat.returned.to_string());
        self.note_grant((server, &call.keys[0]), generation, holder, (0, returned));
        if is_due {
            self.publish(server, &channel);
        }
        reply
    }
}

/// Marks values as long as units are free: what each is told, the units that they take, and the marks.
fn mark(
    known: &Values,
    asked: &[String],
    own: Mark,
    free: u64,
    notes_beyond: bool,
    place: (u64, u64),
) -> (String, u64, BTreeMap<String, Mark>) {
    let (mut letters, mut give, mut marks) = (String::new(), 0, BTreeMap::new());
    for value in asked {
        let before = marks
            .get(value)
            .copied()
            .or_else(|| known.get(value, place));
        let (letter, after) = match before {
            Some(mark) if mark == own => ('N', before),
            Some(mark @ Mark::Own(..)) if mutant::is(Mutant::OthersMarkTakenBack) => {
                ('K', Some(mark))
            }
            Some(Mark::Own(..) | Mark::Counted) => ('K', Some(Mark::Counted)),
            _ if give < free => {
                give += 1;
                ('N', Some(own))
            }
            _ if mutant::is(Mutant::MarkWithoutUnit) => ('K', Some(Mark::Counted)),
            Some(Mark::Beyond) if notes_beyond => ('o', before),
            None if notes_beyond => ('O', Some(Mark::Beyond)),
            _ => ('D', before),
        };
        if let Some(after) = after {
            marks.insert(value.clone(), after);
        }
        letters.push(letter);
    }
    (letters, give, marks)
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
