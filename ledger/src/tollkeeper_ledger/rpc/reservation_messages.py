"""Convert what callers say of reservations: tokens, settlements, releases."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from google.protobuf.message import DecodeError
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, usage_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.reservation_token import invalid_token, signed_content
from tollkeeper_ledger.domain.settlement import Actual, Reservation
from tollkeeper_ledger.domain.usage import ATTRIBUTES_MAX, NAME_BYTES_MAX, QUANTITIES_MAX, UNITS_MAX, LevelName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tollkeeper_ledger.services.reservation_ends import Ended

_ID_BYTES = 16


def reservation_of(token: str, keys: Mapping[int, bytes]) -> Reservation:
    """Verify a token and read what it says. Raises InvalidFieldError FIELD_REQUIRED, RESERVATION_INVALID."""
    if not token:
        raise InvalidFieldError("token", "is empty", reason="FIELD_REQUIRED", bound="the token of a reservation")
    try:
        said = limits_pb2.ReservationToken.FromString(signed_content(token, keys))
    except DecodeError as error:
        raise invalid_token("its content can't be read") from error
    if len(said.reservation_id) != _ID_BYTES or len(said.home) != _ID_BYTES:
        raise invalid_token("its ids are not 16 bytes")
    return Reservation(
        reservation_id=said.reservation_id,
        tenant=said.tenant,
        home=UUID(bytes=said.home),
        expires_us=said.expires_us,
        costs=tuple((cost.meter, cost.units) for cost in said.costs),
        attributes=tuple((pair.name, pair.value) for pair in said.attributes),
        holder=said.holder,
        levels=tuple(
            (hold.meter, hold.units, LevelName(hold.tenant, hold.limit, hold.key_hash))
            for hold in said.holds
            if hold.kind == decision_pb2.LIMIT_KIND_LEVEL
        ),
    )


def actual_of(request: quota_pb2.SettleReservationRequest) -> Actual:
    """Read what was used. Raises InvalidFieldError with field, bound and remedy."""
    if len(request.quantities) > QUANTITIES_MAX:
        raise _too_many("quantities", len(request.quantities), QUANTITIES_MAX)
    if len(request.attributes) > ATTRIBUTES_MAX:
        raise _too_many("attributes", len(request.attributes), ATTRIBUTES_MAX)
    seen: set[str] = set()
    for index, quantity in enumerate(request.quantities):
        field = f"quantities[{index}]"
        _check_text(f"{field}.meter", quantity.meter)
        if quantity.meter in seen:
            raise InvalidFieldError(
                f"{field}.meter", "stands twice", reason="FIELD_REPEATED", value=quantity.meter, bound="named once"
            )
        seen.add(quantity.meter)
        if not 0 <= quantity.units <= UNITS_MAX:
            raise InvalidFieldError(
                f"{field}.units",
                "is out of range",
                reason="FIELD_OUT_OF_RANGE",
                value=quantity.units,
                bound=f"0 to {UNITS_MAX}",
                remedy="send a whole number of the meter's unit within the bound",
            )
    for name, value in request.attributes.items():
        _check_text("attributes.key", name)
        _check_text("attributes", value, empty=True)
    event_us = request.event_time.ToMicroseconds() if request.HasField("event_time") else None
    return Actual(
        quantities=tuple((quantity.meter, quantity.units) for quantity in request.quantities),
        attributes=tuple(request.attributes.items()),
        event_us=event_us,
    )


def quantities_of(units: Iterable[tuple[str, int]]) -> Sequence[usage_pb2.Quantity]:
    """Give units per meter as messages."""
    return [usage_pb2.Quantity(meter=meter, units=amount) for meter, amount in units]


def settled_message(ended: Ended) -> quota_pb2.SettleReservationResponse:
    """Give what a settlement did."""
    return quota_pb2.SettleReservationResponse(
        refunded=quantities_of(ended.refunded),
        excess=quantities_of(ended.excess),
        record_id=ended.record_id,
        expired=ended.expired,
        repeated_call=ended.repeated,
    )


def _check_text(field: str, text: str, *, empty: bool = False) -> None:
    if not text and not empty:
        raise InvalidFieldError(field, "is empty", reason="FIELD_REQUIRED", bound="1 to 128 bytes")
    if len(text.encode()) > NAME_BYTES_MAX:
        raise InvalidFieldError(
            field, "is too long", reason="FIELD_TOO_LONG", value=text, bound="at most 128 bytes", remedy="shorten it"
        )
    if not text.isprintable():
        raise InvalidFieldError(
            field, "has characters that can't be shown", bound="free of control characters", remedy="leave them out"
        )


def _too_many(field: str, count: int, bound: int) -> InvalidFieldError:
    return InvalidFieldError(
        field, "has too many entries", reason="FIELD_TOO_LONG", value=count, bound=f"at most {bound}"
    )
