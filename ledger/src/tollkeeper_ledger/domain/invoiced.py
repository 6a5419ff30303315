"""What progressive invoices of a period said already: it comes off the next one, line by line, with its tax. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Json: TypeAlias = dict[str, Any]

INVOICED_PREFIX = "Already invoiced: "
"""Begins the description of a line that takes off what an earlier invoice of the same period said."""

_NAMED = ("description", "meter", "unit", "scale", "kind")
_FIGURES = ("quantity", "included", "charged", "amount_minor", "discount_minor")


def already_invoiced(bills: Iterable[tuple[str, Json, Sequence[Json]]]) -> tuple[Json, ...]:
    """Sum what invoices of one period say, per line: what each charged, less what it took off itself.

    Each bill is (number, stored inputs, lines of its document). Amounts come without tax, whether prices had it or not.
    """
    found: dict[tuple[object, ...], Json] = {}
    for number, stored, lines in bills:
        is_contained = stored["billing"]["tax_mode"] == "inclusive"
        for line in lines:
            if "invoiced" not in line:
                _add(found, _as_billed(line, is_contained=is_contained), number, sign=1)
        for one in stored.get("invoiced", ()):
            _add(found, one, number, sign=-1)
    return tuple(one for one in found.values() if any(one[name] for name in (*_FIGURES, "tax_minor")))


def _as_billed(line: Json, *, is_contained: bool) -> Json:
    contained = line["tax"]["tax_minor"] if is_contained else 0
    return {
        **{name: line[name] for name in (*_NAMED, *_FIGURES)},
        "amount_minor": line["amount_minor"] - contained,
        "dimensions": line["dimensions"],
        "tax_name": line["tax"]["name"],
        "tax_percent": line["tax"]["percent"],
        "tax_minor": line["tax"]["tax_minor"],
        "period": line["period"],
    }


def _add(found: dict[tuple[object, ...], Json], one: Json, number: str, *, sign: int) -> None:
    names = (*_NAMED, "tax_name", "tax_percent")
    key = (*(one[name] for name in names), *sorted(one["dimensions"].items()))
    known = found.setdefault(
        key,
        {**one, **dict.fromkeys((*_FIGURES, "tax_minor"), 0), "invoices": []},
    )
    for name in (*_FIGURES, "tax_minor"):
        known[name] += sign * one[name]
    if sign > 0:
        known["invoices"].append(number)
        known["period"] = one["period"]


def invoiced_line(one: Json, *, is_contained: bool) -> Json:
    """Give the line that takes an entry off an invoice; `is_contained`: its prices include tax."""
    contained = one["tax_minor"] if is_contained else 0
    return {
        **{name: one[name] for name in _NAMED},
        **{name: -one[name] for name in _FIGURES},
        "description": f"{INVOICED_PREFIX}{one['description']}",
        "amount_minor": -(one["amount_minor"] + contained),
        "unit_price": "",
        "price_per": 1,
        "dimensions": one["dimensions"],
        "explanation": [f"invoiced within the period: {', '.join(one['invoices'])}"],
        "period": one["period"],
        "late": False,
        "parts": [],
        "invoiced": one["invoices"],
        "tax": {"name": one["tax_name"], "percent": one["tax_percent"], "tax_minor": -one["tax_minor"]},
    }
