"""What the ledger records of levels when it ends a reservation itself."""

from __future__ import annotations

from uuid import UUID

import pytest
from tollkeeper_ledger.domain.settlement import Actual, Reservation, end_columns
from tollkeeper_ledger.domain.usage import LevelChange, LevelName

SEATS = LevelName("acme", "seats", b"")
HOLDER = b"h" * 16


def reservation(held: int) -> Reservation:
    """Give a reservation of three seats, of which so many are held."""
    return Reservation(
        reservation_id=b"r" * 16,
        tenant="acme",
        home=UUID(int=1),
        expires_us=2,
        costs=(("seats", 3),),
        attributes=(),
        holder=HOLDER,
        levels=(("seats", held, SEATS),),
    )


@pytest.mark.parametrize(
    ("held", "used", "rises"),
    [
        (3, 2, [LevelChange(0, SEATS, HOLDER, 2, 0)]),
        (3, 5, [LevelChange(0, SEATS, HOLDER, 5, 0)]),
        (0, 2, [LevelChange(0, SEATS, HOLDER, 2, 2)]),
        (3, 0, []),
    ],
)
def test_a_level_rises_by_what_was_used(held: int, used: int, rises: list[LevelChange]) -> None:
    """The rise names the holder whose lease it came from; what no lease was held for is beyond the limit."""
    actual = Actual(quantities=(("seats", used),), attributes=(), event_us=None)
    assert rises == end_columns(reservation(held), actual, (), now_us=1).level_changes


def test_a_release_raises_nothing() -> None:
    """A reservation that ends at zero stores nothing."""
    assert end_columns(reservation(3), None, (), now_us=1).level_changes == []
