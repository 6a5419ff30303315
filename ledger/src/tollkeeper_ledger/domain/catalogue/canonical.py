"""One byte string per meaning: what digests and versions are made of."""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.catalogue.limit import limit_to_json
from tollkeeper_ledger.domain.catalogue.price import price_to_json
from tollkeeper_ledger.domain.money import CURRENCY_DIGITS, plain
from tollkeeper_ledger.domain.trials import terms_to_json

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.catalogue.limit import JsonObject
    from tollkeeper_ledger.domain.catalogue.model import Fee, Plan, Tenant

PLAN_FORMAT = 1
_PLAIN = frozenset({str, int, bool, type(None)})
_ORJSON: Any = import_module("orjson") if find_spec("orjson") else None
"""Wheels of it are not for every platform."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def canonical_json(value: Any) -> bytes:
    """Give UTF-8 JSON with sorted names and no spaces. Raises TypeError for floats: money and units never are.

    The bytes are those of `defining_json`, in a tenth of its time where orjson is installed.
    """
    _refuse_floats(value)
    if _ORJSON is None:
        return defining_json(value)
    try:
        written: bytes = _ORJSON.dumps(value, option=_ORJSON.OPT_SORT_KEYS)
    except TypeError:
        # Integers beyond 64 bits, names that are no text, halves of surrogates, and nesting that goes deep.
        return defining_json(value)
    return written


def defining_json(value: Any) -> bytes:
    """Give canonical JSON as the standard library writes it: what the form is, whatever writes it faster."""
    return _ENCODER.encode(value).encode()


def _refuse_floats(value: Any) -> None:
    # Most values are plain, and a call for each table and list would take as long as writing it.
    waiting = [value]
    for one in waiting:
        if isinstance(one, dict):
            for inner in one.values():
                if inner.__class__ not in _PLAIN:
                    waiting.append(inner)  # noqa: PERF401 - a comprehension is a call
        elif isinstance(one, (list, tuple)):
            for inner in one:
                if inner.__class__ not in _PLAIN:
                    waiting.append(inner)  # noqa: PERF401 - a comprehension is a call
        elif one is not None and not isinstance(one, (str, int)):
            raise TypeError(f"no canonical form: {type(one).__name__}")


def digest_of(canonical: bytes) -> bytes:
    """Give the SHA-256 of canonical bytes."""
    return hashlib.sha256(canonical).digest()


def plan_to_json(plan: Plan) -> JsonObject:
    """Give a plan version's definition. Equal meaning gives equal JSON: 2.5 and 2.50 of USD are the same."""
    digits = CURRENCY_DIGITS[plan.currency]
    extra: JsonObject = terms_to_json(plan.trial)
    if plan.feature_values:
        extra["feature_values"] = plan.feature_values
    if plan.proration:
        extra["proration"] = plan.proration
    if plan.commitment is not None:
        extra["commitment"] = plain(plan.commitment, digits_min=digits)
    if plan.progressive_threshold is not None:
        extra["progressive_threshold"] = plain(plan.progressive_threshold, digits_min=digits)
    if plan.alerts:
        extra["alerts"] = list(plan.alerts)
    return {
        "format": PLAN_FORMAT,
        "name": plan.name,
        "currency": plan.currency,
        "billing_interval": {"unit": plan.billing_interval.unit.value, "count": plan.billing_interval.count},
        "grace": {"unit": plan.grace[0], "count": plan.grace[1]},
        "features": list(plan.features),
        "fees": [fee_to_json(fee, digits=digits) for fee in plan.fees],
        "prices": [price_to_json(price, digits=digits) for price in plan.prices],
        "limits": [limit_to_json(limit) for limit in plan.limits],
        **extra,
    }


def fee_to_json(fee: Fee, *, digits: int) -> JsonObject:
    """Give a fee's canonical definition."""
    shown: JsonObject = {"name": fee.name, "amount": plain(fee.amount, digits_min=digits), "timing": fee.timing}
    return {**shown, "per_seat": True} if fee.per_seat else shown


def with_own_prices(definition: JsonObject, tenant: Tenant) -> JsonObject:
    """Give a plan's definition with a tenant's own fees and prices instead of the plan's, or beside them."""
    digits = CURRENCY_DIGITS[definition["currency"]]
    fees = {fee["name"]: fee for fee in definition["fees"]}
    fees |= {fee.name: fee_to_json(fee, digits=digits) for fee in tenant.fees}
    prices = {_price_key(price): price for price in definition["prices"]}
    own = [price_to_json(price, digits=digits) for price in tenant.prices]
    prices |= {_price_key(price): price for price in own}
    return {
        **definition,
        "name": own_plan(definition["name"], tenant.tenant),
        "fees": list(fees.values()),
        "prices": list(prices.values()),
    }


def with_own_kept(definition: JsonObject, own: JsonObject, beside: JsonObject) -> JsonObject:
    """Give a plan's definition with what `own`, a tenant's version of it, had otherwise than the list's `beside` it."""
    fees = {fee["name"]: fee for fee in definition["fees"]}
    fees |= {fee["name"]: fee for fee in own["fees"] if fee not in beside["fees"]}
    prices = {_price_key(price): price for price in definition["prices"]}
    prices |= {_price_key(price): price for price in own["prices"] if price not in beside["prices"]}
    return {**definition, "name": own["name"], "fees": list(fees.values()), "prices": list(prices.values())}


_RATE_CARD = ("currency", "billing_interval", "fees", "prices", "commitment", "progressive_threshold", "proration")


def rate_card_of(definition: bytes, *, version: int) -> bytes:
    """Give what a plan version costs, as canonical JSON: its definition without limits, features, trial and grace."""
    plan = json.loads(definition)
    return canonical_json(
        {"plan": plan["name"], "version": version} | {name: plan[name] for name in _RATE_CARD if name in plan}
    )


def own_plan(name: str, tenant: str) -> str:
    """Give the name under which a tenant's own prices of a plan are stored; neither name has an `@`."""
    return f"{name}@{tenant}"


def list_plan(name: str) -> str:
    """Give the plan that a tenant's own prices stand in for; of a plan of the list, itself."""
    return name.partition("@")[0]


def bare_plan(name: str) -> str:
    """Give the plan of the list without a currency or a tenant: `pro` of `pro/EUR` and of `pro@acme`."""
    return list_plan(name).partition("/")[0]


def _price_key(price: JsonObject) -> tuple[str, tuple[tuple[str, str], ...]]:
    return price["meter"], tuple(sorted(price.get("match", {}).items()))
