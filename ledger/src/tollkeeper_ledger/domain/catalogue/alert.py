"""Thresholds of limits, and rules on use and spend of a billing period, as the catalogue declares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.alerts import AT_MAX, DEFAULT_AT, PERCENT_MAX, subject_of, threshold_of
from tollkeeper_ledger.domain.money import plain

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.reader import Fields

_RULE_FIELDS = frozenset({"spend", "meter", "amount", "at"})


def read_thresholds(fields: Fields, name: str) -> tuple[str, ...] | None:
    """Read a list of percentages and amounts, each once; None where it is missing."""
    if not fields.has(name):
        return None
    found: dict[str, None] = {}
    for text in fields.texts(name, length_max=32, count_max=AT_MAX):
        try:
            found[threshold_of(text)] = None
        except ValueError:
            bound = f"a percentage like 90%, up to {PERCENT_MAX}%, or an amount, above 0"
            fields.fault(name, "has an entry that is no threshold", value=text, bound=bound)
    return tuple(found)


def read_rules(fields: Fields) -> tuple[JsonObject, ...]:
    """Read rules about a billing period, each of another meter, one of spend."""
    rules: dict[str, JsonObject] = {}
    for inner in fields.tables("alerts", names=_RULE_FIELDS):
        rule = _read_rule(inner)
        if subject_of(rule) in rules:
            inner.fault("meter" if inner.has("meter") else "spend", "stands twice in this list", remedy="keep one")
        rules[subject_of(rule)] = rule
    return tuple(rules.values())


def _read_rule(fields: Fields) -> JsonObject:
    at = read_thresholds(fields, "at")
    shown = list(DEFAULT_AT if at is None else at)
    if fields.has("spend") == fields.has("meter"):
        fields.fault("spend", "needs exactly one of spend, meter", remedy='write `spend: "500.00"` or `meter: …`')
    if fields.has("meter"):
        amount = fields.whole("amount", least=1, required=True)
        return {"kind": "meter", "meter": fields.name("meter", refers_to="meter"), "amount": str(amount), "at": shown}
    if fields.has("amount"):
        fields.fault("amount", "belongs to rules on meters only", remedy="spend names its amount itself")
    spend = fields.decimal("spend", required=False)
    if fields.has("spend") and not spend:
        fields.fault("spend", "is nothing", value="0", bound="above 0", remedy="leave the rule out")
    return {"kind": "spend", "amount": plain(spend), "at": shown}
