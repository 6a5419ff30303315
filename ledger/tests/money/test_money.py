"""Exact money: one rounding, no floats."""

from __future__ import annotations

import ast
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import tollkeeper_ledger
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.money import (
    EXACT,
    Currency,
    major,
    parse_decimal,
    plain,
    plain_amount,
    round_line,
    rounded_line,
)

USD, JPY, BHD = (Currency.from_code(code) for code in ("USD", "JPY", "BHD"))


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        ("0.005", USD, 1),
        ("0.0049999999999999", USD, 0),
        ("-0.005", USD, -1),
        ("1.115", USD, 112),
        ("2.675", USD, 268),
        ("0.5", JPY, 1),
        ("0.49", JPY, 0),
        ("1.2345", BHD, 1235),
        ("90071992547409.91", USD, 9007199254740991),
    ],
)
def test_lines_round_half_away_from_zero(amount: str, currency: Currency, expected: int) -> None:
    """Halves go away from zero in the currency's own minor unit."""
    assert expected == round_line(Decimal(amount), currency)


@given(
    st.integers(0, 2**53 - 1),
    st.decimals(min_value=0, max_value=10**6, places=6),
    st.integers(1, 2**53 - 1),
)
def test_division_never_moves_the_rounding(units: int, price: Decimal, per: int) -> None:
    """The cut of an endless quotient gives the same minor units as exact fractions."""
    amount = EXACT.divide(EXACT.multiply(Decimal(units), price), Decimal(per))
    exact = Fraction(units) * Fraction(price) / per * 100
    expected = (exact.numerator * 2 + exact.denominator) // (exact.denominator * 2)
    assert expected == round_line(amount, USD)


_AMOUNTS = st.builds(
    lambda negative, digits, exponent: Decimal((int(negative), tuple(map(int, str(digits))), exponent)),
    st.booleans(),
    st.integers(0, 10**45) | st.integers(0, 10**6),
    st.integers(-45, 10),
)
"""Amounts of either sign, with zeros at the end and with exponents, some cut beyond what rounding looks at."""


@given(_AMOUNTS, st.sampled_from([JPY, USD, BHD]))
def test_lines_round_as_exact_quantising_does(amount: Decimal, currency: Currency) -> None:
    """Few digits are rounded at once and give what bringing them back from a cut first gives, for any exponent."""
    context = Context(prec=100, rounding=ROUND_HALF_UP)
    exact = EXACT.quantize(EXACT.scaleb(amount, currency.digits), Decimal("1e-40"))
    assert int(context.quantize(exact, Decimal(1))) == round_line(amount, currency)


@given(_AMOUNTS, st.sampled_from([JPY, USD, BHD]))
def test_a_rounded_line_is_written_as_its_minor_units_are(amount: Decimal, currency: Currency) -> None:
    """The text of a rounded amount is that of its minor units, and nothing is below zero that is zero."""
    minor, text = rounded_line(amount, currency)
    assert major(minor, currency) == text


@given(_AMOUNTS)
def test_amounts_are_written_as_quantised(amount: Decimal) -> None:
    """An amount is written with at most 15 digits after the point, without exponent or needless zeros."""
    assert plain(amount.quantize(Decimal("1e-15"), context=EXACT)) == plain_amount(amount)


@pytest.mark.parametrize("text", ["1e3", "NaN", "Infinity", "1,5", "", " 1", "1.", ".5", "+1", "٣", "0x1", "1" * 16])
def test_only_plain_decimals_are_read(text: str) -> None:
    """No exponent, grouping, foreign digits or special values."""
    with pytest.raises(ValueError, match="not a decimal"):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("value", "digits", "expected"), [("2.5", 2, "2.50"), ("2.500", 2, "2.50"), ("0.0025", 2, "0.0025"), ("3", 0, "3")]
)
def test_equal_decimals_are_written_equally(value: str, digits: int, expected: str) -> None:
    """Needless zeros don't make another digest."""
    assert expected == plain(Decimal(value), digits_min=digits)


def test_major_units_are_written_with_the_currencys_digits() -> None:
    """Minor units come out as people write them."""
    assert [major(1234, USD), major(-5, USD), major(1234, JPY), major(1234, BHD)] == ["12.34", "-0.05", "1234", "1.234"]


def test_an_unknown_currency_is_refused() -> None:
    """Only ISO 4217 codes are currencies."""
    with pytest.raises(ValueError, match="not an ISO 4217 currency"):
        Currency.from_code("usd")


@pytest.mark.parametrize(
    "file",
    sorted(
        path
        for folder in ("domain/rating", "domain/catalogue", "domain")
        for path in (Path(tollkeeper_ledger.__file__).parent / folder).glob("*.py")
    ),
    ids=lambda path: path.name,
)
def test_the_domain_has_no_floats(file: Path) -> None:
    """No float literal, no float(), no true division in the domain: money and units are exact."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{file}:{node.lineno}"
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float"
        assert not called, f"{file}:{getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), (
            f"{file}:{getattr(node, 'lineno', 0)}"
        )
