"""Tell of rows that anybody may have changed."""

from __future__ import annotations

_CHARS_MAX = 4_000


def telling(text: str) -> str:
    """Give a text that a message and a terminal can carry: nothing but what prints, of a long one the beginning."""
    if len(text) > _CHARS_MAX:
        text = f"{text[:_CHARS_MAX]}\N{HORIZONTAL ELLIPSIS}"
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
