"""Pages of listings: sizes and opaque tokens."""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import from_us, to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

Entry = TypeVar("Entry")
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000
_TOKEN_CHARS_MAX = 1024
_DIGITS_MAX = 18


def page_size(asked: int) -> int:
    """Give how many entries a page has. Raises InvalidFieldError above 1,000."""
    if asked > PAGE_SIZE_MAX:
        raise InvalidFieldError(
            "page_size", "is too large", reason="FIELD_OUT_OF_RANGE", value=asked, bound=f"0 to {PAGE_SIZE_MAX}"
        )
    return asked or PAGE_SIZE_DEFAULT


def to_token(*key: str) -> str:
    """Give the token that begins after the entry with this key."""
    return base64.urlsafe_b64encode(json.dumps(key, ensure_ascii=False).encode()).decode()


def from_token(token: str, *, start: Sequence[str]) -> list[str]:
    """Give the key that a token begins after, `start` for none. Raises InvalidFieldError for what is not a token."""
    if not token:
        return list(start)
    key = _decoded(token) if len(token) <= _TOKEN_CHARS_MAX else None
    if (
        not isinstance(key, list)
        or len(key) != len(start)
        or not all(isinstance(part, str) and "\0" not in part for part in key)
    ):
        raise InvalidFieldError(
            "page_token", "is not one that this listing gave", remedy="use next_page_token of the page before"
        )
    return key


def number_of(token: str) -> int | None:
    """Read the token of a listing whose rows have numbers; None for the first page. Raises InvalidFieldError."""
    (text,) = from_token(token, start=("",))
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
        raise InvalidFieldError(
            "page_token", "is not one that this listing gave", remedy="use next_page_token of the page before"
        )
    return int(text)


def _decoded(token: str) -> object:
    try:
        decoded: object = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return decoded


def next_token(rows: Sequence[Entry], size: int, key: Callable[[Entry], tuple[datetime, object]]) -> str:
    """Give the token after the last row shown of a listing that is newest first, read with one row more than a page.

    `key` gives time and id of a row, by which the listing is ordered. Empty on the last page.
    """
    if len(rows) <= size:
        return ""
    at, row_id = key(rows[size - 1])
    return to_token(str(to_us(at)), str(row_id))


def before_of(token: str) -> tuple[datetime, UUID] | None:
    """Read the token of a listing that is newest first: time and id of the last row shown; None for the first page.

    Raises InvalidFieldError for what is no such token.
    """
    if not token:
        return None
    at_us, row_id = from_token(token, start=("", ""))
    try:
        return from_us(int(at_us)), UUID(row_id)
    except (ValueError, OverflowError):
        raise InvalidFieldError("page_token", "is not one that this listing gave") from None
