"""Put an invoice's lines into words and figures of a language."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

from tollkeeper_ledger.domain.invoiced import INVOICED_PREFIX
from tollkeeper_ledger.domain.money import EXACT, plain
from tollkeeper_ledger.domain.rating.bounds import DISCOUNT, MAXIMUM, MINIMUM
from tollkeeper_ledger.domain.rating.engine import LATE_SEPARATOR
from tollkeeper_ledger.services.pdf.figures import (
    is_narrower,
    money_text,
    number_text,
    percent_text,
    period_text,
    price_text,
    units_text,
)

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.services.pdf.words import Words

Json: TypeAlias = dict[str, Any]

_FEE_WORDS = re.compile(
    r"(?P<name>.*?)(?:, (?P<kind>in advance|unused))?"
    r"(?:(?:, | )(?P<part>[0-9,]+) of (?P<whole>[0-9,]+) (?P<unit>days|s))?"
)
"""What rating puts behind a fee's name: what it is, and of how much of the period."""
_PART_WORDS = re.compile(r"(?P<word>tier|event) (?P<number>[0-9]+)(?: (?P<what>flat|blocks))?")
_PERCENTAGE = "percentage"
_FIGURE_WIDTH, _PER_WIDTH = 924, 1171
"""31 mm, where the template breaks figures, in hundredths of 9.5 and 7.5 pt."""
_BOUNDS = frozenset({DISCOUNT, MAXIMUM, MINIMUM})
_RECORDS = re.compile(r"(?P<part>[0-9]+) of (?P<whole>[0-9]+) records")


def line_text(line: Json, document: Json, currency: Currency, words: Words) -> Json:
    """Give what the template prints of one line."""
    invoiced = [f"{words['Already invoiced']}: {', '.join(line['invoiced'])}"] if line.get("invoiced") else []
    tax = line.get("tax") or {"name": "", "percent": "0"}
    shown = _fee(line, document, currency, words) if not line["meter"] else _usage(line, document, currency, words)
    per = "" if invoiced else shown["per"]
    return {
        **shown,
        "notes": [*shown["notes"], *invoiced],
        "per": per,
        "is_narrow": all(is_narrower(shown[name], _FIGURE_WIDTH) for name in ("quantity", "unit_price"))
        and is_narrower(per, _PER_WIDTH),
        "tax": percent_text(tax["percent"], words) if tax["name"] else "",
        "amount": money_text(line["amount_minor"], currency.code, words),
    }


def _fee(line: Json, document: Json, currency: Currency, words: Words) -> Json:
    description = line["description"].removeprefix(INVOICED_PREFIX)
    kind = line.get("kind", "")
    if kind == "fee":
        description = _fee_words(description, words)
    elif kind == "commitment":
        description = words[description]
    seats = f" {words['seat' if line['quantity'] == 1 else 'seats']}" if line.get("unit") == "seats" else ""
    return {
        "description": _for_people(description),
        "notes": _own_period(line, document, words),
        "quantity": f"{number_text(line.get('quantity', 1), words)}{seats}",
        "included": "",
        "unit_price": _unit_price(line, currency, words),
        "per": "",
    }


def _fee_words(description: str, words: Words) -> str:
    """Write a fee's description in the invoice's language."""
    found = _FEE_WORDS.fullmatch(description)
    if words.locale == "en" or found is None:
        return description
    shown = found["name"]
    if found["kind"]:
        shown += f", {words[found['kind']]}"
    if found["part"]:
        part, whole = (number_text(int(found[name].replace(",", "")), words) for name in ("part", "whole"))
        unit = words["days of a share"] if found["unit"] == "days" else "s"
        shown += f"{' ' if found['kind'] else ', '}{part} {words['of']} {whole} {unit}"
    return shown


def _own_period(line: Json, document: Json, words: Words) -> list[str]:
    """Give a line's own period where it isn't the invoice's."""
    period = line["period"] if "period" in line else document["period"]
    if period == document["period"]:
        return []
    return [period_text(period, ZoneInfo(document["time_zone"]), words)]


def _usage(line: Json, document: Json, currency: Currency, words: Words) -> Json:
    unit = line["unit"]
    is_converted = any(not part["name"] for part in line["parts"])
    times, per_units = _whole_units(line["price_per"], line["scale"])
    per = units_text(per_units, line["scale"], words)
    per = unit if per == "1" else f"{per} {unit}"
    description, notes = line["description"].removeprefix(INVOICED_PREFIX), []
    for name, value in line.get("dimensions", {}).items():
        if not value:
            description = description.replace(f", {name} (none)", f", {name} ({words['none']})")
    if line["late"]:
        description = description.split(LATE_SEPARATOR)[0]
        period = period_text(line["period"], ZoneInfo(document["time_zone"]), words)
        notes.append(f"{words['Adjustment for']} {period}")
    # A price that splits its usage says the values in its own name.
    unsaid = {
        name: value
        for name, value in line.get("dimensions", {}).items()
        if value and f", {name} {value}" not in description
    }
    notes.extend(f"{name}: {value}" for name, value in unsaid.items())
    notes.extend(_part(part, currency, words) for part in line["parts"])
    return {
        "description": _for_people(description),
        "notes": notes,
        "quantity": f"{units_text(line['quantity'], line['scale'], words)} {unit}",
        "included": units_text(line["included"], line["scale"], words) if line["included"] else "",
        "unit_price": _unit_price(line, currency, words, times=1 if is_converted else times),
        "per": f"{words['per']} {per}" if line["unit_price"] and not is_converted else "",
    }


def _for_people(name: str) -> str:
    """Write a meter's or fee's own name as words; a description of several words stays as it is."""
    words = name if " " in name else name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _part(part: Json, currency: Currency, words: Words) -> str:
    """Write one tier, package count, flat fee or bound, exact to what a reader can check."""
    if part["name"] in _BOUNDS:
        return _bound(part, currency, words)
    shown = units_text(Decimal(part["quantity"]), part["scale"], words)
    times, per_units = _whole_units(part["per"], part["scale"])
    per = units_text(per_units, part["scale"], words)
    if per != "1":
        shown = f"{shown} / {per}"
    name = _for_people(_part_name(part["name"], words))
    amount = Decimal(part["amount"])
    if part["name"] == _PERCENTAGE or _RECORDS.fullmatch(part["name"]):
        price = percent_text(plain(EXACT.scaleb(Decimal(part["unit_price"]), 2)), words)
        if EXACT.multiply(Decimal(part["quantity"]), Decimal(part["unit_price"])) != amount:
            price += f", {words['with what is due per record']}"
    else:
        price = price_text(EXACT.multiply(Decimal(part["unit_price"]), times), currency, words)
    return f"{name}: {shown} \N{MULTIPLICATION SIGN} {price} = {price_text(amount, currency, words)}"


def _bound(part: Json, currency: Currency, words: Words) -> str:
    """Write what a discount, a maximum or a minimum takes off or adds."""
    is_percent = part["name"] == DISCOUNT
    bound = Decimal(part["unit_price"])
    shown = percent_text(plain(bound), words) if is_percent else price_text(bound, currency, words)
    name = words["Discount" if is_percent else part["name"]]
    return f"{_for_people(name)} {shown}: {price_text(Decimal(part['amount']), currency, words)}"


def _part_name(name: str, words: Words) -> str:
    """Write what rating calls a step of a price in the invoice's language."""
    if not name:
        return words["converted"]
    if words.locale == "en":
        return name
    if (records := _RECORDS.fullmatch(name)) is not None:
        return f"{records['part']} {words['of']} {records['whole']} {words['records']}"
    found = _PART_WORDS.fullmatch(name)
    if found is None:
        return words.phrases.get(name, name)
    what = f" {words[found['what']]}" if found["what"] else ""
    return f"{words[found['word']]} {found['number']}{what}"


def _whole_units(per: int, scale: int) -> tuple[int, int]:
    """Give what a price for `per` stored units is times, and for how many then: for one whole unit where it divides.

    A meter in GB of three digits stores thousandths; a price for one of them reads better as that of a thousand.
    """
    whole = 10**scale
    return (whole // per, whole) if per < whole and whole % per == 0 else (1, per)


def _unit_price(line: Json, currency: Currency, words: Words, *, times: int = 1) -> str:
    if not line["unit_price"]:
        return words["by tier"] if len(line["parts"]) > 1 else ""
    return price_text(EXACT.multiply(Decimal(line["unit_price"]), times), currency, words)
