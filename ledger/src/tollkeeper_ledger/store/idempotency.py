"""First answers of mutating requests, kept in the transaction that did the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from datetime import timedelta

    from tollkeeper_ledger.store.pool import Connection

REQUEST_ID_BYTES_MAX = 128


async def first_answer(conn: Connection, *, rpc: str, request_id: str, digest: bytes) -> bytes | None:
    """Lock the request id until the transaction ends and give the answer that it already got, if any.

    Raises InvalidFieldError: the id is empty or too long, or was used with another request.
    """
    if not request_id:
        raise InvalidFieldError("request_id", "is required", reason="FIELD_REQUIRED", bound="1 to 128 bytes")
    if len(request_id.encode()) > REQUEST_ID_BYTES_MAX:
        raise InvalidFieldError("request_id", "is too long", reason="FIELD_TOO_LONG", bound="1 to 128 bytes")
    await conn.execute(sql("installation.lock_request"), f"{rpc}/{request_id}")
    row = await conn.fetchrow(sql("installation.find_answer"), rpc, request_id)
    if row is None:
        return None
    if row["digest"] != digest:
        raise InvalidFieldError(
            "request_id",
            "was used with another request",
            reason="REQUEST_ID_REUSED",
            value=request_id,
            remedy="use a new request_id for a new request",
        )
    answer: bytes = row["answer"]
    return answer


async def keep_answer(conn: Connection, *, rpc: str, request_id: str, digest: bytes, answer: bytes) -> None:
    """Keep the answer for repeats. In force when the transaction commits."""
    await conn.execute(sql("installation.keep_answer"), rpc, request_id, digest, answer)


async def expire_answers(conn: Connection, *, age: timedelta, count_max: int) -> int:
    """Forget the oldest answers given so long ago, at most so many; give how many. Their ids may be used anew."""
    done = await conn.execute(sql("installation.expire_answers"), age, count_max)
    return int(done.rpartition(" ")[2])
