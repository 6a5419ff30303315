//! Proof that a window is exhausted, and how long it counts.

use crate::{
    links::Links,
    mutant::{self, Mutant},
    request::Units,
};

/// An ask as it was sent: what its answer proves depends on what was known then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sent {
    /// At least this or nothing.
    pub(crate) need: Units,
    /// Rather this.
    pub(crate) want: Units,
    /// Real time.
    pub(crate) real_us: u64,
    /// Ledger time.
    pub(crate) ledger_us: i64,
    /// Life of the watch stream, where it was up.
    pub(crate) watch: Option<u64>,
    /// Life of the subscriber connection, where the pool's channel was confirmed.
    pub(crate) channel: Option<u64>,
    /// Notices that the bucket had had.
    pub(crate) notices: u32,
}

impl Sent {
    /// The ask whose repetition this is may be the one that is answered: only what holds for both counts.
    pub(crate) fn repeating(self, first: Option<Self>) -> Self {
        let Some(first) = first else { return self };
        Self {
            need: self.need.max(first.need),
            want: self.want,
            real_us: first.real_us,
            ledger_us: first.ledger_us,
            watch: self.watch.filter(|epoch| first.watch == Some(*epoch)),
            channel: self.channel.filter(|epoch| first.channel == Some(*epoch)),
            notices: first.notices,
        }
    }
}

/// Who would say that it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Herald {
    Channel(u64),
    Watch(u64),
}

/// Proof that a window has fewer than `need` units to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Proof {
    need: Units,
    herald: Herald,
    sent_us: u64,
}

impl Proof {
    /// Proof by a pool that gave nothing, if its channel was followed before it was asked and no notice came since.
    pub(crate) fn by_pool(sent: &Sent, notices: u32) -> Option<Self> {
        let mut epoch = sent.channel.filter(|_| sent.notices == notices);
        if mutant::is(Mutant::ProofWithoutSubscription) {
            epoch = epoch.or(Some(u64::MAX));
        }
        let epoch = epoch?;
        Some(Self {
            need: sent.need,
            herald: Herald::Channel(epoch),
            sent_us: sent.real_us,
        })
    }

    /// Proof by the ledger, if the watch stream was up before it was asked and no notice came since.
    pub(crate) fn by_ledger(sent: &Sent, notices: u32) -> Option<Self> {
        let epoch = sent.watch.filter(|_| sent.notices == notices)?;
        Some(Self {
            need: sent.need,
            herald: Herald::Watch(epoch),
            sent_us: sent.real_us,
        })
    }

    /// Whether the ledger gave it; else a pool did.
    pub(crate) const fn is_by_ledger(&self) -> bool {
        matches!(self.herald, Herald::Watch(_))
    }

    /// The least that a call must miss for it to count.
    pub(crate) const fn need(&self) -> Units {
        self.need
    }

    /// Whether it says anything about a call that lacks `missing`.
    pub(crate) const fn covers(&self, missing: Units) -> bool {
        missing >= self.need
    }

    /// Whether its end would have been heard: the same connection, and a sign of life that left within `age_us`.
    pub(crate) fn is_current(
        &self,
        links: &Links,
        channel: Option<&str>,
        now_us: u64,
        age_us: u64,
    ) -> bool {
        let (same, heard_us) = match self.herald {
            Herald::Channel(epoch) => (
                channel.and_then(|name| links.confirmed(name)) == Some(epoch),
                links.redis_heard_us(),
            ),
            Herald::Watch(epoch) => (links.watch_epoch() == Some(epoch), links.ledger_heard_us()),
        };
        let is_fresh = now_us.saturating_sub(heard_us.max(self.sent_us)) <= age_us;
        same && is_fresh || mutant::is(Mutant::ProofWithoutSubscription)
    }
}
