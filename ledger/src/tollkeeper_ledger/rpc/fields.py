"""Fields of requests that several calls read alike."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import from_us

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from google.protobuf import timestamp_pb2


def out_of_range(field: str, value: object, bound: str) -> InvalidFieldError:
    """Give the error for a value beyond its bound."""
    return InvalidFieldError(field, "is out of range", reason="FIELD_OUT_OF_RANGE", value=value, bound=bound)


def instant_of(field: str, message: timestamp_pb2.Timestamp) -> datetime:
    """Read a time. Raises InvalidFieldError: a year that no calendar has."""
    return instant_of_us(field, message.ToMicroseconds())


def instant_of_us(field: str, us: int) -> datetime:
    """Read a time in microseconds since the Unix epoch. Raises InvalidFieldError: a year that no calendar has."""
    try:
        return from_us(us)
    except OverflowError:
        raise out_of_range(field, us, "years 1 to 9999") from None


def id_of(text: str, kind: str) -> UUID:
    """Read the internal id of the field `<kind>_id`. Raises InvalidFieldError."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidFieldError(f"{kind}_id", "is no id", value=ascii(text[:64]), bound="a UUID") from None
