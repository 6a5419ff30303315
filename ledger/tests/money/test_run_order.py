# ruff: noqa: SIM300 - expected first, then actual
"""Batches that are billed at the same time have no lock in common: each is followed by one from far away."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tollkeeper_ledger.services.fairness import far_apart


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("count", [*range(12), 500])
def test_items_in_a_row_lie_far_apart_and_each_comes_once(count: int, at_once: int) -> None:
    """Nothing is lost or doubled, and of two in a row none is nearer than a share of all, but where the rows end."""
    order = far_apart(range(count), at_once=at_once)
    assert [*range(count)] == sorted(order)
    stride = -(-count // at_once)
    near = [pair for pair in pairwise(order) if at_once > 1 and abs(pair[0] - pair[1]) < stride - 1]
    assert not near


def test_two_at_once_take_turns_in_both_halves() -> None:
    """The first of one half, the first of the other, then the seconds."""
    assert [0, 3, 1, 4, 2] == far_apart(range(5), at_once=2)
