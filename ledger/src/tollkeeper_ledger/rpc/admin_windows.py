# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService's part about windows: their states, history, resets, and what stops issuing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import admin_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.rpc.acting import act_of, timestamp
from tollkeeper_ledger.rpc.idempotent import Answer, answer_once
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.services.notes import check_note
from tollkeeper_ledger.services.resets import STATES_MAX, ResetAsked, reset_all_expired, reset_limit
from tollkeeper_ledger.services.tenants import check_tenant, need_tenant
from tollkeeper_ledger.store import witnesses
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.operators import AUDIT_ID_MAX, Place, read_features, read_history, read_windows
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    import grpc.aio
    from google.protobuf import timestamp_pb2

    from tollkeeper_ledger.domain.issuing import Issuing, Witness
    from tollkeeper_ledger.rpc.idempotent import Mutation
    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.operators import HistoryEntry, WindowView
    from tollkeeper_ledger.store.pool import Connection
    from tollkeeper_ledger.store.tenants import TenantView

    Context = grpc.aio.ServicerContext[Any, Any]


class AdminWindows:
    """Serve operators what concerns windows."""

    def __init__(self, resources: Resources, limits: Limits) -> None:
        self._resources = resources
        self._limits = limits

    async def ListFeatures(
        self, request: admin_pb2.ListFeaturesRequest, context: Context
    ) -> admin_pb2.ListFeaturesResponse:
        """List features in name order."""
        size = page_size(request.page_size)
        (after,) = from_token(request.page_token, start=("",))
        async with connection(self._resources.pools.billing) as conn:
            found = await read_features(conn, after=after, count_max=size + 1)
        token = to_token(found[size - 1]) if len(found) > size else ""
        return admin_pb2.ListFeaturesResponse(features=found[:size], next_page_token=token)

    async def ListLimitStates(
        self, request: admin_pb2.ListLimitStatesRequest, context: Context
    ) -> admin_pb2.ListLimitStatesResponse:
        """List windows as they stand, of all tenants or one."""
        size = page_size(request.page_size)
        if request.tenant:
            await need_tenant(self._resources.pools.billing, request.tenant)
        async with connection(self._resources.pools.ingest) as conn:
            found = await read_windows(
                conn,
                now_us=self._resources.clock.reading().now_us,
                tenant=request.tenant or None,
                limit=request.limit or None,
                after=_place(request.page_token),
                count_max=size + 1,
            )
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = to_token(last.tenant, last.limit, last.key_hash.hex(), str(last.start_us))
        return admin_pb2.ListLimitStatesResponse(states=map(_state, found[:size]), next_page_token=token)

    async def ListLimitHistory(
        self, request: admin_pb2.ListLimitHistoryRequest, context: Context
    ) -> admin_pb2.ListLimitHistoryResponse:
        """List who did what to a tenant's limits, newest first."""
        size = page_size(request.page_size)
        (last,) = from_token(request.page_token, start=(str(AUDIT_ID_MAX),))
        if not last.isdecimal() or int(last) > AUDIT_ID_MAX:
            raise InvalidFieldError("page_token", "is not one that this listing gave")
        tenant_id = await need_tenant(self._resources.pools.billing, request.tenant)
        async with connection(self._resources.pools.billing) as conn:
            found = await read_history(
                conn, tenant_id, limit=request.limit or None, before=int(last), count_max=size + 1
            )
        token = to_token(str(found[size - 1].audit_id)) if len(found) > size else ""
        return admin_pb2.ListLimitHistoryResponse(entries=map(_history, found[:size]), next_page_token=token)

    async def ResetLimit(self, request: admin_pb2.ResetLimitRequest, context: Context) -> admin_pb2.ResetLimitResponse:
        """Begin the next round of the windows that are open now."""
        tenant = await self._tenant(request.tenant)
        asked = ResetAsked(limit=request.limit, key_values=tuple(request.key_values), note=request.note)

        async def work(conn: Connection, act: Act, issuing: Issuing) -> admin_pb2.ResetLimitResponse:
            states = await reset_limit(conn, tenant, asked, act, issuing)
            return admin_pb2.ResetLimitResponse(windows=len(states), states=map(_state, states[:STATES_MAX]))

        answer = await self._issued(request, context, admin_pb2.ResetLimitResponse, work)
        self._limits.amounts.nudge()
        return answer

    async def ResetAllExpired(
        self, request: admin_pb2.ResetAllExpiredRequest, context: Context
    ) -> admin_pb2.ResetAllExpiredResponse:
        """Turn calendar windows that are over and that nobody has asked for since."""
        only = (await self._tenant(request.tenant)).tenant_id if request.tenant else None

        async def work(conn: Connection, act: Act, issuing: Issuing) -> admin_pb2.ResetAllExpiredResponse:
            states = await reset_all_expired(conn, self._limits.tenants, act, issuing, only=only)
            return admin_pb2.ResetAllExpiredResponse(states=map(_state, states))

        return await self._issued(request, context, admin_pb2.ResetAllExpiredResponse, work)

    async def _tenant(self, wire_id: str) -> TenantView:
        check_tenant(wire_id)
        # A catalogue applied a moment ago counts.
        await self._limits.tenants.catch_up()
        found = await self._limits.tenants.get([wire_id])
        if wire_id not in found:
            raise UnknownNameError("tenant", wire_id, remedy="declare it in the catalogue")
        return found[wire_id]

    async def _issued(
        self,
        request: Mutation,
        context: Context,
        answer_type: type[Answer],
        work: Callable[[Connection, Act, Issuing], Awaitable[Answer]],
    ) -> Answer:
        """Do what lets units be issued in a transaction with a witness, once for each request_id."""

        async def attempt() -> tuple[Answer, Witness]:
            async with transaction(self._resources.pools.ingest) as conn:
                witness, issuing = await self._limits.restores.issue(conn)
                act = await act_of(conn, request, context)

                async def once() -> Answer:
                    return await work(conn, act, issuing)

                return await answer_once(conn, request, answer_type, once), witness

        answer, witness = await self._limits.restores.noticed(attempt)
        self._limits.restores.committed(witness)
        return answer

    async def WarmCaches(self, request: admin_pb2.WarmCachesRequest, context: Context) -> admin_pb2.WarmCachesResponse:
        """Make every live sidecar lease one second of demand ahead."""
        return await self._order(request, context, admin_pb2.WarmCachesResponse, "warm")

    async def InvalidateCaches(
        self, request: admin_pb2.InvalidateCachesRequest, context: Context
    ) -> admin_pb2.InvalidateCachesResponse:
        """Make every live sidecar give its leases back and read its limits again."""
        return await self._order(request, context, admin_pb2.InvalidateCachesResponse, "invalidate")

    async def _order(self, request: Any, context: Context, answer_type: type[Answer], action: str) -> Answer:
        """Have sidecars carry out an order, once for each request_id; a repeat waits for the first one's answer."""
        check_note(request.note)
        tenant_id = (await self._tenant(request.tenant)).tenant_id if request.tenant else None
        async with transaction(self._resources.pools.ingest) as conn:

            async def work() -> Answer:
                done = await self._limits.caches.order(action, request.tenant)
                after = {
                    "sidecars": done.sidecars, "silent": done.silent, "pools": done.keys, "tenant": request.tenant
                }  # fmt: skip
                await _audit(conn, request, context, "caches", after, tenant_id=tenant_id)
                return answer_type(sidecars=done.sidecars, sidecars_silent=done.silent, pools=done.keys)

            return await answer_once(conn, request, answer_type, work)

    async def GetLedgerState(
        self, request: admin_pb2.GetLedgerStateRequest, context: Context
    ) -> admin_pb2.GetLedgerStateResponse:
        """Tell what stops issuing, if anything."""
        async with connection(self._resources.pools.ingest) as conn:
            state = await witnesses.read_state(conn)
        return admin_pb2.GetLedgerStateResponse(
            installation_id=state.installation_id.hex(),
            timeline=state.timeline,
            restored_at=_instant(state.restored_at_us),
            frozen_before=_instant(state.frozen_before_us or None),
            clock_held_at=_instant(state.held_at_us),
            clock_jump_s=(state.jump_us or 0) // 1_000_000,
            learning_until=_instant(
                state.learning_until_us if self._resources.clock.reading().now_us < state.learning_until_us else None
            ),
        )

    async def ConfirmRestore(
        self, request: admin_pb2.ConfirmRestoreRequest, context: Context
    ) -> admin_pb2.ConfirmRestoreResponse:
        """Let windows that were open at a restore be issued from again."""
        check_note(request.note)
        async with transaction(self._resources.pools.ingest) as conn:

            async def work() -> admin_pb2.ConfirmRestoreResponse:
                timeline, frozen_before_us = await witnesses.lock_timeline(conn)
                if frozen_before_us:
                    await witnesses.thaw(conn)
                    await _audit(conn, request, context, "timeline", {"timeline": timeline})
                return admin_pb2.ConfirmRestoreResponse(timeline=timeline, was_frozen=frozen_before_us > 0)

            return await answer_once(conn, request, admin_pb2.ConfirmRestoreResponse, work)

    async def ConfirmClock(
        self, request: admin_pb2.ConfirmClockRequest, context: Context
    ) -> admin_pb2.ConfirmClockResponse:
        """Accept ledger time after a forward jump."""
        check_note(request.note)
        async with transaction(self._resources.pools.ingest) as conn:

            async def work() -> admin_pb2.ConfirmClockResponse:
                was_held = await witnesses.release_clock(conn)
                act = await act_of(conn, request, context)
                if was_held:
                    await _audit(conn, request, context, "clock", {"now": act.now.isoformat()})
                return admin_pb2.ConfirmClockResponse(now=timestamp(act.now), was_held=was_held)

            return await answer_once(conn, request, admin_pb2.ConfirmClockResponse, work)


async def _audit(
    conn: Connection,
    request: Any,
    context: Context,
    subject: str,
    after: dict[str, Any],
    *,
    tenant_id: UUID | None = None,
) -> None:
    """Note an act that concerns no limit."""
    act = await act_of(conn, request, context)
    action = type(request).__name__.removesuffix("Request")
    entry = AuditEntry(subject=subject, tenant_id=tenant_id, before=None, after={**after, "note": request.note})
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action=action, request_id=act.request_id)


def _instant(us: int | None) -> timestamp_pb2.Timestamp | None:
    return None if us is None else timestamp(from_us(us))


def _place(token: str) -> Place:
    tenant, limit, key_hash, start = from_token(token, start=("", "", "", "-1"))
    try:
        return Place(tenant=tenant, limit=limit, key_hash=bytes.fromhex(key_hash), start_us=int(start))
    except ValueError:
        raise InvalidFieldError("page_token", "is not one that this listing gave") from None


def _state(view: WindowView) -> admin_pb2.WindowState:
    return admin_pb2.WindowState(
        tenant=view.tenant,
        limit=view.limit,
        key_values=view.key_values,
        start=_instant(view.start_us),
        end=_instant(view.end_us),
        round=view.round,
        amount=view.amount,
        allotted=view.allotted,
        consumed=view.consumed,
        over=view.over,
        outstanding=view.outstanding,
        lowered_at=_instant(view.lowered_at_us),
        settled_at=_instant(view.settled_at_us),
        timeline=view.timeline,
    )


def _history(entry: HistoryEntry) -> admin_pb2.LimitHistoryEntry:
    after = None if entry.after is None else dict(entry.after)
    note = "" if after is None else str(after.pop("note", ""))
    return admin_pb2.LimitHistoryEntry(
        at=timestamp(entry.at),
        actor=entry.actor,
        action=entry.action,
        limit=entry.subject.removeprefix("limit/"),
        before=_json(entry.before),
        after=_json(after),
        note=note,
        request_id=entry.request_id,
    )


def _json(value: dict[str, Any] | None) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)
