"""Say what was used in the running period, and how usage changes from span to span."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage_aggregate import Aggregation
from tollkeeper_ledger.domain.usage_buckets import BucketSize, check_time_zone, edges
from tollkeeper_ledger.domain.usage_report import Figure
from tollkeeper_ledger.services.subscriptions import FIRST, list_subscriptions
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.services.usage_query import Bucketed, Question, query_usage, time_zone_of
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.usage_report import Where
    from tollkeeper_ledger.store.pool import Pools

SPANS_MAX = 1_000
SPANS_DEFAULT = 14
_LENGTHS = {
    BucketSize.MINUTE: timedelta(minutes=1),
    BucketSize.HOUR: timedelta(hours=1, minutes=30),
    BucketSize.DAY: timedelta(days=1, hours=1),
    BucketSize.WEEK: timedelta(days=7, hours=1),
    BucketSize.MONTH: timedelta(days=31, hours=1),
}
"""No span is longer."""
_NOTHING = frozenset({Aggregation.SUM, Aggregation.COUNT, Aggregation.UNIQUE})
"""Aggregations that are 0 where nothing was used."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Usage of the running period."""

    used: Sequence[Bucketed]
    start: datetime
    end: datetime
    plan: str
    """Empty without a subscription."""
    time_zone: str
    """The tenant's own."""


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """Usage in one span."""

    used: Bucketed
    change_permille: int | None
    """None where the span before had nothing to compare with."""


async def summarise(pools: Pools, tenant: str, *, where: Where) -> Summary:
    """Sum a tenant's usage in its running period; in this month of UTC where it has no subscription.

    Raises what `query_usage` raises.
    """
    await need_tenant(pools.billing, tenant)
    async with transaction(pools.billing) as conn:
        now = await ledger_now(conn)
        views = await list_subscriptions(conn, after=FIRST, count_max=SPANS_MAX, only=tenant, now=now)
    running = [view for view in views if view.running is not None and view.running.start <= now < view.running.end]
    start = datetime(now.year, now.month, 1, tzinfo=now.tzinfo)
    end, plan = (start + timedelta(days=31)).replace(day=1), ""
    if running and running[-1].running is not None:
        start, end, plan = running[-1].running.start, running[-1].running.end, running[-1].plan
    asked = Question(tenant=tenant, size=BucketSize.WHOLE, start=_minute(start), end=_minute(end), where=where)
    used = await query_usage(pools, asked)
    return Summary(used=used, start=start, end=end, plan=plan, time_zone=await time_zone_of(pools, tenant, ""))


async def trend(
    pools: Pools, *, tenant: str, size: BucketSize, spans: int, meters: Sequence[str], time_zone: str, where: Where
) -> list[TrendPoint]:
    """Give usage per span up to now, in (meter, start) order, spans without usage too.

    Raises InvalidFieldError for too many spans, and what `query_usage` raises.
    """
    zone = check_time_zone(time_zone)
    wanted = spans or SPANS_DEFAULT
    if not 1 <= wanted <= SPANS_MAX:
        raise InvalidFieldError(
            "spans", "is out of range", reason="FIELD_OUT_OF_RANGE", value=spans, bound=f"1 to {SPANS_MAX}"
        )
    size = BucketSize.DAY if size is BucketSize.WHOLE else size
    async with transaction(pools.billing) as conn:
        now = _minute(await ledger_now(conn))
    # One span more than is told: the first one told is compared with it.
    starts = edges(now - (wanted + 1) * _LENGTHS[size], now, size=size, time_zone=zone)[-wanted - 1 :]
    asked = Question(tenant=tenant, size=size, meters=meters, start=starts[0], time_zone=zone, where=where)
    found = await query_usage(pools, asked)
    used = {(one.meter.name, one.start): one for one in found}
    points = []
    for meter in {one.meter.name: one.meter for one in found}.values():
        before: Bucketed | None = None
        for start in starts:
            one = used.get((meter.name, start)) or Bucketed(meter=meter, start=start, group=(), figure=Figure())
            if before is not None:
                points.append(TrendPoint(used=one, change_permille=_change(before, one)))
            before = one
    return points


def value_of(one: Bucketed, permille: int) -> str:
    """Give what the meter's aggregation makes of its usage, a decimal; empty where there is nothing to say."""
    aggregation = one.meter.facts.aggregation
    if not one.figure.records and not one.figure.units and aggregation not in _NOTHING:
        return one.figure.value(aggregation, permille) if one.figure.area is not None else ""
    return one.figure.value(aggregation, permille)


def _change(before: Bucketed, after: Bucketed) -> int | None:
    old, new = (value_of(one, 500) for one in (before, after))
    if not old or not new or not Decimal(old):
        return None
    return int(((Decimal(new) - Decimal(old)) * 1000 / abs(Decimal(old))).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _minute(instant: datetime) -> datetime:
    return from_us(to_us(instant) - to_us(instant) % 60_000_000)
