"""Rating: a period of a fee and five prices of different models, over and over; beside bare integers."""

from __future__ import annotations

import json
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.domain.rating.engine import ENGINE_VERSION
from tollkeeper_ledger.domain.rating.period import PeriodFacts, PeriodUsage, Stretch, rate_period
from tollkeeper_ledger.domain.rating.plan_bytes import plan_of

from bench.frame import Bench, Goal, Sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tollkeeper_ledger.domain.rating.charges import Charge

    from bench.frame import Effort
    from bench.stage import Stage

_MONTH = Period(start=datetime(2026, 10, 1, tzinfo=UTC), end=datetime(2026, 11, 1, tzinfo=UTC))
_TIERS = [
    {"up_to": 10_000, "unit_price": "0.01", "flat": "0"},
    {"up_to": 1_000_000, "unit_price": "0.008", "flat": "0"},
    {"up_to": None, "unit_price": "0.005", "flat": "0"},
]
_PRICES: Sequence[dict[str, Any]] = (
    {"meter": "m0", "model": "per_unit", "per": 1_000_000, "unit_price": "2.50", "included": 1_000_000},
    {"meter": "m1", "model": "per_unit", "per": 1, "unit_price": "0.0004", "included": 0},
    {"meter": "m2", "model": "graduated", "per": 1, "tiers": _TIERS, "included": 0},
    {"meter": "m3", "model": "volume", "per": 1, "tiers": _TIERS, "included": 0},
    {"meter": "m4", "model": "package", "size": 1_000, "price": "0.50", "included": 100_000},
)
_PLAN = json.dumps(
    {
        "currency": "USD",
        "fees": [{"name": "base", "amount": "20.00", "timing": "arrears"}],
        "prices": [{"description": "", **price} for price in _PRICES],
    }
).encode()
_LINES = len(_PRICES) + 1


@asynccontextmanager
async def open_rating(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have periods with usage of every price."""
    randoms = random.Random(5)
    totals = tuple(Total(meter=f"m{at}", unit="units", scale=0, units=0) for at in range(len(_PRICES)))
    usages = [
        PeriodUsage(by_plan={"a": tuple(total._replace(units=randoms.randint(1, 5_000_000)) for total in totals)})
        for _ in range(effort.of(10_000, quick=300))
    ]
    facts = PeriodFacts(
        time_zone="UTC",
        period=_MONTH,
        whole=_MONTH,
        stretches=(Stretch(span=_MONTH, plan="a", state="active", quantity=1),),
        ahead=None,
        advance=None,
    )

    async def ours() -> Sample:
        with stage.spending("driver") as spent:
            lines = sum(
                len(rate_period(facts, usage, {"a": plan_of(_PLAN)}, engine_version=ENGINE_VERSION).charges.lines)
                for usage in usages
            )
        if lines != len(usages) * _LINES:
            raise RuntimeError(f"{lines} lines of {len(usages)} periods")
        return Sample(count=lines, wall_s=spent.wall_s, cpu_s=spent.cpu_s)

    charges = rate_period(facts, usages[0], {"a": plan_of(_PLAN)}, engine_version=ENGINE_VERSION).charges.lines

    async def floor() -> Sample:
        with stage.spending("driver") as spent:
            lines = [_bare(charges[at % _LINES], at) for at in range(len(usages) * _LINES)]
        return Sample(count=len(lines), wall_s=spent.wall_s, cpu_s=spent.cpu_s)

    yield Bench(
        unit="lines",
        ours=ours,
        floor=floor,
        floor_is="a line's multiplication and rounding in integers, and the same kind of line made of it",
        goals=(Goal("ours.per_s", 50_000),),
    )


def _bare(line: Charge, units: int) -> Charge:
    amount = units * 4
    return line._replace(quantity=units, charged=units, amount_minor=(amount + 50) // 100, explanation=(f"{amount}",))
