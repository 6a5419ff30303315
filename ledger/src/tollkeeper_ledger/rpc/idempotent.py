"""Answer a mutating request once: a repeat of it gets the first answer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol, TypeVar

from tollkeeper_ledger.store.idempotency import first_answer, keep_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from tollkeeper_ledger.store.pool import Connection

    class Mutation(Protocol):
        """A request message with a request_id."""

        @property
        def request_id(self) -> str:
            """Give the idempotency id."""
            ...

        def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802 - protobuf's name
            """Give the wire bytes."""
            ...


Answer = TypeVar("Answer", bound="Message")


async def answer_once(
    conn: Connection, request: Mutation, answer_type: type[Answer], work: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Do the work and keep its answer, or give the answer that this request_id got before.

    `conn` must be in the transaction that does the work. Raises InvalidFieldError: the request_id is missing, too long
    or was used with another request.
    """
    rpc = type(request).__name__.removesuffix("Request")
    digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
    before = await first_answer(conn, rpc=rpc, request_id=request.request_id, digest=digest)
    if before is not None:
        return answer_type.FromString(before)
    answer = await work()
    await keep_answer(conn, rpc=rpc, request_id=request.request_id, digest=digest, answer=answer.SerializeToString())
    return answer
