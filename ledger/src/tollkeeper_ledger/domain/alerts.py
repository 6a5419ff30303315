"""When use or spend is told of: thresholds, and which of them a figure has reached. Pure.

A threshold is text: `90%` of what the rule is about, or an amount in its unit (`5000`, `750.00`). Rules of plans and
tenants are about a billing period and stand as canonical JSON:

    {"kind": "spend", "amount": "500.00", "at": ["75%", "90%", "100%"]}
    {"kind": "meter", "meter": "messages", "amount": "100000", "at": ["80%", "150000"]}

Limits say theirs in the limit itself; those of them that say nothing have the default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.limits import LimitKind
from tollkeeper_ledger.domain.money import plain
from tollkeeper_ledger.domain.windows import WindowUnit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.limits import LimitRule

Json: TypeAlias = dict[str, Any]

DEFAULT_AT = ("75%", "90%", "100%")
AT_MAX = 16
PERCENT_MAX = 10_000
_THRESHOLD = re.compile(r"([0-9]{1,15})(\.[0-9]{1,9})?(%?)")
_SHORT = (WindowUnit.MINUTE, WindowUnit.HOUR)


def threshold_of(text: str) -> str:
    """Give a threshold's one form: `90%`, `5000`, `7.5`. Raises ValueError for what is none."""
    match = _THRESHOLD.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is neither a percentage nor an amount")
    value = Decimal(match[1] + (match[2] or ""))
    if value <= 0 or (match[3] and value > PERCENT_MAX):
        raise ValueError(f"{text!r} is out of range")
    return plain(value) + match[3]


def reached(at: Iterable[str], value: Decimal, *, base: Decimal) -> tuple[str, ...]:
    """Give the thresholds that a figure has reached, those that it equals too; shares of nothing are never reached."""
    return tuple(one for one in at if _is_reached(one, value, base))


def _is_reached(threshold: str, value: Decimal, base: Decimal) -> bool:
    if threshold.endswith("%"):
        return base > 0 and value * 100 >= base * Decimal(threshold[:-1])
    return value >= Decimal(threshold)


def thresholds_of(rule: LimitRule) -> tuple[str, ...]:
    """Give the thresholds of a limit: its own, or the default. Only windows have them.

    Windows of less than a day of a limit that is split by key have none unless they say so: each key's would be told of
    again and again.
    """
    if rule.kind is not LimitKind.WINDOW or rule.window is None:
        return ()
    if rule.alerts is not None:
        return rule.alerts
    return () if rule.key and rule.window.unit in _SHORT else DEFAULT_AT


def is_mailed(rule: LimitRule) -> bool:
    """Whether payers hear of a limit by mail: windows of a day and more that are not split by key."""
    return not rule.key and rule.window is not None and rule.window.unit not in _SHORT


def rules_in_force(plan: Sequence[Json], own: Sequence[Json]) -> list[Json]:
    """Give a tenant's rules: its own instead of its plan's about the same, or beside them."""
    merged = {subject_of(rule): rule for rule in (*plan, *own)}
    return [rule for rule in merged.values() if rule["at"]]


def subject_of(rule: Json) -> str:
    """Name what a rule is about: a meter; empty for spend."""
    return str(rule.get("meter", ""))


def spent_minor(lines: Iterable[Json], *, is_contained: bool) -> int:
    """Sum what an invoice's lines charge, after coupons, before credit and tax; `is_contained`: amounts contain tax.

    What invoices within the period said already was spent as well.
    """
    return sum(
        line["amount_minor"] - line["discount_minor"] - (line["tax"]["tax_minor"] if is_contained else 0)
        for line in lines
        if line["kind"] != "credit" and "invoiced" not in line
    )


@dataclass(frozen=True, slots=True)
class Figure:
    """How far something is, of which thresholds tell."""

    tenant_id: UUID
    kind: str
    """`limit`, `meter`, `spend` or `trial`."""
    subject: str
    """Limit or meter; the currency of spend; the plan of a trial."""
    span: str
    """Names the window or the billing period, once and for all."""
    starts_at: datetime
    ends_at: datetime
    base: Decimal
    """What percentages are of."""
    value: Decimal
    at: tuple[str, ...]
    key_values: tuple[str, ...] = ()
    is_mailed: bool = True

    @property
    def reached(self) -> tuple[str, ...]:
        """Give the thresholds that are reached."""
        return reached(self.at, self.value, base=self.base)
