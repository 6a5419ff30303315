"""Figures that are known to be narrow are not measured, and are printed as if they were."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import typst
from pdf_support import document, line, pdf_of
from tollkeeper_ledger.services.pdf import figures, lines, render

_MEASURE = """
#set text(font: "Source Sans Pro", size: 100pt, number-width: "tabular")
#context [#metadata(sys.inputs.letters.clusters().map(letter => calc.ceil(measure(letter).width.pt())))<widths>]
"""


def test_no_letter_is_wider_than_is_known() -> None:
    """The shipped font has each letter at most as wide as it is counted, as figures in tables are set."""
    letters = "".join(figures._LETTERS_EM_MAX)
    fonts = typst.Fonts(include_system_fonts=False, font_paths=[str(files("tollkeeper_ledger.services.pdf") / "fonts")])
    found = json.loads(
        typst.query(
            _MEASURE.encode(), "<widths>", field="value", one=True, sys_inputs={"letters": letters}, font_paths=fonts
        )
    )
    assert len(letters) == len(found)
    too_wide = {
        letter: (width, figures._LETTERS_EM_MAX[letter])
        for letter, width in zip(letters, found, strict=True)
        if width > figures._LETTERS_EM_MAX[letter]
    }
    assert too_wide == {}


@pytest.mark.parametrize("locale", ["en", "de", "fr"])
def test_what_is_not_measured_is_printed_the_same(locale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short, long and foreign figures give the same PDF, byte for byte, with every figure measured."""
    billing = {"locale": locale, "paper": "a4", "due_days": 14, "tax_mode": "exclusive", "taxes": []}
    units = ("tokens", "MMMMMMMMMMM", "tokens of a very long name", "\u6f22\u5b57")
    quantities = (1, 18_062_123, 2**53 - 1, 10**40)
    rows = [line(unit=unit, quantity=quantity) for unit in units for quantity in quantities]
    invoice = document(*rows, billing=billing)
    pdf = pdf_of(invoice)
    shown = json.loads(render._texts(json.dumps(invoice).encode(), digest=b"", paper="", is_void=False))["lines"]
    assert {True, False} == {row["is_narrow"] for row in shown}
    monkeypatch.setattr(lines, "is_narrower", lambda *_: False)
    assert pdf == pdf_of(invoice)
