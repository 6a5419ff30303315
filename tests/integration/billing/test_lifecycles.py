"""Worked lifecycles: what subscriptions cost from their beginning on, as an accountant would work it out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from lifecycle_play import Lifecycle, Played, play_all

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parent / "data"
CASES = [Lifecycle(**case) for case in yaml.safe_load((DATA / "lifecycles.yaml").read_text())]


@pytest.fixture(scope="module")
def played(new_database: Callable[[], str]) -> Played:
    """Live through all cases side by side, each a tenant of its own, under one clock that tests move."""
    catalogue = (DATA / "lifecycles_catalogue.yaml").read_text()
    return asyncio.run(play_all(new_database(), catalogue, CASES))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_lifecycle_costs_what_was_worked_out(case: Lifecycle, played: Played) -> None:
    """Every invoice up to the case's end has the expected period, lines, coupons and total, and there is no other."""
    assert list(case.invoices) == played.documents[case.name]


def test_every_invoice_of_a_lifecycle_can_be_verified_and_made_again(played: Played) -> None:
    """Chain, usage, charges, total and journal hold; raw records give the same bytes, whatever was changed midway."""
    assert played.doubts == []
