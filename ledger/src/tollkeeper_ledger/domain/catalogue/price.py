"""Prices of meters as a catalogue declares them: one model each, with what all models share."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.money import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tollkeeper_ledger.domain.catalogue.reader import Fields

JsonObject: TypeAlias = dict[str, Any]

_SHARED = frozenset({
    "meter", "model", "included", "description", "minimum", "maximum", "discount_percent", "convert", "match",
    "group_by",
})  # fmt: skip
_TIER_FIELDS = frozenset({"up_to", "unit_price", "flat"})
_PERCENT_TIER_FIELDS = frozenset({"up_to", "rate_percent", "flat"})
_STAIR_FIELDS = frozenset({"up_to", "price"})
_MATCH_FIELDS = frozenset({"attribute", "exact"})
_PER_EVENT = ("fixed_per_event", "free_total", "per_event_min", "per_event_max")
_BLOCK_FIELDS = frozenset({"block_size", "max_blocks", "block_price"})
_CONVERT_FIELDS = frozenset({"divide_by", "multiply_by", "round", "digits"})
_ROUNDINGS = ("none", "ceil", "floor", "half_up")
_ONE_HUNDRED = Decimal(100)


@dataclass(frozen=True, slots=True)
class Price:
    """How one meter's units become money."""

    meter: str
    model: str
    included: int
    """Units that cost nothing; taken off first."""
    description: str
    terms: JsonObject
    """What only this model has, and the shared terms that are set; amounts as decimals."""
    line: int = field(default=0, compare=False)

    @property
    def key(self) -> str:
        """Name it in its plan: its meter and the attribute values that it is for."""
        matched = self.terms.get("match", {})
        return self.meter + "".join(f" {name}={value}" for name, value in sorted(matched.items()))


def read_price(fields: Fields) -> Price:
    """Read a price of any model that is served. Faults are added to the fields."""
    model = fields.choice("model", tuple(_MODELS), default="per_unit")
    own, read_terms = _MODELS[model]
    for name in sorted(PRICE_FIELDS - _SHARED - own):
        if fields.has(name):
            fields.fault(name, f"does not belong to the model {model}", remedy=f"use {', '.join(sorted(own))}")
    return Price(
        meter=fields.name("meter", refers_to="meter"),
        model=model,
        included=fields.whole("included", least=0),
        description=fields.text("description"),
        terms=read_terms(fields) | _read_shared(fields),
        line=fields.line,
    )


def ordered_terms(price: Price) -> tuple[str, ...]:
    """Name the terms by which a record costs less for those before it: no invoice within the period can have them."""
    return tuple(term for term in ("free_events", "free_total") if term in price.terms)


def price_to_json(price: Price, *, digits: int) -> JsonObject:
    """Give the canonical definition; `digits` is the least number of digits after the point of amounts."""
    shared: JsonObject = {
        "meter": price.meter,
        "model": price.model,
        "included": price.included,
        "description": price.description,
    }
    return shared | {name: _canonical(value, digits) for name, value in price.terms.items()}


def _canonical(value: Any, digits: int) -> Any:
    match value:
        case Decimal():
            return plain(value, digits_min=digits)
        case dict():
            return {name: _canonical(inner, digits) for name, inner in value.items()}
        case list():
            return [_canonical(inner, digits) for inner in value]
        case _:
            return value


def _read_per_unit(fields: Fields) -> JsonObject:
    return {"per": fields.whole("per", least=1, default=1), "unit_price": fields.decimal("unit_price")}


def _read_package(fields: Fields) -> JsonObject:
    return {"size": fields.whole("size", least=1, required=True, default=1), "price": fields.decimal("price")}


def _read_tiered(fields: Fields) -> JsonObject:
    return {"per": fields.whole("per", least=1, default=1), "tiers": _read_tiers(fields, _TIER_FIELDS)}


def _read_tiers(fields: Fields, names: frozenset[str]) -> list[JsonObject]:
    tiers: list[JsonObject] = []
    lower, is_open = 0, False
    for inner in fields.tables("tiers", names=names):
        if is_open:
            inner.fault("", "follows a tier without an upper bound", remedy="put the tier without `up_to` last")
        up_to = inner.whole("up_to", least=0) if inner.has("up_to") else None
        if up_to is None:
            is_open = True
        elif up_to <= lower:
            inner.fault(
                "up_to", "overlaps the tier before", value=str(up_to), bound=f"above {lower}", remedy="let bounds rise"
            )
        else:
            lower = up_to
        amounts = {name: inner.decimal(name, required=False) for name in sorted(names - {"up_to"}, reverse=True)}
        tiers.append({"up_to": up_to, **amounts})
    if not is_open:
        fields.fault("tiers", "end at an upper bound", remedy="add a last tier without `up_to`")
    return tiers


def _read_percentage(fields: Fields) -> JsonObject:
    terms: JsonObject = {"rate_percent": fields.decimal("rate_percent")}
    for name in _PER_EVENT:
        if fields.has(name):
            terms[name] = fields.decimal(name)
    if fields.has("free_events"):
        terms["free_events"] = fields.whole("free_events", least=1)
    if fields.has("included") and len(terms) > 1:
        fields.fault("included", "does not go with what is due per record", remedy="use free_total or free_events")
    least, most = terms.get("per_event_min"), terms.get("per_event_max")
    if least is not None and most is not None and least > most:
        fields.fault("per_event_min", "is above per_event_max", value=str(least), bound=str(most))
    return terms


def _read_dynamic(fields: Fields) -> JsonObject:
    return {"multiplier": fields.decimal("multiplier") if fields.has("multiplier") else Decimal(1)}


def _read_blocks(fields: Fields) -> JsonObject:
    tiers: list[JsonObject] = []
    is_open = False
    for inner in fields.tables("tiers", names=_BLOCK_FIELDS):
        if is_open:
            inner.fault("", "follows a tier without a bound", remedy="put the tier without `max_blocks` last")
        is_open = not inner.has("max_blocks")
        tiers.append(
            {
                "block_size": inner.whole("block_size", least=1, required=True, default=1),
                "max_blocks": None if is_open else inner.whole("max_blocks", least=1, default=1),
                "block_price": inner.decimal("block_price"),
            }
        )
    if not is_open:
        fields.fault("tiers", "end at a bound", remedy="add a last tier without `max_blocks`")
    return {"tiers": tiers}


def _read_shared(fields: Fields) -> JsonObject:
    terms: JsonObject = {}
    for name in ("minimum", "maximum", "discount_percent"):
        if fields.has(name):
            terms[name] = fields.decimal(name)
    if terms.get("discount_percent", Decimal(0)) > _ONE_HUNDRED:
        fields.fault("discount_percent", "is out of range", value=str(terms["discount_percent"]), bound="0 to 100")
    if "minimum" in terms and "maximum" in terms and terms["minimum"] > terms["maximum"]:
        fields.fault("minimum", "is above the maximum", value=str(terms["minimum"]), bound=str(terms["maximum"]))
    convert = fields.table("convert", names=_CONVERT_FIELDS)
    if convert is not None:
        terms["convert"] = _read_convert(convert)
    return terms | _read_dimensions(fields)


def _read_dimensions(fields: Fields) -> JsonObject:
    """Read which attribute values a price is for, and which split its usage into lines of their own."""
    terms: JsonObject = {}
    match: dict[str, str] = {}
    for inner in fields.tables("match", names=_MATCH_FIELDS):
        attribute = inner.name("attribute")
        if attribute in match:
            inner.fault("attribute", "stands twice", value=attribute, remedy="keep one")
        match[attribute] = inner.text("exact", required=True)
    if match:
        terms["match"] = match
    group_by = fields.names("group_by", count_max=4)
    if group_by:
        terms["group_by"] = sorted(group_by)
    meter = fields.scalar_text("meter")
    for attribute in (*match, *group_by):
        fields.refer("dimension", f"{meter}.{attribute}", "match" if attribute in match else "group_by")
    return terms


def _read_convert(fields: Fields) -> JsonObject:
    is_divided = fields.has("divide_by")
    if is_divided == fields.has("multiply_by"):
        fields.fault("", "needs one of divide_by and multiply_by", remedy="for example `divide_by: 1000`")
    name = "divide_by" if is_divided else "multiply_by"
    return {
        name: fields.whole(name, least=1, default=1),
        "round": fields.choice("round", _ROUNDINGS, default="none"),
        "digits": fields.whole("digits", least=0, most=9),
    }


_MODELS: Mapping[str, tuple[frozenset[str], Callable[[Fields], JsonObject]]] = MappingProxyType(
    {
        "per_unit": (frozenset({"per", "unit_price"}), _read_per_unit),
        "graduated": (frozenset({"per", "tiers"}), _read_tiered),
        "volume": (frozenset({"per", "tiers"}), _read_tiered),
        "package": (frozenset({"size", "price"}), _read_package),
        "graduated_blocks": (frozenset({"tiers"}), _read_blocks),
        "graduated_percentage": (
            frozenset({"tiers"}),
            lambda fields: {"tiers": _read_tiers(fields, _PERCENT_TIER_FIELDS)},
        ),
        "stair_step": (frozenset({"tiers"}), lambda fields: {"tiers": _read_tiers(fields, _STAIR_FIELDS)}),
        "percentage": (frozenset({"rate_percent", "free_events", *_PER_EVENT}), _read_percentage),
        "dynamic": (frozenset({"multiplier"}), _read_dynamic),
        "flat": (frozenset({"amount"}), lambda fields: {"amount": fields.decimal("amount")}),
    }
)
PRICE_FIELDS = _SHARED.union(*(own for own, _ in _MODELS.values()))
"""Every field that a price of some model may have."""
