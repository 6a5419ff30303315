//! Decisions worth telling: how often each limit denied a call or admitted one beyond itself, and single calls with what
//! they met. Kept until somebody takes them; bounded, and what finds no room is counted.

use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::{
    decision::Reason, hash::Map, limit::DecisionLog, matching::Attributes, request::Units,
    tenants::Catalog,
};

/// Single calls that are kept between two takes.
const ENTRIES_MAX: usize = 1_000;
/// Of limits that keep denials alone: so many more are kept with every take, up to the bound above. So a burst is kept
/// whole, and a caller that is denied all day long fills nobody's tables.
const ENTRIES_PER_TAKE: usize = 20;
/// Bytes of their attributes.
const TEXT_BYTES_MAX: usize = 256 * 1_024;

/// How often one limit decided so since the last take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecisionCount {
    /// Tenant whose limit it is.
    pub tenant: Arc<str>,
    /// Limit name.
    pub limit: Arc<str>,
    /// What the limit said.
    pub reason: Reason,
    /// Decisions, 1 and above.
    pub count: u64,
    /// Of these, such that should have been kept as entries and found no room.
    pub left_out: u64,
}

/// One call, and what one limit said of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecisionEntry {
    /// Tenant whose limit it is.
    pub tenant: Arc<str>,
    /// Limit name.
    pub limit: Arc<str>,
    /// Meter that the limit counts.
    pub meter: Arc<str>,
    /// Tenant that called.
    pub caller: Arc<str>,
    /// What the limit said.
    pub reason: Reason,
    /// Ledger time.
    pub at_us: i64,
    /// Units that the call asked for.
    pub units: Units,
    /// Units that the limit allowed, of a token bucket its burst; `None` is unlimited.
    pub amount: Option<Units>,
    /// Of these, used before the call, as known here.
    pub used: Units,
    /// Attributes in `Decisions::texts`.
    attributes: u32,
}

/// What was decided since the last take.
#[derive(Debug, Default)]
pub struct Decisions {
    /// By limit and reason.
    pub counts: Vec<DecisionCount>,
    /// In the order in which they were decided.
    pub entries: Vec<DecisionEntry>,
    /// Names and values of the entries' attributes, one after the other, and how long each is.
    texts: String,
    lengths: Vec<(u32, u32)>,
}

impl Decisions {
    /// Gives every entry with its attributes, all that the call had, in name order.
    pub fn entries(
        &self,
    ) -> impl Iterator<Item = (&DecisionEntry, impl Iterator<Item = (&str, &str)>)> {
        let (mut lengths, mut texts) = (self.lengths.as_slice(), self.texts.as_str());
        self.entries.iter().map(move |entry| {
            let (own, others) = lengths
                .split_at_checked(entry.attributes as usize)
                .unwrap_or_default();
            lengths = others;
            let bytes = own.iter().fold(0_usize, |sum, (name, value)| {
                sum.saturating_add(*name as usize)
                    .saturating_add(*value as usize)
            });
            let (mut text, rest) = texts.split_at_checked(bytes).unwrap_or_default();
            texts = rest;
            let attributes = own.iter().map(move |(name, value)| {
                let (name, rest) = text.split_at_checked(*name as usize).unwrap_or_default();
                let (value, rest) = rest.split_at_checked(*value as usize).unwrap_or_default();
                text = rest;
                (name, value)
            });
            (entry, attributes)
        })
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    fn clear(&mut self) {
        self.counts.clear();
        self.entries.clear();
        self.texts.clear();
        self.lengths.clear();
    }

    /// Keeps an entry with a call's attributes; false where there is no room.
    fn keep(&mut self, entry: DecisionEntry, attributes: &Attributes) -> bool {
        let bytes = attributes
            .iter()
            .fold(self.texts.len(), |sum, (name, value)| {
                sum.saturating_add(name.len()).saturating_add(value.len())
            });
        if self.entries.len() >= ENTRIES_MAX || bytes > TEXT_BYTES_MAX {
            return false;
        }
        for (name, value) in attributes {
            self.texts.push_str(name);
            self.texts.push_str(value);
            // Below the bound of all of them.
            let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX);
            self.lengths.push((length(name), length(value)));
        }
        let attributes = u32::try_from(attributes.len()).unwrap_or(u32::MAX);
        self.entries.push(DecisionEntry {
            attributes,
            ..entry
        });
        true
    }
}

/// What one limit said of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) limit: u32,
    pub(crate) reason: Reason,
    pub(crate) units: Units,
    pub(crate) amount: Option<Units>,
    pub(crate) used: Units,
}

#[derive(Clone, Copy, Default, Debug)]
struct Sum {
    /// Since the last take.
    count: u64,
    left_out: u64,
    /// Since the start.
    all: u64,
}

/// What is kept until it is taken.
#[derive(Debug)]
pub(crate) struct Decided {
    /// By limit's place and reason. Bounded by the limits there are, which keep their places.
    sums: Map<(u32, Reason), Sum>,
    /// Those with a count.
    counted: Vec<(u32, Reason)>,
    kept: Decisions,
    /// Denials that may be kept until the next take.
    allowance: usize,
}

impl Decided {
    pub(crate) fn new(state: FixedState) -> Self {
        Self {
            sums: Map::with_hasher(state),
            counted: Vec::new(),
            kept: Decisions::default(),
            allowance: ENTRIES_MAX,
        }
    }

    /// Counts a decision, and keeps it where its limit wants that and there is room.
    pub(crate) fn note(
        &mut self,
        catalog: &Catalog,
        said: Said,
        (caller, at_us): (&Arc<str>, i64),
        attributes: &Attributes,
    ) {
        let Some(limit) = catalog.limit(said.limit) else {
            return;
        };
        let place = (said.limit, said.reason);
        let sum = self.sums.entry(place).or_default();
        if sum.count == 0 {
            self.counted.push(place);
        }
        sum.count = sum.count.saturating_add(1);
        sum.all = sum.all.saturating_add(1);
        let is_wanted = match limit.rule.log {
            DecisionLog::Off => false,
            DecisionLog::Denied => said.reason != Reason::Allowed,
            DecisionLog::Sampled(one_in) => {
                (sum.all.saturating_sub(1)).checked_rem(one_in) == Some(0)
            }
            DecisionLog::All => true,
        };
        if !is_wanted {
            return;
        }
        let entry = DecisionEntry {
            tenant: Arc::clone(&limit.tenant_name),
            limit: Arc::clone(&limit.rule.name),
            meter: Arc::clone(&limit.rule.meter),
            caller: Arc::clone(caller),
            reason: said.reason,
            at_us,
            units: said.units,
            amount: said.amount,
            used: said.used,
            attributes: 0,
        };
        let is_rationed = limit.rule.log == DecisionLog::Denied;
        let has_room = !is_rationed || self.allowance > 0;
        if !has_room || !self.kept.keep(entry, attributes) {
            sum.left_out = sum.left_out.saturating_add(1);
        } else if is_rationed {
            self.allowance = self.allowance.saturating_sub(1);
        }
    }

    /// Moves what was kept into `into`, whose memory is used from then on, and up to `counts_max` counts; false where
    /// there was nothing.
    pub(crate) fn take(
        &mut self,
        catalog: &Catalog,
        counts_max: usize,
        into: &mut Decisions,
    ) -> bool {
        into.clear();
        std::mem::swap(&mut self.kept, into);
        self.allowance = self
            .allowance
            .saturating_add(ENTRIES_PER_TAKE)
            .min(ENTRIES_MAX);
        let rest = self.counted.len().saturating_sub(counts_max);
        for place in self.counted.drain(rest..) {
            let (Some(sum), Some(limit)) = (self.sums.get_mut(&place), catalog.limit(place.0))
            else {
                continue;
            };
            into.counts.push(DecisionCount {
                tenant: Arc::clone(&limit.tenant_name),
                limit: Arc::clone(&limit.rule.name),
                reason: place.1,
                count: std::mem::take(&mut sum.count),
                left_out: std::mem::take(&mut sum.left_out),
            });
        }
        !into.is_empty()
    }
}
