"""Words that users bring along are read as ours, values never."""

from __future__ import annotations

import pytest
from tollkeeper_cli.aliases import with_our_words


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("customer list", "tenant list"),
        ("--ledger customer tier list", "--ledger customer plan list"),
        ("--ledger=customer limit get-all", "--ledger=customer quota get-all"),
        ("quota get-all --customer acme", "quota get-all --tenant acme"),
        ("quota get-all --customer=tier", "quota get-all --tenant=tier"),
        (
            "quota set customer 5 --service tokens --reset-period day",
            "quota set customer 5 --meter tokens --window day",
        ),
        ("quota get -- --customer", "quota get -- --customer"),
        ("quota get customer", "quota get customer"),
    ],
)
def test_aliases_are_read_as_our_words(typed: str, read: str) -> None:
    """Options anywhere and the group's name; neither values nor what follows `--`."""
    assert with_our_words(typed.split()) == read.split()
