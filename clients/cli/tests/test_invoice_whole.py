"""An invoice on the command line: whole in JSON, rows that a spreadsheet reads in CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import billing_pb2
from tollkeeper_cli.commands.invoice_whole import show_whole
from tollkeeper_cli.output import Output

if TYPE_CHECKING:
    import pytest

HOSTILE = '=HYPERLINK("http://evil","Größe")\n"quoted", and more'


def invoice() -> billing_pb2.Invoice:
    """Give an invoice with a hostile name, a scaled quantity and an amount below zero."""
    line = billing_pb2.InvoiceLine(
        description=HOSTILE,
        kind="usage",
        meter="storage",
        quantity=720_500,
        unit="GB",
        scale=3,
        unit_price="0.023",
        price_per=1000,
        amount_minor=-1657,
        dimensions={"region": "=eu"},
        parts=[billing_pb2.InvoiceLinePart(name="tier 1", quantity="720500", unit_price="0.023", per=1000, scale=3)],
    )
    return billing_pb2.Invoice(
        number="TK-000001",
        currency="EUR",
        total_minor=-1972,
        subtotal_minor=-1657,
        tax_minor=-315,
        state="finalised",
        lines=[line],
        taxes=[billing_pb2.InvoiceTax(name="VAT", percent="19", base_minor=-1657, tax_minor=-315)],
        seller_name="Seller",
        billing_name="Payer",
    )


def test_json_is_the_whole_invoice(capsys: pytest.CaptureFixture[str]) -> None:
    """One object has head, parties, taxes, and each line with its period, dimensions, steps and whole units."""
    show_whole(invoice(), Output.JSON)
    told = json.loads(capsys.readouterr().out)
    names = ("number", "state", "total_minor", "tax_minor", "seller_name", "billing_name")
    assert [told[name] for name in names] == ["TK-000001", "finalised", -1972, -315, "Seller", "Payer"]
    assert told["taxes"] == [{"name": "VAT", "percent": "19", "base_minor": -1657, "tax_minor": -315}]
    (line,) = told["lines"]
    assert (line["quantity"], line["price_per"], line["amount_minor"]) == ("720.5", "1", -1657)
    assert (line["description"], line["dimensions"]) == (HOSTILE, {"region": "=eu"})
    assert [part["name"] for part in line["parts"]] == ["tier 1"]


def test_csv_is_read_back_by_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    """A row per line however its name is quoted; figures are numbers, nothing is a formula, letters stay."""
    show_whole(invoice(), Output.CSV)
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
    assert row["description"] == f"'{HOSTILE}"
    assert [row[name] for name in ("quantity", "price_per", "amount", "currency")] == ["720.5", "1", "-16.57", "EUR"]
    assert row["dimensions"] == "region==eu"
