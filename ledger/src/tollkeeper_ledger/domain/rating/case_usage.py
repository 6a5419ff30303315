"""Worked cases of prices on usage. Shared by all: conversion, included units, earlier runs, bounds."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.money import EXACT, Currency, exact, plain, round_line
from tollkeeper_ledger.domain.rating.blocks import begun
from tollkeeper_ledger.domain.rating.bounds import Bounded, Bounds, bounded
from tollkeeper_ledger.domain.rating.parts import ZERO, Part, since, total
from tollkeeper_ledger.domain.rating.percentage import percentage_of_events, percentage_of_total
from tollkeeper_ledger.domain.rating.plan_models import MODELS_V1, bounds_of, conversion_of, percentage_of
from tollkeeper_ledger.domain.rating.quantity import Conversion, beyond, converted
from tollkeeper_ledger.domain.rating.tiers import Tier, check_tiers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tollkeeper_ledger.domain.rating.case_fields import Fields
    from tollkeeper_ledger.domain.rating.charges import PriceJson
    from tollkeeper_ledger.domain.rating.plan_models import Pricing

Answer: TypeAlias = dict[str, Any]

_ENDS = ("only", "last_in_period", "last_or_only_in_period", "single_per_period")
_MIDDLES = ("mid_period", "mid_period_split", "first_in_period")
_SHOWN_DIGITS = 40
_PERCENT_MAX = 100
_PERCENT = Decimal("0.01")


def text_of(value: Decimal) -> str:
    """Write a decimal; what never ends is cut after 40 digits."""
    return plain(value.quantize(Decimal(1).scaleb(-_SHOWN_DIGITS), context=EXACT) if value else ZERO)


@dataclass(frozen=True, slots=True)
class Run:
    """One billing run's share of a period, before bounds."""

    now: tuple[Part, ...]
    """Parts of the period so far."""
    before: tuple[Part, ...]
    """Parts that earlier runs have billed."""
    is_period_end: bool

    @property
    def added(self) -> tuple[Part, ...]:
        """Give what this run adds."""
        return since(self.now, self.before)


def _decimal(value: Decimal | None) -> str | None:
    return None if value is None else f"{value:f}"


def _tiers(params: Fields, unit: str) -> PriceJson:
    return _checked([
        {
            "up_to": _decimal(fields.optional_decimal("up_to")),
            unit: _decimal(fields.decimal("unit" if unit == "unit_price" else unit, default=ZERO)),
            "flat": _decimal(fields.decimal("flat", default=ZERO)),
        }
        for fields in params.inners("tiers")
    ])  # fmt: skip


def _stairs(params: Fields) -> PriceJson:
    return _checked([
        {
            "up_to": _decimal(fields.optional_decimal("up_to")),
            # A step has one amount; tiers of other models call theirs `flat`.
            "price": _decimal(fields.decimal("price" if "price" in fields else "flat")),
        }
        for fields in params.inners("tiers")
    ])  # fmt: skip


def _checked(tiers: list[PriceJson]) -> PriceJson:
    check_tiers(
        tuple(
            Tier(up_to=None if tier["up_to"] is None else Decimal(tier["up_to"]), unit=ZERO, flat=ZERO)
            for tier in tiers
        )
    )
    return {"tiers": tiers, "per": 1}


def _blocks(params: Fields) -> PriceJson:
    tiers = [
        {
            "block_size": _decimal(_above_zero(fields.decimal("block_size"), "block_size")),
            "max_blocks": _decimal(_above_zero(fields.optional_decimal("max_blocks"), "max_blocks")),
            "block_price": _decimal(fields.decimal("block_price")),
        }
        for fields in params.inners("tiers")
    ]
    if not tiers or any(tier["max_blocks"] is None for tier in tiers[:-1]):
        raise ValueError("there must be tiers, and only the last may have no max_blocks")
    return {"tiers": tiers}


def _above_zero(value: Decimal | None, name: str) -> Decimal | None:
    if value is not None and value <= 0:
        raise ValueError(f"{name} must be above zero, not {value}")
    return value


_TERMS: Mapping[str, Callable[[Fields], PriceJson]] = MappingProxyType(
    {
        "per_unit": lambda params: {"unit_price": _decimal(params.decimal("unit")), "per": 1},
        "package": lambda params: {
            "size": _decimal(_above_zero(params.decimal("package_size"), "package_size")),
            "price": _decimal(params.decimal("package_amount")),
            "free_units": _decimal(params.decimal("free_units", default=ZERO)),
        },
        "graduated": lambda params: _tiers(params, "unit_price"),
        "volume": lambda params: _tiers(params, "unit_price"),
        "graduated_percentage": lambda params: _tiers(params, "rate_percent"),
        "graduated_blocks": _blocks,
        "stair_step": _stairs,
        "flat": lambda params: {"amount": _decimal(params.decimal("amount"))},
        "dynamic": lambda params: {"multiplier": _decimal(params.decimal("multiplier", default=Decimal(1)))},
    }
)
"""What a case's model has of its own, as definitions name it."""


def _pricing(model: str, params: Fields) -> Pricing:
    price = {"model": model, **_TERMS[model](params)}
    parts_of = MODELS_V1[model](price)
    if model != "per_unit":
        return parts_of
    return lambda quantity: parts_of(quantity) if quantity else ()


def _conversion(params: Fields) -> Conversion | None:
    if "convert" not in params:
        return None
    fields = params.inner("convert")
    operation = fields.text("op")
    if operation not in ("divide", "multiply"):
        raise ValueError(f"convert.op must be divide or multiply, not {operation!r}")
    convert = {
        f"{operation}_by": _decimal(fields.decimal("factor")),
        "round": fields.text("round", default="none"),
        "digits": fields.whole("precision", default=0),
    }
    return conversion_of({"convert": convert})


def _is_period_end(given: Fields) -> bool:
    position = given.text("position", default="only")
    if position not in (*_ENDS, *_MIDDLES):
        raise ValueError(f"input.position must be one of {', '.join((*_ENDS, *_MIDDLES))}, not {position!r}")
    return position in _ENDS


def _bounds(params: Fields) -> Bounds:
    names = ("minimum", "maximum", "discount_percent")
    bounds = bounds_of({name: _decimal(params.optional_decimal(name)) for name in names})
    if not 0 <= bounds.discount_percent <= _PERCENT_MAX:
        raise ValueError(f"discount_percent must be 0 to 100, not {bounds.discount_percent}")
    if bounds.minimum is not None and bounds.maximum is not None and bounds.minimum > bounds.maximum:
        raise ValueError(f"the minimum must not be above the maximum: {bounds.minimum} and {bounds.maximum}")
    return bounds


def _bounded(run: Run, bounds: Bounds, billed_before: Decimal | None) -> Bounded:
    """Bound what a run adds: by the whole period, or by what earlier runs are said to have billed otherwise.

    Where they billed under the same bounds it makes no difference into how many runs the period is cut.
    """
    earlier = bounded(total(run.before), bounds, billed_before=ZERO, is_period_end=False).amount
    if billed_before not in (None, earlier):
        return bounded(total(run.added), bounds, billed_before=billed_before, is_period_end=run.is_period_end)
    gross = total(run.added)
    so_far = bounded(total(run.now), bounds, billed_before=ZERO, is_period_end=run.is_period_end)
    return Bounded(gross=gross, discount=gross - (so_far.gross - so_far.discount - earlier), true_up=so_far.true_up)


@exact
def _steps(added: tuple[Part, ...], result: Bounded, bounds: Bounds) -> list[str]:
    """Say what an amount is made of: parts, then what each bound takes off or adds."""
    found = []
    for one in added:
        each = text_of(one.unit_price) if one.per == 1 else f"{text_of(one.unit_price)} per {one.per}"
        found.append(f"{one.name or 'use'}: {text_of(one.quantity)} x {each} = {text_of(one.amount)}")
    by_percent = result.gross * bounds.discount_percent * _PERCENT
    changes = (
        (f"discount of {text_of(bounds.discount_percent)} %", -by_percent),
        (f"maximum {text_of(bounds.maximum or ZERO)}", by_percent - result.discount),
        (f"minimum {text_of(bounds.minimum or ZERO)}", result.true_up),
    )
    return found + [f"{name}: {text_of(change)}" for name, change in changes if change]


@exact
def _answer(run: Run, bounds: Bounds, *, billed_before: Decimal | None, currency: Currency | None) -> Answer:
    added = run.added
    result = _bounded(run, bounds, billed_before)
    amounts = [each.amount for each in added]
    if result.true_up:
        amounts.append(result.true_up)
    amount = result.amount
    if currency is not None:
        amount = Decimal(round_line(amount, currency)).scaleb(-currency.digits)
    return {
        "amount": text_of(amount),
        "gross": text_of(result.gross),
        "discount": text_of(result.discount),
        "true_up": text_of(result.true_up),
        "lines": len(amounts),
        "lines_amounts": [text_of(each) for each in amounts],
        "steps": _steps(added, result, bounds),
    }


@exact
def _rate_usage(model: str, params: Fields, given: Fields) -> Answer:
    """Rate one run: what the period costs with it, less what it cost before."""
    pricing = _pricing(model, params)
    conversion = _conversion(params)
    included = params.decimal("included", default=ZERO) + params.decimal("usage_discount", default=ZERO)
    before, quantity = given.decimal("previous_quantity", default=ZERO), given.decimal("quantity")
    is_period_end = _is_period_end(given)
    is_billed_now = is_period_end or model != "volume"

    def parts_of(used: Decimal) -> tuple[Part, ...]:
        return pricing(converted(beyond(used, included), conversion))

    run = Run(
        now=parts_of(before + quantity) if is_billed_now else (),
        # Volume is never billed before the period ends, so there is nothing to take back.
        before=parts_of(before) if before and model != "volume" else (),
        is_period_end=is_period_end,
    )
    currency = Currency.from_code(params.text("currency")) if "currency" in params else None
    bounds, billed_before = _bounds(params), given.optional_decimal("previously_billed")
    answer = _answer(run, bounds, billed_before=billed_before, currency=currency)
    if model == "package":
        answer["packages"] = text_of(sum((each.quantity for each in run.added), ZERO))
    return answer


@exact
def _rate_percentage(params: Fields, given: Fields) -> Answer:
    names = ("rate_percent", "fixed_per_event", "free_events", "free_total", "per_event_min", "per_event_max")
    params.decimal("rate_percent")
    price = percentage_of({name: _decimal(params.optional_decimal(name)) for name in names})
    bounds = _bounds(params)
    if "event_values" in given:
        parts = percentage_of_events(price, given.decimals("event_values"))
    else:
        if price.per_event_min is not None or price.per_event_max is not None:
            raise ValueError("bounds per event need input.event_values")
        parts = percentage_of_total(
            price,
            given.decimal("quantity"),
            events=given.whole("events", default=0),
            running_total=given.decimals("running_total"),
        )
    run = Run(now=parts, before=(), is_period_end=_is_period_end(given))
    currency = Currency.from_code(params.text("currency")) if "currency" in params else None
    return _answer(run, bounds, billed_before=given.optional_decimal("previously_billed"), currency=currency)


@exact
def _rate_usage_discount(params: Fields, given: Fields) -> Answer:
    """Take included units off earlier usage first, then off this run's."""
    included = params.decimal("usage_discount")
    before, quantity = given.decimal("previous_quantity", default=ZERO), given.decimal("quantity")
    billable_before = beyond(before, included)
    return {
        "billable_quantity": text_of(beyond(before + quantity, included) - billable_before),
        "billable_previous": text_of(billable_before),
    }


@exact
def _rerate(model: str, params: Fields, given: Fields) -> Answer:
    """Rate a period's growing quantity run after run: each bills what is new and reverses what no longer holds."""
    pricing, conversion = _pricing(model, params), _conversion(params)
    before: tuple[Part, ...] = ()
    answer: Answer = {"run_amounts": []}
    for number, quantity in enumerate(given.decimals("cumulative"), start=1):
        now = pricing(converted(quantity, conversion))
        added = since(now, before)
        answer["run_amounts"].append(text_of(total(added)))
        answer[f"run{number}_lines"] = [text_of(each.amount) for each in added]
        before = now
    return answer


@exact
def _rate_overage(params: Fields, given: Fields) -> Answer:
    """Add a base fee and a price per 1,000 begun above an included amount."""
    over = beyond(given.decimal("quantity"), params.decimal("included"))
    overage = begun(over, Decimal(1_000)) * params.whole("rate_per_1k_cents")
    return {"total_cents": text_of(params.whole("base_cents") + overage), "overage_cents": text_of(overage)}


_SHORT_NAMES: Mapping[str, str] = MappingProxyType({"messages": "msg"})


@exact
def _rate_overages(params: Fields, given: Fields) -> Answer:
    """Add a base fee and, per meter, a price per unit above its included amount; each line rounds by itself."""
    currency = Currency.from_code(params.text("currency", default="USD"))
    total_minor = params.whole("base_cents")
    lines = []
    for meter in given.names:
        name = meter if f"{meter}_unit" in params else _SHORT_NAMES.get(meter, meter)
        over = beyond(given.decimal(meter), params.decimal(f"{name}_included", default=ZERO))
        lines.append(round_line(over * params.decimal(f"{name}_unit"), currency))
    return {"total_cents": str(total_minor + sum(lines)), "lines_cents": [str(line) for line in lines]}


USAGE_MODELS: Mapping[str, Callable[[Fields, Fields], Answer]] = MappingProxyType(
    {name: partial(_rate_usage, name) for name in _TERMS}
    | {f"rerate_{name}": partial(_rerate, name) for name in _TERMS}
    | {
        "percentage": _rate_percentage,
        "usage_discount": _rate_usage_discount,
        "overage_per_1k": _rate_overage,
        "multi_overage": _rate_overages,
    }
)
"""Cases of prices on usage."""
