# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""PaymentService's part about charges and credits that somebody adds to invoices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import payments_pb2

from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.fields import id_of
from tollkeeper_ledger.rpc.idempotent import once_for_tenant
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.profiles import add_invoice_item, remove_invoice_item
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.money import read_items
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from uuid import UUID

    import grpc.aio

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection, Pool, Row

    Context = grpc.aio.ServicerContext[Any, Any]


def _item(row: Row) -> payments_pb2.InvoiceItem:
    return payments_pb2.InvoiceItem(
        item_id=str(row["item_id"]),
        tenant=row["wire_id"],
        description=row["description"],
        amount_minor=row["amount_minor"],
        currency=row["currency"],
        added_at=timestamp(row["added_at"]),
        state=row["state"],
        invoice=row["number"],
    )


class InvoiceItems:
    """Serve what concerns items."""

    _pool: Pool

    async def AddInvoiceItem(
        self, request: payments_pb2.AddInvoiceItemRequest, context: Context
    ) -> payments_pb2.AddInvoiceItemResponse:
        """Add a charge or a credit to a tenant's next invoice."""

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> payments_pb2.AddInvoiceItemResponse:
            item_id = await add_invoice_item(
                conn,
                tenant_id,
                description=request.description,
                amount_minor=request.amount_minor,
                currency=request.currency,
                act=act,
            )
            return payments_pb2.AddInvoiceItemResponse(item_id=str(item_id))

        return await once_for_tenant(self._pool, request, payments_pb2.AddInvoiceItemResponse, work, context)

    async def ListInvoiceItems(
        self, request: payments_pb2.ListInvoiceItemsRequest, context: Context
    ) -> payments_pb2.ListInvoiceItemsResponse:
        """List what was added, newest first."""
        size = page_size(request.page_size)
        only = await need_tenant(self._pool, request.tenant) if request.tenant else None
        async with transaction(self._pool) as conn:
            rows = await read_items(
                conn,
                before=before_of(request.page_token),
                count_max=size + 1,
                only=only,
                with_billed=request.with_billed,
            )
        token = next_token(rows, size, lambda row: (row["added_at"], row["item_id"]))
        return payments_pb2.ListInvoiceItemsResponse(items=map(_item, rows[:size]), next_page_token=token)

    async def RemoveInvoiceItem(
        self, request: payments_pb2.RemoveInvoiceItemRequest, context: Context
    ) -> payments_pb2.RemoveInvoiceItemResponse:
        """Remove an item that waits."""

        async def work(conn: Connection, tenant_id: UUID, act: Act) -> payments_pb2.RemoveInvoiceItemResponse:
            item_id = id_of(request.item_id, "item")
            await remove_invoice_item(conn, tenant_id, item_id, note=request.note, act=act)
            return payments_pb2.RemoveInvoiceItemResponse()

        return await once_for_tenant(self._pool, request, payments_pb2.RemoveInvoiceItemResponse, work, context)
