# ruff: noqa: N802 - names of methods are the contract's
"""AdminService's part about pseudonyms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import admin_pb2

from tollkeeper_ledger.rpc.acting import act_of
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.services.pseudonyms import forget_pseudonyms
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.pool import tenant_transaction

if TYPE_CHECKING:
    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources

    Context = grpc.aio.ServicerContext[Any, Any]


class AdminPseudonyms:
    """Serve operators what concerns pseudonyms."""

    def __init__(self, resources: Resources) -> None:
        self._pseudonym_pools = resources.pools

    async def ForgetPseudonyms(
        self, request: admin_pb2.ForgetPseudonymsRequest, context: Context
    ) -> admin_pb2.ForgetPseudonymsResponse:
        """Destroy the key of a tenant's pseudonyms."""
        tenant_id = await need_tenant(self._pseudonym_pools.billing, request.tenant)
        async with tenant_transaction(self._pseudonym_pools.admin, tenant_id) as conn:

            async def work() -> admin_pb2.ForgetPseudonymsResponse:
                act = await act_of(conn, request, context)
                version = await forget_pseudonyms(conn, tenant_id, note=request.note, act=act)
                return admin_pb2.ForgetPseudonymsResponse(version=version)

            return await answer_once(conn, request, admin_pb2.ForgetPseudonymsResponse, work)
