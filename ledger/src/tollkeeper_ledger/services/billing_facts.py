"""Gather what a period's charges depend on beside usage: stretches, what is billed ahead, coupons, grants."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.invoice import (
    Finalised,
    digests_named,
    make_document,
    paid_ahead,
    paid_usage,
    usage_given_back_by,
)
from tollkeeper_ledger.domain.invoiced import already_invoiced
from tollkeeper_ledger.domain.period_facts import ahead_from_json, period_from_json
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.paid import PaidPeriod, less_given_back
from tollkeeper_ledger.domain.rating.period import Ahead, PeriodFacts, Stretch, is_given_back
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of
from tollkeeper_ledger.domain.rating.reductions import Grant
from tollkeeper_ledger.store.billing_closes import (
    CloseKey,
    read_definitions,
    read_definitions_by_digest,
    read_inputs_around,
    read_inputs_ending,
    read_inputs_late_for,
)
from tollkeeper_ledger.store.billing_cuts import read_cuts
from tollkeeper_ledger.store.prepaid import (
    GrantEntry,
    StoredGrant,
    add_grant_entries,
    read_coupons,
    read_grants,
    return_coupons,
    use_coupons,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.invoice import LateInput
    from tollkeeper_ledger.domain.phases import SubscriptionSchedule
    from tollkeeper_ledger.domain.rating.charges import PriceJson
    from tollkeeper_ledger.domain.rating.paid import GivenBack, PaidUsage
    from tollkeeper_ledger.domain.rating.period import RatedPeriod
    from tollkeeper_ledger.domain.rating.reductions import Coupon
    from tollkeeper_ledger.store.billing_closes import PlanDefinition
    from tollkeeper_ledger.store.pool import Connection

OPENING = timedelta(microseconds=1)
"""The opening of a subscription bills the first fees in advance: it is the close of the microsecond before its start,
in which nothing can be used."""


@dataclass(frozen=True, slots=True)
class PeriodPlans:
    """A subscription with the plan versions of its phases."""

    schedule: SubscriptionSchedule
    plans: dict[UUID, PlanDefinition]

    def digest_at(self, instant: datetime) -> str:
        """Give the digest of the plan version in force at an instant."""
        return self.plans[self.schedule.plan_version_at(instant)].plan.digest

    def terms_at(self, instant: datetime) -> PriceJson:
        """Give the definition of the plan version in force at an instant."""
        return plan_of(self.plans[self.schedule.plan_version_at(instant)].definition)

    def is_trial(self, instant: datetime) -> bool:
        """Whether usage at an instant is free."""
        return self.schedule.phase_at(instant).state == "trialing"

    def ahead_of(self, period: Period, *, after: Period | None = None) -> Ahead | None:
        """Give what is billed before a period begins; None where its plan has no fee in advance or isn't active.

        `after` is the period that it is billed with, which may be counted in another time zone.
        """
        if not self._bills_ahead(period.start):
            return None
        phase = self.schedule.phase_at(period.start)
        found = self.plans[phase.plan_version_id]
        whole = self.schedule.whole_period(period.start)
        zone = self.schedule.era_at(period.start).time_zone
        if after is None or self.schedule.era_at(after.start).time_zone == zone:
            zone = ""
        return Ahead(plan=found.plan.digest, quantity=phase.quantity, span=period, whole=whole, time_zone=zone)

    def _bills_ahead(self, instant: datetime) -> bool:
        """Whether the plan in force at an instant has a fee in advance, which nobody owes who isn't active."""
        phase = self.schedule.phase_at(instant)
        fees = plan_of(self.plans[phase.plan_version_id].definition)["fees"]
        return phase.state == "active" and any(fee["timing"] == "advance" for fee in fees)

    def opening(self, *, now: datetime) -> Period | None:
        """Give the first period where its fees in advance are due and no period is closed yet."""
        schedule = self.schedule
        started_at = schedule.started_at
        if schedule.billed_until != started_at or now < started_at or not self._bills_ahead(started_at):
            return None
        first = schedule.period_at(started_at)
        return first if first is not None and self.ahead_of(first) is not None else None


async def read_plans_of(conn: Connection, schedules: Sequence[SubscriptionSchedule]) -> dict[UUID, PeriodPlans]:
    """Read the plan versions of subscriptions' phases, by subscription."""
    versions = {
        schedule.subscription_id: {phase.plan_version_id for phase in schedule.phases} for schedule in schedules
    }
    definitions = await read_definitions(conn, set[UUID]().union(*versions.values()))
    return {
        schedule.subscription_id: PeriodPlans(
            schedule, {version: definitions[version] for version in versions[schedule.subscription_id]}
        )
        for schedule in schedules
    }


@dataclass(frozen=True, slots=True)
class Known:
    """What is stored beside usage that a period's charges depend on."""

    before: bytes | None
    """Inputs of the close that ends where the period begins; None where there is none."""
    is_void: bool
    """Whether that close's invoice is void and nothing replaces it."""
    coupons: tuple[Coupon, ...]
    grants: Sequence[StoredGrant]


async def read_known(conn: Connection, periods: Sequence[tuple[SubscriptionSchedule, Period]]) -> dict[UUID, Known]:
    """Read what is known of periods, at most one of a subscription, by subscription."""
    keys = [CloseKey(schedule.tenant_id, schedule.subscription_id, period.start) for schedule, period in periods]
    before = await read_inputs_ending(conn, keys)
    coupons = await read_coupons(
        conn, [(schedule.tenant_id, schedule.subscription_id, period.end) for schedule, period in periods]
    )
    grants = await read_grants(conn, {key.tenant_id for key in keys})
    return {
        key.subscription_id: Known(
            before=before[key.subscription_id].inputs if key.subscription_id in before else None,
            is_void=key.subscription_id in before and before[key.subscription_id].is_void,
            coupons=coupons.get(key.subscription_id, ()),
            grants=grants.get(key.tenant_id, ()),
        )
        for key in keys
    }


def opening_facts(found: PeriodPlans, first: Period, known: Known) -> PeriodFacts:
    """Give the facts of a subscription's opening: the first fees in advance and nothing else."""
    schedule = found.schedule
    return PeriodFacts(
        time_zone=schedule.era_at(first.start).time_zone,
        period=first,
        whole=schedule.whole_period(first.start),
        stretches=(),
        ahead=None,
        advance=found.ahead_of(first),
        coupons=known.coupons,
        grants=_usable(known.grants, found, first, is_opening=True),
    )


def period_facts(found: PeriodPlans, period: Period, known: Known) -> PeriodFacts:
    """Give the facts of a period as they are known now."""
    schedule = found.schedule
    following = schedule.period_at(period.end)
    return PeriodFacts(
        time_zone=schedule.era_at(period.start).time_zone,
        period=period,
        whole=schedule.whole_period(period.start),
        stretches=_stretches(found, period),
        ahead=_billed_ahead(found, period, known),
        advance=None if following is None else found.ahead_of(following, after=period),
        coupons=known.coupons,
        grants=_usable(known.grants, found, period),
    )


def _stretches(found: PeriodPlans, period: Period) -> tuple[Stretch, ...]:
    return tuple(
        Stretch(
            span=span,
            plan=found.plans[phase.plan_version_id].plan.digest,
            state=phase.state,
            quantity=phase.quantity,
        )
        for span, phase in found.schedule.stretches(period)
    )


def cut_facts(found: PeriodPlans, period: Period, known: Known, *, at: datetime) -> PeriodFacts:
    """Give the facts of a running period up to a cut: what its usage costs so far, and nothing else."""
    schedule = found.schedule
    so_far = Period(start=period.start, end=at)
    return PeriodFacts(
        time_zone=schedule.era_at(period.start).time_zone,
        period=so_far,
        whole=schedule.whole_period(period.start),
        stretches=_stretches(found, so_far),
        ahead=None,
        advance=None,
        coupons=known.coupons,
        grants=_usable(known.grants, found, period),
        is_cut=True,
    )


async def read_invoiced(conn: Connection, found: PeriodPlans, period: Period) -> tuple[JsonObject, ...]:
    """Give what progressive invoices of a period said already; nothing where its plans have no threshold."""
    if not any("progressive_threshold" in plan_of(plan.definition) for plan in found.plans.values()):
        return ()
    schedule = found.schedule
    bills = []
    for one in await read_cuts(conn, schedule.tenant_id, schedule.subscription_id, period):
        definitions = await read_definitions_by_digest(conn, digests_named(one.inputs))
        document = make_document(one.inputs, definitions, Finalised(invoice_id=None, number=None, at=None))
        name = one.number or f"draft of {one.cut_at:%Y-%m-%d %H:%M} UTC"
        bills.append((name, json.loads(one.inputs), document["lines"]))
    return already_invoiced(bills)


def _billed_ahead(found: PeriodPlans, period: Period, known: Known) -> Ahead | None:
    if known.before is not None:
        ahead = ahead_from_json(json.loads(known.before)["facts"]["advance"])
        return ahead if ahead is None or not known.is_void else replace(ahead, is_void=True)
    # The close before this period is still to come, as in a preview: it will bill what is in force at its start.
    return found.ahead_of(period)


async def with_paid(conn: Connection, facts: PeriodFacts, known: Known) -> PeriodFacts:
    """Give the facts with what was paid of fees in advance, where some of it may be given back."""
    if known.before is None or facts.ahead is None or not is_given_back(facts):
        return facts
    definitions = await read_definitions_by_digest(conn, digests_named(known.before))
    return replace(facts, ahead=replace(facts.ahead, paid=paid_ahead(known.before, definitions)))


async def with_paid_late(
    conn: Connection, facts: PeriodFacts, late: Sequence[LateInput], schedule: SubscriptionSchedule
) -> PeriodFacts:
    """Give the facts with what was paid for usage that late segments take back."""
    found = []
    for one in late:
        if all(total.units >= 0 for total in one.segment.totals):
            continue
        start = one.period.start
        close = await read_inputs_around(conn, schedule.tenant_id, schedule.subscription_id, start)
        if close is None:
            continue
        definitions = await read_definitions_by_digest(conn, digests_named(close.inputs))
        usage = () if close.is_void else paid_usage(close.inputs, definitions, plan=one.plan.digest)
        if usage:
            billed = period_from_json(json.loads(close.inputs)["period"])
            usage = await _less_given_back(conn, schedule, billed, usage, plan=one.plan.digest)
        found.append(PaidPeriod(segment_id=one.segment.segment_id, is_void=close.is_void, usage=usage))
    return replace(facts, paid_late=tuple(found)) if found else facts


async def _less_given_back(
    conn: Connection, schedule: SubscriptionSchedule, period: Period, usage: Sequence[PaidUsage], *, plan: str
) -> tuple[PaidUsage, ...]:
    """Give what was paid for a period's usage less what invoices since have given back of it."""
    key = CloseKey(schedule.tenant_id, schedule.subscription_id, period.start)
    back: list[GivenBack] = []
    for inputs in await read_inputs_late_for(conn, key):
        definitions = await read_definitions_by_digest(conn, digests_named(inputs))
        back.extend(usage_given_back_by(inputs, definitions, plan=plan, period=period))
    return less_given_back(usage, back)


def _usable(
    grants: Sequence[StoredGrant], found: PeriodPlans, period: Period, *, is_opening: bool = False
) -> tuple[Grant, ...]:
    if not grants:
        return ()
    currency = found.terms_at(period.start)["currency"]
    return tuple(
        Grant(grant_id=str(grant.grant_id), name=grant.name, meter=grant.meter, left=grant.balance)
        for grant in grants
        if grant.balance
        and grant.revoked_at is None
        and (grant.currency == currency or (grant.meter and not is_opening))
        and grant.created_at < period.end
        and (grant.expires_at is None or grant.expires_at > period.start)
    )


@dataclass(frozen=True, slots=True)
class Settling:
    """A close that uses coupons and grants."""

    tenant_id: UUID
    facts: PeriodFacts
    rated: RatedPeriod
    grants: Sequence[StoredGrant]
    """All of the tenant's."""


async def settle_reductions(conn: Connection, settled: Sequence[Settling], *, at: datetime) -> None:
    """Take what closes used off coupons and grants, let go what expired, and give recurring grants anew.

    At most one close of a tenant. The transaction has the tenants alone.
    """
    with_coupons = [one for one in settled if one.rated.coupons_used]
    coupons = [UUID(coupon) for one in with_coupons for coupon in one.rated.coupons_used]
    await use_coupons(conn, {one.tenant_id for one in with_coupons}, coupons)
    await add_grant_entries(conn, [entry for one in settled for entry in _moved(one)], at=at)


def _moved(settling: Settling) -> Iterator[GrantEntry]:
    """Give what a close does to its tenant's grants."""
    tenant_id, period = settling.tenant_id, settling.facts.period
    used = {use.grant_id: use.amount for use in settling.rated.grants_used}
    for grant in settling.grants:
        taken = used.get(str(grant.grant_id), 0)
        balance = grant.balance - taken
        if taken:
            yield GrantEntry(tenant_id, grant.grant_id, "used", -taken, balance, period.start)
        # An opening closes no time, so nothing expires or comes again by it.
        if settling.facts.stretches:
            yield from _turn(tenant_id, grant, balance, period)


async def return_reductions(
    conn: Connection, facts: PeriodFacts, rated: RatedPeriod, tenant_id: UUID, *, at: datetime
) -> None:
    """Give back what a close used of coupons and grants: its invoice is void and nothing replaces it.

    What comes back to a grant that is over expires with the next close. The transaction has the tenant alone.
    """
    if rated.coupons_used:
        await return_coupons(conn, tenant_id, [UUID(coupon) for coupon in rated.coupons_used])
    grants = (await read_grants(conn, [tenant_id])).get(tenant_id, [])
    balances = {str(grant.grant_id): grant.balance for grant in grants}
    entries = [
        GrantEntry(
            tenant_id,
            UUID(use.grant_id),
            "returned",
            use.amount,
            balances[use.grant_id] + use.amount,
            facts.period.start,
        )
        for use in rated.grants_used
        if use.amount
    ]
    await add_grant_entries(conn, entries, at=at)


def _turn(tenant_id: UUID, grant: StoredGrant, balance: int, period: Period) -> Iterator[GrantEntry]:
    """Give what a period's end does to a grant: expiry, or the next round of a recurring one."""
    is_over = grant.revoked_at is not None or (grant.expires_at is not None and grant.expires_at <= period.end)
    kept = 0 if is_over else (min(balance, grant.rollover_max) if grant.recurs else balance)
    if kept < balance:
        yield GrantEntry(tenant_id, grant.grant_id, "expired", kept - balance, kept, period.start)
    if grant.recurs and not is_over and grant.created_at < period.end:
        yield GrantEntry(tenant_id, grant.grant_id, "granted", grant.amount, kept + grant.amount, period.start)
