# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""BillingService on overage: one tenant's, and everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import billing_pb2

from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.services.overage import Overage, overage_of, report_overage
from tollkeeper_ledger.services.tenants import need_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from tollkeeper_ledger.store.pool import Pool

    Context = grpc.aio.ServicerContext[Any, Any]


class OverageReports:
    """The part of BillingService that is about overage."""

    _pool: Pool

    async def GetOverage(
        self, request: billing_pb2.GetOverageRequest, context: Context
    ) -> billing_pb2.GetOverageResponse:
        """Tell what a tenant is over, now and at its period's end."""
        tenant_id = await need_tenant(self._pool, request.tenant)
        return _message(await overage_of(self._pool, tenant_id, wire_id=request.tenant))

    async def ReportOverage(
        self, request: billing_pb2.ReportOverageRequest, context: Context
    ) -> AsyncIterator[billing_pb2.ReportOverageResponse]:
        """Tell who is over or will be."""
        async for tenant, found in report_overage(self._pool):
            if isinstance(found, Overage):
                yield billing_pb2.ReportOverageResponse(tenant=tenant, overage=_message(found))
            else:
                yield billing_pb2.ReportOverageResponse(tenant=tenant, problem=str(found))


def _message(found: Overage) -> billing_pb2.GetOverageResponse:
    units: dict[str, int] = {}
    for line in found.lines:
        units[line.meter] = units.get(line.meter, 0) + line.charged
    return billing_pb2.GetOverageResponse(
        units=units,
        amount_minor=found.amount_minor,
        currency=found.currency,
        projected_amount_minor=found.projected_amount_minor,
        period_start=timestamp(found.period.start),
        period_end=timestamp(found.period.end),
        plan=found.plan,
        lines=[
            billing_pb2.OverageLine(
                description=line.description,
                meter=line.meter,
                unit=line.unit,
                scale=line.scale,
                quantity=line.quantity,
                charged=line.charged,
                amount_minor=line.amount_minor,
                projected_quantity=line.projected_quantity,
                projected_charged=line.projected_charged,
                projected_amount_minor=line.projected_amount_minor,
            )
            for line in found.lines
        ],
    )
