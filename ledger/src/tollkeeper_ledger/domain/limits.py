"""Limits as rules, and which of them are in force for a tenant.

A rule's JSON form is what plan definitions, subscriptions and overrides hold:

    {"name": "tokens-per-day", "meter": "tokens", "kind": "window", "amount": 1000000, "enforcement": "hard",
     "failure_policy": "standby", "match": [{"attribute": "model", "exact": "large"}], "key": ["user"],
     "window": {"unit": "day", "count": 2, "time_zone": "Europe/Berlin", "alignment": "calendar",
                "anchor": "2026-01-15"}}

Token buckets have `"refill": {"unit": "second", "count": 1}` and `burst` instead of `window`; `valid_from` and
`valid_to` are UTC instants as text. What stands for a default may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.windows import Alignment, WindowRule, WindowUnit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Json: TypeAlias = "Mapping[str, Any]"

UNITS_MAX = 9_007_199_254_740_991
UNLIMITED = -1
TIME_US_MAX = 2**63 - 1
_REFILL_US = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LimitKind(Enum):
    """How a limit counts."""

    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - a kind of limit
    WINDOW = "window"
    LEVEL = "level"
    CONCURRENCY = "concurrency"


class Enforcement(Enum):
    """What happens beyond a limit."""

    HARD = "hard"
    SOFT = "soft"
    SHADOW = "shadow"


class FailurePolicy(Enum):
    """What a hard limit does without an authority."""

    STANDBY = "standby"
    LEDGER = "ledger"
    CLOSED = "closed"
    OPEN = "open"


class AfterRestore(Enum):
    """What happens to windows that were open when Postgres was set back."""

    FREEZE = "freeze"
    LEARN = "learn"


class DecisionLog(Enum):
    """Which of a limit's decisions are kept one by one."""

    OFF = "off"
    DENIED = "denied"
    SAMPLED = "sampled"
    ALL = "all"


class MatchKind(Enum):
    """How an attribute's value is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SET = "set"
    ANY = "any"


class Source(Enum):
    """Where a limit comes from, the least specific first."""

    PLAN = "plan"
    SUBSCRIPTION = "subscription"
    OVERRIDE = "override"


@dataclass(frozen=True, slots=True)
class AttributeMatch:
    """A condition on one attribute; `values` is one value, the members of a set, or empty for ANY."""

    attribute: str
    kind: MatchKind
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitRule:
    """One limit as declared. `amount` -1 is unlimited, 0 none."""

    name: str
    meter: str
    kind: LimitKind
    amount: int
    enforcement: Enforcement = Enforcement.HARD
    failure_policy: FailurePolicy = FailurePolicy.STANDBY
    match: tuple[AttributeMatch, ...] = ()
    key: tuple[str, ...] = ()
    window: WindowRule | None = None
    refill_interval_us: int = 0
    burst: int = 0
    valid_from_us: int | None = None
    valid_to_us: int | None = None
    shared: bool = False
    """Callers of child tenants see its figures."""
    after_restore: AfterRestore = AfterRestore.FREEZE
    alerts: tuple[str, ...] | None = None
    """Thresholds that are told of; None = the default."""
    decision_log: DecisionLog = DecisionLog.DENIED
    decision_log_one_in: int = 0
    """With SAMPLED: one in so many decisions of each reason is kept."""

    @property
    def learns(self) -> bool:
        """Whether its windows go on by themselves after a restore, once holders have said what they have."""
        return self.kind is LimitKind.WINDOW and self.after_restore is AfterRestore.LEARN


@dataclass(frozen=True, slots=True)
class EffectiveLimit:
    """A rule in force, where it comes from, and the version of its amount and enforcement."""

    rule: LimitRule
    source: Source
    amount_version: int
    shape: int = 0
    """Rises with its kind and key."""
    from_us: int = 0
    """The limit of this name has this kind and key from here, in ledger time."""
    until_us: int = TIME_US_MAX
    """Until here, exclusive: a change of kind or key waits for a window's end."""


def _match_from_json(value: Json) -> AttributeMatch:
    kinds = [kind for kind in MatchKind if kind.value in value]
    if len(kinds) != 1:
        raise ValueError(f"match on {value.get('attribute')!r} needs exactly one of exact, prefix, set, any")
    kind = kinds[0]
    found = value[kind.value]
    values: tuple[str, ...] = ()
    if kind is MatchKind.SET:
        values = tuple(str(member) for member in found)
    elif kind is not MatchKind.ANY:
        values = (str(found),)
    return AttributeMatch(attribute=str(value["attribute"]), kind=kind, values=values)


def _window_from_json(value: Json) -> WindowRule:
    return WindowRule(
        unit=WindowUnit(value["unit"]),
        count=int(value.get("count", 1)),
        time_zone=str(value.get("time_zone", "UTC")),
        alignment=Alignment(value.get("alignment", "calendar")),
        anchor=date.fromisoformat(value["anchor"]) if "anchor" in value else None,
    )


def _instant_from_json(value: str | None) -> int | None:
    if value is None:
        return None
    return (datetime.fromisoformat(value) - _EPOCH) // timedelta(microseconds=1)


def rule_from_json(value: Json) -> LimitRule:
    """Parse a rule. Raises KeyError or ValueError where it isn't one."""
    kind = LimitKind(value["kind"])
    amount = int(value["amount"])
    if not UNLIMITED <= amount <= UNITS_MAX:
        raise ValueError(f"limit {value['name']!r}: amount {amount} is not in -1..{UNITS_MAX}")
    window = _window_from_json(value["window"]) if kind is LimitKind.WINDOW else None
    bucket = kind is LimitKind.TOKEN_BUCKET
    interval_us = _REFILL_US[value["refill"]["unit"]] * int(value["refill"].get("count", 1)) if bucket else 0
    burst = int(value.get("burst", max(amount, 0))) if bucket else 0
    if bucket and (interval_us < 1 or not 0 <= burst <= UNITS_MAX):
        raise ValueError(f"limit {value['name']!r}: refill or burst is out of range")
    decision_log = DecisionLog(value.get("decision_log", "denied"))
    return LimitRule(
        name=str(value["name"]),
        meter=str(value["meter"]),
        kind=kind,
        amount=amount,
        enforcement=Enforcement(value.get("enforcement", "hard")),
        failure_policy=FailurePolicy(value.get("failure_policy", "standby")),
        match=tuple(_match_from_json(entry) for entry in value.get("match", ())),
        key=tuple(str(name) for name in value.get("key", ())),
        window=window,
        refill_interval_us=interval_us,
        burst=burst,
        valid_from_us=_instant_from_json(value.get("valid_from")),
        valid_to_us=_instant_from_json(value.get("valid_to")),
        shared=bool(value.get("shared", False)),
        after_restore=AfterRestore(value.get("after_restore", "freeze")),
        alerts=tuple(value["alerts"]) if "alerts" in value else None,
        decision_log=decision_log,
        decision_log_one_in=int(value["decision_log_one_in"]) if decision_log is DecisionLog.SAMPLED else 0,
    )


def merge(plan: Iterable[Json], subscription: Iterable[Json], overrides: Iterable[Json]) -> list[tuple[Json, Source]]:
    """Give the rules that are declared, as JSON in name order: of one name the most specific stands.

    A more specific entry with a `kind` replaces the whole rule; one without changes only the fields that it has, and
    says nothing where there is no rule to change. Raises KeyError for an entry that isn't a rule.
    """
    merged: dict[str, tuple[Json, Source]] = {}
    for source, rules in ((Source.PLAN, plan), (Source.SUBSCRIPTION, subscription), (Source.OVERRIDE, overrides)):
        for rule in rules:
            name = str(rule["name"])
            if "kind" in rule:
                merged[name] = (rule, source)
            elif name in merged:
                merged[name] = ({**merged[name][0], **rule}, source)
    return [found for _, found in sorted(merged.items(), key=lambda pair: pair[0])]
