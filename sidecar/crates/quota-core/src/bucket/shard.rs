//! Where a limit's token buckets live: one of sixteen shards by key, each with its marker and this holder's share of it.

use std::sync::Arc;

use crate::{effect::PoolFault, id::KeyHash, slab::Key};

/// Hash tags of a split token bucket limit; the ledger reckons with the same number.
const SHARDS: u8 = 16;
/// A standing share is used for so long after it was asked for at most, real µs.
const SHARE_US: u64 = 600_000_000;
/// A share is asked for again so often while its buckets are used, real µs.
const SHARE_AGAIN_US: u64 = 10_000_000;
/// A share that has shrunk is told so soon, real µs: until then others can't have the rest.
const SHARE_SHRUNK_US: u64 = 1_000_000;

/// The place of a key among its limit's shards; keys of a limit that nothing splits are in the first.
pub(crate) const fn place_of(key_hash: KeyHash) -> u8 {
    key_hash.0[0] % SHARDS
}

/// Where buckets live.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// Of the marker.
    pub(crate) generation: u64,
    /// Redis key of the marker.
    pub(crate) marker_key: Arc<str>,
    /// Prefix of the bucket keys.
    pub(crate) bucket_prefix: Arc<str>,
}

/// A limit's way to one shard.
#[derive(Debug, Default)]
pub(crate) struct ShardState {
    /// Where the buckets live, once known.
    pub(crate) shard: Option<Shard>,
    /// What went wrong there.
    pub(crate) fault: Option<PoolFault>,
    /// It is being asked for.
    pub(crate) is_flying: bool,
    /// Last ask answered.
    pub(crate) request_seq: u64,
    /// The ledger refused: don't ask before this real time.
    pub(crate) refused_until_us: u64,
    /// Buckets that wait for it.
    pub(crate) waiting: Vec<Key>,
    /// What may be admitted while nothing is heard from it.
    pub(crate) share: Share,
}

impl ShardState {
    /// Whether its buckets can be asked.
    pub(crate) const fn is_open(&self) -> bool {
        self.shard.is_some() && self.fault.is_none()
    }

    /// Takes in where the buckets live. A share of another generation is of no use any more.
    pub(crate) fn open(&mut self, shard: Shard) {
        let is_same = self
            .shard
            .as_ref()
            .is_some_and(|known| known.generation == shard.generation);
        if !is_same {
            self.share = Share {
                request_seq: self.share.request_seq,
                ..Share::default()
            };
        }
        self.shard = Some(shard);
        self.fault = None;
    }
}

/// Part of the rate that this holder may admit while it is cut off, lent by the shard's marker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    ppm: u64,
    until_us: u64,
    /// Last request sent.
    pub(crate) request_seq: u64,
    /// Real time at which the request under way was sent.
    sent_us: Option<u64>,
    next_us: u64,
}

impl Share {
    /// Millionths of the rate that may be admitted now.
    pub(crate) const fn ppm(&self, real_us: u64) -> u64 {
        if real_us < self.until_us { self.ppm } else { 0 }
    }

    /// Whether it is to be asked for.
    pub(crate) const fn is_due(&self, real_us: u64) -> bool {
        self.sent_us.is_none() && self.next_us <= real_us
    }

    /// Notes that it is asked for now; answers what is held until then.
    pub(crate) const fn ask(&mut self, real_us: u64) -> u64 {
        self.request_seq = self.request_seq.saturating_add(1);
        self.sent_us = Some(real_us);
        self.next_us = real_us.saturating_add(SHARE_AGAIN_US);
        self.ppm(real_us)
    }

    /// Takes in what the marker gave, or that nothing came.
    pub(crate) const fn answer(&mut self, ppm: Option<u64>, real_us: u64) {
        let Some(sent_us) = self.sent_us.take() else {
            return;
        };
        let Some(ppm) = ppm else { return };
        if ppm < self.ppm(real_us) {
            self.next_us = real_us.saturating_add(SHARE_SHRUNK_US);
        }
        self.ppm = ppm;
        self.until_us = sent_us.saturating_add(SHARE_US);
    }

    /// Takes in that the marker has seen a later request.
    pub(crate) fn catch_up(&mut self, request_seq: u64) {
        self.request_seq = self.request_seq.max(request_seq);
    }
}

/// A limit's shards, those that were needed so far.
#[derive(Debug, Default)]
pub(crate) struct Shards(Vec<(u8, ShardState)>);

impl Shards {
    /// The shard of a place, where it was ever needed.
    pub(crate) fn get(&self, place: u8) -> Option<&ShardState> {
        self.0
            .iter()
            .find(|(at, _)| *at == place)
            .map(|(_, state)| state)
    }

    /// The shard of a place, made where it is new.
    pub(crate) fn at(&mut self, place: u8) -> &mut ShardState {
        let found = self.0.iter().position(|(at, _)| *at == place);
        let index = found.unwrap_or_else(|| {
            self.0.push((place, ShardState::default()));
            self.0.len().saturating_sub(1)
        });
        &mut self.0[index].1
    }
}
