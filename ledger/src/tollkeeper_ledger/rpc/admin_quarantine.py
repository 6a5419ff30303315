# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService's part about records in quarantine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper.ledger.v1 import quarantine_pb2
from tollkeeper.quota.v1 import usage_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.domain.usage import SEQ_MAX
from tollkeeper_ledger.domain.usage_judgement import NOBODY
from tollkeeper_ledger.domain.usage_quarantine import ActOutcome, read_refused
from tollkeeper_ledger.rpc.acting import act_of, timestamp
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.services.tenants import check_tenant
from tollkeeper_ledger.services.usage import UsageIngest
from tollkeeper_ledger.services.usage_input import input_producer_id
from tollkeeper_ledger.services.usage_quarantine import (
    Asked,
    discard_records,
    event_times,
    find_refused,
    release_records,
)
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.usage_batches import find_tenants
from tollkeeper_ledger.store.usage_quarantine import RefusedKey, Waiting, read_acts, read_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import grpc.aio
    from google.protobuf import timestamp_pb2

    from tollkeeper_ledger.domain.usage_quarantine import QuarantineAct
    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.services.usage_quarantine import Ended
    from tollkeeper_ledger.store.pool import Connection

    Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    ActOutcome.RELEASED: quarantine_pb2.QUARANTINE_STATE_RELEASED,
    ActOutcome.DUPLICATE: quarantine_pb2.QUARANTINE_STATE_DUPLICATE,
    ActOutcome.DISCARDED: quarantine_pb2.QUARANTINE_STATE_DISCARDED,
    ActOutcome.REFUSED: quarantine_pb2.QUARANTINE_STATE_WAITING,
}
_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,19})\Z")
_START = f"{'0' * 32}-0"


class AdminQuarantine:
    """Serve operators what concerns records that could not be stored."""

    def __init__(self, resources: Resources, limits: Limits) -> None:
        self._ingest_pool = resources.pools.ingest
        self._ingest = UsageIngest(
            resources.pools.ingest,
            embedded=resources.settings.embedded,
            chain=resources.chain,
            restores=limits.restores,
            log=resources.log,
        )
        self._releaser_id = input_producer_id(limits.installation.installation_id, "quarantine")

    async def ListQuarantine(
        self, request: quarantine_pb2.ListQuarantineRequest, context: Context
    ) -> quarantine_pb2.ListQuarantineResponse:
        """List records that the ledger could not store."""
        size = page_size(request.page_size)
        (after,) = from_token(request.page_token, start=(_START,))
        if request.tenant:
            check_tenant(request.tenant)
        async with connection(self._ingest_pool) as conn:
            tenant_ids, ending = None, None
            if request.tenant:
                tenant_ids = [NOBODY, *(await find_tenants(conn, [request.tenant])).values()]
                ending = f',"tenant":"{request.tenant}"}}'.encode()
            found = await read_page(
                conn,
                after=_key(after, field="page_token"),
                tenant_ids=tenant_ids,
                ending=ending,
                ended=request.ended,
                reason=request.reason or None,
                count_max=size + 1,
            )
        token = to_token(str(found[size - 1].key)) if len(found) > size else ""
        return quarantine_pb2.ListQuarantineResponse(records=map(_record, found[:size]), next_page_token=token)

    async def GetQuarantined(
        self, request: quarantine_pb2.GetQuarantinedRequest, context: Context
    ) -> quarantine_pb2.GetQuarantinedResponse:
        """Give one of them whole."""
        key = _key(request.record, field="record")
        async with connection(self._ingest_pool) as conn:
            found = await find_refused(conn, key, tenant=request.tenant)
            acts = await read_acts(conn, found.row)
        return quarantine_pb2.GetQuarantinedResponse(
            record=_record(found), json=found.row.record.decode(errors="replace"), acts=map(_act, acts)
        )

    async def ReleaseQuarantined(
        self, request: quarantine_pb2.ReleaseQuarantinedRequest, context: Context
    ) -> quarantine_pb2.ReleaseQuarantinedResponse:
        """Append records of quarantine again."""
        asked = Asked(_keys(request.records), request.tenant, request.note)

        async def attempt(conn: Connection) -> quarantine_pb2.ReleaseQuarantinedResponse:
            await self._ingest.need_months(conn, await event_times(conn, asked), await ledger_now(conn))

            async def work() -> quarantine_pb2.ReleaseQuarantinedResponse:
                act = await act_of(conn, request, context)
                ended = await release_records(conn, self._ingest, self._releaser_id, asked, act)
                return quarantine_pb2.ReleaseQuarantinedResponse(results=map(_result, ended))

            async with conn.transaction():
                return await answer_once(conn, request, quarantine_pb2.ReleaseQuarantinedResponse, work)

        return await self._ingest.attempted(attempt)

    async def DiscardQuarantined(
        self, request: quarantine_pb2.DiscardQuarantinedRequest, context: Context
    ) -> quarantine_pb2.DiscardQuarantinedResponse:
        """Say of records in quarantine that they never count."""
        asked = Asked(_keys(request.records), request.tenant, request.note)
        async with transaction(self._ingest_pool) as conn:

            async def work() -> quarantine_pb2.DiscardQuarantinedResponse:
                ended = await discard_records(conn, asked, await act_of(conn, request, context))
                return quarantine_pb2.DiscardQuarantinedResponse(results=map(_result, ended))

            return await answer_once(conn, request, quarantine_pb2.DiscardQuarantinedResponse, work)


def _keys(names: Iterable[str]) -> Sequence[RefusedKey]:
    return [_key(name, field=f"records[{at}]") for at, name in enumerate(names)]


def _key(name: str, *, field: str) -> RefusedKey:
    """Read a record's name. Raises InvalidFieldError where it is none."""
    found = _NAME.match(name)
    if found is None or int(found[2]) > SEQ_MAX:
        raise InvalidFieldError(field, "names no record", value=name[:64], bound="32 hexadecimal digits, -, a number")
    return RefusedKey(UUID(hex=found[1]), int(found[2]))


def _record(found: Waiting) -> quarantine_pb2.QuarantinedRecord:
    told = quarantine_pb2.QuarantinedRecord(
        record=str(found.key),
        reason=found.problem.reason,
        field=found.problem.field,
        quarantined_at=timestamp(from_us(found.row.at_us)),
        state=_STATES[found.outcome or ActOutcome.REFUSED],
    )
    if refused := read_refused(found.row.record):
        use = refused.use
        told.tenant, told.id = use.tenant, use.id
        told.quantities.extend(usage_pb2.Quantity(meter=meter, units=units) for meter, units in use.quantities)
        if event_time := _event_time(use.event_us):
            told.event_time.CopyFrom(event_time)
    return told


def _event_time(event_us: int) -> timestamp_pb2.Timestamp | None:
    try:
        return timestamp(from_us(event_us))
    except (OverflowError, ValueError):
        return None


def _act(act: QuarantineAct) -> quarantine_pb2.QuarantineAct:
    return quarantine_pb2.QuarantineAct(
        at=timestamp(from_us(act.at_us)),
        actor=act.actor,
        state=_STATES[act.outcome],
        reason=act.problem.reason if act.problem else "",
        field=act.problem.field if act.problem else "",
        note=act.note,
    )


def _result(ended: Ended) -> quarantine_pb2.QuarantineResult:
    return quarantine_pb2.QuarantineResult(
        record=str(ended.key),
        state=_STATES[ended.outcome],
        reason=ended.problem.reason if ended.problem else "",
        field=ended.problem.field if ended.problem else "",
        before=ended.before,
    )
