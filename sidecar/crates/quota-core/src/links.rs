//! What is known of the ways to the ledger and to Redis: alive, heard of when, subscribed to what, down until when.

use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::{hash::Map, slab::Key};

/// After a failure a side counts as down for so long, real µs; doubled with each further failure.
const RETRY_MIN_US: u64 = 100_000;
const RETRY_MAX_US: u64 = 1_000_000;

/// Remembers that a side did not answer.
#[allow(clippy::struct_field_names)] // units come last in names
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outage {
    retry_us: u64,
    pause_us: u64,
    answered_us: u64,
}

impl Outage {
    /// Whether it is known to be down, so that nobody should wait for it.
    pub(crate) const fn is_down(&self, now_us: u64) -> bool {
        now_us < self.retry_us
    }

    /// Notes that a request of `sent_us` failed. It says nothing where something was heard after that was sent.
    ///
    /// What was sent at the moment of an answer counts: else a side that fails at once would be asked in a loop.
    pub(crate) fn failed(&mut self, now_us: u64, sent_us: u64) {
        if self.is_down(now_us) || sent_us < self.answered_us {
            return;
        }
        self.pause_us = self
            .pause_us
            .saturating_mul(2)
            .clamp(RETRY_MIN_US, RETRY_MAX_US);
        self.retry_us = now_us.saturating_add(self.pause_us);
    }

    /// Notes an answer.
    pub(crate) const fn answered(&mut self, now_us: u64) {
        self.retry_us = 0;
        self.pause_us = 0;
        self.answered_us = now_us;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Subscription {
    Absent,
    Asked(u64),
    Confirmed(u64),
}

#[derive(Debug)]
struct Channel {
    buckets: Vec<Key>,
    state: Subscription,
}

/// The ways to the authorities.
#[derive(Debug)]
pub(crate) struct Links {
    watch_up: bool,
    watch_epoch: u64,
    ledger_heard_us: u64,
    redis_heard_us: u64,
    redis_arrived_us: u64,
    redis_epoch: u64,
    channels: Map<Arc<str>, Channel>,
    /// `LimitService` calls.
    pub(crate) ledger: Outage,
    /// Function calls.
    pub(crate) redis: Outage,
}

impl Links {
    /// Nothing is connected.
    pub(crate) const fn new(state: FixedState) -> Self {
        Self {
            watch_up: false,
            watch_epoch: 0,
            ledger_heard_us: 0,
            redis_heard_us: 0,
            redis_arrived_us: 0,
            redis_epoch: 0,
            channels: Map::with_hasher(state),
            ledger: Outage {
                retry_us: 0,
                pause_us: 0,
                answered_us: 0,
            },
            redis: Outage {
                retry_us: 0,
                pause_us: 0,
                answered_us: 0,
            },
        }
    }

    /// The watch stream's present life; `None` while it is down.
    pub(crate) fn watch_epoch(&self) -> Option<u64> {
        self.watch_up.then_some(self.watch_epoch)
    }

    /// Real time up to which all that the watch stream had to say has been heard.
    pub(crate) const fn ledger_heard_us(&self) -> u64 {
        self.ledger_heard_us
    }

    /// Whether a change would have been heard that was made so many real µs ago.
    pub(crate) const fn is_watch_current(&self, now_us: u64, age_us: u64) -> bool {
        self.watch_up && now_us.saturating_sub(self.ledger_heard_us) <= age_us
    }

    /// Whether Redis, once heard of, gave no sign of life within so many real µs.
    pub(crate) fn is_redis_silent(&self, now_us: u64, age_us: u64) -> bool {
        let heard_us = self.redis_arrived_us.max(self.redis.answered_us);
        heard_us > 0 && now_us.saturating_sub(heard_us) > age_us
    }

    /// Real time up to which all that the subscriber connection had to say has been heard.
    pub(crate) const fn redis_heard_us(&self) -> u64 {
        self.redis_heard_us
    }

    /// The watch stream came up or went down.
    pub(crate) const fn watch(&mut self, up: bool, now_us: u64) {
        self.watch_up = up;
        self.watch_epoch = self.watch_epoch.saturating_add(1);
        self.ledger_heard_us = 0;
        if up {
            self.ledger.answered(now_us);
        }
    }

    /// The watch stream said something that was sent then. Time that is still to come proves nothing.
    pub(crate) fn ledger_alive(&mut self, sent_us: u64, now_us: u64) {
        self.ledger_heard_us = self.ledger_heard_us.max(sent_us.min(now_us));
    }

    /// The subscriber connection answered what was sent then.
    pub(crate) fn redis_alive(&mut self, sent_us: u64, now_us: u64) {
        self.redis_heard_us = self.redis_heard_us.max(sent_us.min(now_us));
        self.redis_arrived_us = now_us;
    }

    /// The subscriber connection brought something that nobody asked for.
    pub(crate) const fn redis_spoke(&mut self, now_us: u64) {
        self.redis_arrived_us = now_us;
    }

    /// The subscriber connection is gone and every subscription with it.
    pub(crate) const fn redis_lost(&mut self) {
        self.redis_epoch = self.redis_epoch.saturating_add(1);
        self.redis_heard_us = 0;
        self.redis_arrived_us = 0;
    }

    /// The present life of the subscriber connection.
    pub(crate) const fn redis_epoch(&self) -> u64 {
        self.redis_epoch
    }

    /// The life in which a channel's subscription is confirmed.
    pub(crate) fn confirmed(&self, channel: &str) -> Option<u64> {
        let confirmed = Subscription::Confirmed(self.redis_epoch);
        self.channels
            .get(channel)
            .filter(|channel| channel.state == confirmed)
            .map(|_| self.redis_epoch)
    }

    /// Notes that a bucket follows a channel; answers whether it must be asked for now.
    pub(crate) fn follow(&mut self, name: &Arc<str>, bucket: Key) -> bool {
        let epoch = self.redis_epoch;
        let channel = self.channels.entry_ref(name).or_insert_with(|| Channel {
            buckets: Vec::with_capacity(1),
            state: Subscription::Absent,
        });
        if !channel.buckets.contains(&bucket) {
            channel.buckets.push(bucket);
        }
        let fresh = channel.state != Subscription::Asked(epoch)
            && channel.state != Subscription::Confirmed(epoch);
        if fresh {
            channel.state = Subscription::Asked(epoch);
        }
        fresh
    }

    /// Notes that a bucket left a channel; answers whether nobody follows it any more.
    pub(crate) fn leave(&mut self, name: &str, bucket: Key) -> bool {
        let Some(channel) = self.channels.get_mut(name) else {
            return false;
        };
        channel.buckets.retain(|key| *key != bucket);
        if channel.buckets.is_empty() {
            self.channels.remove(name);
            return true;
        }
        false
    }

    /// Takes in how a subscription ended that was asked for at `sent_us` in life `epoch`. Answers the buckets that may go on.
    pub(crate) fn subscribed(
        &mut self,
        name: &str,
        epoch: u64,
        confirmed: bool,
        sent_us: u64,
    ) -> Vec<Key> {
        let current = self.redis_epoch;
        let Some(channel) = self.channels.get_mut(name) else {
            return Vec::new();
        };
        if confirmed && epoch == current {
            channel.state = Subscription::Confirmed(epoch);
            self.redis_heard_us = self.redis_heard_us.max(sent_us);
        } else if channel.state == Subscription::Asked(epoch) {
            channel.state = Subscription::Absent;
        }
        channel.buckets.clone()
    }

    /// Buckets that follow a channel.
    pub(crate) fn followers(&self, name: &str) -> &[Key] {
        self.channels
            .get(name)
            .map_or(&[], |channel| &channel.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A side that fails in the very moment in which it answered is left alone; an old failure after an answer says nothing.
    #[test]
    fn a_side_that_fails_at_once_is_left_alone() {
        let mut outage = Outage::default();
        outage.answered(7);
        outage.failed(7, 6);
        assert!(!outage.is_down(7));
        outage.failed(7, 7);
        assert!(outage.is_down(7 + RETRY_MIN_US - 1));
        assert!(!outage.is_down(7 + RETRY_MIN_US));
    }
}
