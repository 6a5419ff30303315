"""The tenants, meters and plans that benches declare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.stage import SELLER, START

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.stage import Stage

METERS = ("bench_requests", "bench_tokens")
_TENANTS_A_CALL = 2_500


async def declare(stage: Stage, plan: str, tenants: Sequence[str], *, limits: Sequence[str] = ()) -> None:
    """Declare a plan and subscribe tenants to it; meters are METERS, limits are YAML of one line each."""
    meters = "".join(
        f"\n  - {{name: {name}, unit: units, aggregation: sum, attributes: [model, user]}}" for name in METERS
    )
    declared = "".join(f"\n      - {limit}" for limit in limits)
    plans = f"\n  - name: {plan}\n    currency: USD\n    billing_interval: {{unit: month, count: 1}}\n"
    if declared:
        plans += f"    limits:{declared}\n"
    subscribed = f'plan: {plan}, subscription: {{start: "{START}", anchor: start}}'
    for first in range(0, len(tenants), _TENANTS_A_CALL):
        rows = "".join(f"\n  - {{id: {name}, {subscribed}}}" for name in tenants[first : first + _TENANTS_A_CALL])
        await stage.apply(f"{SELLER}meters:{meters}\nplans:{plans}tenants:{rows}\n")
