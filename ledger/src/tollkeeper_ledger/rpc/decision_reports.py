# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService's part about what limits decided."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import decisions_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.rpc.decision_messages import entry_to_message, reason_name, sum_to_message
from tollkeeper_ledger.rpc.paging import from_token, number_of, page_size, to_token
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.decisions import list_entries, list_sums
from tollkeeper_ledger.store.pool import connection

if TYPE_CHECKING:
    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources

    Context = grpc.aio.ServicerContext[Any, Any]


class DecisionReports:
    """Serve whoever wants to know what was denied."""

    def __init__(self, resources: Resources) -> None:
        self._decision_pool = resources.pools.billing

    async def ListDecisions(
        self, request: decisions_pb2.ListDecisionsRequest, context: Context
    ) -> decisions_pb2.ListDecisionsResponse:
        """List decisions that were kept, those that came last first."""
        size = page_size(request.page_size)
        before = number_of(request.page_token)
        reason = reason_name(request.reason, "reason") if request.reason else None
        only = await need_tenant(self._decision_pool, request.tenant) if request.tenant else None
        async with connection(self._decision_pool) as conn:
            rows = await list_entries(
                conn, before=before, only=only, limit=request.limit or None, reason=reason, count_max=size + 1
            )
        token = to_token(str(rows[size - 1]["entry_id"])) if len(rows) > size else ""
        return decisions_pb2.ListDecisionsResponse(decisions=map(entry_to_message, rows[:size]), next_page_token=token)

    async def CountDecisions(
        self, request: decisions_pb2.CountDecisionsRequest, context: Context
    ) -> decisions_pb2.CountDecisionsResponse:
        """Count decisions by limit and reason, over whole days of UTC."""
        size = page_size(request.page_size)
        after = from_token(request.page_token, start=("", "", ""))
        days = _day(request.from_day, "from_day"), _day(request.to_day, "to_day")
        only = await need_tenant(self._decision_pool, request.tenant) if request.tenant else None
        async with connection(self._decision_pool) as conn:
            rows = await list_sums(
                conn,
                after=(after[0], after[1], after[2]) if request.page_token else None,
                only=only,
                limit=request.limit or None,
                days=days,
                count_max=size + 1,
            )
        token = ""
        if len(rows) > size:
            last = rows[size - 1]
            token = to_token(last["wire_id"], last["limit_name"], last["reason"])
        return decisions_pb2.CountDecisionsResponse(sums=map(sum_to_message, rows[:size]), next_page_token=token)


def _day(text: str, field: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidFieldError(field, "is not a day", value=ascii(text[:64]), bound="YYYY-MM-DD") from None
