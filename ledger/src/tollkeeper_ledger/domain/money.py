"""Exact money: integer minor units of an ISO 4217 currency, decimal unit prices, one rounding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import (
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    getcontext,
    setcontext,
)
from functools import cache, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# Quantities have up to 16 digits and prices up to 15 before and 15 after the point, so products are exact. A quotient
# by `per` (up to 16 digits) that never ends is cut after 100 digits: it differs from every half minor unit by more than
# 10^-40, so the cut never moves what round_line gives.
EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow])
"""The context of every calculation with money."""
_HALF_UP = Context(prec=100, rounding=ROUND_HALF_UP, traps=[InvalidOperation, DivisionByZero, Overflow])


def exact(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let the decimal operators inside a function calculate in the EXACT context, whatever the caller's is."""

    @wraps(function)
    def calculated(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        current = getcontext()
        if current is EXACT:
            return function(*args, **kwargs)
        setcontext(EXACT)
        try:
            return function(*args, **kwargs)
        finally:
            setcontext(current)

    return calculated


DECIMAL_DIGITS_MAX = 15
_QUANTA = tuple(Decimal(1).scaleb(-digits) for digits in range(4))
"""A minor unit by how many digits after the point it has."""
_CUT_DIGITS = 40
_BEYOND_CUTS = tuple(quantum.scaleb(-_CUT_DIGITS) for quantum in _QUANTA)
_UNCUT_LENGTH_MAX = 36
_SHOWN = Decimal(1).scaleb(-DECIMAL_DIGITS_MAX)
_DECIMAL = re.compile(rf"-?[0-9]{{1,{DECIMAL_DIGITS_MAX}}}(\.[0-9]{{1,{DECIMAL_DIGITS_MAX}}})?")
_TWO_DIGITS = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP "
    "CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES "
    "KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK "
    "NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB "
    "TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG"
)
_NO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"

CURRENCY_DIGITS: Mapping[str, int] = MappingProxyType(
    dict.fromkeys(_TWO_DIGITS.split(), 2)
    | dict.fromkeys(_NO_DIGITS.split(), 0)
    | dict.fromkeys(_THREE_DIGITS.split(), 3)
)
"""Digits after the point of a currency's minor unit. Source: ISO 4217, list one."""


@dataclass(frozen=True, slots=True)
class Currency:
    """Name a currency and its minor unit."""

    code: str
    digits: int

    @classmethod
    def from_code(cls, code: str) -> Currency:
        """Find a currency by its ISO 4217 code. Raises ValueError for an unknown one."""
        if code not in CURRENCY_DIGITS:
            raise ValueError(f"not an ISO 4217 currency: {code[:16]!r}")
        return _currency(code)


@cache
def _currency(code: str) -> Currency:
    return Currency(code=code, digits=CURRENCY_DIGITS[code])


def parse_decimal(text: str) -> Decimal:
    """Read a plain decimal like 2.50: no exponent, no grouping. Raises ValueError for anything else."""
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"not a decimal: {text[:40]!r}")
    return Decimal(text)


def unscaled(value: Decimal) -> str:
    """Write a decimal without exponent, with the zeros that it has."""
    text = str(value)
    # Most have no exponent, and `str` takes a third of the time.
    return f"{value:f}" if "E" in text else text


def plain(value: Decimal, *, digits_min: int = 0) -> str:
    """Write a decimal without exponent or needless zeros, with at least `digits_min` digits after the point."""
    whole, _, fraction = unscaled(value).partition(".")
    fraction = fraction.rstrip("0").ljust(digits_min, "0")
    return f"{whole}.{fraction}" if fraction else whole


def plain_amount(amount: Decimal) -> str:
    """Write an amount in major units as `plain` does, rounded to 15 digits after the point where it has more."""
    text = unscaled(amount)
    if "." not in text:
        return text
    if len(text) > DECIMAL_DIGITS_MAX + 2 and len(text) - text.index(".") > DECIMAL_DIGITS_MAX + 1:
        return plain(amount.quantize(_SHOWN, context=EXACT))
    return text.rstrip("0").rstrip(".")


def round_line(amount: Decimal, currency: Currency) -> int:
    """Round a line's exact amount in major units to minor units, half away from zero."""
    return rounded_line(amount, currency)[0]


def rounded_line(amount: Decimal, currency: Currency) -> tuple[int, str]:
    """Round as `round_line` does; give the minor units, and what `major` writes for them."""
    text = str(_half_up(amount, currency.digits))
    minor = int(text.replace(".", ""))
    return (minor, text) if minor else (0, text.lstrip("-"))


def round_minor(amount_minor: Decimal) -> int:
    """Round an exact amount in minor units, half away from zero."""
    return int(_half_up(amount_minor, 0))


def _half_up(amount: Decimal, digits: int) -> Decimal:
    """Round an exact amount to so many digits after the point, and keep these. The one rounding of money.

    Sums of quotients that were cut after 100 digits are brought back to what they stand for first.
    """
    # What has few digits was not cut: it ends within the 40 that are looked at, or it is too small to round up.
    if len(str(amount)) > _UNCUT_LENGTH_MAX:
        amount = EXACT.quantize(amount, _BEYOND_CUTS[digits])
    return _HALF_UP.quantize(amount, _QUANTA[digits])


def major(amount_minor: int, currency: Currency) -> str:
    """Write minor units as major units, for example 1234 of USD as 12.34."""
    if not currency.digits:
        return str(amount_minor)
    digits = str(abs(amount_minor)).zfill(currency.digits + 1)
    return f"{'-' if amount_minor < 0 else ''}{digits[: -currency.digits]}.{digits[-currency.digits :]}"
