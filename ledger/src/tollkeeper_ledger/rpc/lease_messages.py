"""Convert what holders say after a restore."""

from __future__ import annotations

from tollkeeper.ledger.v1 import limits_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.learning import Told
from tollkeeper_ledger.domain.limits import UNITS_MAX
from tollkeeper_ledger.domain.windows import Span
from tollkeeper_ledger.services.learning import Leases

_ID_BYTES = 16
_INT64_MAX = 2**63 - 1
_SOURCES_MAX = 1_000


def leases_from_message(holder: bytes, message: limits_pb2.WindowLeases, field: str) -> Leases:
    """Give what a holder says of one window. Raises InvalidFieldError for what no holder can have.

    A window without sources has one of which nothing is out, so that the ledger knows of the window.
    """
    _require_length(message.window_id, f"{field}.window_id")
    if message.key_hash:
        _require_length(message.key_hash, f"{field}.key_hash")
    if not 0 <= message.start_us < message.end_us:
        raise InvalidFieldError(f"{field}.end_us", "is not after start_us", value=message.end_us)
    if message.timeline > _INT64_MAX:
        raise InvalidFieldError(f"{field}.timeline", "is no timeline", reason="FIELD_OUT_OF_RANGE")
    if len(message.sources) > _SOURCES_MAX:
        raise InvalidFieldError(
            f"{field}.sources", "are too many", reason="FIELD_TOO_LONG", bound=f"up to {_SOURCES_MAX}"
        )
    told = [
        Told(
            timeline=0,
            window_id=message.window_id,
            start_us=message.start_us,
            end_us=message.end_us,
            holder=_holder(source.holder or holder, f"{field}.sources[{index}].holder"),
            generation=_number(source.generation, f"{field}.sources[{index}].generation", most=_INT64_MAX),
            units=_number(source.units, f"{field}.sources[{index}].units"),
            total=_number(source.total, f"{field}.sources[{index}].total"),
            allotted=_number(message.allotted, f"{field}.allotted"),
        )
        for index, source in enumerate(message.sources or [limits_pb2.SourceLeases()])
    ]
    return Leases(
        tenant=message.tenant,
        limit=message.limit,
        key_hash=message.key_hash,
        key_values=tuple(message.key_values),
        window_id=message.window_id,
        span=Span(message.start_us, message.end_us),
        timeline=message.timeline,
        told=tuple(told),
    )


def _require_length(value: bytes, field: str) -> None:
    if len(value) != _ID_BYTES:
        raise InvalidFieldError(field, "is no name", value=f"{len(value)} bytes", bound="16 bytes")


def _holder(holder: bytes, field: str) -> bytes:
    _require_length(holder, field)
    return holder


def _number(value: int, field: str, *, most: int = UNITS_MAX) -> int:
    if not 0 <= value <= most:
        raise InvalidFieldError(
            field, "is out of range", reason="FIELD_OUT_OF_RANGE", value=value, bound=f"0 to {most}"
        )
    return value
