"""Instants of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.services.usage_query import BEGINNING, END

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf import timestamp_pb2
    from google.protobuf.message import Message


def instant_of(request: Message, field: str) -> datetime | None:
    """Give the instant of a field, whose name may be a word of Python's; None where it is absent."""
    if not request.HasField(field):
        return None
    message: timestamp_pb2.Timestamp = getattr(request, field)
    if not (
        to_us(BEGINNING) <= message.seconds * 1_000_000 <= to_us(END) and 0 <= message.nanos < 1_000_000_000  # noqa: PLR2004 - nanoseconds of a second
    ):
        raise InvalidFieldError(
            field,
            "is out of range",
            reason="FIELD_OUT_OF_RANGE",
            value=message.seconds,
            bound=f"{BEGINNING.isoformat()} to {END.isoformat()}",
        )
    if message.nanos % 1000:
        raise InvalidFieldError(field, "has parts of a microsecond", value=message.nanos, bound="whole microseconds")
    return from_us(message.seconds * 1_000_000 + message.nanos // 1000)
