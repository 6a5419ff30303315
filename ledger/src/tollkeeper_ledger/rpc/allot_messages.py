"""Convert Allot's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import limits_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.standing import LEASE_MS
from tollkeeper_ledger.domain.window_state import Ask, Denied, Leased, Pooled, PoolFault, Refused
from tollkeeper_ledger.services.entries import Entry, FromBucket, FromWindow

if TYPE_CHECKING:
    from tollkeeper_ledger.services.entries import Result, WindowFacts

_FAULTS = {fault.value: fault for fault in PoolFault}
_INT64_MAX = 2**63 - 1


def entry_from_message(holder: bytes, message: limits_pb2.AllotEntry) -> Entry:
    """Give one ask. Raises InvalidFieldError for an unknown pool error or a number that no holder can have."""
    fault = None
    if message.pool_error:
        fault = _FAULTS.get(message.pool_error)
        if fault is None:
            raise InvalidFieldError("pool_error", "is not known", reason="ENUM_UNKNOWN", value=message.pool_error)
    if message.request_seq > _INT64_MAX or message.generation_seen > _INT64_MAX:
        raise InvalidFieldError("request_seq", "is out of range", reason="FIELD_OUT_OF_RANGE", bound="1 to 2^63 - 1")
    return Entry(
        tenant=message.tenant,
        limit=message.limit,
        key_hash=message.key_hash,
        key_values=tuple(message.key_values),
        at_us=message.at_us,
        ask=Ask(
            holder=holder,
            request_seq=message.request_seq,
            need=message.need,
            want=message.want,
            generation_seen=message.generation_seen,
            allotted_cum_seen=message.allotted_cum_seen,
            fault=fault,
            ledger_only=message.ledger_only,
        ),
    )


def result_to_message(result: Result) -> limits_pb2.AllotAnswer:
    """Give the answer to one ask."""
    if isinstance(result, Refused):
        return limits_pb2.AllotAnswer(refused=_refused(result))
    if isinstance(result, FromBucket):
        return limits_pb2.AllotAnswer(
            bucket=limits_pb2.BucketShard(
                generation=result.generation,
                marker_key=result.keys.marker,
                bucket_prefix=result.keys.prefix,
                channel=result.keys.channel,
            )
        )
    return _window_answer(result)


def _window_answer(result: FromWindow) -> limits_pb2.AllotAnswer:
    window = _window(result.window)
    match result.answer:
        case Leased(give=give, granted_cum=granted_cum, lease_epoch=lease_epoch):
            lease = limits_pb2.LedgerLease(
                give=give,
                granted_cum=granted_cum,
                lease_epoch=lease_epoch,
                valid_for_ms=LEASE_MS if lease_epoch else 0,
            )
            return limits_pb2.AllotAnswer(window=window, lease=lease)
        case Denied(left=left):
            return limits_pb2.AllotAnswer(window=window, denied=limits_pb2.AllotDenied(left=left))
        case Pooled(generation=generation, allotted_cum=allotted_cum, final=final) if result.pool is not None:
            pool = limits_pb2.PoolInfo(
                generation=generation,
                allotted_cum=allotted_cum,
                final=final,
                pool_key=result.pool.pool,
                holders_key=result.pool.holders,
                channel=result.pool.channel,
                values_key=result.pool.values,
            )
            return limits_pb2.AllotAnswer(window=window, pool=pool)
        case answer:
            raise AssertionError(f"an answer without its parts: {answer!r}")


def _refused(refused: Refused) -> limits_pb2.AllotRefused:
    return limits_pb2.AllotRefused(
        reason=refused.reason, message=refused.message, last_request_seq=refused.last_request_seq
    )


def _window(facts: WindowFacts) -> limits_pb2.WindowInfo:
    return limits_pb2.WindowInfo(
        window_id=facts.window_id,
        start_us=facts.start_us,
        end_us=facts.end_us,
        round=facts.round,
        amount=facts.amount,
        amount_version=facts.amount_version,
        allotted=facts.allotted,
        timeline=facts.timeline,
    )
