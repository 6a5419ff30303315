"""Answer a mutating request once: a repeat of it gets the first answer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tollkeeper_ledger.rpc.acting import act_of
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.idempotency import first_answer, keep_answer
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    import grpc.aio
    from google.protobuf.message import Message

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection, Pool

    Context = grpc.aio.ServicerContext[Any, Any]

    class Mutation(Protocol):
        """A request message with a request_id."""

        @property
        def request_id(self) -> str:
            """Give the idempotency id."""
            ...

        def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802 - protobuf's name
            """Give the wire bytes."""
            ...

    class OfTenant(Mutation, Protocol):
        """A mutating request that names a tenant."""

        @property
        def tenant(self) -> str:
            """Give the wire id."""
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


async def once_for_tenant(
    pool: Pool,
    request: OfTenant,
    answer_type: type[Answer],
    work: Callable[[Connection, UUID, Act], Awaitable[Answer]],
    context: Context,
) -> Answer:
    """Do in one transaction, once, what a request wants of its tenant; `work` is told the tenant and who acts.

    Raises UnknownNameError: no such tenant; else as `answer_once`.
    """
    tenant_id = await need_tenant(pool, request.tenant)

    async def acted() -> Answer:
        return await work(conn, tenant_id, await act_of(conn, request, context))

    async with transaction(pool) as conn:
        return await answer_once(conn, request, answer_type, acted)
