"""Limits as the catalogue declares them, and their canonical JSON.

The same JSON stands in plan definitions, subscriptions and overrides; the resolution of effective limits reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.catalogue.alert import read_thresholds

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.domain.catalogue.reader import Fields

JsonObject: TypeAlias = dict[str, Any]

KINDS = ("window", "token_bucket", "level", "concurrency")
ENFORCEMENTS = ("hard", "soft", "shadow")
FAILURE_POLICIES = ("standby", "ledger", "closed", "open")
AFTER_RESTORE = ("freeze", "learn")
DECISION_LOGS = ("off", "denied", "sampled", "all")
ONE_IN_MAX = 1_000_000
WINDOW_UNITS = ("minute", "hour", "day", "week", "month", "year", "billing_period")
REFILL_UNITS = ("second", "minute", "hour", "day")
ALIGNMENTS = ("calendar", "rolling")
KEYS_MAX = 8
MATCHES_MAX = 16

LIMIT_ALIASES = {
    "limit_value": "amount",
    "enforcement_mode": "enforcement",
    "reset_period": "window",
    "usage_type": "meter",
    "service": "meter",
}
LIMIT_FIELDS = frozenset({
    "name", "meter", "kind", "amount", "window", "refill", "burst", "enforcement", "failure_policy", "match", "key",
    "valid_from", "valid_to", "shared", "after_restore", "alerts",
    "decision_log", "decision_log_one_in",
})  # fmt: skip
_MATCH_FIELDS = frozenset({"attribute", "exact", "prefix", "set", "any"})
_WINDOW_FIELDS = frozenset({"unit", "count", "time_zone", "alignment", "anchor"})
ANCHOR_MIN, ANCHOR_MAX = date(1970, 1, 1), date(2199, 12, 31)
_PERIOD_WORDS = {
    "minutely": "minute",
    "hourly": "hour",
    "daily": "day",
    "weekly": "week",
    "monthly": "month",
    "yearly": "year",
    "annual": "year",
}


@dataclass(frozen=True, slots=True)
class Match:
    """Match one attribute by `rule`: `exact`, `prefix`, `set` or `any`."""

    attribute: str
    rule: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Say how long windows are and where they begin."""

    unit: str
    count: int
    time_zone: str
    alignment: str
    anchor: date | None = None
    """The local day that they are counted from; None = the calendar's own."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One declared limit: a window with `window`, a token bucket with `refill` and `burst`."""

    name: str
    meter: str
    kind: str
    amount: int
    enforcement: str
    failure_policy: str
    match: tuple[Match, ...]
    key: tuple[str, ...]
    window: Window | None
    refill: tuple[str, int] | None
    """Unit and count of the time in which `amount` tokens come."""
    burst: int | None
    valid_from: datetime | None
    valid_to: datetime | None
    shared: bool = False
    """Callers of child tenants see its figures."""
    after_restore: str = "freeze"
    """What happens to windows that were open when Postgres was set back."""
    alerts: tuple[str, ...] | None = None
    """Thresholds that are told of; None = the default."""
    decision_log: str = "denied"
    """Which of its decisions are kept one by one."""
    decision_log_one_in: int = 0
    """Of those that are sampled, one in so many; 0 where none are."""


def read_limit(fields: Fields, *, time_zone: str) -> Limit:
    """Read one limit; `time_zone` is what windows without one of their own get."""
    kind = _read_kind(fields)
    window = _read_window(fields, time_zone=time_zone) if kind == "window" else None
    if kind == "window":
        for name in ("refill", "burst"):
            if fields.has(name):
                fields.fault(name, "belongs to kind token_bucket only", remedy="remove it, or use kind: token_bucket")
    elif fields.has("window"):
        remedy = "use refill, or kind: window" if kind == "token_bucket" else "remove it, or use kind: window"
        fields.fault("window", "belongs to kind window only", remedy=remedy)
    if kind in ("level", "concurrency"):
        for name in ("refill", "burst"):
            if fields.has(name):
                fields.fault(name, "belongs to kind token_bucket only", remedy="remove it, or use kind: token_bucket")
    amount = fields.whole("amount", least=-1, required=True)
    valid_from, valid_to = fields.instant("valid_from"), fields.instant("valid_to")
    if valid_from is not None and valid_to is not None and valid_to <= valid_from:
        fields.fault("valid_to", "is not after valid_from")
    return Limit(
        name=fields.name("name"),
        meter=fields.name("meter", refers_to="meter"),
        kind=kind,
        amount=amount,
        enforcement=fields.choice("enforcement", ENFORCEMENTS, default="hard"),
        failure_policy=fields.choice("failure_policy", FAILURE_POLICIES, default="standby"),
        match=_read_matches(fields),
        key=fields.names("key", count_max=KEYS_MAX),
        window=window,
        refill=_read_refill(fields) if kind == "token_bucket" else None,
        burst=_read_burst(fields, amount) if kind == "token_bucket" else None,
        valid_from=valid_from,
        valid_to=valid_to,
        shared=fields.flag("shared"),
        after_restore=_read_after_restore(fields, kind),
        alerts=_read_alerts(fields, kind),
        decision_log=fields.choice("decision_log", DECISION_LOGS, default="denied"),
        decision_log_one_in=_read_one_in(fields),
    )


def _read_one_in(fields: Fields) -> int:
    if fields.scalar_text("decision_log") == "sampled":
        return fields.whole("decision_log_one_in", least=1, most=ONE_IN_MAX, required=True)
    if fields.has("decision_log_one_in"):
        remedy = "remove it, or use decision_log: sampled"
        fields.fault("decision_log_one_in", "belongs to decision_log sampled only", remedy=remedy)
    return 0


def _read_alerts(fields: Fields, kind: str) -> tuple[str, ...] | None:
    if fields.has("alerts") and kind != "window":
        fields.fault("alerts", "belongs to kind window only", value=kind, remedy="remove it")
    return read_thresholds(fields, "alerts")


def _read_after_restore(fields: Fields, kind: str) -> str:
    after_restore = fields.choice("after_restore", AFTER_RESTORE, default="freeze")
    if after_restore == "learn" and kind != "window":
        remedy = "remove it: a level stands as its records say, units in flight are free again after 40 s"
        if kind == "token_bucket":
            remedy = "remove it: nothing of a token bucket stands in Postgres"
        fields.fault("after_restore", "is learn, which belongs to kind window only", value=kind, remedy=remedy)
    return after_restore


def _read_kind(fields: Fields) -> str:
    if fields.scalar_text("kind") == "rate":
        return "token_bucket"
    return fields.choice("kind", KINDS, default="window", required=True)


def _read_window(fields: Fields, *, time_zone: str) -> Window | None:
    word = fields.scalar_text("window")
    if word is not None:
        unit = _PERIOD_WORDS.get(word, word)
        if unit not in WINDOW_UNITS:
            fields.fault("window", "is not known", value=word, bound=", ".join(WINDOW_UNITS))
            return None
        return Window(unit=unit, count=1, time_zone=time_zone, alignment="calendar")
    inner = fields.table("window", names=_WINDOW_FIELDS, required=True)
    if inner is None:
        return None
    window = Window(
        unit=inner.choice("unit", WINDOW_UNITS, default="day", required=True),
        count=inner.whole("count", least=1, most=1000, default=1),
        time_zone=inner.time_zone("time_zone", default=time_zone),
        alignment=inner.choice("alignment", ALIGNMENTS, default="calendar"),
        anchor=_read_anchor(inner),
    )
    if window.anchor is not None and window.alignment == "rolling":
        inner.fault("anchor", "belongs to calendar windows only", remedy="remove it: rolling ones begin at first use")
    is_plain = window.count == 1 and window.alignment == "calendar" and window.anchor is None
    if window.unit == "billing_period" and not is_plain:
        inner.fault("unit", "billing_period is always one period, aligned to the subscription", remedy="leave the rest")
    return window


def _read_anchor(fields: Fields) -> date | None:
    text = fields.text("anchor")
    if not text:
        return None
    try:
        anchor = date.fromisoformat(text)
    except ValueError:
        fields.fault("anchor", "is not a day", value=text, bound="YYYY-MM-DD")
        return None
    if not ANCHOR_MIN <= anchor <= ANCHOR_MAX:
        fields.fault("anchor", "is out of range", value=text, bound=f"{ANCHOR_MIN} to {ANCHOR_MAX}")
        return None
    return anchor


def _read_refill(fields: Fields) -> tuple[str, int] | None:
    word = fields.scalar_text("refill")
    if word is not None:
        if word not in REFILL_UNITS:
            fields.fault("refill", "is not known", value=word, bound=", ".join(REFILL_UNITS))
        return (word, 1)
    inner = fields.table("refill", names=frozenset({"unit", "count"}), required=True)
    if inner is None:
        return None
    unit = inner.choice("unit", REFILL_UNITS, default="second", required=True)
    return (unit, inner.whole("count", least=1, most=1000, default=1))


def _read_burst(fields: Fields, amount: int) -> int:
    least = 1 if amount > 0 else 0
    return fields.whole("burst", least=least, default=max(amount, 0))


def _read_matches(fields: Fields) -> tuple[Match, ...]:
    matches: list[Match] = []
    for inner in fields.tables("match", names=_MATCH_FIELDS):
        rules = [rule for rule in ("exact", "prefix", "set", "any") if inner.has(rule)]
        attribute = inner.name("attribute")
        if len(rules) != 1:
            inner.fault("attribute", "needs exactly one of exact, prefix, set, any", value=", ".join(rules))
            continue
        rule = rules[0]
        values = () if rule == "any" else inner.texts(rule, length_max=128, count_max=100 if rule == "set" else 1)
        if rule == "any" and not inner.flag("any"):
            inner.fault("any", "can only be true")
        if rule == "set" and not values:
            inner.fault("set", "is empty", remedy="name at least one value")
        if any(match.attribute == attribute for match in matches):
            inner.fault("attribute", "is matched twice", value=attribute)
        matches.append(Match(attribute=attribute, rule=rule, values=values or ("",)))
    if len(matches) > MATCHES_MAX:
        fields.fault("match", "has too many entries", value=str(len(matches)), bound=f"up to {MATCHES_MAX}")
    return tuple(matches)


def limit_to_json(limit: Limit) -> JsonObject:
    """Give a limit as the JSON object that is stored."""
    stored: JsonObject = {
        "name": limit.name,
        "meter": limit.meter,
        "kind": limit.kind,
        "amount": limit.amount,
        "enforcement": limit.enforcement,
        "failure_policy": limit.failure_policy,
        "match": [_match_to_json(match) for match in limit.match],
        "key": list(limit.key),
    }
    if limit.window is not None:
        window = limit.window
        stored["window"] = {
            "unit": window.unit,
            "count": window.count,
            "time_zone": window.time_zone,
            "alignment": window.alignment,
        }
        if window.anchor is not None:
            stored["window"]["anchor"] = window.anchor.isoformat()
    if limit.refill is not None:
        stored["refill"] = {"unit": limit.refill[0], "count": limit.refill[1]}
        stored["burst"] = limit.burst
    return stored | _said(limit)


def _said(limit: Limit) -> JsonObject:
    """Give what is not as it is by default."""
    stored: JsonObject = {}
    if limit.valid_from is not None:
        stored["valid_from"] = _instant(limit.valid_from)
    if limit.valid_to is not None:
        stored["valid_to"] = _instant(limit.valid_to)
    if limit.shared:
        stored["shared"] = True
    if limit.after_restore != "freeze":
        stored["after_restore"] = limit.after_restore
    if limit.alerts is not None:
        stored["alerts"] = list(limit.alerts)
    if limit.decision_log != "denied":
        stored["decision_log"] = limit.decision_log
    if limit.decision_log_one_in:
        stored["decision_log_one_in"] = limit.decision_log_one_in
    return stored


def _match_to_json(match: Match) -> JsonObject:
    if match.rule == "any":
        return {"attribute": match.attribute, "any": True}
    if match.rule == "set":
        return {"attribute": match.attribute, "set": sorted(set(match.values))}
    return {"attribute": match.attribute, match.rule: match.values[0]}


def _instant(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
