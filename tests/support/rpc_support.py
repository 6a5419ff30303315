"""Talk to a ledger's operators' services over gRPC."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, billing_pb2_grpc
from tollkeeper_ledger.app import running
from tollkeeper_ledger.store.clock import ledger_now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from tollkeeper_ledger.config import Settings


class Client:
    """Stubs on one channel, and the time at which the ledger was opened."""

    def __init__(self, channel: grpc.aio.Channel, start: datetime) -> None:
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.billing = billing_pb2_grpc.BillingServiceStub(channel)
        self.start = start

    async def apply(self, yaml: str, request_id: str = "apply") -> admin_pb2.ApplyCatalogueResponse:
        """Declare a catalogue."""
        request = admin_pb2.ApplyCatalogueRequest(request_id=request_id, yaml=yaml, source_name="c.yaml")
        answer: admin_pb2.ApplyCatalogueResponse = await self.admin.ApplyCatalogue(request)
        return answer


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[Client]:
    """Serve a ledger and connect to it."""
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        async with ledger.resources.pools.billing.acquire() as conn:
            start = (await ledger_now(conn)).replace(microsecond=0)
        yield Client(channel, start)


async def refused(call: Any) -> tuple[grpc.StatusCode, error_details_pb2.ErrorInfo]:
    """Give the code and the ErrorInfo of a call that must fail."""
    answer = call.read() if hasattr(call, "read") else call
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return caught.value.code(), error_info(caught.value)


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Give the ErrorInfo of a call that failed."""
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details if isinstance(details, bytes) else details.encode())
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "tollkeeper"
    return info
