# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""AdminService: convert messages and call the services."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, limits_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import from_us
from tollkeeper_ledger.rpc.acting import act_of, actor_of, timestamp
from tollkeeper_ledger.rpc.admin_pseudonyms import AdminPseudonyms
from tollkeeper_ledger.rpc.admin_quarantine import AdminQuarantine
from tollkeeper_ledger.rpc.admin_subscriptions import AdminSubscriptions
from tollkeeper_ledger.rpc.admin_webhooks import AdminWebhooks
from tollkeeper_ledger.rpc.admin_windows import AdminWindows
from tollkeeper_ledger.rpc.fields import instant_of
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.rpc.limit_rules import (
    decision_log_from_message,
    enforcement_from_message,
    rule_from_message,
    rule_to_message,
)
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.rpc.producer_service import AdminProducers
from tollkeeper_ledger.services import catalogue, overrides
from tollkeeper_ledger.services.levels import LevelAsked, set_level_to
from tollkeeper_ledger.services.tenants import check_tenant, need_tenant, set_tenant_state
from tollkeeper_ledger.store.catalogue import read_meters, read_plans, read_tenants
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import tenant_transaction, transaction
from tollkeeper_ledger.store.tenants import load_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping

    import grpc.aio

    from tollkeeper_ledger.domain.catalogue.known import Change
    from tollkeeper_ledger.domain.issuing import Issuing
    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.pool import Connection

    Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {"active": limits_pb2.TENANT_STATE_ACTIVE, "suspended": limits_pb2.TENANT_STATE_SUSPENDED}
_STATE_NAMES = {number: name for name, number in _STATES.items()}


def _tenant(row: Mapping[str, Any]) -> admin_pb2.Tenant:
    return admin_pb2.Tenant(
        tenant=row["wire_id"],
        display_name=row["display_name"],
        state=_STATES[row["state"]],
        parent=row["parent"],
        billing_tenant=row["billing_tenant"],
        plan=row["plan"],
    )


def _change(change: Change) -> admin_pb2.CatalogueChange:
    return admin_pb2.CatalogueChange(action=change.action, kind=change.kind, name=change.name, detail=change.detail)


class AdminService(
    AdminWindows,
    AdminSubscriptions,
    AdminQuarantine,
    AdminProducers,
    AdminPseudonyms,
    AdminWebhooks,
    admin_pb2_grpc.AdminServiceServicer,
):
    """Serve operators."""

    def __init__(self, resources: Resources, limits: Limits) -> None:
        super().__init__(resources, limits)
        AdminQuarantine.__init__(self, resources, limits)
        AdminProducers.__init__(self, resources)
        AdminPseudonyms.__init__(self, resources)
        AdminWebhooks.__init__(self, resources, limits)
        self._pools = resources.pools

    async def ApplyCatalogue(
        self, request: admin_pb2.ApplyCatalogueRequest, context: Context
    ) -> admin_pb2.ApplyCatalogueResponse:
        """Declare a catalogue: all of it or nothing."""

        async def work() -> admin_pb2.ApplyCatalogueResponse:
            changes = await catalogue.apply_catalogue(
                conn,
                yaml_text=request.yaml,
                source_name=request.source_name,
                request_id=request.request_id,
                actor=actor_of(context),
                now=await ledger_now(conn),
            )
            return admin_pb2.ApplyCatalogueResponse(changes=map(_change, changes))

        async with transaction(self._pools.billing) as conn:
            return await answer_once(conn, request, admin_pb2.ApplyCatalogueResponse, work)

    async def DiffCatalogue(
        self, request: admin_pb2.DiffCatalogueRequest, context: Context
    ) -> admin_pb2.DiffCatalogueResponse:
        """Show what ApplyCatalogue would change."""
        async with transaction(self._pools.billing) as conn:
            changes = await catalogue.diff_catalogue(
                conn, yaml_text=request.yaml, source_name=request.source_name, now=await ledger_now(conn)
            )
        return admin_pb2.DiffCatalogueResponse(changes=map(_change, changes))

    async def ListTenants(
        self, request: admin_pb2.ListTenantsRequest, context: Context
    ) -> admin_pb2.ListTenantsResponse:
        """List tenants in wire id order."""
        size = page_size(request.page_size)
        (after,) = from_token(request.page_token, start=("",))
        async with transaction(self._pools.billing) as conn:
            rows = await read_tenants(conn, after=after, count_max=size + 1)
        token = to_token(rows[size - 1]["wire_id"]) if len(rows) > size else ""
        return admin_pb2.ListTenantsResponse(tenants=map(_tenant, rows[:size]), next_page_token=token)

    async def GetTenant(self, request: admin_pb2.GetTenantRequest, context: Context) -> admin_pb2.GetTenantResponse:
        """Give one tenant."""
        check_tenant(request.tenant)
        async with transaction(self._pools.billing) as conn:
            tenant = await self._read_tenant(conn, request.tenant)
        return admin_pb2.GetTenantResponse(tenant=tenant)

    async def _read_tenant(self, conn: Connection, wire_id: str) -> admin_pb2.Tenant:
        rows = await read_tenants(conn, only=wire_id)
        if not rows:
            raise UnknownNameError("tenant", wire_id, remedy="declare it in the catalogue")
        return _tenant(rows[0])

    async def SetTenantState(
        self, request: admin_pb2.SetTenantStateRequest, context: Context
    ) -> admin_pb2.SetTenantStateResponse:
        """Suspend or reactivate a tenant."""
        if request.state not in _STATE_NAMES:
            raise InvalidFieldError(
                "state",
                "is not known",
                reason="ENUM_UNKNOWN" if request.state else "FIELD_REQUIRED",
                value=request.state,
                bound="ACTIVE, SUSPENDED",
            )
        tenant_id = await need_tenant(self._pools.billing, request.tenant)

        async def work() -> admin_pb2.SetTenantStateResponse:
            act = await act_of(conn, request, context)
            state = _STATE_NAMES[request.state]
            # Read first: the number of the change must be the last statement.
            tenant = await self._shown(request.tenant)
            tenant.state = request.state
            await set_tenant_state(conn, tenant_id, state=state, act=act)
            return admin_pb2.SetTenantStateResponse(tenant=tenant)

        async with tenant_transaction(self._pools.admin, tenant_id) as conn:
            return await answer_once(conn, request, admin_pb2.SetTenantStateResponse, work)

    async def _shown(self, wire_id: str) -> admin_pb2.Tenant:
        async with transaction(self._pools.billing) as conn:
            return await self._read_tenant(conn, wire_id)

    async def ListMeters(self, request: admin_pb2.ListMetersRequest, context: Context) -> admin_pb2.ListMetersResponse:
        """List meters in name order."""
        size = page_size(request.page_size)
        (after,) = from_token(request.page_token, start=("",))
        async with transaction(self._pools.billing) as conn:
            found = await read_meters(conn, after=after, count_max=size + 1)
        meters = [
            admin_pb2.Meter(
                name=meter.name,
                unit=meter.unit,
                aggregation=meter.aggregation,
                scale=meter.scale,
                attributes=meter.attributes,
                value_attribute=meter.value_attribute,
                dimensions=meter.dimensions,
                late_max_s=meter.late_max_s,
                early_max_s=meter.early_max_s,
                cost_price=None if meter.cost_price is None else admin_pb2.CostPrice(**meter.cost_price.to_json()),
            )
            for meter in found[:size]
        ]
        token = to_token(meters[-1].name) if len(found) > size else ""
        return admin_pb2.ListMetersResponse(meters=meters, next_page_token=token)

    async def ListPlans(self, request: admin_pb2.ListPlansRequest, context: Context) -> admin_pb2.ListPlansResponse:
        """List plans with their current versions."""
        size = page_size(request.page_size)
        (after,) = from_token(request.page_token, start=("",))
        async with transaction(self._pools.billing) as conn:
            rows = await read_plans(conn, after=after, count_max=size + 1)
        plans = [
            admin_pb2.Plan(
                name=row["name"],
                version=row["version"],
                digest=row["digest"].hex(),
                definition=row["definition"].decode(),
            )
            for row in rows[:size]
        ]
        token = to_token(plans[-1].name) if len(rows) > size else ""
        return admin_pb2.ListPlansResponse(plans=plans, next_page_token=token)

    async def ListLimits(self, request: admin_pb2.ListLimitsRequest, context: Context) -> admin_pb2.ListLimitsResponse:
        """List a tenant's effective limits with their source."""
        check_tenant(request.tenant)
        async with self._pools.billing.acquire() as conn:
            views = await load_tenants(conn, wire_ids=[request.tenant])
        view = next((view for view in views if view.wire_id == request.tenant), None)
        if view is None:
            raise UnknownNameError("tenant", request.tenant, remedy="declare it in the catalogue")
        return admin_pb2.ListLimitsResponse(limits=map(rule_to_message, view.limits))

    async def SetOverride(
        self, request: admin_pb2.SetOverrideRequest, context: Context
    ) -> admin_pb2.SetOverrideResponse:
        """Set or replace one limit of one tenant."""
        tenant_id = await need_tenant(self._pools.billing, request.tenant)
        asked = overrides.OverrideAsked(
            name=request.limit,
            amount=request.amount if request.HasField("amount") else None,
            enforcement=enforcement_from_message(request.enforcement, field="enforcement"),
            burst=request.burst if request.HasField("burst") else None,
            rule=rule_from_message(request.rule) if request.HasField("rule") else None,
            note=request.note,
            shared=request.shared if request.HasField("shared") else None,
            decision_log=decision_log_from_message(request.decision_log, field="decision_log"),
            decision_log_one_in=request.decision_log_one_in or None,
        )

        async def work() -> admin_pb2.SetOverrideResponse:
            act = await act_of(conn, request, context)
            change = await overrides.set_override(conn, tenant_id, asked, act)
            limit = await overrides.effective_limit(conn, tenant_id, asked.name)
            if limit is None:
                raise RuntimeError(f"override {asked.name!r} has no effect")
            return admin_pb2.SetOverrideResponse(limit=rule_to_message(limit), change=change)

        async with tenant_transaction(self._pools.admin, tenant_id) as conn:
            return await answer_once(conn, request, admin_pb2.SetOverrideResponse, work)

    async def DeleteOverride(
        self, request: admin_pb2.DeleteOverrideRequest, context: Context
    ) -> admin_pb2.DeleteOverrideResponse:
        """Remove an override; the limit that it hid is in force again."""
        tenant_id = await need_tenant(self._pools.billing, request.tenant)

        async def work() -> admin_pb2.DeleteOverrideResponse:
            act = await act_of(conn, request, context)
            change = await overrides.delete_override(conn, tenant_id, name=request.limit, act=act)
            return admin_pb2.DeleteOverrideResponse(change=change)

        async with tenant_transaction(self._pools.admin, tenant_id) as conn:
            return await answer_once(conn, request, admin_pb2.DeleteOverrideResponse, work)

    async def SetLevel(self, request: admin_pb2.SetLevelRequest, context: Context) -> admin_pb2.SetLevelResponse:
        """Set what a level really is."""
        tenant_id = await need_tenant(self._pools.billing, request.tenant)
        asked = LevelAsked(limit=request.limit, key=tuple(request.key), units=request.units, reason=request.reason)

        async def work(conn: Connection, act: overrides.Act, issuing: Issuing) -> admin_pb2.SetLevelResponse:
            done = await set_level_to(conn, tenant_id, asked, act, issuing, random_bytes=secrets.token_bytes)
            return admin_pb2.SetLevelResponse(
                before_units=done.before, units=done.after, leased_units=done.leased, amount=done.amount
            )

        return await self._issued(request, context, admin_pb2.SetLevelResponse, work)

    async def SetClock(self, request: admin_pb2.SetClockRequest, context: Context) -> admin_pb2.SetClockResponse:
        """Set the scaled clock. No answer is kept: a clock never goes back, so a repeat changes nothing."""
        if not request.request_id:
            raise InvalidFieldError("request_id", "is required", reason="FIELD_REQUIRED", bound="1 to 128 bytes")
        reading = await self._resources.clock.set(
            now=instant_of("now", request.now) if request.HasField("now") else None,
            speed_milli=request.speed_milli if request.HasField("speed_milli") else None,
        )
        return admin_pb2.SetClockResponse(now=timestamp(from_us(reading.now_us)), version=reading.version)

    async def GetClock(self, request: admin_pb2.GetClockRequest, context: Context) -> admin_pb2.GetClockResponse:
        """Read ledger time."""
        reading = await self._resources.clock.get()
        return admin_pb2.GetClockResponse(
            now=timestamp(from_us(reading.now_us)),
            speed_milli=reading.speed_milli,
            embedded=self._resources.clock.embedded,
        )
