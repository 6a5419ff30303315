"""Invoices as they are read on paper: the text of every page, and where it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from pdf_support import document, line, pdf_of
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.services.pdf.render import render_pdf

MILLIMETRES_PER_POINT = 25.4 / 72
FOOTER_POINTS = 85
MANY = 300


def pages_of(pdf: bytes) -> list[str]:
    """Give the text of each page, in the order in which it was written."""
    with pypdfium2.PdfDocument(pdf) as read:
        return [page.get_textpage().get_text_range().replace("\r\n", "\n") for page in read]


def many_lines() -> list[dict[str, Any]]:
    """Give lines whose amounts rise, so that every sum is another one."""
    return [line(description=f"meter number {n:03}", amount_minor=n) for n in range(1, MANY + 1)]


@pytest.fixture(scope="module", params=["a4", "letter"])
def pages(request: pytest.FixtureRequest) -> list[str]:
    """Give the pages of an invoice with many lines, on each paper."""
    return pages_of(pdf_of(document(*many_lines()), request.param))


def test_every_page_has_the_heads_of_the_table(pages: list[str]) -> None:
    """Whoever holds one page knows which column is what, which invoice it is of, and which page of how many."""
    assert len(pages) > 5
    for number, text in enumerate(pages, start=1):
        assert all(head in text for head in ("Description", "Quantity", "Unit price", "Amount", "TK-000001"))
        assert f"Page {number} of {len(pages)}" in text


def test_every_line_stands_once(pages: list[str]) -> None:
    """No line is lost or doubled where a page ends, and they stay in their order."""
    found = re.findall(r"Meter number (\d{3})", "\n".join(pages))
    assert found == [f"{n:03}" for n in range(1, MANY + 1)]


def test_sums_are_carried_from_page_to_page(pages: list[str]) -> None:
    """A page that goes on ends with the sum of all lines so far; the next begins with the same one."""
    upto = 0
    for number, text in enumerate(pages):
        brought = re.findall(r"Brought forward\s+(\S+)", text)
        carried = re.findall(r"Carried forward\s+(\S+)", text)
        assert brought == ([f"${upto * (upto + 1) / 200:.2f}"] if number else [])
        upto = max(map(int, re.findall(r"Meter number (\d{3})", text)), default=upto)
        assert carried == ([f"${upto * (upto + 1) / 200:.2f}"] if upto < MANY else [])


def test_totals_and_payment_stand_together(pages: list[str]) -> None:
    """Total, due date and how to pay are on one page, the last one."""
    assert all(word in pages[-1] for word in ("Subtotal", "Total USD", "$451.50", "Payable by 30 November 2023. Pay."))


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_nothing_runs_over_an_edge(paper: str) -> None:
    """Names, addresses, units, plans and figures of any length stay within the margins, and don't cover each other."""
    party = {
        "id": "x" * 128,
        "tenant_id": "x",
        "name": "W" * 120,
        "address": ["Donaudampfschifffahrtselektrizitätenhauptbetriebswerk" * 3, "a b " * 50],
        "tax_id": "T" * 64,
    }
    longest = line(
        description="d" * 128,
        unit="extraordinarily-long-unit-names",
        quantity=2**53 - 1,
        price_per=2**53 - 1,
        unit_price="123456789012345.123456789012345",
        amount_minor=10**15,
        dimensions={"kind": "k" * 200},
        tax={"name": "N" * 64, "percent": "19.123456789", "tax_minor": 0},
    )
    shown = document(
        longest,
        tenant=party,
        billing_tenant=party,
        plan={"name": "plan-" * 25, "version": 1, "digest": ""},
        taxes=[{"name": "N" * 64, "percent": "19.123456789", "base_minor": 10**14, "tax_minor": 10**14}],
    )
    with pypdfium2.PdfDocument(pdf_of(shown, paper)) as read:
        for page in read:
            text = page.get_textpage()
            boxes = [text.get_charbox(place) for place in range(text.count_chars())]
            # The letters of a ligature have one box.
            seen = list(dict.fromkeys(box for box in boxes if box[2] > box[0]))
            assert min(box[0] for box in seen) * MILLIMETRES_PER_POINT > 19
            assert (page.get_width() - max(box[2] for box in seen)) * MILLIMETRES_PER_POINT > 19
            covered = [
                (one, other)
                for place, one in enumerate(seen)
                for other in seen[place + 1 :]
                if _overlap(one, other, 0) > 1 and _overlap(one, other, 1) > 1
            ]
            assert covered == []


def _overlap(one: tuple[float, ...], other: tuple[float, ...], axis: int) -> float:
    """Give how far two boxes overlap along an axis, in points."""
    return min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis])


def figures_of(name: str) -> tuple[str, list[tuple[int, str]]]:
    """Give the text of a page with a name on it, and each character right of the names with where it stands.

    The footer has another digest, and other letters may be higher: what counts is the place in the line, in points.
    """
    party = {"id": "a", "tenant_id": "x", "name": f"{name} 42", "address": [], "tax_id": ""}
    with pypdfium2.PdfDocument(pdf_of(document(line(description=f"{name} 7"), billing_tenant=party))) as read:
        page = read[0]
        text = page.get_textpage()
        boxes = [(text.get_text_range(place, 1), text.get_charbox(place)) for place in range(text.count_chars())]
        right = [
            (round(box[0]), letter)
            for letter, box in boxes
            if box[0] > page.get_width() * 0.4 and box[1] > FOOTER_POINTS and letter.strip()
        ]
        return text.get_text_range(), sorted(right)


@pytest.mark.parametrize("name", ["חברת הדוגמה", "شركة الأمثلة"])
def test_right_to_left_names_leave_figures_where_they_are(name: str) -> None:
    """A Hebrew or Arabic name is on the page in its own letters; every figure stands where it does beside another."""
    text, figures = figures_of(name)
    assert [letter for letter in name if letter not in text] == []
    assert len(figures) > 100
    assert figures == figures_of("Name")[1]


def fonts_of(name: str, fonts: str) -> set[str]:
    """Give the fonts that a page with a name on it uses."""
    party = {"id": "a", "tenant_id": "x", "name": name, "address": [], "tax_id": ""}
    canonical = canonical_json(document(line(), billing_tenant=party))
    with pypdfium2.PdfDocument(render_pdf(canonical, digest=bytes(32), fonts=fonts)) as read:
        texts = [one for one in read[0].get_objects() if isinstance(one, pypdfium2.PdfTextObj)]
        return {one.get_font().get_base_name().rpartition("+")[2] for one in texts}


@pytest.mark.parametrize(("name", "font"), [("חברת", "NotoSansHebrew"), ("شركة", "NotoSansArabic")])
def test_right_to_left_names_are_set_in_a_font_for_text(name: str, font: str) -> None:
    """Not in the one of digests, whose letters are all of one width, nor in one with serifs beside one without."""
    assert fonts_of(name, "") - fonts_of("Name", "") == {f"{font}-SemiBold"}


def test_amounts_end_where_their_sums_do() -> None:
    """The column of amounts and the sums below it have one right edge."""
    with pypdfium2.PdfDocument(pdf_of(document(line()))) as read:
        page = read[0]
        text = page.get_textpage()
        edges = []
        found = text.search("$42.66")
        while (place := found.get_next()) is not None:
            edges.append(text.get_charbox(sum(place) - 1)[2])
    # The last is the total, which stands in larger letters.
    assert len(edges) == 3
    assert edges[0] == pytest.approx(edges[1], abs=0.1)


def test_letters_that_the_fonts_lack_come_from_a_folder() -> None:
    """An operator's fonts are used for letters that ours lack, and change nothing where ours have all of them."""
    folder = str(Path(__file__).parent / "data")
    assert "TestSquare-Regular" in fonts_of("\u682a", folder)
    assert fonts_of("Name", folder) == fonts_of("Name", "")


def test_hostile_text_is_printed_as_it_is() -> None:
    """What looks like markup or code of the template stands on the page as it was written."""
    evil = '#read("/etc/passwd") $x$ [*b*] <label> @ref'
    (text,) = pages_of(pdf_of(document(line(description=evil, unit="#x"))))
    assert evil in text.replace("\n", " ")


def test_a_void_invoice_says_so() -> None:
    """Its page is stamped; the one that is good isn't."""
    good, void = (pages_of(pdf_of(document(line()), is_void=is_void))[0] for is_void in (False, True))
    assert ("VOID" in good, "VOID" in void) == (False, True)


def test_an_invoice_names_the_one_that_it_replaces() -> None:
    """Whoever gets a second invoice for one period sees that the first is gone."""
    assert "TK-000007" in pages_of(pdf_of(document(line(), replaces="TK-000007")))[0]
