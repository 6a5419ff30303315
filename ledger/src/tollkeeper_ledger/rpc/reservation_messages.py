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
from tollkeeper_ledger.domain.usage import LevelName
from tollkeeper_ledger.rpc.usage_fields import checked_attributes, checked_quantities

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
    event_us = request.event_time.ToMicroseconds() if request.HasField("event_time") else None
    return Actual(
        quantities=checked_quantities(request.quantities),
        attributes=checked_attributes(request.attributes),
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
