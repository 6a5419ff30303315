//! A check from question to answer: which limits apply, what each says, what follows.

pub(crate) mod aside;
pub(crate) mod charge;
mod give_back;
pub(crate) mod judge;
mod retry;
pub(crate) mod state;
mod tally;

use crate::{
    check::{
        aside::Turn,
        judge::{Charge, Sight, Verdict, judge, judge_value, judge_without_bucket},
    },
    decision::{Decision, Reason},
    engine::Engine,
    lease::plan::Budget,
    limit::{Enforcement, LimitKind, LimitRule},
    matching,
    mutant::{self, Mutant},
    request::{CheckRequest, Cost, Mode, Units},
    slab::Key,
    tenants::{Catalog, Lookup},
    time::Now,
};

/// What came of looking at a check.
#[allow(clippy::large_enum_variant)] // nearly always the large one, and never stored
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Decided; what it takes is taken.
    Decided(Decision),
    /// Units are missing; the charges say where.
    Short(Budget),
    /// This tenant is being fetched.
    Tenant(u32),
    /// The meters are not known yet.
    Meters,
}

impl Engine {
    /// Decides a check with what is known, or says what is missing. The charges stay in `self.charges`.
    pub(crate) fn evaluate(&mut self, now: Now, request: &CheckRequest, turn: Turn) -> Outcome {
        let is_last = turn == Turn::LAST;
        let found = self
            .catalog
            .look_up(now, &request.tenant, self.outbox.watch_list());
        let tenant = match found {
            Lookup::Known(tenant) => tenant,
            Lookup::Unknown => return denied(Reason::TenantUnknown, None),
            Lookup::Fetching(_) if is_last => return denied(Reason::AuthorityUnreachable, None),
            Lookup::Fetching(place) => return Outcome::Tenant(place),
        };
        if self.catalog.is_suspended(tenant) {
            return denied(Reason::TenantSuspended, None);
        }
        if let Some(feature) = self.catalog.lacks(tenant, &request.features) {
            return denied(Reason::FeatureDisabled, Some(feature));
        }
        self.charges.clear();
        if let Some(outcome) = self.list_charges(now, tenant, request, is_last) {
            return outcome;
        }
        if request.mode == Mode::GiveBack {
            self.judge_give_back(now, request);
            return Outcome::Decided(self.conclude(now, tenant, request));
        }
        let short = self.judge_charges(now, request, turn);
        let is_denied = self
            .charges
            .iter()
            .any(|charge| matches!(charge.verdict, Verdict::Denied(..)));
        match short {
            Some(budget) if !is_denied || !is_last && self.is_unsure_when(now) => {
                Outcome::Short(budget)
            }
            _ => Outcome::Decided(self.conclude(now, tenant, request)),
        }
    }

    /// Lists the limits that a call must pass. Answers the outcome where a meter decides it.
    fn list_charges(
        &mut self,
        now: Now,
        tenant: u32,
        request: &CheckRequest,
        is_last: bool,
    ) -> Option<Outcome> {
        let mut wrong_mode = None;
        for cost in &request.costs {
            if let Some(outcome) = wrong_value(&self.catalog, cost, request) {
                return Some(outcome);
            }
            let limits = self.catalog.limits_on(tenant, &cost.meter);
            if limits.is_empty() {
                match self.catalog.has_meter(&cost.meter) {
                    Some(true) => continue,
                    Some(false) => return Some(denied(Reason::MeterUnknown, Some(&cost.meter))),
                    None if is_last => return Some(denied(Reason::AuthorityUnreachable, None)),
                    None => return Some(Outcome::Meters),
                }
            }
            for index in limits {
                let Some(limit) = self.catalog.limit(*index) else {
                    continue;
                };
                let is_unasked =
                    mutant::is(Mutant::AncestorUnasked) && limit.tenant_name != request.tenant;
                if matching::applies(&limit.rule, &request.attributes, now.ledger_us) && !is_unasked
                {
                    if limit.rule.kind.is_standing() {
                        let reason = standing_mode(&limit.rule, request.mode);
                        wrong_mode = wrong_mode.max(reason.map(|reason| (reason, *index)));
                    }
                    let verdict = Verdict::Fits;
                    self.charges.push(Charge {
                        limit: *index,
                        bucket: None,
                        units: cost.units,
                        verdict,
                    });
                }
            }
        }
        let (reason, index) = wrong_mode?;
        let name = self.catalog.limit(index).map(|limit| &*limit.rule.name);
        Some(denied(reason, name))
    }

    /// Lets every limit speak. Answers the longest budget where units are missing.
    fn judge_charges(&mut self, now: Now, request: &CheckRequest, turn: Turn) -> Option<Budget> {
        let mut charges = std::mem::take(&mut self.charges);
        let mut short: Option<Budget> = None;
        for charge in &mut charges {
            charge.bucket = self.find_bucket(charge.limit, request);
            charge.verdict = self.judge_charge(now, charge, request, turn);
            if let Verdict::Short(budget) = charge.verdict {
                short = short.max(Some(budget));
            }
        }
        self.charges = charges;
        short
    }

    fn judge_charge(
        &mut self,
        now: Now,
        charge: &mut Charge,
        request: &CheckRequest,
        turn: Turn,
    ) -> Verdict {
        if let Some(key) = charge.bucket {
            self.turn_if_over(now, key);
        }
        let Some(limit) = self.catalog.limit(charge.limit) else {
            return Verdict::Fits;
        };
        if let Some(verdict) = judge_without_bucket(&limit.rule, charge.units) {
            return verdict;
        }
        self.bring_bucket(now, charge, request);
        let Some(key) = charge.bucket else {
            return self.judge_without_room(charge);
        };
        let Self {
            catalog,
            buckets,
            links,
            config,
            ..
        } = self;
        let (Some(limit), Some(bucket)) = (catalog.limit(charge.limit), buckets.get_mut(key))
        else {
            return Verdict::Fits;
        };
        bucket.asked_us = now.real_us;
        let sight = Sight {
            now,
            links,
            config,
            is_last: turn == Turn::LAST,
            turn,
        };
        let value = catalog
            .value_attribute(&limit.rule.meter)
            .filter(|_| limit.rule.kind == LimitKind::Window)
            .and_then(|name| matching::attribute(&request.attributes, name));
        let Some(value) = value else {
            return judge(limit, bucket, charge.units, &sight);
        };
        (bucket.counts_values, bucket.apart) = (true, 0);
        let verdict = judge_value(limit, bucket, value, request.mode == Mode::Peek, &sight);
        if matches!(verdict, Verdict::Fits | Verdict::Over) {
            // Its unit was spent when it came.
            charge.units = 0;
        }
        verdict
    }

    /// Makes the bucket of a charge where there is none yet and room for it.
    fn bring_bucket(&mut self, now: Now, charge: &mut Charge, request: &CheckRequest) {
        if charge.bucket.is_some() {
            return;
        }
        charge.bucket = self.make_bucket(now, charge.limit, &request.attributes);
        if let Some(key) = charge.bucket {
            self.resume(now, key);
        }
    }

    /// The bucket of a limit for this call, where there is one.
    pub(crate) fn find_bucket(&self, limit: u32, request: &CheckRequest) -> Option<Key> {
        self.find_bucket_for(limit, &request.attributes)
    }

    /// The bucket of a limit for these attributes, where there is one.
    pub(crate) fn find_bucket_for(
        &self,
        index: u32,
        attributes: &matching::Attributes,
    ) -> Option<Key> {
        let limit = self.catalog.limit(index)?;
        if limit.rule.key.is_empty() {
            return limit.unsplit;
        }
        self.buckets
            .find(index, &matching::key_values(&limit.rule, attributes))
    }

    /// Makes the bucket of a limit for this call; `None` where there is no room for another key.
    pub(crate) fn make_bucket(
        &mut self,
        now: Now,
        index: u32,
        attributes: &matching::Attributes,
    ) -> Option<Key> {
        if !self.make_room(now) {
            return None;
        }
        let Self {
            catalog,
            buckets,
            resting,
            ..
        } = self;
        let values = catalog.limit(index).map(|limit| {
            matching::key_values(&limit.rule, attributes)
                .map(Box::from)
                .collect::<Box<[Box<str>]>>()
        });
        let values = values.unwrap_or_default();
        let is_unsplit = values.is_empty();
        let place = catalog.limit(index).map_or(0, |limit| {
            u32::try_from(limit.buckets.len()).unwrap_or(u32::MAX)
        });
        let key = buckets.insert(index, place, values);
        if let (Some(limit), Some(bucket)) = (catalog.limit(index), buckets.get_mut(key)) {
            bucket.apart = limit.rule.standby_units();
            bucket.current = resting.take_back(index, bucket.key_hash, now.ledger_us);
        }
        if let Some(limit) = catalog.limit_mut(index) {
            limit.buckets.push(key);
            if is_unsplit {
                limit.unsplit = Some(key);
            }
        }
        Some(key)
    }

    /// Takes what an admitted call takes, and words the decision.
    fn conclude(&mut self, now: Now, tenant: u32, request: &CheckRequest) -> Decision {
        let denied_at = self
            .charges
            .iter()
            .position(|charge| matches!(charge.verdict, Verdict::Denied(..)));
        self.tally(now, request, denied_at.is_some());
        if denied_at.is_none() {
            self.commit(now, request);
        } else if mutant::is(Mutant::DeniedTakes) && request.mode == Mode::Consume {
            self.take_what_fits(now);
        }
        let (reason, binding) = match denied_at {
            Some(_) => self.denial(),
            None => self.admission(now, &request.tenant),
        };
        let retry_after_us = denied_at.and_then(|_| self.retry_after_us(now, tenant, request));
        if let Some(retry_after_us) = retry_after_us {
            self.leave_tokens(now, retry_after_us);
        }
        let states = if request.all_limits {
            self.charges.len()
        } else {
            0
        };
        let mut limits = Vec::with_capacity(states);
        if request.all_limits {
            limits.extend(
                self.charges
                    .iter()
                    .filter_map(|charge| self.state_of(now, charge, request)),
            );
        }
        let binding = binding.and_then(|place| self.charges.get(place));
        let binding = binding.and_then(|charge| self.state_of(now, charge, request));
        Decision {
            reason,
            binding,
            retry_after_us,
            limits,
            subject: None,
        }
    }

    fn state_of(
        &self,
        now: Now,
        charge: &Charge,
        request: &CheckRequest,
    ) -> Option<crate::LimitState> {
        let limit = self.catalog.limit(charge.limit)?;
        let bucket = charge.bucket.and_then(|key| self.buckets.get(key));
        Some(state::limit_state(
            limit,
            bucket,
            &request.tenant,
            &request.attributes,
            now,
        ))
    }

    /// The first limit that denied, one with proof before one without.
    fn denial(&self) -> (Reason, Option<usize>) {
        let mut found: (Reason, Option<usize>) = (Reason::AuthorityUnreachable, None);
        for (place, charge) in self.charges.iter().enumerate() {
            let Verdict::Denied(reason, _) = charge.verdict else {
                continue;
            };
            if reason != Reason::AuthorityUnreachable {
                return (reason, Some(place));
            }
            if found.1.is_none() {
                found = (reason, Some(place));
            }
        }
        found
    }

    /// How an admitted call is called, and the limit that it comes nearest to, of those whose figures it may see.
    fn admission(&self, now: Now, viewer: &str) -> (Reason, Option<usize>) {
        let mut reason = Reason::Allowed;
        let mut binding: Option<usize> = None;
        let mut hidden: Option<usize> = None;
        let mut least: Option<(Units, Units)> = None;
        for (place, charge) in self.charges.iter().enumerate() {
            let Some(limit) = self.catalog.limit(charge.limit) else {
                continue;
            };
            let exceeded = match (charge.verdict, limit.rule.enforcement) {
                (Verdict::Uncovered, _) => Some(Reason::Uncovered),
                (Verdict::Over, Enforcement::Shadow) => Some(Reason::ShadowLimitExceeded),
                (Verdict::Over, _) => Some(Reason::SoftLimitExceeded),
                _ => None,
            };
            if let Some(exceeded) = exceeded
                && rank(exceeded) > rank(reason)
            {
                (reason, binding) = (exceeded, Some(place));
            }
            if reason != Reason::Allowed {
                continue;
            }
            if state::is_hidden(limit, viewer) {
                hidden = hidden.or(Some(place));
                continue;
            }
            let bucket = charge.bucket.and_then(|key| self.buckets.get(key));
            let share = state::remaining(limit, bucket, now).zip(limit.rule.amount);
            if binding.is_none()
                || share.is_some_and(|share| least.is_none_or(|least| is_less(share, least)))
            {
                binding = Some(place);
                least = share.or(least);
            }
        }
        (reason, binding.or(hidden))
    }
}

/// What is wrong with a cost of a meter that counts distinct values.
fn wrong_value(catalog: &Catalog, cost: &Cost, request: &CheckRequest) -> Option<Outcome> {
    let name = catalog.value_attribute(&cost.meter)?;
    match cost.units {
        _ if request.mode == Mode::GiveBack => Some(denied(Reason::ValuesStay, Some(&cost.meter))),
        1 if matching::attribute(&request.attributes, name).is_none_or(str::is_empty) => {
            Some(denied(Reason::NeedsValue, Some(name)))
        }
        0 | 1 => None,
        _ => Some(denied(Reason::NeedsOneUnit, Some(&cost.meter))),
    }
}

/// How a call has to be made instead, where it meets a level or a limit of units in flight in another mode.
fn standing_mode(rule: &LimitRule, mode: Mode) -> Option<Reason> {
    rule.amount?;
    match (rule.kind, mode) {
        (LimitKind::Level, Mode::Consume) => Some(Reason::NeedsRecord),
        (LimitKind::Concurrency, Mode::Consume | Mode::Record { .. } | Mode::GiveBack) => {
            Some(Reason::NeedsReservation)
        }
        _ => None,
    }
}

const fn rank(reason: Reason) -> u8 {
    match reason {
        Reason::Uncovered => 3,
        Reason::SoftLimitExceeded => 2,
        Reason::ShadowLimitExceeded => 1,
        _ => 0,
    }
}

/// Whether the first share (part, whole) is smaller.
fn is_less(one: (Units, Units), other: (Units, Units)) -> bool {
    let left = u128::from(one.0).saturating_mul(u128::from(other.1));
    let right = u128::from(other.0).saturating_mul(u128::from(one.1));
    left < right
}

fn denied(reason: Reason, subject: Option<&str>) -> Outcome {
    let subject = subject.map(Box::from);
    Outcome::Decided(Decision {
        reason,
        binding: None,
        retry_after_us: None,
        limits: Vec::new(),
        subject,
    })
}
