"""What is told of rows that anybody may have changed can be carried and shown."""

from __future__ import annotations

import pytest
from tollkeeper_ledger.domain.telling import CHARS_MAX, telling


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ""),
        ("tenant Zoë", "tenant Zoë"),
        ("a\nb\0\x1b[2J\ud800\u202e", r"a\nb\x00\x1b[2J\ud800\u202e"),
        ("x" * CHARS_MAX, "x" * CHARS_MAX),
        ("x" * (CHARS_MAX + 1), "x" * (CHARS_MAX - 1) + "…"),
    ],
)
def test_only_what_prints_is_told(text: str, told: str) -> None:
    """Ends of lines, control characters and halves of characters are written as escapes."""
    assert told == telling(text)


@pytest.mark.parametrize("character", ["x", "\n", "\0", "\U000e0001", "\ud800"])
@pytest.mark.parametrize("count", [CHARS_MAX // 10, CHARS_MAX - 1, CHARS_MAX, CHARS_MAX + 1, 9 * CHARS_MAX])
def test_what_is_told_is_bounded_however_it_is_written(character: str, count: int) -> None:
    """Escapes count as the characters that they take, and what is left out is marked."""
    told = telling(character * count)
    assert len(told) <= CHARS_MAX
    assert told.isprintable()
    told.encode()
    whole = len(character * count if character == "x" else telling(character) * count) <= CHARS_MAX
    assert whole == (not told.endswith("…"))
