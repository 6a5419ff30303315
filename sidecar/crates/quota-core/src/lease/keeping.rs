//! Units that a restart may take over (escrow.md, step 8).
//!
//! Part of a balance is *kept*: the log says that it is there, so it is neither spent nor returned before a lower figure
//! is durable. What is not kept is the block that a crash burns. A check never waits for the disk while the block lasts;
//! the mark is lowered when half of it is gone. Nobody but a restart on the same boot, volume and directory may read it.

use std::sync::Arc;

use crate::{
    bucket::{Bucket, source::UNNAMED, window::Window},
    effect::{Effect, Kept},
    engine::Engine,
    event::{Marked, WindowInfo},
    id::WindowId,
    limit::{Enforcement, LimitKind, LimitRule},
    mutant::{self, Mutant},
    request::Units,
    slab::Key,
    time::Now,
};

/// Balances below this are not worth a mark.
const WORTH: Units = 64;
/// At least so many units are left to burn.
const BLOCK_MIN: Units = 16;
/// The block is this part of the balance, or a second of use if that is more, but never more than half of it.
const BLOCK_SHARE: Units = 8;

/// A mark on its way to the disk.
#[derive(Debug)]
pub(crate) struct Marking {
    bucket: Key,
    window: WindowId,
    /// What it keeps of each source.
    parts: Box<[Units]>,
    /// What was kept of each before.
    before: Box<[Units]>,
    /// What it frees goes back to where it came from.
    returns: bool,
}

impl Engine {
    /// Moves a bucket's mark to where use and balance want it; `returns` = nothing is to be kept.
    pub(crate) fn plan_keeping(&mut self, key: Key, returns: bool) {
        if !self.config.keeps {
            return;
        }
        let Some(bucket) = self.buckets.get(key) else {
            return;
        };
        let is_counted = self
            .catalog
            .limit(bucket.limit)
            .is_some_and(|limit| is_counted(&limit.rule));
        let Some(window) = bucket.current.as_ref() else {
            return;
        };
        let (free, kept) = (window.balance.free, window.balance.kept);
        let total = free.saturating_add(kept);
        // Two calls at least must fit into the block, or every call would wait for the disk.
        let block = bucket
            .second_use
            .max(total / BLOCK_SHARE)
            .min(total / 2)
            .max(bucket.largest.saturating_mul(4))
            .max(BLOCK_MIN);
        let worth = total.saturating_sub(block);
        let target = if returns || !is_counted || total < WORTH {
            0
        } else {
            worth
        };
        let is_due = target > kept.saturating_add(total / BLOCK_SHARE)
            || (kept > 0 && (target == 0 || free < block / 2));
        let id = window.info.id;
        if is_due {
            self.mark(key, id, target, returns);
        } else if is_counted && window.is_log_behind() {
            self.mark(key, id, kept, returns);
        }
        if let Some(window) = self
            .buckets
            .get_mut(key)
            .and_then(|bucket| bucket.current.as_mut())
        {
            window.keep_low = block / 2;
        }
    }

    /// Looks again at the marks of buckets whose balance moved.
    pub(crate) fn keep_on(&mut self) {
        while let Some(key) = self.keeps_due.pop() {
            self.plan_keeping(key, self.is_draining);
        }
    }

    /// Lets go of everything kept, because somebody waits for units; answers whether anything is.
    pub(crate) fn stop_keeping(&mut self, key: Key) -> bool {
        let window = self
            .buckets
            .get(key)
            .and_then(|bucket| bucket.current.as_ref());
        let Some(id) = window
            .filter(|window| window.balance.kept > 0)
            .map(|window| window.info.id)
        else {
            return false;
        };
        self.mark(key, id, 0, false);
        true
    }

    /// Writes a mark. A higher one binds from now on, a lower one once it is durable; one is under way at a time.
    fn mark(&mut self, key: Key, id: WindowId, units: Units, returns: bool) {
        let Self {
            catalog,
            buckets,
            holder,
            ..
        } = self;
        let Some(bucket) = buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = catalog.limit(bucket.limit) else {
            return;
        };
        let (key_hash, key_values) = (bucket.key_hash, bucket.key_values.clone());
        let Some(window) = bucket.window_mut(id).filter(|window| !window.is_marking) else {
            return;
        };
        let before = window.balance.kept_parts();
        let more = units.saturating_sub(window.balance.kept);
        window.balance.keep(more);
        let parts = window.balance.lower_parts(units);
        if mutant::is(Mutant::MarkAfterUse) {
            window.balance.release(&parts);
        }
        (window.is_marking, window.is_mark_behind) = (true, false);
        let debt = window.balance.debt;
        window.debt_marked = debt;
        let kept = (units > 0 || debt > 0).then(|| {
            Box::new(Kept {
                tenant: Arc::clone(&limit.tenant_name),
                limit: Arc::clone(&limit.rule.name),
                key_hash,
                key_values,
                window: id,
                start_us: window.info.start_us,
                end_us: window.info.end_us,
                round: window.info.round,
                units,
                parts: window.balance.parts_kept(&parts, *holder),
                debt,
            })
        });
        let marking = Marking {
            bucket: key,
            window: id,
            parts,
            before,
            returns,
        };
        let mark = self.outbox.mark();
        self.markings.insert(mark, marking);
        self.outbox.tell(Effect::Keep {
            id: mark,
            window: id,
            kept,
        });
    }

    /// Takes in what became of a mark. Where nobody knows, the higher of both figures goes on binding.
    pub(crate) fn on_marked(&mut self, now: Now, id: u64, outcome: Marked) {
        let Some(marking) = self.markings.remove(&id) else {
            return;
        };
        let Some(bucket) = self.buckets.get_mut(marking.bucket) else {
            return;
        };
        let second_use = bucket.second_use;
        let Some(window) = bucket.window_mut(marking.window) else {
            return;
        };
        window.is_marking = false;
        match outcome {
            Marked::Durable => window.balance.release(&marking.parts),
            Marked::NotWritten => window.balance.release(&marking.before),
            Marked::Unknown => {}
        }
        if marking.returns && outcome == Marked::Durable {
            let keep = if self.is_draining { 0 } else { second_use };
            self.give_back(now, marking.bucket, keep);
        }
        // Where nothing was written those who wait would only ask for the same again.
        if outcome != Marked::NotWritten {
            self.stir(marking.bucket);
        }
        if !marking.returns && outcome == Marked::Durable {
            self.keeps_due.push(marking.bucket);
        }
    }

    /// Removes the mark of a window that is let go.
    pub(crate) fn forget_mark(&mut self, window: &Window) {
        if window.balance.kept > 0 || window.is_marking || window.debt_marked > 0 {
            self.remove_mark(window.info.id);
        }
    }

    /// Removes the mark of a window of which nothing is kept or owed any more.
    pub(crate) fn remove_mark(&mut self, window: WindowId) {
        let id = self.outbox.mark();
        self.outbox.tell(Effect::Keep {
            id,
            window,
            kept: None,
        });
    }

    /// Gives a bucket that is new what was taken over for it, where that window is still open.
    pub(crate) fn resume(&mut self, now: Now, key: Key) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        let Some(limit) = self.catalog.limit(bucket.limit) else {
            return;
        };
        let rule = &limit.rule;
        let claimed = self
            .unclaimed
            .claim(&limit.tenant_name, &rule.name, bucket.key_hash);
        let is_counted = is_counted(&limit.rule);
        let amount = limit.rule.amount;
        let Some(kept) = claimed else { return };
        let is_open = (kept.start_us..kept.end_us).contains(&now.ledger_us);
        if is_counted && is_open && bucket.current.is_none() {
            enter(bucket, &kept, amount, limit.rule.amount_version);
            self.watch_end(now, key);
            self.keeps_due.push(key);
            self.fall_behind(key);
        } else {
            self.unclaimed.give_up(&kept);
            if kept.debt > 0 {
                self.remove_mark(kept.window);
            }
        }
    }
}

fn enter(bucket: &mut Bucket, kept: &Kept, amount: Option<Units>, amount_version: u64) {
    let mut window = Window::new(WindowInfo {
        id: kept.window,
        start_us: kept.start_us,
        end_us: kept.end_us,
        round: kept.round,
        amount,
        amount_version,
        // Nobody knows before the ledger is asked: nothing is promised beyond what is here.
        allotted: amount.unwrap_or(0),
        timeline: 0,
    });
    let named = kept.parts.iter().map(|part| part.units);
    let unnamed = kept
        .units
        .saturating_sub(named.fold(0, Units::saturating_add));
    window.balance.credit(UNNAMED, unnamed, unnamed);
    for part in &kept.parts {
        window.balance.inherit(part);
    }
    // What is owed is paid before anything else is admitted; the log says so already.
    window.balance.owe(kept.debt);
    window.debt_marked = kept.debt;
    window.low_mark = kept.units / 2;
    bucket.current = Some(window);
}

/// Whether units of a limit are counted against a window's amount by whoever holds them.
fn is_counted(rule: &LimitRule) -> bool {
    rule.kind == LimitKind::Window && rule.enforcement == Enforcement::Hard
}
