"""A whole platform of real processes for tests: Postgres, Valkey, a ledger, and as many sidecars as asked for."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    billing_pb2,
    billing_pb2_grpc,
    limits_pb2,
    reports_pb2,
    reports_pb2_grpc,
)
from tollkeeper_cli.embedded.process import Child, ChildSpec
from tollkeeper_cli.stack import CHANNEL_OPTIONS, Addresses, Servers, Stack, is_serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

ANY_PORT = Addresses(
    ledger_listen="127.0.0.1:0", ledger_http="127.0.0.1:0", sidecar_listen="127.0.0.1:0", sidecar_http="127.0.0.1:0"
)
CALL_TIMEOUT_S = 60.0
VERIFY_TIMEOUT_S = 600.0


class AddedSidecar:
    """One more sidecar of a platform, with a usage log of its own."""

    def __init__(self, stack: Stack, name: str, environment: Mapping[str, str]) -> None:
        folder = stack.directory / name
        folder.mkdir(exist_ok=True)
        self.target = f"unix:{folder / 's.sock'}"
        self.log_folder = folder / "usage-log"
        own = {
            "TOLLKEEPER_SIDECAR_LISTEN": "127.0.0.1:0",
            "TOLLKEEPER_SIDECAR_HTTP": "127.0.0.1:0",
            "TOLLKEEPER_SIDECAR_SOCKET": str(folder / "s.sock"),
            "TOLLKEEPER_USAGE_LOG_DIR": str(self.log_folder),
            "TOLLKEEPER_USAGE_LOG_BYTES": str(64 << 20),
        }
        self._child = Child(
            ChildSpec(
                name=name,
                argv=[sys.executable, "-m", "tollkeeper_sidecar"],
                log_path=folder / "sidecar.log",
                pid_path=folder / "sidecar.pid.json",
                environment={**os.environ, **stack.environment(), **own, **environment},
            )
        )

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._child.start()
        self._child.wait_until(lambda: is_serving(self.target), timeout_s=60)

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._child.kill()

    @property
    def exit_code(self) -> int | None:
        """Return the code with which it ended; None while it runs."""
        return self._child.exit_code

    def stop(self) -> bool:
        """End it in order and return whether it did end so within 30 s."""
        return self._child.stop(timeout_s=30)


class Platform:
    """A running stack and the calls that tests make to it."""

    def __init__(self, directory: Path, *, servers: Servers | None = None) -> None:
        self.stack = Stack(directory, addresses=ANY_PORT, servers=servers)
        self._requests = 0
        self.added: list[AddedSidecar] = []

    def start(self) -> None:
        """Start every process and wait until each serves."""
        self.stack.start()

    def stop(self) -> None:
        """End every process; nobody needs what they hold any more."""
        for sidecar in self.added:
            sidecar.kill()
        self.stack.kill_sidecar()
        self.stack.kill_ledger()
        self.stack.stop()

    def add_sidecar(self, name: str, **environment: str) -> str:
        """Start one more sidecar, with settings of its own, and return the target of its Unix socket."""
        sidecar = AddedSidecar(self.stack, name, environment)
        sidecar.start()
        self.added.append(sidecar)
        return sidecar.target

    @property
    def target(self) -> str:
        """Return the target of the first sidecar's Unix socket."""
        return self.stack.addresses.sidecar_target

    @asynccontextmanager
    async def channel(self, target: str | None = None) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel to a sidecar, by default the first one's Unix socket."""
        async with grpc.aio.insecure_channel(target or self.target, options=CHANNEL_OPTIONS) as channel:
            yield channel

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel to the ledger."""
        async with grpc.aio.insecure_channel(self.stack.addresses.ledger_listen) as channel:
            yield channel

    def request_id(self) -> str:
        """Return a fresh idempotency id."""
        self._requests += 1
        return f"test-{self._requests}"

    @staticmethod
    def now() -> Timestamp:
        """Return the present; the ledger's clock runs at real time unless a test sets it."""
        stamp = Timestamp()
        stamp.GetCurrentTime()
        stamp.nanos -= stamp.nanos % 1000
        return stamp

    async def apply(self, yaml: str) -> None:
        """Declare a catalogue."""
        async with self.ledger() as channel:
            await admin_pb2_grpc.AdminServiceStub(channel).ApplyCatalogue(
                admin_pb2.ApplyCatalogueRequest(request_id=self.request_id(), yaml=yaml, source_name="test"),
                timeout=CALL_TIMEOUT_S,
            )

    async def set_limit(self, tenant: str, rule: limits_pb2.LimitRule) -> int:
        """Give a tenant a whole new limit, or replace it; return the change number."""
        return await self._override(
            admin_pb2.SetOverrideRequest(request_id=self.request_id(), tenant=tenant, limit=rule.name, rule=rule)
        )

    async def set_amount(self, tenant: str, limit: str, amount: int) -> int:
        """Change only the amount of a tenant's limit; return the change number."""
        return await self._override(
            admin_pb2.SetOverrideRequest(request_id=self.request_id(), tenant=tenant, limit=limit, amount=amount)
        )

    async def change_plan(self, tenant: str, plan: str) -> None:
        """Move a tenant's subscription to a plan now."""
        request = admin_pb2.ChangeSubscriptionRequest(request_id=self.request_id(), tenant=tenant, plan=plan, at="now")
        async with self.ledger() as channel:
            await admin_pb2_grpc.AdminServiceStub(channel).ChangeSubscription(request, timeout=CALL_TIMEOUT_S)

    async def _override(self, request: admin_pb2.SetOverrideRequest) -> int:
        async with self.ledger() as channel:
            answer = await admin_pb2_grpc.AdminServiceStub(channel).SetOverride(request, timeout=CALL_TIMEOUT_S)
        return answer.change

    async def stored(self, tenant: str) -> list[reports_pb2.StoredRecord]:
        """Return every stored record of a tenant."""
        records: list[reports_pb2.StoredRecord] = []
        async with self.ledger() as channel:
            stub = reports_pb2_grpc.ReportServiceStub(channel)
            async for page in stub.ListUsageRecords(
                reports_pb2.ListUsageRecordsRequest(tenant=tenant), timeout=CALL_TIMEOUT_S
            ):
                records.extend(page.records)
        return records

    async def until_stored(self, tenant: str, count: int) -> list[reports_pb2.StoredRecord]:
        """Wait until so many records of a tenant are stored, at most 2 min, and return them."""
        give_up_s = time.monotonic() + 120
        while len(records := await self.stored(tenant)) < count and time.monotonic() < give_up_s:  # noqa: ASYNC110 - asks
            await asyncio.sleep(0.5)
        return records

    async def billable(self, tenant: str) -> dict[str, int]:
        """Return a tenant's units per meter as an invoice would see them."""
        async with self.ledger() as channel:
            preview = await billing_pb2_grpc.BillingServiceStub(channel).PreviewInvoice(
                billing_pb2.PreviewInvoiceRequest(tenant=tenant), timeout=CALL_TIMEOUT_S
            )
        return {line.meter: line.quantity for line in preview.invoice.lines if line.meter}

    async def rolled_up(self, tenant: str) -> dict[str, int]:
        """Return a tenant's units per meter as reports see them."""
        async with self.ledger() as channel:
            answer = await reports_pb2_grpc.ReportServiceStub(channel).QueryUsage(
                reports_pb2.QueryUsageRequest(tenant=tenant), timeout=CALL_TIMEOUT_S
            )
        return {bucket.meter: int(bucket.sum) for bucket in answer.buckets}

    async def findings(self) -> list[reports_pb2.AuditFinding]:
        """Have everything checked that is stored of usage, chain and sums, and return what is wrong."""
        async with self.ledger() as channel:
            stub = reports_pb2_grpc.ReportServiceStub(channel)
            call = stub.VerifyUsage(reports_pb2.VerifyUsageRequest(), timeout=VERIFY_TIMEOUT_S)
            told = [answer async for answer in call]
        assert told[-1].done
        return [answer.finding for answer in told if answer.HasField("finding")]

    async def stored_ids(self, tenant: str) -> list[str]:
        """Return the id of every stored record of a tenant."""
        return [record.id for record in await self.stored(tenant)]
