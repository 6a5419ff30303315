"""A ledger served on a test's own database, and the command line that talks to it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio
from tollkeeper.ledger.v1 import billing_pb2_grpc, payments_pb2_grpc
from tollkeeper_cli.main import main
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import pytest
    from tollkeeper_ledger.config import Settings


@asynccontextmanager
async def served(settings: Settings, url: str) -> AsyncIterator[tuple[Any, Any, str]]:
    """Serve a ledger on a database: stubs of BillingService and PaymentService, and its address."""
    own = settings.model_copy(update={"database_url": url})
    async with running(own) as ledger:
        address = f"127.0.0.1:{ledger.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield (
                billing_pb2_grpc.BillingServiceStub(channel),
                payments_pb2_grpc.PaymentServiceStub(channel),
                address,
            )


def command_line(address: str, capfd: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[Any]]:
    """Give a call that runs `tollkeeper WORDS` and gives its output, read where it is JSON; `code` is its exit code."""

    async def cli(*words: str, code: int = 0) -> Any:
        capfd.readouterr()
        found = await asyncio.to_thread(main, ["--ledger", address, *words])
        out = capfd.readouterr()
        assert code == found, out
        return json.loads(out.out) if "json" in words else out.out

    return cli
