# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService's part about thresholds on use and spend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper.ledger.v1 import reports_pb2

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.alerting import alert_told, check_alerts
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.alerts import list_alerts
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.violations import list_violations

if TYPE_CHECKING:
    from collections.abc import Collection

    import grpc.aio

    from tollkeeper_ledger.domain.alerts import Figure
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.pool import Row

    Context = grpc.aio.ServicerContext[Any, Any]


class AlertReports:
    """Serve whoever wants to know what reached its threshold."""

    def __init__(self, resources: Resources) -> None:
        self._alert_pool = resources.pools.billing

    async def ListAlerts(
        self, request: reports_pb2.ListAlertsRequest, context: Context
    ) -> reports_pb2.ListAlertsResponse:
        """List thresholds that were reached, newest first."""
        size = page_size(request.page_size)
        only = await need_tenant(self._alert_pool, request.tenant) if request.tenant else None
        async with transaction(self._alert_pool) as conn:
            found = await list_alerts(conn, before=before_of(request.page_token), count_max=size + 1, only=only)
        token = next_token(found, size, lambda one: (one[1].fired_at, one[1].alert_id))
        return reports_pb2.ListAlertsResponse(
            alerts=[canonical_json(alert_told(wire_id, alert)).decode() for wire_id, alert in found[:size]],
            next_page_token=token,
        )

    async def ListViolations(
        self, request: reports_pb2.ListViolationsRequest, context: Context
    ) -> reports_pb2.ListViolationsResponse:
        """List windows that were used beyond their limits, those that began last first."""
        size = page_size(request.page_size)
        only = await need_tenant(self._alert_pool, request.tenant) if request.tenant else None
        async with transaction(self._alert_pool) as conn:
            found = await list_violations(conn, before=before_of(request.page_token), count_max=size + 1, only=only)
        token = next_token(found, size, lambda row: (row["first_at"], UUID(bytes=row["window_id"])))
        return reports_pb2.ListViolationsResponse(violations=map(_violation, found[:size]), next_page_token=token)

    async def CheckAlerts(
        self, request: reports_pb2.CheckAlertsRequest, context: Context
    ) -> reports_pb2.CheckAlertsResponse:
        """Say how far a tenant's windows and billing periods are; tell of what is reached where that is asked for."""
        tenant_id = await need_tenant(self._alert_pool, request.tenant)
        found = await check_alerts(self._alert_pool, tenant_id, notify=request.notify)
        return reports_pb2.CheckAlertsResponse(states=[_state(figure, fired) for figure, fired in found])


def _violation(row: Row) -> str:
    times = ("starts_at", "ends_at", "first_at", "last_at")
    shown = {name: row[name] for name in ("enforcement", "key_values", "amount", "consumed", "over")}
    shown |= {"tenant": row["wire_id"], "limit": row["limit_name"]} | {name: row[name].isoformat() for name in times}
    return canonical_json(shown).decode()


def _state(figure: Figure, fired: Collection[str]) -> reports_pb2.AlertState:
    return reports_pb2.AlertState(
        kind=figure.kind,
        subject=figure.subject,
        key_values=figure.key_values,
        start=timestamp(figure.starts_at),
        end=timestamp(figure.ends_at),
        base=f"{figure.base:f}",
        value=f"{figure.value:f}",
        at=figure.at,
        reached=figure.reached,
        fired=[one for one in figure.at if one in fired],
    )
