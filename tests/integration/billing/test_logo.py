# ruff: noqa: SIM300 - expected first, then actual
"""A seller's logo on invoices."""

from __future__ import annotations

import json
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError
from tollkeeper_ledger.store.logos import logo_of
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio


def logo(color: str) -> str:
    """Give a logo."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9v9z" fill="{color}"/></svg>'


async def test_an_invoice_keeps_the_logo_that_it_was_finalised_with(bench: BillingBench) -> None:
    """Invoices name their logo by digest; a new one changes no invoice, none changes no bytes of those before."""
    plain = catalogue(bench.start, "code")
    hour = timedelta(hours=1)
    for number, color in enumerate(("red", "blue", "")):
        said = f", logo: '{logo(color)}'}}" if color else "}"
        await bench.apply(plain.replace("time_zone: UTC}", f"time_zone: UTC{said}", 1))
        await bench.set_now(bench.start + (number + 1) * hour + timedelta(minutes=5))
        await bench.run()
    rows = await bench.rows("SELECT document FROM invoice ORDER BY serial")
    named = [json.loads(row["document"])["seller"].get("logo") for row in rows]
    assert [sha256(logo(color).encode()).hexdigest() for color in ("red", "blue")] + [None] == named
    async with transaction(bench.billing) as conn:
        assert [logo("red"), logo("blue"), ""] == [await logo_of(conn, row["document"]) for row in rows]


async def test_a_bad_logo_is_refused_by_line(bench: BillingBench) -> None:
    """A catalogue whose logo refers to outside stores nothing and is told where."""
    plain = catalogue(bench.start, "code")
    bad = logo("url(http://x.example/#a)")
    with pytest.raises(CatalogueInvalidError, match="logo"):
        await bench.apply(plain.replace("time_zone: UTC}", f"time_zone: UTC, logo: '{bad}'}}", 1))
    assert [] == await bench.rows("SELECT FROM seller WHERE logo <> ''")
