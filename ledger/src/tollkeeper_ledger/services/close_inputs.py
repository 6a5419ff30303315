"""Gather what closes and previews are made of: a few queries however many periods there are."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.domain.invoice import CloseInputs, PlanReference, digests_named, inputs_to_bytes, paid_ahead
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.phases import SubscriptionSchedule
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION
from tollkeeper_ledger.domain.rating.period import is_given_back
from tollkeeper_ledger.domain.seller_taxes import frozen_terms
from tollkeeper_ledger.services.billing_facts import (
    PeriodPlans,
    cut_facts,
    opening_facts,
    period_facts,
    read_invoiced,
    read_known,
    read_plans_of,
    with_paid,
    with_paid_late,
)
from tollkeeper_ledger.services.period_usage import UsageAsked, Used, read_usage_of
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_profiles import read_profiles
from tollkeeper_ledger.store.billing_segments import read_schedules
from tollkeeper_ledger.store.money import read_waiting_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.billing_profile import BillingProfile
    from tollkeeper_ledger.domain.invoice import Parties
    from tollkeeper_ledger.domain.rating.period import PeriodFacts
    from tollkeeper_ledger.services.billing_facts import Known
    from tollkeeper_ledger.store.billing_closes import PeriodSegment
    from tollkeeper_ledger.store.pool import Connection

_NOTHING = Used(segments=(), late=())


@dataclass(frozen=True, slots=True)
class PeriodAsked:
    """A period whose inputs are wanted."""

    found: PeriodPlans
    period: Period
    is_opening: bool = False
    """Only the first fees in advance, no usage: `period` is the subscription's first."""
    not_waited_for: tuple[str, ...] = ()
    cut_at: datetime | None = None
    """Where only usage up to there is wanted, of a period that runs on."""
    is_meant: Callable[[PeriodSegment], bool] = lambda _: True
    """Says whose usage."""

    @property
    def span(self) -> Period:
        """Give the time that usage is of."""
        return self.period if self.cut_at is None else Period(start=self.period.start, end=self.cut_at)


@dataclass(frozen=True, slots=True)
class Gathered:
    """A period's inputs, and what else its close needs."""

    inputs: CloseInputs
    known: Known
    profile: BillingProfile
    """The payer's."""

    @property
    def payer_id(self) -> UUID:
        """Name who pays."""
        return uuid.UUID(self.inputs.parties.billing_tenant["tenant_id"])


async def gather(
    conn: Connection, periods: Sequence[PeriodAsked], *, at: datetime
) -> dict[UUID, Gathered | ValueError]:
    """Give the inputs of periods, at most one of a tenant, by subscription; an error where usage can't be rated.

    Changes nothing. All is of one moment where `conn` is in a REPEATABLE READ transaction or has the tenants alone.
    """
    shared = await _read(conn, periods, at=at)
    gathered: dict[UUID, Gathered | ValueError] = {}
    for one in periods:
        name = one.found.schedule.subscription_id
        usage = shared.used.get(name, _NOTHING)
        if isinstance(usage, ValueError):
            gathered[name] = usage
            continue
        made = _gathered(one, usage, shared)
        invoiced = await read_invoiced(conn, one.found, one.span)
        facts = await with_paid(conn, made.inputs.facts, made.known)
        facts = await with_paid_late(conn, facts, made.inputs.late, one.found.schedule)
        if invoiced or facts is not made.inputs.facts:
            made = replace(made, inputs=replace(made.inputs, invoiced=invoiced, facts=facts))
        gathered[name] = made
    return gathered


@dataclass(frozen=True, slots=True)
class _Shared:
    """What is stored of periods, by subscription, and of their tenants."""

    known: dict[UUID, Known]
    used: dict[UUID, Used | ValueError]
    parties: dict[UUID, Parties]
    profiles: dict[UUID, BillingProfile]
    items: dict[tuple[UUID, str], tuple[closes.Json, ...]]
    chain_heads: tuple[closes.Json, ...]
    at: datetime


async def _read(conn: Connection, periods: Sequence[PeriodAsked], *, at: datetime) -> _Shared:
    tenant_ids = [one.found.schedule.tenant_id for one in periods]
    known = await read_known(conn, [(one.found.schedule, one.period) for one in periods])
    with_usage = [UsageAsked(one.found, one.span, one.is_meant) for one in periods if not one.is_opening]
    used = await read_usage_of(conn, with_usage) if with_usage else {}
    parties = await closes.read_parties(conn, tenant_ids)
    payers = {uuid.UUID(one.billing_tenant["tenant_id"]) for one in parties.values()}
    return _Shared(
        known=known,
        used=used,
        parties=parties,
        profiles=await read_profiles(conn, payers),
        items=await read_waiting_items(conn, tenant_ids),
        chain_heads=await closes.read_chain_heads(conn),
        at=at,
    )


def _gathered(asked: PeriodAsked, used: Used, shared: _Shared) -> Gathered:
    found, schedule = asked.found, asked.found.schedule
    known = shared.known[schedule.subscription_id]
    facts = _facts(asked, known)
    last = facts.stretches[-1].span.start if facts.stretches else facts.period.start
    parties = shared.parties[schedule.tenant_id]
    profile = shared.profiles[uuid.UUID(parties.billing_tenant["tenant_id"])]
    inputs = CloseInputs(
        parties=parties,
        subscription_id=str(schedule.subscription_id),
        time_zone=facts.time_zone,
        period=facts.period,
        plan=found.plans[schedule.plan_version_at(last)].plan,
        facts=facts,
        engine_version=ENGINE_VERSION,
        segments=used.segments,
        late=used.late,
        chain_heads=shared.chain_heads,
        not_waited_for=asked.not_waited_for,
        closed_at=shared.at,
        billing=frozen_terms(profile, parties.taxes, parties.place),
        items=() if facts.is_cut else shared.items.get((schedule.tenant_id, found.terms_at(last)["currency"]), ()),
    )
    return Gathered(inputs=inputs, known=known, profile=profile)


def _facts(asked: PeriodAsked, known: Known) -> PeriodFacts:
    if asked.cut_at is not None:
        return cut_facts(asked.found, asked.period, known, at=asked.cut_at)
    return (opening_facts if asked.is_opening else period_facts)(asked.found, asked.period, known)


def unbillable(wire_id: str, error: ValueError) -> PreconditionError:
    """Say that no invoice can be made of a tenant's running period."""
    return PreconditionError(f"the period can't be billed: {error}", reason="PERIOD_OPEN", metadata={"tenant": wire_id})


async def running_inputs(conn: Connection, tenant_id: UUID, *, wire_id: str, now: datetime) -> CloseInputs | None:
    """Give the inputs of the running period as they stand; None without a subscription.

    Changes nothing. `conn` is in a REPEATABLE READ transaction, so that all sums are of one moment. Raises
    PreconditionError: there is more usage than its prices take.
    """
    schedules = [one for one in await read_schedules(conn, [tenant_id]) if one.ended_at is None or one.ended_at > now]
    if not schedules:
        return None
    schedule = schedules[-1]
    period = schedule.period_at(now) or next(schedule.open_periods())
    found = (await read_plans_of(conn, [schedule]))[schedule.subscription_id]
    gathered = (await gather(conn, [PeriodAsked(found, period)], at=now))[schedule.subscription_id]
    if isinstance(gathered, ValueError):
        raise unbillable(wire_id, gathered) from gathered
    return await _with_paid_to_come(conn, found, gathered, at=now)


async def _with_paid_to_come(conn: Connection, found: PeriodPlans, made: Gathered, *, at: datetime) -> CloseInputs:
    """Give the inputs with what the close before, which is still to come, charges ahead for what is given back."""
    inputs, facts = made.inputs, made.inputs.facts
    if made.known.before is not None or facts.ahead is None or not is_given_back(facts):
        return inputs
    before = PeriodAsked(found, facts.period, is_opening=True)
    for period in found.schedule.open_periods():
        if period.start >= facts.period.start:
            break
        before = PeriodAsked(found, period)
    gathered = (await gather(conn, [before], at=at))[found.schedule.subscription_id]
    if isinstance(gathered, ValueError):
        return inputs
    stored = inputs_to_bytes(gathered.inputs)
    paid = paid_ahead(stored, await closes.read_definitions_by_digest(conn, digests_named(stored)))
    return replace(inputs, facts=replace(facts, ahead=replace(facts.ahead, paid=paid)))


async def warm(conn: Connection, *, at: datetime) -> None:
    """Ask Postgres whatever `running_inputs` asks, of a subscription that nobody has. Changes nothing."""
    nobody, digest = uuid.UUID(int=0), "00" * 32
    month = Period(start=at, end=at + timedelta(days=1))
    schedule = SubscriptionSchedule(
        tenant_id=nobody, subscription_id=nobody, eras=(), ended_at=None, billed_until=at, phases=()
    )
    definition = closes.PlanDefinition(PlanReference(name="", version=1, digest=digest), b'{"prices":[]}')
    await read_schedules(conn, [nobody])
    await read_plans_of(conn, [schedule])
    await _read(conn, [PeriodAsked(PeriodPlans(schedule, {nobody: definition}), month)], at=at)
    await closes.read_definitions_by_digest(conn, {digest})
