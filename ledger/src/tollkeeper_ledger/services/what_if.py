"""Price a closed month's real usage under plans that nobody is on yet."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.catalogue.canonical import (
    canonical_json,
    digest_of,
    list_plan,
    plan_to_json,
    with_own_kept,
    with_own_prices,
)
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.invoice import digests_named, rate_inputs, usage_to_json
from tollkeeper_ledger.domain.period_facts import ahead_from_json, period_from_json
from tollkeeper_ledger.domain.rating.period import paid_instead
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of
from tollkeeper_ledger.services.billing_facts import read_plans_of
from tollkeeper_ledger.services.catalogue import check_catalogue
from tollkeeper_ledger.services.period_usage import read_period_usage
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_segments import read_schedules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from tollkeeper_ledger.domain.catalogue.model import Catalogue
    from tollkeeper_ledger.domain.periods import Period
    from tollkeeper_ledger.domain.rating.charges import Charges
    from tollkeeper_ledger.store.billing_closes import StoredClose
    from tollkeeper_ledger.store.pool import Connection

_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")
_MONTHS = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """What a closed period cost, before credit and tax, and what it would have cost."""

    tenant: str
    plan: str
    currency: str
    period: Period
    before_minor: int
    after_minor: int


def month_of(text: str) -> tuple[datetime, datetime]:
    """Read a month like 2026-10 as a span of UTC. Raises InvalidFieldError."""
    match = _MONTH.fullmatch(text)
    year, month = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= month <= _MONTHS and year):
        raise InvalidFieldError("period", "is not a month", value=ascii(text[:16]), bound="a month like 2026-10")
    following = (year + 1, 1) if month == _MONTHS else (year, month + 1)
    return datetime(year, month, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)


async def what_if(conn: Connection, *, yaml_text: str, source_name: str, period: str) -> AsyncIterator[Difference]:
    """Give, for each closed period that begins in a month and was rated by a plan of these names, both amounts.

    Whatever version of a named plan was in force is taken for the one given; tenants' own prices stay their own.
    Nothing is stored. `conn` is in a REPEATABLE READ transaction. Raises CatalogueInvalidError; InvalidFieldError: no
    month, or no plan in it.
    """
    first, last = month_of(period)
    catalogue = await check_catalogue(conn, yaml_text=yaml_text, source_name=source_name, now=first)
    plans = {plan.name: canonical_json(plan_to_json(plan)) for plan in catalogue.plans}
    plans |= dict(_own_plans(catalogue, plans))
    if not plans:
        raise InvalidFieldError("yaml", "declares no plan", remedy="give the new plan under its present name")
    for close in await closes.read_closes_between(conn, first, last):
        found = await _difference(conn, close, plans)
        if found is not None:
            yield found


async def _difference(conn: Connection, close: StoredClose, plans: Mapping[str, bytes]) -> Difference | None:
    stored = json.loads(close.inputs)
    definitions = await closes.read_definitions_by_digest(conn, digests_named(close.inputs))
    taken = {digest: await _taken_for(conn, digest, definition, plans) for digest, definition in definitions.items()}
    instead = {digest: definition for digest, definition in taken.items() if definition is not None}
    if not instead:
        return None
    before = rate_inputs(close.inputs, definitions).charges
    schedules = await read_schedules(conn, [close.key.tenant_id])
    schedule = next(one for one in schedules if one.subscription_id == close.key.subscription_id)
    period = period_from_json(stored["period"])
    if stored["facts"]["stretches"]:
        found = (await read_plans_of(conn, [schedule]))[schedule.subscription_id]
        stored.update(usage_to_json(*await read_period_usage(conn, found, period, also=list(instead.values()))))
    ahead = ahead_from_json(stored["facts"]["ahead"])
    if ahead is not None and ahead.paid and ahead.plan in instead:
        paid = paid_instead(ahead, plan_of(instead[ahead.plan]), stored["time_zone"])
        stored["facts"]["ahead"]["paid"] = [asdict(fee) for fee in paid]
    after = _rated_instead(canonical_json(stored), definitions, instead)
    return Difference(
        tenant=close.tenant,
        plan=stored["plan"]["name"],
        currency=after.currency.code,
        period=period,
        before_minor=_before_credit(before),
        after_minor=_before_credit(after),
    )


def _own_plans(catalogue: Catalogue, plans: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Give the plans of tenants whose own prices stand in the catalogue."""
    for tenant in catalogue.tenants:
        name = f"{tenant.plan}/{tenant.subscription.currency}"
        definition = plans.get(name) or plans.get(tenant.plan)
        if definition is not None and (tenant.fees or tenant.prices):
            own = with_own_prices(json.loads(definition), tenant)
            yield own["name"], canonical_json(own)


async def _taken_for(conn: Connection, digest: str, definition: bytes, plans: Mapping[str, bytes]) -> bytes | None:
    """Give what a plan version is taken for; None where it stays.

    A tenant's own prices go on: as the catalogue has them, else as they were beside the list's of their time.
    """
    own = json.loads(definition)
    name = list_plan(own["name"])
    if own["name"] in plans or name not in plans:
        return plans.get(own["name"])
    beside = await closes.read_list_version(conn, bytes.fromhex(digest), name)
    return canonical_json(with_own_kept(json.loads(plans[name]), own, json.loads(beside)))


def _rated_instead(inputs: bytes, definitions: Mapping[str, bytes], instead: Mapping[str, bytes]) -> Charges:
    """Rate inputs in which plan versions are taken for others: they are named by their digests alone."""
    for digest, definition in instead.items():
        inputs = inputs.replace(digest.encode(), digest_of(definition).hex().encode())
    used = {digest: definition for digest, definition in definitions.items() if digest not in instead}
    return rate_inputs(inputs, used | {digest_of(one).hex(): one for one in instead.values()}).charges


def _before_credit(charges: Charges) -> int:
    return sum(line.amount_minor - line.discount_minor for line in charges.lines if line.kind != "credit")
