"""Who acts, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf import timestamp_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.store.clock import ledger_now

if TYPE_CHECKING:
    from datetime import datetime

    import grpc.aio

    from tollkeeper_ledger.store.pool import Connection

    Context = grpc.aio.ServicerContext[Any, Any]

ACTOR_DEFAULT = "operator"
_ACTOR_KEY = "tollkeeper-actor"
_ACTOR_BYTES_MAX = 128


class Named(Protocol):
    """A request with an idempotency id."""

    @property
    def request_id(self) -> str:
        """Give the idempotency id."""
        ...


def actor_of(context: Context) -> str:
    """Give who acts, as the call's metadata says. Raises InvalidFieldError for what is no name."""
    for key, value in context.invocation_metadata() or ():
        if key == _ACTOR_KEY:
            actor = value if isinstance(value, str) else value.decode("ascii", "replace")
            if not actor.isprintable() or not 1 <= len(actor) <= _ACTOR_BYTES_MAX:
                raise InvalidFieldError(
                    _ACTOR_KEY, "is no name", value=ascii(actor[:32]), bound=f"1 to {_ACTOR_BYTES_MAX} printable bytes"
                )
            return actor
    return ACTOR_DEFAULT


async def act_of(conn: Connection, request: Named, context: Context) -> Act:
    """Give who does it, when, and under which request id."""
    return Act(actor=actor_of(context), request_id=request.request_id, now=await ledger_now(conn))


def timestamp(instant: datetime) -> timestamp_pb2.Timestamp:
    """Give an instant as the contract has it."""
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(to_us(instant))
    return message
