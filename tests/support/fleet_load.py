"""Loads a fleet below, at and above many limits at once, and judges what the callers were told.

One cell is one limit under one load, spread over every sidecar. Nothing here asks the product how much it admitted.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

LOADS_PERCENT = (90, 100, 150, 200)
AMOUNTS = (10, 1_000, 10_000, 100_000)
MINUTE_AMOUNT = 200
MINUTE_LOAD_PERCENT = 200
CLOCK_SPEED = 20
"""Minutes of ledger time last three seconds, so that windows turn in the middle of every fault."""
MINUTE_S = 60 / CLOCK_SPEED
GRACE_S = 6.0
"""Longest time after the last check is due in which answers are waited for."""
DECISIONS = {"ALLOWED", "QUOTA_EXHAUSTED", "AUTHORITY_UNREACHABLE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One limit and the load on it."""

    amount: int
    percent: int
    """Units asked for, in percent of the amount; of a limit by the minute, per minute."""
    per_minute: bool = False
    checks_max: int

    @property
    def name(self) -> str:
        """Return the limit's name, also the value of attribute `cell` that its checks carry."""
        return f"{'minute' if self.per_minute else 'year'}-{self.amount}-{self.percent}"

    def units(self, chance: random.Random) -> list[int]:
        """Return what single checks cost: one unit each, or as many as keep the checks below their bound."""
        mean = max(1, math.ceil(self.amount / self.checks_max))
        return [1] if mean == 1 else [chance.randint(1, 2 * mean - 1) for _ in range(97)]

    def yaml(self) -> str:
        """Return the limit for a catalogue."""
        unit = "minute" if self.per_minute else "year"
        return (
            f"{{name: {self.name}, meter: requests, kind: window, amount: {self.amount}, failure_policy: standby, "
            f"window: {{unit: {unit}, count: 1}}, match: [{{attribute: cell, exact: {self.name}}}]}}"
        )


def cells(checks_max: int) -> list[Cell]:
    """Return every cell; none makes more than so many checks at a load of 100 %."""
    grid = [
        Cell(amount=amount, percent=percent, checks_max=checks_max) for amount in AMOUNTS for percent in LOADS_PERCENT
    ]
    return [
        *grid,
        Cell(amount=MINUTE_AMOUNT, percent=MINUTE_LOAD_PERCENT, per_minute=True, checks_max=checks_max),
    ]


def catalogue(tenants: Sequence[str], grid: Sequence[Cell]) -> str:
    """Declare tenants that all have one limit per cell, and one that nothing loads."""
    limits = "".join(f"\n      - {cell.yaml()}" for cell in grid)
    subscription = '{start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}'
    names = "\n".join(
        f"  - {{id: {tenant}, name: {tenant}, plan: fleet, subscription: {subscription}}}" for tenant in tenants
    )
    return f"""
version: 1
seller:
  {{id: default, name: Test, address: ["-"], tax_id: "-", invoice_prefix: T, currency: USD, time_zone: UTC}}
meters:
  - {{name: requests, unit: requests, aggregation: sum, attributes: [cell]}}
  - {{name: tokens, unit: tokens, aggregation: sum}}
plans:
  - name: fleet
    currency: USD
    billing_interval: {{unit: month, count: 1}}
    prices: [{{meter: tokens, per: 1, unit_price: "0.01"}}]
    limits:{limits}
      - {{name: after, meter: requests, kind: window, amount: 1000000, window: {{unit: year, count: 1}},
         match: [{{attribute: cell, prefix: after}}], key: [cell]}}
tenants:
{names}
"""


def flows(
    grid: Sequence[Cell], targets: Sequence[str], *, tenant: str, span_s: float, seed: int
) -> list[dict[str, Any]]:
    """Plan each cell's checks: as many units as its load says, evenly over the span and over the sidecars."""
    chance = random.Random(seed)
    planned = []
    for cell in grid:
        for target in targets:
            units = cell.units(chance)
            wanted = cell.amount * cell.percent / 100 * (span_s / MINUTE_S if cell.per_minute else 1)
            checks = max(1, round(wanted / len(targets) / (sum(units) / len(units))))
            planned.append(
                {
                    "target": target,
                    "tenant": tenant,
                    "meter": "requests",
                    "attributes": {"cell": cell.name},
                    "units": units,
                    "checks": checks,
                    "rate": checks / span_s,
                    "insists": True,
                }
            )
    return planned


@dataclass(slots=True)
class Verdict:
    """What the callers of one cell were told, all sidecars together. Units, except the counts of checks."""

    cell: Cell
    asked: int = 0
    checks: int = 0
    admitted: int = 0
    by_window: Counter[int] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0

    @property
    def most(self) -> int:
        """Return the most units admitted in any one window."""
        return max(self.by_window.values(), default=0) if self.cell.per_minute else self.admitted

    @property
    def over(self) -> int:
        """Return how many units more than the limit were admitted in a window; 0 is what is promised."""
        return max(0, self.most - self.cell.amount)

    @property
    def wrongly_denied(self) -> int:
        """Return how many checks were told that a limit was used up of which less than all was ever asked for."""
        is_enough = not self.cell.per_minute and self.asked <= self.cell.amount
        return self.decisions["QUOTA_EXHAUSTED"] if is_enough else 0

    @property
    def untyped(self) -> int:
        """Return how many checks were denied or failed without one of the expected reasons."""
        unexpected = sum(count for reason, count in self.decisions.items() if reason not in DECISIONS)
        return unexpected + sum(count for reason, count in self.errors.items() if not reason)


def judge(
    grid: Sequence[Cell], planned: Sequence[dict[str, Any]], told: Sequence[dict[str, Any]], sidecars: int
) -> list[Verdict]:
    """Add up what the flows of each cell were to ask, and what they were told."""
    verdicts = []
    for number, cell in enumerate(grid):
        verdict = Verdict(cell)
        own = slice(number * sidecars, (number + 1) * sidecars)
        verdict.asked = sum(sum(islice(cycle(flow["units"]), flow["checks"])) for flow in planned[own])
        for flow in told[own]:
            verdict.checks += flow["sent"]
            verdict.admitted += flow["admitted_units"]
            verdict.by_window.update({int(start): units for start, units in flow["admitted_by_window"].items()})
            verdict.decisions.update(flow["decisions"])
            verdict.errors.update(flow["errors"])
            verdict.unanswered += flow["unanswered"]
        verdicts.append(verdict)
    return verdicts


HEADER = (
    f"{'limit':>14} {'load':>5} {'checks':>7} {'admitted':>9} {'denied':>7} {'unreach':>7} {'lost':>5} {'share':>8}"
)


def table(fault: str, verdicts: Sequence[Verdict]) -> str:
    """Return one line a cell: limit, load, checks, units admitted, checks denied, unreachable, unanswered, share."""
    lines = [f"{fault}", HEADER]
    for verdict in verdicts:
        cell = verdict.cell
        lines.append(
            f"{cell.amount:>8,}/{'minute' if cell.per_minute else 'year':<6}{cell.percent / 100:>4}x"
            f" {verdict.checks:>7,} {verdict.most:>9,} {verdict.decisions['QUOTA_EXHAUSTED']:>7,}"
            f" {verdict.decisions['AUTHORITY_UNREACHABLE']:>7,} {verdict.unanswered:>5,}"
            f" {verdict.most / cell.amount:>8.2%}"
        )
    return "\n  ".join(lines)
