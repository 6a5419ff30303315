# ruff: noqa: SIM300 - expected first, then actual
"""What we send to Stripe and take from it over real HTTP: every request passes stripe-mock, events arrive."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from billing_bench import open_billing_bench
from fake_stripe import SECRET, Clock, FakeStripe
from stripe_shop import Shop, act_on, open_shop
from tollkeeper_ledger.app import running
from tollkeeper_ledger.payments.stripe_http import StripeHttp
from tollkeeper_ledger.payments.wire import Request
from tollkeeper_ledger.services.collecting import work_of
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.provider_lookup import look_up
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand
from tollkeeper_ledger.services.reconciling import reconcile
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.provider_jobs import Job, lock_job, read_work
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

MODULE = "github.com/stripe/stripe-mock@v0.203.0"
BINARIES = Path(__file__).resolve().parents[3] / ".run" / "go"
INSTALL_ATTEMPTS = 3


def stripe_mock() -> Path:
    """Give stripe-mock, built once per checkout."""
    if shutil.which("go") is None:
        pytest.skip(
            "Go is missing, so stripe-mock can't be built: requests are not checked against Stripe's description"
        )
    found = BINARIES / "stripe-mock"
    for _ in range(INSTALL_ATTEMPTS):
        if not found.is_file():
            subprocess.run(["go", "install", MODULE], check=False, env={**os.environ, "GOBIN": str(BINARIES)})
        if found.is_file():
            return found
    pytest.fail(f"Go is there, but `go install {MODULE}` failed {INSTALL_ATTEMPTS} times: what it printed says why")


@asynccontextmanager
async def mocked() -> AsyncIterator[str]:
    """Run stripe-mock and give its address."""
    program = await asyncio.to_thread(stripe_mock)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        program, "-http-addr", f"127.0.0.1:{port}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while b"Listening for HTTP" not in (line := await process.stdout.readline()):
                assert line, "stripe-mock ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def everything(shop: Shop) -> None:
    """Have every kind of request sent."""
    voided, credited, by_hand, paid = await shop.bill(4, "code")
    await shop.work()
    async with transaction(shop.bench.billing) as conn:
        act = await act_on(conn)
        await void_invoice(conn, voided, note="", reissue=False, act=act)
        await credit_invoice(conn, credited, amount_minor=380, note="", refund=False, act=act)
        await pay_by_hand(conn, by_hand, amount_minor=0, reference="bank", act=act)
    await shop.work()
    (payer,) = await shop.bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    for kind in ("checkout", "portal"):
        await shop.pages.card_page(
            payer["tenant_id"], name="Code", kind=kind, return_url="https://example.com/", request_id="r"
        )
    shop.fake.complete(shop.fake.all("checkout/sessions")[0]["id"])
    await shop.hear()
    await shop.work()
    async with transaction(shop.bench.billing) as conn:
        await credit_invoice(conn, paid, amount_minor=1000, note="", refund=True, act=await act_on(conn))
    await shop.work()
    await shop.pages.remove_method(payer["tenant_id"], request_id="x")
    for row in await shop.bench.rows("SELECT * FROM provider_job"):
        async with transaction(shop.bench.billing) as conn:
            job = await lock_job(conn, Job(**{**row, "facts": {}}))
            work = work_of(job, await read_work(conn, job))
        for step in (
            ("customer", "draft", "lines", "credit", "refund") if "payment" in job.facts else ("void", "discard")
        ):
            await look_up(shop.stripe, work, step, frozen_at=shop.clock())
    await reconcile(shop.bench.billing, shop.stripe, since=shop.bench.start)
    shop.fake.wrong_total = 1
    await shop.bill(5, "code")
    await shop.work()


async def test_every_request_passes_stripes_own_description(bench: BillingBench) -> None:
    """Each request that we send, with its fields, is one of Stripe's API as stripe-mock has it."""
    async with open_shop(bench) as shop:
        await everything(shop)
        sent = {(method, target, body) for method, target, body, _ in shop.fake.log}
    async with mocked() as url:
        mock = StripeHttp.connect(url, api_key="sk_test_123")
        refused = []
        for method, target, body in sorted(sent):
            answer = await mock.send(Request(method, target, body))
            if answer is None or answer.status != 200:
                refused.append((method, target, body, answer))
        wrong = await mock.send(Request("POST", "/v1/invoices", b"no_such_field=1"))
        await mock.aclose()
    assert [] == refused
    assert wrong is not None
    assert 400 == wrong.status
    kinds = {(method, target.split("?")[0].rpartition("/")[2]) for method, target, _ in sent}
    assert {"add_lines", "finalize", "pay", "void", "credit_notes", "refunds", "sessions", "detach"} <= {
        word for _, word in kinds
    }
    assert any(method == "DELETE" for method, _ in kinds)


async def test_events_come_in_through_the_ledger(own_database_url: str, ledger_settings: Settings) -> None:
    """A signed event is 200 once it is committed; forged 400, too long 413, a provider that is away 503."""
    clock = Clock()
    fake = FakeStripe(clock)
    settings = ledger_settings.model_copy(
        update={"database_url": own_database_url, "stripe_key": "sk", "stripe_webhook_secret": SECRET}
    )
    settings = type(ledger_settings).model_validate({**settings.model_dump(), "stripe_url": fake.url})
    async with open_billing_bench(own_database_url) as bench, running(settings) as ledger:
        shop = Shop(bench, fake, clock)
        await shop.bill(1, "code")

        async def waits_for_a_card() -> bool:
            return len(await bench.rows("SELECT FROM provider_job WHERE state = 'waiting'")) == 1

        # The ledger's own collector does it; another one with another clock would take the job beside it.
        await wait_until(waits_for_a_card)
        fake.pay_on_page(fake.all("invoices")[0]["id"])
        await bench.set_now(bench.start)
        (event,) = [one for one in fake.events if one["type"] == "invoice.paid"]
        now = ledger.resources.provider.events.now()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ledger.http_port}", timeout=60) as client:

            async def post(header: str, body: bytes) -> int:
                answer = await client.post("/webhooks/stripe", content=body, headers={"Stripe-Signature": header})
                return answer.status_code

            header, body = fake.signed(event, at=now)
            assert 400 == await post(header, body + b" ")
            assert 413 == await post(header, b"x" * 300_000)
            fake.rate, fake.faults = 1.0, ("500-before",)
            assert 503 == await post(header, body)
            assert [] == await bench.rows("SELECT FROM provider_event")
            fake.rate = 0.0
            assert [200, 200] == [await post(header, body), await post(header, body)]
        assert [("paid", 0)] == await shop.standing()
        await shop.stripe.aclose()
    fake.close()
