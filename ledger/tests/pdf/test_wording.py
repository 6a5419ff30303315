"""What an invoice says in words: in its language throughout, and nothing that a reader would have to work out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from babel.numbers import format_currency, format_decimal, get_currency_symbol
from hypothesis import given
from hypothesis import strategies as st
from pdf_support import PERIOD, document, line
from tollkeeper_ledger.domain.money import EXACT, Currency, exact
from tollkeeper_ledger.services.pdf.figures import money_text, number_text, price_text
from tollkeeper_ledger.services.pdf.texts import invoice_texts
from tollkeeper_ledger.services.pdf.words import LANGUAGES

NO_BREAK = "\N{NO-BREAK SPACE}"
EURO = "\N{EURO SIGN}"


def billing(locale: str = "en", tax_mode: str = "exclusive") -> dict[str, Any]:
    """Give a payer's terms."""
    return {"locale": locale, "paper": "a4", "due_days": 14, "tax_mode": tax_mode, "taxes": []}


def fee(description: str, **changes: Any) -> dict[str, Any]:
    """Give a fee's line."""
    return line(
        **{
            "description": description, "meter": "", "unit": "", "quantity": 1, "included": 0, "unit_price": "12.50",
            "amount_minor": 1250, "kind": "fee", **changes,
        }
    )  # fmt: skip


def texts(*lines: dict[str, Any], locale: str = "en", tax_mode: str = "exclusive", **changes: Any) -> dict[str, Any]:
    """Give what is printed."""
    shown = document(*lines, billing=billing(locale, tax_mode), currency="EUR", **changes)
    return invoice_texts(shown, digest="", paper="a4")


@pytest.mark.parametrize(
    ("locale", "description", "expected"),
    [
        ("de", "Basic", "Basic"),
        ("de", "Basic, in advance", "Basic, im Voraus"),
        ("de", "Basic, unused 1,500 of 3,600 s", "Basic, nicht genutzt 1.500 von 3.600 s"),
        ("de", "Basic, 15 of 30 days", "Basic, 15 von 30 Tagen"),
        ("fr", "Basic, in advance 10 of 31 days", "Basic, d\N{RIGHT SINGLE QUOTATION MARK}avance 10 sur 31 jours"),
        ("fr", "Basic, or so", "Basic, or so"),
        ("en", "Basic, unused 15 of 30 days", "Basic, unused 15 of 30 days"),
    ],
)
def test_fees_speak_the_invoices_language(locale: str, description: str, expected: str) -> None:
    """What rating adds to a fee's name is translated; the name itself stays."""
    assert texts(fee(description), locale=locale)["lines"][0]["description"] == expected


@pytest.mark.parametrize(
    ("locale", "name", "expected"),
    [
        ("de", "tier 2", "Staffel 2"),
        ("de", "tier 2 flat", "Staffel 2 Grundbetrag"),
        ("fr", "packages", "Lots"),
        ("fr", "3 of 5 records", "3 sur 5 opérations"),
        ("en", "tier 2 blocks", "Tier 2 blocks"),
    ],
)
def test_steps_of_a_price_speak_the_invoices_language(locale: str, name: str, expected: str) -> None:
    """Every step that rating names is translated."""
    step = {"name": name, "quantity": "3", "unit_price": "0.029", "per": 1, "scale": 0, "amount": "0.087"}
    (shown,) = texts(line(unit_price="", parts=[step]), locale=locale)["lines"]
    assert shown["notes"][0].startswith(f"{expected}: 3 ")


def test_seats_are_counted() -> None:
    """Five seats at 12.50 are five, not one."""
    shown = texts(fee("Seat", unit="seats", quantity=5), fee("Seat", unit="seats"), locale="de")["lines"]
    assert [one["quantity"] for one in shown] == ["5 Plätze", "1 Platz"]


def test_a_line_of_another_time_says_which() -> None:
    """What is billed ahead names its own period; what is of the invoice's doesn't repeat it."""
    ahead = {"start": "2023-11-17T00:00:00Z", "end": "2023-11-18T00:00:00Z"}
    shown = texts(fee("Base", period=PERIOD), fee("Base, in advance", period=ahead))["lines"]
    assert [one["notes"] for one in shown] == [[], ["17 November 2023"]]


@pytest.mark.parametrize(
    ("total_minor", "expected"),
    [
        (5, "Payable by 30 November 2023. Pay."),
        (0, "Nothing is to pay."),
        (-5, "This amount is in your favour; it pays your next invoices."),
    ],
)
def test_nobody_is_asked_to_pay_nothing(total_minor: int, expected: str) -> None:
    """An invoice of nothing, or below, has no due date and names no bank account."""
    shown = texts(line(), total_minor=total_minor)
    assert dict(shown["notes"])["Payment"] == expected
    assert ("Due date" in dict(shown["facts"])) == (total_minor > 0)


def test_thousandths_are_priced_as_whole_units() -> None:
    """A price for a thousandth of a GB is written as that of a GB, in the line and in its steps."""
    step = {"name": "tier 1", "quantity": "1500", "unit_price": "0.000023", "per": 1, "scale": 3, "amount": "0.0345"}
    scaled = {"unit": "GB", "scale": 3, "quantity": 1500, "included": 0, "price_per": 1}
    flat, tiered = texts(line(unit_price="0.000023", **scaled), line(unit_price="", parts=[step], **scaled))["lines"]
    assert (flat["unit_price"], flat["per"]) == (f"{EURO}0.023", "per GB")
    assert tiered["notes"] == [f"Tier 1: 1.5 \N{MULTIPLICATION SIGN} {EURO}0.023 = {EURO}0.0345"]


def test_each_line_shows_its_tax() -> None:
    """Where rates differ a reader sees which line has which one; by reverse charge none but one given back."""
    lines = [line(tax={"name": "VAT", "percent": percent, "tax_minor": 1}) for percent in ("19", "7")]
    taxes = [{"name": "VAT", "percent": "19", "base_minor": 1, "tax_minor": 0}]
    shown = texts(*lines, taxes=taxes)
    assert [one["tax"] for one in shown["lines"]] == [f"19{NO_BREAK}%", f"7{NO_BREAK}%"]
    assert ["tax", "Tax"] in shown["columns"]
    reversed_ = texts(*lines, taxes=taxes, tax_mode="reverse_charge")
    assert ["tax", "Tax"] not in reversed_["columns"]
    assert [row[0] for row in reversed_["totals"]] == ["Subtotal", "Tax"]
    back = {"name": "VAT", "percent": "19", "base_minor": -1500, "tax_minor": -285}
    given_back = texts(*lines, taxes=[*taxes, back], tax_minor=-285, tax_mode="reverse_charge")
    assert given_back["totals"][1:] == [[f"VAT 19{NO_BREAK}%", f"\N{MINUS SIGN}{EURO}2.85"]]


@pytest.mark.parametrize(
    ("currency", "locale", "expected"),
    [
        ("KWD", "en", f"\N{MINUS SIGN}KWD{NO_BREAK}1,234.567"),
        ("JPY", "en", "\N{MINUS SIGN}\N{YEN SIGN}1,234,567"),
        ("USD", "fr", f"\N{MINUS SIGN}12\N{NARROW NO-BREAK SPACE}345,67{NO_BREAK}$US"),
        ("KWD", "de", f"\N{MINUS SIGN}1.234,567{NO_BREAK}KWD"),
    ],
)
def test_amounts_have_the_digits_of_their_currency(currency: str, locale: str, expected: str) -> None:
    """None, two or three, and a space where a code stands before the figure."""
    assert money_text(-1_234_567, currency, LANGUAGES[locale]) == expected


def test_long_prices_keep_every_digit() -> None:
    """Fifteen digits on each side of the point are written, none is rounded away."""
    price = Decimal("123456789012345.123456789012345")
    shown = price_text(price, Currency.from_code("EUR"), LANGUAGES["en"])
    assert shown == f"{EURO}123,456,789,012,345.123456789012345"


FIGURES = st.decimals(min_value=-(10**30), max_value=10**30, allow_nan=False, allow_infinity=False)
"""With and without zeros and exponents, some with more digits than prices may have."""


@exact
def babel_money(amount: Decimal, currency: Currency, locale: str) -> str:
    """Write an amount with babel's own patterns: slow and obvious."""
    pattern = LANGUAGES[locale].money.replace("#,##0", f"#,##0.{'0' * currency.digits}{'#' * 15}")
    if get_currency_symbol(currency.code, locale)[-1:].isalpha():
        pattern = pattern.replace("\N{CURRENCY SIGN}#", f"\N{CURRENCY SIGN}{NO_BREAK}#")
    options: Any = {"locale": locale, "currency_digits": False, "decimal_quantization": False}
    return str(format_currency(amount, currency.code, pattern, **options)).replace("-", "\N{MINUS SIGN}")


@given(figure=FIGURES, minor=st.integers(-(10**20), 10**20), locale=st.sampled_from(sorted(LANGUAGES)),
       code=st.sampled_from(["EUR", "USD", "GBP", "CHF", "JPY", "KWD", "XOF"]))  # fmt: skip
def test_figures_are_written_as_babel_writes_them(figure: Decimal, minor: int, locale: str, code: str) -> None:
    """Any number, price and amount, in each language and with signs and codes of any length, is as babel has it."""
    words, currency = LANGUAGES[locale], Currency.from_code(code)
    for number in (figure, minor):
        shown = exact(format_decimal)(number, locale=locale, decimal_quantization=False)
        assert number_text(number, words) == shown.replace("-", "\N{MINUS SIGN}")
    assert price_text(figure, currency, words) == babel_money(figure, currency, locale)
    amount = EXACT.scaleb(Decimal(minor), -currency.digits)
    assert money_text(minor, code, words) == babel_money(amount, currency, locale)


def test_a_plan_has_its_own_name() -> None:
    """Neither the currency nor the tenant whose prices it has are part of a plan's name."""
    shown = texts(line(), plan={"name": "scale/EUR@acme", "version": 3, "digest": ""})
    assert dict(shown["facts"])["Plan"] == "scale, version 3"
