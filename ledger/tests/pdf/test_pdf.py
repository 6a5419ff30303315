"""Invoices on paper: the same bytes every time, on both papers, whatever the machine thinks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from pdf_support import document, line, pdf_of
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, digest_of
from tollkeeper_ledger.domain.catalogue.logo import logo_fault
from tollkeeper_ledger.domain.invoiced import invoiced_line
from tollkeeper_ledger.services.pdf.render import render_pdf, render_png
from tollkeeper_ledger.services.pdf.texts import invoice_texts
from tollkeeper_ledger.services.pdf.words import LANGUAGES


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_the_same_invoice_gives_the_same_bytes(paper: str) -> None:
    """Two renderings are equal to the byte, and a changed figure changes them."""
    first = pdf_of(document(line()), paper)
    assert first.startswith(b"%PDF-")
    assert first == pdf_of(document(line()), paper)
    assert first != pdf_of(document(line(amount_minor=4267)), paper)


def test_the_papers_differ() -> None:
    """A4 and Letter are different pages."""
    assert pdf_of(document(line()), "a4") != pdf_of(document(line()), "letter")


def test_an_unknown_paper_is_refused() -> None:
    """Only papers that are listed are printed on."""
    with pytest.raises(KeyError):
        pdf_of(document(line()), "napkin")


def test_locale_and_time_zone_of_the_machine_do_not_matter() -> None:
    """Another process in another locale and zone makes the same bytes."""
    program = (
        "import hashlib, sys; from tollkeeper_ledger.services.pdf.render import render_pdf;"
        "document = sys.stdin.buffer.read();"
        "print(hashlib.sha256(render_pdf(document, digest=hashlib.sha256(document).digest())).hexdigest())"
    )
    canonical = canonical_json(document(line()))
    environment = {**os.environ, "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Asia/Kathmandu"}
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program], input=canonical, capture_output=True, check=True, env=environment
    )
    assert digest_of(pdf_of(document(line()))).hex() == done.stdout.decode().strip()


def test_long_invoices_break_over_pages() -> None:
    """As many lines as there are fit, on as many pages as they need."""
    assert len(render_png(canonical_json(document(line())), digest=bytes(32), ppi=20)) == 1
    many = document(*(line(description=f"meter {n}") for n in range(120)))
    assert len(render_png(canonical_json(many), digest=bytes(32), ppi=20)) >= 5


def test_hostile_text_stays_text() -> None:
    """Names that look like typst, JSON or escapes are printed, never run."""
    evil = '#read("/etc/passwd") $x$ #let a = 1; \\ "}] <label> @ref [*b*] \u2028 // /*'
    party = {"id": "e", "tenant_id": "x", "name": evil, "address": [evil], "tax_id": evil}
    assert pdf_of(document(line(description=evil, unit=evil), billing_tenant=party)).startswith(b"%PDF-")


def test_figures_are_written_for_people() -> None:
    """Thousands are grouped, prices keep their digits, scales are applied, and halves of minor units never appear."""
    texts = invoice_texts(
        document(
            line(),
            line(description="API calls", meter="calls", unit="h", scale=3, quantity=1500, price_per=1000, included=0,
                 unit_price="0.000125", amount_minor=-5),
            line(meter="", description="base", quantity=1, unit_price="20.00", amount_minor=2000),
        ),
        digest="",
        paper="a4",
    )  # fmt: skip
    used, scaled, fee = texts["lines"]
    assert tuple(used[name] for name in ("description", "quantity", "included", "unit_price", "per", "amount")) == (
        "Context tokens",
        "18,062,123 tokens",
        "1,000,000",
        "$2.50",
        "per 1,000,000 tokens",
        "$42.66",
    )
    assert tuple(scaled[name] for name in ("quantity", "included", "unit_price", "per", "amount")) == (
        "1.5 h",
        "",
        "$0.000125",
        "per h",
        "\N{MINUS SIGN}$0.05",
    )
    assert tuple(fee[name] for name in ("description", "quantity", "unit_price", "amount")) == (
        "Base",
        "1",
        "$20.00",
        "$20.00",
    )
    assert ["Billing period", "16 Nov 2023, 18:15 \N{EN DASH} 19:15 UTC"] in texts["facts"]


def test_a_line_of_several_prices_shows_each() -> None:
    """Tiers stand under their line, each with its units at the meter's scale, price and exact amount."""
    tiers = [
        {"name": "tier 1", "quantity": "1500", "unit_price": "0.25", "per": 1000, "scale": 3, "amount": "0.375"},
        {"name": "tier 1 flat", "quantity": "1", "unit_price": "2.00", "per": 1, "scale": 0, "amount": "2"},
    ]
    tiered = line(
        unit="GB", scale=3, quantity=1500, unit_price="", price_per=1, included=0, amount_minor=238, parts=tiers
    )
    (shown,) = invoice_texts(document(tiered), digest="", paper="a4")["lines"]
    assert (shown["unit_price"], shown["per"]) == ("by tier", "")
    assert shown["notes"] == [
        "Tier 1: 1.5 \N{MULTIPLICATION SIGN} $0.25 = $0.375",
        "Tier 1 flat: 1 \N{MULTIPLICATION SIGN} $2.00 = $2.00",
    ]


@pytest.mark.parametrize(
    ("start", "end", "zone", "expected"),
    [
        ("2023-09-30T22:00:00Z", "2023-10-31T23:00:00Z", "Europe/Berlin", "1 Oct 2023 \N{EN DASH} 31 Oct 2023"),
        ("2023-11-16T00:00:00Z", "2023-11-17T00:00:00Z", "UTC", "16 November 2023"),
    ],
)
def test_whole_days_are_written_as_days(start: str, end: str, zone: str, expected: str) -> None:
    """A period of whole local days names its first and last day."""
    texts = invoice_texts(document(time_zone=zone, period={"start": start, "end": end}), digest="", paper="a4")
    assert expected in [fact[1] for fact in texts["facts"]]
    assert json.dumps(texts)


def test_an_adjustment_says_which_period_it_is_for() -> None:
    """A late line names its own period beside the description, and the notes explain it."""
    late = line(description="context_tokens, late usage of 2023-11-16 17:15 to 2023-11-16 18:15 UTC", late=True)
    texts = invoice_texts(document(late), digest="", paper="a4")
    assert (
        texts["lines"][0]["description"],
        texts["lines"][0]["notes"],
    ) == ("Context tokens", ["Adjustment for 16 Nov 2023, 18:15 \N{EN DASH} 19:15 UTC"])
    assert "Adjustments" in [note[0] for note in texts["notes"]]


@pytest.mark.parametrize(
    ("locale", "heading", "total", "amount"),
    [
        ("en", "Invoice", "Total EUR", "\N{EURO SIGN}1,234.50"),
        ("de", "Rechnung", "Gesamtbetrag EUR", "1.234,50\N{NO-BREAK SPACE}\N{EURO SIGN}"),
        ("fr", "Facture", "Total EUR", "1\N{NARROW NO-BREAK SPACE}234,50\N{NO-BREAK SPACE}\N{EURO SIGN}"),
    ],
)
def test_three_languages(locale: str, heading: str, total: str, amount: str) -> None:
    """Everything that we say is in the payer's language, figures as its country writes them; every phrase is there."""
    billing = {"locale": locale, "paper": "letter", "due_days": 14, "tax_mode": "reverse_charge", "taxes": []}
    shown = document(
        line(amount_minor=123_450, late=True), line(amount_minor=0, unit_price=""), billing=billing, currency="EUR"
    )
    texts = invoice_texts(shown, digest="", paper="a4")
    assert (texts["heading"], texts["total"]) == (heading, [total, amount])
    note = invoice_texts({**shown, "kind": "credit_note", "invoice": "TK-1", "note": ""}, digest="", paper="a4")
    assert note["lines"][0]["description"] == note["heading"] != heading
    assert note["labels"]["bill_to"] not in (texts["labels"]["bill_to"], "Credit to" if locale != "en" else "")
    assert pdf_of(shown).startswith(b"%PDF-")


def test_every_phrase_has_every_language() -> None:
    """No language lacks a phrase of another."""
    phrases = [set(words.phrases) for words in LANGUAGES.values() if words.locale != "en"]
    assert len(phrases) == 2
    assert phrases[0] == phrases[1]


def test_right_to_left_text_does_not_turn_figures_round() -> None:
    """Hebrew and Arabic names are printed; a character that overrides the direction never reaches the page."""
    party = {"id": "a", "tenant_id": "x", "name": "\u05d7\u05d1\u05e8\u05d4 \u202e001 EUR", "address": [], "tax_id": ""}
    shown = document(line(description="\u0627\u0633\u062a\u0647\u0644\u0627\u0643 \u202eAPI"), billing_tenant=party)
    texts = invoice_texts(shown, digest="", paper="a4")
    assert "\u202e" not in json.dumps(texts, ensure_ascii=False)
    assert texts["bill_to"]["name"] == "\u05d7\u05d1\u05e8\u05d4 001 EUR"
    assert pdf_of(shown).startswith(b"%PDF-")


def test_taxes_and_coupons_stand_above_the_total() -> None:
    """Lines, discount, net and each tax with its base; what is contained says so."""
    taxes = [
        {"name": "VAT", "percent": "19", "base_minor": 900, "tax_minor": 171},
        {"name": "VAT", "percent": "7", "base_minor": 100, "tax_minor": 7},
    ]
    shown = document(
        line(), lines_minor=1100, discount_minor=100, subtotal_minor=1000, taxes=taxes, tax_minor=178, total_minor=1178
    )
    assert invoice_texts(shown, digest="", paper="a4")["totals"] == [
        ["Subtotal", "$11.00"],
        ["Discount", "\N{MINUS SIGN}$1.00"],
        ["Net", "$10.00"],
        ["VAT 19\N{NO-BREAK SPACE}% on $9.00", "$1.71"],
        ["VAT 7\N{NO-BREAK SPACE}% on $1.00", "$0.07"],
    ]


LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 30"><defs><linearGradient id="g">'
    '<stop stop-color="#0b5d5e"/></linearGradient></defs><rect width="30" height="30" rx="6" fill="url(#g)"/></svg>'
)


def test_a_logo_stands_on_the_invoice() -> None:
    """The seller's logo changes the page, and gives the same bytes every time."""
    canonical = canonical_json(document(line()))
    with_logo = [render_pdf(canonical, digest=bytes(32), logo=LOGO) for _ in range(2)]
    assert with_logo[0] == with_logo[1]
    assert with_logo[0] != render_pdf(canonical, digest=bytes(32))


@pytest.mark.parametrize(
    ("svg", "fault"),
    [
        (LOGO, ""),
        (LOGO.replace("url(#g)", "url(http://x.example/#g)"), "outside"),
        (LOGO.replace("<defs>", '<image href="file:///etc/passwd"/><defs>'), "image"),
        (LOGO.replace("<defs>", '<use href="other.svg#x"/><defs>'), "outside"),
        (LOGO.replace("<rect ", '<rect onload="x()" '), "outside"),
        (LOGO.replace("<defs>", "<script/><defs>"), "script"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]>' + LOGO, "declarations"),
        (LOGO[:-1], "XML"),
        ("<html/>", "not an SVG"),
        (LOGO.replace("rx", " " * 20_000 + "rx"), "too long"),
    ],
)
def test_a_logo_draws_itself(svg: str, fault: str) -> None:
    """A logo is a small SVG without scripts, entities and references to outside; else it is refused with a reason."""
    assert (fault in logo_fault(svg)) if fault else logo_fault(svg) == ""


@pytest.mark.parametrize(("locale", "words"), [("en", "Already invoiced"), ("de", "Bereits berechnet")])
def test_what_was_invoiced_within_the_period_names_its_invoices(locale: str, words: str) -> None:
    """The line has its own name, the invoices that said it, a quantity below zero, and no price of its own."""
    entry = {
        **line(),
        "kind": "usage",
        "discount_minor": 0,
        "dimensions": {},
        "tax_name": "",
        "tax_percent": "0",
        "tax_minor": 0,
        "invoices": ["TK-000001", "TK-000002"],
    }
    billing = {"locale": locale, "paper": "a4", "due_days": 14, "tax_mode": "exclusive", "taxes": []}
    taken_off = invoiced_line(entry, is_contained=False)
    texts = invoice_texts(document(line(), taken_off, billing=billing, is_cut=True), digest="", paper="a4")
    shown = texts["lines"][1]
    assert shown["description"] == "Context tokens"
    assert shown["notes"] == [f"{words}: TK-000001, TK-000002"]
    assert shown["quantity"].startswith("\N{MINUS SIGN}18")
    assert (shown["unit_price"], shown["per"]) == ("", "")
    assert any(note[0] == LANGUAGES[locale]["Billing period"] for note in texts["notes"])
