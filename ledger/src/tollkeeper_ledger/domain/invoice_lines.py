"""The lines of an invoice: charges and items, with coupons' shares and taxes, and what they sum to. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.billing_profile import NO_TAX, TaxRate, tax_for, taxes_from_json
from tollkeeper_ledger.domain.invoiced import invoiced_line
from tollkeeper_ledger.domain.money import plain, plain_amount
from tollkeeper_ledger.domain.period_facts import instant_text
from tollkeeper_ledger.domain.taxes import Taxable, tax_shares_by_size, taxes_of_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.rating.charges import Charge, Charges, TaxPaid

Json: TypeAlias = dict[str, Any]

FIGURE_MAX = 2**63 - 1
"""Largest quantity and amount that an invoice carries."""
_TAXED_EACH = 2
"""Engine version since which a line's tax is its own to less than a minor unit, whatever the signs of the others."""


def summed(charges: Charges, stored: Json, *, engine_version: int) -> Json:
    """Give lines, taxes and sums of an invoice; `stored` are its inputs.

    A coupon's share is taken off a line before tax. All lines of one rate are taxed together and rounded once.
    total = subtotal + tax always; where prices include tax, the subtotal is what is left without it. What progressive
    invoices of the period said comes off with the tax that they had, so all of them together say what one would have;
    so does what is given back of a fee.
    """
    taxes = taxes_from_json(stored["billing"]["taxes"])
    mode = stored["billing"]["tax_mode"]
    lines = [*(_line_json(line) for line in charges.lines), *(_item_json(item, stored) for item in stored["items"])]
    rates = [_rate_of(line, taxes) for line in charges.lines] + [tax_for(taxes, "") for _ in stored["items"]]
    backs = [*(line.given_back for line in charges.lines), *(None for _ in stored["items"])]
    taxable = [
        _NOT_TAXED
        if back is not None
        else Taxable(amount_minor=line["amount_minor"] - line["discount_minor"], tax_percent=Decimal(rate.percent))
        for line, rate, back in zip(lines, rates, backs, strict=True)
    ]
    shares = _taxed(taxable, mode, engine_version=engine_version)
    for line, rate, share, back in zip(lines, rates, shares, backs, strict=True):
        if back is None:
            line["tax"] = {"name": rate.name, "percent": rate.percent, "tax_minor": share}
        else:
            _tax_back(line, rate, back, mode)
    invoiced = [invoiced_line(one, is_contained=mode == "inclusive") for one in stored.get("invoiced", ())]
    lines.extend(invoiced)
    tax_minor = sum(line["tax"]["tax_minor"] for line in lines)
    after_coupons = sum(line["amount_minor"] - line["discount_minor"] for line in lines)
    subtotal_minor = after_coupons - tax_minor if mode == "inclusive" else after_coupons
    return {
        "lines": lines,
        "lines_minor": sum(line["amount_minor"] for line in lines),
        "discount_minor": sum(line["discount_minor"] for line in lines),
        "subtotal_minor": subtotal_minor,
        "taxes": _by_rate(lines, mode),
        "tax_minor": tax_minor,
        "total_minor": subtotal_minor + tax_minor,
    }


_NOT_TAXED = Taxable(amount_minor=0, tax_percent=Decimal(0))


def _taxed(lines: Sequence[Taxable], mode: str, *, engine_version: int) -> tuple[int, ...]:
    if mode == "reverse_charge":
        return (0,) * len(lines)
    tax = taxes_of_lines if engine_version >= _TAXED_EACH else tax_shares_by_size
    return tax(lines, is_contained=mode == "inclusive")


def _tax_back(line: Json, rate: TaxRate, back: TaxPaid, mode: str) -> None:
    """Give a line the tax that was paid with what it gives back, and its amount as the invoice's mode has amounts.

    Where that is another mode than it was paid in, the tax names it, and its rate's base stands by itself.
    """
    if back.mode == "inclusive" != mode:
        line["amount_minor"] -= back.tax_minor
    elif mode == "inclusive" != back.mode:
        line["amount_minor"] += back.tax_minor
    if back.mode == "reverse_charge" != mode:
        rate = NO_TAX
    line["tax"] = {
        "name": rate.name,
        "percent": rate.percent,
        "tax_minor": back.tax_minor,
        **({"mode": back.mode} if back.mode != mode else {}),
    }


def _rate_of(line: Charge, taxes: Sequence[TaxRate]) -> TaxRate:
    return TaxRate(name=line.tax_name, percent=line.tax_percent) if line.tax_percent else tax_for(taxes, line.meter)


def _by_rate(lines: Sequence[Json], mode: str) -> list[Json]:
    """Give base and tax per named rate, in order of their first lines."""
    found: dict[tuple[str, str, str], Json] = {}
    for line in lines:
        tax = line["tax"]
        if not tax["name"]:
            continue
        sums = found.setdefault(
            (tax["name"], tax["percent"], tax.get("mode", mode)),
            {"name": tax["name"], "percent": tax["percent"], "base_minor": 0, "tax_minor": 0},
        )
        contained = tax["tax_minor"] if mode == "inclusive" else 0
        sums["base_minor"] += line["amount_minor"] - line["discount_minor"] - contained
        sums["tax_minor"] += tax["tax_minor"]
    return list(found.values())


def _item_json(item: Json, stored: Json) -> Json:
    return {
        "description": item["description"],
        "meter": "",
        "unit": "",
        "scale": 0,
        "quantity": 1,
        "included": 0,
        "charged": 1,
        "unit_price": "",
        "price_per": 1,
        "amount_minor": item["amount_minor"],
        "discount_minor": 0,
        "kind": "item",
        "dimensions": {},
        "explanation": [f"added by an operator: item {item['item_id']}"],
        "period": stored["period"],
        "late": False,
        "parts": [],
    }


def _line_json(line: Charge) -> Json:
    return {
        "description": line.description,
        "meter": line.meter,
        "unit": line.unit,
        "scale": line.scale,
        "quantity": line.quantity,
        "included": line.included,
        "charged": line.charged,
        "unit_price": line.unit_price,
        "price_per": line.price_per,
        "amount_minor": line.amount_minor,
        "discount_minor": line.discount_minor,
        "kind": line.kind,
        "dimensions": dict(line.dimensions),
        "explanation": list(line.explanation),
        "period": {"start": instant_text(line.period_start), "end": instant_text(line.period_end)},
        "late": line.late,
        "parts": [
            {
                "name": each.name,
                "quantity": plain(each.quantity),
                "unit_price": plain(each.unit_price),
                "per": each.per,
                "scale": 0 if each.is_count else line.scale,
                "amount": plain_amount(each.amount),
            }
            for each in line.parts
        ],
    }
