"""What limits mean, written to be obvious and slow: one dictionary of counters, no leases, no clock of its own.

The oracle of the data plane. It knows one tenant with its ancestors, at one moment that the test sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

MINUTE_US = 60_000_000

Kind: TypeAlias = Literal["window", "token_bucket"]
Enforcement: TypeAlias = Literal["hard", "soft", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A condition on one attribute."""

    attribute: str
    rule: Literal["exact", "prefix", "set", "any"]
    values: tuple[str, ...] = ("",)

    def fits(self, attributes: dict[str, str]) -> bool:
        """Tell whether a call's attributes satisfy it."""
        value = attributes.get(self.attribute)
        if value is None:
            return False
        match self.rule:
            case "any":
                return True
            case "prefix":
                return value.startswith(self.values[0])
            case _:
                return value in self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit of the tenant or of an ancestor. Windows are minutes; buckets get `amount` tokens a minute."""

    name: str
    meter: str
    kind: Kind
    amount: int
    """-1 = unlimited, 0 = none."""
    burst: int = 0
    enforcement: Enforcement = "hard"
    match: tuple[Match, ...] = ()
    key: tuple[str, ...] = ()
    of_parent: bool = False


@dataclass(slots=True)
class Counter:
    """What one key of one limit has used: units of the window, or the bucket's level in tokens times microseconds."""

    window: int = -1
    used: int = 0
    over: int = 0
    level_scaled: int = -1
    at_us: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """What may be answered to a check."""

    allowed: bool
    reasons: frozenset[str]
    """Any of these: which denying limit is named is the product's choice."""
    retry_after_us: dict[str, int | None] = field(default_factory=dict)
    """By denying limit's name: when the same call would pass; nothing where no waiting helps."""


@dataclass(slots=True)
class Model:
    """The counters of one tenant."""

    limits: tuple[Limit, ...]
    now_us: int
    counters: dict[tuple[str, tuple[str, ...]], Counter] = field(default_factory=dict)
    held: dict[str, list[tuple[Counter, int, str, int]]] = field(default_factory=dict)
    """By reservation: counter, its window, meter, units."""

    def check(self, costs: dict[str, int], attributes: dict[str, str], *, take: bool) -> Said:
        """Decide a check of units by meter; with `take` an admitted one takes them."""
        charges = self._charges(costs, attributes)
        denials = {limit.name: denied for limit, _, units in charges if (denied := self._denies(limit, _, units))}
        if denials:
            return Said(
                allowed=False,
                reasons=frozenset(reason for reason, _ in denials.values()),
                retry_after_us={name: retry_us for name, (_, retry_us) in denials.items()},
            )
        over = {limit.enforcement for limit, counter, units in charges if not self._has(limit, counter, units)}
        if take:
            for limit, counter, units in charges:
                self._take(limit, counter, units)
        if "soft" in over:
            return Said(allowed=True, reasons=frozenset({"SOFT_LIMIT_EXCEEDED"}))
        return Said(allowed=True, reasons=frozenset({"SHADOW_LIMIT_EXCEEDED" if over else "ALLOWED"}))

    def reserve(self, name: str, costs: dict[str, int], attributes: dict[str, str]) -> Said:
        """Decide a reservation, and hold what it takes."""
        charges = self._charges(costs, attributes)
        covered = [self._has(limit, counter, units) for limit, counter, units in charges]
        said = self.check(costs, attributes, take=True)
        if said.allowed:
            self.held[name] = [
                (counter, counter.window, limit.meter, units)
                for (limit, counter, units), has in zip(charges, covered, strict=True)
                if has and limit.kind == "window" and limit.amount >= 0
            ]
        return said

    def end(self, name: str, actual: dict[str, int]) -> None:
        """End a reservation at what was used: the rest of it is free again, in the window where it was held."""
        for counter, window, meter, units in self.held.pop(name):
            if counter.window == window:
                counter.used += actual.get(meter, 0) - units

    def remaining(self, name: str, attributes: dict[str, str]) -> int:
        """Tell what a call could still take of a limited window, and 0 where debts exceed it."""
        (limit,) = (limit for limit in self.limits if limit.name == name)
        counter = self._counter(limit, attributes)
        return max(0, limit.amount - counter.used - counter.over)

    def _charges(self, costs: dict[str, int], attributes: dict[str, str]) -> list[tuple[Limit, Counter, int]]:
        return [
            (limit, self._counter(limit, attributes), costs[limit.meter])
            for limit in self.limits
            if limit.meter in costs and all(match.fits(attributes) for match in limit.match)
        ]

    def _counter(self, limit: Limit, attributes: dict[str, str]) -> Counter:
        key = (limit.name, tuple(attributes.get(name, "") for name in limit.key))
        counter = self.counters.setdefault(key, Counter())
        if limit.kind == "window":
            window = self.now_us // MINUTE_US
            if counter.window != window:
                counter.window, counter.used, counter.over = window, 0, 0
        else:
            full = limit.burst * MINUTE_US
            if counter.level_scaled < 0:
                counter.level_scaled = full
            gained = max(0, limit.amount) * (self.now_us - counter.at_us)
            counter.level_scaled = min(full, counter.level_scaled + gained)
            counter.at_us = self.now_us
        return counter

    def _has(self, limit: Limit, counter: Counter, units: int) -> bool:
        if units == 0 or limit.amount < 0:
            return True
        if limit.amount == 0:
            return False
        if limit.kind == "window":
            return counter.used + units <= limit.amount
        return counter.level_scaled >= units * MINUTE_US

    def _denies(self, limit: Limit, counter: Counter, units: int) -> tuple[str, int | None] | None:
        if limit.enforcement != "hard" or self._has(limit, counter, units):
            return None
        most = limit.amount if limit.kind == "window" or limit.amount == 0 else limit.burst
        if units > most:
            return "COST_EXCEEDS_LIMIT", None
        if limit.kind == "window":
            return "QUOTA_EXHAUSTED", MINUTE_US - self.now_us % MINUTE_US
        missing = units * MINUTE_US - counter.level_scaled
        return "RATE_LIMITED", -(-missing // limit.amount)

    def _take(self, limit: Limit, counter: Counter, units: int) -> None:
        if limit.amount < 0:
            return
        if limit.kind == "token_bucket":
            counter.level_scaled -= units * MINUTE_US if self._has(limit, counter, units) else 0
        elif self._has(limit, counter, units):
            counter.used += units
        else:
            counter.over += units
