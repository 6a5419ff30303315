# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService on money: what is owed, what was earned, rows for cost tools."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper.ledger.v1 import reports_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.focus import credit_note_rows, focus_rows
from tollkeeper_ledger.domain.margin import Earned, UsedAtCost, margins
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.recurring import recurring_revenue
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.billing_invoices import list_invoices
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.money_views import (
    read_credit_notes,
    read_receivables,
    read_revenue,
    read_usage_at_cost,
)
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from datetime import datetime

    import grpc.aio

    from tollkeeper_ledger.services.recurring import RecurringRow
    from tollkeeper_ledger.services.resources import Resources

    Context = grpc.aio.ServicerContext[Any, Any]

GROUPS = ("month", "plan", "meter", "tenant")
MARGIN_GROUPS = ("month", "meter", "tenant")


def _known(by: str, groups: tuple[str, ...]) -> str:
    if by not in groups:
        raise InvalidFieldError("by", "is not known", value=ascii(by[:32]), bound=", ".join(groups))
    return by


def _span(
    request: reports_pb2.GetRevenueRequest | reports_pb2.GetMarginsRequest,
) -> tuple[datetime | None, datetime | None]:
    """Give from when to when periods end that are meant; None where nobody says it."""
    start = getattr(request, "from").ToDatetime(tzinfo=UTC) if request.HasField("from") else None
    return start, request.to.ToDatetime(tzinfo=UTC) if request.HasField("to") else None


def _recurring(row: RecurringRow) -> reports_pb2.RecurringRow:
    found = row.movements
    sums = {field.name: getattr(found, field.name) for field in fields(found)}
    return reports_pb2.RecurringRow(
        month=row.month,
        plan=row.plan,
        currency=row.currency,
        per_tenant_minor=found.per_tenant_minor,
        tenant_churn_bp=found.churned_tenants_share,
        revenue_churn_bp=found.lost_share,
        **sums,
    )


class MoneyReports:
    """The part of ReportService that is about money."""

    def __init__(self, resources: Resources) -> None:
        self._money_pool = resources.pools.billing

    async def GetRevenue(
        self, request: reports_pb2.GetRevenueRequest, context: Context
    ) -> reports_pb2.GetRevenueResponse:
        """Sum what was invoiced by month and group."""
        by = _known(request.by or "month", GROUPS)
        start, end = _span(request)
        async with transaction(self._money_pool) as conn:
            rows = await read_revenue(conn, by=by, start=start, end=end)
        sums: dict[str, int] = {}
        for row in rows:
            sums[row["currency"]] = sums.get(row["currency"], 0) + row["revenue_minor"]
        return reports_pb2.GetRevenueResponse(
            amount_minor=sums,
            rows=[
                reports_pb2.RevenueRow(
                    month=row["month"],
                    group=row["name"],
                    currency=row["currency"],
                    revenue_minor=row["revenue_minor"],
                )
                for row in rows
            ],
        )

    async def GetMargins(
        self, request: reports_pb2.GetMarginsRequest, context: Context
    ) -> reports_pb2.GetMarginsResponse:
        """Say what is left of revenue once usage is paid at its cost price."""
        by = _known(request.by or "tenant", MARGIN_GROUPS)
        start, end = _span(request)
        async with (
            connection(self._money_pool) as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            earned = await read_revenue(conn, by=by, start=start, end=end)
            used = await read_usage_at_cost(conn, by=by, start=start, end=end)
        found = margins((Earned(**row) for row in earned), (UsedAtCost(**row) for row in used))
        return reports_pb2.GetMarginsResponse(
            rows=[
                reports_pb2.MarginRow(
                    month=row.month,
                    group=row.name,
                    currency=row.currency,
                    revenue_minor=row.revenue_minor,
                    own_cost_minor=row.own_cost_minor,
                    margin_minor=row.margin_minor,
                    margin_bp=row.margin_bp,
                )
                for row in found
            ]
        )

    async def GetRecurringRevenue(
        self, request: reports_pb2.GetRecurringRevenueRequest, context: Context
    ) -> reports_pb2.GetRecurringRevenueResponse:
        """Sum what subscriptions are worth a month, and how that moved."""
        async with (
            connection(self._money_pool) as conn,
            conn.transaction(isolation="repeatable_read", readonly=True),
        ):
            rows = await recurring_revenue(
                conn,
                first=getattr(request, "from"),
                last=request.to,
                by_plan=request.by_plan,
                now=await ledger_now(conn),
            )
        return reports_pb2.GetRecurringRevenueResponse(rows=map(_recurring, rows))

    async def GetReceivables(
        self, request: reports_pb2.GetReceivablesRequest, context: Context
    ) -> reports_pb2.GetReceivablesResponse:
        """Sum what payers owe by age."""
        only = await need_tenant(self._money_pool, request.tenant) if request.tenant else None
        async with transaction(self._money_pool) as conn:
            rows = await read_receivables(conn, now=await ledger_now(conn), only=only)
        return reports_pb2.GetReceivablesResponse(
            ages=[
                reports_pb2.ReceivableAge(
                    tenant=row["wire_id"],
                    currency=row["currency"],
                    current_minor=row["current_minor"],
                    days_30_minor=row["days_30_minor"],
                    days_60_minor=row["days_60_minor"],
                    days_90_minor=row["days_90_minor"],
                    older_minor=row["older_minor"],
                    total_minor=row["total_minor"],
                )
                for row in rows
            ]
        )

    async def ExportFocus(
        self, request: reports_pb2.ExportFocusRequest, context: Context
    ) -> reports_pb2.ExportFocusResponse:
        """Give lines and taxes of invoices, and what credits them, as rows."""
        size = page_size(request.page_size)
        async with transaction(self._money_pool) as conn:
            found = await list_invoices(conn, before=before_of(request.page_token), count_max=size + 1, only=None)
            shown = [one for one in found[:size] if one.standing.state != "void"]
            documents = {one.invoice_id: one.read() for one in shown}
            credited = [
                (UUID(documents[one.invoice_id]["billing_tenant"]["tenant_id"]), one.invoice_id)
                for one in shown
                if one.standing.credited_minor
            ]
            notes = await read_credit_notes(conn, credited)
        token = next_token(found, size, lambda one: (one.finalised_at, one.invoice_id))
        rows = [
            reports_pb2.FocusRow(columns=row)
            for invoice_id, document in documents.items()
            for part in (focus_rows(document), *map(credit_note_rows, notes.get(invoice_id, ())))
            for row in part
        ]
        return reports_pb2.ExportFocusResponse(rows=rows, next_page_token=token)
