"""Tell of rows that anybody may have changed."""

from __future__ import annotations

CHARS_MAX = 4_000
"""Of what is told of one row."""


def telling(text: str) -> str:
    """Give a text that a message and a terminal can carry: nothing but what prints, of a long one the beginning."""
    told = text[:CHARS_MAX]
    if not told.isprintable():
        told = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in told)
    if len(text) <= CHARS_MAX and len(told) <= CHARS_MAX:
        return told
    return f"{told[: CHARS_MAX - 1]}\N{HORIZONTAL ELLIPSIS}"
