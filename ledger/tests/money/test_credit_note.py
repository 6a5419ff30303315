"""Credit notes: base and tax per rate, and every rate's whole once the whole invoice is credited."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from tollkeeper_ledger.domain import receivable as owed
from tollkeeper_ledger.domain.credit_note import credit_note_document
from tollkeeper_ledger.domain.shares import cut_steadily

NOW = datetime(2031, 5, 1, tzinfo=UTC)


def invoice(rates: list[tuple[str, int, int]], untaxed_minor: int = 0) -> dict[str, Any]:
    """Give an invoice of (percent, base, tax) per rate."""
    taxes = [{"name": "VAT", "percent": percent, "base_minor": base, "tax_minor": tax} for percent, base, tax in rates]
    subtotal = sum(base for _, base, _ in rates) + untaxed_minor
    tax_minor = sum(tax for _, _, tax in rates)
    names = ("tenant", "billing_tenant", "billing", "subscription_id", "time_zone", "period", "plan", "currency")
    return {
        **dict.fromkeys(names, ""), "currency_digits": 2, "record_count": 0, "seller": {"invoice_prefix": "TK"},
        "invoice_id": "i", "number": "TK-000001", "taxes": taxes, "subtotal_minor": subtotal, "tax_minor": tax_minor,
        "total_minor": subtotal + tax_minor,
    }  # fmt: skip


def credited(shown: dict[str, Any], amounts: list[int]) -> list[dict[str, Any]]:
    """Credit an invoice in parts and give the documents."""
    before = owed.issue(
        subtotal_minor=shown["subtotal_minor"], tax_minor=shown["tax_minor"], balance_minor=0
    ).receivable
    documents = []
    for serial, amount_minor in enumerate(amounts, start=1):
        change = owed.credit(before, amount_minor)
        before = change.receivable
        documents.append(
            credit_note_document(
                json.dumps(shown).encode(), serial=serial, amount_minor=amount_minor, change=change, note="", at=NOW
            )
        )
    return documents


def test_each_rate_has_its_share() -> None:
    """Half of an invoice of two rates and an untaxed line takes half of each."""
    shown = invoice([("19", 10_000, 1_900), ("7", 2_000, 140)], untaxed_minor=4_000)
    (document,) = credited(shown, [9_020])
    assert [(rate["percent"], rate["base_minor"], rate["tax_minor"]) for rate in document["taxes"]] == [
        ("19", 5_000, 950),
        ("7", 1_000, 70),
    ]
    assert (document["subtotal_minor"], document["tax_minor"], document["total_minor"]) == (8_000, 1_020, 9_020)


@given(
    rates=st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 3_000)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 50_000), max_size=5, unique=True),
)
@example(rates=[(6, 6), (6, 6), (2, 2)], cuts=list(range(1, 28)))
def test_credits_of_all_take_all_of_each_rate(rates: list[tuple[int, int]], cuts: list[int]) -> None:
    """However an invoice is credited, the shares sum to each note's tax, and in the end to each rate's base and tax.

    No note charges anything under a rate: cut by largest remainders, a cent of the third rate came back here.
    """
    shown = invoice([(str(place), base, tax) for place, (base, tax) in enumerate(rates)])
    total = shown["total_minor"]
    edges = [0, *sorted(cut for cut in cuts if cut < total), total]
    documents = credited(shown, [end - start for start, end in pairwise(edges)])
    for document in documents:
        assert all(rate["base_minor"] >= 0 and rate["tax_minor"] >= 0 for rate in document["taxes"])
        assert document["tax_minor"] == sum(rate["tax_minor"] for rate in document["taxes"])
        assert document["subtotal_minor"] == sum(rate["base_minor"] for rate in document["taxes"])
    for place, rate in enumerate(shown["taxes"]):
        for name in ("base_minor", "tax_minor"):
            assert rate[name] == sum(document["taxes"][place][name] for document in documents)


@given(weights=st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_no_share_falls_when_the_amount_rises(weights: list[int]) -> None:
    """Shares add up to the amount, none falls with the next unit, and the sum of the weights is cut into them."""
    before = (0,) * len(weights)
    for amount in range(sum(weights) + 1):
        shares = cut_steadily(amount, weights)
        assert sum(shares) == amount
        assert all(now >= then for now, then in zip(shares, before, strict=True))
        assert cut_steadily(-amount, weights) == tuple(-share for share in shares)
        before = shares
    assert before == tuple(weights)
