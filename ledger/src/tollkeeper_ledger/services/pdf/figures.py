"""Write dates, periods, quantities and money as a language does, exactly. Pure: no clock, no machine locale."""

from __future__ import annotations

from datetime import datetime, time
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from babel.core import Locale
from babel.dates import format_date, format_datetime
from babel.numbers import get_currency_symbol, get_decimal_symbol, get_group_symbol

from tollkeeper_ledger.domain.money import EXACT, Currency

if TYPE_CHECKING:
    from datetime import date
    from zoneinfo import ZoneInfo

    from tollkeeper_ledger.services.pdf.words import Words

Json: TypeAlias = dict[str, Any]

_MINUS = "\N{MINUS SIGN}"
_NO_BREAK = "\N{NO-BREAK SPACE}"
_SIGN = "\N{CURRENCY SIGN}"
_FIGURE = "#,##0"
_LETTERS_EM_MAX = {
    **dict.fromkeys(" .,:;'()-/|!\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{RIGHT SINGLE QUOTATION MARK}", 40),
    **dict.fromkeys("0123456789$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{MINUS SIGN}", 55),
    **dict.fromkeys("abcdefghijklnopqrstuvxyz", 60),
    **dict.fromkeys("mwABCDEFGHIJKLMNOPQRSTUVWXYZ%", 95),
}
"""How wide letters of the shipped sans are at most, in hundredths of their size."""


@cache
def _locale(name: str) -> Locale:
    """Read a locale's name once: babel would for each figure, several times."""
    return Locale.parse(name)


def day_text(day: date, words: Words) -> str:
    """Write a date that stands alone."""
    return str(format_date(day, words.day, locale=_locale(words.locale)))


def period_text(period: Json, zone: ZoneInfo, words: Words) -> str:
    """Write a period: whole days by their dates, the last day included; anything else to the minute."""
    start, end = (datetime.fromisoformat(period[name]).astimezone(zone) for name in ("start", "end"))
    dash = "\N{EN DASH}"
    if start.time() == end.time() == time(0):
        last = end.date().fromordinal(end.date().toordinal() - 1)
        if start.date() == last:
            return day_text(last, words)
        first = format_date(start, words.short_day, locale=_locale(words.locale))
        return f"{first} {dash} {format_date(last, words.short_day, locale=_locale(words.locale))}"
    first = format_datetime(start, f"{words.short_day}, HH:mm", locale=_locale(words.locale))
    pattern = "HH:mm" if start.date() == end.date() else f"{words.short_day}, HH:mm"
    zone_name = str(format_datetime(end, "zzz", locale=_locale(words.locale)))
    if zone_name[:1] in "+-":
        # A language without a name for the zone says how far it is from Greenwich.
        zone_name = str(format_datetime(end, "ZZZZ", locale=_locale(words.locale)))
    return f"{first} {dash} {format_datetime(end, pattern, locale=_locale(words.locale))} {zone_name}"


def number_text(value: int | Decimal, words: Words) -> str:
    """Write a number with all of its digits."""
    group, point = _marks(words.locale)
    return f"{_MINUS if _is_negative(value) else ''}{_digits(value, 0, group, point)}"


def units_text(quantity: int | Decimal, scale: int, words: Words) -> str:
    """Write a quantity that is stored in units of 10^-scale."""
    return number_text(EXACT.scaleb(Decimal(quantity), -scale), words)


def percent_text(percent: str, words: Words) -> str:
    """Write a percentage."""
    return f"{number_text(Decimal(percent), words)}{_NO_BREAK}%"


def money_text(amount_minor: int, currency_code: str, words: Words) -> str:
    """Write an amount of minor units."""
    currency = Currency.from_code(currency_code)
    return _currency_text(EXACT.scaleb(Decimal(amount_minor), -currency.digits), currency, words)


def price_text(price: Decimal, currency: Currency, words: Words) -> str:
    """Write a price in major units with all of its digits, and at least those of the currency."""
    return _currency_text(price, currency, words)


def _currency_text(amount: Decimal, currency: Currency, words: Words) -> str:
    before, after = _around(words.locale, words.money, currency.code)
    group, point = _marks(words.locale)
    figure = _digits(amount, currency.digits, group, point)
    return f"{_MINUS if _is_negative(amount) else ''}{before}{figure}{after}"


def _is_negative(value: int | Decimal) -> bool:
    return value.is_signed() if isinstance(value, Decimal) else value < 0


def _digits(value: int | Decimal, fraction_min: int, group: str, point: str) -> str:
    """Write a number without its sign: thousands apart, zeros behind the point only as many as are asked for."""
    whole, _, fraction = (f"{value.copy_abs():,f}" if isinstance(value, Decimal) else f"{abs(value):,}").partition(".")
    fraction = fraction.rstrip("0").ljust(fraction_min, "0")
    whole = whole if group == "," else whole.replace(",", group)
    return f"{whole}{point}{fraction}" if fraction else whole


@cache
def _marks(locale: str) -> tuple[str, str]:
    """Give what a language writes between thousands, and before the fraction."""
    known = _locale(locale)
    return get_group_symbol(known), get_decimal_symbol(known)


@cache
def _around(locale: str, pattern: str, code: str) -> tuple[str, str]:
    """Give what a language writes before and behind the figure of an amount."""
    sign = get_currency_symbol(code, _locale(locale))
    if sign[-1:].isalpha():
        # A code needs a space before the figure, a sign does not.
        pattern = pattern.replace(f"{_SIGN}#", f"{_SIGN}{_NO_BREAK}#")
    before, after = pattern.split(_FIGURE)
    return before.replace(_SIGN, sign), after.replace(_SIGN, sign)


def is_narrower(text: str, bound: int) -> bool:
    """Whether a text is surely narrower than a bound in hundredths of its size; what isn't known to be is measured."""
    return sum(_LETTERS_EM_MAX.get(letter, bound) for letter in text) < bound
